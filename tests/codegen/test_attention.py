"""Attention kernels against `scaled_dot_product_attention` in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.codegen.cpu.attention import AttentionKernel, attention
from sparsecomp.codegen.machine import Machine
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded

LOWEST = torch.finfo(torch.float32).min
GAP = 32
"""Floats between tiles, so that the distance between them is not their size."""
Masks = Literal["", "keys", "queries", "heads", "transposed", "constant"]


@dataclass(frozen=True)
class Case:
    tokens: int
    size: int = 16
    heads: int = 2
    value_size: int = 0
    key_heads: int = 0
    tile: int = 128
    causal: bool = False
    mask: Masks = ""
    scale: float = 0.25
    machine: int = 0

    @property
    def features(self) -> tuple[int, int, int, int]:
        """Of q, k, v and y."""
        keys, size = self.key_heads or self.heads, self.value_size or self.size
        return self.heads * self.size, keys * self.size, keys * size, self.heads * size

    @property
    def spec(self) -> AttentionKernel:
        q, k, v, y = (features * self.tile + GAP for features in self.features)
        mask = self.random_mask()
        return AttentionKernel(
            self.heads,
            self.size,
            self.value_size or self.size,
            self.tokens,
            self.tile,
            (q, k, v, y),
            self.scale,
            self.causal,
            None if mask is None else (mask.stride(0), mask.stride(1), mask.stride(2)),
            self.key_heads or self.heads,
        )

    def random_mask(self) -> Tensor | None:
        """heads x queries x keys, with rows of -inf and of the lowest number."""
        torch.manual_seed(1)
        n, shape = self.tokens, (self.heads, self.tokens, self.tokens)
        match self.mask:
            case "":
                return None
            case "keys":
                mask = torch.randn(n)
                mask[::3], mask[1::5] = -math.inf, LOWEST
                return surrounded(mask).expand(shape)
            case "constant":
                return surrounded(torch.randn(n, 1)).expand(shape)
        mask = torch.randn(shape if self.mask == "heads" else (n, n))
        mask[..., ::3] = -math.inf
        mask[..., n // 2, :], mask[..., n // 3, :], mask[..., 0, 0] = -math.inf, LOWEST, -math.inf
        mask = surrounded(mask)
        return (mask.T if self.mask == "transposed" else mask).expand(shape)


def to_tiles(x: Tensor, case: Case) -> Tensor:
    """heads x tokens x size -> tiles. What lies past the last token is NaN: nothing may depend on it."""
    heads, tokens, size = x.shape
    tiles = -(-tokens // case.tile)
    plane = torch.full((heads * size, tiles * case.tile), torch.nan)
    plane[:, :tokens] = x.transpose(1, 2).reshape(heads * size, tokens)
    laid = torch.full((tiles, heads * size * case.tile + GAP), torch.nan)
    laid[:, :-GAP] = plane.view(heads * size, tiles, case.tile).transpose(0, 1).reshape(tiles, -1)
    return laid


def from_tiles(y: Tensor, size: int, case: Case) -> Tensor:
    """tiles -> heads x columns x size, columns past the last token included."""
    tiles = y.shape[0]
    plane = y[:, :-GAP].view(tiles, -1, case.tile).transpose(0, 1).reshape(-1, tiles * case.tile)
    return plane.view(-1, size, tiles * case.tile).transpose(1, 2)


def check(case: Case, parts: int) -> None:
    spec, machine = case.spec, MACHINES[case.machine]
    keys = spec.key_heads
    q = torch.randn(case.heads, case.tokens, case.size)
    k, v = torch.randn(keys, case.tokens, case.size), torch.randn(keys, case.tokens, spec.value_size)
    mask = case.random_mask()
    tiles = -(-case.tokens // case.tile)
    y = Output(tiles, spec.steps[3])
    tensors = [*(surrounded(to_tiles(x, case)) for x in (q, k, v)), q if mask is None else mask, y.tensor]
    in_parts(compiled(attention, spec, machine), tensors, parts)
    y.check()
    actual = from_tiles(y.tensor, spec.value_size, case)
    expected = meaning(q, k, v, mask, case)
    torch.testing.assert_close(actual[:, : case.tokens].double(), expected, rtol=2e-5, atol=2e-6)
    check_outside(actual, y.tensor, case, machine)


def meaning(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, case: Case) -> Tensor:
    bias = torch.zeros(case.tokens, case.tokens, dtype=torch.float64)
    if case.causal:
        bias.masked_fill_(torch.ones_like(bias).triu(1).bool(), -math.inf)
    if mask is not None:
        bias = bias + mask.double()
    repeat = case.heads // k.shape[0]
    k, v = k.double().repeat_interleave(repeat, 0), v.double().repeat_interleave(repeat, 0)
    return F.scaled_dot_product_attention(q.double(), k, v, bias, scale=case.scale)


def check_outside(y: Tensor, tiles: Tensor, case: Case, machine: Machine) -> None:
    """Past the last token the vector's other columns are finite, and columns after it and gaps as before."""
    stored = -(-case.tokens // machine.lanes) * machine.lanes
    assert bool(y[:, :stored].isfinite().all())
    assert bool(y[:, stored:].isnan().all())
    assert bool(tiles[:, -GAP:].isnan().all())


@pytest.mark.parametrize("parts", [1, 3, 70])
def test_sequence_of_several_tiles(parts: int) -> None:
    check(Case(tokens=197, size=64), parts)


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=128, size=64, heads=1),
        Case(tokens=1),
        Case(tokens=3, size=5, value_size=3),
        Case(tokens=129, size=80, value_size=18, causal=True),
        Case(tokens=300, heads=6, key_heads=2, causal=True),
        Case(tokens=1100, size=4, heads=1),
        Case(tokens=40, tile=16),
    ],
    ids=str,
)
def test_sizes(case: Case) -> None:
    check(case, parts=2)


@pytest.mark.parametrize("mask", ["keys", "queries", "heads", "transposed", "constant"])
def test_masks(mask: Masks) -> None:
    check(Case(tokens=77, mask=mask), parts=1)


def test_mask_of_whole_vectors() -> None:
    check(Case(tokens=144, mask="queries"), parts=1)


def test_causal_and_masked() -> None:
    check(Case(tokens=150, causal=True, mask="keys"), parts=2)
    check(Case(tokens=60, causal=True, mask="queries"), parts=2)


@pytest.mark.parametrize("machine", [1, 2])
def test_shorter_vectors(machine: int) -> None:
    check(Case(tokens=141, size=20, value_size=7, machine=machine), parts=2)
    check(Case(tokens=37, causal=True, mask="heads", machine=machine), parts=1)


def test_a_key_that_none_may_see_adds_nothing() -> None:
    """exp(-inf) is 0, not the smallest that the kernel's exponential gives: infinity and NaN stay out."""
    case = Case(tokens=20, size=1, value_size=1, heads=1, mask="keys")
    q, k, v = torch.zeros(1, 20, 1), torch.zeros(1, 20, 1), torch.full((1, 20, 1), 3e38)
    v[:, 5] = 1.0
    mask = torch.full((20,), -math.inf)
    y = Output(1, case.spec.steps[3])
    for visible, expected in ([5], 1.0), ([], 0.0):
        mask[visible] = 0.0
        run = compiled(attention, case.spec, MACHINES[0])
        run(*(to_tiles(x, case) for x in (q, k, v)), mask, y.tensor, 0, 1)
        torch.testing.assert_close(from_tiles(y.tensor, 1, case)[:, :20], torch.full((1, 20, 1), expected))
        mask[visible] = -math.inf


def test_nan_stays_nan() -> None:
    case = Case(tokens=20, heads=1)
    q, k, v = (torch.randn(1, 20, 16) for _ in range(3))
    q[0, 7] = torch.nan
    y = Output(1, case.spec.steps[3])
    compiled(attention, case.spec, MACHINES[0])(*(to_tiles(x, case) for x in (q, k, v)), q, y.tensor, 0, 1)
    assert from_tiles(y.tensor, 16, case)[0, :20].isnan().any(1).nonzero().tolist() == [[7]]
