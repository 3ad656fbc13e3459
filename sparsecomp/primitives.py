"""The sparse primitives: operators with their meaning in plain PyTorch, which is the oracle of every kernel.

They are registered with `torch.library`, with shapes for fake tensors, so a rewritten graph prints, runs,
exports and goes through `torch.compile` like any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp import epilogue as epilogues
from sparsecomp.errors import LoweringError
from sparsecomp.layer import padded_conv2d
from sparsecomp.pattern import PackedRows, RowBlocks, unpack
from sparsecomp.work import LANES, Attention, CachedAttention, score_mask

_LIBRARY = torch.library.Library("sparsecomp", "DEF")
_WEIGHT = (
    "Tensor values, Tensor columns, Tensor pointers, Tensor order, int block, bool shared, bool live_first, "
    "int[] weight_shape"
)


def _matrix(
    packed: Sequence[Tensor], block: int, shared: bool, live_first: bool, shape: Sequence[int]
) -> Tensor:
    rows, size = shape[0], 1
    for extent in shape[1:]:
        size *= extent
    values, columns, pointers, order = packed
    pattern = RowBlocks(block, shared, live_first)
    return unpack(PackedRows(pattern, (rows, size), values, columns, pointers, order))


def rows_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    pointers: Tensor,
    order: Tensor,
    block: int,
    shared: bool,
    live_first: bool,
    weight_shape: Sequence[int],
    epilogue: str,
    operands: Sequence[Tensor],
) -> Tensor:
    """epilogue(x W^T): x is ... x in, the result ... x out; W packed as in `PackedRows`."""
    weight = _matrix((values, columns, pointers, order), block, shared, live_first, weight_shape)
    return epilogues.apply(F.linear(x, weight), epilogue, operands, channel=-1)


def rows_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    pointers: Tensor,
    order: Tensor,
    block: int,
    shared: bool,
    live_first: bool,
    weight_shape: Sequence[int],
    epilogue: str,
    operands: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """epilogue(conv2d(x, W)): x is N x C x H x W; the weight packed as a matrix out x (in/groups * kh * kw);
    `padding` of the top, bottom, left and right side."""
    weight = _matrix((values, columns, pointers, order), block, shared, live_first, weight_shape).reshape(
        list(weight_shape)
    )
    y = padded_conv2d(x, weight, None, stride, padding, dilation, groups)
    return epilogues.apply(y, epilogue, operands, channel=1)


_LIBRARY.define(f"rows_linear(Tensor x, {_WEIGHT}, str epilogue, Tensor[] operands) -> Tensor")
_LIBRARY.define(
    f"rows_conv2d(Tensor x, {_WEIGHT}, str epilogue, Tensor[] operands, "
    "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("rows_linear", rows_linear, _device)
    _LIBRARY.impl("rows_conv2d", rows_conv2d, _device)


@torch.library.register_fake("sparsecomp::rows_linear")
def _fake_linear(x: Tensor, values: Tensor, columns: Tensor, pointers: Tensor, *rest: object) -> Tensor:
    _, _, _, _, weight_shape, *_ = rest
    return x.new_empty((*x.shape[:-1], weight_shape[0]))  # type: ignore[index]


@torch.library.register_fake("sparsecomp::rows_conv2d")
def _fake_conv2d(x: Tensor, values: Tensor, columns: Tensor, pointers: Tensor, *rest: object) -> Tensor:
    shape, stride, padding, dilation = (list(rest[i]) for i in (4, 7, 8, 9))  # type: ignore[call-overload]
    pads = (padding[0] + padding[1], padding[2] + padding[3])
    sizes = [
        (extent + p - d * (k - 1) - 1) // s + 1
        for extent, p, d, k, s in zip(x.shape[2:], pads, dilation, shape[2:], stride, strict=True)
    ]
    return x.new_empty((x.shape[0], shape[0], *sizes))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: Sequence[int],
    sizes: Sequence[int],
    scale: float,
    causal: bool,
    starts: Sequence[int],
) -> Tensor:
    """Attention of tensors B x tokens x channels, heads side by side: `heads` of the queries and of the keys,
    `sizes` of a key and of a value; see `sparsecomp.work.Attention`. The mask is one of `score_mask`."""
    sources = (q, k, v) if mask is None else (q, k, v, mask)
    return attention_work(heads, sizes, scale, causal, starts, mask is not None).run(sources, (), -1)


def attention_work(
    heads: Sequence[int],
    sizes: Sequence[int],
    scale: float,
    causal: bool,
    starts: Sequence[int],
    masked: bool,
) -> Attention:
    """The work that the primitive's arguments describe."""
    first = (starts[0], starts[1], starts[2])
    return Attention(heads[0], heads[1], sizes[0], sizes[1], scale, causal, first, masked)


_LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, int[] heads, int[] sizes, float scale, "
    "bool causal, int[] starts) -> Tensor"
)
_LIBRARY.impl("attention", attention, "CPU")
_LIBRARY.define("score_mask(Tensor mask, int queries) -> Tensor")
_LIBRARY.impl("score_mask", score_mask, "CPU")


@torch.library.register_fake("sparsecomp::attention")
def _fake_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: object) -> Tensor:
    heads, sizes = rest[0], rest[1]
    return q.new_empty((*q.shape[:2], heads[0] * sizes[1]))  # type: ignore[index]


@torch.library.register_fake("sparsecomp::score_mask")
def _fake_score_mask(mask: Tensor, queries: int) -> Tensor:
    batch, heads = [1, 1, *mask.shape[:-2]][-2:]
    size = (batch, heads, mask.shape[-1], queries + -queries % LANES)
    return mask.new_empty(size, dtype=torch.float32)


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: Sequence[int],
    scale: float,
    starts: Sequence[int],
) -> Tensor:
    """Attention of one token to itself and to the earlier ones that `keys` and `values` tell of, B x heads x
    tokens x size; q, k and v are B x 1 x channels. See `sparsecomp.work.CachedAttention`."""
    work = cached_attention_work(keys.shape, values.shape, heads, scale, starts)
    return work.run((q, k, v, keys, values), (), -1)


def cached_attention_work(
    keys: Sequence[int], values: Sequence[int], heads: Sequence[int], scale: float, starts: Sequence[int]
) -> CachedAttention:
    """The work that the primitive's arguments describe; `keys` and `values` are shapes."""
    first = (starts[0], starts[1], starts[2])
    return CachedAttention(heads[0], heads[1], keys[3], values[3], keys[2], scale, first)


_LIBRARY.define(
    "cached_attention(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, int[] heads, float scale, "
    "int[] starts) -> Tensor"
)
_LIBRARY.impl("cached_attention", cached_attention, "CPU")


@torch.library.register_fake("sparsecomp::cached_attention")
def _fake_cached_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *rest: object
) -> Tensor:
    heads = rest[0]
    return q.new_empty((*q.shape[:2], heads[0] * values.shape[3]))  # type: ignore[index]


class Runner(Protocol):
    """What stands behind the name of a region."""

    @property
    def streams(self) -> Sequence[Any]:
        """Its packed weights."""
        ...

    @property
    def labels(self) -> Sequence[tuple[str, str]]:
        """Of its kernels, in order: the layer's name or the work between layers, and the call as it prints."""
        ...

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]: ...

    def call_seconds(self, inputs: Sequence[Tensor]) -> list[float]:
        """How long each kernel takes, called one by one in order."""
        ...

    def shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Of the outputs, which may be symbolic as the inputs' are."""
        ...


REGIONS: weakref.WeakValueDictionary[str, Runner] = weakref.WeakValueDictionary()
"""Regions by name; a compiled module keeps its own alive."""

_LIBRARY.define("region(Tensor[] inputs, str name) -> Tensor[]")


def _region(inputs: Sequence[Tensor], name: str) -> list[Tensor]:
    return _runner(name).run(inputs)


def _runner(name: str) -> Runner:
    runner = REGIONS.get(name)
    if runner is None:
        raise LoweringError(
            f"{name!r} belongs to a compiled module that is gone: keep it while its graph runs."
        )
    return runner


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("region", _region, _device)


@torch.library.register_fake("sparsecomp::region")
def _fake_region(inputs: Sequence[Tensor], name: str) -> list[Tensor]:
    return [inputs[0].new_empty(shape) for shape in _runner(name).shapes(inputs)]


ROWS_LINEAR = torch.ops.sparsecomp.rows_linear.default
ROWS_CONV2D = torch.ops.sparsecomp.rows_conv2d.default
ATTENTION = torch.ops.sparsecomp.attention.default
CACHED_ATTENTION = torch.ops.sparsecomp.cached_attention.default
SCORE_MASK = torch.ops.sparsecomp.score_mask.default
REGION = torch.ops.sparsecomp.region.default
PRIMITIVES = (ROWS_LINEAR, ROWS_CONV2D)

VALUES, PACKED, EPILOGUE, OPERANDS = 1, 4, 9, 10
"""Positions among a primitive's arguments; the packed weight takes `PACKED` of them."""
