"""What is installed: the wheel and the source archive hold the library, all of it and nothing else, and work."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

import sparsecomp

ROOT = Path(__file__).parent.parent
FIRST_USE = """
import sys
from pathlib import Path
import torch
from torch import nn
import sparsecomp

assert Path(sparsecomp.__file__).is_relative_to(sys.prefix), sparsecomp.__file__
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
model[0].weight.data *= torch.rand_like(model[0].weight) < 0.1
x = torch.randn(8, 64)
compiled = sparsecomp.compile_sparse(model, (x,), threads=1)
assert compiled.verify(x) < 1e-4
compiled.save("model.sparsecomp")
print(compiled.report)
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Distributions:
    """What a build leaves."""

    source: Path
    wheel: Path


def build(*arguments: str | Path) -> Distributions:
    """`arguments`: of `python -m build`; the last is the folder for what is built."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(arguments[-1])
    found = {path.suffix: path for path in folder.iterdir()}
    return Distributions(found.get(".gz", folder), found[".whl"])


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Built from the files that git knows, or would take: whatever else lies in the folder is not theirs."""
    source = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        original, copy = ROOT / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            copy.symlink_to(original.readlink())
        elif original.exists():
            copy.write_bytes(original.read_bytes())
    return build(source, "--outdir", tmp_path_factory.mktemp("dist"))


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def modules() -> set[str]:
    """The library's source files under the names that they have when installed."""
    here = {path.relative_to(ROOT) for room in ("passes", "codegen") for path in (ROOT / room).rglob("*.py")}
    own = {path.relative_to(ROOT) for path in (ROOT / "sparsecomp").rglob("*.py")}
    linked = {path for path in own if path.parts[1] in ("passes", "codegen")}
    return {path.as_posix() for path in own - linked} | {f"sparsecomp/{path.as_posix()}" for path in here}


def data() -> set[str]:
    """What the library reads beside its source."""
    templates = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("sparsecomp/*/templates/*")}
    assert templates
    return templates | {"sparsecomp/py.typed"}


def test_the_wheel_holds_the_library_and_nothing_else(distributions: Distributions) -> None:
    found = set(members(distributions.wheel))
    information = {
        name for name in found if name.startswith(f"sparsecomp-{sparsecomp.__version__}.dist-info/")
    }
    assert found - information == modules() | data()
    kinds = {PurePosixPath(name).name for name in information}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "LICENSE"} <= kinds
    assert distributions.wheel.name == f"sparsecomp-{sparsecomp.__version__}-py3-none-any.whl"


def test_the_source_archive_holds_no_stray_files(distributions: Distributions) -> None:
    top = f"sparsecomp-{sparsecomp.__version__}/"
    with tarfile.open(distributions.source) as archive:
        found = {member.name.removeprefix(top) for member in archive if member.isfile()}
    assert {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "pyproject.toml",
        "PKG-INFO",
        "sparsecomp/py.typed",
    } <= found
    strays = {
        name
        for name in found
        if not re.match(r"(sparsecomp|passes|codegen|sparsecomp\.egg-info)/[^.]", name) and "/" in name
    }
    assert strays == set()
    assert {
        f"sparsecomp/{name}" if not name.startswith("sparsecomp/") else name for name in found
    } >= modules() | data()


def test_the_source_archive_builds_the_same_wheel(distributions: Distributions, tmp_path: Path) -> None:
    with tarfile.open(distributions.source) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = build("--wheel", source, "--outdir", tmp_path / "dist").wheel
    assert members(again) == members(distributions.wheel)


def test_what_is_installed_compiles_a_model(distributions: Distributions, tmp_path: Path) -> None:
    """In an environment of its own, with the dependencies of this one."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        distributions.wheel,
    ]
    subprocess.run(install, check=True)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    (Path(there) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    surroundings = {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "SPARSECOMP_CACHE": str(tmp_path / "cache")}
    first: list[str | Path] = [python, "-c", FIRST_USE]
    second: list[str | Path] = [place / "bin" / "sparsecomp", "report", "model.sparsecomp"]
    for command in (first, second):
        done = subprocess.run(
            command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "2 layers converted" in done.stdout or "of 2 layers" in done.stdout
