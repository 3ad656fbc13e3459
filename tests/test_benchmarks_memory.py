"""Memory and overhead of compiled models: what is asked, and the arithmetic on the answers."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import child, footprint, overhead
from benchmarks import growth as growth_of
from benchmarks.footprint import Footprint
from benchmarks.machine import Machine
from benchmarks.memory import Growth, Question, Usage, forget_peak, growth, peak_resident, resident, usage
from benchmarks.table import wide_console
from benchmarks.workloads import WORKLOADS
from sparsecomp import compile_sparse
from sparsecomp.profile import CallProfile, Profile, RegionProfile

linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
MIB = 1 << 20
EAGER = Usage(100 * MIB, 500 * MIB, 520 * MIB)
COMPILED = Usage(100 * MIB, 150 * MIB, 160 * MIB, weights=20 * MIB, dense_weights=160 * MIB)
FOUND = Footprint("bert-base", "unstructured", 0.9, False, EAGER, COMPILED, Growth(10, 5 * MIB, 7 * MIB))


@linux
def test_the_peak_is_forgotten_and_found() -> None:
    before = resident()
    forget_peak()
    torch.ones(32 * MIB // 4)  # written, and gone again
    assert peak_resident() - before > 24 * MIB
    assert resident() - before < 8 * MIB
    forget_peak()
    assert peak_resident() - before < 16 * MIB


@linux
def test_usage_is_of_the_model_as_it_is_or_compiled() -> None:
    question = Question("alexnet-conv5", "ssl", 0.807, threads=1, small=True)
    compiled = usage(question)
    assert 0 < compiled.libraries <= compiled.peak
    assert compiled.held <= compiled.peak
    assert compiled.weights <= compiled.dense_weights
    assert usage(Question(**{**asdict(question), "compiled": False})).dense_weights == 0


@linux
def test_growth_is_over_the_calls_that_were_asked_for() -> None:
    found = growth(Question("linear-4096", "unstructured", 0.9, threads=1, small=True, calls=8))
    assert found.calls == 8
    assert found.bytes == found.after - found.before


@linux
def test_memory_does_not_grow_with_calls_of_changing_shapes() -> None:
    """A call that left one of its outputs behind would take 30 MiB here."""
    runs = growth_of.calls_of("linear-4096")
    outputs = sum(run().nbytes for run in runs) / len(runs)  # type: ignore[attr-defined]
    calls = math.ceil(30 * MIB / outputs)
    for number in range(calls // 2):
        runs[number % len(runs)]()
    before = resident()
    for number in range(calls):
        runs[number % len(runs)]()
    assert resident() - before < 8 * MIB


@linux
@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert-base", "resnet-50"])
def test_memory_does_not_grow_in_half_a_minute(model: str) -> None:
    found = growth_of.course([model], 30)
    assert found.samples[-1].calls > 1000
    assert found.settled[-1].resident - found.settled[0].resident < 8 * MIB


def test_the_course_of_memory_is_a_slope() -> None:
    samples = [growth_of.Sample(36.0 * n, 100 * n, 100 * MIB + n * MIB // 10) for n in range(2, 101)]
    settling = [growth_of.Sample(0.0, 0, 0), growth_of.Sample(36.0, 100, 5 * MIB)]
    found = growth_of.Course(("bert-base",), (*settling, *samples))
    assert found.settled[0].seconds == 720
    assert found.bytes_per_hour == pytest.approx(10 * MIB, rel=1e-3)
    assert found.bytes_per_call == pytest.approx(10 * MIB / 10_000, rel=1e-3)
    assert "slope +10.00 MiB an hour, +1048.5" in str(found)
    assert growth_of.parse(["--hours", "0.1"]).hours == 0.1


def test_sizes_change_from_call_to_call() -> None:
    tokens, images = (WORKLOADS[name].inputs(2, True, 0) for name in ("bert-base", "resnet-50"))
    assert growth_of.sized(tokens, 3)["attention_mask"].shape == (2, 13)
    assert growth_of.sized(images, 3)["pixel_values"].shape == (2, 3, 58, 64)


def test_a_footprint_compares_with_eager() -> None:
    assert (FOUND.weights, FOUND.call) == (0.125, 0.5)
    assert FOUND.model_and_call == pytest.approx(60 / 420)
    assert FOUND.growth.bytes == 2 * MIB
    nothing = Footprint("bert-base", "unstructured", 0.9, False, EAGER, EAGER, FOUND.growth)
    assert (nothing.weights, nothing.call) == (1.0, 1.0)


def test_three_processes_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(module: str, question: Mapping[str, Any], threads: int) -> Any:
        asked.append(Question(**question))
        assert (module, threads) == ("benchmarks.memory", 2)
        return asdict(FOUND.growth if asked[-1].calls else COMPILED if asked[-1].compiled else EAGER)

    monkeypatch.setattr(footprint, "ask", ask)
    options = footprint.parse(["--threads", "2", "--calls", "10"])
    assert footprint.measure("bert-base", options) == FOUND
    assert [(one.compiled, one.small, one.calls) for one in asked] == [
        (False, False, 0),
        (True, False, 0),
        (True, True, 10),
    ]


def test_footprints_are_shown_and_saved(tmp_path: Path) -> None:
    options = Namespace(out=tmp_path / "results" / "footprint.json", threads=1)
    footprint.save([FOUND], Machine("a CPU", 2, 100.0, {}), options)
    saved = json.loads(options.out.read_text())
    assert saved["models"][0]["of_eager"]["weights"] == 0.125
    assert saved["models"][0]["growth"] == {"calls": 10, "before": 5 * MIB, "after": 7 * MIB}
    console = wide_console()
    with console.capture() as captured:
        console.print(footprint.table([FOUND], "here"))
    [line] = [line for line in captured.get().splitlines() if "bert-base" in line]
    numbers = re.findall(r"[\d.]+%?", line.replace("90%", ""))
    assert numbers == ["160.0", "20.0", "12%", "420.0", "60.0", "14%", "20.0", "10.0", "50%", "2.0"]


def test_the_default_is_ten_thousand_calls_of_two_models() -> None:
    options = footprint.parse([])
    assert (options.models, options.calls, options.sparsity) == (["bert-base", "resnet-50"], 10_000, 0.9)
    assert footprint.parse(["--quick"]).calls == 100


def test_a_child_answers_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answering.py").write_text(
        "import json, os, sys\n"
        "question = json.loads(sys.argv[1])\n"
        "assert question, 'nothing was asked'\n"
        "open(sys.argv[2], 'w').write(json.dumps([question, os.environ['OMP_NUM_THREADS']]))\n"
    )
    monkeypatch.setattr(child, "ROOT", tmp_path)
    assert child.ask("answering", {"a": 1}, threads=3) == [{"a": 1}, "3"]
    with pytest.raises(child.ChildError, match="exit status 1: AssertionError: nothing was asked"):
        child.ask("answering", {}, threads=1)
    monkeypatch.setattr(child, "LIMIT", 0.001)
    with pytest.raises(child.ChildError, match=r"gave up after 0\.001 s"):
        child.ask("answering", {"a": 1}, threads=1)


def test_the_rest_is_what_no_kernel_took() -> None:
    calls = (CallProfile("a", "", 0.003), CallProfile("b", "", 0.005))
    profile = Profile(0.010, 1, (RegionProfile("region0", 0.0085, calls),), (("aten.tanh (tanh)", 0.0005),))
    assert overhead.rest_share(profile) == pytest.approx(0.2)
    assert overhead.summary(profile) == (
        "10.000 ms a call, its kernels 8.000, the rest 2.000 (20.0%), of which operators of PyTorch 0.500"
    )


def test_a_compiled_call_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "compile_sparse", partial(compile_sparse, min_speedup=0.0))
    options = overhead.parse(["--model", "distilbert", "--small"])
    found = overhead.measure(options)
    assert found.profile.seconds > 0
    assert overhead.rest_share(found.profile) < 1


def test_a_busy_machine_is_noticed() -> None:
    assert overhead.core_share(lambda: time.sleep(0.01), rounds=3) < 0.5
    quiet, busy = (overhead.Overhead(Profile(0.01, 1, (), ()), share) for share in (0.99, 0.5))
    assert (quiet.is_noisy, busy.is_noisy) == (False, True)
    assert not overhead.Overhead(Profile(0.01, 2, (), ()), 0.5).is_noisy
