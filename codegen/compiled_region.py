"""A region -> one compiled function: its kernels, and the function that calls them in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import Arena, plan_arena
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
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.threads import share_pytorch_threads
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import FLOAT, Planes
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
