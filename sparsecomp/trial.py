"""Compiling on trial: it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsecomp.capture import COMPILING


@contextmanager
def on_trial() -> Iterator[None]:
    """No gradients, and the user's random numbers go on as if nothing had been compiled."""
    with COMPILING, torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield
