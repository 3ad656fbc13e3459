"""What lasts of a compiled module: files, copies and pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from sparsecomp import artifact
from sparsecomp.drop_in import DropIn
from sparsecomp.errors import ArtifactError

if TYPE_CHECKING:
    from sparsecomp.choice import Choice
    from sparsecomp.codegen.stream import StreamStore
    from sparsecomp.compile import Compiler
    from sparsecomp.cut_weight import CutWeight
    from sparsecomp.layer import Layer
    from sparsecomp.report import Report
    from sparsecomp.variant import Variant


class Kept(DropIn):
    """Saves itself, and comes back."""

    _compiler: Compiler
    _variants: list[Variant]
    _report: Report | None
    _ready: bool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file, from which `sparsecomp.load` makes the module again without compiling.

        The file holds the packed weights, the captured graphs, the native code and the report; not the Python class:
        `config`, `generate` and other attributes of the model are gone after loading. It is written whole or not at
        all. For as long as it takes, the memory of the original model is needed.

        Raises:
            ArtifactError: the module does not run as a whole graph, holds what a file cannot, or `path` cannot be
                written. The message says what.
        """
        self._check_whole_graph()
        from sparsecomp.artifact.general import general_graph

        artifact.save_module(self, path, general_graph(self))

    def _check_whole_graph(self) -> None:
        if self._ready and self._variants:
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
