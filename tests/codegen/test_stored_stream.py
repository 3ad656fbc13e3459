"""A stream comes back from a file bit for bit, in the smaller of its forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp import ArtifactError
from sparsecomp.codegen.octets import WORDS
from sparsecomp.codegen.stored_stream import restore, store
from sparsecomp.codegen.stream import Stream, make_stream
from sparsecomp.geometry import TokenRows
from sparsecomp.pattern import IN_PLACE, PATTERNS, RowBlocks, pack
from sparsecomp.region import Depthwise, FewTokens, FewWeights, RowsKernelChoice, Schedule
from tests.codegen.test_stream import LAYERS, allowed, random_matrix, stream_of


def same(left: Stream, right: Stream) -> bool:
    """Bits, not numbers: an offset may look like a NaN."""
    pairs = zip(left.parts, right.parts, strict=True)
    heads = [(s.layer, s.geometry, s.pattern, s.schedule) for s in (left, right)]
    return heads[0] == heads[1] and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(density=st.sampled_from([0.0, 0.01, 0.3, 1.0]), columns=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_stream_comes_back(name: str, pattern: RowBlocks, density: float, columns: int, seed: int) -> None:
    layer, how = LAYERS[name], RowsKernelChoice(pattern, Schedule(4, columns))
    if allowed(layer, pattern):
        stream = stream_of(layer, random_matrix(layer, density, seed), pattern, Schedule(4, columns))
        assert same(restore(store(stream, how)), stream)


@pytest.mark.parametrize("pattern", [RowBlocks(1), RowBlocks(8, shared=True), IN_PLACE], ids=str)
def test_streams_of_few_tokens_come_back(pattern: RowBlocks) -> None:
    layer, schedule = LAYERS["linear"], FewTokens(in_place=pattern == IN_PLACE)
    stream = make_stream(pack(random_matrix(layer, 0.3), pattern), layer, TokenRows(), schedule)
    back = restore(store(stream, RowsKernelChoice(pattern, schedule)))
    assert same(back, stream)
    assert back.in_place == stream.in_place


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_octets_come_back(density: float) -> None:
    layer, how = LAYERS["linear"], RowsKernelChoice(RowBlocks(1), FewWeights())
    stream = make_stream(pack(random_matrix(layer, density), how.pattern), layer, TokenRows(), how.schedule)
    stored = store(stream, how)
    assert stored.form == "bitmap"
    assert stored.nbytes < stream.nbytes
    assert same(restore(stored), stream)


def test_octets_that_do_not_fit_are_refused() -> None:
    layer, how = LAYERS["linear"], RowsKernelChoice(RowBlocks(1), FewWeights())
    stream = make_stream(pack(random_matrix(layer, 0.3), how.pattern), layer, TokenRows(), how.schedule)
    small = store(stream, how)
    whole = replace(small, form="as it is", parts=(stream.index, stream.data, stream.balance, stream.order))
    beside, beyond = stream.data.clone(), stream.index.clone()
    beside[WORDS - 1] = torch.tensor(layer.columns, dtype=torch.int32).view(torch.float32)
    beyond[-1] += 1
    assert same(restore(whole), stream)
    for stored in (
        replace(whole, parts=(stream.index, beside, stream.balance, stream.order)),
        replace(whole, parts=(beyond, stream.data, stream.balance, stream.order)),
        replace(small, parts=(small.parts[0][1:], small.parts[1])),
        replace(small, parts=(small.parts[0], small.parts[1][1:])),
    ):
        with pytest.raises(ArtifactError, match="weight of layer 'l'"):
            restore(stored)


def test_a_depthwise_stream_comes_back() -> None:
    layer, pattern = LAYERS["depthwise"], RowBlocks(1)
    like = stream_of(layer, random_matrix(layer, 1.0), pattern, Schedule(4, 9))
    stream = make_stream(pack(random_matrix(layer, 1.0), pattern, 16), layer, like.geometry, Depthwise())
    assert same(restore(store(stream, RowsKernelChoice(pattern, Depthwise()))), stream)


@pytest.mark.parametrize(
    ("density", "form"), [(0.5, "bitmap"), (0.1, "bitmap"), (0.01, "as it is"), (0.0, "as it is")]
)
def test_the_smaller_form_is_taken(density: float, form: str) -> None:
    layer = replace(LAYERS["linear"], weight_shape=(512, 512), input_shape=(1, 512))
    stream = stream_of(layer, random_matrix(layer, density), RowBlocks(1), Schedule(4, 128))
    stored = store(stream, RowsKernelChoice(RowBlocks(1), Schedule(4, 128)))
    assert stored.form == form
    assert stored.nbytes <= stream.nbytes + 1
    kept = int((random_matrix(layer, density) != 0).sum())
    small = 4 * stream.balance.numel() + (4 * kept + 512 * 512 // 8 if form == "bitmap" else 10**9)
    assert stored.nbytes == min(small, stream.nbytes)


def test_parts_that_do_not_fit_are_refused() -> None:
    layer, how = LAYERS["conv"], RowsKernelChoice(RowBlocks(1), Schedule(4, 20))
    stored = store(stream_of(layer, random_matrix(layer, 0.3), RowBlocks(1), Schedule(4, 20)), how)
    values, bits, *rest = stored.parts
    for parts in (
        (values[1:], bits, *rest),
        (values, ~bits, *rest),
        (values, bits[1:], *rest),
        (values, bits),
        (values.bool(), bits.float(), *rest),
    ):
        with pytest.raises(ArtifactError, match="weight of layer 'l'"):
            restore(replace(stored, parts=parts))
