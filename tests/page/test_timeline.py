"""The time line: its parts fill it, in order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsecomp.page.timeline import WIDTH, Bar, nice_step, timeline
from sparsecomp.profile import Profile
from tests.page.samples import profile

LAYERS = ("first", "second", "last")


def test_parts_lie_end_to_end_in_the_order_of_the_call() -> None:
    drawn = timeline(profile().as_dict(), LAYERS)
    assert [bar.name for bar in drawn.parts] == [
        "enter",
        "first",
        "second",
        "exit",
        "aten.softmax.int (softmax)",
        "aten.linear (linear)",
        "rest",
    ]
    ends = [bar.x + bar.width for bar in drawn.parts]
    assert [bar.x for bar in drawn.parts] == pytest.approx([0.0, *ends[:-1]])
    assert ends[-1] == pytest.approx(WIDTH)
    assert drawn.whole[0].name == "region.0"
    assert drawn.whole[0].width == pytest.approx(sum(bar.width for bar in drawn.parts[:4]))


def test_an_operator_that_runs_first_comes_first() -> None:
    late = replace(profile(), order=("aten.linear (linear)", "region.0", "aten.softmax.int (softmax)"))
    assert [bar.name for bar in timeline(late.as_dict(), LAYERS).whole] == [*late.order, "rest"]


def test_kinds_add_up_to_the_call() -> None:
    kinds = timeline(profile().as_dict(), LAYERS).kinds
    assert kinds == pytest.approx({"layer": 2.0, "border": 0.3, "pytorch": 0.8, "rest": 0.9})
    assert timeline(profile().as_dict(), ("first",)).kinds["work"] == pytest.approx(1.0)


def test_parts_that_took_longer_than_the_call_make_the_line_longer() -> None:
    noisy = replace(profile(), seconds=1e-3)
    drawn = timeline(noisy.as_dict(), LAYERS)
    assert drawn.total == pytest.approx(3.1)
    assert "rest" not in drawn.kinds


def test_a_call_of_nothing_has_a_line() -> None:
    assert timeline(Profile(0.0, 1, (), ()).as_dict(), ()).parts[0].kind == "rest"


def test_a_label_shows_what_fits() -> None:
    wide = Bar(0, 400, "layer", "encoder.layer.0.attention", "", 1.0)
    assert wide.label == "encoder.layer.0.attention"
    assert replace(wide, width=110).label == "…yer.0.attention"
    assert replace(wide, width=20).label == ""


@pytest.mark.parametrize(
    ("least", "step"), [(0.3, 0.5), (1.0, 1.0), (3.2, 5.0), (0.011, 0.02), (76.0, 100.0)]
)
def test_marks_are_round(least: float, step: float) -> None:
    assert nice_step(least) == pytest.approx(step)
