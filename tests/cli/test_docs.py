"""The page on the command line; `tests/docs` runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from sparsecomp.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()


def test_it_names_every_command() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^\| `{name}\b", PAGE, flags=re.MULTILINE)


def test_it_shows_every_command() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^sparsecomp {name}\b", PAGE, flags=re.MULTILINE)
