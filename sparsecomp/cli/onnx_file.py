"""ONNX models, by an existing converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecomp.cli.example import Example
from sparsecomp.errors import InputError


def read_onnx(name: str, seed: int) -> Example:
    """The model as onnx2torch converts it, and random inputs where all of its inputs are floating point; free sizes
    are 1.

    Raises:
        InputError: the converter is not installed, or cannot convert the model.
    """
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise InputError(
            f"{name}: reading ONNX needs {error.name}: pip install 'sparsecomp[onnx]'. Or export the model with "
            "torch.export.save and give that file."
        ) from None
    except Exception as error:  # of torchvision, say, that does not fit the installed PyTorch
        raise InputError(f"{name}: onnx2torch cannot be imported: {type(error).__name__}: {error}") from error
    try:
        content = onnx.load(Path(name))
        model = onnx2torch.convert(content)
    except Exception as error:
        raise InputError(f"onnx2torch cannot convert {name}: {type(error).__name__}: {error}") from error
    held = {tensor.name for tensor in content.graph.initializer}
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        _random(one, onnx.TensorProto.FLOAT, generator) for one in content.graph.input if one.name not in held
    ]
    args = None if None in inputs else tuple(inputs)
    return Example(name, model, args, {})


def _random(described: Any, floating: int, generator: torch.Generator) -> Tensor | None:
    """None for what a range must be known of."""
    kind = described.type.tensor_type
    if kind.elem_type != floating:
        return None
    return torch.randn([extent.dim_value or 1 for extent in kind.shape.dim], generator=generator)
