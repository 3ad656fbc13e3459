"""What a user calls."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparsecomp import codegen
from sparsecomp.capture import capture
from sparsecomp.compile import Options
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import copied_call, run_example, unchanged
from sparsecomp.flow import flow_of
from sparsecomp.intake import plain
from sparsecomp.layers import layers_graph, record_inputs
from sparsecomp.module import SparseModule
from sparsecomp.passes import analysis
from sparsecomp.pipeline import Step, run
from sparsecomp.program import Program
from sparsecomp.report import Report, layer_reports
from sparsecomp.target import Target


def compile_sparse(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    skip: Sequence[str] = (),
    min_speedup: float = 1.0,
    verbose: bool = False,
) -> SparseModule:
    """Make a module that gives the model's outputs faster and in less memory where its weights have zeros.

    Per layer, every way of running it is timed on this machine, PyTorch's own among them; the fastest is
    taken and the report says why. Nothing is pruned.

    Args:
        model: In evaluation mode, its parameters on the CPU or, for a GPU, on that. A plain module, a GraphModule from
            `torch.fx.symbolic_trace`, or an ExportedProgram.
        example_inputs: Positional arguments of its forward. Without these and `example_kwargs` the model is
            compiled at its first call. Times are measured on them.
        example_kwargs: Keyword arguments of its forward.
        target: What code is for: "cpu" (this machine, the default), "cpu:NAME", "cuda" (PyTorch's current GPU),
            "reference" (plain PyTorch), or a `Target`.
        dynamic_shapes: As for `torch.export.export`. Default: dimension 0 of every tensor is the batch and
            may change; other new shapes compile another graph, on the same weights, when they are met.
        threads: Number of threads; by default `torch.get_num_threads()`, asked at every call.
        skip: Names of layers, or of modules that hold them, to leave to PyTorch.
        min_speedup: How many times faster than PyTorch a kernel must be to be taken.
        verbose: Show progress even where standard error is no terminal.

    Raises:
        InputError: the model or the inputs cannot be used; the message says why and what to do.
    """
    args, kwargs = example_call(model, example_inputs, example_kwargs)
    parsed = Target.parse(target)
    codegen.check_runs_here(parsed)
    module = model_of(model, codegen.tensor_device(parsed))
    options = Options(parsed, positive(threads), _names(module, skip), _speedup(min_speedup), verbose)
    if isinstance(dynamic_shapes, str) or not isinstance(dynamic_shapes, Mapping | Sequence | NoneType):
        raise InputError("dynamic_shapes must be a mapping, tuple or list, as torch.export.export takes it.")
    compiled = SparseModule(module, options, dynamic_shapes)
    if args is not None:
        compiled.compile_for(args, kwargs)
    return compiled


def analyze(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    skip: Sequence[str] = (),
) -> Report:
    """The structure of every layer's zeros, without compiling or measuring time.

    Raises:
        InputError: as `compile_sparse`; also without example inputs.
    """
    args, kwargs = example_call(model, example_inputs, example_kwargs)
    if args is None:
        raise InputError(
            "analyze needs example inputs: pass example_inputs=(x, ...) or example_kwargs={...}."
        )
    module = model_of(model)
    program, steps, notes = analysed(module, args, kwargs, _names(module, skip))
    layers = layer_reports(program, {})
    return Report(
        "no target",
        torch.get_num_threads(),
        tuple(steps),
        layers,
        program.untouched,
        notes=notes,
        slimming=program.slimming,
        flow=() if notes else flow_of(program),
    )


def analysed(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    skip: tuple[str, ...] = (),
    target: Target | None = None,
) -> tuple[Program, list[Step], tuple[str, ...]]:
    """The program with its layers found, of the graph or, where that cannot be captured, of the layers alone;
    the passes' steps; and a note if it was so."""
    notes: tuple[str, ...] = ()
    with torch.no_grad(), unchanged(module):
        run_example(module, *copied_call(args, kwargs))
        try:
            captured = capture(module, *copied_call(args, kwargs))
            graph, inputs = captured.graph, tuple(captured.flatten(args, kwargs))
        except CaptureError as error:
            recorded = record_inputs(module, *copied_call(args, kwargs))
            graph, inputs = layers_graph(module, recorded), tuple(recorded.values())
            notes = (f"the graph was not captured: {error}",)
        program, steps = run(analysis(inputs, skip, target), Program(graph))
    return program, steps, notes


def example_call(
    model: object, example_inputs: Sequence[Any] | None, example_kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """The example call; args is None where there is none."""
    if isinstance(example_inputs, Tensor):
        raise InputError("example_inputs is a tensor: pass a tuple of the model's arguments, (x,).")
    if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
        raise InputError(f"example_kwargs must be a mapping of names, not {type(example_kwargs).__name__}.")
    if example_kwargs is not None and not all(isinstance(name, str) for name in example_kwargs):
        raise InputError("example_kwargs must be a mapping of names: its keys are no strings.")
    if isinstance(example_inputs, Mapping):
        raise InputError("example_inputs is a mapping: pass keyword arguments as example_kwargs={...}.")
    if example_inputs is not None and not isinstance(example_inputs, Sequence):
        raise InputError(f"example_inputs must be a tuple of arguments, not {type(example_inputs).__name__}.")
    if isinstance(model, ExportedProgram) and example_inputs is None and example_kwargs is None:
        if model.example_inputs is None:
            return None, {}
        example_inputs, example_kwargs = model.example_inputs
    if example_inputs is None and example_kwargs is None:
        return None, {}
    return tuple(example_inputs or ()), dict(example_kwargs or {})


def model_of(model: object, device: str = "cpu") -> nn.Module:
    """What is compiled, on a kind of device.

    Raises:
        InputError: it cannot be.
    """
    if isinstance(model, ExportedProgram):
        return model.module()
    _check_model(model, device)
    assert isinstance(model, nn.Module)
    return plain(model)


def _check_model(model: object, device: str) -> None:
    if isinstance(model, SparseModule):
        raise InputError("the model is compiled already.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a ScriptModule, whose graph cannot be captured: pass the nn.Module.")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"compile_sparse takes an nn.Module or an ExportedProgram, not {type(model).__name__}."
        )
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"submodule {training!r} of the model" if training else "the model"
        raise InputError(f"{where} is in training mode: call model.eval() before compiling.")
    compiled = next(
        (name for name, module in model.named_modules() if isinstance(module, SparseModule)), None
    )
    if compiled is not None:
        raise InputError(f"submodule {compiled!r} is compiled already: compile the model it was made from.")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.device.type != device:
            advice = "give it data" if parameter.device.type == "meta" else f"call model.{device}()"
            where = "the CPU" if device == "cpu" else "a GPU"
            raise InputError(
                f"parameter {name!r} is on {parameter.device}, the target is {where}: {advice} first."
            )


def positive(threads: int | None) -> int | None:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads must be a positive number, not {threads!r}.")
    return threads


def _speedup(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise InputError(f"min_speedup must be a number of at least 0, not {value!r}.")


def _names(model: nn.Module, skip: object) -> tuple[str, ...]:
    names = (skip,) if isinstance(skip, str) else skip
    if not isinstance(names, Sequence | set | frozenset) or not all(isinstance(n, str) for n in names):
        raise InputError(f"skip must be names of layers or modules, not {skip!r}.")
    known = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    for name in names:
        if name not in known:
            close = ", ".join(repr(n) for n in difflib.get_close_matches(name, known, 3))
            hint = f" Did you mean {close}?" if close else ""
            raise InputError(
                f"skip names {name!r}, but the model has no module or parameter of that name.{hint}"
            )
    return tuple(names)
