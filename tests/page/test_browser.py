"""The page in a real browser, without a network: what a reader clicks, sees, and prints.

Needs Chromium (Debian's package `chromium`, or another on the path); without it these tests are skipped.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsecomp.page.png import COLOUR
from tests.page.samples import HOSTILE, profile, report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")
FLAGS = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 300_000
"""Milliseconds to wait for what is there at once on a machine that is not busy."""
FULL = ",".join(map(str, COLOUR))
NAMES = (HOSTILE, "second", "last")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless, without a sandbox (tests may run as root), with a fresh profile."""
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(NAMES).to_html(path, profile(NAMES))
    return path.as_uri()


class Reader:
    """A page that was opened, and what it asked for or complained of meanwhile."""

    def __init__(self, browser: Any, address: str, scheme: str = "light") -> None:
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 1000}, offline=True
        )
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.goto(address)

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()

    def layers(self) -> list[str]:
        """As they stand in the table, from top to bottom."""
        toggles = self.page.locator("#layer-table tbody:not([hidden]) button.toggle")
        return [str(name) for name in toggles.all_inner_texts()]

    def painted(self, locator: Any) -> dict[str, float]:
        """Colour, "red,green,blue" -> its share of an element as it is painted, which the browser itself reads from a
        screenshot."""
        image = base64.b64encode(locator.screenshot()).decode()
        other = self.context.new_page()
        found = other.evaluate(
            """async (data) => {
                const image = new Image();
                image.src = `data:image/png;base64,${data}`;
                await image.decode();
                const canvas = new OffscreenCanvas(image.width, image.height);
                const pen = canvas.getContext("2d");
                pen.drawImage(image, 0, 0);
                const bytes = pen.getImageData(0, 0, image.width, image.height).data;
                const shares = {};
                for (let at = 0; at < bytes.length; at += 4) {
                    const colour = bytes.slice(at, at + 3).join();
                    shares[colour] = (shares[colour] || 0) + 4 / bytes.length;
                }
                return shares;
            }""",
            image,
        )
        other.close()
        return dict(found)


@pytest.fixture
def reader(browser: Any, address: str) -> Iterator[Reader]:
    opened = Reader(browser, address)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert [request for request in opened.requests if not request.startswith(("file:", "data:"))] == []


def test_a_hostile_name_is_shown_and_does_nothing(reader: Reader) -> None:
    assert reader.page.title() == "sparsecomp report: 2 of 3 layers converted"
    assert reader.layers()[0].startswith("</script><script>document.title='taken'")
    assert "{{ 7 * 7 }}" in reader.layers()[0]
    assert reader.page.locator("img:not([src^='data:'])").count() == 0


def test_a_heading_sorts_and_sorts_back(reader: Reader) -> None:
    first, second, last = reader.layers()
    heading = reader.page.locator("#layer-table thead th", has_text="PyTorch ms")
    heading.get_by_role("button").click()
    assert reader.layers() == [second, first, last]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert reader.layers() == [last, first, second]
    name = reader.page.locator("#layer-table thead th").first
    name.get_by_role("button").press("Enter")
    assert reader.layers() == [first, second, last], "names sort as the model has them"
    assert name.get_attribute("aria-sort") == "ascending"
    assert heading.get_attribute("aria-sort") is None


def test_a_layer_opens_with_the_keyboard_and_shows_why(reader: Reader) -> None:
    toggle = reader.page.locator("#layer-1 button.toggle")
    refused = reader.page.locator("#layer-1-detail", has_text="refused: would multiply too much")
    assert not refused.is_visible()
    toggle.focus()
    reader.page.keyboard.press("Space")
    assert refused.is_visible()
    assert toggle.get_attribute("aria-expanded") == "true"
    assert refused.get_by_role("img", name="Time of each kernel of second").is_visible()
    assert not reader.page.locator("#layer-0-detail").is_visible()
    toggle.click()
    assert not refused.is_visible()


def test_details_follow_their_layer_when_it_is_sorted(reader: Reader) -> None:
    reader.page.locator("#layer-2 button.toggle").click()
    reader.page.locator("#layer-table thead th", has_text="Now ms").get_by_role("button").click()
    shown = reader.page.locator("#layer-2-detail")
    assert shown.is_visible()
    assert shown.evaluate("row => row.parentElement.id") == "layer-2"


def test_the_filter_leaves_what_was_typed_and_says_how_many(reader: Reader) -> None:
    reader.page.get_by_label("Show layers with").fill("SECOND")
    assert reader.layers() == ["second"]
    assert reader.page.get_by_role("status").inner_text() == "1 of 3 layers"
    reader.page.get_by_label("Show layers with").fill("")
    assert len(reader.layers()) == 3


def test_all_details_open_and_close_at_once(reader: Reader) -> None:
    button = reader.page.get_by_role("button", name="Open all details")
    button.click()
    assert all(reader.page.locator(f"#layer-{number}-detail").is_visible() for number in range(3))
    reader.page.get_by_role("button", name="Close all details").click()
    assert not reader.page.locator("#layer-0-detail").is_visible()


def test_a_layer_in_the_graph_leads_to_its_details(reader: Reader) -> None:
    reader.page.get_by_role("region", name="Operators in the order").get_by_role(
        "link", name="second"
    ).click()
    reader.page.locator("#layer-1-detail").wait_for()  # the browser tells its script a little later
    assert reader.page.evaluate("document.activeElement.textContent") == "second"


def test_parts_of_a_call_sort_by_time(reader: Reader) -> None:
    reader.page.get_by_text("Every part, with its time").click()
    table = reader.page.locator("#time table")
    table.get_by_role("button", name="ms", exact=True).click()
    times = [float(text) for text in table.locator("tbody td:nth-of-type(3)").all_inner_texts()]
    assert times == sorted(times, reverse=True)
    assert len(times) == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_shows_the_weight_on_a_light_and_on_a_dark_page(
    browser: Any, address: str, scheme: str
) -> None:
    reader = Reader(browser, address, scheme)
    back = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in back.strip("rgb()").split(",")) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    reader.page.locator("#layer-1 button.toggle").click()
    cells, corner = (reader.page.locator("#layer-1-detail .pictures img").nth(i) for i in (0, 1))
    full = reader.painted(corner)[FULL]
    expected = report().layers[1].facts.picture.corner
    kept = sum(row.count("1") for row in expected) / (len(expected) * len(expected[0]))
    assert full == pytest.approx(kept, abs=0.02)
    assert len(reader.painted(cells)) > 3, "cells differ in how full they are"
    reader.context.close()
    assert reader.complaints == []


def test_a_dense_weight_is_full(reader: Reader) -> None:
    reader.page.locator("#layer-2 button.toggle").click()
    assert reader.painted(reader.page.locator("#layer-2-detail .pictures img"))[FULL] > 0.95


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_its_ground(browser: Any, address: str, scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: contrast of at least 4.5 for text."""
    reader = Reader(browser, address, scheme)
    reader.page.get_by_role("button", name="Open all details").click()
    found = reader.page.evaluate(CONTRASTS)
    reader.context.close()
    assert len(found) > 100
    assert [pair for pair in found if pair["contrast"] < 4.5] == []


CONTRASTS = """() => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] / 255 + below[i] * (1 - top[3] / 255));
    const ground = (element) => element
        ? over(rgba(getComputedStyle(element).backgroundColor), ground(element.parentElement))
        : [255, 255, 255];
    const light = (colour) => {
        const [r, g, b] = colour.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.querySelectorAll("body *:not(script):not(style)")].filter((element) =>
        !element.closest("svg") && element.checkVisibility() && [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
    return texts.map((element) => {
        const below = ground(element);
        const [a, b] = [light(over(rgba(getComputedStyle(element).color), below)), light(below)];
        return {text: element.textContent.trim().slice(0, 40), contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)};
    });
}"""


def test_without_script_details_are_open(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(address)
    assert page.locator("#layer-1-detail").is_visible()
    assert not page.get_by_role("button", name="Open all details").is_visible()
    context.close()


def test_it_prints_on_white_with_the_layers_that_are_open(reader: Reader) -> None:
    reader.page.locator("#layer-1 button.toggle").click()
    reader.page.emulate_media(media="print", color_scheme="dark")
    assert reader.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert reader.page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 39)"
    assert reader.page.locator("#layer-1-detail").is_visible()
    assert not reader.page.locator("#filter").is_visible()
    assert reader.page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("width", [380, 800])
def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Open all details").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_in_a_notebook_the_page_around_it_keeps_its_style(browser: Any, tmp_path: Path) -> None:
    """And the other way round: it is readable in a dark notebook, whose colours it takes."""
    around = "<!doctype html><meta charset=utf-8><body style='background:#111;color:#eee'><table><th id=own>x</th></table>"
    plain, with_report = tmp_path / "plain.html", tmp_path / "with.html"
    plain.write_text(around)
    with_report.write_text(around + report(NAMES)._repr_html_())
    styles = []
    for path in (plain, with_report):
        reader = Reader(browser, path.as_uri())
        styles.append(
            reader.page.evaluate(
                "(() => {const s = getComputedStyle(document.getElementById('own'));"
                " return [s.color, s.fontSize, s.padding, s.textAlign, s.borderBottom]})()"
            )
        )
        if path is with_report:
            name = reader.page.locator(".sparsecomp-report tbody th").first
            assert name.evaluate("cell => getComputedStyle(cell).color") == "rgb(238, 238, 238)"
            assert reader.page.title() == ""
        reader.context.close()
        assert reader.complaints == []
    assert styles[0] == styles[1]
