"""Processes of their own for what is measured: threads fixed before torch starts, memory that starts at nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT = 3600
"""Seconds after which a child is given up."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")


class ChildError(RuntimeError):
    """A child gave no answer; the text says why."""


def ask(module: str, question: Mapping[str, Any], threads: int) -> Any:
    """Run `python -m module QUESTION OUT` on so many threads: the JSON that it writes to the file OUT.

    Raises:
        ChildError: it crashed or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        command = [sys.executable, "-m", module, json.dumps(question), str(out)]
        try:
            child = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | dict.fromkeys(THREADS, str(threads)),
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ChildError(f"gave up after {LIMIT} s") from None
        if not out.exists():
            last = child.stderr.strip().rpartition("\n")[2]
            raise ChildError(f"exit status {child.returncode}: {last}")
        return json.loads(out.read_text())
