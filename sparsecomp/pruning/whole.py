"""Whole models, compiled and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsecomp.front import compile_sparse
from sparsecomp.speed import alternating_seconds
from sparsecomp.target import Target

ROUNDS, BUDGET = 15, 3.0
"""Runs of each in turn, and seconds for both together."""


@dataclass(frozen=True)
class DenseTimes:
    """Seconds of the dense model on the example, by PyTorch and compiled by this library."""

    eager: float
    compiled: float


class ModelClock:
    """Compiles models and times them, each in turn with the dense one: the clock of a machine moves within an hour,
    and what holds later is the ratio."""

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Target,
        threads: int,
        known: DenseTimes | None = None,
    ) -> None:
        """known: as an earlier run measured it; the dense model is then compiled when it is needed."""
        self._model, self._args, self._kwargs = model, args, kwargs
        self._target, self._threads = target, threads
        self._compiled: nn.Module | None = None
        self._dense = known

    def dense(self) -> DenseTimes:
        if self._dense is None:
            eager, compiled = self._alternating(self._model, self._compiled_dense())
            self._dense = DenseTimes(eager, compiled)
        return self._dense

    def seconds(self, model: nn.Module) -> float:
        """Of the model, compiled, on the example: relative to the dense one, in its seconds of `dense()`."""
        dense = self.dense().compiled
        now, found = self._alternating(self._compiled_dense(), self._compile(model))
        return found * dense / now

    def _compile(self, model: nn.Module) -> nn.Module:
        return compile_sparse(model, self._args, self._kwargs, target=self._target, threads=self._threads)

    def _compiled_dense(self) -> nn.Module:
        if self._compiled is None:
            self._compiled = self._compile(self._model)
        return self._compiled

    def _alternating(self, first: nn.Module, second: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            return alternating_seconds(self._call(first), self._call(second), ROUNDS, BUDGET)

    def _call(self, model: nn.Module) -> Callable[[], object]:
        return lambda: model(*self._args, **self._kwargs)
