"""Where results are kept, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def write(path: Path, text: str) -> None:
    """An interrupt leaves the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def write_json(path: Path, content: object) -> None:
    write(path, json.dumps(content, indent=1) + "\n")
