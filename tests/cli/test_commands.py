"""Every command: its table, its JSON, its files, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsecomp
from sparsecomp.cli import bench as benching
from sparsecomp.rivals import RIVALS
from tests.cli.nets import SMALL, as_json, refusal, run, small, usage_error

QUICK = (SMALL, "--target", "reference", "--threads", "1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled module that the command line wrote, with kernels of this machine."""
    path = tmp_path_factory.mktemp("compiled") / "m.sparsecomp"
    told = run("compile", SMALL, "-o", str(path), "--threads", "1", "--min-speedup", "0").stdout
    assert "2 of 2 layers converted" in told
    assert told.rstrip().splitlines()[-1].startswith(f"{path}: ")
    return path


def test_help_names_every_command_and_the_version_is_the_packages() -> None:
    told = run("--help").stdout
    for name in ("analyze", "compile", "tune", "bench", "report", "sparsify", "devices", "cache"):
        assert f" {name} " in told
    assert run("--version").stdout.strip() == sparsecomp.__version__


def test_the_installed_command_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    command = EntryPoint("sparsecomp", settings["project"]["scripts"]["sparsecomp"], "console_scripts").load()
    for words, code in (("--version", 0), ("analyze nothing", 1), ("analyze", 2)):
        monkeypatch.setattr("sys.argv", ["sparsecomp", *words.split()])
        with pytest.raises(SystemExit) as left:
            command()
        assert left.value.code == code


def test_analyze_tells_the_structure_as_text_and_as_data() -> None:
    data = as_json("analyze", SMALL)
    assert [(layer["name"], layer["structure"]) for layer in data["layers"]] == [
        ("0", "unstructured"),
        ("2", "unstructured"),
    ]
    assert "unstructured" in run("analyze", SMALL).stdout
    assert len(as_json("analyze", SMALL, "--skip", "0")["layers"]) == 1


def test_only_the_answer_is_on_standard_output() -> None:
    assert len(as_json("analyze", "tests.cli.nets:talking")["layers"]) == 2
    assert "loading the weights" in run("analyze", "tests.cli.nets:talking").stderr
    assert run("analyze", "tests.cli.nets:talking", "--quiet").stderr == ""


def test_what_was_compiled_loads_and_gives_the_models_outputs(artifact: Path) -> None:
    model, inputs = small()
    actual, expected = sparsecomp.load(artifact)(*inputs), model(*inputs)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_compile_says_as_data_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "m.sparsecomp"
    data = as_json("compile", *QUICK, "-o", str(path))
    assert (data["file"], data["file_bytes"]) == (str(path), path.stat().st_size)
    assert data["totals"]["layers"] == 2
    assert run("compile", *QUICK, "-o", str(path), "--quiet").output == ""


def test_report_of_a_file_and_of_a_model(artifact: Path) -> None:
    saved = as_json("report", str(artifact))
    assert saved["totals"]["converted_layers"] == 2
    assert "the speed of PyTorch" in run("report", str(artifact)).stdout
    assert as_json("report", *QUICK)["target"] == "reference (plain PyTorch)"


def test_report_writes_a_page_with_the_time_line_of_a_call(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    told = run("report", *QUICK, "--min-speedup", "0", "--html", str(path)).stdout
    assert told.rstrip().splitlines()[-1].startswith(f"{path}: ")
    page = path.read_text()
    assert '<section id="time"' in page
    assert "plain PyTorch" in page
    data = as_json("report", str(artifact), "--html", str(path), "-i", "float32:3x48")
    assert (data["page"], data["page_bytes"]) == (str(path), path.stat().st_size)
    assert '<section id="time"' in path.read_text()


def test_a_page_without_a_call_has_no_time_line(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert "page" not in as_json("report", str(artifact))
    run("report", str(artifact), "--html", str(path))
    page = path.read_text()
    assert '<section id="time"' not in page
    assert page.count("data:image/png;base64,") == 2
    assert "2 of 2 layers converted" in page


def test_a_page_that_cannot_be_written_is_refused_before_the_work(artifact: Path, tmp_path: Path) -> None:
    assert f"name a file in it, {tmp_path / 'report.html'}" in refusal(
        "report", "nothing", "--html", str(tmp_path)
    )
    path = tmp_path / "report.html"
    assert "cannot be run on these inputs" in refusal(
        "report", str(artifact), "--html", str(path), "-i", "float32:3x5"
    )
    assert not path.exists()


def test_of_a_file_from_elsewhere_a_note_says_what_is_made_again(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    result = run("report", str(artifact))
    assert result.stderr.startswith("note: ")
    assert "2 of 2 layers converted" in result.stdout
    assert run("report", str(artifact), "--quiet").stderr == ""


def test_a_damaged_file_is_named(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.sparsecomp"
    path.write_bytes(artifact.read_bytes()[:-100])
    for words in (("report", str(path)), ("bench", SMALL, "--compiled", str(path))):
        assert refusal(*words).startswith(str(path))


def test_a_failed_compilation_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.sparsecomp"
    path.write_bytes(b"old")
    assert "cannot be run on these inputs" in refusal("compile", *QUICK, "-o", str(path), "-i", "float32:2x3")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_tells_why_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.sparsecomp"
    words = ("compile", "tests.cli.nets:other", "--target", "reference", "--threads", "1", "-o", str(path))
    result = run(*words, "--json", code=1)
    assert json.loads(result.stdout)["file"] is None
    assert "no layer gains" in result.stderr
    assert not path.exists()


def test_the_output_is_checked_before_the_model_is_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "m.sparsecomp"
    assert "there is no folder" in refusal("compile", "nothing", "-o", str(absent))
    (tmp_path / "folder.sparsecomp").mkdir()
    told = refusal("compile", "nothing", "-o", str(tmp_path / "folder.sparsecomp"))
    assert "is a folder: name a file in it" in told


def test_bench_times_all_in_one_table(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*call: Any) -> Any:
        raise RuntimeError("knows no such operator\nand more")

    monkeypatch.setitem(RIVALS, "torch.compile", (unable, ()))
    monkeypatch.setitem(RIVALS, "openvino", (unable, ("no_such_package",)))
    words = ("bench", SMALL, "--compiled", str(artifact), "--rounds", "3", "--threads", "1")
    data = as_json(*words, "--against", "torch.compile,openvino")
    rows = {row["name"]: row for row in data["contestants"]}
    assert list(rows) == ["eager", "torch.compile", "openvino", "sparsecomp"]
    assert rows["torch.compile"]["failed"] == "RuntimeError: knows no such operator"
    assert rows["openvino"]["failed"] == "not installed: pip install no_such_package"
    assert rows["sparsecomp"]["error"] < 1e-4
    ratio = rows["eager"]["median_ms"] / rows["sparsecomp"]["median_ms"]
    assert data["speedups"] == {"eager": pytest.approx(ratio)}
    assert (data["threads"], data["rounds"]) == (1, 3)
    told = run(*words, "--against", "eager").stdout
    assert data["machine"]["processor"] in told
    assert "1 thread; medians of 3 alternating rounds" in told
    assert "error" in told


def test_bench_of_a_file_alone(artifact: Path) -> None:
    words = ("bench", str(artifact), "--rounds", "2")
    (row,) = as_json(*words, "-i", "float32:5x48")["contestants"]
    assert (row["name"], row["over_eager"]) == ("sparsecomp", None)
    assert row["median_ms"] > 0
    assert "what inputs does it take?" in refusal(*words)
    assert "cannot be run on these inputs" in refusal(*words, "-i", "float32:5x47")
    assert "a .sparsecomp file is timed alone" in usage_error(*words, "--against", "eager")


def test_a_compiled_file_of_another_model_shows_by_its_error(artifact: Path) -> None:
    words = (
        "bench",
        "tests.cli.nets:other",
        "--compiled",
        str(artifact),
        "--against",
        "eager",
        "--rounds",
        "1",
    )
    data = as_json(*words)
    assert data["contestants"][-1]["error"] > 1e-4
    assert "outputs differ from PyTorch's" in run(*words).stdout


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_rivals_give_the_models_outputs(name: str) -> None:
    for package in ("onnxscript", name):
        pytest.importorskip(package)
    model, inputs = small()
    contestant = benching._rival(name, model.eval(), inputs, {}, model(*inputs))
    assert contestant.failed == ""
    assert contestant.error is not None
    assert contestant.error < 1e-4


def test_tune_reports_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    assert "nothing was measured yet" in run("devices").stdout
    data = as_json("tune", SMALL, "--trials", "2", "--threads", "1")
    assert len(data["calls"]) == 2
    assert data["database"].startswith(str(tmp_path))
    (entry,) = as_json("devices")["measured"]
    assert (entry["here"], entry["current"], entry["threads"], entry["tuned"]) == (True, True, 1, 2)
    assert "(this machine)" in run("devices").stdout


def test_devices_describes_this_host() -> None:
    host = as_json("devices", "--threads", "1")["host"]
    assert host["lanes"] in (4, 8, 16)
    assert (host["threads"], host["versions"]["torch"]) == (1, torch.__version__)
    assert host["processor"] in run("devices").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("analyze",), "Missing argument 'MODEL'"),
        (("compile", SMALL), "Missing option '--output'"),
        (
            ("compile", SMALL, "-o", "m.pt2"),
            "call it m.sparsecomp: by that, report and bench know what it is",
        ),
        (("nonsense",), "No such command 'nonsense'"),
        (("analyze", SMALL, "--input", "5"), "'5' is no input: write [NAME=]DTYPE:SHAPE[:RANGE]"),
        (
            ("report", SMALL, "--target", "gpu"),
            "target 'gpu' is not known. Use one of cpu, cuda, reference, or cpu:NAME",
        ),
        (("analyze", SMALL, "--threads", "0"), "Invalid value for '--threads'"),
        (("bench", SMALL, "--against", "numpy"), "'numpy' is not known; name some of eager, torch.compile"),
        (("tune", SMALL, "--seconds", "1", "--trials", "1"), "give --seconds or --trials, not both"),
        (("tune", SMALL, "--device", "rpc://x"), "cannot be read. Write rpc://host:port/key"),
        (("tune", SMALL, "--device", "cpu", "--target", "cpu"), "give --device or --target, not both"),
        (("cache", "prune", "--limit", "much"), "'much' is no size: write 500K, 20MB or 1.5G"),
    ],
)
def test_wrong_usage_is_said(words: tuple[str, ...], message: str) -> None:
    assert message in usage_error(*words)


def test_what_the_library_refuses_is_its_message() -> None:
    assert "skip names 'head'" in refusal("analyze", SMALL, "--skip", "head")
    assert "LLVM knows no CPU named 'nothing'" in refusal("report", SMALL, "--target", "cpu:nothing")
