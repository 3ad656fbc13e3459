"""What the argument MODEL names, and the inputs it runs on."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn
from torch.export import ExportedProgram

from sparsecomp.cli.example import Example
from sparsecomp.cli.inputs import FORM, InputSpec, example
from sparsecomp.errors import InputError

FORMS = "module:function, FILE.pt2, FILE.onnx, or a Hugging Face folder"
ARTIFACT = ".sparsecomp"


def load_example(name: str, specs: Sequence[InputSpec], seed: int) -> Example:
    """The model of that name, in evaluation mode. `specs`, where there are any, replace its own inputs.
    What was changed or assumed is told on standard error.

    Raises:
        InputError: there is no such model, it cannot be read, or no inputs are known; the message says what to do.
    """
    torch.manual_seed(seed)
    call = example(specs, seed) if specs else None
    found = _reader(name)(name, seed)
    if isinstance(found.model, nn.Module):
        found.model.eval()
    if call is not None:
        found = replace(found, args=call[0], kwargs=call[1])
    if found.args is None:
        raise InputError(f"{name}: what inputs does it take? Give each one as --input {FORM}.")
    for note in found.notes:
        typer.echo(f"note: {name}: {note}", err=True)
    return found


def _reader(name: str) -> Callable[[str, int], Example]:
    path = Path(name)
    if path.is_dir():
        from sparsecomp.cli.hugging_face import read_folder

        return read_folder
    suffix = path.suffix.lower()
    if suffix in (".pt2", ".onnx", ARTIFACT) and not path.is_file():
        raise InputError(f"there is no file {name}.")
    if suffix == ".pt2":
        return read_exported
    if suffix == ".onnx":
        from sparsecomp.cli.onnx_file import read_onnx

        return read_onnx
    if suffix == ARTIFACT:
        raise InputError(
            f"{name} is compiled already: give the model it was made from. bench and report take it."
        )
    if path.exists():
        raise InputError(f"{name} is no model that can be read here: give {FORMS}.")
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise InputError(f"there is no model {name!r}: give {FORMS}.")
    return read_function


def read_exported(name: str, seed: int) -> Example:
    """A file that `torch.export.save` wrote, with the inputs it was exported with."""
    try:
        program = torch.export.load(name)
    except Exception as error:
        raise InputError(
            f"{name} is no exported program that PyTorch {torch.__version__} can read: {_first_line(error)}"
        ) from error
    args, kwargs = program.example_inputs or (None, {})
    return Example(name, program, args, kwargs)


def read_function(name: str, seed: int) -> Example:
    """The model that `module:function` is or returns."""
    return _example_of(name, object_of(name))


def object_of(name: str) -> Any:
    """What `module:function` is or returns. Modules are looked for in the current folder too.

    Raises:
        InputError: it is not there, or fails.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InputError(f"{name!r} names no function: write module:function.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(f"there is no module {module_name!r} in {here} or on Python's path.") from None
        raise InputError(_told(f"importing {module_name}", error)) from error
    except (Exception, SystemExit) as error:
        raise InputError(_told(f"importing {module_name}", error)) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"{name}: module {module_name!r} has no {path!r}.")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, nn.Module):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise InputError(_told(f"{name}()", error)) from error
    return found


def _example_of(name: str, found: object) -> Example:
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module | ExportedProgram):
        kind = type(model).__name__
        raise InputError(
            f"{name} gives {kind}: it must return an nn.Module, or (model, inputs) with inputs as a tuple of "
            "positional or a dictionary of keyword arguments."
        )
    match inputs:
        case None if isinstance(model, ExportedProgram) and model.example_inputs is not None:
            args, kwargs = model.example_inputs
            return Example(name, model, args, kwargs)
        case None:
            return Example(name, model, None, {})
        case Mapping():
            return Example(name, model, (), dict(inputs))
        case list() | tuple():
            return Example(name, model, tuple(inputs), {})
        case _:
            raise InputError(
                f"{name} gives {type(inputs).__name__} as inputs: they must be a tuple of positional arguments, (x,), "
                "or a dictionary of keyword arguments."
            )


def _told(what: str, error: BaseException) -> str:
    """An error in somebody's code, with the line of it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}, line {last[0].lineno})" if last else ""
    return f"{what} raised {type(error).__name__}: {error}{where}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
