"""Upkeep of the database of measurements: what is in it, what of it is of use, and making it smaller."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sparsecomp.errors import InputError

if TYPE_CHECKING:
    from sparsecomp.codegen.timings import Record


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    number: int
    text: str
    record: Record | None
    """None: damaged."""

    @property
    def question(self) -> tuple[object, ...]:
        """Of records that answer the same one, the last counts."""
        assert self.record is not None
        return (self.record.kind, self.record.key, self.record.schedule * (self.record.kind == "trial"))

    @property
    def size(self) -> int:
        return len(self.text.encode()) + 1


@dataclass(frozen=True)
class Database:
    """The file of measurements, as it was read."""

    path: Path
    lines: tuple[Line, ...]

    @property
    def damaged(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.record is None)

    @property
    def current(self) -> tuple[Line, ...]:
        """The last answer to each question, in the order of the file."""
        last = {line.question: line for line in self.lines if line.record is not None}
        return tuple(sorted(last.values(), key=lambda line: line.number))

    @property
    def latest(self) -> tuple[Record, ...]:
        return tuple(line.record for line in self.current if line.record is not None)

    @property
    def size(self) -> int:
        return sum(line.size for line in self.lines)


def read_database() -> Database:
    """
    Raises:
        InputError: the file cannot be read.
    """
    from sparsecomp.codegen.timings import Timings

    path = Timings.on_disk().path
    return _read(path) if path is not None else Database(Path(), ())


def _read(path: Path) -> Database:
    from sparsecomp.codegen.timings import Record

    try:
        texts = path.read_text(errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"the database {path} cannot be read: {error}") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(Line(number, text, Record.parse(text)))
        except (ValueError, KeyError, TypeError):
            lines.append(Line(number, text, None))
    return Database(path, tuple(lines))


@dataclass(frozen=True)
class Pruning:
    """What stays of a database, and why the rest goes."""

    kept: tuple[Line, ...]
    gone: Counter[str]
    before: int
    """Bytes, as `after`."""

    @property
    def after(self) -> int:
        return sum(line.size for line in self.kept)


def pruned(database: Database, limit: int | None) -> Pruning:
    """Drop what is damaged, superseded, or of versions that are not installed. With `limit`, in bytes, then drop the
    oldest as well: first trials, whose best is known, then the rest."""
    from sparsecomp.codegen.timings import versions

    gone: Counter[str] = Counter()
    gone["damaged"] = len(database.damaged)
    gone["superseded"] = len(database.lines) - len(database.damaged) - len(database.current)
    kept = [line for line in database.current if line.record and line.record.key.versions == versions()]
    gone["of other versions"] = len(database.current) - len(kept)
    over = sum(line.size for line in kept) - (limit if limit is not None else database.size)
    dropped = set()
    for line in sorted(kept, key=_worth):
        if over <= 0:
            break
        over -= line.size
        dropped.add(line.number)
    gone["over the limit"] = len(dropped)
    return Pruning(tuple(line for line in kept if line.number not in dropped), +gone, database.size)


def _worth(line: Line) -> tuple[bool, str, int]:
    assert line.record is not None
    return line.record.kind != "trial", line.record.date, line.number


def prune_database(limit: int | None) -> Pruning:
    """`pruned`, done: the file is replaced whole, under the lock that writers take.

    Raises:
        InputError: it cannot be written; it is then as it was.
    """
    path = read_database().path
    if not path.exists():
        return Pruning((), Counter(), 0)
    try:
        with FileLock(f"{path}.lock"):
            pruning = pruned(_read(path), limit)
            _replace(path, [line.text for line in pruning.kept])
    except OSError as error:
        raise InputError(f"the database {path} cannot be written: {error}") from error
    return pruning


def _replace(path: Path, lines: Sequence[str]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
