"""Whole models, compiled and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from sparsecomp.front import compile_sparse
from sparsecomp.speed import alternating_runs
from sparsecomp.target import Target

ROUNDS, BUDGET = 41, 10.0
"""Runs of each in turn, and seconds for both together. On a shared machine with two threads, of a BERT-base and a
pruned one, the ratio of the fastest of 12 runs scattered between 2.5 and 3.1, the median of 25 ratios of
neighbours between 2.6 and 2.7, but for one turn in ten."""


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
            self._dense = DenseTimes(*map(median, self._alternating(self._model, self._compiled_dense())))
        return self._dense

    def seconds(self, model: nn.Module) -> float:
        """Of the model, compiled, on the example: relative to the dense one, in its seconds of `dense()`."""
        dense = self.dense().compiled
        runs = self._alternating(self._compiled_dense(), self._compile(model))
        return dense * median(found / now for now, found in zip(*runs, strict=True))

    def _compile(self, model: nn.Module) -> nn.Module:
        return compile_sparse(model, self._args, self._kwargs, target=self._target, threads=self._threads)

    def _compiled_dense(self) -> nn.Module:
        if self._compiled is None:
            self._compiled = self._compile(self._model)
        return self._compiled

    def _alternating(self, first: nn.Module, second: nn.Module) -> tuple[list[float], list[float]]:
        calls = self._call(first), self._call(second)
        with torch.no_grad():
            for call in calls:
                call()  # fills caches, starts threads
            return alternating_runs(*calls, ROUNDS, BUDGET)

    def _call(self, model: nn.Module) -> Callable[[], object]:
        return lambda: model(*self._args, **self._kwargs)
