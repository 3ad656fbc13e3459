"""A region -> its list of calls, and the compiled function that walks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sparsecomp.codegen.arena import Arena, plan_arena
from sparsecomp.codegen.bands import chains_of
from sparsecomp.codegen.build import build
from sparsecomp.codegen.call_list import CallList
from sparsecomp.codegen.calls import Kernel
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Table
from sparsecomp.codegen.threads import share_pytorch_threads
from sparsecomp.codegen.walk_calls import MAIN, walk_calls
from sparsecomp.geometry import TokenRows, Tokens
from sparsecomp.region import Call, Region


@dataclass(frozen=True)
class Code:
    """A region's compiled function and the calls that it makes, without weights."""

    region: Region
    table: Table
    arena: Arena
    calls: tuple[Call, ...]
    """What it does: all calls of the region, or the kernels alone."""
    list: CallList
    run: Any = field(repr=False)
    module: Any = field(repr=False)

    def source(self, kind: str = "asm") -> str:
        """Generated code, "asm" or "ll" (LLVM IR)."""
        return str(self.module.mod.inspect_source(kind))


@lru_cache(maxsize=512)
def compile_region(region: Region, machine: Machine, kernels_only: bool = False) -> Code:
    """Equal regions share their list of calls and their arenas: regions name nothing of the model they came from.

    With `kernels_only` conversions are left out, to time the kernels alone; the outputs are then undefined.
    """
    calls = region.rows_calls if kernels_only else region.calls
    return assemble(
        region,
        calls,
        machine,
        lambda listed: compile_kernels(listed.kernels, listed.counts, region.tokens, machine),
    )


def assemble(
    region: Region, calls: tuple[Call, ...], machine: Machine, module_of: Callable[[CallList], Any]
) -> Code:
    """The code of a region, given what makes or finds the kernels that its list of calls names."""
    region.check()
    chains = chains_of(region, calls, machine) if calls == region.calls else ()
    table, arena = Table.of(region), plan_arena(region, chains)
    listed = CallList.of(calls, region, table, arena, machine, chains)
    module = module_of(listed)
    run = None if machine.triple else module[MAIN]
    return Code(region, table, arena, calls, listed, run, module)


@lru_cache(maxsize=512)
def compile_kernels(
    kernels: tuple[Kernel, ...],
    counts: tuple[int, ...],
    tokens: Tokens | TokenRows | None,
    machine: Machine,
) -> Any:
    """Regions of the same kernels share their code."""
    if not machine.triple:
        share_pytorch_threads()
    return build(walk_calls(kernels, counts, tokens, machine), machine.tvm_target)
