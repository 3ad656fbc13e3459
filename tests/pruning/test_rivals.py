"""Which of several ways to one budget is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsecomp import sparsify
from sparsecomp.pruning import rivals
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.plan import Plan
from sparsecomp.pruning.reweigh import Factors
from sparsecomp.pruning.rivals import ALL, Verdict, compare
from sparsecomp.pruning.series import Choices, first_within

QUICK: dict[str, Any] = {"target": "reference", "measure": False, "method": "wanda", "levels": 4}


class Row:
    """Plans that cost 3, 2 and 1."""

    def __init__(self, structure: str) -> None:
        self.costs, self.structure = np.array([3.0, 2.0, 1.0]), structure

    def choices(self, number: int) -> Choices:
        return {"layer": Candidate(self.structure, 0.4 + 0.2 * number)}


def test_the_best_measured_is_taken_each_plan_measured_once() -> None:
    asked: list[Choices] = []

    def loss(choices: Choices) -> float:
        asked.append(choices)
        return {"unstructured": 0.2, "4x1": 0.1}[str(choices["layer"].structure)]

    rivals = {ALL: Row("unstructured"), "same": Row("unstructured"), "4x1 alone": Row("4x1")}
    verdict = compare(rivals, lambda series: first_within(series, 2.0), loss)
    assert verdict.best == "4x1 alone"
    assert verdict.losses == {ALL: 0.2, "same": 0.2, "4x1 alone": 0.1}
    assert [choices["layer"].sparsity for choices in asked] == [pytest.approx(0.6)] * 2
    assert str(verdict).endswith("all structures 0.2, same 0.2, 4x1 alone 0.1")


def test_what_cannot_keep_to_the_budget_is_no_rival() -> None:
    rivals = {ALL: Row("unstructured"), "4x1 alone": Row("4x1")}

    def within(series: Any) -> int | None:
        return None if series.structure == "unstructured" else 1

    assert compare(rivals, within, lambda choices: 1.0).losses == {"4x1 alone": 1.0}
    assert compare(rivals, lambda series: None, lambda choices: 1.0).best == ALL
    assert Verdict({ALL: 1.0, "4x1 alone": 1.0}).best == ALL


def planned(**options: Any) -> Plan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    batches = [torch.randn(32, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    return sparsify(net, batches, sparsity=0.7, **{**QUICK, **options})


def test_a_plan_says_what_was_measured_of_each_way() -> None:
    (note,) = planned().notes
    assert note.startswith("measured on calibration data, of each way to the same budget: all structures ")
    alone = ("unstructured alone", "unstructured alone, layers weighed", "4x1 alone, layers weighed")
    for way in (*alone, "all structures, layers weighed", "uniform unstructured", "uniform 4x1"):
        assert way in note
    assert "2:4 alone" not in note  # 70 % is more than it has
    assert not planned(verify=False).notes


def test_all_structures_begin_with_what_was_found_for_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[Factors]] = []
    found = [{"0": 2.0, "2": 3.0}, {"0": 5.0, "2": 7.0}, {"0": 11.0, "2": 13.0}]

    def search(starts: list[Factors], *rest: Any) -> Factors:
        begun.append(starts)
        return found[len(begun) - 1] if len(begun) <= len(found) else starts[0]

    monkeypatch.setattr(rivals, "search_factors", search)
    planned(structures=("unstructured", "4x1"), resume=tmp_path)
    assert [len(starts) for starts in begun] == [2, 2, 4]  # each alone once, then all
    assert begun[2][2:] == found[:2]


def test_the_users_function_is_the_judge() -> None:
    def only_blocks(model: nn.Module) -> float:
        """Of 4x1 blocks that are partly zero, the share."""
        weights: list[Tensor] = [model[n].weight for n in (0, 2)]  # type: ignore[index]
        blocks = [(weight != 0).reshape(-1, 4, weight.shape[1]).sum(dim=1) for weight in weights]
        return sum(float(((kept > 0) & (kept < 4)).float().mean()) for kept in blocks)

    plan = planned(sensitivity=only_blocks)
    assert "unstructured alone" in plan.notes[0]
    assert {str(c.structure) for c in plan.choices.values() if not c.is_dense} == {"4x1"}
