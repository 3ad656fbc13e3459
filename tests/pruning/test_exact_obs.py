"""Optimal Brain Surgeon, checked against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparsecomp.pruning.exact_obs import removal_trace
from sparsecomp.pruning.hessian import Hessian
from sparsecomp.pruning.repair import least_squares
from tests.pruning.layers import error, moments


def best(weight: Tensor, matrix: Tensor, gone: tuple[int, ...]) -> float:
    """The least error without these columns, by torch's own least squares on a square root of the Hessian."""
    kept = [column for column in range(weight.shape[1]) if column not in gone]
    root = torch.linalg.cholesky(matrix).T  # H = root^T root: ||root (w' - w)||
    solved = torch.linalg.lstsq(root[:, kept], root @ weight.T, driver="gelsd").solution
    full = torch.zeros_like(weight)
    full[:, kept] = solved.T
    return error(weight, full, matrix)


def hessian(columns: int) -> Hessian:
    found = Hessian.of(moments(columns))
    assert found is not None
    return found


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_the_first_removal_is_the_best_of_all(rows: int, width: int) -> None:
    for _ in range(5):
        h, weight = hessian(6), torch.randn(rows, 6).double()
        trace = removal_trace(weight[None], h.inverse, width)
        costs = [best(weight, h.matrix[0], tuple(range(g, g + width))) for g in range(0, 6, width)]
        assert int(trace.order[0, 0]) == costs.index(min(costs))
        assert float(trace.losses[0, 0]) == pytest.approx(min(costs), rel=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_every_step_costs_what_the_least_squares_say(rows: int, width: int) -> None:
    """Several blocks with inverses of two convolution groups; each removal is the best one given those before."""
    h = Hessian.of(moments(12, groups=2))
    assert h is not None
    weights = torch.randn(4, rows, 12).double()
    trace = removal_trace(weights, h.inverse, width)
    for block in range(4):
        matrix, gone, spent = h.matrix[block // 2], (), 0.0
        for step, group in enumerate(trace.order[block].tolist()):
            left = [g for g in range(12 // width) if g * width not in gone]
            options = {
                g: best(weights[block], matrix, (*gone, *range(g * width, (g + 1) * width))) for g in left
            }
            assert options[group] == pytest.approx(min(options.values()), rel=1e-6)
            spent += float(trace.losses[block, step])
            assert spent == pytest.approx(options[group], rel=1e-5)
            gone = (*gone, *range(group * width, (group + 1) * width))
            if len(gone) == 12 - width:
                break


def test_n_of_m_keeps_n_of_each_m() -> None:
    h, weights = hessian(12), torch.randn(5, 1, 12).double()
    trace = removal_trace(weights, h.inverse, 1, torch.full((3,), 2))
    kept = trace.kept(trace.order.numel())
    assert bool((kept.reshape(5, 3, 4).sum(dim=2) == 2).all())
    greedy = sum(
        best(weights[b], h.matrix[0], tuple((~kept[b]).nonzero().flatten().tolist())) for b in range(5)
    )
    assert float(trace.losses.sum()) == pytest.approx(greedy, rel=1e-5)
    choices = [
        [4 * bucket + column for bucket, pair in enumerate(pairs) for column in pair]
        for pairs in itertools.product(itertools.combinations(range(4), 2), repeat=3)
    ]
    perfect = sum(min(best(weight, h.matrix[0], tuple(gone)) for gone in choices) for weight in weights)
    assert perfect <= greedy * (1 + 1e-9) < 3 * perfect


def test_what_goes_first_over_all_blocks_is_what_costs_least() -> None:
    h, weights = hessian(8), torch.randn(6, 1, 8).double() * torch.arange(1.0, 7.0)[:, None, None]
    trace = removal_trace(weights, h.inverse, 1)
    for count in (0, 1, 20, 47, 48):
        kept = trace.kept(count)
        assert int((~kept).sum()) == count
        for block in range(6):  # each block in its own order
            gone = int((~kept[block]).sum())
            assert not kept[block][trace.order[block, :gone]].any()
    assert trace.kept(24).sum(dim=1)[0] < trace.kept(24).sum(dim=1)[5]


@pytest.mark.parametrize("groups", [1, 2])
def test_least_squares_are_those_of_torch(groups: int) -> None:
    h = Hessian.of(moments(10, groups))
    assert h is not None
    weight = torch.randn(groups, 6, 10).double()
    mask = torch.rand(groups, 6, 10) > 0.5
    mask[:, 1] = mask[:, 0]  # rows that share a mask
    mask[:, 2] = False
    mask[:, 3] = True
    solved = least_squares(weight, mask, h)
    assert bool((solved[~mask] == 0).all())
    torch.testing.assert_close(solved[:, 3], weight[:, 3])
    for group in range(groups):
        for row in range(6):
            gone = tuple((~mask[group, row]).nonzero().flatten().tolist())
            own = weight[group, row : row + 1]
            expected = (
                best(own, h.matrix[group], gone) if len(gone) < 10 else error(own, 0 * own, h.matrix[group])
            )
            found = error(own, solved[group, row : row + 1], h.matrix[group])
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_iterations_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    h, weight = hessian(40), torch.randn(1, 16, 40).double()
    mask = torch.rand(1, 16, 40) > 0.6
    exact = least_squares(weight, mask, h)
    monkeypatch.setattr("sparsecomp.pruning.repair.CHOLESKY_FLOPS", 0)
    iterated = least_squares(weight, mask, h)
    assert bool((iterated[~mask] == 0).all())
    least = error(weight[0], exact[0], h.matrix[0])
    assert error(weight[0], iterated[0], h.matrix[0]) == pytest.approx(least, rel=1e-2)


def test_singular_and_dead_inputs_make_a_hessian() -> None:
    singular = moments(9, rank=3)
    singular[:, 4] = singular[:, :, 4] = 0
    found = Hessian.of(singular, 0.0)
    assert found is not None
    assert found.damping > 0
    assert found.dead.tolist() == [[column == 4 for column in range(9)]]
    torch.testing.assert_close(found.matrix @ found.inverse, torch.eye(9).double()[None], rtol=0, atol=1e-6)
    healthy = Hessian.of(moments(9), 0.0)
    assert healthy is not None
    assert healthy.damping == 0
    assert Hessian.of(-torch.eye(3)[None] + 2 * torch.ones(1, 3, 3)) is None
