"""The pages say nothing that does not run: Python in one namespace per page, commands one after the other."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sparsecomp
from sparsecomp import debug
from tests.cli.nets import run
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks, commands

SLOW = (
    "compiling.md",
    "debugging.md",
    "exporting.md",
    "getting_started.md",
    "plan.md",
    "reading_reports.md",
    "sparsify.md",
    "torch_compile.md",
    "tutorial.md",
)
"""Pages whose code takes longer than seconds."""
LANGUAGES = {"python", "given", "sh", "text", "c"}
CHECKED = ("make", "pip", "python", "python3")
"""Commands that are not run: what they name must exist."""
RUNS = {"python", "given", "sh"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def code_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUNS]


WITH_CODE = [
    pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW), id=page.relative_to(ROOT).as_posix())
    for page in PAGES
    if code_of(page)
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_its_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan_roughly(monkeypatch)
    names: dict[str, Any] = {"__name__": "page", "DOCS": DOCS}
    modules = set(sys.modules)
    try:
        for block in code_of(page):
            if not block.not_run:
                run_block(block, names, tmp_path)
    finally:
        written = {path.stem for path in tmp_path.glob("*.py")}
        for name in written & (set(sys.modules) - modules):
            del sys.modules[name]


def plan_roughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sparsities, by a method that takes no time: plans themselves are tested elsewhere."""
    rough = partial(sparsecomp.sparsify, method="wanda", levels=5)
    for place in ("sparsecomp.sparsify", "sparsecomp.pruning.sweep.sparsify"):
        monkeypatch.setattr(place, rough)


def run_block(block: Block, names: dict[str, Any], folder: Path) -> None:
    if block.file:
        (folder / block.file).write_text(block.text)
    elif block.language == "sh":
        for command in commands(block):
            run_command(command, block, folder)
    else:
        source = "\n" * block.line + block.text  # so that a traceback shows the line of the page
        exec(compile(source, block.page, "exec"), names)  # noqa: S102  the code of our own page


def run_command(command: str, block: Block, folder: Path) -> None:
    """Run it where that takes seconds and changes nothing but `folder`; else see that what it names exists."""
    words = shlex.split(command)
    match words:
        case ["sparsecomp", *rest]:
            assert run(*rest).stdout.strip(), f"{block.place}: {command} prints nothing"
        case ["cc" | "cp", *_]:
            if shutil.which("cc") is None:
                pytest.skip("no C compiler")
            subprocess.run(command, shell=True, check=True, cwd=folder)
        case ["make", target]:
            assert target in TARGETS, f"{block.place}: the Makefile has no target {target}"
        case ["python" | "python3", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"{block.place}: there is no module {module}"
        case ["pip", "install", *rest]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                assert set(extra.split(",")) <= set(EXTRAS), f"{block.place}: there is no extra {extra}"
        case _:
            pytest.fail(
                f"{block.place}: {command!r} is neither run nor checked; precede it by <!-- not run: why -->"
            )


def test_what_is_not_run(golden: Callable[[str], None]) -> None:
    lines = []
    for block in (block for page in PAGES for block in code_of(page)):
        if block.not_run:
            first = block.text.splitlines()[0]
            lines.append(f"{block.page}: {first}  -- {block.not_run}")
        elif block.language == "sh":
            seen = [command for command in commands(block) if command.split()[0] in CHECKED]
            lines += [f"{block.page}: {command}  -- what it names exists" for command in seen]
    golden("\n".join([f"{len(lines)} are not run:", *lines]))


def test_every_block_names_its_language() -> None:
    found = {block.place: block.language for page in PAGES for block in blocks(page)}
    assert {place: language for place, language in found.items() if language not in LANGUAGES} == {}


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_debugging_names_the_dial() -> None:
    page = (DOCS / "debugging.md").read_text()
    assert debug.VARIABLE in page
    for logger in debug.DIAL:
        assert f"`{logger.name}`" in page


def test_no_page_asks_another_server() -> None:
    """No picture, style or script of a page comes from elsewhere; links may lead there."""
    for page in PAGES:
        assert not re.search(
            r"!\[[^]]*\]\(http|<(img|script|link|iframe)\b[^>]*\b(src|href)=", page.read_text()
        )
