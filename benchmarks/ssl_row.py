"""One row of `python -m benchmarks.ssl`: a network, a seed, what was left of it, and how fast that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine import Machine
from benchmarks.row import now
from benchmarks.ssl_left import Left
from benchmarks.ssl_training import EXPERIMENTS, Trained, run
from benchmarks.timing import Times, alternate
from sparsecomp import analyze, compile_sparse

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

    @staticmethod
    def of(data: Mapping[str, Any]) -> Row:
        """From what `dataclasses.asdict` and JSON made of one."""
        left = {
            name: Left(*(tuple(part[key]) for key in ("rows", "inputs", "columns")))
            for name, part in data["left"].items()
        }
        times = {name: Times(**found) for name, found in data["times"].items()}
        layers = data["living_layers"]
        return Row(**(dict(data) | {"left": left, "times": times, "living_layers": layers and tuple(layers)}))


def measure(name: str, seed: int, machine: Machine, quick: bool = False) -> Row:
    """Train, count, compile, time: on one thread, in this process."""
    torch.set_num_threads(1)
    experiment = EXPERIMENTS[name]
    trained = run(experiment, seed, quick)
    x = experiment.example()
    return Row(
        name,
        seed,
        trained.dense_accuracy,
        trained.sparse_accuracy,
        trained.left,
        trained.living_layers,
        flops_left(trained, x),
        race(trained, x, 3 if quick else 30),
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
def race(trained: Trained, x: torch.Tensor, rounds: int) -> dict[str, Times]:
    """Everyone in turn, so that all see the same machine."""
    dense = compile_sparse(trained.dense, (x,), threads=1)
    sparse = compile_sparse(trained.sparse, (x,), threads=1)
    runs = (lambda: trained.dense(x), lambda: dense(x), lambda: sparse(x))
    return alternate(dict(zip(CONTESTANTS, runs, strict=True)), rounds, duration=0.5)
