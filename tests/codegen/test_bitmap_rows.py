"""The kernel for few tokens against plain PyTorch in float64: odd shapes, any tokens, parts and epilogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.bitmap import Bitmap, make_bitmap, shares_of
from sparsecomp.codegen.cpu.bitmap_rows import BitmapRows, bitmap_rows, refusal
from sparsecomp.codegen.machine import machine_of
from sparsecomp.epilogue import STEPS
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.target import Target
from tests.codegen.tokens_first import MACHINE, check_product, compiled, guarded, run, sparse_matrix

runs_here = pytest.mark.skipif(bool(refusal(MACHINE)), reason=refusal(MACHINE))


def product(
    spec: BitmapRows, bitmap: Bitmap, x: Tensor, operands: Sequence[Tensor] = (), parts: int = 1
) -> Tensor:
    weights = (bitmap.index, bitmap.masks, bitmap.values, bitmap.balance)
    return run(compiled(bitmap_rows, spec)["f0"], weights, spec.rows, x, operands, parts)


@dataclass(frozen=True)
class Case:
    spec: BitmapRows
    density: float
    seed: int

    def check(self, tokens: Sequence[int], parts: Sequence[int]) -> None:
        spec = self.spec
        matrix = sparse_matrix(spec.rows, spec.columns, self.density, self.seed)
        check_product(partial(product, spec, self.packed(matrix)), matrix, spec.epilogue, tokens, parts)

    def packed(self, matrix: Tensor) -> Bitmap:
        if self.spec.in_place:
            nothing = torch.empty(0, dtype=torch.int32)
            return Bitmap(
                (self.spec.rows, self.spec.columns),
                nothing,
                nothing,
                guarded(matrix),
                shares_of(self.spec.rows),
            )
        return make_bitmap(pack(matrix, RowBlocks(4, shared=True) if self.spec.dense else RowBlocks(1)))


SPECS = st.builds(
    BitmapRows,
    rows=st.one_of(st.integers(1, 70), st.sampled_from([16, 64])),
    columns=st.one_of(st.integers(1, 100), st.sampled_from([16, 64])),
    epilogue=st.lists(st.sampled_from(sorted(STEPS)), max_size=3).map(" ".join),
    dense=st.booleans(),
    ahead=st.sampled_from([0, 512]),
)
CASES = st.builds(Case, SPECS, density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), seed=st.integers(0, 999))


@runs_here
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_any_layer_any_number_of_tokens(case: Case) -> None:
    case.check(tokens=range(10), parts=(1, 3))


@runs_here
@pytest.mark.parametrize("dense", [False, True])
def test_parts_cover_all_rows(dense: bool) -> None:
    """More parts than units: some have nothing to do."""
    Case(BitmapRows(200, 33, "bias relu", dense), 0.3, 0).check(tokens=(1, 2, 7), parts=(1, 2, 5, 13, 64))


@runs_here
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 16), (40, 31), (33, 100), (64, 768), (5, 48)])
def test_a_matrix_is_read_where_it_lies(rows: int, columns: int) -> None:
    """And nothing around it."""
    spec = BitmapRows(rows, columns, "bias relu", in_place=True, ahead=0)
    Case(spec, 1.0, 0).check(tokens=(1, 2, 3, 4, 6, 9), parts=(1, 3))


@runs_here
def test_every_activation() -> None:
    for step, kind in STEPS.items():
        if kind == "none":
            Case(BitmapRows(20, 24, f"scale {step} bias"), 0.4, 0).check(tokens=(3,), parts=(1,))


@runs_here
def test_tokens_do_not_reach_each_other() -> None:
    """With 21 columns a vector of x that began in one token would end in the next."""
    matrix = torch.randn(18, 21)
    x = torch.randn(5, 21)
    x[1], x[3] = torch.nan, torch.inf
    y = product(BitmapRows(18, 21, ""), make_bitmap(pack(matrix, RowBlocks(1))), x)
    torch.testing.assert_close(y[::2], x[::2] @ matrix.T)
    assert y[1].isnan().all()


@runs_here
def test_several_kernels_in_a_module() -> None:
    """All bring the same functions of LLVM IR along."""
    specs = (BitmapRows(18, 21, ""), BitmapRows(18, 21, "relu"), BitmapRows(18, 21, "", dense=True))
    matrix, x = torch.randn(18, 21), torch.randn(2, 21)
    sparse, dense = (make_bitmap(pack(matrix, p)) for p in (RowBlocks(1), RowBlocks(4, shared=True)))
    module, y = compiled(bitmap_rows, *specs), x @ matrix.T
    for name, bitmap, expected in [("f0", sparse, y), ("f1", sparse, y.relu()), ("f2", dense, y)]:
        weights = (bitmap.index, bitmap.masks, bitmap.values, bitmap.balance)
        torch.testing.assert_close(run(module[name], weights, 18, x), expected)


def test_needs_moves_of_avx2_or_avx512() -> None:
    for cpu in ("znver4", "znver3", "x86-64-v3"):
        assert not refusal(machine_of(Target(cpu=cpu)))
    for cpu, triple in [("x86-64-v2", ""), ("neoverse-v1", "aarch64-linux-gnu")]:
        assert "needs the moves of AVX2 or AVX-512" in refusal(machine_of(Target(cpu=cpu, triple=triple)))


def instructions(cpu: str) -> list[list[str]]:
    """Of a sparse kernel compiled for this processor: words of each line."""
    module = compiled(bitmap_rows, BitmapRows(64, 64, ""), machine=machine_of(Target(cpu=cpu)))
    return [line.replace(",", " ").split() for line in module.mod.inspect_source("asm").splitlines()]


def test_expansion_waits_for_no_other() -> None:
    """In place, of a register that a load has just filled; see the comment on the intrinsic."""
    expansions = [words for words in instructions("znver4") if "vexpandps" in words]
    assert expansions
    assert all(source == target for _, source, target, *_ in expansions)


def test_avx2_moves_by_a_table() -> None:
    """Few instructions for eight lanes: LLVM takes a comparison with zero apart into three."""
    lines = instructions("znver3")
    assert any("vpermd" in words for words in lines)
    assert not [words for words in lines if words and words[0] == "vpcmpgtb"], "the sign bit alone decides"
