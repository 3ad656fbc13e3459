"""The file: a zip archive of stored sections, written whole or not at all, and read with distrust.

    manifest.json         what the module is, and the SHA-256 of every other section
    graphs.json           the captured graphs
    weights.safetensors   every number
    code/0.so, ...        native code, one library per distinct region

Nothing is ever unpacked to a name that the file gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparsecomp.errors import ArtifactError

FORMAT = 2
"""Version of the format: raised when an older reader would misread a file."""
MAGIC = "sparsecomp module"
MANIFEST, GRAPHS, WEIGHTS = "manifest.json", "graphs.json", "weights.safetensors"
_CODE = re.compile(r"code/\d{1,4}\.so")
_MOMENT = (1980, 1, 1, 0, 0, 0)
"""Of every section: equal modules give equal files."""
MANY_SECTIONS = 1024


@dataclass(frozen=True)
class Contents:
    """A file's sections, each of which is what the manifest says it is."""

    manifest: Mapping[str, Any]
    digest: str
    """SHA-256 of the manifest, and through it of everything."""
    sections: Mapping[str, bytes]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(file: IO[bytes], manifest: Mapping[str, Any], sections: Mapping[str, bytes]) -> str:
    """Write the archive; returns the manifest's digest."""
    head = {"what": MAGIC, "format": FORMAT}
    listed = {name: {"bytes": len(data), "sha256": digest_of(data)} for name, data in sections.items()}
    text = json.dumps({**head, **manifest, "sections": listed}, allow_nan=False, indent=1).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in ((MANIFEST, text), *sections.items()):
            archive.writestr(zipfile.ZipInfo(name, _MOMENT), data)
    return digest_of(text)


def write_whole(path: Path, data: bytes) -> None:
    """Put the data at `path` at once: whoever reads it, or finds it after a crash, sees the old file or the new.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error}.") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read(file: IO[bytes], size: int, name: str) -> Contents:
    """All sections. `size`: of the file, which no section can exceed.

    Raises:
        ArtifactError: the file is damaged, foreign, of another format, or not made by `write`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, size)
            text = archive.read(entries[MANIFEST])
            manifest = _manifest(text)
            sections = {
                section: _section(archive, entries, section, listed)
                for section, listed in manifest["sections"].items()
            }
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError, NotImplementedError) as error:
        raise ArtifactError(f"{name} is no saved module, or is damaged: {error}.") from error
    except (RuntimeError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ArtifactError(f"{name} is damaged: {error}.") from error
    return Contents(manifest, digest_of(text), sections)


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, none of which is strange."""
    infos = archive.infolist()
    if len(infos) > MANY_SECTIONS:
        raise ArtifactError(f"it has {len(infos)} sections: it was not written by this library.")
    if sum(info.file_size for info in infos) > size:
        raise ArtifactError("its sections claim more bytes than it has.")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        known = info.filename in (MANIFEST, GRAPHS, WEIGHTS) or _CODE.fullmatch(info.filename)
        if not known or info.filename in entries:
            raise ArtifactError(f"it has a section {info.filename[:80]!r} that does not belong in it.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ArtifactError(f"its section {info.filename!r} is compressed or encrypted.")
        if info.file_size != info.compress_size:
            raise ArtifactError(f"its section {info.filename!r} claims {info.file_size} bytes.")
        entries[info.filename] = info
    if MANIFEST not in entries:
        raise ArtifactError("it has no manifest: it is another kind of file.")
    return entries


def _manifest(text: bytes) -> dict[str, Any]:
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("what") != MAGIC:
        raise ArtifactError("its manifest is that of another kind of file.")
    version = manifest.get("format")
    if not isinstance(version, int) or version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        advice = "read it with a newer sparsecomp" if newer else "save the module again with this sparsecomp"
        raise ArtifactError(f"its format is {version!r}, this library reads {FORMAT}: {advice}.")
    if not isinstance(manifest.get("sections"), dict):
        raise ArtifactError("its manifest lists no sections.")
    return manifest


def _section(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, listed: Any
) -> bytes:
    if name not in entries or name == MANIFEST:
        raise ArtifactError(f"its section {name[:80]!r} is missing.")
    data = archive.read(entries[name])
    if not isinstance(listed, dict) or listed.get("sha256") != digest_of(data):
        raise ArtifactError(f"its section {name!r} is damaged: its SHA-256 is not the one in the manifest.")
    return data
