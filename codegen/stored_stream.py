"""A stream as it lies in a file: exactly, and as small as the smallest of two simple forms.

    as it is   the parts of the stream
    bitmap     of lists per block: the values, and a bit for each place a value can be at, in the order of the
               stream. Index and offsets follow from the bits. Of octets: the same of the matrix, row by row

A bit per place costs less than four bytes of offset per block of values unless 31 of 32 places are empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparsecomp.codegen.octets import read_places
from sparsecomp.codegen.shares import SHARES
from sparsecomp.codegen.stream import Stream, by_length, columns_of, conv_group_of, make_stream, read_stream
from sparsecomp.errors import ArtifactError
from sparsecomp.geometry import Geometry, offsets
from sparsecomp.layer import Layer
from sparsecomp.pattern import pack
from sparsecomp.region import AnySchedule, FewWeights, RowsKernelChoice, Schedule

Form = Literal["as it is", "bitmap"]


@dataclass(frozen=True)
class StoredStream:
    """`parts`: of a stream as it is its index, data, balance and order; of a bitmap values, bits, balance and order."""

    layer: Layer
    geometry: Geometry
    how: RowsKernelChoice
    form: Form
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


def store(stream: Stream, how: RowsKernelChoice) -> StoredStream:
    """The smaller of the forms that the stream has."""
    plain = (stream.index, stream.data, stream.balance, stream.order)
    whole = StoredStream(stream.layer, stream.geometry, how, "as it is", plain)
    parts: tuple[Tensor, ...]
    if _listed(stream):
        order = stream.order if stream.pattern.live_first else stream.order[:0]
        parts = (*_bitmap(stream), stream.balance, order)
    elif isinstance(stream.schedule, FewWeights):
        parts = _matrix_bitmap(read_stream(stream))
    else:
        return whole
    bitmap = StoredStream(stream.layer, stream.geometry, how, "bitmap", parts)
    return min(whole, bitmap, key=lambda stored: stored.nbytes)


def _listed(stream: Stream) -> bool:
    return isinstance(stream.schedule, Schedule) and not stream.pattern.shared


def restore(stored: StoredStream) -> Stream:
    """The stream, bit for bit.

    Raises:
        ArtifactError: the parts do not fit each other.
    """
    layer, geometry, how = stored.layer, stored.geometry, stored.how
    try:
        if stored.form == "as it is":
            index, data, balance, order = stored.parts
            parts = (index, data, balance, order)
            _check_index(index, data, stored)
            _check_balance(balance, stored)
            _check_order(order, stored)
        elif isinstance(how.schedule, FewWeights):
            matrix = _matrix(stored.parts, (layer.rows, layer.columns))
            return make_stream(pack(matrix, how.pattern), layer, geometry, how.schedule)
        else:
            assert isinstance(how.schedule, Schedule)
            values, bits, balance, order = stored.parts
            _check_balance(balance, stored)
            if how.pattern.live_first:
                _check_order(order, stored)
            index, data = _entries(values, bits, order, stored)
            if how.pattern.rows == 1:
                index, data, order = by_length(index, data, balance)
            parts = (index, data, balance, order)
        return Stream(layer, geometry, how.pattern, how.schedule, *parts)
    except (AssertionError, ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ArtifactError(f"the weight of layer {layer.name!r} cannot be read: {error}") from error


def _check_index(index: Tensor, data: Tensor, stored: StoredStream) -> None:
    """AssertionError unless the starts of the lists rise from the first entry to the last."""
    pattern, schedule = stored.how.pattern, stored.how.schedule
    if isinstance(schedule, Schedule) and not pattern.shared:
        slots = _slots(stored.layer, pattern.rows, schedule)
        assert index.shape == (len(slots.starts) * slots.groups + 1,), "its index has another length"
        assert int(index[0]) == 0, "its index does not begin at 0"
        assert bool((index.diff() >= 0).all()), "its index falls"
        assert int(index[-1]) * (pattern.rows + 1) == data.numel(), "its index ends elsewhere than its data"
    if isinstance(schedule, FewWeights):
        row, columns = read_places(index, data)
        assert bool((row < stored.layer.rows).all()), "it has weights in rows that there are none of"
        assert bool((columns >= 0).all() and (columns < stored.layer.columns).all()), (
            "it has weights beside the matrix"
        )


def _check_balance(balance: Tensor, stored: StoredStream) -> None:
    """AssertionError unless the shares of the work rise from the first block of rows to the last."""
    if isinstance(stored.how.schedule, Schedule):
        assert balance.shape == (SHARES + 1,), "its shares have another number"
        assert bool((balance.diff() >= 0).all()), "its shares fall"
        ends = (0, -(-stored.layer.rows // stored.how.pattern.rows))
        assert (int(balance[0]), int(balance[-1])) == ends, "its shares are not those of its rows"


def _check_order(order: Tensor, stored: StoredStream) -> None:
    """AssertionError unless there is an order where the pattern has one, and each pass takes every row once."""
    pattern, schedule = stored.how.pattern, stored.how.schedule
    if not isinstance(schedule, Schedule) or not pattern.has_order:
        return
    slots = _slots(stored.layer, pattern.rows, schedule)
    rows = slots.groups * pattern.rows
    assert order.shape == (len(slots.starts) * rows,), "its order has another length"
    found = order.reshape(-1, rows).sort(dim=1).values
    assert bool((found == torch.arange(rows)).all()), "its order does not take every row once"


@dataclass(frozen=True)
class _Slots:
    """Places a value can be at: pass by pass, in each block by block, in each column by column."""

    groups: int
    columns: int
    width: int
    """Columns of a pass, but for the last."""

    @property
    def count(self) -> int:
        return self.groups * self.columns

    @property
    def starts(self) -> list[int]:
        """First column of each pass."""
        return list(range(0, self.columns, self.width)) or [0]

    def of(self, start: int) -> int:
        """Columns of the pass."""
        return min(self.width, self.columns - start)


def _slots(layer: Layer, rows: int, schedule: AnySchedule) -> _Slots:
    assert isinstance(schedule, Schedule)
    return _Slots(-(-layer.rows // rows), layer.columns, schedule.columns)


def _bitmap(stream: Stream) -> tuple[Tensor, Tensor]:
    """Values, and bits of the places."""
    rows, slots = stream.pattern.rows, _slots(stream.layer, stream.pattern.rows, stream.schedule)
    entries = stream.data.reshape(-1, rows + 1)
    listed, columns = columns_of(stream)
    group, values = listed % slots.groups, entries[:, :rows]
    if rows == 1:  # row after row: their order by length follows from the bits
        group = stream.order.long()[listed]
    start = columns // slots.width * slots.width
    width = torch.clamp(slots.columns - start, max=slots.width)
    places = slots.groups * start + group * width + columns - start
    if rows == 1:
        values = values[torch.argsort(places)]
    flags = np.zeros(slots.count, dtype=bool)
    flags[places.numpy()] = True
    return values.contiguous(), torch.from_numpy(np.packbits(flags, bitorder="little"))


def _matrix_bitmap(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Values and bits, row by row."""
    kept = matrix != 0
    return matrix[kept], torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))


def _matrix(parts: tuple[Tensor, ...], shape: tuple[int, int]) -> Tensor:
    """Inverse of `_matrix_bitmap`."""
    values, bits = parts
    flags = np.unpackbits(bits.numpy(), count=math.prod(shape), bitorder="little").view(bool)
    matrix = torch.zeros(shape)
    matrix[torch.from_numpy(flags).reshape(shape)] = values
    return matrix


def _entries(values: Tensor, bits: Tensor, order: Tensor, stored: StoredStream) -> tuple[Tensor, Tensor]:
    """Index and data."""
    layer, rows = stored.layer, stored.how.pattern.rows
    slots = _slots(layer, rows, stored.how.schedule)
    flags = np.unpackbits(bits.numpy(), count=slots.count, bitorder="little").view(bool)
    places = np.flatnonzero(flags)
    assert tuple(values.shape) == (len(places), rows), "it has more or fewer values than places"
    table = torch.from_numpy(offsets(layer, stored.geometry)).int()
    data = torch.empty(len(places), rows + 1, dtype=torch.float32)
    data[:, :rows] = values
    found, index = data[:, rows].view(torch.int32), [np.zeros(1, dtype=np.int64)]
    groups_of = conv_group_of(layer, order, rows, slots.groups * len(slots.starts))
    for number, start in enumerate(slots.starts):
        base, width = slots.groups * start, slots.of(start)
        edges = base + width * np.arange(slots.groups + 1)
        ends = np.searchsorted(places, edges)
        index.append(ends[1:])
        inside = slice(int(ends[0]), int(ends[-1]))
        group, column = np.divmod(places[inside] - base, max(1, width))
        column += start
        if layer.groups == 1:
            found[inside] = table[0][torch.from_numpy(column)]
        else:
            of = groups_of[number * slots.groups + torch.from_numpy(group)]
            found[inside] = table[of, torch.from_numpy(column)]
    return torch.from_numpy(np.concatenate(index)).int(), data.flatten()
