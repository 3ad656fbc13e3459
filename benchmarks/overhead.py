"""How much of a compiled call is not its kernels: `python -m benchmarks.overhead`.

The call is timed from Python, each kernel by itself, and each operator that was left to PyTorch; the rest is
Python, checks and allocation. A busy machine interrupts the long call more than the short kernels and makes a
rest of its own: on one thread the share of the time that the call had its core is printed beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import Machine
from benchmarks.prune import PATTERNS, prune
from benchmarks.rivals import eager
from benchmarks.row import now
from benchmarks.store import RESULTS, write_json
from benchmarks.table import wide_console
from benchmarks.workloads import WORKLOADS
from sparsecomp import compile_sparse
from sparsecomp.errors import InputError
from sparsecomp.profile import Profile

IDLE = 0.95
"""Share of its time that a call on one thread has its core, below which the machine was busy."""


@dataclass(frozen=True)
class Overhead:
    """A call taken apart, and how quiet the machine was just then."""

    profile: Profile
    core_share: float
    """Of the wall time of calls, that the calling thread was computing; waiting for other threads is not."""

    @property
    def is_noisy(self) -> bool:
        return self.profile.threads == 1 and self.core_share < IDLE


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    console, machine = wide_console(), Machine.here()
    try:
        found = measure(options)
    except InputError as error:  # PyTorch runs the model: there is nothing to take apart
        sys.exit(str(error))
    profile = found.profile
    asked = {name: getattr(options, name) for name in ("model", "pattern", "sparsity", "small")}
    content = {"machine": dataclasses.asdict(machine), "date": now(), **asked}
    shares = {"rest_share": rest_share(profile), "core_share": found.core_share}
    write_json(options.out, content | shares | {"profile": profile.as_dict()})
    console.print(str(profile), markup=False, highlight=False)
    console.print(f"{options.model}, {options.pattern} {options.sparsity:.0%}: {summary(profile)}")
    if found.is_noisy:
        console.print(f"noisy: the call had its core {found.core_share:.0%} of the time; measure it again")
    console.print(str(machine), markup=False)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--model", choices=WORKLOADS, default="bert-base")
    parser.add_argument("--pattern", choices=PATTERNS, default="unstructured")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a small variant of the model")
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Overhead:
    """Compile the model and take its call apart."""
    model, inputs = WORKLOADS[options.model].make(small=options.small)
    prune(model, options.pattern, options.sparsity)
    compiled = compile_sparse(model, example_kwargs=inputs, threads=options.threads)
    profile = compiled.profile(**inputs)
    return Overhead(profile, core_share(eager(compiled, inputs)))


def core_share(run: Callable[[], object], rounds: int = 7) -> float:
    """The median over several calls of the thread's own time over the wall time."""
    shares = []
    for _ in range(rounds):
        wall, own = time.perf_counter(), time.thread_time()
        run()
        shares.append((time.thread_time() - own) / (time.perf_counter() - wall))
    return statistics.median(shares)


def rest_share(profile: Profile) -> float:
    """Of the whole call: what is no kernel, operators of PyTorch included; below 0 only by noise."""
    return 1 - profile.kernels / profile.seconds


def summary(profile: Profile) -> str:
    """The whole, the sum of its kernels, and the share of the rest, in one line."""
    whole, kernels, rest = (
        1e3 * seconds for seconds in (profile.seconds, profile.kernels, profile.seconds - profile.kernels)
    )
    pytorch = 1e3 * sum(seconds for _, seconds in profile.operators)
    return (
        f"{whole:.3f} ms a call, its kernels {kernels:.3f}, the rest {rest:.3f} ({rest_share(profile):.1%}), "
        f"of which operators of PyTorch {pytorch:.3f}"
    )


if __name__ == "__main__":
    main()
