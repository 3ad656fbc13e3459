"""python -m benchmarks.gpu: what a GPU gains, against PyTorch and torch.compile with max-autotune, in one run.

It needs an NVIDIA GPU, and says so where there is none. Results go to `benchmarks/results/gpu.json` and `gpu.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

import sparsecomp
from benchmarks.store import RESULTS, write, write_json

ROUNDS = 30


@dataclass(frozen=True)
class Workload:
    """A layer, or layers in a row, with random weights."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    """Rows and columns of each weight."""
    tokens: int
    dtype: torch.dtype
    zeros: float
    block: int = 1
    must: float = 1.0

    def model(self) -> nn.Module:
        layers = [nn.Linear(columns, rows, bias=False) for rows, columns in self.shapes]
        for layer in layers:
            layer.weight.data *= _mask(layer.weight, self.zeros, self.block)
        return nn.Sequential(*layers).to("cuda", self.dtype).eval()

    def example(self) -> Tensor:
        return torch.randn(self.tokens, self.shapes[0][1], dtype=self.dtype, device="cuda")


@dataclass(frozen=True)
class Row:
    workload: str
    must: float
    eager_ms: float
    compiled_ms: float
    """torch.compile, mode max-autotune."""
    sparse_ms: float
    error: float
    kernels: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """Against the best of PyTorch."""
        return min(self.eager_ms, self.compiled_ms) / self.sparse_ms


def workloads() -> Iterator[Workload]:
    half, square = torch.bfloat16, (4096, 4096)
    for zeros, must in ((0.6, 1.4), (0.8, 2.2)):
        for shape in (square, (11008, 4096)):
            for tokens in (1, 8):
                name = f"{shape[0]}x{shape[1]} bf16, batch {tokens}, {zeros:.0%} unstructured"
                yield Workload(name, (shape,), tokens, half, zeros, must=must)
    for zeros, must in ((0.8, 2.0), (0.9, 4.0)):
        name = f"4096x4096x4096 bf16, 64x64 blocks, {zeros:.0%}"
        yield Workload(name, (square,), 4096, half, zeros, 64, must)
    yield Workload("4096x4096x4096 fp32, 90% unstructured", (square,), 4096, torch.float32, 0.9, must=2.0)
    # The products of a Llama decoder's layer without attention: query and output, gate and up, down.
    layer = (square, square, (11008, 4096), (4096, 11008))
    yield Workload(
        "8 decoder layers of 4096 (products), bf16, one token, 70%", layer * 8, 1, half, 0.7, must=1.6
    )


def _mask(weight: Tensor, zeros: float, block: int) -> Tensor:
    rows, columns = weight.shape
    kept = torch.rand(-(-rows // block), -(-columns // block)) >= zeros
    return kept.repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]


def measure(workload: Workload) -> Row:
    """All three in turn, as CUDA graphs where they can be recorded: the time of the GPU, not of Python."""
    torch._dynamo.reset()
    model, x = workload.model(), workload.example()
    with torch.no_grad():
        sparse = sparsecomp.compile_sparse(model, (x,), target="cuda")
        rival = torch.compile(model, mode="max-autotune-no-cudagraphs")
        expected = model(x).float()
        error = float((sparse(x).float() - expected).abs().max() / expected.abs().max())
        runs = [_recorded(lambda f=f: f(x)) for f in (model, rival, sparse)]  # type: ignore[misc]
        eager, compiled, ours = _in_turn(runs)
    kernels = tuple(dict.fromkeys(layer.chosen for layer in sparse.report.layers))
    return Row(workload.name, workload.must, eager, compiled, ours, error, kernels)


def _recorded(run: Callable[[], object]) -> Callable[[], None]:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _in_turn(runs: list[Callable[[], None]]) -> list[float]:
    """Milliseconds of the fastest run of each; what the cache holds is overwritten before every run."""
    best = [float("inf")] * len(runs)
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    for _ in range(ROUNDS):
        for number, run in enumerate(runs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            flush.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
            best[number] = min(best[number], start.elapsed_time(end))
    return best


def report(rows: list[Row], machine: str) -> str:
    lines = [
        "# On a GPU",
        "",
        f"{machine}. `python -m benchmarks.gpu`; milliseconds of the fastest of {ROUNDS} runs in turn, as CUDA graphs; the",
        "L2 cache is overwritten before each. fp32 without TF32. The speed-up is that over the best of PyTorch.",
        "",
        "| workload | eager | torch.compile | sparsecomp | speed-up | must | error | runs as |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = f"{row.eager_ms:.4f} | {row.compiled_ms:.4f} | {row.sparse_ms:.4f}"
        lines.append(
            f"| {row.workload} | {times} | {row.speedup:.2f}x | {row.must:.1f}x | {row.error:.1e} "
            f"| {', '.join(row.kernels)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    only = parser.parse_args().only
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here: nothing was measured.", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    rows = []
    for workload in workloads():
        if only in workload.name:
            rows.append(measure(workload))
            print(f"{rows[-1].workload}: {rows[-1].speedup:.2f}x", flush=True)
    machine = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    text = report(rows, machine)
    print(text)
    if not only:
        content = [asdict(row) | {"speedup": row.speedup} for row in rows]
        write_json(RESULTS / "gpu.json", {"machine": machine, "rows": content})
        write(RESULTS / "gpu.md", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
