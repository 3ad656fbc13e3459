"""`sparsecomp compile` and `sparsecomp report`"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import sparsecomp
from sparsecomp.cli.answer import answer, at_work
from sparsecomp.cli.example import Example
from sparsecomp.cli.inputs import example
from sparsecomp.cli.models import ARTIFACT, load_example
from sparsecomp.cli.options import (
    CodeTarget,
    Inputs,
    Json,
    MinSpeedup,
    Model,
    ModelOrArtifact,
    Quiet,
    Seed,
    Skip,
    Threads,
)
from sparsecomp.errors import ArtifactError, InputError
from sparsecomp.module import SparseModule
from sparsecomp.profile import Profile
from sparsecomp.target import Target


def _artifact_path(path: Path) -> Path:
    if path.suffix.lower() != ARTIFACT:
        raise typer.BadParameter(
            f"call it {path.stem or 'm'}{ARTIFACT}: by that, report and bench know what it is."
        )
    return path


Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=_artifact_path,
        metavar="FILE",
        help="The file to write: m.sparsecomp.",
        show_default=False,
    ),
]


Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report to a page of HTML as well, with the time line of a call on the inputs.",
        show_default=False,
    ),
]


def compile_model(
    model: Model,
    output: Output,
    inputs: Inputs = None,
    skip: Skip = None,
    min_speedup: MinSpeedup = 1.0,
    target: CodeTarget = None,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model, write it to a file that sparsecomp.load reads, and print the report."""
    check_writable(output)
    with at_work(quiet):
        found = load_example(model, inputs or (), seed)
        compiled = compiled_example(found, skip or (), min_speedup, target, threads)
        failed = _saved(compiled, output)
    size = None if failed else output.stat().st_size
    data = compiled.report.as_dict() | {"file": None if failed else str(output), "file_bytes": size}
    if as_json or not quiet:
        answer(
            str(compiled.report) if size is None else f"{compiled.report}\n\n{output}: {size / 1e6:.1f} MB",
            data,
            as_json,
        )
    if failed:
        raise failed


def _saved(compiled: SparseModule, output: Path) -> ArtifactError | None:
    """Why it cannot be saved. The report is printed then as well: it tells why, where no layer gained say."""
    try:
        compiled.save(output)
    except ArtifactError as error:
        return error
    return None


def report(
    model: ModelOrArtifact,
    inputs: Inputs = None,
    skip: Skip = None,
    min_speedup: MinSpeedup = 1.0,
    target: CodeTarget = None,
    threads: Threads = None,
    seed: Seed = 0,
    html: Html = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the report of a compiled module, or compile a model for it: what was found, chosen and gained, and why."""
    if html is not None:
        check_writable(html, "report.html")
    with at_work(quiet):
        if is_artifact(model):
            compiled, call = loaded(model), example(inputs, seed) if inputs else None
        else:
            found = load_example(model, inputs or (), seed)
            call = None if found.args is None else (found.args, dict(found.kwargs))
            compiled = compiled_example(found, skip or (), min_speedup, target, threads)
        if html is not None:
            compiled.report.to_html(html, _profile(compiled, call, model))
    text, data = str(compiled.report), compiled.report.as_dict()
    if html is not None:
        size = html.stat().st_size
        text, data = f"{text}\n\n{html}: {size / 1e6:.1f} MB", data | {"page": str(html), "page_bytes": size}
    answer(text, data, as_json)


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _profile(compiled: SparseModule, call: Call | None, name: str) -> Profile | None:
    """Of the example call; None where there is none, or no graph: the report says why.

    Raises:
        InputError: the module cannot be run on the inputs.
    """
    if call is None or compiled.report.rung != "whole graph":
        return None
    try:
        return compiled.profile(*call[0], **call[1])
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be run on these inputs: {type(error).__name__}: {error}") from error


def compiled_example(
    found: Example, skip: Sequence[str], min_speedup: float, target: Target | None, threads: int | None
) -> SparseModule:
    return sparsecomp.compile_sparse(
        found.model,
        found.args,
        found.kwargs,
        target=target,
        threads=threads,
        skip=skip,
        min_speedup=min_speedup,
    )


def is_artifact(name: str) -> bool:
    return Path(name).suffix.lower() == ARTIFACT


def loaded(name: str) -> SparseModule:
    """What of the file could not be used is a note on standard error.

    Raises:
        ArtifactError: there is no such file, or it is damaged, foreign, or of another format.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = sparsecomp.load(name)
    for warning in caught:
        typer.echo(f"note: {warning.message}", err=True)
    return module


def check_writable(path: Path, name: str = "m.sparsecomp") -> None:
    """`name`: what such a file may be called.

    Raises:
        InputError: no file can be written there. Known before the work begins, not after.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it, {path / name}.")
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: the folder {folder} is read-only for you.")
