"""`sparsecomp sparsify`"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sparsecomp
from sparsecomp.artifact.container import write_whole
from sparsecomp.cli.answer import answer, at_work
from sparsecomp.cli.cache import size_of
from sparsecomp.cli.compile import check_writable
from sparsecomp.cli.example import Example
from sparsecomp.cli.models import ARTIFACT, load_example, object_of
from sparsecomp.cli.options import CodeTarget, Inputs, Json, Model, Quiet, Seed, Skip, Threads
from sparsecomp.errors import InputError
from sparsecomp.pruning.plan import Plan
from sparsecomp.target import Target

WEIGHTS = ".safetensors"


def _result_path(path: Path) -> Path:
    if path.suffix.lower() not in (WEIGHTS, ARTIFACT):
        raise typer.BadParameter(
            f"call it {path.stem or 'm'}{WEIGHTS} for the pruned weights, {path.stem or 'm'}{ARTIFACT} for the "
            "compiled model."
        )
    return path


Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=_result_path,
        metavar="FILE",
        help="m.safetensors: the pruned weights, for load_state_dict. m.sparsecomp: the pruned model, compiled.",
        show_default=False,
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        "--speedup", min=1.0, help="How many times as fast as the dense compiled model.", show_default=False
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        parser=size_of,
        metavar="SIZE",
        help="Of all its parameters: 500K, 20MB.",
        show_default=False,
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        "--sparsity", min=0.0, max=1.0, help="Share of weights that is to be zero.", show_default=False
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="MODULE:FUNCTION",
        help="Returns batches of inputs, by which the weights left make up for those that go. Without it, the smallest "
        "weights go.",
        show_default=False,
    ),
]
Structures = Annotated[
    list[str] | None,
    typer.Option(
        "--structure",
        metavar="NAME",
        help="What a layer may become: unstructured, 4x1, 2:4. As often as needed.",
    ),
]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="Compile and time whole models, to hit a speed-up.")
]


def sparsify(
    model: Model,
    output: Output,
    speedup: Speedup = None,
    size: Size = None,
    sparsity: Sparsity = None,
    calibration: Calibration = None,
    structures: Structures = None,
    inputs: Inputs = None,
    skip: Skip = None,
    measure: Measure = True,
    target: CodeTarget = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune a model within one budget: choose for each layer a structure of zeros and a sparsity, by times measured on
    this machine. Nothing is trained. Write the outcome, and print the plan."""
    if sum(goal is not None for goal in (speedup, size, sparsity)) != 1:
        raise typer.BadParameter("give one of --speedup, --size and --sparsity.")
    check_writable(output)
    with at_work(quiet):
        found = load_example(model, inputs or (), seed)
        options: dict[str, Any] = {"structures": structures} if structures else {}
        plan = sparsecomp.sparsify(
            found.module,
            None if calibration is None else _batches(calibration),
            target_speedup=speedup,
            target_bytes=size,
            sparsity=sparsity,
            example_inputs=found.args,
            example_kwargs=found.kwargs or None,
            skip=skip or (),
            target=target,
            threads=threads,
            measure=measure,
            **options,
        )
        _write(plan, found, output, target, threads)
    if as_json or not quiet:
        answer(f"{plan}\n\n{output}", plan.as_dict() | {"file": str(output)}, as_json)


def _batches(name: str) -> Iterable[Any]:
    """
    Raises:
        InputError: the function is not there, fails, or returns no batches.
    """
    found = object_of(name)
    if isinstance(found, torch.Tensor) or not isinstance(found, Iterable):
        raise InputError(
            f"{name} gives {type(found).__name__}: it must return batches of inputs, as a list say."
        )
    return found


def _write(plan: Plan, found: Example, output: Path, target: Target | None, threads: int | None) -> None:
    if output.suffix.lower() == ARTIFACT:
        compiled = sparsecomp.compile_sparse(
            plan.model, found.args, found.kwargs, target=target, threads=threads
        )
        compiled.save(output)
        return
    from safetensors.torch import save

    weights = {name: value.detach().clone().contiguous() for name, value in plan.model.state_dict().items()}
    write_whole(output, save(weights))
