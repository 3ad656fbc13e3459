"""From canonical packed weights to the stream a gathered-row kernel reads, and back.

A stream depends on the layer, the grid of its input, the pattern and the schedule; never on batch, token
count, arena or threads. So every region and every batch shares it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sparsecomp.codegen.bitmap import Bitmap, make_bitmap, read_bitmap, shares_of
from sparsecomp.codegen.octets import Octets, make_octets, read_octets
from sparsecomp.codegen.pages import Pages
from sparsecomp.codegen.shares import SHARES, balance
from sparsecomp.geometry import Geometry, TokenRows, offsets
from sparsecomp.layer import Layer
from sparsecomp.pattern import PackedRows, RowBlocks, pack, unpack
from sparsecomp.region import (
    AnySchedule,
    Depthwise,
    FewTokens,
    FewWeights,
    RowsKernelChoice,
    Schedule,
    is_tokens_first,
)

GROUP_COST = 4
"""Clearing, finishing and storing a block of rows costs about as much as this many list entries."""
RUN, RUNS = 48, 8
"""Rows of a run, within which lists are ordered by length; and how many runs there are at least."""


@dataclass(frozen=True)
class Stream:
    """The weights of one layer in the order of execution.

    index: int32. With a list per block: start of each (pass, block) in the stream, in entries. With a shared
        list: its offsets.
    data: float32. With a list per block: entries of R values and the bits of their int32 offset. With a
        shared list: values only, [pass][block][column of the pass][R].
    balance: int32 [SHARES + 1], the blocks at which the work is cut into equal shares.
    order: int32 [passes * blocks * R], the row of the weight that each row of each list is, where patterns have an
        order. Lists of single rows are short: where a list ends is a branch that a processor guesses wrong, which
        takes it as long as ten entries. So in each pass lists lie by length. Threads share rows by `balance`, and
        each must find in a pass the rows that were its own in the one before: so they lie by length within runs
        of rows, which threads take whole.

    For few tokens it is a bitmap: `data` has the kept values and `order` the masks (`codegen/bitmap.py`); or
    octets (`codegen/octets.py`), and `order` is empty. Of a depthwise convolution `data` has the weight as it is, and
    the others are empty.
    """

    layer: Layer
    geometry: Geometry
    pattern: RowBlocks
    schedule: AnySchedule
    index: Tensor
    data: Tensor
    balance: Tensor
    order: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """As a kernel takes them."""
        if isinstance(self.schedule, FewTokens):
            return self.index, self.order, self.data, self.balance
        return self.index, self.data, self.balance, self.order

    dtype: ClassVar[torch.dtype] = torch.float32
    """Of the weight."""

    @property
    def nbytes(self) -> int:
        """Values, offsets and pointers; also of values that lie with the model."""
        return sum(part.numel() * part.element_size() for part in self.parts)

    @property
    def in_place(self) -> bool:
        """Whether `data` is the model's own tensor."""
        return isinstance(self.schedule, FewTokens) and self.schedule.in_place

    def placed(self, pages: Pages) -> Stream:
        """The same on these pages, but for what lies with the model."""
        if self.in_place:
            return self
        index, data, order = map(pages.place, (self.index, self.data, self.order))
        return replace(self, index=index, data=data, order=order)

    @property
    def kept(self) -> int:
        """Length of the shared list, 0 without one."""
        listed = self.pattern.shared and not is_tokens_first(self.schedule)
        return len(self.index) if listed else 0

    @property
    def groups(self) -> int:
        return -(-self.layer.rows // self.pattern.rows)

    @property
    def passes(self) -> int:
        """Of a gathered-row kernel."""
        assert isinstance(self.schedule, Schedule)
        return _passes(self.layer.columns, self.schedule)


def fits(layer: Layer, geometry: Geometry) -> bool:
    """Whether all offsets fit 32 bits, as streams hold them."""
    if isinstance(geometry, TokenRows):
        return True  # there are none
    return bool(np.abs(offsets(layer, geometry)).max() < 2**31)


def make_stream(packed: PackedRows, layer: Layer, geometry: Geometry, schedule: AnySchedule) -> Stream:
    """Raises OverflowError when an offset does not fit 32 bits."""
    if isinstance(schedule, FewTokens):
        if schedule.in_place:
            nothing = torch.empty(0, dtype=torch.int32)
            parts = (nothing, packed.values, shares_of(layer.rows), nothing)
            return Stream(layer, geometry, packed.pattern, schedule, *parts)
        made = make_bitmap(packed)
        parts = (made.index, made.values, made.balance, made.masks)
        return Stream(layer, geometry, packed.pattern, schedule, *parts)
    nothing = torch.empty(0, dtype=torch.int32)
    if isinstance(schedule, FewWeights):
        octets = make_octets(packed)
        parts = (octets.index, octets.data, octets.balance, nothing)
        return Stream(layer, geometry, packed.pattern, schedule, *parts)
    if isinstance(schedule, Depthwise):
        weights = unpack(packed).flatten()
        return Stream(layer, geometry, packed.pattern, schedule, nothing, weights, nothing, nothing)
    assert isinstance(schedule, Schedule)
    if not fits(layer, geometry):
        raise OverflowError(f"layer {layer.name!r}: offsets into {geometry} exceed 32 bits")
    table = torch.from_numpy(offsets(layer, geometry))
    make = _shared_stream if packed.pattern.shared else _listed_stream
    return Stream(layer, geometry, packed.pattern, schedule, *make(packed, layer, table.int(), schedule))


def _passes(columns: int, schedule: Schedule) -> int:
    return max(1, -(-columns // schedule.columns))


def _listed_stream(
    packed: PackedRows, layer: Layer, table: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index, data, balance and order."""
    rows, groups, pattern = packed.pattern.rows, packed.groups, packed.pattern
    work, passes = packed.pointers.diff().long(), _passes(layer.columns, schedule)
    group = torch.repeat_interleave(torch.arange(groups), work)
    columns = packed.columns.long()
    entry = columns // schedule.columns * groups + group
    taken = torch.argsort(entry, stable=True)
    index = torch.zeros(passes * groups + 1, dtype=torch.int32)
    index[1:] = torch.bincount(entry, minlength=passes * groups).cumsum(0)

    data = torch.empty(len(taken), rows + 1, dtype=torch.float32)
    data[:, :rows] = packed.values[taken]
    data[:, rows].view(torch.int32).copy_(
        table[_conv_groups(layer, packed.order, rows)[group], columns][taken]
    )
    if not pattern.by_length:
        order = packed.order.repeat(passes) if pattern.has_order else packed.order[:0]
        return index, data.flatten(), balance(work + GROUP_COST), order
    cuts = balance(work + GROUP_COST, min(SHARES, max(RUNS, groups // RUN)))
    index, flat, order = by_length(index, data.flatten(), cuts)
    return index, flat, cuts, order


def by_length(index: Tensor, data: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index and data of lists of single rows, row after row in each pass -> those of lists by length, and their order.

    cuts: where runs of rows begin and end.
    """
    groups = int(cuts[-1])
    lengths = index.diff().long()
    of_pass = lengths.reshape(-1, groups)
    run = torch.bincount(cuts).cumsum(0)[:groups]
    rows = torch.argsort(run * (len(data) + 1) + of_pass, dim=1, stable=True)
    lists = (rows + torch.arange(len(rows))[:, None] * groups).flatten()
    ordered = torch.zeros_like(index)
    ordered[1:] = lengths[lists].cumsum(0)
    moved = torch.repeat_interleave((index[:-1][lists] - ordered[:-1]).long(), lengths[lists])
    entries = data.view(torch.int64)[moved + torch.arange(len(moved))]
    return ordered, entries.view(torch.float32), rows.flatten().int()


def _conv_groups(layer: Layer, order: Tensor, rows: int) -> Tensor:
    """The group of the convolution that each block of rows belongs to; rows that fill up belong to the last."""
    of_row = order.long().clamp(max=layer.rows - 1) // (layer.rows // layer.groups)
    blocks = of_row.reshape(-1, rows)
    assert bool((blocks == blocks[:, :1]).all()), "a block of rows spans two groups of the convolution"
    return blocks[:, 0]


def _shared_stream(
    packed: PackedRows, layer: Layer, table: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index, data, balance and no order."""
    assert layer.groups == 1
    passes = torch.split(packed.values, schedule.columns, dim=1)
    data = torch.cat([values.flatten() for values in passes])
    work = torch.full((packed.groups,), len(packed.columns))
    return table[0, packed.columns.long()], data, balance(work + GROUP_COST), packed.order[:0]


def read_stream(stream: Stream) -> Tensor:
    """The matrix rows x columns, exactly as it was packed."""
    layer, rows = stream.layer, stream.pattern.rows
    if stream.in_place:
        return stream.data.detach()
    if isinstance(stream.schedule, FewTokens):
        shape = (layer.rows, layer.columns)
        return read_bitmap(Bitmap(shape, stream.index, stream.order, stream.data, stream.balance))
    if isinstance(stream.schedule, FewWeights):
        shape = (layer.rows, layer.columns)
        return read_octets(Octets(shape, stream.index, stream.data, stream.balance))
    if isinstance(stream.schedule, Depthwise):
        return stream.data.reshape(layer.rows, layer.columns)
    assert isinstance(stream.schedule, Schedule)
    if stream.pattern.shared:
        columns = columns_of_shared(stream)
        kept, width = len(columns), stream.schedule.columns
        sizes = [min(width, kept - start) * stream.groups * rows for start in range(0, kept, width)]
        passes = [part.reshape(stream.groups, -1, rows) for part in torch.split(stream.data, sizes)]
        values = torch.cat(passes, dim=1) if passes else stream.data.reshape(stream.groups, 0, rows)
        pointers = torch.tensor([0, kept], dtype=torch.int32)
        order = torch.arange(stream.groups * rows)
        return unpack(
            PackedRows(stream.pattern, (layer.rows, layer.columns), values, columns, pointers, order)
        )
    entries = stream.data.reshape(-1, rows + 1)
    slots, columns = columns_of(stream)
    matrix = entries.new_zeros(stream.groups * rows, layer.columns)
    matrix[_rows_of(stream)[slots], columns[:, None]] = entries[:, :rows]
    return matrix[: layer.rows]


def _rows_of(stream: Stream) -> Tensor:
    """int64 [passes * blocks, R]: the rows of each list."""
    rows = stream.groups * stream.pattern.rows
    as_they_are = torch.arange((len(stream.index) - 1) * stream.pattern.rows) % rows
    return (stream.order.long() if len(stream.order) else as_they_are).reshape(-1, stream.pattern.rows)


def columns_of(stream: Stream) -> tuple[Tensor, Tensor]:
    """List, counted through all passes, and column of each entry of a stream with a list per block, int64."""
    layer, rows = stream.layer, stream.pattern.rows
    table = torch.from_numpy(offsets(layer, stream.geometry)).int()
    slots = torch.repeat_interleave(torch.arange(len(stream.index) - 1), stream.index.diff().long())
    conv_group = _conv_groups(layer, _rows_of(stream).flatten(), rows)[slots]
    found = stream.data.reshape(-1, rows + 1)[:, rows].contiguous().view(torch.int32)
    columns = torch.empty_like(found, dtype=torch.int64)
    for g in range(layer.groups):
        chosen = conv_group == g
        columns[chosen] = _columns_of(found[chosen], table[g]).long()
    return slots, columns


def conv_group_of(layer: Layer, order: Tensor, rows: int, groups: int) -> Tensor:
    """The group of the convolution that each block of rows belongs to; without an `order` rows lie as they are."""
    return _conv_groups(layer, order if len(order) else torch.arange(groups * rows), rows)


def columns_of_shared(stream: Stream) -> Tensor:
    """The columns of a shared list, int32."""
    return _columns_of(stream.index, torch.from_numpy(offsets(stream.layer, stream.geometry)).int()[0])


def _columns_of(found: Tensor, table: Tensor) -> Tensor:
    """Inverse of the offset table, whose entries are distinct.

    Raises AssertionError when an offset is none of the table's.
    """
    ordered, order = table.sort()
    place = torch.searchsorted(ordered, found).clamp(max=len(table) - 1)
    assert torch.equal(ordered[place], found), "it reads beside the input"
    return order[place].int()


Padding = tuple[int, int, int, int]


class StreamStore:
    """The packed weights of one compiled model. Equal requests share one stream."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, Layer, Padding, Geometry, RowsKernelChoice], Stream] = {}
        """By parameter, how a layer reads it and pads its input, grid of the input, and kernel."""
        self._pages = Pages()
        self._lock = threading.RLock()

    def get(
        self, layer: Layer, geometry: Geometry, how: RowsKernelChoice, packed: PackedRows | None
    ) -> Stream:
        """Made of `packed`, or without it of another stream of the same weight."""
        key = (layer.weight, layer.reading, layer.padding, geometry, how)
        with self._lock:
            if key not in self._streams:
                packed = packed or pack(layer.matrix(self.weight(layer.weight)), how.pattern, layer.groups)
                made = self._make(packed, layer, geometry, how)
                self._streams = {**self._streams, key: made}  # a new dictionary: readers take no lock
            return self._streams[key]

    def adopt(self, stream: Stream, how: RowsKernelChoice) -> None:
        """One that was made before."""
        layer = stream.layer
        key = (layer.weight, layer.reading, layer.padding, stream.geometry, how)
        with self._lock:
            self._streams = {**self._streams, key: stream.placed(self._pages)}

    def of_weight(self, name: str) -> list[Stream]:
        """All streams made of a parameter: one per grid it was needed on."""
        return [stream for (weight, *_), stream in self._streams.items() if weight == name]

    def weight(self, name: str) -> Tensor:
        """The parameter as the model stores it, unpacked exactly."""
        stream = self.of_weight(name)[0]
        return stream.layer.stored(self._read(stream))

    def _make(self, packed: PackedRows, layer: Layer, geometry: Geometry, how: RowsKernelChoice) -> Stream:
        return make_stream(packed, layer, geometry, how.schedule).placed(self._pages)

    def _read(self, stream: Stream) -> Tensor:
        return read_stream(stream)

    def nbytes_of(self, name: str) -> int:
        return sum(stream.nbytes for stream in self.of_weight(name))

    def drop(self, streams: Sequence[Stream]) -> None:
        """Forget these, but the last one of each weight."""
        with self._lock:
            for stream in streams:
                if len(self.of_weight(stream.layer.weight)) > 1:
                    self._streams = {key: kept for key, kept in self._streams.items() if kept is not stream}

    def entries(self) -> list[tuple[Stream, RowsKernelChoice]]:
        return [(stream, how) for (*_, how), stream in self._streams.items()]

    @property
    def names(self) -> set[str]:
        return {weight for weight, *_ in self._streams}

    @property
    def nbytes(self) -> int:
        return sum(stream.nbytes for stream in self._streams.values())

    def keep(self, streams: Iterable[Stream]) -> None:
        """Forget all others."""
        wanted = {id(stream) for stream in streams}
        with self._lock:
            self._streams = {key: kept for key, kept in self._streams.items() if id(kept) in wanted}
