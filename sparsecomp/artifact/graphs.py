"""FX graphs and their contracts <-> JSON.

A graph is read as data: its operators must be on a list, its names must be names. Nothing in a file reaches the
Python source that FX makes of a graph unchecked.
"""

from __future__ import annotations

import inspect
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsecomp.artifact.records import decode, decode_constant, encode, encode_constant
from sparsecomp.artifact.structures import decode_structure, encode_structure
from sparsecomp.contract import Capture, Constant, RefusedError, TensorInput, size_code
from sparsecomp.errors import ArtifactError
from sparsecomp.program import attribute

NAMESPACES = ("aten", "prims", "sparsecomp")
FORBIDDEN = ("from_file", "set_", "resize")
"""Parts of names of operators that read files or move memory."""
FUNCTIONS: Mapping[str, Any] = {
    **{f"operator.{name}": getattr(operator, name) for name in (
        *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "abs", "and_", "or_", "not_"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    )},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch.{name}": getattr(torch, name) for name in (
        *("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite"),
    )},
}  # fmt: skip
"""Functions of numbers, sizes for the most part, and `getitem`."""
KINDS = {
    kind.name: kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}
_PATH = re.compile(r"[\w /-]+(\.[\w /-]+)*")
"""Names of modules are those of a user: numbers in an nn.Sequential, "a-b" in an nn.ModuleDict. In the graph's code they
stand in quotes, so that nothing may end those."""
Leaves = Mapping[str, tuple[TensorInput | Constant, ...]]


def encode_graph(graph: fx.GraphModule, tensor: Callable[[str, Tensor], Any]) -> dict[str, Any]:
    """`tensor`: path of a constant in the graph, and its value -> what stands for it.

    Raises:
        ArtifactError: an operator or an argument has no form in a file.
    """
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _target_name(node),
            "args": [_encode_argument(value) for value in node.args],
            "kwargs": {key: _encode_argument(value) for key, value in node.kwargs.items()},
        }
        for node in graph.graph.nodes
    ]
    paths = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")
    return {"nodes": nodes, "constants": {path: tensor(path, attribute(graph, path)) for path in paths}}


def _target_name(node: fx.Node) -> str:
    if node.op in ("placeholder", "get_attr", "output"):
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in NAMESPACES:
        return str(node.target)
    found = next((name for name, function in FUNCTIONS.items() if function is node.target), None)
    if found is None:
        raise ArtifactError(f"the graph calls {node.target}, which has no form in a file.")
    return found


def _encode_argument(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode_argument(item) for item in value]}
    if isinstance(value, list):
        return [_encode_argument(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode_argument(item) for item in (value.start, value.stop, value.step)]}
    return encode_constant(value)


def decode_graph(
    data: Any, tensor: Callable[[str, Any], Tensor], rename: Callable[[str], str] = str
) -> fx.GraphModule:
    """Inverse of `encode_graph`. `rename`: strings among the arguments, which name regions.

    Raises:
        ArtifactError: the data describes no graph, or one with an operator that is not on the list.
    """
    try:
        graph, made = fx.Graph(), dict[str, fx.Node]()
        for entry in data["nodes"]:
            name = _identifier(entry["name"])
            if name in made:
                raise ArtifactError(f"two operators of a graph are named {name!r}")
            made[name] = _decode_node(graph, entry, made, rename)
        root: dict[str, Any] = {}
        for path, reference in data["constants"].items():
            root[_path(path)] = tensor(path, reference)
        missing = {str(n.target) for n in graph.nodes if n.op == "get_attr"} - set(root)
        if missing:
            raise ArtifactError(f"a graph reads constants that it does not have: {sorted(missing)[:3]}")
        graph.lint()
        return fx.GraphModule(root, graph, class_name="Saved")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"a graph makes no sense: {type(error).__name__}: {error}") from error


def _decode_node(
    graph: fx.Graph, entry: Mapping[str, Any], made: Mapping[str, fx.Node], rename: Callable[[str], str]
) -> fx.Node:
    op, name, target = entry["op"], entry["name"], entry["target"]
    args = tuple(_decode_argument(value, made) for value in entry["args"])
    kwargs = {_identifier(key): _decode_argument(value, made) for key, value in entry["kwargs"].items()}
    if op == "placeholder":
        return graph.create_node(op, _identifier(target), name=name)
    if op == "get_attr":
        return graph.create_node(op, _path(target), name=name)
    if op == "output":
        return graph.create_node(op, "output", args, name=name)
    if op != "call_function":
        raise ArtifactError(f"a graph has a node of the kind {str(op)[:40]!r}")
    function = decode_target(target)
    if function is torch.ops.sparsecomp.region.default:
        args = (args[0], rename(str(args[1])))
    return graph.create_node(op, function, args, kwargs, name=name)


def decode_target(name: Any) -> Any:
    """An operator without side effects, or a function of numbers, by its name.

    Raises:
        ArtifactError: there is none of that name, or it is none that a graph may call.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = str(name).split(".")
    if len(parts) == 3 and parts[0] in NAMESPACES and not any(word in parts[1] for word in FORBIDDEN):
        packet = getattr(getattr(torch.ops, parts[0]), _identifier(parts[1]), None)
        found = getattr(packet, _identifier(parts[2]), None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise ArtifactError(f"a graph calls {str(name)[:80]!r}, which this library does not run from a file")


def _decode_argument(data: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(data, list):
        return [_decode_argument(item, made) for item in data]
    if isinstance(data, dict) and len(data) == 1:
        ((kind, value),) = data.items()
        if kind == "node":
            return made[value]
        if kind == "tuple":
            return tuple(_decode_argument(item, made) for item in value)
        if kind == "slice":
            return slice(*(_decode_argument(item, made) for item in value))
    return decode_constant(data)


def _identifier(text: Any) -> str:
    if isinstance(text, str) and text.isidentifier() and text.isascii() and not keyword.iskeyword(text):
        return text
    raise ArtifactError(f"found {str(text)[:80]!r} where a name was expected")


def _path(text: Any) -> str:
    if isinstance(text, str) and _PATH.fullmatch(text) and text.isascii():
        return text
    raise ArtifactError(f"found {str(text)[:80]!r} where the path of a constant was expected")


def encode_contract(capture: Capture) -> dict[str, Any]:
    """All of it but the graph."""
    return {
        "signature": [
            {
                "name": parameter.name,
                "kind": parameter.kind.name,
                **({} if parameter.default is parameter.empty else {"default": _default(parameter)}),
            }
            for parameter in capture.signature.parameters.values()
        ],
        "arguments": {name: encode_structure(spec) for name, spec in capture.arguments.items()},
        "leaves": encode(capture.leaves, tuple[TensorInput | Constant, ...]),
        "ranges": encode(capture.ranges, Mapping[str, tuple[int, int | None]]),
        "guards": list(capture.guards),
        "outputs": encode_structure(capture.out_spec),
        "output_constants": encode(capture.out_constants, Mapping[int, object]),
        "singles": encode(capture.singles, frozenset[frozenset[str]]),
        "note": capture.note,
    }


def _default(parameter: inspect.Parameter) -> Any:
    try:
        return encode_constant(parameter.default)
    except ArtifactError as error:
        raise ArtifactError(f"the default of the argument '{parameter.name}': {error}") from None


def decode_contract(data: Any, graph: fx.GraphModule) -> Capture:
    """
    Raises:
        ArtifactError: the data describes no contract.
    """
    try:
        capture = Capture(
            graph=graph,
            signature=decode_signature(data["signature"]),
            arguments={name: decode_structure(spec) for name, spec in data["arguments"].items()},
            leaves=decode(data["leaves"], tuple[TensorInput | Constant, ...]),
            ranges=decode(data["ranges"], Mapping[str, tuple[int, int | None]]),
            guards=decode(data["guards"], tuple[str, ...]),
            out_spec=decode_structure(data["outputs"]),
            out_constants=decode(data["output_constants"], Mapping[int, object]),
            singles=decode(data["singles"], frozenset[frozenset[str]]),
            note=decode(data["note"], str),
        )
        _check(capture)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError, RefusedError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"a contract makes no sense: {type(error).__name__}: {error}") from error
    return capture


def decode_signature(data: Any) -> inspect.Signature:
    """Raises KeyError, TypeError or ValueError for what is none."""
    return inspect.Signature([_parameter(entry) for entry in data])


def _parameter(entry: Mapping[str, Any]) -> inspect.Parameter:
    default = decode_constant(entry["default"]) if "default" in entry else inspect.Parameter.empty
    return inspect.Parameter(_identifier(entry["name"]), KINDS[entry["kind"]], default=default)


def _check(capture: Capture) -> None:
    """Raise unless the parts fit each other, and what is evaluated later is plain arithmetic."""
    sizes = [size for leaf in capture.leaves if isinstance(leaf, TensorInput) for size in leaf.shape]
    for text in (*(size for size in sizes if isinstance(size, str)), *capture.guards):
        if strangers := set(size_code(text).co_names) - set(capture.ranges):
            raise ArtifactError(f"a size depends on {sorted(strangers)[:3]}, which no input has")
    placeholders = sum(node.op == "placeholder" for node in capture.graph.graph.nodes)
    tensors = sum(isinstance(leaf, TensorInput) for leaf in capture.leaves)
    (results,) = capture.graph.graph.output_node().args
    wanted = capture.out_spec.num_leaves - len(capture.out_constants)
    counts = (
        (placeholders, tensors),
        (sum(spec.num_leaves for spec in capture.arguments.values()), len(capture.leaves)),
        (len(results) if isinstance(results, tuple | list) else -1, wanted),
    )
    if any(found != expected for found, expected in counts):
        raise ArtifactError("a graph does not fit its contract")
    if set(capture.arguments) != set(capture.signature.parameters):
        raise ArtifactError("a contract names other arguments than its signature")
