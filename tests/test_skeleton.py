"""The skeleton shares, gives up and takes over data; the user's model is never changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from sparsecomp.capture import capture
from sparsecomp.errors import InputError
from sparsecomp.skeleton import Skeleton


class Net(nn.Module):
    """Tied weights, buffers of both kinds, a plain tensor attribute and a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("scale", torch.rand(4))
        self.register_buffer("shift", torch.rand(4), persistent=False)
        self.plain = torch.rand(4)
        self.first.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tied(self.first(x)) * self.scale + self.shift + self.plain
        return y


def weights_of(model: nn.Module) -> Callable[[str], Tensor]:
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return values.__getitem__


def skeleton_of(model: nn.Module) -> tuple[Skeleton, Any]:
    """The skeleton, and its module."""
    skeleton = Skeleton(model)
    return skeleton, skeleton.module


def stored_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 4)


def test_shares_data_until_it_owns(model: Net, x: Tensor) -> None:
    skeleton, module = skeleton_of(model)
    assert module.first.weight.data_ptr() == model.first.weight.data_ptr()
    skeleton.own()
    expected = model(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers(), model.plain):
            tensor.zero_()
    assert torch.equal(module(x), expected)


def test_leaves_the_model_alone(model: Net, x: Tensor) -> None:
    expected = model(x)
    skeleton = Skeleton(model)
    skeleton.hollow({"first.weight"})
    skeleton.own()
    assert torch.equal(model(x), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in skeleton.module.parameters())


def test_is_in_evaluation_mode_whatever_the_model_is(model: Net) -> None:
    model.train()
    assert not any(module.training for module in Skeleton(model).module.modules())
    assert model.training


def test_hollow_weights_hold_no_data_and_stay_tied(model: Net) -> None:
    skeleton, module = skeleton_of(model)
    skeleton.own()
    before = stored_bytes(module)
    skeleton.hollow(["tied.weight", "first.weight"])
    assert before - stored_bytes(module) == 16 * 4 - 4
    assert module.first.weight is module.tied.weight
    assert module.first.weight.shape == (4, 4)
    assert isinstance(module.first.weight, nn.Parameter)


def test_filled_gives_the_model_back(model: Net, x: Tensor) -> None:
    weights = weights_of(model)
    expected = model(x)
    skeleton, module = skeleton_of(model)
    skeleton.hollow(["first.weight"])
    skeleton.own()
    with skeleton.filled(weights) as outer:
        with skeleton.filled(weights) as inner:
            assert torch.equal(inner(x), expected)
        assert torch.equal(outer(x), expected)
    assert not module.first.weight.any()


def test_filled_is_hollow_again_after_an_error(model: Net) -> None:
    skeleton, module = skeleton_of(model)
    skeleton.hollow(["first.weight"])
    nothing: dict[str, Tensor] = {}
    with pytest.raises(KeyError), skeleton.filled(weights_of(model)):
        raise KeyError
    with pytest.raises(KeyError), skeleton.filled(nothing.__getitem__):
        pass
    assert not module.first.weight.any()


def test_filled_in_inference_mode(model: Net, x: Tensor) -> None:
    expected, weights = model(x), weights_of(model)
    skeleton = Skeleton(model)
    skeleton.hollow(["first.weight"])
    with torch.inference_mode(), skeleton.filled(lambda name: weights(name) + 0) as module:
        assert torch.equal(module(x), expected)
    with skeleton.filled(weights) as module:
        assert torch.equal(module(x), expected)


def test_filled_from_two_threads(model: Net, x: Tensor) -> None:
    expected, weights = model(x), weights_of(model)
    skeleton = Skeleton(model)
    skeleton.hollow(["first.weight"])
    wrong = []

    def work() -> None:
        for _ in range(50):
            with skeleton.filled(weights) as module:
                wrong.extend([1] if not torch.equal(module(x), expected) else [])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_state_dict_is_the_models(model: Net) -> None:
    skeleton = Skeleton(model)
    skeleton.hollow(["first.weight"])
    skeleton.own()
    state, expected = skeleton.state_dict(weights_of(model)), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert state["first.weight"] is not state["first.bias"]
    assert state["first.weight"].data_ptr() == state["tied.weight"].data_ptr()
    Net().load_state_dict(state)


def test_copies_share_their_tensors(model: Net, x: Tensor) -> None:
    skeleton, module = skeleton_of(model)
    other: Any = skeleton.copy()
    assert other is not module
    assert other.first is not module.first
    assert other.first.weight is module.first.weight
    skeleton.hollow(["first.weight"])
    with skeleton.filled(weights_of(model)):
        assert torch.equal(other(x), model(x))


def test_a_captured_graph_follows(model: Net, x: Tensor) -> None:
    expected, weights = model(x), weights_of(model)
    skeleton = Skeleton(model)
    graph = capture(skeleton.module, (x,)).graph
    skeleton.hollow(["first.weight"])
    skeleton.own()
    with torch.no_grad():
        model.plain.zero_()
        assert not torch.equal(graph(x)[0], expected)
        with skeleton.filled(weights):
            assert torch.equal(graph(x)[0], expected)


def test_capture_of_a_hollow_skeleton(model: Net, x: Tensor) -> None:
    expected, weights = model(x), weights_of(model)
    skeleton = Skeleton(model)
    skeleton.hollow(["first.weight"])
    captured = capture(skeleton.module, (x[:1],))
    assert captured.refuses((x,), {}) is None
    with skeleton.filled(weights):
        assert torch.equal(captured.graph(x)[0], expected)


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    return nn.Sequential(layer)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "prune": pruned,
    "weight_norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))),
    "spectral_norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4))),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
    "lstm": lambda: nn.LSTM(4, 4),
    "symbolic trace": lambda: fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    "exported": lambda: torch.export.export(nn.Sequential(nn.Linear(4, 4)), (torch.rand(3, 4),)).module(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_modules(kind: str, x: Tensor) -> None:
    model = KINDS[kind]()
    for module in model.modules():
        module.training = False
    expected, weights = model(x), weights_of(model)
    skeleton = Skeleton(model)
    skeleton.hollow(name for name, parameter in model.named_parameters() if parameter.dim() == 2)
    skeleton.own()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with skeleton.filled(weights) as filled:
        torch.testing.assert_close(filled(x), expected)
    assert list(skeleton.state_dict(weights)) == list(model.state_dict())


class Views(nn.Module):
    """Halves of one storage, a small piece of a large one, two strides that are not the usual."""

    def __init__(self) -> None:
        super().__init__()
        both, large = torch.rand(8, 4), torch.rand(1000)
        self.upper, self.lower = nn.Parameter(both[:4]), nn.Parameter(both[4:])
        self.piece = nn.Parameter(large[10:14])
        self.kernel = nn.Parameter(torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.register_buffer("wide", torch.rand(1, 4).expand(100, 4))


def test_views_and_strides_are_kept() -> None:
    model = Views()
    skeleton, module = skeleton_of(model)
    skeleton.own()
    assert module.upper.untyped_storage().data_ptr() == module.lower.untyped_storage().data_ptr()
    assert module.upper.data_ptr() != model.upper.data_ptr()
    assert module.piece.untyped_storage().nbytes() == 16
    assert module.kernel.is_contiguous(memory_format=torch.channels_last)
    assert module.wide.stride() == (0, 1)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_a_view_of_hollow_data_keeps_only_its_own() -> None:
    skeleton, module = skeleton_of(Views())
    skeleton.hollow(["upper"])
    skeleton.own()
    assert module.lower.untyped_storage().nbytes() == 64


def test_says_what_cannot_be_copied(model: Net) -> None:
    vars(model)["lock"] = threading.Lock()
    with pytest.raises(InputError, match=r"Net cannot be copied .*lock"):
        Skeleton(model)
    with pytest.raises(InputError, match=r"'0\.weight' has no shape yet"):
        Skeleton(nn.Sequential(nn.LazyLinear(4)))


def test_transformers_model_with_tied_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(8)[None]
    expected, weights = model(ids).logits, weights_of(model)
    skeleton, module = skeleton_of(model)
    skeleton.hollow(["lm_head.weight", "transformer.h.0.attn.c_attn.weight"])
    skeleton.own()
    assert not module.transformer.wte.weight.any()
    with skeleton.filled(weights) as filled:
        assert torch.equal(filled(ids).logits, expected)
    assert module.config is not model.config
