"""Sparsity from training: SSL's group lasso, gradual magnitude pruning, RigL, with PyTorch's own loops.

from sparsecomp import train

ssl = train.GroupLasso(model, {"filter": 1e-3, "channel": 1e-3})
for x, y in data:
    loss(model(x), y).backward()
    optimizer.step()
    ssl.step(optimizer)
    optimizer.zero_grad()
"""

from sparsecomp.train.distribution import layer_sparsities
from sparsecomp.train.gradual import GradualPruning
from sparsecomp.train.group_lasso import GroupLasso
from sparsecomp.train.masks import Masks
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.rigl import RigL
from sparsecomp.train.schedule import CosineSchedule, CubicSchedule

__all__ = [
    "CosineSchedule",
    "CubicSchedule",
    "GradualPruning",
    "GroupLasso",
    "Masks",
    "Pattern",
    "RigL",
    "layer_sparsities",
]
