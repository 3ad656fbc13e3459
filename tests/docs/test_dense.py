"""The page that answers "why is my layer dense?" has every reason that the code can give, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from sparsecomp.passes.find_layers import UNSUPPORTED
from tests.docs.reasons import ELSEWHERE, ROOT, reasons

PAGE = (Path(__file__).parents[2] / "docs" / "dense.md").read_text()


def listed() -> set[str]:
    """What stands in the first column of the page's tables, and in its sentences."""
    return {" ".join(text.split()) for text in re.findall(r"`([^`]+)`", PAGE)}


def test_every_reason_has_an_entry() -> None:
    found = reasons()
    assert len(found) > 30
    assert {reason: name for reason, name in found.items() if reason not in listed()} == {}


def test_no_entry_is_out_of_date() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE))
    assert rows <= set(reasons())


def test_it_names_every_operator_that_is_not_lowered() -> None:
    page = PAGE.lower()
    for name in set(UNSUPPORTED.values()):
        stem = name.removesuffix(" layer").removesuffix(" product")
        assert stem in page or stem.split()[0] in page, name


def test_what_is_left_out_exists() -> None:
    for name in ELSEWHERE:
        assert (ROOT / name).exists(), name
