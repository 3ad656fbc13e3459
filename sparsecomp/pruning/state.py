"""What a run has found so far, on disk: an interrupted one goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError

LOG = logging.getLogger(__name__)


class State:
    """Numbers, one line of JSON each, and tensors, a file each, in a folder; None keeps them in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._numbers: dict[str, Any] = {}
        for line in self._lines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError, RecursionError
            ):  # a line cut off by a crash
                record = json.loads(line)
                self._numbers[record["key"]] = record["value"]

    def _lines(self) -> list[str]:
        path = self._path
        return path.read_text(errors="replace").splitlines() if path is not None and path.exists() else []

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / "state.jsonl"

    def get(self, key: str) -> Any:
        """What `put` was given; None where nothing was."""
        return self._numbers.get(key)

    def put(self, key: str, value: Any) -> None:
        """value: what JSON can hold. It is on disk before this returns."""
        self._numbers[key] = value
        path = self._path
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                # A line that a crash cut off ends here: this one must not be lost with it.
                file.write("\n" + json.dumps({"key": key, "value": value}) + "\n")
        except OSError as error:
            self._forgo(error)

    def tensor(self, key: str) -> Tensor | None:
        path = self._tensor_path(key)
        if path is None or not path.exists():
            return None
        try:
            found = torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001  whatever is wrong with the file, it is made again
            return None
        return found if isinstance(found, Tensor) else None

    def put_tensor(self, key: str, value: Tensor) -> None:
        """Whole on disk before this returns, or not at all."""
        path = self._tensor_path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            torch.save(value, unfinished)
            unfinished.replace(path)
        except OSError as error:
            self._forgo(error)

    def drop_tensors(self) -> None:
        """They are large, and of no use once the run is over."""
        if self.folder is not None and self.folder.exists():
            for path in self.folder.glob("*.pt"):
                path.unlink(missing_ok=True)

    def _tensor_path(self, key: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.pt"

    def _forgo(self, error: OSError) -> None:
        LOG.warning("what is found is not kept: %s; SPARSECOMP_CACHE names another folder", error)
        self.folder = None


def state_of(folder: Path, name: str) -> State:
    """The state of a run on the model and data of that digest.

    Raises:
        InputError: the folder is that of other weights or data.
    """
    state = State(folder)
    before = state.get("digest")
    if before is None:
        state.put("digest", name)
    elif before != name:
        raise InputError(
            f"resume={str(folder)!r} holds what was found for another model, other calibration data or another version "
            "of this library: name another folder, or remove it."
        )
    return state


def digest(model: nn.Module, batches: Sequence[Any]) -> str:
    """Names a model's parameters and buffers and its calibration data, by their values, and the code that prunes."""
    found = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        found.update(source.read_bytes())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            _add(found, name, tensor)
    leaves, structure = pytree.tree_flatten(list(batches))
    found.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            _add(found, "batch", leaf)
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:20]


def _add(found: Any, name: str, tensor: Tensor) -> None:
    found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
