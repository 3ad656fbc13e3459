"""Decide, once, what attention masks hide that depend on nothing but sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.constants import evaluate, is_constant
from sparsecomp.program import Program

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
VIEWS = (aten.expand.default, aten.alias.default, aten.clone.default)
"""What may stand between a mask and the attention that reads it, and hides nothing more."""


@dataclass(frozen=True)
class SettleMasks:
    """attention(q, k, v, mask that is true everywhere)   ->   attention(q, k, v)
    attention(q, k, v, lower triangle)                  ->   attention(q, k, v, is_causal=True)

    Models compute masks from positions at every call. For one new token all earlier ones are seen.
    """

    name: ClassVar[str] = "settle-masks"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        known: dict[fx.Node, Tensor | None] = {}
        settled = [node for node in graph.graph.nodes if node.target is SDPA and _settle(graph, node, known)]
        return program.with_graph(graph) if settled else program


def _settle(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Tensor | None]) -> bool:
    bound = node.normalized_arguments(graph, normalize_to_only_use_kwargs=True)
    if bound is None or not isinstance(bound.kwargs.get("attn_mask"), fx.Node):
        return False
    options: dict[str, Any] = dict(bound.kwargs)
    mask = options["attn_mask"]
    while mask.target in VIEWS:
        mask = mask.args[0]
    if mask not in known:
        known[mask] = evaluate(graph, mask) if is_constant(mask, attributes=False) else None
    hides = _hides(known[mask])
    if hides is None:
        return False
    options["attn_mask"] = None
    options["is_causal"] = hides == "what comes later"
    first = tuple(
        options.pop(name) for name in ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    )
    node.args, node.kwargs = first, options
    return True


def _hides(mask: Tensor | None) -> str | None:
    """What the mask hides of the keys, if a word says it."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    if bool(seen.all()):
        return "nothing"
    square = mask.dim() >= 2 and seen.shape[-1] == seen.shape[-2] and seen.numel() == seen.shape[-1] ** 2
    if square and mask.dtype == torch.bool and bool((seen == torch.ones_like(seen).tril()).all()):
        return "what comes later"
    return None
