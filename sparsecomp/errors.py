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


class ArtifactError(SparsecompError, ValueError):
    """A saved module cannot be written or read: the file is damaged, foreign or of another version, or the module
    holds what a file cannot."""


class ArtifactWarning(UserWarning):
    """A saved module was read, but not all of it could be used; the text says what is made again and why."""
