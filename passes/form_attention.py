"""Form attention on tokens x channels: heads that are split off and merged again are places in the channels."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.passes.keep_token_shape import RESHAPES, same_shape
from sparsecomp.primitives import ATTENTION, CACHED_ATTENTION, SCORE_MASK
from sparsecomp.program import Program

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
FLATTEN = aten.flatten.using_ints
COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default)


@dataclass(frozen=True)
class FormAttention:
    """q = transpose(reshape(x, [B, S, heads, size]), 1, 2), k and v likewise
    y = reshape(transpose(scaled_dot_product_attention(q, k, v, mask), 1, 2), [B, S, -1])
        ->   y = attention(x, ..., score_mask(mask), heads, sizes, ...)
    the same with cat([keys, k], 2) and cat([values, v], 2), for one query
        ->   y = cached_attention(x, ..., keys, values, heads, ...)

    Self attention alone: as many keys as queries, or one query and a cache; numbers known when the model is
    compiled.
    """

    name: ClassVar[str] = "form-attention"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        masks: dict[fx.Node, fx.Node] = {}
        formed = [
            node
            for node in list(graph.graph.nodes)
            if node.target is SDPA and (_form(graph, node, masks) or _form_cached(graph, node))
        ]
        return program.with_graph(graph) if formed else program


@dataclass(frozen=True)
class _Heads:
    """A tensor of heads: the tensor B x S x channels it is split from, and from which channel on."""

    source: fx.Node
    start: int
    heads: int
    size: int


def _form(graph: fx.GraphModule, node: fx.Node, masks: dict[fx.Node, fx.Node]) -> bool:
    bound = node.normalized_arguments(graph, normalize_to_only_use_kwargs=True)
    last = _merged(node)
    parts = [_heads(node.args[i]) for i in range(3)]
    if bound is None or last is None or None in parts:
        return False
    q, k, v = (part for part in parts if part is not None)
    options: dict[str, Any] = bound.kwargs
    if options.get("dropout_p") or not _self_attention(q, k, v, options):
        return False
    mask = options.get("attn_mask")
    batch, tokens = q.source.meta["val"].shape[:2]
    if mask is not None and not _readable(mask, tokens):
        return False
    scale = options.get("scale")
    with graph.graph.inserting_before(node):
        scores = _scores(graph.graph, node, q, mask, masks) if mask is not None else None
        arguments = (
            *(part.source for part in (q, k, v)),
            scores,
            [q.heads, k.heads],
            [q.size, v.size],
            q.size**-0.5 if scale is None else float(scale),
            bool(options.get("is_causal")),
            [part.start for part in (q, k, v)],
        )
        made = graph.graph.call_function(ATTENTION, arguments)
    made.meta["val"] = q.source.meta["val"].new_empty((batch, tokens, q.heads * v.size))
    _replace(graph.graph, node, last, made)
    return True


def _replace(graph: fx.Graph, node: fx.Node, last: fx.Node, made: fx.Node) -> None:
    """Everything from the attention to `last`, by what was made."""
    last.replace_all_uses_with(made)
    while last is not node:  # by hand: attention counts as random, so it is not dropped for having no reader
        before = last.all_input_nodes[0]
        graph.erase_node(last)
        last = before
    graph.erase_node(node)


def _form_cached(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Attention of one token to a cache and itself."""
    bound = node.normalized_arguments(graph, normalize_to_only_use_kwargs=True)
    last = _merged(node)
    q = _heads(node.args[0])
    grown = [_grown(node.args[i]) for i in (1, 2)]
    if bound is None or last is None or q is None or grown[0] is None or grown[1] is None:
        return False
    (keys, k), (values, v) = grown[0], grown[1]
    options: dict[str, Any] = bound.kwargs
    hides = options.get("dropout_p") or options.get("is_causal") or options.get("attn_mask") is not None
    earlier = [part.meta["val"].shape for part in (keys, values)]
    as_long = isinstance(earlier[0][2], int) and earlier[0][2] == earlier[1][2]
    if hides or not as_long or not _self_attention(q, k, v, options) or q.source.meta["val"].shape[1] != 1:
        return False
    scale = options.get("scale")
    arguments = (
        *(part.source for part in (q, k, v)),
        keys,
        values,
        [q.heads, k.heads],
        q.size**-0.5 if scale is None else float(scale),
        [part.start for part in (q, k, v)],
    )
    with graph.graph.inserting_before(node):
        made = graph.graph.call_function(CACHED_ATTENTION, arguments)
    batch = q.source.meta["val"].shape[0]
    made.meta["val"] = q.source.meta["val"].new_empty((batch, 1, q.heads * v.size))
    _replace(graph.graph, node, last, made)
    return True


def _grown(node: Any) -> tuple[fx.Node, _Heads] | None:
    """cat([earlier, heads of the new token], 2)"""
    if not isinstance(node, fx.Node) or node.target is not aten.cat.default:
        return None
    parts: Any = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else 0
    new = _heads(parts[1]) if len(parts) == 2 and dim in (2, -2) else None
    return None if new is None or parts[0].meta["val"].dim() != 4 else (parts[0], new)


def _self_attention(q: _Heads, k: _Heads, v: _Heads, options: dict[str, Any]) -> bool:
    shapes = [part.source.meta["val"].shape[:2] for part in (q, k, v)]
    alike = all(same_shape(shape, shapes[0]) for shape in shapes) and isinstance(shapes[0][1], int)
    grouped = k.heads == v.heads and (
        q.heads == k.heads or (bool(options.get("enable_gqa")) and q.heads % k.heads == 0)
    )
    return alike and grouped and q.size == k.size


def _readable(mask: Any, tokens: int) -> bool:
    """Whether it is a mask over all keys, the same for every call of one size."""
    value = mask.meta.get("val") if isinstance(mask, fx.Node) else None
    if not isinstance(value, Tensor) or value.dtype not in (torch.bool, torch.float32):
        return False
    return 2 <= value.dim() <= 4 and value.shape[-1] == tokens and value.shape[-2] in (1, tokens)


def _scores(
    graph: fx.Graph, node: fx.Node, q: _Heads, mask: fx.Node, masks: dict[fx.Node, fx.Node]
) -> fx.Node:
    """The mask as kernels read it, made once for all attentions that share it, right behind it."""
    if mask not in masks:
        value = q.source.meta["val"]
        with graph.inserting_before(node):
            made = masks[mask] = graph.call_function(SCORE_MASK, (mask, value.shape[1]))
        made.meta["val"] = SCORE_MASK(mask.meta["val"], value.shape[1])
    return masks[mask]


def _heads(node: Any) -> _Heads | None:
    """transpose(reshape(part of x, [B, S, heads, size]), 1, 2)"""
    if not _is_transpose(node):
        return None
    split = node.args[0]
    if not isinstance(split, fx.Node) or split.target not in RESHAPES:
        return None
    part, shape = split.args[0], split.meta["val"].shape
    whole = part.meta["val"].shape  # type: ignore[union-attr]
    if len(shape) != 4 or len(whole) != 3 or not same_shape(shape[:2], whole[:2]):
        return None
    if not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    source, start = _origin(part)
    return _Heads(source, start, shape[2], shape[3])


def _origin(part: Any) -> tuple[fx.Node, int]:
    """The tensor that `part` is a range of channels of, and its first channel."""
    if part.target is operator.getitem and part.args[0].target is aten.split.Tensor:
        source, size, *dims = part.args[0].args
        if dims and dims[0] in (-1, source.meta["val"].dim() - 1):
            return source, size * part.args[1]
    if part.target is operator.getitem and part.args[0].target is aten.split_with_sizes.default:
        source, sizes, *dims = part.args[0].args
        if dims and dims[0] in (-1, source.meta["val"].dim() - 1):
            return source, sum(sizes[: part.args[1]])
    if part.target is aten.slice.Tensor and _slices_channels(part):
        return part.args[0], part.args[2]
    return part, 0


def _slices_channels(part: fx.Node) -> bool:
    """Whether it is a range of channels that starts at a known one."""
    given: list[Any] = [*part.args, *[0, 0, None, 1][len(part.args) - 1 :]]
    source, dim, start, _, step = given
    last: int = source.meta["val"].dim() - 1
    return dim in (-1, last) and isinstance(start, int) and start >= 0 and step == 1


def _is_transpose(node: Any) -> bool:
    """Whether it swaps tokens and heads."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is aten.transpose.int:
        return sorted(dim % 4 for dim in node.args[1:3]) == [1, 2]  # type: ignore[operator]
    return node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1, 3]  # type: ignore[arg-type]


def _merged(node: fx.Node) -> fx.Node | None:
    """reshape(transpose(node, 1, 2), [B, S, -1]), if that is all that reads it."""
    reader = _only_reader(node)
    if reader is None or not _is_transpose(reader):
        return None
    split = reader.meta["val"].shape
    while True:
        reader = _only_reader(reader)
        if reader is None or reader.target not in (*COPIES, *RESHAPES, FLATTEN):
            return None
        shape = reader.meta["val"].shape
        if len(shape) == 3 and same_shape(shape[:2], split[:2]):
            return reader
        if not same_shape(shape, split):
            return None


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Reshapes to the same shape and copies apart."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        same = reader.target in (*COPIES, *RESHAPES)
        if not same or not same_shape(reader.meta["val"].shape, node.meta["val"].shape):
            return reader
        node = reader
    return None
