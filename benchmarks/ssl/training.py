"""Train a network, then with group lasso, then with its zeros kept: one row of `python -m benchmarks.ssl`.

As in the paper: structured sparsity learning starts from the trained baseline, and a fine-tuning without the penalty
follows. One thread, SGD with momentum 0.9, learning rates that rise for a tenth of the steps and then fall to
nothing; no data augmentation. The baseline is the dense network before that.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.ssl.digits import Digits, accuracy
from benchmarks.ssl.left import Left, blocks_left, chain_left, living_layers
from benchmarks.ssl.nets import ResNet, lenet, mlp
from sparsecomp.train import GroupLasso

BATCH = 64
DECAY = 1e-4
"""Weight decay, where no group lasso takes its place."""


@dataclass(frozen=True)
class Phase:
    epochs: int
    rate: float
    """The largest learning rate."""


@dataclass(frozen=True)
class Experiment:
    """One network and how it is made sparse."""

    make: Callable[[], nn.Module]
    size: int
    """Height and width of the images."""
    strengths: Mapping[str, float]
    chain: tuple[str, ...] = ()
    """Layers whose remains are counted, from input to output; of a residual network all are."""
    layers: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    base: Phase = Phase(20, 0.05)
    ssl: Phase = Phase(20, 0.05)
    tune: Phase = Phase(10, 0.01)

    def example(self, batch: int = BATCH) -> torch.Tensor:
        return torch.rand(batch, 1, self.size, self.size)


CONVOLUTIONS = ("conv1", "conv2")
LENET = ("conv1", "conv2", "fc1", "fc2")
EXPERIMENTS = {
    "lenet": Experiment(
        lenet, 28, {"filter": 7e-4, "channel": 7e-4}, LENET, CONVOLUTIONS, tune=Phase(15, 0.025)
    ),
    "lenet-shapes": Experiment(lenet, 28, {"shape": 1e-3}, LENET, CONVOLUTIONS, tune=Phase(15, 0.025)),
    "mlp": Experiment(
        mlp,
        8,
        {"input": 2e-4, "neuron": 2e-4},
        ("fc1", "fc2", "fc3"),
        base=Phase(60, 0.05),
        ssl=Phase(100, 0.05),
        tune=Phase(60, 0.025),
    ),
    "resnet": Experiment(
        ResNet,
        8,
        {"depth": 0.15},
        skip=("stem", "head"),
        ssl=Phase(40, 0.01),
        tune=Phase(40, 0.05),
    ),
    "resnet-coupled": Experiment(
        ResNet, 8, {"coupled": 1e-3}, skip=("head",), ssl=Phase(30, 0.02), tune=Phase(20, 0.05)
    ),
}


@dataclass(frozen=True)
class Trained:
    """The dense network and the sparse one, both in evaluation mode. Accuracies in percent."""

    dense: nn.Module
    sparse: nn.Module
    dense_accuracy: float
    ssl_accuracy: float
    """With the penalty, before fine-tuning."""
    sparse_accuracy: float
    left: dict[str, Left] = field(default_factory=dict)
    living_layers: tuple[int, int] | None = None
    seconds: float = 0.0


def run(experiment: Experiment, seed: int, quick: bool = False) -> Trained:
    """quick: one epoch of everything."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    digits, dense = Digits.split(seed, experiment.size), experiment.make()
    phases = [experiment.base, experiment.ssl, experiment.tune]
    base, ssl, tune = (Phase(1, phase.rate) if quick else phase for phase in phases)
    fit(dense, digits, base, DECAY)
    sparse = copy.deepcopy(dense)
    lasso = GroupLasso(
        sparse,
        experiment.strengths,
        layers=experiment.layers,
        skip=experiment.skip,
        example_inputs=(experiment.example(2),),
    )
    fit(sparse, digits, ssl, 0.0, lasso.step)
    ssl_accuracy = accuracy(sparse, digits)
    fit(sparse, digits, tune, DECAY, lasso.freeze().step)
    return Trained(
        dense.eval(),
        sparse.eval(),
        accuracy(dense, digits),
        ssl_accuracy,
        accuracy(sparse, digits),
        blocks_left(sparse) if isinstance(sparse, ResNet) else chain_left(sparse, experiment.chain),
        living_layers(sparse) if isinstance(sparse, ResNet) else None,
        time.perf_counter() - start,
    )


def fit(
    model: nn.Module,
    digits: Digits,
    phase: Phase,
    decay: float,
    after_step: Callable[[Optimizer], object] = lambda optimizer: None,
) -> None:
    """Train in place; `after_step` is called with the optimiser after each of its steps."""
    count = len(digits.train_y)
    steps = phase.epochs * math.ceil(count / BATCH)
    optimizer = torch.optim.SGD(model.parameters(), phase.rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for _ in range(phase.epochs):
        for batch in torch.split(torch.randperm(count), BATCH):
            loss = F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            after_step(optimizer)
            optimizer.zero_grad()
            schedule.step()
