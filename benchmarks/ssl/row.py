"""One row of `python -m benchmarks.ssl`: a network, a seed, what was left of it, and how fast that runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.machine import Machine
from benchmarks.row import now
from benchmarks.ssl.left import Left
from benchmarks.ssl.training import EXPERIMENTS, Trained, run
from sparsecomp import analyze, compile_sparse
from sparsecomp.alternate import Times, alternate
from sparsecomp.module import SparseModule

CONTESTANTS = ("eager, dense", "compiled, dense", "compiled, sparse")


@dataclass(frozen=True)
class Row:
    """Accuracies in percent of the test images, times in seconds."""

    experiment: str
    seed: int
    dense_accuracy: float
    sparse_accuracy: float
    left: dict[str, Left]
    living_layers: tuple[int, int] | None
    flops: float
    """What is left of the network's, a share."""
    times: dict[str, Times]
    """Of a batch of 64, by contestant: one run in turns."""
    layer_seconds: dict[str, tuple[float, float]]
    """Of the same batch, by layer: in the compiled dense network and in the compiled sparse one, 0 where it is gone."""
    training_seconds: float
    date: str = ""
    machine: str = ""

    @property
    def loss(self) -> float:
        """Points of accuracy that SSL cost; negative where it gained."""
        return self.dense_accuracy - self.sparse_accuracy

    def over(self, contestant: str) -> float:
        """How many times as fast the compiled sparse network is."""
        return self.times[contestant].median / self.times[CONTESTANTS[-1]].median

    def layer_gain(self, layer: str) -> float | None:
        """How many times as fast a layer is within the sparse network; None where nothing is left of it."""
        dense, sparse = self.layer_seconds[layer]
        return dense / sparse if sparse else None

    @staticmethod
    def of(data: Mapping[str, Any]) -> Row:
        """From what `dataclasses.asdict` and JSON made of one."""
        left = {
            name: Left(*(tuple(part[key]) for key in ("rows", "inputs", "columns")))
            for name, part in data["left"].items()
        }
        times = {name: Times(**found) for name, found in data["times"].items()}
        seconds = {name: tuple(pair) for name, pair in data["layer_seconds"].items()}
        layers = data["living_layers"]
        read = {"left": left, "times": times, "layer_seconds": seconds}
        return Row(**(dict(data) | read | {"living_layers": layers and tuple(layers)}))


def measure(name: str, seed: int, machine: Machine, quick: bool = False) -> Row:
    """Train, count, compile, time: on one thread, in this process."""
    torch.set_num_threads(1)
    experiment = EXPERIMENTS[name]
    trained = run(experiment, seed, quick)
    x = experiment.example()
    dense = compile_sparse(trained.dense, (x,), threads=1)
    sparse = compile_sparse(trained.sparse, (x,), threads=1)
    return Row(
        name,
        seed,
        trained.dense_accuracy,
        trained.sparse_accuracy,
        trained.left,
        trained.living_layers,
        flops_left(trained, x),
        race((trained.dense, dense, sparse), x, 3 if quick else 30),
        race_layers(tuple(trained.left), dense, sparse, x, 1 if quick else 7),
        trained.seconds,
        now(),
        str(machine),
    )


def flops_left(trained: Trained, x: torch.Tensor) -> float:
    """The share of the multiply-adds of all layers that remains: by hand, without the compiler."""
    layers = analyze(trained.dense, (x,)).layers
    dense = {layer.layer.name: layer.layer.dense_flops for layer in layers}
    left = sum(
        flops * trained.left[name].flops if name in trained.left else flops for name, flops in dense.items()
    )
    return left / sum(dense.values())


@torch.inference_mode()
def race(networks: Sequence[nn.Module], x: torch.Tensor, rounds: int) -> dict[str, Times]:
    """Everyone in turn, so that all see the same machine."""
    runs = {name: partial(network, x) for name, network in zip(CONTESTANTS, networks, strict=True)}
    return alternate(runs, rounds, duration=0.5)


def race_layers(
    layers: Sequence[str], dense: SparseModule, sparse: SparseModule, x: torch.Tensor, rounds: int
) -> dict[str, tuple[float, float]]:
    """Medians of profiles in turn: each layer as it runs within the whole."""
    found = [(seconds_of_layers(dense, x), seconds_of_layers(sparse, x)) for _ in range(rounds)]
    return {
        layer: (
            statistics.median(one.get(layer, 0.0) for one, _ in found),
            statistics.median(other.get(layer, 0.0) for _, other in found),
        )
        for layer in layers
    }


def seconds_of_layers(compiled: SparseModule, x: torch.Tensor) -> dict[str, float]:
    """By the profile of a call; of layers that PyTorch runs, as they were measured alone."""
    alone = {r.layer.name: (r.dense_ms or 0.0) / 1e3 for r in compiled.report.layers}
    if compiled.graph is None:
        return alone
    kernels: dict[str, float] = defaultdict(float)
    for region in compiled.profile(x).regions:
        for call in region.calls:
            kernels[call.label] += call.seconds
    return {layer: kernels.get(layer, seconds) for layer, seconds in alone.items()}
