"""The structure that the design asks for, kept by machine."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("sparsecomp", "passes", "codegen")


def sources() -> list[Path]:
    """Every source file once: sparsecomp/passes and sparsecomp/codegen are links."""
    found = {path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    return sorted(found)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in sources() if path.name == "__init__.py"}
    names = {".".join(folder.parts) for folder in folders}
    expected = {name if name.startswith("sparsecomp") else f"sparsecomp.{name}" for name in names}
    assert set(listed) == expected | {"sparsecomp.codegen.cpu"}


def test_only_codegen_imports_tvm() -> None:
    for path in sources():
        if (ROOT / "codegen").resolve() not in path.parents:
            assert not any(name.split(".")[0] in ("tvm", "tvm_ffi") for name in imports(path)), path


@pytest.mark.parametrize(("room", "other"), [("passes", "codegen"), ("codegen", "passes")])
def test_passes_and_codegen_do_not_import_each_other(room: str, other: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not any(name.startswith(f"sparsecomp.{other}") for name in imports(path)), path


def test_the_page_knows_only_plain_data() -> None:
    for path in (ROOT / "sparsecomp" / "page").rglob("*.py"):
        own = [name for name in imports(path) if name.split(".")[0] == "sparsecomp"]
        assert all(name.startswith("sparsecomp.page") for name in own), path


def test_every_pass_is_tested() -> None:
    tested = {path.name.removeprefix("test_") for path in (ROOT / "tests" / "passes").glob("test_*.py")}
    passes = {path.name for path in (ROOT / "passes").glob("*.py")} - {"__init__.py"}
    assert passes <= tested


def test_files_are_small() -> None:
    assert {
        path.name: count for path in sources() if (count := len(path.read_text().splitlines())) > 400
    } == {}


def test_functions_are_short() -> None:
    long = {
        f"{path.name}:{node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60
    }
    assert long == set()


def test_importing_the_library_is_light() -> None:
    heavy = {"tvm", "typer", "sparsecomp.train", "sparsecomp.cli", "sparsecomp.page"}
    code = "import sys, sparsecomp; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "sparsecomp" in done.stdout.split()
    assert heavy.isdisjoint(done.stdout.split())
