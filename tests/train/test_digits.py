"""End to end on real images: sparse by training, found by the compiler, the same outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from benchmarks.ssl.digits import Digits, accuracy
from benchmarks.ssl.left import Left, blocks_left, chain_left, living_layers
from benchmarks.ssl.nets import ResNet, lenet, mlp
from benchmarks.ssl.paper import PAPER
from benchmarks.ssl.results import load, save
from benchmarks.ssl.row import CONTESTANTS, Row
from benchmarks.ssl.table import MUSTS
from benchmarks.ssl.training import EXPERIMENTS, Phase, fit
from sparsecomp import analyze, compile_sparse
from sparsecomp.alternate import Times
from sparsecomp.train import GroupLasso


def test_a_perceptron_on_digits() -> None:
    """Pixels that are always empty and most neurons die; accuracy stays; the compiler removes the same neurons."""
    digits, dense = Digits.split(0), mlp()
    fit(dense, digits, Phase(15, 0.05), 1e-4)
    sparse = copy.deepcopy(dense)
    lasso = GroupLasso(sparse, {"input": 4e-4, "neuron": 4e-4})
    fit(sparse, digits, Phase(25, 0.05), 0.0, lasso.step)
    fit(sparse, digits, Phase(10, 0.02), 1e-4, lasso.freeze().step)
    assert accuracy(dense, digits) > 94
    assert accuracy(sparse, digits) > 94
    left = chain_left(sparse, ("fc1", "fc2", "fc3"))
    empty = (digits.train_x == 0).all(dim=0).sum()
    assert 64 - left["fc1"].inputs[0] >= int(empty) > 3
    assert left["fc1"].flops < 0.35
    assert left["fc2"].flops < 0.35
    x = digits.test_x[:16]
    found = {layer.layer.name: layer.facts for layer in analyze(sparse.eval(), (x,)).layers}
    assert found["fc1"].zero_columns == lasso.dead()[("fc1.weight", "input")][0]
    slimmed = {name: facts.shape for name, facts in found.items()}  # pixels are inputs, which stay
    assert slimmed == {
        "fc1": (left["fc1"].rows[0], 64),
        "fc2": (left["fc2"].rows[0], left["fc2"].inputs[0]),
        "fc3": (10, left["fc3"].inputs[0]),
    }
    compiled = compile_sparse(sparse, (x,), target="reference", min_speedup=0.0)
    with torch.no_grad():
        assert torch.allclose(compiled(digits.test_x), sparse(digits.test_x), atol=1e-4)


def test_what_is_left_of_a_chain() -> None:
    """The FLOPs of the paper's table 1: 5 of 20 filters, 19 of 50 on 4 channels are 25 % and 7.6 %."""
    net = lenet()
    conv1, conv2 = net.get_parameter("conv1.weight"), net.get_parameter("conv2.weight")
    with torch.no_grad():
        conv2[19:] = 0
        conv2[:, 4:] = 0
        conv1[5:] = 0
    left = chain_left(net, ("conv1", "conv2", "fc1", "fc2"))
    assert left["conv2"] == Left((19, 50), (4, 20), (100, 500))
    assert left["conv2"].flops == 0.076
    assert left["conv1"].rows == (4, 20)  # nothing reads the fifth
    assert left["fc1"].inputs == (19, 50)
    assert left["fc1"].columns == (19 * 16, 800)
    assert left["fc2"] == Left((10, 10), (500, 500), (500, 500))


def test_what_is_left_of_a_residual_network() -> None:
    net = ResNet()
    assert living_layers(net) == (20, 20)
    with torch.no_grad():
        net.get_parameter("blocks.3.conv1.weight")[:4] = 0
        net.get_parameter("blocks.3.conv2.weight")[:, 2:6] = 0
        net.get_parameter("blocks.8.conv2.weight").zero_()
    left = blocks_left(net)
    assert left["blocks.3.conv1"] == Left((10, 16), (8, 8), (72, 72))
    assert left["blocks.3.conv2"] == Left((16, 16), (10, 16), (90, 144))
    assert left["blocks.8.conv1"].flops == left["blocks.8.conv2"].flops == 0
    assert living_layers(net) == (18, 20)


def test_the_networks_have_the_papers_sizes() -> None:
    net = lenet()
    assert tuple(net.get_parameter("conv2.weight").shape) == (50, 20, 5, 5)
    assert len([name for name, p in ResNet().named_parameters() if p.dim() > 1]) == 20
    assert EXPERIMENTS.keys() == MUSTS.keys() == PAPER.keys()


def row(seed: int, sparse: float, filters: int) -> Row:
    left = {
        "conv1": Left((filters, 20), (1, 1), (25, 25)),
        "conv2": Left((10, 50), (filters, 20), (25 * filters, 500)),
    }
    times = {name: Times(0.004 / number, 0.001, 0.0, 9) for number, name in enumerate(CONTESTANTS, 1)}
    seconds = {"conv1": (6e-5, 2e-5), "conv2": (9e-5, 0.0 if seed else 2e-5)}
    return Row("lenet", seed, 98.0, sparse, left, None, 0.1, times, seconds, 30.0, "today", "a machine")


def test_rows_survive_the_file_and_say_what_was_reached(tmp_path: Path) -> None:
    rows = {("lenet", seed): row(seed, 98.0 - seed, 4) for seed in (0, 1)}
    save(rows, tmp_path / "ssl.json")
    assert load(tmp_path / "ssl.json") == rows
    text = (tmp_path / "ssl.md").read_text()
    assert "| SSL | 0.8 % | 5-19 | 1-4 | 25-7.6 % | 1.64-5.23 |" in text
    assert (
        "| seed 1 | 2.00 % | 3.00 % | 4-10 | 1-4 | 25-100 | 20.0-4.0 % | 3.00-gone | 10.0% | 10.0x | 1.50x | 3.00x | 30 s |"
        in text
    )
    assert "| conv1 | 20.0 ± 0.0 % | 5.0 ± 0.0x | 60 us | 20 us | 3.00 ± 0.00x | 0 of 2 |" in text
    assert "| conv2 | 4.0 ± 0.0 % | 25.0 ± 0.0x | 90 us | 10 us | 4.50 ± 0.00x | 1 of 2 |" in text
    assert "filters of conv1 gone: 80.0 % ± 0.0, at least 75.0: reached" in text
    assert "accuracy, sparse less dense: -0.5 points ± 0.7, at least -0.3: NOT REACHED" in text
    assert "Measured on a machine." in text
