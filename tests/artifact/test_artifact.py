"""A compiled module comes back from its file: the same calls, the same numbers to the last bit, nothing compiled."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsecomp
from benchmarks import saving
from benchmarks.workloads import WORKLOADS
from sparsecomp import ArtifactError, ArtifactWarning, SparseModule, compile_sparse, load
from sparsecomp.artifact.general import general_graph
from sparsecomp.artifact.records import decode, encode
from sparsecomp.artifact.structures import SavedOutput
from sparsecomp.codegen.compiled_region import compile_kernels, compile_region
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.section import Section
from tests.artifact.nets import FEATURES, Containers, Images, Tokens, compiled_of, pruned
from tests.test_slimming import slim_network


def saved(compiled: SparseModule, folder: Path) -> Path:
    path = folder / "m.sparsecomp"
    compiled.save(path)
    return path


def same_bits(left: Any, right: Any) -> bool:
    mine, its = (torch.utils._pytree.tree_leaves(value) for value in (left, right))
    return len(mine) == len(its) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(mine, its, strict=True)
    )


def same_state(left: nn.Module, right: nn.Module) -> bool:
    mine, its = left.state_dict(), right.state_dict()
    return list(mine) == list(its) and all(
        torch.equal(mine[key], its[key]) and mine[key].dtype == its[key].dtype for key in mine
    )


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def native(x: Tensor) -> SparseModule:
    """With kernels; nobody changes it."""
    return compiled_of(pruned(Tokens()), x, target="cpu")


@pytest.fixture(scope="module")
def plain(x: Tensor) -> SparseModule:
    """For the target "reference"; nobody changes it."""
    return compiled_of(pruned(Tokens()), x)


@contextmanager
def no_compiler() -> Iterator[None]:
    """Whoever compiles or measures fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("something is compiled or measured")

    compile_region.cache_clear()  # what no module uses is forgotten
    compile_kernels.cache_clear()
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tvm.compile", "sparsecomp.codegen.meter", "sparsecomp.codegen.library.compile_region"):
            patch.setattr(name, fail)
        yield


def in_another_process(code: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Where it was written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "shape"), [(Tokens, (2, 5, FEATURES)), (Images, (2, 3, 15, 15))])
def test_outputs_state_and_report_are_the_same(net: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    compiled = compiled_of(pruned(net()), x := torch.randn(shape), target="cpu")
    back = load(saved(compiled, tmp_path))
    other = torch.randn(5, *shape[1:])
    assert same_bits(back(x), compiled(x))
    assert same_bits(back(other), compiled(other))
    assert same_state(back, compiled)
    assert str(back.report) == str(compiled.report)
    assert back.report.as_dict() == compiled.report.as_dict()
    assert back.graph is not None
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in compiled.named_parameters()]
    assert back.verify(other) < TOLERANCE


def test_nothing_is_compiled_or_measured(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(Tokens()), x := torch.randn(2, 5, FEATURES), target="cpu")
    path, expected = saved(compiled, tmp_path), compiled(x)
    del compiled
    with no_compiler():
        back = load(path)
        assert same_bits(back(x), expected)
        back.profile(x)


def test_another_process_gets_the_same_bits_without_the_class(
    native: SparseModule, x: Tensor, tmp_path: Path
) -> None:
    path = saved(native, tmp_path)
    torch.save((x, native(x), native.state_dict()), tmp_path / "expected.pt")
    printed = in_another_process(f"""
        import sys, torch, sparsecomp
        torch.set_num_threads(1)
        x, y, state = torch.load({str(tmp_path / "expected.pt")!r})
        back = sparsecomp.load({str(path)!r})
        assert not any(name.startswith(("tests", "transformers", "benchmarks")) for name in sys.modules)
        assert torch.equal(back(x), y)
        assert all(torch.equal(back.state_dict()[key], state[key]) for key in state)
        print("the same")
    """)
    assert printed == "the same\n"


def test_a_slimmed_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsecomp.module.SparseModule._refused", lambda *rest: "")
    model, x = slim_network(), torch.randn(2, 3, 16, 16)
    compiled = compile_sparse(model, (x,), min_speedup=0.0)
    assert compiled._compiler.cuts
    back = load(saved(compiled, tmp_path))
    assert back._compiler.cuts.keys() == compiled._compiler.cuts.keys()
    assert same_bits(back(x), compiled(x))
    assert same_state(back, compiled)
    assert str(back.report) == str(compiled.report)
    assert back.verify(x) < TOLERANCE
    other = torch.randn(1, 3, 20, 12)
    assert same_bits(back(other), compiled(other))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(Tokens()), torch.randn(2, 5, FEATURES))
    back = load(saved(compiled, tmp_path))
    model: Any = back._skeleton.module
    assert model.again.bias is model.get_parameter("outer.0.bias")
    assert len(list(back.parameters())) == len(list(compiled.parameters()))


def test_a_small_bert(tmp_path: Path) -> None:
    model, inputs = WORKLOADS["bert-base"].make(small=True)
    compiled = compile_sparse(pruned(model), (), inputs, target="reference", min_speedup=0.0)
    for body in compiled._variants[0].executable.program.regions.values():
        section = decode(encode(body.section, Section), Section)
        assert repr(section) == repr(body.section)  # no symbols of the tracer in it
    back = load(saved(compiled, tmp_path))
    assert same_bits(back(**inputs), compiled(**inputs))
    assert same_state(back, compiled)
    assert type(back(**inputs)) is type(compiled(**inputs))
    assert compiled.config is not None
    with pytest.raises(AttributeError, match=r"'config' is not kept.*BertModel"):
        _ = back.config
    assert not hasattr(back, "generate")


def test_containers_and_constants(tmp_path: Path) -> None:
    x = torch.randn(2, FEATURES)
    call: Any = (({"a": [x, x]}, x), {"name": "n", "other": x})
    compiled = compiled_of(pruned(Containers()), *call[0], **call[1])
    found = load(saved(compiled, tmp_path))(*call[0], **call[1])
    expected = compiled(*call[0], **call[1])
    assert same_bits(found, expected)
    assert list(found) == ["named", "pair", "list", 7, "shape"]
    assert found["shape"] == x.shape
    assert isinstance(found["shape"], torch.Size)
    assert found["named"]["name"] == "n"
    assert found["list"][1:] == [None, 3]
    assert isinstance(found["pair"], SavedOutput)  # its class is not imported for a file
    assert torch.equal(found["pair"].second, expected["pair"].second)
    assert torch.equal(found["pair"][0], expected["pair"][0])


# Other shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "shapes"), [
    (Tokens, [(2, 5, FEATURES), (3, 9, FEATURES), (2, 3, 4, FEATURES)]),
    (Images, [(2, 3, 15, 15), (1, 3, 20, 12)]),
])  # fmt: skip
def test_other_sizes_compile_further_graphs_on_the_same_weights(
    net: Any, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    model = pruned(net())
    compiled = compiled_of(model, torch.randn(shapes[0]))
    back = load(saved(compiled, tmp_path))
    weights = back._compiler.streams.names
    for shape in shapes[:2]:
        x = torch.randn(shape)
        assert relative_error(back(x), model(x)) < TOLERANCE
    assert len(back._variants) == 2
    assert back._compiler.streams.names == weights
    again = load(saved(back, tmp_path))  # with what was compiled since
    assert len(again._variants) == 2
    assert same_bits(again(x), back(x))
    for shape in shapes[2:]:  # another number of dimensions
        with pytest.raises(sparsecomp.InputError, match="no graph in the file covers this call"):
            back(torch.randn(shape))


def test_a_graph_that_is_wrong_for_other_sizes_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The further capture is compared with the model on sizes that it was not made with."""
    compiled = compiled_of(pruned(Tokens()), torch.randn(2, 5, FEATURES))
    assert general_graph(compiled) is not None
    monkeypatch.setattr("sparsecomp.artifact.general.relative_error", lambda *outputs: 0.1)
    assert general_graph(compiled) is None
    back = load(saved(compiled, tmp_path))
    with pytest.raises(sparsecomp.InputError, match="dimension 1 of input 'x' was 5, is 6"):
        back(torch.randn(2, 6, FEATURES))


def test_another_constant_is_refused_by_name(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(Tokens()), x := torch.randn(2, 5, FEATURES))
    back = load(saved(compiled, tmp_path))
    with pytest.raises(sparsecomp.InputError, match=r"argument 'half' was False, is True.*save it again"):
        back(x, half=True)
    compiled(x, half=True)
    assert same_bits(load(saved(compiled, tmp_path))(x, half=True), compiled(x, half=True))


def test_autocast_runs_the_saved_graph(plain: SparseModule, x: Tensor, tmp_path: Path) -> None:
    back = load(saved(plain, tmp_path))
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(back(x), plain(x)) < 1e-2


# What is not kept --------------------------------------------------------------------------------------------


def test_layers_swapped_one_by_one_cannot_be_saved(tmp_path: Path) -> None:
    class Decides(Tokens):
        def forward(self, x: Tensor, half: bool = False) -> Tensor:
            return super().forward(x, half) if x.sum() > -1e9 else x

    compiled = compiled_of(pruned(Decides()), torch.randn(2, 5, FEATURES))
    assert compiled.report.rung == "layers"
    with pytest.raises(ArtifactError, match=r"runs as 'layers' .*control flow"):
        compiled.save(tmp_path / "m.sparsecomp")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_compiled_yet_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not compiled yet"):
        compile_sparse(pruned(Tokens())).save(tmp_path / "m.sparsecomp")


def test_an_operator_without_a_form_is_named(tmp_path: Path) -> None:
    library: Any = torch.library.Library("elsewhere", "DEF")  # type: ignore[no-untyped-call]
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

    class Custom(Tokens):
        def forward(self, x: Tensor, half: bool = False) -> Tensor:
            y: Tensor = torch.ops.elsewhere.twice(super().forward(x, half))
            return y

    compiled = compiled_of(pruned(Custom()), torch.randn(2, 5, FEATURES))
    with pytest.raises(ArtifactError, match=r"elsewhere\.twice.*has no form in a file"):
        compiled.save(tmp_path / "m.sparsecomp")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(Tokens()), torch.randn(2, 5, FEATURES))
    with pytest.raises(ArtifactError, match="cannot be written"):
        compiled.save(tmp_path / "nowhere" / "m.sparsecomp")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path / "nothing.sparsecomp")


# Elsewhere ---------------------------------------------------------------------------------------------------


def remade(path: Path, **settings: Any) -> tuple[SparseModule, str]:
    """The module, and what was said."""
    with pytest.warns(ArtifactWarning) as said:
        back = load(path, **settings)
    return back, str(said[0].message)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_file_from_elsewhere_has_its_kernels_made_again(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compiled_of(pruned(Tokens()), x := torch.randn(2, 5, FEATURES), target=target)
    path = saved(compiled, tmp_path)
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(
        "sparsecomp.codegen.library.adopt", lambda *rest: pytest.fail("native code is loaded")
    )
    back, said = remade(path)
    assert "not written on this machine" in said
    assert same_state(back, compiled)
    assert back.report.layers == compiled.report.layers
    assert "made again at the first call" in back.report.notes[-1]
    with no_measuring():
        assert relative_error(back(x), compiled(x)) < TOLERANCE
    assert len(back.report.sparse_layers) == len(compiled.report.sparse_layers)
    assert back.report.notes == ()
    assert back.graph is not None


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({name: nn.Linear(FEATURES, 64)})

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.inner.values()
        y: Tensor = layer(x)
        return y


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU()), Named("a-b"), Named("c/d e")]
)
def test_layers_of_any_usual_name_are_read_elsewhere(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: Tensor
) -> None:
    compiled = compiled_of(pruned(model), x, target="reference")
    path = saved(compiled, tmp_path)
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "another"))
    back, _ = remade(path)
    assert relative_error(back(x), compiled(x)) < TOLERANCE


def test_a_trusted_file_from_elsewhere_runs_its_code(
    native: SparseModule, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(native, tmp_path)
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path / "another"))
    with no_compiler():
        assert same_bits(load(path, trust=True)(x), native(x))


@pytest.mark.parametrize("what", ["device", "versions"])
def test_another_machine_or_version_makes_kernels_again_though_trusted(
    native: SparseModule, x: Tensor, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(native, tmp_path)
    here = sparsecomp.codegen.identity(native._options.target)
    monkeypatch.setattr("sparsecomp.codegen.identity", lambda target: here | {what: "another"})
    back, said = remade(path, trust=True)
    assert f"it is for {here[what]}, this is another" in said
    assert relative_error(back(x), native(x)) < TOLERANCE


def test_without_a_c_compiler_the_file_has_no_code(
    native: SparseModule,
    x: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tvm.runtime.executable.Executable.export_library", fail_to_link)
    monkeypatch.setattr("sparsecomp.codegen.library._LIBRARIES", {})
    path = saved(native, tmp_path)
    assert "native code cannot be linked: no compiler" in caplog.text
    back, said = remade(path)
    assert "no C compiler" in said
    assert relative_error(back(x), native(x)) < TOLERANCE


def fail_to_link(*args: object, **kwargs: object) -> None:
    raise RuntimeError("no compiler")


@contextmanager
def no_measuring() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsecomp.codegen.meter", lambda *rest: pytest.fail("something is measured"))
        yield


# Writing -----------------------------------------------------------------------------------------------------


def test_equal_modules_give_equal_files(native: SparseModule, tmp_path: Path) -> None:
    first = saved(native, tmp_path).read_bytes()
    assert saved(native, tmp_path).read_bytes() == first


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.sparsecomp"
    path.write_bytes(b"the old file")
    code = f"""
        import os, signal, pathlib
        from sparsecomp.artifact import container
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing renamed
        container.write_whole(pathlib.Path({str(path)!r}), b"the new file")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"the old file"
    assert len(list(tmp_path.iterdir())) == 2  # what it had written lies beside it


def test_a_failed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError("no space left")

    compiled = compiled_of(pruned(Tokens()), torch.randn(2, 5, FEATURES))
    path = saved(compiled, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match="no space left"):
        compiled.save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_weights_are_stored_in_the_smallest_form(tmp_path: Path) -> None:
    """A bit for each place and four bytes for each number: less than the eight that a stream takes."""
    model = pruned(nn.Sequential(nn.Linear(512, 512, bias=False)))
    compiled = compiled_of(model, torch.randn(2, 512))
    kept = int((model[0].weight != 0).sum())  # type: ignore[index]
    with zipfile.ZipFile(saved(compiled, tmp_path)) as archive:
        size = archive.getinfo("weights.safetensors").file_size
    assert size < 4 * kept + 512 * 512 // 8 + 4096


# Copies and pickles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(
    native: SparseModule, x: Tensor, way: Callable[[SparseModule], SparseModule]
) -> None:
    with no_compiler():
        back = way(native)
        assert back is not native
        assert same_bits(back(x), native(x))
    assert same_state(back, native)
    assert str(back.report) == str(native.report)


def test_a_module_that_holds_a_compiled_one_can_be_copied(plain: SparseModule, x: Tensor) -> None:
    outer = nn.Sequential(plain, nn.Linear(FEATURES, 3))
    assert same_bits(copy.deepcopy(outer)(x), outer(x))


class Choosy(nn.Module):
    """No graph can be captured of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.layer(x)
        return -y if float(y.detach().sum()) > 0 else y


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_module_without_a_graph_is_copied_and_compiled_again(
    x: Tensor, way: Callable[[SparseModule], SparseModule], called: bool
) -> None:
    model = Choosy().eval()
    compiled = compile_sparse(model, (x,)) if called else compile_sparse(model)
    before, expected = compiled.calls, model(x)
    back = way(compiled)
    assert back.calls == before
    if called:
        assert str(back.report) == str(compiled.report)
    model.layer.weight.detach().zero_()
    assert relative_error(back(x), expected) < TOLERANCE
    assert back.report.rung == (compiled.report.rung if called else back.report.rung)
    assert back.calls > compiled.calls == before


def test_a_pickle_from_elsewhere_says_that_kernels_are_made_again(
    native: SparseModule, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = pickle.dumps(native)
    monkeypatch.setenv("SPARSECOMP_CACHE", str(tmp_path))
    with pytest.warns(ArtifactWarning, match="the pickled module is not used"):
        back = pickle.loads(pickled)
    assert relative_error(back(x), native(x)) < TOLERANCE


# Real models -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_of_files(tmp_path: Path) -> None:
    found = saving.measure("linear-4096", "unstructured", 0.9, True, tmp_path)
    assert found.same
    assert 0 < found.file < found.eager
    assert found.load > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_whole_models(name: str, tmp_path: Path) -> None:
    found = saving.measure(name, "unstructured", 0.9, False, tmp_path)
    assert found.same
    assert found.file < found.packed
