"""Conversions between PyTorch's layouts and ours, and splits of an image into its phases."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, i64, kernel, load, share, store
from sparsecomp.codegen.machine import Machine
from sparsecomp.region import Phases

IN_OUT = [("x", "float32"), ("y", "float32")]


@dataclass(frozen=True)
class EnterTokens:
    """tokens x channels -> tile; the token vectors past the last token repeat it, so nothing is read outside."""

    channels: int
    tile: int


def enter_tokens(name: str, spec: EnterTokens, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many, number of tokens. Parts share the channels."""
    lanes = machine.lanes

    def body(x: Expr, y: Expr, part: Expr, parts: Expr, tokens: Expr) -> None:
        low, high = share(spec.channels, part, parts)
        whole = T.bind(T.truncdiv(tokens, T.int32(lanes)))
        padded = T.bind(T.truncdiv(tokens + (lanes - 1), T.int32(lanes)) * lanes)
        with T.serial(whole) as vector:
            first = T.bind(i64(vector) * lanes)
            with T.serial(high - low) as relative:
                channel = T.bind(i64(low + relative))
                row = load(x, first * spec.channels + channel, lanes, stride=spec.channels)
                store(y, row, channel * spec.tile + first, lanes)
        with T.serial(padded - whole * lanes) as rest:
            token = T.bind(whole * lanes + rest)
            source = T.bind(i64(T.min(token, tokens - 1)) * spec.channels)
            with T.serial(high - low) as relative:
                channel = T.bind(i64(low + relative))
                T.buffer_store(y, x[source + channel], [channel * spec.tile + i64(token)])

    return kernel(name, IN_OUT, ["part", "parts", "tokens"], body)


@dataclass(frozen=True)
class ExitTokens:
    """tile -> tokens x channels."""

    channels: int
    tile: int


def exit_tokens(name: str, spec: ExitTokens, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many, number of tokens. Parts share the blocks of `lanes` channels."""
    lanes, whole = machine.lanes, spec.channels // machine.lanes

    def body(x: Expr, y: Expr, part: Expr, parts: Expr, tokens: Expr) -> None:
        low, high = share(-(-spec.channels // lanes), part, parts)
        stop = T.bind(T.min(high, T.int32(whole)))
        with T.serial(T.max(stop - low, 0)) as relative:
            channel = T.bind(i64(low + relative) * lanes)
            with T.serial(tokens) as token:
                column = load(x, channel * spec.tile + i64(token), lanes, stride=spec.tile)
                store(y, column, i64(token) * spec.channels + channel, lanes)
        with T.If(high > whole), T.Then(), T.serial(T.int32(spec.channels - whole * lanes)) as rest:
            channel = T.bind(i64(rest) + whole * lanes)
            with T.serial(tokens) as token:
                value = x[channel * spec.tile + i64(token)]
                T.buffer_store(y, value, [i64(token) * spec.channels + channel])

    return kernel(name, IN_OUT, ["part", "parts", "tokens"], body)


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


@dataclass(frozen=True)
class CopyPlanes:
    """y[c * phases + p][h, w] = x[c][h * stride + phase]; zero where that lies outside x.

    Planes are given by distance between planes and rows, so PyTorch's own layout is a case of it.
    """

    channels: int
    """Of x."""
    height: int
    width: int
    source: tuple[int, int]
    """Distance between planes and between rows of x, in floats."""
    target: tuple[int, int]
    stride: tuple[int, int]
    phases: Phases


UNROLLED = 4
"""Most phases whose copies are written out one after the other; a stride of two has as many."""


def copy_planes(name: str, spec: CopyPlanes, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y (both at position 0, 0); which part of how many. Parts share the channels of x."""

    def body(x: Expr, y: Expr, part: Expr, parts: Expr) -> None:
        low, high = share(spec.channels, part, parts)
        with T.serial(high - low) as relative:
            channel = T.bind(i64(low + relative))
            count = len(spec.phases)
            block = _block(spec.phases)
            if count <= UNROLLED or block is None:
                for position, (top, left) in enumerate(spec.phases):
                    _copy_phase(spec, x, y, channel, channel * count + position, top, left)
            else:
                with T.serial(block[0]) as top, T.serial(block[1]) as left:
                    plane = channel * count + i64(top * block[1] + left)
                    _copy_phase(spec, x, y, channel, plane, top, left)

    return kernel(name, IN_OUT, ["part", "parts"], body)


def _block(phases: Phases) -> tuple[int, int] | None:
    """Numbers of row and column phases, where all from zero on are there, in the order of rows."""
    height, width = (1 + max(phase[axis] for phase in phases) for axis in (0, 1))
    whole = tuple((top, left) for top in range(height) for left in range(width))
    return (height, width) if whole == phases else None


def _copy_phase(
    spec: CopyPlanes, x: Expr, y: Expr, channel: Expr, plane: Expr, top: Expr, left: Expr
) -> None:
    """One plane of y; its phase may be known at run time only."""
    step_h, step_w = spec.stride
    rows, columns = _ceildiv(spec.height, step_h), _ceildiv(spec.width, step_w)
    filled_rows = T.bind(T.int32(0) + _ceildiv(spec.height - top, step_h))
    filled_columns = T.bind(T.int32(0) + _ceildiv(spec.width - left, step_w))
    target = T.bind(plane * spec.target[0])
    origin = T.bind(channel * spec.source[0] + i64(top) * spec.source[1] + i64(left))
    with T.serial(filled_rows) as h:
        start = T.bind(target + i64(h) * spec.target[1])
        source = T.bind(origin + i64(h) * (step_h * spec.source[1]))
        with T.serial(filled_columns) as w:
            T.buffer_store(y, x[source + i64(w) * step_w], [start + i64(w)])
        _clear(y, start + i64(filled_columns), columns - filled_columns)
    with T.serial(rows - filled_rows) as rest:
        _clear(y, target + i64(filled_rows + rest) * spec.target[1], T.int32(columns))


def _ceildiv(extent: Expr, step: int) -> Expr:
    """Of a positive sum: `extent` is greater than `-step`."""
    return -(-extent // step) if isinstance(extent, int) else T.truncdiv(extent + (step - 1), T.int32(step))


def _clear(y: Expr, start: Expr, count: Expr) -> None:
    with T.serial(count) as w:
        T.buffer_store(y, T.float32(0), [start + i64(w)])
