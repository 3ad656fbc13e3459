"""A plan as text: totals, then a line for each layer."""

from __future__ import annotations

import io
import math

from rich.console import Console
from rich.table import Table

from sparsecomp.pruning.plan import MIB, Plan, Totals

KIB = 1 << 10
SHOWN = 5
"""Formats of storage, beside dense."""


def plan_text(plan: Plan) -> str:
    file = io.StringIO()
    console = Console(file=file, width=240, color_system=None, highlight=False, markup=False)
    totals = plan.totals
    lines = [_headline(plan), _latency(totals), *_size(totals), *_quality(totals), _error(totals)]
    for line in (*lines, *(f"note: {note}" for note in plan.notes)):
        console.print(line)
    console.print()
    console.print(_table(plan))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _headline(plan: Plan) -> str:
    threads = f"{plan.threads} thread{'s' * (plan.threads != 1)}"
    sparse = sum(not layer.chosen.candidate.is_dense for layer in plan.layers)
    return (
        f"sparsecomp plan for {plan.goal} on {plan.device}, {threads}; {sparse} of {len(plan.layers)} layers "
        f"sparse, {plan.totals.sparsity:.1%} of their weights zero; {plan.allocation} by {plan.method}, "
        f"{plan.seconds:.0f} s"
    )


def _latency(totals: Totals) -> str:
    parts = [f"latency: predicted {totals.predicted_seconds * 1e3:.2f} ms"]
    if totals.measured_seconds is not None:
        parts.append(f"measured {totals.measured_seconds * 1e3:.2f}")
    if totals.dense_seconds is not None:
        speedup = "" if totals.speedup is None else f" ({totals.speedup:.2f}x)"
        parts.append(f"dense compiled {totals.dense_seconds * 1e3:.2f}{speedup}")
    if totals.eager_seconds is not None:
        speedup = "" if totals.eager_speedup is None else f" ({totals.eager_speedup:.2f}x)"
        parts.append(f"dense in PyTorch {totals.eager_seconds * 1e3:.2f}{speedup}")
    return ", ".join(parts)


def _size(totals: Totals) -> list[str]:
    """What a file and the processor have to do with, by the survey's measures."""
    size = f"size: {totals.dense_bytes / MIB:.3g} -> {totals.bytes / MIB:.3g} MiB, each weight in its smallest exact format"
    flops = f"{totals.dense_flops / 1e9:.3g} -> {totals.flops / 1e9:.3g} GFLOP in these layers"
    lines = [size, f"not zero: {totals.nonzeros:,} of {totals.parameters:,} parameters, {flops}"]
    if totals.formats:
        shown = [name for name in totals.formats if name != "dense"][:SHOWN]
        each = ", ".join(f"{name} {totals.formats[name] / MIB:.3g}" for name in (*shown, "dense"))
        lines.append(f"MiB of the sparse weights, all in one format: {each}")
    return lines


def _quality(totals: Totals) -> list[str]:
    densities = totals.densities
    if densities is None:
        return []
    change = f"quality on held-out data: {totals.dense_quality:.4g} -> {totals.quality:.4g}"
    dense, pruned = densities
    return [f"{change}; per million parameters that are not zero {dense:.4g} -> {pruned:.4g}"]


def _error(totals: Totals) -> str:
    text = f"predicted error, summed over layers: {totals.error:.4g}"
    if totals.loss is not None and totals.dense_loss is not None:
        text += f"; loss on held-out data: {totals.dense_loss:.4g} -> {totals.loss:.4g}"
    return text


def _table(plan: Plan) -> Table:
    numeric = ("sparsity", "dense ms", "ms", "error", "KiB")
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("layer", "weight", "pattern", *numeric, "format", "runners-up", "note"):
        table.add_column(column, justify="right" if column in numeric else "left")
    for layer in plan.layers:
        candidate = layer.chosen.candidate
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            "dense" if candidate.is_dense else str(candidate.structure),
            "" if candidate.is_dense else f"{candidate.sparsity:.1%}",
            _number(layer.dense_seconds),
            _number(layer.chosen.seconds),
            f"{layer.chosen.error:.3g}",
            f"{layer.nbytes / KIB:.1f}",
            layer.format,
            "; ".join(map(str, layer.runners_up)),
            layer.note,
        )
    return table


def _number(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:.3f}"
