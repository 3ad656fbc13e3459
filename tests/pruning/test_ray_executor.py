"""A sweep on the machines of a Ray cluster, one of which is lost in the middle."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sparsecomp import InputError
from sparsecomp.pruning.ray_executor import RayExecutor
from sparsecomp.pruning.sweep import Sweep, sweep
from tests.pruning.test_sweep import OPTIONS, THREE, X, evaluate, losses, teacher

WAYS: dict[str, Any] = {
    "unstructured": {"structures": ("unstructured",)},
    "uniform": {"structures": ("unstructured",), "allocation": "uniform"},
}
LIMIT = 110.0
ignoring_ray = pytest.mark.filterwarnings("ignore::Warning")
"""Ray warns of much that is not ours: unclosed files, signals, protocols that will change."""


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'sparsecomp\[ray\]'"):
        RayExecutor()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two workers of one core each, and a head that runs nothing."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("pip install 'sparsecomp[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    memory = 80 << 20
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    nodes = [made.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()


def slow_loss(folder: Path, model: nn.Module) -> float:
    """The loss, after a second if it is asked for on the cluster; that it was is noted, with the node."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_task_id() is None:
        return evaluate(model)
    with (folder / "asked").open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    time.sleep(1.0)
    return evaluate(model)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def finished(folder: Path) -> list[str]:
    """Names of the points that are kept."""
    path = folder / "points" / "state.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    return [key for line in found if line and (key := json.loads(line)["key"]) != "digest"]


@ignoring_ray
@pytest.mark.slow
def test_a_machine_is_lost_in_the_middle_and_no_point(cluster: Any, tmp_path: Path) -> None:
    made, nodes = cluster
    found: list[Sweep] = []

    def run() -> None:
        loss = partial(slow_loss, tmp_path)
        with RayExecutor() as executor:
            found.append(
                sweep(teacher(), [X], loss, THREE, WAYS, executor=executor, resume=tmp_path, **OPTIONS)
            )

    running = threading.Thread(target=run, daemon=True)
    running.start()
    until = time.monotonic() + LIMIT
    while len(set(lines(tmp_path / "asked"))) < 2 or not finished(tmp_path):
        assert running.is_alive()
        assert time.monotonic() < until
        time.sleep(0.02)
    before = finished(tmp_path)
    made.remove_node(nodes[0], allow_graceful=False)
    assert len(before) < 6
    running.join(until - time.monotonic())
    [whole] = found
    assert losses(whole) == losses(sweep(teacher(), [X], evaluate, THREE, WAYS, **OPTIONS))
    after = finished(tmp_path)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 6  # no point was made twice
    assert (
        len(lines(tmp_path / "asked")) <= 2 * 6 + 2
    )  # twice a plan, dense and pruned; of one it began again


@ignoring_ray
@pytest.mark.slow
def test_errors_of_a_task_are_those_of_the_call(cluster: Any) -> None:
    with RayExecutor() as executor:
        assert executor.submit(sorted, [3, 1, 2], reverse=True).result(LIMIT) == [3, 2, 1]
        with pytest.raises(InputError, match="not known"):
            sweep(
                teacher(),
                [X],
                evaluate,
                THREE,
                {"odd": {"structures": ("5:4",)}},
                executor=executor,
                **OPTIONS,
            )
