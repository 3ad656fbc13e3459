"""What other tools leave behind, made plain: sparse layouts, masks, compressed checkpoints -> dense tensors with
zeros, from which the same model is compiled whatever made it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sparsecomp.errors import InputError
from sparsecomp.skeleton import copied_tree, held_tensors

COMPRESSED = ("shape", "compressed", "bitmask")
"""What the compressed-tensors formats "sparse-bitmask" and "sparse-24-bitmask" have for each weight."""
ORIGINAL = re.compile(r"(.*\.|)([^.]+)_orig")
"""How `torch.nn.utils.prune` calls a parameter's values, beside `..._mask`."""
PARAMETRIZED = re.compile(r"(.*\.|)parametrizations\.([^.]+)\.original")
"""How `torch.ao.pruning` does; it keeps the mask out of state dicts."""


def plain(model: nn.Module) -> nn.Module:
    """The model, or a copy that shares its data where a parameter or buffer is in a sparse layout (COO, CSR, CSC,
    BSR, BSC) or semi-structured: in the copy these are dense."""
    dense: dict[int, Tensor] = {id(t): _dense(t) for t in held_tensors(model) if _is_sparse(t)}
    return copied_tree(model, lambda tensor: dense.get(id(tensor), tensor)) if dense else model


def dense_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that loads into the plain model, from one of:

    - masks and originals of `torch.nn.utils.prune` (`weight_orig`, `weight_mask`);
    - tensors in a sparse layout, or semi-structured;
    - compressed-tensors checkpoints, as `safetensors.torch.load_file` reads them: formats "sparse-bitmask" and
      "sparse-24-bitmask" (per weight `shape`, `compressed` with the values in the order of rows, and `bitmask`,
      uint8, a bit per element, the lowest first, each row filled up to whole bytes).

    Raises:
        InputError: a mask has another shape than its weight, or is not there (`torch.ao.pruning` before
            `squash_mask`); a compressed weight lacks a part or values.
    """
    found = {name: _dense(tensor) if _is_sparse(tensor) else tensor for name, tensor in state.items()}
    for original in [name for name in found if _mask_of(name, found) is not None]:
        name, mask = _mask_of(original, found) or ("", "")
        found[name] = _masked(found.pop(original), found.pop(mask), name)
    for name in found:
        if PARAMETRIZED.fullmatch(name):
            raise InputError(
                f"the state dict has {name!r} without its mask, which torch.ao.pruning does not save: call "
                "sparsifier.squash_mask() before state_dict()."
            )
    for stem in [name.removesuffix(".bitmask") for name in found if name.endswith(".bitmask")]:
        weight = _decompressed(stem, found)
        for part in (*COMPRESSED, "row_offsets"):
            found.pop(f"{stem}.{part}", None)
        found[stem if stem.endswith(".weight") else f"{stem}.weight"] = weight
    return found


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or "SparseSemiStructured" in type(tensor.data).__name__


def _dense(tensor: Tensor) -> Tensor:
    value = tensor.detach().to_dense()
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _mask_of(original: str, state: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """For the name of a masked parameter's values: the parameter's own name, and that of the mask."""
    found = ORIGINAL.fullmatch(original)
    name = "".join(found.groups()) if found else ""
    return (name, f"{name}_mask") if f"{name}_mask" in state else None


def _masked(value: Tensor, mask: Tensor, name: str) -> Tensor:
    if value.shape != mask.shape:
        raise InputError(
            f"the mask of {name!r} is {tuple(mask.shape)}, its weight {tuple(value.shape)}: they must have one shape."
        )
    return value * mask.to(value.dtype)


def _decompressed(stem: str, state: Mapping[str, Tensor]) -> Tensor:
    missing = [part for part in COMPRESSED if f"{stem}.{part}" not in state]
    if missing:
        raise InputError(f"the compressed weight {stem!r} lacks {', '.join(missing)}: load all files of it.")
    shape, values, bits = (state[f"{stem}.{part}"] for part in COMPRESSED)
    sizes = tuple(int(size) for size in shape.tolist())
    flags = np.unpackbits(bits.numpy(), axis=-1, bitorder="little")[..., : sizes[-1]].astype(bool)
    if flags.size != math.prod(sizes) or int(flags.sum()) != values.numel():
        raise InputError(
            f"the compressed weight {stem!r} of shape {sizes} has {int(flags.sum())} bits set among {flags.size} and "
            f"{values.numel()} values: the checkpoint is damaged, or of another format."
        )
    full = torch.zeros(sizes, dtype=values.dtype)
    full[torch.from_numpy(flags.reshape(sizes))] = values.flatten()
    return full
