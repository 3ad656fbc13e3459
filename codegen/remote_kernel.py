"""Kernels of one layer as functions of tensors, for a device whose addresses are not known here.

Where a compiled region takes a table of addresses, these take the tensors themselves, which TVM's RPC places on
the device, and find the addresses there. What they do with the threads is what a region does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from torch import Tensor
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import SLACK, value_size
from sparsecomp.codegen.call import single
from sparsecomp.codegen.calls import RULES, last_argument, order_arguments, specify
from sparsecomp.codegen.cpu.emit import Expr, i64
from sparsecomp.codegen.layout import lay_out
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.stream import Stream
from sparsecomp.geometry import FLOAT
from sparsecomp.layer import Layer
from sparsecomp.region import Region, Rows, RowsKernelChoice, Value


@dataclass(frozen=True)
class Space:
    """A layer's kernel, and where it reads X and writes Y, in tensors of their own."""

    region: Region
    call: Rows
    items: int
    """Tiles of tokens, or images."""
    copies: int
    """Threads that work apart, each on an item."""

    @staticmethod
    def of(stream: Stream, threads: int) -> Space:
        how = RowsKernelChoice(stream.pattern, stream.schedule)
        region = lay_out(single(stream.layer, tokens_first=how.tokens_first), [how], [stream.kept])
        (call,) = region.rows_calls
        items = _items(stream.layer, region)
        return Space(region, call, items, threads if items >= threads else 1)

    @property
    def x(self) -> Value:
        return self.region.value[self.call.source]

    @property
    def y(self) -> Value:
        return self.region.value[self.call.target]

    @property
    def floats(self) -> tuple[int, int]:
        """Of the tensors of X and Y."""
        return size_of(self.x) * self.copies, size_of(self.y) * self.copies


def _items(layer: Layer, region: Region) -> int:
    if region.tokens is None:
        return layer.input_shape[0]
    return math.ceil(math.prod(layer.input_shape[:-1]) / region.tokens.tile)


def size_of(value: Value) -> int:
    """Floats of one copy."""
    return value_size(value) + 2 * SLACK


def tensors_of(stream: Stream) -> tuple[Tensor, ...]:
    """What a kernel takes before X and Y; never empty."""
    return tuple(part if len(part) else part.new_zeros(1) for part in stream.parts)


def remote_module(streams: Sequence[Stream], machine: Machine, threads: int) -> tvm.IRModule:
    """Public functions `timed0`, `timed1`, ... of (index, data, balance, order, X, Y), one for each stream; the
    tensors must start where their memory does."""
    spaces = [Space.of(stream, threads) for stream in streams]
    functions = {}
    for number, space in enumerate(spaces):
        spec = specify(space.call, space.region, machine)
        functions[f"kernel{number}"] = RULES[type(spec)](f"kernel{number}", spec, machine)
    module = tvm.IRModule(functions)
    names = {name: module.get_global_var(name) for name in functions}
    for number, (space, stream) in enumerate(zip(spaces, streams, strict=True)):
        main = _timed(f"timed{number}", names[f"kernel{number}"], space, stream.layer, machine, threads)
        module.update_func(tvm.ir.GlobalVar(f"timed{number}"), main)
    return module


def _timed(
    name: str, kernel: tvm.ir.GlobalVar, space: Space, layer: Layer, machine: Machine, threads: int
) -> tvm.tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        tensors = [
            T.arg(label, T.handle("int64")) for label in ("index", "data", "balance", "order", "x", "y")
        ]
        *weights, x, y = [_address(tensor) for tensor in tensors]

        def call(item: Expr, copy: Expr, part: Expr, parts: int) -> None:
            places = [
                T.bind(start + (i64(copy) * size_of(value) + (SLACK + value.geometry.origin)) * FLOAT)
                for start, value in ((x, space.x), (y, space.y))
            ]
            addresses = order_arguments(space.call.schedule, weights, (*places, places[0]))
            numbers = [part, T.int32(parts), *_extent(item, layer, space, machine)]
            T.evaluate(T.Call(kernel, [*addresses, *numbers], ret_ty="void"))

        _walk(call, space.items, threads)
    return builder.get()


def _walk(call: Any, items: int, threads: int) -> None:
    """As a region walks its items: one thread all of them, many threads each its own, or all the same one."""
    if threads == 1:
        with T.serial(T.int32(items)) as item:
            call(item, T.int32(0), T.int32(0), 1)
    elif items >= threads:
        with T.parallel(T.int32(threads)) as thread:
            low = T.bind(T.truncdiv(thread * items, T.int32(threads)))
            high = T.bind(T.truncdiv((thread + 1) * items, T.int32(threads)))
            with T.serial(high - low) as relative:
                call(T.bind(low + relative), thread, T.int32(0), 1)
    else:
        with T.serial(T.int32(items)) as item, T.parallel(T.int32(threads)) as thread:
            call(item, T.int32(0), thread, threads)


def _address(tensor: Expr) -> Expr:
    """Of a tensor's elements: the first field of its description, a DLTensor. (A pointer cannot be turned into an
    integer: TVM does not build `T.reinterpret` of one.)"""
    return T.bind(T.decl_buffer((1,), "int64", data=tensor, align=8)[0])


def _extent(item: Expr, layer: Layer, space: Space, machine: Machine) -> list[Expr]:
    """The last number that the kernel takes, if it takes one: tokens, vectors of columns, or bands."""
    tokens, lanes = space.region.tokens, machine.lanes
    left = T.int32(0)
    if tokens is not None:
        count = math.prod(layer.input_shape[:-1])
        left = T.bind(T.min(count - item * tokens.tile, T.int32(tokens.tile)))
    match last_argument(space.call, space.region):
        case "tokens":
            return [left]
        case "vectors":
            return [T.truncdiv(left + (lanes - 1), T.int32(lanes))]
        case "bands":
            return [T.int32(1)]
    return []
