"""Files whose native code this machine may run: those it wrote itself.

A line of JSON per file in the cache folder, appended under a lock: the SHA-256 of its manifest, which in turn has
those of all sections. Who can write there can run code as this user anyway.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from filelock import FileLock

from sparsecomp.cache import cache_folder

LOG = logging.getLogger(__name__)


def _path() -> Path:
    return cache_folder() / "trusted-1.jsonl"


def register(digest: str) -> None:
    """Remember a file that was written here. Where that fails, loading it makes its kernels again."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if is_registered(digest):
                return
            with path.open("a") as file:
                file.write("\n" * (not _ends_well(path)) + json.dumps({"sha256": digest}) + "\n")
    except OSError as error:
        LOG.warning("a saved module is not registered: %s; SPARSECOMP_CACHE names another folder", error)


def is_registered(digest: str) -> bool:
    path = _path()
    try:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    except OSError:
        return False
    return any(_digest(line) == digest for line in lines)


def _digest(line: str) -> str | None:
    try:
        found = json.loads(line)["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):  # a line cut off by a crash
        return None
    return found if isinstance(found, str) else None


def _ends_well(path: Path) -> bool:
    text = path.read_bytes() if path.exists() else b""
    return not text or text.endswith(b"\n")
