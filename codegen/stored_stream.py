"""A stream as it lies in a file: exactly, and as small as the smallest of two simple forms.

    as it is   the parts of the stream
    bitmap     of lists per block: the values, and a bit for each place a value can be at, in the order of the
               stream. Index and offsets follow from the bits. Of octets: the same of the matrix, row by row

A bit per place costs less than four bytes of offset per block of values unless 31 of 32 places are empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparsecomp.codegen.check_stream import check, check_balance, check_order, check_types
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
        order = stream.order[:0] if stream.pattern.by_length else stream.order
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
    try:
        return _restored(stored)
    except (AssertionError, ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ArtifactError(f"the weight of layer {stored.layer.name!r} cannot be read: {error}") from error


def _restored(stored: StoredStream) -> Stream:
    layer, how = stored.layer, stored.how
    if stored.form == "bitmap" and isinstance(how.schedule, FewWeights):
        matrix = _matrix(stored.parts, (layer.rows, layer.columns))
        return make_stream(pack(matrix, how.pattern), layer, stored.geometry, how.schedule)
    first, second, balance, order = stored.parts
    index, data = (first, second) if stored.form == "as it is" else _entries(first, second, order, stored)
    stream = Stream(layer, stored.geometry, how.pattern, how.schedule, index, data, balance, order)
    if stored.form == "as it is":
        check(stream)
        return stream
    check_types(stream)
    check_balance(stream)
    if how.pattern.by_length:
        index, data, order = by_length(index, data, balance)
        stream = replace(stream, index=index, data=data, order=order)
    check_order(stream)
    return stream


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
    # Lists by length are kept row after row: their order follows from the bits.
    group = stream.order.long()[listed] if stream.pattern.by_length else listed % slots.groups
    start = columns // slots.width * slots.width
    width = torch.clamp(slots.columns - start, max=slots.width)
    places = slots.groups * start + group * width + columns - start
    values = entries[torch.argsort(places), :rows]
    flags = np.zeros(slots.count, dtype=bool)
    flags[places.numpy()] = True
    return values, torch.from_numpy(np.packbits(flags, bitorder="little"))


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
    conv_group = conv_group_of(layer, order[: slots.groups * rows], rows, slots.groups)
    for start in slots.starts:
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
            found[inside] = table[conv_group[torch.from_numpy(group)], torch.from_numpy(column)]
    return torch.from_numpy(np.concatenate(index)).int(), data.flatten()
