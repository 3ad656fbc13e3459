"""The search for the fastest kernels on a GPU, by the times that a test gives."""

from __future__ import annotations

import pytest
import torch

from sparsecomp import autotune
from sparsecomp.choice import DENSE
from sparsecomp.codegen.cuda.measure import CudaMeter
from sparsecomp.codegen.cuda.tune import TRIALS_PER_CALL, tune
from sparsecomp.codegen.timings import Timings
from sparsecomp.errors import InputError
from sparsecomp.layer import Layer
from sparsecomp.progress import Watch
from sparsecomp.target import Target
from sparsecomp.tuning import Budget
from tests.codegen.cuda.null_gpu import NullGpu

LAYER = Layer("fc", "linear", "fc.weight", (64, 128), (64, 128))
WEIGHT = torch.randn(64, 128) * (torch.arange(64 * 128).reshape(64, 128) % 5 == 0)
LATE = "gathered rows 32x128 K32"
"""None that a compilation tries."""


def meter(gpu: NullGpu, timings: Timings) -> CudaMeter:
    return CudaMeter(Target.parse("cuda:sm_90"), gpu, timings)


def test_a_search_finds_what_a_compilation_does_not_try_and_later_ones_take_it() -> None:
    gpu, timings = NullGpu({DENSE: 1.0, LATE: 0.2, "gathered": 0.5}), Timings.in_memory()
    report = tune([(LAYER, WEIGHT), (LAYER, 2 * WEIGHT)], meter(gpu, timings), Budget(), Watch())
    (call,) = report.calls
    assert call.layers == ("fc", "fc")
    assert call.tuned.startswith(LATE)
    assert (call.default_seconds, call.tuned_seconds, call.dense_seconds) == (0.5, 0.2, 1.0)
    assert 0 < report.trials <= TRIALS_PER_CALL
    found = [c for c in meter(gpu, timings).candidates(LAYER, WEIGHT) if c.how]
    assert [c.seconds for c in found] == [0.2]
    assert found[0].kernel.startswith(LATE)


def test_what_is_hardly_faster_replaces_nothing() -> None:
    gpu, timings = NullGpu({LATE: 0.495, "gathered": 0.5}), Timings.in_memory()
    (call,) = tune([(LAYER, WEIGHT)], meter(gpu, timings), Budget(), Watch()).calls
    assert call.tuned == call.default


def test_a_budget_of_trials_is_kept_and_the_next_search_goes_on() -> None:
    gpu, timings = NullGpu({"gathered": 0.5}), Timings.in_memory()
    first = tune([(LAYER, WEIGHT)], meter(gpu, timings), Budget(trials=3), Watch())
    before = len(gpu.raced)
    second = tune([(LAYER, WEIGHT)], meter(gpu, timings), Budget(trials=3), Watch())
    assert (first.trials, second.trials) == (3, 3)
    raced = [set(labels) for labels in gpu.raced]
    assert raced[before - 1] & raced[-1] <= {DENSE, first.calls[0].tuned}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_search_says_what_to_do() -> None:
    with pytest.raises(InputError, match="sees no CUDA device"):
        autotune(torch.nn.Linear(4, 4).eval(), (torch.randn(2, 4),), device="cuda")
