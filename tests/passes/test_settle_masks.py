"""Masks that depend on nothing but sizes are read when the model is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.passes.settle_masks import SettleMasks
from tests.passes.programs import Wired, captured, same_outputs

SDPA = F.scaled_dot_product_attention
Mask = Callable[[Any, Tensor], Tensor]


def x(tokens: int = 5) -> Tensor:
    return torch.randn(2, 3, tokens, 4)


def settled(mask: Mask, queries: Tensor, keys: Tensor, **parts: Any) -> str:
    """The attention that is left, as it prints."""
    model = Wired(lambda m, q, k: SDPA(q, k, k, mask(m, q)), **parts).eval()
    program = SettleMasks()(captured(model, queries, keys))
    program.check()
    assert same_outputs(program, model, queries, keys)
    assert same_outputs(program, model, *(torch.cat([a, a]) for a in (queries, keys)))
    return next(line for line in str(program).splitlines() if "scaled_dot_product" in line)


def test_one_new_token_sees_all() -> None:
    def mask(m: Any, q: Tensor) -> Tensor:
        seen = torch.arange(6)[None, :] <= (torch.arange(1) + 5)[:, None]
        return seen.expand(q.shape[0], 1, 1, 6)

    assert "None, 0.0, False" in settled(mask, x(1), x(6))


def test_a_mask_of_zeros() -> None:
    assert "None, 0.0, False" in settled(lambda m, q: torch.zeros(5, 5), x(), x())


def test_a_lower_triangle() -> None:
    def mask(m: Any, q: Tensor) -> Tensor:
        places = torch.arange(5)
        return (places[None, :] <= places[:, None])[None, None].expand(q.shape[0], 1, 5, 5)

    assert "None, 0.0, True" in settled(mask, x(), x())


STAY: dict[str, Mask] = {
    "a band": lambda m, q: torch.ones(5, 5, dtype=torch.bool).tril().triu(-2),
    "above the diagonal": lambda m, q: torch.ones(5, 5, dtype=torch.bool).tril(1),
    "numbers": lambda m, q: torch.full((5, 5), 0.5),
    "a buffer": lambda m, q: m.seen & True,
    "an input": lambda m, q: q[:1, :1, :, :1] > -9,
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    left = settled(STAY[name], x(), x(), seen=torch.ones(5, 5, dtype=torch.bool))
    assert "None" not in left


def test_leaves_others_alone() -> None:
    program = captured(Wired(lambda m, q: SDPA(q, q, q)), x())
    assert SettleMasks()(program) is program
