"""From one captured graph to an executable: a model walks through the house once, forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, fx

from sparsecomp import codegen
from sparsecomp.choice import Choice
from sparsecomp.compare import tolerance
from sparsecomp.cost import Cost, RegionTimes, Rivals
from sparsecomp.cut_weight import CutWeight, cut_weight, whole_of
from sparsecomp.errors import InputError
from sparsecomp.flow import flow_of
from sparsecomp.layer import Layer
from sparsecomp.passes import analysis, choosing, keeping, rewriting
from sparsecomp.passes.rewrite_sparse import Packed
from sparsecomp.passes.weigh_regions import slower_regions
from sparsecomp.pipeline import Pass, Step, run
from sparsecomp.primitives import REGION, REGIONS, Runner
from sparsecomp.program import Body, Program, attribute
from sparsecomp.progress import Watch
from sparsecomp.report import LayerReport, RegionReport, Report, layer_reports
from sparsecomp.section import run_section
from sparsecomp.target import Target

_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Options:
    """What the user asked for; documented at `compile_sparse`."""

    target: Target = field(default_factory=Target)
    threads: int | None = None
    skip: tuple[str, ...] = ()
    min_speedup: float = 1.0
    verbose: bool = False

    def thread_count(self) -> int:
        """Asked at every call: without a number of its own a module follows `torch.set_num_threads`."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True)
class Executable:
    """A program whose regions are compiled. The graph calls them by name; `runners` keeps them alive."""

    program: Program
    runners: Mapping[str, Runner]
    steps: tuple[Step, ...]
    layers: tuple[LayerReport, ...]
    regions: tuple[RegionReport, ...]
    call: Callable[..., tuple[Tensor, ...]]
    """Of the graph's input tensors: what the graph means, its regions called without a detour."""

    @property
    def graph(self) -> fx.GraphModule:
        return self.program.graph

    def report(self, options: Options, rung: str, notes: tuple[str, ...]) -> Report:
        """`rung`: how the model was taken."""
        return Report(
            codegen.describe(options.target),
            options.thread_count(),
            self.steps,
            self.layers,
            self.program.untouched,
            self.regions,
            rung,
            notes,
            slimming=self.program.slimming,
            flow=() if rung == "layers" else flow_of(self.program),
        )


def converted(program: Program) -> dict[Layer, Choice]:
    """Reading of a parameter -> choice, for the layers that run as kernels."""
    return {program.layers[site].reading: choice for site, choice in program.choices.items() if choice.how}


class Compiler:
    """Compiles graphs of one model, all sharing one store of packed weights."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.streams = codegen.stream_store(options.target)
        self.cuts: dict[str, CutWeight] = {}
        """Whole parameter -> what of it is packed, where slimming left only a part."""
        self._whole: dict[str, Tensor] = {}
        self.settled: dict[Layer, Choice] | None = None
        """Reading of a parameter -> choice of the first graph; later graphs keep it, so that weights are shared."""

    def compile(self, graph: fx.GraphModule, inputs: tuple[Tensor, ...], watch: Watch) -> Executable:
        """Analyse, choose, rewrite, lower; then take back the regions that lose to PyTorch as a whole.

        Raises:
            InputError: a multiplied weight holds NaN or infinity.
        """
        options = self.options
        watch.stage("finding layers")
        program, found = run(analysis(inputs, options.skip, options.target), Program(graph))
        _check_finite(program)
        if self.settled is not None:
            rewritten, steps = self._rewrite(keeping(self.settled), program, inputs, {}, watch)
            runners = self._lower(rewritten, {}, watch)
            if not self.cuts:
                self._note_cuts(program, graph)
            return self._executable(rewritten, runners, {}, (*found, *steps))
        cost = codegen.meter(options.target, options.thread_count())
        refused: dict[str, str] = {}
        packed: Packed = {}
        while True:
            watch.stage("measuring layers", total=len(program.layers))
            passes = choosing(cost, options.min_speedup, refused, watch.item)
            rewritten, steps = self._rewrite(passes, program, inputs, packed, watch)
            measured: dict[str, Runner] = {}
            times = self._measure(rewritten, program, measured, cost, watch)
            slower = slower_regions(rewritten, times, options.min_speedup)
            if not slower:
                break
            refused |= slower
        runners = self._lower(rewritten, measured, watch)
        self.settled = converted(rewritten)
        self.streams.keep([stream for runner in runners.values() for stream in runner.streams])
        self._note_cuts(program, graph)
        return self._executable(rewritten, runners, times, (*found, *steps))

    def _note_cuts(self, program: Program, graph: fx.GraphModule) -> None:
        """`graph` as captured: its parameters are whole. One that was computed in it is not the model's."""
        cuts = program.slimming.cuts if program.slimming else {}
        read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        parts = [part for part in self.streams.names if part in cuts and whole_of(part, cuts) in read]
        restored = (cut_weight(part, cuts, partial(attribute, graph)) for part in parts)
        self.cuts = {cut.whole: cut for cut in restored}

    def weight(self, name: str) -> Tensor:
        """A packed parameter as the model stores it, unpacked exactly; a whole one where a part is packed."""
        cut = self.cuts.get(name)
        return cut.restore(self.streams.weight(cut.part)) if cut else self.streams.weight(name)

    def held_weight(self, name: str) -> Tensor:
        """For the eager model, which multiplies by whole weights: where only a part is packed no kernel can stand
        in, so from its first reading on it is held as it was."""
        if name not in self.cuts:
            return self.weight(name)
        if name not in self._whole:
            self._whole[name] = self.weight(name)
        return self._whole[name]

    def nbytes(self, name: str) -> int:
        """Of a packed parameter, with what is kept beside it to restore the whole."""
        rest = sum(cut.nbytes for cut in self.cuts.values() if cut.part == name)
        return self.streams.nbytes_of(name) + rest

    @property
    def tolerance(self) -> float:
        """How far outputs may be from the model's."""
        return tolerance(stream.dtype for stream, _ in self.streams.entries())

    @property
    def packed(self) -> set[str]:
        """Parameters that are held packed, in whole or in part, by their names in the model."""
        parts = {cut.part: name for name, cut in self.cuts.items()}
        return {parts.get(name, name) for name in self.streams.names}

    def _rewrite(
        self,
        passes: tuple[Pass, ...],
        program: Program,
        inputs: tuple[Tensor, ...],
        packed: Packed,
        watch: Watch,
    ) -> tuple[Program, list[Step]]:
        chosen, chose = run(passes, program)
        watch.stage("rewriting")
        prefix = f"model{next(_NUMBERS)}/region"
        rewritten, rewrote = run(rewriting(prefix, inputs, packed, self.options.target), chosen)
        return rewritten, [*chose, *rewrote]

    def _runner(self, body: Body) -> Runner:
        return codegen.lower(body, self.options.target, self.streams, self.options.thread_count)

    def _measure(
        self, program: Program, dense: Program, runners: dict[str, Runner], cost: Cost, watch: Watch
    ) -> dict[str, RegionTimes]:
        """Times of each region on inputs of the example's shapes. Regions that must run are put in `runners`.

        `dense`: the program before it was rewritten, which has the weights as they were.
        """
        watch.stage("measuring regions", total=len(program.regions))
        times: dict[str, RegionTimes] = {}
        for name, body in program.regions.items():
            watch.item(name)

            def prepare(name: str = name, body: Body = body) -> Rivals:
                runners[name] = self._runner(body)
                weights = {op.site: dense.weight(op.site) for op in body.section.layers}
                like = next(iter(weights.values()))
                inputs = [torch.randn(shape).to(like) for shape in body.section.input_shapes]
                pytorch = partial(
                    run_section, body.section, lambda op: weights[op.site], body.vectors, inputs
                )
                return partial(runners[name].run, inputs), pytorch

            times[name] = cost.region(body, prepare)
        return times

    def _lower(self, program: Program, measured: Mapping[str, Runner], watch: Watch) -> dict[str, Runner]:
        """Region -> runner: those that were made for measuring, and the others."""
        watch.stage("generating code", total=len(program.regions))
        runners = {}
        for name, body in program.regions.items():
            watch.item(name)
            runners[name] = measured.get(name) or self._runner(body)
        return runners

    def _executable(
        self,
        program: Program,
        runners: Mapping[str, Runner],
        times: Mapping[str, RegionTimes],
        steps: tuple[Step, ...],
    ) -> Executable:
        """The program without its canonical weights, its graph ready to be called."""
        bodies = {name: replace(body, packed={}) for name, body in program.regions.items()}
        REGIONS.update(runners)
        program.graph.meta["regions"] = runners  # the graph calls them by name: it keeps them alive
        nbytes = {name: self.nbytes(name) for name in self.streams.names}
        regions = tuple(
            RegionReport(
                name.rpartition("/")[2],
                tuple(op.layer.name for op in body.section.layers),
                body.ended_by,
                times.get(name),
            )
            for name, body in program.regions.items()
        )
        reports, call = layer_reports(program, nbytes), direct(program, runners)
        return Executable(replace(program, regions=bodies), runners, steps, reports, regions, call)


def direct(program: Program, runners: Mapping[str, Runner]) -> Callable[..., tuple[Tensor, ...]]:
    """The program's graph as a function that calls regions themselves, not by way of PyTorch's dispatcher: in
    small models that takes longer than they do."""
    graph = program.edit()
    for node in graph.graph.nodes:
        if node.target is REGION:
            inputs, name = node.args
            node.target, node.args = _caller(runners[str(name)]), (inputs,)
    graph.recompile()
    call: Callable[..., tuple[Tensor, ...]] = graph.forward
    return call


def _caller(runner: Runner) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    def region(inputs: Sequence[Tensor]) -> list[Tensor]:
        return runner.run(inputs)

    return region


def _check_finite(program: Program) -> None:
    for site, layer in program.layers.items():
        weight = program.weight(site)
        # A sum that is finite has finite terms, and is found sixty times as fast.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            where = f" (called at {layer.source})" if layer.source else ""
            raise InputError(
                f"layer {layer.name!r}{where}: its weight holds NaN or infinity, whose products sparse kernels "
                "would skip. Repair the weight, or leave the layer to PyTorch with "
                f"skip=({layer.name!r},)."
            )
