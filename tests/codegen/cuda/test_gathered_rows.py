"""Gathered rows on CUDA cores: the same kernel as loops on the CPU, against PyTorch; its code for GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp import epilogue as epilogues
from sparsecomp.codegen.cuda.assemble import assemble, has_compiler
from sparsecomp.codegen.cuda.gathered_rows import GatheredRows
from sparsecomp.codegen.cuda.pipeline import compile_for_cpu, cuda_source
from sparsecomp.codegen.cuda.tiles import PixelTiles, TokenTiles
from sparsecomp.compare import relative_error, tolerance
from sparsecomp.layer import padded_conv2d

needs_nvcc = pytest.mark.skipif(not has_compiler(), reason="there is no nvcc")
LINEAR = GatheredRows(70, "float32", TokenTiles(50, 128, 16), 4, 8)
PIXELS = PixelTiles(4, 10, 12, (3, 2), (2, 1), (1, 0, 2, 1), (2, 2), 64, 3)
CONV = GatheredRows(5, "float32", PIXELS, 1, 4)


def weight(rows: int, columns: int, density: float, dtype: str = "float32") -> Tensor:
    kept = torch.rand(rows, columns) < density
    return (torch.randn(rows, columns) * kept).to(getattr(torch, dtype))


def run(kernel: GatheredRows, x: Tensor, matrix: Tensor, shape: tuple[int, ...], *operands: Tensor) -> Tensor:
    y = torch.full(shape, torch.nan, dtype=matrix.dtype)
    compile_for_cpu(kernel)(x, *kernel.pack(matrix), *operands, y)
    return y


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_packed_is_unpacked_bit_for_bit(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 90))
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    matrix = weight(rows, columns, data.draw(st.sampled_from([0.0, 0.1, 1.0])), dtype)
    tiling = TokenTiles(columns, 128, data.draw(st.integers(1, 40)))
    kernel = GatheredRows(rows, dtype, tiling, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5)))
    assert torch.equal(kernel.unpack(kernel.pack(matrix)), matrix)


def test_a_convolutions_weight_is_unpacked_bit_for_bit() -> None:
    matrix = weight(5, PIXELS.columns, 0.4)
    assert torch.equal(CONV.unpack(CONV.pack(matrix)), matrix)


@pytest.mark.parametrize("tokens", [1, 127, 130])
@pytest.mark.parametrize("density", [0.0, 0.15, 1.0])
def test_a_linear_layer_gives_pytorchs_numbers(tokens: int, density: float) -> None:
    matrix, x = weight(70, 50, density), torch.randn(tokens, 50)
    y = run(LINEAR, x, matrix, (tokens, 70))
    assert relative_error(y, x @ matrix.T) < 1e-5


def test_rows_without_weights_between_others_give_zeros() -> None:
    matrix, x = weight(70, 50, 0.3), torch.randn(9, 50)
    matrix[::3] = 0
    y = run(LINEAR, x, matrix, (9, 70))
    assert not y[:, ::3].any()
    assert relative_error(y, x @ matrix.T) < 1e-5


@pytest.mark.parametrize("images", [1, 3])
def test_a_convolution_with_stride_dilation_and_uneven_padding_gives_pytorchs_numbers(images: int) -> None:
    matrix, x = weight(5, PIXELS.columns, 0.4), torch.randn(images, 4, 10, 12)
    expected = padded_conv2d(x, matrix.reshape(5, 4, 3, 2), None, (2, 1), (1, 0, 2, 1), (2, 2), 1)
    assert relative_error(run(CONV, x, matrix, tuple(expected.shape)), expected) < 1e-5


@pytest.mark.slow
@given(st.data())
@settings(max_examples=12, deadline=None)
def test_convolutions_of_any_shape_give_pytorchs_numbers(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    channels, rows, kernel = draw(1, 5), draw(1, 7), (draw(1, 3), draw(1, 3))
    stride, dilation = (draw(1, 2), draw(1, 2)), (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2))
    height, width = draw(5, 12), draw(5, 12)
    tiling = PixelTiles(
        channels, height, width, kernel, stride, padding, dilation, 32 * draw(1, 3), draw(1, 4)
    )
    spec = GatheredRows(rows, "float32", tiling, draw(1, 2), draw(1, 4))
    matrix, x = weight(rows, tiling.columns, 0.5), torch.randn(draw(1, 3), channels, height, width)
    expected = padded_conv2d(x, matrix.reshape(rows, channels, *kernel), None, stride, padding, dilation, 1)
    assert relative_error(run(spec, x, matrix, tuple(expected.shape)), expected) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_epilogues_steps_come_before_the_store(dtype: str) -> None:
    kernel = replace(LINEAR, rows=9, dtype=dtype, warps=1, epilogue="bias gelu multiply add relu6")
    matrix, x = weight(9, 50, 0.3, dtype), torch.randn(11, 50).to(matrix_dtype(dtype))
    bias, factor, more = (torch.randn(shape).to(x.dtype) for shape in ((9,), (11, 9), (11, 9)))
    y = run(kernel, x, matrix, (11, 9), bias, factor, more)
    operands = [operand.float() for operand in (bias, factor, more)]
    expected = epilogues.apply(x.float() @ matrix.float().T, kernel.epilogue, operands, channel=-1)
    assert relative_error(y.float(), expected) < tolerance([x.dtype]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("step", sorted(epilogues.ACTIVATIONS))
def test_every_activation_is_pytorchs(step: str) -> None:
    kernel = replace(LINEAR, rows=9, warps=1, epilogue=step)
    matrix, x = weight(9, 50, 0.6), 2 * torch.randn(11, 50)
    expected = epilogues.ACTIVATIONS[step](x @ matrix.T)
    assert relative_error(run(kernel, x, matrix, (11, 9)), expected) < 1e-5


def test_nan_and_infinity_reach_the_outputs_that_read_them_through_relu_and_bfloat16() -> None:
    kernel = replace(LINEAR, rows=9, dtype="bfloat16", warps=1, epilogue="relu")
    matrix, x = torch.zeros(9, 50).bfloat16(), torch.randn(3, 50).bfloat16()
    matrix[2, 7], x[0, 7], x[1, 7] = 1.0, torch.nan, torch.inf
    y = run(kernel, x, matrix, (3, 9))
    assert y[0, 2].isnan()
    assert y[1, 2] == torch.inf
    assert y[:, :2].isfinite().all()


def matrix_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@needs_nvcc
@pytest.mark.parametrize(
    ("kernel", "load"),
    [
        (GatheredRows(4096, "float32", TokenTiles(4096, 128, 64), 8, 16, "bias relu"), "ld.shared.v4.f32"),
        pytest.param(
            GatheredRows(
                64,
                "float32",
                PixelTiles(64, 56, 56, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 128, 8),
                8,
                8,
                "scale bias relu",
            ),
            "ld.shared.f32",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            GatheredRows(4096, "float32", TokenTiles(4096, 256, 64), 8, 16),
            "ld.shared.v4.f32",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["linear", "convolution", "linear-256"],
)
@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_sums_stay_in_registers(kernel: GatheredRows, load: str, arch: str) -> None:
    made = assemble(cuda_source(kernel, arch), arch)
    assert f".target {arch}" in made.ptx
    assert load in made.ptx
    # Each of the four entries at once, for each row, and the single ones that are left.
    assert made.ptx.count("fma.rn.f32") >= kernel.warp_rows * kernel.vectors * 5
    assert made.spilled == 0
    assert made.registers * kernel.warps * 32 <= 65536
    # Two blocks at a time on a multiprocessor: one computes while the other fills its tile.
    assert 2 * 4 * kernel.tiling.floats <= 163 * 1024
