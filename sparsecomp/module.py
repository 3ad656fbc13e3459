"""The compiled model: a drop-in module, and the ladder it goes down when a call is not covered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp import codegen
from sparsecomp.capture import capture
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.compile import Compiler, Executable, Options
from sparsecomp.contract import Capture
from sparsecomp.errors import CaptureError, SparsecompError
from sparsecomp.example import copied_call, run_example
from sparsecomp.inference_only import InferenceOnly, without_backward
from sparsecomp.layers import Swap, layers_graph, record_inputs, swap_layers
from sparsecomp.packed import pack_attributes
from sparsecomp.progress import Watch, watching
from sparsecomp.report import Report
from sparsecomp.routes import Routes
from sparsecomp.skeleton import Skeleton
from sparsecomp.speed import alternating_seconds

MAX_VARIANTS = 8
"""Graphs kept for different shapes; a call beyond that runs with swapped layers."""


@dataclass(frozen=True)
class Variant:
    """A compiled graph and the calls it covers."""

    capture: Capture
    executable: Executable

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Of the graph's input tensors, in order."""
        return self.capture.unflatten(self.executable.graph(*inputs))


class SparseModule(InferenceOnly):
    """Same calls and outputs as the model it was compiled from, for inference only.

    It holds a copy: later changes of the model are not seen. Converted weights are held packed; everything
    else, `config` or `generate` say, is the model's own. A call whose shapes no graph covers compiles another
    one on the same weights; one that cannot be captured runs layer by layer.

    """

    _options: Options
    _dynamic_shapes: Any
    _compiler: Compiler
    _skeleton: Skeleton
    _variants: list[Variant]
    _routes: Routes[Variant]
    _uncapturable: set[Any]
    """Kinds of calls (structure and dtypes) whose capture failed."""
    _eager: nn.Module
    """The model with its converted layers swapped, and its other converted weights unpacked when read."""
    _first: torch.utils.hooks.RemovableHandle
    _report: Report | None
    _lock: threading.RLock

    def __init__(self, model: nn.Module, options: Options, dynamic_shapes: Any = None) -> None:
        super().__init__()
        self._options = options
        self._dynamic_shapes = dynamic_shapes
        self._compiler = Compiler(options)
        self._skeleton = Skeleton(model)
        self._variants, self._uncapturable = [], set()
        self._routes = Routes()
        self._eager = self._skeleton.copy()
        self._first = self._eager.register_forward_pre_hook(self._compile_first, with_kwargs=True)
        self._report = None
        self._lock = threading.RLock()
        nn.Module.train(self, False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Nothing set here is a parameter or a submodule of this module."""
        self.__dict__[name] = value

    # Compiling -------------------------------------------------------------------------------------------

    def compile_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first compilation, on example inputs: a graph, else layers, else the model as it is.

        Raises:
            InputError: the model cannot be run on the inputs, or a weight holds NaN or infinity.
        """
        with self._lock, _on_trial(), watching(self._options.verbose) as watch:
            if self._report is not None:
                return  # another thread was first
            self._first.remove()
            model = self._skeleton.module
            watch.stage("running the model")
            expected = run_example(model, *copied_call(args, kwargs))
            try:
                self._compile_graph(model, *copied_call(args, kwargs), expected, watch)
            except CaptureError as error:
                self._compile_layers(model, *copied_call(args, kwargs), str(error), watch)
            except (RuntimeError, NotImplementedError) as error:  # of an operator that passes cannot run
                if isinstance(error, SparsecompError):
                    raise
                self._compile_layers(
                    model, *copied_call(args, kwargs), f"{type(error).__name__}: {error}", watch
                )
            self._skeleton.hollow(filter(self._skeleton.holds, self._compiler.streams.names))
            self._skeleton.own()
            self._swap()
            if self._report is not None and self._report.rung == "layers":
                self._check_swapped(expected, *copied_call(args, kwargs))

    def _compile_first(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first call that reaches the eager model by a method of its own, `generate` say."""
        self.compile_for(args, kwargs)

    def _compile_graph(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any, watch: Watch
    ) -> None:
        watch.stage("capturing the graph")
        captured = capture(model, args, kwargs, self._dynamic_shapes)
        inputs = tuple(captured.flatten(args, kwargs))
        executable = self._compiler.compile(captured.graph, inputs, watch)
        variant = Variant(captured, executable)
        notes = (captured.note,) if captured.note else ()
        report = self._new_report(executable, "whole graph", notes)
        if not self._compiler.settled:
            self._report = replace(
                report, rung="eager", notes=(*notes, "no layer gains: PyTorch runs the model")
            )
            return
        watch.stage("comparing with the model")
        self._variants.append(variant)
        error = relative_error(self._dispatch(args, kwargs), expected)
        eager, compiled = alternating_seconds(
            lambda: model(*args, **kwargs), lambda: self._dispatch(args, kwargs)
        )
        report = replace(report, eager_seconds=eager, compiled_seconds=compiled)
        if error > TOLERANCE:
            self._give_up(report, f"outputs differ by {error:.1e} of the largest: PyTorch runs the model")
        elif compiled * self._options.min_speedup > eager and self._options.target.kind != "reference":
            times = f"{compiled * 1e3:.2f} ms against {eager * 1e3:.2f}"
            self._give_up(report, f"as a whole the compiled model is slower, {times}: PyTorch runs it")
        else:
            self._report = report

    def _compile_layers(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str, watch: Watch
    ) -> None:
        watch.stage("recording layers")
        inputs = record_inputs(model, args, kwargs)
        graph = layers_graph(model, inputs)
        executable = self._compiler.compile(graph, tuple(inputs.values()), watch)
        rung = "layers" if self._compiler.settled else "eager"
        self._report = self._new_report(executable, rung, (f"the graph was not captured: {reason}",))

    def _give_up(self, report: Report, note: str) -> None:
        self._compiler.settled = {}
        self._compiler.streams.keep(set())
        self._variants.clear()
        self._routes.clear()
        layers = tuple(
            replace(
                layer,
                choice=replace(layer.choice, how=None, reason=note) if layer.choice else None,
                nbytes=layer.dense_bytes,
            )
            for layer in report.layers
        )
        notes = (*report.notes, note)
        self._report = replace(report, rung="eager", layers=layers, regions=(), notes=notes)

    def _new_report(self, executable: Executable, rung: str, notes: tuple[str, ...]) -> Report:
        return Report(
            codegen.describe(self._options.target),
            self._options.thread_count(),
            executable.steps,
            executable.layers,
            executable.program.untouched,
            executable.regions,
            rung,
            notes,
        )

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
        pack_attributes(self._eager, self._skeleton.hollows, streams.weight)

    def _check_swapped(self, expected: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where there is no graph, see that the swapped model still gives the same."""
        error = relative_error(self._eager(*args, **kwargs), expected)
        if error > TOLERANCE:
            self._skeleton.refill(self._compiler.streams.weight)
            self._eager = self._skeleton.module
            assert self._report is not None
            self._give_up(
                self._report, f"outputs differ by {error:.1e} of the largest: PyTorch runs the model"
            )

    # Calling ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
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
        if self._report is None:
            self.compile_for(args, kwargs)
        return self._dispatch(args, kwargs)

    def _dispatch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.is_autocast_enabled("cpu"):
            return self._run_dense(args, kwargs)  # what runs in which type is PyTorch's to say
        if not self._variants:
            return self._eager(*args, **kwargs)
        known = self._routes.find(args, kwargs)
        if known is not None:
            return known[0].run(known[1])
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
        with self._lock:
            covering = self._covering(args, kwargs)
            if covering is not None:
                return covering  # another thread was first
            if kind in self._uncapturable or _empty(leaves):
                return None
            if len(self._variants) == MAX_VARIANTS:
                self._note(f"more than {MAX_VARIANTS} shapes were called: further ones run layer by layer")
                return None
            try:
                variant = self._compile_variant(args, kwargs)
            except CaptureError as error:
                self._uncapturable.add(kind)
                self._note(f"a call runs layer by layer: {error}")
                return None
            self._variants.append(variant)
            return variant

    def _compile_variant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
        streams = self._compiler.streams
        refused = self._variants[0].capture.refuses(args, kwargs)
        with (
            _on_trial(),
            self._skeleton.filled(streams.weight) as model,
            watching(self._options.verbose) as watch,
        ):
            expected = run_example(model, *copied_call(args, kwargs))
            args, kwargs = copied_call(args, kwargs)
            captured = capture(model, args, kwargs, self._dynamic_shapes)
            executable = self._compiler.compile(captured.graph, tuple(captured.flatten(args, kwargs)), watch)
        dense = [name for name in streams.names if _reads(executable, name)]
        if dense:
            raise CaptureError(f"for these inputs {dense[0]!r} would be needed dense")
        variant = Variant(captured, executable)
        error = relative_error(variant.run(captured.flatten(args, kwargs)), expected)
        if error > TOLERANCE:
            raise CaptureError(f"the graph's outputs differ by {error:.1e} of the largest")
        self._note(f"compiled once more: {refused}")
        self._recount()
        return variant

    def _recount(self) -> None:
        """The report's bytes, after weights were packed again for another image size."""
        streams = self._compiler.streams
        if self._report is not None:
            layers = tuple(
                replace(layer, nbytes=streams.nbytes_of(layer.layer.weight) or layer.nbytes)
                for layer in self._report.layers
            )
            self._report = replace(self._report, layers=layers)

    def _run_dense(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._skeleton.filled(self._compiler.streams.weight) as model:
            return model(*args, **kwargs)

    def _note(self, note: str) -> None:
        if self._report is not None and note not in self._report.notes:
            self._report = replace(self._report, notes=(*self._report.notes, note))

    # What a user may ask ---------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What was found, chosen and gained; empty until the first call of a module compiled without inputs."""
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
        with torch.no_grad(), self._skeleton.filled(self._compiler.streams.weight) as model:
            expected = model(*args, **kwargs)
        return relative_error(self(*args, **kwargs), expected)

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The original model's state, dense."""
        state = self._skeleton.state_dict(self._compiler.streams.weight)
        if destination is None:
            return state
        destination.update({prefix + name: value for name, value in state.items()})
        return destination

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The original model's; converted weights are unpacked one by one."""
        return self._skeleton.named_parameters(self._compiler.streams.weight, *args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return self._skeleton.module.named_buffers(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_eager")
            if model is None or not hasattr(model, name):
                raise AttributeError(
                    f"neither SparseModule nor {type(model).__name__} has {name!r}"
                ) from None
            return getattr(model, name)

    def extra_repr(self) -> str:
        return self.report._headline()


@contextmanager
def _on_trial() -> Iterator[None]:
    """No gradients, and the user's random numbers go on as if nothing had been compiled."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def _reads(executable: Executable, weight: str) -> bool:
    return any(node.op == "get_attr" and node.target == weight for node in executable.graph.graph.nodes)


def _empty(leaves: Sequence[Any]) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() == 0 for leaf in leaves)
