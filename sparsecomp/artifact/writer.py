"""A compiled module -> the sections of its file."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsecomp import codegen
from sparsecomp.artifact import container
from sparsecomp.artifact.graphs import encode_contract, encode_graph
from sparsecomp.artifact.records import encode
from sparsecomp.artifact.saved_model import CapturedGraph, SavedModel
from sparsecomp.artifact.tensors import TensorWriter
from sparsecomp.choice import Choice
from sparsecomp.codegen.stored_stream import store
from sparsecomp.compile import Executable
from sparsecomp.contract import Capture
from sparsecomp.cut_weight import CutWeight
from sparsecomp.errors import ArtifactError
from sparsecomp.geometry import Geometry
from sparsecomp.layer import Layer
from sparsecomp.program import Body
from sparsecomp.region import RowsKernelChoice
from sparsecomp.report import Report
from sparsecomp.section import Section
from sparsecomp.slimming import Slimming
from sparsecomp.target import Target

if TYPE_CHECKING:
    from sparsecomp.kept import Kept

LOG = logging.getLogger(__name__)


def encode_module(compiled: Kept, general: Capture | None) -> tuple[bytes, str]:
    """The file's bytes, and the digest of its manifest.

    `general`: a further captured graph, which covers more shapes than those that were compiled.

    Raises:
        ArtifactError: the module holds what a file cannot; the message says what.
    """
    return _Writer(compiled, general).write()


class _Writer:
    def __init__(self, compiled: Kept, general: Capture | None) -> None:
        self.compiled, self.general = compiled, general
        self.compiler, self.model = compiled._compiler, compiled._skeleton.module
        self.tensors, self.libraries = TensorWriter(), dict[str, bytes]()
        self.fingerprints: dict[str, str] = {}
        """Of a region -> name of the section with its native code."""
        self.paths: dict[int, str] = {}
        """Tensor of the model, by identity -> its path."""
        self.listed: list[dict[str, Any]] = []
        self.hollow = {id(tensor): name for name, tensor in compiled._skeleton.hollows.items()}
        self._list_tensors()

    def write(self) -> tuple[bytes, str]:
        options, report = self.compiler.options, self.compiled._report
        assert report is not None
        manifest = {
            "made_by": {"torch": torch.__version__},
            "identity": codegen.identity(options.target),
            "target": encode(options.target, Target),
            "options": {
                "threads": options.threads,
                "skip": list(options.skip),
                "min_speedup": options.min_speedup,
            },
            "streams": [self._stream(stored) for stored in self._streams()],
            "cuts": [self._cut(cut) for cut in self.compiler.cuts.values()],
            "settled": [
                [encode(layer, Layer), encode(choice, Choice)]
                for layer, choice in (self.compiler.settled or {}).items()
            ],
            "variants": [
                {"contract": encode_contract(v.capture), **self._executable(v.executable)}
                for v in self.compiled._variants
            ],
            "report": encode(_without_cuts(report), Report),
        }
        graphs = [self._captured(found) for found in self._captures()]
        manifest["model"] = {
            "class": _class_of(self.model),
            "state": self._state(),
            "tensors": self.listed,
        }
        sections = {
            container.GRAPHS: json.dumps(graphs, allow_nan=False).encode(),
            container.WEIGHTS: self.tensors.section(),
            **self.libraries,
        }
        file = io.BytesIO()
        digest = container.write(file, manifest, sections)
        return file.getvalue(), digest

    # The model's tensors ---------------------------------------------------------------------------------

    def _list_tensors(self) -> None:
        for path, kind, tensor in named_tensors(self.model):
            self._list(path, kind, tensor)

    def _list(self, path: str, kind: str, tensor: Tensor) -> None:
        entry: dict[str, Any] = {"path": path, "kind": kind}
        if id(tensor) in self.paths:
            entry["same"] = self.paths[id(tensor)]
        elif id(tensor) in self.hollow:
            dtype = encode(tensor.dtype, torch.dtype)
            entry |= {"packed": self.hollow[id(tensor)], "shape": list(tensor.shape), "dtype": dtype}
        else:
            entry["tensor"] = self.tensors.add(tensor)
        self.paths.setdefault(id(tensor), path)
        self.listed.append(entry)

    def _path(self, tensor: Tensor) -> str:
        """Of a constant of a captured graph. What the model does not name is listed as an attribute."""
        if id(tensor) not in self.paths:
            self._list(f"captured_constants.c{len(self.listed)}", "attribute", tensor)
        return self.paths[id(tensor)]

    def _state(self) -> list[list[str]]:
        state = self.model.state_dict(keep_vars=True)
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise ArtifactError(
                    f"the state dict holds a {type(value).__name__} under {key!r}, which has no form in a file."
                )
        return [[key, self._path(value)] for key, value in state.items()]

    # Packed weights --------------------------------------------------------------------------------------

    def _streams(self) -> Iterator[Any]:
        for stream, how in self.compiler.streams.entries():
            yield store(stream, how)

    def _stream(self, stored: Any) -> dict[str, Any]:
        return {
            "layer": encode(stored.layer, Layer),
            "geometry": encode(stored.geometry, Geometry),
            "how": encode(stored.how, RowsKernelChoice),
            "form": stored.form,
            "parts": [self.tensors.add(part) for part in stored.parts],
        }

    def _cut(self, cut: CutWeight) -> dict[str, Any]:
        return {
            "whole": cut.whole,
            "part": cut.part,
            "shape": list(cut.shape),
            "dtype": encode(cut.dtype, torch.dtype),
            "rows": self.tensors.add(cut.rows),
            "columns": self.tensors.add(cut.columns),
            "rest": self.tensors.add(cut.rest),
            "rest_at": None if cut.rest_at is None else self.tensors.add(cut.rest_at),
        }

    # Graphs ----------------------------------------------------------------------------------------------

    def _executable(self, executable: Executable) -> dict[str, Any]:
        def tensor(path: str, value: Tensor) -> Any:
            own = self.paths.get(id(value))
            return {"model": own} if own is not None else self.tensors.add(value)

        regions = {
            name: self._region(body, executable.runners[name])
            for name, body in executable.program.regions.items()
        }
        return {"graph": encode_graph(executable.graph, tensor), "regions": regions}

    def _region(self, body: Body, runner: Any) -> dict[str, Any]:
        return {
            "section": encode(body.section, Section),
            "vectors": {
                site: [self.tensors.add(vector) for vector in vectors]
                for site, vectors in body.vectors.items()
            },
            "how": encode(body.how, Mapping[str, RowsKernelChoice]),
            "ended_by": list(body.ended_by),
            "code": self._code(runner),
        }

    def _code(self, runner: Any) -> dict[str, str] | None:
        target = self.compiler.options.target
        fingerprint = codegen.fingerprint(runner, target)
        if fingerprint is None:
            return None
        if fingerprint not in self.fingerprints:
            try:
                library = codegen.shared_library(runner, target)
            except ArtifactError as error:
                LOG.warning("%s. The file holds none: loading it makes the kernels again", error)
                return None
            name = f"code/{len(self.libraries)}.so"
            self.fingerprints[fingerprint], self.libraries[name] = name, library
        return {"fingerprint": fingerprint, "section": self.fingerprints[fingerprint]}

    def _captures(self) -> Iterator[CapturedGraph | Capture]:
        """Those of the variants, then the general one: what a call finds first was compiled."""
        if isinstance(self.model, SavedModel):
            yield from self.model._saved_graphs.graphs
        for variant in self.compiled._variants:
            if variant.capture.graph is not variant.executable.graph:  # else it came from a file
                yield variant.capture
        if self.general is not None:
            yield self.general

    def _captured(self, found: CapturedGraph | Capture) -> dict[str, Any]:
        if isinstance(found, CapturedGraph):
            found = found.bound(self.model)
        graph = encode_graph(found.graph, lambda path, value: self._path(value))
        return {"contract": encode_contract(found), "graph": graph}


def _without_cuts(report: Report) -> Report:
    """Functions, which no file keeps."""
    slimming: Slimming | None = report.slimming
    return replace(report, slimming=slimming and replace(slimming, cuts={}))


def named_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Path, kind and value of every parameter and buffer, in the order of a state dict."""
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{start}{name}", "parameter", parameter
        for name, buffer in module._buffers.items():
            if buffer is not None:
                fleeting = name in module._non_persistent_buffers_set
                yield f"{start}{name}", "fleeting buffer" if fleeting else "buffer", buffer
        if isinstance(model, SavedModel):
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{start}{name}", "attribute", value


def _class_of(model: nn.Module) -> str:
    if isinstance(model, SavedModel):
        return model._saved_class
    return f"{type(model).__module__}.{type(model).__qualname__}"
