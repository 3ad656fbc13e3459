"""A compiled function with its weights -> something that runs on tensors."""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsecomp import debug
from sparsecomp.codegen.arena import ArenaPool
from sparsecomp.codegen.compiled_region import Code
from sparsecomp.codegen.forks import team
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.library import code_of
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import SHARES
from sparsecomp.codegen.stream import Stream, StreamStore
from sparsecomp.codegen.threads import team_of
from sparsecomp.codegen.walk_calls import walk_calls
from sparsecomp.errors import LoweringError
from sparsecomp.geometry import ROW_BLOCK, round_up
from sparsecomp.program import Body
from sparsecomp.region import Apply, Border, Call, Region, Rows

_POOLS: weakref.WeakValueDictionary[int, ArenaPool] = weakref.WeakValueDictionary()
"""Of the compiled functions in use, by identity: equal regions take turns with one arena."""


def _pool(code: Code) -> ArenaPool:
    return _POOLS.setdefault(id(code), ArenaPool(code.arena.size))


def _renew_pools() -> None:
    for pool in list(_POOLS.values()):
        pool.renew()


os.register_at_fork(after_in_child=_renew_pools)

MANY_SHAPES = 64
"""Combinations of input shapes that are remembered."""


@dataclass(frozen=True)
class Plan:
    """What follows from the shapes of a call's inputs."""

    outputs: tuple[tuple[int, ...], ...]
    extent: int
    """Tokens, sequences or images."""


class LoweredRegion:
    """A compiled region bound to its weights; safe to call from several threads at once."""

    def __init__(
        self,
        code: Code,
        streams: Sequence[Stream],
        vectors: Sequence[Tensor],
        threads: Callable[[], int] = torch.get_num_threads,
        names: Sequence[str] = (),
    ) -> None:
        """`names`: of the layers, in order of their weights."""
        self.code, self.streams, self.threads = code, tuple(streams), threads
        self.names = tuple(names)
        self.pool = _pool(code)
        self._plans: dict[tuple[torch.Size, ...], Plan] = {}
        masks = [torch.from_numpy(geometry.mask) for geometry in code.table.masks]
        parts = [part for stream in streams for part in stream.parts]
        self._bound = [*parts, *(_padded(vector) for vector in vectors), *masks]
        # An array: to copy it, and to ask where it lies, takes less of a cold call than numpy does.
        self._table = array("q", bytes(8 * (code.table.arena + 1)))
        self._table[code.table.calls] = code.list.numbers.buffer_info()[0]
        for place, tensor in enumerate(self._bound, start=code.table.weights):
            self._table[place] = tensor.data_ptr()
        self._followed = [
            (code.table.weights + i, part)
            for i, part in enumerate(parts)
            if any(stream.in_place and part is stream.data for stream in streams)
        ]
        """The model's own tensors, whose data may be moved, and their places in the table."""

    def __deepcopy__(self, memo: object) -> LoweredRegion:
        """Nothing in it changes: a copied graph calls the same region."""
        return self

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """inputs: float32, ... x channels (tokens) or N x C x H x W, as the region's borders say."""
        plan, threads = self._plan(inputs), team(min(self.threads(), SHARES))
        inputs = [x.contiguous().resolve_neg() for x in inputs]
        outputs = [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in plan.outputs]
        arena = self.pool.take(threads)
        try:
            table = self._table_of(inputs, outputs, arena)
            order = self.code.list.order(shared=plan.extent < threads)
            arguments = (table.buffer_info()[0], plan.extent, threads, *order)
            if threads == 1:  # no parallel loop is reached
                self.code.run(*arguments)
            else:
                with team_of(threads):
                    self.code.run(*arguments)
        finally:
            self.pool.give(arena)
        return outputs

    @property
    def labels(self) -> list[tuple[str, str]]:
        return [(self._label(call), str(call)) for call in self.code.calls]

    def _label(self, call: Call) -> str:
        match call:
            case Rows():
                return self.names[call.weight] if self.names else f"weight {call.weight}"
            case Apply():
                return str(call.work)
            case _:
                return type(call).__name__.lower()

    def call_seconds(self, inputs: Sequence[Tensor]) -> list[float]:
        """Of each call alone, its bands together, in order. With several items each call does all of them before the next begins."""
        outputs = [inputs[0].new_empty(shape) for shape in self.shapes(inputs)]
        seconds = [0.0] * len(self.code.calls)
        with self._lent(inputs, outputs) as (*arguments, first, last):
            for number in range(first, last):
                start = time.perf_counter()
                self.code.run(*arguments, number, number + 1)
                seconds[self.code.list.steps[number].call] += time.perf_counter() - start
        return seconds

    @contextmanager
    def prepared(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
        """The call with all its pointers set, to make once or, when timing, many times."""
        with self._lent(inputs, outputs) as arguments:
            yield partial(self.code.run, *arguments)

    @contextmanager
    def _lent(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[tuple[int, ...]]:
        """The arguments of the compiled function, while an arena is lent for them."""
        plan, threads = self._plan(inputs), team(min(self.threads(), SHARES))
        inputs = [x.contiguous().resolve_neg() for x in inputs]
        with self.pool.lend(threads) as arena, team_of(threads):
            table = self._table_of(inputs, outputs, arena)
            order = self.code.list.order(shared=plan.extent < threads)
            yield table.buffer_info()[0], plan.extent, threads, *order

    def _table_of(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], arena: Tensor) -> array[int]:
        table = self._table[:]
        for place, tensor in enumerate((*inputs, *outputs), start=self.code.table.inputs):
            table[place] = tensor.data_ptr()
        for place, tensor in self._followed:
            table[place] = tensor.data_ptr()
        table[-1] = arena.data_ptr()
        return table

    def _plan(self, inputs: Sequence[Tensor]) -> Plan:
        """Of a call with such inputs, checked once for each combination of shapes."""
        key = tuple([x.shape for x in inputs])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._checked_plan(inputs)
            if len(self._plans) >= MANY_SHAPES:
                self._plans = {}
            self._plans[key] = plan
        for x in inputs:
            if x.dtype is not torch.float32:
                raise LoweringError(f"a region takes float32, not {x.dtype}")
        return plan

    def _checked_plan(self, inputs: Sequence[Tensor]) -> Plan:
        leading = self._leading(inputs)
        tokens = self.code.region.tokens
        if tokens and tokens.length and leading[1:] != (tokens.length,):
            raise LoweringError(f"a region of sequences of {tokens.length} tokens got {leading} of them")
        for x, border in zip(inputs, self.code.region.inputs, strict=True):
            if tuple(x.shape) != border_shape(border, leading):
                raise LoweringError(
                    f"a region takes float32 of {border_shape(border, leading)}, not {tuple(x.shape)}"
                )
        extent = math.prod(leading[:1]) if self._whole else math.prod(leading)
        return Plan(tuple(self.shapes(inputs)), extent)

    def shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        leading = self._leading(inputs)
        return [border_shape(border, leading) for border in self.code.region.outputs]

    def _leading(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """Tokens, with whatever shape they come in, sequences and their tokens, or the batch."""
        region = self.code.region
        first = next(i for i, border in enumerate(region.inputs) if not (region.tokens and border.height))
        return tuple(inputs[first].shape[:-1] if region.tokens else inputs[first].shape[:1])

    @property
    def _whole(self) -> bool:
        """Whether an item is a sequence or an image, and not a tile of tokens."""
        tokens = self.code.region.tokens
        return tokens is None or bool(tokens.length)


def lower_region(
    body: Body, machine: Machine, streams: StreamStore, threads: Callable[[], int]
) -> LoweredRegion:
    """Lay the section out, pack what is not packed yet, compile what is not compiled yet, bind."""
    region, packed = laid_out(body, streams)
    section = body.section
    vectors = [vector for op in section.ops for vector in body.vectors[op.site]]
    names = [op.layer.name for op in section.layers]
    code = code_of(region, machine)
    _show(code, machine, names)
    return LoweredRegion(code, packed, vectors, threads, names)


def _show(code: Code, machine: Machine, names: Sequence[str]) -> None:
    """To whoever watches: what was compiled for these layers."""
    what = ", ".join(names) or "no layer"
    if debug.TIR.isEnabledFor(logging.DEBUG):
        listed = code.list
        module = walk_calls(listed.kernels, listed.counts, code.region.tokens, machine)
        debug.TIR.debug("region of %s:\n%s", what, module.script())
    if debug.SOURCE.isEnabledFor(logging.DEBUG):
        try:
            source = code.source()
        except AttributeError:  # a library has none
            source = "native code from a file"
        debug.SOURCE.debug("region of %s:\n%s", what, source)


def laid_out(body: Body, streams: StreamStore) -> tuple[Region, list[Stream]]:
    """The region and its packed weights, which are put in the store."""
    section = body.section
    geometry = source_geometry(section)
    packed = [
        streams.get(op.layer, geometry[op.site], body.how[op.site], body.packed.get(op.site))
        for op in section.layers
    ]
    region = lay_out(
        section, [body.how[op.site] for op in section.layers], [stream.kept for stream in packed]
    )
    return region, packed


def border_shape(border: Border, leading: Sequence[int]) -> tuple[int, ...]:
    """Shape of a tensor at the border, given its leading dimensions: tokens, or the batch."""
    if border.height:
        return (1 if border.shared else leading[0], border.channels, border.height, border.width)
    return (*leading, border.channels)


def _padded(vector: Tensor) -> Tensor:
    """A per-channel vector, zeros for the rows that fill up the last block."""
    padded = torch.zeros(round_up(len(vector), ROW_BLOCK), dtype=torch.float32, device="cpu")
    padded[: len(vector)] = vector
    return padded
