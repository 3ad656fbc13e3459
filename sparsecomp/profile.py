"""Where the time of one compiled call goes: per kernel, per region, per operator of PyTorch, and the rest."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx

from sparsecomp.primitives import REGION, Runner
from sparsecomp.program import operator_name

ROUNDS = 7


@dataclass(frozen=True)
class CallProfile:
    """One kernel of a region."""

    label: str
    """The layer's name, or what is done between layers."""
    what: str
    """The call as the region prints it."""
    seconds: float


@dataclass(frozen=True)
class RegionProfile:
    """One region: the time of the whole, and of each of its kernels, called in order."""

    name: str
    seconds: float
    calls: tuple[CallProfile, ...]


@dataclass(frozen=True)
class Profile:
    """Median times over several calls, in seconds. `print` it, or ask for `as_dict()`."""

    seconds: float
    """Of the whole call, from Python."""
    threads: int
    regions: tuple[RegionProfile, ...]
    operators: tuple[tuple[str, float], ...]
    """Operators left to PyTorch, with all that it takes to call them: (name, seconds)."""
    order: tuple[str, ...] = ()
    """Names of regions and operators as they follow each other."""

    @property
    def kernels(self) -> float:
        """Of all kernels of all regions."""
        return sum(call.seconds for region in self.regions for call in region.calls)

    @property
    def glue(self) -> float:
        """What is neither a kernel nor an operator of PyTorch: Python, checks, allocation. Not below zero,
        which the noise of the parts could make it."""
        pytorch = sum(seconds for _, seconds in self.operators)
        return max(0.0, self.seconds - self.kernels - pytorch)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ms": self.seconds * 1e3,
            "kernels_ms": self.kernels * 1e3,
            "pytorch_ms": sum(seconds for _, seconds in self.operators) * 1e3,
            "glue_ms": self.glue * 1e3,
            "threads": self.threads,
            "regions": [
                {
                    "name": region.name,
                    "ms": region.seconds * 1e3,
                    "calls": [
                        {"label": call.label, "what": call.what, "ms": call.seconds * 1e3}
                        for call in region.calls
                    ],
                }
                for region in self.regions
            ],
            "operators": [{"name": name, "ms": seconds * 1e3} for name, seconds in self.operators],
            "order": list(self.order),
        }

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=160, color_system=None, highlight=False, markup=False)
        parts = (
            ("kernels", self.kernels),
            ("operators of PyTorch", sum(s for _, s in self.operators)),
            ("rest", self.glue),
        )
        shares = ", ".join(f"{name} {s * 1e3:.3f} ({s / self.seconds:.0%})" for name, s in parts)
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        console.print(f"{self.seconds * 1e3:.3f} ms a call, {threads}; of it {shares}")
        table = Table(box=None, pad_edge=False, show_edge=False)
        for column in ("where", "what", "ms", "share"):
            table.add_column(column, justify="right" if column in ("ms", "share") else "left")
        for region in self.regions:
            for call in region.calls:
                self._row(table, region.name, call.label, call.seconds)
            self._row(table, region.name, "the whole region", region.seconds)
        for name, seconds in self.operators:
            self._row(table, "PyTorch", name, seconds)
        console.print(table)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _row(self, table: Table, where: str, what: str, seconds: float) -> None:
        table.add_row(where, what, f"{seconds * 1e3:.3f}", f"{seconds / self.seconds:.1%}")


class _Timed(fx.Interpreter):
    """Runs a graph, and keeps how long each operator took. Regions are timed kernel by kernel as well."""

    def __init__(self, graph: fx.GraphModule, runners: Mapping[str, Runner]) -> None:
        super().__init__(graph)
        self.runners = runners
        self.operators: dict[str, float] = {}
        self.regions: dict[str, tuple[float, list[float]]] = {}
        self.order: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        start = time.perf_counter()
        result = super().run_node(n)
        seconds = time.perf_counter() - start
        if n.target is REGION:
            inputs, name = self.fetch_args_kwargs_from_env(n)[0]
            self.regions[str(name)] = seconds, self.runners[str(name)].call_seconds(inputs)
            self.order.append(_short(str(name)))
        elif isinstance(n.target, torch._ops.OpOverload):
            operator = f"{operator_name(n)} ({n.name})"
            self.operators[operator] = seconds
            self.order.append(operator)
        return result


def profile_graph(
    graph: fx.GraphModule,
    runners: Mapping[str, Runner],
    inputs: Sequence[Tensor],
    call: Callable[[], object],
    rounds: int = ROUNDS,
) -> Profile:
    """`call` is the compiled call from the user's side; the graph gets its input tensors."""
    whole, timed = [], []
    with torch.no_grad():
        call()
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            whole.append(time.perf_counter() - start)
            interpreter = _Timed(graph, runners)
            interpreter.run(*inputs)
            timed.append(interpreter)
    regions = []
    for name in timed[0].regions:
        columns = zip(*(one.regions[name][1] for one in timed), strict=True)
        seconds = [statistics.median(column) for column in columns]
        calls = tuple(
            CallProfile(label, what, s)
            for (label, what), s in zip(runners[name].labels, seconds, strict=True)
        )
        whole_region = statistics.median(one.regions[name][0] for one in timed)
        regions.append(RegionProfile(_short(name), whole_region, calls))
    operators = tuple(
        (name, statistics.median(one.operators[name] for one in timed)) for name in timed[0].operators
    )
    order = tuple(timed[0].order)
    return Profile(statistics.median(whole), torch.get_num_threads(), tuple(regions), operators, order)


def _short(region: str) -> str:
    """As reports name it."""
    return region.rpartition("/")[2]
