"""Iterative magnitude pruning: train, prune, rewind. Pure: says what to train, is told what came out.

    level 0 is the dense network; then, for every level,
        mask     <- prune the lowest scores among what the mask keeps
        weights  <- the state at the rewind step, under the mask
        final    <- train

Frankle & Carbin 2019 (arXiv 1803.03635), strategy 2; rewinding to k > 0 after Frankle et al. 2019
(arXiv 1903.01611).
"""

from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

import jax

from lthjax import prune, rng
from lthjax.arms import ARMS, Context
from lthjax.config import Lengths, Prune, Study, repeats
from lthjax.criteria import CRITERIA
from lthjax.models import Model, Variables

PyTree = Any
DENSE = "dense"
_apply = jax.jit(prune.apply)


class Cell(NamedTuple):
    """One row of a study's table.

    Attributes:
        seed: the seed.
        chain: the chain's name; "dense" for the dense network, which all chains share.
        level: pruning rounds gone before.
        arm: a key of `ARMS`, or "dense".
        repeat: from 1.
    """

    seed: int
    chain: str
    level: int
    arm: str
    repeat: int = 1


class Chain(NamedTuple):
    """What makes masks: with the study's criterion, scope and rates, the step it rewinds to."""

    name: str
    rewind: int


class Task(NamedTuple):
    """A cell to be trained: from which step, on which weights, under which mask."""

    cell: Cell
    start: int
    variables: Variables
    mask: PyTree


class Ticket(NamedTuple):
    """A trained ticket: its mask and final weights."""

    mask: PyTree
    final: PyTree


def chains(lengths: Lengths) -> list[Chain]:
    """The study's chains, one a rewind step."""
    return [Chain(f"rewind-{k}", k) for k in sorted(lengths.rewind)]


def arms_at(study: Study, level: int) -> list[str]:
    """The arms that run at a level: the ticket, and the controls where they run."""
    controls = not study.control_levels or level in study.control_levels
    return ["ticket", *(arm for arm in study.arms if arm != "ticket" and controls)]


def cells_at(study: Study, seed: int, chain: Chain, level: int) -> list[Cell]:
    """The cells of one seed, chain and level, the ticket first."""
    return [
        Cell(seed, chain.name, level, arm, repeat)
        for arm in arms_at(study, level)
        for repeat in range(1, repeats(study, arm) + 1)
    ]


def cells(study: Study, lengths: Lengths) -> list[Cell]:
    """Every cell of a study: the dense networks first, then by level."""
    dense = [Cell(seed, DENSE, 0, DENSE) for seed in study.seeds]
    return dense + [
        cell
        for level in range(1, study.levels + 1)
        for chain in chains(lengths)
        for seed in study.seeds
        for cell in cells_at(study, seed, chain, level)
    ]


def start_of(cell: Cell, chain: Chain) -> int:
    """The step from which a cell is trained."""
    return chain.rewind if ARMS[cell.arm].start == "rewind" else 0


def rounds(
    study: Study,
    chain: Chain,
    seed: int,
    model: Model,
    initial: Variables,
    origin: Variables,
    parent: Ticket,
    first: int = 1,
) -> Generator[list[Task], Ticket, None]:
    """The rounds of one seed's chain, from level `first` on.

    Args:
        study: the study.
        chain: the chain.
        seed: the seed.
        model: for fresh weights.
        initial: the state at step 0.
        origin: the state at the chain's rewind step.
        parent: the trained ticket of level `first` - 1 (of the dense network for level 1).
        first: where to begin; a chain that was cut is taken up at the first level not complete.

    Yields:
        The tasks of a level, its ticket first; wants the trained ticket sent back.
    """
    for level in range(first, study.levels + 1):
        # On the host, as what comes from the store is: arrays of either kind would compile twice.
        scores, mask = jax.device_get(next_mask(study.prune, origin.params, parent))
        tasks = []
        for cell in cells_at(study, seed, chain, level):
            arm = ARMS[cell.arm]
            key = rng.stream(seed, f"arm/{chain.name}/{cell.arm}", level, cell.repeat)
            context = Context(key, lambda k: model.init(k).params, origin.params, parent.final, mask, scores)
            own = jax.device_get(arm.mask(context))
            params = jax.device_get(_apply(arm.params(context, own), own))
            stats = origin.stats if arm.start == "rewind" else initial.stats
            tasks.append(Task(cell, start_of(cell, chain), Variables(params, stats), own))
        parent = yield tasks


@partial(jax.jit, static_argnums=0)
def next_mask(config: Prune, origin: PyTree, parent: Ticket) -> tuple[PyTree, PyTree]:
    """(scores of the trained weights, mask of the next level).

    Args:
        config: criterion, scope, rates.
        origin: the weights that the chain rewinds to.
        parent: the trained ticket.
    """
    scores = jax.tree.map(CRITERIA[config.criterion], origin, parent.final)
    return scores, prune.by_score(scores, parent.mask, config.rate, scope=config.scope)
