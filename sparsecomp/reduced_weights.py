"""Weights of a model in few bytes: where their values would be too many, what matters of them is where the zeros are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 4096
"""Elements of a tensor whose values are kept in any case: biases, the statistics of a norm."""
Described = dict[str, dict[str, Any]]
"""Name -> its form, as JSON: "values"; "pattern", a bit for each element; or "density", a number."""


def reduced(weights: Mapping[str, Tensor], limit: int) -> tuple[Described, dict[str, Tensor]]:
    """How each is kept, and what of it, in about `limit` bytes: all values; or the zeros of large tensors, as a pattern;
    or only how many they are."""
    large = {n: t for n, t in weights.items() if t.is_floating_point() and t.numel() > SMALL}
    if sum(tensor.nbytes for tensor in weights.values()) <= limit:
        large = {}
    form = "pattern" if sum(tensor.numel() for tensor in large.values()) <= 8 * limit else "density"
    described: Described = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name not in large:
            described[name] = {"form": "values"}
            kept[name] = tensor.clone(memory_format=torch.contiguous_format)
            continue
        count = int(tensor.count_nonzero())
        described[name] = {
            "form": form,
            "shape": list(tensor.shape),
            "density": count / tensor.numel(),
            "scale": tensor.float().norm().item() / max(1, count) ** 0.5,
        }
        if form == "pattern":
            kept[name] = torch.from_numpy(np.packbits((tensor != 0).reshape(-1).numpy()))
    return described, kept


def restored(
    described: Described, kept: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """The weights; where values were not kept, seeded random ones, with the zeros where they were or as many of them."""
    generator, weights = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, how in described.items():
        if how["form"] == "values":
            weights[name] = kept[name]
            continue
        shape = tuple(how["shape"])
        if how["form"] == "pattern":
            bits = np.unpackbits(kept[name].numpy(), count=math.prod(shape))
            mask = torch.from_numpy(bits).bool().reshape(shape)
        else:
            mask = torch.rand(shape, generator=generator) < how["density"]
        random = torch.randn(shape, generator=generator, dtype=torch.float32) * how["scale"]
        weights[name] = (random * mask).to(dtypes[name])
    return weights
