"""Groups partition the weights, and shrink as a numeric minimiser would have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsecomp.pattern import PATTERNS, RowBlocks
from sparsecomp.train import Pattern
from sparsecomp.train.pattern import GROUPS, largest
from sparsecomp.train.tiling import Tiling, kept_share
from sparsecomp.train.weights import Weight, find_weights
from tests.train.nets import message, minimiser, says

SIZE = st.integers(1, 9)
LAYERS = {
    "linear": nn.Linear(10, 6),
    "conv1d": nn.Conv1d(4, 6, 3),
    "conv2d": nn.Conv2d(4, 6, (3, 2)),
    "conv3d": nn.Conv3d(2, 4, 2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3),
}


def weight_of(layer: nn.Module) -> Weight:
    return find_weights(layer)["weight"]


@given(SIZE, SIZE, SIZE, SIZE)
def test_tiles_partition_a_matrix(rows: int, columns: int, height: int, width: int) -> None:
    tiling, shape = Tiling(height, width), (rows, columns)
    down, across = tiling.counts(shape)
    numbers = tiling.spread(torch.arange(down * across).reshape(down, across), shape)
    for row in range(rows):
        for column in range(columns):
            assert numbers[row, column] == row // height * across + column // width
    counted = torch.bincount(numbers.flatten(), minlength=down * across).reshape(down, across)
    assert torch.equal(tiling.sizes(shape), counted)
    matrix = torch.randn(rows, columns, dtype=torch.float64)
    squares = torch.zeros(down * across, dtype=torch.float64)
    squares.index_add_(0, numbers.flatten(), matrix.flatten() ** 2)
    assert torch.allclose(tiling.norms(matrix).flatten(), squares.sqrt())


MEANING: dict[str, Callable[[int, int, int, int], tuple[int, ...]]] = {
    "filter": lambda out, channel, tap, group: (out,),
    "neuron": lambda out, channel, tap, group: (out,),
    "channel": lambda out, channel, tap, group: (group, channel),
    "input": lambda out, channel, tap, group: (group, channel),
    "shape": lambda out, channel, tap, group: (group, channel, tap),
    "kernel": lambda out, channel, tap, group: (out, channel),
    "unstructured": lambda out, channel, tap, group: (out, channel, tap),
    "depth": lambda out, channel, tap, group: (),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_what_their_names_say(layer: str, name: str) -> None:
    """Two weights are in one group exactly if the indices that the name speaks of agree."""
    weight = weight_of(LAYERS[layer])
    tiling = GROUPS[name](weight)
    down, across = tiling.counts(weight.shape)
    numbers = weight.stored(tiling.spread(torch.arange(down * across).reshape(down, across), weight.shape))
    assert numbers.shape == weight.parameter.shape
    flat = numbers.transpose(0, 1) if weight.transposed else numbers
    flat = flat.flatten(2) if flat.dim() > 2 else flat[..., None]
    outputs, channels, taps = flat.shape
    seen: dict[int, tuple[int, ...]] = {}
    for out in range(outputs):
        for channel in range(channels):
            for tap in range(taps):
                group = out // (outputs // weight.groups)
                meaning = MEANING[name](out, channel, tap, group)
                assert seen.setdefault(int(flat[out, channel, tap]), meaning) == meaning
    assert len(set(seen.values())) == len(seen) == down * across


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_and_its_matrix_are_inverse(layer: str) -> None:
    weight = weight_of(LAYERS[layer])
    value = torch.randn(weight.parameter.shape)
    assert torch.equal(weight.stored(weight.matrix(value)), value)
    assert weight.matrix(value).shape == weight.shape


def objective(x: Tensor, w: Tensor, threshold: float) -> Tensor:
    value: Tensor = (x - w).square().sum() / 2 + threshold * torch.linalg.vector_norm(x)
    return value


@given(st.integers(0, 1000), st.floats(0.01, 3.0), st.integers(1, 6))
def test_the_proximal_step_minimises(seed: int, threshold: float, size: int) -> None:
    """Against a numeric minimiser, and against random points around."""
    torch.manual_seed(seed)
    w = torch.randn(size, dtype=torch.float64)
    found = kept_share(torch.linalg.vector_norm(w), threshold) * w
    wanted = minimiser(lambda x: threshold * (x.square().sum() + 1e-14).sqrt(), w)
    assert torch.allclose(found, wanted, atol=1e-4)
    for _ in range(50):
        other = found + torch.randn(size, dtype=torch.float64) * 0.1
        assert objective(found, w, threshold) <= objective(other, w, threshold) + 1e-12


@pytest.mark.parametrize(
    ("norm", "threshold", "share"), [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (2.0, 1.0, 0.5), (1.0, 0.0, 1.0)]
)
def test_the_share_that_stays(norm: float, threshold: float, share: float) -> None:
    assert float(kept_share(torch.tensor(norm), threshold)) == share


def test_what_is_broken_stays_visible() -> None:
    assert torch.equal(kept_share(torch.tensor([torch.nan, torch.inf]), 1.0), torch.ones(2))


@given(st.integers(0, 10_000))
def test_largest_of_each_line(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randint(0, 5, (3, 7), generator=generator).float()
    counts = torch.randint(0, 8, (3, 1), generator=generator)
    chosen = largest(lines, counts)
    assert torch.equal(chosen.sum(dim=1, keepdim=True), counts)
    for line, picked in zip(lines, chosen, strict=True):
        assert not picked.any() or picked.all() or line[picked].min() >= line[~picked].max()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_names_of_the_compilers_patterns(pattern: RowBlocks) -> None:
    parsed = Pattern.parse(pattern)
    assert Pattern.parse(str(parsed)) == parsed
    if not pattern.shared and not pattern.live_first:
        assert Pattern.parse(str(pattern)) == parsed


@pytest.mark.parametrize("name", ["", "4x0", "0x4", "4:2", "2:2", "0:4", "depth", "rows", "4x1x1", 4, None])
def test_patterns_that_do_not_exist(name: object) -> None:
    says(message(lambda: Pattern.parse(name)), repr(name), "4x1", "2:4", "filter")  # type: ignore[arg-type]
