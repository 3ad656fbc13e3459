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


def copy_planes(name: str, spec: CopyPlanes, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y (both at position 0, 0); which part of how many. Parts share the channels of x."""
    rows, columns = (
        -(-extent // step) for extent, step in zip((spec.height, spec.width), spec.stride, strict=True)
    )

    def body(x: Expr, y: Expr, part: Expr, parts: Expr) -> None:
        low, high = share(spec.channels, part, parts)
        with T.serial(high - low) as relative:
            channel = T.bind(i64(low + relative))
            for position, (top, left) in enumerate(spec.phases):
                plane = T.bind((channel * len(spec.phases) + position) * spec.target[0])
                filled_rows = max(0, -(-(spec.height - top) // spec.stride[0]))
                filled_columns = max(0, -(-(spec.width - left) // spec.stride[1]))
                with T.serial(T.int32(filled_rows)) as h:
                    start = T.bind(plane + i64(h) * spec.target[1])
                    source = T.bind(
                        channel * spec.source[0] + (i64(h) * spec.stride[0] + top) * spec.source[1] + left
                    )
                    with T.serial(T.int32(filled_columns)) as w:
                        T.buffer_store(y, x[source + i64(w) * spec.stride[1]], [start + i64(w)])
                    _clear(y, start + filled_columns, columns - filled_columns)
                for h in range(filled_rows, rows):
                    _clear(y, plane + h * spec.target[1], columns)

    return kernel(name, IN_OUT, ["part", "parts"], body)


def _clear(y: Expr, start: Expr, count: int) -> None:
    if count:
        with T.serial(T.int32(count)) as w:
            T.buffer_store(y, T.float32(0), [start + i64(w)])
