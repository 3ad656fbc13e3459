"""The compiled model: a drop-in module, and the ladder it goes down when a call is not covered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp import codegen, debug, heap
from sparsecomp.capture import COMPILING, capture
from sparsecomp.compare import relative_error
from sparsecomp.compile import Compiler, Options
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import Trial, adopt_attributes, copied_call, run_example, seeded, unchanged
from sparsecomp.failure import reason_of
from sparsecomp.inference_only import without_backward
from sparsecomp.kept import Kept
from sparsecomp.layer import Layer
from sparsecomp.layers import Swap, layers_graph, record_inputs, swap_layers
from sparsecomp.packed import pack_tensors
from sparsecomp.profile import Profile, profile_graph
from sparsecomp.program import attribute
from sparsecomp.progress import Watch, watching
from sparsecomp.report import Report
from sparsecomp.routes import Routes
from sparsecomp.skeleton import Skeleton
from sparsecomp.speed import alternating_seconds
from sparsecomp.transforms import refuse_fakes, refuse_transforms
from sparsecomp.trial import on_trial
from sparsecomp.variant import Variant

MAX_VARIANTS = 8
"""Graphs kept for different shapes; a call beyond that runs with swapped layers."""


class SparseModule(Kept):
    """Same calls and outputs as the model it was compiled from, for inference only.

    It holds a copy: later changes of the model are not seen. Converted weights are held packed; everything
    else, `config` or `generate` say, is the model's own. A call whose shapes no graph covers compiles another
    one on the same weights; one that cannot be captured runs layer by layer.
    """

    _options: Options
    _dynamic_shapes: Any
    _compiler: Compiler
    _variants: list[Variant]
    _routes: Routes[Variant]
    _uncapturable: set[Any]
    """Kinds of calls (structure and dtypes) whose capture failed."""
    _first: torch.utils.hooks.RemovableHandle
    _report: Report | None
    _before: Report | None
    """What is said before it is compiled, if it came from a file."""
    _ready: bool
    """Compiled and swapped: other threads may call."""
    _lock: threading.RLock

    def __init__(self, model: nn.Module, options: Options, dynamic_shapes: Any = None) -> None:
        super().__init__()
        self._options = options
        self._dynamic_shapes = dynamic_shapes
        self._compiler = Compiler(options)
        self._device = codegen.tensor_device(options.target)
        self._finish = partial(codegen.finish, options.target)
        self._skeleton = Skeleton(model)
        self._variants, self._uncapturable = [], set()
        self._routes = Routes()
        self._eager = self._skeleton.copy()
        self._first = self._eager.register_forward_pre_hook(self._compile_first, with_kwargs=True)
        self._report, self._before, self._ready = None, None, False
        self._lock = threading.RLock()
        nn.Module.train(self, False)

    # Compiling -------------------------------------------------------------------------------------------

    def compile_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first compilation, on example inputs: a graph, else layers, else the model as it is.

        Raises:
            InputError: the model cannot be run on the inputs, or a weight holds NaN or infinity.
        """
        with on_trial(), self._lock, watching(self._options.verbose) as watch:
            if self._report is not None:
                return  # another thread was first, or this is the trial of the swapped model
            watch.stage("running the model")
            trial = Trial.of(self._skeleton.module, args, kwargs)
            self._descend(trial, watch)
            dense = self._variants[0].reads if self._variants else frozenset()
            packed = filter(self._skeleton.holds, self._compiler.packed)
            self._skeleton.hollow(name for name in packed if name not in dense)
            self._skeleton.own()
            self._swap()
            if self._report is not None and self._report.rung == "layers":
                with unchanged(trial.model, self._eager):
                    self._check_swapped(trial)
            self._first.remove()
            self._ready = True
        debug.REPORT.debug("%s", self.report)
        heap.trim()

    def _compile_first(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first call that reaches the eager model by a method of its own, `generate` say."""
        self.compile_for(args, kwargs)

    def _descend(self, trial: Trial, watch: Watch) -> None:
        """Take the first rung of the ladder that holds. Whatever fails in the depths becomes a note."""
        reasons: tuple[str, ...] = ()
        if trial.changing:  # a graph would keep them at what they were when it was captured
            reasons = (f"the graph was not captured: every call changes {', '.join(trial.changing)}",)
        for rung in (self._compile_graph, self._compile_layers)[len(reasons) :]:
            try:
                with unchanged(trial.model):
                    rung(trial, reasons, watch)
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001
                what, call = "layers were" if reasons else "graph was", (trial.args, trial.kwargs)
                reasons += (f"the {what} not captured: {reason_of(error, self, *call)}",)
                self._compiler = Compiler(self._options)
                self._variants.clear()
                self._routes.clear()
            else:
                return
        empty = Report(codegen.describe(self._options.target), self._options.thread_count(), (), (), {})
        self._report = replace(empty, rung="eager", notes=reasons)

    def _compile_graph(self, trial: Trial, reasons: tuple[str, ...], watch: Watch) -> None:
        args, kwargs = trial.call()
        watch.stage("capturing the graph")
        captured = capture(trial.model, args, kwargs, self._dynamic_shapes)
        inputs = tuple(captured.flatten(args, kwargs))
        executable = self._compiler.compile(captured.graph, inputs, watch)
        variant = Variant(captured, executable)
        written = ", ".join(trial.written)
        note = f"calls do not update {written}: no output depends on it" if written else ""
        notes = tuple(filter(None, (*reasons, captured.note, note, self._computed_weights())))
        report = executable.report(self._options, "whole graph", notes)
        if not self._compiler.settled:
            self._report = replace(
                report, rung="eager", notes=(*notes, "no layer gains: PyTorch runs the model")
            )
            return
        watch.stage("comparing with the model")
        error = relative_error(seeded(lambda: variant.run(inputs)), trial.expected)
        self._variants.append(variant)
        eager, compiled = alternating_seconds(
            lambda: trial.model(*args, **kwargs), lambda: self._dispatch(args, kwargs), finish=self._finish
        )
        report = replace(report, eager_seconds=eager, compiled_seconds=compiled)
        note = self._refused(error, eager, compiled)
        if note:
            self._give_up(report, note)
        else:
            self._report = report

    def _refused(self, error: float, eager: float, compiled: float) -> str:
        """Why PyTorch runs the model after all, if it does."""
        if error > self._compiler.tolerance:
            return f"outputs differ by {error:.1e} of the largest: PyTorch runs the model"
        if compiled * self._options.min_speedup > eager and self._options.target.traits.kernels:
            times = f"{compiled * 1e3:.2f} ms against {eager * 1e3:.2f}"
            return f"as a whole the compiled model is slower, {times}: PyTorch runs it"
        return ""

    def _computed_weights(self) -> str:
        """Why memory is held twice: packed weights that are no parameters, if there are."""
        computed = [name for name in self._compiler.packed if not self._skeleton.holds(name)]
        if not computed:
            return ""
        return (
            f"{len(computed)} packed weights, {computed[0]!r} for one, are computed from parameters that are "
            "held as well: make pruning permanent (torch.nn.utils.prune.remove) before compiling"
        )

    def _compile_layers(self, trial: Trial, reasons: tuple[str, ...], watch: Watch) -> None:
        watch.stage("recording layers")
        args, kwargs = trial.call()
        inputs = record_inputs(trial.model, args, kwargs)
        graph = layers_graph(trial.model, inputs)
        executable = self._compiler.compile(graph, tuple(inputs.values()), watch)
        rung = "layers" if self._compiler.settled else "eager"
        self._report = executable.report(self._options, rung, reasons)

    def _give_up(self, report: Report, note: str) -> None:
        self._compiler.settled = {}
        self._compiler.streams.keep(())
        self._compiler.cuts = {}
        self._variants.clear()
        self._routes.clear()
        self._report = report.given_up(note)

    def _swap(self) -> None:
        """Let the eager model run converted layers one by one as kernels, and read other weights unpacked."""
        streams, options = self._compiler.streams, self._options
        swap_layers(
            self._eager,
            {
                stream.layer.weight: Swap(stream.layer, how, streams, options.target, options.thread_count)
                for stream, how in streams.entries()
            },
        )
        pack_tensors(self._eager, self._skeleton.hollows, self._compiler.held_weight)

    def _check_swapped(self, trial: Trial) -> None:
        """Where there is no graph, see that the swapped model gives the same, and not later."""
        assert self._report is not None
        with unchanged(self._eager):
            error = relative_error(trial.run(self._eager), trial.expected)
        with self._skeleton.filled(self._weight) as model:
            runs = (lambda: trial.run(model)), (lambda: trial.run(self._eager))
            eager, compiled = alternating_seconds(*runs, finish=self._finish)
        self._report = replace(self._report, eager_seconds=eager, compiled_seconds=compiled)
        note = self._refused(error, eager, compiled)
        if note:
            self._skeleton.refill(self._weight)
            self._eager = self._skeleton.module
            self._give_up(self._report, note)

    # Calling ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        refuse_transforms()
        known = self._routes.find(args, kwargs) if self._ready else None
        if known is not None and not torch.is_autocast_enabled(self._device):
            return known[0].run(known[1])
        if not torch.is_grad_enabled():
            return self._run(args, kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wants_gradient = any(tensor.requires_grad for tensor in tensors)
        if wants_gradient:
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        with torch.no_grad():
            outputs = self._run(args, kwargs)
        return pytree.tree_map_only(Tensor, without_backward, outputs) if wants_gradient else outputs

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._ready:
            self.compile_for(args, kwargs)
        return self._dispatch(args, kwargs)

    def _dispatch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.is_autocast_enabled(self._device):
            return self._run_dense(args, kwargs)  # what runs in which type is PyTorch's to say
        known = self._routes.find(args, kwargs) if self._variants else None
        if known is not None:
            return known[0].run(known[1])
        refuse_fakes(args, kwargs)
        if not self._variants:
            return self._eager(*args, **kwargs)
        variant = self._covering(args, kwargs) or self._further_variant(args, kwargs)
        if variant is None:
            return self._eager(*args, **kwargs)
        inputs = variant.capture.flatten(args, kwargs)
        self._routes.learn(args, kwargs, variant, inputs)
        return variant.run(inputs)

    def _covering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        covering = (v for v in list(self._variants) if v.capture.refuses(args, kwargs) is None)
        return next(covering, None)

    def _further_variant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant | None:
        """A graph for shapes not seen before, on the weights there are; None if it cannot be had."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        kind = (structure, tuple(leaf.dtype if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves))
        with COMPILING, self._lock:
            if (covering := self._covering(args, kwargs)) is not None:
                return covering  # another thread was first
            if kind in self._uncapturable or _empty(leaves):
                return None
            if len(self._variants) == MAX_VARIANTS:
                self._note(f"more than {MAX_VARIANTS} shapes were called: further ones run layer by layer")
                return None
            try:
                variant = self._compile_variant(args, kwargs)
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001  as when it is compiled first
                self._uncapturable.add(kind)
                self._note(f"a call runs layer by layer: {reason_of(error, self, args, kwargs)}")
                return None
            self._variants.append(variant)
            return variant

    def _compile_variant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        refused = self._variants[0].capture.refuses(args, kwargs)
        with (
            on_trial(),
            self._skeleton.filled(self._weight) as model,
            unchanged(model),
            watching(self._options.verbose) as watch,
        ):
            expected = run_example(model, *copied_call(args, kwargs))
            args, kwargs = copied_call(args, kwargs)
            captured = capture(model, args, kwargs, self._dynamic_shapes)
            executable = self._compiler.compile(captured.graph, tuple(captured.flatten(args, kwargs)), watch)
        variant = Variant(captured, executable)
        dense = sorted(variant.reads.intersection(self._skeleton.hollows))
        if dense:
            raise CaptureError(f"for these inputs {dense[0]!r} would be needed dense")
        error = relative_error(seeded(lambda: variant.run(captured.flatten(args, kwargs))), expected)
        if error > self._compiler.tolerance:
            raise CaptureError(f"the graph's outputs differ by {error:.1e} of the largest")
        self._note(f"compiled once more: {refused}")
        self._recount()
        return variant

    def _recount(self) -> None:
        """The report's bytes, after weights were packed again for another image size."""
        if self._report is not None:
            layers = tuple(
                replace(layer, nbytes=self._compiler.nbytes(layer.layer.weight) or layer.nbytes)
                for layer in self._report.layers
            )
            self._report = replace(self._report, layers=layers)

    def _run_dense(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._skeleton.filled(self._weight) as model:
            return model(*args, **kwargs)

    def _note(self, note: str) -> None:
        if self._report is not None and note not in self._report.notes:
            self._report = replace(self._report, notes=(*self._report.notes, note))

    # What a user may ask ---------------------------------------------------------------------------------

    def _weight(self, name: str) -> Tensor:
        return self._compiler.weight(name)

    def layer_matrices(self) -> Iterator[tuple[Layer, Tensor]]:
        """Every layer of the report with its weight as a matrix, unpacked in turn."""
        for layer in (found.layer for found in self.report.layers):
            if layer.weight in self._compiler.streams.names:
                yield layer, layer.matrix(self._weight(layer.weight))
            elif self._skeleton.holds(layer.weight) or self.graph is None:
                yield layer, layer.matrix(attribute(self._skeleton.module, layer.weight).detach())
            else:  # computed from parameters
                yield layer, layer.matrix(attribute(self.graph, layer.weight).detach())

    @property
    def report(self) -> Report:
        """What was found, chosen and gained; empty until the first call of a module compiled without inputs."""
        if self._report is None and self._before is not None:
            return self._before
        if self._report is None:
            options = self._options
            note = "not compiled yet: the graph is captured at the first call"
            return Report(codegen.describe(options.target), options.thread_count(), (), (), {}, notes=(note,))
        return self._report

    @property
    def graph(self) -> torch.fx.GraphModule | None:
        """The rewritten FX graph of the first variant, whose regions are operators; None on other rungs."""
        return self._variants[0].executable.graph if self._variants else None

    def verify(self, *args: Any, **kwargs: Any) -> float:
        """Run these inputs through the original model as well, its weights unpacked, and compare.

        Returns the error, max|y - y0| / max|y0|, the largest over the output tensors; infinite where shapes
        or structure differ. Takes as long as both models, and for its duration the memory of the original.
        """
        call, kcall = copied_call(args, kwargs)
        with torch.no_grad(), self._skeleton.filled(self._weight) as model, unchanged(model):
            adopt_attributes(model, self._eager)
            expected = seeded(lambda: model(*call, **kcall))
        with unchanged(self._eager):
            return relative_error(seeded(lambda: self(*copied_call(args, kwargs)[0], **kwargs)), expected)

    def profile(self, *args: Any, **kwargs: Any) -> Profile:
        """Where the time of this call goes: per layer, per region, and what is left to PyTorch.

        Raises:
            InputError: no captured graph covers the call; the report says why.
        """
        with torch.no_grad():
            self(*args, **kwargs)
            variant = self._covering(args, kwargs)
            if variant is None:
                raise InputError(
                    f"there is no graph to profile for this call: the model runs as {self.report.rung!r}, "
                    "and the notes of its report say why."
                )
            inputs, executable = variant.capture.flatten(args, kwargs), variant.executable
            call = partial(self._dispatch, args, kwargs)
            return profile_graph(executable.graph, executable.runners, inputs, call)

    def extra_repr(self) -> str:
        return self.report._headline()


def _empty(leaves: Sequence[Any]) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() == 0 for leaf in leaves)
