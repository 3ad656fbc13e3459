"""The networks that structured sparsity learning is tried on, as in the paper where the data allow.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, section 4.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lenet() -> nn.Module:
    """The paper's LeNet, from Caffe: 28 x 28 pixels, convolutions of 20 x (1 x 25) and 50 x (20 x 25) weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def mlp() -> nn.Module:
    """The paper's perceptron, 784-500-300-10, on 64 pixels."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, 300),
            relu2=nn.ReLU(),
            fc3=nn.Linear(300, 10),
        )
    )


class Block(nn.Module):
    """Two convolutions with a shortcut around them that has no weights (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.grown = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.grown))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """ResNet-20 of CIFAR (3 stages of 3 blocks), with 8, 16 and 32 channels in place of 16, 32 and 64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        widths = (8, 8, 8, 8, 16, 16, 16, 32, 32, 32)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in itertools.pairwise(widths)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.bn(self.stem(x))))
        scores: Tensor = self.head(torch.mean(y, dim=(2, 3)))
        return scores
