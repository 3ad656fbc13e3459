"""Calls made on trial: the example a model is compiled on, and calls a further graph is compiled for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.compare import relative_error
from sparsecomp.errors import InputError
from sparsecomp.state import changed, containers, state_of

Call = tuple[tuple[Any, ...], dict[str, Any]]
SLIGHT = 1e-6
"""Relative difference of outputs that rounding may make."""


def copied_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call on copies of its arguments: a model may change them, caches say, and a trial must not."""
    detached = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
    try:
        copied: Call = copy.deepcopy(detached)
    except Exception:  # noqa: BLE001  an argument that cannot be copied is left to the model
        return args, kwargs
    return copied


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Runs of the models meanwhile leave no trace in them: counters, caches, running statistics."""
    modules = [module for model in models for module in model.modules()]
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    tensors = {
        id(tensor): tensor
        for _, *held in attributes
        for values in held
        for tensor in values.values()
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided and 0 not in tensor.stride()
    }
    values = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    contents = [(held, held.copy()) for model in models for held in containers(model)]
    try:
        yield
    finally:
        for held, content in contents:
            held.clear()
            held.extend(content) if isinstance(held, list) else held.update(content)
        for module, own, buffers in attributes:
            vars(module).clear()
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(buffers)
        for key, tensor in tensors.items():
            if not torch.equal(tensor, values[key]):
                tensor.detach().copy_(values[key])


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Numbers, strings and the like that the modules of a model hold, by path."""
    return {
        f"{name}.{key}".removeprefix("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | None)
    }


def adopt_attributes(model: nn.Module, other: nn.Module) -> None:
    """Give the model the plain attributes of another with the same modules."""
    modules = dict(model.named_modules())
    for path, value in plain_attributes(other).items():
        name, _, key = path.rpartition(".")
        modules[name].__dict__[key] = value


def seeded(run: Callable[[], Any]) -> Any:
    """Two runs that draw random numbers draw the same, and the user's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return run()


def run_example(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return seeded(lambda: model(*args, **kwargs))
    except Exception as error:
        shapes = pytree.tree_map_only(Tensor, lambda t: f"{list(t.shape)} {t.dtype}", (list(args), kwargs))
        raise InputError(
            f"{type(model).__name__} cannot be run on these inputs: {type(error).__name__}: {error}\n"
            f"It was called with args={shapes[0]}, kwargs={shapes[1]}. Pass example_inputs=(x, ...) as the "
            "positional arguments of the model's forward, example_kwargs={...} as its keyword arguments."
        ) from error


@dataclass(frozen=True)
class Trial:
    """The example a model is compiled on, and what the model gives for it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: Any
    changing: tuple[str, ...]
    """Attributes and buffers of the model, by path, that calls change and that what comes after may depend on."""
    written: tuple[str, ...] = ()
    """Those that calls change, and outputs do not depend on: a feature map that is kept to be looked at, say."""

    @staticmethod
    def of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trial:
        """
        Raises:
            InputError: the model cannot be run on these inputs.
        """
        with unchanged(model):
            start = state_of(model)
            first, kfirst = copied_call(args, kwargs)
            expected = run_example(model, first, kfirst)
            after = state_of(model)
            moved, counting, depends = changed(start, after), set[str](), False
            if moved:
                before, plain = after, plain_attributes(model)
                again, kagain = copied_call(args, kwargs)
                depends = relative_error(run_example(model, again, kagain), expected) > SLIGHT
                after = state_of(model)
                # what the first call alone changes is a cache; a counter may matter in some later call
                counting = changed(plain, plain_attributes(model))
                moved = moved | changed(before, after) if depends else changed(before, after)
        changing = moved if depends else counting
        return Trial(model, args, kwargs, expected, tuple(sorted(changing)), tuple(sorted(moved - changing)))

    def call(self) -> Call:
        """On copies of the arguments."""
        return copied_call(self.args, self.kwargs)

    def run(self, model: nn.Module) -> Any:
        """This or another model, on copies of the arguments, with the random numbers of `expected`."""
        args, kwargs = self.call()
        return seeded(lambda: model(*args, **kwargs))
