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
from sparsecomp.codegen.cpu.emit import Expr, i64
from sparsecomp.codegen.cpu.gathered_rows import RowsKernel, gathered_rows
from sparsecomp.codegen.layout import lay_out
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.stream import Stream
from sparsecomp.geometry import FLOAT, TILE, Planes
from sparsecomp.layer import Layer
from sparsecomp.region import RowsKernelChoice, Value


@dataclass(frozen=True)
class Space:
    """Where a layer's kernels read X and write Y, in tensors of their own."""

    x: Value
    y: Value
    copies: int
    """Threads that work apart, each on an item."""

    @staticmethod
    def of(stream: Stream, threads: int) -> Space:
        how = RowsKernelChoice(stream.pattern, stream.schedule)
        region = lay_out(single(stream.layer), [how], [stream.kept])
        (call,) = region.rows_calls
        copies = threads if items_of(stream.layer) >= threads else 1
        return Space(region.value[call.source], region.value[call.target], copies)

    @property
    def floats(self) -> tuple[int, int]:
        """Of the tensors of X and Y."""
        return size_of(self.x) * self.copies, size_of(self.y) * self.copies


def size_of(value: Value) -> int:
    """Floats of one copy."""
    return value_size(value) + 2 * SLACK


def items_of(layer: Layer) -> int:
    """Tiles of tokens, or images."""
    if layer.op == "linear":
        return math.ceil(math.prod(layer.input_shape[:-1]) / TILE)
    return layer.input_shape[0]


def tensors_of(stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """What a kernel takes before X and Y; never empty."""
    padded = stream.data if len(stream.data) else stream.data.new_zeros(1)
    index = stream.index if len(stream.index) else stream.index.new_zeros(1)
    return index, padded, stream.balance


def remote_module(streams: Sequence[Stream], machine: Machine, threads: int) -> tvm.IRModule:
    """Public functions `timed0`, `timed1`, ... of (index, data, balance, X, Y), one for each stream; the
    tensors must start where their memory does."""
    functions = {
        f"kernel{number}": gathered_rows(f"kernel{number}", _spec(stream, machine), machine)
        for number, stream in enumerate(streams)
    }
    module = tvm.IRModule(functions)
    names = {name: module.get_global_var(name) for name in functions}
    for number, stream in enumerate(streams):
        main = _timed(f"timed{number}", names[f"kernel{number}"], stream, machine, threads)
        module.update_func(tvm.ir.GlobalVar(f"timed{number}"), main)
    return module


def _spec(stream: Stream, machine: Machine) -> RowsKernel:
    target = Space.of(stream, 1).y.geometry
    columns = stream.kept if stream.pattern.shared else stream.layer.columns
    return RowsKernel(
        groups=stream.groups,
        columns=stream.kept,
        passes=max(1, -(-columns // stream.schedule.columns)),
        pattern=stream.pattern,
        schedule=stream.schedule,
        vectors=-(-target.columns // machine.lanes) if isinstance(target, Planes) else 0,
        target_plane=target.plane,
        operand_planes=(),
        epilogue="",
        masked=False,
    )


def _timed(
    name: str, kernel: tvm.ir.GlobalVar, stream: Stream, machine: Machine, threads: int
) -> tvm.tirx.PrimFunc:
    space, items = Space.of(stream, threads), items_of(stream.layer)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        tensors = [T.arg(label, T.handle("int64")) for label in ("index", "data", "balance", "x", "y")]
        *weights, x, y = [_address(tensor) for tensor in tensors]

        def call(item: Expr, copy: Expr, part: Expr, parts: int) -> None:
            places = [
                T.bind(start + (i64(copy) * size_of(value) + (SLACK + value.geometry.origin)) * FLOAT)
                for start, value in ((x, space.x), (y, space.y))
            ]
            vectors = _vectors(item, stream.layer, machine)
            arguments = [*weights, *places, places[0], part, T.int32(parts), vectors]
            T.evaluate(T.Call(kernel, arguments, ret_ty="void"))

        _walk(call, items, threads)
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


def _vectors(item: Expr, layer: Layer, machine: Machine) -> Expr:
    """Of an item of tokens; the last may have fewer. Images know theirs."""
    if layer.op != "linear":
        return T.int32(0)
    tokens = math.prod(layer.input_shape[:-1])
    left = T.bind(T.min(tokens - item * TILE, T.int32(TILE)))
    return T.truncdiv(left + (machine.lanes - 1), T.int32(machine.lanes))
