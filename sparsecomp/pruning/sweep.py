"""What is lost at which speed and size: many plans of one model, as a table and as a drawing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sparsecomp.errors import InputError
from sparsecomp.pruning.chart import Panel, chart
from sparsecomp.pruning.front import Options, sparsify
from sparsecomp.pruning.plan import MIB, Plan
from sparsecomp.pruning.search import held_out_loss
from sparsecomp.pruning.state import State, digest, state_of

WAYS: Mapping[str, Options] = {
    "mixed": {},
    "unstructured": {"structures": ("unstructured",)},
    "4x1": {"structures": ("4x1",)},
    "2:4": {"structures": ("2:4",)},
    "channels": {"structures": ("filter",)},
    "uniform unstructured": {"structures": ("unstructured",), "allocation": "uniform"},
}
"""What is compared by default: the plan of all structures, of each alone, whole filters, whose channels compiling takes
out, and one sparsity for all layers."""


@dataclass(frozen=True)
class Point:
    """One plan; where it is out of reach, why."""

    way: str
    goal: str
    seconds: float | None = None
    """Measured, or, where whole models are not timed, predicted of layers alone."""
    nbytes: int | None = None
    sparsity: float | None = None
    loss: float | None = None
    failure: str = ""
    device: str = ""
    """On which it was measured."""


@dataclass(frozen=True)
class Sweep:
    """The outcome of `sweep`. `print` it, `save_chart` it, or ask for `as_dict()`."""

    points: tuple[Point, ...]
    dense_loss: float

    def as_dict(self) -> dict[str, Any]:
        return {"dense_loss": self.dense_loss, "points": [asdict(point) for point in self.points]}

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=200, color_system=None, highlight=False, markup=False)
        console.print(f"loss of the dense model: {self.dense_loss:.4g}")
        table = Table(box=None, pad_edge=False, show_edge=False)
        for column in ("way", "goal", "zeros", "ms", "MiB", "loss", "why not"):
            table.add_column(column, justify="right" if column in ("zeros", "ms", "MiB", "loss") else "left")
        for p in self.points:
            numbers = (
                "" if p.sparsity is None else f"{p.sparsity:.1%}",
                "" if p.seconds is None else f"{p.seconds * 1e3:.3f}",
                "" if p.nbytes is None else f"{p.nbytes / MIB:.3g}",
                "" if p.loss is None else f"{p.loss:.4g}",
            )
            table.add_row(p.way, p.goal, *numbers, p.failure)
        console.print(table)
        devices = sorted({point.device for point in self.points if point.device})
        if len(devices) > 1:
            console.print(f"times are of different devices: {', '.join(devices)}")
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def save_chart(self, path: str | Path, title: str = "What is lost at which speed and size") -> None:
        """As SVG: loss over milliseconds, and over MiB.

        Raises:
            InputError: no plan was in reach: there is nothing to draw.
        """
        ways = {point.way: None for point in self.points if not point.failure}
        if not ways:
            raise InputError("no plan was in reach: there is nothing to draw.")
        panels = [
            Panel(across, "loss", {way: self._line(way, measure) for way in ways})
            for across, measure in (
                ("milliseconds", lambda p: p.seconds * 1e3),
                ("MiB", lambda p: p.nbytes / MIB),
            )
        ]
        Path(path).write_text(chart(title, panels))

    def _line(self, way: str, measure: Callable[[Any], float]) -> list[tuple[float, float]]:
        reached = [p for p in self.points if p.way == way and p.loss is not None]
        return [(measure(p), p.loss) for p in reached if p.loss is not None]


def sweep(
    model: nn.Module,
    calibration: Iterable[Any] | None,
    evaluate: Callable[[nn.Module], float],
    goals: Sequence[Mapping[str, float]] = (
        {"target_speedup": 1.5},
        {"target_speedup": 2.0},
        {"target_speedup": 3.0},
    ),
    ways: Mapping[str, Options] = WAYS,
    *,
    executor: Executor | None = None,
    **options: Any,
) -> Sweep:
    """Plan a model in several ways to several budgets, and evaluate each.

    Args:
        model: As for `sparsify`.
        calibration: As for `sparsify`.
        evaluate: Model -> its loss on held-out data.
        goals: Each one budget of `sparsify`: {"target_speedup": 2}, {"sparsity": 0.8}, {"target_bytes": 1e6}.
        ways: Name -> options of `sparsify` that make it different.
        executor: Where plans are made, each a call of its own: a `RayExecutor` has the machines of a cluster. By default
            here, one after the other. What is sent must pickle. Plans that are timed on one machine at once disturb each
            other.
        **options: Of `sparsify`, for all. With `resume` an interrupted sweep goes on where it stopped; what is finished
            is kept in that folder of this machine.

    Raises:
        InputError: as `sparsify`; but a plan that is out of reach is a point that says so.
    """
    batches = None if calibration is None else list(calibration)
    options = {"threads": torch.get_num_threads(), **options}
    dense_loss = held_out_loss(evaluate, model)
    state = _finished(options.get("resume"), model, batches or [])
    tasks = {
        _name_of(way, own, goal, options): (way, own, goal) for way, own in ways.items() for goal in goals
    }
    found = {name: Point(**state.get(name)) for name in tasks if state.get(name) is not None}
    job = partial(_planned, model, batches, evaluate, options)
    left = {name: task for name, task in tasks.items() if name not in found}
    for name, point in _run(job, left, executor):
        found[name] = point
        state.put(name, asdict(point))
    return Sweep(tuple(found[name] for name in tasks), dense_loss)


Task = tuple[str, Options, Mapping[str, float]]


def _run(
    job: Callable[..., Point], tasks: Mapping[str, Task], executor: Executor | None
) -> Iterator[tuple[str, Point]]:
    """Each with its name, as soon as it is there. One that fails is raised when all others are there."""
    if executor is None:
        yield from ((name, job(*task)) for name, task in tasks.items())
        return
    futures = {executor.submit(job, *task): name for name, task in tasks.items()}
    failures = []
    for future in as_completed(futures):
        failure = future.exception()
        if failure is None:
            yield futures[future], future.result()
        else:
            failures.append(failure)
    if failures:
        raise failures[0]


def _planned(
    model: nn.Module,
    batches: list[Any] | None,
    evaluate: Callable[[nn.Module], float],
    options: Mapping[str, Any],
    way: str,
    own: Options,
    goal: Mapping[str, float],
) -> Point:
    try:
        plan = sparsify(model, batches, evaluate=evaluate, **goal, **{**options, **own})  # type: ignore[arg-type]
    except InputError as error:
        if "out of reach" not in str(error):
            raise
        return Point(way, _name(goal), failure=str(error))
    return _point(way, plan)


def _finished(resume: str | Path | None, model: nn.Module, batches: Sequence[Any]) -> State:
    """Points of this model and data that are there already."""
    return State(None) if resume is None else state_of(Path(resume) / "points", digest(model, batches))


def _name_of(way: str, own: Options, goal: Mapping[str, float], options: Mapping[str, Any]) -> str:
    """What a point depends on, but for functions, which only the user can tell apart."""
    plain = {**options, **own}
    plain = {key: plain[key] for key in sorted(plain) if key != "resume" and not callable(plain[key])}
    return f"{way}: {_name(goal)} {plain!r}"


def _name(goal: Mapping[str, float]) -> str:
    return ", ".join(f"{kind}={amount:g}" for kind, amount in goal.items())


def _point(way: str, plan: Plan) -> Point:
    totals = plan.totals
    seconds = totals.measured_seconds or totals.predicted_seconds
    nbytes, loss = totals.bytes, totals.loss
    return Point(way, plan.goal, seconds, nbytes, totals.sparsity, loss, device=plan.device)
