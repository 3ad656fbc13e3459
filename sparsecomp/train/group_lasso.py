"""Structured sparsity learning: group lasso as a proximal step after the optimiser's own.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, equations 1 to 3:

    E(W) = E_D(W) + sum over kinds k, layers l and groups g of  lambda_k s_g ||W_g||

with `s_g` = sqrt(number of weights in g), what the multipliers of the paper's AlexNet amount to (Yuan and Lin
2006), or 1 as in its formula. The paper follows a subgradient and then cuts what is below 1e-4. Here each step
of the optimiser is followed by the proximal operator of the penalty, whose zeros are exact:

    W_g  <-  max(0, 1 - eta lambda_k s_g / ||W_g||) W_g

`eta` is the step size of the parameter's own optimiser group (`optimizers.step_sizes`), so it follows every
schedule of learning rates. After plain SGD this is proximal gradient descent; after Adam the step is decoupled
from the preconditioner, as AdamW's weight decay is.

Groups of different kinds overlap. Kinds are applied one after another, from small to large groups. Where one
lies within the other (a column, a channel, the layer) that is exactly the proximal operator of the sum (Jenatton,
Mairal, Obozinski, Bach 2011, theorem 1). Where they cross (filters and channels) it is the incremental proximal
method (Bertsekas 2011): it differs from the operator of the sum by O(eta^2) a step, and has the same limit as the
learning rate goes to zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecomp.errors import InputError
from sparsecomp.train.masks import Masks
from sparsecomp.train.optimizers import check_optimizer, step_sizes
from sparsecomp.train.parameters import near
from sparsecomp.train.pattern import GROUPS
from sparsecomp.train.tiling import Tiling, kept_share
from sparsecomp.train.weights import Weight, find_weights

OF_CONVOLUTIONS = ("kernel", "shape", "channel", "filter")
OF_LINEAR_LAYERS = ("input", "neuron")
KINDS = (*OF_CONVOLUTIONS, *OF_LINEAR_LAYERS, "depth")


@dataclass(frozen=True, eq=False)
class Term:
    """One kind of group of one weight, and how strongly it is penalised."""

    kind: str
    weight: Weight
    tiling: Tiling
    strength: float
    """lambda_k s_g: all groups of a term are of one size."""

    def norms(self) -> Tensor:
        return self.tiling.norms(self.weight.matrix(self.weight.parameter.detach()))

    def shrink(self, step_size: float) -> None:
        """The proximal step."""
        share = self.tiling.spread(kept_share(self.norms(), step_size * self.strength), self.weight.shape)
        self.weight.parameter.mul_(self.weight.stored(share).to(self.weight.parameter.dtype))

    @property
    def dead(self) -> tuple[int, int]:
        """Groups that are zero, of how many."""
        norms = self.norms()
        return int((norms == 0).sum()), norms.numel()


class GroupLasso:
    """SSL's regulariser.

    ssl = GroupLasso(model, {"filter": 1e-3, "channel": 1e-3}, skip=("classifier",))
    for x, y in data:
        loss(model(x), y).backward()
        optimizer.step()
        ssl.step(optimizer)
        optimizer.zero_grad()
    masks = ssl.freeze()  # to fine-tune with its zeros kept: masks.step(optimizer)
    """

    def __init__(
        self,
        model: nn.Module,
        strengths: Mapping[str, float],
        *,
        layers: Sequence[str] | None = None,
        skip: Sequence[str] = (),
        scaled: bool = True,
    ) -> None:
        """The model is only looked at.

        Args:
            model: Its weights are shrunk in place by `step`.
            strengths: lambda by kind of group. Of convolutions: "filter" (an output), "channel" (an input), "shape" (a column of
                the lowered matrix: one tap of one channel, for all filters), "kernel" (a filter's taps of one
                channel). Of linear layers: "neuron" (all that an output reads), "input" (all that read an input).
                Of both: "depth" (the whole weight; needs a shortcut around the layer).
            layers: Names of the layers, or of modules that hold them, that are penalised; by default all.
            skip: Names of those that are not: the last layer, as a rule.
            scaled: Whether the penalty of a group grows with the root of its size.

        Raises:
            InputError: a kind, a name or a strength is not known, no layer has such groups, or a weight cannot
                be kept sparse (`find_weights`).
        """
        self.model = model
        self.weights = find_weights(model, layers, skip)
        self.terms = _terms(self.weights, _checked(strengths), scaled)

    @torch.no_grad()
    def step(self, optimizer: Optimizer) -> None:
        """Call it after `optimizer.step()`, as often.

        Raises:
            InputError: the optimiser does not train a penalised weight, or has no learning rate; a weight was
                replaced. Nothing is changed then.
        """
        sizes = step_sizes(check_optimizer(optimizer))
        for weight in self.weights.values():
            weight.held.check_present()
            if weight.parameter not in sizes:
                raise InputError(
                    f"{weight.name!r} is penalised, but the optimiser does not train it: give it that parameter, or "
                    f"leave it out, skip=({weight.held.layers[0]!r},)."
                )
        for term in self.terms:
            term.shrink(sizes[term.weight.parameter])

    def penalty(self) -> float:
        """The sum of lambda_k s_g ||W_g||, the regulariser's part of the objective."""
        return sum(term.strength * float(term.norms().double().sum()) for term in self.terms)

    def dead(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Groups that are zero, and all: by name of the parameter and kind."""
        return {(term.weight.name, term.kind): term.dead for term in self.terms}

    def freeze(self) -> Masks:
        """Masks that keep the zeros there are now, for fine-tuning without the penalty."""
        return Masks(self.model, {name: weight.parameter != 0 for name, weight in self.weights.items()})

    def __str__(self) -> str:
        rows = [
            f"{name}: {gone} of {all_} {kind} groups are zero"
            for (name, kind), (gone, all_) in self.dead().items()
        ]
        return "\n".join([f"group lasso, penalty {self.penalty():.4g}", *rows])


def _checked(strengths: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(strengths, Mapping) or not strengths:
        raise InputError(f"strengths must be a mapping such as {{'filter': 1e-3}}, not {strengths!r}.")
    for kind, strength in strengths.items():
        if kind not in KINDS:
            raise InputError(
                f"group {kind!r} does not exist.{near(str(kind), KINDS)} There are {', '.join(KINDS)}."
            )
        number = isinstance(strength, int | float) and not isinstance(strength, bool)
        if not number or not 0 <= strength < math.inf:
            raise InputError(f"the strength of {kind!r} must be a number of at least 0, not {strength!r}.")
    return {kind: float(strengths[kind]) for kind in KINDS if kind in strengths}


def _terms(weights: Mapping[str, Weight], strengths: Mapping[str, float], scaled: bool) -> tuple[Term, ...]:
    terms = []
    for kind, strength in strengths.items():
        others = OF_LINEAR_LAYERS if kind in OF_CONVOLUTIONS else OF_CONVOLUTIONS
        fitting = [w for w in weights.values() if kind == "depth" or w.is_conv is (kind in OF_CONVOLUTIONS)]
        if not fitting:
            raise InputError(
                f"no layer has {kind!r} groups: for {', '.join(map(repr, weights))} there are {', '.join(others)}, depth."
            )
        for weight in fitting:
            tiling = GROUPS[kind](weight)
            size = tiling.rows * tiling.columns
            terms.append(Term(kind, weight, tiling, strength * (math.sqrt(size) if scaled else 1.0)))
    return tuple(terms)
