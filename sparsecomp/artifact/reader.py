"""The sections of a file -> a compiled module."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsecomp import codegen
from sparsecomp.artifact import container
from sparsecomp.artifact.graphs import decode_contract, decode_graph, decode_signature
from sparsecomp.artifact.records import decode
from sparsecomp.artifact.saved_model import (
    CapturedGraph,
    CapturedGraphs,
    SavedModel,
    SavedTensor,
    saved_model,
)
from sparsecomp.artifact.tensors import TensorReader
from sparsecomp.choice import Choice
from sparsecomp.codegen.stored_stream import Form, StoredStream, restore
from sparsecomp.codegen.stream import StreamStore
from sparsecomp.compile import Executable, Options, direct
from sparsecomp.cut_weight import CutWeight
from sparsecomp.errors import ArtifactError, ArtifactWarning
from sparsecomp.geometry import Geometry
from sparsecomp.layer import Layer
from sparsecomp.module import SparseModule
from sparsecomp.primitives import REGIONS, Runner
from sparsecomp.program import Body, Program, attribute
from sparsecomp.region import RowsKernelChoice
from sparsecomp.report import Report
from sparsecomp.section import Section
from sparsecomp.target import Target
from sparsecomp.variant import Variant

NONSENSE = (
    *(KeyError, IndexError, AttributeError, TypeError, ValueError, ArithmeticError),
    *(RuntimeError, AssertionError, MemoryError),
)
"""What reading raises where the parts of a file do not fit each other."""
EXPANSION, SMALL = 1024, 1 << 26
"""Elements that packed weights may unpack to: per byte of the file, and in any case."""
_NUMBERS = itertools.count()


def decode_module(contents: container.Contents, trusted: bool, name: str) -> SparseModule:
    """The module of a file, `name` in what is said about it.

    `trusted`: its native code may run, and its packed weights go to kernels as they are. Otherwise weights and graphs
    are read, and the kernels are made again at the first call.

    Raises:
        ArtifactError: the sections make no sense.
    """
    try:
        reader = _Reader(contents)
        if trusted and (reason := reader.unusable()) is None:
            return reader.ready()
        reason = reason if trusted else "it was not written on this machine (or pass trust=True)"
        module = reader.unready()
    except NONSENSE as error:
        if isinstance(error, ArtifactError):
            raise ArtifactError(f"{name}: {error}") from error
        raise ArtifactError(f"{name} makes no sense: {type(error).__name__}: {error}") from error
    warnings.warn(
        ArtifactWarning(
            f"the native code in {name} is not used: {reason}. Its weights and graphs are; kernels are made again at "
            "the first call."
        ),
        stacklevel=3,
    )
    return module


@dataclass
class _Reader:
    contents: container.Contents

    def __post_init__(self) -> None:
        manifest = self.contents.manifest
        self.manifest = manifest
        self.target = Target.parse(decode(manifest["target"], Target))
        options = manifest["options"]
        self.options = Options(
            self.target,
            decode(options["threads"], int | None),
            decode(options["skip"], tuple[str, ...]),
            decode(options["min_speedup"], float),
        )
        self.tensors = TensorReader(self.contents.sections[container.WEIGHTS])
        self.streams = StreamStore()
        for entry in manifest["streams"]:
            stored = self._stored(entry)
            self._check_size(stored.layer.weight_shape)
            self.streams.adopt(restore(stored), stored.how)
        self.cuts = {cut.whole: cut for cut in map(self._cut, manifest["cuts"])}

    def unusable(self) -> str | None:
        """Why native code of this file, though trusted, cannot be used."""
        here, there = codegen.identity(self.target), self.manifest["identity"]
        for what in ("device", "versions"):
            if here[what] != there[what]:
                return f"it is for {there[what]}, this is {here[what]}"
        regions = [region for variant in self.manifest["variants"] for region in variant["regions"].values()]
        if self.target.traits.kernels and any(region["code"] is None for region in regions):
            return "it holds none: there was no C compiler where it was written"
        return None

    def ready(self) -> SparseModule:
        """With its native code."""
        compiled = SparseModule(self._model(dense=False), self.options)
        variants = [self._variant(entry, compiled._skeleton.module) for entry in self.manifest["variants"]]
        compiled._resume(
            self.streams,
            self.cuts,
            self._settled(),
            variants,
            decode(self.manifest["report"], Report),
            self._hollow(),
        )
        return compiled

    def unready(self) -> SparseModule:
        """To be compiled at its first call, with the choices that were made if this is the same processor."""
        model = self._model(dense=True)
        assert model._saved_graphs.graphs, "there is no graph in it"
        for graph in model._saved_graphs.graphs:
            graph.bound(model)
        compiled = SparseModule(model, self.options)
        if codegen.identity(self.target)["device"] == self.manifest["identity"]["device"]:
            compiled._compiler.settled = self._settled()
        report = decode(self.manifest["report"], Report)
        note = "read from a file: the kernels are made again at the first call"
        compiled._before = replace(report, notes=(*report.notes, note))
        return compiled

    # Numbers ---------------------------------------------------------------------------------------------

    def _stored(self, entry: Mapping[str, Any]) -> StoredStream:
        return StoredStream(
            decode(entry["layer"], Layer),
            decode(entry["geometry"], Geometry),
            decode(entry["how"], RowsKernelChoice),
            decode(entry["form"], Form),
            tuple(self.tensors.get(part) for part in entry["parts"]),
        )

    def _check_size(self, shape: tuple[int, ...]) -> None:
        limit = SMALL + EXPANSION * len(self.contents.sections[container.WEIGHTS])
        if not 0 <= math.prod(shape) <= limit or min(shape, default=1) < 0:
            raise ArtifactError(f"it claims a weight of {'x'.join(map(str, shape))}, too large for its size")

    def _cut(self, entry: Mapping[str, Any]) -> CutWeight:
        shape = decode(entry["shape"], tuple[int, ...])
        self._check_size(shape)
        return CutWeight(
            decode(entry["whole"], str),
            decode(entry["part"], str),
            shape,
            decode(entry["dtype"], torch.dtype),
            self.tensors.get(entry["rows"]),
            self.tensors.get(entry["columns"]),
            self.tensors.get(entry["rest"]),
            None if entry["rest_at"] is None else self.tensors.get(entry["rest_at"]),
        )

    def _weight(self, name: str) -> Tensor:
        """A packed one, unpacked."""
        cut = self.cuts.get(name)
        return cut.restore(self.streams.weight(cut.part)) if cut else self.streams.weight(name)

    def _settled(self) -> dict[Layer, Choice]:
        return dict(decode(self.manifest["settled"], tuple[tuple[Layer, Choice], ...]))

    # The model -------------------------------------------------------------------------------------------

    def _model(self, dense: bool) -> SavedModel:
        """`dense`: with data in the weights that are packed."""
        described = self.manifest["model"]
        made: dict[str, SavedTensor] = {}
        for entry in described["tensors"]:
            path, kind = decode(entry["path"], str), decode(entry["kind"], str)
            made[path] = SavedTensor(path, kind, self._tensor(entry, made, dense))
        graphs = json.loads(self.contents.sections[container.GRAPHS])
        return saved_model(
            decode_signature(self.manifest["variants"][0]["contract"]["signature"]),
            list(made.values()),
            decode(described["state"], tuple[tuple[str, str], ...]),
            CapturedGraphs(partial(_captured, graphs)),
            decode(described["class"], str),
        )

    def _tensor(self, entry: Mapping[str, Any], made: Mapping[str, SavedTensor], dense: bool) -> Tensor:
        if "same" in entry:
            return made[entry["same"]].value
        if "tensor" in entry:
            value = self.tensors.get(entry["tensor"])
        else:
            shape, dtype = decode(entry["shape"], tuple[int, ...]), decode(entry["dtype"], torch.dtype)
            self._check_size(shape)
            value = torch.zeros((), dtype=dtype).expand(shape)
            if dense:
                found = self._weight(decode(entry["packed"], str))
                assert (found.shape, found.dtype) == (value.shape, value.dtype), entry["path"]
                value = found
        return torch.nn.Parameter(value, requires_grad=False) if entry["kind"] == "parameter" else value

    def _hollow(self) -> dict[str, str]:
        """Packed weight -> path of its tensor."""
        entries = self.manifest["model"]["tensors"]
        return {entry["packed"]: entry["path"] for entry in entries if "packed" in entry}

    # Variants --------------------------------------------------------------------------------------------

    def _variant(self, entry: Mapping[str, Any], model: torch.nn.Module) -> Variant:
        def tensor(path: str, reference: Any) -> Tensor:
            own = isinstance(reference, Mapping) and "model" in reference
            return attribute(model, reference["model"]) if own else self.tensors.get(reference)

        prefix = f"saved{next(_NUMBERS)}/"
        rename: Callable[[str], str] = lambda name: prefix + name.rpartition("/")[2]
        bodies = {rename(name): self._body(region) for name, region in entry["regions"].items()}
        codes = {rename(name): region["code"] for name, region in entry["regions"].items()}
        runners = {name: self._runner(body, codes[name]) for name, body in bodies.items()}
        graph = decode_graph(entry["graph"], tensor, rename)
        REGIONS.update(runners)
        graph.meta["regions"] = runners
        program = Program(graph, regions=bodies)
        executable = Executable(program, runners, (), (), (), direct(program, runners))
        return Variant(decode_contract(entry["contract"], graph), executable)

    def _runner(self, body: Body, code: Mapping[str, str] | None) -> Runner:
        adopted = None
        if code is not None:
            library = self.contents.sections[code["section"]]
            adopted = codegen.adopt(body, self.target, self.streams, code["fingerprint"], library)
        runner = codegen.lower(body, self.target, self.streams, self.options.thread_count)
        del adopted  # from now on the runner keeps it
        return runner

    def _body(self, entry: Mapping[str, Any]) -> Body:
        vectors = {
            site: tuple(self.tensors.get(part) for part in parts) for site, parts in entry["vectors"].items()
        }
        return Body(
            decode(entry["section"], Section),
            {},
            vectors,
            decode(entry["how"], Mapping[str, RowsKernelChoice]),
            decode(entry["ended_by"], tuple[str, ...]),
        )


def _captured(graphs: Any) -> Iterator[CapturedGraph]:
    """
    Raises:
        ArtifactError: a graph makes no sense.
    """
    if not isinstance(graphs, list):
        raise ArtifactError("its graphs are no list")
    nothing = torch.empty(0, dtype=torch.float32)
    for entry in graphs:
        if not isinstance(entry, dict) or set(entry) != {"contract", "graph"}:
            raise ArtifactError("its graphs lack a graph or a contract")
        graph = decode_graph(entry["graph"], lambda path, reference: nothing)
        constants = decode(entry["graph"]["constants"], Mapping[str, str])
        yield CapturedGraph(decode_contract(entry["contract"], graph), constants)
