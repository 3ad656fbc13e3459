"""Whether a kernel that walks a stream stays within the stream, and within the layer's input and output.

A stream that was made here does. One from a file may hold anything: each check is an AssertionError that says what
does not fit.
"""

from __future__ import annotations

import numpy as np
import torch

from sparsecomp.codegen.bitmap import BLOCK, GROUP, bits_of, starts_of
from sparsecomp.codegen.octets import read_places
from sparsecomp.codegen.shares import SHARES, UNIT
from sparsecomp.codegen.stream import Stream, columns_of, columns_of_shared
from sparsecomp.region import Depthwise, FewTokens, FewWeights, Schedule


def check(stream: Stream) -> None:
    """Of every part, and of what the parts say of each other."""
    check_types(stream)
    match stream.schedule:
        case FewTokens(in_place=True):
            assert stream.data.shape == (stream.layer.rows, stream.layer.columns), "it has another shape"
        case FewTokens():
            _check_bitmap(stream)
        case FewWeights():
            _check_octets(stream)
        case Depthwise():
            assert stream.data.numel() == stream.layer.rows * stream.layer.columns, "it has another size"
        case Schedule() if stream.pattern.shared:
            _check_shared(stream)
        case Schedule():
            _check_lists(stream)
    check_balance(stream)
    check_order(stream)


def check_types(stream: Stream) -> None:
    """Each part has the type that kernels read, and lies in order."""
    masks = isinstance(stream.schedule, FewTokens) and not stream.in_place
    types = (torch.int32, torch.float32, torch.int32, torch.int64 if masks else torch.int32)
    parts = (stream.index, stream.data, stream.balance, stream.order)
    assert tuple(part.dtype for part in parts) == types, "its parts have other types"
    assert all(part.is_contiguous() for part in parts), "its parts do not lie in order"


def check_balance(stream: Stream) -> None:
    """The shares of the work rise from its first unit to its last."""
    if isinstance(stream.schedule, Depthwise):
        return
    units = stream.groups if isinstance(stream.schedule, Schedule) else -(-stream.layer.rows // UNIT)
    assert stream.balance.shape == (SHARES + 1,), "its shares have another number"
    assert bool((stream.balance.diff() >= 0).all()), "its shares fall"
    assert (int(stream.balance[0]), int(stream.balance[-1])) == (0, units), (
        "its shares are not those of its rows"
    )


def check_order(stream: Stream) -> None:
    """There is an order where the pattern has one, and each pass takes every row once."""
    if isinstance(stream.schedule, Schedule) and stream.pattern.has_order:
        rows = stream.groups * stream.pattern.rows
        assert stream.order.shape == (stream.passes * rows,), "its order has another length"
        found = stream.order.reshape(-1, rows).sort(dim=1).values
        assert bool((found == torch.arange(rows)).all()), "its order does not take every row once"


def _check_lists(stream: Stream) -> None:
    index, size = stream.index, stream.pattern.rows + 1
    assert index.shape == (stream.passes * stream.groups + 1,), "its index has another length"
    assert int(index[0]) == 0, "its index does not begin at 0"
    assert bool((index.diff() >= 0).all()), "its index falls"
    assert int(index[-1]) * size == stream.data.numel(), "its index ends elsewhere than its data"
    check_order(stream)
    columns_of(stream)


def _check_shared(stream: Stream) -> None:
    kept = len(columns_of_shared(stream))
    assert kept <= stream.layer.columns, "it lists more columns than there are"
    assert kept * stream.groups * stream.pattern.rows == stream.data.numel(), (
        "its list has another length than its data"
    )


def _check_octets(stream: Stream) -> None:
    row, columns = read_places(stream.index, stream.data)
    units = -(-stream.layer.rows // UNIT)
    assert stream.index.shape == (units * UNIT + 1,), "its index has another length"
    assert bool((row < stream.layer.rows).all()), "it has weights in rows that there are none of"
    assert bool((columns >= 0).all() and (columns < stream.layer.columns).all()), (
        "it has weights beside the matrix"
    )


def _check_bitmap(stream: Stream) -> None:
    rows, columns = stream.layer.rows, stream.layer.columns
    units, blocks = -(-rows // UNIT), -(-columns // BLOCK)
    groups = 0 if stream.pattern.shared else units * (UNIT // GROUP)
    assert stream.order.shape == (groups, blocks), "its bits have another shape"
    kept = torch.full((units,), UNIT * blocks * BLOCK)
    if not stream.pattern.shared:
        bits = bits_of(stream.order)
        kept = torch.from_numpy(np.count_nonzero(bits.reshape(units, -1), axis=1))
        places = bits.transpose(0, 2, 1, 3).reshape(-1, blocks * BLOCK)
        assert not places[rows:].any(), "it has weights in rows that there are none of"
        assert not places[:, columns:].any(), "it has weights beside the matrix"
    assert torch.equal(stream.index, starts_of(kept)), "its starts are not those of its bits"
    assert stream.data.numel() == int(kept.sum()) + BLOCK, "it has more or fewer values than bits"
