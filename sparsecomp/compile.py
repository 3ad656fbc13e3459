"""From one captured graph to an executable: a model walks through the house once, forward."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, fx

from sparsecomp import codegen
from sparsecomp.choice import Choice
from sparsecomp.errors import InputError
from sparsecomp.layer import Layer
from sparsecomp.passes import analysis, choosing, keeping, rewriting
from sparsecomp.passes.rewrite_sparse import Packed
from sparsecomp.passes.weigh_regions import slower_regions
from sparsecomp.pipeline import Pass, Step, run
from sparsecomp.primitives import REGIONS, Runner
from sparsecomp.program import Program
from sparsecomp.progress import Watch
from sparsecomp.report import LayerReport, RegionReport, layer_reports
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

    @property
    def graph(self) -> fx.GraphModule:
        return self.program.graph


def converted(program: Program) -> dict[Layer, Choice]:
    """Reading of a parameter -> choice, for the layers that run as kernels."""
    return {program.layers[site].reading: choice for site, choice in program.choices.items() if choice.how}


class Compiler:
    """Compiles graphs of one model, all sharing one store of packed weights."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.streams = codegen.stream_store()
        self.settled: dict[Layer, Choice] | None = None
        """Reading of a parameter -> choice of the first graph; later graphs keep it, so that weights are shared."""

    def compile(self, graph: fx.GraphModule, inputs: tuple[Tensor, ...], watch: Watch) -> Executable:
        """Analyse, choose, rewrite, lower; then take back the regions that lose to PyTorch as a whole.

        Raises:
            InputError: a multiplied weight holds NaN or infinity.
        """
        options = self.options
        watch.stage("finding layers")
        program, found = run(analysis(inputs, options.skip), Program(graph))
        _check_finite(program)
        if self.settled is not None:
            return self._lower(keeping(self.settled), program, found, {}, watch)[0]
        cost = codegen.meter(options.target, options.thread_count())
        refused: dict[str, str] = {}
        packed: Packed = {}
        while True:
            watch.stage("measuring layers", total=len(program.layers))
            passes = choosing(cost, options.min_speedup, refused, watch.item)
            executable, rewritten = self._lower(passes, program, found, packed, watch)
            seconds = _measure_regions(rewritten, executable.runners, cost, watch)
            slower = slower_regions(rewritten, seconds, cost, options.min_speedup)
            if not slower:
                break
            refused |= slower
        regions = tuple(
            replace(region, seconds=measured)
            for region, measured in zip(executable.regions, seconds.values(), strict=True)
        )
        self.settled = converted(rewritten)
        self.streams.keep([stream for runner in executable.runners.values() for stream in runner.streams])
        return replace(executable, regions=regions)

    def _lower(
        self, passes: tuple[Pass, ...], program: Program, found: list[Step], packed: Packed, watch: Watch
    ) -> tuple[Executable, Program]:
        """The executable, and its program with regions and their canonical weights still there."""
        chosen, chose = run(passes, program)
        watch.stage("rewriting")
        prefix = f"model{next(_NUMBERS)}/region"
        rewritten, rewrote = run(rewriting(prefix, packed), chosen)
        watch.stage("generating code", total=len(rewritten.regions))
        runners: dict[str, Runner] = {}
        for name, body in rewritten.regions.items():
            watch.item(name)
            threads = self.options.thread_count
            runners[name] = codegen.lower(body, self.options.target, self.streams, threads)
            REGIONS[name] = runners[name]
        rewritten.graph.meta["regions"] = runners  # the graph calls them by name: it keeps them alive
        nbytes = {name: self.streams.nbytes_of(name) for name in self.streams.names}
        executable = Executable(
            Program(
                rewritten.graph, rewritten.layers, rewritten.untouched, rewritten.facts, rewritten.choices
            ),
            runners,
            (*found, *chose, *rewrote),
            layer_reports(rewritten, nbytes),
            tuple(
                RegionReport(
                    name.rpartition("/")[2], tuple(op.layer.name for op in body.section.ops), body.ended_by
                )
                for name, body in rewritten.regions.items()
            ),
        )
        return executable, rewritten


def _check_finite(program: Program) -> None:
    for site, layer in program.layers.items():
        if not program.weight(site).isfinite().all():
            where = f" (called at {layer.source})" if layer.source else ""
            raise InputError(
                f"layer {layer.name!r}{where}: its weight holds NaN or infinity, whose products sparse kernels "
                "would skip. Repair the weight, or leave the layer to PyTorch with "
                f"skip=({layer.name!r},)."
            )


def _measure_regions(
    program: Program, runners: Mapping[str, Runner], cost: codegen.Cost, watch: Watch
) -> dict[str, float]:
    """Seconds of each region on inputs of the example's shapes."""
    watch.stage("measuring regions", total=len(runners))
    seconds: dict[str, float] = {}
    for name, body in program.regions.items():
        watch.item(name)
        inputs = [torch.randn(shape) for shape in body.section.input_shapes]
        seconds[name] = cost.region(partial(runners[name].run, inputs))
    return seconds
