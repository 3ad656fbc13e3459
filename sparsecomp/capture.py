"""Model -> a flat graph of functional ATen operations, and the contract that says which calls it covers."""

from __future__ import annotations

import ast
import inspect
import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from sparsecomp.errors import CaptureError, InputError

Size = int | str
"""A fixed size, or an expression (`s0`, `2*s0`) of sizes that may differ from call to call."""

Shapes = dict[int, Any]
"""id of a tensor of the example -> which of its dimensions are dynamic, in the form of torch.export."""

VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
TRACED = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
ARITHMETIC = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant),
    *(ast.cmpop, ast.boolop, ast.operator, ast.unaryop),
)
STDLIB = sysconfig.get_paths()["stdlib"]
TRACERS = ("<", str(Path(torch.__file__).parent), str(Path(__file__).parent))


class _RefusedError(Exception):
    """A graph is not right for a call; the text says why."""


@dataclass(frozen=True)
class TensorInput:
    """One tensor among the arguments, and what a later call must bring to fit the graph."""

    name: str
    """Where it stands in the call: `input_ids`, `batch['pixels'][0]`."""
    dtype: torch.dtype
    device: torch.device
    shape: tuple[Size, ...]

    def refuses(self, value: object) -> str | None:
        """Why `value` does not fit, as far as that can be told without the other inputs."""
        if not isinstance(value, Tensor):
            return f"input '{self.name}' was a tensor, is {_described(value)}"
        for what, mine, its in (
            ("dtype", self.dtype, value.dtype),
            ("device", self.device, value.device),
            ("layout", torch.strided, value.layout),
            ("number of dimensions", len(self.shape), value.ndim),
        ):
            if mine != its:
                return f"{what} of input '{self.name}' was {mine}, is {its}"
        for axis, (size, actual) in enumerate(zip(self.shape, value.shape, strict=True)):
            if isinstance(size, int) and size != actual:
                return f"dimension {axis} of input '{self.name}' was {size}, is {actual}"
        return None


@dataclass(frozen=True)
class Constant:
    """One argument that is not a tensor; the graph holds only for this value of it."""

    name: str
    value: object

    def refuses(self, value: object) -> str | None:
        """Why `value` does not fit: it must be equal and of the same type (1 is not True)."""
        comparable = isinstance(value, CONSTANTS) and type(value) is type(self.value)
        if value is self.value or (comparable and value == self.value):
            return None
        return f"argument '{self.name}' was {_described(self.value)}, is {_described(value)}"


@dataclass(frozen=True)
class Capture:
    """A graph and the calls it is right for.

    `graph` takes the tensors of `flatten` and returns a flat tuple, which `unflatten` brings into the
    model's own form. Its parameters and buffers are the model's own tensor objects, under their names in
    the model: nothing was copied.
    """

    graph: fx.GraphModule
    signature: inspect.Signature
    """Of the model's `forward`; a call is compared by what it binds, not by how it was written."""
    arguments: Mapping[str, pytree.TreeSpec]
    """Structure of each parameter of `signature`, defaults included."""
    leaves: tuple[TensorInput | Constant, ...]
    """Every leaf of `arguments`, in order; the tensors among them are the graph's placeholders."""
    ranges: Mapping[str, tuple[int, int | None]]
    """Least and greatest value of each size that may change; None: no bound."""
    guards: tuple[str, ...]
    """Further conditions on those sizes, as Python expressions (`s0 % 2 == 0`)."""
    out_spec: pytree.TreeSpec
    out_constants: Mapping[int, object]
    """Leaves of the output that are not results of the graph, by position (None, numbers, strings)."""
    singles: frozenset[frozenset[str]] = frozenset()
    """Sets of sizes that may be 1 together, though tracing took them for 2 or more: the graph was right there."""
    note: str = ""
    """What the user should know: why fewer shapes are covered than could be expected."""

    def refuses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Why the graph is not right for the call `model(*args, **kwargs)`; None when it is."""
        try:
            leaves = self._leaves(args, kwargs)
            for template, leaf in zip(self.leaves, leaves, strict=True):
                if reason := template.refuses(leaf):
                    return reason
            self._check_sizes(leaves)
        except _RefusedError as refused:
            return str(refused)
        return None

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of the call, as the graph takes them.

        Raises:
            InputError: the call has another structure.
        """
        try:
            leaves = self._leaves(args, kwargs)
        except _RefusedError as refused:
            raise InputError(f"{refused}: ask `refuses` first, and capture again for such a call.") from None
        pairs = zip(self.leaves, leaves, strict=True)
        return [leaf for template, leaf in pairs if isinstance(template, TensorInput)]

    def unflatten(self, results: Sequence[Any]) -> Any:
        """What the graph returned -> the model's own output structure."""
        rest = iter(results)
        constants = self.out_constants
        count = self.out_spec.num_leaves
        return self.out_spec.unflatten([constants[i] if i in constants else next(rest) for i in range(count)])

    def _leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        try:
            values = _bound(self.signature, args, kwargs)
        except TypeError as error:
            raise _RefusedError(f"the call does not fit forward{self.signature}: {error}") from None
        leaves: list[Any] = []
        for name, spec in self.arguments.items():
            try:
                leaves += spec.flatten_up_to(values[name])
            except ValueError as error:
                raise _RefusedError(f"argument '{name}' has another structure: {error}") from None
        return leaves

    def _check_sizes(self, leaves: Sequence[Any]) -> None:
        sizes: dict[str, int] = {}
        places: dict[str, str] = {}
        derived: list[tuple[str, int, str]] = []
        for size, value, place in self._dynamic_sizes(leaves):
            if not size.isidentifier():
                derived.append((size, value, place))
            elif value != sizes.setdefault(size, value):
                other = f"{places[size]}, which is {sizes[size]}"
                raise _RefusedError(f"{place} is {value}, but must equal {other}")
            places.setdefault(size, place)
        singles = frozenset(size for size, value in sizes.items() if value == 1)
        for size, value in sizes.items():
            low, high = self.ranges[size]
            single = value == 1 and low == 2 and singles in self.singles
            if not (single or low <= value <= (high or value)):
                span = f"{low} to {high}" if high else f"{low} or more"
                raise _RefusedError(f"{places[size]} is {value}, but the graph holds for {span}")
        for size, value, place in derived:
            if eval(_code(size), {}, sizes) != value:
                raise _RefusedError(f"{place} is {value}, but must be {_worded(size, places)}")
        for guard in self.guards:
            if not eval(_code(guard), {}, sizes):
                raise _RefusedError(f"the graph holds only where {_worded(guard, places)}")

    def _dynamic_sizes(self, leaves: Sequence[Any]) -> Iterator[tuple[str, int, str]]:
        """Expression, value in this call, and place of every size that may change."""
        for template, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(template, TensorInput):
                for axis, size in enumerate(template.shape):
                    if isinstance(size, str):
                        yield size, leaf.shape[axis], f"dimension {axis} of input '{template.name}'"


@cache
def _code(expression: str) -> CodeType:
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ARITHMETIC):
            raise _RefusedError(f"a condition on the sizes is not plain arithmetic: {expression}")
    return compile(tree, "<sizes>", "eval")


def _worded(expression: str, places: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda word: places.get(word[0], word[0]), expression)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, CONSTANTS) else f"a {type(value).__name__}"


def _bound(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter -> value, defaults included. TypeError when the call does not fit."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@dataclass(frozen=True)
class _Call:
    """The example to trace."""

    model: nn.Module
    signature: inspect.Signature
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Slot:
    """Stands for input number `index` of a program while it is sorted by the parameters of `forward`."""

    index: int


class _Flat(nn.Module):
    """A model as a function of tensors alone, which torch.export handles whatever the model's signature."""

    def __init__(self, model: nn.Module, run: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        return self.run(*tensors)


@dataclass(frozen=True)
class _Traced:
    """A program of functional ATen operations, and how it stands to the call that was traced."""

    program: ExportedProgram
    in_spec: pytree.TreeSpec
    inputs: list[Any]
    """In the order of `in_spec`: placeholders of tensors, values of constants."""
    out_spec: pytree.TreeSpec
    constants: dict[int, object]
    """Leaves of the output that the program does not return."""
    prefix: str = ""
    """What the names of parameters and modules in the program have before those in the model."""


def _export(call: _Call, shapes: Shapes) -> _Traced:
    leaves, in_spec = pytree.tree_flatten((call.args, call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    out_spec = pytree.tree_structure(None)
    constants: dict[int, object] = {}

    def run(*traced: Tensor) -> tuple[Any, ...]:
        nonlocal out_spec, constants
        rest = iter(traced)
        args, kwargs = in_spec.unflatten(
            [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        )
        results, out_spec = pytree.tree_flatten(_opened(call.model(*args, **kwargs)))
        constants = {i: result for i, result in enumerate(results) if not isinstance(result, TRACED)}
        return tuple(result for result in results if isinstance(result, TRACED))

    dims = [shapes.get(id(tensor)) for tensor in tensors]
    program = torch.export.export(
        _Flat(call.model, run).eval(),
        tuple(map(_widened, tensors, dims)),
        dynamic_shapes={"tensors": tuple(dims)} if any(dims) else None,
        strict=False,
    ).run_decompositions({})
    for constant in constants.values():
        if not isinstance(constant, CONSTANTS):
            raise CaptureError(
                f"{type(call.model).__name__} returns an object that a graph cannot look into: "
                f"{type(constant).__name__}. Let it return tensors in tuples, lists and dicts (Hugging Face: "
                "use_cache=False)."
            )
    rest = iter(_user_inputs(program))
    inputs = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return _Traced(program, in_spec, inputs, out_spec, constants, prefix="model.")


@dataclass(frozen=True)
class _Cache:
    """A DynamicCache among outputs. transformers' own registration with pytree raises for some caches."""

    cache: Any


def _opened(output: Any) -> Any:
    """`output` with its caches as containers; unflattening the result makes caches again."""

    def opened(leaf: Any) -> Any:
        kind = type(leaf)
        plain = (kind.__module__, kind.__name__) == ("transformers.cache_utils", "DynamicCache")
        plain = plain and {type(layer).__name__ for layer in getattr(leaf, "layers", ())} == {"DynamicLayer"}
        return _Cache(leaf) if plain else leaf

    return pytree.tree_map(opened, output)


pytree.register_pytree_node(
    _Cache,
    lambda opened: (
        [t for layer in opened.cache.layers for t in (layer.keys, layer.values)],
        type(opened.cache),
    ),
    lambda tensors, kind: kind(list(zip(*[iter(tensors)] * 2, strict=True))),
)


def _widened(tensor: Tensor, dims: Any) -> Tensor:
    """torch.export takes a dimension of size 1 for fixed: double those that shall be dynamic."""
    for axis, dim in dims.items() if isinstance(dims, Mapping) else enumerate(dims or ()):
        if tensor.shape[axis] == 1 and dim not in (None, Dim.STATIC) and not isinstance(dim, int):
            tensor = torch.cat([tensor, tensor], axis)
    return tensor.detach()


def _user_inputs(program: ExportedProgram) -> list[Any]:
    """Placeholders of the inputs that are tensors, values of those that are constants."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    args = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    return [arg.value if isinstance(arg, ConstantArgument) else nodes[arg.name] for arg in args]


def _read(traced: _Traced, signature: inspect.Signature) -> Capture:
    """The flat graph, and its contract in terms of the parameters of `forward`."""
    _check_pure(traced)
    args, kwargs = traced.in_spec.unflatten([_Slot(index) for index in range(len(traced.inputs))])
    arguments: dict[str, pytree.TreeSpec] = {}
    leaves: list[TensorInput | Constant] = []
    placeholders: dict[str, fx.Node] = {}
    for parameter, value in _bound(signature, args, kwargs).items():
        found, arguments[parameter] = pytree.tree_flatten_with_path(value)
        for path, leaf in found:
            name = parameter + pytree.keystr(path)
            given = traced.inputs[leaf.index] if isinstance(leaf, _Slot) else leaf
            if isinstance(given, fx.Node):
                placeholders[name] = given
            leaves.append(_template(name, given))
    guards = _guards(placeholders.values())
    known = _known_sizes(leaves, guards)
    results = iter(traced.program.graph.output_node().args[0])
    constants = dict(traced.constants)
    for index in range(traced.out_spec.num_leaves):
        if index not in constants and not isinstance(result := next(results), fx.Node):
            constants[index] = result
    ranges = traced.program.range_constraints.items()
    return Capture(
        graph=_flat_graph(traced, placeholders),
        signature=signature,
        arguments=arguments,
        leaves=tuple(leaves),
        ranges={str(size): _bounds(span) for size, span in ranges if str(size) in known},
        guards=guards,
        out_spec=traced.out_spec,
        out_constants=constants,
    )


def _check_pure(traced: _Traced) -> None:
    written = {
        OutputKind.BUFFER_MUTATION: "its buffer",
        OutputKind.PARAMETER_MUTATION: "its parameter",
        OutputKind.USER_INPUT_MUTATION: "its input",
    }
    for spec in traced.program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            name = (spec.target or "").removeprefix(traced.prefix)
            what = f"{written.get(spec.kind, spec.kind.name)} '{name}'"
            raise CaptureError(
                f"The model writes to {what} while it runs. Let forward work on a copy of it, or compile the "
                "submodules that do not write to it."
            )


def _template(name: str, given: Any) -> TensorInput | Constant:
    if not isinstance(given, fx.Node):
        return Constant(name, given)
    fake = given.meta["val"]
    if not isinstance(fake, Tensor):
        raise CaptureError(f"Argument '{name}' is a dynamic number; export the program with a fixed one.")
    return TensorInput(name, fake.dtype, fake.device, tuple(_size(size) for size in fake.shape))


def _known_sizes(leaves: Sequence[TensorInput | Constant], guards: Sequence[str]) -> set[str]:
    """Expressions among the sizes of inputs. _RefusedError unless each of their sizes is one that an input has."""
    sizes = [size for leaf in leaves if isinstance(leaf, TensorInput) for size in leaf.shape]
    known = {size for size in sizes if isinstance(size, str)}
    for text in (*known, *guards):
        if strangers := set(_code(text).co_names) - known:
            raise _RefusedError(f"a size depends on {', '.join(sorted(strangers))}, which no input has")
    return known


def _flat_graph(traced: _Traced, placeholders: Mapping[str, fx.Node]) -> fx.GraphModule:
    """The program's graph with these placeholders, its parameters as attributes."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for name, node in placeholders.items():
        copies[node] = graph.placeholder(re.sub(r"\W+", "_", name).strip("_"))
        copies[node].meta = node.meta
    program = traced.program
    held = {**program.constants, **program.state_dict}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    root: dict[str, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target = specs[node.name].target
            if target is not None:  # an input has none: it is a placeholder by now, or a constant
                name = target.removeprefix(traced.prefix)
                root[name] = held[target]
                copies[node] = graph.get_attr(name)
                copies[node].meta = node.meta
        elif node.op == "output":
            graph.output(tuple(copies[result] for result in node.args[0] if isinstance(result, fx.Node)))
        elif node.target is not torch.ops.aten._assert_tensor_metadata.default:
            if node.op == "get_attr":
                root[node.target] = getattr(program.graph_module, node.target)
            copies[node] = graph.node_copy(node, copies.__getitem__)
    for node in graph.nodes:
        if node.target in VIEWS:  # a view fails on strides other than the traced ones; a reshape never does
            node.target = torch.ops.aten.reshape.default
        node.meta = _kept(node.meta, traced.prefix)
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph, class_name="Captured")


def _kept(meta: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What later stages read of a node's meta, module paths as the user knows them."""
    kept = {key: meta[key] for key in ("val", "stack_trace") if key in meta}
    stack = list((meta.get("nn_module_stack") or {}).items())
    if prefix:  # both begin with _Flat
        stack = [(k, (f"{path}.".removeprefix(prefix).rstrip("."), kind)) for k, (path, kind) in stack[1:]]
        trace = (meta.get("stack_trace") or "").splitlines()
        kept["stack_trace"] = "\n".join(trace[2:] if trace and __file__ in trace[0] else trace)
    return kept | {"nn_module_stack": dict(stack)} if stack else kept


def _size(size: int | torch.SymInt) -> Size:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else _text(expression)


def _text(expression: Any) -> str:
    """A sympy expression as Python; refused unless it is plain arithmetic, so that `eval` of it is safe."""
    text = str(PythonPrinter().doprint(expression))
    _code(text)
    return text


def _bounds(span: Any) -> tuple[int, int | None]:
    """torch.export takes 0 and 1 for sizes apart, whatever range was asked for."""
    return max(2, int(span.lower)), int(span.upper) if span.upper.is_Integer else None


def _guards(inputs: Iterable[fx.Node]) -> tuple[str, ...]:
    """What tracing assumed about the sizes, beyond their ranges and equalities."""
    modes = [node.meta["val"].fake_mode for node in inputs]
    environment = modes[0].shape_env if modes else None
    if environment is None:
        return ()
    conditions = dict.fromkeys(_text(environment.simplify(guard.expr)) for guard in environment.guards)
    return tuple(condition for condition in conditions if condition != "True")


def capture(
    model: nn.Module | ExportedProgram,
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
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        if isinstance(model, ExportedProgram):
            return _from_program(model)
        call = _Call(model, inspect.signature(model.forward), tuple(args), dict(kwargs or {}))
        wanted = _wanted_shapes(call, dynamic_shapes)
        _check_plain(call)
        with _evaluating(model):
            return _first_that_works(call, wanted)


def _first_that_works(call: _Call, wanted: list[Shapes]) -> Capture:
    failure: Exception | None = None
    for shapes in wanted:
        try:
            found = _verified(call, _read(_export(call, shapes), call.signature))
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


def _check_plain(call: _Call) -> None:
    """CaptureError unless the example consists of tensors and constants, in containers that only hold them."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    strangers = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *CONSTANTS))]
    if strangers or not _identical(leaves, pytree.tree_leaves(spec.unflatten(leaves))):
        what = strangers[0] if strangers else "container that copies what it holds, a cache perhaps"
        raise CaptureError(
            f"{type(call.model).__name__} is called with an object that a graph cannot look into: {what}. Call it "
            "with tensors and constants in tuples, lists and dicts, or compile its submodules."
        )


def _wanted_shapes(call: _Call, asked: Any) -> list[Shapes]:
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


def _from_program(program: ExportedProgram) -> Capture:
    assert program.call_spec.in_spec is not None
    assert program.call_spec.out_spec is not None
    specs = (program.call_spec.in_spec, program.call_spec.out_spec)
    try:
        signature = inspect.signature(program.module().forward)
        program = program.run_decompositions({})
        found = _read(_Traced(program, specs[0], _user_inputs(program), specs[1], {}), signature)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"The exported program cannot be used: {_reason(error)}. Hand over the model it was made of instead."
        ) from error
    # "2 or more" is how torch.export writes "any size"; the program itself accepts 1 as well
    ranges = {size: (1 if low == 2 else low, high) for size, (low, high) in found.ranges.items()}
    return replace(found, ranges=ranges)


def _verified(call: _Call, found: Capture) -> Capture:
    """`found`, after its graph gave the model's results for the call, and for batches of 1 if it does there.

    torch.export traces for sizes of 2 or more and guards nothing against 1. _RefusedError when results differ.
    """
    sizes = {size: value for size, value, _ in found._dynamic_sizes(found._leaves(call.args, call.kwargs))}
    own = frozenset(size for size in found.ranges if sizes.get(size) == 1)
    found = replace(found, singles=frozenset({own}))
    if found.refuses(call.args, call.kwargs):
        raise _RefusedError("a size of 1 is treated apart from larger ones")
    if reason := _difference(call, found):
        raise _RefusedError(reason)
    first = {leaf.shape[0] for leaf in found.leaves if isinstance(leaf, TensorInput) and leaf.shape}
    single = own.union(size for size, (low, _) in found.ranges.items() if low == 2 and size in first)
    if single == own:
        return found
    wider = replace(found, singles=frozenset({own, single}))
    try:
        return found if _difference(_reduced(call, wider, single), wider) else wider
    except Exception:  # noqa: BLE001 - a model may need 2 or more, and then so may its graph
        return found


def _reduced(call: _Call, found: Capture, single: frozenset[str]) -> _Call:
    """The call cut to 1 in these sizes."""
    leaves = found._leaves(call.args, call.kwargs)
    sizes = {size: value for size, value, _ in found._dynamic_sizes(leaves)} | dict.fromkeys(single, 1)
    items: dict[int, Tensor] = {}
    for template, leaf in zip(found.leaves, leaves, strict=True):
        if isinstance(template, TensorInput):
            shape = [n if isinstance(n, int) else eval(_code(n), {}, sizes) for n in template.shape]
            items[id(leaf)] = leaf[tuple(slice(n) for n in shape)]
    args, kwargs = pytree.tree_map(lambda leaf: items.get(id(leaf), leaf), (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _difference(call: _Call, found: Capture) -> str | None:
    """Why the graph is not right for this call: its contract refuses it, or its results are not the model's."""
    if reason := found.refuses(call.args, call.kwargs):
        return reason
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
    before = pytree.tree_leaves((args, kwargs))
    expected = pytree.tree_leaves(_opened(_seeded(lambda: call.model(*args, **kwargs))))
    after = pytree.tree_leaves((args, kwargs))
    if not _identical(before, after):
        raise CaptureError(
            f"{type(call.model).__name__} changes a container among its inputs (a cache?) while it runs. "
            "Let it return a new one, or compile the submodules that do not change it."
        )
    results = _seeded(lambda: found.graph(*found.flatten(args, kwargs)))
    actual = pytree.tree_leaves(_opened(found.unflatten(results)))
    if len(actual) != len(expected) or not all(map(_same, actual, expected)):
        return "the graph's results differ from the model's on the example"
    return None


def _identical(left: Sequence[object], right: Sequence[object]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _seeded(run: Callable[[], Any]) -> Any:
    """Two runs that draw random numbers draw the same, and the user's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return run()


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
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
