"""Whatever tool made the zeros, the same compiled model comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier
from torch.nn.utils import prune

from sparsecomp import analyze, compile_sparse
from sparsecomp.errors import InputError
from sparsecomp.intake import dense_state_dict, plain


def net() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    for layer in (model[0], model[2]):
        layer.weight.data *= mask_of(layer.weight)  # type: ignore[operator,arg-type]
    return model.eval()


def mask_of(weight: Tensor) -> Tensor:
    """2:4 along the columns, and whole rows: what every format below can hold."""
    keep = torch.zeros_like(weight)
    keep[:, 0::4] = keep[:, 3::4] = 1.0
    keep[::3] = 0.0
    return keep


def hooks(model: Any) -> Any:
    for layer in (model[0], model[2]):
        prune.custom_from_mask(layer, "weight", mask_of(layer.weight))  # type: ignore[no-untyped-call]
    return model


def ao_masks(model: Any) -> Any:
    sparsifier = WeightNormSparsifier(sparsity_level=0.0)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])  # type: ignore[no-untyped-call]
    for layer in (model[0], model[2]):
        layer.parametrizations.weight[0].mask.copy_(mask_of(layer.weight))
    return model


def layout(convert: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        for layer in (model[0], model[2]):
            layer.weight = nn.Parameter(convert(layer.weight.detach()), requires_grad=False)
        return model

    return change


TOOLS: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda model: model,
    "torch.nn.utils.prune": hooks,
    "torch.ao.pruning": ao_masks,
    "COO": layout(Tensor.to_sparse),
    "CSR": layout(Tensor.to_sparse_csr),
    "CSC": layout(Tensor.to_sparse_csc),
    "BSR": layout(lambda weight: weight.to_sparse_bsr((4, 4))),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_gives_the_same(tool: str) -> None:
    x = torch.randn(3, 32)
    expected = compile_sparse(net(), (x,), target="reference", min_speedup=0.0)
    found = compile_sparse(TOOLS[tool](net()).eval(), (x,), target="reference", min_speedup=0.0)
    with torch.no_grad():
        assert torch.equal(found(x), expected(x))
    layers = [(r.layer.weight_shape, r.facts.nonzeros, r.facts.structure) for r in found.report.layers]
    assert layers == [
        (r.layer.weight_shape, r.facts.nonzeros, r.facts.structure) for r in expected.report.layers
    ]
    assert len(layers) == 2


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "torch.ao.pruning"])
def test_state_dicts_of_every_tool_load_into_the_plain_model(tool: str) -> None:
    state = dense_state_dict(TOOLS[tool](net()).state_dict())
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    model.load_state_dict(state)
    for name, tensor in net().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore:Sparse")
def test_the_model_that_is_handed_in_is_left_as_it_is() -> None:
    model = TOOLS["CSR"](net())
    dense = plain(model)
    assert model[0].weight.layout is torch.sparse_csr
    assert dense is not model
    assert dense[0].bias is model[0].bias  # type: ignore[index]
    assert plain(dense) is dense
    assert len(analyze(model, (torch.randn(2, 32),)).layers) == 2


def bitmask(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A weight as compressed-tensors writes it."""
    bits = np.packbits(mask.numpy(), axis=-1, bitorder="little")
    counts = mask.sum(-1)
    return {
        f"{name}.shape": torch.tensor(weight.shape),
        f"{name}.compressed": weight[mask],
        f"{name}.bitmask": torch.from_numpy(bits),
        f"{name}.row_offsets": counts.cumsum(0) - counts,
    }


@given(
    st.integers(1, 9), st.integers(1, 40), st.floats(0, 1), st.sampled_from((torch.float32, torch.bfloat16))
)
def test_compressed_tensors(rows: int, columns: int, density: float, dtype: torch.dtype) -> None:
    mask = torch.rand(rows, columns) < density
    weight = (torch.randn(rows, columns) * mask).to(dtype)
    for name in ("a.b", "a.b.weight"):
        state = dense_state_dict(bitmask(name, weight, mask) | {"a.b.bias": torch.ones(rows)})
        assert state.keys() == {"a.b.weight", "a.b.bias"}
        assert torch.equal(state["a.b.weight"], weight)


def test_two_of_four_has_no_offsets_and_values_in_rows() -> None:
    weight = net()[0].weight.detach()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, 0::4] = mask[:, 3::4] = True
    state = bitmask("0.weight", weight, mask)
    del state["0.weight.row_offsets"]
    state["0.weight.compressed"] = state["0.weight.compressed"].reshape(48, 16)
    assert torch.equal(dense_state_dict(state)["0.weight"], weight)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"a.weight_orig": torch.ones(2, 3), "a.weight_mask": torch.ones(3, 2)},
            "the mask of 'a.weight' is (3, 2), its weight (2, 3): they must have one shape.",
        ),
        (
            {"a.bitmask": torch.ones(2, 1)},
            "the compressed weight 'a' lacks shape, compressed: load all files of it.",
        ),
        (
            bitmask("a", torch.ones(2, 8), torch.ones(2, 8, dtype=torch.bool))
            | {"a.compressed": torch.ones(3)},
            "the compressed weight 'a' of shape (2, 8) has 16 bits set among 16 and 3 values: "
            + "the checkpoint is damaged, or of another format.",
        ),
    ],
)
def test_bad_input(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError) as caught:
        dense_state_dict(state)
    assert str(caught.value) == message
