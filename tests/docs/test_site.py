"""The site: every public name is in the reference, every page in the contents; it builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsecomp
from sparsecomp import train
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "api.md").read_text()
DOCUMENTED = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", PAGE, flags=re.MULTILINE))
REFERENCE = re.compile(
    r"""<(?:link|script|img|iframe|source)\b[^>]*\b(?:href|src)="(?!data:)([^"]+)"|url\(["']?(?!data:)([^"')]+)"""
)


def test_every_public_name_is_in_the_reference() -> None:
    assert set(sparsecomp.__all__) | set(train.__all__) <= DOCUMENTED


def test_every_page_is_in_the_contents() -> None:
    contents = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^(\w+)$", contents, flags=re.MULTILINE))
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert listed == pages


@pytest.mark.slow
def test_it_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "docs",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for page in (*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")):
        for found in REFERENCE.findall(page.read_text()):
            assert not "".join(found).startswith(("http:", "https:", "//")), f"{page.name}: {found}"
    names = (tmp_path / "api.html").read_text()
    for name in sparsecomp.__all__:
        assert f'id="sparsecomp.{name}"' in names
