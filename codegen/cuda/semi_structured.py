"""2:4 sparsity through PyTorch's own kernels (cuSPARSELt, CUTLASS): at most two of four neighbours in a row are left.

The sparse tensor cores of compute capability 8.0 and later take such weights at twice the rate; PyTorch brings the
kernels, so that there is nothing to generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp import epilogue as epilogues
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.runnable import Runnable

LEAST = (32, 64)
"""Rows and columns must be multiples of these."""
FEWEST_TOKENS = 16
"""With fewer, reading the weight takes all the time, and three quarters of it are read."""


def is_two_of_four(matrix: Tensor) -> bool:
    """Whether at most two of each four neighbours in a row are not zero."""
    if matrix.shape[1] % 4:
        return False
    kept = (matrix != 0).reshape(matrix.shape[0], -1, 4).sum(dim=2)
    return bool((kept <= 2).all())


@dataclass(frozen=True)
class SemiStructured:
    """PyTorch's `SparseSemiStructuredTensor` in the place of the weight."""

    rows: int
    columns: int
    epilogue: str = ""

    @property
    def label(self) -> str:
        return "2:4 by PyTorch"

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return (torch.sparse.to_sparse_semi_structured(matrix.contiguous()),)

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        return operands[0].to_dense()

    def workspace(self, tokens: int) -> int:
        return 0

    def run(self, x: Tensor, weight: Tensor, *rest: Tensor) -> None:
        """x: tokens x columns; the last of the rest is y."""
        *operands, y = rest
        steps = epilogues.split_steps(self.epilogue)
        bias = operands.pop(0) if steps[:1] == ("bias",) else None
        left = " ".join(steps[1:] if bias is not None else steps)
        y.copy_(epilogues.apply(F.linear(x, weight, bias), left, operands, channel=-1))


class SemiStructuredFamily:
    name = "2:4"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if case.layer.op != "linear":
            return "PyTorch has it for linear layers"
        if case.dtype not in (torch.float16, torch.bfloat16):
            return f"sparse tensor cores take float16 and bfloat16, not {case.dtype_name}"
        if not is_two_of_four(case.matrix):
            return "more than two of four neighbours are not zero"
        if case.rows % LEAST[0] or case.columns % LEAST[1]:
            return f"PyTorch needs multiples of {LEAST[0]}x{LEAST[1]}, this is {case.rows}x{case.columns}"
        if case.tokens < FEWEST_TOKENS:
            return f"for {case.tokens} tokens the time goes into reading the weight"
        return None

    def kernels(self, case: Case) -> Sequence[Runnable]:
        """See `Family`."""
        return [SemiStructured(case.rows, case.columns)]
