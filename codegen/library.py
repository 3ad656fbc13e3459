"""Native code of a region as bytes, to be kept in a file, and back."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import weakref
from pathlib import Path

import tvm

from sparsecomp.codegen.arena import plan_arena
from sparsecomp.codegen.call_list import CallList
from sparsecomp.codegen.compiled_region import Code, assemble, compile_region
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.table import Table
from sparsecomp.codegen.threads import share_pytorch_threads
from sparsecomp.errors import ArtifactError
from sparsecomp.region import Region

_KNOWN: weakref.WeakValueDictionary[tuple[Region, Machine], Code] = weakref.WeakValueDictionary()
"""Code that was compiled or came from a file, as long as a module uses it."""
_LIBRARIES: dict[int, bytes] = {}
"""Of code in use, by identity."""
_LOCK = threading.RLock()


def _renew_lock() -> None:
    """In a forked process: a thread that is not there may have held it."""
    global _LOCK
    _LOCK = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def code_of(region: Region, machine: Machine) -> Code:
    """The region's code: what is here already, or else compiled."""
    with _LOCK:
        code = _KNOWN.get((region, machine)) or compile_region(region, machine)
        _KNOWN[region, machine] = code
        return code


def library_of(code: Code) -> bytes:
    """A shared library with the code, linked by the system's C compiler.

    Raises:
        ArtifactError: there is none, or it failed.
    """
    with _LOCK:
        if id(code) not in _LIBRARIES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "code.so"
                try:
                    code.module.export_library(str(path))
                except Exception as error:
                    raise ArtifactError(f"native code cannot be linked: {error}") from error
                _remember(code, path.read_bytes())
        return _LIBRARIES[id(code)]


def _remember(code: Code, library: bytes) -> None:
    _LIBRARIES[id(code)] = library
    weakref.finalize(code, _LIBRARIES.pop, id(code), None)


def adopt(region: Region, machine: Machine, library: bytes) -> Code:
    """Load native code, which is trusted, for a region. Code that is here already is used instead.

    Raises:
        ArtifactError: it cannot be loaded.
    """
    with _LOCK:
        known = _KNOWN.get((region, machine))
        if known is not None:
            return known
        share_pytorch_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{hashlib.sha256(library).hexdigest()}.so"
            path.write_bytes(library)
            try:
                code = assemble(region, region.calls, machine, lambda _: tvm.runtime.load_module(str(path)))
            except Exception as error:
                raise ArtifactError(f"its native code cannot be loaded: {error}") from error
        _remember(code, library)
        _KNOWN[region, machine] = code
        return code


def fingerprint(region: Region, machine: Machine) -> str:
    """Of everything that a region's code depends on but the machine and the versions: its kernels, not its calls."""
    listed = CallList.of(region.calls, region, Table.of(region), plan_arena(region), machine)
    described = repr((listed.kernels, listed.counts, region.tokens))
    return hashlib.sha256(described.encode()).hexdigest()
