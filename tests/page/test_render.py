"""The page and the excerpt: that all is there, that nothing else is loaded, and that a model cannot write into them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparsecomp import ArtifactError
from sparsecomp.page import excerpt, page
from sparsecomp.report import Report
from tests.page.samples import HOSTILE, Document, profile, report

LOADING = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")
"""Attributes that make a browser load something."""


def document(found: Report, with_profile: bool = True) -> Document:
    return Document(page(found.as_dict(), profile().as_dict() if with_profile else None))


def test_every_layer_is_there_with_its_candidates_and_reasons() -> None:
    found = document(report())
    for layer in report().layers:
        assert layer.layer.name in found.texts["bdi"]
        assert layer.choice is not None
        assert layer.choice.reason in found.text
        for candidate in layer.choice.candidates:
            assert found.texts["th"].count(candidate.kernel) == len(report().layers)
    assert found.text.count("refused: would multiply too much") == 3
    assert "1.100" not in found.text
    assert {"0.250", "0.275", "0.500", "0.550"} <= {text.strip() for text in found.texts["td"]}


def test_totals_regions_groups_and_what_was_left_are_there() -> None:
    text = document(report()).text
    for part in (
        "2.50x",
        "10.0 → 4.00 ms",
        "region.0",
        "aten.softmax.int",
        "tokens",
        "embedding: not lowered yet",
    ):
        assert part in text
    for part in ("an output of the model", "first.weight[0]", "find-layers", "compiled once more"):
        assert part in text


def test_each_weight_has_its_structure_picture_and_says_what_it_shows() -> None:
    pictures = document(report()).all("img")
    assert len(pictures) == 2 + 2 + 1, "two for a large weight, one for a small one"
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert pictures[0]["alt"] == "Where the weight of first is not zero: 128×96, 10 % kept, blocks 4x1"


def test_it_is_well_formed_and_says_what_its_parts_are() -> None:
    found = document(report())
    assert found.wrong == []
    assert found.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("aria-controls", "aria-labelledby"):
        assert all(a[name] in ids for _, a in found.elements if name in a)
    assert all(a.get("aria-label") for a in found.all("svg") if a.get("aria-hidden") != "true")
    assert all(heading.get("scope") in ("col", "row") for heading in found.all("th"))
    targets = [link["href"][1:] for link in found.all("a")]
    assert set(targets) <= set(ids)


def test_nothing_is_loaded_from_anywhere() -> None:
    text = page(report().as_dict(), profile().as_dict())
    found = Document(text)
    loaded = [
        a[name] for tag, a in found.elements for name in LOADING if name in a if not a[name].startswith("#")
    ]
    assert all(address.startswith("data:image/png;base64,") for address in loaded)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|<link", text)


def test_its_policy_names_its_own_script_and_forbids_the_rest() -> None:
    found = document(report())
    (policy,) = (a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = found.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("whole", [True, False], ids=["page", "excerpt"])
def test_a_hostile_name_stays_text(whole: bool) -> None:
    names = (HOSTILE, "second", HOSTILE + "last")
    hostile = replace(
        report(names), notes=(HOSTILE,), target=HOSTILE, untouched={"x": (HOSTILE, HOSTILE)}
    ).as_dict()
    found = Document(page(hostile, profile(names).as_dict()) if whole else excerpt(hostile))
    assert found.wrong == []
    assert HOSTILE.replace("\ud800", "\ufffd") in "".join(found.texts["bdi"])
    assert len(found.all("script")) == int(whole)
    assert all(a["src"].startswith("data:") for a in found.all("img"))
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)


def test_it_is_made_of_the_data_that_json_has() -> None:
    data, call = report().as_dict(), profile().as_dict()
    assert page(data, call) == page(json.loads(json.dumps(data)), json.loads(json.dumps(call)))


def test_without_a_call_a_graph_or_a_layer_those_parts_are_left_out() -> None:
    bare = document(Report("cpu", 1, (), (), {}), with_profile=False)
    assert bare.wrong == []
    assert not {"time", "graph", "groups", "untouched", "passes"} & {a.get("id") for _, a in bare.elements}
    assert "time" in {a.get("id") for _, a in document(report()).elements}


def test_what_was_only_analysed_has_pictures_and_no_times() -> None:
    layers = tuple(replace(layer, choice=None) for layer in report().layers)
    found = document(replace(report(), layers=layers, eager_seconds=None), with_profile=False)
    assert found.wrong == []
    assert len(found.all("img")) == 5
    assert "not chosen yet" in found.text
    assert "break-even" not in found.text


def test_hundreds_of_layers_stay_small() -> None:
    names = [f"encoder.layers.{number}.attention.projection" for number in range(300)]
    text = page(report(names).as_dict(), profile(names).as_dict())
    assert len(text) < 2_000_000
    assert len(excerpt(report(names).as_dict())) < 80_000


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    hostile = report((HOSTILE, "second", "last"))
    hostile.to_html(path, profile())
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ArtifactError, match="cannot be written"):
        hostile.to_html(tmp_path / "nowhere" / "report.html")


def test_a_notebook_shows_totals_and_layers_in_a_style_of_its_own() -> None:
    found = Document(report()._repr_html_())
    assert found.wrong == []
    assert {"first", "second", "last"} <= set(found.texts["bdi"])
    assert "2.50x" in found.text
    assert not found.all("script")
    assert not any("id" in attributes for _, attributes in found.elements)
    rules = re.findall(r"([^{}]+)\{", found.texts["style"][0])
    selectors = [selector.strip() for rule in rules for selector in rule.split(",")]
    assert len(selectors) > 10
    assert all(selector.startswith(".sparsecomp-report") for selector in selectors)


def test_a_notebook_shows_the_layers_that_take_longest_where_there_are_many() -> None:
    names = [f"layer{number}" for number in range(150)]
    found = Document(report(names)._repr_html_())
    assert "The 100 of 150 layers that take PyTorch longest" in found.text
    assert "layer148" in found.texts["bdi"]
    assert "layer0" not in found.texts["bdi"]
