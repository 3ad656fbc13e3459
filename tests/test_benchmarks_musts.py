"""The table of musts: what is asked of which row, and what a summary says of rows with given times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import row, table
from benchmarks.alexnet import ALEXNET
from benchmarks.machine import Machine
from benchmarks.musts import MUSTS, Judged, Must, judged, must_of, verdict
from benchmarks.rivals import eager
from benchmarks.row import OURS, OWN_DENSE, Case, Outcome, Row
from benchmarks.workloads import WORKLOADS
from sparsecomp.alternate import Times

HERE = Machine("a CPU", 2, 100.0, {"torch": "2"})
BERT = Must("bert-base", "unstructured", 0.9, 4.0, 5.2)


def _row(must: Must, ratio: float | None, threads: int = 1, machine: Machine = HERE) -> Row:
    """A row in which the best dense peer takes so many times as long as we do."""
    times = {"openvino": ratio, "onnxruntime": 100.0, "eager": 100.0, OURS: 1.0}
    outcomes = {
        name: Outcome(
            Times(seconds, seconds, 0.0, 20) if seconds else None, 0.0, 1.0, "" if seconds else "no"
        )
        for name, seconds in times.items()
    }
    if ratio is None:
        outcomes[OURS] = Outcome(None, None, 1.0, "failed")
    return Row(must.case(threads, False, 20), outcomes, machine, row.now())


def test_every_must_is_a_row_of_its_own_and_has_a_workload() -> None:
    assert len({must.case(1, False, 20) for must in MUSTS}) == len(MUSTS) == 17
    assert {must.model for must in MUSTS} <= set(WORKLOADS)
    assert all(must.must < must.aim for must in MUSTS)
    assert BERT in MUSTS


def test_alexnet_must_reach_most_of_the_ideal() -> None:
    found = {must.model: must for must in MUSTS if must.pattern == "ssl"}
    assert found.keys() == ALEXNET.keys()
    assert found["alexnet-conv4"].must == pytest.approx(0.8 * 12.31, rel=0.001)
    assert found["alexnet-conv4"].aim == pytest.approx(0.95 * 12.31, rel=0.001)


def test_a_must_is_asked_of_its_row_alone() -> None:
    case = BERT.case(1, False, 5)
    assert must_of(case) == must_of(replace(case, threads=2, rounds=7)) == BERT
    others = ({"small": True}, {"batch": 2}, {"sparsity": 0.95}, {"rivals": False}, {"model": "distilbert"})
    for changes in others:
        assert must_of(Case(**{**vars(case), **changes})) is None


@pytest.mark.parametrize(
    ("ratio", "reached"), [(None, "below"), (3.99, "below"), (4.0, "must"), (5.19, "must"), (5.2, "aim")]
)
def test_a_ratio_is_judged(ratio: float | None, reached: str) -> None:
    assert BERT.judge(ratio) == reached
    [one] = judged([_row(BERT, ratio)])
    assert one.cells == ("4.00", "5.20", reached)
    assert one.held is None


def test_more_threads_are_compared_with_one() -> None:
    alone, two = _row(BERT, 4.0), _row(BERT, 3.0, threads=2)
    rows = {found.case: found for found in (alone, two)}
    held = Judged.of(two, rows)
    assert held is not None
    assert held.held == pytest.approx(0.75)
    assert held.cells == ("", "", "75% of 1 thread")
    elsewhere = _row(BERT, 4.0, machine=replace(HERE, cpu="another"))
    assert [one.held for one in judged([elsewhere, two])] == [None, None]
    failed = _row(BERT, None, threads=2)
    assert [one.held for one in judged([alone, failed])] == [None, 0.0]


def test_the_verdict_lists_what_is_below_and_what_does_not_hold() -> None:
    none = next(must for must in MUSTS if must.pattern == "none")
    blocks = next(must for must in MUSTS if must.pattern == "4x1")
    rows = [
        *(_row(BERT, 3.5), _row(none, 1.2), _row(blocks, 7.0)),
        *(_row(BERT, 3.4, 2), _row(none, 0.9, 2), _row(blocks, None, 2)),
    ]
    assert verdict(rows) == [
        "Musts: 2 of 3 reached, of them 1 with the aim.",
        "below its must: bert-base, unstructured 90%, batch 1, 1 thread: 3.50 of 4.00",
        "At several threads at least 85% of the ratio at one: 1 of 3 rows.",
        "does not hold: bert-base, none 0%, batch 1, 2 threads: 75%",
        "does not hold: bert-base, 4x1 90%, batch 1, 2 threads: 0%",
    ]
    assert "FAILED of 4.00" in verdict([_row(BERT, None)])[1]
    assert verdict([replace(_row(BERT, 3.0), case=replace(BERT.case(1, True, 5)))]) == []


def test_alexnet_has_a_mean_once_all_are_there() -> None:
    rows = [_row(must, ratio) for must, ratio in zip(MUSTS[-5:], (1.0, 3.0, 4.0, 5.0, 6.0), strict=True)]
    assert verdict(rows)[-1] == ("AlexNet's convolutions, mean of the ratios: 3.80 of 4.00, below its must")
    assert not any("mean" in line for line in verdict(rows[1:]))


def test_the_table_has_the_musts_and_our_dense_kernels() -> None:
    must = MUSTS[-1]
    found = _row(must, 5.0)
    found = replace(
        found, outcomes={**found.outcomes, OWN_DENSE: Outcome(Times(6.0, 6.0, 0.0, 20), 0.0, 1.0)}
    )
    assert found.over_own_dense == pytest.approx(6.0)
    assert found.best_dense == ("openvino", 5.0)
    text = table.markdown([found])
    header, line = (text.splitlines()[number] for number in (6, 8))
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    assert (cells["must"], cells["aim"], cells["reached"]) == ("4.15", "4.92", "aim")
    assert (cells["over best dense"], cells["over own dense"]) == ("5.00", "6.00")
    assert "reached" not in table.markdown([_row(replace(must, sparsity=0.5), 5.0)]).splitlines()[6]


def test_a_row_of_ssl_times_our_dense_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row, "sparsecomp", eager)
    monkeypatch.setattr(row, "sparsecomp_dense", eager)
    monkeypatch.setattr(row, "DENSE_RIVALS", {"eager, dense": eager})
    convolution = ALEXNET["alexnet-conv5"]
    case = Case("alexnet-conv5", "ssl", convolution.sparsity, 1, small=True, rounds=3)
    found = row.measure(case)
    assert found.over_own_dense is not None
    assert found.outcomes[OWN_DENSE].error == 0.0
    without = row.measure(replace(case, pattern="unstructured"))
    assert OWN_DENSE not in without.outcomes
