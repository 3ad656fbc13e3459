"""The winner of several ways, improved by trying."""

from __future__ import annotations

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.polish import DRAWS, TRIES, polished
from sparsecomp.pruning.series import Choices, OptimalSeries, first_within

SPARSITIES = tuple(n / 20 for n in range(4, 20))
SINGLE = (DENSE, *(Candidate("unstructured", s) for s in SPARSITIES))
EVERY = (*SINGLE, *(Candidate("4x1", s) for s in SPARSITIES))
LAYERS = ("a", "b", "c")
BUDGET = 1.5


def cost(name: str, candidate: Candidate) -> float:
    """Blocks are twice as fast."""
    return (1 - candidate.sparsity) / (1 if str(candidate.structure) == "unstructured" else 2)


def error(name: str, candidate: Candidate) -> float:
    return candidate.sparsity**2


def truth(choices: Choices) -> float:
    """Blocks do harm in one layer only."""
    harm = {"a": 100.0, "b": 1.0, "c": 1.0}
    return sum(
        error(name, c) * (1 if str(c.structure) == "unstructured" else harm[name])
        for name, c in choices.items()
    )


def plan_of(series: OptimalSeries) -> Choices:
    number = first_within(series, BUDGET)
    assert number is not None
    return series.choices(number)


def test_the_best_of_one_structure_gets_another_where_that_helps() -> None:
    start = OptimalSeries(dict.fromkeys(LAYERS, SINGLE), cost, error)
    asked: list[Choices] = []

    def loss(choices: Choices) -> float:
        asked.append(choices)
        return truth(choices)

    found = polished(start, dict.fromkeys(LAYERS, EVERY), BUDGET, loss)
    better = plan_of(found)
    assert truth(better) < truth(plan_of(start))
    assert "4x1" in {str(better[name].structure) for name in "bc"}
    assert better["a"].is_dense or str(better["a"].structure) == "unstructured"
    assert sum(cost(name, c) for name, c in better.items()) <= BUDGET
    assert asked[0] == plan_of(start)
    assert len({str(choices) for choices in asked}) == len(asked) <= TRIES + 1  # each plan is asked for once
    assert plan_of(polished(start, dict.fromkeys(LAYERS, EVERY), BUDGET, truth)) == better


def test_blocks_alone_are_left_by_a_draw_only() -> None:
    """That a dense layer counts as unstructured lets single weights in nowhere."""
    blocks = (DENSE, *(Candidate("4x1", s) for s in SPARSITIES))
    asked: list[Choices] = []

    def harm(name: str, candidate: Candidate) -> float:
        return error(name, candidate) * (1 if str(candidate.structure) == "unstructured" else 9)

    def loss(choices: Choices) -> float:
        asked.append(choices)
        return float(len(asked))  # nothing is better than the start

    start = OptimalSeries(dict.fromkeys(LAYERS, blocks), cost, harm)
    assert polished(start, dict.fromkeys(LAYERS, EVERY), BUDGET, loss) is start
    single = [sum(str(c) != "dense" and "4x1" not in str(c) for c in choices.values()) for choices in asked]
    assert max(single) <= 1  # of three layers one is drawn at a time


def test_a_start_that_nothing_beats_is_kept() -> None:
    start = OptimalSeries(dict.fromkeys(LAYERS, EVERY), cost, error)
    best = plan_of(start)
    assert polished(start, start.candidates, BUDGET, lambda c: 0.0 if c == best else 1.0) is start


def test_it_ends_where_there_is_one_plan() -> None:
    only = dict.fromkeys(LAYERS, (DENSE,))
    start = OptimalSeries(only, lambda name, c: 0.1, error)
    assert polished(start, only, BUDGET, truth) is start
    assert DRAWS > TRIES
