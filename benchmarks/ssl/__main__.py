"""Structured sparsity learning on real data, beside the paper's tables: `python -m benchmarks.ssl`.

Networks are trained on the digits that come with scikit-learn, once dense and then with the group lasso of
`sparsecomp.train`, for five seeds. What is left is counted, compiled and timed, on one thread. Results are written
after each row; rows that are there already are not measured again without --fresh.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import Machine
from benchmarks.ssl.results import Rows, load, save
from benchmarks.ssl.row import measure
from benchmarks.ssl.table import show
from benchmarks.ssl.training import EXPERIMENTS
from benchmarks.store import RESULTS
from benchmarks.table import wide_console

SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    options = parse(sys.argv[1:])
    console, machine = wide_console(), Machine.here()
    rows = {} if options.fresh else load(options.out)
    for name in options.experiments:
        for seed in options.seeds:
            if (name, seed) not in rows:
                rows[name, seed] = row = measure(name, seed, machine, options.quick)
                save(rows, options.out)
                console.print(
                    f"{name}, seed {seed}: {row.dense_accuracy:.2f} -> {row.sparse_accuracy:.2f} %, "
                    f"{row.flops:.1%} of the FLOPs, {row.training_seconds:.0f} s"
                )
    print_all(rows, options.experiments, console)
    console.print(str(machine), markup=False)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ssl", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="one epoch of everything: does it run?")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    parser.add_argument("--out", type=Path, help="JSON; tables in Markdown are written beside it")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / ("ssl-quick.json" if options.quick else "ssl.json")
    return options


def print_all(rows: Rows, experiments: Sequence[str], console: Console) -> None:
    for name in experiments:
        found = [row for (experiment, _), row in sorted(rows.items()) if experiment == name]
        if found:
            show(name, found, console)


if __name__ == "__main__":
    main()
