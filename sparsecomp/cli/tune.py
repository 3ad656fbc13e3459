"""`sparsecomp tune`"""

from __future__ import annotations

from typing import Annotated

import typer

import sparsecomp
from sparsecomp.cli.answer import answer, at_work
from sparsecomp.cli.models import load_example
from sparsecomp.cli.options import CodeTarget, Inputs, Json, Model, Quiet, Seed, Threads
from sparsecomp.errors import InputError
from sparsecomp.target import Remote, Target


def _device(text: str) -> str:
    try:
        if text.startswith(Remote.SCHEME):
            Remote.parse(text)
        else:
            Target.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Seconds = Annotated[
    float | None,
    typer.Option("--seconds", "-s", help="Time to spend on trials.", show_default=False, min=1e-3),
]
Trials = Annotated[
    int | None,
    typer.Option(
        "--trials", "-n", min=1, help="Kernels to time, in place of --seconds; by default 48 a call."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        parser=_device,
        metavar="DEVICE",
        help=f"Where kernels run: cpu (this machine, the default), or {Remote.FORM}.",
        show_default=False,
    ),
]


def tune(
    model: Model,
    inputs: Inputs = None,
    seconds: Seconds = None,
    trials: Trials = None,
    device: Device = None,
    target: CodeTarget = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search better kernels for a model's layers; every later compilation uses them. Interrupt it when you like: it goes
    on where it stopped."""
    if seconds is not None and trials is not None:
        raise typer.BadParameter("give --seconds or --trials, not both.")
    if device is not None and target is not None:
        raise typer.BadParameter("give --device or --target, not both.")
    with at_work(quiet):
        found = load_example(model, inputs or (), seed)
        report = sparsecomp.autotune(
            found.model,
            found.args,
            found.kwargs,
            device=device or target,
            threads=threads,
            seconds=seconds,
            trials=trials,
        )
    answer(str(report), report.as_dict(), as_json)
