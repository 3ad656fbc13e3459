"""Where the library keeps what it measured."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """`SPARSECOMP_CACHE`, or the user's cache folder of this platform."""
    return Path(os.environ.get("SPARSECOMP_CACHE") or platformdirs.user_cache_dir("sparsecomp"))
