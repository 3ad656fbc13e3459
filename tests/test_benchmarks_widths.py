"""What is said of widths and whole vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from benchmarks.store import RESULTS, write_json
from benchmarks.widths import PAIRS, Row, load, tables
from sparsecomp.alternate import Times


def row(width: int, median: float, rounded: float) -> Row:
    mine, other = (Times(value, value, 1e-5, 20) for value in (median, rounded))
    return Row("a pair", width, 16, mine, other, "today", "a machine")


def test_rounding_wins_beyond_the_scatter_only() -> None:
    assert row(13, 1.2e-3, 1.1e-3).wins
    assert not row(13, 1.01e-3, 1.0e-3).wins  # within the scatter
    assert not row(13, 1.0e-3, 1.1e-3).wins
    text = tables([row(12, 1.0e-3, 1.25e-3), row(13, 1.2e-3, 1.0e-3)])
    assert "| to 16 | 12 | 13 |" in text
    assert "| a pair | 0.80 | **1.20** |" in text
    assert "Rounding wins for 1 of 2 widths." in text


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [row(12, 1.0e-3, 1.25e-3)]
    write_json(tmp_path / "widths.json", {"rows": [dataclasses.asdict(found) for found in rows]})
    assert load(tmp_path / "widths.json") == rows
    assert load(tmp_path / "none.json") == []


def test_every_pair_takes_any_width() -> None:
    for pair in PAIRS.values():
        x = pair.example()
        assert pair.make(13)(x).shape == pair.make(16)(x).shape == torch.Size(x.shape)


def test_the_table_is_of_the_results() -> None:
    assert tables(load(RESULTS / "widths.json")) == (RESULTS / "widths.md").read_text()
