"""Tokens between PyTorch's layout and ours."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, i64, kernel, load, share, store
from sparsecomp.codegen.machine import Machine

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
