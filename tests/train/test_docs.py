"""The page on training: its code runs, from top to bottom, as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparsecomp import train
from sparsecomp.train.group_lasso import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text()


def test_its_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 4
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/train.md", "exec"), names)  # noqa: S102  the code of our own page
    assert names["pruning"].sparsity > 0.7
    assert names["masks"].sparsity < 1


def test_it_names_every_kind_of_group_and_what_is_public() -> None:
    for kind in KINDS:
        assert f"| `{kind}` |" in PAGE
    for name in set(train.__all__) - {"Pattern"}:
        assert name in PAGE
