"""Measurements outlive the process, whatever happens to their file; their keys name what they depend on."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsecomp import compile_sparse
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.schedules import parse_schedule
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


RUBBISH = {
    "bytes": b"\x00\xff\xfe",
    "no JSON": b'{"kind": "best", "seco',
    "another JSON": b"[1, null]",
    "nested deep": b"[" * 100_000,
    "a number": b"5",
}
WRONG: dict[str, dict[str, Any]] = {
    "a kind": {"kind": "worst"},
    "no number": {"seconds": "soon"},
    "not a number": {"seconds": float("nan")},
    "before its time": {"seconds": -1.0},
    "no schedule": {"schedule": "W4 K16"},
    "a huge schedule": {"schedule": "V4000000 K16"},
    "an empty pass": {"schedule": "V4 K0"},
    "a call that is no text": {"call": ["linear"]},
    "a number of threads that is none": {"threads": "2"},
    "details that are none": {"details": [1]},
    "a prediction that is none": {"predicted": "soon"},
}


@pytest.mark.parametrize("what", [*RUBBISH, *WRONG])
def test_damaged_lines_are_ignored_with_a_warning(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timings.jsonl"
    Timings(path).put(named("a"), 0.5, "V4 K16")
    good = json.loads(path.read_text())
    line = RUBBISH.get(what) or json.dumps(good | WRONG[what]).encode()
    with path.open("ab") as file:
        file.write(line + b"\n")
    found = Timings(path)
    assert found.get(named("a")) == (0.5, "V4 K16")
    assert f"1 of 2 lines of {path} are damaged and ignored" in caplog.text
    found.put(named("b"), 0.25, "")
    assert Timings(path).get(named("b")) == (0.25, "")


@settings(max_examples=60, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), keep=st.floats(0, 1), cut=st.booleans()
)
def test_flipped_bits_and_truncations(
    place: float, bit: int, keep: float, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The other records are as they were; the damaged one is gone, or says something that a record may say."""
    path = tmp_path_factory.mktemp("damaged") / "timings.jsonl"
    records = [Record("best", named(name), 0.5, "V4 K16 P128", date="2026-01-02T03:04:05Z") for name in "abc"]
    Timings(path).add(records)
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1 << bit
    if cut:
        del damaged[int(keep * len(damaged)) :]
    path.write_bytes(damaged)
    found = [value for name in "abc" if (value := Timings(path).get(named(name))) is not None]
    assert cut or len(found) >= 1
    assert sum(value != (0.5, "V4 K16 P128") for value in found) <= 1
    for seconds, schedule in found:
        assert seconds >= 0
        parse_schedule(schedule or "depthwise")


def test_a_compilation_goes_on_with_a_damaged_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    model, x = nn.Sequential(nn.Linear(48, 32)).eval(), torch.randn(40, 48)
    compiled = compile_sparse(model, (x,), min_speedup=0.0)
    path = Timings.on_disk().path
    assert path is not None
    assert compiled.report.rung == "whole graph"
    before, lines = set(Timings.on_disk()._best), path.read_text().splitlines()
    cut = [line[: len(line) * 2 // 3] for line in lines[::2]]
    path.write_bytes(b"\n".join([*RUBBISH.values(), *(line.encode() for line in cut)]))
    again = compile_sparse(model, (x,), min_speedup=0.0)
    assert again.report.rung == "whole graph"
    assert "damaged and ignored" in caplog.text
    assert before & set(Timings.on_disk()._best)  # and what it measured anew is kept


def test_a_folder_in_the_place_of_the_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    timings = Timings(tmp_path)
    timings.put(named("a"), 0.5, "")
    assert timings.get(named("a")) == (0.5, "")
    assert "measurements are not kept" in caplog.text


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
        Timings(path).put(named(f"{name}{number}"), 1.0, "V4 K16 P64")


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
