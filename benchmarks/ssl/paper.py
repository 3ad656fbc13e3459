"""What the paper printed, for the tables beside ours.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016: tables 1 and 2 (LeNet on
MNIST), the perceptron of section 4.1, and the ResNets of section 4.2 (CIFAR-10). Its speed-ups are of single
matrix products on a CPU.
"""

from __future__ import annotations

PAPER: dict[str, tuple[tuple[str, ...], ...]] = {
    "lenet": (
        ("LeNet/MNIST", "error", "filters", "channels", "FLOPs", "speed-up"),
        ("baseline", "0.9 %", "20-50", "1-20", "100-100 %", "1.00-1.00"),
        ("SSL", "0.8 %", "5-19", "1-4", "25-7.6 %", "1.64-5.23"),
        ("SSL", "1.0 %", "3-12", "1-3", "15-3.6 %", "1.99-7.44"),
    ),
    "lenet-shapes": (
        ("LeNet/MNIST", "error", "columns", "channels", "FLOPs", "speed-up"),
        ("baseline", "0.9 %", "25-500", "1-20", "100-100 %", "1.00-1.00"),
        ("SSL", "0.8 %", "21-41", "1-2", "8.4-8.2 %", "2.33-6.93"),
        ("SSL", "1.0 %", "7-14", "1-1", "1.4-2.8 %", "5.19-10.82"),
    ),
    "mlp": (
        ("MLP/MNIST", "error", "neurons", "FLOPs"),
        ("baseline", "1.43 %", "784-500-300-10", "100-100-100 %"),
        ("SSL", "1.34 %", "469-294-166-10", "35.18-32.54-55.33 %"),
        ("SSL", "1.53 %", "434-174-78-10", "19.26-9.05-26.00 %"),
    ),
    "resnet": (
        ("ResNet/CIFAR-10", "error", "layers"),
        ("ResNet-20", "8.82 %", "20"),
        ("SSL from ResNet-20", "8.54 %", "14"),
        ("SSL from ResNet-20", "7.40 %", "18"),
    ),
    "resnet-coupled": (
        ("ResNet/CIFAR-10", "error", "layers"),
        ("ResNet-20; the paper has no such groups", "8.82 %", "20"),
    ),
}
