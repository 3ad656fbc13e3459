"""Resident memory of one model, measured in a process of its own.

`python -m benchmarks.memory QUESTION OUT`: QUESTION is a `Question` as JSON; the `Usage` or the `Growth` that
answers it is written to the file OUT as JSON. `footprint.py` starts it. Linux alone tells what is needed here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.prune import prune
from benchmarks.rivals import eager
from benchmarks.workloads import WORKLOADS
from sparsecomp import compile_sparse
from sparsecomp.heap import trim
from sparsecomp.module import SparseModule

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CALLS = 5
"""In which the peak is looked for."""
BATCHES = (1, 2, 3, 4)
"""That alternate while growth is measured."""
WARMUP = 200
"""Calls before growth is measured: routes are learnt, allocators find their size."""


@dataclass(frozen=True)
class Question:
    """What is measured, of which model."""

    model: str
    pattern: str
    sparsity: float
    threads: int
    compiled: bool = True
    """False: the pruned model as it is."""
    small: bool = False
    calls: int = 0
    """Above 0 the growth over so many calls is asked for, else the usage."""


@dataclass(frozen=True)
class Usage:
    """Resident bytes at three moments, and of the packed weights."""

    libraries: int
    """Everything is imported, and a small variant of the model was compiled and dropped: some load late."""
    held: int
    """The model is made and pruned, or compiled as well and the original dropped; it was called once."""
    peak: int
    """The highest while it was called again."""
    weights: int = 0
    """Of converted layers that have zeros, as they are held: values, offsets and pointers."""
    dense_weights: int = 0
    """Of the same layers before."""

    @property
    def model_and_call(self) -> int:
        return self.peak - self.libraries

    @property
    def call(self) -> int:
        return self.peak - self.held


@dataclass(frozen=True)
class Growth:
    """Resident bytes before and after many calls of a compiled model, freed memory given back both times."""

    calls: int
    before: int
    after: int

    @property
    def bytes(self) -> int:
        return self.after - self.before


def usage(question: Question) -> Usage:
    """Of the model as it is, or compiled: what it takes beside the libraries, and what a call adds."""
    compiled_model(question.model, question.pattern, question.sparsity, small=True)
    libraries = resident()
    weights = dense_weights = 0
    if question.compiled:
        model = compiled_model(question.model, question.pattern, question.sparsity, question.small)
        pruned = [layer for layer in model.report.sparse_layers if layer.facts.density < 1]
        weights = sum(layer.nbytes for layer in pruned)
        dense_weights = sum(layer.dense_bytes for layer in pruned)
        run = eager(model, WORKLOADS[question.model].inputs(1, question.small, 0))
    else:
        original, inputs = WORKLOADS[question.model].make(small=question.small)
        prune(original, question.pattern, question.sparsity)
        run = eager(original, inputs)
    run()
    held = resident()
    forget_peak()
    for _ in range(CALLS):
        run()
    return Usage(libraries, held, peak_resident(), weights, dense_weights)


def growth(question: Question) -> Growth:
    """Of calls of a compiled model whose batch changes from each to the next."""
    model = compiled_model(
        question.model, question.pattern, question.sparsity, question.small, min_speedup=0.0
    )
    if not model.report.sparse_layers:
        raise RuntimeError(f"{question.model}: no layer was converted: {'; '.join(model.report.notes)}")
    inputs = WORKLOADS[question.model].inputs
    runs = [eager(model, inputs(batch, question.small, 0)) for batch in BATCHES]
    for index in range(WARMUP):
        runs[index % len(runs)]()
    before = resident()
    for index in range(question.calls):
        runs[index % len(runs)]()
    return Growth(question.calls, before, resident())


def compiled_model(
    name: str, pattern: str, sparsity: float, small: bool, min_speedup: float = 1.0
) -> SparseModule:
    """A workload pruned and compiled; nothing else holds the original."""
    model, inputs = WORKLOADS[name].make(small=small)
    prune(model, pattern, sparsity)
    threads = torch.get_num_threads()
    return compile_sparse(model, example_kwargs=inputs, threads=threads, min_speedup=min_speedup)


def resident() -> int:
    """Bytes of this process in memory, after what is free went back to the system."""
    trim()
    return _status("VmRSS")


def peak_resident() -> int:
    """The highest number of bytes since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak start from what is resident now."""
    CLEAR.write_text("5")


def _status(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) * 1024


def main() -> None:
    logging.disable(logging.WARNING)
    text, out = sys.argv[1:]
    question = Question(**json.loads(text))
    torch.set_num_threads(question.threads)
    answer = growth(question) if question.calls else usage(question)
    Path(out).write_text(json.dumps(dataclasses.asdict(answer)))


if __name__ == "__main__":
    main()
