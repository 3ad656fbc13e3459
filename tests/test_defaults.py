"""What users set for all of PyTorch does not reach the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsecomp
from sparsecomp.compare import relative_error


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def pruned() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval().requires_grad_(False)
    weight = model[0].get_parameter("weight")
    weight.mul_(torch.rand_like(weight) < 0.1)
    return model, torch.randn(8, 64)


OTHERS = (torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", OTHERS)
def test_calls_do_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    model, x = pruned()
    expected = model(x)
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    torch.set_default_dtype(dtype)
    found = compiled(x)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-5
    assert relative_error(compiled(x[:3]), expected[:3]) < 1e-5


@pytest.mark.parametrize("dtype", OTHERS)
def test_compiling_saving_and_loading_do_not_depend_on_it(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = pruned()
    expected = model(x)
    torch.set_default_dtype(dtype)
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    assert compiled.report.rung == "whole graph"
    compiled.save(tmp_path / "m.sparsecomp")
    for module in (compiled, sparsecomp.load(tmp_path / "m.sparsecomp")):
        assert relative_error(module(x), expected) < 1e-5


def test_calls_do_not_depend_on_the_default_device() -> None:
    model, x = pruned()
    expected = model(x)
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    with torch.device("meta"):
        found = compiled(x)
    assert found.device.type == "cpu"
    assert relative_error(found, expected) < 1e-5


def test_a_negative_view_is_read_as_what_it_means() -> None:
    model, x = pruned()
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    assert relative_error(compiled(torch._neg_view(x)), model(-x)) < 1e-5
