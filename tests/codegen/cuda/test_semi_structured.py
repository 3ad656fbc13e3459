"""2:4 weights: found, and left to PyTorch's own kernels or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.semi_structured import SemiStructured, SemiStructuredFamily, is_two_of_four
from sparsecomp.layer import Layer
from tests.codegen.cuda.null_gpu import GPU


def two_of_four(rows: int = 64, columns: int = 128, dtype: torch.dtype = torch.float16) -> Tensor:
    order = torch.rand(rows, columns // 4, 4).argsort(dim=2)
    return (torch.randn(rows, columns // 4, 4) * (order < 2)).reshape(rows, columns).to(dtype)


def case(matrix: Tensor, tokens: int = 64, op: str = "linear") -> Case:
    shape = tuple(matrix.shape)
    return Case(Layer("fc", op, "w", shape, (tokens, shape[1])), matrix, GPU)  # type: ignore[arg-type]


def test_two_of_four_neighbours_in_a_row_are_found() -> None:
    assert is_two_of_four(two_of_four())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_such_a_weight_is_tried(dtype: torch.dtype) -> None:
    family, found = SemiStructuredFamily(), case(two_of_four(dtype=dtype))
    assert family.refused(found) is None
    assert family.kernels(found) == [SemiStructured(64, 128)]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (case(two_of_four().t().contiguous()), "more than two of four"),
        (case(torch.eye(64, 126).half()), "more than two of four"),
        (case(two_of_four(48)), "multiples of 32x64, this is 48x128"),
        (case(two_of_four(dtype=torch.float32)), "not float32"),
        (case(two_of_four(), tokens=1), "for 1 tokens the time goes into reading"),
    ],
    ids=["across", "no multiple of four", "rows", "dtype", "tokens"],
)
def test_others_are_refused(found: Case, why: str) -> None:
    assert why in (SemiStructuredFamily().refused(found) or "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch's kernels need a GPU")
def test_pytorch_gives_the_dense_numbers_and_the_weight_back() -> None:
    matrix, x = two_of_four().cuda(), torch.randn(64, 128).half().cuda()
    kernel = SemiStructured(64, 128, "relu")
    packed = kernel.pack(matrix)
    assert torch.equal(kernel.unpack(packed), matrix)
    y = torch.empty(64, 64).half().cuda()
    kernel.run(x, *packed, y)
    torch.testing.assert_close(y, torch.relu(x @ matrix.t()), rtol=1e-2, atol=1e-2)
