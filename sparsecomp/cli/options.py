"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from sparsecomp.cli.inputs import InputSpec
from sparsecomp.errors import InputError
from sparsecomp.target import Target


def _spec(text: str) -> InputSpec:
    try:
        return InputSpec.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _threads(count: int | None) -> int | None:
    """Sets the threads of this process, so that PyTorch and everything timed beside it use as many."""
    if count is not None:
        torch.set_num_threads(count)
    return count


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="module:function (returns a model, or a model and its inputs), FILE.pt2, FILE.onnx, or a Hugging "
        "Face folder.",
        show_default=False,
    ),
]
ModelOrArtifact = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="As for compile, or a compiled module, FILE.sparsecomp.", show_default=False
    ),
]
Inputs = Annotated[
    list[InputSpec] | None,
    typer.Option(
        "--input",
        "-i",
        parser=_spec,
        metavar="[NAME=]DTYPE:SHAPE[:RANGE]",
        help="An example input, in place of the model's own: x=float32:1x3x224x224, int64:1x128:0..30000 (random), "
        "int64:1x128:1 (ones). Once per input.",
        show_default=False,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="NAME",
        help="A layer, or a module that holds some, to leave to PyTorch. As often as needed.",
        show_default=False,
    ),
]
MinSpeedup = Annotated[
    float,
    typer.Option(
        "--min-speedup", min=0.0, help="How many times faster than PyTorch a kernel must be to be taken."
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of random inputs and weights.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        callback=_threads,
        help="Threads to use; by default, as many as PyTorch does.",
    ),
]
CodeTarget = Annotated[
    Target | None,
    typer.Option(
        "--target",
        parser=_target,
        metavar="TARGET",
        help="What code is for: cpu (this machine, the default), cpu:NAME, cuda (its NVIDIA GPU), or reference (plain PyTorch).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on standard error.")]
