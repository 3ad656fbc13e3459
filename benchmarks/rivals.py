"""The contestants: each function takes a model and its inputs and returns one inference to call.

All have the same signature, run on as many threads as torch does in this process, compute in fp32, and
compile before they return. A rival that cannot run a model raises; the table then gives its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Run = Callable[[], object]
Rival = Callable[[nn.Module, Mapping[str, Tensor]], Run]


def eager(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """PyTorch as it is."""

    @torch.no_grad()
    def run() -> object:
        return model(**inputs)

    return run


def torch_compile(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """`torch.compile` with the weights frozen into the graph."""
    from torch._inductor import config

    compiled = torch.compile(model)

    @torch.no_grad()
    def run() -> object:
        return compiled(**inputs)

    with config.patch(freezing=True):
        run()
    return run


def onnx_runtime(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """ONNX Runtime with all graph optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    exported = _export_onnx(model, inputs)
    session = ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: session.run(None, feeds)


def openvino(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """OpenVINO with its latency hint; in fp32, for it would take bf16 where the CPU has that."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = ov.Core()
    try:
        converted = core.read_model(_export_onnx(model, inputs))
    except torch.onnx.OnnxExporterError:  # its own frontend knows more models, but runs ResNet slower
        converted = ov.convert_model(torch.export.export(model, (), kwargs=dict(inputs)))
    request = core.compile_model(converted, "CPU", settings).create_infer_request()
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}

    def run() -> object:
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return list(results.values())

    return run


def sparsecomp(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """This library."""
    from sparsecomp import compile_sparse

    return eager(compile_sparse(model, example_kwargs=dict(inputs), threads=torch.get_num_threads()), inputs)


def sparsecomp_dense(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """This library's own kernels on dense weights, also where PyTorch is faster."""
    from sparsecomp import compile_sparse

    compiled = compile_sparse(
        model, example_kwargs=dict(inputs), threads=torch.get_num_threads(), min_speedup=0.0
    )
    if not compiled.report.sparse_layers:
        raise RuntimeError(f"no layer runs as a kernel: {'; '.join(compiled.report.notes)}")
    return eager(compiled, inputs)


def _export_onnx(model: nn.Module, inputs: Mapping[str, Tensor]) -> bytes:
    program = torch.onnx.export(model, kwargs=dict(inputs), dynamo=True, verbose=False)
    assert program is not None
    exported: bytes = program.model_proto.SerializeToString()
    return exported


DENSE_RIVALS: dict[str, Rival] = {
    "eager, dense": eager,
    "torch.compile": torch_compile,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}
"""They gain nothing from zeros, so they run the weights as they were before pruning."""
