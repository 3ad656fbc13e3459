"""Sections: how they print, what they know, what they mean in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from sparsecomp.layer import Layer
from sparsecomp.section import Section, SectionOp, WorkOp, run_section
from sparsecomp.work import Attention, Mean, Norm, Pointwise, Pool


def two_layers() -> Section:
    """y = relu(conv(x) * scale + bias); z = conv(y, stride 2) + r"""
    first = Layer("a", "conv2d", "a.weight", (6, 3, 3, 3), (2, 3, 8, 8), padding=(1, 1, 1, 1))
    second = Layer("b", "conv2d", "b.weight", (4, 6, 1, 1), (2, 6, 8, 8), stride=(2, 2))
    return Section(
        ("x", "r"),
        (
            SectionOp("a", first, "x", "y", "scale bias relu"),
            SectionOp("b", second, "y", "z", "add", ("r",)),
        ),
        ("y", "z"),
    )


def linear(name: str, rows: int, columns: int) -> Layer:
    return Layer(name, "linear", f"{name}.weight", (rows, columns), (2, 5, columns))


def encoder() -> Section:
    """h = layer norm(x); a = attention(qkv(h)); y = out(a) + x; z = sigmoid(y) * r"""
    narrow, wide = (2, 5, 8), (2, 5, 24)
    attention = Attention(2, 2, 4, 4, 0.5, starts=(0, 8, 16), masked=True)
    norm = Norm("layer", 8, 1e-5, weight=True, bias=True)
    return Section(
        ("x", "m", "r"),
        (
            WorkOp("n", norm, ("x",), (narrow,), "h", narrow),
            SectionOp("qkv", linear("qkv", 24, 8), "h", "w", "bias"),
            WorkOp("a", attention, ("w", "w", "w", "m"), (wide, wide, wide, (2, 1, 5, 16)), "a", narrow),
            SectionOp("out", linear("out", 8, 8), "a", "y", "add", ("x",)),
            WorkOp("s", Pointwise(), ("y",), (narrow,), "z", narrow, "sigmoid multiply", ("r",)),
        ),
        ("h", "z"),
    )


def pooled() -> Section:
    """p = max pool(relu(conv(x))); y = mean(p)"""
    layer = Layer("c", "conv2d", "c.weight", (6, 3, 3, 3), (2, 3, 8, 8))
    window = Layer("", "conv2d", "", (6, 1, 2, 2), (1, 6, 6, 6), stride=(2, 2), groups=6)
    return Section(
        ("x",),
        (
            SectionOp("c", layer, "x", "h", "relu"),
            WorkOp("p", Pool("max", window), ("h",), ((2, 6, 6, 6),), "p", (2, 6, 3, 3), channel=1),
            WorkOp("y", Mean(keep=False), ("p",), ((2, 6, 3, 3),), "y", (2, 6), channel=1),
        ),
        ("p", "y"),
    )


def test_a_section_prints(golden: Callable[[str], None]) -> None:
    golden(str(two_layers()))


def test_a_section_with_work_prints(golden: Callable[[str], None]) -> None:
    golden(f"{encoder()}\n{pooled()}")


def test_a_section_knows_the_shapes_of_its_inputs() -> None:
    assert two_layers().input_shapes == [(2, 3, 8, 8), (2, 4, 4, 4)]
    assert encoder().input_shapes == [(2, 5, 8), (2, 1, 5, 16), (2, 5, 8)]
    assert pooled().input_shapes == [(2, 3, 8, 8)]


def test_a_section_knows_the_shapes_of_what_it_makes() -> None:
    assert [two_layers().output_shape(name) for name in ("y", "z")] == [(2, 6, 8, 8), (2, 4, 4, 4)]
    assert [encoder().output_shape(name) for name in ("h", "w", "a")] == [(2, 5, 8), (2, 5, 24), (2, 5, 8)]
    assert [pooled().output_shape(name) for name in ("h", "p", "y")] == [(2, 6, 6, 6), (2, 6, 3, 3), (2, 6)]


def test_items_are_images_sequences_or_tokens() -> None:
    alone = Section(("h",), encoder().ops[1:2], ("w",))
    assert [section.images for section in (pooled(), encoder(), alone)] == [True, False, False]
    assert [section.sequence for section in (pooled(), encoder(), alone)] == [0, 5, 0]


def test_layers_and_work_are_told_apart() -> None:
    assert [op.site for op in encoder().layers] == ["qkv", "out"]
    assert [op.site for op in encoder().works] == ["n", "a", "s"]


def test_a_mask_is_no_activation() -> None:
    norm, attention, _ = encoder().works
    assert (norm.plain, norm.activations) == ((), ("x",))
    assert (attention.plain, attention.activations) == (("m",), ("w", "w", "w"))
    assert attention.shapes == {"w": (2, 5, 24), "m": (2, 1, 5, 16)}


def test_run_section_is_plain_pytorch() -> None:
    section = two_layers()
    weights = {"a": torch.randn(6, 27), "b": torch.randn(4, 6)}
    x, r, scale, bias = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(6), torch.randn(6)
    vectors = {"a": (scale, bias), "b": ()}
    y, z = run_section(section, lambda op: weights[op.site], vectors, [x, r])
    a = F.conv2d(x, weights["a"].reshape(6, 3, 3, 3), padding=1)
    expected = F.relu(a * scale[:, None, None] + bias[:, None, None])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(z, F.conv2d(expected, weights["b"].reshape(4, 6, 1, 1), stride=2) + r)


def test_run_section_takes_operands_in_the_order_of_the_steps() -> None:
    layer = Layer("fc", "linear", "w", (4, 3), (5, 3))
    op = SectionOp("s", layer, "x", "y", "add scale multiply bias", ("p", "q"))
    x, w, p, q = torch.randn(5, 3), torch.randn(4, 3), torch.randn(5, 4), torch.randn(5, 4)
    scale, bias = torch.randn(4), torch.randn(4)
    section = Section(("x", "p", "q"), (op,), ("y",))
    (y,) = run_section(section, lambda op: w, {"s": (scale, bias)}, [x, p, q])
    torch.testing.assert_close(y, (x @ w.T + p) * scale * q + bias)


def test_run_section_does_the_work_between_layers() -> None:
    weights = {"qkv": torch.randn(24, 8), "out": torch.randn(8, 8)}
    x, r, scores = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 1, 5, 5)
    gain, shift, bias = torch.randn(8), torch.randn(8), torch.randn(24)
    vectors = {"n": (gain, shift), "qkv": (bias,), "a": (), "out": (), "s": ()}
    mask = F.pad(scores.mT, (0, 11))
    h, z = run_section(encoder(), lambda op: weights[op.site], vectors, [x, mask, r])
    expected = F.layer_norm(x, (8,), gain, shift)
    q, k, v = (
        part.reshape(2, 5, 2, 4).transpose(1, 2)
        for part in F.linear(expected, weights["qkv"], bias).chunk(3, -1)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, scores, scale=0.5).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(z, torch.sigmoid(mixed @ weights["out"].T + x) * r)


def test_run_section_knows_where_the_channels_of_images_are() -> None:
    weight, x = torch.randn(6, 27), torch.randn(2, 3, 8, 8)
    p, y = run_section(pooled(), lambda op: weight, {"c": (), "p": (), "y": ()}, [x])
    expected = F.max_pool2d(F.relu(F.conv2d(x, weight.reshape(6, 3, 3, 3))), 2)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(y, expected.mean((2, 3)))


def test_work_takes_its_own_vectors_before_those_of_its_epilogue() -> None:
    norm = Norm("rms", 8, 1e-6, weight=True, bias=False)
    op = WorkOp("n", norm, ("x",), ((3, 8),), "y", (3, 8), "scale bias")
    x, weight, scale, bias = torch.randn(3, 8), torch.randn(8), torch.randn(8), torch.randn(8)
    (y,) = run_section(
        Section(("x",), (op,), ("y",)), lambda op: torch.empty(0), {"n": (weight, scale, bias)}, [x]
    )
    torch.testing.assert_close(y, F.rms_norm(x, (8,), weight, 1e-6) * scale + bias)
