"""Which operators are layers, what is known of them, and why others are not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.programs import analysed, sparse


def test_a_linear_layer_is_found() -> None:
    program = analysed(nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(3, 8))
    (layer,) = program.layers.values()
    assert (layer.name, layer.op, layer.weight_shape, layer.input_shape) == ("0", "linear", (4, 8), (3, 8))


def test_a_convolution_keeps_its_geometry() -> None:
    model = nn.Conv2d(6, 4, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1), groups=2).eval()
    (layer,) = analysed(model, torch.randn(1, 6, 9, 9)).layers.values()
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 2), (1, 1, 0, 0), (2, 1), 2)


def test_padding_before_a_convolution_is_its_own() -> None:
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(2, 2, 3)).eval()
    (layer,) = analysed(model, torch.randn(1, 2, 8, 8)).layers.values()
    assert layer.padding == (2, 3, 0, 1)
    assert layer.input_shape == (1, 2, 8, 8)


def test_reflected_padding_is_left_alone() -> None:
    model = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3)).eval()
    (layer,) = analysed(model, torch.randn(1, 2, 8, 8)).layers.values()
    assert layer.padding == (0, 0, 0, 0)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_product_reads_its_weight_transposed() -> None:
    (layer,) = analysed(Product().eval(), torch.randn(3, 8)).layers.values()
    assert layer.transposed
    assert layer.weight_shape == (4, 8)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.embedding(ids))
        return y


def test_refuses_a_weight_that_an_embedding_reads() -> None:
    program = analysed(Tied().eval(), torch.zeros(2, 30, dtype=torch.long))
    assert not program.layers
    assert any("also read by aten.embedding" in reason for _, reason in program.untouched.values())


def test_for_few_tokens_such_a_weight_is_read_where_it_lies() -> None:
    (layer,) = analysed(Tied().eval(), torch.zeros(2, 3, dtype=torch.long)).layers.values()
    assert layer.held_by == "aten.embedding"


def test_refuses_other_types() -> None:
    program = analysed(nn.Linear(8, 4).double().eval(), torch.randn(3, 8, dtype=torch.float64))
    assert [reason for _, reason in program.untouched.values()] == ["float64: only float32 is lowered"]


def test_skips_on_request() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    program = analysed(sparse(nn.Sequential(model["a"])), torch.randn(2, 4), skip=("0",))
    assert [reason for _, reason in program.untouched.values()] == ["skipped on request"]


def test_names_what_is_not_lowered() -> None:
    program = analysed(nn.ConvTranspose2d(2, 2, 3).eval(), torch.randn(1, 2, 5, 5))
    assert [reason for _, reason in program.untouched.values()] == ["transposed convolution: not lowered yet"]


def test_names_layers_whose_weight_is_computed() -> None:
    class Computed(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            y: Tensor = F.conv2d(x, w)
            return y

    program = analysed(Computed().eval(), torch.randn(2, 3, 5, 5), torch.randn(4, 3, 1, 1))
    assert [reason for _, reason in program.untouched.values()] == ["the weight is computed, not a constant"]
