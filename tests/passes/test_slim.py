"""What is dead goes, exactly; what cannot go says why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.channels.labels import extents
from sparsecomp.passes.find_layers import FindLayers
from sparsecomp.passes.measure_weights import MeasureWeights
from sparsecomp.passes.slim import Slim
from sparsecomp.pipeline import run
from sparsecomp.program import Program
from sparsecomp.slimming import Slimming
from tests.passes.programs import Wired, analysed, captured


def slimmed(model: nn.Module, *inputs: Tensor, skip: tuple[str, ...] = ()) -> tuple[Program, Slimming]:
    """The program after the pass, whose outputs are the model's in float64."""
    model, inputs = model.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    program = Slim(inputs, skip)(captured(model, *inputs))
    assert program.slimming is not None
    assert program.slimming.refused == ""
    with torch.no_grad():
        expected = model(*inputs)
    for found, wanted in zip(
        program(*inputs), [expected] if isinstance(expected, Tensor) else expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    return program, program.slimming


def gone(slimming: Slimming) -> dict[str, int]:
    found: Counter[str] = Counter()
    for group in slimming.groups:
        found[group.name] += group.gone
    return {name: count for name, count in found.items() if count}


def kept(slimming: Slimming) -> dict[str, int]:
    return {reason: count for group in slimming.groups for reason, count in group.kept.items()}


def zero(parameter: Any, *rows: int, dim: int = 0) -> None:
    with torch.no_grad():
        parameter.index_fill_(dim, torch.tensor(rows, dtype=torch.long), 0.0)


def lenet(filters: int = 20, second: int = 50) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, filters, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(filters, second, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 16, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def test_changes(golden: Callable[[str], None]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    )
    zero(model[0].weight, 1, 5)
    zero(model[3].weight, 2, dim=1)
    program, slimming = slimmed(model, torch.randn(2, 3, 8, 8))
    assert gone(slimming) == {"0.weight": 3}
    text = f"{captured(model, torch.randn(2, 3, 8, 8).double())}\n\n{program}"
    golden(re.sub(r"_slim_\w{8}", "_slim_...", text))  # checksums depend on the last bit of sums


@pytest.mark.parametrize(
    ("filters", "channels", "printed"),
    [((5, 19), 4, (25.0, 7.6)), ((3, 12), 3, (15.0, 3.6)), ((20, 50), 20, (100.0, 100.0))],
)
def test_lenet_of_table_1(filters: tuple[int, int], channels: int, printed: tuple[float, float]) -> None:
    """SSL, table 1: filters with weights in conv1 and conv2, channels conv2 reads, FLOPs of either in per cent.

    The table counts layer by layer; a filter of conv1 that conv2 does not read leaves here as well.
    """
    model = lenet()
    zero(model[0].weight, *range(filters[0], 20))
    zero(model[0].bias, *range(filters[0], 20))
    zero(model[2].weight, *range(filters[1], 50))
    zero(model[2].weight, *range(channels, 20), dim=1)
    x = torch.randn(1, 1, 28, 28)
    assert layer_ratios(measured(model, x), 2) == printed
    program, slimming = slimmed(model, x)
    expected = {"0.weight": 20 - channels, "2.weight": 50 - filters[1]}
    assert gone(slimming) == {name: count for name, count in expected.items() if count}
    sizes = {n.name: extents(n)[1] for n in program.graph.graph.nodes if "conv" in n.name}
    assert list(sizes.values()) == [channels, filters[1]]
    conv1, conv2 = 24 * 24 * channels * 25, 8 * 8 * filters[1] * channels * 25
    assert slimming.flops[1] == 2 * (conv1 + conv2 + filters[1] * 16 * 500 + 5000)


@pytest.mark.parametrize(
    ("sizes", "filters", "printed"),
    [((21, 41), (2, 50), (8.4, 8.2)), ((7, 14), (1, 50), (1.4, 2.8)), ((25, 500), (20, 50), (100.0, 100.0))],
)
def test_lenet_of_table_2(
    sizes: tuple[int, int], filters: tuple[int, int], printed: tuple[float, float]
) -> None:
    """SSL, table 2: columns with weights in conv1 and conv2. What remains of the other filters of conv1 is not read
    by conv2, and leaves; columns are skipped by the kernels, as `Facts` count them."""
    model = lenet()
    for layer, size in ((model[0], sizes[0]), (model[2], sizes[1])):
        layer.weight.data.flatten(1)[:, size:] = 0.0
    _, slimming = slimmed(model, torch.randn(1, 1, 28, 28))
    assert gone(slimming).get("0.weight", 0) == 20 - filters[0]
    assert layer_ratios(analysed(model.float(), torch.randn(1, 1, 28, 28)), 2) == printed


def measured(model: nn.Module, x: Tensor) -> Program:
    """Layers and facts of the model as it is."""
    return run((FindLayers((x,)), MeasureWeights()), captured(model.eval(), x))[0]


def layer_ratios(program: Program, layers: int) -> tuple[float, ...]:
    """Rows times columns with weights, of LeNet's first layers, in per cent of the dense ones."""
    dense = (20 * 25, 50 * 500)
    live = [
        (f.shape[0] - f.zero_rows) * (math.prod(f.shape[1:]) - f.zero_columns) for f in program.facts.values()
    ]
    return tuple(100 * kept / size for kept, size in zip(live, dense, strict=False))[:layers]


class Case(NamedTuple):
    """A model with planted zeros, and how many units of which group leave."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    gone: dict[str, int]
    kept: str = ""
    """A reason given for units that stay."""


IMAGE, TOKENS = (torch.randn(2, 3, 8, 8),), (torch.randn(2, 5, 12),)


def wired(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], plant: Callable[[Any], None], **parts: Any
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = Wired(function, **parts)
    plant(model)
    return model, inputs


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def residual(model: Any, x: Tensor) -> Tensor:
    y = model.norm(model.a(x)).relu()
    return model.c(y + model.b(y))  # type: ignore[no-any-return]


def both_sides(m: Any) -> None:
    zero(m.a.weight, 1, 2)
    zero(m.a.bias, 1, 2)
    zero(m.b.weight, 2, 3)
    m.norm.bias.data[:] = -1.0


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    return x + m.out(y)  # type: ignore[no-any-return]


def written_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (t.view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    y = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
    return x + m.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def se(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.d(y * m.c(m.b(y.mean((2, 3), keepdim=True)).relu()).sigmoid())  # type: ignore[no-any-return]


def planted(*zeros: tuple[str, tuple[int, ...], int]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        for name, rows, dim in zeros:
            zero(model.get_parameter(name), *rows, dim=dim)

    return plant


CASES: dict[str, Callable[[], Case]] = {
    "filters, their bias folded": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x).relu()),
            IMAGE,
            planted(("a.weight", (0, 4), 0)),
            a=conv(3, 6, 3),
            b=conv(6, 4, 3),
        ),
        {"a.weight": 2},
    ),
    "filters before padding stay for their constant": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x).sigmoid()),
            IMAGE,
            planted(("a.weight", (0, 4), 0)),
            a=conv(3, 6, 3),
            b=conv(6, 4, 3, padding=1),
        ),
        {},
        "%conv2d_1 pads with zeros, beside which its constant would be seen",
    ),
    "filters before padding, no constant": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x).relu()),
            IMAGE,
            planted(("a.weight", (0, 4), 0)),
            a=conv(3, 6, 3, bias=False),
            b=conv(6, 4, 3, padding=1),
        ),
        {"a.weight": 2},
    ),
    "channels that nobody reads": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x).sigmoid()),
            IMAGE,
            planted(("b.weight", (1, 2, 5), 1)),
            a=conv(3, 6),
            b=conv(6, 4, 3, padding=1),
        ),
        {"a.weight": 3},
    ),
    "a residual, where both sides agree": lambda: Case(
        *wired(residual, IMAGE, both_sides, a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 6), c=conv(6, 4)),
        {"a.weight": 1},
    ),
    "squeeze and excitation": lambda: Case(
        *wired(
            se,
            IMAGE,
            planted(("a.weight", (0, 3), 0), ("a.bias", (0, 3), 0), ("c.weight", (1,), 1)),
            a=conv(3, 6),
            b=conv(6, 2),
            c=conv(2, 6),
            d=conv(6, 4, 3, padding=1),
        ),
        {"a.weight": 2, "b.weight": 1},
    ),
    "heads": lambda: Case(
        *wired(
            attention,
            TOKENS,
            planted(("out.weight", (4, 5, 6, 7), 1)),
            qkv=nn.Linear(12, 36),
            out=nn.Linear(12, 12),
        ),
        {"qkv.weight": 1},
    ),
    "heads whose values are zero, written out": lambda: Case(
        *wired(
            written_attention,
            TOKENS,
            planted(("qkv.weight", tuple(range(24, 28)), 0), ("qkv.bias", tuple(range(24, 28)), 0)),
            qkv=nn.Linear(12, 36),
            out=nn.Linear(12, 12),
        ),
        {"qkv.weight": 1},
    ),
    "part of a head stays": lambda: Case(
        *wired(
            attention,
            TOKENS,
            planted(("out.weight", (4, 5, 6), 1)),
            qkv=nn.Linear(12, 36),
            out=nn.Linear(12, 12),
        ),
        {},
    ),
    "feed-forward units": lambda: Case(
        *wired(
            lambda m, x: x + m.b(F.gelu(m.a(m.norm(x)))),
            TOKENS,
            planted(("a.weight", (0, 1), 0), ("b.weight", (7,), 1)),
            norm=nn.LayerNorm(12),
            a=nn.Linear(12, 20),
            b=nn.Linear(20, 12),
        ),
        {"a.weight": 3},
    ),
    "gated units": lambda: Case(
        *wired(
            lambda m, x: m.b(F.silu(m.a(x)) * m.gate(x)),
            TOKENS,
            planted(("gate.weight", (0, 1), 0)),
            a=nn.Linear(12, 20),
            gate=nn.Linear(12, 20, bias=False),
            b=nn.Linear(20, 12),
        ),
        {"a.weight": 2},
    ),
    "concatenation": lambda: Case(
        *wired(
            lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1).relu()),
            IMAGE,
            planted(("c.weight", (0, 5, 8), 1)),
            a=conv(3, 4),
            b=conv(3, 4),
            c=conv(11, 4),
        ),
        {"a.weight": 1, "b.weight": 1},
    ),
    "split in three": lambda: Case(
        *wired(
            lambda m, x: sum(c(part) for c, part in zip((m.b, m.c, m.d), m.a(x).chunk(3, 1), strict=True)),
            IMAGE,
            planted(("b.weight", (0,), 1), ("d.weight", (0, 1), 1)),
            a=conv(3, 9),
            b=conv(3, 4),
            c=conv(3, 4),
            d=conv(3, 4),
        ),
        {"a.weight": 3},
    ),
    "slices": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x)[:, 2:]) + m.c(m.a2(x)[:, 3]).sum(),
            IMAGE,
            planted(("b.weight", (1, 2), 1)),
            a=conv(3, 7),
            a2=conv(3, 7),
            b=conv(5, 4),
            c=nn.Linear(8, 4),
        ),
        {"a.weight": 2},
    ),
    "flattened": lambda: Case(
        *wired(
            lambda m, x: m.b(F.max_pool2d(m.a(x), 2).flatten(1)),
            IMAGE,
            planted(("a.weight", (1,), 0), ("b.weight", tuple(range(32, 48)), 1)),
            a=conv(3, 4),
            b=nn.Linear(64, 5),
        ),
        {"a.weight": 2},
    ),
    "depthwise": lambda: Case(
        *wired(
            lambda m, x: m.c(m.d(m.a(x).relu()).relu()),
            IMAGE,
            planted(("a.weight", (1,), 0), ("a.bias", (1,), 0), ("c.weight", (3,), 1)),
            a=conv(3, 5),
            d=conv(5, 5, 3, padding=1, groups=5),
            c=conv(5, 4),
        ),
        {"a.weight": 2},
    ),
    "depthwise filters that double": lambda: Case(
        *wired(
            lambda m, x: m.c(m.d(m.a(x))),
            IMAGE,
            planted(("c.weight", (2, 3, 4), 1)),
            a=conv(3, 5),
            d=conv(5, 10, 3, groups=5),
            c=conv(10, 4),
        ),
        {"a.weight": 1},
    ),
    "grouped, evenly": lambda: Case(
        *wired(
            lambda m, x: m.c(m.g(m.a(x))),
            IMAGE,
            planted(("c.weight", (0, 3, 4), 1), ("g.weight", (0,), 1)),
            a=conv(3, 6),
            g=conv(6, 6, groups=2),
            c=conv(6, 4),
        ),
        {"a.weight": 2, "g.weight": 2},
        "the groups of a convolution must stay of one size",
    ),
    "a whole group": lambda: Case(
        *wired(
            lambda m, x: m.c(m.g(m.a(x))),
            IMAGE,
            planted(("c.weight", (3, 4, 5), 1)),
            a=conv(3, 4),
            g=conv(4, 6, groups=2),
            c=conv(6, 4),
        ),
        {"a.weight": 2, "g.weight": 3},
    ),
    "transposed convolution": lambda: Case(
        *wired(
            lambda m, x: m.c(m.t(m.a(x).relu())),
            IMAGE,
            planted(("t.weight", (2,), 0), ("c.weight", (0, 1), 1)),
            a=conv(3, 5),
            t=nn.ConvTranspose2d(5, 6, 2, stride=2),
            c=conv(6, 4),
        ),
        {"a.weight": 1, "t.weight": 2},
    ),
    "embedding": lambda: Case(
        *wired(
            lambda m, i: m.b(m.table(i)),
            (torch.randint(0, 7, (2, 5)),),
            planted(("b.weight", (0, 2), 1)),
            table=nn.Embedding(7, 6),
            b=nn.Linear(6, 4),
        ),
        {"table.weight": 2},
    ),
    "one after another": lambda: Case(
        *wired(
            lambda m, x: m.d(m.c(m.b(m.a(x)))),
            TOKENS,
            planted(("d.weight", (0, 1), 1), ("c.weight", (2, 3, 4, 5), 0)),
            a=nn.Linear(12, 8),
            b=nn.Linear(8, 7),
            c=nn.Linear(7, 6),
            d=nn.Linear(6, 5),
        ),
        {"c.weight": 5},
        "one unit of every layer stays",
    ),
    "products with constants": lambda: Case(
        *wired(
            lambda m, x: (x @ m.a).relu() @ m.b.t(),
            TOKENS,
            planted(("a", (1,), 1), ("b", (4,), 1)),
            a=nn.Parameter(torch.randn(12, 6)),
            b=nn.Parameter(torch.randn(5, 6)),
        ),
        {"a": 2},
    ),
    "products whose constant makes a bias": lambda: Case(
        *wired(
            lambda m, x: ((x @ m.a) + m.shift).relu() @ m.b,
            TOKENS,
            planted(("a", (1,), 1)),
            a=nn.Parameter(torch.randn(12, 6)),
            shift=nn.Parameter(torch.ones(6)),
            b=nn.Parameter(torch.randn(6, 5)),
        ),
        {"a": 1},
    ),
    "shared weights stay": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(m.a(x).relu()).relu()),
            TOKENS,
            planted(("a.weight", (1,), 0)),
            a=nn.Linear(12, 12),
            b=nn.Linear(12, 4),
        ),
        {},
        "several operators share a.weight",
    ),
    "an operator without a rule": lambda: Case(
        *wired(
            lambda m, x: m.b(m.a(x).cumsum(2)),
            TOKENS,
            planted(("a.weight", (1,), 0)),
            a=nn.Linear(12, 6),
            b=nn.Linear(6, 4),
        ),
        {},
        "there is no rule for aten.cumsum here",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    case = CASES[name]()
    program, slimming = slimmed(case.model, *case.inputs)
    assert gone(slimming) == case.gone
    assert case.kept in kept(slimming) if case.kept else True
    again = Slim(tuple(x.double() if x.is_floating_point() else x for x in case.inputs))(program)
    assert again.graph is program.graph, "nothing is left to do"
    assert slimming.parameters[1] < slimming.parameters[0] or not case.gone


def test_skipped_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    zero(model[0].weight, 1)
    _, slimming = slimmed(model, torch.randn(2, 6), skip=("2",))
    assert gone(slimming) == {}
    assert kept(slimming) == {"skipped on request": 1}


def test_blocks_are_not_torn() -> None:
    """4x1 blocks that share their zeros: a lone unit that nobody reads would shift all blocks after it."""
    model: Any = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    model[0].weight.data *= (torch.rand(8, 1, 32) < 0.3).expand(8, 4, 32).reshape(32, 32)
    zero(model[2].weight, 0, 8, 9, 10, 11, dim=1)
    _, slimming = slimmed(model, torch.randn(2, 32))
    assert gone(slimming) == {"0.weight": 4}
    assert kept(slimming) == {"zeros of 0.weight are in blocks that would be torn": 1}


def test_leaves_others_alone() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval(), torch.randn(2, 4)
    program = captured(model, x)
    assert Slim((x,))(program).graph is program.graph
