"""A region's calls as numbers in memory, which its compiled function walks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsecomp.codegen.arena import Arena
from sparsecomp.codegen.calls import Kernel, arguments, kernel_of
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Address, Frame, Table
from sparsecomp.region import Call, Region


@dataclass(frozen=True)
class CallList:
    """Rows of equal width, one per call: the number of its kernel, then its addresses.

    That calls are data makes the code as large as the kernels are, however many layers there are: networks of
    twelve and of twenty-four equal blocks run the same function.
    """

    kernels: tuple[Kernel, ...]
    """In order of first use."""
    counts: tuple[int, ...]
    """Addresses that each kernel takes."""
    numbers: array[int] = field(repr=False)

    @staticmethod
    def of(calls: Sequence[Call], region: Region, table: Table, arena: Arena, machine: Machine) -> CallList:
        frame = Frame(region, table, arena)
        served = [(kernel_of(call, region, machine), arguments(call, frame)) for call in calls]
        counts = {kernel: len(addresses) for kernel, addresses in served}
        kernels = tuple(counts)
        width = row_width(tuple(counts.values()))
        numbers = array("q")
        for kernel, addresses in served:
            row = [kernels.index(kernel), *(number for address in addresses for number in address.numbers)]
            numbers.extend(row + [0] * (width - len(row)))
        return CallList(kernels, tuple(counts.values()), numbers)


ADDRESS = len(Address(0).numbers)


def row_width(counts: Sequence[int]) -> int:
    """Numbers per call, of kernels that take so many addresses."""
    return 1 + ADDRESS * max(counts, default=0)
