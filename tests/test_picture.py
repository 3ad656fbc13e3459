"""Where a weight's zeros are: exact for small ones, pooled for large ones."""

from __future__ import annotations

import pytest
import torch

from sparsecomp.picture import CORNER, SIDE, picture_of


def test_a_small_weight_is_shown_one_by_one() -> None:
    used = torch.tensor([[True, False, True], [False, False, True]])
    found = picture_of(used)
    assert found.cells == ("f0f", "00f")
    assert found.corner == ()


@pytest.mark.parametrize("shape", [(3072, 768), (65, 3), (1, 147), (64, 4608), (1000, 1000)])
def test_a_large_weight_has_as_many_cells_as_fit(shape: tuple[int, int]) -> None:
    found = picture_of(torch.rand(shape) < 0.1)
    assert len(found.cells) == min(shape[0], SIDE)
    assert {len(row) for row in found.cells} == {min(shape[1], SIDE)}
    assert (len(found.corner), len(found.corner[0])) == (min(shape[0], CORNER), min(shape[1], CORNER))


def test_a_cell_is_the_root_of_what_it_keeps_in_fifteenths() -> None:
    used = torch.zeros(4 * SIDE, 4 * SIDE, dtype=torch.bool)
    used[0, 0] = True  # 1 of 16: a quarter, in fifteenths
    used[4:6, 4:8] = True  # a half
    used[8:12, 8:12] = True
    used[12:16, 12:16] = True
    used[12, 12] = False
    cells = picture_of(used).cells
    assert [cells[i][i] for i in range(5)] == ["4", "b", "f", "e", "0"]


def test_almost_nothing_is_not_nothing() -> None:
    used = torch.zeros(64 * 64, 64, dtype=torch.bool)
    used[0, 0] = True
    assert picture_of(used).cells[0][0] == "2"
    assert picture_of(~used).cells[0][0] == "e"
    assert picture_of(~used).cells[1][0] == "f"


def test_the_corner_is_exact() -> None:
    used = torch.rand(100, 200) < 0.3
    corner = picture_of(used).corner
    assert [[cell == "1" for cell in row] for row in corner] == used[:CORNER, :CORNER].tolist()
