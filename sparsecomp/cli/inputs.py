"""Example inputs that are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecomp.errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
FORM = "[NAME=]DTYPE:SHAPE[:RANGE], such as x=float32:1x3x224x224 or input_ids=int64:1x128:0..30000"
_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>\w+):(?P<shape>\d+(?:x\d+)*)(?::(?P<low>[^:.]+(?:\.\d+)?)(?:\.\.(?P<high>[^:]+))?)?"
)


@dataclass(frozen=True)
class InputSpec:
    """One example input: random numbers, or one number everywhere."""

    name: str | None
    """The keyword it is passed as; None: by position."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    """Numbers are from `low` up to, not including, `high`. Without it all are `low`. Without both they are normal (mean
    0, deviation 1), or 0 and 1 for bool."""

    @staticmethod
    def parse(text: str) -> InputSpec:
        """Read `FORM`.

        Raises:
            InputError: the text is not of it; the message says what is wrong.
        """
        found = _SPEC.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r} is no input: write {FORM}.")
        dtype = DTYPES.get(found["dtype"])
        if dtype is None:
            raise InputError(f"{text!r}: {found['dtype']!r} is no type; use one of {', '.join(DTYPES)}.")
        whole = not dtype.is_floating_point
        low, high = (_number(found[part], whole, text) for part in ("low", "high"))
        if low is None and whole and dtype is not torch.bool:
            raise InputError(
                f"{text!r}: whole numbers need a range, {text}:0..30000 say, or a value, {text}:1."
            )
        if low is not None and high is not None and not low < high:
            raise InputError(f"{text!r}: the range is empty; its second number is not included.")
        _check_fits(dtype, low, high, text)
        shape = tuple(int(extent) for extent in found["shape"].split("x"))
        return InputSpec(found["name"], dtype, shape, low, high)

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Of this type and shape."""
        if self.low is not None and self.high is None:
            return torch.full(self.shape, self.low, dtype=self.dtype)
        if not self.dtype.is_floating_point:
            low, high = int(self.low or 0), int(2 if self.high is None else self.high)
            return torch.randint(low, high, self.shape, generator=generator).to(self.dtype)
        if self.low is None or self.high is None:
            return torch.randn(self.shape, generator=generator).to(self.dtype)
        drawn = torch.rand(self.shape, generator=generator)
        return (self.low + drawn * (self.high - self.low)).to(self.dtype)


def _number(text: str | None, whole: bool, spec: str) -> float | None:
    if text is None:
        return None
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "whole number" if whole else "number"
        raise InputError(f"{spec!r}: {text!r} is no {kind}; write {FORM}.") from None


def _check_fits(dtype: torch.dtype, low: float | None, high: float | None, text: str) -> None:
    if dtype.is_floating_point:
        return
    least, largest = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    last = None if high is None else high - 1
    if any(end is not None and not least <= end <= largest for end in (low, last)):
        raise InputError(f"{text!r}: the type holds numbers from {least} to {largest}.")


def example(specs: Sequence[InputSpec], seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments.

    Raises:
        InputError: a name is there twice.
    """
    names = [spec.name for spec in specs if spec.name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"input {twice!r} is given twice.")
    generator = torch.Generator().manual_seed(seed)
    args, kwargs = [], {}
    for spec in specs:
        tensor = spec.tensor(generator)
        if spec.name:
            kwargs[spec.name] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs
