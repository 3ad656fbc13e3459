"""Offsets and grids against a plain gather from a padded image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.geometry import LINE, Margin, Planes, Taps, Tokens, grid, offsets, phase_size, round_up
from sparsecomp.layer import Layer

quick = settings(max_examples=150, deadline=None)


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    """Images down to one pixel; padding differs from side to side and may exceed the image."""

    def axis() -> tuple[int, int, int, int, int, int]:
        size, kernel = draw(st.integers(1, 9)), draw(st.integers(1, 5))
        dilation, before, after = draw(st.integers(1, 2)), draw(st.integers(0, 5)), draw(st.integers(0, 5))
        missing = max(0, dilation * (kernel - 1) + 1 - size - before - after)
        return size, kernel, draw(st.integers(1, 3)), dilation, before, after + missing

    height, kh, sh, dh, top, bottom = axis()
    width, kw, sw, dw, left, right = axis()
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    return Layer(
        "conv",
        "conv2d",
        "w",
        (groups * outputs, inputs, kh, kw),
        (1, groups * inputs, height, width),
        stride=(sh, sw),
        padding=(top, bottom, left, right),
        dilation=(dh, dw),
        groups=groups,
    )


def grid_of(layer: Layer) -> Planes:
    """The grid that the layer's input, in phases, shares with its output."""
    taps, (height, width) = Taps.of(layer), phase_size(layer)
    return grid([(height, width), layer.output_size], taps.margin(layer, height, width), taps.span)


def on_grid(x: Tensor, layer: Layer, planes: Planes) -> Tensor:
    """One image, in phases, in zeroed memory as a region would lay it out, with a plane of slack behind."""
    phases, (sh, sw) = Taps.of(layer).phases, layer.stride
    memory = torch.zeros((len(x) * len(phases) + 1) * planes.plane)
    for channel, image in enumerate(x):
        for number, (top, left) in enumerate(phases):
            start = (channel * len(phases) + number) * planes.plane + planes.origin
            for h, row in enumerate(image[top::sh, left::sw]):
                memory[start + h * planes.row : start + h * planes.row + len(row)] = row
    return memory


@quick
@given(convolutions())
def test_taps_at_their_offsets_sum_to_the_convolution(layer: Layer) -> None:
    planes, matrix = grid_of(layer), torch.randn(layer.rows, layer.columns)
    x = torch.randn(layer.input_shape)
    memory, table = on_grid(x[0], layer, planes), torch.from_numpy(offsets(layer, planes))
    height, width = layer.output_size
    pixels = (torch.arange(height)[:, None] * planes.row + torch.arange(width)).flatten() + planes.origin
    of_group = layer.rows // layer.groups
    rows = [memory[table[m // of_group][:, None] + pixels].T @ matrix[m] for m in range(layer.rows)]
    expected = layer.dense(x, matrix)[0]
    torch.testing.assert_close(torch.stack(rows).reshape(expected.shape), expected, atol=1e-4, rtol=1e-5)


@quick
@given(convolutions())
def test_offsets_of_a_group_are_distinct_and_stay_within_the_input(layer: Layer) -> None:
    planes, table = grid_of(layer), offsets(layer, grid_of(layer))
    for group in table:
        assert len(np.unique(group)) == layer.columns
    assert table.min() + planes.origin >= 0
    height, width = layer.output_size
    last = round_up((height - 1) * planes.row + width, LINE)  # kernels read whole vectors of columns
    phases = layer.input_shape[1] * len(Taps.of(layer).phases)
    assert table.max() + planes.origin + last <= phases * planes.plane


@quick
@given(convolutions())
def test_a_grid_is_aligned_and_its_rows_do_not_meet(layer: Layer) -> None:
    planes, taps = grid_of(layer), Taps.of(layer)
    margin = taps.margin(layer, *phase_size(layer))
    assert planes.origin % LINE == planes.plane % LINE == 0
    assert planes.plane // LINE % 2 == 1
    assert planes.row >= planes.width + max(margin.left, margin.right)
    assert planes.origin >= margin.up * planes.row + margin.left
    ends = planes.origin + (planes.height - 1 + margin.down) * planes.row + planes.width + margin.right
    assert planes.plane >= ends


def test_a_linear_layer_reads_feature_rows() -> None:
    layer = Layer("fc", "linear", "w", (4, 3), (10, 3))
    assert offsets(layer, Tokens(tile=64)).tolist() == [[0, 64, 128]]


def test_groups_read_their_own_channels() -> None:
    layer = Layer("conv", "conv2d", "w", (6, 2, 1, 1), (1, 6, 4, 4), groups=3)
    planes = Planes(4, 4, row=4, plane=100, origin=0)
    assert offsets(layer, planes).tolist() == [[0, 100], [200, 300], [400, 500]]


def test_a_strided_convolution_reads_phase_planes() -> None:
    layer = Layer("conv", "conv2d", "w", (1, 1, 1, 3), (1, 1, 1, 8), stride=(1, 2), padding=(0, 0, 1, 1))
    taps = Taps.of(layer)
    assert taps.columns == ((1, -1), (0, 0), (1, 0))
    assert taps.phases == ((0, 0), (0, 1))
    planes = Planes(1, 4, row=5, plane=48, origin=0)
    assert offsets(layer, planes).tolist() == [[47, 0, 48]]


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 20),
    extra=st.integers(0, 5),
)
def test_the_mask_is_one_on_pixels(height: int, width: int, extra: int) -> None:
    planes = Planes(height, width, row=width + extra, plane=0, origin=0)
    mask = planes.mask
    assert len(mask) % LINE == 0
    assert len(mask) - planes.columns < LINE
    image = np.pad(np.ones((height, width), np.float32), ((0, 0), (0, extra))).flatten()[: planes.columns]
    assert mask[: planes.columns].tolist() == image.tolist()
    assert not mask[planes.columns :].any()


def test_margins_unite() -> None:
    assert Margin(up=1, left=2) | Margin(down=3, left=1) == Margin(1, 3, 2, 0)
    assert Margin(right=1)
    assert not Margin()


@pytest.mark.parametrize(
    ("geometry", "text"), [(Tokens(), "tokens[64]"), (Planes(3, 4, 5, 48, 16), "planes[3x4 row 5 plane 48]")]
)
def test_geometries_print(geometry: Tokens | Planes, text: str) -> None:
    assert str(geometry) == text
