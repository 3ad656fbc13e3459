"""Find the plan of a series that reaches a goal, and see whether it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from sparsecomp.errors import InputError
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.goal import Goal
from sparsecomp.pruning.series import Choices, Series, fingerprint, first_within
from sparsecomp.pruning.stretch import Sample, Stretch
from sparsecomp.pruning.subject import Subject
from sparsecomp.pruning.whole import DenseTimes, ModelClock

CLOSE = 0.03
"""Relative distance from the wanted speed-up at which looking for a closer plan ends."""
TOLERANCE = 0.05
"""Within which it counts as reached."""
ROUNDS = 5
"""Plans compiled and timed at most."""
ANCHOR = 0.9
"""Most sparsity of the sparse model whose time, with that of the dense one, gives the stretch, where no speed is wanted:
sparse enough to be far from dense, not so sparse that whole units of it die and are removed."""


@dataclass(frozen=True)
class Found:
    """Where a search ended."""

    choices: Choices
    remarks: tuple[str, ...] = ()
    stretch: Stretch | None = None
    """By which the plan was predicted, before it was measured itself; None where nothing was corrected."""


class Timekeeper:
    """Times whole models, keeps what it measured, and predicts what it did not."""

    def __init__(
        self,
        subject: Subject,
        clock: Callable[[DenseTimes | None], ModelClock],
        conditions: str,
        speedup: float | None = None,
    ) -> None:
        """speedup: that is wanted; the sparse model is then about that fast."""
        self.subject, self.conditions = subject, conditions
        known = subject.state.get(self._key("dense"))
        self._clock = clock(None if known is None else DenseTimes(**known))
        subject.watch.stage("timing the dense model")
        self.dense = self._clock.dense()
        subject.state.put(self._key("dense"), vars(self.dense))
        self.samples = [Sample(subject.alone({}), self.dense.compiled)]
        anchor = self._anchor(speedup)
        whole = self._measured(anchor, "roughly", subject.roughly_pruned)
        self.samples.append(Sample(subject.alone(anchor), whole))
        self.first = Stretch.through(self.samples)

    def _key(self, what: str) -> str:
        return f"seconds of {what}; {self.conditions}"

    def _anchor(self, speedup: float | None) -> Choices:
        """The sparse model of the stretch: of each layer the fastest candidate up to one sparsity, the same for all.

        How much longer a layer takes in sequence depends on its kernel: of BERT-base, dense rows take as long as alone, and
        lists of columns 1.2 to 1.6 times as long, since they wait for weights that a loop would find in the caches. So
        the anchor is to consist of such kernels as the plan will, and lie near it.
        """
        subject = self.subject
        levels = sorted({c.sparsity for found in subject.candidates.values() for c in found})
        if speedup is None:
            return self._fastest(ANCHOR)
        wanted = subject.alone({}) / speedup
        return next(
            (found for found in map(self._fastest, levels) if subject.alone(found) <= wanted),
            self._fastest(levels[-1]),
        )

    def _fastest(self, most: float) -> Choices:
        """Of each layer, among candidates of at most that sparsity."""
        subject = self.subject
        return {
            name: min(
                (c for c in found if c.sparsity <= most),
                key=lambda c, n=name: subject.seconds(n, c),  # type: ignore[misc]
            )
            for name, found in subject.candidates.items()
        }

    def measure(self, choices: Choices) -> float:
        """Of a model pruned by these choices; seconds, by the dense model's clock.

        By the method asked for: one that looks at activations may leave whole channels unread, which slimming removes
        and magnitude would not.
        """
        return self._measured(choices, f"by {self.subject.method}", lambda c: self.subject.pruned(c)[0])

    def _measured(self, choices: Choices, how: str, prune: Callable[[Choices], nn.Module]) -> float:
        key = self._key(f"choices {fingerprint(choices)} pruned {how}")
        found = self.subject.state.get(key)
        if found is None:
            model = prune(choices)
            self.subject.watch.stage("timing a plan")
            found = self._clock.seconds(model)
            self.subject.state.put(key, found)
        return float(found)

    def measure_model(self, model: nn.Module) -> float:
        """Of a model as it is: the median of two compilations, of three where these do not agree. The same model compiled
        twice was seen to differ by 7 % on a machine shared with others. What a search measured of it does not count:
        it ended there because that was near the goal."""
        self.subject.watch.stage("timing the pruned model")
        seconds = [self._clock.seconds(model) for _ in range(2)]
        if max(seconds) > (1 + CLOSE) * min(seconds):
            seconds.append(self._clock.seconds(model))
        return median(seconds)

    def learn(self, choices: Choices) -> float:
        """Measure, and predict better from now on."""
        seconds = self.measure(choices)
        self.samples.append(Sample(self.subject.alone(choices), seconds))
        return seconds

    def confirm(self, choices: Choices) -> float:
        """The median of what `learn` has just measured and of two more compilations: by chance a plan seems near the
        goal that is not."""
        key = self._key(
            f"choices {fingerprint(choices)} pruned by {self.subject.method}, compiled three times"
        )
        seconds = self.subject.state.get(key)
        if seconds is None:
            model = self.subject.pruned(choices)[0]
            self.subject.watch.stage("timing a plan again")
            seconds = median([self.samples[-1].whole, *(self._clock.seconds(model) for _ in range(2))])
            self.subject.state.put(key, seconds)
        self.samples[-1] = Sample(self.subject.alone(choices), float(seconds))
        return float(seconds)

    @property
    def stretch(self) -> Stretch:
        return Stretch.through(self.samples)


def within(series: Series, goal: Goal, budget: float, least: str) -> Found:
    """The densest plan of at most that cost.

    Raises:
        InputError: there is none. least: says what the least cost is, with "{}" in its place.
    """
    number = first_within(series, budget)
    if number is None:
        raise InputError(f"{goal} is out of reach: {least.format(float(series.costs.min()))}.")
    return Found(series.choices(number))


def at_speed(series: Series, goal: Goal, times: Timekeeper) -> Found:
    """The plan that is measured to be that many times as fast as the dense compiled model.

    The prediction is corrected by each plan that was measured, until one is close, which is confirmed by more
    measurements, or no other is left.

    Raises:
        InputError: even the fastest plan is not so fast; the message says how fast it is.
    """
    wanted = times.dense.compiled / goal.amount
    tried: dict[int, float] = {}
    lines: dict[int, Stretch] = {}
    last = len(series.costs) - 1
    while len(tried) < ROUNDS:
        line = times.stretch
        number = first_within(series, line.alone(wanted))
        number = last if number is None else number
        if number in tried:
            break
        lines[number] = line
        choices = series.choices(number)
        tried[number] = times.learn(choices)
        if _is_close(tried[number], wanted):
            tried[number] = times.confirm(choices)
            if _is_close(tried[number], wanted):
                break
    enough = [n for n in tried if times.dense.compiled / tried[n] >= goal.amount * (1 - TOLERANCE)]
    if not enough:
        lines.setdefault(last, times.stretch)
        tried[last] = times.measure(series.choices(last))
        _check_reached(goal, times.dense.compiled, tried[last])
        enough = [last]
    number = min(enough, key=lambda n: abs(tried[n] / wanted - 1))
    speedup = times.dense.compiled / tried[number]
    remarks = _corrected(series, tried, lines)
    if abs(speedup / goal.amount - 1) > TOLERANCE:
        remarks += (
            f"the nearest plan there is was measured at {speedup:.2f} times the speed of the dense model",
        )
    return Found(series.choices(number), remarks, lines[number])


def _is_close(seconds: float, wanted: float) -> bool:
    return abs(seconds / wanted - 1) <= CLOSE


def _corrected(series: Series, tried: Mapping[int, float], lines: Mapping[int, Stretch]) -> tuple[str, ...]:
    """What was predicted of the first plan, where others were tried after it."""
    first = next(iter(tried))
    if len(tried) == 1:
        return ()
    predicted = lines[first].whole(float(series.costs[first]))
    remark = (
        f"predictions were corrected by {len(tried)} plans that were measured: the first was predicted to take "
        f"{predicted * 1e3:.2f} ms, and took {tried[first] * 1e3:.2f}"
    )
    return (remark,)


def _check_reached(goal: Goal, dense: float, fastest: float) -> None:
    most = dense / fastest
    if most < goal.amount * (1 - TOLERANCE):
        raise InputError(
            f"{goal} is out of reach: the most is {most:.2f} with these structures, every layer as fast as it gets, "
            f"measured on this device ({dense * 1e3:.2f} -> {fastest * 1e3:.2f} ms)."
        )


def at_loss(series: Series, goal: Goal, subject: Subject, evaluate: Callable[[nn.Module], float]) -> Found:
    """The fastest plan whose model, pruned and evaluated, loses at most that much more than the dense one.

    Bisection, which takes it that sparser plans lose more; the plan it ends with was evaluated itself.
    """
    dense = loss_of(subject, {}, evaluate)
    low, high = 0, len(series.costs)  # low is good, high is not
    steps = 0
    while high - low > 1 and steps < LOSSES:
        middle = (low + high) // 2
        rise = loss_of(subject, series.choices(middle), evaluate) - dense
        low, high = (middle, high) if rise <= goal.amount else (low, middle)
        steps += 1
    choices = series.choices(low)
    remarks = ("nothing can be pruned within that loss: every layer stays dense",)
    return Found(choices, remarks if all(c.is_dense for c in choices.values()) else ())


LOSSES = 10
"""Plans evaluated at most: the budget is then met within a thousandth of the series."""


def loss_of(
    subject: Subject, choices: Mapping[str, Candidate], evaluate: Callable[[nn.Module], float]
) -> float:
    """By the user's function, of the model pruned by these choices.

    Raises:
        InputError: it is no finite number.
    """
    key = f"loss of {fingerprint(choices)} by {subject.method}"
    found: Any = subject.opinions.get(key)
    if found is None:
        model = subject.pruned(dict(choices))[0] if choices else subject.model
        subject.watch.stage("evaluating")
        found = held_out_loss(evaluate, model)
        subject.opinions.put(key, found)
    return float(found)


def held_out_loss(
    evaluate: Callable[[nn.Module], object], model: nn.Module, option: str = "evaluate"
) -> float:
    """What the user's function says of a model. option: by which it was given.

    Raises:
        InputError: it is no finite number.
    """
    with torch.no_grad():
        value = evaluate(model)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{option} must return a number, not {type(value).__name__}.") from None
    if not math.isfinite(number):
        what = "loss, smaller" if option == "evaluate" else "number, larger"
        raise InputError(f"{option} returned {number}: it must return a finite {what} for better models.")
    return number
