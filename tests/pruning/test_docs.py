"""The page on pruning without training; `tests/docs` runs its code."""

from __future__ import annotations

from pathlib import Path

from sparsecomp.pruning.prune import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "sparsify.md").read_text()


def test_it_names_every_method() -> None:
    for method in METHODS:
        assert f"| `{method}` |" in PAGE
