"""Compile pruned PyTorch models into modules that are faster, smaller and give the same outputs.

compiled = sparsecomp.compile_sparse(model, example_inputs=(x,))
y = compiled(x)
print(compiled.report)
"""

import os as _os

from sparsecomp import debug as _debug
from sparsecomp.artifact import load
from sparsecomp.autotune import autotune
from sparsecomp.errors import (
    ArtifactError,
    ArtifactWarning,
    CaptureError,
    InferenceOnlyError,
    InputError,
    InvalidProgramError,
    LoweringError,
    SparsecompError,
)
from sparsecomp.front import analyze, compile_sparse
from sparsecomp.intake import dense_state_dict
from sparsecomp.module import SparseModule
from sparsecomp.pruning.front import sparsify
from sparsecomp.report import Report
from sparsecomp.target import Target
from sparsecomp.tuning import TunedCall, TuningReport

__version__ = "0.1.0"

_debug.turn(_os.environ.get(_debug.VARIABLE, ""))

__all__ = [
    "ArtifactError",
    "ArtifactWarning",
    "CaptureError",
    "InferenceOnlyError",
    "InputError",
    "InvalidProgramError",
    "LoweringError",
    "Report",
    "SparseModule",
    "SparsecompError",
    "Target",
    "TunedCall",
    "TuningReport",
    "analyze",
    "autotune",
    "compile_sparse",
    "dense_state_dict",
    "load",
    "sparsify",
]
