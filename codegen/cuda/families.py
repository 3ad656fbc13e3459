"""All kernels there are for a layer on a GPU. To add a kind: a file with a family, a line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sparsecomp.codegen.cuda.bitmap_tiles import BitmapFamily
from sparsecomp.codegen.cuda.block_tiles import BlockFamily
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.rows_family import RowsFamily
from sparsecomp.codegen.cuda.runnable import Family, Runnable
from sparsecomp.codegen.cuda.semi_structured import SemiStructuredFamily
from sparsecomp.errors import LoweringError

FAMILIES: Sequence[Family] = (SemiStructuredFamily(), BitmapFamily(), BlockFamily(), RowsFamily())
OF_THE_LAYER = ("rows", "columns", "dtype", "epilogue", "tiling")
"""Fields of kernels that do not tell those for one layer apart, or that a label tells already."""


def name_of(kernel: Runnable) -> str:
    """Its label and its schedule: what tells it from all others for the layer."""
    own = [
        (part.name, getattr(kernel, part.name)) for part in fields(kernel) if part.name not in OF_THE_LAYER
    ]  # type: ignore[arg-type]
    schedule = " ".join(f"{name} {value}" for name, value in own)
    return f"{kernel.label} ({schedule})" if own else kernel.label


def kernel_named(label: str, case: Case) -> Runnable:
    """The one that a choice named, with the case's epilogue.

    Raises:
        LoweringError: there is none of that name for the layer.
    """
    for family in FAMILIES:
        for kernel in () if family.refused(case) else family.kernels(case):
            if name_of(kernel) == label:
                return with_epilogue(kernel, case.epilogue)
    raise LoweringError(f"layer {case.layer.name!r}: there is no kernel {label!r} for it")


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def with_epilogue(kernel: Runnable, epilogue: str) -> Runnable:
    made: Any = kernel
    return made if kernel.epilogue == epilogue else replace(made, epilogue=epilogue)
