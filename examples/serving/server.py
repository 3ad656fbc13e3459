"""Serve a compiled model over HTTP with LitServe: `python examples/serving/server.py model.sparsecomp`.

    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"input": [0.1, 0.2, ...]}'

A request is one item without its batch dimension, and so is the answer. Requests that arrive within a few milliseconds of
each other run as one batch: a compiled module takes any batch size on the graph it has. Each worker is a process with
its own copy of the module, and the machine's cores are divided among them: few workers of several threads answer a
single request soonest, as many workers as cores answer most of them in an hour.

Install with `pip install 'sparsecomp[serve]'`.
"""

import argparse
from pathlib import Path
from typing import Any

import litserve
import torch
from torch import Tensor

import sparsecomp
from sparsecomp.host import usable_cores


class CompiledModel(litserve.LitAPI):  # type: ignore[misc]
    """One worker: a module with one tensor as its input and one as its output."""

    def __init__(self, path: Path, threads: int, trust: bool, **batching: Any) -> None:
        super().__init__(**batching)
        self.path, self.threads, self.trust = path, threads, trust

    def setup(self, device: str) -> None:
        """In the worker's process."""
        torch.set_num_threads(self.threads)
        self.model = sparsecomp.load(self.path, trust=self.trust)

    def decode_request(self, request: dict[str, Any]) -> Tensor:
        return torch.tensor(request["input"], dtype=torch.float32)

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def predict(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y: Tensor = self.model(x)
        return y

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, Any]:
        return {"output": output.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("path", type=Path, help="what SparseModule.save wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--threads", type=int, help="of each worker; default: the cores, divided among the workers"
    )
    parser.add_argument("--batch", type=int, default=8, help="requests that run at once, at most")
    parser.add_argument("--wait", type=float, default=0.005, help="seconds that a request waits for others")
    parser.add_argument("--trust", action="store_true", help="run native code that another machine wrote")
    options = parser.parse_args()
    threads = options.threads or max(1, usable_cores() // options.workers)
    batching = {"max_batch_size": options.batch, "batch_timeout": options.wait}
    model = CompiledModel(options.path, threads, options.trust, **batching)
    server = litserve.LitServer(model, accelerator="cpu", devices=1, workers_per_device=options.workers)
    server.run(host=options.host, port=options.port, generate_client_file=False)


if __name__ == "__main__":
    main()
