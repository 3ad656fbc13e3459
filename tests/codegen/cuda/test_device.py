"""The GPU that is here, or is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecomp import codegen, compile_sparse
from sparsecomp.codegen.cuda.device import gpu_of
from sparsecomp.errors import InputError
from sparsecomp.target import Target

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
def test_without_a_gpu_compiling_for_one_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"target 'cuda': PyTorch .* sees no CUDA device.*use target='cpu'"):
        compile_sparse(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), target="cuda")


@no_gpu
def test_without_a_gpu_its_own_architecture_is_not_known() -> None:
    with pytest.raises(InputError, match="sees no CUDA device"):
        gpu_of(Target.parse("cuda"))


def test_a_gpu_elsewhere_is_known_by_its_architecture() -> None:
    target = Target.parse("cuda:sm_90")
    assert gpu_of(target).multiprocessors == 132
    assert codegen.describe(target) == "cuda GPU (sm_90, 132 multiprocessors)"
    assert codegen.identity(target)["device"] == "GPU: sm_90 132 multiprocessors"


def test_an_architecture_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"'cuda:sm_42': no such GPU is known.*cuda:sm_90"):
        gpu_of(Target.parse("cuda:sm_42"))


@pytest.mark.parametrize("text", ["cuda:90", "cuda:sm90", "cuda:compute_90"])
def test_what_is_no_architecture(text: str) -> None:
    with pytest.raises(InputError, match=r"is no architecture of a GPU. Write cuda:sm_90"):
        Target.parse(text)


def test_a_target_prints_as_it_is_written() -> None:
    assert [str(Target.parse(text)) for text in ("cuda", "cuda:sm_90")] == ["cuda", "cuda:sm_90"]
