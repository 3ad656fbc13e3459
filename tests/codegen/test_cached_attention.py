"""Attention of one token to a cache, against `scaled_dot_product_attention` in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.codegen.cpu.cached_attention import CachedAttentionKernel, cached_attention
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded

GAP = 3
"""Floats between one token's part and the next one's beyond its size."""


@dataclass(frozen=True)
class Case:
    past: int
    size: int = 16
    value_size: int = 16
    heads: int = 2
    key_heads: int = 2
    machine: int = 0
    scale: float = 0.25

    @property
    def spec(self) -> CachedAttentionKernel:
        q, k = self.heads * self.size + GAP, self.key_heads * self.size + GAP
        v = self.key_heads * self.value_size + GAP
        return CachedAttentionKernel(
            self.heads, self.key_heads, self.size, self.value_size, self.past, (q, k, v), self.scale
        )


def tokens_of(x: Tensor) -> Tensor:
    """tokens x heads x 1 x size -> tokens x (heads * size + GAP), NaN in the gap."""
    rows = x.flatten(1)
    return surrounded(torch.cat([rows, torch.full((len(rows), GAP), torch.nan)], 1))


def check(case: Case, tokens: int = 1, parts: int = 1, spread: float = 1.0) -> None:
    torch.manual_seed(0)
    q = torch.randn(tokens, case.heads, 1, case.size) * spread
    k = torch.randn(tokens, case.key_heads, 1, case.size)
    v = torch.randn(tokens, case.key_heads, 1, case.value_size)
    keys = torch.randn(tokens, case.key_heads, case.past, case.size)
    values = torch.randn(tokens, case.key_heads, case.past, case.value_size)
    y = Output(tokens, case.heads * case.value_size)
    tensors = [tokens_of(q), tokens_of(k), tokens_of(v), surrounded(keys), surrounded(values), y.tensor]
    in_parts(compiled(cached_attention, case.spec, MACHINES[case.machine]), tensors, parts, tokens)
    y.check()
    expected = F.scaled_dot_product_attention(
        q.double(),
        torch.cat([keys, k], 2).double(),
        torch.cat([values, v], 2).double(),
        scale=case.scale,
        enable_gqa=case.heads != case.key_heads,
    )
    torch.testing.assert_close(y.tensor.double(), expected.flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("machine", range(len(MACHINES)))
@pytest.mark.parametrize("past", [1, 14, 15, 16, 64])
def test_past(past: int, machine: int) -> None:
    check(Case(past, machine=machine))


@pytest.mark.parametrize("machine", range(len(MACHINES)))
@pytest.mark.parametrize(("size", "value_size"), [(64, 64), (20, 7), (5, 40), (80, 144)])
def test_sizes(size: int, value_size: int, machine: int) -> None:
    check(Case(9, size, value_size, machine=machine))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_tokens_and_parts(parts: int) -> None:
    check(Case(6, heads=3, key_heads=3), tokens=3, parts=parts)


def test_heads_that_share_keys() -> None:
    check(Case(6, heads=6, key_heads=2), tokens=2)


def test_scores_far_apart() -> None:
    """All weight goes to one token; exponentials of the others underflow."""
    check(Case(33), spread=300.0)


@settings(max_examples=15, deadline=None)
@given(
    past=st.integers(1, 40),
    size=st.integers(1, 40),
    value_size=st.integers(1, 40),
    key_heads=st.integers(1, 3),
    shared=st.integers(1, 2),
    tokens=st.integers(1, 3),
    parts=st.integers(1, 3),
)
def test_any(
    past: int, size: int, value_size: int, key_heads: int, shared: int, tokens: int, parts: int
) -> None:
    check(Case(past, size, value_size, key_heads * shared, key_heads), tokens, parts)
