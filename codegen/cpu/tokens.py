"""Tokens between PyTorch's layout and ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, i64, kernel, load, share, store
from sparsecomp.codegen.cpu.runs import fitting, transposed
from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import LINE

IN_OUT = [("x", "float32"), ("y", "float32")]


@dataclass(frozen=True)
class EnterTokens:
    """tokens x channels -> tile; the token vectors past the last token repeat it, so nothing is read outside."""

    channels: int
    tile: int


def enter_tokens(name: str, spec: EnterTokens, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many, number of tokens. Parts share the tokens."""
    lanes, size = machine.lanes, fitting(spec.channels, machine.lanes)

    def body(x: Expr, y: Expr, part: Expr, parts: Expr, tokens: Expr) -> None:
        padded = T.truncdiv(tokens + (lanes - 1), T.int32(lanes)) * (lanes // size)
        # Squares that write the same cache lines follow one another; those of an exit do so by themselves.
        together = max(1, LINE // size)
        with _squares(spec.channels, size, padded, part, parts, together) as (first, channel):
            token = [T.bind(i64(T.min(first + i, tokens - 1)) * spec.channels) for i in range(size)]
            rows = [T.bind(load(x, start + channel, size)) for start in token]
            for i, column in enumerate(transposed(rows)):
                store(y, column, (channel + i) * spec.tile + i64(first), size)

    return kernel(name, IN_OUT, ["part", "parts", "tokens"], body)


@dataclass(frozen=True)
class ExitTokens:
    """tile -> tokens x channels."""

    channels: int
    tile: int


def exit_tokens(name: str, spec: ExitTokens, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many, number of tokens. Parts share the tokens."""
    size = fitting(spec.channels, machine.lanes)

    def body(x: Expr, y: Expr, part: Expr, parts: Expr, tokens: Expr) -> None:
        numbers = T.truncdiv(tokens + (size - 1), T.int32(size))
        with _squares(spec.channels, size, numbers, part, parts) as (first, channel):
            columns = [T.bind(load(x, (channel + i) * spec.tile + i64(first), size)) for i in range(size)]
            # Backwards, so that what lies past the last token is stored in its place and then replaced by it.
            for i, row in reversed(list(enumerate(transposed(columns)))):
                token = T.bind(i64(T.min(first + i, tokens - 1)))
                store(y, row, token * spec.channels + channel, size)

    return kernel(name, IN_OUT, ["part", "parts", "tokens"], body)


@contextmanager
def _squares(
    channels: int, size: int, numbers: Expr, part: Expr, parts: Expr, together: int = 1
) -> Iterator[tuple[Expr, Expr]]:
    """The first token and the first channel of each square of a part; `numbers` squares in a row hold the tokens.

    The last channels are in a square that overlaps the one before it rather than reach beyond them. Tokens are the outer loop because they are
    often a multiple of a page apart: one square after the other then goes on in the same few pages. Only
    `together` squares of tokens follow one another.
    """
    numbers = T.bind(numbers)
    low, high = share(T.truncdiv(numbers + (together - 1), T.int32(together)), part, parts)
    with T.serial(high - low) as relative:
        begin = T.bind((low + relative) * together)
        count = T.bind(T.min(numbers - begin, T.int32(together)))
        with T.serial(T.int32(-(-channels // size))) as square:
            channel = T.bind(i64(T.min(square * size, T.int32(channels - size))))
            with T.serial(count if together > 1 else T.int32(1)) as inside:
                yield T.bind((begin + inside) * size), channel


@dataclass(frozen=True)
class CopyRows:
    """tokens x channels -> the same: what the kernel for few tokens reads lies as PyTorch has it."""

    channels: int


def copy_rows(name: str, spec: CopyRows, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many, number of tokens. Parts share the floats."""

    def body(x: Expr, y: Expr, part: Expr, parts: Expr, tokens: Expr) -> None:
        size = T.bind(i64(tokens) * spec.channels)
        low = T.bind(T.truncdiv(i64(part) * size, i64(parts)))
        high = T.bind(T.truncdiv((i64(part) + 1) * size, i64(parts)))
        with T.serial(high - low) as relative:
            T.buffer_store(y, x[low + relative], [low + relative])

    return kernel(name, IN_OUT, ["part", "parts", "tokens"], body)
