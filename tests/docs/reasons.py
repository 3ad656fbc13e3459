"""Every reason that the code can give for what stays as it was, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "sparsecomp/artifact": "what a file cannot hold is an error",
    "sparsecomp/capture.py": "what follows `the graph was not captured`",
    "sparsecomp/channels": "why a dead channel stays; the layer itself may well be sparse",
    "sparsecomp/cli": "errors of the command line",
    "sparsecomp/contract.py": "which calls need a further graph",
    "sparsecomp/failure.py": "the wording of an error that nobody foresaw",
    "sparsecomp/intake.py": "errors",
    "sparsecomp/pruning": "why a plan prunes as it does",
    "sparsecomp/trace.py": "which calls need a further graph",
    "sparsecomp/train": "what training refuses is an error",
    "passes/slim.py": "as sparsecomp/channels",
    "codegen/cpu/bitmap_rows.py": "which kernels are candidates at all",
}
"""Rooms and files whose reasons are of another kind, and of what kind."""
HOLDS_REASONS = re.compile(r"refus|reason|untouched|^notes?$")
"""Names of variables and arguments; of functions too, beside those whose docstring begins with "Why"."""
TAKES_REASONS = ("Choice", "given_up", "_give_up", "_note")
"""Calls that are told a reason by position."""


@cache
def reasons() -> dict[str, str]:
    """Reason, with … for what is filled in -> the file that gives it."""
    return {reason: name for name, tree in _sources() for node in ast.walk(tree) for reason in _of(node)}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(
        path for room in ("sparsecomp", "passes", "codegen") for path in ROOT.glob(f"{room}/**/*.py")
    ):
        name = path.relative_to(ROOT).as_posix()
        linked = name.startswith(("sparsecomp/passes/", "sparsecomp/codegen/"))
        if not linked and not any(name == other or name.startswith(f"{other}/") for other in ELSEWHERE):
            yield name, ast.parse(path.read_text())


def _of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef() if _gives_reasons(node):
            returned = (one.value for one in ast.walk(node) if isinstance(one, ast.Return))
            yield from (text for value in returned if value is not None for text in _texts(value))
        case ast.Assign() if any(HOLDS_REASONS.search(_name(target)) for target in node.targets):
            yield from _texts(node.value)
        case ast.AugAssign() if HOLDS_REASONS.search(_name(node.target)):
            yield from _texts(node.value)
        case ast.keyword(arg=str(argument)) if HOLDS_REASONS.search(argument):
            yield from _texts(node.value)
        case ast.Call() if _name(node.func) in TAKES_REASONS:
            yield from (text for argument in node.args for text in _texts(argument))


def _gives_reasons(node: ast.FunctionDef) -> bool:
    result = ast.unparse(node.returns) if node.returns is not None else ""
    told = (ast.get_docstring(node) or "").startswith("Why") or bool(HOLDS_REASONS.search(node.name))
    return result == "Found" or (told and result.startswith("str"))


def _texts(node: ast.expr) -> Iterator[str]:
    """The sentences that an expression may be: a string, one of several, or an element of a tuple."""
    match node:
        case ast.Constant(value=str(text)):
            found = text
        case ast.JoinedStr(values=parts):
            found = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.IfExp(body=yes, orelse=no):
            yield from (*_texts(yes), *_texts(no))
            return
        case ast.BoolOp(values=several) | ast.Tuple(elts=several):
            yield from (text for one in several for text in _texts(one))
            return
        case _:
            return
    if " " in found:
        yield found


def _name(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
