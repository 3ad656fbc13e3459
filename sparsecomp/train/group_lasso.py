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
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecomp.errors import InputError
from sparsecomp.front import example_call
from sparsecomp.target import Target
from sparsecomp.train.costs import weight_costs
from sparsecomp.train.coupled import CoupledTerm, coupled_terms
from sparsecomp.train.masks import Masks
from sparsecomp.train.optimizers import check_optimizer, step_sizes
from sparsecomp.train.parameters import Held, near
from sparsecomp.train.pattern import GROUPS
from sparsecomp.train.tiling import Tiling, kept_share
from sparsecomp.train.weights import Weight, asked, find_weights

OF_CONVOLUTIONS = ("kernel", "shape", "channel", "filter")
OF_LINEAR_LAYERS = ("input", "neuron")
KINDS = (*OF_CONVOLUTIONS, *OF_LINEAR_LAYERS, "coupled", "depth")


@dataclass(frozen=True, eq=False)
class Term:
    """One kind of group of one weight, and how strongly it is penalised."""

    kind: str
    weight: Weight
    tiling: Tiling
    strength: float
    """lambda_k s_g: all groups of a term are of one size."""

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def held(self) -> tuple[Held, ...]:
        return (self.weight.held,)

    def norms(self) -> Tensor:
        return self.tiling.norms(self.weight.matrix(self.weight.parameter.detach()))

    def shrink(self, step_size: float) -> None:
        """The proximal step."""
        share = self.tiling.spread(kept_share(self.norms(), step_size * self.strength), self.weight.shape)
        self.weight.parameter.mul_(self.weight.stored(share).to(self.weight.parameter.dtype))

    def penalty(self) -> float:
        return self.strength * float(self.norms().double().sum())

    @property
    def dead(self) -> tuple[int, int]:
        """Groups that are zero, of how many."""
        norms = self.norms()
        return int((norms == 0).sum()), norms.numel()


class GroupLasso:
    """SSL's regulariser::

        ssl = GroupLasso(model, {"filter": 1e-3, "channel": 1e-3}, skip=("classifier",))
        for x, y in data:
            loss(model(x), y).backward()
            optimizer.step()
            ssl.step(optimizer)
            optimizer.zero_grad()
        masks = ssl.freeze()  # to fine-tune with its zeros kept: masks.step(optimizer)

    Nothing is kept between steps, so there is no state to save.
    """

    def __init__(
        self,
        model: nn.Module,
        strengths: Mapping[str, float],
        *,
        layers: Sequence[str] | None = None,
        skip: Sequence[str] = (),
        scaled: bool = True,
        example_inputs: Sequence[Any] | None = None,
        device: str | Target | None = None,
    ) -> None:
        """The model is only looked at.

        Args:
            model: Its weights are shrunk in place by `step`.
            strengths: lambda by kind of group. Of convolutions: "filter" (an output), "channel" (an input), "shape" (a
                column of the lowered matrix: one tap of one channel, for all filters), "kernel" (a filter's taps of
                one channel). Of linear layers: "neuron" (all that an output reads), "input" (all that read an
                input). Of both: "depth" (the whole weight; needs a shortcut around the layer) and "coupled" (a
                channel or neuron with all that makes and reads it, across the network: `coupled.py`).
            layers: Names of the layers, or of modules that hold them, that are penalised; by default all.
            skip: Names of those that are not: the last layer, as a rule.
            scaled: Whether the penalty of a group grows with the root of its size.
            example_inputs: Positional arguments of the model's forward; for "coupled" groups and for a `device`.
            device: Weighs every group by what its weights cost there: "flops" counts multiply-adds, "cpu" measures
                the time of every layer on this machine, "rpc://host:port/key" on a remote one (`costs.py`). None
                weighs all alike.

        Raises:
            InputError: a kind, a name, a strength or a device is not known, no layer has such groups, inputs are
                missing, or a weight cannot be kept sparse (`find_weights`).
        """
        self.model = model
        checked = _checked(strengths)
        weights = find_weights(model, layers, skip)
        args = _inputs(example_inputs, "coupled" in checked, device)
        costs = weight_costs(model, args, device) if device is not None else None
        self.terms: tuple[Term | CoupledTerm, ...] = ()
        for kind, strength in checked.items():
            if kind == "coupled":
                is_penalised = asked(model, layers, skip)
                self.terms += coupled_terms(model, args, strength, scaled, is_penalised, costs)
            else:
                self.terms += _terms(weights, kind, strength, scaled, costs)
        self.held = {held.name: held for term in self.terms for held in term.held}

    @torch.no_grad()
    def step(self, optimizer: Optimizer) -> None:
        """Call it after `optimizer.step()`, as often.

        Raises:
            InputError: the optimiser does not train a penalised weight, or has no learning rate; the parameters of
                a coupled group have different ones; a weight was replaced. Nothing is changed then.
        """
        sizes = step_sizes(check_optimizer(optimizer))
        for held in self.held.values():
            held.check_present()
            if held.parameter not in sizes:
                raise InputError(
                    f"{held.name!r} is penalised, but the optimiser does not train it: give it that parameter, or "
                    f"leave it out, skip=({held.layers[0]!r},)."
                )
        steps = [_one_step_size(term, sizes) for term in self.terms]
        for term, size in zip(self.terms, steps, strict=True):
            term.shrink(size)

    def penalty(self) -> float:
        """The sum of lambda_k s_g ||W_g||, the regulariser's part of the objective."""
        return sum(term.penalty() for term in self.terms)

    def dead(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Groups that are zero, and all: by name of the parameter and kind."""
        return {(term.name, term.kind): term.dead for term in self.terms}

    def freeze(self) -> Masks:
        """Masks that keep the zeros there are now in the weights, for fine-tuning without the penalty."""
        kept = {name: held.parameter != 0 for name, held in self.held.items() if held.parameter.dim() > 1}
        return Masks(self.model, kept)

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


def _terms(
    weights: Mapping[str, Weight], kind: str, strength: float, scaled: bool, costs: Mapping[str, float] | None
) -> tuple[Term, ...]:
    fitting = [w for w in weights.values() if kind == "depth" or w.is_conv is (kind in OF_CONVOLUTIONS)]
    if not fitting:
        others = OF_LINEAR_LAYERS if kind in OF_CONVOLUTIONS else OF_CONVOLUTIONS
        raise InputError(
            f"no layer has {kind!r} groups: for {', '.join(map(repr, weights))} there are "
            f"{', '.join(others)}, depth."
        )
    terms = []
    for weight in fitting:
        tiling, cost = GROUPS[kind](weight), 1.0
        if costs is not None:
            cost = next((costs[name] for name in weight.held.names if name in costs), 1.0)
        scale = math.sqrt(tiling.rows * tiling.columns) if scaled else 1.0
        terms.append(Term(kind, weight, tiling, strength * scale * cost))
    return tuple(terms)


def _one_step_size(term: Term | CoupledTerm, sizes: Mapping[Tensor, float]) -> float:
    found = {sizes[held.parameter]: held.name for held in term.held}
    if len(found) > 1:
        (_, first), (_, second), *_ = found.items()
        raise InputError(
            f"{first!r} and {second!r} are in one coupled group, but the optimiser gives them different learning "
            "rates or momenta: give them the same."
        )
    return next(iter(found))


def _inputs(example_inputs: Any, coupled: bool, device: object) -> tuple[Any, ...]:
    args, _ = example_call(None, example_inputs, None)
    if args is None and (coupled or device is not None):
        raise InputError(
            f"{'coupled groups need' if coupled else 'a device needs'} example inputs: pass example_inputs=(x, ...)."
        )
    return args or ()
