"""What a candidate needs at most, in the formats of the survey."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.prune import prune_weight
from sparsecomp.pruning.storage import smallest_storage
from sparsecomp.pruning.weight_bytes import formats_of, most_kept, weight_bytes
from sparsecomp.train.weights import Weight


def weight_of(rows: int, columns: int) -> Weight:
    return prunable_layers(nn.Sequential(nn.Linear(columns, rows)))["0"]


def test_each_format_is_the_smallest_somewhere() -> None:
    weight = weight_of(256, 1024)
    size = 256 * 1024
    assert weight_bytes(weight, DENSE) == 4 * size
    assert weight_bytes(weight, Candidate("unstructured", 0.01)) == 4 * size  # a bitmap would be more
    half = weight_bytes(weight, Candidate("unstructured", 0.5))
    assert half == 2 * size + size // 8
    kept = size - round(0.99 * size)
    assert weight_bytes(weight, Candidate("unstructured", 0.99)) == -(-(kept * (32 + 10) + 256 * 12) // 8)
    left = size // 4 - round(0.9 * size / 4)
    assert weight_bytes(weight, Candidate("4x1", 0.9)) == 4 * 4 * left + -(-size // 4 // 8)
    assert weight_bytes(weight_of(64, 64), Candidate("2:4", 0.5)) == 2048 * 4 + 512


@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(["unstructured", "4x1", "2:4", "3x2", "filter", "shape"]),
    st.floats(0.05, 0.95),
)
def test_no_choice_of_weights_needs_more(rows: int, columns: int, structure: str, sparsity: float) -> None:
    weight = weight_of(rows, columns)
    candidate = Candidate(structure, 0.5 if structure == "2:4" else sparsity)
    mask = prune_weight(weight.parameter.detach(), candidate, None, "magnitude").mask
    assert smallest_storage(mask, 32, formats_of(weight, candidate)).nbytes <= weight_bytes(weight, candidate)


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(["unstructured", "4x1"]), st.floats(0.01, 0.99)
)
def test_never_more_than_dense_and_less_with_more_zeros(
    rows: int, columns: int, structure: str, sparsity: float
) -> None:
    weight = weight_of(rows, columns)
    found = weight_bytes(weight, Candidate(structure, sparsity))
    assert found <= weight_bytes(weight, DENSE)
    assert weight_bytes(weight, Candidate(structure, (1 + sparsity) / 2 * 0.999)) <= found


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["unstructured", "4x1", "2:4", "3x2", "filter", "shape"]),
    st.floats(0.05, 0.95),
)
def test_pruning_leaves_no_more_than_that(rows: int, columns: int, structure: str, sparsity: float) -> None:
    weight = weight_of(rows, columns)
    candidate = Candidate(structure, 0.5 if structure == "2:4" else sparsity)
    left = prune_weight(weight.parameter.detach(), candidate, None, "magnitude").mask.count_nonzero()
    assert left <= most_kept(weight, candidate)
