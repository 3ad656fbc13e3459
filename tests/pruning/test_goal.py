"""One budget, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from sparsecomp import InputError
from sparsecomp.pruning.goal import Goal


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"target_speedup": 2}, "target_speedup=2"),
        ({"max_loss": 0.05}, "max_loss=0.05"),
        ({"target_bytes": 1000}, "target_bytes=1000"),
        ({"sparsity": 0.8}, "sparsity=0.8"),
    ],
)
def test_it_prints_as_it_was_asked_for(given: dict[str, Any], text: str) -> None:
    assert str(Goal.parse(**given)) == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of target_speedup, max_loss, target_bytes, sparsity; got none"),
        ({"sparsity": 0.5, "max_loss": 1}, "got max_loss=1 and sparsity=0.5"),
        ({"target_speedup": 0.5}, "target_speedup must be at least 1, not 0.5"),
        ({"target_speedup": float("nan")}, "must be a number"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, not 1.0"),
        ({"max_loss": -1}, "max_loss must be at least 0"),
        ({"target_bytes": "1 MB"}, "target_bytes must be a number, not '1 MB'"),
        ({"sparsity": True}, "must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Goal.parse(**given)
