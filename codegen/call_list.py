"""A region's calls as numbers in memory, which its compiled function walks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsecomp.codegen.arena import Arena
from sparsecomp.codegen.bands import Chain, Step, steps_of
from sparsecomp.codegen.calls import Kernel, arguments, kernel_of
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Address, Frame, Table
from sparsecomp.region import Call, Region


@dataclass(frozen=True)
class CallList:
    """The steps, three numbers each; then rows of equal width, one per call: the number of its kernel, then its
    addresses.

    That calls are data makes the code as large as the kernels are, however many layers there are: networks of
    twelve and of twenty-four equal blocks run the same function.
    """

    kernels: tuple[Kernel, ...]
    """In order of first use."""
    counts: tuple[int, ...]
    """Addresses that each kernel takes."""
    numbers: array[int] = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    """Every call whole, and then, where some take turns, all of them again in that order."""
    calls: int

    @staticmethod
    def of(
        calls: Sequence[Call],
        region: Region,
        table: Table,
        arena: Arena,
        machine: Machine,
        chains: Sequence[Chain] = (),
    ) -> CallList:
        frame = Frame(region, table, arena)
        served = [(kernel_of(call, region, machine), arguments(call, frame)) for call in calls]
        counts = {kernel: len(addresses) for kernel, addresses in served}
        kernels = tuple(counts)
        width = row_width(tuple(counts.values()))
        steps = tuple(map(Step, range(len(calls))))
        if chains:
            steps += steps_of(region, calls, chains, machine)
        numbers = array("q")
        for step in steps:
            numbers.extend((STEP * len(steps) + step.call * width, step.band, step.bands))
        for kernel, addresses in served:
            row = [kernels.index(kernel), *(number for address in addresses for number in address.numbers)]
            numbers.extend(row + [0] * (width - len(row)))
        return CallList(kernels, tuple(counts.values()), numbers, steps, len(calls))

    def order(self, shared: bool) -> tuple[int, int]:
        """The first and the last step, exclusively. Threads that share an item wait for each other after each step,
        which costs more than what bands save: they take calls whole."""
        in_turns = len(self.steps) > self.calls and not shared
        return (self.calls, len(self.steps)) if in_turns else (0, self.calls)


STEP = 3
"""Numbers of a step: where its call's row begins, and which band of how many."""
ADDRESS = len(Address(0).numbers)


def row_width(counts: Sequence[int]) -> int:
    """Numbers per call, of kernels that take so many addresses."""
    return 1 + ADDRESS * max(counts, default=0)
