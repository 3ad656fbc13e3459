"""Gradual magnitude pruning: the smallest groups go while the network trains.

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsecomp.errors import InputError
from sparsecomp.pattern import RowBlocks
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.schedule import CubicSchedule
from sparsecomp.train.sparsifier import Sparsifier, kept_count
from sparsecomp.train.weights import Weight


class GradualPruning(Sparsifier):
    """Prunes by magnitude on a schedule; what is pruned stays so::

        pruning = GradualPruning(model, CubicSchedule(final=0.9, begin=500, end=4000), "4x1", skip=("classifier",))
        for x, y in data:
            loss(model(x), y).backward()
            optimizer.step()
            pruning.step(optimizer)
            optimizer.zero_grad()

    `state_dict` and `load_state_dict` work as an optimiser's do.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: CubicSchedule,
        pattern: str | RowBlocks | Pattern = "unstructured",
        *,
        distribution: str = "uniform",
        layers: Sequence[str] | None = None,
        skip: Sequence[str] = (),
    ) -> None:
        """The model is changed from the schedule's first step on.

        Args:
            model: Its weights are pruned in place by `step`.
            schedule: When how much.
            pattern: What is pruned together, see `Pattern`. The size of a group is the root mean square of its
                weights. N:M prunes only what is not among the N largest of its M; its schedule must end at 1 - N/M.
            distribution: "uniform" gives every layer the schedule's sparsity; "erk" a layer's own, see
                `layer_sparsities`, to which it rises along the same curve. At least one group of a layer is kept.
            layers: Names of the layers, or of modules that hold them; by default all.
            skip: Names of those that stay dense.

        Raises:
            InputError: the schedule, a pattern or a name cannot be, or a weight cannot be kept sparse.
        """
        if not isinstance(schedule, CubicSchedule):
            raise InputError(f"schedule must be a CubicSchedule, not {type(schedule).__name__}.")
        super().__init__(model, schedule.final, pattern, distribution, layers, skip)
        self.schedule = schedule
        whole = {
            name: torch.ones(
                self.pattern.tiling(weight).counts(weight.shape),
                dtype=torch.bool,
                device=weight.parameter.device,
            )
            for name, weight in self.weights.items()
        }
        self.start(model, whole)

    def is_due(self, step: int) -> bool:
        return self.schedule.is_due(step)

    def regrouped(self, weight: Weight) -> Tensor:
        kept = self.groups[weight.name]
        scores = self.pattern.scores(weight, weight.parameter).masked_fill(~kept, -1.0)
        dropped = kept.numel() - kept_count(self._sparsity(weight.name), kept.numel())
        may_go = self.pattern.droppable(scores)
        order = scores.masked_fill(~may_go, float("inf")).flatten().argsort(stable=True)
        result = torch.ones_like(kept).flatten()
        result[order[: min(dropped, int(may_go.sum()))]] = False
        return result.reshape(kept.shape)

    def _sparsity(self, name: str) -> float:
        """The layer's own, at this step: the schedule's course, scaled to the layer's end."""
        final = self.schedule.final
        scale = self.layer_sparsities[name] / final if final else 0.0
        return self.schedule.sparsity(self.steps) * scale
