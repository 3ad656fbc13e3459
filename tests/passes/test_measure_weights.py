"""The facts of planted patterns are exact, whatever the shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.facts import Block
from sparsecomp.passes.measure_weights import BLOCKS, measure_weight

SIDES = (2, 4, 8, 16)
VECTORS = [(side, 1) for side in SIDES] + [(1, side) for side in SIDES]
SQUARES = [(side, side) for side in SIDES]

seeds = st.integers(0, 2**16)
quick = settings(max_examples=40, deadline=None)


def values(mask: Tensor) -> Tensor:
    """A weight that is non-zero exactly where the mask is true."""
    return torch.where(mask, torch.rand(mask.shape) + 0.5, 0.0)


def random_mask(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def tiled(blocks: Tensor, block: Block, rows: int, columns: int) -> Tensor:
    """A mask of whole blocks, cut to rows x columns."""
    return blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]


def checkerboard(block: Block, rows: int, columns: int) -> Tensor:
    bands, stacks = torch.arange(-(-rows // block[0])), torch.arange(-(-columns // block[1]))
    return tiled((bands[:, None] + stacks) % 2 == 0, block, rows, columns)


def choose(n: int, m: int, shape: tuple[int, int], seed: int) -> Tensor:
    """A mask with n of every m columns of each row, chosen at random; the last group is cut to the shape."""
    rows, columns = shape
    score = torch.rand(rows, -(-columns // m), m, generator=torch.Generator().manual_seed(seed))
    return (score.argsort(-1).argsort(-1) < n).flatten(1)[:, :columns]


# Every count, against its definition in plain Python.


@quick
@given(
    rows=st.integers(1, 21),
    columns=st.integers(1, 21),
    density=st.sampled_from([0.0, 0.03, 0.3, 0.7, 0.97, 1.0]),
    seed=seeds,
)
def test_counts_follow_their_definition(rows: int, columns: int, density: float, seed: int) -> None:
    mask = random_mask((rows, columns), density, seed)
    facts = measure_weight("layer", values(mask))
    used: list[list[bool]] = mask.tolist()
    lengths = [sum(row) for row in used]

    assert facts.layer == "layer"
    assert facts.shape == (rows, columns)
    assert facts.nonzeros == sum(lengths)
    assert facts.density == pytest.approx(sum(lengths) / (rows * columns))
    assert facts.zero_rows == sum(not any(row) for row in used)
    assert (
        facts.zero_columns
        == facts.zero_channels
        == sum(not any(column) for column in zip(*used, strict=True))
    )
    assert facts.zero_kernels == 0
    assert facts.row_max == max(lengths)
    assert facts.row_mean == pytest.approx(sum(lengths) / rows)
    variance = sum((length - facts.row_mean) ** 2 for length in lengths) / rows
    assert facts.row_std == pytest.approx(math.sqrt(variance))


@quick
@given(
    rows=st.integers(1, 21),
    columns=st.integers(1, 21),
    density=st.sampled_from([0.0, 0.03, 0.3, 0.7, 1.0]),
    seed=seeds,
)
def test_fill_follows_its_definition(rows: int, columns: int, density: float, seed: int) -> None:
    mask = random_mask((rows, columns), density, seed)
    fill = measure_weight("layer", values(mask)).block_fill
    assert set(fill) == {(r, c) for r, c in BLOCKS if r <= rows and c <= columns}
    for (r, c), found in fill.items():
        blocks = [mask[i : i + r, j : j + c] for i in range(0, rows, r) for j in range(0, columns, c)]
        stored = sum(block.numel() for block in blocks if block.any())
        assert found == (int(mask.sum()) / stored if stored else 1.0)


@quick
@given(rows=st.integers(1, 12), columns=st.integers(1, 40), density=st.floats(0, 1), seed=seeds)
def test_a_reported_n_of_m_holds_in_every_group(rows: int, columns: int, density: float, seed: int) -> None:
    mask = random_mask((rows, columns), density, seed)
    pattern = measure_weight("layer", values(mask)).n_of_m
    if pattern is not None:
        n, m = pattern
        assert 0 < n < m <= columns
        groups = [mask[:, j : j + m] for j in range(0, columns, m)]
        assert max(int(group.sum(dim=1).max()) for group in groups) == n


@quick
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=seeds,
)
def test_channels_and_kernels_of_a_convolution(
    shape: tuple[int, int, int, int], density: float, seed: int
) -> None:
    mask = random_mask(shape, density, seed)
    facts = measure_weight("conv", values(mask))
    outputs, channels = shape[:2]
    assert facts.zero_rows == sum(not mask[o].any() for o in range(outputs))
    assert facts.zero_channels == sum(not mask[:, c].any() for c in range(channels))
    assert facts.zero_kernels == sum(not mask[o, c].any() for o in range(outputs) for c in range(channels))
    assert facts.block_fill == measure_weight("linear", values(mask).flatten(1)).block_fill


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_the_dtype_does_not_matter(dtype: torch.dtype) -> None:
    mask = checkerboard((4, 1), 19, 9)
    assert measure_weight("layer", mask.to(dtype)) == measure_weight("layer", values(mask))


def test_strides_signs_of_zero_and_nan_do_not_matter() -> None:
    mask = checkerboard((4, 1), 19, 9)
    weight = values(mask)
    facts = measure_weight("layer", weight)
    assert measure_weight("layer", weight.t().contiguous().t().requires_grad_()) == facts
    assert measure_weight("layer", torch.where(mask, torch.nan, -0.0)) == facts


# No pattern.


@given(
    shape=st.lists(st.integers(1, 19), min_size=2, max_size=2)
    | st.lists(st.integers(1, 5), min_size=4, max_size=4)
)
@quick
def test_dense_and_empty(shape: list[int]) -> None:
    dense, empty = measure_weight("layer", torch.ones(shape)), measure_weight("layer", torch.zeros(shape))
    assert (dense.structure, empty.structure) == ("dense", "empty")
    assert (dense.density, empty.density) == (1, 0)
    assert set(dense.block_fill.values()) <= {1.0}
    assert dense.best_block == empty.best_block == (1, 1)
    assert dense.n_of_m is None
    assert empty.n_of_m is None


@given(
    rows=st.integers(64, 130),
    columns=st.integers(64, 130),
    density=st.sampled_from([0.1, 0.3, 0.5, 0.75, 0.9, 0.94]),
    seed=seeds,
)
@quick
def test_unstructured(rows: int, columns: int, density: float, seed: int) -> None:
    facts = measure_weight("layer", values(random_mask((rows, columns), density, seed)))
    assert facts.best_block == (1, 1)
    assert facts.n_of_m is None
    if facts.density < 0.95:  # beyond, a few stray zeros do not make a weight sparse
        assert facts.structure == "unstructured"


def test_stray_zeros_leave_a_weight_dense() -> None:
    facts = measure_weight("layer", values(random_mask((200, 200), 0.98, 0)))
    assert (facts.structure, facts.best_block, facts.n_of_m) == ("dense", (1, 1), None)


# Blocks.


@pytest.mark.parametrize("block", VECTORS + SQUARES)
@given(extra_rows=st.integers(0, 15), extra_columns=st.integers(0, 15))
@quick
def test_smallest_checkerboard(block: Block, extra_rows: int, extra_columns: int) -> None:
    """Two by two blocks or a few more, the last ones partial."""
    mask = checkerboard(block, block[0] + 1 + extra_rows, block[1] + 1 + extra_columns)
    facts = measure_weight("layer", values(mask))
    assert facts.best_block == block
    assert facts.block_fill[block] == 1
    assert facts.structure == f"blocks {block[0]}x{block[1]}"


@pytest.mark.parametrize("block", VECTORS + SQUARES)
@given(
    extra_rows=st.integers(0, 15),
    extra_columns=st.integers(0, 15),
    density=st.sampled_from([0.05, 0.2, 0.5, 0.8, 0.9]),
    seed=seeds,
)
@settings(max_examples=15, deadline=None)
def test_random_blocks(block: Block, extra_rows: int, extra_columns: int, density: float, seed: int) -> None:
    rows, columns = 32 * block[0] + extra_rows, 32 * block[1] + extra_columns
    blocks = random_mask((-(-rows // block[0]), -(-columns // block[1])), density, seed)
    facts = measure_weight("layer", values(tiled(blocks, block, rows, columns)))
    assert facts.best_block == block
    assert facts.block_fill[block] == 1
    assert facts.structure == f"blocks {block[0]}x{block[1]}"


@pytest.mark.parametrize("block", [(4, 1), (16, 1), (8, 8)])
def test_blocks_with_stray_zeros_inside(block: Block) -> None:
    mask = tiled(random_mask((40, 40), 0.3, 0), block, 40 * block[0] - 1, 40 * block[1])
    facts = measure_weight("layer", values(mask & random_mask(mask.shape, 0.98, 1)))
    assert facts.best_block == block
    assert 0.95 <= facts.block_fill[block] < 1
    assert facts.structure == f"blocks {block[0]}x{block[1]}"


def test_blocks_within_kept_columns() -> None:
    mask = tiled(random_mask((50, 200), 0.3, 0), (4, 1), 199, 200) & random_mask((200,), 0.5, 1)
    facts = measure_weight("layer", values(mask))
    assert facts.zero_columns > 50
    assert (facts.structure, facts.best_block) == ("blocks 4x1", (4, 1))


def test_blocks_of_a_convolution() -> None:
    mask = tiled(random_mask((8, 32 * 9), 0.3, 0), (4, 1), 30, 32 * 9)
    facts = measure_weight("conv", values(mask).reshape(30, 32, 3, 3))
    assert (facts.structure, facts.best_block) == ("blocks 4x1", (4, 1))


# N:M.


@pytest.mark.parametrize(
    ("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (1, 8), (3, 8), (5, 8), (1, 16), (5, 16), (11, 16)]
)
@given(rows=st.integers(24, 40), columns=st.integers(64, 99), zero_rows=st.integers(0, 8), seed=seeds)
@settings(max_examples=15, deadline=None)
def test_n_of_m(n: int, m: int, rows: int, columns: int, zero_rows: int, seed: int) -> None:
    mask = choose(n, m, (rows, columns), seed)
    mask[:zero_rows] = False
    facts = measure_weight("layer", values(mask))
    assert facts.n_of_m == (n, m)
    assert facts.best_block == (1, 1)
    assert facts.structure == f"{n}:{m}"


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16)])
def test_n_of_m_reported_at_its_finest(n: int, m: int) -> None:
    """2:4 is also 4:8 and 8:16, but not the other way round."""
    assert measure_weight("layer", values(choose(n, m, (64, 256), 0))).n_of_m == (n, m)


@pytest.mark.parametrize("m", [4, 8, 16])
def test_half_full_groups_are_not_n_of_m(m: int) -> None:
    mask = choose(m // 2, m, (64, 256), 0) & random_mask((64, 256), 0.5, 1)
    facts = measure_weight("layer", values(mask))
    assert (facts.n_of_m, facts.structure) == (None, "unstructured")


def test_blocks_name_a_balanced_pattern() -> None:
    """The same 2 of every 4 columns in each 8 rows: blocks say more than 2:4, and both are true."""
    mask = tiled(choose(2, 4, (16, 128), 0), (8, 1), 128, 128)
    facts = measure_weight("layer", values(mask))
    assert (facts.structure, facts.best_block, facts.n_of_m) == ("blocks 8x1", (8, 1), (2, 4))


# Rows, columns, channels and kernels removed.


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), data=st.data())
@quick
def test_removed_rows_and_columns(rows: int, columns: int, data: st.DataObject) -> None:
    shares = st.sampled_from([0.3, 0.8, 1.0])
    kept_rows = random_mask((rows,), data.draw(shares), data.draw(seeds))
    kept_columns = random_mask((columns,), data.draw(shares), data.draw(seeds))
    kept_rows[data.draw(st.integers(0, rows - 1))] = True
    kept_columns[data.draw(st.integers(0, columns - 1))] = True
    facts = measure_weight("layer", values(kept_rows[:, None] & kept_columns))
    names = {
        (True, True): "dense",
        (False, True): "rows",
        (True, False): "columns",
        (False, False): "rows and columns",
    }
    assert facts.zero_rows == int((~kept_rows).sum())
    assert facts.zero_columns == facts.zero_channels == int((~kept_columns).sum())
    assert facts.best_block == (1, 1)
    assert facts.structure == names[bool(kept_rows.all()), bool(kept_columns.all())]


@given(outputs=st.integers(1, 20), channels=st.integers(2, 20), kernel=st.integers(1, 3), data=st.data())
@quick
def test_removed_channels(outputs: int, channels: int, kernel: int, data: st.DataObject) -> None:
    removed = data.draw(st.sets(st.integers(0, channels - 1), min_size=1, max_size=channels - 1))
    weight = torch.ones(outputs, channels, kernel, kernel)
    weight[:, list(removed)] = 0
    facts = measure_weight("conv", weight)
    assert facts.zero_channels == len(removed)
    assert facts.zero_columns == len(removed) * kernel**2
    assert facts.zero_kernels == len(removed) * outputs
    assert facts.structure == ("channels" if kernel > 1 else "columns")
    assert facts.best_block == (1, 1)


def test_part_of_a_channel_is_columns() -> None:
    weight = torch.ones(8, 4, 3, 3)
    weight[:, 0] = 0
    weight[:, 1, 0, 0] = 0
    assert measure_weight("conv", weight).structure == "columns"


def test_filters_and_channels() -> None:
    weight = torch.ones(8, 4, 3, 3)
    weight[:, 0] = 0
    weight[2] = 0
    assert measure_weight("conv", weight).structure == "rows and channels"


@given(
    outputs=st.integers(2, 20),
    channels=st.integers(2, 20),
    kernel=st.sampled_from([(1, 2), (2, 2), (3, 3), (1, 3), (5, 5)]),
)
@quick
def test_removed_kernels(outputs: int, channels: int, kernel: tuple[int, int]) -> None:
    mask = checkerboard((1, 1), outputs, channels)
    facts = measure_weight("conv", values(mask[:, :, None, None].expand(-1, -1, *kernel)))
    assert facts.zero_kernels == int((~mask).sum())
    assert facts.structure == "kernels"


@given(outputs=st.integers(1, 20), data=st.data())
@quick
def test_depthwise_kernels_are_rows(outputs: int, data: st.DataObject) -> None:
    removed = data.draw(st.sets(st.integers(0, outputs - 1), max_size=outputs - 1))
    weight = torch.ones(outputs, 1, 3, 3)
    weight[list(removed)] = 0
    facts = measure_weight("conv", weight)
    assert facts.zero_rows == facts.zero_kernels == len(removed)
    assert facts.structure == ("rows" if removed else "dense")


@pytest.mark.parametrize(("kept", "structure"), [(0.2, "columns"), (0.9, "unstructured")])
def test_what_holds_most_zeros_names_the_rest(kept: float, structure: str) -> None:
    mask = random_mask((100, 100), 0.8, 0) & random_mask((100,), kept, 1)
    assert measure_weight("layer", values(mask)).structure == structure


@pytest.mark.parametrize(("block", "structure"), [((1, 4), "kernels"), ((4, 4), "blocks 4x4")])
def test_the_larger_of_block_and_kernel_names_the_weight(block: Block, structure: str) -> None:
    """Kernels of 2 x 2 are also blocks of 1 x 4."""
    facts = measure_weight("conv", values(checkerboard(block, 32, 64)).reshape(32, 16, 2, 2))
    assert facts.best_block == block
    assert facts.structure == structure
