"""The database of what was measured: one line of JSON a record, for people too, safe for several writers.

A record says everything a time depends on (the fields of `Key`), the schedule that took it, and what it is:

    trial    one schedule that was timed, what the cost model predicted, and the work it does (`predict.py`)
    best     the schedule to use and its time, as the last race decided it; what compilations ask for
    search   how far the search for the best schedules of a call has come (`tune.py`)

Records are only appended, each at once, so an interrupted run loses nothing; of records that answer the same
question the last one counts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import torch
import tvm
from filelock import FileLock

from sparsecomp import geometry, layer, pattern, region, section, work
from sparsecomp.cache import cache_folder
from sparsecomp.codegen.machine import Machine, cpu_model
from sparsecomp.codegen.schedules import parse_schedule
from sparsecomp.codegen.signature import packed_signature
from sparsecomp.layer import Layer
from sparsecomp.program import Body
from sparsecomp.section import WorkOp

LOG = logging.getLogger(__name__)
FORMAT = 2
Kind = Literal["trial", "best", "search"]


@dataclass(frozen=True)
class Key:
    """Everything a measured time depends on, but for the schedule."""

    call: str
    """Operator, shapes, strides: what PyTorch is asked to do."""
    kernel: str
    """The pattern, "PyTorch" for its own operator, or what else was measured."""
    signature: str
    """Of the weight under that pattern; see `signature.py`."""
    threads: int
    device: str
    """The processor by its maker's name and LLVM's."""
    versions: str
    """Of PyTorch, TVM and the code that makes kernels."""
    dtype: str = "float32"


@dataclass(frozen=True)
class Record:
    """One line of the database."""

    kind: Kind
    key: Key
    seconds: float
    schedule: str = ""
    predicted: float | None = None
    """Seconds the cost model expected, before the measurement."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of a trial: its work, by name of feature. Of a search: how far it has come."""
    date: str = ""
    """When it was measured, UTC, to the second."""

    def line(self) -> str:
        content = {"kind": self.kind, **asdict(self.key), "schedule": self.schedule, "seconds": self.seconds}
        if self.predicted is not None:
            content["predicted"] = self.predicted
        if self.details:
            content["details"] = dict(self.details)
        return json.dumps(content | {"date": self.date or _now()})

    @staticmethod
    def parse(line: str) -> Record:
        """Raises ValueError, KeyError or TypeError for what is no record: a line cut off by a crash, say."""
        try:
            content = json.loads(line)
        except RecursionError:
            raise ValueError("no record is nested so deep") from None
        key = Key(**{part.name: content[part.name] for part in fields(Key)})
        predicted = content.get("predicted")
        record = Record(
            content["kind"],
            key,
            float(content["seconds"]),
            str(content["schedule"]),
            None if predicted is None else float(predicted),
            content.get("details", {}),
            str(content["date"]),
        )
        record.check()
        return record

    def check(self) -> None:
        """Raises ValueError for one that nobody wrote: what it says would lead a compilation astray."""
        if self.kind not in get_args(Kind) or not isinstance(self.details, dict):
            raise ValueError(f"no record is a {self.kind!r} with {type(self.details).__name__}")
        for part in fields(Key):
            if type(getattr(self.key, part.name)) is not (int if part.name == "threads" else str):
                raise ValueError(f"{part.name} is {getattr(self.key, part.name)!r}")
        if not self.seconds >= 0:
            raise ValueError(f"nothing takes {self.seconds} s")
        if self.schedule and self.kind != "search":
            parse_schedule(self.schedule)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def generator() -> str:
    """Names the state of the code that shapes kernels: what another state measured may not hold for it."""
    digest = hashlib.sha256()
    nouns = [Path(str(module.__file__)) for module in (geometry, region, section, work, pattern, layer)]
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), *nouns):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def layer_key(machine: Machine, threads: int, measured: Layer, kernel: str, signature: str = "") -> Key:
    """Of one layer run alone."""
    return Key(call_of(measured), kernel, signature, threads, device_of(machine), versions())


def region_key(machine: Machine, threads: int, body: Body) -> Key:
    """Of a region. Its tensors are numbered as they appear."""
    section = body.section
    tensors = {name: number for number, name in enumerate(section.inputs)}
    calls = []
    for op in section.ops:
        if isinstance(op, WorkOp):
            reads = [tensors[name] for name in (*op.sources, *op.tensors)]
            tensors[op.target] = len(tensors)
            calls.append(f"{_work(op)} epilogue {op.epilogue or 'none'} reads {reads}")
            continue
        kernel = f"{body.how[op.site]} {packed_signature(body.packed[op.site])}"
        reads = [tensors[name] for name in (op.source, *op.tensors)]
        tensors[op.target] = len(tensors)
        calls.append(f"{call_of(op.layer)}; {kernel} epilogue {op.epilogue or 'none'} reads {reads}")
    calls.append(f"returns {[tensors[name] for name in section.outputs]}")
    return Key("; ".join(calls), "region", "", threads, device_of(machine), versions())


def _work(op: WorkOp) -> str:
    return f"{op.work!r} inputs {', '.join(map(_shape, op.input_shapes))}"


def call_of(layer: Layer) -> str:
    """What the layer asks for, whatever its name and its weight."""
    parts = {"weight": _shape(layer.weight_shape), "input": _shape(layer.input_shape)}
    if layer.stride != (1, 1):
        parts["stride"] = _shape(layer.stride)
    if any(layer.padding):
        parts["padding"] = _shape(layer.padding)
    if layer.dilation != (1, 1):
        parts["dilation"] = _shape(layer.dilation)
    if layer.groups != 1:
        parts["groups"] = str(layer.groups)
    return " ".join([layer.op, *(f"{name} {value}" for name, value in parts.items())])


def _shape(extents: Sequence[int]) -> str:
    return "x".join(str(extent) for extent in extents)


def device_of(machine: Machine) -> str:
    """Names the processor that the machine's code runs on."""
    return f"{machine.device or cpu_model()}: {machine.cpu} {machine.triple}".rstrip()


@cache
def versions() -> str:
    return f"torch {torch.__version__} tvm {tvm.__version__} generator {generator()}"


class Timings:
    """The records of one file, and those added since; safe for several threads and processes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._best: dict[Key, Record] = {}
        self._searches: dict[Key, Record] = {}
        self._trials: dict[Key, dict[str, Record]] = {}
        self._lock = threading.Lock()
        lines, damaged = self._lines(), 0
        for line in lines:
            try:
                self._know(Record.parse(line))
            except (ValueError, KeyError, TypeError):  # a line cut off by a crash, say
                damaged += bool(line)
        if damaged:
            told = "%d of %d lines of %s are damaged and ignored; `sparsecomp cache prune` removes them"
            LOG.warning(told, damaged, len(lines), path)

    def _lines(self) -> list[str]:
        if self.path is None or not self.path.exists():
            return []
        try:
            return self.path.read_text(errors="replace").splitlines()
        except OSError as error:
            self._forgo(error)
            return []

    @staticmethod
    def in_memory() -> Timings:
        return Timings(None)

    @staticmethod
    def on_disk() -> Timings:
        return Timings(cache_folder() / f"timings-{FORMAT}.jsonl")

    def _know(self, record: Record) -> None:
        match record.kind:
            case "best":
                self._best[record.key] = record
            case "search":
                self._searches[record.key] = record
            case "trial":
                self._trials.setdefault(record.key, {})[record.schedule] = record

    def get(self, key: Key) -> tuple[float, str] | None:
        """Seconds and schedule of the best."""
        found = self._best.get(key)
        return (found.seconds, found.schedule) if found else None

    def put(self, key: Key, seconds: float, schedule: str) -> None:
        """This is the best from now on."""
        self.add([Record("best", key, seconds, schedule)])

    def trials(self, key: Key) -> Mapping[str, Record]:
        """Schedule -> its trial."""
        return self._trials.get(key, {})

    def all_trials(self, device: str, threads: int) -> list[Record]:
        """Those a cost model of the device may learn from."""
        return [
            record
            for key, trials in list(self._trials.items())
            if (key.device, key.threads, key.versions) == (device, threads, versions())
            for record in trials.values()
        ]

    def search(self, key: Key) -> Record | None:
        return self._searches.get(key)

    def add(self, records: Sequence[Record]) -> None:
        """Kept on disk before this returns."""
        with self._lock:
            for record in records:
                self._know(record)
            if self.path is None:
                return
            text = "".join(f"{record.line()}\n" for record in records)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                    file.write((_missing_newline(file) + text).encode())
            except OSError as error:
                self._forgo(error)

    def _forgo(self, error: OSError) -> None:
        """Go on without the disk: what is measured is forgotten with this object."""
        LOG.warning("measurements are not kept: %s; SPARSECOMP_CACHE names another folder", error)
        self.path = None


def _missing_newline(file: BinaryIO) -> str:
    """Of a last line that a crash cut off: the next record must not be lost with it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return ""
    file.seek(size - 1)
    return "" if file.read(1) == b"\n" else "\n"
