"""The call that turns a dense model into a plan. What does the work is imported when it is called."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor, nn

from sparsecomp import codegen
from sparsecomp.errors import InputError
from sparsecomp.front import example_call, model_of, positive
from sparsecomp.progress import watching
from sparsecomp.target import Target

if TYPE_CHECKING:
    from sparsecomp.pruning.goal import Goal
    from sparsecomp.pruning.plan import Plan
    from sparsecomp.pruning.planner import Request
    from sparsecomp.pruning.subject import Example


class Options(TypedDict, total=False):
    """What else `sparsify` may be told, as keyword arguments."""

    example_inputs: Sequence[Any] | None
    """Positional arguments of the call whose latency counts. By default the first batch."""
    example_kwargs: Mapping[str, Any] | None
    """Its keyword arguments."""
    evaluate: Callable[[nn.Module], float] | None
    """Model -> its loss on held-out data, smaller is better. Needed for `max_loss`; otherwise the plan reports it."""
    quality: Callable[[nn.Module], float] | None
    """Model -> how good it is on held-out data, larger is better: accuracy in percent, say. The plan reports it, and how
    much of it there is per million parameters that are not zero."""
    sensitivity: Callable[[nn.Module], float] | None
    """Model -> its loss on data that may be looked at, not those held out. The error of a candidate is then the rise of
    this with that one layer pruned, and not the error of the layer's output."""
    loss: Callable[[Any, Any], Tensor] | None
    """Of the model's output and the labels, `F.cross_entropy` say, for "fisher" and "woodfisher"; batches are then pairs of
    inputs and labels, and the error of a candidate is the rise of the loss that gradients predict."""
    method: str
    """How weights are chosen and repaired: see `prune_weight`. Default: "obs"."""
    structures: Sequence[str]
    """What a layer may become, beside dense. Default: "unstructured", blocks "4x1", "2:4"."""
    levels: int
    """Sparsities of each structure, from 40 % to 99 %. Default: 12."""
    allocation: str
    """"optimal", the default; or one sparsity for all layers ("uniform"), the Erdős-Rényi kernel ("erk"), one threshold
    of magnitude for all ("global"), each with the first structure."""
    skip: Sequence[str]
    """Names of layers, or of modules that hold them, to leave dense."""
    target: str | Target | None
    """As for `compile_sparse`."""
    threads: int | None
    """Number of threads, for which times hold; by default `torch.get_num_threads()`."""
    verify: bool
    """False believes that errors of layers add up. By default plans of each structure alone and of one sparsity for all
    layers are made as well, and the one whose model loses least on the calibration data is taken."""
    measure: bool
    """False compiles and times no whole model: the plan then has times of layers alone."""
    resume: str | Path | None
    """Folder that holds what an interrupted run found; by default one in the cache folder, named by the values of the
    model's weights and the batches. What `evaluate` and `sensitivity` returned is kept only in a folder named here."""
    verbose: bool
    """Show progress even where standard error is no terminal."""


def sparsify(
    model: nn.Module,
    calibration: Iterable[Any] | None,
    *,
    target_speedup: float | None = None,
    max_loss: float | None = None,
    target_bytes: int | None = None,
    sparsity: float | None = None,
    **options: Unpack[Options],
) -> Plan:
    """Choose for each layer a structure of zeros and a sparsity, and prune a copy of the model, within one budget.

    Every layer is timed on this device under every structure; of all plans that fit the budget the one of the least error
    is taken. Interrupted, a run goes on where it stopped when it is called again.

    Args:
        model: In evaluation mode, on the CPU. It is left as it is.
        calibration: Batches of inputs, each a tensor, a tuple of positional arguments or a mapping of keyword
            arguments. None: no data; weights are then chosen by magnitude, and `example_inputs` are needed.
        target_speedup: How many times as fast as the dense model compiled by this library the pruned one is to
            be on the example. It is measured in the end, to be within 5 %.
        max_loss: The most by which `evaluate` may rise. It is measured, never predicted.
        target_bytes: Of all parameters and buffers, each sparse weight in its smallest exact format.
        sparsity: The share of the weights of these layers that is to be zero.
        **options: See `Options`.

    Raises:
        InputError: the model, the data or an option cannot be used, or the budget is out of reach; the message says
            what to do, or what the most is.
    """
    from sparsecomp.pruning.goal import Goal
    from sparsecomp.pruning.planner import Planner

    batches = _batches(calibration)
    request = _request(Goal.parse(target_speedup, max_loss, target_bytes, sparsity), batches, options)
    codegen.check_runs_here(request.target)
    module = model_of(model)
    with watching(options.get("verbose", False)) as watch:
        return Planner(module, batches, _example(module, batches, options), request, watch).run()


def _request(goal: Goal, batches: Sequence[Any], options: Options) -> Request:
    from sparsecomp.pruning.candidate import default_candidates
    from sparsecomp.pruning.planner import Request
    from sparsecomp.pruning.prune import METHODS
    from sparsecomp.pruning.series import ALLOCATIONS

    for name in options:
        if name not in Options.__annotations__:
            close = difflib.get_close_matches(name, Options.__annotations__, 1)
            raise InputError(
                f"option {name!r} is not known.{f' Did you mean {close[0]!r}?' if close else ''}"
            )
    structures = _names("structures", options.get("structures", ("unstructured", "4x1", "2:4")))
    resume = options.get("resume")
    method = _one_of("method", options.get("method", "obs"), METHODS)
    request = Request(
        goal=goal,
        method=method if batches else "magnitude",
        allocation=_one_of("allocation", options.get("allocation", "optimal"), ALLOCATIONS),
        candidates=default_candidates(structures, _levels(options.get("levels", 12))),
        skip=_names("skip", options.get("skip", ())),
        target=Target.parse(options.get("target")),
        threads=positive(options.get("threads")) or torch.get_num_threads(),
        measure=bool(options.get("measure", True)),
        verify=bool(options.get("verify", True)),
        evaluate=_function("evaluate", options.get("evaluate")),
        quality=_function("quality", options.get("quality")),
        sensitivity=_function("sensitivity", options.get("sensitivity")),
        loss=_function("loss", options.get("loss")),
        resume=None if resume is None else Path(resume),
    )
    _check_together(request)
    return request


def _batches(calibration: object) -> list[Any]:
    if calibration is None:
        return []
    if isinstance(calibration, Tensor | Mapping | str) or not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration must be a list of batches, or anything that yields batches, not one "
            f"{type(calibration).__name__}: pass [batch]."
        )
    found = list(calibration)
    if not found:
        raise InputError("calibration has no batches: give at least one, or None to prune by magnitude.")
    return found


def _example(model: nn.Module, batches: Sequence[Any], options: Options) -> Example:
    """The call that is timed."""
    from sparsecomp.pruning.calibration import batch_call, check_batch, labelled
    from sparsecomp.pruning.subject import Example

    args, kwargs = example_call(model, options.get("example_inputs"), options.get("example_kwargs"))
    pairs = options.get("loss") is not None
    inputs = [labelled(batch, n)[0] if pairs else batch for n, batch in enumerate(batches, 1)]
    for number, batch in enumerate(inputs, 1):
        check_batch(model, batch_call(batch, number), number)
    if args is None and not batches:
        raise InputError("without calibration data pass example_inputs=(x, ...) or example_kwargs={...}.")
    return Example(*(batch_call(inputs[0], 1) if args is None else (args, kwargs)))


def _check_together(request: Request) -> None:
    kind = request.goal.kind
    if kind == "max_loss" and request.evaluate is None:
        raise InputError(
            "max_loss needs evaluate: a function of the model that returns its loss on held-out data."
        )
    if kind == "target_speedup" and not request.measure:
        raise InputError("target_speedup is measured: measure=False cannot be asked for with it.")


Function = TypeVar("Function", bound=Callable[..., Any])


def _function(option: str, value: Function | None) -> Function | None:
    if value is not None and not callable(value):
        raise InputError(f"{option} must be a function, not {type(value).__name__}.")
    return value


Name = TypeVar("Name", bound=str)


def _one_of(option: str, value: object, known: Sequence[Name]) -> Name:
    for name in known:
        if value == name:
            return name
    raise InputError(f"{option} {value!r} is not known. Use one of {', '.join(known)}.")


def _names(option: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{option} must be a list of names, not {value!r}.")
    if option == "structures" and not names:
        raise InputError("structures is empty: give at least one, 'unstructured' say.")
    return tuple(names)


def _levels(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise InputError(f"levels must be a whole number of at least 2, not {value!r}.")
    return value
