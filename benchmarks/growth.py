"""Resident memory of compiled models called for hours: `python -m benchmarks.growth --hours 2`.

Small variants, pruned to 90 % unstructured, are called in turn with batches and sizes that change from call to call; some
sizes are beyond the graphs that a module keeps, and run layer by layer. From the start of the second fifth on a line is
fitted to what is resident, freed memory given back: its slope is what a server would grow by. Written are the slope and
all samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import Machine
from benchmarks.memory import BATCHES, STATUS, compiled_model, resident
from benchmarks.rivals import Run, eager
from benchmarks.row import now
from benchmarks.store import RESULTS, write_json
from benchmarks.workloads import WORKLOADS, Inputs
from sparsecomp.module import MAX_VARIANTS

MIB = 1 << 20
SIZES = MAX_VARIANTS + 2
"""Token counts, or heights of images, that take turns."""
SAMPLES = 200
SETTLING = 0.2
"""Share of the time in which allocators find their size."""


CALLING = 10
"""Times as long as a sample takes, calls go on before the next."""


@dataclass(frozen=True)
class Sample:
    seconds: float
    calls: int
    resident: int
    """Bytes."""


@dataclass(frozen=True)
class Course:
    """What was resident while models were called."""

    models: tuple[str, ...]
    samples: tuple[Sample, ...]

    @property
    def settled(self) -> tuple[Sample, ...]:
        start = self.samples[-1].seconds * SETTLING
        return tuple(sample for sample in self.samples if sample.seconds >= start)

    @property
    def bytes_per_hour(self) -> float:
        """Slope of the line of least squares through the settled samples."""
        x = np.array([sample.seconds for sample in self.settled]) / 3600
        y = np.array([sample.resident for sample in self.settled], dtype=float)
        return float(np.polyfit(x, y, 1)[0])

    @property
    def bytes_per_call(self) -> float:
        first, last = self.settled[0], self.settled[-1]
        calls_per_hour = (last.calls - first.calls) / (last.seconds - first.seconds) * 3600
        return self.bytes_per_hour / calls_per_hour

    def __str__(self) -> str:
        first, last = self.settled[0], self.settled[-1]
        return (
            f"{', '.join(self.models)}: {last.calls} calls in {last.seconds:.0f} s; resident {first.resident / MIB:.1f} MiB "
            f"after {first.seconds:.0f} s, {last.resident / MIB:.1f} in the end; slope {self.bytes_per_hour / MIB:+.2f} MiB an "
            f"hour, {self.bytes_per_call:+.2f} bytes a call"
        )


def sized(inputs: Inputs, number: int) -> Inputs:
    """The inputs with fewer tokens, or lower images; of features alone as they are."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return tensor[:, :, : tensor.shape[2] - 2 * number].contiguous()
        if tensor.dim() == 2 and not tensor.is_floating_point():
            return tensor[:, : tensor.shape[1] - number].contiguous()
        return tensor

    return {name: cut(tensor) for name, tensor in inputs.items()}


def calls_of(model: str) -> list[Run]:
    """Of a compiled model, one of each batch and size."""
    compiled = compiled_model(model, "unstructured", 0.9, small=True, min_speedup=0.0)
    inputs = WORKLOADS[model].inputs
    return [
        eager(compiled, sized(inputs(batch, True, 0), number)) for number in range(SIZES) for batch in BATCHES
    ]


def course(models: Sequence[str], seconds: float) -> Course:
    """Call the models for so long, each call seen once before."""
    runs = list(itertools.chain.from_iterable(zip(*map(calls_of, models), strict=True)))
    for run in runs:
        run()
    return Course(tuple(models), tuple(_samples(runs, seconds)))


def _samples(runs: Sequence[Run], seconds: float) -> Iterator[Sample]:
    start, calls, due = time.monotonic(), 0, 0.0
    while True:
        passed = time.monotonic() - start
        if passed >= due or passed >= seconds:
            yield Sample(passed, calls, resident())
            took = time.monotonic() - start - passed  # garbage is collected first
            due = passed + max(seconds / SAMPLES, CALLING * took)
        if passed >= seconds:
            return
        runs[calls % len(runs)]()
        calls += 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=["bert-base", "resnet-50"])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    return parser.parse_args(arguments)


def main() -> None:
    if not STATUS.exists():
        sys.exit("resident memory is read from /proc: this needs Linux")
    options = parse(sys.argv[1:])
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    found = course(options.models, options.hours * 3600)
    print(found)
    machine = dataclasses.asdict(Machine.here())
    content = {"machine": machine, "date": now(), "threads": options.threads, "models": list(found.models)}
    slopes = {"bytes_per_hour": found.bytes_per_hour, "bytes_per_call": found.bytes_per_call}
    samples = [dataclasses.astuple(sample) for sample in found.samples]
    write_json(options.out, content | slopes | {"seconds, calls, bytes": samples})


if __name__ == "__main__":
    main()
