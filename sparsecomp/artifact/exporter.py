"""A compiled module that is one region -> files that run without Python."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import fx

from sparsecomp import codegen
from sparsecomp.artifact.container import write_whole
from sparsecomp.errors import ArtifactError
from sparsecomp.primitives import REGION
from sparsecomp.program import operator_name

if TYPE_CHECKING:
    from sparsecomp.kept import Kept


def export_module(compiled: Kept, folder: Path) -> None:
    """
    Raises:
        ArtifactError: as `SparseModule.export`.
    """
    executable = compiled._variants[0].executable
    runner = executable.runners[_only_region(executable.graph.graph)]
    files = codegen.files_for_c(runner, compiled._compiler.options.target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error}.") from error
    for name, content in files.items():
        write_whole(folder / name, content)


def _only_region(graph: fx.Graph) -> str:
    """Its name, if there is nothing else and it reads and returns what the graph does, in order."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    regions = [node for node in calls if node.target is REGION]
    others = [node for node in calls if node.target not in (REGION, operator.getitem)]
    if len(regions) != 1 or others:
        named = ", ".join(sorted({operator_name(node) for node in others})) or "nothing"
        raise ArtifactError(
            f"only a model that is one region can be exported; this one is {len(regions)}, with {named} left to "
            "PyTorch. Compile the part of it that is to run without Python."
        )
    (region,) = regions
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    results = graph.output_node().args[0]
    wanted = [node.args[1] for node in results if node.op == "call_function"]  # type: ignore[union-attr]
    if list(region.args[0]) != placeholders or wanted != list(range(len(results))):  # type: ignore[arg-type]
        raise ArtifactError("the model's inputs or outputs are not those of its region, in order.")
    return str(region.args[1])
