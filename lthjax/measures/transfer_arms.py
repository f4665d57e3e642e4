"""A moved ticket and its controls: the mask and start weights of each arm, one row of `ARMS` per arm."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import prune
from lthjax.measures import transfer
from lthjax.models import Model, Variables

PyTree = Any
MOVED, CARRIED = "transferred", "transferred_init"
_shuffle = jax.jit(prune.shuffle)
_uniform = jax.jit(prune.uniform, static_argnums=2)


class Moving(NamedTuple):
    """A ticket that is moved to another network.

    Attributes:
        source: the ticket's network.
        target: the network that it is moved to.
        ticket: its mask on the source.
        mask: its mask on the target.
        values: the source's weights at the ticket's rewind step.
        own: the target's weights at its rewind step.
        initial: the target's weights at step 0.
    """

    source: Model
    target: Model
    ticket: PyTree
    mask: PyTree
    values: Variables
    own: Variables
    initial: Variables


class Start(NamedTuple):
    """What an arm is trained from: mask, weights and first step.

    Attributes:
        mask: bool arrays; numpy.
        variables: start weights, not masked, and batch statistics.
        rewound: whether training starts at the target's rewind step rather than at step 0.
    """

    mask: PyTree
    variables: Variables
    rewound: bool = True


class Arm(NamedTuple):
    """An arm of a moved ticket.

    Attributes:
        summary: one line for help.
        start: (ticket, the arm's own random stream) -> its start; None where it would equal that of
            "transferred" bit for bit.
    """

    summary: str
    start: Callable[[Moving, jax.Array], Start | None]


def partner(seed: int, seeds: Sequence[int], pair: str) -> int | None:
    """The source seed whose mask is moved to a target seed.

    Args:
        seed: seed of the target.
        seeds: seeds that have a mask.
        pair: "same": the same seed; "other": the next higher seed or, if there is none, the lowest.

    Returns:
        One of `seeds`; None if there is none.
    """
    if pair == "same":
        return seed if seed in seeds else None
    others = [other for other in seeds if other != seed]
    return min((other for other in others if other > seed), default=min(others, default=None))


def moved_mask(source: Model, target: Model, ticket: PyTree, key: jax.Array) -> PyTree:
    """A ticket's mask on another network, see `transfer.mask`; the key seeds its random choices."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return transfer.mask(source, target, ticket, generator)


def _carried(of: Moving, _: jax.Array) -> Start | None:
    carried = transfer.initial(of.source, of.target, of.ticket, of.values, of.own)
    masked = [jax.tree.map(np.multiply, of.mask, variables.params) for variables in (carried, of.own)]
    return None if transfer.same_values(*masked) else Start(of.mask, carried)


def _reinit(of: Moving, key: jax.Array) -> Start:
    fresh = jax.device_get(of.target.init(key).params)
    return Start(of.mask, Variables(fresh, of.initial.stats), rewound=False)


def _shuffled(of: Moving, key: jax.Array) -> Start:
    return Start(jax.device_get(_shuffle(key, of.mask)), of.own)


def _random_uniform(of: Moving, key: jax.Array) -> Start:
    left, total = prune.totals(of.mask)
    return Start(jax.device_get(_uniform(key, of.own.params, int(left) / total)), of.own)


ARMS: dict[str, Arm] = {
    MOVED: Arm(
        "the source's mask on the target's own weights at its rewind step",
        lambda of, _: Start(of.mask, of.own),
    ),
    CARRIED: Arm("the same mask on the source's weights at its rewind step, carried along", _carried),
    "transferred_reinit": Arm("the same mask on fresh weights, trained from step 0", _reinit),
    "shuffled": Arm("the same mask shuffled within its layers: their densities alone", _shuffled),
    "random_uniform": Arm("a random mask of the same density, the same in every layer", _random_uniform),
}
"""The arms by name; add a row to add an arm."""
