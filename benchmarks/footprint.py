"""What compiled models take of memory, beside the same models eager: `python -m benchmarks.footprint`.

Of each model, pruned to 90 % unstructured: the weights of converted layers that have zeros against the dense
ones; the peak of resident memory while it is called, compiled and eager, each in a process of its own; and how
much a small variant grows over many calls. `memory.py` says what exactly is read, and when. Results are written after each
model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.child import ChildError, ask
from benchmarks.machine import Machine
from benchmarks.memory import BATCHES, STATUS, Growth, Question, Usage
from benchmarks.row import now
from benchmarks.store import RESULTS, write_json
from benchmarks.table import wide_console
from benchmarks.workloads import WORKLOADS

MIB = 1 << 20
LEGEND = (
    "MiB. Weights: of converted layers that have zeros. Model and call: the peak while it is called, over the same process with "
    "its libraries alone. Call: the same peak over what the model held after an earlier call. Growth: of a small "
    "variant, compiled, over {calls} calls with batches of {batches} in turn."
)


@dataclass(frozen=True)
class Footprint:
    """One model."""

    model: str
    pattern: str
    sparsity: float
    small: bool
    eager: Usage
    compiled: Usage
    growth: Growth

    @property
    def weights(self) -> float:
        """Share of the bytes that the converted layers took before; 1 where none is converted."""
        return self.compiled.weights / self.compiled.dense_weights if self.compiled.dense_weights else 1.0

    @property
    def model_and_call(self) -> float:
        """Share of eager's peak, libraries apart."""
        return self.compiled.model_and_call / max(1, self.eager.model_and_call)

    @property
    def call(self) -> float:
        """Share of what a call takes in eager."""
        return self.compiled.call / max(1, self.eager.call)

    def as_dict(self) -> dict[str, Any]:
        ratios = {name: getattr(self, name) for name in ("weights", "model_and_call", "call")}
        return dataclasses.asdict(self) | {"of_eager": ratios}


def main() -> None:
    if not STATUS.exists():
        sys.exit("resident memory is read from /proc: this needs Linux")
    options = parse(sys.argv[1:])
    console, machine = wide_console(), Machine.here()
    found: list[Footprint] = []
    for model in options.models:
        try:
            found.append(measure(model, options))
        except ChildError as error:
            console.print(f"{model}: {error}", markup=False)
            continue
        save(found, machine, options)
        console.print(f"{model}: weights {found[-1].weights:.0%}, peak {found[-1].model_and_call:.0%}")
    console.print(table(found, f"{options.threads} thread{'s' * (options.threads > 1)} on {machine}"))
    console.print(LEGEND.format(calls=options.calls, batches=", ".join(map(str, BATCHES))))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.footprint", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=["bert-base", "resnet-50"])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, help="over which growth is measured; default: 10,000")
    parser.add_argument("--quick", action="store_true", help="small models and 100 calls: does it work?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.calls = options.calls or (100 if options.quick else 10_000)
    options.out = options.out or RESULTS / ("footprint-quick.json" if options.quick else "footprint.json")
    return options


def measure(model: str, options: argparse.Namespace) -> Footprint:
    """Ask three processes."""
    question = Question(model, "unstructured", options.sparsity, options.threads, small=options.quick)
    asked = {
        "eager": dataclasses.replace(question, compiled=False),
        "compiled": question,
        "growth": dataclasses.replace(question, small=True, calls=options.calls),
    }
    answers = {
        name: ask("benchmarks.memory", dataclasses.asdict(one), options.threads)
        for name, one in asked.items()
    }
    return Footprint(
        model,
        question.pattern,
        question.sparsity,
        question.small,
        Usage(**answers["eager"]),
        Usage(**answers["compiled"]),
        Growth(**answers["growth"]),
    )


def table(found: Sequence[Footprint], title: str) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("model")
    pairs = ("weights", "model and call", "call")
    for name in (*(f"{pair}{of}" for pair in pairs for of in (", eager", ", compiled", "")), "growth"):
        made.add_column(name, justify="right")
    for one in found:
        name = f"{one.model}{' (small)' * one.small}, {one.pattern} {one.sparsity:.0%}"
        eager, compiled = one.eager, one.compiled
        made.add_row(
            *(name, *_sizes(compiled.dense_weights, compiled.weights), f"{one.weights:.0%}"),
            *(*_sizes(eager.model_and_call, compiled.model_and_call), f"{one.model_and_call:.0%}"),
            *(*_sizes(eager.call, compiled.call), f"{one.call:.0%}"),
            *_sizes(one.growth.bytes),
        )
    return made


def _sizes(*sizes: int) -> list[str]:
    return [f"{size / MIB:.1f}" for size in sizes]


def save(found: Sequence[Footprint], machine: Machine, options: argparse.Namespace) -> None:
    models = [one.as_dict() for one in found]
    content = {"machine": dataclasses.asdict(machine), "date": now(), "threads": options.threads}
    write_json(options.out, content | {"models": models})


if __name__ == "__main__":
    main()
