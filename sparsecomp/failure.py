"""What nobody foresaw: a pass or a kernel fails inside a compilation. PyTorch runs the model; a folder repeats the failure.

    traceback.txt          where it failed
    failure.json           options, versions of the software, the machine, and how the weights are kept
    program.pt2            the model as torch.export has it, without its weights, and the example inputs
    weights.safetensors    its weights; of large models a pattern of zeros, with random numbers between them
    reproduce.py           compiles it again, and raises the same error

None of the model's code is in it, but what the model was called with: look into it before you send it to anybody.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.export import ExportedProgram

from sparsecomp.cache import cache_folder
from sparsecomp.capture import exported
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import Trial, copied_call, unchanged
from sparsecomp.host import usable_cores, versions_of
from sparsecomp.layers import layers_graph, record_inputs
from sparsecomp.progress import watching
from sparsecomp.reduced_weights import reduced, restored
from sparsecomp.target import Target
from sparsecomp.trial import on_trial

if TYPE_CHECKING:
    from sparsecomp.module import SparseModule

LOG = logging.getLogger(__name__)
VARIABLE = "SPARSECOMP_FAILURES"
"""Names another folder for failures; empty: none are kept."""
PROGRAM, WEIGHTS = "program.pt2", "weights.safetensors"
KEPT = 5
"""Failures; the oldest go first."""
LIMIT = 1 << 26
"""Bytes of weights, and of the program without them."""
PACKAGES = ("sparsecomp", "torch", "apache-tvm", "apache-tvm-ffi", "numpy", "safetensors", "transformers")
PREFIXES = ("SPARSECOMP_", "TORCH", "TVM_", "OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "LD_PRELOAD")
"""Of variables of the environment that may matter; others are nobody's business."""
SCRIPT = '''"""{error}

Run it with the versions in failure.json: python reproduce.py
"""

from pathlib import Path

from sparsecomp.failure import reproduce

if __name__ == "__main__":
    reproduce(Path(__file__).parent)
'''


def reason_of(
    error: Exception, compiled: SparseModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """The reason for a note. Where nobody foresaw the error a folder repeats it, which a warning and the note name.

    The arguments are those for which `compiled` was being compiled.
    """
    if isinstance(error, CaptureError):
        return str(error)
    reason = f"{type(error).__name__}: {error}"
    folder = None if isinstance(error, MemoryError) else _recorded(error, compiled, args, kwargs)
    if folder is None:
        LOG.warning("a compilation failed, PyTorch runs what it was for: %s", reason, exc_info=error)
        return reason
    script = folder / "reproduce.py"
    LOG.warning(
        "a compilation failed, PyTorch runs what it was for: %s; python %s repeats it", reason, script
    )
    return f"{reason} (python {script} repeats it)"


def _recorded(
    error: Exception, compiled: SparseModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Path | None:
    """The folder; None where it cannot be written, or is not wanted."""
    place = os.environ.get(VARIABLE, str(cache_folder() / "failures"))
    if not place:
        return None
    text = "".join(traceback.format_exception(error))
    folder = Path(place).absolute() / f"failure-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    try:
        if folder.exists():
            os.utime(folder)  # the same again: it is recent
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".", dir=folder.parent, ignore_cleanup_errors=True
        ) as unfinished:
            (Path(unfinished) / "traceback.txt").write_text(text)
            _write(Path(unfinished), error, compiled, args, kwargs)
            Path(unfinished).rename(folder)
        _drop_oldest(folder.parent)
    except Exception as other:  # noqa: BLE001  a failure within a failure must not stop anybody
        LOG.warning("the failure is not kept: %s: %s", type(other).__name__, other)
        return None
    return folder


def _drop_oldest(place: Path) -> None:
    folders = sorted(place.glob("failure-*"), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path, error: Exception, compiled: SparseModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    summary, weights = f"{type(error).__name__}: {error}", dict[str, Any]()
    printable = summary.replace("\\", "/").replace('"', "'")
    (folder / "reproduce.py").write_text(SCRIPT.format(error=printable))
    with compiled._skeleton.filled(compiled._weight) as model, unchanged(model):
        try:
            what, program = _program(model, compiled._dynamic_shapes, args, kwargs)
            weights = _save_program(program, folder)
        except Exception as other:  # noqa: BLE001  whatever tracing passes on
            what = f"not exported: {type(other).__name__}: {other}"
    options = dataclasses.asdict(compiled._options) | {"threads": compiled._options.thread_count()}
    content = {"error": summary, "model": type(model).__qualname__, "program": what, "options": options}
    content |= _surroundings() | {"weights": weights}
    (folder / "failure.json").write_text(json.dumps(content, indent=1))


def _surroundings() -> dict[str, Any]:
    return {
        "versions": versions_of(PACKAGES),
        "machine": {"system": platform.platform(), "cores": usable_cores()},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)},
    }


def _program(
    model: nn.Module, dynamic_shapes: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, ExportedProgram]:
    """What it is of, and a program of the call's tensors: the whole model, or else its layers, each for itself."""
    try:
        return "the whole model", exported(model, *copied_call(tuple(args), dict(kwargs)), dynamic_shapes)
    except Exception as error:  # noqa: BLE001  whatever tracing passes on
        LOG.info("the model is not exported: %s", error)
    inputs = record_inputs(model, *copied_call(tuple(args), dict(kwargs)))
    return "its layers", exported(layers_graph(model, inputs), tuple(inputs.values()), {})


def _save_program(program: ExportedProgram, folder: Path) -> dict[str, Any]:
    """Write it, its weights apart; returns how each of these is kept.

    Raises:
        ValueError: it is too large without them.
    """
    described, kept = reduced({name: tensor.detach() for name, tensor in program.state_dict.items()}, LIMIT)
    save_file(kept, folder / WEIGHTS)
    for name, tensor in list(program.state_dict.items()):
        nothing = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)  # one number, on disk as well
        parameter = isinstance(tensor, nn.Parameter)
        program.state_dict[name] = nn.Parameter(nothing, requires_grad=False) if parameter else nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, folder / PROGRAM)
    size = (folder / PROGRAM).stat().st_size
    if size > LIMIT:
        (folder / PROGRAM).unlink()
        raise ValueError(f"it takes {size} bytes without its weights")
    return described


def reproduce(folder: Path) -> None:
    """Compile what is in the folder of a failure, with the same options; choices among kernels are made anew.

    Raises:
        InputError: the folder holds no program, and says why.
        Exception: what the compilation failed with, if it fails here as well.
    """
    from sparsecomp.compile import Options
    from sparsecomp.module import SparseModule

    content = json.loads((folder / "failure.json").read_text())
    if not (folder / PROGRAM).exists():
        raise InputError(f"{folder} cannot repeat {content['error']!r}: the model is {content['program']}")
    program = torch.export.load(folder / PROGRAM)
    dtypes = {name: tensor.dtype for name, tensor in program.state_dict.items()}
    module = program.module()
    weights = restored(content["weights"], load_file(folder / WEIGHTS), dtypes)
    module.load_state_dict(weights, strict=False, assign=True)
    asked = content["options"]
    skip = tuple(f"model.{name}" for name in asked["skip"])
    options = Options(Target(**asked["target"]), asked["threads"], skip, asked["min_speedup"])
    assert program.example_inputs is not None
    with on_trial(), watching(verbose=False) as watch:
        trial = Trial.of(module, *program.example_inputs)
        SparseModule(module, options)._compile_graph(trial, (), watch)
    print(f"compiled: {content['error']!r} does not happen here")
