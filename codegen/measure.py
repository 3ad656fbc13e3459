"""Time, on this machine: a layer in PyTorch, and each kernel that could take its place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.compiled_region import LoweredRegion, compile_region
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.machine import Machine, machine_of
from sparsecomp.codegen.schedules import schedules
from sparsecomp.codegen.stream import Stream, make_stream
from sparsecomp.codegen.timings import Timings, key_of
from sparsecomp.errors import LoweringError
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack, stored_elements
from sparsecomp.region import RowsKernelChoice, Schedule, Section, SectionOp
from sparsecomp.target import Target

REPEATS = 9
EFFICIENCY = {1: 0.45, 2: 0.65, 4: 0.85, 8: 0.85}
"""Rough share of peak by rows per block; only says which patterns are not worth timing."""
NEARLY_ALL = 0.9
"""Share of the elements from which lists of columns have nothing to skip."""
HOPELESS = 1.35
"""A pattern is not timed if it must multiply so much more, after EFFICIENCY, than the best one."""


def seconds_of(run: Callable[[], object], repeats: int = REPEATS, budget: float = 0.25) -> float:
    """The fastest of several single runs, since other processes only ever add time. Between runs a buffer of
    the size of an L2 cache is written, as other layers would do."""
    evict = torch.empty(1 << 18)
    run()
    times: list[float] = []
    stop = time.perf_counter() + budget
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() < stop):
        evict.zero_()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


PROBES = {
    True: Layer("probe", "linear", "", (512, 512), (128, 512)),
    False: Layer("probe", "conv2d", "", (64, 64, 1, 1), (1, 64, 28, 28)),
}
"""Layers as large in as out, whose conversions are timed: by whether they work on tokens."""


class Meter:
    """Measures candidates for layers; what was measured before on this machine is not measured again."""

    def __init__(self, target: Target, threads: int, timings: Timings | None = None) -> None:
        self.machine: Machine = machine_of(target)
        self.threads = threads
        self.timings = timings if timings is not None else Timings.in_memory()
        self._found: dict[Layer, tuple[Candidate, ...]] = {}

    def dense(self, layer: Layer, matrix: Tensor) -> Candidate:
        """PyTorch's own operator on the example's shape."""
        key = key_of(self.machine, self.threads, layer, "dense")
        found = self.timings.get(key)
        if found is None:
            x, weight = layer.example(), matrix.contiguous()
            with torch.no_grad():
                found = (seconds_of(lambda: layer.dense(x, weight)), "")
            self.timings.put(key, *found)
        return Candidate(DENSE, found[0], stored=matrix.numel())

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """PyTorch first, then one per pattern, each with its best schedule or the reason it was refused.

        Asked again for a layer, as when some layers go back to PyTorch, the answer is the same."""
        if layer not in self._found:
            self._found[layer] = self._candidates(layer, matrix)
        return self._found[layer]

    def _candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        stored = {pattern: stored_elements(matrix, pattern) for pattern in PATTERNS}
        cost = {pattern: count / EFFICIENCY[pattern.rows] for pattern, count in stored.items()}
        refused = {pattern: self._refuses(layer, pattern) for pattern in PATTERNS}
        least = min((cost[pattern] for pattern in PATTERNS if not refused[pattern]), default=0.0)
        nonzeros = int((matrix != 0).sum())
        found = [self.dense(layer, matrix)]
        for pattern in PATTERNS:
            reason = refused[pattern] or _as_good_as_dense(pattern, stored, refused)
            if not reason and cost[pattern] > HOPELESS * least:
                times = stored[pattern] / max(1, nonzeros)
                reason = f"would multiply {times:.1f} times as many elements as are not zero"
            if reason:
                found.append(Candidate(str(pattern), refused=reason))
            else:
                found.append(self.best(layer, matrix, pattern))
        return tuple(found)

    def _refuses(self, layer: Layer, pattern: RowBlocks) -> str:
        if layer.groups > 1 and pattern.shared:
            return f"the {layer.groups} groups of the convolution read different channels"
        if layer.groups > 1 and layer.rows // layer.groups % pattern.rows:
            return f"blocks of {pattern.rows} rows would span two of the {layer.groups} groups"
        if pattern.rows > layer.rows:
            return f"the layer has only {layer.rows} rows"
        return ""

    def best(self, layer: Layer, matrix: Tensor, pattern: RowBlocks) -> Candidate:
        """The fastest schedule of a pattern."""
        geometry = source_geometry(single(layer))["layer"]
        stored = stored_elements(matrix, pattern)
        density = stored / max(1, matrix.numel())
        key = key_of(self.machine, self.threads, layer, str(pattern), density)
        found = self.timings.get(key)
        if found is None:
            packed, timed = pack(matrix, pattern), []
            for schedule in schedules(layer, geometry, pattern, self.machine):
                try:
                    stream = make_stream(packed, layer, geometry, schedule)
                except OverflowError as error:
                    return Candidate(str(pattern), refused=str(error))
                timed.append((self.kernel(layer, stream), str(schedule)))
            found = min(timed)
            self.timings.put(key, *found)
        how = RowsKernelChoice(pattern, parse_schedule(found[1]))
        return Candidate(str(how), found[0], how=how, stored=stored)

    def kernel(self, layer: Layer, stream: Stream) -> float:
        """Seconds of the kernel alone, without conversions, on the example's shape."""
        region = lay_out(single(layer), [RowsKernelChoice(stream.pattern, stream.schedule)], [stream.kept])
        # Not through the cache, which would keep the arena of every candidate.
        code = compile_region.__wrapped__(region, self.machine, kernels_only=True)
        lowered = LoweredRegion(code, [stream], [], lambda: self.threads)
        x = layer.example()
        with lowered.prepared([x], [torch.empty(layer.output_shape)]) as call:
            return seconds_of(call)

    def conversion(self, layer: Layer) -> float:
        """Seconds to bring the layer's output to PyTorch's layout and back: by size, from one measurement."""
        floats = math.prod(layer.output_shape)
        return self._seconds_per_float(layer.op == "linear") * floats

    def elementwise(self, layer: Layer) -> float:
        """Seconds PyTorch takes for one element-wise operator on the layer's output."""
        floats = math.prod(layer.output_shape)
        key = key_of(self.machine, self.threads, PROBES[True], "elementwise")
        found = self.timings.get(key)
        if found is None:
            x = torch.randn(1 << 18)
            found = (seconds_of(lambda: torch.relu(x)) / x.numel(), "")
            self.timings.put(key, *found)
        return found[0] * floats

    def region(self, run: Callable[[], object]) -> float:
        """Seconds of a whole region."""
        return seconds_of(run)

    def _seconds_per_float(self, tokens: bool) -> float:
        probe = PROBES[tokens]
        key = key_of(self.machine, self.threads, probe, "conversion")
        found = self.timings.get(key)
        if found is None:
            stream = make_stream(
                pack(torch.zeros(probe.rows, probe.columns), RowBlocks(1)),
                probe,
                source_geometry(single(probe))["layer"],
                Schedule(4, probe.columns),
            )
            how = RowsKernelChoice(RowBlocks(1), stream.schedule)
            region = lay_out(single(probe), [how], [0])
            lowered = LoweredRegion(compile_region(region, self.machine), [stream], [], lambda: self.threads)
            x = probe.example()
            both = seconds_of(lambda: lowered.run([x])) - self.kernel(probe, stream)
            found = (max(both, 0.0) / math.prod(probe.input_shape), "")
            self.timings.put(key, *found)
        return found[0]


def _as_good_as_dense(pattern: RowBlocks, stored: dict[RowBlocks, int], refused: dict[RowBlocks, str]) -> str:
    """Why lists of columns are not worth timing where they hold nearly every column."""
    dense = [stored[other] for other in PATTERNS if other.shared and not refused[other]]
    if pattern.shared or not dense or stored[pattern] <= NEARLY_ALL * max(dense):
        return ""
    return f"would keep {stored[pattern] / max(1, max(dense)):.0%} of the elements, which dense rows do without offsets"


def single(layer: Layer, epilogue: str = "") -> Section:
    """A section of one layer."""
    return Section(("x",), (SectionOp("layer", layer, "x", "y", epilogue),), ("y",))


def parse_schedule(text: str) -> Schedule:
    """Inverse of `str(schedule)`."""
    fields = {part[0]: int(part[1:]) for part in text.split()}
    return Schedule(fields["V"], fields["K"], fields.get("P", 0))


def best_kernel_seconds(layer: Layer, matrix: Tensor, rows_per_block: int) -> tuple[str, float]:
    """The best generated kernel of a pattern on one thread: its description and seconds.

    `rows_per_block` 1, 2, 4 or 8 keeps a list of columns per block; 0 runs the weight as dense.
    """
    patterns = [p for p in PATTERNS if (p.shared if rows_per_block == 0 else p == RowBlocks(rows_per_block))]
    if not patterns:
        raise LoweringError(f"no pattern has blocks of {rows_per_block} rows")
    meter = Meter(Target(), threads=1)
    found = min((meter.best(layer, matrix, p) for p in patterns), key=lambda c: c.seconds or float("inf"))
    assert found.seconds is not None
    return found.kernel, found.seconds
