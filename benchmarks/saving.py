"""What a saved model takes on disk, and how long it takes to load: `python -m benchmarks.saving`.

Loading is timed in a process of its own, the import of PyTorch and TVM apart: the first time, and the median of more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import child
from benchmarks.prune import PATTERNS, prune
from benchmarks.table import wide_console
from benchmarks.workloads import WORKLOADS
from sparsecomp import codegen, compile_sparse, load
from sparsecomp.target import Target

MB, ROUNDS = 1e6, 5


@dataclass(frozen=True)
class Saved:
    """Sizes in bytes, times in seconds."""

    model: str
    eager: int
    """Parameters and buffers of the model."""
    packed: int
    """What the module holds: its packed weights, and what is not packed."""
    file: int
    save: float
    first_load: float
    """In a new process."""
    load: float
    same: bool
    """Whether the outputs are the same to the last bit."""


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    table = Table(
        "model", "eager MB", "packed MB", "file MB", "save s", "first load s", "load s", "same bits"
    )
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, options.pattern, options.sparsity, options.small, Path(folder))
        sizes = (f"{size / MB:.1f}" for size in (found.eager, found.packed, found.file))
        times = (f"{seconds:.2f}" for seconds in (found.save, found.first_load, found.load))
        table.add_row(name, *sizes, *times, "yes" if found.same else "NO")
    wide_console().print(table)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=["bert-base", "resnet-50"])
    parser.add_argument("--pattern", choices=PATTERNS, default="unstructured")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the small variants: does everything run?")
    return parser.parse_args(arguments)


def measure(name: str, pattern: str, sparsity: float, small: bool, folder: Path) -> Saved:
    """Compile, save here, load elsewhere."""
    model, inputs = WORKLOADS[name].make(small=small)
    prune(model, pattern, sparsity)
    # Small models do not gain.
    compiled = compile_sparse(model, (), inputs, min_speedup=0.0 if small else 1.0)
    path, expected = folder / "model.sparsecomp", tensors(compiled(**inputs))
    start = time.perf_counter()
    compiled.save(path)
    seconds = time.perf_counter() - start
    torch.save((inputs, expected), folder / "call.pt")
    answer = child.ask(
        "benchmarks.saving", {"path": str(path), "call": str(folder / "call.pt")}, torch.get_num_threads()
    )
    held = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    eager = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    totals = compiled.report.totals
    packed = eager - totals["converted_dense_bytes"] + totals["converted_bytes"]
    return Saved(name, eager, packed, path.stat().st_size, seconds, **answer)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def answer(question: dict[str, str]) -> dict[str, Any]:
    """What the other process finds."""
    codegen.identity(Target())  # imports TVM
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        compiled = load(question["path"])
        seconds.append(time.perf_counter() - start)
    inputs, expected = torch.load(question["call"])
    found = tensors(compiled(**inputs))
    same = len(found) == len(expected) and all(map(torch.equal, found, expected))
    return {"first_load": seconds[0], "load": statistics.median(seconds[1:]), "same": same}


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        Path(sys.argv[2]).write_text(json.dumps(answer(json.loads(sys.argv[1]))))
    else:
        main()
