"""The contestants of a row: each function takes a model and its inputs and returns one inference to call.

All have the same signature, run on as many threads as torch does in this process, compute in fp32, and
compile before they return. A rival that cannot run a model raises; the table then gives its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsecomp import compile_sparse, rivals

Run = Callable[[], object]
Rival = Callable[[nn.Module, Mapping[str, Tensor]], Run]


def eager(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """PyTorch as it is."""
    return rivals.eager(model, (), inputs)


def sparsecomp(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """This library."""
    return eager(compile_sparse(model, example_kwargs=dict(inputs), threads=torch.get_num_threads()), inputs)


def sparsecomp_dense(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """This library's own kernels on dense weights, also where PyTorch is faster."""
    compiled = compile_sparse(
        model, example_kwargs=dict(inputs), threads=torch.get_num_threads(), min_speedup=0.0
    )
    if not compiled.report.sparse_layers:
        raise RuntimeError(f"no layer runs as a kernel: {'; '.join(compiled.report.notes)}")
    return eager(compiled, inputs)


DENSE_RIVALS: dict[str, Rival] = {
    "eager, dense": eager,
    "torch.compile": lambda model, inputs: rivals.torch_compile(model, (), inputs),
    "onnxruntime": lambda model, inputs: rivals.onnx_runtime(model, (), inputs),
    "openvino": lambda model, inputs: rivals.openvino(model, (), inputs),
}
"""They gain nothing from zeros, so they run the weights as they were before pruning."""
