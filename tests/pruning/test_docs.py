"""The page on pruning without training: its code runs, and it names every method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparsecomp.pruning.prune import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "sparsify.md").read_text()


def test_its_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/sparsify.md", "exec"), names)  # noqa: S102  the code of our own page
    assert list(names["found"]) == ["3", "6"]
    assert names["found"]["6"].sparsity > 0.89


def test_it_names_every_method() -> None:
    for method in METHODS:
        assert f"| `{method}` |" in PAGE
