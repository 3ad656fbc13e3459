"""The kernel for few tokens and few weights against plain PyTorch in float64: odd shapes, any tokens and parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cpu.octet_rows import OctetRows, octet_rows
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.octets import make_octets
from sparsecomp.epilogue import STEPS
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.target import Target
from tests.codegen.tokens_first import check_product, compiled, run, sparse_matrix


@dataclass(frozen=True)
class Case:
    spec: OctetRows
    density: float
    seed: int

    def check(self, tokens: Sequence[int], parts: Sequence[int]) -> None:
        spec = self.spec
        matrix = sparse_matrix(spec.rows, spec.columns, self.density, self.seed)
        check_product(partial(product, spec, matrix), matrix, spec.epilogue, tokens, parts)


def product(
    spec: OctetRows,
    matrix: torch.Tensor,
    x: torch.Tensor,
    operands: Sequence[torch.Tensor] = (),
    parts: int = 1,
) -> torch.Tensor:
    made = make_octets(pack(matrix, RowBlocks(1)))
    weights = (made.index, made.data, made.balance, torch.empty(0))
    return run(compiled(octet_rows, spec)["f0"], weights, spec.rows, x, operands, parts)


SPECS = st.builds(
    OctetRows,
    rows=st.one_of(st.integers(1, 70), st.sampled_from([16, 64])),
    columns=st.one_of(st.integers(1, 100), st.sampled_from([16, 700])),
    epilogue=st.lists(st.sampled_from(sorted(STEPS)), max_size=3).map(" ".join),
    ahead=st.sampled_from([0, 512]),
)
CASES = st.builds(
    Case, SPECS, density=st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.5, 1.0]), seed=st.integers(0, 999)
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_any_layer_any_number_of_tokens(case: Case) -> None:
    case.check(tokens=range(6), parts=(1, 3))


def test_parts_cover_all_rows() -> None:
    """More parts than units: some have nothing to do."""
    Case(OctetRows(200, 33, "bias relu"), 0.3, 0).check(tokens=(1, 2, 7), parts=(1, 2, 5, 13, 64))


def test_every_activation() -> None:
    for step, kind in STEPS.items():
        if kind == "none":
            Case(OctetRows(20, 24, f"scale {step} bias"), 0.4, 0).check(tokens=(3,), parts=(1,))


def test_rows_of_very_different_length() -> None:
    """Two are computed side by side: the longer one goes on alone, whichever it is."""
    matrix = torch.zeros(64, 300)
    matrix[3], matrix[40], matrix[50, 7] = torch.randn(300), torch.randn(300), 1.0
    x = torch.randn(2, 300)
    torch.testing.assert_close(product(OctetRows(64, 300, ""), matrix, x), x @ matrix.T)


def test_tokens_do_not_reach_each_other() -> None:
    matrix, x = torch.randn(18, 21), torch.randn(5, 21)
    x[1], x[3] = torch.nan, torch.inf
    y = product(OctetRows(18, 21, ""), matrix, x)
    torch.testing.assert_close(y[::2], x[::2] @ matrix.T)
    assert y[1].isnan().all()


def test_an_input_that_no_weight_reads_does_not_count() -> None:
    matrix, x = torch.randn(18, 40), torch.randn(1, 40)
    matrix[:, 11] = 0
    x[0, 11] = torch.nan
    assert product(OctetRows(18, 40, ""), matrix, x).isfinite().all()


def test_inputs_are_picked_one_by_one() -> None:
    """Gathering instructions take longer."""
    for cpu in ("znver3", "znver4", "skylake-avx512"):
        machine = machine_of(Target(cpu=cpu))
        text = compiled(octet_rows, OctetRows(64, 64, ""), machine=machine).mod.inspect_source("asm")
        assert "vinsertps" in text
        assert "gather" not in text


def test_it_is_compiled_for_other_processors() -> None:
    for cpu, triple in [("x86-64-v2", ""), ("neoverse-v1", "aarch64-linux-gnu")]:
        compiled(
            octet_rows, OctetRows(64, 64, "bias gelu"), machine=machine_of(Target(cpu=cpu, triple=triple))
        )
