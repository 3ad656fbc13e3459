"""The programme against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp.pruning.allocate import Array, frontier, runners_up

NUMBERS = st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Array], list[Array]]:
    """Costs and errors of up to five layers with up to four options."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    costs, errors = (
        [np.array(draw(st.lists(NUMBERS, min_size=count, max_size=count))) for count in counts]
        for _ in range(2)
    )
    return costs, errors


def least_error(costs: list[Array], errors: list[Array], budget: float) -> float | None:
    """By trying every plan."""
    found = None
    for plan in itertools.product(*(range(len(cost)) for cost in costs)):
        cost = sum(float(c[o]) for c, o in zip(costs, plan, strict=True))
        error = sum(float(e[o]) for e, o in zip(errors, plan, strict=True))
        if cost <= budget * (1 + 1e-9) and (found is None or error < found):
            found = error
    return found


@given(problems(), st.floats(0, 300))
def test_the_best_plan_is_that_of_brute_force(
    problem: tuple[list[Array], list[Array]], budget: float
) -> None:
    costs, errors = problem
    front = frontier(costs, errors)
    number, best = front.within(budget), least_error(costs, errors, budget)
    if number is None:
        assert best is None
        return
    plan = front.choice(number)
    assert front.errors[number] == pytest.approx(best, abs=1e-9)
    assert sum(e[o] for e, o in zip(errors, plan, strict=True)) == pytest.approx(best, abs=1e-9)
    assert sum(c[o] for c, o in zip(costs, plan, strict=True)) == pytest.approx(front.costs[number])
    assert front.costs[number] <= budget * (1 + 1e-9)


@given(problems())
def test_no_plan_of_the_frontier_beats_another(problem: tuple[list[Array], list[Array]]) -> None:
    front = frontier(*problem)
    assert (np.diff(front.costs) > 0).all()
    assert (np.diff(front.errors) < 0).all()


@given(problems(), st.integers(2, 6))
def test_with_few_states_plans_cost_what_they_say(
    problem: tuple[list[Array], list[Array]], states: int
) -> None:
    costs, errors = problem
    front = frontier(costs, errors, states)
    cheapest = sum(float(cost.min()) for cost in costs)
    assert front.costs[0] == pytest.approx(cheapest, abs=1e-9)
    assert len(front) <= states
    for number in range(len(front)):
        plan = front.choice(number)
        assert sum(c[o] for c, o in zip(costs, plan, strict=True)) == pytest.approx(front.costs[number])
        assert sum(e[o] for e, o in zip(errors, plan, strict=True)) == pytest.approx(front.errors[number])


def test_many_layers_lose_next_to_nothing_by_thinning() -> None:
    generator = np.random.default_rng(0)
    densities = np.array([1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05])
    sizes = generator.uniform(1, 20, 60)
    costs = [size * densities for size in sizes]
    errors = [size * generator.uniform(0.5, 2) * (1 - densities) ** 2 for size in sizes]
    budget = 0.4 * sizes.sum()
    some, many = (frontier(costs, errors, states) for states in (1024, 16384))
    (few, all_) = (front.within(budget) for front in (some, many))
    assert few is not None
    assert all_ is not None
    assert some.errors[few] <= 1.01 * many.errors[all_]


def test_a_budget_below_the_cheapest_plan_has_none() -> None:
    front = frontier([np.array([2.0, 1.0])], [np.array([0.0, 1.0])])
    assert front.within(0.5) is None
    assert front.within(1.0) == 0


def test_runners_up_are_those_whose_price_is_nearest() -> None:
    costs, errors = np.array([4.0, 3.0, 2.0, 2.5]), np.array([0.0, 1.0, 3.0, 9.0])
    # From option 1: dense at a price of 1 less, option 2 at 2 more; option 3 is beaten by option 2 and comes last.
    assert set(runners_up(costs, errors, 1)) == {0, 2}
    assert runners_up(costs, errors, 1, 3)[-1] == 3
    assert runners_up(np.array([1.0]), np.array([0.0]), 0) == ()
