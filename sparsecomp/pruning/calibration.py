"""Run a model on calibration data and collect what each layer's inputs and gradients say about its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError
from sparsecomp.example import unchanged
from sparsecomp.pruning.gradients import Gradients, Loss
from sparsecomp.pruning.inputs import input_rows
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.weights import TRANSPOSED, Weight

ROWS_PER_BATCH = 8192
"""Of a layer's inputs, at most; more are sampled."""


def collect(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    *,
    skip: Sequence[str] = (),
    loss: Loss | None = None,
    samples: int = 256,
    keep_gradients: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    seed: int = 0,
    is_strict: bool = True,
) -> dict[str, Statistics]:
    """The second moments of the inputs of linear layers and convolutions, and with a loss squared gradients of their
    weights, by name of the module.

    The model runs in evaluation mode and is left as it was. Layers that no batch reaches, and transposed
    convolutions, have no statistics unless they are asked for. Besides the moments (8 bytes x columns^2 a layer:
    1.2 GB for BERT-base), memory is that of one batch.

    Args:
        model: On one device.
        batches: Each is a tensor, a tuple of positional arguments, or a mapping of keyword arguments; with a loss, a
            pair of that and the labels.
        layers: Names of layers, or of modules that hold them; by default all.
        skip: Names of those to leave out.
        loss: Of the model's output and the labels, as a mean or sum over samples: `F.cross_entropy`. Gradients are
            those of single samples, the rows of a batch, one backward pass each.
        samples: For gradients, at most.
        keep_gradients: How many are kept whole, which "woodfisher" needs; 4 bytes x weights each.
        rows_per_batch: Of each layer's inputs (tokens, pixels); a sample of so many where a batch has more.
        seed: Of that sample.
        is_strict: Whether a layer that is named and has no inputs is an error.

    Raises:
        InputError: there are no batches, or one is of another device, does not fit the model, or gives a layer
            inputs that are not finite; a name is unknown, or names a layer without inputs; labels are missing, or the
            loss is no finite number; or the gradients that are to be kept would need too much memory.
    """
    weights = prunable_layers(model, layers, skip)
    sums = {name: _Moments(weight) for name, weight in weights.items() if not _is_transposed(weight)}
    gradients = None if loss is None else Gradients(weights, loss, samples, keep_gradients)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), unchanged(model), torch.no_grad():
        for number, batch in enumerate(batches, 1):
            inputs, labels = (batch, None) if gradients is None else labelled(batch, number)
            with _watched(sums, rows_per_batch, generator, number):
                run_batch(model, inputs, number)
            if gradients is not None:
                gradients.add(model, batch_call(inputs, number), labels, number)
    found = {name: moments.mean() for name, moments in sums.items() if moments.count}
    if gradients is not None:
        found = {name: gradients.joined(name, own) for name, own in found.items()}
    missing = [name for name in weights if name not in found]
    if missing and is_strict and (layers is not None or not found):
        raise InputError(
            f"{', '.join(map(repr, missing))} had no inputs, or are transposed convolutions: leave them out. (No "
            "calibration batches at all? Give a list, which can be read twice.)"
        )
    return found


def labelled(batch: Any, number: int) -> tuple[Any, Any]:
    """The inputs and labels of a batch. Raises InputError if it is no pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(f"with a loss, calibration batch {number} must be a pair of inputs and labels.")


class _Moments:
    """The sum of x x^T over the inputs of a layer."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.count = 0
        self.sum: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """groups x positions x columns. Products in float32 at least, their sum in float64."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        product = (rows.transpose(1, 2) @ rows).double()
        self.sum = product if self.sum is None else self.sum.add_(product)
        self.count += rows.shape[1]

    def mean(self) -> Statistics:
        assert self.sum is not None
        return Statistics(self.count, self.sum / self.count)


@contextmanager
def _watched(
    sums: Mapping[str, _Moments], most: int, generator: torch.Generator, number: int
) -> Iterator[None]:
    """Meanwhile, the inputs of these layers are added to their moments."""

    def watch(name: str, moments: _Moments) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            rows = input_rows(module, x.detach(), most, generator)
            moments.add(rows)
            if moments.sum is not None and not bool(moments.sum.isfinite().all()):
                raise InputError(f"batch {number} gives {name!r} inputs that are NaN, infinite or too large.")

        return add

    hooks = [
        holder.register_forward_pre_hook(watch(name, moments), with_kwargs=True)
        for name, moments in sums.items()
        for holder in moments.weight.held.holders
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_batch(model: nn.Module, batch: Any, number: int) -> Any:
    """The model's output for a batch: a tensor, a tuple of arguments or a mapping of keyword arguments.

    Raises:
        InputError: the batch is empty, on another device or of a shape that the model cannot run on.
    """
    args, kwargs = batch_call(batch, number)
    check_batch(model, (args, kwargs), number)
    try:
        return model(*args, **kwargs)
    except InputError:
        raise
    except Exception as error:
        shapes = pytree.tree_map_only(Tensor, lambda t: f"{list(t.shape)} {t.dtype}", (list(args), kwargs))
        raise InputError(
            f"{type(model).__name__} cannot be run on calibration batch {number}, args={shapes[0]}, "
            f"kwargs={shapes[1]}: {type(error).__name__}: {error}"
        ) from error


def batch_call(batch: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that a batch stands for."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    raise InputError(
        f"calibration batch {number} is a {type(batch).__name__}: give a tensor, a tuple of arguments or a mapping."
    )


def check_batch(model: nn.Module, call: Any, number: int) -> None:
    """Raises InputError for tensors that are empty, not finite or on another device than the model."""
    devices = {parameter.device for parameter in model.parameters()}
    for tensor in pytree.tree_leaves(call):
        if not isinstance(tensor, Tensor):
            continue
        if not tensor.numel():
            raise InputError(
                f"calibration batch {number} is empty: a tensor has shape {tuple(tensor.shape)}."
            )
        if devices and tensor.device not in devices:
            here = ", ".join(sorted(map(str, devices)))
            raise InputError(
                f"calibration batch {number} is on {tensor.device}, the model on {here}: move one of them."
            )
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise InputError(
                f"calibration batch {number} has NaN in a tensor of shape {tuple(tensor.shape)}."
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each module is back in its own after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_transposed(weight: Weight) -> bool:
    return any(isinstance(holder, TRANSPOSED) for holder in weight.held.holders)
