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
from torch.nn.utils import parametrize, prune
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from sparsecomp import analyze, compile_sparse
from sparsecomp.errors import InputError
from sparsecomp.intake import dense_state_dict, plain


def net() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    for layer in (model[0], model[2]):
        layer.weight.data *= mask_of(layer.weight)  # type: ignore[operator,arg-type]
    return model.eval()


def mask_of(weight: Tensor) -> Tensor:
    """One of two along the columns, and so 2:4, and whole rows: what every format below can hold."""
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


class Kept(nn.Module):
    """A mask as a parametrization."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def parametrization(model: Any) -> Any:
    for layer in (model[0], model[2]):
        parametrize.register_parametrization(layer, "weight", Kept(mask_of(layer.weight)))
    return model


def semi_structured(weight: Tensor) -> Tensor:
    """As `torch.sparse.to_sparse_semi_structured` makes it with CUTLASS; that asks for a GPU, `.cpu()` leads here."""
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)  # type: ignore[no-untyped-call]
    return SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)


def loaded(model: Any) -> Any:
    """From a compressed-tensors checkpoint."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("bias")}
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name).detach()
        state |= bitmask(name, weight, weight != 0)
    plain_model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    plain_model.load_state_dict(dense_state_dict(state))
    return plain_model


TOOLS: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda model: model,
    "torch.nn.utils.prune": hooks,
    "torch.nn.utils.parametrize": parametrization,
    "torch.ao.pruning": ao_masks,
    "COO": layout(Tensor.to_sparse),
    "CSR": layout(Tensor.to_sparse_csr),
    "CSC": layout(Tensor.to_sparse_csc),
    "BSR": layout(lambda weight: weight.to_sparse_bsr((4, 4))),
    "BSC": layout(lambda weight: weight.to_sparse_bsc((4, 4))),
    "semi-structured": layout(semi_structured),
    "compressed-tensors": loaded,
}
MASK_NOT_SAVED = ("torch.ao.pruning", "torch.nn.utils.parametrize")


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of SparseSemi")
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


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of SparseSemi")
@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in MASK_NOT_SAVED])
def test_state_dicts_of_every_tool_load_into_the_plain_model(tool: str) -> None:
    state = dense_state_dict(TOOLS[tool](net()).state_dict())
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    model.load_state_dict(state)
    for name, tensor in net().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("tool", MASK_NOT_SAVED)
def test_state_dicts_of_parametrized_models_say_what_to_do(tool: str) -> None:
    with pytest.raises(InputError, match=r"'0.parametrizations.weight.original'.*squash_mask\(\)"):
        dense_state_dict(TOOLS[tool](net()).state_dict())


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of SparseSemi")
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


def test_compressed_tensors_of_eight_bits() -> None:
    mask = torch.rand(8, 16) < 0.5
    weight = (torch.randn(8, 16) * mask).to(torch.float8_e4m3fn)
    state = {
        "a.shape": torch.tensor([8, 16]),
        "a.compressed": weight.view(torch.uint8)[mask].view(weight.dtype),
    }
    state["a.bitmask"] = torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))
    found = dense_state_dict(state)["a.weight"]
    assert found.dtype == weight.dtype
    assert torch.equal(found.float(), weight.float())


def test_two_of_four_has_no_offsets_and_values_in_rows() -> None:
    weight = net()[0].weight.detach()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, 0::4] = mask[:, 3::4] = True
    state = bitmask("0.weight", weight, mask)
    del state["0.weight.row_offsets"]
    state["0.weight.shape"] = torch.tensor([[64], [32]])  # so, as a column, in this format
    state["0.weight.compressed"] = state["0.weight.compressed"].reshape(64, 16)
    assert torch.equal(dense_state_dict(state)["0.weight"], weight)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_semi_structured_is_unpacked_to_the_last_bit(dtype: torch.dtype) -> None:
    keep = torch.zeros(64, 128)
    keep.scatter_(1, torch.arange(0, 128, 2) + torch.randint(0, 2, (64, 64)), 1.0)
    weight = (10 * torch.randn(64, 128) * keep).to(dtype)
    found = dense_state_dict({"w": semi_structured(weight)})["w"]
    assert torch.equal(found, weight)
    assert found.dtype == dtype


def test_pytorch_makes_semi_structured_tensors_on_a_gpu_only() -> None:
    with pytest.raises(RuntimeError, match="Only CUDA tensors"):
        torch.sparse.to_sparse_semi_structured(net()[0].weight.detach())


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
def test_what_only_a_gpu_can_unpack_is_named() -> None:
    packed = torch.zeros(64, 18)
    lt = SparseSemiStructuredTensorCUSPARSELT(torch.Size((64, 32)), packed, None, None, None, None)
    model = layout(lambda weight: lt)(net())
    with pytest.raises(
        InputError, match=r"'0.weight' is a SparseSemiStructuredTensorCUSPARSELT.*to_dense\(\)"
    ):
        compile_sparse(model, (torch.randn(3, 32),))


class Halved(Tensor):
    """A class of tensors of somebody else's, which says how it becomes dense."""

    def to_dense(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor) / 2


def test_another_class_of_tensors() -> None:
    model = net()
    model[0].weight = nn.Parameter((2 * model[0].weight.detach()).as_subclass(Halved), requires_grad=False)
    dense: Any = plain(model)
    assert type(dense[0].weight) is nn.Parameter
    assert torch.equal(dense[0].weight, net()[0].weight)


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
