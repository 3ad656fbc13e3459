"""The work between layers that regions can hold, and what they leave to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from sparsecomp.capture import capture
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.passes import analysis, choosing, rewriting
from sparsecomp.pipeline import run
from sparsecomp.program import Program
from sparsecomp.work import Norm, Pool
from tests.passes.programs import Wired, captured, let, rewritten, same_when_lowered, sparse

Function = Callable[..., Any]
IMAGE, TOKENS = (2, 4, 9, 11), (2, 5, 16)
SMALLER = (2, 4, 5, 4)
"""Than `IMAGE`, for another call of the same graph."""


def images(function: Function, **parts: Any) -> nn.Module:
    """A convolution, whatever `function` does with its output y, and another convolution."""
    first, last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
    return sparse(
        Wired(lambda s, x, *more: s.last(function(s, s.first(x), *more)), first=first, last=last, **parts)
    )


def tokens(function: Function, **parts: Any) -> nn.Module:
    """The same with linear layers of 16 features."""
    first, last = nn.Linear(16, 16), nn.Linear(16, 16)
    return sparse(
        Wired(lambda s, x, *more: s.last(function(s, s.first(x), *more)), first=first, last=last, **parts)
    )


def works(program: Program) -> list[str]:
    """What is found, each with its epilogue."""
    return [f"{found.op.work} {found.op.epilogue}".strip() for found in program.works.values()]


def check(model: nn.Module, expected: list[str], *inputs: Tensor, regions: int = 1) -> Program:
    program = rewritten(model, *inputs)
    assert works(program) == expected
    assert len(program.regions) == regions
    assert same_when_lowered(program, model, *inputs)
    return program


# Tokens -----------------------------------------------------------------------------------------------------

NORMS: dict[str, tuple[Function, Norm]] = {
    "layer norm": (lambda s, y: F.layer_norm(y, (16,), s.w, s.b), Norm("layer", 16, 1e-5, True, True)),
    "its epsilon": (lambda s, y: F.layer_norm(y, (16,), s.w, s.b, 0.2), Norm("layer", 16, 0.2, True, True)),
    "without weights": (lambda s, y: F.layer_norm(y, (16,)), Norm("layer", 16, 1e-5, False, False)),
    "without bias": (lambda s, y: F.layer_norm(y, (16,), s.w), Norm("layer", 16, 1e-5, True, False)),
    "bias alone": (lambda s, y: F.layer_norm(y, (16,), None, s.b), Norm("layer", 16, 1e-5, False, True)),
    "rms norm": (lambda s, y: F.rms_norm(y, (16,), s.w, 0.2), Norm("rms", 16, 0.2, True, False)),
    "rms norm as it comes": (
        lambda s, y: F.rms_norm(y, (16,)),
        Norm("rms", 16, torch.finfo(torch.float32).eps, False, False),
    ),
}


@pytest.mark.parametrize("shape", [TOKENS, (3, 16), (2, 3, 5, 16)], ids=str)
@pytest.mark.parametrize("what", NORMS)
def test_norms(what: str, shape: tuple[int, ...]) -> None:
    function, expected = NORMS[what]
    model = tokens(function, w=nn.Parameter(torch.rand(16)), b=nn.Parameter(torch.randn(16)))
    program = check(model, [str(expected)], torch.randn(shape))
    (found,) = program.works.values()
    assert found.op.work == expected
    assert len(found.vectors) == expected.weight + expected.bias


NOT_NORMS: dict[str, Function] = {
    "over two dimensions": lambda s, y: F.layer_norm(y, (5, 16)),
    "a weight that is computed": lambda s, y: F.layer_norm(y, (16,), s.w * 2, s.b),
    "a bias that is computed": lambda s, y: F.layer_norm(y, (16,), s.w, s.b * 2),
    "an operator that no region holds": lambda s, y: y.softmax(-1),
}


@pytest.mark.parametrize("what", NOT_NORMS)
def test_other_norms_stay(what: str) -> None:
    model = tokens(NOT_NORMS[what], w=nn.Parameter(torch.rand(16)), b=nn.Parameter(torch.randn(16)))
    check(model, [], torch.randn(TOKENS), regions=2)


POINTWISE: dict[str, tuple[Function, list[str]]] = {
    "an activation": (lambda s, y: F.relu(s.n(y)), ["pointwise relu"]),
    "tanh gelu": (lambda s, y: F.gelu(s.n(y), approximate="tanh"), ["pointwise gelu_tanh"]),
    "clamps": (lambda s, y: F.relu6(s.n(y)).clamp(min=0), ["pointwise relu6", "pointwise relu"]),
    "a sum": (lambda s, y: s.n(y) + y, ["pointwise add"]),
}


@pytest.mark.parametrize("what", POINTWISE)
def test_element_wise_operators(what: str) -> None:
    function, expected = POINTWISE[what]
    check(tokens(function, n=nn.LayerNorm(16)), ["layer norm", *expected], torch.randn(TOKENS))


def test_an_element_wise_operator_reads_what_is_outside() -> None:
    model = tokens(lambda s, y, z: s.n(y) * z.softmax(-1), n=nn.LayerNorm(16))
    check(model, ["layer norm", "pointwise multiply"], torch.randn(TOKENS), torch.randn(TOKENS))


NOT_POINTWISE: dict[str, Function] = {
    "a tensor and itself": lambda s, y: let(lambda z: z + z, s.n(y)),
    "a scaled sum": lambda s, y: torch.add(s.n(y), y, alpha=2),
    "a number": lambda s, y: s.n(y) * 3,
    "a vector": lambda s, y: s.n(y) * s.w,
    "a smaller tensor": lambda s, y: s.n(y) + y[:, :1],
    "another clamp": lambda s, y: s.n(y).clamp(-1, 6),
    "numbers of another type": lambda s, y: s.n(y) * (y > 0),
    "double precision": lambda s, y: (s.n(y).double() * y).float(),
}


@pytest.mark.parametrize("what", NOT_POINTWISE)
def test_other_element_wise_operators_stay(what: str) -> None:
    model = tokens(NOT_POINTWISE[what], n=nn.LayerNorm(16), w=nn.Parameter(torch.rand(16)))
    check(model, ["layer norm"], torch.randn(TOKENS), regions=2)


# Images -----------------------------------------------------------------------------------------------------

POOLS: dict[str, tuple[Function, str]] = {
    "max": (lambda s, y: F.max_pool2d(y, 2), "max pool 2x2"),
    "of its own stride and gaps": (lambda s, y: F.max_pool2d(y, (3, 2), (1, 2), 0, (2, 1)), "max pool 3x2"),
    "with padding, of what is not negative": (
        lambda s, y: F.max_pool2d(F.relu(y), 3, 2, 1),
        "max pool 3x3",
    ),
    "with padding, of a sigmoid": (lambda s, y: F.max_pool2d(y.sigmoid(), 3, 1, 1), "max pool 3x3"),
    "whole windows, asked for partial ones": (
        lambda s, y: F.max_pool2d(y, 3, 2, ceil_mode=True),
        "max pool 3x3",
    ),
    "mean": (lambda s, y: F.avg_pool2d(y, 2), "mean pool 2x2"),
    "mean with padding": (lambda s, y: F.avg_pool2d(y, 3, 2, 1), "mean pool 3x3"),
    "mean that counts no padding, for there is none": (
        lambda s, y: F.avg_pool2d(y, 3, count_include_pad=False),
        "mean pool 3x3",
    ),
    "all pixels": (lambda s, y: y.mean((2, 3), keepdim=True), "mean"),
    "all pixels, counted from the end": (lambda s, y: y.mean((-1, -2), keepdim=True), "mean"),
    "all pixels, by pooling": (lambda s, y: F.adaptive_avg_pool2d(y, 1), "mean"),
    "all pixels, by pooling to a size": (lambda s, y: F.adaptive_avg_pool2d(y, (1, 1)), "mean"),
}


@pytest.mark.parametrize("what", POOLS)
def test_pools(what: str) -> None:
    function, expected = POOLS[what]
    check(images(function), [expected], torch.randn(IMAGE))


NOT_POOLS: dict[str, Function] = {
    "max with padding, of what may be negative": lambda s, y: F.max_pool2d(y, 3, 2, 1),
    "max with padding, of gelu": lambda s, y: F.max_pool2d(F.gelu(y), 3, 2, 1),
    "max with padding, of what was positive": lambda s, y: F.max_pool2d(F.relu(y) - 1, 3, 2, 1),
    "max with its places": lambda s, y: F.max_pool2d(y, 2, return_indices=True)[0],
    "max of partial windows": lambda s, y: F.max_pool2d(y, 2, ceil_mode=True),
    "mean of partial windows": lambda s, y: F.avg_pool2d(y, 2, ceil_mode=True),
    "mean that does not count padding": lambda s, y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    "mean divided by another number": lambda s, y: F.avg_pool2d(y, 2, divisor_override=3),
    "to another size": lambda s, y: F.adaptive_avg_pool2d(y, 3),
    "to the height there is": lambda s, y: F.adaptive_avg_pool2d(y, (None, 1)),
    "mean of columns": lambda s, y: y.mean(2, keepdim=True),
    "mean of channels": lambda s, y: y.mean(1, keepdim=True).expand(-1, 8, -1, -1),
    "mean of everything": lambda s, y: y.mean(None, keepdim=True).expand(2, 8, -1, -1),
    "mean of another type": lambda s, y: y.mean((2, 3), keepdim=True, dtype=torch.float64).float(),
    "layer norm of image rows": lambda s, y: F.layer_norm(y, (11,)),
    "layer norm of images": lambda s, y: F.layer_norm(y, (8, 9, 11)),
    "batch norm of what two read": lambda s, y: s.n(y) - y,
}


@pytest.mark.parametrize("what", NOT_POOLS)
def test_other_pools_stay(what: str) -> None:
    norm = nn.BatchNorm2d(8)
    norm.running_mean = torch.randn(8)
    check(images(NOT_POOLS[what], n=norm), [], torch.randn(IMAGE), regions=2)


def test_an_image_is_what_a_convolution_reads() -> None:
    model = sparse(Wired(lambda s, x: s.c(F.max_pool2d(x, 2)), c=nn.Conv2d(4, 8, 3)))
    program = check(model, ["max pool 2x2"], torch.randn(IMAGE))
    (found,) = program.works.values()
    assert found.op.channel == 1


def test_images_stay_images_from_one_work_to_the_next() -> None:
    def function(s: Any, y: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(y, 2) + F.avg_pool2d(y, 2)).mean((2, 3), keepdim=True)

    expected = ["max pool 2x2", "mean pool 2x2", "pointwise add", "pointwise relu", "mean"]
    program = check(images(function), expected, torch.randn(IMAGE))
    assert {found.op.channel for found in program.works.values()} == {1}


def test_the_mean_of_images_may_be_a_matrix() -> None:
    model = sparse(Wired(lambda s, x: s.l(s.c(x).mean((2, 3))), c=nn.Conv2d(4, 8, 3), l=nn.Linear(8, 5)))
    check(model, ["mean"], torch.randn(IMAGE), regions=2)


def test_a_sum_of_tokens_and_images_of_one_shape() -> None:
    """Each lies in memory as its own region wants it."""

    def function(s: Any, x: Tensor) -> Tensor:
        y, z = s.c(x), s.l(x)
        total: Tensor = s.c(F.relu(y * z) + y + z)
        return total

    model = sparse(Wired(function, c=nn.Conv2d(4, 4, 1), l=nn.Linear(11, 11)))
    program = rewritten(model, torch.randn(IMAGE))
    assert len(program.regions) == 2
    assert same_when_lowered(program, model, torch.randn(IMAGE))


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(
    "function",
    [lambda s, x: x.mean((2, 3), keepdim=True), lambda s, x: F.adaptive_avg_pool2d(x, 1)],
    ids=["mean", "pooling"],
)
def test_images_of_any_size_stay(function: Function, target: str) -> None:
    """A region's layout is for one size, so calls of another would fail."""
    model = sparse(Wired(lambda s, x: s.c(function(s, x)), c=nn.Conv2d(4, 8, 1)))
    x, free = torch.randn(IMAGE), {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    program = Program(capture(model, (x,), {}, {"inputs": (free,)}).graph)
    passes = (*analysis((x,)), *choosing(StoredCost()), *rewriting("test/any-size", (x,)))
    program, _ = run(passes, program)
    assert works(program) == []
    assert len(program.regions) == 1
    for shape in (IMAGE, SMALLER):
        assert same_when_lowered(program, model, torch.randn(shape), target=target)


# What is recorded -------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_example() -> None:
    def function(s: Any, y: Tensor) -> Tensor:
        return F.relu(s.n(torch.cat([y, y])))

    program = rewritten(tokens(function, n=nn.LayerNorm(16)), torch.randn(TOKENS))
    norm, relu = (found.op for found in program.works.values())
    assert norm.input_shapes == ((4, 5, 16),)
    assert norm.output_shape == relu.output_shape == (4, 5, 16)


def test_a_pool_is_recorded_with_its_window() -> None:
    program = rewritten(images(lambda s, y: F.max_pool2d(F.relu(y), 3, 2, 1)), torch.randn(IMAGE))
    (found,) = program.works.values()
    assert isinstance(found.op.work, Pool)
    assert found.op.work.window.output_shape == (1, 8, 5, 6)
    assert found.op.output_shape == (2, 8, 5, 6)


@pytest.mark.parametrize(
    ("shape", "shared"), [((2, 1, 5, 5), False), ((1, 1, 5, 5), True), ((4, 5, 5), True)]
)
def test_attention_is_recorded_with_its_mask(shape: tuple[int, ...], shared: bool) -> None:
    def function(s: Any, y: Tensor, mask: Tensor) -> Tensor:
        q = y.view(2, 5, 4, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, mask).transpose(1, 2).reshape(y.shape)

    program = check(tokens(function), ["attention of 4 heads"], torch.randn(TOKENS), torch.randn(shape))
    (found,) = program.works.values()
    assert found.op.shared_mask is shared
    assert found.op.plain == ("score_mask_default",)
    assert len(found.op.activations) == 3


def test_nothing_is_looked_for_without_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    assert not rewritten(model, torch.randn(2, 4)).works
    assert not captured(model, torch.randn(2, 4)).works
