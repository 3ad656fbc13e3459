"""Plans of the same speed on real data: `python -m benchmarks.equal_latency`; `--help` lists the options.

LeNet on the digits is trained, then planned to one measured speed-up in several ways: with every structure, with each structure
alone, and with the same sparsity in every layer. What counts is the loss on images that no plan has seen. One-shot:
nothing is trained after pruning.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import Machine
from benchmarks.ssl.digits import Digits, accuracy
from benchmarks.ssl.nets import lenet
from benchmarks.store import RESULTS, write, write_json
from sparsecomp import InputError, sparsify

EPOCHS, BATCH, RATE = 12, 64, 0.05
CALIBRATION = 512
"""Training images that methods look at."""
EQUAL = 0.1
"""Relative difference up to which measured speed-ups count as equal."""
WAYS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "unstructured": {"structures": ("unstructured",)},
    "4x1": {"structures": ("4x1",)},
    "uniform unstructured": {"structures": ("unstructured",), "allocation": "uniform"},
}


def main() -> None:
    options = parse(sys.argv[1:])
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for seed in range(options.seeds):
        for speedup in options.speedups:
            name = f"{speedup:g}x, seed {seed}"
            if name in rows:
                continue
            start = time.perf_counter()
            rows[name] = row(seed, speedup, options.method)
            write_json(options.out, {"rows": rows, "machine": str(Machine.here()), "method": options.method})
            write(options.out.with_suffix(".md"), markdown(rows, options.method))
            print(f"{name}: {rows[name]} ({time.perf_counter() - start:.0f} s)", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.equal_latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--speedups", nargs="+", type=float, default=(5.0,))
    parser.add_argument("--method", default="obs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "equal_latency.json")
    return parser.parse_args(arguments)


def trained(digits: Digits, seed: int) -> nn.Module:
    """SGD with momentum 0.9, its rate falling to nothing along a cosine."""
    torch.manual_seed(seed)
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * math.ceil(len(digits.train_y) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(digits.train_y)).split(BATCH):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(model(digits.train_x[chosen]), digits.train_y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def loss_on(x: torch.Tensor, y: torch.Tensor) -> Callable[[nn.Module], float]:
    """Mean cross-entropy, nats."""

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return float(F.cross_entropy(model(x), y))

    return loss


def row(seed: int, speedup: float, method: str) -> dict[str, Any]:
    """Way -> speed-up measured, loss and accuracy on the test images."""
    digits = Digits.split(seed, 28)
    model = trained(digits, seed)
    held_out = loss_on(digits.test_x, digits.test_y)
    seen = loss_on(digits.train_x[:CALIBRATION], digits.train_y[:CALIBRATION])
    batches = list(torch.split(digits.train_x[:CALIBRATION], BATCH))
    found: dict[str, Any] = {"dense": _quality(model, held_out, digits)}
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            try:
                plan = sparsify(
                    model,
                    batches,
                    target_speedup=speedup,
                    method=method,
                    sensitivity=seen,
                    resume=folder,
                    **way,
                )
            except InputError as error:
                found[name] = {"failure": str(error)}
                continue
            found[name] = {"speedup": plan.totals.speedup, "sparsity": plan.totals.sparsity}
            found[name] |= _quality(plan.model, held_out, digits)
    return found


def _quality(model: nn.Module, held_out: Callable[[nn.Module], float], digits: Digits) -> dict[str, float]:
    return {"loss": held_out(model), "accuracy": accuracy(model, digits)}


def markdown(rows: Mapping[str, Mapping[str, Any]], method: str) -> str:
    """Losses by row; and how often the mixed plan loses less than each other."""
    about = (
        f"LeNet on digits, one-shot by {method}: loss on 360 held-out images (accuracy; measured speed-up over the dense "
        f"compiled model). The last line: in how many of the rows with speeds within {EQUAL:.0%} the mixed plan loses less."
    )
    lines = [
        f"# Plans of the same speed\n\n{about}\n",
        _line(["plan", "dense", *WAYS]),
        _line(["---"] * (2 + len(WAYS))),
    ]
    lines += [_line([name, *(_cell(row.get(way)) for way in ("dense", *WAYS))]) for name, row in rows.items()]
    better = [_better(rows, way) for way in WAYS if way != "mixed"]
    lines.append(_line(["mixed loses less", "", "", *better]))
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None or "loss" not in found:
        return found["failure"] if found else ""
    speed = f"; {found['speedup']:.2f}x" if "speedup" in found else ""
    return f"{found['loss']:.3f} ({found['accuracy']:.1f} %{speed})"


def _better(rows: Mapping[str, Mapping[str, Any]], way: str) -> str:
    both = [
        (row["mixed"], row[way]) for row in rows.values() if "loss" in row["mixed"] and "loss" in row[way]
    ]
    pairs = [(m["loss"], o["loss"]) for m, o in both if abs(o["speedup"] / m["speedup"] - 1) <= EQUAL]
    return f"{sum(mixed < other for mixed, other in pairs)} of {len(pairs)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
