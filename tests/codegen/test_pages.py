"""Memory in large pages holds what was put there, wherever it lies."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp.codegen.pages import CHUNK, LARGE, LINE, SMALL, Pages, zeros

DTYPES = (torch.float32, torch.int32, torch.int64, torch.uint8, torch.float16)


@given(st.lists(st.tuples(st.integers(0, 3 * SMALL), st.sampled_from(DTYPES)), max_size=8))
def test_placed_tensors_equal_their_originals_and_do_not_overlap(
    wanted: list[tuple[int, torch.dtype]],
) -> None:
    room = Pages()
    originals = [torch.arange(count).to(dtype) for count, dtype in wanted]
    placed = [room.place(tensor) for tensor in originals]
    for original, found in zip(originals, placed, strict=True):
        assert found.dtype == original.dtype
        assert found.shape == original.shape
        assert torch.equal(found, original)


def test_a_tensor_keeps_its_shape_and_starts_on_a_line() -> None:
    room = Pages()
    first, second = (room.place(torch.rand(101, 257)) for _ in range(2))
    assert first.shape == (101, 257)
    assert first.data_ptr() % LARGE == 0
    assert second.data_ptr() % LINE == 0
    assert 0 < second.data_ptr() - first.data_ptr() < first.nbytes + LINE


def test_a_small_tensor_stays_where_it_is() -> None:
    tensor = torch.rand(SMALL // 4 - 1)
    assert Pages().place(tensor) is tensor


def test_a_tensor_larger_than_a_chunk_has_its_own() -> None:
    room = Pages()
    before = room.place(torch.rand(SMALL))
    large = torch.rand(CHUNK // 4 + 1)
    assert torch.equal(room.place(large), large)
    assert torch.equal(room.place(before), before)


def test_zeros_are_zeros_and_can_be_written_to() -> None:
    for count in (0, 1, LARGE // 4 + 3):
        found = zeros(count)
        assert found.shape == (count,)
        assert found.dtype == torch.float32
        assert not found.any()
        found += 1
        assert found.sum() == count


def test_memory_is_given_back_with_the_last_tensor_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Region(mmap.mmap):
        """One that can be watched."""

    made: list[weakref.ref[mmap.mmap]] = []

    def watched(*arguments: int) -> mmap.mmap:
        region = Region(*arguments)
        made.append(weakref.ref(region))
        return region

    monkeypatch.setattr(mmap, "mmap", watched)
    room = Pages()
    first, second = (room.place(torch.rand(SMALL)) for _ in range(2))
    del room, first
    gc.collect()
    (region,) = made
    assert region() is not None
    assert second.sum() > 0
    del second
    gc.collect()
    assert region() is None


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
def test_a_system_that_refuses_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 10**6)
    assert zeros(LARGE).numel() == LARGE


ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="large pages are switched off here"
)
def test_large_pages_are_what_it_gets() -> None:
    held = _large_bytes()
    tensor = Pages().place(torch.ones(8 * LARGE))
    assert _large_bytes() - held >= tensor.nbytes // 2  # the system may be short of them


def _large_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))
