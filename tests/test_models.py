"""The promise on real architectures: outputs of the model, at the compiled batch and at one never seen."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from benchmarks.prune import prune
from benchmarks.workloads import WORKLOADS
from sparsecomp import SparseModule, compile_sparse
from sparsecomp.compare import relative_error

TOLERANCE = 1e-4
WEIGHTS = [("none", 0.0), ("unstructured", 0.5), ("unstructured", 0.9), ("4x1", 0.9)]


def repeated(inputs: Mapping[str, object], times: int) -> Mapping[str, object]:
    return {n: torch.cat([v] * times) if isinstance(v, Tensor) and v.dim() else v for n, v in inputs.items()}


def check(compiled: SparseModule, model: nn.Module, inputs: Mapping[str, object]) -> None:
    with torch.no_grad():
        for call in (inputs, repeated(inputs, 3)):
            actual, expected = compiled(**call), model(**call)
            assert type(actual) is type(expected)
            assert relative_error(actual, expected) < TOLERANCE
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in compiled.state_dict().items())


SMALL = [pytest.param(*kind, marks=[pytest.mark.slow] * (kind != WEIGHTS[2])) for kind in WEIGHTS]
"""One of the kinds runs with the fast tests; tests/test_compile.py has models with all kinds at once."""


@pytest.mark.parametrize(("pattern", "sparsity"), SMALL)
@pytest.mark.parametrize("name", WORKLOADS)
def test_small_models(name: str, pattern: str, sparsity: float) -> None:
    """Every layer that has a kernel runs as one, whether it gains or not."""
    torch.set_num_threads(1)
    model, inputs = WORKLOADS[name].make(small=True)
    prune(model, pattern, sparsity)
    compiled = compile_sparse(model, example_kwargs=inputs, min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    assert len(compiled.report.sparse_layers) > len(compiled.report.layers) // 2
    check(compiled, model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "sparsity"), WEIGHTS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_models(name: str, pattern: str, sparsity: float) -> None:
    """As a user compiles them: what gains is converted."""
    torch.set_num_threads(1)
    model, inputs = WORKLOADS[name].make()
    prune(model, pattern, sparsity)
    compiled = compile_sparse(model, example_kwargs=inputs)
    check(compiled, model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_weights_take_less_memory(name: str) -> None:
    torch.set_num_threads(1)
    model, inputs = WORKLOADS[name].make()
    pruned = prune(model, "unstructured", 0.9)
    report = compile_sparse(model, example_kwargs=inputs).report
    # Of the pruned layers: a dense head may be converted too, and takes what it took.
    converted = [layer for layer in report.sparse_layers if layer.layer.name in pruned]
    assert len(converted) >= 0.9 * len(pruned)
    assert sum(layer.nbytes for layer in converted) <= 0.22 * sum(layer.dense_bytes for layer in converted)
