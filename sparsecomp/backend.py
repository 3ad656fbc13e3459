"""`torch.compile(model, backend="sparsecomp")`: Dynamo cuts the model into graphs, each is compiled here.

The entry point in pyproject.toml makes the name known wherever the package is installed; elsewhere importing this
module does.

Dynamo hands parameters over with every call. They are bound to the graph at its first call and taken for constants
from then on: every call compares that they are the same tensors, not written to since (writing through `.data` is
what PyTorch does not count), and a graph that is called with others (a second instance of a class, weights that were
edited) is compiled once more, a few times. What cannot be compiled, and calls that need gradients, run as Dynamo's
graph in PyTorch. The user's model keeps its own weights: `compile_sparse` is what saves memory.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo import disable
from torch._dynamo.backends.registry import list_backends, register_backend
from torch._dynamo.utils import get_static_address_type
from torch.export import Dim

from sparsecomp.errors import InputError
from sparsecomp.front import compile_sparse
from sparsecomp.module import SparseModule
from sparsecomp.report import Report

NAME = "sparsecomp"
MAX_BINDINGS = 8
"""Sets of parameters that one graph is compiled for; with further ones it runs in PyTorch."""
OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(compile_sparse).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "dynamic_shapes"
)
GRADIENT = (
    "sparsecomp compiles for inference: a graph that needs gradients runs in PyTorch. Call the model under "
    "torch.no_grad() or torch.inference_mode()."
)
_LOG = logging.getLogger(__name__)
_KEYS = re.compile(r"\['([^']*)'\]|\.(\w+)|\[(\d+)\]")
_GRAPHS: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str = ""
) -> Callable[..., Any]:
    """What `torch.compile` calls for every graph. `options` are the keyword arguments of `compile_sparse`, except
    `dynamic_shapes`, which Dynamo decides.

    Raises:
        InputError: an option is not known, or there is a `mode`.
    """
    checked = _checked(options or {}, mode)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*graph.parameters(), *tensors)):
        warnings.warn(GRADIENT, stacklevel=2)
        return graph.forward
    held = [*graph.parameters(), *graph.buffers(), *filter(_is_frozen, tensors)]
    has_layers = any(tensor.dim() > 1 for tensor in held)
    if not has_layers or torch.is_autocast_enabled("cpu"):  # what runs in which type is PyTorch's to say
        return graph.forward
    compiled = CompiledGraph(graph, inputs, checked)
    _GRAPHS.add(compiled)
    call: Callable[..., Any] = disable(compiled)  # type: ignore[no-untyped-call]
    return call


compile_graph.reset = _GRAPHS.clear  # type: ignore[attr-defined]  # for torch.compiler.reset()


def reports() -> tuple[Report, ...]:
    """Of all graphs that are in use and were called: one for each set of parameters."""
    return tuple(binding.compiled.report for graph in list(_GRAPHS) for binding in graph.bindings)


def _is_frozen(value: object) -> bool:
    """Whether Dynamo takes it for a part of a module: a parameter, a buffer, an attribute."""
    return isinstance(value, Tensor) and get_static_address_type(value) is not None


def _checked(options: Mapping[str, Any], mode: str) -> dict[str, Any]:
    if mode:
        raise InputError(
            f"backend {NAME!r} has no mode {mode!r}: sparsecomp.autotune searches better kernels."
        )
    for name in options:
        if name == "dynamic_shapes":
            raise InputError(
                f"backend {NAME!r} takes shapes from torch.compile: use its dynamic=True or False."
            )
        if name not in OPTIONS:
            close = "".join(
                f" Did you mean {found!r}?" for found in difflib.get_close_matches(name, OPTIONS, 1)
            )
            raise InputError(
                f"option {name!r} is not known to backend {NAME!r}.{close} Options: {', '.join(OPTIONS)}."
            )
    return dict(options)


@dataclass(frozen=True)
class _Uncopied:
    """Copies of a module that holds it share it: Dynamo's graph, which has no state of its own."""

    run: Callable[..., Any]

    def __deepcopy__(self, memo: object) -> _Uncopied:
        return self


class Bound(nn.Module):
    """A graph with its parameters and buffers in place, under the names that they have in the user's model."""

    def __init__(self, graph: fx.GraphModule, places: Places, frozen: Sequence[Tensor]) -> None:
        super().__init__()
        for name, tensor in zip(places.names, frozen, strict=True):
            owner, _, leaf = name.rpartition(".")
            holder: nn.Module = self
            for part in filter(None, owner.split(".")):
                if not hasattr(holder, part):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(leaf, tensor)
            else:
                holder.register_buffer(leaf, tensor)
        self._call = _Uncopied(graph.forward)
        self._places = places
        self.eval()

    def forward(self, *given: Any) -> tuple[Any, ...]:
        values = self._places.merged(given, [self._held(name) for name in self._places.names])
        return tuple(self._call.run(*values))

    def _held(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        held: Tensor = getattr(self.get_submodule(owner), leaf)
        return held


@dataclass(frozen=True)
class Places:
    """How the arguments of Dynamo's graph are shared out: parameters, sizes of tensors, and what a call brings."""

    count: int
    frozen: tuple[int, ...]
    names: tuple[str, ...]
    """Of those, in the user's model."""
    sizes: Mapping[int, tuple[int, int]]
    """Argument that is a size -> the argument and dimension that has it."""
    given: tuple[int, ...]
    """All others."""
    numbers: tuple[int, ...]
    """Those of them that are no tensors: a graph is compiled for their values."""
    dynamic: tuple[dict[int, Any] | None, ...]
    """For each of these, the dimensions that may change."""

    @staticmethod
    def of(graph: fx.GraphModule, inputs: Sequence[Any], held: int) -> Places:
        """The first `held` inputs are of a module, as are those that Dynamo takes for such."""
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        frozen = tuple(place for place, value in enumerate(inputs) if place < held or _is_frozen(value))
        values = {place: node.meta.get("example_value") for place, node in enumerate(nodes)}
        extents: dict[str, tuple[int, int]] = {}
        moving: dict[int, dict[int, Any]] = {}
        for place, axis, size in _changing_sizes(values, frozen):
            extents.setdefault(size, (place, axis))
            moving.setdefault(place, {})[axis] = Dim.AUTO
        sizes = {
            place: extents[str(value)]
            for place, value in values.items()
            if isinstance(value, torch.SymInt) and str(value) in extents
        }
        given = tuple(place for place in range(len(nodes)) if place not in frozen and place not in sizes)
        names = _unique([_name(nodes[place]) for place in frozen])
        numbers = tuple(place for place in given if not isinstance(inputs[place], Tensor))
        changing = tuple(moving.get(place) for place in given)
        return Places(len(nodes), frozen, names, sizes, given, numbers, changing)

    def merged(self, given: Sequence[Any], frozen: Sequence[Tensor]) -> list[Any]:
        """All arguments of the graph."""
        values: list[Any] = [None] * self.count
        for place, value in (*zip(self.given, given, strict=True), *zip(self.frozen, frozen, strict=True)):
            values[place] = value
        for place, (tensor, axis) in self.sizes.items():
            values[place] = values[tensor].shape[axis]
        return values


def _changing_sizes(values: Mapping[int, Any], frozen: Sequence[int]) -> Iterator[tuple[int, int, str]]:
    """Argument, dimension and size of what Dynamo's examples leave open."""
    for place, value in values.items():
        if isinstance(value, Tensor) and place not in frozen:
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    yield place, axis, str(size)


def _name(node: fx.Node) -> str:
    """L['self']._modules['conv']._parameters['weight'] -> conv.weight"""
    if "name" in node.meta:
        return str(node.meta["name"])
    source = getattr(node, "_dynamo_source", None)
    text = source.name if source is not None else node.name
    keys = ["".join(found) for found in _KEYS.findall(text() if callable(text) else text)]
    kept = [key for key in keys[1:] if key not in ("_modules", "_parameters", "_buffers", "__dict__")]
    return ".".join(re.sub(r"\W", "_", key) for key in kept) or node.name


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        other, number = name, 1
        while other in found or any(known.startswith(f"{other}.") for known in found):
            other, number = f"{name}_{number}", number + 1
        found[other] = None
    return tuple(found)


@dataclass(frozen=True)
class Frozen:
    """Parameters as they were when a graph was compiled."""

    tensors: tuple[weakref.ref[Tensor], ...]
    counted: tuple[int, ...]
    """Those whose writes PyTorch counts: all but tensors made in inference mode."""
    placed: tuple[int, ...]
    """Those that have an address."""
    states: tuple[int, ...]
    """How often each had been written to, and where its data lay."""

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Frozen:
        counted = tuple(place for place, tensor in enumerate(tensors) if not tensor.is_inference())
        placed = tuple(
            place
            for place, tensor in enumerate(tensors)
            if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        )
        references = tuple(map(weakref.ref, tensors))
        return Frozen(references, counted, placed, _states(tensors, counted, placed))

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are they, not written to since."""
        for known, tensor in zip(self.tensors, tensors, strict=True):
            if known() is not tensor:
                return False
        return _states(tensors, self.counted, self.placed) == self.states

    @property
    def current(self) -> bool:
        """Whether a call could still bring them: they are there, and were not written to."""
        alive = [tensor for known in self.tensors if (tensor := known()) is not None]
        return len(alive) == len(self.tensors) and self.hold(alive)


def _states(tensors: Sequence[Tensor], counted: Sequence[int], placed: Sequence[int]) -> tuple[int, ...]:
    """Asked for hundreds of tensors at every call."""
    return (*[tensors[place]._version for place in counted], *[tensors[place].data_ptr() for place in placed])


@dataclass(frozen=True)
class Binding:
    """A graph compiled for one set of parameters, and for the numbers among its arguments that are no sizes."""

    frozen: Frozen
    numbers: tuple[Any, ...]
    compiled: SparseModule

    @property
    def gains(self) -> bool:
        """Only a captured graph is known to write to nothing: other rungs would write to a copy."""
        return self.compiled.report.rung == "whole graph"


class CompiledGraph:
    """One of Dynamo's graphs. It is compiled at its first call, when Dynamo traces no longer."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> None:
        self.graph, self.options = graph, options
        self._lifted, self._own = _lifted(graph)
        self.places = Places.of(self._lifted, (*self._own, *inputs), len(self._own))
        self.bindings: list[Binding] = []
        self._left = MAX_BINDINGS
        self._lock = threading.RLock()

    def __call__(self, *arguments: Any) -> Any:
        values = (*self._own, *arguments)
        frozen = [values[place] for place in self.places.frozen]
        numbers = tuple(values[place] for place in self.places.numbers)
        binding = self._found(frozen, numbers) or self._made(values, frozen, numbers)
        if binding is None or not binding.gains:
            return self.graph.forward(*arguments)
        return binding.compiled(*(values[place] for place in self.places.given))

    def _found(self, frozen: Sequence[Tensor], numbers: tuple[Any, ...]) -> Binding | None:
        known = (found for found in self.bindings if found.numbers == numbers)
        return next((found for found in known if found.frozen.hold(frozen)), None)

    def _made(
        self, values: Sequence[Any], frozen: Sequence[Tensor], numbers: tuple[Any, ...]
    ) -> Binding | None:
        """None where it was compiled often enough."""
        with self._lock:
            found = self._found(frozen, numbers)
            if found is not None or self._left <= 0:
                return found  # another thread was first
            made = Binding(Frozen.of(frozen), numbers, self._compiled(values, frozen))
            self.bindings = [*(old for old in self.bindings if old.frozen.current), made]
            self._left -= 1
            if not made.compiled.report.layers:
                self._left = 0  # whatever the parameters, there is nothing to gain
            elif not self._left:
                _LOG.warning(
                    "a graph was compiled for %d sets of parameters: PyTorch runs further ones", MAX_BINDINGS
                )
            return made

    def _compiled(self, values: Sequence[Any], frozen: Sequence[Tensor]) -> SparseModule:
        bound = Bound(self._lifted, self.places, frozen)
        dynamic = {"given": self.places.dynamic} if any(self.places.dynamic) else {}
        options = dict(self.options) | {"skip": _known(bound, self.options.get("skip", ()))}
        given = tuple(values[place] for place in self.places.given)
        return compile_sparse(bound, given, dynamic_shapes=dynamic, **options)


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The graph with the tensors that it holds itself, where Dynamo installs them (`install_free_tensors`), as
    arguments before all others; and these tensors."""
    reads = [node for node in graph.graph.nodes if node.op == "get_attr"]
    held = {str(node.target): getattr(graph, str(node.target), None) for node in reads}
    tensors = {target: value for target, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        return graph, ()
    names = graph.meta.get("dynamo_flat_name_to_original_fqn", {})
    lifted = fx.GraphModule(graph, fx.Graph())
    copies: dict[fx.Node, fx.Node] = {}
    arguments = {target: lifted.graph.placeholder(f"own_{number}") for number, target in enumerate(tensors)}
    for target, node in arguments.items():
        node.meta["name"] = names.get(target, target)
    for node in graph.graph.nodes:
        known = arguments.get(str(node.target)) if node.op == "get_attr" else None
        copies[node] = known or lifted.graph.node_copy(node, copies.__getitem__)
        if hasattr(node, "_dynamo_source"):
            copies[node]._dynamo_source = node._dynamo_source
    lifted.recompile()
    return lifted, tuple(tensors.values())


def _known(bound: Bound, skip: Any) -> Any:
    """Names of layers and modules that are in this graph, where a model became several."""
    names = (skip,) if isinstance(skip, str) else skip
    if not isinstance(names, Sequence | set | frozenset) or not all(isinstance(name, str) for name in names):
        return skip
    known = {name for name, _ in (*bound.named_modules(), *bound.named_parameters(), *bound.named_buffers())}
    if absent := [name for name in names if name not in known]:
        _LOG.info("a graph has nothing of the name %s to skip", ", ".join(map(repr, absent)))
    return tuple(name for name in names if name in known)


if NAME not in list_backends():
    register_backend(compile_graph, name=NAME)
