"""Targets by their kinds: what each must be able to do, and a new one in a few lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecomp import ArtifactError, InputError, compile_sparse
from sparsecomp.codegen.backend import Backend, backend_of
from sparsecomp.codegen.cpu.backend import CpuBackend
from sparsecomp.codegen.cuda.backend import CudaBackend
from sparsecomp.codegen.reference import ReferenceBackend
from sparsecomp.target import KINDS, Target, Traits

ROOT = Path(__file__).parents[2]
MAKERS: dict[str, Callable[[Target], Backend]] = {
    "cpu": CpuBackend,
    "cuda": CudaBackend,
    "reference": ReferenceBackend,
}
"""That each has the methods of `Backend`, mypy checks here."""


class ToyBackend(ReferenceBackend):
    """A device of a new kind."""

    def describe(self) -> str:
        return f"toy {self.target.arch}"

    def check_runs_here(self) -> None:
        if self.target.arch == "broken":
            raise InputError("there is no such toy.")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = Traits(f"{__name__}:ToyBackend", one_is="arch", layers_apart=True)
    monkeypatch.setitem(KINDS, "toy", traits)


def test_the_table_names_the_class_of_every_kind() -> None:
    assert set(MAKERS) == set(KINDS)
    for kind, maker in MAKERS.items():
        assert type(backend_of(Target(kind))) is maker


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_target_is_called_is_read_again(kind: str) -> None:
    one = Target.parse(f"{kind}:sm_90")
    assert getattr(one, one.traits.one_is) == "sm_90"
    assert Target.parse(str(one)) == one
    assert str(Target(kind)) == kind


@pytest.mark.usefixtures("toy")
def test_a_line_in_the_table_makes_a_target() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.data *= torch.arange(8) % 4 == 0
    x = torch.randn(4, 8)
    module = compile_sparse(model, (x,), target=Target("toy", arch="sm_1"), min_speedup=0.0)
    assert module.report.target == "toy sm_1"
    assert len(module.report.regions) == 2, "its layers stand apart"
    torch.testing.assert_close(module(x), model(x))


@pytest.mark.usefixtures("toy")
def test_a_backend_says_where_its_code_cannot_run() -> None:
    with pytest.raises(InputError, match="there is no such toy"):
        compile_sparse(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), target=Target("toy", arch="broken"))


@pytest.mark.parametrize("kind", ["cuda", "reference"])
def test_a_target_without_native_code_gives_none_to_files(kind: str) -> None:
    backend, anything = backend_of(Target(kind)), object()
    assert backend.fingerprint(anything) is None  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=f"the target '{kind}' has no native code to export"):
        backend.files_for_c(anything)  # type: ignore[arg-type]


def test_the_reference_needs_no_tvm() -> None:
    code = (
        "import sys, torch; from sparsecomp import compile_sparse; x = torch.eye(4)\n"
        "compile_sparse(torch.nn.Linear(4, 4).eval(), (x,), target='reference')(x)\n"
        "sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
