"""Whole models beside their rivals: `python -m benchmarks.models`; `--help` lists the options.

Every row runs in a process of its own, because the number of threads must be fixed before torch starts
and because a rival that crashes must not take the others along. Results are written after each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.alexnet import ALEXNET
from benchmarks.child import ChildError, ask
from benchmarks.musts import MUSTS, Must
from benchmarks.prune import PATTERNS, only_sparsity
from benchmarks.row import OURS, Case, Row
from benchmarks.store import RESULTS, write, write_json
from benchmarks.table import markdown, show, wide_console
from benchmarks.workloads import WORKLOADS
from sparsecomp.host import usable_cores


@dataclass(frozen=True)
class Grid:
    """Rows that are measured: every combination."""

    models: Sequence[str]
    patterns: Sequence[str]
    sparsities: Sequence[float]
    rivals: bool

    def combinations(self) -> Iterator[tuple[str, str, float]]:
        """Model, pattern, sparsity; some patterns have one sparsity only."""
        for model, pattern in itertools.product(self.models, self.patterns):
            only = only_sparsity(pattern, model)
            for sparsity in self.sparsities if only is None else (only,):
                yield model, pattern, sparsity


CHOSEN = Grid(("bert-base", "resnet-50"), ("unstructured", "4x1"), (0.9,), rivals=True)
"""Against every rival: what is measured where only some of models, patterns and sparsities are asked for."""
NEVER_SLOWER = Grid(
    tuple(name for name in WORKLOADS if name not in ALEXNET),
    ("unstructured",),
    (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    rivals=False,
)
"""Against eager alone: no model may end below the speed it had."""


def main() -> None:
    options = parse(sys.argv[1:])
    cases = plan(options)
    rows = {} if options.fresh else load(options.out)
    console = wide_console()
    try:
        for number, case in enumerate(cases, 1):
            start = time.perf_counter()
            row = run(case)
            rows[case] = row
            save(list(rows.values()), options.out)
            took = time.perf_counter() - start
            console.print(f"[{number}/{len(cases)}] {progress(row)} ({took:.0f} s)", markup=False)
    except KeyboardInterrupt:
        console.print(f"interrupted; {options.out} holds the rows that were finished")
    show([rows[case] for case in cases if case in rows], console)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, help="default: bert-base and resnet-50")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, help="default: unstructured and 4x1")
    parser.add_argument("--sparsity", nargs="+", type=float, help="default: 0.9, and eight in --never-slower")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, min(2, usable_cores())}))
    parser.add_argument("--batch", type=int, help="default: 1, and what a must says")
    parser.add_argument("--rounds", type=int, help="default: 20")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--musts", action="store_true", help="the headline alone; the options above choose from it"
    )
    part.add_argument("--never-slower", action="store_true", help="all models against eager alone")
    parser.add_argument("--quick", action="store_true", help="small models and 5 rounds: does it work?")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    parser.add_argument("--out", type=Path, help="JSON; a table in Markdown is written beside it")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 20)
    options.out = options.out or RESULTS / ("models-quick.json" if options.quick else "models.json")
    return options


def plan(options: argparse.Namespace) -> list[Case]:
    """The rows to measure: what was asked for, or the headline and then the check of never being slower."""
    asked = options.models or options.patterns or options.sparsity or options.batch
    cases: dict[Case, None] = {}  # a set that keeps the order
    if options.musts or not (asked or options.never_slower):
        wanted = [must for must in MUSTS if _is_asked_for(must, options)]
        for threads, must in itertools.product(options.threads, wanted):
            cases[must.case(threads, options.quick, options.rounds)] = None
    if not options.musts:
        grid = CHOSEN if asked and not options.never_slower else NEVER_SLOWER
        cases |= dict.fromkeys(_crossed(grid, options))
    return list(cases)


def _is_asked_for(must: Must, options: argparse.Namespace) -> bool:
    choices = (
        (must.model, options.models),
        (must.pattern, options.patterns),
        (must.sparsity, options.sparsity),
        (must.batch, [options.batch] if options.batch else None),
    )
    return all(not wanted or value in wanted for value, wanted in choices)


def _crossed(grid: Grid, options: argparse.Namespace) -> Iterator[Case]:
    """The rows of a grid, with what was asked for in place of its own."""
    wanted = Grid(
        options.models or grid.models,
        options.patterns or grid.patterns,
        options.sparsity or grid.sparsities,
        grid.rivals,
    )
    size = (options.batch or 1, grid.rivals, options.quick, options.rounds)
    for threads in options.threads:
        for model, pattern, sparsity in wanted.combinations():
            yield Case(model, pattern, sparsity, threads, *size)


def run(case: Case) -> Row:
    """Measure one row in a process whose libraries see the number of threads from the start."""
    try:
        return Row.of(ask("benchmarks.row", dataclasses.asdict(case), case.threads))
    except ChildError as error:
        return Row.failed(case, str(error))


def progress(row: Row) -> str:
    """One line: what was measured and how it ended."""
    ours = row.outcomes.get(OURS)
    if ours is None or ours.times is None:
        return f"{row.case}: {row.verdict}: {row.failure or (ours.failure if ours else '')}"
    line = f"{row.case}: {ours.times.median * 1e3:.2f} ms, {row.over_eager:.2f} x eager"
    if row.best_dense and row.case.rivals:
        line += f", {row.over_best_dense:.2f} x {row.best_dense[0]}"
    return f"{line}, {row.verdict}{', noisy' * row.is_noisy}"


def load(path: Path) -> dict[Case, Row]:
    """The rows of earlier runs; each has its own date and machine."""
    if not path.exists():
        return {}
    rows = [Row.of(data) for data in json.loads(path.read_text())["rows"]]
    return {row.case: row for row in rows}


def save(rows: Sequence[Row], path: Path) -> None:
    """Write the JSON and the table beside it."""
    write_json(path, {"rows": [dataclasses.asdict(row) for row in rows]})
    write(path.with_suffix(".md"), markdown(rows))


if __name__ == "__main__":
    main()
