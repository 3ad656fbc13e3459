"""What a command prints: its answer alone on standard output, as a table or as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


@contextmanager
def at_work(quiet: bool) -> Iterator[None]:
    """Whatever prints meanwhile, a user's module say, prints to standard error; if `quiet`, nowhere. A progress bar
    shows only where standard error is a terminal, so that it is gone then as well."""
    with ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stderr(nowhere))
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


def answer(text: str, data: Mapping[str, Any], as_json: bool) -> None:
    """Print one of the two."""
    typer.echo(json.dumps(_plain(data), indent=1, allow_nan=False) if as_json else text)


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: they become null."""
    match value:
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def table(rows: Sequence[Mapping[str, object]], right: Sequence[str] = ()) -> str:
    """Rows of equal keys as text, keys as headings; columns named in `right` are numbers."""
    drawn = Table(box=None, pad_edge=False, show_edge=False)
    for column in rows[0] if rows else ():
        drawn.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        drawn.add_row(*("" if value is None else str(value) for value in row.values()))
    file = io.StringIO()
    Console(file=file, width=240, color_system=None, highlight=False, markup=False).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


SIZES: Mapping[str, int] = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def size(count: int) -> str:
    """A number of bytes for people: "412 B", "1.2 MB"."""
    if count < 1000:
        return f"{count} B"
    unit = next(unit for unit in ("K", "M", "G") if count < SIZES[unit] * 1000 or unit == "G")
    return f"{count / SIZES[unit]:.1f} {unit}B"
