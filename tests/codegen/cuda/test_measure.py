"""The choice among kernels on a GPU, by the times that a test gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsecomp.choice import DENSE
from sparsecomp.codegen.cuda.measure import TRIED, CudaMeter, structure
from sparsecomp.codegen.timings import Timings
from sparsecomp.layer import Layer
from sparsecomp.target import Target
from tests.codegen.cuda.null_gpu import NullGpu

TARGET = Target.parse("cuda:sm_90")
LAYER = Layer("fc", "linear", "fc.weight", (64, 128), (64, 128))


def sparse(density: float = 0.2, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(64, 128) * (torch.rand(64, 128) < density)).to(dtype)


def meter(gpu: NullGpu, timings: Timings | None = None) -> CudaMeter:
    return CudaMeter(TARGET, gpu, timings or Timings.in_memory())


def test_every_family_is_timed_or_refused_with_a_reason() -> None:
    gpu = NullGpu({DENSE: 2.0, "gathered rows": 1.0})
    dense, *found = meter(gpu).candidates(LAYER, sparse())
    assert (dense.kernel, dense.seconds) == (DENSE, 2.0)
    reasons = {candidate.kernel: candidate.refused for candidate in found if candidate.refused}
    assert reasons["2:4"] == "sparse tensor cores take float16 and bfloat16, not float32"
    (rows,) = [candidate for candidate in found if not candidate.refused]
    assert rows.seconds == 1.0
    assert rows.kernel.startswith("gathered rows")
    assert len(gpu.raced[0]) == 1 + TRIED


def test_of_a_family_the_fastest_kernel_stands() -> None:
    gpu = NullGpu({"gathered rows 64x128 K128": 0.25, "gathered rows": 0.5})
    best = min(c.seconds for c in meter(gpu).candidates(LAYER, sparse()) if c.how and c.seconds)
    assert best == 0.25


def test_what_was_measured_is_not_measured_again_for_a_weight_of_the_same_structure() -> None:
    gpu, timings = NullGpu(), Timings.in_memory()
    weight = sparse()
    first = meter(gpu, timings).candidates(LAYER, weight)
    assert meter(gpu, timings).candidates(LAYER, weight * 2) == first
    assert len(gpu.raced) == 1
    meter(gpu, timings).candidates(LAYER, sparse(0.4))
    assert len(gpu.raced) == 2


def test_dtypes_are_measured_apart() -> None:
    gpu, timings = NullGpu(), Timings.in_memory()
    layer = Layer("conv", "conv2d", "w", (8, 8, 3, 3), (1, 8, 9, 9))
    weight = torch.randn(8, 72) * (torch.rand(8, 72) < 0.2)
    for dtype in (torch.float32, torch.float16):
        meter(gpu, timings).candidates(layer, weight.to(dtype))
    assert len(gpu.raced) == 2


def test_a_doubted_time_is_measured_again_and_the_shorter_one_kept() -> None:
    gpu = NullGpu({"gathered rows": 0.5})
    asked, weight = meter(gpu), sparse()
    before = asked.candidates(LAYER, weight)
    gpu.times["gathered rows"] = 0.75
    asked.doubt(LAYER, weight)
    assert asked.candidates(LAYER, weight) == before
    assert len(gpu.raced) == 2


def test_a_weight_that_another_operator_needs_dense_stays() -> None:
    layer = Layer("fc", "linear", "w", (64, 128), (64, 128), held_by="aten.embedding")
    _, *found = meter(NullGpu()).candidates(layer, sparse())
    assert {c.refused for c in found} == {"its weight is also read by aten.embedding, which needs it dense"}


@pytest.mark.parametrize(
    ("layer", "weight", "why"),
    [
        (LAYER, torch.ones(64, 128), "100% of the weight are not zero"),
        (Layer("fc", "linear", "w", (64, 128), (1, 128)), torch.eye(64, 128), "leave most threads"),
        (LAYER, torch.ones(64, 128).half(), "tensor cores are faster"),
        (
            Layer("c", "conv2d", "w", (64, 1, 3, 3), (1, 64, 9, 9), groups=64),
            torch.zeros(64, 9),
            "64 groups of the convolution",
        ),
    ],
    ids=["dense", "one token", "half precision", "groups"],
)
def test_gathered_rows_are_refused(layer: Layer, weight: Tensor, why: str) -> None:
    _, *found = meter(NullGpu()).candidates(layer, weight)
    (refused,) = [c.refused for c in found if c.kernel == "gathered rows"]
    assert why in refused


def test_structure_tells_blocks_from_scattered_zeros_of_the_same_number() -> None:
    blocks = torch.zeros(64, 128)
    blocks[:32, :32] = 1
    scattered = torch.zeros(64 * 128)
    scattered[::8] = 1
    assert structure(blocks) != structure(scattered.reshape(64, 128))
