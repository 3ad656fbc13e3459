"""All kernels there are for a layer on a GPU. To add a kind: a file with a family, a line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.rows_family import RowsFamily
from sparsecomp.codegen.cuda.runnable import Family, Runnable
from sparsecomp.codegen.cuda.semi_structured import SemiStructuredFamily
from sparsecomp.errors import LoweringError

FAMILIES: Sequence[Family] = (SemiStructuredFamily(), RowsFamily())


def kernel_named(label: str, case: Case) -> Runnable:
    """The one that a choice named, with the case's epilogue.

    Raises:
        LoweringError: there is none of that name for the layer.
    """
    for family in FAMILIES:
        for kernel in () if family.refused(case) else family.kernels(case):
            if kernel.label == label:
                return with_epilogue(kernel, case.epilogue)
    raise LoweringError(f"layer {case.layer.name!r}: there is no kernel {label!r} for it")


def with_epilogue(kernel: Runnable, epilogue: str) -> Runnable:
    made: Any = kernel
    return made if kernel.epilogue == epilogue else replace(made, epilogue=epilogue)
