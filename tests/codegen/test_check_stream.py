"""A stream that would lead a kernel out of its arrays is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecomp.codegen.check_stream import check
from sparsecomp.codegen.layout import source_geometry
from sparsecomp.codegen.octets import OCTET, WORDS
from sparsecomp.codegen.stream import Stream, make_stream
from sparsecomp.geometry import TokenRows
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.region import AnySchedule, Depthwise, FewTokens, FewWeights, Schedule
from sparsecomp.section import Section, SectionOp
from tests.codegen.test_stream import LAYERS, random_matrix

UNSTRUCTURED, DENSE = RowBlocks(1), RowBlocks(4, shared=True)
KINDS: dict[str, tuple[str, RowBlocks, AnySchedule]] = {
    "single rows": ("linear", UNSTRUCTURED, Schedule(4, 20)),
    "single rows of a convolution": ("grouped", UNSTRUCTURED, Schedule(4, 20)),
    "blocks": ("conv", RowBlocks(4), Schedule(4, 20)),
    "living rows first": ("linear", RowBlocks(4, live_first=True), Schedule(4, 20)),
    "dense rows": ("linear", DENSE, Schedule(4, 20)),
    "depthwise": ("depthwise", UNSTRUCTURED, Depthwise()),
    "bitmap": ("linear", UNSTRUCTURED, FewTokens()),
    "dense bitmap": ("linear", DENSE, FewTokens()),
    "octets": ("linear", UNSTRUCTURED, FewWeights()),
}
Change = Callable[[Stream], dict[str, Tensor]]


def made(kind: str) -> Stream:
    name, pattern, schedule = KINDS[kind]
    layer = LAYERS[name]
    section = Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",))
    few = isinstance(schedule, FewTokens | FewWeights)
    geometry = TokenRows() if few else source_geometry(section)["s"]
    return make_stream(pack(random_matrix(layer, 0.3), pattern, layer.groups), layer, geometry, schedule)


def put(part: Tensor, place: int, value: int) -> Tensor:
    """With another number there, of the integers whose bits the part holds."""
    changed = part.clone()
    (changed.view(torch.int32) if changed.dtype == torch.float32 else changed)[place] = value
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_here_is_right(kind: str) -> None:
    check(made(kind))


SHORTER = ["index", "data", "balance", "order"]


@pytest.mark.parametrize("part", ["index", "data", "balance", "order"])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_another_length_or_type(kind: str, part: str) -> None:
    stream = made(kind)
    good: Tensor = getattr(stream, part)
    if good.numel():
        for bad in (good[:-1], good[1:], torch.cat([good, good[-1:]])):
            refused(stream, {part: bad})
    for dtype in {torch.int16, torch.float64}:
        refused(stream, {part: good.to(dtype)})


CHANGES: dict[str, tuple[tuple[str, ...], Change]] = {
    "shares that fall": (
        ("single rows", "blocks", "dense rows", "bitmap", "octets"),
        lambda s: {"balance": s.balance.flip(0)},
    ),
    "shares beyond the rows": (
        ("single rows", "blocks", "dense rows", "bitmap", "octets"),
        lambda s: {"balance": put(s.balance, 64, 10**6)},
    ),
    "shares that begin late": (("single rows", "bitmap"), lambda s: {"balance": put(s.balance, 0, 1)}),
    "starts that fall": (
        ("single rows", "blocks", "octets"),
        lambda s: {"index": put(s.index, 2, 10**6)},
    ),
    "a first start that is none": (
        ("single rows", "blocks", "bitmap", "dense bitmap", "octets"),
        lambda s: {"index": put(s.index, 0, -4)},
    ),
    "an offset beside the input": (
        ("single rows", "single rows of a convolution", "blocks", "living rows first"),
        lambda s: {"data": put(s.data, s.pattern.rows, 2**30)},
    ),
    "an offset in the shared list": (("dense rows",), lambda s: {"index": put(s.index, 3, -1)}),
    "a row that is none": (
        ("single rows", "single rows of a convolution", "living rows first"),
        lambda s: {"order": put(s.order, 0, 10**6)},
    ),
    "a row twice": (
        ("single rows", "living rows first"),
        lambda s: {"order": put(s.order, 0, int(s.order[1]))},
    ),
    "a bit more": (("bitmap",), lambda s: {"order": s.order | 1}),
    "a bit beside the matrix": (
        ("bitmap",),
        lambda s: {"order": put(s.order.flatten(), -1, 1 << 60).reshape(s.order.shape)},
    ),
    "an octet beside the matrix": (("octets",), lambda s: {"data": put(s.data, WORDS - 1, 10**6)}),
    "a column far from its octet": (("octets",), lambda s: {"data": put(s.data, OCTET, 0x7FFFFFFF)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_lead_elsewhere(change: str) -> None:
    kinds, changed = CHANGES[change]
    for kind in kinds:
        stream = made(kind)
        refused(stream, changed(stream))


def refused(stream: Stream, parts: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValueError, RuntimeError, IndexError)):
        check(replace(stream, **parts))
