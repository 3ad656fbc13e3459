"""The definition of CI is sound: it can be read, asks for what exists, and names the platforms it is to cover."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
TRIGGERS = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a truth value
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]


def test_it_has_every_job() -> None:
    assert set(JOBS) == {"lint", "test", "slow", "docs", "dist"}
    assert {"push", "pull_request", "schedule"} <= set(TRIGGERS)


def test_it_covers_the_platforms_that_have_a_wheel_of_tvm() -> None:
    assert JOBS["test"]["strategy"]["matrix"]["os"] == ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-15"]


def test_only_the_nightly_run_is_slow() -> None:
    slow = {name for name, step in STEPS if step.get("run") == "make test-slow"}
    assert slow == {"slow"}
    assert "schedule" in JOBS["slow"]["if"]


def test_make_has_every_target_it_calls() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = [step["run"] for _, step in STEPS if "run" in step]
    assert len(called) == len(JOBS)
    for command in called:
        make, target = command.split()
        assert make == "make"
        assert target in targets


def test_actions_are_pinned_by_major_version_and_pip_is_cached() -> None:
    used = [(name, step) for name, step in STEPS if "uses" in step]
    for _, step in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    cached = {name for name, step in used if step.get("with", {}).get("cache") == "pip"}
    assert cached == set(JOBS)


def test_it_runs_the_oldest_python_that_is_supported() -> None:
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert oldest[1] in JOBS["test"]["strategy"]["matrix"]["python"]


def test_it_can_do_nothing_but_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
