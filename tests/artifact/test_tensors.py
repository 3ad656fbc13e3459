"""Tensors come back as they were, each once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecomp import ArtifactError
from sparsecomp.artifact.tensors import ALIGNMENT, TensorReader, TensorWriter


def back(*tensors: Tensor) -> list[Tensor]:
    writer = TensorWriter()
    references = [writer.add(tensor) for tensor in tensors]
    reader = TensorReader(writer.section())
    return [reader.get(reference) for reference in references]


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
def test_values_types_and_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (3 * torch.randn(shape)).to(dtype)
    (found,) = back(tensor)
    assert found.dtype == dtype
    assert found.shape == shape
    assert torch.equal(found, tensor)


def test_bits_and_not_numbers() -> None:
    tensor = torch.arange(-5, 5, dtype=torch.int32).view(torch.float32)  # NaNs and denormals
    (found,) = back(tensor)
    assert torch.equal(found.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 1, 0, 2),
        lambda x: x.contiguous(),
    ],
)
def test_the_order_in_memory(view: Any) -> None:
    tensor = view(torch.randn(2, 3, 4, 5))
    (found,) = back(tensor)
    assert torch.equal(found, tensor)
    assert found.stride() == tensor.stride()


@pytest.mark.parametrize(
    "view", [lambda x: x[:, ::2], lambda x: x[1:2], lambda x: x[0].expand(7, 4)], ids=["step", "part", "same"]
)
def test_views_are_written_as_what_they_show(view: Any) -> None:
    tensor = view(torch.randn(3, 4))
    assert torch.equal(back(tensor)[0], tensor)


def test_the_same_data_is_written_once() -> None:
    tensor = torch.randn(3, 4)
    writer = TensorWriter()
    same = [writer.add(view) for view in (tensor, tensor.detach(), tensor.view(3, 4))]
    turned, part = writer.add(tensor.t()), writer.add(tensor[:2])
    assert same == ["t0"] * 3
    assert turned == {"tensor": "t0", "order": [1, 0]}
    assert part == "t1"
    reader = TensorReader(writer.section())
    assert reader.get("t0") is reader.get("t0")
    assert reader.get(turned) is reader.get(turned)
    assert reader.get(turned).data_ptr() == reader.get("t0").data_ptr()


def test_data_lies_as_kernels_want_it() -> None:
    found = back(*(torch.randn(size) for size in range(1, 20)))
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in found)


def test_what_has_no_form_is_refused() -> None:
    writer = TensorWriter()
    for tensor in (torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse()):
        with pytest.raises(ArtifactError, match="cannot be saved"):
            writer.add(tensor)


@pytest.mark.parametrize(
    "reference",
    ["t1", None, 3, {"tensor": "t0"}, {"tensor": "t0", "order": [0, 0]}, {"tensor": "t1", "order": []}],
)
def test_what_is_not_there(reference: Any) -> None:
    writer = TensorWriter()
    writer.add(torch.ones(2, 2))
    with pytest.raises(ArtifactError, match="it refers to"):
        TensorReader(writer.section()).get(reference)


def test_another_format() -> None:
    for section in (b"", b"x" * 100, b"\xff" * 8 + b"{}"):
        with pytest.raises(ArtifactError, match="weights cannot be read"):
            TensorReader(section)
