"""New values in a compiled module: the same graphs and kernels, other numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsecomp.artifact.general import stand_in_call
from sparsecomp.artifact.writer import named_tensors
from sparsecomp.capture import capture
from sparsecomp.choice import Choice
from sparsecomp.compare import relative_error
from sparsecomp.compile import Compiler, converted
from sparsecomp.contract import Capture
from sparsecomp.errors import InputError
from sparsecomp.example import seeded
from sparsecomp.layer import Layer
from sparsecomp.program import attribute
from sparsecomp.progress import Watch
from sparsecomp.skeleton import Skeleton
from sparsecomp.slimming import full_name
from sparsecomp.trial import on_trial
from sparsecomp.variant import Variant

if TYPE_CHECKING:
    from sparsecomp.kept import Kept


def new_values(compiled: Kept, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of the compiled module's model with its value in `model`.

    Raises:
        InputError: as `update_weights`.
    """
    from sparsecomp.front import model_of

    if not compiled._whole_graph:
        raise InputError(
            "only a module that runs as a whole graph takes new weights: compile the new model instead."
        )
    skeleton = compiled._skeleton
    given = Skeleton(model_of(model, compiled._device)).module
    hollow = {id(tensor): name for name, tensor in skeleton.hollows.items()}
    values: list[tuple[Tensor, Tensor]] = []
    for path, old in _tensors(skeleton.module, skeleton.hollows):
        value = _given(given, path)
        if (value.shape, value.dtype) != (old.shape, old.dtype):
            raise InputError(
                f"{path!r} is {tuple(value.shape)} {value.dtype} in the new model, but {tuple(old.shape)} "
                f"{old.dtype} in the compiled one: compile the new model."
            )
        if id(old) in hollow:
            _check_pattern(path, compiled._weight(hollow[id(old)]), value)
        values.append((old, value))
    return values


def _tensors(model: nn.Module, hollows: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Those with names that a model of the same kind has too."""
    seen = set[int]()
    for path, kind, tensor in named_tensors(model):
        if kind != "attribute" or not path.startswith("captured_constants."):
            seen.add(id(tensor))
            yield path, tensor
    yield from ((name, tensor) for name, tensor in hollows.items() if id(tensor) not in seen)


def _given(model: nn.Module, path: str) -> Tensor:
    try:
        return attribute(model, path).detach()
    except (AttributeError, AssertionError):
        raise InputError(
            f"the new model has no {path!r}: update_weights takes models of the same kind."
        ) from None


def _check_pattern(path: str, old: Tensor, new: Tensor) -> None:
    was, now = old != 0, new != 0
    if torch.equal(was, now):
        return
    layer = path.rpartition(".")[0] or path
    raise InputError(
        f"layer {layer!r}: {int((now & ~was).sum())} of its weights were zero and are not, {int((was & ~now).sum())} "
        "were not and are. Kernels are made for a pattern: compile the new model."
    )


class _AnyCut(dict[Layer, Choice]):
    """Choices by reading, whatever values a part was cut from: its name has a checksum of them."""

    def get(self, layer: Layer, default: Choice | None = None) -> Choice | None:  # type: ignore[override]
        return super().get(_uncut(layer), default)


def _uncut(layer: Layer) -> Layer:
    return replace(layer, weight=full_name(layer.weight))


def executables_with(
    compiled: Kept, values: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Compiler, list[Variant]]:
    """A compiler that holds the new weights, and the variants with them. The model's other tensors are changed.

    Raises:
        InputError: the new weights cannot be compiled; the tensors are then as they were.
    """
    skeleton, old = compiled._skeleton, compiled._compiler
    hollow = {id(tensor) for tensor in skeleton.hollows.values()}
    plain = [(tensor, value) for tensor, value in values if id(tensor) not in hollow]
    before = [tensor.detach().clone() for tensor, _ in plain]
    compiler = Compiler(old.options)
    compiler.settled = _AnyCut({_uncut(layer): choice for layer, choice in (old.settled or {}).items()})
    names = {id(tensor): name for name, tensor in skeleton.hollows.items()}
    packed = {names[id(tensor)]: value for tensor, value in values if id(tensor) in names}
    with on_trial():
        try:
            for tensor, value in plain:
                tensor.detach().copy_(value)
            with skeleton.filled(packed.__getitem__):
                variants = [
                    _with(compiler, _captured_again(compiled, variant)) for variant in compiled._variants
                ]
        except BaseException:
            for (tensor, _), value in zip(plain, before, strict=True):
                tensor.detach().copy_(value)
            raise
    compiler.settled = {
        layer: choice for v in variants for layer, choice in converted(v.executable.program).items()
    }
    return compiler, variants


def _captured_again(compiled: Kept, variant: Variant) -> Capture:
    """Its captured graph. A file keeps less of it than compiling needs: then it is captured from what the file has."""
    if variant.capture.graph is not variant.executable.graph:
        return variant.capture
    args, kwargs = stand_in_call(variant.capture)
    return capture(compiled._skeleton.module, args, kwargs, compiled._dynamic_shapes)


def _with(compiler: Compiler, captured: Capture) -> Variant:
    inputs = tuple(captured.flatten(*stand_in_call(captured)))
    executable = compiler.compile(captured.graph, inputs, Watch())
    error = relative_error(
        seeded(lambda: executable.call(*inputs)), seeded(lambda: tuple(captured.graph(*inputs)))
    )
    if error > compiler.tolerance:
        raise InputError(f"with the new weights the outputs differ by {error:.1e}: compile the new model.")
    return Variant(captured, executable)
