"""Compare whole regions, conversions included, with PyTorch: what a layer alone cannot show."""

from __future__ import annotations

from collections.abc import Mapping

from sparsecomp.cost import RegionTimes
from sparsecomp.program import Program


def slower_regions(
    program: Program, times: Mapping[str, RegionTimes], min_speedup: float = 1.0
) -> dict[str, str]:
    """Site -> reason, for every layer of a region that loses. `times`: by region."""
    refused = {}
    for name, body in program.regions.items():
        region, pytorch = times[name].region, times[name].pytorch
        if region * min_speedup >= pytorch > 0:
            count = len(body.section.layers)
            layers = "this layer" if count == 1 else f"its region of {count} layers"
            reason = (
                f"with layout conversions {layers} would take {region * 1e3:.3f} ms "
                f"against {pytorch * 1e3:.3f} ms in PyTorch"
            )
            refused.update({op.site: reason for op in body.section.layers})
    return refused
