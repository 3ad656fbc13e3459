"""Devices behind TVM's RPC tracker: two servers on this host, one of which is killed in the middle of a search."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import tvm
from torch import Tensor, nn

from benchmarks.prune import prune
from sparsecomp import InputError, autotune
from sparsecomp.codegen import remote
from sparsecomp.codegen.arena import SLACK
from sparsecomp.codegen.build import build
from sparsecomp.codegen.call import Call
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.remote_kernel import Space, remote_module, size_of, tensors_of
from sparsecomp.codegen.stream import Stream, make_stream
from sparsecomp.codegen.timings import Timings
from sparsecomp.codegen.workbench import BenchLostError
from sparsecomp.geometry import TILE
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, pack
from sparsecomp.region import Schedule
from sparsecomp.target import Remote, Target
from sparsecomp.train.costs import weight_costs

LINEAR = Layer("linear", "linear", "w", (24, 40), (2, 100, 40))
CONV = Layer("conv", "conv2d", "w", (16, 8, 3, 3), (3, 8, 9, 9), stride=(2, 2), padding=(1, 1, 1, 1))


# Kernels of tensors ------------------------------------------------------------------------------------------


def streams_of(layer: Layer, count: int = len(PATTERNS)) -> list[Stream]:
    matrix = torch.randn(layer.rows, layer.columns) * (torch.rand(layer.rows, layer.columns) < 0.3)
    call = Call.of(layer, matrix)
    return [make_stream(pack(matrix, p), layer, call.geometry, Schedule(2, 16)) for p in PATTERNS[:count]]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=lambda layer: layer.name)
def test_every_pattern_gives_the_same(layer: Layer, threads: int) -> None:
    machine, streams = machine_of(Target()), streams_of(layer)
    built = build(remote_module(streams, machine, threads), machine.tvm_target)
    space = Space.of(streams[0], threads)
    x = torch.randn(space.floats[0])
    found = [torch.zeros(space.floats[1]) for _ in streams]
    for number, (stream, y) in enumerate(zip(streams, found, strict=True)):
        built[f"timed{number}"](*tensors_of(stream), x, y)
    assert found[0].count_nonzero() > 0
    for y in found[1:]:
        torch.testing.assert_close(y, found[0], rtol=1e-4, atol=1e-4)


def test_a_linear_kernel_is_right() -> None:
    machine, layer = machine_of(Target()), replace(LINEAR, input_shape=(TILE, 40))
    matrix = torch.randn(layer.rows, layer.columns)
    call = Call.of(layer, matrix)
    stream = make_stream(pack(matrix, PATTERNS[0]), layer, call.geometry, Schedule(4, 16, 64))
    built = build(remote_module([stream], machine, 1), machine.tvm_target)
    space = Space.of(stream, 1)
    x, y = torch.randn(size_of(space.x)), torch.zeros(size_of(space.y))
    built["timed0"](*tensors_of(stream), x, y)

    def planes(flat: Tensor, count: int) -> Tensor:
        return flat[SLACK : SLACK + count * TILE].reshape(count, TILE)

    torch.testing.assert_close(planes(y, layer.rows), matrix @ planes(x, layer.columns), rtol=1e-4, atol=1e-4)


def test_other_processors_get_objects_to_link(tmp_path: Path) -> None:
    board = machine_of(Target("cpu", "neoverse-v1", "aarch64-linux-gnu"))
    path = remote.export(streams_of(LINEAR, 2), board, 2, tmp_path / "race")
    assert path.suffix == ".tar"
    with tarfile.open(path) as archive:
        objects = [archive.extractfile(member) for member in archive.getmembers() if member.isfile()]
        heads = [file.read(20) for file in objects if file is not None]
    assert heads
    assert all(head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") == 183 for head in heads)


# Servers -----------------------------------------------------------------------------------------------------


@dataclass
class Boards:
    """A tracker and two servers."""

    tracker: int
    servers: list[subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        return f"rpc://127.0.0.1:{self.tracker}/board"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(module: str, environment: dict[str, str], *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """With the worker processes that TVM starts, and leaves behind when only their parent ends."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=5)
    process.wait()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, f"{what} took more than 30 seconds"
        time.sleep(0.05)


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    try:
        ports = [free_port() for _ in range(3)]
    except OSError as error:
        pytest.skip(f"no socket can be opened here: {error}")
    without_torch = tmp_path_factory.mktemp("board")  # as devices are; and it starts faster
    (without_torch / "torch.py").write_text('raise ImportError("no PyTorch on this device")\n')
    path = os.pathsep.join(filter(None, (str(without_torch), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": path, "TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
    # TVM looks for a free port up to --port-end, which is 9199 unless it is told otherwise.
    started = [start("tvm.exec.rpc_tracker", environment, "--port", ports[0], "--port-end", ports[0] + 1)]
    try:
        wait_for(lambda: listening(ports[0]), "the tracker's start")
        assert waiting(ports[0]) == 0  # answers only when it serves: it refuses whom it keeps waiting
        tracker = ("--tracker", f"127.0.0.1:{ports[0]}", "--key", "board")
        for port in ports[1:]:
            own = ("--port", port, "--port-end", port + 1)
            started.append(start("tvm.exec.rpc_server", environment, *own, *tracker))
        wait_for(lambda: waiting(ports[0]) == 2, "the servers' start")
        yield Boards(ports[0], started[1:])
    finally:
        for process in started:
            end(process)


def waiting(tracker: int) -> int:
    """Servers without work."""
    with contextlib.closing(tvm.rpc.connect_tracker("127.0.0.1", tracker)) as session:
        summary = session.summary()
    return int(summary["queue_info"].get("board", {}).get("free", 0))


def model() -> nn.Module:
    layers = [nn.Linear(48, 64), nn.Linear(64, 96), nn.Linear(96, 32), nn.Linear(32, 64)]
    found = nn.Sequential(*layers).eval()
    prune(found, "unstructured", 0.8)
    return found


def test_a_regulariser_weighs_by_what_weights_cost_there(
    boards: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    wait_for(lambda: waiting(boards.tracker) == 2, "the servers' return")
    net, x = (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 32)).eval(),
        torch.randn(2, 1, 8, 8),
    )
    costs = weight_costs(net, (x,), boards.url)
    assert costs["0.weight"] > costs["2.weight"] > 0  # a weight of the convolution is used 36 times
    sizes = {name: net.get_parameter(name).numel() for name in costs}
    mean = sum(costs[name] * sizes[name] for name in costs) / sum(sizes.values())
    assert mean == pytest.approx(1)
    assert '"rpc board: ' in database(tmp_path).read_text()  # measured there, not here
    wait_for(lambda: waiting(boards.tracker) == 2, "the servers' return")


def test_a_server_is_killed_in_the_middle(
    boards: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no server of key 'other'.*'board'"):
        autotune(model(), (torch.zeros(5, 48),), device=boards.url.replace("board", "other"))

    races: list[str] = []
    before: list[str] = []
    timed = remote.RemoteBench._timed

    def counted(self: remote.RemoteBench, streams: Any) -> list[float]:
        races.append(self.name)
        if len(races) == 5:
            before.extend(database(tmp_path).read_text().splitlines())
            end(boards.servers[0])
        return timed(self, streams)

    monkeypatch.setattr(remote.RemoteBench, "_timed", counted)
    torch.manual_seed(0)
    net, x = model(), torch.zeros(5, 48)
    report = autotune(net, (x,), device=boards.url, trials=16)
    assert len(set(races)) == 2  # both worked
    assert any("was lost" in note and "1 left" in note for note in report.notes)
    assert all(call.decided and call.gain >= 1.0 for call in report.calls)
    assert before
    assert set(before) <= set(database(tmp_path).read_text().splitlines())

    wait_for(lambda: waiting(boards.tracker) == 1, "the other server's return")
    races.clear()
    again = autotune(net, (x,), device=boards.url, trials=16)
    assert (again.trials, races) == (0, [])
    assert [call.tuned for call in again.calls] == [call.tuned for call in report.calls]
    keys = {record.key.device for record in Timings(database(tmp_path)).all_trials(report.device, 1)}
    assert keys == {report.device}
    assert report.device.startswith("rpc board: ")


def database(folder: Path) -> Path:
    (found,) = folder.glob("*.jsonl")
    return found


def test_without_a_tracker_it_says_how_to_start_one() -> None:
    with pytest.raises(InputError, match=r"no RPC tracker answers at 127.0.0.1.*rpc_tracker"):
        autotune(model(), (torch.zeros(5, 48),), device=f"rpc://127.0.0.1:{free_port()}/board")


@pytest.mark.parametrize(
    "url", ["rpc://", "rpc://host/key", "rpc://host:1", "rpc://host:x/key", "rpc://host:1/key?cores=2"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Remote.parse(url)


def test_an_address_is_read() -> None:
    found = Remote.parse("rpc://tracker.local:9190/pi?cpu=cortex-a76&triple=aarch64-linux-gnu")
    assert found == Remote("tracker.local", 9190, "pi", "cortex-a76", "aarch64-linux-gnu")
    assert str(found) == "rpc://tracker.local:9190/pi"


def test_a_device_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.05)
    with pytest.raises(BenchLostError, match="no answer"):
        remote.answered(lambda: time.sleep(1), "board 1")
    with pytest.raises(BenchLostError, match="broken pipe"):
        remote.answered(lambda: (_ for _ in ()).throw(OSError("broken pipe")), "board 1")
    assert remote.answered(lambda: 3, "board 1") == 3
