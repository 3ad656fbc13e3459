"""`SPARSECOMP_DEBUG` and its loggers: each shows its part, and none speaks unless asked."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecomp import compile_sparse, debug

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _dial_at_zero() -> Iterator[None]:
    yield
    for logger in debug.DIAL:
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True


def compiled(target: str = "cpu") -> str:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU()).eval()
    module = compile_sparse(model, (torch.ones(2, 16),), target=target, min_speedup=0.0)
    return str(module.report)


def test_all_four_show_what_was_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sparsecomp")
    report = compiled()
    told: dict[str, list[str]] = {}
    for record in caplog.records:
        told.setdefault(record.name, []).append(record.getMessage())
    assert told["sparsecomp.report"] == [report]
    assert any(text.startswith("after outline-regions:\n") for text in told["sparsecomp.program"])
    assert "region of 0:\n" in told["sparsecomp.tir"][0]
    assert "@T.prim_func" in told["sparsecomp.tir"][0]
    assert ".text" in told["sparsecomp.source"][0]


def test_nothing_is_told_unasked(caplog: pytest.LogCaptureFixture) -> None:
    compiled("reference")
    assert [record for record in caplog.records if record.name.startswith("sparsecomp")] == []


@pytest.mark.parametrize("setting", range(5))
def test_the_dial_turns_on_the_first_so_many(setting: int) -> None:
    debug.turn(str(setting))
    on = [logger.isEnabledFor(logging.DEBUG) for logger in debug.DIAL]
    assert on == [place < setting for place in range(4)]


@pytest.mark.parametrize("setting", ["5", "-1", "yes"])
def test_a_setting_that_is_none_is_named_and_ignored(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    debug.turn(setting)
    assert caplog.messages == [f"SPARSECOMP_DEBUG={setting} is ignored: set it to a number from 0 to 4"]
    assert not any(logger.isEnabledFor(logging.DEBUG) for logger in debug.DIAL)


def test_the_environment_turns_it() -> None:
    code = (
        "import torch, sparsecomp; "
        "sparsecomp.compile_sparse(torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),), target='reference')"
    )
    environment = {**os.environ, "SPARSECOMP_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.startswith("sparsecomp.report: sparsecomp on reference (plain PyTorch)")
    assert done.stdout == ""
