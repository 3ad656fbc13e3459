"""Would a slimmed network be faster with its widths rounded up to whole vectors? `python -m benchmarks.widths`.

Slimming leaves widths such as 13 of 16 channels. For pairs of layers, the compiled pair of every width below a multiple
of the vector width (16 floats) runs in turn with that of the multiple, on one thread. Rounding up would win where
the multiple is faster by more than the scatter of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import Machine
from benchmarks.row import now
from benchmarks.store import RESULTS, write, write_json
from benchmarks.table import wide_console
from sparsecomp import compile_sparse
from sparsecomp.alternate import Times, alternate

VECTOR = 16
"""Floats of AVX-512, the widest of this library's targets."""
BELOW = (12, 8, 6, 5, 4, 3, 2, 1)
"""Widths that are tried, by how far they are below the multiple."""
LEGEND = (
    "Times as fast with the width rounded up to the multiple of 16: below 1 rounding loses. Two layers, compiled as one "
    "region, the width between them; one thread; medians of alternating rounds. In bold where rounding wins by more "
    "than the scatter and 3 %."
)


@dataclass(frozen=True)
class Pair:
    """Two layers, and between them the width that slimming changes."""

    make: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    """Of the input."""

    def example(self) -> Tensor:
        return torch.randn(self.shape)


def _convolutions(inputs: int, outputs: int, kernel: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.Sequential(
        nn.Conv2d(inputs, width, kernel, padding=kernel // 2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, outputs, kernel, padding=kernel // 2),
    )


def _linear(features: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, features))


PAIRS: Mapping[str, Pair] = {
    "3x3 convolutions, 64 channels, 28x28": Pair(_convolutions(64, 64, 3), (1, 64, 28, 28)),
    "3x3 convolutions, 32 channels, 8x8, batch 8": Pair(_convolutions(32, 32, 3), (8, 32, 8, 8)),
    "1x1 convolutions, 128 channels, 14x14": Pair(_convolutions(128, 128, 1), (1, 128, 14, 14)),
    "linear, 256 features, 128 tokens": Pair(_linear(256), (128, 256)),
    "linear, 256 features, 1 token": Pair(_linear(256), (1, 256)),
}


@dataclass(frozen=True)
class Row:
    """A width beside the multiple above it, in seconds."""

    pair: str
    width: int
    rounded: int
    times: Times
    rounded_times: Times
    date: str
    machine: str

    @property
    def gain(self) -> float:
        """How many times as fast the rounded width is: above 1 where rounding would win."""
        return self.times.median / self.rounded_times.median

    @property
    def wins(self) -> bool:
        """Beyond the scatter of both, and beyond what two compilations of one network differ by."""
        scatter = math.hypot(self.times.iqr, self.rounded_times.iqr)
        return self.times.median - self.rounded_times.median > max(scatter, 0.03 * self.times.median)


@torch.inference_mode()
def measure(name: str, rounded: int, machine: Machine, rounds: int = 200) -> list[Row]:
    """All widths below one multiple, and the multiple, in turn."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pair = PAIRS[name]
    x = pair.example()
    widths = [rounded - below for below in BELOW if below < rounded]
    runs = {str(width): _run(pair.make(width).eval(), x) for width in (*widths, rounded)}
    times = alternate(runs, rounds, duration=0.5)
    last = times[str(rounded)]
    return [Row(name, width, rounded, times[str(width)], last, now(), str(machine)) for width in widths]


def _run(model: nn.Module, x: Tensor) -> Callable[[], object]:
    compiled = compile_sparse(model, (x,), threads=1)
    return lambda: compiled(x)


def tables(rows: Sequence[Row]) -> str:
    lines = [
        "# Widths, and whole vectors",
        "",
        LEGEND,
        "",
    ]
    for rounded in sorted({row.rounded for row in rows}):
        mine = [row for row in rows if row.rounded == rounded]
        widths = list(dict.fromkeys(row.width for row in mine))
        lines += [f"| to {rounded} | {' | '.join(map(str, widths))} |", f"|---{'|---' * len(widths)}|"]
        for name in dict.fromkeys(row.pair for row in mine):
            cells = [
                f"**{row.gain:.2f}**" if row.wins else f"{row.gain:.2f}" for row in mine if row.pair == name
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    wins = [row for row in rows if row.wins]
    lines += [f"Rounding wins for {len(wins)} of {len(rows)} widths.", ""]
    machines = dict.fromkeys(row.machine for row in rows)
    return "\n".join([*lines, *(f"Measured on {machine}." for machine in machines), ""])


def main() -> None:
    options = parse(sys.argv[1:])
    machine = Machine.here()
    rows = [row for row in load(options.out) if row.rounded not in options.multiples]
    for rounded in options.multiples:
        for name in PAIRS:
            rows += measure(name, rounded, machine, options.rounds)
    write_json(options.out, {"rows": [dataclasses.asdict(row) for row in rows]})
    text = tables(rows)
    write(options.out.with_suffix(".md"), text)
    wide_console().print(text, markup=False, highlight=False)


def load(path: Path) -> list[Row]:
    """What was measured before."""
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    times = ("times", "rounded_times")
    return [Row(**(data | {name: Times(**data[name]) for name in times})) for data in found]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.widths", description=(__doc__ or "").partition("?")[0]
    )
    parser.add_argument(
        "--multiples",
        nargs="+",
        type=int,
        default=[VECTOR, 2 * VECTOR, 4 * VECTOR],
        help="of the vector width; results of others are kept",
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "widths.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
