"""Measure, on this machine, a layer in PyTorch and each kernel that could take its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.call import Call, grid_for, single
from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.lowered_region import LoweredRegion
from sparsecomp.codegen.machine import Machine, machine_of
from sparsecomp.codegen.pages import Pages
from sparsecomp.codegen.predict import CostModel, fit
from sparsecomp.codegen.schedules import candidates, few_tokens, only_few_tokens, parse_schedule
from sparsecomp.codegen.stopwatch import (
    Contestant,
    rest_of_the_model,
    seconds_in_turn,
    seconds_of,
)
from sparsecomp.codegen.stream import Stream, fits, make_stream
from sparsecomp.codegen.timings import Key, Timings, device_of, layer_key, region_key
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
        self._doubted: set[Key] = set()

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """PyTorch first, then one per pattern, each with its best schedule or the reason it was refused.

        Asked again for a layer, as when some layers go back to PyTorch, the answer is the same."""
        if layer not in self._found:
            self._found[layer] = self._candidates(layer, matrix)
        return self._found[layer]

    def _candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        call = Call.of(layer, matrix)
        refused, model = refusals(call, self.machine), self._model
        timed = self.timed(call, [pattern for pattern in refused if not refused[pattern]])
        return (
            Candidate(DENSE, timed[None][0], stored=matrix.numel()),
            *(
                Candidate(str(pattern), refused=why)
                if why
                else self._timed(call, pattern, timed[pattern], model)
                for pattern, why in refused.items()
            ),
        )

    @cached_property
    def _model(self) -> CostModel:
        """Fitted to what was measured on this device before the first layer is."""
        return fit(self.timings.all_trials(device_of(self.machine), self.threads), self.threads)

    def _timed(self, call: Call, pattern: RowBlocks, timed: Timed, model: CostModel) -> Candidate:
        """The pattern with its best schedule, and what the cost model says of it."""
        how = RowsKernelChoice(pattern, parse_schedule(timed[1]))
        return Candidate(
            str(how),
            timed[0],
            how=how,
            stored=call.stored[pattern],
            predicted=model.seconds(call.work(how, self.machine)),
            predicted_idle=model.seconds(call.idle_work(how, self.machine)),
        )

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        """Seconds of the best kernel with a list of columns for each `rows` rows; None where it is refused."""
        call, pattern = Call.of(layer, matrix), RowBlocks(rows)
        if _refuses(call, pattern, self.machine):
            return None
        key = call.key(self.machine, self.threads, pattern)
        found = self.timings.get(key)
        if found is None or key in self._doubted:
            self._doubted.discard(key)
            found = min(self._race(call, {pattern: None})[pattern], found or (math.inf, ""))
            self.timings.put(key, *found)
        return found[0]

    def doubt(self, layer: Layer, matrix: Tensor) -> None:
        """Measure the layer with a weight like this again when it is next asked for; the shorter time is kept."""
        call = Call.of(layer, matrix)
        self._doubted |= {call.key(self.machine, self.threads, pattern) for pattern in (None, *call.stored)}
        self._found.pop(layer, None)

    def timed(self, call: Call, patterns: Sequence[RowBlocks]) -> dict[RowBlocks | None, Timed]:
        """Seconds and best schedule of each pattern; under None, seconds of PyTorch's own operator. If any was
        not measured before, all are measured in turn."""
        keys = {pattern: call.key(self.machine, self.threads, pattern) for pattern in (None, *patterns)}
        found = {pattern: self.timings.get(key) for pattern, key in keys.items()}
        doubted = {pattern for pattern, key in keys.items() if key in self._doubted}
        if doubted or None in found.values():
            self._doubted.difference_update(keys[pattern] for pattern in doubted)
            known = {pattern: None if pattern in doubted else before for pattern, before in found.items()}
            for name, result in self._race(call, known).items():
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
        seconds = seconds_in_turn(
            [contestant for *_, contestant in entries], between_runs([call.layer], self.machine)
        )
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
        lowered = LoweredRegion(code, [stream.placed(Pages())], [], lambda: self.threads)
        return partial(
            lowered.prepared, [layer.example()], [torch.empty(layer.output_shape, dtype=torch.float32)]
        )

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
            between = between_runs([op.layer for op in body.section.layers], self.machine)
            seconds = alternating_seconds(*prepare(), between=between or (lambda: None))
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
                pack(torch.zeros(probe.rows, probe.columns, dtype=torch.float32), RowBlocks(1)),
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


def between_runs(layers: Sequence[Layer], machine: Machine) -> Callable[[], object] | None:
    """What empties the caches between runs of these layers; None where that is of no account."""
    few = [only_few_tokens(layer, machine) for layer in layers]
    return rest_of_the_model() if few and all(few) else None


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


def _as_good_as_dense(
    pattern: RowBlocks, stored: Mapping[RowBlocks, int], refused: Mapping[RowBlocks, str]
) -> str:
    """Why lists of columns are not worth timing where they hold nearly every column."""
    dense = [stored[other] for other in stored if other.shared and not refused[other]]
    if pattern.shared or not dense or stored[pattern] <= NEARLY_ALL * max(dense):
        return ""
    return f"would keep {stored[pattern] / max(1, max(dense)):.0%} of the elements, which dense rows do without offsets"
