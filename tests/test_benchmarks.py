"""The benchmarks measure what they say: pruning, workloads, alternation, and the hand-written kernels."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from benchmarks import models, row, table
from benchmarks.alexnet import ALEXNET
from benchmarks.ceiling import HandWritten, NoCompilerError, fma_peak, library, variants
from benchmarks.layers import Sample
from benchmarks.machine import Machine
from benchmarks.musts import MUSTS
from benchmarks.prune import as_matrix, mask, only_sparsity, prunable, prune
from benchmarks.rivals import Run, eager
from benchmarks.workloads import WORKLOADS
from sparsecomp.capture import capture
from sparsecomp.layer import Layer


class Backbone(nn.Module):
    """One of everything that is pruned, and of everything that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 24, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.linear = nn.Linear(20, 30)
        self.transposed = Conv1D(24, 16)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
        self.lm_head = nn.Linear(16, 10)


PRUNED = ["conv", "grouped", "linear", "transposed"]


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.9), ("4x1", 0.75), ("2:4", 0.5)])
def test_prunes_the_backbone_and_nothing_else(pattern: str, sparsity: float) -> None:
    model = Backbone()
    assert prune(model, pattern, sparsity) == PRUNED
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            assert bool((module.weight == 0).any()) is (name in PRUNED)


def test_prunes_nothing_when_not_asked() -> None:
    model = Backbone()
    before = copy.deepcopy(model.state_dict())
    assert prune(model, "none", 0.0) == []
    prune(model, "unstructured", 0.0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_pruning_keeps_the_largest_and_the_norm() -> None:
    layer = nn.Sequential(nn.Linear(40, 30))
    before = as_matrix(layer[0]).detach().clone()
    prune(layer, "unstructured", 0.9)
    after = as_matrix(layer[0]).detach()
    assert before[after != 0].abs().min() > before[after == 0].abs().max()
    torch.testing.assert_close(after.norm(), before.norm())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.9])
def test_unstructured_density_is_exact(sparsity: float) -> None:
    kept = mask(torch.randn(60, 50), "unstructured", sparsity)
    assert int(kept.sum()) == round((1 - sparsity) * 3000)


def test_blocks_share_their_mask_at_each_input() -> None:
    kept = mask(torch.randn(64, 90), "4x1", 0.9)
    assert (kept.view(16, 4, 90) == kept.view(16, 4, 90)[:, :1]).all()
    assert int(kept.sum()) == 4 * round(0.1 * 16 * 90)


def test_blocks_allow_rows_that_four_does_not_divide() -> None:
    kept = mask(torch.randn(6, 20), "4x1", 0.5)
    assert kept.shape == (6, 20)
    assert (kept[4] == kept[5]).all()


def test_two_of_four_consecutive_inputs() -> None:
    assert (mask(torch.randn(8, 20), "2:4", 0.5).view(8, 5, 4).sum(2) == 2).all()
    assert mask(torch.randn(8, 21), "2:4", 0.5).shape == (8, 21)
    with pytest.raises(ValueError, match=r"got 0\.9"):
        mask(torch.randn(8, 20), "2:4", 0.9)


def test_an_unknown_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"'8x8'.*choose one of"):
        mask(torch.randn(8, 20), "8x8", 0.9)


@pytest.mark.parametrize("name", ALEXNET)
def test_ssl_takes_whole_rows_and_columns(name: str) -> None:
    convolution = ALEXNET[name]
    model, _ = WORKLOADS[name].make()
    assert prune(model, "ssl", convolution.sparsity) == [convolution.name]
    kept = as_matrix(model.get_submodule(convolution.name)) != 0
    rows, columns = kept.any(1), kept.any(0)
    assert (kept == rows[:, None] & columns).all()
    assert 1 - rows.float().mean().item() == pytest.approx(convolution.row_sparsity, abs=0.006)
    assert 1 - columns.float().mean().item() == pytest.approx(convolution.column_sparsity, abs=0.001)
    assert 1 - kept.float().mean().item() == pytest.approx(convolution.sparsity, abs=0.006)


def test_ssl_is_for_the_layers_it_knows() -> None:
    with pytest.raises(ValueError, match=r"alexnet-conv1.*no such layer"):
        prune(nn.Sequential(nn.Linear(8, 8)), "ssl", 0.9)
    model, _ = WORKLOADS["alexnet-conv2"].make(small=True)
    with pytest.raises(ValueError, match=r"conv2 a sparsity of 0\.679, got 0\.9"):
        prune(model, "ssl", 0.9)
    with pytest.raises(ValueError, match="rows_and_columns"):
        mask(torch.randn(8, 20), "ssl", 0.9)


def test_the_ideal_of_ssl_is_what_the_paper_leaves() -> None:
    ideals = [convolution.ideal for convolution in ALEXNET.values()]
    assert ideals == pytest.approx([1.10, 3.12, 7.29, 12.3, 5.18], rel=0.005)
    assert only_sparsity("ssl", "alexnet-conv5") == 0.807
    assert only_sparsity("ssl", "bert-base") is None
    assert only_sparsity("2:4", "bert-base") == 0.5


def test_what_is_pruned_of_mobilenet_are_its_1x1_convolutions() -> None:
    model, _ = WORKLOADS["mobilenet-v2"].make(small=True)
    pointwise = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    }
    assert {name for name, _ in prunable(model)} == pointwise


def test_a_decode_step_continues_what_came_before() -> None:
    step, inputs = WORKLOADS["gpt2-decode"].make(batch=2, small=True)
    assert isinstance(step.model, nn.Module)
    ids = torch.randint(0, 100, (2, 5))
    with torch.no_grad():
        whole = step.model(input_ids=ids).logits[:, -1:]
        cache = inputs["cache"][:, :, :, :, :0]
        for token in ids.t()[:, :, None]:
            scores, added = step(input_ids=token, cache=cache)
            cache = torch.cat((cache, added), dim=4)
    torch.testing.assert_close(scores, whole, atol=1e-4, rtol=1e-4)


def test_a_decode_step_is_captured_with_any_batch() -> None:
    step, inputs = WORKLOADS["gpt2-decode"].make(small=True)
    _, others = WORKLOADS["gpt2-decode"].make(batch=3, small=True)
    assert capture(step, (), inputs).refuses((), others) is None


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_depends_on_its_input_also_when_pruned(name: str) -> None:
    model, inputs = WORKLOADS[name].make(batch=2, small=True)
    again, other = WORKLOADS[name].make(batch=2, small=True, seed=1)
    run = eager(model, inputs)
    assert row.difference(run(), eager(again, inputs)()) == 0.0
    assert prune(model, *(("ssl", ALEXNET[name].sparsity) if name in ALEXNET else ("unstructured", 0.9)))
    assert row.difference(run(), eager(again, inputs)()) > 0.05
    assert 0.05 < row.difference(eager(model, other)(), run()) < 10


LINEAR = Layer("linear", "linear", "w", (24, 100), (2, 37, 100))
CONV = Layer("conv", "conv2d", "w", (24, 12, 3, 3), (1, 12, 13, 9), padding=(1, 1, 1, 1))
UNEVEN = Layer("uneven", "conv2d", "w", (24, 12, 3, 5), (1, 12, 13, 9), padding=(0, 1, 1, 2))


@pytest.mark.parametrize("layer", [LINEAR, CONV, UNEVEN], ids=lambda layer: str(layer.name))
@pytest.mark.parametrize(
    "sample", [Sample("unstructured", 0.8, 1), Sample("4x1", 0.8, 4), Sample("none", 0, 0)]
)
def test_hand_written_kernels_are_right(layer: Layer, sample: Sample) -> None:
    try:
        library()
    except NoCompilerError as missing:
        pytest.skip(str(missing))
    matrix, x = sample.matrix(layer), layer.example()
    wanted = layer.dense(x, matrix)
    wanted = wanted[0] if layer.op == "conv2d" else wanted.reshape(-1, layer.rows).t()[:, None]
    for rows in sample.hand_rows:
        for variant in variants(rows, layer.columns):
            kernel = HandWritten(layer, matrix, x, variant)
            assert kernel.seconds(2) > 0
            torch.testing.assert_close(kernel.output(), wanted, atol=1e-4, rtol=1e-4)


def test_the_peak_is_believable() -> None:
    try:
        assert 1 < fma_peak() < 2000
    except NoCompilerError as missing:
        pytest.skip(str(missing))


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompilerError, match="install gcc or clang"):
        library.__wrapped__()


CASE = row.Case("distilbert", "unstructured", 0.9, threads=1, rivals=False, small=True, rounds=5)


def _wrong(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    return lambda: (torch.zeros(1, 16, 64),)


def _broken(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    raise NotImplementedError("no such op")


@pytest.fixture
def one_thread() -> object:
    threads = torch.get_num_threads()
    yield None
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_row_has_ratios_only_for_right_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row, "sparsecomp", eager)
    right = row.measure(CASE)
    assert right.over_eager is not None
    assert row.Row.of(json.loads(json.dumps(asdict(right)))) == right

    monkeypatch.setattr(row, "sparsecomp", _wrong)
    wrong = row.measure(CASE)
    assert (wrong.over_eager, wrong.verdict) == (None, "WRONG")
    assert "wrong output, error 1.0e+00" in table.markdown([wrong])

    monkeypatch.setattr(row, "sparsecomp", _broken)
    failed = row.measure(CASE)
    assert failed.verdict == "FAILED"
    assert "NotImplementedError: no such op" in table.markdown([right, failed])


def test_difference_is_infinite_for_other_shapes() -> None:
    assert row.difference(torch.ones(2), torch.ones(3)) == float("inf")
    assert row.difference([torch.ones(2)], [torch.ones(2), torch.ones(2)]) == float("inf")


def _plan(*arguments: str) -> list[row.Case]:
    return models.plan(models.parse(arguments))


def test_the_default_plan_has_the_musts_first_and_every_model() -> None:
    cases = _plan("--threads", "1", "2")
    musts = [must.case(threads, False, 20) for threads in (1, 2) for must in MUSTS]
    assert cases[: len(musts)] == musts
    rest = cases[len(musts) :]
    assert not any(case.rivals for case in rest)
    assert len(rest) == 2 * 8 * (len(WORKLOADS) - len(ALEXNET))
    assert {case.model for case in cases} == set(WORKLOADS)


def test_a_plan_is_chosen_from() -> None:
    assert len(_plan("--patterns", "2:4", "none", "--threads", "1", "2")) == 8
    assert {case.sparsity for case in _plan("--never-slower", "--sparsity", "0.3", "0.95")} == {0.3, 0.95}
    chosen = _plan("--musts", "--models", "resnet-50", "--batch", "16", "--quick", "--threads", "1")
    assert [(case.pattern, case.batch, case.small) for case in chosen] == [
        ("unstructured", 16, True),
        ("4x1", 16, True),
    ]
    ssl = _plan("--models", "alexnet-conv5", "--patterns", "ssl", "--threads", "1")
    assert [(case.sparsity, case.rivals) for case in ssl] == [(0.807, True)]


def test_results_survive_and_are_merged(tmp_path: Path) -> None:
    out = tmp_path / "results" / "models.json"
    here = Machine("a CPU", 2, 100.0, {"torch": "2"})
    first = row.Row(CASE, {}, here, row.now(), failure="exit status -11: ")
    models.save([first], out)
    assert models.load(out) == {CASE: first}
    assert "failed [1]" in out.with_suffix(".md").read_text()
    assert models.load(tmp_path / "none.json") == {}
