"""Structures come back as they were."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from sparsecomp.unflatten import has_sizes, unflatten


class Pair(NamedTuple):
    first: Any
    second: Any


SIZE = torch.Size([2, 3])


@pytest.mark.parametrize(
    "value",
    [
        1,
        (),
        (1, None),
        SIZE,
        [SIZE, {"a": (1, SIZE)}],
        Pair(SIZE, 2),
        OrderedDict(z=SIZE, a=[torch.Size([])]),
    ],
    ids=repr,
)
def test_sizes_stay_sizes(value: Any) -> None:
    leaves, spec = pytree.tree_flatten(value)
    found = unflatten(spec, leaves)
    assert found == value
    assert pytree.tree_structure(found) == spec
    assert has_sizes(spec) is ("Size" in repr(value))
