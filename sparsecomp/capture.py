"""Captures a model: traces it with as many free sizes as it allows, and compares the graph with the model."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from sparsecomp.contract import CONSTANTS, Capture, RefusedError, TensorInput, size_code
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import seeded
from sparsecomp.trace import Call, Shapes, export, opened_caches, read

STDLIB = sysconfig.get_paths()["stdlib"]
COMPILING = threading.RLock()
"""Held while a model is captured or compiled: torch.export is not made for several threads, logs and standard
error are redirected for all of them, and what is measured should have the machine to itself. A fork waits for it:
half a compilation is of no use in the child."""
os.register_at_fork(
    before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release
)
TRACERS = ("<", str(Path(torch.__file__).parent), str(Path(__file__).parent))


def capture(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Capture:
    """Trace `model(*args, **kwargs)` for inference into a graph, and say which other calls it covers.

    Dimension 0 of every tensor is a batch of any size unless `dynamic_shapes`, in the form that
    `torch.export.export` takes, says otherwise; where the model does not allow that, fewer sizes are covered
    and `note` says why. The model runs on the example, and on the first item of its batch, to compare the
    graph with it. An ExportedProgram is taken as it is; it needs no example.

    Raises:
        InputError: the example or `dynamic_shapes` does not fit the model.
        CaptureError: there is no graph to be had, because of control flow on the values of tensors, changes
            of inputs or buffers in place, or anything else that torch.export refuses.
    """
    with COMPILING, _quiet(), torch.inference_mode(False), torch.no_grad():
        call = Call(model, inspect.signature(model.forward), tuple(args), dict(kwargs or {}))
        wanted = _wanted_shapes(call, dynamic_shapes)
        _check_plain(call)
        with _evaluating(model):
            return _first_that_works(call, wanted)


def exported(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """What `capture` would read its graph from: a function of the call's tensors alone, which are its example.

    Raises:
        CaptureError: torch.export refuses.
    """
    with COMPILING, _quiet(), torch.inference_mode(False), torch.no_grad(), _evaluating(model):
        call = Call(model, inspect.signature(model.forward), tuple(args), dict(kwargs))
        failure: Exception | None = None
        for shapes in _wanted_shapes(call, dynamic_shapes):
            try:
                return export(call, shapes).program
            except Exception as error:  # noqa: BLE001  as in `capture`
                failure = error
        raise CaptureError(f"torch.export refuses: {_reason(failure)}") from failure


def _first_that_works(call: Call, wanted: list[Shapes]) -> Capture:
    failure: Exception | None = None
    for shapes in wanted:
        try:
            found = _verified(call, read(export(call, shapes), call.signature))
        except CaptureError:
            raise
        except GuardOnDataDependentSymNode as error:
            failure = error
            break  # other shapes would not help
        except Exception as error:  # noqa: BLE001 - tracing passes on whatever the user's code raises
            failure = error
            continue
        return replace(found, note=_note(found, None if shapes else failure) if len(wanted) > 1 else "")
    by_value = isinstance(failure, GuardOnDataDependentSymNode)
    advice = "Choose with torch.where instead" if by_value else "Change what torch.export cannot trace there"
    raise CaptureError(
        f"The graph of {type(call.model).__name__} could not be captured: {_reason(failure)}{_place(failure)}. "
        f"{advice}, or compile the submodules around it."
    ) from failure


def _note(found: Capture, failure: Exception | None) -> str:
    tensors = (leaf for leaf in found.leaves if isinstance(leaf, TensorInput) and leaf.shape)
    fixed = [f"'{leaf.name}' ({leaf.shape[0]})" for leaf in tensors if isinstance(leaf.shape[0], int)]
    why = f": {_reason(failure)}" if failure else ""
    return f"dimension 0 is fixed for {', '.join(fixed)}{why}" if fixed else ""


def _check_plain(call: Call) -> None:
    """CaptureError unless the example consists of tensors and constants, in containers that only hold them."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    strangers = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *CONSTANTS))]
    if strangers or not _identical(leaves, pytree.tree_leaves(spec.unflatten(leaves))):
        what = strangers[0] if strangers else "container that copies what it holds, a cache perhaps"
        raise CaptureError(
            f"{type(call.model).__name__} is called with an object that a graph cannot look into: {what}. Call it "
            "with tensors and constants in tuples, lists and dicts, or compile its submodules."
        )


def _wanted_shapes(call: Call, asked: Any) -> list[Shapes]:
    """What to trace with, best first."""
    try:
        values = call.signature.bind(*call.args, **call.kwargs).arguments
    except TypeError as error:
        forward = f"{type(call.model).__name__}.forward{call.signature}"
        raise InputError(f"The example inputs do not fit {forward}: {error}.") from None
    if asked is None:
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.ndim]
        sizes = {tensor.shape[0] for tensor in tensors}
        every, larger = ({id(t): {0: Dim.AUTO} for t in tensors if t.shape[0] >= least} for least in (1, 2))
        # beside larger batches one of size 1 may be meant to broadcast, and then it cannot be doubled
        return [every, larger, {}] if 1 in sizes and len(sizes) > 1 else [every, {}]
    if isinstance(asked, ShapesCollection):
        asked = asked.dynamic_shapes(call.model, call.args, call.kwargs)  # type: ignore[no-untyped-call]
    if not isinstance(asked, Mapping):
        asked = dict(enumerate(asked)) if len(asked) != len(values) else dict(zip(values, asked, strict=True))
    if unknown := [name for name in asked if name not in values]:
        raise InputError(
            f"dynamic_shapes has {unknown}, but the example inputs are {list(values)}: use their names."
        )
    shapes: Shapes = {}
    for name, dims in asked.items():
        leaves, spec = pytree.tree_flatten(values[name])
        try:
            pairs = zip(leaves, [] if dims is None else spec.flatten_up_to(dims), strict=False)
        except ValueError as error:
            raise InputError(
                f"dynamic_shapes['{name}'] must have the structure of the input: {error}"
            ) from None
        shapes |= {id(leaf): dim for leaf, dim in pairs if isinstance(leaf, Tensor) and dim}
    return [shapes]


def _verified(call: Call, found: Capture) -> Capture:
    """`found`, after its graph gave the model's results for the call, and for batches of 1 if it does there.

    torch.export traces for sizes of 2 or more and guards nothing against 1. RefusedError when results differ.
    """
    sizes = {size: value for size, value, _ in found.dynamic_sizes(found.leaves_of(call.args, call.kwargs))}
    own = frozenset(size for size in found.ranges if sizes.get(size) == 1)
    found = replace(found, singles=frozenset({own}))
    if found.refuses(call.args, call.kwargs):
        raise RefusedError("a size of 1 is treated apart from larger ones")
    if reason := _difference(call, found):
        raise RefusedError(reason)
    first = {leaf.shape[0] for leaf in found.leaves if isinstance(leaf, TensorInput) and leaf.shape}
    single = own.union(size for size, (low, _) in found.ranges.items() if low == 2 and size in first)
    if single == own:
        return found
    wider = replace(found, singles=frozenset({own, single}))
    try:
        return found if _difference(_reduced(call, wider, single), wider) else wider
    except Exception:  # noqa: BLE001 - a model may need 2 or more, and then so may its graph
        return found


def _reduced(call: Call, found: Capture, single: frozenset[str]) -> Call:
    """The call cut to 1 in these sizes."""
    leaves = found.leaves_of(call.args, call.kwargs)
    sizes = {size: value for size, value, _ in found.dynamic_sizes(leaves)} | dict.fromkeys(single, 1)
    items: dict[int, Tensor] = {}
    for template, leaf in zip(found.leaves, leaves, strict=True):
        if isinstance(template, TensorInput):
            shape = [n if isinstance(n, int) else eval(size_code(n), {}, sizes) for n in template.shape]
            items[id(leaf)] = leaf[tuple(slice(n) for n in shape)]
    args, kwargs = pytree.tree_map(lambda leaf: items.get(id(leaf), leaf), (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _difference(call: Call, found: Capture) -> str | None:
    """Why the graph is not right for this call: its contract refuses it, or its results are not the model's."""
    if reason := found.refuses(call.args, call.kwargs):
        return reason
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
    before = pytree.tree_leaves((args, kwargs))
    expected = pytree.tree_leaves(opened_caches(seeded(lambda: call.model(*args, **kwargs))))
    after = pytree.tree_leaves((args, kwargs))
    if not _identical(before, after):
        raise CaptureError(
            f"{type(call.model).__name__} changes a container among its inputs (a cache?) while it runs. "
            "Let it return a new one, or compile the submodules that do not change it."
        )
    results = seeded(lambda: found.graph(*found.flatten(args, kwargs)))
    actual = pytree.tree_leaves(opened_caches(found.unflatten(results)))
    if len(actual) != len(expected) or not all(map(_same, actual, expected)):
        return "the graph's results differ from the model's on the example"
    return None


def _identical(left: Sequence[object], right: Sequence[object]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _same(actual: object, expected: object) -> bool:
    if not isinstance(actual, Tensor) or not isinstance(expected, Tensor):
        return type(actual) is type(expected) and actual == expected
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    scale = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    tolerance = scale * max(1e-3, 4 * torch.finfo(expected.dtype).eps)
    return torch.allclose(actual, expected, rtol=0.0, atol=tolerance, equal_nan=True)


def _reason(error: BaseException | None) -> str:
    """The line of an error's text that says what is wrong."""
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its control flow depends on the values of a tensor"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = next((line for line in lines if line.startswith("- ")), lines[0])
    return found.removeprefix("- ").rstrip(".")


def _place(error: BaseException | None) -> str:
    """Where in the user's code an error came from: ` (file:line, "source")`, if it did."""
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            library = frame.filename.startswith(STDLIB) and "site-packages" not in frame.filename
            if not library and not frame.filename.startswith(TRACERS):
                return f' ({frame.filename}:{frame.lineno}, "{frame.line}")'
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs, warns and prints what the caller of `capture` gets as an error or a note."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:  # not eval(): a model may override it to change weights
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
