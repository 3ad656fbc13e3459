"""Measure, on the GPU, a layer in PyTorch and each kernel that could take its place."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.cuda.device import Device, fingerprint
from sparsecomp.codegen.cuda.families import FAMILIES, family_named, name_of
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.region import CudaRegion
from sparsecomp.codegen.cuda.runnable import Family, Runnable
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

LOG = logging.getLogger(__name__)
TRIED = 4
"""Kernels of a family that a compilation times; a search times all."""
PATTERN = RowBlocks(1)
"""In which the graph holds weights until a kernel packs them its own way."""


@dataclass(frozen=True)
class Place:
    """How long the fastest kernel of a family takes."""

    seconds: float
    kernel: Runnable | None = None
    """None of PyTorch's own operator."""


class CudaMeter:
    """Measures candidates for layers; what was measured before on this device is not measured again."""

    def __init__(self, target: Target, device: Device, timings: Timings) -> None:
        self.device, self.timings = device, timings
        self.name = fingerprint(target)
        self._doubted: set[Key] = set()

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """See `Cost`: PyTorch first, then one per family, with its best kernel or the reason it was refused."""
        case = Case(layer, matrix, self.device.gpu)
        refused = {family.name: self.refused(case, family.name) for family in FAMILIES}
        timed = self.timed(case, [name for name, why in refused.items() if why is None])
        found = [Candidate(DENSE, timed[DENSE].seconds, stored=matrix.numel())]
        nonzeros = int((matrix != 0).sum())
        for name, why in refused.items():
            if why is not None:
                found.append(Candidate(name, refused=why))
            elif timed[name].kernel is None:
                found.append(Candidate(name, refused="no kernel of it could be run; the log says why"))
            else:
                how = choice_of(timed[name].kernel)
                found.append(Candidate(str(how), timed[name].seconds, how=how, stored=nonzeros))
        return tuple(found)

    def refused(self, case: Case, name: str) -> str | None:
        """Why no kernel of the family is timed."""
        if case.layer.held_by:
            return f"its weight is also read by {case.layer.held_by}, which needs it dense"
        if case.matrix.numel() == 0:
            return "the weight is empty"
        return family_named(name).refused(case)

    def timed(self, case: Case, families: Sequence[str], most: int | None = TRIED) -> dict[str, Place]:
        """The best of each family, and PyTorch's own operator; if any was not measured before, all are in turn."""
        keys = {name: self.key(case, name) for name in (DENSE, *families)}
        known = {name: self._known(case, name, key) for name, key in keys.items()}
        if not self._doubted.intersection(keys.values()):
            found = {name: place for name, place in known.items() if place is not None}
            if len(found) == len(known):
                return found
        best = self._best(case, known, most)
        for name, place in best.items():
            before = known[name]
            if before and keys[name] in self._doubted and before.seconds < place.seconds:
                best[name] = before
            elif math.isfinite(place.seconds):
                self.put(case, name, place)
        self._doubted.difference_update(keys.values())
        return best

    def put(self, case: Case, name: str, place: Place) -> None:
        """This is the best of the family from now on."""
        schedule = str(schedule_of(place.kernel)) if place.kernel is not None else ""
        self.timings.put(self.key(case, name), place.seconds, schedule)

    def tried(self, case: Case, families: Sequence[Family]) -> set[Runnable]:
        """Kernels that were timed before, in any race."""
        return {
            kernel
            for family in families
            for kernel in family.kernels(case)
            if str(schedule_of(kernel)) in self.timings.trials(self.key(case, family.name))
        }

    def _known(self, case: Case, name: str, key: Key) -> Place | None:
        """What the database says, if that kernel is still one for the layer."""
        found = self.timings.get(key)
        if found is None or name == DENSE:
            return Place(found[0]) if found else None
        kernels = family_named(name).kernels(case)
        return next((Place(found[0], k) for k in kernels if str(schedule_of(k)) == found[1]), None)

    def _best(self, case: Case, known: Mapping[str, Place | None], most: int | None) -> dict[str, Place]:
        """Families known before run again with the kernel that was best, the others with their first `most`."""
        entrants: list[tuple[str, Runnable | None]] = []
        for name, before in known.items():
            if name == DENSE:
                entrants.append((DENSE, None))
            elif before is not None:
                entrants.append((name, before.kernel))
            else:
                entrants += [(name, kernel) for kernel in family_named(name).kernels(case)[:most]]
        best = {name: Place(math.inf) for name in known}
        for (name, kernel), seconds in self.race(case, entrants).items():
            if seconds < best[name].seconds:
                best[name] = Place(seconds, kernel)
        return best

    def race(
        self, case: Case, entrants: Sequence[tuple[str, Runnable | None]]
    ) -> dict[tuple[str, Runnable | None], float]:
        """Seconds of each (family, kernel), inf for one that does not run. The first is PyTorch's own operator."""
        x = example(case)
        runs = {entrant: self._contestant(case, entrant[1], x) for entrant in entrants}
        made = {entrant: run for entrant, run in runs.items() if run is not None}
        labels = [name_of(kernel) if kernel is not None else DENSE for _, kernel in made]
        timed = dict(zip(made, self.device.seconds(list(made.values()), labels), strict=True))
        self.timings.add(
            [
                Record("trial", self.key(case, name), seconds, str(schedule_of(kernel)))
                for (name, kernel), seconds in timed.items()
                if kernel is not None and math.isfinite(seconds)
            ]
        )
        return {entrant: timed.get(entrant, math.inf) for entrant in entrants}

    def _contestant(self, case: Case, kernel: Runnable | None, x: Tensor) -> Callable[[], Tensor] | None:
        """None for a kernel that cannot be made."""
        if kernel is None:
            return lambda: case.layer.dense(x, case.matrix)
        op = SectionOp("layer", case.layer, "x", "y")
        packed, how = pack(case.matrix, PATTERN), choice_of(kernel)
        body = Body(Section(("x",), (op,), ("y",), False), {"layer": packed}, {"layer": ()}, {"layer": how})
        try:
            region = CudaRegion(body, GpuStore(self.device.gpu), self.device)
        except Exception:
            LOG.warning("no kernel %s could be made for %s", name_of(kernel), case.layer.name, exc_info=True)
            return None
        return lambda: region.run([x])[0]

    def key(self, case: Case, name: str) -> Key:
        dtype = case.dtype_name
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
            ours, pytorch = prepare()
            times = self.device.seconds([partial(_first, pytorch), partial(_first, ours)], [DENSE, str(how)])
            for which, seconds in zip((rival, key), times, strict=True):
                if math.isfinite(seconds):
                    self.timings.put(which, seconds, "")
            return RegionTimes(times[1], times[0])
        return RegionTimes(known[0], known_rival[0])


def _first(run: Callable[[], object]) -> Tensor:
    """Of a region, its output."""
    found: Any = run()
    y: Tensor = found[0]
    return y


def schedule_of(kernel: Runnable) -> OnGpu:
    return OnGpu(name_of(kernel), kernel)


def choice_of(kernel: Runnable | None) -> RowsKernelChoice:
    assert kernel is not None
    return RowsKernelChoice(PATTERN, schedule_of(kernel))


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
