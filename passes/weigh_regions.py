"""Compare whole regions, conversions included, with PyTorch: what a layer alone cannot show."""

from __future__ import annotations

from collections.abc import Mapping

from sparsecomp.cost import Cost
from sparsecomp.epilogue import split_steps
from sparsecomp.program import Body, Program
from sparsecomp.section import SectionOp


def pytorch_seconds(program: Program, body: Body, cost: Cost) -> float:
    """What the region's operators take in PyTorch: its layers, what was fused into them, the work between.

    A bias is part of PyTorch's own operators, and so is not counted.
    """
    total = 0.0
    for op in body.section.ops:
        if isinstance(op, SectionOp):
            shape = op.layer.output_shape
            total += program.choices[op.site].dense_seconds or 0.0
        else:
            shape = op.output_shape
            total += cost.work(op)
        fused = sum(step != "bias" for step in split_steps(op.epilogue))
        total += fused * cost.elementwise(shape)
    return total


def slower_regions(
    program: Program, seconds: Mapping[str, float], cost: Cost, min_speedup: float = 1.0
) -> dict[str, str]:
    """Site -> reason, for every layer of a region that loses. `seconds`: region -> its measured time."""
    refused = {}
    for name, body in program.regions.items():
        pytorch = pytorch_seconds(program, body, cost)
        if seconds[name] * min_speedup >= pytorch > 0:
            count = len(body.section.layers)
            layers = "this layer" if count == 1 else f"its region of {count} layers"
            reason = (
                f"with layout conversions {layers} would take {seconds[name] * 1e3:.3f} ms "
                f"against {pytorch * 1e3:.3f} ms in PyTorch"
            )
            refused.update({op.site: reason for op in body.section.layers})
    return refused
