"""`autotune`, as a user calls it: on small models, for as few trials as show something."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.prune import prune
from sparsecomp import InputError, TunedCall, TuningReport, autotune, codegen, compile_sparse
from sparsecomp.codegen import workbench
from sparsecomp.codegen.measure import Meter


def net() -> nn.Module:
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48), nn.Linear(48, 64)).eval()
    prune(model, "unstructured", 0.8)
    return model


X = torch.zeros(5, 48)


@dataclass(frozen=True)
class Tuned:
    model: nn.Module
    report: TuningReport
    printed: str
    cache: str


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A model that was tuned, and the database that it left."""
    cache = str(tmp_path_factory.mktemp("tuned"))
    torch.manual_seed(0)
    model, printed = net(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setenv("SPARSECOMP_CACHE", cache)
        report = autotune(model, (X,), threads=1, trials=6, verbose=True)
    return Tuned(model, report, printed.getvalue(), cache)


@pytest.fixture(autouse=True)
def _own_database(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = request.getfixturevalue("tuned").cache if "tuned" in request.fixturenames else str(tmp_path)
    monkeypatch.setenv("SPARSECOMP_CACHE", found)


def test_layers_that_agree_are_tuned_once(tuned: Tuned) -> None:
    assert [call.layers for call in tuned.report.calls] == [("0", "3"), ("2",)]
    assert 0 < tuned.report.trials <= 7
    assert all(call.decided and call.gain >= 1.0 for call in tuned.report.calls)


def test_a_second_time_nothing_is_tuned(tuned: Tuned) -> None:
    second = autotune(tuned.model, (X,), trials=6)
    assert second.trials == 0
    assert second.calls == tuned.report.calls


ANOTHER_PROCESS = """
import torch
from sparsecomp import autotune
from tests.test_autotune import X, net
torch.manual_seed(0)
report = autotune(net(), (X,), threads=1, trials=6)
print(report.trials, [call.tuned for call in report.calls])
"""


def test_a_second_process_finds_every_entry_and_tunes_nothing(tuned: Tuned) -> None:
    command = [sys.executable, "-c", ANOTHER_PROCESS]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == f"0 {[call.tuned for call in tuned.report.calls]}"


def test_compilations_use_what_was_found(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "_race", lambda *what: pytest.fail("measured"))
    compiled = compile_sparse(tuned.model, (X,), min_speedup=0.0)
    found = {name: call.tuned for call in tuned.report.calls for name in call.layers}
    for layer in compiled.report.layers:
        assert layer.choice is not None
        assert found[layer.layer.name] in [candidate.kernel for candidate in layer.choice.candidates]


def test_the_report_is_for_people_and_programs(tuned: Tuned) -> None:
    text, data = str(tuned.report), tuned.report.as_dict()
    for word in ("default ms", "tuned ms", "predicted ms", "gain", "geometric mean", "linear weight 64x48"):
        assert word in text
    assert data["totals"]["calls"] == len(data["calls"]) == 2
    assert data["totals"]["layers"] == 3
    assert data["totals"]["tuned_ms"] <= data["totals"]["default_ms"]
    assert data["database"].endswith(".jsonl")


def test_schedules_are_no_markup() -> None:
    call = TunedCall("linear", "", ("a",), 1, "dense", 2.0, "unstructured [few tokens]", 1.0)
    assert "unstructured [few tokens]" in str(TuningReport("a cpu", 1, (call,), 1, 0.0, ""))


def test_a_prediction_is_printed_beside_each_time(tuned: Tuned) -> None:
    lines = [line for line in tuned.printed.splitlines() if "measured" in line]
    assert len(lines) >= tuned.report.trials
    assert all(re.search(r"measured [\d.]+ ms, +predicted [\d.]+ ms", line) for line in lines)


def test_a_compiled_module_is_tuned_on_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    compiled = compile_sparse(model, (X,), min_speedup=0.0)
    seen: dict[str, Tensor] = {}

    def taken(layers: Any, *rest: Any) -> TuningReport:
        seen.update({layer.name: matrix for layer, matrix in layers})
        return TuningReport("a cpu", 1, (), 0, 0.0, "")

    monkeypatch.setattr(codegen, "autotune", taken)
    autotune(compiled)
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if "weight" in name}
    assert set(seen) == set(weights)
    for name, matrix in seen.items():
        assert torch.equal(matrix, weights[name])


def test_without_a_graph_layers_are_tuned() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if float(y.sum()) > 0 else -y

    report = autotune(Branches().eval(), (torch.randn(5, 48),), trials=1)
    assert [call.layers for call in report.calls] == [("layer",)]


def test_interrupted_it_returns_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    races = []

    def stopped(contestants: Any, between: Any) -> list[float]:
        races.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "seconds_in_turn", stopped)
    report = autotune(net(), (X,), trials=6)
    assert races == [1]
    assert report.interrupted
    assert "go on" in str(report)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seconds": 1.0, "trials": 1}, "not both"),
        ({"seconds": -1.0}, "seconds must be a positive number"),
        ({"seconds": float("inf")}, "seconds must be a positive number"),
        ({"trials": 0}, "trials must be a positive whole number"),
        ({"trials": 1.5}, "trials must be a positive whole number"),
        ({"threads": 0}, "threads must be a positive number"),
        ({"device": "gpu"}, "device 'gpu' is not known"),
        ({"device": 3}, "device must be a string"),
        ({"device": "reference"}, "no kernels to tune"),
    ],
)
def test_bad_arguments_are_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        autotune(net(), (X,), **options)


def test_examples_are_needed() -> None:
    with pytest.raises(InputError, match="needs example inputs"):
        autotune(net())
    with pytest.raises(InputError, match="not compiled yet"):
        autotune(compile_sparse(net()))
