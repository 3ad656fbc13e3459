"""The page on training; `tests/docs` runs its code."""

from __future__ import annotations

from pathlib import Path

from sparsecomp import train
from sparsecomp.train.group_lasso import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text()


def test_it_names_every_kind_of_group_and_what_is_public() -> None:
    for kind in KINDS:
        assert f"| `{kind}` |" in PAGE
    for name in set(train.__all__) - {"Pattern"}:
        assert name in PAGE
