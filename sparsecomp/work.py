"""What a region does between its layers: norms, attention, pooling, element-wise work.

Each kind of work has its meaning in plain PyTorch here, and a kernel in `sparsecomp/codegen/cpu/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.layer import Layer

LANES = 16
"""Rows of a score mask are a multiple of this long, so that no kernel reads past the last."""


@dataclass(frozen=True)
class Norm:
    """Layer norm, or root mean square norm, over the channels of each token or pixel."""

    kind: Literal["layer", "rms"]
    channels: int
    epsilon: float
    weight: bool
    bias: bool

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        x = sources[0].movedim(channel, -1)
        rest = list(vectors)
        weight = rest.pop(0) if self.weight else None
        bias = rest.pop(0) if self.bias else None
        shape = [self.channels]
        if self.kind == "layer":
            y = F.layer_norm(x, shape, weight, bias, self.epsilon)
        else:
            y = F.rms_norm(x, shape, weight, self.epsilon)
        return y.movedim(-1, channel)

    def __str__(self) -> str:
        return f"{self.kind} norm"


@dataclass(frozen=True)
class Attention:
    """softmax(scale * q k^T + mask) v per head; q, k and v are B x tokens x channels, read from a channel on."""

    heads: int
    key_heads: int
    size: int
    value_size: int
    scale: float
    causal: bool = False
    starts: tuple[int, int, int] = (0, 0, 0)
    """First channel of q, k and v in the tensors that hold them."""
    masked: bool = False
    """Whether a fourth source is a score mask, see `score_mask`."""

    @property
    def channels(self) -> int:
        """Of the result."""
        return self.heads * self.value_size

    def split(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """q, k and v: B x heads x tokens x size."""
        widths = (
            (self.heads, self.size),
            (self.key_heads, self.size),
            (self.key_heads, self.value_size),
        )
        return [
            x[..., start : start + heads * size].reshape(*x.shape[:-1], heads, size).transpose(1, 2)
            for x, start, (heads, size) in zip(sources[:3], self.starts, widths, strict=True)
        ]

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        q, k, v = self.split(sources)
        mask = sources[3][..., : q.shape[2]].transpose(-1, -2) if self.masked else None
        grouped = self.heads != self.key_heads
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.causal, scale=self.scale, enable_gqa=grouped
        )
        return y.transpose(1, 2).flatten(2)

    def __str__(self) -> str:
        return f"attention of {self.heads} heads"


@dataclass(frozen=True)
class CachedAttention:
    """Attention of one new token to `past` earlier ones and to itself.

    q, k and v are B x 1 x channels, read from a channel on; keys and values of the earlier tokens are
    B x heads x past x size.
    """

    heads: int
    key_heads: int
    size: int
    value_size: int
    past: int
    scale: float
    starts: tuple[int, int, int] = (0, 0, 0)
    """First channel of q, k and v in the tensors that hold them."""

    @property
    def channels(self) -> int:
        """Of the result."""
        return self.heads * self.value_size

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        own = Attention(
            self.heads, self.key_heads, self.size, self.value_size, self.scale, starts=self.starts
        )
        q, k, v = own.split(sources)
        keys, values = (torch.cat(pair, 2) for pair in zip(sources[3:], (k, v), strict=True))
        grouped = self.heads != self.key_heads
        y = F.scaled_dot_product_attention(q, keys, values, scale=self.scale, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)

    def __str__(self) -> str:
        return f"attention of {self.heads} heads to {self.past} earlier tokens"


def score_mask(mask: Tensor, queries: int) -> Tensor:
    """A mask as PyTorch's attention takes it -> what kernels read: additive, B or 1 x heads or 1 x keys x queries.

    The queries come last, where a kernel has its lanes, and are filled up to a multiple of `LANES`.
    """
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    mask = mask.expand(-1, -1, queries, -1).transpose(-1, -2)
    return F.pad(mask, (0, -queries % LANES)).contiguous()


@dataclass(frozen=True)
class Pool:
    """The largest, or the mean, of the pixels in a window."""

    kind: Literal["max", "mean"]
    window: Layer
    """A depthwise convolution that reads the same pixels."""

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        window = self.window
        top, bottom, left, right = window.padding
        kernel, stride = list(window.weight_shape[2:]), list(window.stride)
        filling = float("-inf") if self.kind == "max" else 0.0
        x = F.pad(sources[0], (left, right, top, bottom), value=filling)
        if self.kind == "max":
            return F.max_pool2d(x, kernel, stride, 0, list(window.dilation))
        return F.avg_pool2d(x, kernel, stride)

    def __str__(self) -> str:
        height, width = self.window.weight_shape[2:]
        return f"{self.kind} pool {height}x{width}"


@dataclass(frozen=True)
class Mean:
    """The mean over all pixels of each channel: N x C x H x W -> N x C x 1 x 1, or N x C."""

    keep: bool

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        return sources[0].mean((2, 3), keepdim=self.keep)

    def __str__(self) -> str:
        return "mean"


@dataclass(frozen=True)
class Pointwise:
    """Nothing but the epilogue."""

    def run(self, sources: Sequence[Tensor], vectors: Sequence[Tensor], channel: int) -> Tensor:
        return sources[0]

    def __str__(self) -> str:
        return "pointwise"


Work = Norm | Attention | CachedAttention | Pool | Mean | Pointwise
