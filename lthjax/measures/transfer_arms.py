"""A moved ticket and its controls: the mask and start weights of each arm, one row of `ARMS` per arm."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import prune
from lthjax.errors import UserError
from lthjax.measures import geography, layers, transfer, wiring
from lthjax.models import Model, Variables

PyTree = Any
MOVED, CARRIED, PERMUTED = "transferred", "transferred_init", "transferred_permuted"
_shuffle = jax.jit(prune.shuffle, static_argnums=2)
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
        ends: the trained weights of the dense networks of the source's and of the target's seed, by which
            their units are matched; None where no arm asks for them.
        granularity: what the ticket was pruned by, as in `config.Prune`.
    """

    source: Model
    target: Model
    ticket: PyTree
    mask: PyTree
    values: Variables
    own: Variables
    initial: Variables
    ends: tuple[PyTree, PyTree] | None = None
    granularity: str = "weight"


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
        matches: whether it needs `Moving.ends`, and networks whose units can be matched: see
            `check_matching`. Such an arm is trained only where it is asked for.
    """

    summary: str
    start: Callable[[Moving, jax.Array], Start | None]
    matches: bool = False


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


def check_matching(source: Model, target: Model) -> None:
    """Checks whether the units of two networks can be matched.

    Raises:
        UserError: their shapes differ, or it is not known which of their layers share units.
    """
    why = "their shapes differ" if not transfer.same_shapes(source, target) else ""
    if not why and not wiring.layers(target):
        why = f"it is not known which layers of {target.name} share units"
    if why:
        raise UserError(
            f"--permuted: the units of {source.name} and {target.name} cannot be matched: {why}; leave it "
            "out, or choose two networks of one kind."
        )


def _permuted(of: Moving, _: jax.Array) -> Start | None:
    """Sparse re-basin (Adnan et al. 2025, arXiv 2505.05143); they match activations, this matches weights."""
    assert of.ends is not None, "the arm says that it matches"
    wires, (theirs, ours) = wiring.layers(of.target), of.ends
    mask = geography.reordered(wires, of.mask, geography.matching(wires, ours, theirs))
    return None if transfer.same_values(mask, of.mask) else Start(mask, of.own)


def _reinit(of: Moving, key: jax.Array) -> Start:
    fresh = jax.device_get(of.target.init(key).params)
    return Start(of.mask, Variables(fresh, of.initial.stats), rewound=False)


def _shuffled(of: Moving, key: jax.Array) -> Start:
    drawn = jax.device_get(_shuffle(key, of.mask, of.granularity))
    if ":" in of.granularity:
        # A layer that was fitted to another shape may have no pattern any more.
        single = jax.device_get(_shuffle(key, of.mask, "weight"))
        keeps = partial(layers.patterned, granularity=of.granularity)
        drawn = jax.tree.map(lambda m, group, one: group if keeps(m) else one, of.mask, drawn, single)
    return Start(drawn, of.own)


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
    "shuffled": Arm(
        "the same mask shuffled within its layers, their densities alone, on the target's own weights",
        _shuffled,
    ),
    "random_uniform": Arm("a random mask of the same density, the same in every layer", _random_uniform),
    PERMUTED: Arm(
        "the source's mask, its units in the order of the target's, on the target's own weights; the dense "
        "networks of the two seeds are matched",
        _permuted,
        matches=True,
    ),
}
"""The arms by name; add a row to add an arm."""
DEFAULT = tuple(name for name, arm in ARMS.items() if not arm.matches)
"""The arms that are trained where none is named."""
