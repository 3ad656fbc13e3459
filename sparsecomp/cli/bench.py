"""`sparsecomp bench`"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparsecomp
from sparsecomp.alternate import Times, alternate
from sparsecomp.cli.answer import answer, at_work, table
from sparsecomp.cli.compile import is_artifact, loaded
from sparsecomp.cli.devices import this_host
from sparsecomp.cli.example import Example
from sparsecomp.cli.inputs import FORM, InputSpec, example
from sparsecomp.cli.models import load_example
from sparsecomp.cli.options import CodeTarget, Inputs, Json, ModelOrArtifact, Quiet, Seed, Threads
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.errors import InputError
from sparsecomp.module import SparseModule
from sparsecomp.progress import Watch, watching
from sparsecomp.rivals import RIVALS, Run, eager, missing
from sparsecomp.target import Target

OWN = "sparsecomp"


def _rivals(text: str) -> str:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in RIVALS]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not known; name some of {', '.join(RIVALS)}.")
    return ",".join(names)


Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        parser=_rivals,
        metavar="NAMES",
        help=f"Some of {', '.join(RIVALS)}, with commas between; by default those that are installed.",
        show_default=False,
    ),
]
Compiled = Annotated[
    Path | None,
    typer.Option(
        "--compiled", metavar="FILE", help="Time this .sparsecomp file of the model; compile nothing."
    ),
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Times that each one runs, in turn.")]


@dataclass
class Contestant:
    """One way to run the model; what came of it."""

    name: str
    run: Run | None = None
    failed: str = ""
    """Why it does not run."""
    error: float | None = None
    """max|y - y0| / max|y0| against eager PyTorch; None where outputs do not correspond."""
    times: Times | None = None


def bench(
    model: ModelOrArtifact,
    inputs: Inputs = None,
    against: Against = None,
    compiled: Compiled = None,
    rounds: Rounds = 20,
    target: CodeTarget = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time the compiled model beside PyTorch, torch.compile, ONNX Runtime and OpenVINO, in alternating rounds; print
    medians and speed-ups. A .sparsecomp file is timed alone: --compiled sets it beside its model."""
    if is_artifact(model) and (compiled is not None or against is not None):
        raise typer.BadParameter(
            "a .sparsecomp file is timed alone: bench MODEL --compiled FILE compares it."
        )
    with at_work(quiet), torch.random.fork_rng(devices=[]):
        if is_artifact(model):
            contestants = [_artifact(model, inputs or (), seed)]
        else:
            ready = None if compiled is None else loaded(str(compiled))
            found = load_example(model, inputs or (), seed)
            contestants = _contestants(found, partial(_own, ready, found, target, threads), _names(against))
        with watching(False) as watch:
            _time(contestants, rounds, watch)
        data = _data(model, contestants, rounds)
    answer(_text(data), data, as_json)


def _names(against: str | None) -> list[str]:
    """Eager is always among them: speed-ups are over it."""
    names = [name for name in RIVALS if not missing(name)] if against is None else against.split(",")
    return ["eager", *(name for name in dict.fromkeys(names) if name and name != "eager")]


def _artifact(name: str, specs: Sequence[InputSpec], seed: int) -> Contestant:
    module = loaded(name)
    if not specs:
        raise InputError(f"{name}: what inputs does it take? Give each one as --input {FORM}.")
    args, kwargs = example(specs, seed)
    contestant = Contestant(OWN, eager(module, args, kwargs))
    assert contestant.run is not None
    try:
        contestant.run()
    except Exception as error:
        raise InputError(f"{name} cannot be run on these inputs: {type(error).__name__}: {error}") from error
    return contestant


def _own(ready: SparseModule | None, found: Example, target: Target | None, threads: int | None) -> Run:
    if ready is None:
        assert found.args is not None
        ready = sparsecomp.compile_sparse(
            found.model, found.args, found.kwargs, target=target, threads=threads
        )
    return eager(ready, found.args or (), found.kwargs)


def _contestants(found: Example, own: Callable[[], Run], names: Sequence[str]) -> list[Contestant]:
    """All that are to run, compiled, each compared with eager PyTorch. An error of sparsecomp itself is raised.

    Compiling shows a bar of its own, and two at once cannot be shown.
    """
    model, args = found.module, found.args or ()
    run_eager = eager(model, args, found.kwargs)
    try:
        expected = run_eager()
    except Exception as error:
        raise InputError(
            f"{found.name} cannot be run on these inputs: {type(error).__name__}: {error}"
        ) from error
    run = own()
    ours = Contestant(OWN, run, error=_error(run(), expected))
    contestants = []
    with watching(False) as watch:
        watch.stage("compiling others", len(names))
        for name in names:
            watch.item(name)
            contestants.append(_rival(name, model, args, found.kwargs, expected))
    return [*contestants, ours]


def _rival(
    name: str, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Any
) -> Contestant:
    lacking = missing(name)
    if lacking:
        return Contestant(name, failed=f"not installed: pip install {' '.join(lacking)}")
    try:
        run = RIVALS[name][0](model, args, kwargs)
        return Contestant(name, run, error=_error(run(), expected))
    except Exception as error:  # noqa: BLE001  of whatever kind: it is told in the table
        lines = str(error).strip().splitlines()
        return Contestant(name, failed=f"{type(error).__name__}: {lines[0] if lines else ''}"[:160])


def _error(actual: Any, expected: Any) -> float | None:
    """Runtimes without PyTorch return the tensors alone, as arrays of numpy."""
    left, right = ([_tensor(one) for one in pytree.tree_leaves(value)] for value in (actual, expected))
    pairs = [one for one in left if one is not None], [one for one in right if one is not None]
    return relative_error(*pairs) if len(pairs[0]) == len(pairs[1]) else None


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value.copy()) if type(value).__module__ == "numpy" else None


def _time(contestants: Sequence[Contestant], rounds: int, watch: Watch) -> None:
    """With several threads a pause lets those of the last one go to sleep."""
    watch.stage("timing", rounds)
    able = {one.name: one for one in contestants if one.run is not None}
    pause = 0.02 if torch.get_num_threads() > 1 else 0.0
    runs = {name: one.run for name, one in able.items() if one.run is not None}
    times = alternate(runs, rounds, pause=pause, finished=lambda count: watch.at(count, ""))
    for name, found in times.items():
        able[name].times = found


def _data(model: str, contestants: Sequence[Contestant], rounds: int) -> dict[str, Any]:
    times = {one.name: one.times for one in contestants if one.times is not None}
    own, base = times[OWN], times.get("eager")
    rows = [
        {
            "name": one.name,
            "failed": one.failed or None,
            "median_ms": one.times.median * 1e3 if one.times else None,
            "iqr_ms": one.times.iqr * 1e3 if one.times else None,
            "min_ms": one.times.minimum * 1e3 if one.times else None,
            "over_eager": base.median / one.times.median if base and one.times else None,
            "error": one.error,
        }
        for one in contestants
    ]
    speedups = {name: found.median / own.median for name, found in times.items() if name != OWN}
    return {
        "model": model,
        "machine": this_host(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "contestants": rows,
        "speedups": speedups,
    }


def _text(data: Mapping[str, Any]) -> str:
    machine, count = data["machine"], data["threads"]
    head = (
        f"{data['model']} on {machine['processor']} ({machine['llvm_name']}), {count} thread{'s' * (count != 1)}; "
        f"medians of {data['rounds']} alternating rounds"
    )
    rows = [
        {
            "": row["name"],
            "ms": _format(row["median_ms"], "{:.3f}"),
            "+- iqr": _format(row["iqr_ms"], "{:.3f}"),
            "over eager": _format(row["over_eager"], "{:.2f}x"),
            "error": _format(row["error"], "{:.1e}"),
            "note": row["failed"] or _warning(row["error"]),
        }
        for row in data["contestants"]
    ]
    gains = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in data["speedups"].items())
    tail = f"\n\nsparsecomp: {gains}" if gains else ""
    return f"{head}\n\n{table(rows, ('ms', '+- iqr', 'over eager', 'error'))}{tail}"


def _warning(error: float | None) -> str:
    return "outputs differ from PyTorch's" if error is not None and error > TOLERANCE else ""


def _format(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
