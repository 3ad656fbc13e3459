"""Rows of `python -m benchmarks.ssl` on disk: JSON, and tables in Markdown beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from benchmarks.ssl.row import Row
from benchmarks.ssl.table import summary
from benchmarks.ssl.training import EXPERIMENTS
from benchmarks.store import write, write_json

Rows = dict[tuple[str, int], Row]
NOTE = (
    "Networks, data and training: `benchmarks/ssl/training.py`. Outputs, inputs and columns are what is alive of each "
    "layer, in order; FLOPs of layers are those of the lowered matrix products. Times: a batch of 64 on one thread, "
    "medians of alternating rounds; the dense network is compiled as well, so that only zeros make a difference. Those "
    "of layers are of their kernels within the compiled networks, medians of profiles in turn."
)


def load(path: Path) -> Rows:
    if not path.exists():
        return {}
    found = [Row.of(data) for data in json.loads(path.read_text())["rows"]]
    return {(row.experiment, row.seed): row for row in found}


def save(rows: Rows, path: Path) -> None:
    """The JSON, and the tables beside it."""
    write_json(path, {"rows": [dataclasses.asdict(rows[key]) for key in sorted(rows)]})
    parts = ["# Structured sparsity learning, on digits", "", NOTE, ""]
    for name in EXPERIMENTS:
        found = [rows[key] for key in sorted(rows) if key[0] == name]
        parts += [summary(name, found)] if found else []
    machines = dict.fromkeys(row.machine for row in rows.values())
    write(
        path.with_suffix(".md"), "\n".join([*parts, *(f"Measured on {machine}." for machine in machines), ""])
    )
