"""What Wanda gains over magnitude on a small language model: `python -m benchmarks.wanda_groups`.

Two things tell them apart. Wanda weighs a weight by the norm of its input, and it compares weights within a row of the
layer, where magnitude compares all of the layer. Here both scores are compared both ways, at 50 % zeros, beside OBS; and
how far the largest norm of an input lies above the middle one, since it is inputs of very large norm, as large
language models have them, that Wanda was made for (Sun et al., "A Simple and Effective Pruning Approach for Large Language
Models", 2023, section 3).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import Machine
from benchmarks.store import RESULTS, write, write_json
from benchmarks.text import ByteTransformer, Text, bits_per_byte, fit_text
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import execution_order, layer_weight, prune_model, set_layer_weight
from sparsecomp.pruning.selection import kept_groups

HALF = Candidate("unstructured", 0.5)
LENGTH = 64
WAYS = tuple((score, group) for group in ("row", "layer") for score in ("magnitude", "wanda"))


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for steps in options.steps:
        for seed in options.seeds:
            key = f"{steps} steps, seed {seed}"
            if key not in rows:
                rows[key] = row(steps, seed)
                write_json(options.out, {"rows": rows, "machine": str(Machine.here())})
                write(options.out.with_suffix(".md"), markdown(rows))
                print(f"{key}: {json.dumps(rows[key])}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wanda_groups", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 1200], help="of training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "wanda_groups.json")
    return parser.parse_args(arguments)


def row(steps: int, seed: int) -> dict[str, Any]:
    """Bits per byte on held-out files, of the dense model and by each way; and the spread of input norms."""
    torch.manual_seed(seed)
    text, model = Text.of_python(), ByteTransformer(width=64, heads=2, depth=2, length=LENGTH)
    fit_text(model, text, steps, LENGTH, seed)
    held_out = text.held_out_windows(256, LENGTH)
    batches = torch.split(text.windows(128, LENGTH, torch.Generator().manual_seed(1000 + seed)), 32)
    names = [name for name in prunable_layers(model) if name != "head"]
    found: dict[str, Any] = {"dense": bits_per_byte(model, held_out)}
    for score, group in WAYS:
        pruned = copy.deepcopy(model)
        prune_by(pruned, names, batches, score, by_row=group == "row")
        found[f"{score} by {group}"] = bits_per_byte(pruned, held_out)
    pruned = copy.deepcopy(model)
    prune_model(pruned, dict.fromkeys(names, HALF), batches, "obs")
    found["obs"] = bits_per_byte(pruned, held_out)
    norms = [own.norms[0] for own in collect(model, batches, names).values()]
    spreads = [float(norm.max() / norm.median()) for norm in norms]
    return found | {"spread": [statistics.median(spreads), max(spreads)]}


def prune_by(
    model: nn.Module, names: Sequence[str], batches: Sequence[Tensor], score: str, *, by_row: bool
) -> None:
    """In place, layer by layer, each on the activations of those pruned before it."""
    weights = prunable_layers(model, tuple(names))
    for together in execution_order(model, weights, batches[0]):
        seen = collect(model, batches, together)
        for name in together:
            value = layer_weight(weights[name])
            worth = value.double().square()
            if score == "wanda":
                worth = worth * seen[name].norms[0].square()
            kept = kept_groups(worth, HALF.structure, HALF.sparsity, by_row=by_row)
            set_layer_weight(weights[name], value * kept)


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    ways = ["dense", *(f"{score} by {group}" for score, group in WAYS), "obs"]
    about = (
        "A byte-level transformer of two layers and width 64, all but its head pruned to 50 %: bits per byte on held-out "
        "files. The last column: the largest root mean square of an input over the median of the layer's inputs, in the "
        "layer in the middle and in the layer where it is largest."
    )
    lines = [f"# Wanda's two differences to magnitude\n\n{about}\n", _line(["training", *ways, "spread"])]
    lines.append(_line(["---"] * (len(ways) + 2)))
    for name, row in rows.items():
        spread = "{:.1f}, {:.1f}".format(*row["spread"])
        lines.append(_line([name, *(f"{row[way]:.3f}" for way in ways), spread]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
