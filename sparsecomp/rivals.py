"""Other ways to run a model, to compare with. Each compiles before it returns, runs on as many
threads as PyTorch does, and computes in float32; one that cannot run the model raises."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Run = Callable[[], Any]
Rival = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Run]


class UnfitError(Exception):
    """A rival cannot run the model."""


def eager(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """PyTorch as it is; also how a compiled module is called."""

    @torch.no_grad()
    def run() -> Any:
        return model(*args, **kwargs)

    return run


def torch_compile(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """`torch.compile`, its weights frozen into the graph."""
    from torch._inductor import config

    compiled: Any = torch.compile(model)
    run = eager(compiled, args, kwargs)
    with config.patch(freezing=True):
        run()
    return run


def onnx_runtime(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """ONNX Runtime with all optimisations of the graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(_onnx(model, args, kwargs), options, providers=["CPUExecutionProvider"])
    feeds = _feeds([one.name for one in session.get_inputs()], model, args, kwargs)
    return lambda: session.run(None, feeds)


def openvino(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """OpenVINO with its latency hint; in float32, for it would take bfloat16 where the processor has that."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = ov.Core()
    try:
        converted = core.read_model(_onnx(model, args, kwargs))
    except torch.onnx.OnnxExporterError:  # its own frontend knows more models, but runs ResNet slower
        converted = ov.convert_model(torch.export.export(model, args, kwargs=dict(kwargs)))
    request = core.compile_model(converted, "CPU", settings).create_infer_request()
    feeds = _feeds([one.get_any_name() for one in converted.inputs], model, args, kwargs)

    def run() -> Any:
        return list(request.infer(feeds, share_inputs=True, share_outputs=True).values())

    return run


def _onnx(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns of packages that the model does not need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, args, kwargs=dict(kwargs), dynamo=True, verbose=False)
    assert program is not None
    exported: bytes = program.model_proto.SerializeToString()
    return exported


def _feeds(
    names: list[str], model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The tensors of the call by the names they have in the model's signature, where the exported model has the same;
    else in the order of the signature, which is that of an exported model's inputs."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    if all(isinstance(bound.get(name), Tensor) for name in names):
        return {name: bound[name].detach().numpy() for name in names}
    tensors = [leaf for leaf in pytree.tree_leaves(list(bound.values())) if isinstance(leaf, Tensor)]
    if len(names) != len(tensors):
        raise UnfitError(f"the exported model takes {len(names)} tensors, the call has {len(tensors)}")
    return {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}


RIVALS: dict[str, tuple[Rival, tuple[str, ...]]] = {
    "eager": (eager, ()),
    "torch.compile": (torch_compile, ()),
    "onnxruntime": (onnx_runtime, ("onnxruntime", "onnxscript")),
    "openvino": (openvino, ("openvino", "onnxscript")),
}
"""Name -> how it runs, and the packages it needs."""


def missing(name: str) -> tuple[str, ...]:
    """The packages that are not installed."""
    return tuple(package for package in RIVALS[name][1] if find_spec(package) is None)
