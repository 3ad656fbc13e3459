"""Heads that are split off and merged again become one operator on tokens x channels, or stay with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from sparsecomp.capture import capture
from sparsecomp.passes.form_attention import FormAttention
from sparsecomp.passes.remove_copies import RemoveCopies
from sparsecomp.primitives import ATTENTION, CACHED_ATTENTION
from sparsecomp.program import Program
from tests.passes.programs import Wired, captured, let, operators, same_outputs

SDPA = F.scaled_dot_product_attention
FORMED = "sparsecomp.attention"
Function = Callable[..., Any]


def split(x: Tensor, heads: int = 4) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
    return merge(SDPA(split(q), split(k), split(v), *rest, **options))


def formed(model: nn.Module, *inputs: Tensor) -> Program:
    program = FormAttention()(RemoveCopies()(captured(model, *inputs)))
    program.check()
    return program


def check(function: Function, *inputs: Tensor, attentions: int = 1, **parts: Any) -> Program:
    """All attentions of the function are formed, for the example's batch and another."""
    model = Wired(function, **parts).eval()
    program = formed(model, *inputs)
    found = operators(program)
    assert found.count(FORMED) == attentions
    assert not any("scaled_dot_product" in name or "transpose" in name for name in found)
    assert same_outputs(program, model, *inputs)
    assert same_outputs(program, model, *(torch.cat([x, x]) if x.dim() == 3 else x for x in inputs))
    return program


def arguments(program: Program) -> list[Any]:
    """Heads, sizes, scale, causal and starts of the attention."""
    (node,) = (node for node in program.graph.graph.nodes if node.target is ATTENTION)
    return list(node.args[4:])


X = (2, 7, 32)
SPLITS: dict[str, Function] = {
    "view": lambda s, x: attend(x, x.sin(), x.cos()),
    "reshape and permute": lambda s, x: (
        SDPA(*(y.reshape(*y.shape[:2], 4, 8).permute(0, 2, 1, 3) for y in (x, x.sin(), x.cos())))
        .permute(0, 2, 1, 3)
        .contiguous()
        .view(x.shape)
    ),
    "flatten": lambda s, x: SDPA(split(x), split(x.sin()), split(x)).transpose(1, 2).flatten(2),
    "unflatten": lambda s, x: merge(SDPA(*(y.unflatten(-1, (4, 8)).transpose(-2, 1) for y in (x, x, x)))),
    "a clone of the merged heads": lambda s, x: (
        SDPA(split(x), split(x), split(x)).transpose(1, 2).clone().reshape(x.shape[0], -1, 32)
    ),
    "dropout of nothing": lambda s, x: F.dropout(attend(x, x, x, dropout_p=0.0), 0.5, s.training),
}


@pytest.mark.parametrize("what", SPLITS)
def test_forms(what: str) -> None:
    program = check(SPLITS[what], torch.randn(X))
    assert arguments(program) == [[4, 4], [8, 8], 8**-0.5, False, [0, 0, 0]]


def test_a_scale_and_causality_are_kept() -> None:
    program = check(lambda s, x: attend(x, x.sin(), x, is_causal=True, scale=0.3), torch.randn(X))
    assert arguments(program)[2:4] == [0.3, True]


def test_values_of_another_size() -> None:
    program = check(lambda s, x: attend(x, x.sin(), x[..., :20]), torch.randn(X))
    assert arguments(program)[1] == [8, 5]


FUSED: dict[str, Function] = {
    "split into equal parts": lambda s, x: attend(*torch.split(x, 32, dim=-1)),
    "chunk": lambda s, x: attend(*x.chunk(3, dim=2)),
    "slices": lambda s, x: attend(x[..., :32], x[..., 32:64], x[..., 64:]),
    "split into parts": lambda s, x: attend(*torch.split(x, [32, 32, 32], dim=2)),
}


@pytest.mark.parametrize("what", FUSED)
def test_parts_of_one_tensor_are_read_where_they_lie(what: str) -> None:
    program = check(FUSED[what], torch.randn(2, 7, 96))
    assert arguments(program)[-1] == [0, 32, 64]
    assert operators(program) == [FORMED]


def test_slices_by_a_step_or_from_the_end_are_tensors_of_their_own() -> None:
    program = check(lambda s, x: attend(x[..., ::3], x[..., -32:], x[..., :32]), torch.randn(2, 7, 96))
    assert arguments(program)[-1][0] == 0
    assert operators(program) != [FORMED]


@pytest.mark.parametrize("key_heads", [1, 2])
def test_fewer_heads_of_keys(key_heads: int) -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        q, k, v = torch.split(x, [32, 8 * key_heads, 8 * key_heads], dim=-1)
        return merge(SDPA(split(q), split(k, key_heads), split(v, key_heads), enable_gqa=True))

    program = check(function, torch.randn(2, 7, 32 + 16 * key_heads))
    assert arguments(program)[0] == [4, key_heads]


def test_tensors_of_heads_may_be_read_twice() -> None:
    def function(s: Any, x: Tensor) -> Any:
        q = split(x)
        return merge(SDPA(q, split(x.sin()), split(x.cos()))), q.sum(1)

    model, x = Wired(function).eval(), torch.randn(X)
    program = formed(model, x)
    assert operators(program).count(FORMED) == 1
    assert same_outputs(program, model, x)


def test_the_result_may_be_read_twice_and_returned() -> None:
    def function(s: Any, x: Tensor) -> Any:
        y = attend(x, x, x)
        return y, y.sin() + y

    check(function, torch.randn(X))


# Masks ------------------------------------------------------------------------------------------------------

MASKS = [
    (7, 7),
    (1, 7),
    (4, 7, 7),
    (1, 1, 7),
    (2, 1, 7, 7),
    (2, 4, 7, 7),
    (2, 4, 1, 7),
    (1, 1, 1, 7),
    (1, 4, 7, 7),
]


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks(shape: tuple[int, ...], kind: str) -> None:
    mask = torch.rand(shape) < 0.7 if kind == "bool" else torch.randn(shape)
    model, x = Wired(lambda s, x, m: attend(x, x.sin(), x, m)).eval(), torch.randn(X)
    program = formed(model, x, mask)
    assert operators(program) == ["aten.sin", "sparsecomp.score_mask", FORMED]
    assert same_outputs(program, model, x, mask)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_queries_that_see_nothing(kind: str) -> None:
    mask = torch.rand(2, 1, 7, 7) < 0.7
    mask[0, 0, 2] = False
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    model, x = Wired(lambda s, x, m: attend(x, x.sin(), x, m)).eval(), torch.randn(X)
    program = formed(model, x, mask)
    assert operators(program).count(FORMED) == 1
    assert same_outputs(program, model, x, mask)


def test_a_shared_mask_is_made_once() -> None:
    def function(s: Any, x: Tensor, m: Tensor, other: Tensor) -> Tensor:
        y = attend(x, x, x, m)
        return attend(attend(y, y, y, m), y, y, other)

    mask, other = torch.rand(2, 1, 1, 7) < 0.8, torch.randn(4, 7, 7)
    model, x = Wired(function).eval(), torch.randn(X)
    program = formed(model, x, mask, other)
    assert operators(program).count(FORMED) == 3
    assert operators(program).count("sparsecomp.score_mask") == 2
    assert same_outputs(program, model, x, mask, other)


# Caches -----------------------------------------------------------------------------------------------------

CACHED = "sparsecomp.cached_attention"


def attend_cache(s: Any, x: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """One token's attention to earlier ones; x holds its q, k and v."""
    heads = keys.shape[1]
    q, k, v = torch.split(x, [32, heads * keys.shape[3], heads * values.shape[3]], dim=-1)
    k, v = torch.cat([keys, split(k, heads)], 2), torch.cat([values, split(v, heads)], -2)
    return merge(SDPA(split(q), k, v, **options))


def cache(heads: int = 4, size: int = 8, value_size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 1, 32 + heads * (size + value_size))
    return x, torch.randn(2, heads, 6, size), torch.randn(2, heads, 6, value_size)


@pytest.mark.parametrize(("heads", "value_size"), [(4, 8), (4, 5), (2, 8)])
def test_one_token_and_a_cache(heads: int, value_size: int) -> None:
    inputs = cache(heads, value_size=value_size)
    model = Wired(lambda s, *x: attend_cache(s, *x, enable_gqa=heads != 4, scale=0.3)).eval()
    program = formed(model, *inputs)
    assert operators(program) == [CACHED]
    (node,) = (node for node in program.graph.graph.nodes if node.target is CACHED_ATTENTION)
    assert list(node.args[5:]) == [[4, heads], 0.3, [0, 32, 32 + heads * 8]]
    assert same_outputs(program, model, *inputs)
    assert same_outputs(program, model, *(torch.cat([x, x, x]) for x in inputs))


def test_what_joins_the_cache_may_be_returned() -> None:
    def function(s: Any, x: Tensor, keys: Tensor, values: Tensor) -> Any:
        return attend_cache(s, x, keys, values), torch.cat([keys, split(x[..., 32:64])], 2)

    model, inputs = Wired(function).eval(), cache()
    program = formed(model, *inputs)
    assert CACHED in operators(program)
    assert same_outputs(program, model, *inputs)


REFUSED_CACHES: dict[str, Function] = {
    "causal, which hides the cache": lambda s, *x: attend_cache(s, *x, is_causal=True),
    "a mask": lambda s, *x: attend_cache(s, *x, attn_mask=x[1][:, :1, :1, :7].new_ones(1, 7) * s.turn),
    "values that grow on both sides": lambda s, x, k, v: merge(
        SDPA(
            split(x[..., :32]),
            torch.cat([k, split(x[..., 32:64])], 2),
            torch.cat([v[:, :, :5], split(x[..., 64:]), v[:, :, :1]], 2),
        )
    ),
    "the new token first": lambda s, x, k, v: merge(
        SDPA(
            split(x[..., :32]),
            torch.cat([split(x[..., 32:64]), k], 2),
            torch.cat([split(x[..., 64:]), v], 2),
        )
    ),
}


@pytest.mark.parametrize("what", REFUSED_CACHES)
def test_refuses_caches(what: str) -> None:
    model, inputs = Wired(REFUSED_CACHES[what], turn=nn.Parameter(torch.randn(7))).eval(), cache()
    program = formed(model, *inputs)
    assert CACHED not in operators(program)
    assert same_outputs(program, model, *inputs)


def test_refuses_several_new_tokens() -> None:
    x, keys, values = cache()
    program = formed(Wired(attend_cache).eval(), torch.cat([x, x], 1), keys, values)
    assert CACHED not in operators(program)


# Near misses ------------------------------------------------------------------------------------------------

REFUSED: dict[str, Function] = {
    "fewer keys than queries": lambda s, x: attend(x, x[:, :5], x[:, :5]),
    "more keys than queries": lambda s, x: attend(x[:, :5], x, x),
    "heads that are read twice": lambda s, x: let(
        lambda y: merge(y) + y.sum(), SDPA(split(x), split(x), split(x))
    ),
    "heads that are not split": lambda s, x: SDPA(x, x, x),
    "heads that are not merged": lambda s, x: SDPA(split(x), split(x), split(x)),
    "merged as they lie": lambda s, x: SDPA(split(x), split(x), split(x)).reshape(x.shape),
    "merged into one row": lambda s, x: SDPA(split(x), split(x), split(x)).transpose(1, 2).reshape(-1, 32),
    "merged over tokens": lambda s, x: SDPA(split(x), split(x), split(x)).transpose(1, 2).reshape(-1, 14, 16),
    "heads that lie innermost": lambda s, x: merge(
        SDPA(*(y.view(-1, 7, 8, 4).permute(0, 3, 1, 2) for y in (x, x, x)))
    ),
    "heads of other tokens": lambda s, x: merge(
        SDPA(*(y.view(1, -1, 4, 8).transpose(1, 2) for y in (x, x, x)))
    ),
    "one head of keys, broadcast": lambda s, x: merge(
        SDPA(split(x), split(x[..., :8], 1).expand(-1, 4, -1, -1), split(x))
    ),
    "something between split and product": lambda s, x: merge(SDPA(split(x) * s.turn, split(x), split(x))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    model, x = Wired(REFUSED[what], turn=nn.Parameter(torch.randn(7, 8))).eval(), torch.randn(X)
    before = RemoveCopies()(captured(model, x))
    program = FormAttention()(before)
    assert program is before
    assert same_outputs(program, model, x)


def test_refuses_any_number_of_tokens() -> None:
    """Kernels are made for one."""
    model, x = Wired(lambda s, x: attend(x, x, x)).eval(), torch.randn(X)
    before = Program(capture(model, (x,), {}, {"inputs": ({0: Dim.AUTO, 1: Dim.AUTO},)}).graph)
    assert FormAttention()(before) is before


def test_refuses_dropout() -> None:
    before = captured(Wired(lambda s, x: attend(x, x, x, dropout_p=0.5)).eval(), torch.randn(X))
    assert FormAttention()(before) is before


def test_nothing_to_do() -> None:
    program = captured(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert FormAttention()(program) is program
