"""Data of a report -> HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparsecomp.page import units
from sparsecomp.page.lanes import ROW, drawing
from sparsecomp.page.latency import (
    HEIGHT,
    HIGH,
    WIDE,
    WIDTH,
    LayerChart,
    layer_chart,
    lettered,
    overview,
)
from sparsecomp.page.png import data_uri
from sparsecomp.page.timeline import KINDS, timeline

TEMPLATES = Path(__file__).parent / "templates"
EXCERPT = 100
"""Layers that a notebook shows, those that take PyTorch longest first."""
LONGEST_GRAPH = 2000
"""Operators drawn of a graph."""


@dataclass(frozen=True)
class LayerView:
    """A layer, as `LayerReport.as_dict` has it, and what is drawn of it."""

    data: Mapping[str, Any]
    anchor: str
    gain: float | None
    """Times the speed of PyTorch, as it runs now."""
    cells: str
    """The structure picture, empty where there is none; `corner` is its first weights."""
    corner: str
    candidates: Sequence[tuple[str, Mapping[str, Any]]]
    """With their letters in the chart."""
    chart: LayerChart | None
    groups: Sequence[Mapping[str, Any]]
    """Coupled groups that its weight belongs to."""


def page(report: Mapping[str, Any], profile: Mapping[str, Any] | None = None) -> str:
    """A whole document, with nothing outside. The arguments are what `as_dict` of a Report and a Profile returns."""
    groups = _groups_of(report["slimming"])
    layers = [_view(number, layer, groups) for number, layer in enumerate(report["layers"])]
    names = [layer["name"] for layer in report["layers"]]
    script = _own("page.js")
    return _rendered(
        "page.html",
        report=report,
        layers=layers,
        anchors=dict(zip(names, (layer.anchor for layer in layers), strict=True)),
        overview=overview(report["layers"]),
        profile=profile,
        timeline=timeline(profile, names) if profile else None,
        graph=drawing(report["flow"][:LONGEST_GRAPH]) if report["flow"] else None,
        regions={region["name"]: region for region in report["regions"]},
        style=_own("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def excerpt(report: Mapping[str, Any]) -> str:
    """A part of a document, without script, whose style holds for nothing else: for notebooks."""
    layers = sorted(report["layers"], key=lambda layer: -(layer["dense_ms"] or 0.0))
    gains = [units.ratio(layer["dense_ms"], layer["chosen_ms"]) for layer in layers]
    shown = list(zip(layers, gains, strict=True))[:EXCERPT]
    return _rendered("excerpt.html", report=report, layers=shown, style=_own("excerpt.css"))


def _own(name: str) -> Markup:
    """A file of this room, which is not escaped."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _rendered(template: str, **values: object) -> str:
    """What UTF-8 cannot say, half of a character in a name, becomes a reference."""
    text = _environment().get_template(template).render(**values)
    return text.encode("utf-8", "xmlcharrefreplace").decode("utf-8")


Groups = Mapping[str, Sequence[Mapping[str, Any]]]


def _groups_of(slimming: Mapping[str, Any] | None) -> Groups:
    """Parameter -> the coupled groups that cross it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for group in slimming["groups"] if slimming else ():
        for parameter in dict.fromkeys(name.rpartition("[")[0] for name in group["crosses"]):
            found.setdefault(parameter, []).append(group)
    return found


def _view(number: int, layer: Mapping[str, Any], groups: Groups) -> LayerView:
    picture = layer["picture"]
    return LayerView(
        layer,
        f"layer-{number}",
        units.ratio(layer["dense_ms"], layer["chosen_ms"]),
        data_uri(picture["cells"]) if picture["cells"] else "",
        data_uri([row.replace("1", "f") for row in picture["corner"]]) if picture["corner"] else "",
        lettered(layer),
        layer_chart(layer),
        groups.get(layer["weight"], ()),
    )


def _breakable(name: str) -> Markup:
    """A dotted name, which may go on in a new line after each dot."""
    return Markup(".<wbr>").join(name.split("."))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        {
            "ms": units.milliseconds,
            "percent": units.percent,
            "times": units.times,
            "scaled": units.scaled,
            "shape": units.shape,
            "breakable": _breakable,
        }
    )
    environment.globals.update(
        {
            "layer_size": (WIDTH, HEIGHT),
            "overview_size": (WIDE, HIGH),
            "row": ROW,
            "kinds": KINDS,
            "nothing": units.NOTHING,
            "longest_graph": LONGEST_GRAPH,
        }
    )
    return environment
