"""One weight, by every method and structure."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.errors import InputError
from sparsecomp.pruning import obs
from sparsecomp.pruning.candidate import DENSE, Candidate, default_candidates
from sparsecomp.pruning.prune import METHODS, Method, prune_each, prune_weight
from sparsecomp.pruning.pruned import output_error
from sparsecomp.pruning.statistics import Statistics
from tests.pruning.layers import moments, statistics

CANDIDATES = [
    Candidate("unstructured", 0.5),
    Candidate("unstructured", 0.8),
    Candidate("4x1", 0.5),
    Candidate("4x1", 0.7),
    Candidate("2:4", 0.5),
    Candidate("4x4", 0.5),
    Candidate("filter", 0.25),
]


WAYS = {
    "both": {},
    "exact": {"ROUNDS_FLOPS": 0},
    "rounds": {"EXACT_COST": 0},
    "sweep": {"EXACT_COST": 0, "ROUNDS_FLOPS": 0},
}


@pytest.fixture(params=[name for name in WAYS if name != "both"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How OBS goes about it, whatever the layer's size."""
    for name, limit in WAYS[request.param].items():
        monkeypatch.setattr(obs, name, limit)
    return str(request.param)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_obs_beats_wanda_beats_magnitude(candidate: Candidate, way: str) -> None:
    """On correlated inputs, in 95 of 100 layers."""
    ordered = 0
    for seed in range(20):
        torch.manual_seed(seed)
        found, weight = statistics(160), torch.randn(32, 160)
        methods: tuple[Method, ...] = ("obs", "wanda", "magnitude")
        errors = [prune_weight(weight, candidate, found, method).error for method in methods]
        ordered += errors[0] <= errors[1] + 1e-12 and errors[1] <= errors[2] + 1e-12
    assert ordered >= 19


@pytest.mark.parametrize("candidate", CANDIDATES[:-1], ids=str)
def test_each_way_is_better_than_the_sweep(candidate: Candidate) -> None:
    found, weight = statistics(160), torch.randn(32, 160)
    results = {}
    for name, limits in WAYS.items():
        with pytest.MonkeyPatch.context() as patch:
            for limit, value in limits.items():
                patch.setattr(obs, limit, value)
            results[name] = prune_weight(weight, candidate, found)
    errors = {name: result.error for name, result in results.items()}
    assert errors["both"] == pytest.approx(min(errors.values()))
    assert max(errors["exact"], errors["rounds"]) < errors["sweep"]
    assert [results[name].method for name in WAYS if name != "both"] == [
        "obs, exact",
        "obs, rounds",
        "obs, sweep",
    ]
    assert len({int(result.mask.sum()) for result in results.values()}) == 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(8, 12), (7, 10), (8, 3, 3, 3), (6, 4, 1, 1), (4, 5, 3), (1, 1), (2, 6, 2, 2)]),
    structure=st.sampled_from(
        ["unstructured", "4x1", "2x3", "2:4", "1:3", "filter", "kernel", "shape", "channel"]
    ),
    sparsity=st.floats(0.05, 0.95),
    method=st.sampled_from(METHODS),
    groups=st.sampled_from([1, 2]),
    way=st.sampled_from(list(WAYS)),
    repair=st.booleans(),
    seed=st.integers(0, 99),
)
def test_laws(
    shape: tuple[int, ...],
    structure: str,
    sparsity: float,
    method: Method,
    groups: int,
    way: str,
    repair: bool,
    seed: int,
) -> None:
    """Zeros where the mask says, kept weights of magnitude and Wanda as they were, the structure's own shape, as many
    groups gone as asked, an error that is true."""
    torch.manual_seed(seed)
    weight = torch.randn(shape)
    columns = weight[0].numel()
    groups = groups if shape[0] % groups == 0 else 1
    gradients = torch.randn(6, shape[0], columns)
    found = Statistics(400, moments(columns, groups), gradients.double().square().mean(dim=0), gradients)
    pattern = Candidate(structure, 0.0).structure
    candidate = Candidate(structure, sparsity if pattern.only_sparsity is None else pattern.only_sparsity)
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in WAYS[way].items():
            patch.setattr(obs, name, limit)
        pruned = prune_weight(weight, candidate, found, method, repair=repair)
    assert pruned.weight.shape == pruned.mask.shape == weight.shape
    assert pruned.weight.dtype == weight.dtype
    assert bool((pruned.weight[~pruned.mask] == 0).all())
    if method in ("magnitude", "wanda", "fisher") and not repair:
        assert torch.equal(pruned.weight, weight * pruned.mask)
    matrix = pruned.mask.reshape(shape[0], columns)
    if pattern.n_of_m:
        n, m = pattern.n_of_m
        lines = torch.nn.functional.pad(matrix.long(), (0, -columns % m)).reshape(-1, m)
        assert int(lines.sum(dim=1).max()) <= n
    else:
        call = type(
            "Tiled", (), {"shape": (shape[0], columns), "taps": weight[0, 0].numel(), "groups": groups}
        )()
        tiling = pattern.tiling(call)
        sums, sizes = tiling.sums(matrix.float()), tiling.sizes((shape[0], columns))
        assert bool(((sums == 0) | (sums == sizes)).all())
        asked = min(sizes.numel() - 1, round(sparsity * sizes.numel()))
        assert abs(int((sums == 0).sum()) - asked) <= (
            groups if way == "sweep" or structure == "filter" else 0
        )
    assert pruned.error == pytest.approx(
        output_error(weight.reshape(shape[0], -1), pruned.weight.reshape(shape[0], -1), found),
        rel=1e-4,
        abs=1e-9,
    )


def test_error_is_that_of_the_output() -> None:
    x, weight = torch.randn(50, 12).double(), torch.randn(6, 12).double()
    found = Statistics(50, (x.T @ x / 50)[None])
    pruned = prune_weight(weight, Candidate("unstructured", 0.5), found)
    y, z = x @ weight.T, x @ pruned.weight.T
    assert pruned.error == pytest.approx(float((y - z).square().sum() / y.square().sum()))
    plain = prune_weight(weight, Candidate("unstructured", 0.5), None, "magnitude")
    assert plain.error == pytest.approx(float((weight - plain.weight).square().sum() / weight.square().sum()))


@pytest.mark.parametrize("method", ["obs", "wanda"])
def test_dead_inputs_go_first_and_cost_nothing(method: Method) -> None:
    found = moments(16)
    found[:, 3] = found[:, :, 3] = found[:, 9] = found[:, :, 9] = 0
    pruned = prune_weight(
        torch.randn(8, 16), Candidate("unstructured", 0.125), Statistics(400, found), method
    )
    assert not pruned.mask[:, [3, 9]].any()
    assert pruned.mask.sum() == 8 * 14
    assert pruned.error < 1e-12


def test_singular_inputs_cost_nothing_where_others_can_stand_in() -> None:
    """Three causes for twelve inputs: nine of them are sums of the others."""
    found = statistics(12, rank=3)
    pruned = prune_weight(torch.randn(8, 12), Candidate("unstructured", 0.7), found, damping=0.0)
    assert pruned.error < 1e-3
    assert "singular" in pruned.note


def test_fallbacks_say_why() -> None:
    weight, half = torch.randn(9, 2, 3, 3), Candidate("2x1", 0.5)
    grouped = statistics(18, groups=3)
    assert "calibration" in prune_weight(weight, half).note
    assert prune_weight(weight, half).method == "magnitude"
    across = prune_weight(weight, half, grouped)
    assert "over convolution groups" in across.note
    assert across.error <= prune_weight(weight, half, grouped, "wanda").error
    for method in ("fisher", "woodfisher"):
        assert "labels and a loss" in prune_weight(weight, half, grouped, method).note
    small = prune_weight(torch.randn(1, 1), half, statistics(1))
    assert "too small" in small.note
    assert small.error == 0
    nothing = prune_weight(weight, half, Statistics(9, torch.zeros(1, 18, 18)))
    assert nothing.error == 0
    bad = prune_weight(torch.randn(4, 3), half, Statistics(9, 2 * torch.ones(1, 3, 3) - torch.eye(3)))
    assert "no damping" in bad.note


@pytest.mark.parametrize("method", ["obs", "wanda", "magnitude"])
def test_candidates_together_are_as_each_alone(method: Method) -> None:
    """In whatever order: the ways that share work between sparsities do not share results."""
    torch.manual_seed(0)
    found, weight = statistics(24), torch.randn(10, 24)
    order = [CANDIDATES[number] for number in (1, 2, 0, 4, 3, 6, 5)] + [DENSE, CANDIDATES[0]]
    for pruned, candidate in zip(prune_each(weight, order, found, method), order, strict=True):
        alone = prune_weight(weight, candidate, found, method)
        assert pruned.candidate == candidate
        assert torch.equal(pruned.weight, alone.weight)
        assert pruned.error == alone.error


def test_dense_stays_as_it_is() -> None:
    weight = torch.randn(5, 6)
    pruned = prune_weight(weight, DENSE, statistics(6))
    assert torch.equal(pruned.weight, weight)
    assert pruned.mask.all()
    assert (pruned.error, str(DENSE)) == (0.0, "dense")


def test_bad_input() -> None:
    half = Candidate("unstructured", 0.5)
    with pytest.raises(InputError, match=r"outputs x inputs.*not \(3,\)"):
        prune_weight(torch.randn(3), half)
    with pytest.raises(InputError, match="NaN or infinite"):
        prune_weight(torch.full((2, 2), torch.nan), half)
    with pytest.raises(InputError, match=r"5 inputs.*transposed"):
        prune_weight(torch.randn(5, 3), half, statistics(5))
    with pytest.raises(InputError, match="collect them again"):
        prune_weight(torch.randn(5, 3), half, Statistics(1, torch.full((1, 3, 3), torch.nan)))
    with pytest.raises(InputError, match="'best' is not known"):
        prune_weight(torch.randn(5, 3), half, None, "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="damping"):
        prune_weight(torch.randn(5, 3), half, damping=-1.0)
    with pytest.raises(InputError, match="2:4 leaves a sparsity of"):
        Candidate("2:4", 0.7)
    with pytest.raises(InputError, match="share"):
        Candidate("4x1", 1.0)


def test_default_candidates() -> None:
    found = default_candidates()
    assert found[0].is_dense
    assert len(set(found)) == len(found) == 26
    assert [str(c) for c in found if c.structure.n_of_m] == ["2:4 at 50.0 %"]
    own = [c.sparsity for c in found if str(c.structure) == "4x1"]
    assert (own[0], own[-1]) == (0.4, 0.99)
    ratios = [(1 - b) / (1 - a) for a, b in itertools.pairwise(own)]
    assert max(ratios) - min(ratios) < 0.01
