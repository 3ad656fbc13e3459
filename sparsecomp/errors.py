"""Every error the library raises. Each message says what happened, where, and what to do."""

from __future__ import annotations


class SparsecompError(Exception):
    """Base of all errors of this library; catch it to catch them all."""


class InputError(SparsecompError, ValueError):
    """What was handed to a public function cannot be used; the message says what would be."""


class CaptureError(SparsecompError):
    """The model's graph could not be captured; the compiler then swaps layers one by one instead."""


class InvalidProgramError(SparsecompError):
    """A pass left the program in a state that breaks one of its invariants: a bug of that pass."""


class LoweringError(SparsecompError):
    """No kernel could be made for a call; its layer then stays with PyTorch."""


class InferenceOnlyError(SparsecompError, RuntimeError):
    """Something was asked of a compiled module that only the original model can do."""
