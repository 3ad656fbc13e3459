"""Rows -> tables for the terminal and for Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.musts import HOLDS, Judged, verdict
from benchmarks.rivals import DENSE_RIVALS
from benchmarks.row import NEVER_SLOWER, NOISY, OURS, OWN_DENSE, TOLERANCE, Case, Row

CONTESTANTS = (*DENSE_RIVALS, OWN_DENSE, "eager", OURS)
HEADER = (
    *("model", "pattern", "sparsity", "threads", "batch"),
    *CONTESTANTS,
    *("over best dense", "must", "aim", "reached"),
    *("over own dense", "over eager", "error", "verdict", "peak"),
)
LEGEND = (
    "Milliseconds: median (interquartile range) of alternating rounds. Dense weights: "
    f"{'; '.join((*DENSE_RIVALS, OWN_DENSE))}. The pruned ones: eager; {OURS}. Over: times as fast, by medians; none where "
    f"an output is off by more than {TOLERANCE:g}. Must and aim: what the ratio over the best dense peer is to "
    f"reach at 1 thread; at more it is to keep {HOLDS:.0%} of the ratio at 1. Own dense: {OWN_DENSE}. Verdict: ok at {NEVER_SLOWER} of the speed of eager or "
    f"more; noisy where an interquartile range is above {NOISY} of its median. "
    "Peak: fp32 multiply-add GFLOP/s of one core, measured with the row."
)


def wide_console() -> Console:
    """Wide enough for the tables also where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


@dataclass(frozen=True)
class Section:
    """Rows that were measured on one machine against the same contestants."""

    heading: str
    header: list[str]
    lines: list[list[str]]
    failures: list[str]
    """Reasons; `failed [1]` in a cell is the first."""


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the tables."""
    for section in _sections(rows):
        table = Table(title=section.heading, title_justify="left")
        for name in section.header:
            table.add_column(name, overflow="fold")
        for line in section.lines:
            table.add_row(*line)
        console.print(table)
        for number, reason in enumerate(section.failures, 1):
            console.print(f"[{number}] {reason}", markup=False)
    console.print(LEGEND)
    console.print(summary(rows))


def markdown(rows: Sequence[Row]) -> str:
    """The same, for a file."""
    parts = ["# Models", LEGEND]
    for section in _sections(rows):
        table = [section.header, ["---"] * len(section.header), *section.lines]
        parts.append(f"## {section.heading}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in table))
        parts.extend(f"[{number}] {reason}" for number, reason in enumerate(section.failures, 1))
    return "\n\n".join([*parts, summary(rows).replace("\n", "\n- ")]) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """How many rows keep the promise and reach their must, and which do not."""
    broken = [f"{row.case}: {row.verdict}" for row in rows if row.verdict != "ok"]
    kept = f"At least {NEVER_SLOWER} of the speed of eager: {len(rows) - len(broken)} of {len(rows)} rows."
    return "\n".join([kept, *broken, *verdict(rows)])


def _sections(rows: Sequence[Row]) -> Iterator[Section]:
    """One for each machine with its versions, and within it those with rivals first."""

    def key(row: Row) -> tuple[str, bool]:
        versions = ", ".join(f"{name} {version}" for name, version in row.machine.versions.items())
        return f"{row.machine.cpu}, {row.machine.cores} usable; {versions}", not row.case.rivals

    by_case = {row.case: row for row in rows}
    for (machine, alone), group in itertools.groupby(sorted(rows, key=key), key=key):
        failures: list[str] = []
        found = list(group)
        lines = [_line(row, by_case, failures) for row in found]
        used = [column for column in range(len(HEADER)) if any(line[column] for line in lines)]
        dates = sorted({row.date[:10] for row in found})
        title = "Against eager" if alone else "Against rivals"
        yield Section(
            f"{title}: {machine}; {' to '.join((dates[0], dates[-1])[: len(dates)])}",
            [HEADER[column] for column in used],
            [[line[column] for column in used] for line in lines],
            failures,
        )


def _line(row: Row, rows: Mapping[Case, Row], failures: list[str]) -> list[str]:
    """The cells of one row; reasons of what failed are added to `failures`, and the cell points there."""
    case, ours = row.case, row.outcomes.get(OURS)
    judged = Judged.of(row, rows)
    return [
        f"{case.model} (small)" if case.small else case.model,
        case.pattern,
        f"{case.sparsity:.0%}",
        str(case.threads),
        str(case.batch),
        *(_milliseconds(row, name, failures) for name in CONTESTANTS),
        _ratio(row.over_best_dense),
        *(judged.cells if judged else ("", "", "")),
        _ratio(row.over_own_dense),
        _ratio(row.over_eager),
        f"{ours.error:.0e}" if ours and ours.error is not None else "",
        f"{row.verdict}, noisy" if row.is_noisy else row.verdict,
        f"{row.machine.fma_peak:.0f}" if row.machine.fma_peak else "?",
    ]


def _milliseconds(row: Row, name: str, failures: list[str]) -> str:
    outcome = row.outcomes.get(name)
    if outcome and outcome.times:
        return f"{outcome.times.median * 1e3:.2f} ({outcome.times.iqr * 1e3:.2f})"
    if outcome is None and (not row.failure or name == OWN_DENSE):
        return ""  # not asked for
    text = outcome.failure if outcome else row.failure
    reason = f"{name}: {_first_line(text)}" if outcome else _first_line(text)
    if reason not in failures:
        failures.append(reason)
    return f"failed [{failures.index(reason) + 1}]"


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 200 else f"{line[:200]}..."


def _ratio(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""
