"""torch.compile(model, backend="sparsecomp"): the same outputs whatever Dynamo makes of a model."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from sparsecomp import InputError, backend

ROOT = Path(__file__).parent.parent
QUICK: Any = {"target": "reference", "min_speedup": 0.0}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)
        self.scale = torch.full((8,), 0.5)
        for layer in (self.first, self.second):
            layer.weight.data *= torch.rand_like(layer.weight) < 0.4

    def forward(self, x: Tensor, factor: float = 1.0) -> dict[str, Any]:
        hidden = self.norm(self.first(x)).relu()
        return {"y": self.second(hidden) * self.scale, "factor": factor}


class Breaking(Net):
    """Dynamo makes two graphs of it."""

    def forward(self, x: Tensor, factor: float = 1.0) -> dict[str, Any]:
        hidden = self.norm(self.first(x)).relu()
        torch._dynamo.graph_break()
        return {"y": self.second(hidden) * factor, "factor": hidden.shape[0]}


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = torch.compile(model, backend="sparsecomp", options=QUICK | options)
    return found


def check(model: nn.Module, run: Callable[..., Any], *args: Any) -> None:
    with torch.no_grad():
        expected, found = model(*args), run(*args)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
    assert found["factor"] == expected["factor"]


def layers() -> list[list[str]]:
    """Names of each compiled graph's layers."""
    found = [report for report in backend.reports() if report.rung == "whole graph"]
    return [[layer.layer.name for layer in report.layers] for report in found]


def test_outputs_are_those_of_the_model() -> None:
    model = Net().eval()
    run = compiled(model)
    check(model, run, torch.randn(3, 12))
    check(model, run, torch.randn(3, 12))
    assert layers() == [["first", "second"]]
    assert all(report.sparse_layers for report in backend.reports())


def test_graph_breaks() -> None:
    model = Breaking().eval()
    check(model, compiled(model), torch.randn(3, 12))
    assert sorted(layers()) == [["first"], ["second"]]


@pytest.mark.parametrize(("kind", "graphs"), [(Net, 1), (Breaking, 2)])
def test_shapes_become_dynamic_after_the_first_change(kind: type[Net], graphs: int) -> None:
    model = kind().eval()
    run = compiled(model)
    for batch in (3, 5, 7, 64, 2):
        check(model, run, torch.randn(batch, 12))
    assert len(backend.reports()) == 2 * graphs  # for 3, and for any
    with torch.compiler.set_stance("fail_on_recompile"):
        check(model, run, torch.randn(9, 12))


def test_dynamic_from_the_start() -> None:
    model = Net().eval()
    run: Any = torch.compile(model, backend="sparsecomp", options=QUICK, dynamic=True)
    for batch in (3, 5, 64):
        check(model, run, torch.randn(batch, 12))
    assert len(backend.reports()) == 1


def test_numbers_that_change() -> None:
    model = Breaking().eval()
    run = compiled(model)
    for factor in (1.0, 2.0, 3.0, 4.5):
        check(model, run, torch.randn(3, 12), factor)


def test_whole_numbers_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is compiled for each, a few times."""
    monkeypatch.setattr(backend, "MAX_BINDINGS", 3)
    model = Net().eval()

    def steps(x: Tensor, step: int) -> Tensor:
        y: Tensor = model(x)["y"] * step
        return y

    run: Any = torch.compile(steps, backend="sparsecomp", options=QUICK)
    x = torch.randn(3, 12)
    with torch.no_grad():
        for step in (2, 3, 4, 5, 6, 7, 4):
            torch.testing.assert_close(run(x, step), steps(x, step))
    assert len(backend.reports()) == 1 + 3  # the first call's graph is for 2 alone
    assert all(report.notes == () for report in backend.reports())


def test_a_graph_without_inputs() -> None:
    layer, table = nn.Linear(4, 4), nn.Parameter(torch.randn(6, 4))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = layer, table

        def forward(self) -> Tensor:
            y: Tensor = self.layer(self.table)
            return y

    model = Constant().eval()
    run: Any = torch.compile(model, backend="sparsecomp", options=QUICK)
    with torch.no_grad():
        torch.testing.assert_close(run(), model())


def test_images_of_other_sizes() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.head(self.conv(x).relu().mean((2, 3)))
            return {"y": y, "factor": x.shape[2]}

    model = Images().eval()
    run = compiled(model)
    for shape in ((2, 3, 8, 8), (2, 3, 10, 12), (4, 3, 9, 7), (3, 3, 16, 16)):
        check(model, run, torch.randn(shape))


def test_a_second_instance_runs_on_its_own_weights() -> None:
    """Dynamo calls the same graph with other parameters."""

    def block(layer: nn.Linear, x: Tensor) -> Tensor:
        y: Tensor = layer(x).relu()
        return y

    run: Any = torch.compile(block, backend="sparsecomp", options=QUICK)
    layers, x = [nn.Linear(12, 12) for _ in range(3)], torch.randn(4, 12)
    with torch.no_grad():
        for layer in (*layers, *layers):
            torch.testing.assert_close(run(layer, x), block(layer, x))
    assert len(backend.reports()) == 3


@pytest.mark.parametrize("edit", ["in place", "load_state_dict", "another parameter", "data"])
def test_weights_that_change_are_seen(edit: str) -> None:
    model, x = Net().eval(), torch.randn(3, 12)
    run = compiled(model)
    check(model, run, x)
    with torch.no_grad():
        if edit == "in place":
            model.second.weight[2] += 1.0
        elif edit == "load_state_dict":
            model.load_state_dict(Net().state_dict())
        elif edit == "another parameter":
            model.second.weight = nn.Parameter(torch.randn(8, 16))
        else:
            model.second.weight.data = torch.randn(8, 16)
    check(model, run, x)
    assert len(backend.reports()) == 1  # what was compiled before is given up


def test_weights_are_watched_without_dynamos_guards_on_modules() -> None:
    model, x = Net().eval(), torch.randn(3, 12)
    run = compiled(model, guard_filter_fn=torch.compiler.skip_guard_on_all_nn_modules_unsafe)
    check(model, run, x)
    with torch.no_grad():
        model.second.weight[2] += 1.0
    check(model, run, x)
    with torch.no_grad():
        model.first.weight = nn.Parameter(torch.randn(16, 12))
    check(model, run, x)


def test_weights_that_change_all_the_time(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(backend, "MAX_BINDINGS", 2)
    model, x = Net().eval(), torch.randn(3, 12)
    run = compiled(model)
    for _ in range(4):
        check(model, run, x)
        with torch.no_grad():
            model.first.weight += 0.1
    assert "2 sets of parameters" in caplog.text


def test_inference_mode() -> None:
    model = Net().eval()
    run = compiled(model)
    with torch.inference_mode():
        for batch in (3, 3, 5, 7):
            x = torch.randn(batch, 12)
            torch.testing.assert_close(run(x)["y"], model(x)["y"], rtol=1e-4, atol=1e-5)
    assert layers() == [["first", "second"]] * 2


def test_a_call_that_writes_to_its_input() -> None:
    layer, x = nn.Linear(4, 4), torch.zeros(2, 4)

    def add_one(x: Tensor) -> Tensor:
        x += 1.0
        y: Tensor = layer(x)
        return y

    run: Any = torch.compile(add_one, backend="sparsecomp", options=QUICK)
    with torch.no_grad():
        for count in (1.0, 2.0):
            torch.testing.assert_close(run(x), layer(torch.full((2, 4), count)))
            assert torch.equal(x, torch.full((2, 4), count))


def test_a_tensor_of_nobody_is_an_input() -> None:
    """A weight that no module holds may be another one at every call."""

    def product(layer: nn.Linear, w: Tensor, x: Tensor) -> Tensor:
        y: Tensor = layer(x) @ w
        return y

    run: Any = torch.compile(product, backend="sparsecomp", options=QUICK)
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.no_grad():
        for _ in range(3):
            w = torch.randn(4, 4)
            torch.testing.assert_close(run(layer, w, x), layer(x) @ w)
            w.mul_(2.0)
            torch.testing.assert_close(run(layer, w, x), layer(x) @ w)
    assert len(backend.reports()) == 1


def test_parameters_that_dynamo_installs_in_the_graph() -> None:
    with torch._dynamo.config.patch(install_free_tensors=True):
        model = Net().eval()
        run = compiled(model)
        for batch in (3, 3, 5, 7):
            check(model, run, torch.randn(batch, 12))
        assert layers() == [["first", "second"]] * 2
        with torch.no_grad():
            model.first.weight += 1.0
        check(model, run, torch.randn(7, 12))


def test_layers_that_share_a_weight() -> None:
    model = Net().eval()
    model.second = nn.Linear(16, 16)
    model.first = nn.Linear(16, 16)
    model.second.weight = model.first.weight
    model.scale = torch.ones(16)
    check(model, compiled(model), torch.randn(3, 16))


def test_what_is_written_to_is_the_models() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.fc(x) * self.calls
            return y

    model: Any = Counting().eval()
    run = compiled(model)
    with torch.no_grad():
        for count in range(1, 4):
            x = torch.randn(2, 4)
            torch.testing.assert_close(run(x), model.fc(x) * count)
    assert int(model.calls) == 3


def test_gradients_are_pytorchs() -> None:
    model, x = Net().eval(), torch.randn(3, 12)
    run = compiled(model)
    with pytest.warns(UserWarning, match=r"needs gradients runs in PyTorch.*torch.no_grad\(\)"):
        torch.autograd.backward(run(x)["y"].sum())
    assert model.first.weight.grad is not None
    assert backend.reports() == ()
    check(model, run, x)  # without gradients Dynamo compiles it again
    assert layers() == [["first", "second"]]


def test_autocast_is_pytorchs() -> None:
    model, x = Net().eval(), torch.randn(3, 12)
    run = compiled(model)
    with torch.no_grad(), torch.autocast("cpu"):
        torch.testing.assert_close(run(x)["y"], model(x)["y"])
    assert backend.reports() == ()


def test_graphs_without_layers_are_left_to_pytorch() -> None:
    run = torch.compile(lambda x: x.relu() + 1, backend="sparsecomp", options=QUICK)
    x = torch.randn(3)
    assert torch.equal(run(x), x.relu() + 1)
    assert backend.reports() == ()


def test_skip_names_layers_of_the_model() -> None:
    model = Breaking().eval()
    check(model, compiled(model, skip=("second",)), torch.randn(3, 12))
    assert layers() == [["first"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"thread": 2},
            "option 'thread' is not known to backend 'sparsecomp'. Did you mean 'threads'? Options: target",
        ),
        ({"dynamic_shapes": {}}, "takes shapes from torch.compile"),
        ({"threads": 0}, "threads must be a positive number, not 0"),
        ({"target": "tpu"}, "tpu"),
        ({"min_speedup": -1}, "min_speedup must be a number of at least 0"),
        ({"skip": 3}, "skip must be names"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with torch.no_grad(), pytest.raises((BackendCompilerFailed, InputError)) as caught:
        compiled(Net().eval(), **options)(torch.randn(3, 12))
    assert message in str(caught.value)


def test_modes_belong_to_other_backends() -> None:
    run = torch.compile(Net().eval(), backend="sparsecomp", mode="max-autotune")
    with (
        torch.no_grad(),
        pytest.raises(BackendCompilerFailed, match=r"no mode 'max-autotune': sparsecomp.autotune"),
    ):
        run(torch.randn(3, 12))


def test_the_entry_point_names_the_backend(tmp_path: Path) -> None:
    """In a process that imports nothing of ours, as where the package is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["torch_dynamo_backends"]
    assert points == {"sparsecomp": "sparsecomp.backend:compile_graph"}
    info = tmp_path / "anything-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anything\nVersion: 1.0\n")
    lines = [f"{name} = {where}" for name, where in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[torch_dynamo_backends]", *lines, ""]))
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import torch\n"
        "m = torch.nn.Linear(4, 4); x = torch.randn(2, 4)\n"
        "c = torch.compile(m, backend='sparsecomp', options={'target': 'reference', 'min_speedup': 0.0})\n"
        "with torch.no_grad(): assert torch.allclose(c(x), m(x), atol=1e-6)\n"
        "from sparsecomp.backend import reports\n"
        "assert len(reports()) == 1\n"
        "import sparsecomp.backend\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_its_page_names_every_option() -> None:
    page = (ROOT / "docs" / "torch_compile.md").read_text()
    for option in backend.OPTIONS:
        assert f"`{option}`" in page


@pytest.mark.slow
def test_a_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(num_hidden_layers=3, vocab_size=500)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer" in name and parameter.dim() == 2:
                parameter *= torch.rand_like(parameter) < 0.1
        run: Any = torch.compile(model, backend="sparsecomp")
        for shape in ((1, 64), (2, 64), (3, 50)):
            ids = torch.randint(0, 500, shape)
            expected, found = model(ids), run(ids)
            torch.testing.assert_close(
                found.last_hidden_state, expected.last_hidden_state, rtol=1e-3, atol=1e-4
            )
    assert any(len(report.sparse_layers) >= 18 for report in backend.reports())


class Counting(nn.Module):
    """Writes to an attribute of its own at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.linear(x) * self.calls
        return y


def test_a_module_may_write_to_its_own_attributes() -> None:
    torch.manual_seed(0)
    model, other = Counting().eval(), Counting().eval()
    other.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="sparsecomp")
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(8, 64)
            assert torch.allclose(compiled(x), other(x), atol=1e-4)
