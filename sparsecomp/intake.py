"""What other tools leave behind, made plain: sparse layouts, masks, compressed checkpoints -> dense tensors with
zeros, from which the same model is compiled whatever made it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

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
    BSR, BSC), semi-structured, or of another class of tensors that has a `to_dense` of its own: in the copy these
    are dense.

    Raises:
        InputError: PyTorch cannot make one dense here; the message names it.
    """
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    sparse = [tensor for tensor in held_tensors(model) if _is_sparse(tensor)]
    dense = {id(t): _dense(t, names.get(id(t), "a tensor that no module registers")) for t in sparse}
    return copied_tree(model, lambda tensor: dense.get(id(tensor), tensor)) if dense else model


def dense_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that loads into the plain model, from one of:

    - masks and originals of `torch.nn.utils.prune` (`weight_orig`, `weight_mask`);
    - tensors in a sparse layout, or semi-structured;
    - compressed-tensors checkpoints, as `safetensors.torch.load_file` reads them: formats "sparse-bitmask" and
      "sparse-24-bitmask" (per weight `shape`, as a row or a column, `compressed` with the values in the order of rows, and `bitmask`,
      uint8, a bit per element, the lowest first, each row filled up to whole bytes).

    Raises:
        InputError: a mask has another shape than its weight; weights are computed by parametrizations
            (`torch.ao.pruning` before `squash_mask`); a compressed weight lacks a part or values; a tensor cannot be made dense here.
    """
    found = {name: _dense(tensor, name) if _is_sparse(tensor) else tensor for name, tensor in state.items()}
    for original in [name for name in found if _mask_of(name, found) is not None]:
        name, mask = _mask_of(original, found) or ("", "")
        found[name] = _masked(found.pop(original), found.pop(mask), name)
    for name in found:
        if PARAMETRIZED.fullmatch(name):
            raise InputError(
                f"the state dict has {name!r}, from which a parametrization computes the weight, and not always what "
                "it computes with: before state_dict() call sparsifier.squash_mask() (torch.ao.pruning), or "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
    for stem in [name.removesuffix(".bitmask") for name in found if name.endswith(".bitmask")]:
        weight = _decompressed(stem, found)
        for part in (*COMPRESSED, "row_offsets"):
            found.pop(f"{stem}.{part}", None)
        found[stem if stem.endswith(".weight") else f"{stem}.weight"] = weight
    return found


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or type(tensor.data).to_dense is not Tensor.to_dense


def _dense(tensor: Tensor, name: str) -> Tensor:
    value = tensor.detach()
    try:
        dense = _two_of_four(value) if _has_own_bits(value) else value.to_dense()
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"{name!r} is a {type(value).__name__}, which cannot be made dense on this machine ({reason}): "
            "replace it by its to_dense() where it was made, before compiling."
        ) from error
    return nn.Parameter(dense, requires_grad=False) if isinstance(tensor, nn.Parameter) else dense


def _has_own_bits(value: Tensor) -> bool:
    """A semi-structured tensor of CUTLASS, whose float32 values PyTorch (2.13) moves as pairs of halves: on CPUs
    that sets a bit in those whose half looks like a signalling NaN."""
    return type(value) is torch.sparse.SparseSemiStructuredTensorCUTLASS and value.dtype == torch.float32


def _two_of_four(value: Tensor) -> Tensor:
    """Exactly, by moving the same pairs as integers."""
    packed, meta = value.packed, value.meta  # type: ignore[attr-defined]
    pairs: Tensor = sparse_semi_structured_to_dense_cutlass(packed.view(torch.int16), meta)  # type: ignore[no-untyped-call]
    return pairs.view(torch.float32)


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
    sizes = tuple(int(size) for size in shape.flatten().tolist())
    flags = np.unpackbits(bits.numpy(), axis=-1, bitorder="little")[..., : sizes[-1]].astype(bool)
    if flags.size != math.prod(sizes) or int(flags.sum()) != values.numel():
        raise InputError(
            f"the compressed weight {stem!r} of shape {sizes} has {int(flags.sum())} bits set among {flags.size} and "
            f"{values.numel()} values: the checkpoint is damaged, or of another format."
        )
    raw = values.flatten()
    if values.dtype.itemsize == 1:  # PyTorch moves no 8-bit floats by masks, but bytes
        raw = raw.view(torch.uint8)
    full = torch.zeros(sizes, dtype=raw.dtype)
    full[torch.from_numpy(flags.reshape(sizes))] = raw
    return full.view(values.dtype)
