"""Plans of the same speed on real data: `python -m benchmarks.equal_latency`; `--help` lists the options.

A network is trained, then planned to one latency in every way: with all structures, with each structure alone, with one
sparsity in all layers, and as `sparsify` does, which takes the one of these that is best on calibration data, and changes it
where that is better still. Best is whose outputs move least; of the language model, where the text itself has the labels, which loses
least (`sensitivity=`). What counts is the loss on data that neither training nor planning has seen. One-shot: nothing is trained after pruning.

Latency is the sum of the layers' measured times, from a table that is measured once and kept beside the results: of
networks so small the time of a whole one changes more from minute to minute than from plan to plan.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import Machine
from benchmarks.sparsify_quality import convnet
from benchmarks.ssl.digits import Digits
from benchmarks.ssl.nets import lenet
from benchmarks.ssl.training import Phase, fit
from benchmarks.store import RESULTS, write, write_json
from benchmarks.text import ByteTransformer, Text, bits_per_byte, fit_text
from sparsecomp.progress import Watch
from sparsecomp.pruning.candidate import default_candidates
from sparsecomp.pruning.latency import LatencyTable
from sparsecomp.pruning.prune import METHODS
from sparsecomp.pruning.rivals import best_of, rivals_of
from sparsecomp.pruning.series import Choices, Series, fingerprint, first_within
from sparsecomp.pruning.state import State
from sparsecomp.pruning.subject import Example, Subject
from sparsecomp.target import Target

VERIFIED = "sparsify"
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Of an image, in pixels."""
LENGTH = 64
"""Bytes of a piece of text."""
TABLE = RESULTS / "equal_latency_table.json"


@dataclass(frozen=True)
class Trained:
    """A dense network, what planning may look at, and its loss on data that nothing else sees."""

    model: nn.Module
    batches: Sequence[Tensor]
    held_out: Callable[[nn.Module], float]
    sensitivity: Callable[[nn.Module], float] | None = None
    """Loss on data that planning may look at; without it how far the outputs move counts."""


def deep_convnet() -> nn.Module:
    """Six convolutions with batch norm, in pairs of equal work, 163 thousand weights, for 8 x 8 pixels."""
    layers: list[nn.Module] = []
    for inputs, width in ((1, 24), (24, 48), (48, 96)):
        for channels in (inputs, width):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))


def _digits(make: Callable[[], nn.Module], size: int, epochs: int) -> Callable[[int, bool], Trained]:
    """Every image as it is and shifted by a pixel four ways, in training as in testing: of 360 images alone, which a
    network that saw no shifts is too sure of, a handful decide the loss, and it hardly follows how far outputs moved."""

    def train(seed: int, quick: bool) -> Trained:
        torch.manual_seed(seed)
        found, model = Digits.split(seed, size), make()
        digits = Digits(
            _shifted(found.train_x),
            found.train_y.repeat(len(SHIFTS)),
            _shifted(found.test_x),
            found.test_y.repeat(len(SHIFTS)),
        )
        fit(model, digits, Phase(1 if quick else epochs, 0.05), 1e-4)
        seen = digits.train_x[torch.randperm(len(digits.train_x))[: 256 if quick else 2048]]
        return Trained(model.eval(), torch.split(seen, 64), _nats(digits.test_x, digits.test_y))

    return train


def _shifted(x: Tensor) -> Tensor:
    """One block of images for each shift; what comes in from outside is black."""
    height, width = x.shape[2:]
    wide = F.pad(x, (1, 1, 1, 1))
    return torch.cat([wide[:, :, 1 + y : 1 + y + height, 1 + z : 1 + z + width] for y, z in SHIFTS])


def _nats(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    """Mean cross-entropy."""

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return float(F.cross_entropy(model(x), y))

    return loss


def _text(seed: int, quick: bool) -> Trained:
    torch.manual_seed(seed)
    text, model = Text.of_python(), ByteTransformer(width=64, heads=2, depth=2, length=LENGTH)
    fit_text(model, text, 5 if quick else 400, LENGTH, seed)
    seen = text.windows(512, LENGTH, torch.Generator().manual_seed(1000 + seed))
    held_out = text.held_out_windows(16 if quick else 192, LENGTH)
    return Trained(
        model,
        torch.split(seen, 32),
        held_out=lambda pruned: bits_per_byte(pruned, held_out),
        sensitivity=lambda pruned: bits_per_byte(pruned, seen),
    )


@dataclass(frozen=True)
class Network:
    train: Callable[[int, bool], Trained]
    example: Callable[[], Tensor]
    """Whose latency counts."""
    speedup: float
    """Of the layers, over the dense ones: where the ways begin to differ."""
    unit: str


NETWORKS = {
    "convnet": Network(_digits(convnet, 8, 4), lambda: torch.rand(64, 1, 8, 8), 24.0, "nats"),
    "deep convnet": Network(_digits(deep_convnet, 8, 4), lambda: torch.rand(64, 1, 8, 8), 12.0, "nats"),
    "lenet": Network(_digits(lenet, 28, 4), lambda: torch.rand(64, 1, 28, 28), 8.0, "nats"),
    "text": Network(_text, lambda: torch.randint(0, 256, (8, LENGTH)), 5.0, "bits per byte"),
}


def main() -> None:
    options = parse(sys.argv[1:])
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for name in options.networks:
        table = latency_table(name, options.table)
        for seed in options.seeds:
            key = f"{name}, {options.method}, seed {seed}"
            if key in rows:
                continue
            start = time.perf_counter()
            rows[key] = row(NETWORKS[name], seed, options.method, table, options.quick)
            write_json(options.out, {"rows": rows, "machine": str(Machine.here())})
            write(options.out.with_suffix(".md"), markdown(rows))
            print(f"{key}: {json.dumps(rows[key])} ({time.perf_counter() - start:.0f} s)", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.equal_latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["convnet", "deep convnet", "text"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--method", choices=METHODS, default="obs")
    parser.add_argument("--quick", action="store_true", help="almost no training: does it run?")
    parser.add_argument("--table", type=Path, default=TABLE, help="latencies; what is missing is measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "equal_latency.json")
    return parser.parse_args(arguments)


def latency_table(name: str, path: Path) -> LatencyTable:
    """From the file, or measured now, on a machine that should have nothing else to do."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        trained = NETWORKS[name].train(0, True)
        subject = _subject(NETWORKS[name], trained, "magnitude")
        subject.measure(Target.parse(None), torch.get_num_threads())
        assert subject.table is not None
        known[name] = subject.table.as_dict()
        write_json(path, known)
    return LatencyTable.of(known[name])


def _subject(network: Network, trained: Trained, method: Any) -> Subject:
    example = Example((network.example(),), {})
    return Subject(
        trained.model,
        trained.batches,
        example,
        default_candidates(),
        method,
        State(None),
        Watch(),
        sensitivity=trained.sensitivity,
    )


def row(network: Network, seed: int, method: str, table: LatencyTable, quick: bool) -> dict[str, Any]:
    """Way -> loss on held-out data, what was measured on the calibration data, milliseconds of its layers."""
    trained = network.train(seed, quick)
    subject = _subject(network, trained, method)
    subject.table = table
    budget = subject.alone({}) / network.speedup
    found: dict[str, Any] = {
        "dense": {"loss": trained.held_out(trained.model), "ms": subject.alone({}) * 1e3}
    }
    judged: dict[str, tuple[float, float]] = {}

    def loss(choices: Choices) -> float:
        key = fingerprint(choices)
        if key not in judged:
            model = subject.pruned(choices)[0]
            judged[key] = subject.judge(model), trained.held_out(model)
        return judged[key][0]

    def told(series: Series) -> dict[str, Any]:
        number = first_within(series, budget)
        assert number is not None
        choices = series.choices(number)
        seen, held_out = judged[fingerprint(choices)]
        return {"loss": held_out, "seen": seen, "ms": subject.alone(choices) * 1e3}

    rivals = rivals_of(subject, subject.seconds, budget)
    best, verdict = best_of(subject, rivals, budget, loss)
    found |= {way: told(series) for way, series in rivals.items() if way in verdict.losses}
    found[VERIFIED] = told(best) | {"way": verdict.best}
    return found


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Losses by row; and how often what `sparsify` takes loses less than each other way."""
    ways = list(dict.fromkeys(way for row in rows.values() for way in row if way not in ("dense", VERIFIED)))
    about = (
        "Loss on held-out data, one-shot, all plans of a row within the same sum of measured layer times: digits, also "
        "shifted by a pixel, in nats, text in bits per byte. `sparsify` takes the way whose outputs move least on calibration data, without labels; that which loses least there in text, which has its own. The last lines: of how "
        "many plans it loses less than the way, as much (it is the same plan), and more."
    )
    lines = [f"# Plans of the same speed\n\n{about}\n", _line(["plan", "dense", VERIFIED, *ways])]
    lines.append(_line(["---"] * (3 + len(ways))))
    for name, row in rows.items():
        cells = [
            f"{row[way]['loss']:.4f}" if way in row else "out of reach" for way in ("dense", VERIFIED, *ways)
        ]
        cells[1] += f" ({row[VERIFIED]['way']})"
        lines.append(_line([name, *cells]))
    for network in dict.fromkeys(name.split(",")[0] for name in rows):
        own = [row for name, row in rows.items() if name.split(",")[0] == network]
        lines.append(
            _line([f"{network}: less, as much, more", "", "", *(_compared(own, way) for way in ways)])
        )
    return "\n".join(lines) + "\n"


def _compared(rows: Sequence[Mapping[str, Any]], way: str) -> str:
    pairs = [(row[VERIFIED]["loss"], row[way]["loss"]) for row in rows if way in row]
    less, more = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return f"{less}, {len(pairs) - less - more}, {more}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
