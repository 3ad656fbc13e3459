"""Run a compiled model over many inputs on the machines of a Ray cluster:

    python examples/batch_inference.py model.sparsecomp inputs.safetensors outputs.safetensors

The first file is what `SparseModule.save` wrote, the second holds one tensor `input`, items first; the third gets one tensor
`output`. Each worker loads the model once and takes the next batch whenever it is done with one; a worker that is lost is
started again, and its batch with it. Without `--address` Ray starts on this machine; on a cluster the model must lie
where all machines see it, and `--trust` lets them run the native code that this one wrote (without it they make
kernels of their own, which takes a while).

Install with `pip install 'sparsecomp[ray]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util import ActorPool
from safetensors.torch import load_file, save_file
from torch import Tensor

import sparsecomp


class Worker:
    """A module in a process of its own."""

    def __init__(self, path: Path, threads: int, trust: bool) -> None:
        torch.set_num_threads(threads)
        self.model = sparsecomp.load(path, trust=trust)

    def run(self, batch: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = self.model(batch)
        return output


def outputs_of(
    path: Path, batches: Sequence[Tensor], workers: int, threads: int, trust: bool = False
) -> Iterator[Tensor]:
    """The outputs in the order of the batches."""
    remote: Any = ray.remote(Worker).options(num_cpus=threads, max_restarts=-1, max_task_retries=3)
    pool = ActorPool([remote.remote(path.resolve(), threads, trust) for _ in range(workers)])
    yield from pool.map(lambda worker, batch: worker.run.remote(batch), batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--address", default="local", help="of a cluster; 'auto': that of this machine")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--trust", action="store_true", help="run native code that another machine wrote")
    options = parser.parse_args()
    ray.init(address=options.address, include_dashboard=False)
    batches = load_file(options.inputs)["input"].split(options.batch)  # type: ignore[no-untyped-call]
    found = outputs_of(options.model, batches, options.workers, options.threads, options.trust)
    save_file({"output": torch.cat(list(found))}, options.outputs)


if __name__ == "__main__":
    main()
