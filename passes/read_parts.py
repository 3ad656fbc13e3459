"""Read what lies in a concatenation where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.passes.remove_copies import is_returned
from sparsecomp.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class ReadParts:
    """cat([empty, x], 2)                       ->   x
    slice(cat([x, y], 2), 2, size of x, end)  ->   y
    slice(x, 2, 0, end)                       ->   x

    Caches of keys and values begin with something empty, grow by concatenation, and give back what was added. As
    in `RemoveCopies`, what is returned stays: a caller may write to it.
    """

    name: ClassVar[str] = "read-parts"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        changed = False
        for node in list(graph.graph.nodes):
            source = _source(node)
            if source is None or is_returned(node):
                continue
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            changed = True
        return program.with_graph(graph) if changed else program


def _source(node: fx.Node) -> fx.Node | None:
    """The tensor that the node has all of, and nothing else."""
    if node.target is aten.cat.default:
        parts = _parts(node)
        return parts[0] if len(parts) == 1 and _alike(parts[0], node) else None
    if node.target is not aten.slice.Tensor:
        return None
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    x, dim, first, last, step = given
    extent = x.meta["val"].shape[dim]
    if any(isinstance(number, fx.Node) for number in given[1:]) or step != 1:
        return None
    if not isinstance(extent, int):
        everything = first in (0, None) and (last is None or last == torch.iinfo(torch.int64).max)
        return x if everything else None
    start, end, _ = slice(first, last).indices(extent)
    return x if (start, end) == (0, extent) else _part(x, dim, start, end)


def _part(x: fx.Node, dim: int, start: int, end: int) -> fx.Node | None:
    """The part of a concatenation that takes exactly these places."""
    if x.target is not aten.cat.default or _dim(x) != dim % x.meta["val"].dim():
        return None
    position = 0
    for part in _parts(x):
        extent = part.meta["val"].shape[dim]
        if not isinstance(extent, int):
            return None
        if (position, position + extent) == (start, end):
            return part if part.meta["val"].dtype == x.meta["val"].dtype else None
        position += extent
    return None


def _dim(cat: fx.Node) -> int:
    dim: Any = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    rank: int = cat.meta["val"].dim()
    return int(dim) % rank


def _parts(cat: fx.Node) -> Sequence[fx.Node]:
    """Those that are not empty: PyTorch passes over a tensor of shape [0] whatever the others' shape."""
    parts: Any = cat.args[0]
    return [part for part in parts if tuple(part.meta["val"].shape) != (0,)]


def _alike(x: fx.Node, y: fx.Node) -> bool:
    before, after = x.meta["val"], y.meta["val"]
    return isinstance(before, Tensor) and before.dtype == after.dtype
