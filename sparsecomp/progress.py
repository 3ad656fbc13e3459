"""The progress bar of long work, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Watch:
    """Told what is being done; shows it, or not."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, item="") if progress else None

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage of `total` items, or of unknown length."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=name, total=total)

    def item(self, name: str) -> None:
        """One item of the stage begins."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, item=name)

    def at(self, done: int, name: str) -> None:
        """So much of the stage is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, item=name)

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)


@contextmanager
def watching(verbose: bool) -> Iterator[Watch]:
    """A bar where someone looks: on a terminal, or anywhere if `verbose`."""
    console = Console(stderr=True)
    if not (verbose or console.is_terminal):
        yield Watch()
        return
    columns = (
        TextColumn("sparsecomp: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[item]}", markup=False),
    )
    with Progress(*columns, console=console, transient=not verbose) as progress:
        yield Watch(progress)
