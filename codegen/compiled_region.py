"""A region -> one compiled function, and the function with its weights -> something that runs on tensors."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import Arena, ArenaPool, plan_arena
from sparsecomp.codegen.cpu.borders import (
    CopyPlanes,
    EnterTokens,
    ExitTokens,
    copy_planes,
    enter_tokens,
    exit_tokens,
)
from sparsecomp.codegen.cpu.emit import UNBOUNDED, Expr, i64
from sparsecomp.codegen.cpu.gathered_rows import RowsKernel, gathered_rows
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.stream import SHARES, Stream, StreamStore
from sparsecomp.codegen.threads import share_pytorch_threads, team_of
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.errors import LoweringError
from sparsecomp.geometry import FLOAT, ROW_BLOCK, Planes, round_up
from sparsecomp.program import Body
from sparsecomp.region import Border, Call, Enter, Exit, Region, Rows, Split

MAIN = "region"
RULES = {
    RowsKernel: gathered_rows,
    EnterTokens: enter_tokens,
    ExitTokens: exit_tokens,
    CopyPlanes: copy_planes,
}
"""Which file makes which kernel."""


@dataclass(frozen=True)
class Table:
    """The pointers a region's function is called with, as positions in one int64 table.

    inputs | outputs | (index, stream, balance) of each weight | vectors | masks | arena
    """

    region: Region
    masks: tuple[Planes, ...]

    @property
    def outputs(self) -> int:
        return len(self.region.inputs)

    @property
    def weights(self) -> int:
        return self.outputs + len(self.region.outputs)

    @property
    def vectors(self) -> int:
        return self.weights + 3 * len(self.region.rows_calls)

    @property
    def mask_start(self) -> int:
        return self.vectors + sum(len(call.vectors) for call in self.region.rows_calls)

    @property
    def arena(self) -> int:
        return self.mask_start + len(self.masks)


@dataclass(frozen=True)
class Code:
    """A region's compiled function, without weights."""

    region: Region
    table: Table
    arena: Arena
    run: Any = field(repr=False)
    module: Any = field(repr=False)

    def source(self, kind: str = "asm") -> str:
        """Generated code, "asm" or "ll" (LLVM IR)."""
        return str(self.module.mod.inspect_source(kind))


@lru_cache(maxsize=512)
def compile_region(region: Region, machine: Machine, kernels_only: bool = False) -> Code:
    """Equal regions share their code: regions name nothing of the model they came from.

    With `kernels_only` conversions are left out, to time the kernels alone; the outputs are then undefined.
    """
    region.check()
    masks = {v.geometry: None for _, v in region.values if v.zero_pads and isinstance(v.geometry, Planes)}
    table, arena = Table(region, tuple(masks)), plan_arena(region)
    calls = region.rows_calls if kernels_only else region.calls
    module = _Builder(region, table, arena, machine).module(calls)
    cross = bool(machine.triple)
    if not cross:
        share_pytorch_threads()
    executable = tvm.compile(module, target=machine.tvm_target)
    return Code(region, table, arena, None if cross else executable[MAIN], executable)


class _Builder:
    """Private kernels, one per distinct specification, and the public function that calls them in order."""

    def __init__(self, region: Region, table: Table, arena: Arena, machine: Machine) -> None:
        self.region, self.table, self.arena, self.machine = region, table, arena, machine
        self.value = region.value
        self.names: dict[Any, str] = {}
        self.functions: dict[str, tvm.tirx.PrimFunc] = {}

    def module(self, calls: Sequence[Call]) -> tvm.IRModule:
        named = [self._specify(call) for call in calls]
        module = tvm.IRModule(self.functions)
        self.globals = {name: module.get_global_var(name) for name in self.functions}
        module.update_func(tvm.ir.GlobalVar(MAIN), self._main(named))
        return module

    def _kernel(self, spec: Any) -> str:
        if spec not in self.names:
            name = f"{type(spec).__name__}{len(self.names)}"
            self.names[spec] = name
            self.functions[name] = RULES[type(spec)](name, spec, self.machine)  # type: ignore[operator]
        return self.names[spec]

    def _specify(self, call: Call) -> tuple[str, Call]:
        match call:
            case Rows():
                return self._kernel(self._rows_spec(call)), call
            case Enter():
                return self._kernel(self._enter_spec(call)), call
            case Split():
                return self._kernel(self._split_spec(call)), call
            case Exit():
                return self._kernel(self._exit_spec(call)), call

    def _rows_spec(self, call: Rows) -> RowsKernel:
        target, lanes = self.value[call.target], self.machine.lanes
        static = isinstance(target.geometry, Planes)
        return RowsKernel(
            groups=call.groups,
            columns=call.kept,
            passes=call.passes,
            pattern=call.pattern,
            schedule=call.schedule,
            vectors=-(-target.geometry.columns // lanes) if static else 0,
            target_plane=target.geometry.plane,
            operand_planes=tuple(self.value[name].geometry.plane for name in call.tensors),
            epilogue=call.epilogue,
            masked=static and target.zero_pads,
        )

    def _enter_spec(self, call: Enter) -> EnterTokens | CopyPlanes:
        border, target = self.region.inputs[call.source], self.value[call.target]
        if not isinstance(target.geometry, Planes):
            return EnterTokens(border.channels, target.geometry.tile)
        return CopyPlanes(
            border.channels,
            border.height,
            border.width,
            source=(border.height * border.width, border.width),
            target=(target.geometry.plane, target.geometry.row),
            stride=call.stride,
            phases=call.phases,
        )

    def _split_spec(self, call: Split) -> CopyPlanes:
        source, target = self.value[call.source].geometry, self.value[call.target].geometry
        assert isinstance(source, Planes)
        assert isinstance(target, Planes)
        return CopyPlanes(
            self.value[call.source].channels,
            source.height,
            source.width,
            source=(source.plane, source.row),
            target=(target.plane, target.row),
            stride=call.stride,
            phases=call.phases,
        )

    def _exit_spec(self, call: Exit) -> ExitTokens | CopyPlanes:
        border, source = self.region.outputs[call.target], self.value[call.source]
        if not isinstance(source.geometry, Planes):
            return ExitTokens(border.channels, source.geometry.tile)
        return CopyPlanes(
            border.channels,
            border.height,
            border.width,
            source=(source.geometry.plane, source.geometry.row),
            target=(border.height * border.width, border.width),
            stride=(1, 1),
            phases=((0, 0),),
        )

    # The public function -------------------------------------------------------------------------------

    def _main(self, calls: Sequence[tuple[str, Call]]) -> tvm.tirx.PrimFunc:
        """region(table, extent, threads): extent is the number of tokens, or of images.

        One thread walks the items. With at least as many items as threads each thread walks its own, in an
        arena of its own; with fewer, all threads share every call of every item.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(MAIN)
            T.func_attr({"tirx.noalias": True})
            handle = T.arg("table", T.handle("int64"))
            extent, threads = T.arg("extent", T.int32()), T.arg("threads", T.int32())
            self.pointers = T.decl_buffer((UNBOUNDED,), "int64", data=handle, align=8)
            self.extent = extent
            tile = self.region.tokens
            items = T.bind(T.truncdiv(extent + (tile.tile - 1), T.int32(tile.tile))) if tile else extent
            with T.If(threads == 1):
                with T.Then(), T.serial(items) as item:
                    for name, call in calls:
                        self._call(name, call, item, T.int32(0), T.int32(0), T.int32(1))
                with T.Else(), T.If(items >= threads):
                    with T.Then():
                        self._items_apart(calls, items, threads)
                    with T.Else():
                        self._calls_shared(calls, items, threads)
        return builder.get()

    def _items_apart(self, calls: Sequence[tuple[str, Call]], items: Expr, threads: Expr) -> None:
        with T.parallel(threads) as thread:
            low = T.bind(T.truncdiv(thread * items, threads))
            high = T.bind(T.truncdiv((thread + 1) * items, threads))
            with T.serial(high - low) as relative:
                item = T.bind(low + relative)
                for name, call in calls:
                    self._call(name, call, item, thread, T.int32(0), T.int32(1))

    def _calls_shared(self, calls: Sequence[tuple[str, Call]], items: Expr, threads: Expr) -> None:
        with T.serial(items) as item:
            for name, call in calls:
                with T.parallel(threads) as thread:
                    self._call(name, call, item, T.int32(0), thread, threads)

    def _call(self, name: str, call: Call, item: Expr, arena: Expr, part: Expr, parts: Expr) -> None:
        base = T.bind(self.pointers[self.table.arena] + i64(arena) * (self.arena.size * FLOAT))
        match call:
            case Rows():
                pointers = self._rows_pointers(call, base)
            case Enter():
                pointers = [self._input(call.source, item), self._position(call.target, base)]
            case Split():
                pointers = [self._position(call.source, base), self._position(call.target, base)]
            case Exit():
                pointers = [self._position(call.source, base), self._output(call.target, item)]
        numbers = [part, parts]
        tile = self.region.tokens
        if tile:
            tokens = T.bind(T.min(self.extent - item * tile.tile, T.int32(tile.tile)))
            lanes = self.machine.lanes
            vectors = T.truncdiv(tokens + (lanes - 1), T.int32(lanes))
            numbers.append(vectors if isinstance(call, Rows) else tokens)
        elif isinstance(call, Rows):
            numbers.append(T.int32(0))
        T.evaluate(T.Call(self.globals[name], [*pointers, *numbers], ret_ty="void"))

    def _rows_pointers(self, call: Rows, base: Expr) -> list[Expr]:
        weight = self.table.weights + 3 * call.weight
        tensors, vectors = iter(call.tensors), iter(call.vectors)
        target = self.value[call.target]
        mask = self.pointers[0]
        if target.zero_pads and isinstance(target.geometry, Planes):
            mask = self.pointers[self.table.mask_start + self.table.masks.index(target.geometry)]
        operands = []
        for step in split_steps(call.epilogue):
            match STEPS[step]:
                case "vector":
                    operands.append(self.pointers[self.table.vectors + next(vectors)])
                case "tensor":
                    operands.append(self._position(next(tensors), base))
        return [
            *(self.pointers[weight + i] for i in range(3)),
            self._position(call.source, base),
            self._position(call.target, base),
            mask,
            *operands,
        ]

    def _position(self, name: str, base: Expr) -> Expr:
        """Address of a value's position (0, 0)."""
        return base + (self.arena.offsets[name] + self.value[name].geometry.origin) * FLOAT

    def _border(self, position: int, border: Border, item: Expr) -> Expr:
        tile = self.region.tokens
        size = border.channels * (tile.tile if tile else border.height * border.width)
        return self.pointers[position] + i64(item) * (size * FLOAT)

    def _input(self, index: int, item: Expr) -> Expr:
        return self._border(index, self.region.inputs[index], item)

    def _output(self, index: int, item: Expr) -> Expr:
        return self._border(self.table.outputs + index, self.region.outputs[index], item)


_POOLS: weakref.WeakValueDictionary[int, ArenaPool] = weakref.WeakValueDictionary()
"""Of the compiled functions in use, by identity: equal regions take turns with one arena."""


def _pool(code: Code) -> ArenaPool:
    return _POOLS.setdefault(id(code), ArenaPool(code.arena.size))


class LoweredRegion:
    """A compiled region bound to its weights; safe to call from several threads at once."""

    def __init__(
        self,
        code: Code,
        streams: Sequence[Stream],
        vectors: Sequence[Tensor],
        threads: Callable[[], int] = torch.get_num_threads,
    ) -> None:
        self.code, self.streams, self.threads = code, tuple(streams), threads
        self.pool = _pool(code)
        masks = [torch.from_numpy(geometry.mask) for geometry in code.table.masks]
        parts = [part for stream in streams for part in (stream.index, stream.data, stream.balance)]
        self._bound = [*parts, *(_padded(vector) for vector in vectors), *masks]
        table = np.zeros(code.table.arena + 1, dtype=np.int64)
        table[code.table.weights : code.table.arena] = [tensor.data_ptr() for tensor in self._bound]
        self._table = table

    def __deepcopy__(self, memo: object) -> LoweredRegion:
        """Nothing in it changes: a copied graph calls the same region."""
        return self

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """inputs: float32, ... x channels (tokens) or N x C x H x W, as the region's borders say."""
        outputs = [inputs[0].new_empty(shape) for shape in self.shapes(inputs)]
        with self.prepared(inputs, outputs) as call:
            call()
        return outputs

    @contextmanager
    def prepared(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
        """The call with all its pointers set, to make once or, when timing, many times."""
        leading = self._leading(inputs)
        for x, border in zip(inputs, self.code.region.inputs, strict=True):
            if x.dtype != torch.float32 or tuple(x.shape) != border_shape(border, leading):
                raise LoweringError(
                    f"a region takes float32 of {border_shape(border, leading)}, not {x.dtype} of {tuple(x.shape)}"
                )
        inputs = [x.detach().contiguous() for x in inputs]
        extent = math.prod(leading)
        threads = min(self.threads(), SHARES)
        table = self._table.copy()
        table[: self.code.table.weights] = [tensor.data_ptr() for tensor in (*inputs, *outputs)]
        with self.pool.lend(threads) as arena, team_of(threads):
            table[-1] = arena.data_ptr()
            yield partial(self.code.run, ctypes.c_void_p(table.ctypes.data), extent, threads)

    def shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        leading = self._leading(inputs)
        return [border_shape(border, leading) for border in self.code.region.outputs]

    def _leading(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """Tokens, with whatever shape they come in, or the batch."""
        return tuple(inputs[0].shape[:-1] if self.code.region.tokens else inputs[0].shape[:1])


def lower_region(
    body: Body, machine: Machine, streams: StreamStore, threads: Callable[[], int]
) -> LoweredRegion:
    """Lay the section out, pack what is not packed yet, compile what is not compiled yet, bind."""
    section = body.section
    geometry = source_geometry(section)
    packed = [
        streams.get(op.layer, geometry[op.site], body.how[op.site], body.packed.get(op.site))
        for op in section.ops
    ]
    region = lay_out(section, [body.how[op.site] for op in section.ops], [stream.kept for stream in packed])
    vectors = [vector for op in section.ops for vector in body.vectors[op.site]]
    return LoweredRegion(compile_region(region, machine), packed, vectors, threads)


def border_shape(border: Border, leading: Sequence[int]) -> tuple[int, ...]:
    """Shape of a tensor at the border, given its leading dimensions: tokens, or the batch."""
    if border.height:
        return (*leading, border.channels, border.height, border.width)
    return (*leading, border.channels)


def _padded(vector: Tensor) -> Tensor:
    """A per-channel vector, zeros for the rows that fill up the last block."""
    padded = torch.zeros(round_up(len(vector), ROW_BLOCK))
    padded[: len(vector)] = vector
    return padded
