"""What generated code must know of `os.fork`: the threads of a process do not come along, only the one that forked.

OpenMP keeps the workers of a thread for its next parallel loop, and would wait in the child, for ever, for workers that
are not there. So the thread that survives works alone: there, and in PyTorch's own operators. Threads that the child
starts itself get workers of their own.
"""

from __future__ import annotations

import os
import threading

import torch

_survivor: int | None = None


def team(wanted: int) -> int:
    """How many threads the calling thread can have for a parallel loop."""
    return 1 if _survivor is not None and threading.get_ident() == _survivor else wanted


def _survive() -> None:
    global _survivor
    _survivor = threading.get_ident()
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_survive)
