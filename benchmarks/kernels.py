"""Generated kernels beside hand-written ones, layer by layer: `python -m benchmarks.kernels`.

Both run on one thread of one process, in alternating rounds and timed by the same function; each side
may choose its variant anew. Packing, layout conversion, bias and activation are left out on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.ceiling import NoCompilerError, best_hand_written
from benchmarks.layers import LAYERS, SAMPLES, Sample, useful_flops
from benchmarks.machine import Machine
from benchmarks.row import now
from benchmarks.store import RESULTS, write_json
from benchmarks.table import wide_console
from sparsecomp.codegen.measure import Meter
from sparsecomp.codegen.stopwatch import seconds_in_turn
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, stored_elements
from sparsecomp.target import Target

REQUIRED = 0.9
"""Of the speed of the hand-written kernel, that the generated one must reach."""


@dataclass(frozen=True)
class Comparison:
    """One layer with one kind of weight; medians over the rounds, in seconds."""

    layer: str
    sample: str
    hand: float
    hand_kernel: str
    generated: float
    generated_kernel: str
    flops: int
    """Two per weight kept and output wanted."""

    @property
    def ratio(self) -> float:
        """Speed of the generated kernel over that of the hand-written one."""
        return self.hand / self.generated

    @property
    def passes(self) -> bool:
        return self.ratio >= REQUIRED


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)
    console, machine = wide_console(), Machine.here()
    comparisons: list[Comparison] = []
    wanted = [layer for layer in LAYERS if any(part in layer.name for part in options.layers)]
    try:
        for layer, sample in itertools.product(wanted, SAMPLES):
            comparisons.append(compare(layer, sample, options.rounds))
            save(comparisons, machine, options.out)
            last = comparisons[-1]
            console.print(f"{last.layer}, {last.sample}: {last.ratio:.2f} of the hand-written speed")
    except NoCompilerError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        console.print(f"interrupted; {options.out} holds what was finished")
    show(comparisons, machine, console)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--layers", nargs="+", default=[""], help="parts of names: linear, '3x3', 768->3072")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    return parser.parse_args(arguments)


def compare(layer: Layer, sample: Sample, rounds: int) -> Comparison:
    """Time both sides in turn."""
    matrix = sample.matrix(layer)
    hand, generated = [], []
    for _ in range(rounds):
        hand.append(best_hand_written(layer, matrix, sample.hand_rows, one_by_one))
        generated.append(best_generated(layer, matrix, sample.rows_per_block))
    (hand_kernel, hand_seconds), (kernel, seconds) = median(hand), median(generated)
    flops = useful_flops(layer, matrix)
    return Comparison(layer.name, str(sample), hand_seconds, hand_kernel, seconds, kernel, flops)


def median(found: list[tuple[str, float]]) -> tuple[str, float]:
    """The round in the middle: its kernel and its seconds."""
    return sorted(found, key=lambda pair: pair[1])[len(found) // 2]


def one_by_one(run: Callable[[int], float]) -> float:
    """Seconds of a run, by the clock and the rules (cold caches between runs) of the generated side."""
    return seconds_in_turn([lambda: nullcontext(lambda: run(1))])[0]


def best_generated(layer: Layer, matrix: Tensor, rows_per_block: int) -> tuple[str, float]:
    """The best kernel on one thread, timed anew: its description and seconds.

    `rows_per_block` 1, 2, 4 or 8 keeps a list of columns per block; 0 runs the weight as dense.
    """
    patterns = [p for p in PATTERNS if (p.shared if rows_per_block == 0 else p == RowBlocks(rows_per_block))]
    timed = Meter(Target(), threads=1).timed(layer, matrix, stored_elements(matrix, patterns))
    pattern = min(patterns, key=lambda pattern: timed[pattern])
    seconds, schedule = timed[pattern]
    return f"{pattern} [{schedule}]", seconds


def show(comparisons: Sequence[Comparison], machine: Machine, console: Console) -> None:
    table = Table(title=str(machine), caption=f"pass: at least {REQUIRED} of the hand-written speed")
    numeric = ("hand us", "generated us", "GFLOP/s", "of peak", "generated/hand")
    for name in ("layer", "weight", *numeric, "", "hand", "generated"):
        table.add_column(name, justify="right" if name in numeric else "left")
    for found in comparisons:
        rate = found.flops / found.generated / 1e9
        table.add_row(
            *(found.layer, found.sample, f"{found.hand * 1e6:.1f}", f"{found.generated * 1e6:.1f}"),
            *(f"{rate:.1f}", f"{rate / machine.fma_peak:.0%}" if machine.fma_peak else "?"),
            *(f"{found.ratio:.2f}", "pass" if found.passes else "FAIL"),
            *(found.hand_kernel, found.generated_kernel),
        )
    console.print(table)
    console.print(f"{sum(found.passes for found in comparisons)} of {len(comparisons)} pass")


def save(comparisons: Sequence[Comparison], machine: Machine, path: Path) -> None:
    content = {
        "machine": dataclasses.asdict(machine),
        "date": now(),
        "kernels": [
            dataclasses.asdict(found) | {"ratio": found.ratio, "passes": found.passes}
            for found in comparisons
        ],
    }
    write_json(path, content)


if __name__ == "__main__":
    main()
