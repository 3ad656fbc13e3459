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
from sparsecomp.codegen.calls import RULES, arguments, specify, takes_tokens, takes_vectors, whole_items
from sparsecomp.codegen.cpu.emit import UNBOUNDED, Expr, i64
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Frame, Table, tokens_in
from sparsecomp.codegen.threads import share_pytorch_threads
from sparsecomp.geometry import FLOAT
from sparsecomp.region import Call, Region

MAIN, ITEM = "region", "item"


@dataclass(frozen=True)
class Code:
    """A region's compiled function, without weights."""

    region: Region
    table: Table
    arena: Arena
    calls: tuple[Call, ...]
    """What it does: all calls of the region, or the kernels alone."""
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
    table, arena = Table.of(region), plan_arena(region)
    calls = region.rows_calls if kernels_only else region.calls
    module = _Builder(region, table, arena, machine).module(calls)
    cross = bool(machine.triple)
    if not cross:
        share_pytorch_threads()
    executable = tvm.compile(module, target=machine.tvm_target)
    return Code(region, table, arena, calls, None if cross else executable[MAIN], executable)


class _Builder:
    """Private kernels, one per distinct specification; a private function that calls them in order for one
    item; and the public one that walks the items."""

    def __init__(self, region: Region, table: Table, arena: Arena, machine: Machine) -> None:
        self.region, self.table, self.arena, self.machine = region, table, arena, machine
        self.names: dict[Any, str] = {}
        self.functions: dict[str, tvm.tirx.PrimFunc] = {}

    def module(self, calls: Sequence[Call]) -> tvm.IRModule:
        named = [(self._kernel(specify(call, self.region, self.machine)), call) for call in calls]
        module = tvm.IRModule(self.functions)
        kernels = {name: module.get_global_var(name) for name in self.functions}
        item = tvm.ir.GlobalVar(ITEM)
        module.update_func(item, self._item(kernels, named))
        module.update_func(tvm.ir.GlobalVar(MAIN), self._main(item))
        return module

    def _kernel(self, spec: Any) -> str:
        if spec not in self.names:
            name = f"{type(spec).__name__}{len(self.names)}"
            self.names[spec] = name
            self.functions[name] = RULES[type(spec)](name, spec, self.machine)
        return self.names[spec]

    def _item(self, kernels: dict[str, Any], calls: Sequence[tuple[str, Call]]) -> tvm.tirx.PrimFunc:
        """item(table, extent, item, copy, part, parts, first, last): the calls from number `first` up to `last`,
        for one item, in an arena of its own; this thread's part of each.

        Whoever times or shares a single call asks for just that one; choosing costs a comparison per call.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
            T.func_name(ITEM)
            handle = T.arg("table", T.int64())
            numbers = ("extent", "item", "copy", "part", "parts", "first", "last")
            extent, item, copy, part, parts, first, last = (T.arg(name, T.int32()) for name in numbers)
            address = T.bind(T.reinterpret(T.handle("int64").ty, handle))
            pointers = T.decl_buffer((UNBOUNDED,), "int64", data=address, align=8)
            base = T.bind(pointers[self.table.arena] + i64(copy) * (self.arena.size * FLOAT))
            for number, (name, call) in enumerate(calls):
                with T.If(first <= T.int32(number)), T.Then(), T.If(T.int32(number) < last), T.Then():
                    self._tiles(kernels[name], call, pointers, (extent, item, base, part, parts))
        return builder.get()

    def _tiles(self, kernel: Any, call: Call, pointers: Expr, numbers: tuple[Expr, ...]) -> None:
        """All tiles of an item. Each thread does some alone, which lie apart and which it then finds in its own
        caches; all share those that are left over, or partly filled."""
        tokens = self.region.tokens
        if tokens is None or tokens.tiles == 1 or whole_items(call):
            self._call(kernel, call, pointers, numbers, None)
            return
        extent, item, base, part, parts = numbers
        own = T.bind(T.truncdiv(T.int32(tokens.length // tokens.tile), parts))
        dealt = T.bind(own * parts)
        # One call for both kinds of tiles: compilers make another copy of a kernel for a call with constants.
        with T.serial(own + T.int32(tokens.tiles) - dealt) as number:
            alone = number < own
            tile = T.bind(T.if_then_else(alone, part * own + number, dealt + number - own))
            which = T.bind(T.if_then_else(alone, T.int32(0), part))
            of = T.bind(T.if_then_else(alone, T.int32(1), parts))
            self._call(kernel, call, pointers, (extent, item, base, which, of), tile)

    def _call(
        self, kernel: Any, call: Call, pointers: Expr, numbers: tuple[Expr, ...], tile: Expr | None
    ) -> None:
        extent, item, base, part, parts = numbers
        frame = Frame(self.region, self.table, self.arena, pointers, item, base, tile)
        last = []
        tokens, lanes = self.region.tokens, self.machine.lanes
        if takes_tokens(call, self.region) and tokens is not None:
            last = [tokens_in(tokens, extent, item, tile)]
        elif takes_vectors(call, self.region):
            count = tokens_in(tokens, extent, item, tile) if tokens is not None else T.int32(0)
            last = [T.bind(T.truncdiv(count + (lanes - 1), T.int32(lanes)))]
        T.evaluate(T.Call(kernel, [*arguments(call, frame), part, parts, *last], ret_ty="void"))

    def _main(self, function: Any) -> tvm.tirx.PrimFunc:
        """region(table, extent, threads, first, last): extent is the number of tokens, of sequences, or of images.

        One thread walks the items. With at least as many items as threads each thread walks its own, in an
        arena of its own; with fewer, all threads share every call of every item.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(MAIN)
            T.func_attr({"tirx.noalias": True})
            table = T.arg("table", T.int64())
            numbers = ("extent", "threads", "first", "last")
            extent, threads, first, last = (T.arg(name, T.int32()) for name in numbers)
            zero, one, items, tokens = T.int32(0), T.int32(1), extent, self.region.tokens
            if tokens is not None and not tokens.length:
                items = T.bind(T.truncdiv(extent + (tokens.tile - 1), T.int32(tokens.tile)))

            def run(item: Expr, *which: Expr) -> None:
                T.evaluate(T.Call(function, [table, extent, item, *which], ret_ty="void"))

            with T.If(threads == 1):
                with T.Then(), T.serial(items) as item:
                    run(item, zero, zero, one, first, last)
                with T.Else(), T.If(items >= threads):
                    with T.Then(), T.parallel(threads) as thread:
                        low = T.bind(T.truncdiv(thread * items, threads))
                        high = T.bind(T.truncdiv((thread + 1) * items, threads))
                        with T.serial(high - low) as relative:
                            run(low + relative, thread, zero, one, first, last)
                    with T.Else(), T.serial(items) as item, T.serial(last - first) as number:
                        call = T.bind(first + number)
                        with T.parallel(threads) as thread:
                            run(item, zero, thread, threads, call, call + 1)
        return builder.get()
