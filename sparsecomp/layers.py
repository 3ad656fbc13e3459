"""The rung below the whole graph: layers of an eager model, swapped one by one.

It serves models whose graph cannot be captured, and calls that no captured graph covers, such as the steps of
a Hugging Face `generate`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsecomp.codegen import lower, tensor_device
from sparsecomp.codegen.stream import StreamStore
from sparsecomp.compare import relative_error, tolerance
from sparsecomp.inference_only import without_backward
from sparsecomp.layer import Layer
from sparsecomp.passes.find_layers import padding_sides
from sparsecomp.primitives import Runner
from sparsecomp.program import Body
from sparsecomp.region import RowsKernelChoice
from sparsecomp.section import Section, SectionOp
from sparsecomp.target import Target

LOG = logging.getLogger(__name__)
aten = torch.ops.aten
IMAGE_SIZES = 2
"""Image sizes for which a swapped convolution keeps packed weights; an older one makes room."""


def leaf_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are one layer, by the path of their weight.

    Subclasses may do more, and are left alone; so are layers whose weight another module holds as well, an
    embedding say, which needs it dense, and those that compute their weight at each call.
    """
    modules = list(model.named_modules())
    elsewhere = {
        id(parameter)
        for _, module in modules
        if not _is_layer(module)
        for parameter in module.parameters(recurse=False)
    }
    for name, module in modules:
        if _is_layer(module) and id(module.weight) not in elsewhere:
            yield name, module


def _is_layer(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if weight is None or weight.layout is not torch.strided or "forward" in vars(module):
        return False
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return getattr(module, "padding_mode", "") == "zeros"
    return type(module) is nn.Linear or _is_transposed_linear(module)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's `Conv1D`: x @ weight + bias, the weight stored in x out."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def record_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The first input of every leaf layer that the call reaches."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            plain = len(inputs) == 1 and isinstance(inputs[0], Tensor) and not inputs[0].is_nested
            if plain and inputs[0].layout is torch.strided:
                found.setdefault(name, inputs[0].detach())

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in leaf_layers(model)
    ]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layers_graph(model: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """A graph of unconnected layers, one placeholder and one operator each: the passes' view of an eager
    model. Its outputs are those of the layers, in the order of `inputs`."""
    graph, modules = fx.Graph(), dict(model.named_modules())
    placeholders = {name: graph.placeholder(f"input_{i}") for i, name in enumerate(inputs)}
    outputs = []
    for name, x in inputs.items():
        placeholders[name].meta["val"] = x.to("meta")
        outputs.append(_layer_node(graph, name, modules[name], placeholders[name], x))
    graph.output(tuple(outputs))
    return fx.GraphModule(model, graph)


def _layer_node(graph: fx.Graph, name: str, module: Any, x: fx.Node, example: Tensor) -> fx.Node:
    weight = graph.get_attr(f"{name}.weight")
    bias = graph.get_attr(f"{name}.bias") if module.bias is not None else None
    for node, tensor in ((weight, module.weight), (bias, module.bias)):
        if node is not None:
            node.meta["val"] = tensor.detach().to("meta")
    if isinstance(module, nn.Linear):
        made = graph.call_function(aten.linear.default, (x, weight, bias))
    elif _is_transposed_linear(module):
        made = graph.call_function(aten.matmul.default, (x, weight))
    else:
        dimensions = len(module.kernel_size)
        operator = aten.conv1d if dimensions == 1 else aten.conv2d
        overload = operator.padding if isinstance(module.padding, str) else operator.default
        padding = module.padding if isinstance(module.padding, str) else list(module.padding)
        settings = (list(module.stride), padding, list(module.dilation), module.groups)
        made = graph.call_function(overload, (x, weight, bias, *settings))
    with torch.no_grad():
        made.meta["val"] = module(example).to("meta")
    if _is_transposed_linear(module) and bias is not None:
        total = graph.call_function(aten.add.Tensor, (made, bias))
        total.meta["val"] = made.meta["val"]
        return total
    return made


@dataclass(frozen=True)
class Swap:
    """What a swapped layer needs: its weights are in the store."""

    layer: Layer
    how: RowsKernelChoice
    streams: StreamStore
    target: Target
    threads: Callable[[], int]


class SwappedForward:
    """Stands for the `forward` of a layer. Any number of tokens; a convolution, any image size.

    What kernels do not take, an image without a batch say, the layer's own `forward` gets.
    """

    def __init__(self, swap: Swap, module: Any) -> None:
        self.swap, self.module = swap, module
        self.dtype = swap.streams.of_weight(swap.layer.weight)[0].dtype
        self.device = tensor_device(swap.target)
        self.bias = module.bias.detach() if isinstance(module.bias, Tensor) else None
        self._runners: dict[tuple[int, ...], Runner | None] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        flat = x.unsqueeze(2) if self.swap.layer.op == "conv1d" and x.dim() == 3 else x
        runner = self._runner(flat) if self._fits(flat) else None
        if runner is None:
            return self._dense(x)
        (y,) = runner.run([flat])
        y = y.squeeze(2) if flat is not x else y
        return without_backward(y) if x.requires_grad and torch.is_grad_enabled() else y

    def _fits(self, x: Tensor) -> bool:
        layer = self.swap.layer
        if x.is_nested or x.layout is not torch.strided:
            return False
        if x.dtype != self.dtype or x.device.type != self.device or x.numel() == 0:
            return False
        if torch.is_autocast_enabled(self.device):
            return False  # what runs in which type is PyTorch's to say
        if layer.op == "linear":
            return x.dim() > 0 and x.shape[-1] == layer.columns
        fits = x.dim() == 4 and x.shape[1] == layer.weight_shape[1] * layer.groups
        return fits and min(replace(layer, input_shape=tuple(x.shape)).output_size) > 0

    def _dense(self, x: Tensor) -> Tensor:
        """As the module does it; it reads its weight, which is unpacked."""
        y: Tensor = type(self.module).forward(self.module, x)
        return y

    def _runner(self, x: Tensor) -> Runner | None:
        size = () if self.swap.layer.op == "linear" else tuple(x.shape[1:])
        with self._lock:
            if size not in self._runners:
                if len(self._runners) == IMAGE_SIZES:
                    oldest = self._runners.pop(next(iter(self._runners)))
                    self.swap.streams.drop(oldest.streams if oldest else ())
                self._runners[size] = self._checked(self._lower(tuple(x.shape)), tuple(x.shape))
            return self._runners[size]

    def _lower(self, shape: tuple[int, ...]) -> Runner:
        swap = self.swap
        layer = replace(swap.layer, input_shape=shape)
        op = SectionOp("layer", layer, "x", "y", "bias" if self.bias is not None else "")
        vectors = (self.bias,) if self.bias is not None else ()
        body = Body(
            Section(("x",), (op,), ("y",), swap.how.tokens_first), {}, {"layer": vectors}, {"layer": swap.how}
        )
        return lower(body, swap.target, swap.streams, swap.threads)

    def _checked(self, runner: Runner, shape: tuple[int, ...]) -> Runner | None:
        """The runner, if it gives what the module gives."""
        generator = torch.Generator("cpu").manual_seed(0)  # the user's is not touched
        x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        x = x.to(self.device, self.dtype)
        (y,) = runner.run([x])
        expected = self._dense(x.squeeze(2) if self.swap.layer.op == "conv1d" else x)
        if relative_error(y.reshape(expected.shape), expected) <= tolerance([self.dtype]):
            return runner
        LOG.warning("layer %s gives other numbers as a kernel: PyTorch runs it", self.swap.layer.name)
        self.swap.streams.drop(runner.streams)
        return None


def swap_layers(model: nn.Module, swaps: Mapping[str, Swap]) -> None:
    """Give the model's layers, by parameter name, their swapped forward."""
    for name, module in leaf_layers(model):
        swap = swaps.get(f"{name}.weight")
        if swap is not None and swap.layer.transposed == _is_transposed_linear(module):
            module.forward = SwappedForward(replace(swap, layer=_alone(swap.layer, module)), module)


def _alone(layer: Layer, module: Any) -> Layer:
    """The layer as the module has it: in a graph, zeros put around the image by others are its padding too."""
    if layer.op == "linear":
        return layer
    sides = padding_sides(module.padding, module.kernel_size, module.dilation)
    assert sides is not None, "layers whose padding is uneven are not found"
    return replace(layer, padding=sides)
