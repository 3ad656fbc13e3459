"""What was measured on this machine, kept on disk: one line of JSON a measurement, safe for several writers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import cache
from pathlib import Path

import platformdirs
import torch
import tvm
from filelock import FileLock

from sparsecomp import geometry, layer, pattern, region, section, work
from sparsecomp.codegen.machine import Machine, cpu_model
from sparsecomp.layer import Layer
from sparsecomp.program import Body
from sparsecomp.section import WorkOp

LOG = logging.getLogger(__name__)
FORMAT = 1
DENSITY_STEP = 0.02
"""Weights of one shape whose densities round to the same step share a measurement."""


@cache
def generator() -> str:
    """Names the state of the code that shapes kernels: what another state measured may not hold for it."""
    digest = hashlib.sha256()
    nouns = [Path(str(module.__file__)) for module in (geometry, region, section, work, pattern, layer)]
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), *nouns):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """`SPARSECOMP_CACHE`, or the user's cache folder of this platform."""
    return Path(os.environ.get("SPARSECOMP_CACHE") or platformdirs.user_cache_dir("sparsecomp"))


def layer_key(machine: Machine, threads: int, measured: Layer, kernel: str, density: float = 1.0) -> str:
    """Everything the time of a layer depends on, as text."""
    return "; ".join((_layer(measured), _kernel(kernel, density), *_surroundings(machine, threads)))


def region_key(machine: Machine, threads: int, body: Body) -> str:
    """Everything the time of a region depends on, as text. Its tensors are numbered as they appear."""
    section = body.section
    tensors = {name: number for number, name in enumerate(section.inputs)}
    fields = ["region"]
    for op in section.ops:
        if isinstance(op, WorkOp):
            reads = [tensors[name] for name in (*op.sources, *op.tensors)]
            tensors[op.target] = len(tensors)
            fields.append(f"{_work(op)} epilogue {op.epilogue or 'none'} reads {reads}")
            continue
        packed = body.packed[op.site]
        density = packed.stored / max(1, op.layer.rows * op.layer.columns)
        reads = [tensors[name] for name in (op.source, *op.tensors)]
        tensors[op.target] = len(tensors)
        kernel = _kernel(str(body.how[op.site]), density)
        fields.append(f"{_layer(op.layer)}; {kernel} epilogue {op.epilogue or 'none'} reads {reads}")
    fields.append(f"returns {[tensors[name] for name in section.outputs]}")
    return "; ".join((*fields, *_surroundings(machine, threads)))


def work_key(machine: Machine, threads: int, op: WorkOp) -> str:
    """Everything the time of the work between layers depends on, in PyTorch."""
    return "; ".join(("in PyTorch", _work(op), *_surroundings(machine, threads)))


def _work(op: WorkOp) -> str:
    return f"{op.work!r} inputs {op.input_shapes}"


def _layer(layer: Layer) -> str:
    return (
        f"{layer.op} weight {layer.weight_shape} input {layer.input_shape}; stride {layer.stride} "
        f"padding {layer.padding} dilation {layer.dilation}; groups {layer.groups}"
    )


def _kernel(kernel: str, density: float) -> str:
    return f"{kernel} density {round(density / DENSITY_STEP) * DENSITY_STEP:.2f}"


def _surroundings(machine: Machine, threads: int) -> tuple[str, str]:
    return (
        f"{cpu_model()}: {machine.cpu} {machine.triple} threads {threads}",
        f"torch {torch.__version__} tvm {tvm.__version__} generator {generator()}",
    )


class Timings:
    """key -> (seconds, schedule). `put` is kept at once, so an interrupted run loses nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, tuple[float, str]] = {}
        if path is not None and path.exists():
            try:
                lines = path.read_text(errors="replace").splitlines()
            except OSError as error:
                self._forgo(error)
                lines = []
            for line in lines:
                self._read(line)

    @staticmethod
    def in_memory() -> Timings:
        return Timings(None)

    @staticmethod
    def on_disk() -> Timings:
        return Timings(cache_folder() / f"timings-{FORMAT}.jsonl")

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
            self._known[record["key"]] = (float(record["seconds"]), str(record["schedule"]))
        except (ValueError, KeyError, TypeError):
            pass  # a line cut off by a crash: it will be measured again

    def get(self, key: str) -> tuple[float, str] | None:
        return self._known.get(key)

    def put(self, key: str, seconds: float, schedule: str) -> None:
        self._known[key] = (seconds, schedule)
        if self.path is None:
            return
        line = json.dumps({"key": key, "seconds": seconds, "schedule": schedule})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            self._forgo(error)

    def _forgo(self, error: OSError) -> None:
        """Go on without the disk: what is measured is forgotten with this object."""
        LOG.warning("measurements are not kept: %s; SPARSECOMP_CACHE names another folder", error)
        self.path = None
