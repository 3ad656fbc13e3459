"""What each kind of work between layers means, in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.layer import Layer
from sparsecomp.work import LANES, Attention, CachedAttention, Mean, Norm, Pointwise, Pool, score_mask


@pytest.mark.parametrize("channel", [1, -1])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_layer_norm(weight: bool, bias: bool, channel: int) -> None:
    vectors = [torch.randn(6), torch.randn(6)]
    x = torch.randn(2, 6, 3, 5) if channel == 1 else torch.randn(2, 3, 6)
    work = Norm("layer", 6, 0.1, weight, bias)
    y = work.run([x], [v for v, there in zip(vectors, (weight, bias), strict=True) if there], channel)
    moved = x.movedim(channel, -1)
    expected = F.layer_norm(moved, (6,), vectors[0] if weight else None, vectors[1] if bias else None, 0.1)
    torch.testing.assert_close(y, expected.movedim(-1, channel))


@pytest.mark.parametrize("weight", [True, False])
def test_rms_norm(weight: bool) -> None:
    x, vector = torch.randn(2, 3, 6), torch.randn(6)
    y = Norm("rms", 6, 0.1, weight, bias=False).run([x], [vector] * weight, -1)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(y, expected * vector if weight else expected)


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """B x heads x tokens x size each."""
    return torch.softmax(scale * q @ k.mT + mask, -1) @ v


def test_attention_of_places_in_wider_tensors() -> None:
    work = Attention(heads=4, key_heads=2, size=3, value_size=5, scale=0.7, causal=True, starts=(1, 2, 0))
    assert work.channels == 20
    a, b = torch.randn(2, 7, 14), torch.randn(2, 7, 11)
    y = work.run([a, b, b], (), -1)
    q = a[..., 1:13].reshape(2, 7, 4, 3).transpose(1, 2)
    k = b[..., 2:8].reshape(2, 7, 2, 3).transpose(1, 2).repeat_interleave(2, 1)
    v = b[..., :10].reshape(2, 7, 2, 5).transpose(1, 2).repeat_interleave(2, 1)
    hidden = torch.full((7, 7), float("-inf")).triu(1)
    torch.testing.assert_close(y, by_hand(q, k, v, 0.7, hidden).transpose(1, 2).reshape(2, 7, 20))


@pytest.mark.parametrize(
    "shape", [(7, 7), (1, 7), (4, 7, 7), (1, 1, 7), (2, 1, 1, 7), (2, 4, 7, 7), (1, 1, 7, 7)]
)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_with_a_score_mask(kind: str, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.7 if kind == "bool" else torch.randn(shape)
    x = torch.randn(2, 7, 32)
    work = Attention(4, 4, 8, 8, 0.5, masked=True)
    y = work.run([x, x.sin(), x.cos(), score_mask(mask, 7)], (), -1)
    q, k, v = (t.reshape(2, 7, 4, 8).transpose(1, 2) for t in (x, x.sin(), x.cos()))
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
    torch.testing.assert_close(y, expected.transpose(1, 2).reshape(2, 7, 32))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 7), (1, 1, 7, 16)),
        ((1, 7), (1, 1, 7, 16)),
        ((4, 7, 7), (1, 4, 7, 16)),
        ((3, 4, 1, 7), (3, 4, 7, 16)),
        ((16, 16), (1, 1, 16, 16)),
        ((3, 1, 1, 17), (3, 1, 17, 32)),
    ],
)
def test_a_score_mask_has_keys_before_queries_and_whole_vectors_of_them(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    mask = score_mask(torch.randn(shape), shape[-1])
    assert mask.shape == expected
    assert mask.shape[-1] % LANES == 0
    assert mask.is_contiguous()
    fake = torch.ops.sparsecomp.score_mask(torch.empty(shape, device="meta"), shape[-1])
    assert fake.shape == expected


def test_a_score_mask_is_added_to_scores() -> None:
    seen = torch.tensor([[True, False], [True, True]])
    assert score_mask(seen, 2)[0, 0, :, :2].tolist() == [[0.0, 0.0], [float("-inf"), 0.0]]
    added = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert score_mask(added, 2)[0, 0, :, :2].tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_attention_to_a_cache_is_that_of_the_last_token() -> None:
    """Tokens one by one, each joining the cache, and all at once."""
    x = torch.randn(2, 7, 48)
    whole = Attention(4, 2, 6, 4, 0.5, causal=True, starts=(0, 24, 36)).run((x, x, x), (), -1)
    keys = x[..., 24:36].reshape(2, 7, 2, 6).transpose(1, 2)
    values = x[..., 36:44].reshape(2, 7, 2, 4).transpose(1, 2)
    for past in range(1, 7):
        one = x[:, past : past + 1]
        work = CachedAttention(4, 2, 6, 4, past, 0.5, starts=(0, 24, 36))
        y = work.run((one, one, one, keys[:, :, :past], values[:, :, :past]), (), -1)
        torch.testing.assert_close(y[:, 0], whole[:, past], atol=1e-5, rtol=1e-5)
        assert work.channels == y.shape[-1]


def window(kernel: int, stride: int, padding: int, dilation: int = 1) -> Layer:
    return Layer(
        "",
        "conv2d",
        "",
        (3, 1, kernel, kernel),
        (1, 3, 9, 11),
        stride=(stride, stride),
        padding=(padding,) * 4,
        dilation=(dilation, dilation),
        groups=3,
    )


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (1, 2, 0), (2, 3, 1)]
)
def test_pools(kind: Literal["max", "mean"], kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(2, 3, 9, 11) - 2  # zeros around it are not its largest
    pool = F.max_pool2d if kind == "max" else F.avg_pool2d
    y = Pool(kind, window(kernel, stride, padding)).run([x], (), 1)
    torch.testing.assert_close(y, pool(x, kernel, stride, padding))


def test_a_pool_with_gaps() -> None:
    x = torch.randn(2, 3, 9, 11)
    y = Pool("max", window(3, 2, 1, dilation=2)).run([x], (), 1)
    torch.testing.assert_close(y, F.max_pool2d(x, 3, 2, 1, 2))


@pytest.mark.parametrize("keep", [True, False])
def test_the_mean_of_images(keep: bool) -> None:
    x = torch.randn(2, 3, 4, 5)
    y = Mean(keep).run([x], (), 1)
    assert y.shape == ((2, 3, 1, 1) if keep else (2, 3))
    torch.testing.assert_close(y.flatten(), torch.stack([image.mean() for image in x.flatten(0, 1)]))


def test_pointwise_work_is_all_in_the_epilogue() -> None:
    x = torch.randn(2, 3)
    assert Pointwise().run([x], (), -1) is x


def test_work_prints() -> None:
    assert [str(work) for work in (Norm("rms", 4, 1e-6, True, False), Attention(4, 4, 8, 8, 1.0))] == [
        "rms norm",
        "attention of 4 heads",
    ]
    pool = Pool("max", window(3, 2, 1))
    assert [str(work) for work in (pool, Mean(True), Pointwise())] == ["max pool 3x3", "mean", "pointwise"]
