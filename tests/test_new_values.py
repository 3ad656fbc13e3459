"""New values of the same pattern, without compiling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.workloads import WORKLOADS
from sparsecomp import InputError, SparseModule, compile_sparse, load
from sparsecomp.compare import TOLERANCE, relative_error
from tests.artifact.nets import FEATURES, Images, Tokens, compiled_of, pruned
from tests.artifact.test_artifact import no_compiler, same_state
from tests.test_slimming import slim_network


def other_values(model: nn.Module) -> Any:
    """Another model of the same kind with its zeros at the same places."""
    other = copy.deepcopy(model)
    for value in (*other.parameters(), *other.buffers()):
        if value.is_floating_point():
            value.data.mul_(torch.empty_like(value).uniform_(0.5, 2.0))
    return other


def check(compiled: SparseModule, other: nn.Module, *calls: Tensor) -> None:
    for x in calls:
        assert relative_error(compiled(x), other(x)) < TOLERANCE
        assert compiled.verify(x) < TOLERANCE
    assert same_state(compiled, other)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("net", "shape"), [(Tokens, (2, 5, FEATURES)), (Images, (2, 3, 15, 15))])
def test_every_tensor_is_taken_and_nothing_compiled(net: Any, shape: tuple[int, ...], target: str) -> None:
    model, x = pruned(net()), torch.randn(shape)
    compiled = compiled_of(model, x, target=target)
    compiled(
        y := torch.randn(
            shape[0], *(size + 1 if i else size for i, size in enumerate(shape[1:-1])), shape[-1]
        )
    )
    other = other_values(model)
    before = compiled(x)
    with no_compiler():
        compiled.update_weights(other)
    assert relative_error(compiled(x), before) > 0.01
    check(compiled, other, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(compiled(x), other(x)) < 1e-1


def test_a_loaded_module_takes_them_too(tmp_path: Path) -> None:
    model, x = pruned(Tokens()), torch.randn(2, 5, FEATURES)
    compiled_of(model, x, target="cpu").save(tmp_path / "m.sparsecomp")
    back = load(tmp_path / "m.sparsecomp")
    other = other_values(model)
    with no_compiler():
        back.update_weights(other)
    check(back, other, x)
    back.save(tmp_path / "other.sparsecomp")
    check(load(tmp_path / "other.sparsecomp"), other, x)


def test_a_slimmed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecomp.module.SparseModule._refused", lambda *rest: "")
    model, x = slim_network(), torch.randn(2, 3, 16, 16)
    compiled = compile_sparse(model, (x,), min_speedup=0.0)
    sparse = len(compiled._compiler.streams.names)
    assert compiled._compiler.cuts
    other = other_values(model)
    with no_compiler():
        compiled.update_weights(other)
    check(compiled, other, x)
    assert len(compiled._compiler.streams.names) == sparse
    assert compiled._compiler.cuts
    check(compiled, other, torch.randn(1, 3, 20, 12))  # a further graph


def test_a_small_bert() -> None:
    model, inputs = WORKLOADS["bert-base"].make(small=True)
    compiled = compile_sparse(pruned(model), (), inputs, target="reference", min_speedup=0.0)
    other = other_values(model)
    compiled.update_weights(other)
    assert relative_error(compiled(**inputs), other(**inputs)) < TOLERANCE
    assert compiled.config is not None


# What is refused ---------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> nn.Module:
    return pruned(Tokens())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, FEATURES)


def refused(compiled: SparseModule, other: nn.Module, match: str, x: Tensor) -> None:
    """With this message, and nothing has changed."""
    before, state = compiled(x), copy.deepcopy(compiled.state_dict())
    with pytest.raises(InputError, match=match):
        compiled.update_weights(other)
    assert torch.equal(compiled(x), before)
    assert all(torch.equal(value, state[key]) for key, value in compiled.state_dict().items())


def test_zeros_elsewhere(model: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(model, x)
    other: Any = other_values(model)
    weight = other.outer[0].weight.data
    weight.view(-1)[(weight.view(-1) == 0).nonzero()[:3]] = 1.0
    refused(
        compiled, other, r"layer 'outer\.0': 3 of its weights were zero and are not, 0 were not and are", x
    )
    refused(compiled, pruned(Tokens(), 0.5), r"layer 'inner': \d+ of its weights were zero", x)


def test_another_shape_or_kind(model: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(model, x)
    other: Any = other_values(model)
    other.unused = nn.Parameter(torch.randn(4))
    refused(compiled, other, r"'unused' is \(4,\) torch.float32 in the new model, but \(3,\)", x)
    refused(compiled, nn.Linear(3, 3).eval(), "the new model has no 'unused'", x)
    refused(compiled, other_values(model).train(), "training mode", x)


def test_a_weight_that_is_not_finite(model: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(model, x)
    other: Any = other_values(model)
    weight = other.inner.weight.data
    weight[weight != 0] = torch.inf
    refused(compiled, other, "'inner'.*NaN or infinity", x)


def test_only_whole_graphs(model: nn.Module) -> None:
    with pytest.raises(InputError, match="whole graph"):
        compile_sparse(model, target="reference").update_weights(model)
