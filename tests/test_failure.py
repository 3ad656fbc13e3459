"""A pass or a kernel that fails inside: PyTorch answers, and a folder repeats the failure with one command."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import InputError, SparseModule, codegen, compile_sparse, failure
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.failure import KEPT, reproduce
from sparsecomp.passes.fuse_epilogues import FuseEpilogues
from sparsecomp.reduced_weights import reduced, restored
from tests.artifact.nets import FEATURES, Images, Tokens, pruned

ROOT = Path(__file__).parent.parent
FILES = {"traceback.txt", "failure.json", "program.pt2", "weights.safetensors", "reproduce.py"}
PASS = """
from sparsecomp.passes.fuse_epilogues import FuseEpilogues
def broken(self, program):
    raise ZeroDivisionError("a pass is \\"broken\\"")
FuseEpilogues.__call__ = broken
"""
LOWERING = """
from sparsecomp import codegen
def broken(*arguments):
    raise KeyError("no such kernel")
codegen.lower = broken
"""
SEEN = {PASS: 'ZeroDivisionError: a pass is "broken"', LOWERING: "KeyError: 'no such kernel'"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSECOMP_FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


def break_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FuseEpilogues, "__call__", FuseEpilogues.__call__)  # put back after the test
    monkeypatch.setattr(codegen, "lower", codegen.lower)
    exec(how, {})  # noqa: S102  what the fresh process does as well


def compiled(model: nn.Module, *args: Tensor) -> SparseModule:
    return compile_sparse(model, args, target="reference", min_speedup=0.0)


def the_only_one(place: Path) -> Path:
    [folder] = place.iterdir()
    return folder


@pytest.mark.parametrize("how", [PASS, LOWERING], ids=["pass", "lowering"])
def test_pytorch_answers_and_one_command_repeats_the_failure(
    how: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = pruned(Tokens()), torch.randn(2, 5, FEATURES)
    with monkeypatch.context() as patch:
        break_it(how, patch)
        found = compiled(model, x)
    with torch.no_grad():
        assert relative_error(found(x), model(x)) < TOLERANCE
        assert relative_error(found(x[:1]), model(x[:1])) < TOLERANCE
    assert found.report.rung == "eager"
    folders = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)  # of the graph, of the layers
    assert {path.name for path in folders[0].iterdir()} == FILES
    for place_told in (caplog.text, " ".join(found.report.notes)):
        assert SEEN[how] in place_told
        assert f"python {folders[0] / 'reproduce.py'}" in place_told
    content = json.loads((folders[0] / "failure.json").read_text())
    assert content["error"] == SEEN[how]
    assert content["program"] == "the whole model"
    assert content["versions"]["torch"] == version("torch")

    (tmp_path / "sitecustomize.py").write_text(how)  # the library is as broken in a fresh process
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(folders[0] / "reproduce.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(SEEN[how])


def test_a_library_that_is_mended_compiles_what_failed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        break_it(PASS, patch)
        found = compile_sparse(
            pruned(Images()), (torch.randn(2, 3, 8, 8),), target="reference", skip=("first",), min_speedup=0.0
        )
        assert found.report.rung == "eager"
        folders = list(place.iterdir())
        for folder in folders:
            with pytest.raises(ZeroDivisionError, match="a pass is"):
                reproduce(folder)
    for folder in folders:
        reproduce(folder)
        assert "does not happen here" in capsys.readouterr().out


def test_a_further_shape_that_fails_is_repeated_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned(Tokens())
    found = compiled(model, torch.randn(2, 5, FEATURES))
    assert found.report.rung == "whole graph"
    break_it(PASS, monkeypatch)
    x = torch.randn(2, 7, FEATURES)
    with torch.no_grad():
        assert relative_error(found(x), model(x)) < TOLERANCE
    with pytest.raises(ZeroDivisionError):
        reproduce(the_only_one(place))


class Branching(nn.Module):
    """No graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if y.sum() > 0 else -y


def test_of_a_model_without_a_graph_its_layers_are_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(LOWERING, monkeypatch)
    compiled(pruned(Branching()), torch.randn(4, FEATURES))
    folder = the_only_one(place)
    assert json.loads((folder / "failure.json").read_text())["program"] == "its layers"
    with pytest.raises(KeyError, match="no such kernel"):
        reproduce(folder)


def test_what_cannot_be_exported_at_all_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(PASS, monkeypatch)
    monkeypatch.setattr(failure, "exported", lambda *arguments: 1 / 0)
    compiled(pruned(Branching()), torch.randn(4, FEATURES))
    folder = the_only_one(place)
    assert {path.name for path in folder.iterdir()} == FILES - {"program.pt2", "weights.safetensors"}
    with pytest.raises(InputError, match="the model is not exported: ZeroDivisionError: division by zero"):
        reproduce(folder)


def test_only_the_last_few_are_kept_and_the_same_one_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = pruned(Branching()), torch.randn(4, FEATURES)
    for number in range(KEPT + 2):
        break_it(textwrap.dedent(PASS).replace("broken\\", f"broken {number}\\"), monkeypatch)
        compiled(model, x)
        compiled(model, x)
    kept = {json.loads((folder / "failure.json").read_text())["error"] for folder in place.iterdir()}
    assert kept == {f'ZeroDivisionError: a pass is "broken {n}"' for n in range(2, KEPT + 2)}


@pytest.mark.parametrize("where", ["", "/proc/nowhere"])
def test_none_are_kept_where_none_are_wanted_or_can_be(
    where: str, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPARSECOMP_FAILURES", where)
    break_it(PASS, monkeypatch)
    found = compiled(pruned(Branching()), torch.randn(4, FEATURES))
    assert "layers were not captured: ZeroDivisionError" in found.report.notes[-1]
    assert "reproduce.py" not in caplog.text
    assert ("the failure is not kept" in caplog.text) == bool(where)
    assert not place.exists()


def test_what_was_foreseen_is_no_failure(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = compiled(pruned(Branching()), torch.randn(4, FEATURES))
    assert found.report.rung == "layers"
    assert not place.exists()
    assert caplog.text == ""


@pytest.mark.parametrize(("limit", "form"), [(1 << 20, "values"), (1 << 12, "pattern"), (8, "density")])
def test_large_weights_keep_their_zeros(limit: int, form: str) -> None:
    weights = {"w": torch.randn(100, 130), "b": torch.randn(100), "ids": torch.arange(9000)}
    weights["w"][torch.rand(100, 130) < 0.75] = 0
    described, kept = reduced(weights, limit)
    assert described["w"]["form"] == form
    back = restored(described, kept, {name: tensor.dtype for name, tensor in weights.items()})
    assert torch.equal(back["b"], weights["b"])
    assert torch.equal(back["ids"], weights["ids"])
    assert torch.equal(back["w"], weights["w"]) == (form == "values")
    if form == "pattern":
        assert torch.equal(back["w"] != 0, weights["w"] != 0)
    assert int(back["w"].count_nonzero()) == pytest.approx(int(weights["w"].count_nonzero()), rel=0.1)
    assert float(back["w"].std()) == pytest.approx(float(weights["w"].std()), rel=0.1)
