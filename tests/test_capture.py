"""The captured graph gives the model's results for every call it covers, and says why it does not cover others."""

from __future__ import annotations

import logging
import re
import warnings
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from sparsecomp.capture import capture
from sparsecomp.contract import Capture, TensorInput
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.trace import opened_caches

aten = torch.ops.aten
Pair = namedtuple("Pair", ["a", "b"])


def leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(opened_caches(tree))


def covers(captured: Capture, model: Any, *args: Any, **kwargs: Any) -> Any:
    """The call is covered and the graph gives what the model gives, structure included; returns that."""
    assert captured.refuses(args, kwargs) is None
    with torch.no_grad():
        actual = captured.unflatten(captured.graph(*captured.flatten(args, kwargs)))
        expected = model(*args, **kwargs)
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    for got, wanted in zip(leaves(actual), leaves(expected), strict=True):
        if isinstance(wanted, Tensor):
            torch.testing.assert_close(got, wanted)
        else:
            assert got == wanted
    return actual


def operators(captured: Capture) -> list[Any]:
    return [node.target for node in captured.graph.graph.nodes if node.op == "call_function"]


class Net(nn.Module):
    """A convolution and two linear layers, dropout, a buffer, an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.inner = nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Dropout())
        self.head = nn.Linear(8, 4)
        self.register_buffer("scale", torch.rand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.inner(self.conv(x).flatten(1))) * self.scale
        return y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(batch: int) -> Tensor:
    return torch.rand(batch, 2, 2, 2)


# The graph.


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_whatever_the_example_had(net: Net, batch: int) -> None:
    captured = capture(net, (images(batch),))
    for other in (1, 2, 3, 7):
        covers(captured, net, images(other))
        covers(captured, net, x=images(other))
    assert captured.note == ""


def test_graph_is_flat_and_functional(net: Net) -> None:
    captured = capture(net, (images(1),))
    assert operators(captured) == [
        aten.sym_size.int,
        aten.conv2d.default,
        aten.reshape.default,
        aten.linear.default,
        aten.relu.default,
        aten.clone.default,
        aten.linear.default,
        aten.mul.Tensor,
    ]
    nodes = captured.graph.graph.nodes
    assert {node.op for node in nodes} == {"placeholder", "get_attr", "call_function", "output"}
    assert [node.name for node in nodes if node.op == "placeholder"] == ["x"]


def test_parameters_are_the_models_under_their_names(net: Net) -> None:
    graph = capture(net, (images(1),)).graph
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    names = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    assert names == set(held)
    for name in names:
        path, _, last = name.rpartition(".")
        assert getattr(graph.get_submodule(path), last) is held[name]


def test_nodes_know_shapes_modules_and_source(net: Net) -> None:
    captured = capture(net, (images(1),))
    linear = next(node for node in captured.graph.graph.nodes if node.target is aten.linear.default)
    batch, *rest = linear.meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert rest == [8]
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "inner", "inner.0"]
    assert __file__ in linear.stack_trace
    assert "capture.py" not in linear.stack_trace.replace(__file__, "")


def test_capture_leaves_no_trace(net: Net, capfd: pytest.CaptureFixture[str]) -> None:
    net.head.train()
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(net, (images(1),))
        with pytest.raises(CaptureError):
            capture(DependsOnValues(), (torch.rand(2),))
    assert net.head.training
    assert not net.training
    assert not net._forward_hooks
    assert logging.root.manager.disable == 0
    assert capfd.readouterr() == ("", "")
    torch.random.set_rng_state(before)  # images() drew
    covers(capture(net.eval(), (images(1),)), net, images(2))


def test_in_inference_mode(net: Net) -> None:
    with torch.inference_mode():
        covers(capture(net, (images(1),)), net, images(3))


def test_strides_other_than_the_examples(net: Net) -> None:
    captured = capture(net, (images(2),))
    covers(captured, net, images(3).to(memory_format=torch.channels_last))
    covers(captured, net, images(3).transpose(2, 3))


def test_parameters_without_storage(net: Net) -> None:
    weight = net.head.weight
    weight.data = torch.zeros(()).expand(weight.shape)
    covers(capture(net, (images(1),)), net, images(3))


def test_tied_weights_are_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    captured = capture(model, (torch.rand(1, 4),))
    covers(captured, model, torch.rand(3, 4))
    weights = {node.args[1] for node in captured.graph.graph.nodes if node.target is aten.linear.default}
    assert len(weights) == 1


@pytest.mark.filterwarnings("ignore")
def test_reparametrised_weights() -> None:
    layers = [nn.Linear(4, 4), nn.utils.weight_norm(nn.Linear(4, 4)), nn.utils.spectral_norm(nn.Linear(4, 4))]
    prune.l1_unstructured(layers[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    model = nn.Sequential(*layers, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))).eval()
    covers(capture(model, (torch.rand(1, 4),)), model, torch.rand(3, 4))


def test_draws_random_numbers_like_the_model() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    captured = capture(Noisy(), (torch.rand(1, 4),))
    assert captured.refuses((torch.rand(3, 4),), {}) is None


# Inputs and outputs.


class Structured(nn.Module):
    def forward(self, batch: dict[str, Any], *more: Any, scale: float = 2.0, **rest: Any) -> dict[str, Any]:
        x = batch["x"] * scale
        for pair in more:
            x = x + pair[0] - pair[1][0]
        return {
            "pair": Pair(x, (x.sum(1),)),
            "none": None,
            "count": 3,
            "size": x.shape[0],
            "shape": x.shape,
            "same": x,
            "given": batch["x"],
            "rest": [rest[key] + 1 for key in sorted(rest)],
        }


def test_structures_of_inputs_and_outputs() -> None:
    def call(n: int, **rest: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = ({"flag": True, "x": torch.rand(n, 4)}, (torch.rand(n, 4), [torch.rand(n, 4)]))
        return args, {"u": torch.rand(n, 2), "v": torch.rand(n, 2), **rest}

    model = Structured()
    args, kwargs = call(1)
    captured = capture(model, args, kwargs)
    args, kwargs = call(3)
    covers(captured, model, *args, **kwargs)
    covers(captured, model, *args, **dict(reversed(kwargs.items())), scale=2.0)
    covers(captured, model, {"x": args[0]["x"], "flag": True}, args[1], **kwargs)
    names = [leaf.name for leaf in captured.leaves if isinstance(leaf, TensorInput)]
    assert names == ["batch['x']", "more[0][0]", "more[0][1][0]", "rest['u']", "rest['v']"]
    refusals = {
        "argument 'scale' was 2.0, is 3.0": (args, kwargs | {"scale": 3.0}),
        r"argument 'batch\['flag'\]' was True, is 1": (({"flag": 1, "x": args[0]["x"]}, args[1]), kwargs),
        "argument 'more' has another structure": ((args[0],), kwargs),
        "argument 'batch' has another structure": (({"x": args[0]["x"]}, args[1]), kwargs),
        "argument 'rest' has another structure": (args, kwargs | {"w": torch.rand(3, 2)}),
        r"input 'batch\['x'\]' was a tensor, is None": (({"flag": True, "x": None}, args[1]), kwargs),
        r"the call does not fit forward\(.*missing a required argument": ((), kwargs),
    }
    for pattern, (args, kwargs) in refusals.items():
        reason = captured.refuses(args, kwargs)
        assert reason is not None
        assert re.match(pattern, reason)


def test_flatten_of_another_structure_is_an_error() -> None:
    captured = capture(Structured(), ({"x": torch.rand(1, 4)},))
    with pytest.raises(InputError, match=r"another structure.*capture again"):
        captured.flatten(([torch.rand(1, 4)],), {})


def test_refusals_name_what_differs(net: Net) -> None:
    captured = capture(net, (images(1),))
    refusals = {
        "dimension 2 of input 'x' was 2, is 3": torch.rand(1, 2, 3, 2),
        "number of dimensions of input 'x' was 4, is 3": torch.rand(1, 2, 2),
        "dtype of input 'x' was torch.float32, is torch.float64": images(1).double(),
        "device of input 'x' was cpu, is meta": images(1).to("meta"),
        "layout of input 'x' was torch.strided, is torch.sparse_coo": images(1).to_sparse(),
        "input 'x' was a tensor, is 'text'": "text",
        "dimension 0 of input 'x' is 0, but the graph holds for 2 or more": images(0),
    }
    assert [captured.refuses((x,), {}) for x in refusals.values()] == list(refusals)


def test_a_model_without_arguments_or_results() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.rand(3))

        def forward(self, wanted: bool = True) -> Tensor | None:
            return self.value * 2 if wanted else None

    model = Constant()
    covers(capture(model), model)
    assert covers(capture(model, (False,)), model, False) is None


# Shapes.


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_batches_that_the_model_ties() -> None:
    captured = capture(Add(), (torch.rand(1, 4), torch.rand(1, 4)))
    covers(captured, Add(), torch.rand(5, 4), torch.rand(5, 4))
    assert captured.refuses((torch.rand(5, 4), torch.rand(6, 4)), {}) == (
        "dimension 0 of input 'y' is 6, but must equal dimension 0 of input 'x', which is 5"
    )
    assert captured.refuses((torch.rand(5, 4), torch.rand(1, 4)), {}) is not None


def test_batches_that_are_free_of_each_other() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, y * 3

    captured = capture(Both(), (torch.rand(1, 4), torch.rand(1, 4)))
    covers(captured, Both(), torch.rand(5, 4), torch.rand(3, 4))
    reason = captured.refuses((torch.rand(5, 4), torch.rand(1, 4)), {})
    assert reason == "dimension 0 of input 'y' is 1, but the graph holds for 2 or more"


def test_size_one_beside_a_batch_broadcasts() -> None:
    captured = capture(Add(), (torch.rand(4, 4), torch.rand(1, 4)))
    covers(captured, Add(), torch.rand(1, 4), torch.rand(1, 4))
    covers(captured, Add(), torch.rand(3, 4), torch.rand(1, 4))
    assert captured.note == "dimension 0 is fixed for 'y' (1)"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_matrix_beside_a_batch_stays_fixed(batch: int) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
            return x @ matrix

    matrix = torch.rand(4, 5)
    captured = capture(Product(), (torch.rand(batch, 4), matrix))
    covers(captured, Product(), torch.rand(6, 4), matrix)
    covers(captured, Product(), torch.rand(1, 4), matrix)
    assert captured.note == "dimension 0 is fixed for 'matrix' (4)"


DIFFER = "the graph's results differ from the model's on the example"


class SpecialOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


def test_a_batch_of_one_that_is_special() -> None:
    single, several = torch.rand(1, 4), torch.rand(3, 4)
    captured = capture(SpecialOne(), (single,))
    covers(captured, SpecialOne(), single)
    assert captured.refuses((several,), {}) == "dimension 0 of input 'x' was 1, is 3"
    assert captured.note == f"dimension 0 is fixed for 'x' (1): {DIFFER}"
    captured = capture(SpecialOne(), (several,))
    covers(captured, SpecialOne(), torch.rand(2, 4))
    assert (
        captured.refuses((single,), {}) == "dimension 0 of input 'x' is 1, but the graph holds for 2 or more"
    )


def test_conditions_on_sizes() -> None:
    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] % 2 == 0 else x * 3

    captured = capture(Even(), (torch.rand(4, 4),))
    covers(captured, Even(), torch.rand(8, 4))
    reason = captured.refuses((torch.rand(3, 4),), {})
    assert reason == "the graph holds only where (dimension 0 of input 'x' % 2) == 0"


def test_sizes_that_follow_from_others() -> None:
    class Unrolled(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.reshape(-1) + y

    captured = capture(Unrolled(), (torch.rand(3, 2), torch.rand(6)))
    covers(captured, Unrolled(), torch.rand(4, 2), torch.rand(8))
    covers(captured, Unrolled(), torch.rand(1, 2), torch.rand(2))
    reason = captured.refuses((torch.rand(4, 2), torch.rand(7)), {})
    assert reason == "dimension 0 of input 'y' is 7, but must be 2*dimension 0 of input 'x'"


def test_a_batch_that_the_model_fixes() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, -1) if x.shape[0] == 1 else x.reshape(4, -1)

    for batch in (1, 4):
        captured = capture(Fixed(), (torch.rand(batch, 8),))
        covers(captured, Fixed(), torch.rand(batch, 8))
    assert captured.refuses((torch.rand(1, 8),), {}) is not None


def test_dynamic_shapes_of_the_user() -> None:
    rows = Dim("rows", max=8)
    shapes = {"x": {0: rows, 1: Dim.AUTO}, "y": {0: rows, 1: Dim.AUTO}}
    for asked in (shapes, tuple(shapes.values())):
        captured = capture(Add(), (torch.rand(1, 4), torch.rand(1, 4)), dynamic_shapes=asked)
        covers(captured, Add(), torch.rand(3, 7), torch.rand(3, 7))
        reason = captured.refuses((torch.rand(9, 4), torch.rand(9, 4)), {})
        assert reason == "dimension 0 of input 'x' is 9, but the graph holds for 2 to 8"
    lengths = {"x": {0: Dim.AUTO, 1: Dim.AUTO}, "y": {0: Dim.AUTO, 1: Dim.AUTO}}
    captured = capture(Add(), (torch.rand(3, 1), torch.rand(3, 1)), dynamic_shapes=lengths)
    covers(captured, Add(), torch.rand(3, 5), torch.rand(3, 5))
    static: dict[str, Any] = {"x": None, "y": None}
    captured = capture(Add(), (torch.rand(3, 4), torch.rand(3, 4)), dynamic_shapes=static)
    assert (
        captured.refuses((torch.rand(2, 4), torch.rand(2, 4)), {}) == "dimension 0 of input 'x' was 3, is 2"
    )
    assert captured.note == ""


def test_dynamic_shapes_that_do_not_fit() -> None:
    args, rows = (torch.rand(2, 4), torch.rand(2, 4)), {0: Dim("rows")}
    with pytest.raises(InputError, match=r"dynamic_shapes has \['z'\].*\['x', 'y'\]"):
        capture(Add(), args, dynamic_shapes={"x": rows, "z": rows})
    with pytest.raises(InputError, match=r"dynamic_shapes\['batch'\] must have the structure"):
        capture(Structured(), ({"x": args[0]},), dynamic_shapes={"batch": {"y": rows}})
    with pytest.raises(CaptureError, match=r"Add could not be captured.*rows"):
        capture(Add(), args, dynamic_shapes={"x": rows, "y": None})


class Conversions(nn.Module):
    """Composite operators of all sorts, none of which writes."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x.to(torch.float32).flatten(1).softmax(-1), 0.5, training=False)
        return torch.where(y > 0.2, y, 0.0).reshape(-1).contiguous()


@pytest.mark.parametrize(("model", "again"), [(Conversions(), 0), (Net(), 1)])
def test_traces_again_only_what_writes(model: nn.Module, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decompose: Any = ExportedProgram.run_decompositions
    calls: list[ExportedProgram] = []

    def counted(program: ExportedProgram, table: dict[Any, Any]) -> Any:
        calls.append(program)
        return decompose(program, table)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    covers(capture(model.eval(), (images(2),)), model, images(3))
    assert len(calls) == again


# What cannot be captured.


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        return x * 2


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


class NormsInTraining(nn.Module):
    """Batch norm writes to its statistics, though its schema does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training=True)


class Appends(nn.Module):
    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(x)
        return x * 2


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("the weather is bad.\nIt rains.")


class Opaque(nn.Module):
    def forward(self, x: Tensor, other: object = None) -> object:
        return object()


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (
            DependsOnValues(),
            (),
            r"its control flow depends on the values.*test_capture\.py:\d+, .return x if",
        ),
        (Counts(), (), "writes to its buffer 'calls'"),
        (WritesInput(), (), "writes to its input"),
        (NormsInTraining(), (), "writes to its buffer 'norm.running_"),
        (Appends(), ([],), "Appends changes a container among its inputs"),
        (
            Fails(),
            (),
            r"Fails could not be captured: the weather is bad \(.*test_capture\.py:\d+, .raise Value",
        ),
        (Opaque(), (), "returns an object that a graph cannot look into: object"),
        (Opaque(), (object(),), "called with an object that a graph cannot look into: object"),
    ],
)
def test_capture_errors_say_why(model: nn.Module, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model, (torch.rand(1, 4), *args))


def test_the_original_error_is_chained() -> None:
    with pytest.raises(CaptureError) as info:
        capture(Fails(), (torch.rand(1, 4),))
    assert isinstance(info.value.__cause__, ValueError)


def test_inputs_that_do_not_fit(net: Net) -> None:
    with pytest.raises(InputError, match=r"do not fit Net\.forward.*too many positional"):
        capture(net, (images(1), images(1)))


# Models that are graphs already.


def test_symbolic_trace(net: Net) -> None:
    traced = fx.symbolic_trace(net)
    captured = capture(traced, (images(1),))
    covers(captured, net, images(3))
    covers(captured, net, x=images(3))


# Models of transformers.


def transformer(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
    }
    ids = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    match kind:
        case "bert":
            model = transformers.BertModel(transformers.BertConfig(**sizes))
        case "vit":
            model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=16))
        case "resnet":
            config = transformers.ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8)
            model = transformers.ResNetForImageClassification(config)
        case "gpt2":
            model = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, **ids)
            )
        case _:
            config = transformers.T5Config(
                d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=50
            )
            model = transformers.T5EncoderModel(config)
    return model.eval()


def tokens(batch: int, length: int = 8) -> Tensor:
    return torch.randint(0, 50, (batch, length))


def test_bert() -> None:
    model = transformer("bert")
    mask = torch.ones(3, 8, dtype=torch.long)
    captured = capture(model, (), {"input_ids": tokens(1), "attention_mask": mask[:1]})
    covers(captured, model, input_ids=tokens(3), attention_mask=mask)
    covers(captured, model, tokens(3), mask)
    names = {node.target for node in captured.graph.graph.nodes if node.op == "get_attr"}
    assert "encoder.layer.0.attention.self.query.weight" in names
    assert aten.scaled_dot_product_attention.default in operators(captured)
    assert captured.refuses((tokens(3, 9), mask), {}) == "dimension 1 of input 'input_ids' was 8, is 9"
    assert captured.refuses((tokens(3),), {}) == "input 'attention_mask' was a tensor, is None"
    reason = captured.refuses((tokens(3), mask), {"output_hidden_states": True})
    assert reason is not None
    assert reason.startswith("argument 'kwargs' has another structure")


def test_bert_with_options_and_any_length() -> None:
    model = transformer("bert")
    options = {"output_hidden_states": True, "return_dict": False}
    shapes = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}, "kwargs": None}
    captured = capture(model, (tokens(1),), options, shapes)
    covers(captured, model, tokens(3, 5), **options)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_vision(kind: str) -> None:
    model = transformer(kind)
    captured = capture(model, (torch.rand(1, 3, 32, 32),))
    covers(captured, model, pixel_values=torch.rand(3, 3, 32, 32))
    assert "_assert_tensor_metadata" not in captured.graph.code


@pytest.mark.parametrize("use_cache", [False, True])
def test_gpt2(use_cache: bool) -> None:
    model = transformer("gpt2")
    captured = capture(model, (), {"input_ids": tokens(1), "use_cache": use_cache})
    output = covers(captured, model, tokens(3), use_cache=use_cache)
    assert (output.past_key_values is not None) == use_cache
    if use_cache:
        assert output.past_key_values.layers[0].keys.shape == (3, 2, 8, 16)


def test_gpt2_with_a_cache_to_fill() -> None:
    model = transformer("gpt2")
    cache = model(tokens(1)).past_key_values
    for given in (cache, type(cache)(config=model.config)):
        with pytest.raises(CaptureError, match="cannot look into: DynamicCache"):
            capture(model, (tokens(1),), {"past_key_values": given})


def test_t5() -> None:
    model = transformer("t5")
    covers(capture(model, (tokens(1),)), model, input_ids=tokens(3))
