"""AlexNet's five convolutions, and the rows and columns that structured sparsity learning took out of them.

Layers: CaffeNet at the sizes of ImageNet. Sparsities: Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity
in Deep Neural Networks", NeurIPS 2016, table 4, second row (SSL). The weight is a matrix of filters x (channels
of a group * kernel height * kernel width). A pruned row is a filter without weights; a pruned column is a
place in the kernel that no filter reads, the same for all filters.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Convolution:
    """One of the five, with bias and ReLU."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    """Height and width of the image it reads."""
    row_sparsity: float
    column_sparsity: float
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def sparsity(self) -> float:
        """Share of the weight that is zero."""
        return round(1 - (1 - self.row_sparsity) * (1 - self.column_sparsity), 4)

    @property
    def ideal(self) -> float:
        """The speed-up if time went with the number of weights that are left."""
        return 1 / ((1 - self.row_sparsity) * (1 - self.column_sparsity))

    def small(self) -> Convolution:
        """The same with fewer channels and a smaller image, for tests."""
        inputs = self.inputs if self.inputs == 3 else self.inputs // 4
        return replace(self, inputs=inputs, outputs=self.outputs // 4, size=59 if self.inputs == 3 else 9)

    def build(self) -> nn.Module:
        convolution = nn.Conv2d(
            self.inputs, self.outputs, self.kernel, self.stride, self.padding, groups=self.groups
        )
        return nn.Sequential(OrderedDict({self.name: convolution, "relu": nn.ReLU()}))


CONVOLUTIONS = (
    Convolution("conv1", 3, 96, 11, 227, row_sparsity=0.094, column_sparsity=0.0, stride=4),
    Convolution("conv2", 96, 256, 5, 27, row_sparsity=0.129, column_sparsity=0.632, padding=2, groups=2),
    Convolution("conv3", 256, 384, 3, 13, row_sparsity=0.406, column_sparsity=0.769, padding=1),
    Convolution("conv4", 384, 384, 3, 13, row_sparsity=0.469, column_sparsity=0.847, padding=1, groups=2),
    Convolution("conv5", 384, 256, 3, 13, row_sparsity=0.0, column_sparsity=0.807, padding=1, groups=2),
)
ALEXNET = {f"alexnet-{convolution.name}": convolution for convolution in CONVOLUTIONS}
"""By the name of the workload: each is one of its own."""
