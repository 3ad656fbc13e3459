"""What every test may use: golden files, one seed, a cache of its own."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with that of the test's golden file; `--update-golden` rewrites it.

    tests/passes/test_fuse_epilogues.py::test_bias  ->  tests/golden/passes/test_fuse_epilogues/test_bias.txt
    """
    folder = TESTS / "golden" / request.path.relative_to(TESTS).with_suffix("")
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', request.node.name).strip('-')}.txt"

    def check(text: str) -> None:
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        if not path.exists():
            pytest.fail(
                f"no golden file {path}: look at this text, then run pytest --update-golden\n\n{text}"
            )
        assert text == path.read_text(), f"{path} differs; if the new text is right, pytest --update-golden"

    return check


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of tests stay apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Collections, which every compilation and measurement begins with, leave alone what is older than the module's
    tests: libraries, and what earlier modules left in caches. They took seconds each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """One seed and one thread for every test: more threads are slow where others use the cores."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
