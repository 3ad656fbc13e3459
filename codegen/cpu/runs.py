"""Runs of floats moved in whole vectors. Nothing outside a run is read or written, and no mask is needed: the
last vector overlaps the one before it, and a short run takes a shorter vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, i64, load, splat, store

UNROLLED = 16
"""Most vectors of a run that are written out one after the other."""


def fitting(count: int, lanes: int) -> int:
    """Lanes of the longest vector that a run of `count` floats holds."""
    return min(lanes, 1 << (count.bit_length() - 1))


def starts(count: int, lanes: int) -> list[int]:
    """Where vectors begin that cover a run of at least `lanes` floats and stay inside it."""
    return [*range(0, count - lanes, lanes), count - lanes]


def over_run(count: int, lanes: int, body: Callable[[Expr], None], unrolled: int = UNROLLED) -> None:
    """`body` for each of `starts`, in a loop where there are many."""
    done = 0
    if count > 2 * unrolled * lanes:
        turns = count // (unrolled * lanes)
        done = turns * unrolled * lanes
        with T.serial(T.int32(turns)) as turn:
            first = T.bind(i64(turn) * (unrolled * lanes))
            for i in range(unrolled):
                body(first + i * lanes)
    for start in starts(count, lanes):
        if start + lanes > done:
            body(T.int64(start))


def copy_run(x: Expr, y: Expr, source: Expr, target: Expr, count: int, lanes: int) -> None:
    size = fitting(count, lanes)

    def copy(start: Expr) -> None:
        store(y, load(x, source + start, size), target + start, size)

    over_run(count, size, copy)


def clear_run(y: Expr, target: Expr, count: int, lanes: int) -> None:
    size = fitting(count, lanes)
    zero = splat(0.0, size) if size > 1 else T.float32(0)
    over_run(count, size, lambda start: store(y, zero, target + start, size))


def transposed(rows: Sequence[Expr]) -> list[Expr]:
    """Columns of a square of vectors, whose length is a power of two.

    First squares of four within each 128 bits, then the quarters: each step is one instruction for every
    length of vectors, while steps that cross the quarters float by float are not.
    """
    size = len(rows)
    block = min(4, size)
    squares = [_columns(rows[first : first + block], 1, block, size) for first in range(0, size, block)]
    columns = [_columns(across, block, size, size) for across in zip(*squares, strict=True)]
    return [column for quarter in zip(*columns, strict=True) for column in quarter]


def _columns(rows: Sequence[Expr], grain: int, block: int, lanes: int) -> list[Expr]:
    """Each block of the vectors is a row of pieces of `grain` floats: those in the same place, together."""
    if len(rows) == 1:
        return list(rows)
    even, odd = (
        _columns(
            [
                shuffle([a, b], _every_other(parity, grain, block, lanes))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ],
            grain,
            block,
            lanes,
        )
        for parity in (0, 1)
    )
    return [column for pair in zip(even, odd, strict=True) for column in pair]


def _every_other(parity: int, grain: int, block: int, lanes: int) -> list[int]:
    """Of two vectors, block by block: the even or the odd pieces of the first, then those of the second."""
    indices = []
    for lane in range(lanes):
        piece, inside = divmod(lane % block, grain)
        second, chosen = divmod(2 * piece + parity, block // grain)
        indices.append(second * lanes + lane - lane % block + chosen * grain + inside)
    return indices


def shuffle(vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """These lanes of the vectors laid end to end."""
    return T.bind(T.Shuffle(list(vectors), [T.int32(index) for index in indices]))
