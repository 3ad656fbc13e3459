"""`--input`: what can be written, what it makes, and what is said where it is wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp import InputError
from sparsecomp.cli.inputs import DTYPES, InputSpec, example


def tensor(text: str) -> torch.Tensor:
    return InputSpec.parse(text).tensor(torch.Generator().manual_seed(0))


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(0, 1),
    st.none() | st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True),
)
def test_name_type_shape_and_range_are_what_is_written(
    dtype: str, shape: list[int], low: int, name: str | None
) -> None:
    text = f"{name}=" * (name is not None) + f"{dtype}:{'x'.join(map(str, shape))}:{low}..{low + 1}"
    spec = InputSpec.parse(text)
    made = spec.tensor(torch.Generator())
    assert (spec.name, made.dtype, list(made.shape)) == (name, DTYPES[dtype], shape)
    assert ((made >= low) & (made <= low + 1)).all()


def test_the_end_of_a_range_is_not_included() -> None:
    assert set(tensor("int64:1000:-2..2").tolist()) == {-2, -1, 0, 1}
    assert tensor("uint8:1000:0..256").max() <= 255


def test_one_number_is_everywhere() -> None:
    assert torch.equal(tensor("int64:1x4:1"), torch.ones(1, 4, dtype=torch.int64))
    assert torch.equal(tensor("float32:2:-0.5"), torch.full((2,), -0.5))


def test_without_a_range_numbers_are_normal_and_bools_both() -> None:
    made = tensor("float32:10000")
    assert abs(made.mean()) < 0.05
    assert abs(made.std() - 1) < 0.05
    assert set(tensor("bool:100").tolist()) == {False, True}


def test_a_seed_gives_the_same_numbers() -> None:
    specs = [InputSpec.parse("float32:4"), InputSpec.parse("mask=bool:9")]
    (first,), names = example(specs, 7)
    (again,), _ = example(specs, 7)
    assert torch.equal(first, again)
    assert not torch.equal(first, example(specs, 8)[0][0])
    assert list(names) == ["mask"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' is no input: write [NAME=]DTYPE:SHAPE[:RANGE]"),
        ("x=float32", "is no input"),
        ("float32:1x", "is no input"),
        ("float31:1", "'float31' is no type; use one of float32,"),
        ("int64:1x2", "whole numbers need a range, int64:1x2:0..30000 say, or a value, int64:1x2:1"),
        ("int64:2:5..5", "the range is empty; its second number is not included"),
        ("int64:2:1..b", "'b' is no whole number"),
        ("float32:2:x", "'x' is no number"),
        ("uint8:2:0..300", "the type holds numbers from 0 to 255"),
        ("int8:2:-200", "the type holds numbers from -128 to 127"),
        ("bool:2:2", "the type holds numbers from 0 to 1"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        InputSpec.parse(text)
    assert message in str(caught.value)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(InputError, match="input 'x' is given twice"):
        example([InputSpec.parse("x=float32:1"), InputSpec.parse("x=float32:2")], 0)
