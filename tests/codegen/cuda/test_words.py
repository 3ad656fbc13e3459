"""Operations on words, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.emitter import Array, Expr, Parameter
from sparsecomp.codegen.cuda.pipeline import compile_serially
from sparsecomp.codegen.cuda.serial_emitter import SerialEmitter
from sparsecomp.codegen.cuda.words import byte_counts, funnel_shift, nibble_counts, select_bytes, word

WORDS = st.integers(0, 2**32 - 1)
EMIT = SerialEmitter()
OPERATIONS: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "nibbles": lambda a, b, c: nibble_counts(a),
    "bytes": lambda a, b, c: byte_counts(nibble_counts(a)),
    "select": lambda a, b, c: select_bytes(EMIT, a, b, c),
    "funnel": lambda a, b, c: funnel_shift(EMIT, a, b, c),
}


@cache
def compiled(name: str) -> Any:
    def body(source: Array, target: Array) -> None:
        with EMIT.grid((1,), 32), EMIT.threads() as thread:
            words = (word(source, thread * 0 + i) for i in range(3))
            target[0] = tvm.tirx.reinterpret("int32", OPERATIONS[name](*words))

    function = EMIT.function([Parameter("source", "int32", (3,)), Parameter("target", "int32", (1,))], body)
    return compile_serially(function)


def computed(name: str, *words: int) -> int:
    source = torch.tensor([*words, 0, 0][:3]).to(torch.uint32).view(torch.int32)
    target = torch.zeros(1, dtype=torch.int32)
    compiled(name)(source, target)
    return int(target) & 0xFFFFFFFF


@settings(deadline=None)
@given(WORDS)
def test_bits_are_counted_in_each_four_and_in_each_eight(bits: int) -> None:
    nibbles, octets = computed("nibbles", bits), computed("bytes", bits)
    assert [nibbles >> 4 * i & 15 for i in range(8)] == [(bits >> 4 * i & 15).bit_count() for i in range(8)]
    assert [octets >> 8 * i & 255 for i in range(4)] == [(bits >> 8 * i & 255).bit_count() for i in range(4)]


@settings(deadline=None)
@given(WORDS, WORDS, st.lists(st.integers(0, 7), min_size=4, max_size=4))
def test_bytes_are_chosen_of_two_words(low: int, high: int, places: list[int]) -> None:
    eight = (low | high << 32).to_bytes(8, "little")
    chosen = computed("select", low, high, sum(place << 4 * i for i, place in enumerate(places)))
    assert list(chosen.to_bytes(4, "little")) == [eight[place] for place in places]


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 2**20))
def test_two_words_are_shifted_as_one(low: int, high: int, shift: int) -> None:
    assert computed("funnel", low, high, shift) == (low | high << 32) >> shift % 32 & 0xFFFFFFFF
