"""Plans for a speed-up: `python -m benchmarks.sparsify`; `--help` lists the options.

The weights are random, so only speed means anything: what was predicted, what was measured, how long the planning took
and how much memory. Each plan is made in a process of its own; `--minutes` interrupts it, and the next run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import ROOT
from benchmarks.machine import Machine
from benchmarks.prune import prunable
from benchmarks.store import RESULTS, write, write_json
from benchmarks.workloads import WORKLOADS
from sparsecomp import InputError, sparsify
from sparsecomp.cache import cache_folder
from sparsecomp.pruning.layers import prunable_layers

MODELS = ("bert-base", "resnet-50")
SPEEDUPS = (2.0, 3.0)
WITHIN, SPEED_WITHIN = 0.10, 0.05
"""What prediction and target must be within, of the measured."""
MINUTES, GIB = 10, 8
"""That a plan may take."""


def main() -> None:
    options = parse(sys.argv[1:])
    if options.one:
        one(options)
        return
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for model in options.models:
        for speedup in options.speedups:
            row = ask(model, speedup, options, rows.get(_name(model, speedup, options), {}))
            rows[_name(model, speedup, options)] = row
            write_json(options.out, {"rows": rows})
            write(options.out.with_suffix(".md"), markdown(rows))
            print(f"{model} {speedup:g}x: {row.get('failure') or row}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsify", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=MODELS)
    parser.add_argument("--speedups", nargs="+", type=float, default=SPEEDUPS)
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--small", action="store_true", help="small models: does it work?")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="interrupt a plan after so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "sparsify.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _name(model: str, speedup: float, options: argparse.Namespace) -> str:
    return f"{'small ' * options.small}{model}, {speedup:g}x, {options.threads} threads"


def ask(model: str, speedup: float, options: argparse.Namespace, before: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one plan; of an interrupted one, how long it has taken so far."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.sparsify", "--one", "--models", model]
        command += ["--speedups", str(speedup), "--threads", str(options.threads), "--out", str(out)]
        start = time.perf_counter()
        child = subprocess.Popen([*command, *["--small"] * options.small], cwd=ROOT)
        try:
            child.wait(options.minutes * 60)
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
        spent = time.perf_counter() - start
        earlier = before if before.get("failure") == "interrupted" else {}
        row = json.loads(out.read_text()) if out.exists() else {"failure": "interrupted"}
        return row | {
            "seconds": spent + float(earlier.get("seconds", 0.0)),
            "turns": 1 + int(earlier.get("turns", 0)),
        }


def one(options: argparse.Namespace) -> None:
    """Make one plan in this process and write its row."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    (name,), (speedup,) = options.models, options.speedups
    model, inputs = WORKLOADS[name].make(small=options.small)
    kept = {layer for layer, _ in prunable(model)}
    skip = [layer for layer in prunable_layers(model) if layer not in kept]
    row: dict[str, Any] = {"machine": str(Machine.here())}
    try:
        resume = cache_folder() / "plans" / f"benchmark {_name(name, speedup, options)}"
        plan = sparsify(
            model, None, target_speedup=speedup, example_kwargs=inputs, skip=skip, resume=resume, verbose=True
        )
    except InputError as error:
        row |= {"failure": str(error)}
    else:
        data = plan.as_dict()
        row |= {"totals": data["totals"], "notes": data["notes"]}
        plan.save(options.out.with_name("plan.json"))
    row |= {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    write_json(options.out, row)


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, and what each row is to reach."""
    names = (
        "plan",
        "zeros",
        "dense ms",
        "predicted ms",
        "measured ms",
        "off",
        "speed-up",
        "over eager",
        "minutes",
        "GiB",
    )
    lines = [f"# Plans for a speed-up\n\n{_about(rows)}\n", _line(names), _line(["---"] * len(names))]
    for name, row in rows.items():
        if "totals" not in row:
            lines.append(_line([name, row["failure"]]))
            continue
        totals = row["totals"]
        off = totals["predicted_seconds"] / totals["measured_seconds"] - 1
        ms = (
            f"{totals[key] * 1e3:.2f}" for key in ("dense_seconds", "predicted_seconds", "measured_seconds")
        )
        speeds = (f"{totals['speedup']:.2f}", f"{totals['eager_speedup']:.2f}")
        spent = f"{row['seconds'] / 60:.1f} in {row['turns']}"
        lines.append(
            _line(
                [
                    name,
                    f"{totals['sparsity']:.1%}",
                    *ms,
                    f"{off:+.1%}",
                    *speeds,
                    spent,
                    f"{row['peak_gib']:.1f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _about(rows: Mapping[str, Mapping[str, Any]]) -> str:
    machines = "; ".join(dict.fromkeys(str(row["machine"]) for row in rows.values() if "machine" in row))
    return (
        f"Random weights, batch 1: only speed means anything. Dense is the model compiled by this library, over which the "
        f"speed-up is. The prediction was made before the plan was measured, from layers timed alone, two whole models, dense and "
        f"uniformly sparse, and plans tried before it; off is "
        f"how far it is from the measured, to be within {WITHIN:.0%}; the speed-up is to be within "
        f"{SPEED_WITHIN:.0%} of what was asked for, in {MINUTES} minutes and {GIB} GiB. Minutes are of planning, from an empty "
        f"cache unless another row of the model was made before, with the number of turns it was interrupted and resumed in. {machines}."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
