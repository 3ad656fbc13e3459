"""Search better kernels than the defaults, for every later compilation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparsecomp import codegen
from sparsecomp.errors import InputError
from sparsecomp.front import analysed, example_call, model_of, positive
from sparsecomp.layer import Layer
from sparsecomp.module import SparseModule
from sparsecomp.progress import watching
from sparsecomp.target import Remote, Target
from sparsecomp.tuning import Budget, TuningReport


def autotune(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    device: str | Target | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    trials: int | None = None,
    verbose: bool = False,
) -> TuningReport:
    """Time many more kernels than a compilation does, and let every later `compile_sparse` use the best.

    Each distinct call (shapes, and structure of the zeros) is searched once, with its layer's own weight. What
    is measured goes to a database on disk at once (`SPARSECOMP_CACHE` moves it): interrupted, even from the
    keyboard, a search goes on where it stopped when this is called again, and what was searched with a budget is
    not searched again with that budget.

    Args:
        model: As for `compile_sparse`, or a module that it returned.
        example_inputs: Positional arguments of its forward; not needed for a compiled module.
        example_kwargs: Keyword arguments of its forward.
        device: Where kernels run: "cpu" (this machine, the default), "cpu:NAME", "cuda" (its GPU), or, for devices behind TVM's
            RPC tracker, "rpc://host:port/key": every server of that key works at once, and one that is lost
            costs no more than the race it was running.
        threads: Number of threads, for which times hold; by default `torch.get_num_threads()`, or what a remote
            device says it has.
        seconds: Spent on trials, all calls and devices together. The kernels that every compilation times, and a last race
            of each call, come on top.
        trials: Kernels to time at most, all calls together, in place of `seconds`. By default 48 a call.
        verbose: Show progress even where standard error is no terminal; every trial is then a line.

    Raises:
        InputError: the model, the inputs, the device or the budget cannot be used; the message says what to do.
    """
    budget = _budget(seconds, trials)
    target = _device(device)
    layers = _layers(model, example_inputs, example_kwargs, target)
    count = positive(threads) or _threads_of(model, target)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), watching(verbose) as watch:
        return codegen.autotune(layers, target, count, budget, watch)


def _budget(seconds: object, trials: object) -> Budget:
    if seconds is not None and trials is not None:
        raise InputError("give seconds or trials, not both.")
    if seconds is not None and (
        not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf
    ):
        raise InputError(f"seconds must be a positive number, not {seconds!r}.")
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        raise InputError(f"trials must be a positive whole number, not {trials!r}.")
    return Budget(None if seconds is None else float(seconds), trials)


def _device(device: object) -> Target | Remote:
    if device is not None and not isinstance(device, str | Target):
        raise InputError(f"device must be a string such as 'cpu', not {device!r}.")
    if isinstance(device, str) and device.startswith(Remote.SCHEME):
        return Remote.parse(device)
    try:
        target = Target.parse(device)
    except InputError as error:
        raise InputError(
            f"device {device!r} is not known. Use 'cpu' for this machine, cpu:NAME, or {Remote.FORM}."
        ) from error
    if target.kind == "reference":
        raise InputError("device 'reference' has no kernels to tune. Use 'cpu' for this machine.")
    codegen.check_runs_here(target)
    return target


def _layers(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | None,
    example_kwargs: Mapping[str, Any] | None,
    device: Target | Remote,
) -> Iterable[tuple[Layer, Tensor]]:
    """Every layer that a kernel could stand for, with its weight as a matrix."""
    if isinstance(model, SparseModule):
        if not model.report.layers:
            raise InputError(
                "the module is not compiled yet, or holds no layer: call it once, or compile it with inputs."
            )
        return model.layer_matrices()
    args, kwargs = example_call(model, example_inputs, example_kwargs)
    if args is None:
        raise InputError(
            "autotune needs example inputs: pass example_inputs=(x, ...) or example_kwargs={...}, "
            "or a compiled module."
        )
    target = device if isinstance(device, Target) else Target()
    program, *_ = analysed(model_of(model, codegen.tensor_device(target)), args, kwargs, target=target)
    return [(layer, program.weight(site)) for site, layer in program.layers.items()]


def _threads_of(model: object, device: Target | Remote) -> int | None:
    """None leaves it to the device."""
    if isinstance(device, Remote):
        return None
    return model.report.threads if isinstance(model, SparseModule) else torch.get_num_threads()
