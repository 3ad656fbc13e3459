"""Real images without a download: the handwritten digits that come with scikit-learn.

1,797 images of 8 x 8 pixels in 10 classes (Alpaydin and Kaynak, 1998; the test part of UCI's optdigits). An image
is 0.28 points of accuracy in a test set of 360.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Digits:
    """Images N x 1 x size x size, float32, from 0 to 1; classes N, int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @staticmethod
    def split(seed: int, size: int = 8) -> Digits:
        """Four fifths to train on, every class in proportion; enlarged linearly to `size`."""
        found = load_digits()
        x = torch.from_numpy(found.images).float()[:, None] / 16
        if size != x.shape[2]:
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        y = torch.from_numpy(found.target).long()
        train, test = train_test_split(range(len(y)), test_size=0.2, random_state=seed, stratify=found.target)
        return Digits(x[train], y[train], x[test], y[test])


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Percent of the test images; the model is in evaluation mode then, and back in its own after."""
    training = model.training
    model.eval()
    right = int((model(digits.test_x).argmax(dim=1) == digits.test_y).sum())
    model.train(training)
    return 100 * right / len(digits.test_y)
