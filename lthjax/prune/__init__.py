"""Masks for any pytree of parameters: select exactly k weights, prune them, keep them pruned, and count.

A mask is a pytree of the same treedef as the parameters. A leaf that may be pruned has a bool mask
of its own shape, True where the weight is kept; a leaf that may not be pruned has the 0-d mask True.
`ones` decides once which leaves may be pruned, and every other function follows it. Leaves of masks and
parameters are matched by their paths, so the containers may differ.

    from lthjax import prune

    mask = prune.ones(params)
    mask = prune.magnitude(params, mask, 0.2)          # 20 % of what is left, in every layer
    tx = prune.masked(optax.adam(1e-3), mask)          # pruned weights stay exactly 0
    params = prune.apply(initial_params, mask)         # rewind

Paths are the keys from the root to a leaf joined by "/", for example `conv1/kernel`. Every function
is pure; those that take masks work under `jit`, `vmap` and `shard_map`.
"""

from lthjax.prune._accounting import overlap, table
from lthjax.prune._files import Ticket, load, save
from lthjax.prune._masks import Scope, apply, check, density, ones, paths, survivors, totals
from lthjax.prune._optimiser import MaskedState, ScheduledState, mask_of, masked, scheduled, set_mask
from lthjax.prune._rates import count, groups_of, rates_of, rounded_share
from lthjax.prune._rules import erk, grasp, smart_ratio, snip, synflow, uniform
from lthjax.prune._selection import by_score, magnitude, random, remove_counted, shuffle, to_density

__all__ = [
    "MaskedState",
    "ScheduledState",
    "Scope",
    "Ticket",
    "apply",
    "by_score",
    "check",
    "count",
    "density",
    "erk",
    "grasp",
    "groups_of",
    "load",
    "magnitude",
    "mask_of",
    "masked",
    "ones",
    "overlap",
    "paths",
    "random",
    "rates_of",
    "remove_counted",
    "rounded_share",
    "save",
    "scheduled",
    "set_mask",
    "shuffle",
    "smart_ratio",
    "snip",
    "survivors",
    "synflow",
    "table",
    "to_density",
    "totals",
    "uniform",
]
