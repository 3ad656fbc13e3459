"""The survey's measures."""

from __future__ import annotations

import math

import pytest
import torch

from sparsecomp.errors import InputError
from sparsecomp.pruning.metrics import (
    Measurement,
    accuracy_density,
    smallest_within,
)
from sparsecomp.pruning.storage import index_bits, smallest_storage, storage


def bits(mask: torch.Tensor, k: int = 32) -> dict[str, int]:
    return {found.format: found.bits for found in storage(mask, k)}


def test_bits_by_hand() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, 1] = mask[0, 2] = mask[3, 7] = True  # gaps 1, 0, 28
    found = bits(mask, 8)
    assert found["dense"] == 32 * 8
    assert found["bitmap"] == 3 * 8 + 32
    assert found["csr"] == 3 * 8 + 3 * 3 + 4 * 2
    assert found["coo"] == 3 * 8 + 3 * 5
    assert found["bsr 4x1"] == 3 * 4 * 8 + 3 * 3 + 1 * 2
    assert found["bsr 1x4"] == 2 * 4 * 8 + 2 * 1 + 4 * 2
    assert found["bsr 4x4"] == 2 * 16 * 8 + 2 * 1 + 1 * 2
    assert found["bitmap 4x1"] == 3 * 4 * 8 + 8
    assert found["bitmap 1x4"] == 2 * 4 * 8 + 8
    assert found["bitmap 4x4"] == 2 * 16 * 8 + 2
    assert found["delta"] == min((3 + sum(g >> b for g in (1, 0, 28))) * (8 + b) for b in range(6))


def test_delta_can_be_read_back() -> None:
    """Decoded from gaps of b bits, explicit zeros among them, it is the mask again."""
    mask = torch.rand(20, 30) < 0.1
    places = mask.flatten().nonzero().flatten().tolist()
    for b in (1, 3, 5):
        entries: list[tuple[int, bool]] = []
        before = -1
        for place in places:
            gap = place - before - 1
            entries += [((1 << b) - 1, False)] * (gap >> b) + [(gap & ((1 << b) - 1), True)]
            before = place
        assert len(entries) == len(places) + sum(
            (p - q - 1) >> b for p, q in zip(places, [-1, *places], strict=False)
        )
        at, decoded = -1, []
        for gap, is_value in entries:
            at += gap + 1
            decoded += [at] * is_value
        assert decoded == places


def test_crossovers_of_the_survey() -> None:
    """Figure 5: dense, bitmap, delta as sparsity grows; CSR overtakes the bitmap near 94 % with 16-bit columns."""
    torch.manual_seed(0)
    order = [smallest_storage(torch.rand(512, 512) >= s, 8).format for s in (0.05, 0.3, 0.6, 0.9, 0.98)]
    assert order[:3] == ["dense", "bitmap", "bitmap"]
    assert order[3:] == ["delta", "delta"]
    for s, ahead in ((0.88, "bitmap"), (0.93, "csr")):
        found = bits(torch.rand(512, 512) >= s)
        behind = {"bitmap": "csr", "csr": "bitmap"}[ahead]
        assert found[ahead] < found[behind]
    assert bits(torch.rand(512, 512) >= 0.9)["delta"] < 0.13 * 512 * 512 * 32
    blocks = (torch.rand(128, 512) >= 0.9).repeat_interleave(4, dim=0)
    assert smallest_storage(blocks).format == "bsr 4x1"


@pytest.mark.parametrize("mask", [torch.zeros(3, 5, 2, 2), torch.ones(1, 1), torch.eye(7)])
def test_every_format_has_a_size(mask: torch.Tensor) -> None:
    found = storage(mask)
    assert len(found) == 11
    assert [s.bits for s in found] == sorted(s.bits for s in found)
    assert all(s.values >= 32 * int(mask.count_nonzero()) for s in found)
    assert all(s.values == 0 for s in found if s.format != "dense" and not mask.any())


def test_index_bits_tell_things_apart() -> None:
    assert [index_bits(n) for n in (1, 2, 3, 4, 5, 256, 257)] == [0, 1, 2, 2, 3, 8, 9]


def test_quality_per_parameter() -> None:
    assert accuracy_density(75.0, 25_000_000) == 3.0
    curve = [Measurement(10, 90.0), Measurement(5, 89.5), Measurement(3, 89.2), Measurement(1, 60.0)]
    assert smallest_within(curve, 90.0, 0.01) == Measurement(3, 89.2)
    assert smallest_within(curve, 90.0, 0.0) == Measurement(10, 90.0)
    assert smallest_within(curve, 95.0, 0.01) is None
    losses = [Measurement(10, -2.0), Measurement(4, -2.1)]
    assert smallest_within(losses, -2.0, 0.1) == Measurement(4, -2.1)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least one parameter"):
        accuracy_density(1.0, 0)
    with pytest.raises(InputError, match="finite"):
        smallest_within([Measurement(1, math.nan)], 1.0, 0.1)
    with pytest.raises(InputError, match="not negative"):
        smallest_within([], 1.0, -0.1)
    with pytest.raises(InputError, match=r"rows x columns.*\(3,\)"):
        storage(torch.ones(3))
