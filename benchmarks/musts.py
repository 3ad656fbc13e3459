"""What the headline must reach, line by line, and how a table of rows does on it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.alexnet import ALEXNET
from benchmarks.row import Case, Row

HOLDS = 0.85
"""Of the ratio at one thread, that the ratio at more threads must keep."""
IDEAL_MUST, IDEAL_AIM = 0.8, 0.95
"""Of the ideal speed-up of a layer whose rows and columns are pruned."""
ALEXNET_MEAN = 4.0
"""That the ratios of AlexNet's five convolutions must have."""


@dataclass(frozen=True)
class Must:
    """One line: how many times as fast as the best dense peer of the same run, on one thread in fp32."""

    model: str
    pattern: str
    sparsity: float
    must: float
    aim: float
    batch: int = 1

    def case(self, threads: int, small: bool, rounds: int) -> Case:
        """The row that measures it."""
        return Case(self.model, self.pattern, self.sparsity, threads, self.batch, True, small, rounds)

    def judge(self, ratio: float | None) -> str:
        """What a ratio reaches; a row without one, failed or wrong, reaches nothing."""
        if ratio is None or ratio < self.must:
            return "below"
        return "must" if ratio < self.aim else "aim"


MUSTS = (
    Must("bert-base", "unstructured", 0.9, 4.0, 5.2),
    Must("bert-base", "4x1", 0.9, 6.5, 9.0),
    Must("bert-base", "unstructured", 0.7, 1.8, 2.4),
    Must("bert-base", "4x1", 0.5, 1.7, 2.1),
    Must("bert-base", "none", 0.0, 0.95, 1.1),
    Must("resnet-50", "unstructured", 0.9, 2.8, 4.0),
    Must("resnet-50", "4x1", 0.9, 4.8, 6.5),
    Must("resnet-50", "unstructured", 0.9, 3.1, 5.0, batch=16),
    Must("resnet-50", "4x1", 0.9, 5.0, 7.0, batch=16),
    Must("mobilenet-v2", "unstructured", 0.9, 1.3, 2.0),
    Must("gpt2-decode", "unstructured", 0.7, 1.5, 1.8),
    Must("linear-4096", "unstructured", 0.7, 2.2, 2.8),
    *(
        Must(name, "ssl", of.sparsity, IDEAL_MUST * of.ideal, IDEAL_AIM * of.ideal)
        for name, of in ALEXNET.items()
    ),
)
_BY_CASE = {must.case(threads=1, small=False, rounds=0): must for must in MUSTS}


def must_of(case: Case) -> Must | None:
    """What a row must reach, at any number of threads; nothing is asked of small models."""
    return _BY_CASE.get(replace(case, threads=1))


@dataclass(frozen=True)
class Judged:
    """A row that has a must."""

    row: Row
    must: Must
    alone: Row | None
    """The same on one thread of the same machine, for a row of several threads."""

    @staticmethod
    def of(row: Row, rows: Mapping[Case, Row]) -> Judged | None:
        """None for a row of which nothing is asked."""
        must = must_of(row.case)
        if must is None:
            return None
        alone = rows.get(replace(row.case, threads=1)) if row.case.threads > 1 else None
        if alone and not _alike(alone, row):
            alone = None
        return Judged(row, must, alone)

    @property
    def held(self) -> float | None:
        """Share of the ratio at one thread; None at one thread, or where that has none. 0 without a ratio."""
        if self.alone is None or self.alone.over_best_dense is None:
            return None
        return (self.row.over_best_dense or 0.0) / self.alone.over_best_dense

    @property
    def cells(self) -> tuple[str, str, str]:
        """Must, aim, and what was reached: of the two at one thread, of the ratio there at more."""
        if self.row.case.threads == 1:
            reached = self.must.judge(self.row.over_best_dense)
            return f"{self.must.must:.2f}", f"{self.must.aim:.2f}", reached
        return "", "", "" if self.held is None else f"{self.held:.0%} of 1 thread"


def _alike(left: Row, right: Row) -> bool:
    """Whether two rows were measured with the same CPU and libraries."""
    return (left.machine.cpu, left.machine.versions) == (right.machine.cpu, right.machine.versions)


def judged(rows: Sequence[Row]) -> list[Judged]:
    """Those of the rows that have a must."""
    by_case = {row.case: row for row in rows}
    return [found for row in rows if (found := Judged.of(row, by_case))]


def verdict(rows: Sequence[Row]) -> list[str]:
    """Lines for the summary: how many musts are reached, which are not, and what does not hold."""
    found = judged(rows)
    alone = [one for one in found if one.row.case.threads == 1]
    more = [(one, one.held) for one in found if one.held is not None]
    below = [one for one in alone if one.must.judge(one.row.over_best_dense) == "below"]
    aims = sum(one.must.judge(one.row.over_best_dense) == "aim" for one in alone)
    lines = []
    if alone:
        lines.append(
            f"Musts: {len(alone) - len(below)} of {len(alone)} reached, of them {aims} with the aim."
        )
        lines.extend(f"below its must: {one.row.case}: {_ratio(one)} of {one.must.must:.2f}" for one in below)
    lines.extend(_alexnet(alone))
    if more:
        fallen = [f"does not hold: {one.row.case}: {held:.0%}" for one, held in more if held < HOLDS]
        kept = f"{len(more) - len(fallen)} of {len(more)} rows"
        lines.append(f"At several threads at least {HOLDS:.0%} of the ratio at one: {kept}.")
        lines.extend(fallen)
    return lines


def _ratio(one: Judged) -> str:
    ratio = one.row.over_best_dense
    return one.row.verdict if ratio is None else f"{ratio:.2f}"


def _alexnet(alone: Sequence[Judged]) -> list[str]:
    """The mean of the five, once all of them have a ratio."""
    ratios = [
        one.row.over_best_dense for one in alone if one.row.case.model in ALEXNET and one.row.over_best_dense
    ]
    if len(ratios) < len(ALEXNET):
        return []
    mean = statistics.mean(ratios)
    reached = "reached" if mean >= ALEXNET_MEAN else "below its must"
    return [f"AlexNet's convolutions, mean of the ratios: {mean:.2f} of {ALEXNET_MEAN:.2f}, {reached}"]
