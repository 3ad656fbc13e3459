"""Slimming as a user meets it: compiled models, their state, their reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import analyze, compile_sparse
from sparsecomp.cut_weight import Cut
from sparsecomp.slimming import SlimGroup, Slimming, full_name, slim_name
from tests.passes.test_drop_branches import network
from tests.passes.test_slim import zero

pytestmark = pytest.mark.usefixtures("any_kernel")


@pytest.fixture
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are taken however slow they are."""
    monkeypatch.setattr("sparsecomp.module.SparseModule._refused", lambda self, error, eager, compiled: "")


def slim_network() -> Any:
    """Filters of `conv1` that are zero, and others that conv2 does not read; all weights with some zeros."""
    model = network().eval()
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data *= torch.rand_like(parameter) < 0.5
    zero(model.conv1.weight, 0, 1)
    zero(model.conv1.bias, 0, 1)
    model.norm1.bias.data.fill_(-0.1)
    zero(model.conv2.weight, 4, dim=1)
    return model


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_compiled_model_keeps_its_outputs_and_its_state(target: str) -> None:
    model, x = slim_network(), torch.randn(2, 3, 16, 16)
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    slimming = compiled.report.slimming
    assert compiled.report.rung == "whole graph"
    assert compiled.report.notes == ()
    assert slimming is not None
    assert {g.name: g.gone for g in slimming.groups if g.gone} == {"conv1.weight": 3}
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x[:1]), model(x[:1]))
        other = torch.randn(1, 3, 20, 12)  # a further graph, on the same weights
        torch.testing.assert_close(compiled(other), model(other))
    state = compiled.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert compiled.verify(x) < 1e-4


def test_weights_are_held_once_and_the_eager_model_still_runs() -> None:
    model, x = slim_network(), torch.randn(2, 3, 16, 16)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert "conv1.weight" in compiled._skeleton.hollows
    with torch.no_grad():
        torch.testing.assert_close(compiled._eager(x), model(x))
    names = [layer.layer.name for layer in compiled.report.layers]
    assert names == ["stem", "conv1", "conv2", "head"]


def test_the_report_says_what_left(golden: Callable[[str], None]) -> None:
    text = str(analyze(slim_network(), (torch.randn(2, 3, 16, 16),)))
    golden(text.partition("\npass ")[0])


def test_the_graph_of_what_is_coupled(golden: Callable[[str], None]) -> None:
    """A ResNet with dead filters within its bottlenecks, and channels of the residual stream that nothing makes."""
    model, x = shrunken_resnet(8, [2, 1, 1, 1])
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_stream = "stages.0.layers" in name and ("shortcut" in name or ".layer.2." in name)
        if is_stream:
            parameter[:5] = 0.0
    slimming = analyze(model, (x,)).slimming
    assert slimming is not None
    assert len({group.name for group in slimming.groups}) == len(slimming.groups)
    golden(str(slimming))


def test_nothing_is_coupled() -> None:
    assert str(Slimming()) == "nothing left the model"


def test_the_report_as_data() -> None:
    found = analyze(slim_network(), (torch.randn(2, 3, 16, 16),)).as_dict()["slimming"]
    assert {group["name"]: group["gone"] for group in found["groups"]}["conv1.weight"] == 3
    assert found["parameters"][1] < found["parameters"][0]


def test_a_layer_of_the_report_names_the_parameter_that_groups_cross() -> None:
    data = analyze(slim_network(), (torch.randn(2, 3, 16, 16),)).as_dict()
    crossed = {name.partition("[")[0] for group in data["slimming"]["groups"] for name in group["crosses"]}
    weights = [layer["weight"] for layer in data["layers"]]
    assert weights == ["stem.weight", "conv1.weight", "conv2.weight", "head.weight"]
    assert {"conv1.weight", "conv2.weight"} <= crossed


def cut_only_filters(graph: torch.fx.GraphModule, *rest: object) -> dict[str, Cut]:
    """A broken pass: conv1 shrinks, and nothing that reads it."""
    graph.get_submodule("conv1").weight = nn.Parameter(torch.zeros(3, 4, 3, 3), requires_grad=False)
    return {}


def test_a_model_that_shrinks_wrongly_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecomp.passes.slim.cut_units", cut_only_filters)
    model, x = slim_network(), torch.randn(2, 3, 16, 16)
    report = analyze(model, (x,))
    assert report.slimming is not None
    assert report.slimming.refused
    assert [layer.layer.rows for layer in report.layers] == [4, 6, 4, 2]


def test_a_failure_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("sparsecomp.passes.slim.cut_units", fail)
    report = analyze(slim_network(), (torch.randn(2, 3, 16, 16),))
    assert report.slimming is not None
    assert report.slimming.summary == "not slimmed: slimming failed: ValueError: a bug"


def test_names() -> None:
    value = torch.ones(3)
    name = slim_name("weight", value)
    assert full_name(f"conv.{name}") == "conv.weight"
    assert slim_name(name, value) == name
    assert slim_name("weight", value[:2]) != name
    assert slim_name("weight", value.bfloat16()) != name


def test_a_slimming_that_did_nothing_is_not_mentioned() -> None:
    assert Slimming((SlimGroup("a", {"a[0]": "produces"}, 3, 0, {}),)).summary == ""


def shrunken_resnet(width: int, depths: list[int]) -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=[4 * width * 2**i for i in range(4)], depths=depths, num_labels=10
    )
    model = transformers.ResNetForImageClassification(config).eval()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            dead = torch.randperm(module.out_channels)[: module.out_channels // 2]
            if module.kernel_size != (1, 1):
                module.weight.data[dead] = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
    return model, torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize(
    ("width", "depths"),
    [(8, [1, 1, 1, 1]), pytest.param(64, [3, 4, 6, 3], marks=pytest.mark.slow)],
)
def test_resnet_with_dead_filters(width: int, depths: list[int]) -> None:
    """The 3x3 convolutions of the bottlenecks lose half their filters, and the 1x1 after them half its channels."""
    model, x = shrunken_resnet(width, depths)
    with torch.no_grad():
        expected = model(x).logits
    compiled = compile_sparse(model, (x,), target="reference" if width == 8 else "cpu", min_speedup=0.0)
    slimming = compiled.report.slimming
    assert slimming is not None
    bottlenecks = [g for g in slimming.groups if "layer.1" in g.name and len(g.crosses) == 6]
    assert len(bottlenecks) == sum(depths)
    assert all(group.gone == group.units // 2 for group in bottlenecks)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).logits, expected, rtol=1e-3, atol=1e-4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(compiled.state_dict()[name] if width == 8 else tensor, tensor), name
