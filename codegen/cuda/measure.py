"""Measure, on the GPU, a layer in PyTorch and each kernel that could take its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.cuda.device import Device, fingerprint
from sparsecomp.codegen.cuda.families import FAMILIES, family_named, name_of
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.region import CudaRegion
from sparsecomp.codegen.cuda.runnable import Runnable
from sparsecomp.codegen.cuda.weights import GpuStore
from sparsecomp.codegen.timings import Key, Record, Timings, call_of, versions
from sparsecomp.cost import RegionTimes, Rivals
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.program import Body
from sparsecomp.region import OnGpu, RowsKernelChoice
from sparsecomp.section import Section, SectionOp

if TYPE_CHECKING:
    from sparsecomp.target import Target

TRIED = 4
"""Kernels of a family that a compilation times; a search times all."""
PATTERN = RowBlocks(1)
"""In which the graph holds weights until a kernel packs them its own way."""


@dataclass(frozen=True)
class Place:
    """A kernel's answer for a layer: its seconds and its name, or the reason that there is none."""

    seconds: float
    label: str


class CudaMeter:
    """Measures candidates for layers; what was measured before on this device is not measured again."""

    def __init__(self, target: Target, device: Device, timings: Timings) -> None:
        self.device, self.timings = device, timings
        self.name = fingerprint(target)
        self._doubted: set[Key] = set()

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """See `Cost`: PyTorch first, then one per family, with its best kernel or the reason it was refused."""
        case = Case(layer, matrix, self.device.gpu)
        refused = {family.name: self._refused(case, family.name) for family in FAMILIES}
        timed = self.timed(case, [name for name, why in refused.items() if why is None])
        found = [Candidate(DENSE, timed[DENSE].seconds, stored=matrix.numel())]
        nonzeros = int((matrix != 0).sum())
        for name, why in refused.items():
            if why is not None:
                found.append(Candidate(name, refused=why))
            elif not math.isfinite(timed[name].seconds):
                found.append(Candidate(name, refused="no kernel of it could be made; the log says why"))
            else:
                how = choice_of(timed[name].label)
                found.append(Candidate(str(how), timed[name].seconds, how=how, stored=nonzeros))
        return tuple(found)

    def _refused(self, case: Case, name: str) -> str | None:
        if case.layer.held_by:
            return f"its weight is also read by {case.layer.held_by}, which needs it dense"
        if case.matrix.numel() == 0:
            return "the weight is empty"
        return family_named(name).refused(case)

    def timed(self, case: Case, families: Sequence[str], most: int | None = TRIED) -> dict[str, Place]:
        """The best of each family, and PyTorch's own operator; if any was not measured before, all are in turn."""
        keys = {name: self.key(case, name) for name in (DENSE, *families)}
        known = {name: self.timings.get(key) for name, key in keys.items()}
        if all(known.values()) and not self._doubted.intersection(keys.values()):
            return {name: Place(found[0], label_of(found[1])) for name, found in known.items() if found}
        best = self.race(case, families, known, most)
        for name, place in best.items():
            before = known[name]
            if before and keys[name] in self._doubted and before[0] < place.seconds:
                best[name] = Place(before[0], label_of(before[1]))
            elif math.isfinite(place.seconds):
                schedule = str(OnGpu(place.label)) if name != DENSE else ""
                self.timings.put(keys[name], place.seconds, schedule)
        self._doubted.difference_update(keys.values())
        return best

    def race(
        self,
        case: Case,
        families: Sequence[str],
        known: Mapping[str, tuple[float, str] | None],
        most: int | None,
    ) -> dict[str, Place]:
        """Families known before run again with the kernel that was best, the others with their first `most`."""
        x = example(case)
        entrants: list[tuple[str, str, Callable[[], object]]] = [
            (DENSE, DENSE, lambda: case.layer.dense(x, case.matrix))
        ]
        for name in families:
            before = known.get(name)
            kernels = family_named(name).kernels(case)
            if before:
                kernels = [kernel for kernel in kernels if name_of(kernel) == label_of(before[1])] or kernels
            for kernel in kernels[:most]:
                entrants.append((name, name_of(kernel), self._contestant(case, kernel, x)))
        seconds = self.device.seconds([run for *_, run in entrants], [label for _, label, _ in entrants])
        best: dict[str, Place] = {}
        records = []
        for (name, label, _), time in zip(entrants, seconds, strict=True):
            best[name] = min(best.get(name, Place(math.inf, "")), Place(time, label), key=lambda p: p.seconds)
            if name != DENSE:
                records.append(Record("trial", self.key(case, name), time, str(OnGpu(label))))
        self.timings.add(records)
        return best

    def _contestant(self, case: Case, kernel: Runnable, x: Tensor) -> Callable[[], object]:
        how = choice_of(name_of(kernel))
        op = SectionOp("layer", case.layer, "x", "y")
        body = Body(
            Section(("x",), (op,), ("y",), False),
            {"layer": pack(case.matrix, PATTERN)},
            {"layer": ()},
            {"layer": how},
        )
        region = CudaRegion(body, GpuStore(self.device.gpu), self.device)
        return lambda: region.run([x])

    def key(self, case: Case, name: str) -> Key:
        dtype = str(case.dtype).removeprefix("torch.")
        signature = "" if name == DENSE else structure(case.matrix)
        return Key(call_of(case.layer), name, signature, 0, self.name, versions(), dtype)

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        """See `Cost`: of whatever is the fastest, for unstructured weights."""
        if rows != 1:
            return None
        found = [c.seconds for c in self.candidates(layer, matrix) if c.how is not None and c.seconds]
        return min(found, default=None)

    def doubt(self, layer: Layer, matrix: Tensor) -> None:
        case = Case(layer, matrix, self.device.gpu)
        self._doubted |= {self.key(case, name) for name in (DENSE, *(family.name for family in FAMILIES))}

    def conversion(self, layer: Layer) -> float:
        """Tensors lie as PyTorch has them."""
        return 0.0

    def region(self, body: Body, prepare: Callable[[], Rivals]) -> RegionTimes:
        """See `Cost`: a layer with its epilogue, against the same operators of PyTorch."""
        (op,) = body.section.ops
        assert isinstance(op, SectionOp)
        values = body.packed[op.site].values
        how = body.how[op.site]
        dtype = str(values.dtype).removeprefix("torch.")
        what = f"{call_of(op.layer)} epilogue {op.epilogue or 'none'}"
        key = Key(what, "region", f"{how} {values.numel()}", 0, self.name, versions(), dtype)
        rival = replace(key, kernel=DENSE)
        known, known_rival = self.timings.get(key), self.timings.get(rival)
        if known is None or known_rival is None:
            ours, pytorch = self.device.seconds(prepare(), [str(how), DENSE])
            self.timings.put(key, ours, "")
            self.timings.put(rival, pytorch, "")
            return RegionTimes(ours, pytorch)
        return RegionTimes(known[0], known_rival[0])


def choice_of(label: str) -> RowsKernelChoice:
    return RowsKernelChoice(PATTERN, OnGpu(label))


def label_of(schedule: str) -> str:
    return schedule.removeprefix(str(OnGpu("")))


def example(case: Case) -> Tensor:
    """Random activations of the example's shape, of the weight's dtype and device."""
    return torch.randn(case.layer.input_shape).to(case.matrix)


def structure(matrix: Tensor) -> str:
    """What of the zeros a time depends on, rounded: weights that agree in it share what was measured."""
    used = matrix != 0
    counts = used.sum(dim=1)
    parts = [f"{matrix.shape[0]}x{matrix.shape[1]} kept {float(used.float().mean()):.3f}"]
    parts.append(f"fullest row {float(counts.max()) / max(1.0, float(counts.float().mean())):.1f}")
    for size in (8, 32, 64):
        parts.append(f"{size}x{size} {_blocks_kept(used, size, size):.2f}")
        parts.append(f"{size}x1 {_blocks_kept(used, size, 1):.2f}")
    return ", ".join(parts)


def _blocks_kept(used: Tensor, rows: int, columns: int) -> float:
    """Share of the blocks that hold something."""
    padded = torch.nn.functional.pad(used, (0, -used.shape[1] % columns, 0, -used.shape[0] % rows))
    tall = padded.reshape(-1, rows, padded.shape[1]).any(dim=1)
    return float(tall.reshape(len(tall), -1, columns).any(dim=2).float().mean())
