"""What structured sparsity learning left of a network, counted by hand from its zeros.

A unit (pixel, channel, neuron) is alive where some weight makes it and some weight reads it. A dead one takes
with it the row that makes it and the columns that read it, which may kill others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.ssl.nets import Block, ResNet


@dataclass(frozen=True)
class Left:
    """What is left of a layer, beside all: its filters or neurons, its input channels, and its columns as a
    matrix, those of dead inputs not among them."""

    rows: tuple[int, int]
    inputs: tuple[int, int]
    columns: tuple[int, int]

    @property
    def flops(self) -> float:
        """The share of the multiply-adds of the lowered matrix product that remains."""
        return self.rows[0] * self.columns[0] / (self.rows[1] * self.columns[1])


def chain_left(model: nn.Module, names: Sequence[str]) -> dict[str, Left]:
    """Of layers that feed one another; between them only what works channel by channel, or flattens.

    The units that the last layer makes are outputs, and all alive.
    """
    layers = [model.get_submodule(name) for name in names]
    cubes = [_cube(layer, before) for layer, before in zip(layers, [None, *layers], strict=False)]
    alive = [cubes[0].any(dim=2).any(dim=0), *(torch.ones(len(cube), dtype=torch.bool) for cube in cubes)]
    while True:
        cubes = [
            cube & out[:, None, None] & into[None, :, None]
            for cube, into, out in zip(cubes, alive, alive[1:], strict=False)
        ]
        rows = [cube.flatten(1).any(dim=1) for cube in cubes]
        read = [cube.any(dim=2).any(dim=0) for cube in cubes]
        now = [read[0], *(made & used for made, used in zip(rows, read[1:], strict=False)), alive[-1]]
        if all(torch.equal(a, b) for a, b in zip(alive, now, strict=True)):
            break
        alive = now
    return {
        name: Left(
            (int(out.sum()), len(out)),
            (int(into.sum()), len(into)),
            (int(cube.flatten(1).any(dim=0).sum()), cube[0].numel()),
        )
        for name, cube, into, out in zip(names, cubes, alive, alive[1:], strict=False)
    }


def _cube(layer: nn.Module, before: nn.Module | None) -> Tensor:
    """bool, outputs x inputs x columns of each: what is not zero. Flattened planes are columns of their channel."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if before is None:
        return weight.detach().reshape(weight.shape[0], weight.shape[1], -1) != 0
    assert isinstance(before.weight, Tensor)
    return weight.detach().reshape(weight.shape[0], before.weight.shape[0], -1) != 0


def blocks_left(model: ResNet) -> dict[str, Left]:
    """Of the convolutions of every branch: the channels between its two, which some filter makes and some reads."""
    left = {}
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        made, read = block.conv1.weight.detach(), block.conv2.weight.detach()
        alive = int((made.flatten(1).any(dim=1) & read.any(dim=3).any(dim=2).any(dim=0)).sum())
        width, inputs = made.shape[:2]
        left[f"blocks.{number}.conv1"] = Left((alive, width), (inputs, inputs), (9 * inputs, 9 * inputs))
        left[f"blocks.{number}.conv2"] = Left((width, width), (alive, width), (9 * alive, 9 * width))
    return left


def living_layers(model: ResNet) -> tuple[int, int]:
    """Layers that compute something, of all; the stem and the head do."""
    left = blocks_left(model).values()
    return 2 + sum(layer.flops > 0 for layer in left), 2 + len(left)
