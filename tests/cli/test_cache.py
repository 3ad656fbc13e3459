"""`sparsecomp cache`: nothing that is of use is ever lost, whatever the file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparsecomp.cli.answer import size
from sparsecomp.cli.database import prune_database, read_database
from sparsecomp.codegen.timings import Key, Record, Timings, versions
from tests.cli.nets import as_json, run

KEY = Key("linear weight 4x4 input 2x4", "unstructured", "", 1, "some device", versions())
OLD = replace(KEY, versions="torch 1.0")
Add = Callable[..., None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    return lambda *records: Timings.on_disk().add(records)


def trial(schedule: str, date: str, seconds: float = 1e-3) -> Record:
    return Record("trial", KEY, seconds, schedule, date=date)


def break_a_line() -> None:
    with read_database().path.open("a") as file:
        file.write('{"kind": "tri\n')


def test_list_counts_files_and_records(add: Add) -> None:
    assert run("cache", "list").stdout.endswith("empty\n\ndatabase: no record\n")
    add(trial("V4 K16", "2026-01-01"), trial("V8 K16", "2026-01-02"), Record("best", KEY, 1e-3, "V4 K16"))
    data = as_json("cache", "list")
    assert data["records"] == {"trial": 2, "best": 1}
    assert data["bytes"] == sum(one["bytes"] for one in data["files"]) > 0
    assert "database: 2 trial, 1 best" in run("cache", "list").stdout


def test_verify_names_damaged_lines_and_fails(add: Add) -> None:
    add(trial("V4 K16", "2026-01-01"))
    assert "1 lines, 0 damaged" in run("cache", "verify").stdout
    break_a_line()
    assert (
        "2 lines, 1 damaged (line 2); sparsecomp cache prune removes them"
        in run("cache", "verify", code=1).stdout
    )


def test_prune_removes_what_nothing_asks_for(add: Add) -> None:
    add(
        trial("V4 K16", "2026-01-01", 3e-3),
        trial("V4 K16", "2026-01-02", 2e-3),
        Record("best", OLD, 1e-3, "V4 K16"),
    )
    break_a_line()
    before = read_database().path.read_text()
    assert as_json("cache", "prune", "--dry-run")["kept"] == 1
    assert read_database().path.read_text() == before
    data = as_json("cache", "prune")
    assert data["removed"] == {"damaged": 1, "superseded": 1, "of other versions": 1}
    assert data["bytes"] == read_database().path.stat().st_size < data["bytes_before"]
    assert [record.seconds for record in read_database().latest] == [2e-3]
    assert "removed nothing; 1 records stay" in run("cache", "prune").stdout


def test_what_is_pruned_answers_as_before(add: Add) -> None:
    add(
        Record("best", KEY, 2e-3, "V4 K16"),
        trial("V4 K16", "2026-01-01"),
        Record("best", KEY, 1e-3, "V8 K16"),
    )
    before = Timings.on_disk()
    prune_database(None)
    after = Timings.on_disk()
    assert after.get(KEY) == before.get(KEY) == (1e-3, "V8 K16")
    assert after.trials(KEY) == before.trials(KEY)


def test_a_limit_drops_the_oldest_trials_first(add: Add) -> None:
    best = Record("best", KEY, 1e-3, "V4 K16", date="2020-01-01")
    add(best, *(trial(f"V{n} K16", f"2026-01-0{n}") for n in (3, 1, 2)))
    whole = read_database().size
    one = max(line.size for line in read_database().lines)
    data = as_json("cache", "prune", "--limit", str(whole - one))
    assert (data["removed"], data["kept"]) == ({"over the limit": 1}, 3)
    assert [record.schedule for record in read_database().latest] == ["V4 K16", "V3 K16", "V2 K16"]
    prune_database(0)
    assert read_database().latest == ()


def test_no_database_is_nothing_to_prune(add: Add) -> None:
    assert "removed nothing; 0 records stay" in run("cache", "prune").stdout
    assert "0 lines, 0 damaged" in run("cache", "verify").stdout


def test_sizes_read_as_people_write_them() -> None:
    assert [size(count) for count in (0, 999, 1200, 5_000_000, 7_300_000_000)] == [
        "0 B",
        "999 B",
        "1.2 KB",
        "5.0 MB",
        "7.3 GB",
    ]
