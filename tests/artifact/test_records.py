"""Records come back from JSON as they were, and nothing else passes for one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp import ArtifactError
from sparsecomp.artifact.records import decode, decode_constant, encode, encode_constant
from sparsecomp.choice import Candidate, Choice
from sparsecomp.facts import Facts
from sparsecomp.geometry import Geometry, Planes, TokenRows, Tokens
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Depthwise, FewTokens, RowsKernelChoice, Schedule
from sparsecomp.section import WorkOp
from sparsecomp.work import Attention, Norm, Pool

LAYER = Layer("a.b", "conv2d", "a.b.weight", (4, 3, 3, 3), (1, 3, 8, 8), stride=(2, 1), padding=(1, 0, 1, 0))
HOW = RowsKernelChoice(RowBlocks(4, live_first=True), Schedule(8, 96, 512))
FACTS = Facts(
    "l", (2, 2), 1, 1, 0, 0, 0, {(1, 1): 0.5, (4, 1): 0.25}, (1, 1), None, 0.5, 0.5, 1, "unstructured"
)
RECORDS: list[tuple[Any, Any]] = [
    (LAYER, Layer),
    (FACTS, Facts),
    (
        Choice("l", HOW, "why", (Candidate("k", 1e-3, how=HOW, stored=3), Candidate("n", refused="no"))),
        Choice,
    ),
    (Choice("l", None, "why"), Choice),
    (RowsKernelChoice(RowBlocks(1, shared=True), FewTokens(0, in_place=True)), RowsKernelChoice),
    (RowsKernelChoice(RowBlocks(1), Depthwise()), RowsKernelChoice),
    (Tokens(64, 100), Geometry),
    (TokenRows(), Geometry),
    (Planes(8, 8, 9, 112, 10), Geometry),
    (WorkOp("s", Attention(2, 1, 8, 8, 0.5, True), ("q",), ((1, 2),), "t", (1, 2), "add", ("x",)), WorkOp),
    (WorkOp("s", Norm("rms", 8, 1e-6, True, False), ("q",), ((1, 8),), "t", (1, 8)), WorkOp),
    (WorkOp("s", Pool("max", LAYER), ("q",), ((1, 8),), "t", (1, 8), channel=1), WorkOp),
    (torch.bfloat16, torch.dtype),
    ({frozenset({"a", "b"}), frozenset()}, set[frozenset[str]]),
    ({"s0": (2, None), "s1": (1, 8)}, Mapping[str, tuple[int, int | None]]),
    ({3: None, 4: 1.0}, Mapping[int, object]),
    ((1.5, math.inf, -math.inf), tuple[float, ...]),
]


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize(("record", "hint"), RECORDS, ids=lambda value: type(value).__name__)
def test_records_come_back(record: Any, hint: Any) -> None:
    assert decode(through_json(encode(record, hint)), hint) == record


def test_a_field_that_is_younger_than_the_file_has_its_default() -> None:
    old = encode(Candidate("k", 1e-3, stored=3), Candidate)
    del old["predicted"], old["predicted_idle"]
    assert decode(through_json(old), Candidate) == Candidate("k", 1e-3, stored=3)


constants = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.sampled_from([torch.float32, torch.strided, torch.channels_last, torch.device("cpu")]),
)


@given(constants)
def test_constants_come_back(value: object) -> None:
    found = decode_constant(through_json(encode_constant(value)))
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value)  # the sign of a zero


@pytest.mark.parametrize(
    ("data", "hint", "message"),
    [
        ("x", int, "found 'x' where a int was expected"),
        (True, int, "found True where a int"),
        (1, bool, "found 1 where a bool"),
        (True, float, "where a number"),
        ([1], tuple[int, int], "where 2 items"),
        ({}, Layer, "where the fields of Layer"),
        ([], Layer, "where a record Layer"),
        ("float33", torch.dtype, "found 'float33'"),
        ("load", torch.dtype, "found 'load'"),
        ({"is": "Layer"}, Geometry, "found 'Layer' where one of"),
        ({"is": "Schedule", "vectors": 1}, Depthwise | Schedule, "the fields of Schedule"),
        ([[1]], Mapping[int, int], "where 2 items"),
        ("x", int | None, "was expected"),
    ],
)
def test_anything_else_is_refused(data: Any, hint: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode(data, hint)


def test_a_value_of_another_type_is_refused_when_it_is_written() -> None:
    with pytest.raises(ArtifactError, match="object among a graph's constants"):
        encode_constant(object())
    with pytest.raises(ArtifactError, match="a list has no form"):
        encode([1], int | None)
