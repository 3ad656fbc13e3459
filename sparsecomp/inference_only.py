"""A module that only runs: what it is asked beyond that, it refuses with advice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from sparsecomp.errors import InferenceOnlyError


class InferenceOnly(nn.Module):
    """Training, moving, converting and loading raise InferenceOnlyError; asking for what is the case
    already, `eval()` or `to("cpu")` say, changes nothing and is allowed."""

    _device: str = "cpu"
    """PyTorch's name of the kind of device that the module is for."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._load_from_state_dict()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Also called by a module that holds this one."""
        raise InferenceOnlyError(
            "a compiled module loads no state dict: load it into the model, and compile that again or, where its zeros "
            "are the same, give it to update_weights."
        )

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise InferenceOnlyError(
                "a compiled module is for inference: train the model it was made from, then compile it again."
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            self.train()
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is None or device.type == self._device) and dtype in (None, torch.float32):
            return self
        raise InferenceOnlyError(
            f"a compiled module stays what it was compiled for, not {device or dtype}: "
            "move or convert the model, then compile it."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `float()`, `cpu()`, `half()` and the like do to each tensor: nothing, or what cannot be done."""
        probe = torch.zeros(1, device=self._device)
        try:
            made = fn(probe)
        except (AssertionError, RuntimeError):  # a device that is not here
            made = probe.to("meta")
        if (made.device, made.dtype) == (probe.device, probe.dtype):
            return self
        raise InferenceOnlyError(
            "a compiled module cannot be moved or converted: do so with the model, then compile it again."
        )


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise InferenceOnlyError(
            "a compiled module has no backward: differentiate the model it was made from."
        )


def without_backward(y: Tensor) -> Tensor:
    """The same values; asking for their gradient raises, rather than giving none."""
    if not y.is_floating_point():
        return y
    with torch.enable_grad():
        result: Tensor = _NoBackward.apply(y.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return result
