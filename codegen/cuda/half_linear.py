"""What the families for half-precision weights of linear layers have in common."""

from __future__ import annotations

import torch

from sparsecomp.codegen.cuda.kernel import Case


def unlike_half_linear(case: Case) -> str | None:
    """Why none of them can run the layer; None for a linear layer in float16 or bfloat16."""
    if case.layer.op != "linear":
        return "only linear layers"
    if case.dtype not in (torch.float16, torch.bfloat16):
        return f"for float16 and bfloat16, not {case.dtype_name}"
    return None
