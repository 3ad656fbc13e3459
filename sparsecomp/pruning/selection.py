"""Which groups of a weight go, given how much each is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecomp.train.pattern import Pattern, largest


def kept_groups(scores: Tensor, pattern: Pattern, sparsity: float, *, by_row: bool = False) -> Tensor:
    """bool, groups down x groups across: all but the least worth; at least one is kept.

    N:M keeps the N largest of each M. Ties go to the first. `by_row` removes the same share of each row of groups,
    one more or less, as Wanda does (Sun et al. 2023, section 3): where there is one group in a row it compares all.
    """
    limits = pattern.n_of_m
    if limits:
        lines = pattern.lines(scores, -1.0)
        kept = largest(lines, torch.full((len(lines), 1), limits[0], device=lines.device))
        return pattern.unlined(kept, (scores.shape[0], scores.shape[1]))
    count = removed_count(sparsity, scores.numel())
    if not by_row or scores.shape[1] == 1:
        return ~lowest(scores, count)
    return _by_row(scores, count)


def lowest(costs: Tensor, count: int) -> Tensor:
    """bool, of the same shape: the `count` smallest; ties go to the first."""
    flat = costs.flatten()
    if count <= 0 or count >= len(flat):
        return torch.full_like(costs, count > 0, dtype=torch.bool)
    # The count-th smallest is found in linear time; sorting millions of costs took longer than all else that OBS does.
    threshold = flat.kthvalue(count).values
    found = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    found[ties[: count - int(found.count_nonzero())]] = True
    return found.reshape(costs.shape)


def removed_count(sparsity: float, groups: int) -> int:
    """How many groups make that sparsity; one is always left."""
    return max(0, min(groups - 1, round(sparsity * groups)))


def _by_row(scores: Tensor, count: int) -> Tensor:
    """The same number of each row; what is left over, from the rows whose next group is worth least."""
    each, over = divmod(count, len(scores))
    order = scores.argsort(dim=1, stable=True)
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept.scatter_(1, order[:, :each], False)
    if over:
        following = order[:, each : each + 1]
        worth = scores.gather(1, following).flatten()
        chosen = worth.argsort(stable=True)[:over]
        kept[chosen, following[chosen, 0]] = False
    return kept
