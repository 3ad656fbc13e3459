"""All kernels there are for a layer on a GPU. To add a kind: a file with a family, a line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sparsecomp.codegen.cuda.bitmap_tiles import BitmapFamily
from sparsecomp.codegen.cuda.block_tiles import BlockFamily
from sparsecomp.codegen.cuda.gap_rows import GapFamily
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.rows_family import RowsFamily
from sparsecomp.codegen.cuda.runnable import Family, Runnable
from sparsecomp.codegen.cuda.semi_structured import SemiStructuredFamily
from sparsecomp.codegen.cuda.vector_tiles import VectorFamily
from sparsecomp.errors import LoweringError
from sparsecomp.region import OnGpu

FAMILIES: Sequence[Family] = (
    SemiStructuredFamily(),
    BitmapFamily(),
    GapFamily(),
    BlockFamily(),
    VectorFamily(),
    RowsFamily(),
)
OF_THE_LAYER = ("rows", "columns", "dtype", "epilogue", "tiling")
"""Fields of kernels that do not tell those for one layer apart, or that a label tells already."""


def name_of(kernel: Runnable) -> str:
    """Its label and its schedule: what tells it from all others for the layer."""
    record: Any = kernel
    names = [part.name for part in fields(record) if part.name not in OF_THE_LAYER]
    own = [(name, getattr(kernel, name)) for name in names]
    schedule = " ".join(f"{name} {value}" for name, value in own)
    return f"{kernel.label} ({schedule})" if own else kernel.label


def kernel_for(schedule: OnGpu, case: Case) -> Runnable:
    """What the schedule names, for a layer. For images of another size than it was chosen on that is the kernel of the
    same name, or the likeliest.

    Raises:
        LoweringError: there is none.
    """
    kernel: Runnable | None = schedule.kernel
    if kernel is None or case.layer.op != "linear":
        there = [found for family in FAMILIES if named(family, schedule) for found in family.kernels(case)]
        kernel = next((found for found in there if name_of(found) == schedule.label), next(iter(there), None))
    if kernel is None:
        raise LoweringError(f"layer {case.layer.name!r}: there is no kernel {schedule.label!r} for it")
    return with_epilogue(kernel, case.epilogue)


def named(family: Family, schedule: OnGpu) -> bool:
    """Whether the schedule is one of the family: labels begin with its name."""
    return schedule.label.startswith(family.name)


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def with_epilogue(kernel: Runnable, epilogue: str) -> Runnable:
    if kernel.epilogue == epilogue:
        return kernel
    record: Any = kernel
    made: Runnable = replace(record, epilogue=epilogue)
    return made
