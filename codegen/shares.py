"""Equal shares of a kernel's work, for however many threads there are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHARES = 64
"""The work is cut at 64 places; a thread takes a run of shares (so up to 64 threads are served)."""

WIDE = 24
"""Vectors of columns from which on a plane is wide. Threads share a wide plane by columns: each then reads what it
has stored itself. The cache lines of a narrow one lie too close together for one thread to leave another's alone,
so threads share its rows or channels."""

UNIT = 16
"""Rows that a kernel for few tokens finishes together, a vector or several: it shares its work by units of rows."""


def balance(work: Tensor, runs: int = SHARES) -> Tensor:
    """int32 [SHARES + 1]: the units of work, given the work of each, at which the work so far passes each 64th, or
    the nearest end of one of fewer `runs` that are equal work."""
    total = work.cumsum(0).numpy()
    cuts = np.floor(np.arange(1, SHARES) * runs / SHARES + 0.5) * total[-1] / runs
    inner = np.where(cuts > 0, np.searchsorted(total, cuts, side="left") + 1, 0)
    found = np.concatenate([[0], np.minimum(inner, len(total)), [len(total)]])
    return torch.from_numpy(found.astype(np.int32))
