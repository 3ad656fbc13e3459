"""What a layer multiplies its weight with: the rows of X in Y = X W^T, for convolutions their patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.train.weights import TRANSPOSED


def input_rows(module: nn.Module, x: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """The inputs of each of a layer's outputs: convolution groups x positions x columns of its matrix.

    Args:
        module: A linear layer or a convolution; not a transposed one.
        x: Its input, with or without a batch.
        most: Where there are more positions (tokens, pixels) a sample of so many is taken, without repetition.
        generator: For the sample.
    """
    assert not isinstance(module, TRANSPOSED)
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        rows = x.reshape(-1, x.shape[-1])
        return rows[_sample(len(rows), most, generator, x.device)][None]
    patches = _patches(module, x)
    dims = len(module.kernel_size)
    sizes = patches.shape[: 1 + dims]
    chosen = _sample(math.prod(sizes), most, generator, x.device)
    rows = patches[torch.unravel_index(chosen, sizes)]
    return rows.reshape(len(chosen), module.groups, -1).transpose(0, 1)


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A view of the padded input: batch x output sizes x channels x taps."""
    dims = len(module.kernel_size)
    if x.dim() == 1 + dims:
        x = x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padding = module._reversed_padding_repeated_twice
    x = F.pad(x, padding, mode=mode) if any(padding) else x
    for axis in range(dims):
        kernel, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        x = x.unfold(2 + axis, (kernel - 1) * dilation + 1, stride)[..., ::dilation]
    return x.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))


def _sample(count: int, most: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if count <= most:
        return torch.arange(count, device=device)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)
