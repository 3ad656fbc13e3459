"""A report with something of everything, and the profile of a call, made by hand."""

from __future__ import annotations

import html.parser
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from sparsecomp.choice import DENSE, Candidate, Choice
from sparsecomp.cost import RegionTimes
from sparsecomp.facts import Facts
from sparsecomp.flow import FlowOp
from sparsecomp.layer import Layer
from sparsecomp.passes.measure_weights import measure_weight
from sparsecomp.pattern import RowBlocks
from sparsecomp.pipeline import Step
from sparsecomp.profile import CallProfile, Profile, RegionProfile
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.report import LayerReport, RegionReport, Report
from sparsecomp.slimming import SlimGroup, Slimming

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=http://example.com/x.png onerror=alert(1)>"
    '"\' onclick="alert(2)" {{ 7 * 7 }} & \u202e\ud800\x00'
)
"""The name of a layer that wants to be more."""
HOW = RowsKernelChoice(RowBlocks(4), Schedule(4, 64))


@cache
def facts(rows: int, columns: int, density: float) -> Facts:
    """Of random blocks 4x1."""
    kept = torch.rand(rows // 4, columns, generator=torch.Generator().manual_seed(0)) < density
    return measure_weight("", kept.repeat_interleave(4, dim=0).float())


def layer(name: str, found: Facts, converted: bool = True, dense: float = 2e-3) -> LayerReport:
    """On 10 tokens; its kernel takes a quarter of PyTorch's time where it is converted, else twice as long."""
    rows, columns = found.shape
    size, stored = rows * columns, found.nonzeros
    where = Layer(name, "linear", f"{name}.weight", (rows, columns), (10, columns), source="/home/u/net.py:7")
    seconds = dense / 4 if converted else dense * 2
    candidates = (
        Candidate(DENSE, dense, stored=size),
        Candidate(str(HOW), seconds, "", HOW, stored, seconds * 1.1, seconds * 0.1),
        Candidate("unstructured", refused="would multiply too much"),
    )
    reason = "4.00x the speed of PyTorch" if converted else "the fastest kernel takes longer"
    choice = Choice(name, HOW if converted else None, reason, candidates)
    held = stored * 5 if converted else size * 4
    return LayerReport(where, replace(found, layer=name), choice, held, stored if converted else size)


def report(names: Sequence[str] = ("first", "second", "last")) -> Report:
    """The first layers are converted, and in one region; the last stays with PyTorch."""
    sparse, dense = facts(128, 96, 0.1), facts(8, 16, 1.0)
    layers = [layer(name, sparse, dense=1e-3 * (i + 1)) for i, name in enumerate(names[:-1])]
    layers.append(layer(names[-1], dense, converted=False, dense=5e-4))
    inside = [FlowOp("linear | bias", name, "region.0", (i,)) for i, name in enumerate(names[:-1])]
    flow = (
        FlowOp("input"),
        *inside,
        FlowOp("aten.softmax.int", reads=(len(inside),)),
        FlowOp("aten.linear", names[-1], reads=(len(inside) + 1,)),
        FlowOp("output", reads=(len(inside) + 2,)),
    )
    group = SlimGroup(
        f"{names[0]}.weight",
        {f"{names[0]}.weight[0]": "produces", f"{names[-1]}.weight[1]": "reads"},
        128,
        3,
        {"an output of the model": 1},
    )
    return Report(
        target="cpu test (16 lanes)",
        threads=2,
        steps=(Step("find-layers", 0.0123, "layers +3"),),
        layers=tuple(layers),
        untouched={"embedding": ("tokens", "embedding: not lowered yet")},
        regions=(
            RegionReport("region.0", tuple(names[:-1]), ("aten.softmax.int",), RegionTimes(1e-3, 4e-3)),
        ),
        rung="whole graph",
        notes=("compiled once more: dimension 1 of x is 7, not 5",),
        eager_seconds=0.010,
        compiled_seconds=0.004,
        slimming=Slimming((group,), (), (1000, 900), (2000, 1500)),
        flow=flow,
    )


def profile(names: Sequence[str] = ("first", "second", "last")) -> Profile:
    calls = [CallProfile(name, f"v = rows({name})", 1e-3) for name in names[:-1]]
    calls = [CallProfile("enter", "v0 = enter(input 0)", 2e-4), *calls, CallProfile("exit", "exit", 1e-4)]
    operators = (("aten.softmax.int (softmax)", 5e-4), ("aten.linear (linear)", 3e-4))
    order = ("region.0", *(name for name, _ in operators))
    return Profile(4e-3, 2, (RegionProfile("region.0", 2.4e-3, tuple(calls)),), operators, order)


VOID = frozenset({"meta", "input", "img", "br", "wbr", "link", "hr"})
DRAWN = frozenset({"path", "circle", "rect"})
"""Elements of SVG that may close themselves."""


class Document(html.parser.HTMLParser):
    """What a parser finds: elements with attributes, the text of each kind of element, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in DRAWN | VOID:
            self.wrong.append(f"<{tag}/> closes itself")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes something else, line {self.getpos()[0]}")

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(
            part for tag, parts in self.texts.items() if tag not in ("script", "style") for part in parts
        )
