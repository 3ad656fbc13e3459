"""Random networks with dead units: the same numbers from less, whatever the operators between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.channels.labels import extents
from sparsecomp.cut_weight import cut_weight
from sparsecomp.passes.slim import Slim
from sparsecomp.program import attribute
from tests.passes.programs import captured
from tests.passes.test_slim import slimmed, zero


class Block(nn.Module):
    """One of the ways in which channels meet; widths are multiples of 4."""

    def __init__(self, kind: str, width: int, act: str, norm: bool) -> None:
        super().__init__()
        self.kind, self.act = kind, getattr(torch, act)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        groups = {"depthwise": width, "grouped": 2}.get(kind, 1)
        pad = 0 if kind == "plain" else 1
        self.a = nn.Conv2d(width, width, 3, padding=pad, groups=groups, bias=not norm)
        self.b = nn.Conv2d(width, width, 1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.norm(self.a(x)))
        match self.kind:
            case "residual":
                return self.act(x + self.b(y))
            case "gate":
                return y * self.b(y.mean((2, 3), keepdim=True)).sigmoid()
            case "concat":
                return self.b(torch.cat([x[:, : x.shape[1] // 2], y], 1)[:, : x.shape[1]])
            case "split":
                one, two = self.b(y).chunk(2, 1)
                return torch.cat([one * two.tanh(), two], 1)
            case "pool":
                return F.avg_pool2d(F.max_pool2d(y, 3, 1, 1), 3, 1, 1) + self.b(x)
            case "transposed":
                return F.max_pool2d(self.up(y), 2)
            case "shuffle":
                n, c, h, w = y.shape
                return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        return y


KINDS = (
    "plain",
    "residual",
    "gate",
    "concat",
    "split",
    "pool",
    "transposed",
    "shuffle",
    "depthwise",
    "grouped",
)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A convolutional network, some of its filters, biases, norms and input channels zero."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width = draw(st.sampled_from((4, 8)))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    blocks = [Block(k, width, draw(st.sampled_from(("relu", "sigmoid"))), draw(st.booleans())) for k in kinds]
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 5),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.weight.data.normal_()
            module.bias.data.normal_()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d | nn.BatchNorm2d):
            plant(draw, module)
    return model


def plant(draw: st.DrawFn, module: Any) -> None:
    tensors = [t for t in (module.weight, module.bias) if t is not None]
    dead = draw(st.lists(st.integers(0, 3), max_size=4, unique=True))
    with_bias = draw(st.booleans())
    if module.weight.dim() > 1 and draw(st.booleans()):
        zero(module.weight, *(d % module.weight.shape[1] for d in dead), dim=1)
    else:
        for tensor in tensors[: 1 + with_bias]:
            zero(tensor, *(d % tensor.shape[0] for d in dead))


@settings(max_examples=15, deadline=None)
@given(networks())
def test_random_networks(model: nn.Module) -> None:
    check_network(model)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(networks())
def test_many_random_networks(model: nn.Module) -> None:
    check_network(model)


def check_network(model: nn.Module) -> None:
    x = torch.randn(2, 3, 12, 12)  # four blocks without padding leave 4 x 4
    program, slimming = slimmed(model, x)
    assert Slim((x.double(),))(program).graph is program.graph, "nothing is left to do"
    assert slimming.parameters[1] <= slimming.parameters[0]
    check_whole_weights(model, program, slimming)


def check_whole_weights(model: nn.Module, program: Any, slimming: Any) -> None:
    """From each part, and what is kept beside it, the model's own weight comes back."""
    for part in {str(n.target) for n in program.graph.graph.nodes if n.op == "get_attr"} & set(slimming.cuts):
        if part.partition("_slim")[0].endswith("weight"):
            cut = cut_weight(part, slimming.cuts, lambda name: attribute(model, name))
            assert torch.equal(cut.restore(attribute(program.graph, part)), attribute(model, cut.whole))


TRANSFORMERS = (
    st.integers(0, 2**16),
    st.lists(st.integers(0, 3), max_size=4, unique=True),
    st.lists(st.integers(0, 15), max_size=12, unique=True),
    st.booleans(),
)


@settings(max_examples=8, deadline=None)
@given(*TRANSFORMERS)
def test_random_transformers(seed: int, heads: list[int], units: list[int], values: bool) -> None:
    check_transformer(seed, heads, units, values)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(*TRANSFORMERS)
def test_many_random_transformers(seed: int, heads: list[int], units: list[int], values: bool) -> None:
    check_transformer(seed, heads, units, values)


def check_transformer(seed: int, heads: list[int], units: list[int], values: bool) -> None:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(16, 4, 16, batch_first=True, activation="gelu", norm_first=True)
    for head in heads:
        if values:
            zero(layer.self_attn.in_proj_weight, *range(32 + 4 * head, 36 + 4 * head))
        else:
            zero(layer.self_attn.out_proj.weight, *range(4 * head, 4 * head + 4), dim=1)
    zero(layer.linear1.weight, *units)
    model = Plain(layer).eval()
    program, slimming = slimmed(model, torch.randn(2, 5, 16))
    gone = {group.name.rpartition(".")[2]: group.gone for group in slimming.groups}
    linear1 = next(g for g in slimming.groups if g.name == "layer.linear1.weight")
    assert linear1.gone == min(len(units), 15)
    assert gone["in_proj_weight"] == min(len(heads), 3) or len(heads) == 4
    check_whole_weights(model, program, slimming)


class Plain(nn.Module):
    """A transformer layer written out, as attention's fast path is no graph of operators."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        m, a = self.layer, self.layer.self_attn
        q, k, v = F.linear(m.norm1(x), a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
        q, k, v = (t.reshape(*t.shape[:2], 4, 4).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + a.out_proj(y)
        return x + m.linear2(F.gelu(m.linear1(m.norm2(x))))  # type: ignore[no-any-return]


def test_shapes_that_are_written_down(golden: Callable[[str], None]) -> None:
    model = Plain(nn.TransformerEncoderLayer(16, 4, 16, batch_first=True))
    zero(model.layer.self_attn.out_proj.weight, *range(4, 8), dim=1)
    program, _ = slimmed(model, torch.randn(2, 5, 16))
    assert {extents(n)[-1] for n in program.graph.graph.nodes if n.name.startswith("reshape")} <= {12, 4}
    lines = str(captured(model, torch.randn(2, 5, 16).double())).splitlines()
    golden(
        "\n".join(
            b for a, b in zip(lines, str(program).splitlines(), strict=True) if a != b and "_slim" not in b
        )
    )
