"""The compiled function of regions: its kernels, and a loop over a list of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.call_list import ADDRESS, STEP
from sparsecomp.codegen.calls import RULES, Kernel
from sparsecomp.codegen.cpu.emit import UNBOUNDED, Expr, i64
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Table, tokens_in
from sparsecomp.geometry import TokenRows, Tokens

MAIN, ITEM = "region", "item"


def walk_calls(
    kernels: Sequence[Kernel], counts: Sequence[int], tokens: Tokens | TokenRows | None, machine: Machine
) -> tvm.IRModule:
    """Private kernels; a private function that makes calls in order for one item; and the public one that walks
    the items. `counts`: addresses that each kernel takes."""
    functions = {f"{type(kernel.spec).__name__}{number}": kernel for number, kernel in enumerate(kernels)}
    module = tvm.IRModule(
        {name: RULES[type(kernel.spec)](name, kernel.spec, machine) for name, kernel in functions.items()}
    )
    names = [module.get_global_var(name) for name in functions]
    item = tvm.ir.GlobalVar(ITEM)
    module.update_func(item, _Item(names, kernels, counts, tokens, machine).function())
    module.update_func(tvm.ir.GlobalVar(MAIN), _main(item, tokens))
    return module


class _Item:
    """item(table, extent, item, copy, part, parts, first, last): the steps from number `first` up to `last`, for
    one item, in an arena of its own; this thread's part of each. A step is a call, or one of the bands that it is cut
    into.

    Each kernel is called in one place: compilers copy small ones into every place that calls them.
    """

    def __init__(
        self,
        names: Sequence[Any],
        kernels: Sequence[Kernel],
        counts: Sequence[int],
        tokens: Tokens | TokenRows | None,
        machine: Machine,
    ) -> None:
        self.names, self.kernels, self.counts = names, kernels, counts
        self.tokens, self.machine = tokens, machine

    def function(self) -> tvm.tirx.PrimFunc:
        with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
            T.func_name(ITEM)
            handle = T.arg("table", T.int64())
            numbers = ("extent", "item", "copy", "part", "parts", "first", "last")
            extent, item, copy, part, parts, first, last = (T.arg(name, T.int32()) for name in numbers)
            self.table = _integers(handle)
            self.rows = _integers(self.table[Table.calls])
            self.extent, self.item, self.copy = extent, item, copy
            with T.serial(last - first) as relative:
                step = T.bind(i64(first + relative) * STEP)
                self.row = T.bind(self.rows[step])
                band, self.bands = (T.bind(T.cast(self.rows[step + i], "int32")) for i in (1, 2))
                share, shares = T.bind(band * parts + part), T.bind(self.bands * parts)
                which = T.bind(T.cast(self.rows[self.row], "int32"))
                for number in range(len(self.kernels)):
                    with T.If(which == T.int32(number)), T.Then():
                        self.tiles(number, share, shares)
        return builder.get()

    def tiles(self, number: int, part: Expr, parts: Expr) -> None:
        """All tiles of an item. Each thread does some alone, which lie apart and which it then finds in its own
        caches; all share those that are left over, or partly filled."""
        tokens = self.tokens
        if tokens is None or tokens.tiles == 1 or self.kernels[number].whole:
            self.call(number, part, parts, None)
            return
        own = T.bind(T.truncdiv(T.int32(tokens.length // tokens.tile), parts))
        dealt = T.bind(own * parts)
        with T.serial(own + T.int32(tokens.tiles) - dealt) as step:
            alone = step < own
            tile = T.bind(T.if_then_else(alone, part * own + step, dealt + step - own))
            which = T.bind(T.if_then_else(alone, T.int32(0), part))
            of = T.bind(T.if_then_else(alone, T.int32(1), parts))
            self.call(number, which, of, tile)

    def call(self, number: int, part: Expr, parts: Expr, tile: Expr | None) -> None:
        addresses = [
            self.address(self.row + (1 + ADDRESS * place), tile) for place in range(self.counts[number])
        ]
        last = self.last(self.kernels[number], tile)
        T.evaluate(T.Call(self.names[number], [*addresses, part, parts, *last], ret_ty="void"))

    def address(self, place: Expr, tile: Expr | None) -> Expr:
        """See `Address`."""
        slot, start, *steps = (self.rows[place + i] for i in range(ADDRESS))
        numbers = (self.copy, self.item, T.int32(0) if tile is None else tile)
        moved = (i64(number) * step for number, step in zip(numbers, steps, strict=True))
        return T.bind(sum(moved, self.table[slot] + start))

    def last(self, kernel: Kernel, tile: Expr | None) -> list[Expr]:
        if not kernel.last:
            return []
        if kernel.last == "bands":
            return [self.bands]
        if self.tokens is None:
            return [T.int32(0)]
        count = tokens_in(self.tokens, self.extent, self.item, tile)
        if kernel.last == "tokens":
            return [count]
        lanes = self.machine.lanes
        return [T.bind(T.truncdiv(count + (lanes - 1), T.int32(lanes)))]


def _integers(address: Expr) -> Expr:
    """The int64 numbers at an address."""
    data = T.bind(T.reinterpret(T.handle("int64").ty, address))
    return T.decl_buffer((UNBOUNDED,), "int64", data=data, align=8)


def _main(function: Any, tokens: Tokens | TokenRows | None) -> tvm.tirx.PrimFunc:
    """region(table, extent, threads, first, last): the steps from number `first` up to `last`. Extent is the number of
    tokens, of sequences, or of images.

    One thread walks the items. With at least as many items as threads each thread walks its own, in an arena of
    its own; with fewer, all threads share every call of every item, and wait for each other after each. Whoever
    times a single call asks for just that one.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(MAIN)
        T.func_attr({"tirx.noalias": True})
        table = T.arg("table", T.int64())
        numbers = ("extent", "threads", "first", "last")
        extent, threads, first, last = (T.arg(name, T.int32()) for name in numbers)
        zero, one, items = T.int32(0), T.int32(1), extent
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
                with T.Else(), _together(), T.serial(items) as item, T.serial(last - first) as number:
                    call = T.bind(first + number)
                    with _then_all_wait(), T.parallel(threads) as thread:
                        run(item, zero, thread, threads, call, call + 1)
    return builder.get()


def _together() -> Any:
    """All threads run the body, their parallel loops split among them: to start threads takes longer than a small
    call."""
    return T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1))


def _then_all_wait() -> Any:
    """A barrier behind the body."""
    return T.attr(T.int32(0), "pragma_parallel_barrier_when_finish", T.int32(1))
