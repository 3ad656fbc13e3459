"""The page on the command line, and its section in the README: every command runs, in order, as it is printed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from sparsecomp.cli.app import app
from tests.cli.nets import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command_line.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sparsecomp ")]


@pytest.mark.parametrize(("page", "count"), [(PAGE, 15), (README, 4)], ids=["command_line.md", "README.md"])
def test_its_commands_run(page: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks(PAGE, "python")
    (tmp_path / "zoo.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = commands(page)
    assert len(found) == count
    try:
        for words in found:
            assert run(*words).stdout.strip()
    finally:
        sys.modules.pop("zoo", None)
    assert (tmp_path / "classifier.sparsecomp").is_file()


def test_it_names_every_command() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^\| `{name}\b", PAGE, flags=re.MULTILINE)
