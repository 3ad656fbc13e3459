"""What calibration data say about a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one layer. All are means, so that they compare between layers and amounts of data."""

    count: int
    """Rows of X (tokens; positions of a convolution) that were read."""
    moments: Tensor
    """float64, convolution groups x columns x columns: the mean of x x^T over the rows x of X. Half the Hessian of
    the layer's squared output error, with respect to each row of the weight."""
    fisher: Tensor | None = None
    """float64, rows x columns: the mean over samples of the squared gradient of the loss of each weight."""
    gradients: Tensor | None = None
    """float32, samples x rows x columns: gradients of single samples, for blocks of the Fisher matrix."""

    @property
    def norms(self) -> Tensor:
        """float64, groups x columns: the root mean square of each input, ||X_j|| / sqrt(count)."""
        return self.moments.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    @property
    def dead(self) -> Tensor:
        """bool, groups x columns: inputs that were always zero."""
        return self.moments.diagonal(dim1=1, dim2=2) == 0

    def __str__(self) -> str:
        groups, columns = self.moments.shape[:2]
        parts = [f"{self.count} rows of {columns} inputs"]
        parts += [f"in {groups} groups"] if groups > 1 else []
        parts += [f"{int(self.dead.sum())} always zero"] if bool(self.dead.any()) else []
        parts += ["squared gradients"] if self.fisher is not None else []
        parts += [f"{len(self.gradients)} gradients"] if self.gradients is not None else []
        return ", ".join(parts)
