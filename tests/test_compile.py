"""Models end to end: pruned, compiled, and right, whatever kernel each layer gets."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from benchmarks.prune import mask, prunable, prune
from benchmarks.workloads import WORKLOADS
from sparsecomp import SparseModule, codegen, compile_sparse
from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen import measure, stopwatch
from sparsecomp.codegen.call import single
from sparsecomp.codegen.layout import source_geometry
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.codegen.schedules import schedules
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, stored_elements
from sparsecomp.program import Body
from sparsecomp.region import RowsKernelChoice
from sparsecomp.target import Target

ZEROS = [("none", 0.0), ("unstructured", 0.5), ("unstructured", 0.9), ("4x1", 0.9)]
"""Pattern and share of zeros: those of the project's promise."""


class AnyKernel(StoredCost):
    """Gives every layer a kernel of its own drawing, without measuring: any must give the right numbers."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        draw = random.Random(f"{layer.weight} {self.seed}")
        group = layer.rows // layer.groups
        fitting = [p for p in PATTERNS if layer.groups == 1 or not (p.shared or group % p.rows)]
        pattern = draw.choice([p for p in fitting if p.rows <= layer.rows])
        geometry = source_geometry(single(layer))["layer"]
        schedule = draw.choice(schedules(layer, geometry, pattern, machine_of(Target())))
        how = RowsKernelChoice(pattern, schedule)
        dense = Candidate(DENSE, 2.0, stored=matrix.numel())
        return dense, Candidate(str(how), 1.0, how=how, stored=stored_elements(matrix)[pattern])


@pytest.fixture
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "meter", lambda target, threads: AnyKernel())


@pytest.fixture
def least_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the CPU, chosen by how much they store and not by time."""
    monkeypatch.setattr(codegen, "meter", lambda target, threads: StoredCost())


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(70, 130)
        self.second = nn.Linear(130, 130, bias=False)
        self.last = nn.Linear(130, 33)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        y: Tensor = self.last(x + torch.sigmoid(self.second(x)))
        return y


class ConvNet(nn.Module):
    """Batch norm, a residual and a shortcut with stride, a depthwise and a grouped convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(16, 24, 1, stride=2)
        self.depthwise = nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.grouped = nn.Conv2d(24, 32, (1, 3), dilation=2, groups=2)
        self.head = nn.Linear(32, 10)
        for norm in (self.stem_norm, self.conv_norm):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert isinstance(tensor, Tensor)
                nn.init.normal_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.conv_norm(self.conv(x)))
        x = F.relu(self.down(x) + self.shortcut(x))
        x = F.hardswish(self.grouped(F.silu(self.depthwise(x))))
        y: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 20, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(20)
        self.second = nn.Conv1d(20, 24, 3, dilation=2)
        self.last = nn.Conv1d(24, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        y: Tensor = self.last(F.relu(self.second(x)))
        return y


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (70,)),
    "convolutions": (ConvNet, (3, 21, 26)),
    "conv1d": (Conv1dNet, (6, 37)),
}


def error(compiled: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> float:
    with torch.no_grad():
        return relative_error(compiled(*args, **kwargs), model(*args, **kwargs))


def names(compiled: SparseModule) -> list[str]:
    """Of the layers that run as kernels."""
    return [layer.layer.name for layer in compiled.report.sparse_layers]


# Numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize(("pattern", "sparsity"), ZEROS)
@pytest.mark.parametrize("net", NETS)
def test_small_networks(net: str, pattern: str, sparsity: float) -> None:
    kind, shape = NETS[net]
    model = kind().eval()
    prune(model, pattern, sparsity)
    compiled = compile_sparse(model, (torch.randn(2, *shape),), min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    assert len(names(compiled)) == sum(hasattr(m, "weight") and "Norm" not in str(m) for m in model.modules())
    for batch in (2, 1, 5):
        assert error(compiled, model, torch.randn(batch, *shape)) < TOLERANCE
    assert compiled.report.notes == ()


def prune_in_turn(model: nn.Module) -> None:
    """Each layer by the next of the ways of ZEROS."""
    with torch.no_grad():
        for number, (_, module) in enumerate(prunable(model)):
            weight: Any = module.weight
            matrix = weight.t() if "Conv1D" in type(module).__name__ else weight.flatten(1)
            norm = matrix.norm()
            matrix.mul_(mask(matrix, *ZEROS[number % len(ZEROS)]))
            matrix.mul_(norm / matrix.norm())


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("name", WORKLOADS)
def test_small_models_with_all_kinds_of_zeros(name: str) -> None:
    workload = WORKLOADS[name]
    model, inputs = workload.make(batch=2, small=True)
    prune_in_turn(model)
    compiled = compile_sparse(model, example_kwargs=inputs, min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    assert len(names(compiled)) == len(compiled.report.layers) > 0
    for batch in (2, 1, 3):
        call: Any = workload.inputs(batch, True, batch)
        assert error(compiled, model, **call) < TOLERANCE
        assert type(compiled(**call)) is type(model(**call))
    assert compiled.report.notes == ()


# What is gained ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("least_stored")
@pytest.mark.parametrize(("pattern", "sparsity", "most"), [("unstructured", 0.9, 0.24), ("4x1", 0.9, 0.15)])
def test_packed_weights_are_small(pattern: str, sparsity: float, most: float) -> None:
    model = nn.Sequential(nn.Linear(400, 500), nn.ReLU(), nn.Linear(500, 300)).eval()
    prune(model, pattern, sparsity)
    compiled = compile_sparse(model, (torch.randn(2, 400),), min_speedup=0.0)
    assert names(compiled) == ["0", "2"]
    totals = compiled.report.totals
    assert totals["dense_bytes"] == totals["converted_dense_bytes"] == 4 * (400 * 500 + 500 * 300)
    assert totals["bytes"] == totals["converted_bytes"] < most * totals["dense_bytes"]
    assert totals["flops"] == pytest.approx((1 - sparsity) * totals["dense_flops"], rel=0.01)


@pytest.mark.usefixtures("least_stored")
def test_layers_that_do_not_gain_stay_with_pytorch() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()
    with torch.no_grad():
        model[2].weight[torch.rand(64, 96) < 0.9] = 0  # type: ignore[operator]
    compiled = compile_sparse(model, (torch.randn(3, 64),), target="reference")
    assert names(compiled) == ["2"]
    assert "in PyTorch" in compiled.report.as_dict()["layers"][0]["reason"]
    assert error(compiled, model, torch.randn(3, 64)) < TOLERANCE


def test_min_speedup_is_asked_of_every_kernel() -> None:
    model, x = Mlp().eval(), torch.randn(2, 70)
    prune(model, "unstructured", 0.9)  # five times cheaper for the reference
    assert len(names(compile_sparse(model, (x,), target="reference", min_speedup=4.9))) == 3
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=5.1)
    assert names(compiled) == []
    assert compiled.report.rung == "eager"
    assert torch.equal(compiled(x), model(x))


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("skip", [["second"], "second", {"second"}])
def test_skipped_layers_stay_with_pytorch(skip: Any) -> None:
    model = Mlp().eval()
    compiled = compile_sparse(model, (torch.randn(2, 70),), min_speedup=0.0, skip=skip)
    assert names(compiled) == ["first", "last"]
    assert {"name": "second", "reason": "skipped on request"} in compiled.report.as_dict()["untouched"]
    assert error(compiled, model, torch.randn(4, 70)) < TOLERANCE


@pytest.mark.usefixtures("any_kernel")
def test_skipped_modules_stay_with_pytorch() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8)).eval()
    compiled = compile_sparse(model, (torch.randn(2, 8),), min_speedup=0.0, skip=("0",))
    assert names(compiled) == ["1"]


# Measured choices --------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every kernel that was timed, by its layer."""
    kernels: list[str] = []
    kernel = measure.Meter.kernel

    def counted(self: measure.Meter, layer: Layer, stream: Any) -> Any:
        kernels.append(layer.name)
        return kernel(self, layer, stream)

    monkeypatch.setattr(measure.Meter, "kernel", counted)
    return kernels


def test_what_was_measured_is_not_measured_again(
    measured: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "new"))
    model = nn.Sequential(nn.Linear(48, 80)).eval()
    prune(model, "unstructured", 0.9)
    first = compile_sparse(model, (torch.randn(3, 48),), min_speedup=0.0)
    assert "0" in measured
    measured.clear()
    second = compile_sparse(model, (torch.randn(3, 48),), min_speedup=0.0)
    assert measured == []
    assert [layer.choice for layer in first.report.layers] == [layer.choice for layer in second.report.layers]
    assert error(second, model, torch.randn(7, 48)) < TOLERANCE


def test_regions_that_lost_are_not_lowered_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their times are on disk as those of kernels are."""
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(stopwatch, "seconds_of", lambda run, **options: 1.0)  # of layers
    monkeypatch.setattr(
        measure, "alternating_seconds", lambda region, pytorch, between: (region() and 2.0, 1.0)
    )
    lowered: list[str] = []
    lower = codegen.lower

    def counted(body: Body, *rest: Any) -> Any:
        lowered.append(body.section.layers[0].layer.name)
        return lower(body, *rest)

    monkeypatch.setattr(codegen, "lower", counted)
    model = nn.Sequential(nn.Linear(48, 80)).eval()
    prune(model, "unstructured", 0.9)
    for expected in (["0"], []):
        lowered.clear()
        compiled = compile_sparse(model, (torch.randn(3, 48),), min_speedup=0.9)
        assert compiled.report.rung == "eager"
        assert lowered == expected


def test_layers_of_one_shape_are_measured_once(measured: list[str]) -> None:
    model = nn.Sequential(nn.Linear(56, 56), nn.Linear(56, 56), nn.Linear(56, 56)).eval()
    prune(model, "4x1", 0.75)
    compile_sparse(model, (torch.randn(3, 56),), min_speedup=0.0)
    assert "0" in measured
    assert not {"1", "2"} & set(measured)


def test_as_a_user_compiles() -> None:
    """Nothing is said of speed; whatever is chosen, the numbers are right and the report is complete."""
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    prune(model, "4x1", 0.9)
    compiled = compile_sparse(model, (torch.randn(16, 256),))
    assert error(compiled, model, torch.randn(5, 256)) < TOLERANCE
    for layer in compiled.report.layers:
        assert layer.choice is not None
        assert layer.choice.reason
        assert any(candidate.kernel == DENSE for candidate in layer.choice.candidates)


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_the_rewritten_graph_can_be_copied(target: str) -> None:
    """As tools that rewrite graphs do before they begin; the copy calls the same regions."""
    model, x = Mlp().eval(), torch.randn(4, 70)
    prune(model, "unstructured", 0.9)
    compiled = compile_sparse(model, (x,), target=target, min_speedup=0.0)
    graph = copy.deepcopy(compiled.graph)
    assert graph is not None
    assert relative_error(graph(x)[0], model(x)) < TOLERANCE


# What is accepted --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_kernel")
def test_a_symbolically_traced_model() -> None:
    model = ConvNet().eval()
    prune(model, "unstructured", 0.9)
    compiled = compile_sparse(fx.symbolic_trace(model), (torch.randn(2, 3, 24, 24),), min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    assert error(compiled, model, torch.randn(3, 3, 24, 24)) < TOLERANCE
    assert list(compiled.state_dict()) == list(model.state_dict())


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("given", [True, False])
def test_an_exported_program(given: bool) -> None:
    model, x = Mlp().eval(), torch.randn(4, 70)
    prune(model, "unstructured", 0.9)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    compiled = compile_sparse(program, (x,) if given else None, min_speedup=0.0)
    assert names(compiled) == ["first", "second", "last"]
    for batch in (4, 1, 9):
        assert error(compiled, model, torch.randn(batch, 70)) < TOLERANCE
    assert all(torch.equal(compiled.state_dict()[name], t) for name, t in model.state_dict().items())
    assert compiled.verify(x) < TOLERANCE


@pytest.mark.usefixtures("any_kernel")
def test_an_exported_program_of_one_batch_says_so_for_another() -> None:
    model, x = Mlp().eval(), torch.randn(4, 70)
    compiled = compile_sparse(torch.export.export(model, (x,)), min_speedup=0.0)
    assert error(compiled, model, x) < TOLERANCE
    with pytest.raises(Exception, match="4"):
        compiled(torch.randn(5, 70))


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("how", ["hooks", "parametrization"])
def test_zeros_that_are_made_at_every_call(how: str) -> None:
    """Pruned by PyTorch's own tools, and not made permanent."""
    model = Mlp().eval()
    for layer in (model.first, model.last):
        if how == "hooks":
            torch_prune.l1_unstructured(layer, "weight", 0.9)  # type: ignore[no-untyped-call]
        else:
            parametrize.register_parametrization(layer, "weight", Zeroed(layer.weight))
    compiled = compile_sparse(model.eval(), (torch.randn(2, 70),), min_speedup=0.0)
    assert error(compiled, model, torch.randn(5, 70)) < TOLERANCE
    notes = compiled.report.notes if how == "hooks" else ()
    assert all("make pruning permanent" in note for note in notes)
    density = {layer.layer.name: layer.facts.density for layer in compiled.report.layers}
    assert sorted(round(value, 2) for value in density.values()) == [0.1, 0.1, 1.0]
    state = compiled.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


class Zeroed(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask(weight, "unstructured", 0.9))

    def forward(self, weight: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return weight * self.mask


class Variadic(nn.Module):
    """Inputs by position in any number, nested, and a keyword; outputs nested."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 20)

    def forward(self, *parts: Tensor, extra: dict[str, list[Tensor]], scale: float = 1.0) -> Any:
        x = sum(parts) + extra["more"][0]
        y = self.layer(x) * scale
        return y, {"half": [y / 2]}, None, 3


@pytest.mark.usefixtures("any_kernel")
def test_nested_and_variadic_inputs() -> None:
    model = Variadic().eval()
    prune(model, "unstructured", 0.5)

    def call(batch: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        x, y, z = torch.randn(3, batch, 12)
        return (x, y), {"extra": {"more": [z]}, "scale": 0.5}

    args, kwargs = call(2)
    compiled = compile_sparse(model, args, kwargs, min_speedup=0.0)
    for batch in (2, 1, 4):
        args, kwargs = call(batch)
        assert error(compiled, model, *args, **kwargs) < TOLERANCE
    found = compiled(*args, **kwargs)
    assert found[2:] == (None, 3)
    assert compiled.report.notes == ()


@pytest.mark.usefixtures("any_kernel")
def test_one_weight_read_by_two_layers() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.there = nn.Linear(24, 40, bias=False)
            self.back = nn.Linear(24, 40)
            self.back.weight = self.there.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.there(x) + self.back(x * 2) + (x.sum() * self.there.weight).sum()
            return y

    class Untouched(Shared):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.there(x) + self.back(x * 2)
            return y

    # What is needed dense is read where it lies, if only a few tokens read it.
    for kind, tokens, converted in ((Shared, 20, 0), (Shared, 2, 2), (Untouched, 20, 2)):
        model = kind().eval()
        prune(model, "unstructured", 0.9)
        compiled = compile_sparse(model, (torch.randn(tokens, 24),), min_speedup=0.0)
        assert len(names(compiled)) == converted
        assert error(compiled, model, torch.randn(3, 24)) < TOLERANCE
        assert len(compiled._compiler.streams.names) == bool(converted)


class TwoSizes(nn.Module):
    """One layer on many tokens and on one: alone the second would stay with PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 40)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(x[:1])


class LeftOperand(TwoSizes):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), torch.mm(self.layer.weight, x.t())


class NoBatch(TwoSizes):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.reshape(-1, 8, 6, 1).expand(-1, -1, -1, 6)
        return self.layer(x), self.layer(x[0])


class LosesAlone(StoredCost):
    """Kernels gain on many tokens only."""

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        dense, *kernels = super().candidates(layer, matrix)
        gain = 2.0 if layer.output_size[1] > 1 else 0.9
        return dense, *(
            replace(kernel, seconds=1e-9 * len(matrix) / gain) for kernel in kernels if kernel.how
        )


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("kind", "converted"), [(TwoSizes, 2), (LeftOperand, 0), (NoBatch, 0)])
def test_a_weight_is_packed_for_all_its_readers_or_for_none(
    kind: type[nn.Module], converted: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codegen, "meter", lambda target, threads: LosesAlone())
    model = kind().eval()
    prune(model, "unstructured", 0.8)
    compiled = compile_sparse(model, (torch.randn(20, 48),), target=target, min_speedup=0.0)
    assert len(names(compiled)) == converted
    assert len(compiled._compiler.streams.entries()) == bool(converted)
    for tokens in (20, 3):
        assert error(compiled, model, torch.randn(tokens, 48)) < TOLERANCE


class Time(nn.Module):
    """Dimension 0 is not a batch but what the convolution runs over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.t()[None])[0].t()
        return y


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_an_image_size_that_changes_within_a_graph(target: str) -> None:
    model = Time().eval()
    prune(model, "unstructured", 0.8)
    compiled = compile_sparse(model, (torch.randn(20, 8),), target=target, min_speedup=0.0)
    assert "image size changes" in compiled.report.as_dict()["untouched"][0]["reason"]
    for steps in (20, 7, 33):
        assert error(compiled, model, torch.randn(steps, 8)) < TOLERANCE
    conv = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    sizes = {"input": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    compiled = compile_sparse(
        conv, (torch.randn(2, 3, 9, 9),), target=target, min_speedup=0.0, dynamic_shapes=sizes
    )
    for size in (9, 12, 6):
        assert error(compiled, conv, torch.randn(2, 3, size, size)) < TOLERANCE


class Norms(nn.Module):
    """Batch norm over a dimension that is not the layer's rows, and one whose factor is computed."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16) if not computed else nn.Conv1d(16, 16, 1)
        self.norm = nn.BatchNorm1d(16 if computed else 5)
        self.computed = computed
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            assert isinstance(tensor, Tensor)
            nn.init.normal_(tensor)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        if not self.computed:
            y: Tensor = self.norm(self.layer(x))
            return y
        n = self.norm
        return F.batch_norm(self.layer(x.transpose(1, 2)), n.running_mean, n.running_var, g, n.bias)


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_norms_that_are_none_of_the_rows(computed: bool, target: str) -> None:
    model = Norms(computed).eval()
    prune(model, "unstructured", 0.5)
    call = torch.randn(2, 5, 16), torch.randn(16)
    shapes = {"x": {0: torch.export.Dim.AUTO}, "g": None}
    compiled = compile_sparse(model, call, target=target, min_speedup=0.0, dynamic_shapes=shapes)
    assert compiled.report.rung == "whole graph"
    assert len(names(compiled)) == 1
    assert error(compiled, model, *call) < TOLERANCE


def test_random_models_are_compared_with_the_same_random_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.layer(x), 0.5, training=True)

    model, x = Noisy().eval(), torch.randn(4, 16)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert compiled.report.rung == "whole graph"
    assert compiled.verify(x) < TOLERANCE


def test_a_graph_that_cannot_run_leaves_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails in the depths, the user gets a model that runs, and a reason."""
    monkeypatch.setattr("sparsecomp.module.Variant.run", lambda *_: 1 / 0)
    model, x = Mlp().eval(), torch.randn(2, 70)
    prune(model, "unstructured", 0.9)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert compiled.report.rung == "layers"
    assert "ZeroDivisionError" in compiled.report.notes[0]
    assert error(compiled, model, x) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    model, x = Mlp().eval().to(dtype), torch.randn(2, 70, dtype=dtype)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert names(compiled) == []
    reasons = {row["reason"] for row in compiled.report.as_dict()["untouched"]}
    assert reasons == {f"{str(dtype).removeprefix('torch.')}: only float32 is lowered"}
    assert torch.equal(compiled(x), model(x))


@pytest.mark.usefixtures("any_kernel")
def test_what_has_no_kernel_yet_is_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, 3)
            self.volume = nn.Conv3d(1, 2, 3, padding=1)
            self.embedding = nn.Embedding(9, 5)
            self.recurrent = nn.LSTM(5, 7, batch_first=True)
            self.layer = nn.Linear(7, 8)

        def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            volume = self.volume(self.up(image).unsqueeze(1))
            y: Tensor = self.layer(self.recurrent(self.embedding(ids))[0])
            return volume, y

    model, image, ids = Mixed().eval(), torch.randn(2, 4, 5, 5), torch.randint(0, 9, (2, 3))
    compiled = compile_sparse(model, (image, ids), min_speedup=0.0)
    assert names(compiled) == ["layer"]
    reasons = " ".join(row["reason"] for row in compiled.report.as_dict()["untouched"])
    for kind in ("transposed convolution", "three-dimensional convolution", "embedding", "recurrent layer"):
        assert f"{kind}: not lowered yet" in reasons
    assert error(compiled, model, image, ids) < TOLERANCE


def test_progress_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(2, 70)
    compile_sparse(Mlp().eval(), (x,), target="reference", min_speedup=0.0)
    assert capfd.readouterr().err == ""
    compile_sparse(Mlp().eval(), (x,), target="reference", min_speedup=0.0, verbose=True)
    assert "sparsecomp" in capfd.readouterr().err
