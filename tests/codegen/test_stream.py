"""A stream holds exactly the weights it was made of, in every layout, and no more bytes than it must."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.layout import source_geometry
from sparsecomp.codegen.shares import SHARES
from sparsecomp.codegen.stream import Stream, StreamStore, make_stream, read_stream
from sparsecomp.geometry import Planes
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import Section, SectionOp

UNSTRUCTURED = RowBlocks(1)
LAYERS = {
    "linear": Layer("l", "linear", "w", (37, 50), (10, 50)),
    "single": Layer("l", "linear", "w", (1, 1), (1, 1)),
    "conv": Layer("l", "conv2d", "w", (12, 5, 3, 3), (1, 5, 9, 7), padding=(1, 1, 1, 1)),
    "conv1d": Layer("l", "conv1d", "w", (9, 4, 1, 5), (2, 4, 1, 30), padding=(0, 0, 4, 0)),
    "grouped": Layer("l", "conv2d", "w", (24, 3, 3, 3), (1, 9, 8, 8), groups=3),
    "depthwise": Layer("l", "conv2d", "w", (16, 1, 3, 3), (1, 16, 8, 8), padding=(1, 1, 1, 1), groups=16),
    "strided": Layer("l", "conv2d", "w", (8, 3, 5, 4), (1, 3, 11, 11), stride=(2, 3), dilation=(1, 2)),
    "wider than the image": Layer("l", "conv2d", "w", (8, 6, 5, 5), (1, 6, 1, 1), padding=(2, 2, 2, 2)),
    "one pixel, strided": Layer(
        "l", "conv2d", "w", (4, 2, 5, 5), (1, 2, 1, 1), stride=(3, 2), padding=(2,) * 4
    ),
}


def random_matrix(layer: Layer, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(layer.rows, layer.columns, generator=generator) < density
    return torch.randn(kept.shape, generator=generator) * kept


def stream_of(layer: Layer, matrix: Tensor, pattern: RowBlocks, schedule: Schedule) -> Stream:
    section = Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",))
    return make_stream(pack(matrix, pattern, layer.groups), layer, source_geometry(section)["s"], schedule)


def allowed(layer: Layer, pattern: RowBlocks) -> bool:
    return layer.groups == 1 or not (pattern.shared or layer.rows // layer.groups % pattern.rows)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    columns=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_the_matrix_can_be_read_back(
    name: str, pattern: RowBlocks, density: float, columns: int, seed: int
) -> None:
    layer = LAYERS[name]
    if allowed(layer, pattern):
        matrix = random_matrix(layer, density, seed)
        stream = stream_of(layer, matrix, pattern, Schedule(4, columns))
        assert torch.equal(read_stream(stream), matrix)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    pattern=st.sampled_from(PATTERNS),
)
def test_the_balance_covers_every_block_once(rows: int, density: float, pattern: RowBlocks) -> None:
    layer = Layer("l", "linear", "w", (rows, 20), (1, 20))
    stream = stream_of(layer, random_matrix(layer, density), pattern, Schedule(4, 20))
    cuts = stream.balance.tolist()
    assert len(cuts) == SHARES + 1
    assert cuts[0] == 0
    assert cuts[-1] == stream.groups
    assert cuts == sorted(cuts)


def test_the_balance_divides_work_not_rows() -> None:
    """A quarter of the rows hold nearly all weights: two threads meet within them."""
    layer = Layer("l", "linear", "w", (1024, 256), (1, 256))
    matrix = torch.zeros(1024, 256)
    matrix[:256] = 1
    cuts = stream_of(layer, matrix, UNSTRUCTURED, Schedule(8, 256)).balance
    assert abs(int(cuts[SHARES // 2]) - 128) < 16


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    columns=st.integers(1, 120),
    width=st.integers(1, 60),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_single_rows_lie_by_length_within_the_runs_that_threads_share(
    rows: int, columns: int, width: int, density: float
) -> None:
    layer = Layer("l", "linear", "w", (rows, columns), (1, columns))
    stream = stream_of(layer, random_matrix(layer, density), UNSTRUCTURED, Schedule(4, width))
    order, lengths = (part.reshape(-1, rows) for part in (stream.order, stream.index.diff()))
    cuts = sorted(set(stream.balance.tolist()))
    for of_pass, length in zip(order, lengths, strict=True):
        for low, high in pairwise(cuts):
            assert sorted(of_pass[low:high].tolist()) == list(range(low, high))
            assert length[low:high].tolist() == sorted(length[low:high].tolist())


def test_sixteen_threads_share_the_rows_of_a_common_layer() -> None:
    layer = Layer("l", "linear", "w", (768, 768), (128, 768))
    cuts = stream_of(layer, random_matrix(layer, 0.1), UNSTRUCTURED, Schedule(4, 128)).balance
    assert len(set(cuts.tolist())) == 17
    for threads in (2, 4, 8, 16):
        rows = cuts[:: SHARES // threads].diff()
        assert int(rows.max()) < 1.1 * 768 / threads


def test_sparse_weights_take_a_quarter_of_their_memory() -> None:
    layer = Layer("l", "linear", "w", (768, 768), (128, 768))
    kept = torch.rand(768, 768, generator=torch.Generator().manual_seed(0)) < 0.1
    stream = stream_of(layer, kept.float(), UNSTRUCTURED, Schedule(8, 128))
    assert stream.nbytes <= 0.24 * 4 * 768 * 768


def test_blocks_of_rows_take_less() -> None:
    layer = Layer("l", "linear", "w", (768, 768), (128, 768))
    kept = torch.rand(192, 768, generator=torch.Generator().manual_seed(0)) < 0.1
    stream = stream_of(layer, kept.float().repeat_interleave(4, 0), RowBlocks(4), Schedule(4, 768))
    assert stream.nbytes <= 0.13 * 4 * 768 * 768


def test_an_offset_beyond_32_bits_is_refused() -> None:
    layer = Layer("big", "conv2d", "w", (1, 3, 1, 1), (1, 3, 4, 4))
    planes = Planes(4, 4, row=4, plane=1 << 30, origin=0)
    with pytest.raises(OverflowError, match=r"layer 'big': offsets .* exceed 32 bits"):
        make_stream(pack(torch.ones(1, 3), UNSTRUCTURED), layer, planes, Schedule(1, 3))


# The store -----------------------------------------------------------------------------------------------

HOW = RowsKernelChoice(UNSTRUCTURED, Schedule(4, 64))


def test_equal_requests_share_a_stream() -> None:
    store, layer = StreamStore(), LAYERS["conv"]
    matrix = random_matrix(layer, 0.3)
    geometry = source_geometry(Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",)))["s"]
    stream = store.get(layer, geometry, HOW, pack(matrix, UNSTRUCTURED))
    assert store.get(layer, geometry, HOW, None) is stream
    assert store.nbytes == store.nbytes_of("w") == stream.nbytes
    assert store.names == {"w"}
    assert store.entries() == [(stream, HOW)]


def test_another_grid_is_packed_from_the_stream_there_is() -> None:
    store, layer = StreamStore(), LAYERS["conv"]
    matrix = random_matrix(layer, 0.3)
    near, far = Planes(9, 7, 8, 112, 16), Planes(9, 7, 12, 144, 16)
    store.get(layer, near, HOW, pack(matrix, UNSTRUCTURED))
    second = store.get(layer, far, HOW, None)
    assert second.geometry == far
    assert torch.equal(read_stream(second), matrix)
    assert len(store.of_weight("w")) == 2


def test_the_store_gives_the_parameter_back_as_the_model_has_it() -> None:
    for layer, shape in [
        (LAYERS["conv"], (12, 5, 3, 3)),
        (LAYERS["conv1d"], (9, 4, 5)),
        (Layer("l", "linear", "w", (37, 50), (10, 50), transposed=True), (50, 37)),
    ]:
        store, weight = StreamStore(), torch.randn(shape)
        geometry = source_geometry(Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",)))["s"]
        matrix = layer.matrix(weight.unsqueeze(2) if layer.op == "conv1d" else weight)
        store.get(layer, geometry, HOW, pack(matrix, UNSTRUCTURED))
        assert torch.equal(store.weight("w"), weight)


def test_keep_forgets_the_rest() -> None:
    store, layer = StreamStore(), LAYERS["linear"]
    geometry = source_geometry(Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",)))["s"]
    store.get(layer, geometry, HOW, pack(random_matrix(layer, 0.3), UNSTRUCTURED))
    kept = store.get(
        replace(layer, weight="kept"), geometry, HOW, pack(random_matrix(layer, 0.3), UNSTRUCTURED)
    )
    store.keep([kept])
    assert store.names == {"kept"}
    assert store.nbytes == kept.nbytes
    store.keep([])
    assert store.names == set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            Layer("a", "linear", "w", (32, 32), (5, 32)),
            Layer("b", "linear", "w", (32, 32), (5, 32), transposed=True),
        ),
        (
            Layer("a", "conv2d", "w", (8, 4, 3, 3), (1, 4, 9, 9), padding=(1, 1, 1, 1)),
            Layer("b", "conv2d", "w", (8, 4, 3, 3), (1, 4, 9, 9), padding=(2,) * 4, dilation=(2, 2)),
        ),
    ],
    ids=["transposed", "dilated"],
)
def test_layers_that_read_one_parameter_differently_do_not_share_a_stream(one: Layer, other: Layer) -> None:
    """Same parameter, same grid, same schedule; but another matrix, or other offsets."""
    ops = (SectionOp("a", one, "x", "y"), SectionOp("b", other, "x", "z"))
    geometry, store = source_geometry(Section(("x",), ops, ("y", "z"))), StreamStore()
    weight = torch.randn(one.weight_shape)
    for op in ops:
        matrix = op.layer.matrix(weight)
        stream = store.get(op.layer, geometry[op.site], HOW, pack(matrix, UNSTRUCTURED))
        assert stream.layer == op.layer
        assert torch.equal(read_stream(stream), matrix)
