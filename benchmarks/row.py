"""One row of the table of models, measured in a process of its own.

`python -m benchmarks.row CASE OUT`: CASE is a `Case` as JSON; the `Row` is written to the file OUT as
JSON. `models.py` starts it, with the number of threads in the environment before torch is imported.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.machine import Machine
from benchmarks.prune import prune
from benchmarks.rivals import DENSE_RIVALS, Rival, Run, eager, sparsecomp, sparsecomp_dense
from benchmarks.workloads import WORKLOADS
from sparsecomp.alternate import Times, alternate

TOLERANCE = 1e-4
"""The error above which an output is wrong, and its time means nothing."""
NEVER_SLOWER = 0.97
"""Of the speed of eager, that every compiled model must reach."""
NOISY = 0.3
"""Interquartile range over median, above which something else must have run on the machine."""
OURS = "sparsecomp"
OWN_DENSE = "sparsecomp, dense"
"""Our kernels on the weights before pruning: only in rows of "ssl", whose paper compares GEMM with GEMM."""


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    model: str
    pattern: str
    sparsity: float
    threads: int
    batch: int = 1
    rivals: bool = True
    """False: only sparsecomp against eager, both on the pruned weights."""
    small: bool = False
    rounds: int = dataclasses.field(default=20, compare=False)

    def __str__(self) -> str:
        size = "small " if self.small else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{size}{self.model}, {self.pattern} {self.sparsity:.0%}, batch {self.batch}, {threads}"


@dataclass(frozen=True)
class Outcome:
    """What became of one contestant."""

    times: Times | None
    """None when it failed or its output was wrong."""
    error: float | None
    """max|y - y0| / max|y0| against eager on the same weights, the worst of all outputs."""
    preparation: float
    """Seconds to compile, export or load."""
    failure: str = ""
    """Why it has no times."""


@dataclass(frozen=True)
class Row:
    case: Case
    outcomes: Mapping[str, Outcome]
    machine: Machine
    date: str
    failure: str = ""
    """Why the whole process gave nothing."""

    @property
    def best_dense(self) -> tuple[str, float] | None:
        """The fastest of those that run the dense weights, and its median in seconds."""
        medians = {name: self._median(name) for name in DENSE_RIVALS}
        timed = [(name, seconds) for name, seconds in medians.items() if seconds is not None]
        return min(timed, key=lambda pair: pair[1], default=None)

    @property
    def over_best_dense(self) -> float | None:
        """How many times as fast as the best dense peer we are."""
        ours = self._median(OURS)
        return self.best_dense[1] / ours if self.best_dense and ours else None

    @property
    def over_own_dense(self) -> float | None:
        """How many times as fast as our own kernels on the dense weights we are: GEMM against GEMM."""
        ours, own = self._median(OURS), self._median(OWN_DENSE)
        return own / ours if own and ours else None

    @property
    def over_eager(self) -> float | None:
        """How many times as fast as eager on the same pruned weights we are."""
        ours, own = self._median(OURS), self._median("eager")
        return own / ours if own and ours else None

    @property
    def verdict(self) -> str:
        """Whether the promise of never being slower is kept."""
        ours = self.outcomes.get(OURS)
        if self.failure or ours is None or (ours.failure and ours.error is None):
            return "FAILED"
        if self.over_eager is None:
            return "WRONG"
        return "ok" if self.over_eager >= NEVER_SLOWER else "SLOWER"

    @property
    def is_noisy(self) -> bool:
        """Whether the ratio to eager had better be measured again."""
        timed = [self.outcomes[name].times for name in ("eager", OURS) if name in self.outcomes]
        return any(times.iqr > NOISY * times.median for times in timed if times)

    def _median(self, name: str) -> float | None:
        outcome = self.outcomes.get(name)
        return outcome.times.median if outcome and outcome.times else None

    @staticmethod
    def of(data: Mapping[str, Any]) -> Row:
        """From what `dataclasses.asdict` made of a row."""
        outcomes = {
            name: Outcome(**{**found, "times": Times(**found["times"]) if found["times"] else None})
            for name, found in data["outcomes"].items()
        }
        machine = Machine(**data["machine"])
        return Row(Case(**data["case"]), outcomes, machine, data["date"], data["failure"])

    @staticmethod
    def failed(case: Case, reason: str) -> Row:
        return Row(case, {}, Machine.here(), now(), reason)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def measure(case: Case) -> Row:
    """Prepare, check and time every contestant of a row, in this process."""
    torch.set_num_threads(case.threads)
    model, inputs = WORKLOADS[case.model].make(case.batch, case.small)
    pruned = copy.deepcopy(model) if case.rivals else model
    prune(pruned, case.pattern, case.sparsity)
    contestants: dict[str, tuple[Rival, nn.Module]] = {
        "eager": (eager, pruned),
        OURS: (sparsecomp, pruned),  # before the rivals: it measures, and their idle threads may spin
    }
    if case.rivals:
        contestants |= {OWN_DENSE: (sparsecomp_dense, model)} if case.pattern == "ssl" else {}
        contestants |= {name: (rival, model) for name, rival in DENSE_RIVALS.items()}
    prepared = {name: _prepare(rival, on, inputs) for name, (rival, on) in contestants.items()}
    runs = {name: run for name, (_, run) in prepared.items() if run is not None}
    duration = 1.0 if case.small else 5.0
    times = alternate(runs, case.rounds, duration, pause=0.02 if case.threads > 1 else 0.0)
    outcomes = {
        name: dataclasses.replace(outcome, times=times.get(name)) for name, (outcome, _) in prepared.items()
    }
    return Row(case, outcomes, Machine.here(), now())


def _prepare(rival: Rival, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Outcome, Run | None]:
    """The contestant's call, or None with the reason why it cannot be timed."""
    start = time.perf_counter()
    try:
        run = rival(model, inputs)
        preparation = time.perf_counter() - start
        error = difference(run(), eager(model, inputs)())
    except Exception as raised:  # noqa: BLE001 (whatever a rival raises belongs into the table)
        return Outcome(None, None, time.perf_counter() - start, _reason(raised)), None
    if not error <= TOLERANCE:
        return Outcome(None, error, preparation, f"wrong output, error {error:.1e}"), None
    return Outcome(None, error, preparation), run


def _reason(raised: BaseException) -> str:
    """What went wrong first: exporters wrap it in pages of advice."""
    while raised.__cause__ is not None:
        raised = raised.__cause__
    return f"{type(raised).__name__}: {raised}".strip()


def difference(found: object, wanted: object) -> float:
    """max|y - y0| / max|y0| of the worst output; infinite where the outputs do not correspond."""
    pairs = (_tensors(found), _tensors(wanted))
    if [y.shape for y in pairs[0]] != [y.shape for y in pairs[1]]:
        return float("inf")
    return max(float((y - y0).abs().max() / y0.abs().max()) for y, y0 in zip(*pairs, strict=True))


def _tensors(output: object) -> list[Tensor]:
    return [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(output)]


def main() -> None:
    logging.disable(logging.WARNING)
    case, out = sys.argv[1:]
    row = measure(Case(**json.loads(case)))
    Path(out).write_text(json.dumps(dataclasses.asdict(row)))


if __name__ == "__main__":
    main()
