"""Blocks of networks end to end: layers with attention, norms and pooling between them, in one graph.

Nothing may be left to an exception: each must run as a whole graph, without a note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from sparsecomp import SparseModule, codegen, compile_sparse
from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.cpu.bitmap_rows import refusal
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.compare import relative_error
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS
from sparsecomp.region import FewTokens, FewWeights, RowsKernelChoice
from sparsecomp.target import Target
from tests.passes.programs import Wired, let, sparse

Inputs = Sequence[Tensor]
WIDTH = 32
FIXED = "dimension 0 is fixed"
"""The one note that is allowed: a mask without a batch has none to vary."""


@pytest.fixture(autouse=True)
def _whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are taken by how much they store, and the model however slow."""
    monkeypatch.setattr(codegen, "meter", lambda target, threads: StoredCost())
    refused = SparseModule._refused

    def wrong(self: SparseModule, error: float, eager: float, compiled: float) -> str:
        return refused(self, error, 1.0, 0.0)

    monkeypatch.setattr(SparseModule, "_refused", wrong)


def check(
    model: nn.Module,
    calls: Sequence[Inputs],
    target: str = "reference",
    regions: int | None = 1,
    **options: Any,
) -> SparseModule:
    """Compiled for the first call, the model is right in all, in as many regions."""
    sparse(model)
    compiled = compile_sparse(model, tuple(calls[0]), target=target, min_speedup=0.0, **options)
    for inputs in calls:
        with torch.no_grad():
            assert relative_error(compiled(*inputs), model(*inputs)) < 1e-5
    assert compiled.report.rung == "whole graph"
    assert [note for note in compiled.report.notes if not note.startswith(FIXED)] == []
    if regions is not None:
        assert len(compiled.report.regions) == regions
    return compiled


def batches(*shapes: tuple[int, ...], others: Sequence[int] = (1, 5)) -> list[list[Tensor]]:
    """Inputs of a batch of 2, and of others."""
    return [[torch.randn(batch, *shape) for shape in shapes] for batch in (2, *others)]


class Block(nn.Module):
    """A transformer block: `heads` of queries, `key_heads` of keys, norms before or after."""

    def __init__(
        self,
        width: int = WIDTH,
        heads: int = 4,
        key_heads: int = 0,
        *,
        fused: bool = False,
        causal: bool = False,
        norms_first: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = heads, key_heads or heads, width // heads
        self.causal, self.norms_first = causal, norms_first
        keys = self.key_heads * self.size
        self.sizes = [width, keys, keys]
        inputs = [sum(self.sizes)] if fused else self.sizes
        self.inputs = nn.ModuleList(nn.Linear(width, size) for size in inputs)
        self.out, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )
        self.first, self.second = norm(width), norm(width)
        self.dropout = nn.Dropout(0.5)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.size).transpose(1, 2)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        parts = [layer(x) for layer in self.inputs]
        q, k, v = torch.split(parts[0], self.sizes, dim=-1) if len(parts) == 1 else parts
        grouped = self.heads != self.key_heads
        heads = (self.split(q, self.heads), self.split(k, self.key_heads), self.split(v, self.key_heads))
        y = F.scaled_dot_product_attention(*heads, mask, is_causal=self.causal, enable_gqa=grouped)
        y = self.out(y.transpose(1, 2).reshape(x.shape))
        return self.dropout(y)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norms_first:
            x = x + self.attend(self.first(x), mask)
            return x + self.down(F.gelu(self.up(self.second(x))))  # type: ignore[no-any-return]
        x = self.first(x + self.attend(x, mask))
        return self.second(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


BLOCKS: dict[str, dict[str, Any]] = {
    "norms last": {"norms_first": False},
    "one layer for q, k and v": {"fused": True},
    "heads of 20, causal": {"width": 40, "heads": 2, "causal": True},
    "keys for two": {"key_heads": 2},
    "one head of keys, one layer": {"key_heads": 1, "fused": True},
    "rms norm": {"norm": nn.RMSNorm},
}


@pytest.mark.parametrize("what", BLOCKS)
def test_transformer_blocks(what: str) -> None:
    check(Block(**BLOCKS[what]), batches((13, BLOCKS[what].get("width", WIDTH))))


@pytest.mark.parametrize(
    ("what", "tokens"),
    [
        ("one layer for q, k and v", 1),
        ("norms last", 197),
        ("heads of 20, causal", 130),
        ("one head of keys, one layer", 7),
    ],
)
def test_transformer_blocks_as_kernels(what: str, tokens: int) -> None:
    check(Block(**BLOCKS[what]), batches((tokens, BLOCKS[what].get("width", WIDTH))), "cpu")


def test_threads_share_the_sequences_or_each_of_them() -> None:
    check(Block(key_heads=2), batches((150, WIDTH), (4, 150, 150), others=(1, 5)), "cpu", threads=2)


# Masks ------------------------------------------------------------------------------------------------------

MASKS = [
    ((13, 13), "bool", "cpu"),
    ((4, 13, 13), "float", "reference"),
    ((2, 1, 1, 13), "bool", "cpu"),
    ((2, 4, 13, 13), "float", "reference"),
    ((1, 4, 1, 13), "float", "cpu"),
]


def masked(shape: tuple[int, ...], kind: str) -> list[list[Tensor]]:
    """Calls of batches of 2, 1 and 5; the mask is there for each item where `shape` begins with 2."""
    calls = batches((13, WIDTH))
    for inputs in calls:
        own = (len(inputs[0]), *shape[1:]) if len(shape) == 4 and shape[0] == 2 else shape
        seen = torch.rand(own) < 0.6
        seen[..., 0] = True
        inputs.append(seen if kind == "bool" else torch.randn(own))
    return calls


@pytest.mark.parametrize(("shape", "kind", "target"), MASKS, ids=str)
def test_masks(shape: tuple[int, ...], kind: str, target: str) -> None:
    check(Block(), masked(shape, kind), target)


@pytest.mark.parametrize("hidden", [float("-inf"), torch.finfo(torch.float32).min], ids=["infinity", "least"])
def test_queries_that_see_nothing(hidden: float) -> None:
    seen = torch.rand(2, 1, 13, 13) < 0.6
    seen[1, :, 3] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, hidden)
    check(Block(), [[torch.randn(2, 13, WIDTH), mask]], "cpu")


class Stack(nn.Module):
    """Two blocks; a mask for both, or one each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor, mask: Tensor, other: Tensor | None = None) -> Tensor:
        return self.second(self.first(x, mask), mask if other is None else other)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shapes", [[(1, 1, 13)], [(1, 1, 13), (4, 13, 13)]], ids=["shared", "one each"])
def test_masks_of_several_layers(shapes: list[tuple[int, ...]]) -> None:
    compiled = check(Stack(), batches((13, WIDTH), *shapes))
    assert compiled.graph is not None
    found = [node for node in compiled.graph.graph.nodes if "score_mask" in node.name]
    assert len(found) == len(shapes)


# What is around attention -----------------------------------------------------------------------------------


def split(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], 4, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    y = F.scaled_dot_product_attention(split(q), split(k), split(v), *rest)
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def projections(**parts: nn.Module) -> dict[str, nn.Module]:
    return {**{name: nn.Linear(WIDTH, WIDTH) for name in "qkvo"}, "n": nn.LayerNorm(WIDTH), **parts}


def cross(s: Any, x: Tensor, y: Tensor) -> Any:
    return s.o(attend(s.q(x), s.k(y), s.v(y)))


AROUND: dict[str, tuple[int, Callable[..., Any]]] = {
    "attention read twice": (1, lambda s, x: let(lambda y: s.o(y) + y, attend(s.q(x), s.k(x), s.v(x)))),
    "heads read by another": (
        1,
        lambda s, x: let(lambda q: (s.o(attend(q, s.k(x), s.v(x))), q.sin()), s.q(x)),
    ),
    "attention returned": (1, lambda s, x: (attend(s.q(x), s.k(x), s.v(x)), s.o(x))),
    "one tensor for all three": (1, lambda s, x: let(lambda y: s.o(attend(y, y, y)), s.q(x))),
    "an input for all three": (1, lambda s, x: s.o(attend(x, x, x))),
    "a mask that a layer makes": (2, lambda s, x: s.o(attend(s.q(x), s.k(x), s.v(x), s.m(x)[:, None]))),
    "a residual that is returned": (1, lambda s, x: let(lambda y: (y, s.o(s.n(y)), y), s.q(x) + x)),
    "results that many read": (
        1,
        lambda s, x: let(lambda y: (y.cumsum(0), y.softmax(-1) + y, s.o(y)), s.n(s.q(x))),
    ),
    "in place": (2, lambda s, x: s.o(s.n(s.q(x)).relu_().add_(x).mul_(2))),
    "written into": (2, lambda s, x: let(lambda y: (y[:, 0].zero_(), s.o(y))[1], s.n(s.q(x)).clone())),
    "added to itself": (2, lambda s, x: let(lambda y: s.o(y + y), s.n(s.q(x)))),
    "flattened tokens": (1, lambda s, x: s.o(s.q(x.reshape(-1, WIDTH))).view(x.shape) + x),
    "channels regrouped": (2, lambda s, x: s.h(s.q(x).view(x.shape[0], -1, WIDTH // 2))),
    "a circle": (
        3,
        lambda s, x: let(lambda a, b: s.o(a + b.softmax(-1)) + s.v(b + a.softmax(-1)), s.q(x), s.k(x)),
    ),
}


@pytest.mark.parametrize("what", AROUND)
def test_around_attention(what: str) -> None:
    regions, function = AROUND[what]
    parts = projections(m=nn.Linear(WIDTH, 13), h=nn.Linear(WIDTH // 2, 8))
    check(Wired(function, **parts), batches((13, WIDTH)), regions=None if regions == 3 else regions)


@pytest.mark.parametrize(("tokens", "regions", "target"), [(7, 3, "reference"), (13, 2, "cpu")])
def test_queries_and_keys_of_different_tensors(tokens: int, regions: int, target: str) -> None:
    """Of as many tokens it is attention as any; cross attention stays with PyTorch."""
    compiled = check(Wired(cross, **projections()), batches((13, WIDTH), (tokens, WIDTH)), target, regions)
    assert compiled.graph is not None
    names = [node.name for node in compiled.graph.graph.nodes]
    assert any("scaled_dot_product" in name for name in names) == (tokens != 13)


def test_sequences_of_any_length() -> None:
    """Attention then stays with PyTorch, norms and layers do not."""
    free = ({0: Dim.AUTO, 1: Dim.AUTO},)
    calls = [[torch.randn(batch, tokens, WIDTH)] for batch, tokens in ((2, 13), (2, 9), (4, 140))]
    model = Wired(lambda s, x: s.o(s.n(attend(s.q(x), s.k(x), s.v(x)))), **projections())
    check(model, calls, "cpu", regions=2, dynamic_shapes={"inputs": free})


def test_tokens_without_a_batch_and_two_batches() -> None:
    def function(s: Any, x: Tensor, y: Tensor) -> Any:
        return s.o(s.n(s.q(x))), s.k(s.n(y))

    calls = [[torch.randn(a, WIDTH), torch.randn(b, WIDTH)] for a, b in ((4, 3), (3, 3), (200, 2))]
    check(Wired(function, **projections()), calls, "cpu", regions=2)


# Images -----------------------------------------------------------------------------------------------------


def res(s: Any, x: Tensor) -> Any:
    y = F.max_pool2d(F.relu(s.norm(s.stem(x))), 3, 2, 1)
    y = F.relu(s.same(y) + y)
    y = F.avg_pool2d(y, 2, 2) + F.max_pool2d(s.narrow(y), 2, 2)
    return s.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def squeezed(s: Any, x: Tensor) -> Any:
    y = F.relu(s.stem(x))
    return s.same(y * s.gate(F.relu(s.narrow(y.mean((2, 3), keepdim=True)))).sigmoid()).mean((2, 3))


def convnext(s: Any, x: Tensor) -> Any:
    y = s.stem(x)
    z = s.out(F.gelu(s.into(s.channels(y.permute(0, 2, 3, 1)))))
    return y + z.permute(0, 3, 1, 2)


def conv_parts() -> dict[str, nn.Module]:
    norm = nn.BatchNorm2d(8)
    norm.running_mean = torch.randn(8)
    convolutions = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "same": nn.Conv2d(8, 8, 3, padding=1),
        "narrow": nn.Conv2d(8, 8, 1),
        "gate": nn.Conv2d(8, 8, 1),
    }
    linears = {"head": nn.Linear(8, 5), "into": nn.Linear(8, 16), "out": nn.Linear(16, 8)}
    return {**convolutions, **linears, "norm": norm, "channels": nn.LayerNorm(8)}


@pytest.mark.parametrize(("function", "regions"), [(res, 2), (squeezed, 2), (convnext, 2)])
def test_images(function: Callable[..., Any], regions: int) -> None:
    check(Wired(function, **conv_parts()), batches((3, 15, 18)), regions=regions)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("length", [65, 130, 200])
def test_tiles_that_threads_do_alone_and_together(length: int, threads: int) -> None:
    check(Block(), batches((length, WIDTH), others=(1,)), "cpu", threads=threads)


# Caches -----------------------------------------------------------------------------------------------------


class TokensFirstCost(StoredCost):
    """Gives every layer one kernel, which takes activations as PyTorch has them."""

    def __init__(self, schedule: FewTokens | FewWeights) -> None:
        super().__init__()
        self.schedule = schedule

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        how = RowsKernelChoice(PATTERNS[0], self.schedule)
        return Candidate(DENSE, 2.0, stored=matrix.numel()), Candidate(str(how), 1.0, how=how, stored=1)


class Decode(nn.Module):
    """One token through attention to a cache and a residual; returns what joins the cache too."""

    def __init__(self, heads: int = 4, key_heads: int = 4) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = heads, key_heads, WIDTH // heads
        self.fused = nn.Linear(WIDTH, WIDTH + 2 * key_heads * self.size)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = self.key_heads * self.size
        q, k, v = (
            part.unflatten(-1, (-1, self.size)).transpose(1, 2)
            for part in self.fused(self.norm(x)).split([WIDTH, own, own], dim=-1)
        )
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        y = F.scaled_dot_product_attention(q, keys, values, enable_gqa=self.heads != self.key_heads)
        return x + self.out(y.transpose(1, 2).flatten(2)), keys[:, :, -1:] + 0, values[:, :, -1:] + 0


@pytest.mark.parametrize("schedule", [FewTokens(), FewWeights()], ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_token_and_a_cache(
    target: str, key_heads: int, schedule: FewTokens | FewWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "cpu" and isinstance(schedule, FewTokens) and refusal(machine_of(Target())):
        pytest.skip("no kernels for few tokens on this machine")
    monkeypatch.setattr(codegen, "meter", lambda target, threads: TokensFirstCost(schedule))
    calls = batches((1, WIDTH), (key_heads, 6, 8), (key_heads, 6, 8), others=(1, 5, 100))
    compiled = check(Decode(key_heads=key_heads), calls, target)
    held = str(compiled.report.regions[0].layers)
    assert "fused" in held
    assert "out" in held
