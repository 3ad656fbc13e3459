"""What makes a compiled module a drop-in: it answers like the model it stands for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sparsecomp.artifact.saved_model import SavedModel
from sparsecomp.inference_only import InferenceOnly
from sparsecomp.skeleton import Skeleton


class DropIn(InferenceOnly):
    """State, parameters and attributes are the model's own."""

    _skeleton: Skeleton
    _eager: nn.Module
    """The model with its converted layers swapped, and its other converted weights unpacked when read."""

    @abstractmethod
    def _weight(self, name: str) -> Tensor:
        """A packed weight, unpacked exactly."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Nothing set here is a parameter or a submodule of this module."""
        self.__dict__[name] = value

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The original model's state, dense; detached, whatever `keep_vars`."""
        state = self._skeleton.state_dict(self._weight)
        destination = {} if destination is None else destination
        destination.update({prefix + name: value for name, value in state.items()})
        return destination

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The original model's; converted weights are unpacked one by one."""
        named = self._skeleton.module.named_parameters(*args, **kwargs)
        return self._skeleton.unpacked(named, self._weight)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return self._skeleton.unpacked(self._skeleton.module.named_buffers(*args, **kwargs), self._weight)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_eager")
            if isinstance(model, SavedModel):
                return getattr(model, name)  # or says that it was not kept
            if model is None or not hasattr(model, name):
                raise AttributeError(
                    f"neither SparseModule nor {type(model).__name__} has {name!r}"
                ) from None
            return getattr(model, name)
