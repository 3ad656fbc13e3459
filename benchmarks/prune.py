"""Zeros for the benchmarks: magnitude pruning within each layer.

What stays dense, as everywhere in the field: stems (convolutions of 3 input channels), depthwise
convolutions, embeddings, and the classification or language model head. What is left of MobileNetV2 are its
1x1 convolutions, all of them.

"ssl" takes whole rows and columns out of AlexNet's five convolutions, the first among them, and of nothing
else; `alexnet.py` has the sparsities and says where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from benchmarks.alexnet import ALEXNET, CONVOLUTIONS

PATTERNS = ("none", "unstructured", "4x1", "2:4", "ssl")
HEADS = frozenset({"classifier", "lm_head", "qa_outputs", "score"})


def prune(model: nn.Module, pattern: str, sparsity: float) -> list[str]:
    """Zero the smallest weights of every layer of the backbone, in place; the names of those layers.

    What is kept is scaled up so that a layer's weight keeps its norm. Training would do that, and
    without it the activations of a random deep network fade until its outputs hardly depend on its input.
    """
    if pattern == "none":
        return []
    names = []
    masked = _rows_and_columns(model, sparsity) if pattern == "ssl" else _masked(model, pattern, sparsity)
    with torch.no_grad():
        for name, matrix, kept in masked:
            norm = matrix.norm()
            matrix.mul_(kept)
            matrix.mul_(norm / matrix.norm())
            names.append(name)
    return names


def only_sparsity(pattern: str, workload: str) -> float | None:
    """The one sparsity that a pattern has for a workload; None where it can have any."""
    if pattern == "ssl":
        return ALEXNET[workload].sparsity if workload in ALEXNET else None
    return {"none": 0.0, "2:4": 0.5}.get(pattern)


Masked = Iterator[tuple[str, Tensor, Tensor]]
"""Layers by name, their weights as outputs x inputs, and what of them is kept."""


def _masked(model: nn.Module, pattern: str, sparsity: float) -> Masked:
    for name, module in prunable(model):
        matrix = as_matrix(module)
        yield name, matrix, mask(matrix, pattern, sparsity)


def _rows_and_columns(model: nn.Module, sparsity: float) -> Masked:
    modules = dict(model.named_modules())
    found = [convolution for convolution in CONVOLUTIONS if convolution.name in modules]
    if not found:
        raise ValueError(f"ssl is known for {', '.join(ALEXNET)} alone: this model has no such layer")
    for convolution in found:
        if not math.isclose(sparsity, convolution.sparsity, abs_tol=0.005):
            raise ValueError(
                f"ssl leaves {convolution.name} a sparsity of {convolution.sparsity:.3f}, got {sparsity}"
            )
        matrix = as_matrix(modules[convolution.name])
        yield (
            convolution.name,
            matrix,
            rows_and_columns(matrix, convolution.row_sparsity, convolution.column_sparsity),
        )


def prunable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers whose weights may be pruned, by name."""
    for name, module in model.named_modules():
        if not HEADS.intersection(name.split(".")) and _has_prunable_weight(module):
            yield name, module


def _has_prunable_weight(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        is_depthwise = module.groups == module.in_channels
        return module.in_channels != 3 and not is_depthwise
    return isinstance(module, nn.Linear | Conv1D)


def as_matrix(module: nn.Module) -> Tensor:
    """A view of a layer's weight as outputs x inputs."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if isinstance(module, Conv1D) else weight.flatten(1)


def mask(matrix: Tensor, pattern: str, sparsity: float) -> Tensor:
    """True where a weight (outputs x inputs) is kept: the largest by magnitude that the pattern allows."""
    size = matrix.detach().abs()
    if pattern == "none":
        return torch.ones_like(size, dtype=torch.bool)
    if pattern == "unstructured":
        return _largest(size, sparsity)
    if pattern == "4x1":
        group = torch.arange(size.shape[0]) // 4
        shared = torch.zeros(int(group[-1]) + 1, size.shape[1]).index_add_(0, group, size)
        return _largest(shared, sparsity)[group]
    if pattern == "2:4":
        if sparsity != 0.5:
            raise ValueError(f"2:4 keeps half of the weights: its sparsity is 0.5, got {sparsity}")
        return _two_of_four(size)
    if pattern == "ssl":
        raise ValueError("ssl has sparsities for layers that it knows: see rows_and_columns")
    raise ValueError(f"unknown pattern {pattern!r}: choose one of {', '.join(PATTERNS)}")


def rows_and_columns(matrix: Tensor, row_sparsity: float, column_sparsity: float) -> Tensor:
    """True where a weight (outputs x inputs) is kept: in the rows and in the columns of the largest norms."""
    rows = _largest(matrix.detach().norm(dim=1), row_sparsity)
    columns = _largest(matrix.detach().norm(dim=0), column_sparsity)
    return rows[:, None] & columns


def _largest(size: Tensor, sparsity: float) -> Tensor:
    kept = round((1 - sparsity) * size.numel())
    chosen = torch.zeros(size.numel(), dtype=torch.bool)
    chosen[size.flatten().topk(kept, sorted=False).indices] = True
    return chosen.reshape(size.shape)


def _two_of_four(size: Tensor) -> Tensor:
    rows, columns = size.shape
    padded = F.pad(size, (0, -columns % 4), value=-1.0)  # what fills up the last four never wins
    fours = padded.reshape(rows, -1, 4)
    chosen = torch.zeros_like(fours, dtype=torch.bool)
    chosen.scatter_(2, fours.topk(2, dim=2).indices, True)
    return chosen.reshape(rows, -1)[:, :columns]
