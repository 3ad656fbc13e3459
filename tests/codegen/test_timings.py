"""Measurements outlive the process, whatever happens to their file; their keys name what they depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.timings import Timings, region_key
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.program import Body
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import Section, SectionOp
from sparsecomp.target import Target

HOW = RowsKernelChoice(RowBlocks(1), Schedule(4, 16))
LAYER = Layer("a", "linear", "a.weight", (16, 16), (8, 16))


def chain(names: str, density: float = 0.5, epilogue: str = "bias", returned: int = 1) -> Body:
    """Two layers, one after the other, of the input and these tensors."""
    x, first, second = tuple(names)
    ops = (
        SectionOp(first, replace(LAYER, name=first), x, first, epilogue),
        SectionOp(second, replace(LAYER, name=second), first, second, "bias add", (x,)),
    )
    matrix = torch.zeros(16, 16)
    matrix[:, : round(16 * density)] = 1.0
    packed = {op.site: pack(matrix, HOW.pattern) for op in ops}
    section = Section((x,), ops, tuple(op.target for op in ops[2 - returned :]))
    return Body(section, packed, {op.site: () for op in ops}, {op.site: HOW for op in ops})


def key(body: Body, threads: int = 1) -> str:
    return region_key(machine_of(Target()), threads, body)


def test_regions_that_differ_in_names_share_a_measurement() -> None:
    assert key(chain("xyz")) == key(chain("abc"))


@pytest.mark.parametrize(
    "other", [chain("xyz", density=0.25), chain("xyz", epilogue="bias relu"), chain("xyz", returned=2)]
)
def test_other_regions_do_not(other: Body) -> None:
    assert key(other) != key(chain("xyz"))


def test_nor_do_other_numbers_of_threads() -> None:
    assert key(chain("xyz"), threads=2) != key(chain("xyz"))


def test_kept_on_disk_but_for_lines_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "timings.jsonl"
    Timings(path).put("a", 0.5, "V4 K16")
    with path.open("a") as file:
        file.write('{"key": "b", "seco\n')
    Timings(path).put("c", 0.25, "")
    found = Timings(path)
    assert [found.get(name) for name in "abc"] == [(0.5, "V4 K16"), None, (0.25, "")]
