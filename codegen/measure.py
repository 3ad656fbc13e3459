"""Measure, on this machine, a layer in PyTorch and each kernel that could take its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.call import Call, grid_for, single
from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.lowered_region import LoweredRegion
from sparsecomp.codegen.machine import Machine, machine_of
from sparsecomp.codegen.schedules import candidates, few_tokens, only_few_tokens, parse_schedule
from sparsecomp.codegen.stopwatch import Contestant, seconds_in_turn, seconds_of
from sparsecomp.codegen.stream import Stream, fits, make_stream
from sparsecomp.codegen.timings import Timings, layer_key, region_key
from sparsecomp.cost import RegionTimes, Rivals
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.program import Body
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.speed import alternating_seconds
from sparsecomp.target import Target

Timed = tuple[float, str]
"""Seconds, and the schedule that took them."""
EFFICIENCY = {1: 0.45, 2: 0.65, 4: 0.85, 8: 0.85}
"""Rough share of peak by rows per block; only says which patterns are not worth timing."""
NEARLY_ALL = 0.9
"""Share of the elements from which lists of columns have nothing to skip."""
HOPELESS = 1.35
"""A pattern is not timed if it must multiply so much more, after EFFICIENCY, than the best one."""


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

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """PyTorch first, then one per pattern, each with its best schedule or the reason it was refused.

        Asked again for a layer, as when some layers go back to PyTorch, the answer is the same."""
        if layer not in self._found:
            self._found[layer] = self._candidates(layer, matrix)
        return self._found[layer]

    def _candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        call = Call.of(layer, matrix)
        stored, refused = call.stored, refusals(call, self.machine)
        timed = self.timed(call, [pattern for pattern in stored if not refused[pattern]])
        return (
            Candidate(DENSE, timed[None][0], stored=matrix.numel()),
            *(_candidate(pattern, refused[pattern], stored, timed) for pattern in stored),
        )

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        """Seconds of the best kernel with a list of columns for each `rows` rows; None where it is refused."""
        call, pattern = Call.of(layer, matrix), RowBlocks(rows)
        if _refuses(call, pattern, self.machine):
            return None
        key = call.key(self.machine, self.threads, pattern)
        found = self.timings.get(key)
        if found is None:
            found = self._race(call, {pattern: None})[pattern]
            self.timings.put(key, *found)
        return found[0]

    def timed(self, call: Call, patterns: Sequence[RowBlocks]) -> dict[RowBlocks | None, Timed]:
        """Seconds and best schedule of each pattern; under None, seconds of PyTorch's own operator. If any was
        not measured before, all are measured in turn."""
        keys = {pattern: call.key(self.machine, self.threads, pattern) for pattern in (None, *patterns)}
        found = {pattern: self.timings.get(key) for pattern, key in keys.items()}
        if None in found.values():
            for name, result in self._race(call, found).items():
                if result < (found[name] or (math.inf, "")):
                    found[name] = result
                    self.timings.put(keys[name], *result)
        return {pattern: result for pattern, result in found.items() if result is not None}

    def _race(
        self, call: Call, known: Mapping[RowBlocks | None, Timed | None]
    ) -> dict[RowBlocks | None, Timed]:
        """The best of each pattern. Those known before run again with the schedule that was best: times of two
        different moments are not to be compared."""
        entries = [
            (pattern, schedule, contestant)
            for pattern, before in known.items()
            for schedule, contestant in self._contestants(call.layer, call.matrix, pattern, before)
        ]
        seconds = seconds_in_turn([contestant for *_, contestant in entries])
        self.timings.add(
            [
                call.trial(
                    self.machine, self.threads, RowsKernelChoice(pattern, parse_schedule(schedule)), time
                )
                for (pattern, schedule, _), time in zip(entries, seconds, strict=True)
                if pattern is not None
            ]
        )
        best: dict[RowBlocks | None, Timed] = {}
        for (pattern, schedule, _), time in zip(entries, seconds, strict=True):
            best[pattern] = min(best.get(pattern, (math.inf, "")), (time, schedule))
        return best

    def _contestants(
        self, layer: Layer, matrix: Tensor, pattern: RowBlocks | None, before: Timed | None
    ) -> Iterator[tuple[str, Contestant]]:
        """The schedules of the pattern, or that which was best before; for None PyTorch's own operator."""
        if pattern is None:
            x, weight = layer.example(), matrix.contiguous()
            yield "", lambda: nullcontext(lambda: layer.dense(x, weight))
            return
        geometry = source_geometry(single(layer))["layer"]
        packed = pack(matrix, pattern, layer.groups)
        wanted = candidates(layer, geometry, pattern, self.machine)
        for schedule in [parse_schedule(before[1])] if before else wanted:
            yield (
                str(schedule),
                self.kernel(layer, make_stream(packed, layer, grid_for(schedule, geometry), schedule)),
            )

    def kernel(self, layer: Layer, stream: Stream) -> Contestant:
        """The kernel alone, without conversions, on the example's shape."""
        how = RowsKernelChoice(stream.pattern, stream.schedule)
        region = lay_out(single(layer, tokens_first=how.tokens_first), [how], [stream.kept])
        # Not through the cache, which would keep the arena of every candidate.
        code = compile_region.__wrapped__(region, self.machine, kernels_only=True)
        lowered = LoweredRegion(code, [stream], [], lambda: self.threads)
        return partial(lowered.prepared, [layer.example()], [torch.empty(layer.output_shape)])

    def conversion(self, layer: Layer) -> float:
        """Seconds to bring the layer's output to PyTorch's layout and back: by size, from one measurement."""
        floats = math.prod(layer.output_shape)
        return self._seconds_per_float(layer.op == "linear") * floats

    def region(self, body: Body, prepare: Callable[[], Rivals]) -> RegionTimes:
        """Of a whole region and its operators in PyTorch, in turn. Only what was not measured before is prepared,
        and run."""
        key = region_key(self.machine, self.threads, body)
        rival = replace(key, kernel=DENSE)
        known, known_rival = self.timings.get(key), self.timings.get(rival)
        if known is None or known_rival is None:
            seconds = alternating_seconds(*prepare())
            known, known_rival = ((time, "") for time in seconds)
            self.timings.put(key, *known)
            self.timings.put(rival, *known_rival)
        return RegionTimes(known[0], known_rival[0])

    def _seconds_per_float(self, tokens: bool) -> float:
        probe = PROBES[tokens]
        key = layer_key(self.machine, self.threads, probe, "conversion")
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
            with self.kernel(probe, stream)() as kernel:
                both = seconds_of(lambda: lowered.run([x])) - seconds_of(kernel)
            found = (max(both, 0.0) / math.prod(probe.input_shape), "")
            self.timings.put(key, *found)
        return found[0]


def refusals(call: Call, machine: Machine) -> dict[RowBlocks, str]:
    """Why each pattern is not worth timing; "" where it is."""
    stored = call.stored
    cost = {pattern: count / EFFICIENCY[pattern.rows] for pattern, count in stored.items()}
    refused = {pattern: _refuses(call, pattern, machine) for pattern in stored}
    least = min((cost[pattern] for pattern in stored if not refused[pattern]), default=0.0)
    for pattern in stored:
        refused[pattern] = refused[pattern] or _as_good_as_dense(pattern, stored, refused)
        if not refused[pattern] and cost[pattern] > HOPELESS * least:
            times = stored[pattern] / max(1, call.nonzeros)
            refused[pattern] = f"would multiply {times:.1f} times as many elements as are not zero"
    return refused


def _refuses(call: Call, pattern: RowBlocks, machine: Machine) -> str:
    layer = call.layer
    if pattern.live_first and call.dead_rows < pattern.rows:
        return f"{call.dead_rows} rows have no weight"
    if only_few_tokens(layer, machine) and not few_tokens(layer, pattern, machine):
        return f"its vectors of tokens would be nearly empty: there are {layer.output_size[1]}"
    if layer.groups > 1 and pattern.shared:
        return f"the {layer.groups} groups of the convolution read different channels"
    if layer.groups > 1 and layer.rows // layer.groups % pattern.rows:
        return f"blocks of {pattern.rows} rows would span two of the {layer.groups} groups"
    if pattern.rows > layer.rows:
        return f"the layer has only {layer.rows} rows"
    return "" if fits(layer, call.geometry) else "its offsets exceed 32 bits"


def _candidate(
    pattern: RowBlocks, refused: str, stored: Mapping[RowBlocks, int], timed: Mapping[RowBlocks | None, Timed]
) -> Candidate:
    if refused:
        return Candidate(str(pattern), refused=refused)
    seconds, schedule = timed[pattern]
    how = RowsKernelChoice(pattern, parse_schedule(schedule))
    return Candidate(str(how), seconds, how=how, stored=stored[pattern])


def _as_good_as_dense(
    pattern: RowBlocks, stored: Mapping[RowBlocks, int], refused: Mapping[RowBlocks, str]
) -> str:
    """Why lists of columns are not worth timing where they hold nearly every column."""
    dense = [stored[other] for other in stored if other.shared and not refused[other]]
    if pattern.shared or not dense or stored[pattern] <= NEARLY_ALL * max(dense):
        return ""
    return f"would keep {stored[pattern] / max(1, max(dense)):.0%} of the elements, which dense rows do without offsets"
