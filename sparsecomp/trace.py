"""A call of a model -> a flat graph of functional ATen operations with its contract."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import DispatchKey
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from sparsecomp.contract import (
    CONSTANTS,
    Capture,
    Constant,
    RefusedError,
    Size,
    TensorInput,
    bound_arguments,
    size_code,
)
from sparsecomp.errors import CaptureError
from sparsecomp.unflatten import unflatten

Shapes = dict[int, Any]
"""id of a tensor of the example -> which of its dimensions are dynamic, in the form of torch.export."""

aten = torch.ops.aten

COMPOSITES = frozenset(
    {
        aten.__and__.Tensor,
        aten.__or__.Tensor,
        aten.adaptive_avg_pool2d.default,
        aten.contiguous.default,
        aten.conv1d.default,
        aten.conv2d.default,
        aten.flatten.using_ints,
        aten.group_norm.default,
        aten.layer_norm.default,
        aten.linear.default,
        aten.matmul.default,
        aten.max.other,
        aten.max_pool2d.default,
        aten.min.other,
        aten.pad.default,
        aten.relu6.default,
        aten.reshape.default,
        aten.rms_norm.default,
        aten.scaled_dot_product_attention.default,
        aten.softmax.int,
        aten.sym_size.int,
        aten.to.device,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.where.Scalar,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
    }
)
"""Operators made of others that write to nothing, and say in their schemas what they alias. Not all are that
honest."""
TRAINING = {aten.dropout.default: 2, aten.dropout_.default: 2, aten.batch_norm.default: 5}
"""Operators that write to nothing unless they train, and the position of that argument."""
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
TRACED = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Call:
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
class Traced:
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


def export(call: Call, shapes: Shapes) -> Traced:
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
        results, out_spec = pytree.tree_flatten(opened_caches(call.model(*args, **kwargs)))
        constants = {i: result for i, result in enumerate(results) if not isinstance(result, TRACED)}
        return tuple(result for result in results if isinstance(result, TRACED))

    flat = _Flat(call.model, run)
    flat.training = False  # not eval(): a model may override it to change weights
    dims = [shapes.get(id(tensor)) for tensor in tensors]
    program = torch.export.export(
        flat,
        tuple(map(_widened, tensors, dims)),
        dynamic_shapes={"tensors": tuple(dims)} if any(dims) else None,
        strict=False,
    )
    if not all(map(_functional, program.graph.nodes)):
        program = program.run_decompositions({})  # traces once more, which takes longer than the first time
    for constant in constants.values():
        if not isinstance(constant, CONSTANTS):
            raise CaptureError(
                f"{type(call.model).__name__} returns an object that a graph cannot look into: "
                f"{type(constant).__name__}. Let it return tensors in tuples, lists and dicts (Hugging Face: "
                "use_cache=False)."
            )
    rest = iter(_user_inputs(program))
    inputs = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return Traced(program, in_spec, inputs, out_spec, constants, prefix="model.")


def _functional(node: fx.Node) -> bool:
    """Whether the operator surely writes to nothing: what functionalization would leave as it is."""
    if node.op != "call_function":
        return node.op in ("placeholder", "get_attr", "output")
    if node.target in TRAINING:
        return node.args[TRAINING[node.target]] is False
    if isinstance(node.target, torch._ops.OpOverload):
        composite = node.target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
        return not node.target._schema.is_mutable and (node.target in COMPOSITES or not composite)
    return getattr(node.target, "__module__", "") == "_operator"  # arithmetic on sizes, and getitem


@dataclass(frozen=True)
class OpenedCache:
    """A DynamicCache among outputs. transformers' own registration with pytree raises for some caches."""

    cache: Any


def opened_caches(output: Any) -> Any:
    """`output` with its caches as containers; unflattening the result makes caches again."""

    def opened(leaf: Any) -> Any:
        kind = type(leaf)
        plain = (kind.__module__, kind.__name__) == ("transformers.cache_utils", "DynamicCache")
        plain = plain and {type(layer).__name__ for layer in getattr(leaf, "layers", ())} == {"DynamicLayer"}
        return OpenedCache(leaf) if plain else leaf

    leaves, spec = pytree.tree_flatten(output)
    return unflatten(spec, [opened(leaf) for leaf in leaves])


pytree.register_pytree_node(
    OpenedCache,
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


def read(traced: Traced, signature: inspect.Signature) -> Capture:
    """The flat graph, and its contract in terms of the parameters of `forward`."""
    _check_pure(traced)
    args, kwargs = traced.in_spec.unflatten([_Slot(index) for index in range(len(traced.inputs))])
    arguments: dict[str, pytree.TreeSpec] = {}
    leaves: list[TensorInput | Constant] = []
    placeholders: dict[str, fx.Node] = {}
    for parameter, value in bound_arguments(signature, args, kwargs).items():
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


def _check_pure(traced: Traced) -> None:
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
    """Expressions among the sizes of inputs. RefusedError unless each of their sizes is one that an input has."""
    sizes = [size for leaf in leaves if isinstance(leaf, TensorInput) for size in leaf.shape]
    known = {size for size in sizes if isinstance(size, str)}
    for text in (*known, *guards):
        if strangers := set(size_code(text).co_names) - known:
            raise RefusedError(f"a size depends on {', '.join(sorted(strangers))}, which no input has")
    return known


def _flat_graph(traced: Traced, placeholders: Mapping[str, fx.Node]) -> fx.GraphModule:
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
    size_code(text)
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
