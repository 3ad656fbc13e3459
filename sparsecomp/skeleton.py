"""A copy of the user's model that holds no data for the weights that were converted."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError
from sparsecomp.packed import Weights
from sparsecomp.program import attribute


class Skeleton:
    """The module tree of a model: evaluation mode, no gradients, tied weights tied.

    At first it shares all data with the model. `hollow` gives up the data of some weights, `own` copies the
    rest, so that later changes of the model are not seen; until then they are. Both change tensors in place:
    a graph captured from `module` holds the same tensor objects and follows.

    module: the copy. Its hollow weights are zeros of the right shape, dtype and device without storage.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            InputError: the model cannot be copied, or has parameters without a shape.
        """
        for name, parameter in model.named_parameters():
            if is_lazy(parameter):
                raise InputError(
                    f"Parameter '{name}' has no shape yet; run the model once before compiling it."
                )
        self.module = copied_tree(model, _shared)
        for module in self.module.modules():  # not eval(): a model may override it to change weights
            module.training = False
        self._listed = _listed(self.module)
        self._hollow: dict[str, Tensor] = {}
        self._owned = False
        self._lock = threading.RLock()
        self._depth = 0

    def holds(self, name: str) -> bool:
        """Whether a module of the tree holds a tensor of this name, and none lists it among others.

        A weight computed from others is none, by a parametrization or by a hook before each call.
        """
        owner, _, leaf = name.rpartition(".")
        try:
            module = self.module.get_submodule(owner)
        except AttributeError:
            return False
        attributes = {} if module._forward_pre_hooks else vars(module)
        held = {**attributes, **module._parameters, **module._buffers}.get(leaf)
        return isinstance(held, Tensor) and id(held) not in self._listed

    @property
    def hollows(self) -> Mapping[str, Tensor]:
        """The tensors without data, by one of their names."""
        return self._hollow

    def hollow(self, names: Iterable[str]) -> None:
        """Give up the data of these parameters, buffers or tensor attributes (`encoder.0.weight`).

        Where a tensor has several names, one of them is enough.
        """
        with self._lock:
            for name in names:
                tensor = attribute(self.module, name)
                if all(tensor is not other for other in self._hollow.values()):
                    self._hollow[name] = tensor
                    _empty(tensor)

    def adopt(self, hollow: Mapping[str, str]) -> None:
        """Of a model that is this module's alone, and has no data in some weights: packed weight -> path."""
        with self._lock:
            self._hollow = {name: attribute(self.module, path) for name, path in hollow.items()}
            self._owned = True

    def refill(self, weights: Weights) -> None:
        """Take back what `hollow` gave up, for good."""
        with self._lock:
            for name, tensor in self._hollow.items():
                _fill(tensor, weights(name).clone())
            self._hollow.clear()

    def own(self) -> None:
        """Copy all data that is still shared with the model. Views stay views, strides stay."""
        with self._lock:
            if self._owned:
                return
            hollow = {id(tensor) for tensor in self._hollow.values()}
            sharing: dict[int, list[Tensor]] = {}
            for tensor in held_tensors(self.module):
                if id(tensor) in hollow:
                    continue
                if tensor.layout is torch.strided:
                    sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
                else:
                    tensor.data = tensor.detach().clone()
            sharing.pop(0, None)  # no data: empty, or on the meta device
            for tensors in sharing.values():
                _own_storage(tensors)
            self._owned = True

    def copy(self) -> nn.Module:
        """Another module tree on the same tensors, hollow ones included: `filled` fills both."""
        return copied_tree(self.module, lambda tensor: tensor)

    @contextmanager
    def filled(self, weights: Weights) -> Iterator[nn.Module]:
        """The module with data in all its weights, for as long as the context lasts; one thread at a time."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    for name, tensor in self._hollow.items():
                        _fill(tensor, weights(name))
                yield self.module
            finally:
                self._depth -= 1
                if self._depth == 0:
                    for tensor in self._hollow.values():
                        _empty(tensor)

    def unpacked(self, named: Iterable[tuple[str, Any]], weights: Weights) -> Iterator[tuple[str, Any]]:
        """Tensors of the module with their names; each hollow one is unpacked when its turn comes."""
        names = {id(tensor): name for name, tensor in self._hollow.items()}
        for name, tensor in named:
            values = weights(names[id(tensor)]) if id(tensor) in names else tensor
            wrapped = isinstance(tensor, nn.Parameter) and values is not tensor
            yield name, nn.Parameter(values, requires_grad=False) if wrapped else values

    def state_dict(self, weights: Weights) -> dict[str, Any]:
        """The model's state dict, dense: its keys, in its order."""
        full = {id(tensor): weights(name) for name, tensor in self._hollow.items()}
        state: dict[str, Any] = self.module.state_dict(keep_vars=True)
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = full.get(id(value), value).detach()
        return state


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Every tensor that a module of the tree holds: parameters, buffers, attributes, lists of them; once."""
    held = (leaf for module in model.modules() for leaf in pytree.tree_leaves(vars(module)))
    return list({id(leaf): leaf for leaf in held if isinstance(leaf, Tensor)}.values())


def _listed(model: nn.Module) -> set[int]:
    """Tensors in lists and dictionaries of a module, by identity: no attribute leads to them."""
    return {
        id(leaf)
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers") and not isinstance(value, Tensor)
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor)
    }


def copied_tree(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Any] = {id(tensor): stand_in(tensor) for tensor in held_tensors(model)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Take what copy.deepcopy "
            "does not handle, such as locks, files or generators, off the model before compiling it."
        ) from error


def _shared(tensor: Tensor) -> Tensor:
    """Another tensor object on the same data, without gradient."""
    data = tensor.detach()
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _own_storage(tensors: list[Tensor]) -> None:
    """Copy the one storage that these tensors view, or only what they view if that is less."""
    storage = tensors[0].untyped_storage()
    if storage.nbytes() > sum(tensor.numel() * tensor.element_size() for tensor in tensors):
        for tensor in tensors:
            tensor.data = tensor.detach().clone()
        return
    copied = storage.clone()  # type: ignore[no-untyped-call]
    for tensor in tensors:
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.data = view.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())


def _empty(tensor: Tensor) -> None:
    tensor.data = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _fill(tensor: Tensor, values: Tensor) -> None:
    assert values.shape == tensor.shape
    assert values.dtype == tensor.dtype
    tensor.data = values.detach()
