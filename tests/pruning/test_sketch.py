"""Models put together from weights pruned alone, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.judge import Judge
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import layer_weight
from sparsecomp.pruning.prune import prune_each, prune_weight
from sparsecomp.pruning.pruned import Pruned
from sparsecomp.pruning.sketch import Sketch

HALF, MOST = Candidate("unstructured", 0.5), Candidate("4x1", 0.9)


def parameter(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach()


def test_a_sketch_has_each_weight_as_pruned_alone_and_leaves_the_model() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    before = [parameter(layer).clone() for layer in model]
    asked: list[str] = []

    def pruned(name: str, candidates: Sequence[Candidate]) -> Iterable[Pruned]:
        asked.append(name)
        return prune_each(layer_weight(prunable_layers(model)[name]), candidates, None, "magnitude")

    sketch = Sketch(model, dict.fromkeys("01", (DENSE, HALF, MOST)), pruned)
    for choices in ({"0": HALF, "1": MOST}, {"1": HALF}, {}, {"0": MOST}):
        found = sketch.of(choices)
        for number, weight in enumerate(before):
            own = choices.get(str(number), DENSE)
            expected = prune_weight(weight, own, None, "magnitude").weight
            assert torch.equal(found[number].weight, expected)  # type: ignore[index]
    assert sketch.errors("0")[HALF] == prune_weight(before[0], HALF, None, "magnitude").error
    assert sorted(asked) == ["0", "1"]
    assert all(torch.equal(parameter(layer), weight) for layer, weight in zip(model, before, strict=True))


@torch.no_grad()
def test_the_judge_takes_the_users_function_or_the_loss_or_the_outputs() -> None:
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    assert Judge(model, [x], lambda found: 7.0 if found is other else 0.0, None)(other) == 7.0
    labelled = Judge(model, [(x[:4], y[:4]), (x[4:], y[4:])], None, F.cross_entropy)
    assert labelled(other) == pytest.approx(float(F.cross_entropy(other(x), y)), rel=1e-5)
    moved = Judge(model, [x], None, None)
    assert moved(model) == 0
    change = (other(x) - model(x)).square().sum() / model(x).square().sum()
    assert moved(other) == pytest.approx(float(change), rel=1e-5)
    assert [judge.measure for judge in (labelled, moved)] == ["loss", "change of the outputs"]
