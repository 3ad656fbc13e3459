"""The rung below the whole graph: which modules are layers, what is recorded of them, and their swapped forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from sparsecomp import SparseModule, compile_sparse
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.layers import IMAGE_SIZES, SwappedForward, layers_graph, leaf_layers, record_inputs
from sparsecomp.passes import analysis
from sparsecomp.pipeline import run
from sparsecomp.program import Program

FEATURES = 24


class Odd(nn.Linear):
    """A subclass may do more than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.again = self.linear
        self.transposed = Conv1D(FEATURES, FEATURES)
        self.odd = Odd(FEATURES, FEATURES)
        self.signal = nn.Conv1d(1, 1, 3)
        self.image = nn.Conv2d(1, 1, 3)
        self.reflected = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
        self.volume = nn.Conv3d(1, 1, 3)
        self.embedding = nn.Embedding(5, FEATURES)
        self.unused = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.odd(self.transposed(self.again(self.linear(x))))
        return y


class Opaque(nn.Module):
    """Holds one module in control flow that no graph can be made of, so that it runs layer by layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e30:
            return x
        y: Tensor = self.inner(x)
        return y


def sparse(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[torch.rand(parameter.shape) < 0.8] = 0
    return model.eval()


def swapped(inner: nn.Module, x: Tensor, target: str, converted: int = 1) -> tuple[SparseModule, nn.Module]:
    """The layer compiled on the rung of layers, and the model."""
    model = Opaque(sparse(inner)).eval()
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    assert compiled.report.rung == "layers"
    assert len(compiled.report.sparse_layers) == converted
    return compiled, model


def error(compiled: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_error(compiled(x), model(x))


both = pytest.mark.parametrize("target", ["reference", "cpu"])


# Finding and recording ---------------------------------------------------------------------------------------


def test_leaf_layers() -> None:
    found = dict(leaf_layers(Everything()))
    assert list(found) == ["linear", "transposed", "signal", "image", "unused"]


def test_records_the_first_input_of_every_layer_that_is_reached() -> None:
    model, x = Everything().eval(), torch.randn(2, FEATURES)
    found = record_inputs(model, (x,), {})
    assert list(found) == ["linear", "transposed"]
    assert torch.equal(found["linear"], x)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_leaves_no_hooks_behind_when_the_model_fails() -> None:
    model = Everything().eval()
    with pytest.raises(RuntimeError):
        record_inputs(model, (torch.randn(2, FEATURES + 1),), {})
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_records_layers_that_are_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(input=x)
            return y

    assert list(record_inputs(Keyword(), (torch.randn(2, FEATURES),), {})) == ["layer"]


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.signal = nn.Conv1d(6, 8, 3, padding="same", groups=2)
        self.transposed = Conv1D(5, 8)
        self.linear = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.signal(self.image(x).flatten(2))
        y: Tensor = self.linear(self.transposed(x.transpose(1, 2).contiguous()))
        return y


def test_the_graph_of_layers_gives_their_outputs() -> None:
    model, x = Three().eval(), torch.randn(2, 4, 6, 6)
    inputs = record_inputs(model, (x,), {})
    graph = layers_graph(model, inputs)
    expected = [dict(model.named_modules())[name](value) for name, value in inputs.items()]
    assert relative_error(graph(*inputs.values()), tuple(expected)) < 1e-6
    program, _ = run(analysis(tuple(inputs.values())), Program(graph))
    found = {layer.name: (layer.op, layer.weight_shape) for layer in program.layers.values()}
    assert found == {
        "image": ("conv2d", (6, 4, 3, 3)),
        "signal": ("conv1d", (8, 3, 1, 3)),
        "transposed": ("linear", (5, 8)),
        "linear": ("linear", (7, 5)),
    }


# Swapped layers ----------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(FEATURES, 40), (3, FEATURES)),
    "no bias": (lambda: nn.Linear(FEATURES, 40, bias=False), (3, FEATURES)),
    "transposed": (lambda: Conv1D(40, FEATURES), (3, FEATURES)),
    "conv1d": (lambda: nn.Conv1d(8, 16, 5, stride=2, padding=1), (2, 8, 19)),
    "conv1d same": (lambda: nn.Conv1d(8, 16, 3, padding="same", dilation=2), (2, 8, 19)),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3, padding=1), (2, 8, 9, 11)),
    "no conv bias": (lambda: nn.Conv2d(8, 16, (1, 3), bias=False), (2, 8, 9, 11)),
    "strided": (lambda: nn.Conv2d(8, 16, 3, stride=(2, 1), padding=(0, 2), dilation=2), (2, 8, 9, 11)),
    "grouped": (lambda: nn.Conv2d(8, 16, 3, groups=4), (2, 8, 9, 11)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8, padding="same"), (2, 8, 9, 11)),
}
every = pytest.mark.parametrize("name", LAYERS)


@both
@every
def test_swapped_layers_are_right(name: str, target: str) -> None:
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    for batch in (shape[0], 1, 7, 0):
        assert error(compiled, model, torch.randn(batch, *shape[1:])) < TOLERANCE
    assert isinstance(compiled.inner.forward, SwappedForward)
    assert torch.equal(compiled.state_dict()["inner.weight"], model.state_dict()["inner.weight"])


@both
@pytest.mark.parametrize("name", ["linear", "transposed"])
def test_a_linear_layer_takes_tokens_in_any_shape(name: str, target: str) -> None:
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    for leading in ((), (5,), (2, 3), (2, 1, 3, 2), (150,)):
        assert error(compiled, model, torch.randn(*leading, FEATURES)) < TOLERANCE


@both
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "strided", "grouped"])
def test_a_convolution_takes_any_size_and_keeps_few(name: str, target: str) -> None:
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    for extra in range(IMAGE_SIZES + 2):
        x = torch.randn(*shape[:-1], shape[-1] + extra)
        assert error(compiled, model, x) < TOLERANCE
        assert error(compiled, model, x[:1]) < TOLERANCE
    streams = compiled._compiler.streams.of_weight("inner.weight")
    assert len(streams) <= 1 + IMAGE_SIZES  # that of the example, and of the sizes that are kept


@both
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "grouped"])
def test_an_image_without_a_batch(name: str, target: str) -> None:
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    assert error(compiled, model, torch.randn(shape[1:])) < TOLERANCE


@both
@every
def test_strides_do_not_matter(name: str, target: str) -> None:
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    assert error(compiled, model, torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))) < TOLERANCE
    assert error(compiled, model, torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]) < TOLERANCE


@both
@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "grouped"])
@pytest.mark.parametrize("more", [-1, 1])
def test_inputs_of_another_width_fail_as_in_the_model(name: str, more: int, target: str) -> None:
    """A kernel would read past its input."""
    make, shape = LAYERS[name]
    compiled, model = swapped(make(), torch.randn(shape), target)
    channel = -1 if name == "linear" else 1
    wrong = list(shape)
    wrong[channel] += more
    for run_it in (model, compiled):
        with pytest.raises(RuntimeError, match=r"shapes|channels"):
            run_it(torch.randn(wrong))


@both
def test_an_image_smaller_than_the_kernel_fails_as_in_the_model(target: str) -> None:
    make, shape = LAYERS["no conv bias"]
    compiled, model = swapped(make(), torch.randn(shape), target)
    for run_it in (model, compiled):
        with pytest.raises(RuntimeError, match=r"[Kk]ernel"):
            run_it(torch.randn(2, 8, 3, 2))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.long])
def test_inputs_of_another_dtype_fail_as_in_the_model(dtype: torch.dtype, target: str) -> None:
    compiled, model = swapped(nn.Linear(FEATURES, 40), torch.ones(2, FEATURES), target)
    for run_it in (model, compiled):
        with pytest.raises(RuntimeError, match="dtype"):
            run_it(torch.ones(2, FEATURES, dtype=dtype))


@both
def test_hooks_of_a_swapped_layer_still_run(target: str) -> None:
    layer = nn.Linear(FEATURES, 40)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    compiled, model = swapped(layer, torch.randn(3, FEATURES), target)
    assert error(compiled, model, torch.randn(5, FEATURES)) < TOLERANCE


@both
def test_a_layer_that_is_used_twice(target: str) -> None:
    layer = nn.Linear(FEATURES, FEATURES)
    compiled, model = swapped(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, FEATURES), target)
    assert error(compiled, model, torch.randn(5, FEATURES)) < TOLERANCE


def test_a_layer_that_is_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 2 and x.sum() > 1e30:
                return x
            y: Tensor = self.layer(x) if x.shape[0] == 2 else self.layer(input=x)
            return y

    model = sparse(Keyword())
    compiled = compile_sparse(model, (torch.randn(2, FEATURES),), target="reference", min_speedup=0.0)
    assert compiled.report.rung == "layers"
    assert error(compiled, model, torch.randn(3, FEATURES)) < TOLERANCE


# Weights that are read outside of their layer ----------------------------------------------------------------


class Tied(nn.Module):
    """A language model's head shares its weight with the embedding, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, FEATURES)
        self.head = nn.Linear(FEATURES, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        y: Tensor = self.head(x if x.sum() > 1e30 else x.tanh())
        return y


class Peeking(nn.Module):
    """Reads the weight of a layer by itself, on one of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor, peek: bool = False) -> Tensor:
        y: Tensor = self.layer(x) if x.sum() < 1e30 else x
        return y * self.layer.weight.abs().mean() if peek else y


@both
def test_a_head_tied_to_the_embedding(target: str) -> None:
    model, ids = sparse(Tied()), torch.randint(0, 50, (2, 5))
    compiled = compile_sparse(model, (ids,), target=target, min_speedup=0.0)
    assert error(compiled, model, ids) < TOLERANCE
    assert error(compiled, model, ids[:1, :3]) < TOLERANCE


@both
def test_a_weight_that_another_branch_reads(target: str) -> None:
    model, x = sparse(Peeking()), torch.randn(2, FEATURES)
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    assert error(compiled, model, x) < TOLERANCE
    with torch.no_grad():
        assert relative_error(compiled(x, peek=True), model(x, peek=True)) < TOLERANCE


@both
def test_modules_that_read_the_weights_of_their_layers(target: str) -> None:
    """TransformerEncoderLayer hands all its weights to one fast operator, where no hook forbids it."""
    inner: Any = nn.TransformerEncoderLayer(FEATURES, 4, 40, batch_first=True)
    model = Opaque(sparse(inner)).eval()
    x = torch.randn(2, 5, FEATURES)
    with torch.no_grad():
        compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    assert error(compiled, model, x) < TOLERANCE
    assert error(compiled, model, torch.randn(3, 7, FEATURES)) < TOLERANCE


def test_weights_that_a_user_reads_are_those_of_the_model() -> None:
    compiled, model = swapped(nn.Linear(FEATURES, 40), torch.randn(2, FEATURES), "reference")
    assert torch.equal(compiled.inner.weight, model.inner.weight)  # type: ignore[arg-type,union-attr]
    assert F.mse_loss(compiled.inner.weight, model.inner.weight) == 0  # type: ignore[arg-type,union-attr]


class Padded(nn.Module):
    """Zeros around the image, unevenly, before a convolution: in a graph they become the layer's own padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=(0, 1))

    def forward(self, x: Tensor, opaque: bool = False) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y if not opaque or y.sum() < 1e30 else x


@both
def test_padding_outside_of_the_layer(target: str) -> None:
    model, x = sparse(Padded()), torch.randn(2, 8, 10, 10)
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    (layer,) = compiled.report.sparse_layers
    assert layer.layer.padding == (0, 1, 1, 2)
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < TOLERANCE
        assert relative_error(compiled(x, opaque=True), model(x, opaque=True)) < TOLERANCE
    assert isinstance(compiled.conv.forward, SwappedForward)


class SamePadded(nn.Module):
    """As TensorFlow pads: by how much depends on the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        right, below = (1 if size % 2 == 0 else 2 for size in (x.shape[3], x.shape[2]))
        y: Tensor = self.conv(F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2)))
        return y


@both
def test_padding_that_depends_on_the_size(target: str) -> None:
    model = sparse(SamePadded())
    compiled = compile_sparse(model, (torch.randn(2, 8, 10, 10),), target=target, min_speedup=0.0)
    for size in ((10, 10), (11, 9), (12, 7)):
        assert error(compiled, model, torch.randn(2, 8, *size)) < TOLERANCE
    assert len(compiled._variants) == 3


class Encoder(nn.Module):
    """Offers a method of its own, which reads a weight that no module of PyTorch's multiplies."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, FEATURES))
        self.register_buffer("basis", torch.randn(40, 40))
        self.last = nn.Linear(40, 8)

    def encode(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight), self.basis)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.encode(x))
        return y


@both
def test_methods_that_read_converted_weights(target: str) -> None:
    model: Any = sparse(Encoder())
    x = torch.randn(3, FEATURES)
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    assert len(compiled.report.sparse_layers) == 3
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < TOLERANCE
        assert relative_error(compiled.encode(x), model.encode(x)) < TOLERANCE
    assert torch.equal(compiled.weight, model.weight)
    assert torch.equal(compiled.basis, model.basis)
    values = {name: parameter.detach() for name, parameter in compiled.named_parameters()}
    assert all(torch.equal(values.pop(name), tensor) for name, tensor in model.named_parameters())
    assert values == {}


def test_a_layer_whose_forward_was_replaced() -> None:
    """As libraries do that move weights between devices."""
    model = Opaque(sparse(nn.Sequential(nn.Linear(FEATURES, 40), nn.Linear(40, 8))))
    replaced: Any = model.inner[0]  # type: ignore[index]
    replaced.forward = lambda x: 2 * nn.Linear.forward(replaced, x)
    x = torch.randn(3, FEATURES)
    compiled = compile_sparse(model.eval(), (x,), target="reference", min_speedup=0.0)
    assert [layer.layer.name for layer in compiled.report.sparse_layers] == ["inner.1"]
    assert error(compiled, model, torch.randn(5, FEATURES)) < TOLERANCE


class WrongRunner:
    streams = ()

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        return [inputs[0].new_zeros(*inputs[0].shape[:-1], 40)]


def test_a_kernel_that_gives_other_numbers_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = sparse(nn.Linear(FEATURES, 40)), torch.randn(2, FEATURES)
    model = sparse(nn.Sequential(model))
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    monkeypatch.setattr("sparsecomp.layers.lower", lambda *_: WrongRunner())
    layer: Any = getattr(compiled, "0")
    with torch.no_grad():
        assert relative_error(layer(x), model(x)) < TOLERANCE
    assert "layer 0 gives other numbers as a kernel" in caplog.text
