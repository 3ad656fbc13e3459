"""Compiling on trial: it leaves no trace, and what fails becomes a note."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsecomp.capture import COMPILING
from sparsecomp.errors import CaptureError

LOG = logging.getLogger(__name__)


@contextmanager
def on_trial() -> Iterator[None]:
    """No gradients, and the user's random numbers go on as if nothing had been compiled."""
    with COMPILING, torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def reason_of(error: Exception) -> str:
    """The reason for a note; what nobody foresaw is logged with the place it came from."""
    if isinstance(error, CaptureError):
        return str(error)
    LOG.info("a graph could not be compiled", exc_info=error)
    return f"{type(error).__name__}: {error}"
