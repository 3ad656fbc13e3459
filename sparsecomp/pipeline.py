"""Runs passes: applies, checks, times and records them. Passes themselves do none of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sparsecomp import debug
from sparsecomp.errors import InvalidProgramError
from sparsecomp.program import Program


class Pass(Protocol):
    """Program -> Program. Given one that passes `check()` it returns another that does, or the same object if
    there was nothing to do. It changes nothing it was given; it prints, times and logs nothing; its options
    are its fields. It does not change what a program computes."""

    name: ClassVar[str]

    def __call__(self, program: Program) -> Program: ...


@dataclass(frozen=True)
class Step:
    """One pass, applied: how long it took and what changed."""

    name: str
    seconds: float
    changed: str


def run(
    passes: Sequence[Pass], program: Program, started: Callable[[str], None] = lambda name: None
) -> tuple[Program, list[Step]]:
    """Apply the passes in order. `started` is told each pass's name before it runs.

    Raises:
        InvalidProgramError: naming the pass that left the program broken.
    """
    steps = []
    for one in passes:
        started(one.name)
        start = time.perf_counter()
        after = one(program)
        seconds = time.perf_counter() - start
        try:
            after.check()
        except InvalidProgramError as error:
            raise InvalidProgramError(f"after pass {one.name}: {error}") from error
        if after is not program:
            debug.PROGRAM.debug("after %s:\n%s", one.name, after)
        steps.append(Step(one.name, seconds, _difference(program, after)))
        program = after
    return program, steps


def _difference(before: Program, after: Program) -> str:
    if before is after:
        return "nothing"
    changes = []
    for what in ("layers", "untouched", "facts", "choices", "works", "regions"):
        added = len(getattr(after, what)) - len(getattr(before, what))
        if added:
            changes.append(f"{what} {added:+d}")
    nodes = len(after.graph.graph.nodes) - len(before.graph.graph.nodes)
    if nodes:
        changes.append(f"graph nodes {nodes:+d}")
    return ", ".join(changes) or "values only"
