"""Copies between PyTorch's layouts and ours against indexing in PyTorch, between values that must not be touched."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.cpu.planes import CopyPlanes, copy_planes
from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import FLOAT, Taps
from sparsecomp.layer import Layer
from sparsecomp.region import WHOLE, Phases
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded

PAGE = mmap.PAGESIZE
NO_ACCESS = 0


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


class Fenced:
    """Copies of a tensor that begin after, and end before, a page that nobody may read."""

    def __init__(self, x: Tensor) -> None:
        size = x.numel() * FLOAT
        room = -(-size // PAGE) * PAGE
        self._memory = mmap.mmap(-1, room + 2 * PAGE)
        whole = torch.frombuffer(self._memory, dtype=torch.float32)
        first, end = PAGE // FLOAT, (PAGE + room) // FLOAT
        self.copies = [whole[first : first + x.numel()], whole[end - x.numel() : end]]
        self._x = x.flatten()
        self._fences = [whole.data_ptr(), whole.data_ptr() + PAGE + room]

    def __enter__(self) -> Self:
        self._protect(NO_ACCESS)
        return self

    def __exit__(self, *_: object) -> None:
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)

    def filled(self, number: int) -> Tensor:
        self.copies[number].copy_(self._x)
        return self.copies[number]

    def _protect(self, allowed: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for fence in self._fences:
            assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), allowed) == 0


# Images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    channels: int
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    phases: Phases = WHOLE
    source_gaps: tuple[int, int] = (0, 0)
    """Floats between planes and between rows of x, and of y."""
    target_gaps: tuple[int, int] = (0, 0)
    machine: int = 0

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.channels}x{height}x{width} by {self.stride} in {len(self.phases)}, {self.on}"

    @property
    def target_size(self) -> tuple[int, int]:
        return -(-self.size[0] // self.stride[0]), -(-self.size[1] // self.stride[1])

    @property
    def spec(self) -> CopyPlanes:
        source = distances(self.size, self.source_gaps)
        target = distances(self.target_size, self.target_gaps)
        return CopyPlanes(self.channels, *self.size, source, target, self.stride, self.phases)

    @property
    def on(self) -> Machine:
        return MACHINES[self.machine]


def distances(size: tuple[int, int], gaps: tuple[int, int]) -> tuple[int, int]:
    row = size[1] + gaps[1]
    return size[0] * row + gaps[0], row


def pixels(buffer: Tensor, size: tuple[int, int], distance: tuple[int, int]) -> Tensor:
    """planes x height x width of a buffer of planes."""
    return buffer.as_strided((len(buffer), *size), (*distance, 1), buffer.storage_offset())


def meaning(x: Tensor, case: Images) -> Tensor:
    y = torch.zeros(case.channels, len(case.phases), *case.target_size)
    for position, (top, left) in enumerate(case.phases):
        phase = x[:, top :: case.stride[0], left :: case.stride[1]]
        y[:, position, : phase.shape[1], : phase.shape[2]] = phase
    return y.flatten(0, 1)


def check_images(case: Images, parts: int = 1) -> None:
    spec, x = case.spec, torch.randn(case.channels, *case.size)
    planes = torch.full((case.channels, spec.source[0]), torch.nan)
    pixels(planes, case.size, spec.source).copy_(x)
    y = Output(case.channels * len(case.phases), spec.target[0])
    in_parts(compiled(copy_planes, spec, case.on), [surrounded(planes), y.tensor], parts)
    y.check()
    found = pixels(y.tensor, case.target_size, spec.target)
    torch.testing.assert_close(found, meaning(x, case), rtol=0, atol=0)
    assert int((~y.tensor.isnan()).sum()) == found.numel(), "stored between rows or planes"


@st.composite
def images(draw: st.DrawFn) -> Images:
    def axis() -> tuple[int, int, int, int, int]:
        """Size, kernel, stride, padding, dilation."""
        size, kernel, dilation = draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 2))
        return (
            max(size, dilation * (kernel - 1) + 1),
            kernel,
            draw(st.integers(1, 4)),
            draw(st.integers(0, 3)),
            dilation,
        )

    (h, kh, sh, ph, dh), (w, kw, sw, pw, dw) = axis(), axis()
    layer = Layer(
        "conv",
        "conv2d",
        "w",
        (1, 1, kh, kw),
        (1, 1, h, w),
        stride=(sh, sw),
        padding=(ph, ph, pw, pw),
        dilation=(dh, dw),
    )
    gaps = st.tuples(st.integers(0, 20), st.sampled_from([0, 0, 1, 2, 5]))
    return Images(
        draw(st.sampled_from([1, 2, 3, 40])),
        (h, w),
        (sh, sw),
        Taps.of(layer).phases,
        draw(gaps),
        draw(gaps),
        draw(st.sampled_from([0, 0, 1, 2])),
    )


@examples(50)
@given(images(), st.integers(1, 5))
def test_images(case: Images, parts: int) -> None:
    check_images(case, parts)


def patches(size: int) -> Phases:
    return tuple((top, left) for top in range(size) for left in range(size))


@pytest.mark.parametrize(
    "case",
    [
        Images(2, (32, 224), (16, 16), patches(16), target_gaps=(3, 1)),
        Images(2, (28, 224), (14, 14), patches(14)),
        Images(1, (64, 384), (32, 32), patches(32), machine=1),
        Images(2, (37, 103), (6, 6), patches(6), target_gaps=(0, 2)),
        Images(1, (20, 20), (7, 7), patches(7), machine=2),
        Images(3, (23, 50), (11, 11), ((0, 0), (0, 3), (10, 10), (2, 1)), source_gaps=(1, 2)),
        Images(1, (5, 700), (2, 2), patches(2)),
        Images(1, (3, 1411), (1, 2), ((0, 1),), machine=2),
        Images(2, (40, 41), source_gaps=(7, 0), target_gaps=(5, 0)),
        Images(1, (4, 1000), source_gaps=(7, 2)),
    ],
    ids=str,
)
def test_wide_images(case: Images) -> None:
    check_images(case, parts=3)


@examples(12)
@given(images())
def test_images_read_inside_only(case: Images) -> None:
    x = torch.randn(case.channels, *case.size)
    case = Images(case.channels, case.size, case.stride, case.phases, machine=case.machine)
    run = compiled(copy_planes, case.spec, case.on)
    with Fenced(x) as source, Fenced(torch.zeros_like(meaning(x, case))) as target:
        for number in range(2):
            y = target.filled(number)
            in_parts(run, [source.filled(number), y], 1)
            assert bool((y == meaning(x, case).flatten()).all())
