"""`sparsecomp sparsify`: every budget and outcome on a small model, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sparsecomp
from tests.cli.nets import other, refusal, run, usage_error

OTHER = "tests.cli.nets:other"
QUICK = ("sparsify", OTHER, "--target", "reference", "--no-measure", "--threads", "1")


def test_pruned_weights_load_into_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    words = (*QUICK, "--sparsity", "0.7", "-o", str(path))
    data = json.loads(run(*words, "--json").stdout)
    assert data["file"] == str(path)
    assert data["totals"]["sparsity"] >= 0.69
    model, inputs = other()
    model.load_state_dict(load_file(path))
    zeros = sum(int((weight == 0).sum()) for name, weight in model.state_dict().items() if "weight" in name)
    assert zeros == data["totals"]["weights"] - data["totals"]["kept"]
    assert torch.isfinite(model(*inputs)).all()
    assert "of their weights zero" in run(*words).stdout


def test_calibrated_and_compiled(tmp_path: Path) -> None:
    path = tmp_path / "m.sparsecomp"
    words = (
        *QUICK,
        "--size",
        "12K",
        "--structure",
        "unstructured",
        "--calibration",
        "tests.cli.nets:batches",
    )
    told = run(*words, "-o", str(path)).stdout
    assert "target_bytes=12000" in told
    assert " by obs" in told
    assert sparsecomp.load(path)(*other()[1]).shape == (5, 48)


@pytest.mark.parametrize("goal", [(), ("--speedup", "2", "--sparsity", "0.5")])
def test_one_budget_is_needed(goal: tuple[str, ...], tmp_path: Path) -> None:
    told = usage_error(*QUICK, *goal, "-o", str(tmp_path / "m.safetensors"))
    assert "give one of --speedup, --size and --sparsity" in told


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    words = (*QUICK, "--sparsity", "0.5", "-o")
    output = str(tmp_path / "m.safetensors")
    assert "call it m.safetensors for the pruned weights" in usage_error(*words, "m.pt2")
    assert "there is no folder" in refusal(*words, str(tmp_path / "absent" / "m.safetensors"))
    assert "gives int: it must return batches" in refusal(
        *words, output, "--calibration", "tests.cli.nets:number"
    )
    assert "'batches' names no function: write module:function" in refusal(
        *words, output, "--calibration", "batches"
    )
    assert list(tmp_path.iterdir()) == []
