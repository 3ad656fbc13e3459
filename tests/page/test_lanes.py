"""The graph as a column: which lane each operator takes, what is drawn as one, where lines go."""

from __future__ import annotations

from typing import Any

import pytest

from sparsecomp.page.lanes import LANE, ROW, WIDEST, condensed, drawing, lanes_of


def flow(*reads: tuple[int, ...], region: str = "r") -> list[dict[str, Any]]:
    return [
        {"what": f"op{number}", "layer": "", "region": region, "reads": list(read)}
        for number, read in enumerate(reads)
    ]


@pytest.mark.parametrize(
    ("reads", "lanes"),
    [
        pytest.param([(), (0,), (1,)], [0, 0, 0], id="a chain stays in its lane"),
        pytest.param([(), (0,), (1,), (0, 2)], [0, 1, 1, 0], id="a branch goes aside and comes back"),
        pytest.param([(), (0,), (0,), (0,), (1, 2, 3)], [0, 1, 2, 0, 1], id="three that read one are apart"),
        pytest.param([(), (), (0, 1)], [0, 1, 0], id="two inputs join"),
        pytest.param([(), (), ()], [0, 0, 0], id="what nobody reads takes no lane"),
        pytest.param([(), (0, 0)], [0, 0], id="one may be read twice"),
    ],
)
def test_lanes(reads: list[tuple[int, ...]], lanes: list[int]) -> None:
    assert lanes_of(flow(*reads)) == lanes


def test_no_value_runs_through_the_lane_of_another() -> None:
    reads = [(), (0,), (0,), (1, 2), (0,), (3, 4), (2, 5), (6,)]
    lanes = lanes_of(flow(*reads))
    last = {read: number for number, read_by in enumerate(reads) for read in read_by}
    for value, end in last.items():
        between = lanes[value + 1 : end]
        assert lanes[value] not in between


def test_operators_of_pytorch_that_hand_on_one_value_are_one() -> None:
    ops = flow((), (0,), (1,), (1, 2), region="")
    ops[0]["what"] = "input"
    assert [op["what"] for op in condensed(ops)] == ["input", "op1", "op2", "op3"], "op1 is read twice"
    chain = flow((), (0,), (1,), (2,), region="")
    chain[0]["what"], chain[3]["what"] = "input", "output"
    assert [(op["what"], op["reads"]) for op in condensed(chain)] == [
        ("input", []),
        ("op1 → op2", [0]),
        ("output", [1]),
    ]


def test_operators_of_a_region_and_layers_stay_apart() -> None:
    assert len(condensed(flow((), (0,), (1,)))) == 3
    ops = flow((), (0,), (1,), region="")
    ops[1]["layer"] = "fc"
    assert len(condensed(ops)) == 3


def test_rows_stand_below_the_heading_of_their_run() -> None:
    ops = flow((), (0,), (1,))
    ops[2]["region"] = ""
    drawn = drawing(ops)
    assert [(run.region, run.top, run.height) for run in drawn.runs] == [
        ("r", 0, 3 * ROW),
        ("", 3 * ROW, 2 * ROW),
    ]
    assert [row.y for run in drawn.runs for row in run.rows] == [1.5 * ROW, 2.5 * ROW, 4.5 * ROW]
    assert drawn.height == 5 * ROW
    assert drawn.lines == (f"M7 {1.5 * ROW:g}V{2.5 * ROW:g}", f"M7 {2.5 * ROW:g}V{4.5 * ROW:g}")


def test_a_line_to_another_lane_turns_in_its_last_row() -> None:
    drawn = drawing(flow((), (0,), (1,), (0, 2)))
    start, bend, end = 1.5 * ROW, 3.5 * ROW, 4.5 * ROW
    x, aside = LANE / 2, 1.5 * LANE
    assert f"M{aside:g} {bend:g}C{aside:g} {bend + 13:g} {x:g} {bend + 13:g} {x:g} {end:g}" in drawn.lines
    assert f"M{x:g} {start:g}V{end:g}" in drawn.lines


def test_many_lanes_are_narrow() -> None:
    reads = [()] * 40 + [tuple(range(40))]
    assert drawing(flow(*reads)).width <= WIDEST
