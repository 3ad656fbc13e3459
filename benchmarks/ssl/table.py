"""Rows of `python -m benchmarks.ssl` -> tables beside the paper's, and what must be reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.ssl.paper import PAPER
from benchmarks.ssl.row import CONTESTANTS, Row

Rows = Sequence[Row]


@dataclass(frozen=True)
class Must:
    """A bound on the mean over the seeds."""

    text: str
    value: Callable[[Row], float]
    least: Callable[[Rows], float]
    unit: str = "%"

    def verdict(self, rows: Rows) -> str:
        mean, deviation = spread([self.value(row) for row in rows])
        least = self.least(rows)
        ok = "reached" if mean >= least else "NOT REACHED"
        return f"{self.text}: {mean:.1f} {self.unit} ± {deviation:.1f}, at least {least:.1f}: {ok}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; that of one value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _rows_gone(layer: str) -> Callable[[Row], float]:
    return lambda row: 100 * (1 - row.left[layer].rows[0] / row.left[layer].rows[1])


def _flops_gone(layer: str) -> Callable[[Row], float]:
    return lambda row: 100 * (1 - row.left[layer].flops)


def _layers_gone(row: Row) -> float:
    assert row.living_layers is not None
    return 100 * (1 - row.living_layers[0] / row.living_layers[1])


def _at_least(bound: float) -> Callable[[Rows], float]:
    return lambda rows: bound


def _accuracy(lost: Callable[[Rows], float]) -> Must:
    """The change of accuracy is at least minus what may be lost."""
    return Must("accuracy, sparse less dense", lambda row: -row.loss, lambda rows: -lost(rows), "points")


MUSTS = {
    "lenet": (
        Must("filters of conv1 gone", _rows_gone("conv1"), _at_least(75)),
        Must("FLOPs of conv2 gone", _flops_gone("conv2"), _at_least(85)),
        _accuracy(_at_least(0.3)),
    ),
    "lenet-shapes": (),
    "mlp": (
        *(
            Must(f"FLOPs of {layer} gone", _flops_gone(layer), _at_least(65))
            for layer in ("fc1", "fc2", "fc3")
        ),
        Must(
            "dead pixels",
            lambda row: row.left["fc1"].inputs[1] - row.left["fc1"].inputs[0],
            _at_least(1),
            "of 64",
        ),
        _accuracy(lambda rows: spread([row.dense_accuracy for row in rows])[1]),
    ),
    "resnet-coupled": (),
    "resnet": (Must("layers gone", _layers_gone, _at_least(100 / 3)), _accuracy(_at_least(0.5))),
}


def summary(name: str, rows: Rows) -> str:
    """Of one network: the paper's table, ours, the musts."""
    lines = [f"## {name}, {len(rows)} seeds", "", *_markdown(PAPER[name]), "", *_markdown(_ours(rows)), ""]
    lines += [*_markdown(_by_layer(rows)), ""]
    lines += [f"- {must.verdict(rows)}" for must in MUSTS[name]]
    return "\n".join([*lines, ""])


def _ours(rows: Rows) -> Iterator[tuple[str, ...]]:
    """A line per seed and their mean."""
    layers = list(rows[0].left)
    counted = (
        ("layers",)
        if rows[0].living_layers
        else ("outputs", "inputs", "columns", "FLOPs of layers", "speed-up of layers")
    )
    yield (
        *("digits", "dense error", "SSL error", *counted),
        *("FLOPs", "1/FLOPs", "over compiled dense", "over eager dense", "training"),
    )
    for row in rows:
        yield (
            f"seed {row.seed}",
            f"{100 - row.dense_accuracy:.2f} %",
            f"{100 - row.sparse_accuracy:.2f} %",
            *_counted(row, layers),
            f"{row.flops:.1%}",
            f"{1 / row.flops:.1f}x",
            f"{row.over(CONTESTANTS[1]):.2f}x",
            f"{row.over(CONTESTANTS[0]):.2f}x",
            f"{row.training_seconds:.0f} s",
        )
    yield (
        "mean ± deviation",
        _spread([100 - row.dense_accuracy for row in rows], " %", 2),
        _spread([100 - row.sparse_accuracy for row in rows], " %", 2),
        *_counted_mean(rows, layers),
        _spread([100 * row.flops for row in rows], " %"),
        _spread([1 / row.flops for row in rows], "x"),
        _spread([row.over(CONTESTANTS[1]) for row in rows], "x", 2),
        _spread([row.over(CONTESTANTS[0]) for row in rows], "x", 2),
        "",
    )


def _counted(row: Row, layers: Sequence[str]) -> Iterator[str]:
    if row.living_layers:
        yield f"{row.living_layers[0]} of {row.living_layers[1]}"
        return
    for part in ("rows", "inputs", "columns"):
        yield "-".join(str(getattr(row.left[layer], part)[0]) for layer in layers)
    yield "-".join(f"{100 * row.left[layer].flops:.1f}" for layer in layers) + " %"
    yield "-".join(_gain([row], layer) for layer in layers)


def _counted_mean(rows: Rows, layers: Sequence[str]) -> Iterator[str]:
    if rows[0].living_layers:
        yield _spread([row.living_layers[0] for row in rows if row.living_layers], "")
        return
    for part in ("rows", "inputs", "columns"):
        yield "-".join(f"{spread([getattr(row.left[n], part)[0] for row in rows])[0]:.0f}" for n in layers)
    yield "-".join(f"{spread([100 * row.left[n].flops for row in rows])[0]:.1f}" for n in layers) + " %"
    yield "-".join(_gain(rows, layer) for layer in layers)


def _gain(rows: Rows, layer: str) -> str:
    """The mean over the networks in which something is left of the layer."""
    gains = [gain for row in rows if (gain := row.layer_gain(layer)) is not None]
    return f"{statistics.mean(gains):.2f}" if gains else "gone"


def _by_layer(rows: Rows) -> Iterator[tuple[str, ...]]:
    """A line per layer, over all seeds: what is left, and what that gains within the network."""
    yield "layer", "FLOPs", "1/FLOPs", "dense", "sparse", "speed-up", "gone"
    for layer in rows[0].left:
        living = [row for row in rows if row.layer_gain(layer) is not None]
        dense, sparse = (
            statistics.mean(1e6 * row.layer_seconds[layer][which] for row in rows) for which in (0, 1)
        )
        ideal = [1 / row.left[layer].flops for row in living if row.left[layer].flops]
        yield (
            layer,
            _spread([100 * row.left[layer].flops for row in rows], " %"),
            _spread(ideal, "x") if ideal else "",
            f"{dense:.0f} us",
            f"{sparse:.0f} us",
            _spread([row.layer_gain(layer) or 0.0 for row in living], "x", 2) if living else "",
            f"{len(rows) - len(living)} of {len(rows)}",
        )


def _spread(values: Sequence[float], unit: str, digits: int = 1) -> str:
    mean, deviation = spread(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}{unit}"


def _markdown(table: Sequence[tuple[str, ...]] | Iterator[tuple[str, ...]]) -> Iterator[str]:
    header, *lines = table
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def show(name: str, rows: Rows, console: Console) -> None:
    """On the terminal."""
    ours = (f"{name}, ours", tuple(_ours(rows))), (f"{name}, layer by layer", tuple(_by_layer(rows)))
    for heading, lines in ((f"the paper's {name}", PAPER[name]), *ours):
        table = Table(*lines[0], title=heading, title_justify="left")
        for line in lines[1:]:
            table.add_row(*line)
        console.print(table)
    for must in MUSTS[name]:
        console.print(f"  {must.verdict(rows)}", markup=False, highlight=False)
