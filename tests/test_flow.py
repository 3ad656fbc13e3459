"""What a call runs: every operator, its region, and what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp import analyze, compile_sparse
from sparsecomp.flow import FlowOp, flow_of
from tests.passes.programs import Branching, Wired, analysed, rewritten, sparse


def function(s: Any, x: Tensor) -> Any:
    h = s.a(x)
    y = torch.relu(s.b(h)) + h
    return torch.cumsum(y, 1), y


def model() -> nn.Module:
    return sparse(Wired(function, a=nn.Linear(16, 16), b=nn.Linear(16, 16)))


X = torch.zeros(2, 5, 16)


def test_operators_of_a_region_name_it_and_read_each_other() -> None:
    assert flow_of(rewritten(model(), X)) == (
        FlowOp("input"),
        FlowOp("linear | bias", "a", "region.0", (0,)),
        FlowOp("linear | bias relu add", "b", "region.0", (1,)),
        FlowOp("aten.cumsum", reads=(2,)),
        FlowOp("output", reads=(3, 2)),
    )


def test_what_is_constant_is_not_read_and_a_result_out_of_several_is_no_operator() -> None:
    def function(s: Any, x: Tensor) -> Any:
        first, second = torch.split(s.b(s.a(x) + s.offset), 8, -1)
        return torch.cumsum(first, 1), second

    parts = {"a": nn.Linear(16, 16), "b": nn.Linear(16, 16), "offset": nn.Parameter(torch.ones(2, 5, 16))}
    flow = flow_of(rewritten(sparse(Wired(function, **parts)), X))
    assert [op.layer for op in flow if op.layer] == ["a", "b"]
    assert not any(op.what == "getitem" for op in flow)
    assert all(read < number for number, op in enumerate(flow) for read in op.reads)
    assert all(op.reads for op in flow if op.what != "input")


def test_before_regions_there_are_it_is_the_captured_graph() -> None:
    flow = flow_of(analysed(model(), X))
    assert [(op.what, op.layer) for op in flow if op.layer] == [("aten.linear", "a"), ("aten.linear", "b")]
    assert not any(op.region for op in flow)
    assert all(read < number for number, op in enumerate(flow) for read in op.reads)


def test_reports_have_it_where_a_graph_was_captured() -> None:
    report = compile_sparse(model(), (X,), target="reference").report
    assert {op.region for op in report.flow if op.layer} == {"region.0"}
    assert report.as_dict()["flow"][1] == {
        "what": "linear | bias",
        "layer": "a",
        "region": "region.0",
        "reads": [0],
    }
    assert report.given_up("slower").flow == ()
    assert [op.layer for op in analyze(model(), (X,)).flow if op.layer] == ["a", "b"]


def test_layers_without_a_graph_have_none() -> None:
    x = torch.randn(2, 16)
    report = compile_sparse(sparse(Branching()), (x,), min_speedup=0, target="reference").report
    assert report.rung == "layers"
    assert report.flow == ()
    assert analyze(sparse(Branching()), (x,)).flow == ()
