"""Bad input: a clear error that names what is wrong, where, and what to do; never one from the depths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp import InputError, SparsecompError, Target, analyze, compile_sparse


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        y: Tensor = self.second(hidden)  # the line that a message about `second` names
        return y


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


SECOND = f"test_errors.py:{Net.forward.__code__.co_firstlineno + 2}"
X = torch.ones(2, 8)
WRONG: Any = object()


@pytest.fixture
def net() -> Net:
    return Net().eval()


def compiled(model: Any, inputs: Any = (X,), **options: Any) -> Any:
    return compile_sparse(model, inputs, target=options.pop("target", "reference"), **options)


def message(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    assert isinstance(caught.value, SparsecompError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def says(text: str, *parts: str) -> None:
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"


# Models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind"),
    [(lambda x: x, "function"), (Net, "type"), (None, "NoneType"), (Net().state_dict(), "OrderedDict")],
)
@pytest.mark.parametrize("front", [compile_sparse, analyze])
def test_what_is_not_a_module(model: Any, kind: str, front: Callable[..., object]) -> None:
    says(message(lambda: front(model, (X,))), "nn.Module or an ExportedProgram", f"not {kind}")


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)])  # type: ignore[no-untyped-call]
def test_a_script_module(net: Net, make: Callable[[nn.Module], nn.Module]) -> None:
    says(message(lambda: compiled(make(net))), "ScriptModule", "pass the nn.Module")


@pytest.mark.parametrize("front", [compile_sparse, analyze])
def test_training_mode(net: Net, front: Callable[..., object]) -> None:
    net.second.train()
    text = message(lambda: front(net, (X,)))
    says(text, "submodule 'second' of the model is in training mode", "model.eval()")
    net.train()
    says(message(lambda: front(net, (X,))), "the model is in training mode", "model.eval()")
    assert net.training


@pytest.mark.parametrize("front", [compile_sparse, analyze])
def test_a_model_that_is_compiled_already(net: Net, front: Callable[..., object]) -> None:
    says(message(lambda: front(compiled(net), (X,))), "compiled already")


def test_a_model_with_a_part_that_is_compiled_already(net: Net) -> None:
    says(message(lambda: compiled(nn.Sequential(compiled(net)).eval())), "'0'", "compiled already")


def test_parameters_on_another_device(net: Net) -> None:
    net.second.to("meta")
    text = message(lambda: compiled(net))
    says(text, "'second.weight'", "on meta")
    assert "model.cpu()" not in text  # which fails for tensors without data


def test_a_buffer_on_another_device(net: Net) -> None:
    net.register_buffer("scale", torch.ones(1, device="meta"))
    says(message(lambda: compiled(net)), "'scale'", "on meta")


def test_parameters_without_a_shape() -> None:
    says(message(lambda: compiled(nn.LazyLinear(3).eval())), "'weight'", "run the model once")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_weight_that_is_not_finite(net: Net, value: float, target: str) -> None:
    with torch.no_grad():
        net.second.weight[1, 2] = value
    text = message(lambda: compiled(net, target=target))
    says(text, "layer 'second'", SECOND, "NaN or infinity", "skip=('second',)")
    assert compiled(net, skip=("second",)).report.untouched


def test_a_weight_that_is_not_finite_in_a_model_without_a_graph() -> None:
    net = Branching().eval()
    with torch.no_grad():
        net.second.weight[1, 2] = float("nan")
    says(message(lambda: compiled(net)), "layer 'second'", "skip=('second',)")
    compiled(net, skip=("second",))


def test_a_weight_that_is_not_finite_at_the_first_call(net: Net) -> None:
    with torch.no_grad():
        net.second.weight[1, 2] = float("nan")
    late = compiled(net, None)
    for _ in range(2):
        says(message(lambda: late(X)), "layer 'second'", SECOND)


def test_a_bias_that_is_not_finite_is_no_error(net: Net) -> None:
    with torch.no_grad():
        net.second.bias[1] = float("inf")
        assert torch.equal(compiled(net)(X), net(X))


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(), nn.Identity(), nn.Embedding(9, 4)])
def test_a_model_without_layers_is_run_as_it_is(model: nn.Module, target: str) -> None:
    x = torch.tensor([[1, 2]]) if isinstance(model, nn.Embedding) else X
    same = compile_sparse(model.eval(), (x,), target=target)
    assert torch.equal(same(x), model(x))
    assert same.report.rung == "eager"


def test_a_module_without_forward() -> None:
    says(message(lambda: compiled(nn.Module().eval())), "forward")


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_weights_that_are_all_zero(net: Net, target: str) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(compiled(net, target=target, min_speedup=0.0)(X), net(X))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_weight_in_a_sparse_layout(net: Net) -> None:
    sparse = net.first.weight.detach().relu().to_sparse_csr()
    net.first.weight = nn.Parameter(sparse, requires_grad=False)
    with torch.no_grad():
        assert torch.allclose(compiled(net)(X), net(X), atol=1e-5)


# Inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", [compile_sparse, analyze])
@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (X, ["example_inputs is a tensor", "(x,)"]),
        ({"x": X}, ["example_inputs is a mapping", "example_kwargs"]),
        (3, ["example_inputs must be a tuple", "int"]),
        (iter([X]), ["example_inputs must be a tuple"]),
    ],
)
def test_example_inputs_that_are_no_tuple(
    net: Net, front: Callable[..., object], inputs: Any, parts: list[str]
) -> None:
    says(message(lambda: front(net, inputs)), *parts)


@pytest.mark.parametrize("front", [compile_sparse, analyze])
@pytest.mark.parametrize("kwargs", [X, (X,), "x"])
def test_example_kwargs_that_are_no_mapping(net: Net, front: Callable[..., object], kwargs: Any) -> None:
    says(message(lambda: front(net, None, kwargs)), "example_kwargs must be a mapping")


@pytest.mark.parametrize("front", [compile_sparse, analyze])
@pytest.mark.parametrize(
    ("inputs", "kwargs", "parts"),
    [
        ((), {}, ["missing", "'x'"]),
        ((X, X), {}, ["positional arguments"]),
        ((), {"y": X}, ["'y'"]),
        ((torch.ones(2, 9),), {}, ["[2, 9] torch.float32", "shapes cannot be multiplied"]),
        ((torch.ones(2, 8, dtype=torch.float64),), {}, ["[2, 8] torch.float64"]),
        ((torch.ones(2, 8, dtype=torch.long),), {}, ["[2, 8] torch.int64"]),
        ((X.to("meta"),), {}, ["meta"]),
        ((None,), {}, ["None"]),
        ((X.numpy(),), {}, ["ndarray"]),
    ],
)
def test_example_inputs_that_the_model_cannot_take(
    net: Net, front: Callable[..., object], inputs: Any, kwargs: Any, parts: list[str]
) -> None:
    text = message(lambda: front(net, inputs, kwargs))
    says(text, "Net cannot be run on these inputs", "example_inputs=(x, ...)", "example_kwargs={...}", *parts)


def test_analyze_without_inputs(net: Net) -> None:
    says(message(lambda: analyze(net)), "needs example inputs", "example_inputs=(x, ...)")


# Options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["tpu", "gpu", "", 3, torch.device("cpu")])
def test_a_target_that_is_not_known(net: Net, target: Any) -> None:
    says(message(lambda: compiled(net, target=target)), str(target), "cpu", "reference")


def test_a_kind_of_target_that_is_not_known(net: Net) -> None:
    says(message(lambda: compiled(net, target=Target("gpu"))), "gpu", "cpu", "reference")


def test_a_processor_that_is_not_known(net: Net) -> None:
    text = message(lambda: compiled(net, target="cpu:nonesuch"))
    says(text, "LLVM knows no CPU named 'nonesuch'")
    assert "Target.here" not in text or hasattr(Target, "here")


def test_a_processor_that_is_not_this_one(net: Net) -> None:
    arm = Target("cpu", "neoverse-v1", "aarch64-linux-gnu")
    says(message(lambda: compiled(net, target=arm)), "neoverse-v1", "this machine")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_a_number_of_threads_that_is_none(net: Net, threads: Any) -> None:
    says(message(lambda: compiled(net, threads=threads)), "threads must be a positive number", repr(threads))


@pytest.mark.parametrize("speedup", [float("nan"), "fast", None, -1.0])
def test_a_least_speedup_that_is_no_number(net: Net, speedup: Any) -> None:
    says(message(lambda: compiled(net, min_speedup=speedup)), "min_speedup", repr(speedup))


@pytest.mark.parametrize("skip", [3, [nn.Linear(1, 1)]])
def test_names_to_skip_that_are_no_names(net: Net, skip: Any) -> None:
    says(message(lambda: compiled(net, skip=skip)), "skip")


def test_one_name_to_skip_is_not_taken_for_its_letters(net: Net) -> None:
    """Either the name it is meant to be, or an error."""
    try:
        report = compiled(net, skip="second", min_speedup=0.0).report
    except InputError as error:
        says(str(error), "skip", "('second',)")
    else:
        assert [layer.layer.name for layer in report.sparse_layers] == ["first"]


def test_a_name_to_skip_that_no_layer_has(net: Net) -> None:
    says(message(lambda: compiled(net, skip=("frist",))), "'frist'", "skip")


@pytest.mark.parametrize("shapes", [{"y": {0: torch.export.Dim.AUTO}}, {"y": None}])
def test_dynamic_shapes_of_what_is_no_input(net: Net, shapes: Any) -> None:
    says(message(lambda: compiled(net, dynamic_shapes=shapes)), "dynamic_shapes", "'y'", "'x'")


def test_dynamic_shapes_that_are_none(net: Net) -> None:
    says(message(lambda: compiled(net, dynamic_shapes=3)), "dynamic_shapes")


class Bare(nn.Module):
    """Weights that are no modules' own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.w)
        z: Tensor = self.attention(y, y, y)[0]
        return z


def test_layers_are_skipped_by_the_names_they_are_reported_by() -> None:
    model, x = Bare().eval(), torch.randn(2, 3, 16)
    names = [layer.layer.name for layer in analyze(model, (x,)).layers]
    assert "w" in names
    for name in names:
        found = analyze(model, (x,), skip=(name,))
        assert name not in [layer.layer.name for layer in found.layers]
    with torch.no_grad():
        model.w[0, 0] = float("nan")
    said = message(lambda: compile_sparse(model, (x,)))
    assert "skip=('w',)" in said
    assert "test_errors.py" in said
    compile_sparse(model, (x,), target="reference", skip=("w",))
