"""Calls of compiled modules from many threads, from forked processes, and from workers of a DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparsecomp import SparseModule, compile_sparse
from sparsecomp.artifact import general
from sparsecomp.capture import COMPILING
from sparsecomp.codegen import forks, library, lowered_region
from sparsecomp.codegen.threads import team_of
from sparsecomp.compare import TOLERANCE, relative_error
from tests.artifact.nets import FEATURES, Images, Tokens, pruned

LIMIT = 60.0
"""Seconds after which a process or thread hangs."""
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


class Wide(nn.Module):
    """Large enough for PyTorch and for kernels to share a call among threads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return torch.cumsum(y, 1)  # stays with PyTorch


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens": (Tokens, (5, FEATURES)),
    "images": (Images, (3, 12, 12)),
    "wide": (Wide, (256,)),
}


def example(kind: str, batch: int, seed: int) -> Tensor:
    return torch.randn(batch, *MODELS[kind][1], generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {kind: pruned(make()) for kind, (make, _) in MODELS.items()}


@pytest.fixture(scope="module")
def compiled(models: dict[str, nn.Module]) -> dict[str, SparseModule]:
    """On two threads, whatever PyTorch has."""
    made = {}
    for kind, model in models.items():
        found = compile_sparse(model, (example(kind, 4, 0),), threads=2, min_speedup=0.0)
        assert found.report.rung == "whole graph"
        made[kind] = found
    return made


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch's workers are there: what they were is of no use in a forked process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(1 << 20).exp()
    torch.randn(512, 512) @ torch.randn(512, 512)
    yield
    torch.set_num_threads(threads)


def worst(model: nn.Module, expected: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return max(relative_error(model(x), y) for x, y in expected)


# Threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("tokens",), ("images", "wide", "tokens")], ids="+".join)
def test_a_thousand_calls_from_eight_threads(
    kinds: tuple[str, ...], models: dict[str, nn.Module], compiled: dict[str, SparseModule]
) -> None:
    calls = [(kinds[n % len(kinds)], example(kinds[n % len(kinds)], 1 + n % 5, n)) for n in range(60)]
    with torch.no_grad():
        expected = [models[kind](x) for kind, x in calls]

    def call(number: int) -> float:
        kind, x = calls[number % len(calls)]
        with torch.no_grad():
            return relative_error(compiled[kind](x), expected[number % len(calls)])

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(call, range(1000), timeout=LIMIT))
    assert len(errors) == 1000
    assert max(errors) < TOLERANCE


def test_set_num_threads_is_obeyed_up_and_down(
    models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_sparse(models["wide"], (example("wide", 4, 0),), min_speedup=0.0)
    teams: list[int] = []

    @contextmanager
    def seen(threads: int) -> Iterator[None]:
        teams.append(threads)
        with team_of(threads):
            yield

    monkeypatch.setattr(lowered_region, "team_of", seen)
    for threads in (2, 1, 3, 2):  # one thread needs no team
        torch.set_num_threads(threads)
        compiled(example("wide", 300, 0))
    assert teams == [2, 3, 2]


def test_saving_while_another_thread_compiles_a_new_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_sparse(
        pruned(Tokens()), (example("tokens", 2, 0),), target="reference", min_speedup=0.0
    )
    saving, real = threading.Event(), general.general_graph

    def slowly(module: Any) -> Any:
        saving.set()
        other.join(0.2)  # the other thread is on its way to a new shape
        return real(module)

    def call() -> None:
        saving.wait(LIMIT)
        compiled(torch.randn(2, 9, FEATURES))

    monkeypatch.setattr(general, "general_graph", slowly)
    saved = threading.Thread(target=lambda: compiled.save(tmp_path / "m.sparsecomp"), daemon=True)
    other = threading.Thread(target=call, daemon=True)
    other.start()
    saved.start()
    for thread in (saved, other):
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert (tmp_path / "m.sparsecomp").exists()


# Forks -------------------------------------------------------------------------------------------------------


def in_forked(count: int, work: Callable[[], Any]) -> list[Any]:
    """What the work returns in so many processes, forked at once."""
    context = multiprocessing.get_context("fork")

    def child(pipe: Connection) -> None:
        pipe.send(work())

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    children = [context.Process(target=child, args=(sender,), daemon=True) for _, sender in pipes]
    for process in children:
        process.start()
    try:
        for receiver, _ in pipes:
            assert receiver.poll(LIMIT), "a forked process hangs"
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in children:
            process.kill()
            process.join()


@forking
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", MODELS)
def test_two_forked_processes_call(
    kind: str, models: dict[str, nn.Module], compiled: dict[str, SparseModule]
) -> None:
    calls = [example(kind, batch, batch) for batch in (1, 4, 300)]
    with torch.no_grad():
        expected = [(x, models[kind](x)) for x in calls]
    assert worst(compiled[kind], expected) < TOLERANCE
    for error in in_forked(2, lambda: worst(compiled[kind], expected)):
        assert error < TOLERANCE
    assert worst(compiled[kind], expected) < TOLERANCE  # and the parent goes on
    assert torch.get_num_threads() == 2


@forking
@pytest.mark.usefixtures("two_threads")
def test_the_thread_that_survives_works_alone_and_new_ones_do_not(compiled: dict[str, SparseModule]) -> None:
    compiled["wide"](example("wide", 300, 0))
    assert forks.team(2) == 2

    def teams() -> tuple[int, int, int]:
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(forks.team, 2).result()
            pool.submit(compiled["wide"], example("wide", 300, 0)).result()
        return forks.team(2), theirs, torch.get_num_threads()

    assert in_forked(1, teams) == [(1, 2, 1)]


@forking
@pytest.mark.usefixtures("two_threads")
def test_a_forked_process_compiles_a_new_shape(models: dict[str, nn.Module]) -> None:
    compiled = compile_sparse(models["tokens"], (example("tokens", 4, 0),), threads=2, min_speedup=0.0)
    x = torch.randn(2, 7, FEATURES)
    with torch.no_grad():
        expected = [(x, models["tokens"](x))]
    [(error, note)] = in_forked(1, lambda: (worst(compiled, expected), compiled.report.notes[-1]))
    assert error < TOLERANCE
    assert "compiled once more" in note


@forking
def test_a_fork_waits_for_a_compilation_and_locks_are_free_in_the_child() -> None:
    held, release = threading.Event(), threading.Event()

    def compile_slowly() -> None:
        with COMPILING, library._LOCK:
            held.set()
            release.wait(0.3)

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    held.wait(LIMIT)

    def free() -> tuple[bool, bool]:
        return COMPILING.acquire(timeout=1.0), library._LOCK.acquire(timeout=1.0)

    assert in_forked(1, free) == [(True, True)]
    thread.join()
    assert COMPILING.acquire(timeout=1.0)
    COMPILING.release()


# Workers of a DataLoader -------------------------------------------------------------------------------------


class Features(Dataset[Tensor]):
    """What a compiled module makes of random inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model(example("wide", 40, index))
        return found


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "start",
    [pytest.param("fork", marks=forking), pytest.param("spawn", marks=pytest.mark.slow)],
)
def test_workers_of_a_data_loader_call(
    start: str, models: dict[str, nn.Module], compiled: dict[str, SparseModule]
) -> None:
    compiled["wide"](example("wide", 40, 0))
    loader = DataLoader(
        Features(compiled["wide"]),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=start,
        timeout=LIMIT,
    )
    plain = Features(models["wide"])
    expected = torch.stack([plain[index] for index in range(len(plain))])
    assert relative_error(torch.cat(list(loader)), expected) < TOLERANCE


def test_teams_of_two_threads_side_by_side() -> None:
    """Four callers, each with a team of its own that waits at its own barriers."""
    torch.set_num_threads(2)
    x = torch.randn(1, 8, 16, 16)
    model = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < 0.2
    compiled = compile_sparse(model, (x,), min_speedup=0.0)
    assert len(compiled.report.sparse_layers) == 2
    with torch.no_grad():
        expected = model(x)

    def calls(_: int) -> int:
        torch.set_num_threads(2)
        with torch.no_grad():
            return sum(torch.allclose(compiled(x), expected, atol=1e-5) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(calls, range(4))) == [100] * 4
