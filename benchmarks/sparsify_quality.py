"""What one-shot pruning costs in quality, on real data: `python -m benchmarks.sparsify_quality`.

Networks are trained here: three convolutional ones on the digits that come with scikit-learn, a byte-level transformer
on the source of Python's standard library. All their layers but the first convolution, the classifier and the output
head are then pruned at once, without training, by each method, calibrated on training data. Quality is that of data
that neither training nor calibration saw. Results are written after each network.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import Machine
from benchmarks.row import now
from benchmarks.ssl.digits import Digits, accuracy
from benchmarks.ssl.nets import ResNet, lenet
from benchmarks.ssl.training import Phase, fit
from benchmarks.store import RESULTS, write, write_json
from benchmarks.text import ByteTransformer, Text, bits_per_byte, fit_text
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import prune_model
from sparsecomp.pruning.prune import Method

METHODS: tuple[Method, ...] = ("magnitude", "wanda", "obs")
LENGTH = 96
NOTE = (
    "One-shot, without training after. Digits: accuracy in percent, larger is better; text: bits per byte of held-out "
    "files, smaller is better. First convolutions, classifiers and the output head stay dense; magnitude leaves norms "
    "as they are, as it sees no data. Training and data: `benchmarks/sparsify_quality.py`."
)


@dataclass(frozen=True)
class Trained:
    """A dense network, its calibration data, and its quality on data that nothing else sees."""

    model: nn.Module
    batches: Sequence[Tensor]
    quality: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Experiment:
    train: Callable[[int, bool], Trained]
    skip: tuple[str, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Row:
    """One network, pruned once."""

    experiment: str
    seed: int
    candidate: str
    method: str
    dense: float
    pruned: float
    sparsity: float
    """Of the layers that were pruned."""
    seconds: float
    """Calibration and pruning."""
    date: str = ""
    machine: str = ""


def convnet() -> nn.Module:
    """Two convolutions with batch norm and a hidden linear layer, 91 thousand weights, for 8 x 8 pixels."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 24, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(24),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(24, 48, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(48),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(768, 104),
            relu3=nn.ReLU(),
            fc2=nn.Linear(104, 10),
        )
    )


def _digits(make: Callable[[], nn.Module], size: int, phase: Phase) -> Callable[[int, bool], Trained]:
    def train(seed: int, quick: bool) -> Trained:
        torch.manual_seed(seed)
        digits, model = Digits.split(seed, size), make()
        fit(model, digits, Phase(1, phase.rate) if quick else phase, 1e-4)
        return Trained(
            model.eval(), torch.split(digits.train_x[:512], 64), lambda pruned: accuracy(pruned, digits)
        )

    return train


def _text(seed: int, quick: bool) -> Trained:
    torch.manual_seed(seed)
    text, model = Text.of_python(), ByteTransformer(depth=2, length=LENGTH)
    fit_text(model, text, 5 if quick else 500, LENGTH, seed)
    calibration = text.windows(128, LENGTH, torch.Generator().manual_seed(1000 + seed))
    held_out = text.held_out_windows(64 if quick else 256, LENGTH)
    return Trained(model, torch.split(calibration, 32), lambda pruned: bits_per_byte(pruned, held_out))


def _at(sparsity: float, *structures: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(structure, sparsity) for structure in structures)


HALF, MOST = _at(0.5, "unstructured", "4x1", "2:4"), _at(0.8, "unstructured", "4x1")
EXPERIMENTS = {
    "convnet": Experiment(_digits(convnet, 8, Phase(8, 0.05)), ("conv1", "fc2"), HALF + MOST),
    "lenet": Experiment(_digits(lenet, 28, Phase(15, 0.05)), ("conv1", "fc2"), HALF + MOST),
    "resnet": Experiment(_digits(ResNet, 8, Phase(20, 0.05)), ("stem", "head"), HALF + MOST),
    "text": Experiment(_text, ("head",), HALF + _at(0.7, "unstructured", "4x1")),
}


def measure(name: str, seed: int, machine: Machine, quick: bool = False) -> list[Row]:
    """Train once, prune by every candidate and method: on one thread."""
    torch.set_num_threads(1)
    experiment = EXPERIMENTS[name]
    trained = experiment.train(seed, quick)
    dense = trained.quality(trained.model)
    rows = []
    for candidate in experiment.candidates:
        for method in METHODS:
            model, start = copy.deepcopy(trained.model), time.perf_counter()
            layers = prunable_layers(model, skip=experiment.skip)
            batches = () if method == "magnitude" else trained.batches
            found = prune_model(model, dict.fromkeys(layers, candidate), batches, method)
            seconds = time.perf_counter() - start
            kept = sum(int(pruned.mask.count_nonzero()) for pruned in found.values())
            sparsity = 1 - kept / sum(pruned.mask.numel() for pruned in found.values())
            quality = trained.quality(model)
            rows.append(
                Row(
                    name, seed, str(candidate), method, dense, quality, sparsity, seconds, now(), str(machine)
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: means over seeds, by candidate and method."""
    lines = [
        "| network | zeros | dense | " + " | ".join(METHODS) + " | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, candidate in dict.fromkeys((row.experiment, row.candidate) for row in rows):
        own = [row for row in rows if (row.experiment, row.candidate) == (name, candidate)]
        dense = {row.seed: row.dense for row in own}
        cells = [_mean([row.pruned for row in own if row.method == method]) for method in METHODS]
        lines.append(
            f"| {name} | {candidate} | {_mean(list(dense.values()))} | "
            + " | ".join(cells)
            + f" | {len(dense)} |"
        )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


def save(rows: Sequence[Row], path: Path) -> None:
    """The JSON, and the table beside it."""
    ordered = sorted(rows, key=lambda row: (list(EXPERIMENTS).index(row.experiment), row.seed))
    write_json(path, {"rows": [dataclasses.asdict(row) for row in ordered]})
    machines = "\n".join(
        f"Measured on {machine}." for machine in dict.fromkeys(row.machine for row in ordered)
    )
    title = "# Quality after one-shot pruning"
    write(path.with_suffix(".md"), "\n\n".join([title, NOTE, table(ordered), machines]) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []


def main() -> None:
    options = parse(sys.argv[1:])
    machine = Machine.here()
    rows = load(options.out)
    for name in options.experiments:
        for seed in options.seeds:
            rows = [row for row in rows if (row.experiment, row.seed) != (name, seed)]
            rows += measure(name, seed, machine, options.quick)
            save(rows, options.out)
    sys.stdout.write(table(rows) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsify_quality", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="almost no training: does it run?")
    parser.add_argument("--out", type=Path, help="JSON; a table in Markdown is written beside it")
    options = parser.parse_args(arguments)
    options.out = options.out or RESULTS / f"sparsify-quality{'-quick' * options.quick}.json"
    return options


if __name__ == "__main__":
    main()
