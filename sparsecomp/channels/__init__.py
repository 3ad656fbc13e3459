"""Which channels of a network belong together: what must be removed with what, and where each is read.

A *unit* is the smallest thing that can be removed from a network without another tensor losing its shape: a
filter with its norm, every channel that a residual adds to it, and the input channels that read it; an
attention head; a feed-forward neuron. `coupled_groups` lists units by the parameters they cross, for whoever
prunes; `find_channels` has the whole picture of a graph, for the pass that removes what is dead.

(The idea of coupled groups: Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.)
"""

from sparsecomp.channels.channels import Channels, find_channels
from sparsecomp.channels.groups import Group, Slice, Unit, coupled_groups

__all__ = ["Channels", "Group", "Slice", "Unit", "coupled_groups", "find_channels"]
