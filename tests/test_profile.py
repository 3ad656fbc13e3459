"""Where the time of a call goes: the parts, and how they are said."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import InputError, codegen, compile_sparse
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.profile import CallProfile, Profile, RegionProfile
from tests.passes.programs import Branching, Wired, sparse


def example() -> Profile:
    calls = (
        CallProfile("fc", "v1 = rows(...)", 0.002),
        CallProfile("layer norm", "v2 = layer norm(v1)", 0.001),
    )
    return Profile(
        0.01, 1, (RegionProfile("region.0", 0.004, calls),), (("aten.softmax.int (softmax)", 0.005),)
    )


def test_the_parts_add_up_to_the_whole() -> None:
    profile = example()
    assert profile.kernels == pytest.approx(0.003)
    assert profile.glue == pytest.approx(0.002)
    said = profile.as_dict()
    assert said["ms"] == pytest.approx(said["kernels_ms"] + said["pytorch_ms"] + said["glue_ms"])


def test_glue_is_never_negative() -> None:
    assert Profile(0.001, 1, example().regions, ()).glue == 0.0


def test_it_is_plain_data() -> None:
    said = json.loads(json.dumps(example().as_dict()))
    assert said["threads"] == 1
    assert said["regions"][0]["calls"][1] == {"label": "layer norm", "what": "v2 = layer norm(v1)", "ms": 1.0}
    assert said["operators"] == [{"name": "aten.softmax.int (softmax)", "ms": 5.0}]


def test_it_prints_each_part_with_its_share() -> None:
    first, *rows = str(example()).splitlines()
    assert first == (
        "10.000 ms a call, 1 thread; of it kernels 3.000 (30%), operators of PyTorch 5.000 (50%), rest 2.000 (20%)"
    )
    assert [row.split() for row in rows] == [
        ["where", "what", "ms", "share"],
        ["region.0", "fc", "2.000", "20.0%"],
        ["region.0", "layer", "norm", "1.000", "10.0%"],
        ["region.0", "the", "whole", "region", "4.000", "40.0%"],
        ["PyTorch", "aten.softmax.int", "(softmax)", "5.000", "50.0%"],
    ]


def function(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.b(torch.softmax(s.n(s.a(x)), -1))
    return y


def model() -> nn.Module:
    return sparse(Wired(function, a=nn.Linear(16, 24), n=nn.LayerNorm(24), b=nn.Linear(24, 8)))


@pytest.fixture
def least_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the CPU, chosen by how much they store and not by time."""
    monkeypatch.setattr(codegen, "meter", lambda target, threads: StoredCost())
    monkeypatch.setattr("sparsecomp.module.SparseModule._refused", lambda *arguments: "")


@pytest.mark.usefixtures("least_stored")
def test_a_compiled_call_is_profiled_kernel_by_kernel() -> None:
    x = torch.randn(2, 5, 16)
    compiled = compile_sparse(model(), (x,), min_speedup=0)
    profile = compiled.profile(x)
    first, second = profile.regions
    assert [call.label for call in first.calls] == ["enter", "a", "layer norm", "exit"]
    assert [call.label for call in second.calls] == ["enter", "b", "exit"]
    assert [name.split()[0] for name, _ in profile.operators] == ["aten.softmax.int"]
    assert profile.order == ("region.0", profile.operators[0][0], "region.1")
    assert all(call.seconds > 0 for region in profile.regions for call in region.calls)
    assert all(call.label in str(profile) for region in profile.regions for call in region.calls)
    assert torch.equal(compiled(x), compiled(x))


def test_a_region_of_the_reference_is_one_kernel() -> None:
    x = torch.randn(2, 5, 16)
    profile = compile_sparse(model(), (x,), min_speedup=0, target="reference").profile(x)
    assert [[call.what for call in region.calls] for region in profile.regions] == [["plain PyTorch"]] * 2


def test_another_batch_is_profiled_as_well() -> None:
    compiled = compile_sparse(model(), (torch.randn(2, 5, 16),), min_speedup=0, target="reference")
    assert compiled.profile(torch.randn(7, 5, 16)).regions


def test_a_call_without_a_graph_has_nothing_to_profile() -> None:
    x = torch.randn(2, 16)
    compiled = compile_sparse(sparse(Branching()), (x,), min_speedup=0, target="reference")
    assert compiled.report.rung == "layers"
    with pytest.raises(
        InputError, match=r"no graph to profile for this call: the model runs as 'layers'.*notes"
    ):
        compiled.profile(x)
