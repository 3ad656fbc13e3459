"""Calls that PyTorch transforms or traces are refused with advice, and leave the module as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import sparsecomp
from sparsecomp import SparseModule
from sparsecomp.compare import relative_error
from sparsecomp.errors import InferenceOnlyError


@pytest.fixture(scope="module")
def both() -> tuple[nn.Module, SparseModule]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval().requires_grad_(False)
    weight = model[0].get_parameter("weight")
    weight.mul_(torch.rand_like(weight) < 0.1)
    return model, sparsecomp.compile_sparse(model, (torch.randn(8, 64),), min_speedup=0)


def mapped(module: nn.Module, x: Tensor) -> object:
    return torch.vmap(module)(torch.stack([x, x]))


def differentiated(module: nn.Module, x: Tensor) -> object:
    return torch.func.grad(lambda v: module(v).sum())(x)


def pushed_forward(module: nn.Module, x: Tensor) -> object:
    return torch.func.jvp(module, (x,), (x,))


def dual(module: nn.Module, x: Tensor) -> object:
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(x, x))  # type: ignore[no-untyped-call]


def traced(module: nn.Module, x: Tensor) -> object:
    return torch.jit.trace(module, (x,))  # type: ignore[no-untyped-call]


def without_data(module: nn.Module, x: Tensor) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return module(mode.from_tensor(x))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (mapped, "transformed by torch.func or torch.vmap"),
        (differentiated, "transformed by torch.func or torch.vmap"),
        (pushed_forward, "transformed by torch.func or torch.vmap"),
        (dual, "differentiated in forward mode"),
        (traced, "traced by torch.jit"),
        (without_data, "FakeTensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_refused(
    call: Callable[[nn.Module, Tensor], object], what: str, both: tuple[nn.Module, SparseModule]
) -> None:
    model, compiled = both
    x = torch.randn(8, 64)
    message = ""
    try:
        call(compiled, x)
    except InferenceOnlyError as error:  # not by pytest.raises, which would keep what is transformed alive
        message = str(error)
    assert what in message
    assert "do that with the model it was made from" in message
    assert relative_error(compiled(x), model(x)) < 1e-5
