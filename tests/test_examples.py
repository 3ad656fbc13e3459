"""The examples run as their docstrings say, on workers of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsecomp import compile_sparse
from sparsecomp.compare import TOLERANCE, relative_error
from tests.artifact.nets import Images, pruned

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LIMIT = 90.0
"""Seconds in which a server is up."""
pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> nn.Module:
    return pruned(Images())


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    compiled = compile_sparse(model, (torch.randn(2, 3, 16, 16),), min_speedup=0.0)
    compiled.save(tmp_path / "model.sparsecomp")
    return tmp_path / "model.sparsecomp"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def served(path: Path, log: Path, *options: str) -> Iterator[str]:
    """Its address, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(EXAMPLES / "serving" / "server.py"),
        str(path),
        "--port",
        str(port),
        *options,
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(int(LIMIT * 4)):
            assert server.poll() is None, log.read_text()
            if _healthy(address):
                break
            time.sleep(0.25)
        else:
            pytest.fail(f"the server is not up after {LIMIT} s: {log.read_text()}")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def ask(address: str, x: Tensor) -> Tensor:
    data = json.dumps({"input": x.tolist()}).encode()
    request = urllib.request.Request(f"{address}/predict", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        found: dict[str, Any] = json.load(answer)
    return torch.tensor(found["output"])


def test_a_server_answers_many_at_once(model: nn.Module, saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("litserve", reason="pip install 'sparsecomp[serve]'")
    items = torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        expected = model(items)
    options = ("--workers", "2", "--batch", "4", "--wait", "0.02")
    with served(saved, tmp_path / "log", *options) as address, ThreadPoolExecutor(8) as pool:
        found = torch.stack(list(pool.map(lambda x: ask(address, x), items)))
    assert relative_error(found, expected) < TOLERANCE


def test_many_inputs_run_on_workers_of_ray(model: nn.Module, saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'sparsecomp[ray]'")
    x = torch.randn(70, 3, 16, 16)
    save_file({"input": x}, tmp_path / "in.safetensors")
    files = (str(saved), str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"))
    command = [
        sys.executable,
        str(EXAMPLES / "batch_inference.py"),
        *files,
        "--workers",
        "2",
        "--batch",
        "16",
    ]
    done = subprocess.run(
        command, env=environment(), check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert relative_error(load_file(files[2])["output"], model(x)) < TOLERANCE
