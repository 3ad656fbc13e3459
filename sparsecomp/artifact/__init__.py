"""A compiled module as one file, and back; `docs/format.md` describes the file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecomp.errors import ArtifactError

if TYPE_CHECKING:
    from sparsecomp.contract import Capture
    from sparsecomp.kept import Kept
    from sparsecomp.module import SparseModule


def save_module(compiled: Kept, path: str | os.PathLike[str], general: Capture | None) -> None:
    """Write the file whole, and register it on this machine.

    Raises:
        ArtifactError: the module cannot be saved, or the file not written.
    """
    from sparsecomp.artifact import container, registry
    from sparsecomp.artifact.writer import encode_module

    data, digest = encode_module(compiled, general)
    container.write_whole(Path(path), data)
    registry.register(digest)


def load(path: str | os.PathLike[str], *, trust: bool = False) -> SparseModule:
    """Read a module that `SparseModule.save` wrote: the same calls and outputs, without the model's Python class.

    Native code in the file is used if this machine wrote it, or if you say that you trust the file. Otherwise, and on
    another processor or with other versions of PyTorch, TVM or this library, its weights and graphs are read, and its
    kernels are made again at the first call; an `ArtifactWarning` says so.

    Args:
        path: The file.
        trust: Run its native code though this machine did not write it. Only for files from people you trust.

    Raises:
        ArtifactError: the file is missing, damaged, foreign, or of another format; the message says which.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    return module_of(data, trust, str(path))


def module_of(data: bytes, trust: bool, name: str) -> SparseModule:
    """`load`, of the contents of a file."""
    from sparsecomp.artifact import container, registry
    from sparsecomp.artifact.reader import decode_module

    contents = container.read(io.BytesIO(data), len(data), name)
    return decode_module(contents, trust or registry.is_registered(contents.digest), name)


def module_bytes(compiled: Kept) -> bytes:
    """What `module_of` reads; registered on this machine.

    Raises:
        ArtifactError: the module cannot be saved.
    """
    from sparsecomp.artifact import registry
    from sparsecomp.artifact.writer import encode_module

    data, digest = encode_module(compiled, None)
    registry.register(digest)
    return data
