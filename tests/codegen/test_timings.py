"""Measurements outlive the process, whatever happens to their file; their keys name what they depend on."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.timings import Key, Record, Timings, layer_key, region_key, versions
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


def key(body: Body, threads: int = 1) -> Key:
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


def test_nor_do_other_devices() -> None:
    here = machine_of(Target())
    there = replace(here, device="rpc board")
    assert layer_key(here, 1, LAYER, "unstructured") != layer_key(there, 1, LAYER, "unstructured")


def named(name: str) -> Key:
    return Key("linear weight 16x16 input 8x16", name, "density 0.50, rows even", 1, "a cpu", versions())


def test_kept_on_disk_but_for_lines_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "timings.jsonl"
    Timings(path).put(named("a"), 0.5, "V4 K16")
    with path.open("a") as file:
        file.write('{"kind": "best", "seco')
    Timings(path).put(named("c"), 0.25, "")
    found = Timings(path)
    assert [found.get(named(name)) for name in "abc"] == [(0.5, "V4 K16"), None, (0.25, "")]


def test_the_last_decision_counts() -> None:
    timings = Timings.in_memory()
    timings.put(named("a"), 0.5, "V4 K16")
    timings.put(named("a"), 0.75, "V8 K16")
    assert timings.get(named("a")) == (0.75, "V8 K16")


def test_a_line_is_for_people_and_reads_back() -> None:
    record = Record(
        "trial", named("unstructured"), 2e-4, "V4 K16", 1e-4, {"loads": 3.0}, "2026-01-02T03:04:05Z"
    )
    content = json.loads(record.line())
    assert {part.name for part in fields(Key)} < set(content)
    assert content["signature"] == "density 0.50, rows even"
    assert content["schedule"] == "V4 K16"
    assert Record.parse(record.line()) == record


def test_trials_are_no_decisions(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings.jsonl")
    records = [Record("trial", named("a"), seconds, f"V{seconds:.0f} K16") for seconds in (1.0, 2.0)]
    timings.add([*records, Record("search", named("search"), 1.0, details={"trials": 2})])
    for found in (timings, Timings(tmp_path / "timings.jsonl")):
        assert found.get(named("a")) is None
        assert set(found.trials(named("a"))) == {"V1 K16", "V2 K16"}
        assert len(found.all_trials("a cpu", 1)) == 2
        assert found.all_trials("another cpu", 1) == found.all_trials("a cpu", 2) == []
        search = found.search(named("search"))
        assert search is not None
        assert search.details == {"trials": 2}


def write_many(path: Path, name: str) -> None:
    for number in range(50):
        Timings(path).put(named(f"{name}{number}"), 1.0, "V4 K16 " + "P64 " * 200)


def test_several_processes_write(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = Timings(path)
    assert all(found.get(named(f"{name}{number}")) for name in "ab" for number in range(50))
