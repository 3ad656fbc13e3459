"""What was found, chosen and gained, and why each alternative was refused: as text, and as data."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sparsecomp.choice import Candidate, Choice
from sparsecomp.cost import RegionTimes
from sparsecomp.facts import Facts
from sparsecomp.flow import FlowOp
from sparsecomp.geometry import FLOAT
from sparsecomp.layer import Layer
from sparsecomp.pipeline import Step
from sparsecomp.program import Program
from sparsecomp.slimming import Slimming, full_name

if TYPE_CHECKING:
    from sparsecomp.profile import Profile

MIB = 1 << 20


@dataclass(frozen=True)
class LayerReport:
    """One layer. Times are of the layer alone, on the example inputs; None where nothing was measured."""

    layer: Layer
    facts: Facts
    choice: Choice | None
    nbytes: int
    """Of the weight as it is held now: values, offsets and pointers."""
    stored: int
    """Weight elements that are multiplied."""

    @property
    def dense_bytes(self) -> int:
        return self.layer.rows * self.layer.columns * FLOAT

    @property
    def flops(self) -> int:
        size = self.layer.rows * self.layer.columns
        return self.layer.dense_flops * self.stored // max(1, size)

    @property
    def chosen(self) -> str:
        if self.choice is None:
            return "not chosen yet"
        return str(self.choice.how) if self.choice.how else "dense"

    @property
    def dense_ms(self) -> float | None:
        return _ms(self.choice.dense_seconds) if self.choice else None

    @property
    def chosen_ms(self) -> float | None:
        if self.choice is None:
            return None
        return _ms(self.choice.chosen.seconds) if self.choice.how and self.choice.chosen else self.dense_ms

    @property
    def break_even(self) -> float | None:
        """Share of the weight that must be skipped to gain by it; see `Choice.break_even`."""
        return self.choice.break_even(self.layer.rows * self.layer.columns) if self.choice else None

    def as_dict(self) -> dict[str, Any]:
        choice, facts = self.choice, self.facts
        return {
            "name": self.layer.name,
            "op": self.layer.op,
            "weight": full_name(self.layer.weight),
            "shape": list(self.layer.weight_shape),
            "input_shape": list(self.layer.input_shape),
            "source": self.layer.source,
            "density": facts.density,
            "structure": facts.structure,
            "zero_rows": facts.zero_rows,
            "zero_columns": facts.zero_columns,
            "zero_channels": facts.zero_channels,
            "zero_kernels": facts.zero_kernels,
            "block_fill": {f"{r}x{c}": fill for (r, c), fill in facts.block_fill.items()},
            "best_block": list(facts.best_block),
            "n_of_m": list(facts.n_of_m) if facts.n_of_m else None,
            "row_nonzeros": {"mean": facts.row_mean, "std": facts.row_std, "max": facts.row_max},
            "choice": self.chosen,
            "reason": choice.reason if choice else "",
            "candidates": [_candidate(c) for c in choice.candidates] if choice else [],
            "dense_ms": self.dense_ms,
            "chosen_ms": self.chosen_ms,
            "dense_bytes": self.dense_bytes,
            "bytes": self.nbytes,
            "dense_flops": self.layer.dense_flops,
            "flops": self.flops,
            "break_even": self.break_even,
            "picture": {"cells": list(facts.picture.cells), "corner": list(facts.picture.corner)},
        }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    if candidate.refused:
        return {"kernel": candidate.kernel, "refused": candidate.refused}
    return {
        "kernel": candidate.kernel,
        "ms": _ms(candidate.seconds),
        "predicted_ms": _ms(candidate.predicted),
        "idle_ms": _ms(candidate.idle),
        "stored": candidate.stored,
        "skips": candidate.skips,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


@dataclass(frozen=True)
class RegionReport:
    """A run of layers executed as one call."""

    name: str
    layers: tuple[str, ...]
    ended_by: tuple[str, ...]
    """Operators that read its results and could not be taken in."""
    times: RegionTimes | None = None

    @property
    def seconds(self) -> float | None:
        return self.times.region if self.times else None

    @property
    def pytorch_seconds(self) -> float | None:
        """Of the same operators in PyTorch."""
        return self.times.pytorch if self.times else None


@dataclass(frozen=True)
class Report:
    """The whole story of one compilation. `print(report)` for people, `as_dict()` for programs."""

    target: str
    threads: int
    steps: tuple[Step, ...]
    layers: tuple[LayerReport, ...]
    untouched: Mapping[str, tuple[str, str]]
    regions: tuple[RegionReport, ...] = ()
    rung: str = "analysis only"
    """How the model was taken: "whole graph", "layers", "eager", or "analysis only"."""
    notes: tuple[str, ...] = ()
    eager_seconds: float | None = None
    compiled_seconds: float | None = None
    slimming: Slimming | None = None
    flow: tuple[FlowOp, ...] = ()
    """What a call runs; empty where no graph was captured."""

    @property
    def sparse_layers(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.choice and layer.choice.how]

    @property
    def totals(self) -> dict[str, Any]:
        dense = [layer.dense_ms for layer in self.layers if layer.dense_ms is not None]
        chosen = [layer.chosen_ms for layer in self.layers if layer.chosen_ms is not None]
        eager, compiled = self.eager_seconds, self.compiled_seconds
        unique = {layer.layer.weight: layer for layer in self.layers}.values()
        converted = {layer.layer.weight: layer for layer in self.sparse_layers}.values()
        return {
            "layers": len(self.layers),
            "converted_layers": len(self.sparse_layers),
            "dense_bytes": sum(layer.dense_bytes for layer in unique),
            "bytes": sum(layer.nbytes for layer in unique),
            "converted_dense_bytes": sum(layer.dense_bytes for layer in converted),
            "converted_bytes": sum(layer.nbytes for layer in converted),
            "dense_flops": sum(layer.layer.dense_flops for layer in self.layers),
            "flops": sum(layer.flops for layer in self.layers),
            "dense_ms": sum(dense),
            "chosen_ms": sum(chosen),
            "eager_model_ms": _ms(eager),
            "compiled_model_ms": _ms(compiled),
            "speedup": eager / compiled if eager and compiled else None,
        }

    def given_up(self, reason: str) -> Report:
        """The report when PyTorch runs the model after all: what the compiled one took is no longer what a call takes."""
        layers = tuple(
            replace(
                layer,
                choice=replace(layer.choice, how=None, reason=reason) if layer.choice else None,
                nbytes=layer.dense_bytes,
            )
            for layer in self.layers
        )
        given_up = replace(self, rung="eager", layers=layers, regions=(), flow=(), compiled_seconds=None)
        return replace(given_up, notes=(*self.notes, reason))

    def as_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "threads": self.threads,
            "rung": self.rung,
            "notes": list(self.notes),
            "passes": [
                {"name": step.name, "ms": step.seconds * 1e3, "changed": step.changed} for step in self.steps
            ],
            "layers": [layer.as_dict() for layer in self.layers],
            "untouched": [{"name": name, "reason": reason} for name, reason in self.untouched.values()],
            "regions": [
                {
                    "name": region.name,
                    "layers": list(region.layers),
                    "ended_by": list(region.ended_by),
                    "ms": _ms(region.seconds),
                    "pytorch_ms": _ms(region.pytorch_seconds),
                }
                for region in self.regions
            ],
            "slimming": self.slimming.as_dict() if self.slimming else None,
            "flow": [op.as_dict() for op in self.flow],
            "totals": self.totals,
        }

    def to_html(self, path: str | os.PathLike[str], profile: Profile | None = None) -> None:
        """Write one page of HTML that needs nothing else: no network, no other file.

        Args:
            path: The file, written whole or not at all.
            profile: Of a call, `compiled.profile(x)`: the page then also shows where its time goes.

        Raises:
            ArtifactError: the file cannot be written.
        """
        from sparsecomp.artifact.container import write_whole
        from sparsecomp.page import page

        text = page(self.as_dict(), profile.as_dict() if profile else None)
        write_whole(Path(path), text.encode("utf-8"))

    def _repr_html_(self) -> str:
        """What a notebook shows: the totals and the layers."""
        from sparsecomp.page import excerpt

        return excerpt(self.as_dict())

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=240, color_system=None, highlight=False, markup=False)
        console.print(self._headline())
        for note in self.notes:
            console.print(f"note: {note}")
        if self.slimming and self.slimming.summary:
            console.print(self.slimming.summary)
        tables = (self._slimming_table(), self._layer_table(), self._untouched_table())
        for table in (*tables, self._region_table(), self._step_table()):
            if table.row_count:
                console.print()
                console.print(table)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _headline(self) -> str:
        totals = self.totals
        parts = [f"sparsecomp on {self.target}, {self.threads} thread{'s' * (self.threads != 1)}"]
        parts.append(f"{self.rung}: {totals['converted_layers']} of {totals['layers']} layers converted")
        dense, now = totals["dense_bytes"], totals["bytes"]
        if dense and self.rung != "analysis only":
            parts.append(f"weights {dense / MIB:.1f} -> {now / MIB:.1f} MiB ({now / dense:.0%})")
        if totals["speedup"]:
            parts.append(
                f"model {totals['eager_model_ms']:.2f} -> {totals['compiled_model_ms']:.2f} ms "
                f"({totals['speedup']:.2f}x eager)"
            )
        return "; ".join(parts)

    def _layer_table(self) -> Table:
        table = _table("layer", "weight", "kept", "found", "runs as", "dense ms", "now ms", "MiB", "why")
        for layer in self.layers:
            size = f"{layer.nbytes / MIB:.2f}"
            table.add_row(
                layer.layer.name,
                "x".join(str(extent) for extent in layer.layer.weight_shape),
                f"{layer.facts.density:.0%}",
                layer.facts.structure,
                layer.chosen,
                _number(layer.dense_ms),
                _number(layer.chosen_ms),
                size,
                layer.choice.reason if layer.choice else "",
            )
        return table

    def _untouched_table(self) -> Table:
        table = _table("left to PyTorch", "why")
        for name, reason in self.untouched.values():
            table.add_row(name, reason)
        return table

    def _slimming_table(self) -> Table:
        """Coupled groups of which something left or is dead and stays."""
        table = _table("coupled group", "units", "gone", "shrinks", "dead and stays")
        for group in self.slimming.groups if self.slimming else ():
            if group.gone or group.kept:
                why = "; ".join(f"{count}: {reason}" for reason, count in group.kept.items())
                table.add_row(
                    group.name, str(group.units), str(group.gone), _run(list(group.crosses), "tensors"), why
                )
        return table

    def _region_table(self) -> Table:
        table = _table("region", "layers", "ended by", "dense ms", "now ms")
        for region in self.regions:
            table.add_row(
                region.name,
                _run(region.layers),
                ", ".join(region.ended_by),
                _number(_ms(region.pytorch_seconds)),
                _number(_ms(region.seconds)),
            )
        return table

    def _step_table(self) -> Table:
        table = _table("pass", "ms", "what changed")
        for step in self.steps:
            table.add_row(step.name, f"{step.seconds * 1e3:.0f}", step.changed)
        return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column.endswith("ms") or column in ("kept", "MiB") else "left"
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _run(names: Sequence[str], what: str = "layers") -> str:
    """ "a, b, c", or the ends and the count of a long list."""
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]} ... {names[-1]} ({len(names)} {what})"


def layer_reports(program: Program, nbytes: Mapping[str, int]) -> tuple[LayerReport, ...]:
    """`nbytes`: parameter name -> bytes it takes packed, for those that are."""
    reports = []
    for site, layer in program.layers.items():
        choice = program.choices.get(site)
        size, stored = layer.rows * layer.columns, layer.rows * layer.columns
        if choice and choice.how and choice.chosen:
            stored = choice.chosen.stored or stored
        held = nbytes.get(layer.weight, size * FLOAT)
        reports.append(LayerReport(layer, program.facts[site], choice, held, stored))
    return tuple(reports)
