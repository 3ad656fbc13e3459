"""What stands for the model of a saved module: its tensors under their names, and captured graphs that run it.

The model's own class is not needed, and not there: what it could do beyond its `forward` is gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from sparsecomp.contract import Capture
from sparsecomp.errors import ArtifactError, InputError
from sparsecomp.program import attribute


@dataclass(frozen=True)
class CapturedGraph:
    """A captured graph whose constants are tensors of the model, by path."""

    capture: Capture
    constants: Mapping[str, str]
    """Path in the graph -> path in the model."""

    def bound(self, model: nn.Module) -> Capture:
        """The capture on the model's own tensor objects."""
        root: dict[str, Any] = {name: attribute(model, path) for name, path in self.constants.items()}
        return replace(self.capture, graph=fx.GraphModule(root, self.capture.graph.graph))


class CapturedGraphs:
    """The graphs of a file, read when one is needed first. Nothing in them changes: copies share them."""

    def __init__(self, read: Any) -> None:
        self._read = read

    @cached_property
    def graphs(self) -> tuple[CapturedGraph, ...]:
        """
        Raises:
            ArtifactError: the file's graphs make no sense.
        """
        return tuple(self._read())

    def __deepcopy__(self, memo: object) -> CapturedGraphs:
        return self


class SavedModel(nn.Module):
    """Runs a captured graph, of those it has the first that covers a call, on the tensors it holds."""

    _saved_graphs: CapturedGraphs
    _saved_state: tuple[tuple[str, str], ...]
    """Key of the state dict -> path of the tensor."""
    _saved_class: str
    """Of the model that was compiled."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        refused = []
        for found in self._saved_graphs.graphs:
            reason = found.capture.refuses(args, kwargs)
            if reason is None:
                results = self._run(found, found.capture.flatten(args, kwargs))
                return found.capture.unflatten(results)
            refused.append(reason)
        raise InputError(
            f"no graph in the file covers this call: {'; '.join(dict.fromkeys(refused))}. Compile the model itself "
            "for such inputs, and save it again."
        )

    def _run(self, found: CapturedGraph, inputs: Sequence[Tensor]) -> Any:
        """By hand, and not as FX does: the tensors are read at each call, which unpacks those that are packed."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in found.capture.graph.graph.nodes:
            match node.op:
                case "placeholder":
                    values[node] = next(given)
                case "get_attr":
                    values[node] = attribute(self, found.constants[str(node.target)])
                case "output":
                    return fx.map_arg(node.args[0], values.__getitem__)
                case _:
                    args = fx.map_arg(node.args, values.__getitem__)
                    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
            for read in node.all_input_nodes:
                if next(iter(reversed(read.users))) is node:  # its last reader
                    values.pop(read, None)
        raise AssertionError("a graph has an output")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The keys of the original model, in its order."""
        return {key: attribute(self, path) for key, path in self._saved_state}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"{name!r} is not kept when a module is saved: only calls, weights and the report are. Take it from "
                f"the model's own class, {self.__dict__.get('_saved_class', '')}."
            ) from None


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of the model."""

    path: str
    kind: str
    """ "parameter", "buffer", "fleeting buffer" (not in the state dict) or "attribute"."""
    value: Tensor


def saved_model(
    signature: inspect.Signature,
    tensors: Sequence[SavedTensor],
    state: Sequence[tuple[str, str]],
    graphs: CapturedGraphs,
    class_name: str,
) -> SavedModel:
    """
    Raises:
        ArtifactError: the tensors' names do not make a tree of modules.
    """
    model: SavedModel = _class_for(signature)()
    model._saved_graphs, model._saved_state, model._saved_class = graphs, tuple(state), class_name
    try:
        for tensor in tensors:
            _place(model, tensor)
        for _, path in state:
            attribute(model, path)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ArtifactError(f"its tensors do not fit their names: {error}") from error
    model.training = False
    for module in model.modules():
        module.training = False
    return model


def _class_for(signature: inspect.Signature) -> type[SavedModel]:
    """A class of its own, since a signature is that of a class."""

    def forward(self: SavedModel, *args: Any, **kwargs: Any) -> Any:
        return SavedModel.forward(self, *args, **kwargs)

    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = inspect.Signature([receiver, *signature.parameters.values()])  # type: ignore[attr-defined]
    return type("SavedModel", (SavedModel,), {"forward": forward, "__module__": __name__})


def _place(model: nn.Module, tensor: SavedTensor) -> None:
    owner, _, leaf = tensor.path.rpartition(".")
    module = model
    for part in owner.split(".") if owner else ():
        if part not in module._modules:
            module.add_module(part, nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    match tensor.kind:
        case "parameter":
            value = tensor.value
            module.register_parameter(
                leaf, value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            )
        case "buffer" | "fleeting buffer":
            module.register_buffer(leaf, tensor.value, persistent=tensor.kind == "buffer")
        case "attribute":
            if hasattr(module, leaf):
                raise KeyError(f"two tensors are named {tensor.path!r}")
            module.__dict__[leaf] = tensor.value
        case _:
            raise KeyError(f"{tensor.path!r} is a {tensor.kind!r}")
