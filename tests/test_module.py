"""The compiled module: a drop-in for inference, whatever it is called with and whatever is asked of it."""

from __future__ import annotations

import copy
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from benchmarks.prune import prune
from sparsecomp import InferenceOnlyError, InputError, SparseModule, analyze, compile_sparse
from sparsecomp.codegen import stream
from sparsecomp.codegen.arena import ArenaPool
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.module import MAX_VARIANTS
from sparsecomp.program import print_graph

FEATURES = 32


class Tokens(nn.Module):
    """Any number of tokens; each number is a graph of its own, since only dimension 0 is dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 64)
        self.outer = nn.Linear(64, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.outer(F.gelu(self.inner(x)))
        return y


class Images(nn.Module):
    """Batch norm to fold, stride, a residual, and an output that does not depend on the image size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
                assert isinstance(tensor, Tensor)
                tensor.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm(self.first(x)))
        return F.relu(self.second(x)).mean((2, 3))


class Branching(nn.Module):
    """Control flow on values: no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = nn.Linear(FEATURES, 64)
        self.negative = nn.Linear(FEATURES, 64)
        self.last = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.positive(x) if x.sum() > 0 else self.negative(x)
        y: Tensor = self.last(hidden.relu())
        return y


class Masked(nn.Module):
    """Shows what inputs may be: a tensor by position, another by keyword, a flag; a dictionary comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 24)

    def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> dict[str, Any]:
        y = self.layer(x)
        y = y if mask is None else y * mask
        return {"y": y * 2 if double else y, "parts": (x, [y.sum(-1)]), "nothing": None}


def pruned(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    assert prune(model, "unstructured", sparsity)
    return model.eval()


def compiled_of(model: nn.Module, *args: Any, target: str = "reference", **kwargs: Any) -> SparseModule:
    """Compiled on this call, every layer converted; the target "reference" measures nothing."""
    return compile_sparse(model, args, kwargs, target=target, min_speedup=0.0)


def error(compiled: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> float:
    with torch.no_grad():
        return relative_error(compiled(*args, **kwargs), model(*args, **kwargs))


def notes_of(compiled: SparseModule) -> str:
    return "\n".join(compiled.report.notes)


def weight_bytes(compiled: SparseModule) -> int:
    """What the packed weights take."""
    compiler = compiled._compiler
    return compiler.streams.nbytes + sum(cut.nbytes for cut in compiler.cuts.values())


def tiny_gpt2(**settings: Any) -> Any:
    config = hf.GPT2Config(
        n_embd=FEATURES, n_layer=2, n_head=2, n_positions=64, vocab_size=50, bos_token_id=0, eos_token_id=1
    )
    model = hf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # so that the most likely token is no near tie
    for key, value in settings.items():
        setattr(model.config, key, value)
    return pruned(model)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, FEATURES)


@pytest.fixture
def tokens() -> nn.Module:
    return pruned(Tokens())


# When it is compiled -----------------------------------------------------------------------------------------


def test_compiles_at_the_first_call(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="reference")
    assert "not compiled yet" in str(compiled.report)
    assert compiled.report.layers == ()
    assert compiled.graph is None
    assert error(compiled, tokens, x) < TOLERANCE
    assert compiled.report.rung == "whole graph"
    assert len(compiled.report.sparse_layers) == 2
    assert "not compiled yet" not in str(compiled.report)


def test_compiling_draws_no_random_numbers(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="cpu", min_speedup=0.0)
    for call in (x, torch.randn(3, *x.shape)):  # the first call, and one that needs another graph
        state = torch.get_rng_state()
        compiled(call)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_first_call_can_be_repeated(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="reference")
    with pytest.raises(InputError, match="cannot be run on these inputs"):
        compiled(torch.randn(2, FEATURES + 1))
    assert error(compiled, tokens, x) < TOLERANCE
    assert compiled.report.rung == "whole graph"


def test_keywords_defaults_and_positions_are_the_same_call(x: Tensor) -> None:
    model = pruned(Masked())
    mask = torch.rand(2, 5, 24)
    compiled = compiled_of(model, x, mask=mask)
    for args, kwargs in (((x, mask), {}), ((), {"mask": mask, "x": x}), ((x, mask, False), {})):
        assert error(compiled, model, *args, **kwargs) < TOLERANCE
    assert compiled.report.notes == ()  # one graph served them all
    assert error(compiled, model, x, mask, double=True) < TOLERANCE
    assert error(compiled, model, x) < TOLERANCE
    assert "double" in notes_of(compiled)
    found = compiled(x, mask)
    assert list(found) == ["y", "parts", "nothing"]
    assert isinstance(found["parts"], tuple)
    assert isinstance(found["parts"][1], list)
    assert found["nothing"] is None


# Shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_another_number_of_tokens_is_another_graph_on_the_same_weights(
    tokens: nn.Module, x: Tensor, target: str
) -> None:
    compiled = compiled_of(tokens, x, target=target)
    before = weight_bytes(compiled)
    for count in (5, 1, 7, 130):
        assert error(compiled, tokens, torch.randn(3, count, FEATURES)) < TOLERANCE
    assert "dimension 1 of input 'x' was 5, is 7" in notes_of(compiled)
    assert notes_of(compiled).count("compiled once more") == 3
    assert weight_bytes(compiled) == before


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_another_image_size(target: str) -> None:
    model = pruned(Images())
    compiled = compiled_of(model, torch.randn(1, 3, 12, 12), target=target)
    for size in ((12, 12), (12, 20), (9, 7)):
        assert error(compiled, model, torch.randn(2, 3, *size)) < TOLERANCE
    assert "dimension 3 of input 'x' was 12, is 20" in notes_of(compiled)
    assert compiled.report.totals["converted_layers"] == 3


def test_the_report_counts_weights_packed_again_for_another_image_size() -> None:
    compiled = compiled_of(pruned(Images()), torch.randn(1, 3, 12, 12))
    compiled(torch.randn(1, 3, 12, 30))
    assert compiled.report.totals["converted_bytes"] == weight_bytes(compiled)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_beyond_the_most_variants_layers_run_one_by_one(target: str) -> None:
    model = pruned(Tokens())
    compiled = compiled_of(model, torch.randn(1, 1, FEATURES), target=target)
    before = weight_bytes(compiled)
    for count in range(1, MAX_VARIANTS + 4):
        assert error(compiled, model, torch.randn(2, count, FEATURES)) < TOLERANCE
    assert f"more than {MAX_VARIANTS} shapes" in notes_of(compiled)
    assert notes_of(compiled).count("compiled once more") == MAX_VARIANTS - 1
    assert weight_bytes(compiled) == before
    assert error(compiled, model, torch.randn(4, 3, FEATURES)) < TOLERANCE


def test_dynamic_shapes_serve_every_length_with_one_graph(tokens: nn.Module, x: Tensor) -> None:
    shapes = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    compiled = compile_sparse(tokens, (x,), target="reference", dynamic_shapes=shapes)
    for batch, count in ((2, 5), (3, 17), (7, 2)):
        assert error(compiled, tokens, torch.randn(batch, count, FEATURES)) < TOLERANCE
    assert compiled.report.notes == ()


# The ladder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_control_flow_runs_layer_by_layer(target: str) -> None:
    model = pruned(Branching())
    x = torch.rand(3, FEATURES)
    compiled = compiled_of(model, x, target=target)
    assert compiled.report.rung == "layers"
    assert "control flow depends on the values" in notes_of(compiled)
    assert "test_module.py" in notes_of(compiled)
    assert [layer.layer.name for layer in compiled.report.sparse_layers] == ["positive", "last"]
    for inputs in (x, torch.rand(1, FEATURES), -x, torch.rand(2, 3, FEATURES)):
        assert error(compiled, model, inputs) < TOLERANCE
    assert compiled.graph is None
    assert compiled.verify(x) < TOLERANCE


def test_a_variant_that_cannot_be_captured_runs_layer_by_layer() -> None:
    class Sometimes(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return -y if x.shape[1] > 4 and bool(y.sum() > 0) else y

    model = pruned(Sometimes())
    compiled = compiled_of(model, torch.randn(2, 3, FEATURES))
    assert compiled.report.rung == "whole graph"
    for scale in (-1, 1):
        assert error(compiled, model, scale * torch.randn(2, 6, FEATURES)) < TOLERANCE
    assert notes_of(compiled).count("a call runs layer by layer") == 1
    assert error(compiled, model, torch.randn(1, 3, FEATURES)) < TOLERANCE


def test_without_anything_to_gain_pytorch_runs_the_model(x: Tensor) -> None:
    model = Tokens().eval()
    compiled = compile_sparse(model, (x,), target="reference")
    assert compiled.report.rung == "eager"
    assert compiled.report.sparse_layers == []
    assert torch.equal(compiled(x), model(x))
    assert error(compiled, model, torch.randn(7, 9, FEATURES)) == 0.0


def test_models_that_ask_for_their_first_parameter() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.to(next(self.parameters()).dtype))
            return y if y.sum() < 1e30 else x

    model, x = pruned(Asking()), torch.randn(2, FEATURES)
    compiled = compiled_of(model, x)
    assert compiled.report.rung == "layers"
    assert error(compiled, model, x) < TOLERANCE


def test_methods_under_autocast_give_the_types_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)

        def other(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x)

    model, x = pruned(Two()), torch.randn(2, FEATURES)
    compiled = compiled_of(model, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled.other(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert relative_error(compiled.other(x), model(x)) < TOLERANCE
        assert compiled.layer.forward._runners[()] is not None
    with pytest.raises(InferenceOnlyError, match="no backward"):
        compiled.other(x.requires_grad_()).sum().backward()


class Stateful(nn.Module):
    """Changes a buffer and a plain attribute in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.register_buffer("steps", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.steps, Tensor)
        self.steps += 1
        self.calls += 1
        y: Tensor = self.layer(x) + self.steps * self.calls
        return y


@pytest.mark.parametrize("given", [True, False])
def test_state_advances_with_calls_alone(given: bool) -> None:
    """Not by compiling, which runs the model many times, and not by comparing."""
    model: Any = pruned(Stateful())
    x = torch.randn(2, FEATURES)
    analyze(model, (x,))
    compiled = compile_sparse(model, (x,) if given else None, target="reference", min_speedup=0.0)
    assert (model.calls, float(model.steps)) == (0, 0.0)
    for _ in range(3):
        assert error(compiled, model, x) < TOLERANCE
        assert compiled.verify(x) < TOLERANCE
    assert compiled.steps == 3


def test_a_number_that_every_call_changes_is_not_frozen_into_a_graph() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.layer(x) * self.calls
            return y

    model, x = pruned(Calls()), torch.randn(2, FEATURES)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert compiled.report.rung == "layers"
    assert compiled.report.notes == ("the graph was not captured: every call changes calls",)
    for _ in range(3):
        assert error(compiled, model, x) < TOLERANCE


@dataclass
class Answer:
    y: Tensor
    more: Any = None


def test_verify_looks_into_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.layer(x), more=Answer(x))

    model, x = pruned(Answering()), torch.randn(2, FEATURES)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert compiled.verify(x) < TOLERANCE
    read = stream.read_stream
    monkeypatch.setattr("sparsecomp.codegen.reference.read_stream", lambda of: 3 * read(of))
    assert compiled.verify(x) > 0.1


def test_an_encoder_with_a_padding_mask() -> None:
    """PyTorch's fast path packs sequences of several lengths into one nested tensor."""
    layer = nn.TransformerEncoderLayer(FEATURES, 4, 64, batch_first=True)
    model, x = pruned(nn.TransformerEncoder(layer, 2)), torch.randn(2, 7, FEATURES)
    call = {"src": x, "src_key_padding_mask": torch.arange(7)[None].expand(2, 7) > 4}
    compiled = compile_sparse(model, example_kwargs=call, target="reference", min_speedup=0.0)
    with torch.no_grad():
        assert relative_error(compiled(**call), model(**call)) < TOLERANCE
        assert relative_error(compiled(x), model(x)) < TOLERANCE
    assert analyze(model, example_kwargs=call).notes


def test_state_dict_with_a_prefix_and_in_a_parent(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    assert set(compiled.state_dict(prefix="m.")) == {f"m.{name}" for name in tokens.state_dict()}
    parent = nn.Sequential(compiled)
    with pytest.raises(InferenceOnlyError, match=r"loads no state dict.*update_weights"):
        parent.load_state_dict(parent.state_dict())


def test_a_cache_folder_that_cannot_be_written(
    tokens: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", "/proc/nowhere")
    compiled = compile_sparse(tokens, (x,), target="cpu", min_speedup=0.0)
    assert error(compiled, tokens, x) < TOLERANCE
    assert "measurements are not kept" in caplog.text


def test_two_models_are_compiled_at_once() -> None:
    """torch.export redirects logs and standard error for all threads."""
    models = [pruned(Tokens()) for _ in range(4)]
    stderr, disabled = sys.stderr, logging.root.manager.disable
    with ThreadPoolExecutor(4) as pool:
        calls = [torch.randn(2, 3 + i, FEATURES) for i in range(4)]
        made = list(
            pool.map(lambda m, x: compile_sparse(m, (x,), target="reference", min_speedup=0.0), models, calls)
        )
    assert sys.stderr is stderr
    assert logging.root.manager.disable == disabled
    assert all(error(c, m, x) < TOLERANCE for c, m, x in zip(made, models, calls, strict=True))


def test_arenas_go_with_the_module(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x, target="cpu")
    compiled(x)
    gc.collect()
    before = sum(isinstance(found, ArenaPool) for found in gc.get_objects())
    del compiled
    gc.collect()
    assert sum(isinstance(found, ArenaPool) for found in gc.get_objects()) < before


# Generation --------------------------------------------------------------------------------------------------

PROMPT = torch.tensor([[3, 14, 15, 9, 2, 6]])
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "no cache": {"do_sample": False, "use_cache": False},
}


def generated(model: Any, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    tokens: Tensor = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=12, pad_token_id=0, **settings
    )
    return tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("example", ["without inputs", "use_cache=False", "use_cache=True"])
def test_generate_gives_the_tokens_of_the_original(example: str, way: str) -> None:
    model = tiny_gpt2(use_cache=example != "use_cache=False")
    expected = generated(model, **WAYS[way])
    compiled = compile_sparse(
        model, None if example == "without inputs" else (PROMPT,), target="reference", min_speedup=0.0
    )
    assert torch.equal(generated(compiled, **WAYS[way]), expected)
    assert compiled.report.rung in ("whole graph", "layers")
    assert len(compiled.report.sparse_layers) == 8
    assert error(compiled, model, PROMPT) < TOLERANCE


def test_generate_by_sampling_and_by_kernels() -> None:
    model = tiny_gpt2()
    expected = generated(model, do_sample=True, top_k=5)
    compiled = compiled_of(model, PROMPT, target="cpu")
    assert len(compiled.report.sparse_layers) >= 8
    assert torch.equal(generated(compiled, do_sample=True, top_k=5), expected)


@pytest.mark.parametrize("compiled_yet", [True, False])
def test_a_cache_of_keys_and_values_goes_in_and_out(compiled_yet: bool) -> None:
    model = tiny_gpt2(use_cache=True)
    compiled = compile_sparse(model, (PROMPT,) if compiled_yet else None, target="reference", min_speedup=0.0)
    caches = [DynamicCache(), DynamicCache()]
    for ids in (PROMPT, torch.tensor([[7]]), torch.tensor([[11, 12]])):
        with torch.no_grad():
            actual, expected = (
                run(ids, past_key_values=cache, use_cache=True)
                for run, cache in zip((compiled, model), caches, strict=True)
            )
        assert type(actual) is type(expected)
        assert actual.past_key_values is caches[0]
        assert relative_error(actual.logits, expected.logits) < TOLERANCE
    assert caches[0].get_seq_length() == 9


def test_the_cache_of_a_call_can_be_used_in_the_next() -> None:
    model = tiny_gpt2(use_cache=True)
    compiled = compiled_of(model, PROMPT)
    with torch.no_grad():
        first, first0 = compiled(PROMPT), model(PROMPT)
        assert type(first) is type(first0)
        assert type(first.past_key_values) is type(first0.past_key_values)
        step = torch.tensor([[7]])
        second = compiled(step, past_key_values=first.past_key_values)
        second0 = model(step, past_key_values=first0.past_key_values)
    assert relative_error(second.logits, second0.logits) < TOLERANCE


# Inputs that change ------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Changes its input, as a cache would be: each call must do so once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 24)

    def forward(self, x: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        x += 1
        if seen is not None:
            seen.append(x)
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("compiled_yet", [True, False])
def test_an_input_that_the_model_changes_is_changed_once(compiled_yet: bool, listed: bool) -> None:
    model = pruned(Counting())
    example = torch.zeros(2, FEATURES)
    compiled = compile_sparse(
        model, (example,) if compiled_yet else None, target="reference", min_speedup=0.0
    )
    assert not example.any()
    x, x0 = torch.zeros(2, FEATURES), torch.zeros(2, FEATURES)
    seen: list[Tensor] = []
    actual = compiled(x, seen) if listed else compiled(x)
    assert relative_error(actual, model(x0)) < TOLERANCE
    assert torch.equal(x, x0)
    assert len(seen) == listed


# A drop-in ---------------------------------------------------------------------------------------------------


def test_attributes_of_the_model_pass_through() -> None:
    model = tiny_gpt2()
    compiled = compiled_of(model, PROMPT)
    assert isinstance(compiled, nn.Module)
    assert compiled.config.n_embd == FEATURES
    assert compiled.dtype == torch.float32
    assert compiled.device == torch.device("cpu")
    assert compiled.generation_config.to_dict() == model.generation_config.to_dict()
    assert compiled.can_generate()
    assert not compiled.training
    assert compiled.get_input_embeddings().weight.shape == (50, FEATURES)
    with pytest.raises(AttributeError, match="neither SparseModule nor GPT2LMHeadModel has 'colour'"):
        _ = compiled.colour
    assert not hasattr(compiled, "colour")


def test_a_parameter_of_the_model_can_be_asked_for_its_device_and_dtype(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    names = [name for name, _ in compiled.named_parameters()]
    assert names == [name for name, _ in tokens.named_parameters()]
    first = next(compiled.parameters())
    assert (first.device, first.dtype) == (torch.device("cpu"), torch.float32)


def test_as_a_part_of_another_model(tokens: nn.Module, x: Tensor) -> None:
    """What cannot be captured as a whole is compiled in parts."""
    whole = nn.Sequential(tokens, nn.Linear(FEATURES, 4)).eval()
    expected, state = whole(x), whole.state_dict()
    whole[0] = compiled_of(tokens, x)
    assert torch.allclose(whole.eval().to("cpu").float()(x), expected, atol=1e-5)
    found = whole.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with pytest.raises(InferenceOnlyError):
        whole.train()


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("pattern", ["none", "unstructured", "4x1"])
def test_state_dict_is_that_of_the_original(target: str, pattern: str) -> None:
    model, x = Images().eval(), torch.randn(1, 3, 12, 12)
    prune(model, pattern, 0.8)
    compiled = compiled_of(model, x, target=target)
    compiled(torch.randn(2, 3, 12, 16))
    expected, actual = model.state_dict(), compiled.state_dict()
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name
    fresh = Images().eval()
    fresh.load_state_dict(actual)
    assert torch.equal(fresh(x), model(x))


def test_state_dict_of_transposed_and_tied_weights() -> None:
    model = tiny_gpt2()
    compiled = compiled_of(model, PROMPT)
    expected, actual = model.state_dict(), compiled.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_state_dict_is_not_a_view_of_what_is_compiled(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    before = compiled(x)
    for tensor in compiled.state_dict().values():
        tensor.zero_()
    assert torch.equal(compiled(x), before)


def test_verify_compares_with_the_original(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x, target="cpu")
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.zero_()  # the compiled module has its own
    assert 0.0 <= compiled.verify(x) < TOLERANCE
    assert compiled.verify(x=torch.randn(3, 4, FEATURES)) < TOLERANCE


def test_verify_compiles_what_is_not_compiled_yet(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="reference", min_speedup=0.0)
    assert compiled.verify(x) < TOLERANCE
    assert compiled.report.rung == "whole graph"


def test_verify_sees_a_wrong_kernel(tokens: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compiled_of(tokens, x)
    for runner in compiled._variants[0].executable.runners.values():
        right = runner.run
        monkeypatch.setattr(runner, "run", lambda inputs, right=right: [1.01 * y for y in right(inputs)])
    assert compiled.verify(x) > 1e-3


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("inf")]), 0.0),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("-inf")]), float("inf")),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), float("inf")),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]), float("inf")),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long), 0.0),
        (torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), float("inf")),
        ((torch.ones(1), 0), (torch.ones(1), 0), 0.0),
        ((torch.ones(1), 0, "a"), (torch.ones(1), 1, "a"), float("inf")),
        ((torch.ones(1), 0, "a"), (torch.ones(1), 0, "b"), float("inf")),
        ((float("nan"),), (float("nan"),), 0.0),
        (torch.tensor([2.0 + 1.0j, 4.0]), torch.tensor([2.0 + 3.0j, 4.0]), 0.5),
        ((torch.ones(1),), [torch.ones(1)], float("inf")),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, float("inf")),
        (torch.empty(0, 3), torch.empty(0, 3), 0.0),
        ((), (), 0.0),
    ],
)
def test_relative_error(actual: Any, expected: Any, error: float) -> None:
    assert relative_error(actual, expected) == error


# Inference only ----------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[SparseModule], object]] = {
    "train": lambda module: module.train(),
    "requires_grad_": lambda module: module.requires_grad_(),
    "to cuda": lambda module: module.to("cuda"),
    "to meta": lambda module: module.to(torch.device("meta")),
    "to half": lambda module: module.to(torch.float16),
    "to a tensor": lambda module: module.to(torch.zeros(1, dtype=torch.float64)),
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "cuda": lambda module: module.cuda(),
    "load_state_dict": lambda module: module.load_state_dict({}),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("compiled_yet", [True, False])
def test_what_only_the_model_can_do_is_refused_with_advice(
    what: str, compiled_yet: bool, tokens: nn.Module, x: Tensor
) -> None:
    compiled = compile_sparse(tokens, (x,) if compiled_yet else None, target="reference")
    with pytest.raises(InferenceOnlyError, match=r"model|compile"):
        REFUSED[what](compiled)
    assert error(compiled, tokens, x) < TOLERANCE


ALLOWED: dict[str, Callable[[SparseModule], object]] = {
    "eval": lambda module: module.eval(),
    "train(False)": lambda module: module.train(False),
    "to cpu": lambda module: module.to("cpu"),
    "to float32": lambda module: module.to(torch.float32),
    "to both": lambda module: module.to(device="cpu", dtype=torch.float32),
    "to a tensor": lambda module: module.to(torch.zeros(1)),
    "float": lambda module: module.float(),
    "cpu": lambda module: module.cpu(),
    "requires_grad_(False)": lambda module: module.requires_grad_(False),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_changes_nothing_is_allowed(what: str, tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    assert ALLOWED[what](compiled) is compiled
    assert error(compiled, tokens, x) < TOLERANCE


def test_backward_raises(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    y = compiled(x.requires_grad_())
    assert torch.allclose(y, tokens(x), atol=1e-5)
    with pytest.raises(InferenceOnlyError, match="no backward"):
        y.sum().backward()
    with torch.no_grad():
        assert not compiled(x).requires_grad
    assert not compiled(x.detach()).requires_grad


def test_inference_mode(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="reference", min_speedup=0.0)
    with torch.inference_mode():
        for inputs in (x, torch.randn(3, 4, FEATURES)):
            assert torch.allclose(compiled(inputs), tokens(inputs), atol=1e-5)
    assert error(compiled, tokens, x) < TOLERANCE
    assert error(compiled, tokens, torch.randn(1, 8, FEATURES)) < TOLERANCE


# Apart from the original -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [Tokens, Branching, Images])
def test_later_edits_of_the_model_are_not_seen(kind: type[nn.Module], target: str) -> None:
    x = torch.randn(2, 3, 9, 9) if kind is Images else torch.randn(2, FEATURES)
    model = pruned(kind())
    original = copy.deepcopy(model)
    skip = [name for name in ("outer", "last", "first") if hasattr(model, name)]
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0, skip=skip)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    for inputs in (x, torch.randn(3, *x.shape[1:]), torch.randn(2, 3, 8, 9) if kind is Images else x[None]):
        assert error(compiled, original, inputs) < TOLERANCE
    assert all(torch.equal(t, original.state_dict()[n]) for n, t in compiled.state_dict().items())


def test_the_model_is_left_as_it_was(tokens: nn.Module, x: Tensor) -> None:
    before = copy.deepcopy(tokens.state_dict())
    compiled_of(tokens, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokens.state_dict().items())
    assert all(parameter.requires_grad for parameter in tokens.parameters())
    assert "forward" not in vars(tokens)
    x.requires_grad_()
    tokens(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", [Tokens, Branching])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_no_dense_copy_of_a_converted_weight_is_left(kind: type[nn.Module], target: str) -> None:
    others = [
        found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)
    ]  # of earlier tests
    model, x = pruned(kind()), torch.rand(2, FEATURES)
    compiled = compiled_of(model, x, target=target)
    compiled(x[None])
    compiled.verify(x)
    assert len(compiled.report.sparse_layers) == 2
    converted = {layer.layer.weight for layer in compiled.report.sparse_layers}
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if name in converted}
    held = {id(p) for p in (*others, *(model.parameters() if kind is Branching else ()))}
    if kind is Tokens:
        del model
    gc.collect()
    dense = [
        found
        for found in gc.get_objects()
        if type(found) in (Tensor, nn.Parameter)
        and tuple(found.shape) in shapes | {shape[::-1] for shape in shapes}
        and found.untyped_storage().nbytes() >= found.numel() * 4
        and id(found) not in held
    ]
    unreached = 1 if kind is Branching else 0  # `negative` was never called, so it keeps its weight
    assert len(dense) == unreached


@pytest.mark.slow
def test_resident_memory_shows_no_dense_copy() -> None:
    """200 MB of weights, at 95 %: what is left after deleting the model is far less than one dense copy."""
    script = """
        import gc, psutil, torch  # large blocks go back to the system at once: see the environment
        from torch import nn
        from sparsecomp import compile_sparse

        def resident():
            gc.collect()
            return psutil.Process().memory_info().rss / 2**20

        def pruned():
            model = nn.Sequential(*(nn.Linear(2560, 2560) for _ in range(8))).eval()
            for layer in model:
                with torch.no_grad():
                    layer.weight[torch.rand(2560, 2560) < 0.95] = 0
            return model

        torch.set_num_threads(1)
        kept = compile_sparse(pruned(), (torch.randn(8, 2560),), min_speedup=0.0)  # imports, TVM, the code
        del kept
        start = resident()
        model = pruned()
        dense = resident() - start
        compiled = compile_sparse(model, (torch.randn(8, 2560),), min_speedup=0.0)
        del model
        compiled(torch.randn(8, 2560))
        assert len(compiled.report.sparse_layers) == 8
        print(dense, resident() - start, compiled.report.totals["bytes"] / 2**20)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    dense, left, packed = map(float, done.stdout.split())
    assert dense > 190
    assert packed < 0.24 * 200
    assert left < packed + 20


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_weights_are_held_packed_once(target: str) -> None:
    """The canonical form, which the graph held, is dropped when its stream is made."""
    model = pruned(nn.Sequential(nn.Linear(300, 200, bias=False)))
    compiled = compiled_of(model, torch.randn(2, 300), target=target)
    values = int((model[0].weight != 0).sum())  # type: ignore[index]
    del model
    gc.collect()
    arenas = {id(a) for pool in gc.get_objects() if isinstance(pool, ArenaPool) for a in pool._free}
    tensors = (t for t in gc.get_objects() if type(t) is Tensor and id(t) not in arenas)
    # What a node says of its value lies on the meta device: it has a size and holds nothing.
    held = (t for t in tensors if t.dim() and t.device.type != "meta")
    found = (t for t in held if values // 2 <= t.numel() < 90_000)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    assert sum(storages.values()) < 1.5 * weight_bytes(compiled)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_graph_holds_each_weight_once(target: str) -> None:
    """A region may lay images out on another grid than a layer of its own would."""
    model = pruned(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))
    compiled = compiled_of(model, torch.randn(2, 4, 9, 9), target=target)
    assert weight_bytes(compiled) == compiled.report.totals["converted_bytes"]
    assert len(compiled._compiler.streams.entries()) == 2


# Inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_strides_do_not_matter(target: str) -> None:
    model = pruned(Tokens())
    compiled = compiled_of(model, torch.randn(2, 5, FEATURES), target=target)
    for inputs in (
        torch.randn(5, 2, FEATURES).transpose(0, 1),
        torch.randn(2, FEATURES, 5).transpose(1, 2),
        torch.randn(4, 5, 2 * FEATURES)[::2, :, ::2],
        torch.randn(1, 5, FEATURES).expand(3, 5, FEATURES),
        torch.randn(1000)[13 : 13 + 10 * FEATURES].view(2, 5, FEATURES),
    ):
        assert error(compiled, model, inputs) < TOLERANCE
    images = pruned(Images())
    compiled = compiled_of(images, torch.randn(2, 3, 12, 12), target=target)
    for inputs in (
        torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 24, 12)[:, :, ::2],
        torch.randn(2, 3, 12, 12).transpose(2, 3),
    ):
        assert error(compiled, images, inputs) < TOLERANCE


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [Tokens, Images, Branching])
def test_an_empty_batch(kind: type[nn.Module], target: str) -> None:
    shape = (3, 12, 12) if kind is Images else (FEATURES,)
    model = pruned(kind())
    compiled = compiled_of(model, torch.randn(2, *shape), target=target)
    assert compiled(torch.randn(0, *shape)).shape == model(torch.randn(0, *shape)).shape
    assert error(compiled, model, torch.randn(3, *shape)) < TOLERANCE


def test_an_empty_batch_as_the_first_call(tokens: nn.Module, x: Tensor) -> None:
    compiled = compile_sparse(tokens, target="reference", min_speedup=0.0)
    assert compiled(torch.randn(0, 5, FEATURES)).shape == (0, 5, FEATURES)
    assert error(compiled, tokens, x) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16])
@pytest.mark.parametrize("first", [False, True])
def test_a_wrong_dtype_is_said(tokens: nn.Module, x: Tensor, dtype: torch.dtype, first: bool) -> None:
    compiled = compile_sparse(tokens, None if first else (x,), target="reference", min_speedup=0.0)
    with pytest.raises(InputError, match=r"(?s)Tokens cannot be run on these inputs.*\[2, 5, 32\]"):
        compiled(x.to(dtype))
    assert error(compiled, tokens, x) < TOLERANCE


@pytest.mark.parametrize("wrong", [(), (torch.ones(2, 5, FEATURES), 1, 2, 3), (None,), ("text",)])
def test_a_call_that_does_not_fit_is_said(tokens: nn.Module, x: Tensor, wrong: tuple[Any, ...]) -> None:
    compiled = compiled_of(tokens, x)
    with pytest.raises(InputError, match="Tokens cannot be run on these inputs"):
        compiled(*wrong)
    with pytest.raises(InputError, match="cannot be run on these inputs"):
        compiled(torch.ones(2, 5, FEATURES + 1))
    assert error(compiled, tokens, x) < TOLERANCE


def test_tensors_without_data_are_refused(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    with pytest.raises(RuntimeError, match="meta"):
        tokens(x.to("meta"))
    with pytest.raises(InputError, match=r"cannot be run on these inputs.*meta"):
        compiled(x.to("meta"))
    assert error(compiled, tokens, x) < TOLERANCE


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_infinity_in_an_input_stays_in_its_row(target: str) -> None:
    """A skipped zero also skips 0 * inf, which is not a number in PyTorch; other rows are as they were."""
    model = pruned(nn.Sequential(nn.Linear(FEATURES, 64)))
    x = torch.randn(4, FEATURES)
    compiled = compiled_of(model, x, target=target)
    x[1, 3] = float("inf")
    y, expected = compiled(x), model(x)
    assert torch.allclose(y[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-5)
    assert not expected[1].isfinite().any()
    assert bool((~y[1].isfinite()).any())


def test_infinity_in_the_example_leaves_the_numbers_as_they_were(x: Tensor) -> None:
    model = pruned(nn.Sequential(nn.Linear(FEATURES, 64)))
    x[0, 0, 3] = float("inf")
    compiled = compiled_of(model, x)
    assert torch.equal(compiled(x).isnan(), model(x).isnan())


def test_outputs_do_not_alias_one_another(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x, target="cpu")
    first = compiled(x)
    kept = first.clone()
    compiled(torch.randn(2, 5, FEATURES))
    assert torch.equal(first, kept)


# Threads -----------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], float]) -> list[float]:
    results: list[float] = []
    threads = [threading.Thread(target=lambda i=i: results.append(work(i))) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_calls_from_eight_threads_at_once(target: str) -> None:
    model = pruned(Images())
    compiled = compiled_of(model, torch.randn(1, 3, 16, 16), target=target)

    def work(number: int) -> float:
        x = torch.randn(1 + number % 4, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected = model(x)
            return max(relative_error(compiled(x), expected) for _ in range(10))

    assert max(in_threads(8, work)) < TOLERANCE


def test_first_calls_and_new_shapes_from_eight_threads_at_once(tokens: nn.Module) -> None:
    compiled = compile_sparse(tokens, target="reference", min_speedup=0.0)
    errors = in_threads(8, lambda i: error(compiled, tokens, torch.randn(1 + i, 2 + i % 3, FEATURES)))
    assert max(errors) < TOLERANCE
    assert notes_of(compiled).count("compiled once more") == 2


@pytest.mark.parametrize("kind", [Tokens, Images])
def test_the_number_of_threads_follows_torch(kind: type[nn.Module]) -> None:
    model = pruned(kind())
    example = torch.randn(2, 3, 16, 16) if kind is Images else torch.randn(2, 5, FEATURES)
    compiled = compiled_of(model, example, target="cpu")
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        for batch in (1, 2, 9):
            assert error(compiled, model, torch.randn(batch, *example.shape[1:])) < TOLERANCE


def test_a_number_of_threads_may_be_asked_for(tokens: nn.Module, x: Tensor) -> None:
    torch.set_num_threads(1)
    compiled = compile_sparse(tokens, (x,), threads=2, min_speedup=0.0)
    assert compiled.report.threads == 2
    assert error(compiled, tokens, x) < TOLERANCE
    assert torch.get_num_threads() == 1


# The rewritten graph -----------------------------------------------------------------------------------------


def rewritten(kind: type[nn.Module], target: str) -> tuple[SparseModule, torch.fx.GraphModule, Tensor]:
    model = pruned(kind())
    x = torch.randn(2, 3, 12, 12) if kind is Images else torch.randn(2, 5, FEATURES)
    compiled = compiled_of(model, x, target=target)
    assert compiled.graph is not None
    return compiled, compiled.graph, x


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [Tokens, Images])
def test_the_rewritten_graph_prints_and_runs(kind: type[nn.Module], target: str) -> None:
    compiled, graph, x = rewritten(kind, target)
    graph.graph.lint()
    assert "sparsecomp.region" in print_graph(graph)
    assert "sparsecomp" in graph.code
    assert "sparsecomp" in graph.print_readable(print_output=False)
    with torch.no_grad():
        assert torch.equal(graph(x)[0], compiled(x))


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("kind", [Tokens, Images])
def test_the_rewritten_graph_exports(kind: type[nn.Module], target: str) -> None:
    compiled, graph, x = rewritten(kind, target)
    with torch.no_grad():
        program = torch.export.export(graph, (x,), strict=False)
        assert "sparsecomp.region" in str(program.graph)
        assert torch.allclose(program.module()(x)[0], compiled(x), atol=1e-6)
        dynamic = torch.export.export(
            graph, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=False
        )
        more = torch.cat([x, x, x])
        assert torch.allclose(dynamic.module()(more)[0], compiled(more), atol=1e-6)


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [Tokens, Images])
def test_the_rewritten_graph_goes_through_torch_compile(kind: type[nn.Module], backend: str) -> None:
    compiled, graph, x = rewritten(kind, "cpu")
    torch._dynamo.reset()
    again = torch.compile(graph, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(again(x)[0], compiled(x), atol=1e-5)
        more = torch.cat([x, x, x])
        assert torch.allclose(again(more)[0], compiled(more), atol=1e-5)


def test_the_module_prints_and_says_what_it_is(tokens: nn.Module, x: Tensor) -> None:
    compiled = compiled_of(tokens, x)
    assert repr(compiled).startswith("SparseModule(")
    assert "2 of 2 layers converted" in repr(compiled)
    assert "not compiled yet" in str(compile_sparse(tokens, target="reference").report)
