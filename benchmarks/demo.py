"""Prune a model, compile it, check it and time it: `python -m benchmarks.demo`, or `make demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.machine import Machine
from benchmarks.prune import PATTERNS, prune
from benchmarks.rivals import eager
from benchmarks.row import difference
from benchmarks.workloads import WORKLOADS
from sparsecomp import compile_sparse
from sparsecomp.alternate import alternate


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    model, inputs = WORKLOADS[options.model].make(small=options.small)
    layers = prune(model, options.pattern, options.sparsity)
    zeros = f"{options.pattern} {options.sparsity:.0%}"
    print(f"{options.model} with random weights, {len(layers)} layers pruned: {zeros}")

    compiled = compile_sparse(model, example_kwargs=inputs, threads=options.threads)
    print(compiled.report)

    runs = {"eager": eager(model, inputs), "compiled": eager(compiled, inputs)}
    error = difference(runs["compiled"](), runs["eager"]())
    print(f"\nmax|y - y0| / max|y0| against the original model: {error:.1e}")
    totals = compiled.report.totals
    before, after = (totals[key] / 2**20 for key in ("dense_bytes", "bytes"))
    print(f"weights of its layers: {before:.1f} MiB before, {after:.1f} MiB after")
    times = alternate(runs, options.rounds)
    for name, found in times.items():
        print(f"{name}: {found.median * 1e3:.2f} ms, median of {found.rounds} alternating rounds")
    plural = "s" * (options.threads > 1)
    speedup = times["eager"].median / times["compiled"].median
    print(f"{speedup:.2f} times as fast, with {options.threads} thread{plural} on {Machine.here()}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--model", choices=WORKLOADS, default="bert-base")
    parser.add_argument("--pattern", choices=PATTERNS, default="unstructured")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="a small variant of the model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
