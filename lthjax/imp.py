"""Iterative magnitude pruning: train, prune, rewind. Pure: it yields training tasks and receives results.

    level 0 is the dense network; then, for every level,
        mask     <- prune the survivors with the lowest scores
        weights  <- the state at the rewind step, under the mask
        final    <- train

Source: Frankle & Carbin 2019 (arXiv 1803.03635), strategy 1 of their appendix B: every round starts from
reset weights. Their strategy 2, which continues from the trained weights and resets them once, when the mask
is found, is the arm `continued_reset` on the chain that `continued` leads. Rewinding to k > 0 is from Frankle
et al. 2019 (arXiv 1903.01611). Every level has its own order of the data; a ticket rewound to k starts at its
batch k.
"""

from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lthjax import prune, rng
from lthjax.arms import ARMS, Context
from lthjax.config import Lengths, Study, repeats
from lthjax.criteria import CRITERIA, Weights, draws_units
from lthjax.errors import UserError
from lthjax.models import Model, Variables
from lthjax.prune._selection import going_of, not_finite, random_scores
from lthjax.prune._units import any_alive

PyTree = Any
Scope = prune.Scope
DENSE = "dense"
_TICKET, _REWIND = "ticket", "rewind"
_apply = jax.jit(prune.apply)


class Cell(NamedTuple):
    """One row of a study's table.

    Attributes:
        seed: the seed.
        chain: the chain's name; "dense" for the dense network, which all chains share.
        level: number of pruning rounds before it.
        arm: a key of `ARMS`, or "dense".
        repeat: number of the repeat, from 1.
    """

    seed: int
    chain: str
    level: int
    arm: str
    repeat: int = 1


class Chain(NamedTuple):
    """A sequence of masks, one per level; scope and rates are the study's.

    Attributes:
        name: `rewind-K`, or `ARM-K` if another arm leads.
        rewind: K, the step to which it rewinds.
        leader: the arm whose final weights give the next mask.
        criterion: a key of `CRITERIA`.
    """

    name: str
    rewind: int
    leader: str
    criterion: str


class How(NamedTuple):
    """How survivors are chosen: as the fields of `config.Prune`, and every leaf's group in scope "group"."""

    criterion: str
    scope: Scope
    granularity: str = "weight"
    groups: tuple[int, ...] = ()
    rate: Any = 0.0


class Task(NamedTuple):
    """A cell to train.

    Attributes:
        cell: the cell.
        start, stop: its first step, and one past its last.
        variables: start weights and batch statistics.
        mask: its mask.
        held: whether every step has the learning rate of the last one.
        scores: start scores, if a mask is learned and the weights stay as they are; see `supermask`.
    """

    cell: Cell
    start: int
    stop: int
    variables: Variables
    mask: PyTree
    held: bool = False
    scores: PyTree = None


class Leader(NamedTuple):
    """The trained leader of a level: its mask, final weights and final batch statistics (or ())."""

    mask: PyTree
    final: PyTree
    stats: PyTree = ()


class Statistics(NamedTuple):
    """Batch statistics that a cell may start from, or {}: at step 0, at the rewind step, of the leader."""

    zero: PyTree
    rewind: PyTree
    final: PyTree


def chains(study: Study, lengths: Lengths) -> list[Chain]:
    """The study's chains: one per rewind step, then those of other arms that lead a chain.

    An arm that always starts at step 0 has only one chain.
    """
    leaders = [_TICKET, *(arm for arm in study.arms if arm != _TICKET and ARMS[arm].leads)]
    steps = sorted(lengths.rewind)
    return [
        Chain(
            f"{_REWIND if arm == _TICKET else arm}-{k}",
            k,
            arm,
            ARMS[arm].criterion or study.prune.criterion,
        )
        for arm in leaders
        for k in (steps if ARMS[arm].start == "rewind" else steps[:1])
    ]


def leader(chain: str) -> str:
    """The arm that leads the chain of that name; "dense" for the dense network's chain."""
    made_by = chain.rpartition("-")[0] or chain
    return _TICKET if made_by == _REWIND else made_by


def rewind_of(chain: str) -> int:
    """The step that the chain of that name rewinds to; 0 for the dense network's chain."""
    return int(chain.rpartition("-")[2]) if chain != DENSE else 0


def chain_of(study: Study, name: str) -> Chain:
    """The chain of that name in a study, even if its config no longer asks for it."""
    arm = leader(name)
    return Chain(name, rewind_of(name), arm, ARMS[arm].criterion or study.prune.criterion)


def criterion_of(study: Study, chain: str) -> str:
    """The criterion of the chain of that name, even if the arm that leads it is not known here."""
    arm = ARMS.get(leader(chain))
    return (arm and arm.criterion) or study.prune.criterion


def parent_of(cell: Cell) -> Cell:
    """The previous level's leader, whose final weights gave a cell's mask."""
    if cell.level == 1:
        return Cell(cell.seed, DENSE, 0, DENSE)
    return Cell(cell.seed, cell.chain, cell.level - 1, leader(cell.chain))


def arms_at(study: Study, chain: Chain, level: int) -> list[str]:
    """A chain's arms at a level: its leader and, at a level with controls, its leaves."""
    runs = not study.control_levels or level in study.control_levels
    leaves = [arm for arm in study.arms if not ARMS[arm].leads and ARMS[arm].on == chain.leader]
    return [chain.leader, *(leaves if runs else [])]


def cells_at(study: Study, seed: int, chain: Chain, level: int) -> list[Cell]:
    """The cells of one seed, chain and level, the leader first."""
    return [
        Cell(seed, chain.name, level, arm, repeat)
        for arm in arms_at(study, chain, level)
        for repeat in range(1, repeats(study, arm) + 1)
    ]


def cells(study: Study, lengths: Lengths) -> list[Cell]:
    """Every cell of a study: the dense networks first, then by level."""
    dense = [Cell(seed, DENSE, 0, DENSE) for seed in study.seeds]
    return dense + [
        cell
        for level in range(1, study.levels + 1)
        for chain in chains(study, lengths)
        for seed in study.seeds
        for cell in cells_at(study, seed, chain, level)
    ]


def span_of(cell: Cell, chain: Chain, total: int) -> tuple[int, int]:
    """(first step, one past the last) of a cell's training; equal if it is not trained."""
    start = chain.rewind if ARMS[cell.arm].start == "rewind" else 0
    return start, total if ARMS[cell.arm].train else start


def rounds(
    study: Study,
    lengths: Lengths,
    chain: Chain,
    seed: int,
    model: Model,
    initial: Variables,
    origin: Variables,
    parent: Leader,
    batch: tuple[Any, Any],
    first: int = 1,
) -> Generator[list[Task], Leader, None]:
    """The rounds of one seed's chain, from level `first` on.

    Args:
        study: the study.
        lengths: its durations in steps.
        chain: the chain.
        seed: the seed.
        model: for fresh weights, and for criteria that use gradients.
        initial: the state at step 0.
        origin: the state at the chain's rewind step.
        parent: the trained leader of level `first` - 1 (the dense network for level 1).
        batch: (images float32 [B, H, W, C], labels int32 [B]), for criteria that use gradients.
        first: the first level; an interrupted chain continues at its first incomplete level.

    Yields:
        The tasks of a level, its leader first; expects the trained leader to be sent back.

    Raises:
        UserError: the criterion gives scores that are not finite.
    """
    for level in range(first, study.levels + 1):
        key = rng.stream(seed, f"criterion/{chain.name}", level)
        going = removals(study, level, parent.mask)
        leader = parent._replace(stats=())  # not needed for scores
        how = how_of(study, chain.criterion, parent.mask)
        made = next_mask(how, model, key, origin, leader, batch, going)
        # On the host, like arrays from the store: two kinds of arrays would compile twice.
        scores, mask = jax.device_get(made)
        of_leaf = going_of(list(going), len(jax.tree.leaves(mask)), how.scope, how.groups)
        for path, bad, left in not_finite(scores, parent.mask, of_leaf):
            raise UserError(
                f"prune.criterion: {chain.criterion} gives {bad:,} of the {left:,} weights left in {path} a "
                f"score that is NaN or infinite (seed {seed}, {chain.name}, level {level}), which cannot be "
                "ranked; take another criterion, or a lower optim.lr if weights or gradients overflow."
            )
        tasks, stats = [], Statistics(initial.stats, origin.stats, parent.stats)
        for cell in cells_at(study, seed, chain, level):
            arm = ARMS[cell.arm]
            context = Context(
                key_of(cell),
                lambda k: model.init(k).params,
                origin.params,
                parent.final,
                parent.mask,
                mask,
                scores,
                study.prune.granularity,
                model.order,
            )
            own = jax.device_get(arm.mask(context))
            tasks.append(task(cell, chain, lengths.total, context, own, stats))
        parent = yield tasks


def task(cell: Cell, chain: Chain, total: int, context: Context, mask: PyTree, stats: Statistics) -> Task:
    """The training inputs of a cell, given its mask.

    Args:
        cell: the cell.
        chain: its chain.
        total: steps of a full training run.
        context: the inputs of its arm.
        mask: its own mask.
        stats: the batch statistics that it may start from.
    """
    arm = ARMS[cell.arm]
    whole, scores = arm.params(context, mask), arm.scores and jax.device_get(arm.scores(context))
    params = jax.device_get(whole if scores else _apply(whole, mask))
    variables = Variables(params, stats.final if arm.final else getattr(stats, arm.start))
    return Task(cell, *span_of(cell, chain, total), variables, mask, arm.held, scores)


def key_of(cell: Cell) -> jax.Array:
    """The cell's own random stream, from which its arm draws mask and weights."""
    return rng.stream(cell.seed, f"arm/{cell.chain}/{cell.arm}", cell.level, cell.repeat)


def schedule_at(study: Study, level: int) -> dict[str, Any]:
    """The pruning of a level: {"rate": share of the survivors to remove} or {"density": target density}.

    Densities approach the last level's density. Geometric: d**(l/L). Linear: 1 - (1 - d) l/L. Cubic:
    1 - (1 - d) (1 - (1 - l/L)**3), of Zhu & Gupta 2017 (arXiv 1710.01878).
    """
    config = study.prune
    if config.density is None:
        return {"rate": config.rates[level - 1] if config.rates else config.rate}
    part, gone = level / study.levels, 1 - config.density
    if level == study.levels:
        return {"density": config.density}
    if config.course == "geometric":
        return {"density": config.density**part}
    return {"density": 1 - gone * (part if config.course == "linear" else 1 - (1 - part) ** 3)}


def how_of(study: Study, criterion: str, mask: PyTree) -> How:
    """How a study chooses survivors by that criterion."""
    config = study.prune
    groups = prune.groups_of(config.rate, prune.paths(mask)) if config.scope == "group" else ()
    return How(criterion, config.scope, config.granularity, tuple(groups), config.rate)


def removals(study: Study, level: int, mask: PyTree) -> np.ndarray:
    """The number of weights (units, where units are pruned) that a level removes from every leaf.

    In scope "group" it is from every group, in scope "global" from all leaves. Of N:M patterns it counts the
    weights.

    Args:
        study: for the schedule.
        level: from 1.
        mask: the previous level's mask.

    Returns:
        int32 [leaves], [groups] or [1].
    """
    chosen, how = how_of(study, "", mask), schedule_at(study, level)
    whole = "weight" if ":" in chosen.granularity else chosen.granularity
    sizes = [(int(left), size) for left, size in prune.survivors(mask, chosen.scope, whole, chosen.groups)]
    return np.array(_going(chosen.scope, how, sizes, prune.paths(mask)), np.int32)


def _going(scope: Scope, how: dict[str, Any], sizes: list[tuple[int, int]], paths: list[str]) -> list[int]:
    """As `removals`, of (left, all) of every leaf or group."""
    if "density" in how:
        return [max(left - int(prune.count(how["density"], size)), 0) for left, size in sizes]
    grouped = scope == "group" and isinstance(how["rate"], tuple)
    rates = [r for _, r in how["rate"]] if grouped else prune.rates_of(how["rate"], paths)
    return [int(prune.count(r, left)) for r, (left, _) in zip(rates, sizes, strict=False)]


def planned(study: Study, model: Model) -> list[float] | None:
    """The density of every level from 1 on, before anything is trained.

    None where units of several layers are ranked together: their weights differ in number.
    """
    mask = prune.ones(jax.eval_shape(model.init, jax.random.key(0)).params)
    chosen = how_of(study, "", mask)
    whole = "weight" if ":" in chosen.granularity else chosen.granularity
    if whole != "weight" and chosen.scope != "layer":
        return None
    counted: list[int] = []

    def count(mask: PyTree) -> None:
        counted.extend(size for _, size in prune.survivors(mask, chosen.scope, whole, chosen.groups))

    jax.eval_shape(count, mask)  # to count them all would compile a program for every shape
    sizes = [(size, size) for size in counted]
    leaves = [leaf.size if leaf.ndim else 0 for leaf in jax.tree.leaves(mask)]
    weights = leaves if chosen.scope == "layer" else counted
    found = []
    for level in range(1, study.levels + 1):
        going = _going(chosen.scope, schedule_at(study, level), sizes, prune.paths(mask))
        sizes = [(left - gone, size) for (left, size), gone in zip(sizes, going, strict=True)]
        gone = sum(w * (1 - left / size) for w, (left, size) in zip(weights, sizes, strict=True) if size)
        found.append(1 - gone / sum(leaves))
    return found


@partial(jax.jit, static_argnums=(0, 1))
def next_mask(
    how: How | tuple[str, Scope],
    model: Model,
    key: jax.Array,
    origin: Variables,
    parent: Leader,
    batch: tuple[jax.Array, jax.Array],
    going: jax.Array,
) -> tuple[PyTree, PyTree]:
    """The scores and the mask of the next level.

    Args:
        how: criterion and scope, and what else `How` has.
        model: for criteria that use gradients.
        key: for the criterion "random".
        origin: the state that the chain rewinds to.
        parent: the trained leader.
        batch: for criteria that use gradients.
        going: numbers of weights to remove, from `removals`.
    """
    images, labels = batch

    def logits(params: PyTree, images: jax.Array) -> jax.Array:
        return model.apply(params, origin.stats, images, False)[0]

    def loss(params: PyTree, temperature: float = 1.0) -> jax.Array:
        # As in training, batches are normalised by their own statistics.
        seen = model.apply(params, origin.stats, images, True)[0] / temperature
        return optax.softmax_cross_entropy_with_integer_labels(seen, labels).mean()

    weights = Weights(
        prune.apply(origin.params, parent.mask),
        prune.apply(parent.final, parent.mask),
        key,
        loss,
        logits,
        (1, *model.input_shape),
        parent.mask,
    )
    how = How(*how)
    if draws_units(how.criterion, how.scope, how.granularity):
        return _drawn_units(key, parent.mask, list(going), how)
    scores = CRITERIA[how.criterion].score(weights)
    if ":" in how.granularity:
        return scores, prune.by_score(scores, parent.mask, how.rate, granularity=how.granularity)
    return scores, prune.remove_counted(
        scores, parent.mask, list(going), scope=how.scope, granularity=how.granularity, groups=how.groups
    )


def _drawn_units(key: jax.Array, mask: PyTree, going: list[Any], how: How) -> tuple[PyTree, PyTree]:
    """Scores and mask as `next_mask` returns them, with one draw a unit, which all of its weights have."""
    units = jax.tree.map(lambda m: any_alive(m) if m.ndim else m, mask)
    drawn = random_scores(key, units)
    kept = prune.remove_counted(drawn, units, going, scope=how.scope, groups=how.groups)
    scores = jax.tree.map(lambda score, m: jnp.broadcast_to(score, m.shape), drawn, mask)
    return scores, jax.tree.map(lambda unit, m: unit & m, kept, mask)
