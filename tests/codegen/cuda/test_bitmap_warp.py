"""Which bytes of a window become which elements; the warp's numbers are tested with `bitmap_tiles`."""

from __future__ import annotations

import pytest

from sparsecomp.codegen.cuda.bitmap_warp import selector


@pytest.mark.parametrize("nibble", range(16))
def test_kept_elements_take_the_next_values_and_others_the_last(nibble: int) -> None:
    chosen = selector(nibble)
    values = [(chosen >> 8 * position & 15) // 2 for position in range(4)]
    assert [chosen >> 8 * position + 4 & 15 for position in range(4)] == [2 * value + 1 for value in values]
    kept = [value for position, value in enumerate(values) if nibble >> position & 1]
    assert kept == list(range(nibble.bit_count()))
    assert all(value == 3 for position, value in enumerate(values) if not nibble >> position & 1)
