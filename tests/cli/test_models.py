"""MODEL: everything it may name, and the message for what it may not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecomp import InputError
from sparsecomp.cli.inputs import InputSpec
from sparsecomp.cli.models import load_example
from tests.cli.nets import SMALL, refusal


def test_a_function_gives_a_model_and_its_inputs_in_evaluation_mode() -> None:
    found = load_example(SMALL, (), 0)
    assert isinstance(found.module, nn.Sequential)
    assert not found.module.training
    assert found.args is not None
    assert [tuple(one.shape) for one in found.args] == [(5, 48)]


def test_inputs_by_name_and_a_model_that_is_no_function() -> None:
    assert list(load_example("tests.cli.nets:by_name", (), 0).kwargs) == ["x", "scale"]
    specs = [InputSpec.parse("x=float32:3x16"), InputSpec.parse("scale=float32:1")]
    found = load_example("tests.cli.nets:MODEL", specs, 0)
    assert (found.args, list(found.kwargs)) == ((), ["x", "scale"])


def test_inputs_of_the_command_line_replace_the_models_own() -> None:
    found = load_example("tests.cli.nets:by_name", [InputSpec.parse("float32:1x16")], 0)
    assert found.args is not None
    assert (len(found.args), found.kwargs) == (1, {})


def test_an_exported_program_has_its_own_inputs(tmp_path: Path) -> None:
    path, (model, args) = tmp_path / "m.pt2", (nn.Linear(4, 4).eval(), (torch.ones(2, 4),))
    torch.export.save(torch.export.export(model, args), path)
    found = load_example(str(path), (), 0)
    assert found.args is not None
    assert torch.equal(found.module(*found.args), model(*args))


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here_cli.py").write_text("from torch import nn\nnet = nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = load_example("only_here_cli:net", [InputSpec.parse("float32:1x2")], 0)
    assert isinstance(found.model, nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing",
            "there is no model 'nothing': give module:function, FILE.pt2, FILE.onnx, or a Hugging Face",
        ),
        ("no_such_module:f", "there is no module 'no_such_module' in "),
        ("tests.cli.nets:absent", "module 'tests.cli.nets' has no 'absent'"),
        ("tests.cli.nets:number", "gives int: it must return an nn.Module, or (model, inputs)"),
        ("tests.cli.nets:wrong_inputs", "gives int as inputs: they must be a tuple of positional arguments"),
        ("tests.cli.nets:broken", "tests.cli.nets:broken() raised ValueError: no weights here ("),
        ("tests.cli.nets:leaving", "tests.cli.nets:leaving() raised SystemExit: 3"),
        ("tests.cli.nets:without_inputs", "what inputs does it take? Give each one as --input [NAME=]DTYPE"),
        ("absent.pt2", "there is no file absent.pt2"),
        ("absent.onnx", "there is no file absent.onnx"),
        ("absent.sparsecomp", "there is no file absent.sparsecomp"),
        ("tests/conftest.py", "tests/conftest.py is no model that can be read here: give module:function"),
        ("tests", "the folder tests has no config.json: it is no model that save_pretrained wrote"),
    ],
)
def test_what_is_no_model_is_said(name: str, message: str) -> None:
    assert message in refusal("analyze", name)


def test_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    for suffix in (".pt2", ".sparsecomp"):
        (tmp_path / f"m{suffix}").write_bytes(b"not this")
    (tmp_path / "config.json").write_text("{}")
    assert "is no exported program that PyTorch" in refusal("analyze", str(tmp_path / "m.pt2"))
    assert "is compiled already: give the model" in refusal("analyze", str(tmp_path / "m.sparsecomp"))
    assert "has no weights as safetensors" in refusal("analyze", str(tmp_path))


def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_cli.py").write_text("x = 1\nimport not_there_cli\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    told = refusal("analyze", "broken_cli:f")
    assert "importing broken_cli raised ModuleNotFoundError: No module named 'not_there_cli'" in told
    assert "broken_cli.py, line 2" in told


def test_onnx_without_its_converter_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    for package in ("onnx", "onnx2torch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs onnx: pip install 'sparsecomp\[onnx\]'"):
        load_example(str(tmp_path / "m.onnx"), (), 0)


def test_an_onnx_file_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    pytest.importorskip("onnxscript")
    path, model, x = tmp_path / "m.onnx", nn.Linear(4, 3).eval(), torch.ones(2, 4)
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
    found = load_example(str(path), (), 0)
    assert found.args is not None
    assert [tuple(one.shape) for one in found.args] == [(2, 4)]
    assert torch.allclose(found.module(x), model(x))
