"""How a sparsity of the whole model is distributed over its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparsecomp.errors import InputError
from sparsecomp.train.schedule import check_share

DISTRIBUTIONS = ("uniform", "erk")


def layer_sparsities(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: str
) -> dict[str, float]:
    """The sparsity of each layer such that `sparsity` of all weights are zero.

    Args:
        shapes: Of each weight: outputs, inputs, and for a convolution the sizes of its kernel.
        sparsity: At least 0, below 1.
        distribution: "uniform" gives all the same. "erk" (Erdős-Rényi kernel) makes a layer's density proportional
            to sum(shape) / prod(shape), so that large layers are sparser; a layer that would need more than all
            its weights stays dense and the others make up for it. Mocanu et al. 2018; Evci et al. 2020, section 3.

    Raises:
        InputError: there is no such distribution or sparsity.
    """
    check_share("sparsity", sparsity)
    if distribution == "uniform":
        return dict.fromkeys(shapes, sparsity)
    if distribution != "erk":
        raise InputError(
            f"distribution {distribution!r} is not known. Use one of {', '.join(DISTRIBUTIONS)}."
        )
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(1, sizes[name]) for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        left = [name for name in shapes if name not in dense]
        budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        epsilon = budget / sum(raw[name] * sizes[name] for name in left)
        over = [name for name in left if epsilon * raw[name] > 1]
        if not over:
            return {name: 0.0 if name in dense else 1 - epsilon * raw[name] for name in shapes}
        largest = max(raw[name] for name in over)
        dense.update(name for name in over if raw[name] == largest)
    return dict.fromkeys(shapes, 0.0)
