"""The coupled groups of a graph: who goes with whom, and who must stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.channels import Group, coupled_groups
from tests.passes.programs import Wired, captured


def groups(model: nn.Module, *inputs: Tensor) -> tuple[Group, ...]:
    return coupled_groups(captured(model.eval(), *inputs).graph)


def free(model: nn.Module, *inputs: Tensor) -> list[Group]:
    return [group for group in groups(model, *inputs) if not group.pinned]


def wired(function: Callable[..., Any], **parts: Any) -> nn.Module:
    return Wired(function, **parts).eval()


class Attention(nn.Module):
    """Self-attention as most models write it."""

    def __init__(self, written_out: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.written_out = nn.Linear(16, 48), nn.Linear(16, 16), written_out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(*t.shape[:2], 4, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.written_out:
            y = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_a_residual_network(golden: Callable[[str], None]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.norm1(m.stem(x)))
        x = F.relu(x + m.norm3(m.conv3(F.relu(m.norm2(m.conv2(x))))))
        return m.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]

    model = wired(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        norm1=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 6, 3, padding=1),
        norm2=nn.BatchNorm2d(6),
        conv3=nn.Conv2d(6, 8, 3, padding=1),
        norm3=nn.BatchNorm2d(8),
        head=nn.Linear(8, 4),
    )
    golden("\n".join(map(str, groups(model, torch.randn(2, 3, 8, 8)))))


def test_heads_are_units() -> None:
    for written_out in (False, True):
        (heads,) = free(Attention(written_out), torch.randn(2, 6, 16))
        assert heads.name == "qkv.weight"
        second = heads.units[1]
        places = {(s.parameter, s.dimension): s.indices for s in second.slices}
        assert places["qkv.weight", 0] == tuple(range(4, 8)) + tuple(range(20, 24)) + tuple(range(36, 40))
        assert places["out.weight", 1] == (4, 5, 6, 7)


def test_flattening_repeats_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5))
    (group,) = free(model, torch.randn(2, 1, 8, 8))
    assert [unit.of_role("reads")[0].indices for unit in group.units] == [
        tuple(range(start, start + 9)) for start in (0, 9, 18)
    ]


def test_concatenation_and_split() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = torch.split(torch.cat([m.one(x), m.two(x)], 1), [5, 4], 1)
        return m.end(a)[:, :, :-1] + m.last(b)[:, :, :-1]  # type: ignore[no-any-return]

    model = wired(
        forward,
        one=nn.Conv1d(2, 3, 1),
        two=nn.Conv1d(2, 6, 1),
        end=nn.Conv1d(5, 2, 1),
        last=nn.Conv1d(4, 2, 1),
    )
    found = free(model, torch.randn(2, 2, 7))
    assert [(g.name, len(g.units), g.units[0].of_role("reads")[0]) for g in found] == [
        ("one.weight", 3, found[0].units[0].of_role("reads")[0]),
        ("two.weight", 2, found[1].units[0].of_role("reads")[0]),
        ("two.weight", 4, found[2].units[0].of_role("reads")[0]),
    ]
    assert [u.of_role("reads")[0].indices for u in found[1].units] == [(3,), (4,)]
    assert {u.of_role("reads")[0].parameter for u in found[2].units} == {"last.weight"}


def test_depthwise_filters_go_with_their_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6(), nn.Conv2d(8, 2, 1))
    (group,) = free(model, torch.randn(2, 1, 6, 6))
    assert [
        (s.parameter, s.indices)
        for s in group.units[1].slices
        if s.dimension == 0 and "weight" in s.parameter
    ] == [
        ("0.weight", (1,)),
        ("1.weight", (2, 3)),
    ]
    assert group.units[1].of_role("reads")[0].indices == (2, 3)


def test_a_grouped_convolution_reads_within_its_rows() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 3, groups=2))
    group = free(model, torch.randn(2, 1, 6, 6))[0]
    (read,) = group.units[3].of_role("reads")
    assert (read.indices, read.rows) == ((1,), (3, 6))


def test_transposed_convolution_and_embedding() -> None:
    model = wired(
        lambda m, i: m.two(m.one(m.table(i).transpose(1, 2))),
        table=nn.Embedding(9, 4),
        one=nn.ConvTranspose1d(4, 6, 2, stride=2),
        two=nn.Conv1d(6, 3, 1),
    )
    table, inner = free(model, torch.randint(0, 9, (2, 5)))
    assert [(s.parameter, s.dimension, s.role) for s in table.units[2].slices] == [
        ("table.weight", 1, "produces"),
        ("one.weight", 0, "reads"),
    ]
    assert [(s.parameter, s.dimension) for s in inner.units[0].slices] == [
        ("one.weight", 1),
        ("one.bias", 0),
        ("two.weight", 1),
    ]


@pytest.mark.parametrize(
    ("reason", "function", "parts"),
    [
        ("layer norm mixes channels", lambda m, x: m.b(m.norm(m.a(x))), {"norm": nn.LayerNorm(6)}),
        ("there is no rule for aten.cumsum here", lambda m, x: m.b(m.a(x).cumsum(1)), {}),
        ("several operators share a.weight", lambda m, x: m.b(m.a(m.a(x).relu())), {}),
        (
            "%add joins them with the input 'inputs_0', which keeps its size",
            lambda m, x: m.b(m.a(x) + x),
            {},
        ),
        ("%softmax mixes channels", lambda m, x: m.b(m.a(x).softmax(1)), {}),
        ("%mean mixes channels", lambda m, x: m.b(m.a(x).relu().mean(1, keepdim=True) * x), {}),
    ],
)
def test_what_pins_says_why(reason: str, function: Any, parts: dict[str, nn.Module]) -> None:
    model = wired(function, a=nn.Linear(6, 6), b=nn.Linear(6, 2), **parts)
    assert re.sub(r"add_\d+", "add", groups(model, torch.randn(2, 6))[0].pinned) == reason


def test_everything_returned_stays() -> None:
    assert free(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4)) == []
