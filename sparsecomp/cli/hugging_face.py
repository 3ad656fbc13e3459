"""Models in a folder as Hugging Face's `save_pretrained` writes it: config.json and safetensors. Nothing is downloaded,
and no code of the folder runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.cli.example import Example
from sparsecomp.errors import InputError

TOKENS, DECODED, PIXELS = 128, 16, 224
"""Tokens of a text, of a decoder's text, and height and width of an image where no file says."""


def read_folder(name: str, seed: int) -> Example:
    """The model, in float32, and inputs of the usual size.

    Raises:
        InputError: the folder lacks a file, transformers is not installed, or does not know the model.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(f"the folder {name} has no config.json: it is no model that save_pretrained wrote.")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"the folder {name} has no weights as safetensors: save the model again with save_pretrained."
        )
    model = _model(name)
    stored = model.config.dtype
    notes: tuple[str, ...] = ()
    if stored not in (None, torch.float32):
        notes = (f"its weights, stored as {str(stored).removeprefix('torch.')}, run as float32",)
    model = model.float()
    inputs = _inputs(model, folder, torch.Generator().manual_seed(seed))
    return Example(name, model, None if inputs is None else (), inputs or {}, notes)


def _model(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(f"{name} needs transformers: pip install 'sparsecomp[models]'.") from None
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        known = (getattr(transformers, one, None) for one in config.architectures or ())
        made = next((one for one in known if one is not None), transformers.AutoModel)
        return made.from_pretrained(
            name, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise InputError(f"transformers cannot read {name}: {type(error).__name__}: {error}") from error


def _inputs(model: nn.Module, folder: Path, generator: torch.Generator) -> Mapping[str, Tensor] | None:
    """By the name of the model's main input; None where that says too little."""
    config: Any = model.config
    match model.main_input_name:
        case "input_ids":
            return _text(config, generator)
        case "pixel_values":
            height, width = _image_size(config, folder)
            channels = getattr(config, "num_channels", 3)
            return {"pixel_values": torch.randn(1, channels, height, width, generator=generator)}
        case _:
            return None


def _text(config: Any, generator: torch.Generator) -> Mapping[str, Tensor]:
    longest = getattr(config, "max_position_embeddings", None) or TOKENS
    length = min(TOKENS, longest)
    words = config.get_text_config().vocab_size
    ids = torch.randint(0, words, (1, length), generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = torch.randint(0, words, (1, min(DECODED, longest)), generator=generator)
    return found


def _image_size(config: Any, folder: Path) -> tuple[int, int]:
    """Of the configuration, else of the folder's image processor."""
    found = getattr(config, "image_size", None)
    settings = folder / "preprocessor_config.json"
    if found is None and settings.is_file():
        try:
            content = json.loads(settings.read_text())
        except ValueError:
            content = {}
        found = content.get("crop_size") or content.get("size")
    if isinstance(found, Mapping):
        edge = found.get("shortest_edge", PIXELS)
        return int(found.get("height", edge)), int(found.get("width", edge))
    if isinstance(found, list | tuple) and len(found) == 2:
        return int(found[0]), int(found[1])
    return (int(found), int(found)) if isinstance(found, int) else (PIXELS, PIXELS)
