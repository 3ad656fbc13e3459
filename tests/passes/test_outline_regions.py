"""Which primitives share a region, and that each region is one call."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.primitives import REGION
from tests.passes.programs import Wired, operators, rewritten, same_when_lowered, sections, sparse


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.softmax(self.q(x) - self.k(x) * 2, -1))
        return y


def test_siblings_share_a_region_and_softmax_ends_it() -> None:
    model, x = sparse(Siblings()), torch.randn(3, 16)
    program = rewritten(model, x)
    assert [len(body.section.ops) for body in program.regions.values()] == [2, 1]
    assert same_when_lowered(program, model, x)


class Returning(nn.Module):
    """A path leaves the first layer, through a softmax, and comes back into the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z: Tensor = self.last(y) + torch.softmax(y, -1)
        return z


def test_a_region_does_not_wait_for_what_it_feeds() -> None:
    model, x = sparse(Returning()), torch.randn(3, 16)
    program = rewritten(model, x)
    assert [len(body.section.ops) for body in program.regions.values()] == [1, 1]
    assert same_when_lowered(program, model, x)


def test_a_chain_is_one_region() -> None:
    model = sparse(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()))
    x = torch.randn(2, 8, 12, 12)
    program = rewritten(model, x)
    (body,) = program.regions.values()
    assert [str(op).split("|")[1].strip() for op in body.section.ops] == ["bias relu", "bias relu"]
    assert same_when_lowered(program, model, x)


def test_nothing_to_do() -> None:
    program = rewritten(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert not program.regions


def block(s: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A transformer's, norms first."""
    q, k, v = (layer(s.before(x)).view(2, 5, 4, 4).transpose(1, 2) for layer in (s.q, s.k, s.v))
    mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(x.shape)
    x = x + s.out(mixed)
    y: Tensor = x + s.down(F.gelu(s.up(s.after(x))))
    return y


def transformer_block() -> nn.Module:
    layers = {name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")}
    norms = {name: nn.LayerNorm(16) for name in ("before", "after")}
    return sparse(Wired(block, **layers, **norms, up=nn.Linear(16, 32), down=nn.Linear(32, 16)))


def test_a_transformer_block_is_one_region() -> None:
    model, x, mask = transformer_block(), torch.randn(2, 5, 16), torch.randn(2, 1, 5, 5)
    program = rewritten(model, x, mask)
    (section,) = sections(program)
    assert section.count("layer norm") == 4  # three of them equal: one for each of q, k and v
    assert section.count("linear") == 6
    assert operators(program) == ["sparsecomp.score_mask", "sparsecomp.region", "getitem"]
    assert same_when_lowered(program, model, x, mask)


def test_a_score_mask_is_an_input_of_its_region() -> None:
    model, x, mask = transformer_block(), torch.randn(2, 5, 16), torch.randn(2, 1, 5, 5)
    (body,) = rewritten(model, x, mask).regions.values()
    assert body.section.inputs == ("inputs_0", "score_mask_default")
    assert body.section.input_shapes == [(2, 5, 16), (2, 1, 5, 16)]
    assert body.section.sequence == 5
    assert not body.section.images


def test_vectors_of_norms_go_with_them() -> None:
    model = sparse(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16, bias=False)))
    (body,) = rewritten(model, torch.randn(3, 16)).regions.values()
    assert [len(vectors) for vectors in body.vectors.values()] == [1, 2, 0]
    assert torch.equal(body.vectors["layer_norm"][0], model[1].weight)  # type: ignore[index]
    assert list(body.packed) == list(body.how) == ["linear", "linear_1"]


def read_by_many(s: Any, x: Tensor) -> Any:
    y = s.norm(s.a(x))
    return y, s.b(y), y.softmax(-1) + y.cumsum(0), x


def test_a_result_that_many_read_leaves_once() -> None:
    model = sparse(Wired(read_by_many, a=nn.Linear(16, 16), b=nn.Linear(16, 16), norm=nn.LayerNorm(16)))
    x = torch.randn(3, 16)
    program = rewritten(model, x)
    (body,) = program.regions.values()
    assert body.section.outputs == ("layer_norm", "linear_1")
    assert body.ended_by == ("aten.cumsum", "aten.softmax.int", "output")
    assert same_when_lowered(program, model, x)


def test_a_call_gives_a_tensor_for_each_output() -> None:
    model = sparse(Wired(read_by_many, a=nn.Linear(16, 16), b=nn.Linear(16, 16), norm=nn.LayerNorm(16)))
    nodes = rewritten(model, torch.randn(3, 16)).graph.graph.nodes
    (call,) = (node for node in nodes if node.target is REGION)
    assert [user.args for user in call.users] == [(call, 0), (call, 1)]
    assert all(user.target is operator.getitem for user in call.users)
    assert [value.shape for value in call.meta["val"]] == [user.meta["val"].shape for user in call.users]


def test_images_and_what_is_made_of_them_are_one_region() -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(s.a(x)), 3, 2, 1)
        z: Tensor = s.b(y).mean((2, 3))
        return z

    model = sparse(Wired(function, a=nn.Conv2d(4, 8, 3), b=nn.Conv2d(8, 8, 3)))
    x = torch.randn(2, 4, 12, 12)
    program = rewritten(model, x)
    assert sections(program) == [["conv2d", "max pool 3x3", "conv2d", "mean"]]
    (body,) = program.regions.values()
    assert body.section.images
    assert same_when_lowered(program, model, x)
