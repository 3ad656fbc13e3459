"""Weights that are computed from constants are computed once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparsecomp.passes.fold_constants import FoldConstants
from tests.passes.programs import analysed, captured, same_outputs


def test_a_mask_is_folded() -> None:
    model, x = nn.Sequential(nn.Linear(16, 8)).eval(), torch.randn(2, 16)
    prune.l1_unstructured(model[0], "weight", 0.75)  # type: ignore[no-untyped-call]
    program = FoldConstants()(captured(model, x))
    assert "aten.mul" not in str(program)
    assert same_outputs(program, model, x)
    (facts,) = analysed(model, x).facts.values()
    assert facts.density == 0.25


def test_weight_norm_is_folded() -> None:
    model, x = parametrizations.weight_norm(nn.Linear(16, 8)).eval(), torch.randn(2, 16)
    program = FoldConstants()(captured(model, x))
    assert "weight_norm" not in str(program)
    assert same_outputs(program, model, x)


def test_leaves_others_alone() -> None:
    program = captured(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert FoldConstants()(program) is program
