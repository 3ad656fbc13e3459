"""RigL: training that is sparse from the first step, with connections that move.

Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecomp.errors import InputError
from sparsecomp.pattern import RowBlocks
from sparsecomp.train.pattern import Pattern, largest
from sparsecomp.train.schedule import CosineSchedule, check_share
from sparsecomp.train.sparsifier import Sparsifier, kept_count
from sparsecomp.train.weights import Weight


class RigL(Sparsifier):
    """Drops the smallest groups and grows as many where the gradient is largest::

        rigl = RigL(model, 0.9, CosineSchedule(end=3000), distribution="erk")
        for x, y in data:
            loss(model(x), y).backward()
            optimizer.step()
            rigl.step(optimizer)  # before zero_grad: it grows by the gradients
            optimizer.zero_grad()

    The number of groups of a layer never changes. Grown weights start at zero, and so does what the optimiser
    remembers of them. A group that is dropped and would be grown at once stays as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        schedule: CosineSchedule,
        pattern: str | RowBlocks | Pattern = "unstructured",
        *,
        distribution: str = "erk",
        layers: Sequence[str] | None = None,
        skip: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        """Makes the model sparse at once: random groups of every layer become zero.

        Args:
            model: Its weights are kept sparse in place.
            sparsity: Of all its weights together; 1 - N/M for N:M.
            schedule: When how much is exchanged.
            pattern: What is dropped and grown together, see `Pattern`; by the root mean square of a group's weights, and
                of its gradients. N:M exchanges within each M.
            distribution: "erk" or "uniform", see `layer_sparsities`; N:M is "uniform".
            layers: Names of the layers, or of modules that hold them; by default all.
            skip: Names of those that stay dense.
            generator: Draws the first groups.

        Raises:
            InputError: the schedule, a pattern or a name cannot be, or a weight cannot be kept sparse.
        """
        if not isinstance(schedule, CosineSchedule):
            raise InputError(f"schedule must be a CosineSchedule, not {type(schedule).__name__}.")
        super().__init__(model, check_share("sparsity", sparsity), pattern, distribution, layers, skip)
        self.schedule = schedule
        self.start(model, {name: self._random(weight, generator) for name, weight in self.weights.items()})

    def is_due(self, step: int) -> bool:
        return self.schedule.is_due(step)

    def step(self, optimizer: Optimizer) -> bool:
        """Raises InputError if an exchange is due and a weight has no gradient; nothing is changed then."""
        if self.is_due(self.steps + 1):
            for name, weight in self.weights.items():
                if weight.parameter.grad is None:
                    raise InputError(
                        f"{name!r} has no gradient to grow by: call step after backward and before zero_grad, or "
                        f"leave it out, skip=({weight.held.layers[0]!r},)."
                    )
        return super().step(optimizer)

    def regrouped(self, weight: Weight) -> Tensor:
        gradient = weight.parameter.grad
        assert gradient is not None
        kept = self.groups[weight.name]
        size = self.pattern.scores(weight, weight.parameter).masked_fill(~kept, -1.0)
        count = int(kept.sum())
        staying = torch.tensor([[count - round(self.schedule.share(self.steps) * count)]], device=size.device)
        survivors = largest(size.reshape(1, -1), staying).reshape(size.shape)
        pull = self.pattern.scores(weight, gradient).masked_fill(survivors, -1.0)
        vacated = self.pattern.lines(kept & ~survivors, False).sum(dim=1, keepdim=True)
        grown = largest(self.pattern.lines(pull, -1.0), vacated)
        return survivors | self.pattern.unlined(grown, (kept.shape[0], kept.shape[1]))

    def _random(self, weight: Weight, generator: torch.Generator | None) -> Tensor:
        down, across = self.pattern.tiling(weight).counts(weight.shape)
        lines = self.pattern.lines(torch.rand(down, across, generator=generator), -1.0)
        one = self.pattern.n_of_m
        count = one[0] if one else kept_count(self.layer_sparsities[weight.name], down * across)
        kept = self.pattern.unlined(largest(lines, torch.full((len(lines), 1), count)), (down, across))
        return kept.contiguous().to(weight.parameter.device)
