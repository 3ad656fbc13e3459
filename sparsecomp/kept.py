"""What lasts of a compiled module: files, copies, pickles, and new values of its weights."""

from __future__ import annotations

import copy
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsecomp import artifact, codegen
from sparsecomp.capture import COMPILING
from sparsecomp.drop_in import DropIn
from sparsecomp.errors import ArtifactError
from sparsecomp.example import adopt_attributes

if TYPE_CHECKING:
    from sparsecomp.choice import Choice
    from sparsecomp.codegen.stream import StreamStore
    from sparsecomp.compile import Compiler, Options
    from sparsecomp.cut_weight import CutWeight
    from sparsecomp.layer import Layer
    from sparsecomp.report import Report
    from sparsecomp.routes import Routes
    from sparsecomp.variant import Variant


class Kept(DropIn):
    """Saves itself, comes back, and takes new values of the same pattern."""

    _options: Options
    _compiler: Compiler
    _dynamic_shapes: Any
    _variants: list[Variant]
    _routes: Routes[Variant]
    _report: Report | None
    _first: torch.utils.hooks.RemovableHandle
    _ready: bool
    _lock: threading.RLock

    @abstractmethod
    def _swap(self) -> None: ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file, from which `sparsecomp.load` makes the module again without compiling.

        The file holds the packed weights, the captured graphs, the native code and the report; not the Python class:
        `config`, `generate` and other attributes of the model are gone after loading. It is written whole or not at
        all. For as long as it takes, the memory of the original model is needed.

        Raises:
            ArtifactError: the module does not run as a whole graph, holds what a file cannot, or `path` cannot be
                written. The message says what.
        """
        from sparsecomp.artifact.general import general_graph

        with COMPILING, self._lock:
            self._check_savable()
            artifact.save_module(self, path, general_graph(self))

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write what runs without Python, PyTorch and TVM: `libmodel.so`, `model.weights`, `model.h`, `model.c`.

        For C and C++; one thread per opened model, on this kind of processor. The header says how to build.

        Raises:
            ArtifactError: the model is more than one region between its inputs and its outputs: operators of PyTorch
                are left, which the message names. Or there is no C compiler, or `folder` cannot be written.
        """
        from sparsecomp.artifact.exporter import export_module

        with COMPILING, self._lock:
            self._check_savable()
            export_module(self, Path(folder))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are what `save` would write, with the graphs there are: like `sparsecomp.load` they
        keep calls, weights and the report, and not the Python class. A module without a graph is kept as the model,
        to be compiled at the first call."""
        with COMPILING, self._lock:
            if not self._whole_graph:
                return uncompiled, (self._model(), self._options, self._dynamic_shapes, self._report)
            self._check_savable()
            return revived, (artifact.module_bytes(self),)

    def _model(self) -> nn.Module:
        """A copy of the original, as the calls so far have left it."""
        with self._skeleton.filled(self._compiler.weight) as model:
            copied = copy.deepcopy(model)
        adopt_attributes(copied, self._eager)
        return copied

    def update_weights(self, model: nn.Module) -> None:
        """Take the values of another model of the same kind: a later checkpoint, say. Nothing is compiled or measured.

        Every parameter and buffer is taken. Packed weights must have their zeros where they had them. No call may
        run meanwhile. If it raises, nothing has changed.

        Raises:
            InputError: a tensor is missing or has another shape, or a layer has its zeros elsewhere; the message
                names it. Or this module does not run as a whole graph.
        """
        from sparsecomp.new_values import executables_with, new_values

        with COMPILING, self._lock:
            values = new_values(self, model)
            compiler, variants = executables_with(self, values)
            self._compiler = compiler
            self._variants[:] = variants
            self._routes.clear()
            before, self._eager = self._eager, self._skeleton.copy()
            adopt_attributes(self._eager, before)
            self._swap()

    @property
    def _whole_graph(self) -> bool:
        return self._ready and bool(self._variants)

    def _check_savable(self) -> None:
        self._check_whole_graph()
        codegen.check_savable(self._compiler.options.target)

    def _check_whole_graph(self) -> None:
        if self._whole_graph:
            return
        if not self._ready:
            raise ArtifactError("the module is not compiled yet: call it once, or pass example_inputs.")
        assert self._report is not None
        why = self._report.notes[-1] if self._report.notes else "no graph was captured"
        raise ArtifactError(
            f"only a module that runs as a whole graph can be saved, this one runs as {self._report.rung!r} ({why}). "
            "Save the model itself, and compile it after loading: what was measured is remembered."
        )

    def _resume(
        self,
        streams: StreamStore,
        cuts: Mapping[str, CutWeight],
        settled: Mapping[Layer, Choice],
        variants: list[Variant],
        report: Report,
        hollow: Mapping[str, str],
    ) -> None:
        """Be what was saved. `hollow`: packed weight -> path of its tensor in the model."""
        compiler = self._compiler
        compiler.streams, compiler.cuts, compiler.settled = streams, dict(cuts), dict(settled)
        self._variants.extend(variants)
        self._skeleton.adopt(hollow)
        self._report = report
        self._swap()
        self._first.remove()
        self._ready = True


def uncompiled(model: nn.Module, options: Options, dynamic_shapes: Any, report: Report | None) -> Any:
    """The module of a copy or pickle that has no graph. report: what is said until it is compiled."""
    from sparsecomp.module import SparseModule

    module = SparseModule(model, options, dynamic_shapes)
    module._before = report
    return module


def revived(data: bytes) -> Any:
    """The module of a copy or pickle."""
    return artifact.module_of(data, False, "the pickled module")
