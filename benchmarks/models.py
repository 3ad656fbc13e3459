"""Whole models beside their rivals: `python -m benchmarks.models`; `--help` lists the options.

Every row runs in a process of its own, because the number of threads must be fixed before torch starts
and because a rival that crashes must not take the others along. Results are written after each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import usable_cores
from benchmarks.prune import PATTERNS
from benchmarks.row import OURS, Case, Row
from benchmarks.table import markdown, show, wide_console
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Grid:
    """Rows that are measured: every combination."""

    models: Sequence[str]
    patterns: Sequence[str]
    sparsities: Sequence[float]
    rivals: bool

    def combinations(self) -> Iterator[tuple[str, str, float]]:
        """Model, pattern, sparsity; "none" and "2:4" have one sparsity each."""
        fixed = {"none": (0.0,), "2:4": (0.5,)}
        for model, pattern in itertools.product(self.models, self.patterns):
            for sparsity in fixed.get(pattern, self.sparsities):
                yield model, pattern, sparsity


HEADLINE = Grid(("bert-base", "resnet-50"), ("unstructured", "4x1"), (0.9,), rivals=True)
"""Against every rival."""
NEVER_SLOWER = Grid(tuple(WORKLOADS), ("unstructured",), (0.0, 0.5, 0.9), rivals=False)
"""Against eager alone: no model may end below the speed it had."""
ROW_LIMIT = 3600
"""Seconds after which a row is given up."""


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
    parser.add_argument("--sparsity", nargs="+", type=float, help="default: 0.9")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, usable_cores()}))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="default: 20")
    parser.add_argument("--never-slower", action="store_true", help="all models against eager alone")
    parser.add_argument("--quick", action="store_true", help="small models and 5 rounds: does it work?")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    parser.add_argument("--out", type=Path, help="JSON; a table in Markdown is written beside it")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 20)
    options.out = options.out or RESULTS / ("models-quick.json" if options.quick else "models.json")
    return options


def plan(options: argparse.Namespace) -> list[Case]:
    """The rows to measure: what was asked for, or the headline and then the check of never being slower."""
    asked = options.models or options.patterns or options.sparsity
    grids = [NEVER_SLOWER] if options.never_slower else [HEADLINE] if asked else [HEADLINE, NEVER_SLOWER]
    cases: dict[Case, None] = {}  # a set that keeps the order
    for grid, threads in itertools.product(grids, options.threads):
        wanted = Grid(
            options.models or grid.models,
            options.patterns or grid.patterns,
            options.sparsity or grid.sparsities,
            grid.rivals,
        )
        for model, pattern, sparsity in wanted.combinations():
            size = (options.batch, grid.rivals, options.quick, options.rounds)
            cases[Case(model, pattern, sparsity, threads, *size)] = None
    return list(cases)


def run(case: Case) -> Row:
    """Measure one row in a process whose libraries see the number of threads from the start."""
    threads = {name: str(case.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.row", json.dumps(dataclasses.asdict(case)), str(out)]
        try:
            child = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | threads,
                capture_output=True,
                text=True,
                timeout=ROW_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Row.failed(case, f"gave up after {ROW_LIMIT} s")
        if not out.exists():
            last = child.stderr.strip().rpartition("\n")[2]
            return Row.failed(case, f"exit status {child.returncode}: {last}")
        return Row.of(json.loads(out.read_text()))


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
    """Write the JSON and the table beside it; an interrupt leaves the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        path: json.dumps({"rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n",
        path.with_suffix(".md"): markdown(rows),
    }
    for target, text in texts.items():
        unfinished = target.with_name(target.name + ".tmp")
        unfinished.write_text(text)
        unfinished.replace(target)


if __name__ == "__main__":
    main()
