"""The pictures of the pages are those that their script draws."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
SPEC = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
assert SPEC is not None
assert SPEC.loader is not None
draw = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw)


def test_they_are_up_to_date(tmp_path: Path) -> None:
    draw.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in FOLDER.glob("*.svg")}


def test_each_is_shown() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"pictures/(\w+\.svg)", pages)) == {path.name for path in FOLDER.glob("*.svg")}


def test_the_weights_have_their_patterns() -> None:
    weight = draw.weight()
    columns = draw.blocks(weight).reshape(2, 4, -1) != 0
    assert torch.equal(columns.all(dim=1), columns.any(dim=1))
    assert (draw.two_of_four(weight).reshape(8, 4, 4).count_nonzero(dim=2) == 2).all()
    left = draw.channels(weight)
    assert left.any(dim=1).sum() * left.any(dim=0).sum() == left.count_nonzero() == 32
