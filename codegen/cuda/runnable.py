"""Whatever can take a layer's place on a GPU: a kernel of ours, or PyTorch's own for a sparse weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from sparsecomp.codegen.cuda.kernel import Case


class Runnable(Protocol):
    """A frozen dataclass with a field `epilogue`; its fields tell it from all others."""

    def __hash__(self) -> int: ...

    @property
    def epilogue(self) -> str: ...

    @property
    def label(self) -> str: ...

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]: ...

    def unpack(self, operands: Sequence[Tensor]) -> Tensor: ...

    def workspace(self, tokens: int) -> int: ...


class Family(Protocol):
    """Runnables of one kind, among which measured time decides."""

    name: str

    def refused(self, case: Case) -> str | None:
        """Why none of the family can run the layer, or none is worth to be tried; None where some are."""
        ...

    def kernels(self, case: Case) -> Sequence[Runnable]:
        """All that may be the fastest, the likeliest first: a compilation tries the first few, a search all."""
        ...
