"""The passes, in the order they run. Each file holds one pass: Program -> Program. (`weigh_regions` holds the
comparison that sends layers back to `choosing`; `drop_branches` and `cut_units` are what `slim` repeats.)

To add a pass: a file here with a frozen dataclass that has a `name` and is callable, a line in one of the
functions below, a test file in `tests/passes/`. To teach a pass a new operator: one function and one line in its table
(`find_layers.MATCHERS`, `fuse_epilogues.RULES`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sparsecomp.choice import Choice
from sparsecomp.cost import Cost
from sparsecomp.layer import Layer
from sparsecomp.passes.choose_kernels import ChooseKernels
from sparsecomp.passes.find_layers import FindLayers
from sparsecomp.passes.find_work import FindWork
from sparsecomp.passes.fold_constants import FoldConstants
from sparsecomp.passes.form_attention import FormAttention
from sparsecomp.passes.fuse_epilogues import FuseEpilogues
from sparsecomp.passes.keep_choices import KeepChoices
from sparsecomp.passes.keep_token_shape import KeepTokenShape
from sparsecomp.passes.measure_weights import MeasureWeights
from sparsecomp.passes.outline_regions import OutlineRegions
from sparsecomp.passes.read_parts import ReadParts
from sparsecomp.passes.recognise_composites import RecogniseComposites
from sparsecomp.passes.remove_copies import RemoveCopies
from sparsecomp.passes.rewrite_sparse import Packed, RewriteSparse
from sparsecomp.passes.settle_masks import SettleMasks
from sparsecomp.passes.slim import Slim
from sparsecomp.pipeline import Pass
from sparsecomp.target import Target


def analysis(
    inputs: tuple[Tensor, ...], skip: tuple[str, ...] = (), target: Target | None = None
) -> tuple[Pass, ...]:
    """What is dead and goes; what is left: layers and the structure of their zeros.

    On a GPU the graph around the layers stays as PyTorch has it: nothing is slimmed, no composite is recognised.
    """
    if target is not None and target.kind == "cuda":
        return (
            RemoveCopies(),
            ReadParts(),
            FoldConstants(),
            FindLayers(inputs, skip, target.dtypes),
            MeasureWeights(),
        )
    return (
        RemoveCopies(),
        ReadParts(),
        SettleMasks(),
        RecogniseComposites(),
        FoldConstants(),
        Slim(inputs, skip),
        FindLayers(inputs, skip),
        MeasureWeights(),
    )


def choosing(
    cost: Cost,
    min_speedup: float = 1.0,
    refused: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda layer: None,
) -> tuple[Pass, ...]:
    """What is decided, by measured time."""
    return (ChooseKernels(cost, min_speedup, refused, progress),)


def keeping(settled: Mapping[Layer, Choice]) -> tuple[Pass, ...]:
    """What was decided before."""
    return (KeepChoices(settled),)


def rewriting(
    prefix: str,
    inputs: tuple[Tensor, ...],
    packed: Packed | None = None,
    target: Target | None = None,
) -> tuple[Pass, ...]:
    """What is made of it: primitives, fused and grouped into regions. `packed` is kept from one time to the next.

    On a GPU each layer is a region of its own, and what lies between is PyTorch's.
    """
    if target is not None and target.kind == "cuda":
        return (
            RewriteSparse({} if packed is None else packed),
            FuseEpilogues(),
            OutlineRegions(prefix, apart=True),
        )
    return (
        RewriteSparse({} if packed is None else packed),
        KeepTokenShape(),
        FuseEpilogues(),
        FormAttention(),
        FindWork(inputs),
        OutlineRegions(prefix),
    )
