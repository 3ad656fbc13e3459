"""Values that are alive at once do not overlap, and padding that must be zero stays so."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.arena import SLACK, ArenaPool, plan_arena, value_size
from sparsecomp.geometry import LINE, TILE, Geometry, Planes, Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Call, Enter, Exit, Region, Rows, Schedule, Split, Value
from sparsecomp.work import Attention, Norm, Pointwise

SCHEDULE = Schedule(4, 8)
NORM, ATTENTION = Norm("rms", 4, 1e-6, False, False), Attention(1, 1, 1, 1, 1.0)
NARROW, WIDE = Planes(4, 4, 4, 48, 0), Planes(4, 4, 6, 80, 16)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Random calls that read any value written before; grids do not matter to the planner.

    Values are images, some with zeros around them, or sequences of one tile or several.
    """
    values, calls = list[tuple[str, Value]](), list[Call]()
    geometries: st.SearchStrategy[Geometry] = draw(
        st.sampled_from(
            [st.sampled_from([NARROW, WIDE]), st.just(Tokens(length=5)), st.just(Tokens(length=300))]
        )
    )

    def written(kind: str) -> str:
        name, geometry = f"v{len(values)}", draw(geometries)
        zero_pads = isinstance(geometry, Planes) and draw(st.booleans())
        values.append((name, Value(draw(st.integers(1, 20)), geometry, zero_pads)))
        return name

    calls.append(Enter(0, written("enter")))
    for _ in range(draw(st.integers(1, 10))):
        before = st.sampled_from([name for name, _ in values])
        match draw(st.sampled_from(["enter", "split", "rows", "norm", "attention", "sum", "exit"])):
            case "enter":
                calls.append(Enter(0, written("enter")))
            case "split":
                calls.append(Split(draw(before), written("split"), (2, 2), ((0, 0),)))
            case "rows":
                source, tensor = draw(before), draw(before)
                rows = Rows(
                    source, written("rows"), 0, (4, 4), 0, RowBlocks(1), SCHEDULE, "add", (), (tensor,)
                )
                calls.append(rows)
            case "norm":
                calls.append(Apply(NORM, (draw(before),), written("norm")))
            case "attention":
                sources = (draw(before), draw(before), draw(before))
                calls.append(Apply(ATTENTION, sources, written("attention")))
            case "sum":
                source, tensor = draw(before), draw(before)
                calls.append(Apply(Pointwise(), (source,), written("sum"), "add", (), (tensor,)))
            case _:
                calls.append(Exit(draw(before), 0))
    return Region((Border(4, 4, 4),), (Border(4, 4, 4),), tuple(values), tuple(calls))


def lifetimes(region: Region) -> dict[str, range]:
    """Positions of the calls from the one that writes a value to the last that reads it."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for position, call in enumerate(region.calls):
        read = () if isinstance(call, Enter) else getattr(call, "sources", None) or (call.source,)  # type: ignore[union-attr]
        for name in (*read, *getattr(call, "tensors", ())):
            last[name] = position
        if not isinstance(call, Exit):
            first[call.target] = last[call.target] = position
    return {name: range(first[name], last[name] + 1) for name in first}


@settings(max_examples=300, deadline=None)
@given(regions())
def test_values_alive_at_once_do_not_overlap(region: Region) -> None:
    arena, alive, value = plan_arena(region), lifetimes(region), region.value
    for one, other in itertools.combinations(alive, 2):
        if set(alive[one]) & set(alive[other]):
            first, second = sorted((one, other), key=arena.offsets.__getitem__)
            assert arena.offsets[first] + value_size(value[first]) <= arena.offsets[second]


@settings(max_examples=300, deadline=None)
@given(regions())
def test_a_slot_with_zero_padding_is_only_shared_by_its_like(region: Region) -> None:
    arena, value = plan_arena(region), region.value
    for one, other in itertools.combinations(value, 2):
        first, second = sorted((one, other), key=arena.offsets.__getitem__)
        overlap = arena.offsets[second] < arena.offsets[first] + value_size(value[first])
        if overlap and (value[one].zero_pads or value[other].zero_pads):
            assert arena.offsets[one] == arena.offsets[other]
            assert value[one].zero_pads
            assert value[other].zero_pads
            assert value[one].geometry == value[other].geometry


@settings(max_examples=300, deadline=None)
@given(regions())
def test_values_are_aligned_and_have_slack_on_both_sides(region: Region) -> None:
    arena = plan_arena(region)
    for name, offset in arena.offsets.items():
        assert offset % LINE == 0
        assert SLACK <= offset <= arena.size - value_size(region.value[name]) - SLACK
    assert arena.size % LINE == 0


def test_a_sequence_of_several_tiles_takes_as_many() -> None:
    one, several = Value(12, Tokens(length=TILE)), Value(12, Tokens(length=300))
    assert value_size(several) == 5 * value_size(one) == 5 * 16 * TILE
    assert value_size(Value(12, Tokens())) == value_size(one)


def test_attention_does_not_overwrite_what_it_reads() -> None:
    """Though nobody reads it afterwards."""
    value = Value(8, Tokens(length=300))
    calls = (
        Enter(0, "q"),
        Enter(1, "k"),
        Enter(2, "v"),
        Apply(ATTENTION, ("q", "k", "v"), "y"),
        Apply(NORM, ("y",), "z"),
        Exit("z", 0),
    )
    region = Region((Border(8),) * 3, (Border(8),), tuple((name, value) for name in "qkvyz"), calls)
    offsets = plan_arena(region).offsets
    assert offsets["y"] not in {offsets[name] for name in "qkv"}
    assert offsets["z"] in {offsets[name] for name in "qkv"}


def test_a_chain_uses_two_slots() -> None:
    names = [f"v{i}" for i in range(6)]
    calls: list[Call] = [Enter(0, "v0")]
    calls += [Rows(a, b, 0, (8, 8), 0, RowBlocks(1), SCHEDULE) for a, b in itertools.pairwise(names)]
    region = Region(
        (Border(8),), (Border(8),), tuple((n, Value(8, Tokens())) for n in names), (*calls, Exit("v5", 0))
    )
    assert len(set(plan_arena(region).offsets.values())) == 2


def test_an_arena_is_lent_to_one_caller_at_a_time() -> None:
    pool = ArenaPool(64)
    with pool.lend(1) as first, pool.lend(1) as second:
        assert first.data_ptr() != second.data_ptr()
        assert not first.any()
    with pool.lend(1) as again:
        assert again.data_ptr() in (first.data_ptr(), second.data_ptr())


def test_more_threads_get_a_larger_arena() -> None:
    pool = ArenaPool(64)
    with pool.lend(1) as small:
        assert small.numel() >= 64
    with pool.lend(3) as large:
        assert large.numel() >= 192
        assert not large.any()


def test_threads_never_share_an_arena() -> None:
    pool = ArenaPool(1024)

    def fill(number: int) -> bool:
        with pool.lend(1) as arena:
            arena.fill_(number)
            return bool((arena == number).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(fill, range(400)))


def test_the_pool_keeps_few_spare_arenas() -> None:
    pool = ArenaPool(16, spare=2)
    lent = [pool.lend(1) for _ in range(5)]
    arenas = [one.__enter__() for one in lent]
    for one in lent:
        one.__exit__(None, None, None)
    assert len(pool._free) == 2
    assert isinstance(arenas[0], torch.Tensor)
