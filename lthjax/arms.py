"""The arms trained at a level: the ticket and its controls, one row of `ARMS` each.

An arm is a leaf of its chain: it is trained once on the level's mask, and nothing is pruned from it. The
final weights of a chain's leader give the next level's mask. `ticket` leads the chains that rewind, and a row
with `leads` leads its own chain. What the arms do after pruning is that of Renda et al. 2020 (arXiv
2003.02389): rewind weights and learning rate (`ticket`), the learning rate alone (`lr_rewind`), or neither
(`finetune`).
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lthjax import prune, supermask
from lthjax.config import Study
from lthjax.criteria import draws_units
from lthjax.models import Model

PyTree = Any
_shuffle = jax.jit(prune.shuffle, static_argnums=2)


class Context(NamedTuple):
    """The inputs of an arm.

    Attributes:
        key: this cell's own random stream.
        init: key -> fresh parameters of the model's initial distribution.
        origin: the parameters that the chain rewinds to (step 0 or step k).
        final: the parameters from which this level's mask was made.
        parent: the mask from which this level's mask was made.
        mask: the ticket's mask at this level.
        scores: the criterion's scores that made the mask; None when a finished run is read and only its
            start weights are needed.
        granularity: what was pruned, as in `config.Prune`.
        order: the paths of parameters in the order of use, as in `models.Model`.
    """

    key: jax.Array
    init: Callable[[jax.Array], PyTree]
    origin: PyTree
    final: PyTree
    parent: PyTree
    mask: PyTree
    scores: PyTree
    granularity: str = "weight"
    order: tuple[str, ...] = ()


class Arm(NamedTuple):
    """How to make a cell's mask and start weights.

    Attributes:
        mask: context -> mask.
        params: (context, mask) -> start weights; the mask is applied to them afterwards.
        train: whether the cell is trained, or evaluated untrained; batch statistics are then computed on its
            own weights.
        start: "rewind" starts at the chain's rewind step and trains the remaining steps; "zero" starts
            at step 0 and trains all steps, for weights that have no state at the rewind step.
        leads: whether it leads its own chain, that is, gives that chain's next mask.
        criterion: the criterion of its own chain, if it is not the study's.
        final: whether its weights are the final ones of the previous level's leader, whose batch statistics
            it then takes, too.
        held: whether every step has the learning rate of the last one.
        scores: context -> start scores of an arm that learns its mask: its weights stay as they are, and of
            every layer as many weights as in its mask take part, those of the highest scores.
        on: the arm that leads the chain that it is a leaf of.
        version: network -> increased when the numbers of its cells change, so that new cells do not come
            beside old ones.
        summary: one line for help and report.
    """

    mask: Callable[[Context], PyTree]
    params: Callable[[Context, PyTree], PyTree]
    train: bool = True
    start: Literal["rewind", "zero"] = "rewind"
    leads: bool = False
    criterion: str | None = None
    final: bool = False
    held: bool = False
    scores: Callable[[Context], PyTree] | None = None
    on: str = "ticket"
    version: Callable[[Model], int] = lambda _: 1
    summary: str = ""


def _ticket_mask(context: Context) -> PyTree:
    return context.mask


def rewound(context: Context, mask: PyTree) -> PyTree:
    """The saved weights at the rewind step."""
    return context.origin


def _trained(context: Context, mask: PyTree) -> PyTree:
    """The final weights of the previous level's leader."""
    return context.final


def _fresh(context: Context, mask: PyTree) -> PyTree:
    return context.init(context.key)


def _rescaled(context: Context, mask: PyTree) -> PyTree:
    """Fresh weights, scaled per unit by the root of its inputs / surviving inputs."""
    return _rescale(context.init(context.key), mask)


@jax.jit
def _rescale(params: PyTree, mask: PyTree) -> PyTree:
    def leaf(w: jax.Array, m: jax.Array) -> jax.Array:
        if not jnp.ndim(m):
            return w
        inputs = tuple(range(w.ndim - 1))
        share = m.mean(axis=inputs, keepdims=True, dtype=w.dtype)
        return w / jnp.sqrt(jnp.where(share > 0, share, 1))

    return jax.tree.map(leaf, params, mask)


def _permuted(context: Context, mask: PyTree) -> PyTree:
    """The survivors' original values, permuted within each layer."""
    return _permute(context.key, context.origin, mask)


@jax.jit
def _permute(key: jax.Array, params: PyTree, mask: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def leaf(key: jax.Array, w: jax.Array, m: jax.Array) -> jax.Array:
        if not jnp.ndim(m):
            return w
        kept = m.ravel()
        places = jnp.argsort(~kept, stable=True)
        drawn = jnp.argsort(jnp.where(kept, jax.random.uniform(key, kept.shape, jnp.float32), 2.0))
        return jnp.zeros(kept.shape, w.dtype).at[places].set(w.ravel()[drawn]).reshape(w.shape)

    permuted = [leaf(k, w, m) for k, w, m in zip(keys, leaves, jax.tree.leaves(mask), strict=True)]
    return jax.tree.unflatten(treedef, permuted)


def _sign_constant(context: Context, mask: PyTree) -> PyTree:
    """The original signs times the standard deviation of the layer's original weights."""
    return jax.tree.map(lambda w, m: jnp.sign(w) * jnp.std(w) if jnp.ndim(m) else w, context.origin, mask)


def _reshuffled_sizes(context: Context, mask: PyTree) -> PyTree:
    """The survivors' original magnitudes, permuted within each layer; every weight keeps its sign."""
    moved = _permute(context.key, jax.tree.map(jnp.abs, context.origin), mask)
    return jax.tree.map(lambda v, w, m: jnp.copysign(v, w) if jnp.ndim(m) else w, moved, context.origin, mask)


def _constant(context: Context, mask: PyTree) -> PyTree:
    """The standard deviation of the layer's original weights, with the signs of fresh weights."""
    fresh, constant = context.init(context.key), _sign_constant(context, mask)
    return jax.tree.map(lambda c, f, m: jnp.copysign(c, f) if jnp.ndim(m) else c, constant, fresh, mask)


def _dynamic(start: Callable[[Context, PyTree], PyTree]) -> Callable[[Context, PyTree], PyTree]:
    """The start weights divided by their layer's density: dynamic weight rescaling of Zhou et al. 2019."""

    def params(context: Context, mask: PyTree) -> PyTree:
        return jax.tree.map(lambda w, m: w / _share(w, m) if jnp.ndim(m) else w, start(context, mask), mask)

    return params


def _share(w: jax.Array, m: jax.Array) -> jax.Array:
    """The density of a layer; 1 where nothing is left."""
    share = m.mean(dtype=w.dtype)
    return jnp.where(share > 0, share, 1)


def _frozen(context: Context, mask: PyTree) -> PyTree:
    """The original signs times Kaiming's standard deviation for the layer's survivors."""

    def leaf(w: jax.Array, m: jax.Array) -> jax.Array:
        if not jnp.ndim(m):
            return w
        inputs = _share(w, m) * (w.size // w.shape[-1])
        return jnp.copysign(jnp.broadcast_to(jnp.sqrt(2 / inputs), w.shape), w)

    return jax.tree.map(leaf, context.origin, mask)


def _sign_only(context: Context, mask: PyTree) -> PyTree:
    """Fresh magnitudes with the original signs."""
    fresh = context.init(context.key)
    return jax.tree.map(lambda f, w, m: jnp.copysign(f, w) if jnp.ndim(m) else w, fresh, context.origin, mask)


def _inverted(context: Context) -> PyTree:
    """The mask that keeps the lowest scores: as many weights per layer as the ticket."""
    opposite = jax.tree.map(_opposite, context.scores)
    if ":" in context.granularity:
        return _fewest(opposite, context)
    of = [prune.survivors(mask, "layer", context.granularity) for mask in (context.parent, context.mask)]
    going = [was - left for (was, _), (left, _) in zip(*of, strict=True)]
    return prune.remove_counted(opposite, context.parent, going, granularity=context.granularity)


def _fewest(scores: PyTree, context: Context) -> PyTree:
    """The N:M mask of the layers that the ticket's pattern prunes, by these scores."""
    kept, group = map(int, context.granularity.split(":"))
    pruned = {
        f"^{re.escape(path)}$": 1 - kept / group
        for path, m in zip(prune.paths(context.mask), jax.tree.leaves(context.mask), strict=True)
        if not m.all()
    }
    return prune.by_score(scores, context.parent, pruned, granularity=context.granularity)


def _opposite(scores: jax.Array) -> jax.Array:
    return ~scores if jnp.issubdtype(scores.dtype, jnp.unsignedinteger) else -scores


def _by_rule(rule: Callable[..., PyTree]) -> Callable[[Context], PyTree]:
    """A random mask by a rule, with the ticket's density."""

    def mask(context: Context) -> PyTree:
        left, total = prune.totals(context.mask)
        prunable = _prunable(context.mask)
        return rule(context.key, context.origin, int(left) / total, prunable=lambda path, _: path in prunable)

    return mask


def _prunable(mask: PyTree) -> list[str]:
    """The paths of the prunable leaves."""
    leaves = zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
    return [path for path, m in leaves if jnp.ndim(m)]


def by_depth(path: str) -> list[tuple[bool, list[tuple[int, str]]]]:
    """Sorts the paths of layers from the input to the output: numbers by value, "output" last."""

    def parts(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

    return [(name == "output", parts(name)) for name in path.split("/")]


def _smart_ratio(context: Context) -> PyTree:
    order = _in_order(_prunable(context.mask), context.order)
    return _by_rule(functools.partial(prune.smart_ratio, order=order))(context)


def _in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Names by an order of use; without one by depth: shipped networks say it in their names."""
    by_name = sorted(names, key=by_depth)
    return sorted(by_name, key=order.index) if {*by_name} <= {*order} else by_name


def _ordered(model: Model) -> int:
    """Version 1 ordered the layers of every network by their names."""
    names = _prunable(prune.ones(jax.eval_shape(model.init, jax.random.key(0)).params))
    return 1 if _in_order(names, model.order) == _in_order(names, ()) else 2


def _fitted(model: Model) -> int:
    """Version 1 took the batch statistics of the unpruned network."""
    return 2 if jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)).stats) else 1


ARMS: dict[str, Arm] = {
    "ticket": Arm(
        _ticket_mask,
        rewound,
        leads=True,
        summary="the ticket: its mask on the weights it is rewound to",
    ),
    "reinit": Arm(
        _ticket_mask,
        _fresh,
        start="zero",
        summary="the ticket's mask on fresh weights of the same distribution, trained from step 0",
    ),
    "random": Arm(
        lambda context: _shuffle(context.key, context.mask, context.granularity),
        rewound,
        summary="a random mask of the ticket's layer-wise densities on the weights it is rewound to",
    ),
    "reinit_rescaled": Arm(
        _ticket_mask,
        _rescaled,
        start="zero",
        summary="as reinit, every unit's weights scaled to its surviving inputs",
    ),
    "reshuffle": Arm(
        _ticket_mask,
        _permuted,
        summary="the ticket's mask, the survivors' values permuted within their layer",
    ),
    "sign_constant": Arm(
        _ticket_mask,
        _sign_constant,
        summary="the ticket's mask on the signs of its weights times their layer's standard deviation",
    ),
    "sign_only": Arm(
        _ticket_mask,
        _sign_only,
        start="zero",
        summary="the ticket's mask on fresh magnitudes with the signs of its weights, trained from step 0",
    ),
    "random_uniform": Arm(
        _by_rule(prune.uniform),
        rewound,
        summary="a random mask of the ticket's density, the same in every layer but for rounding",
    ),
    "random_erk": Arm(
        _by_rule(prune.erk),
        rewound,
        summary="a random mask of the ticket's density, layers by the ERK rule",
    ),
    "random_smart_ratio": Arm(
        _smart_ratio,
        rewound,
        version=_ordered,
        summary="a random mask of the ticket's density, layers by the smart-ratio rule",
    ),
    "invert": Arm(
        _inverted,
        rewound,
        summary="the opposite choice: the previous level's worst survivors stay, as many in every layer",
    ),
    "untrained": Arm(
        _ticket_mask,
        rewound,
        train=False,
        version=_fitted,
        summary="the ticket before training",
    ),
    "untrained_sign_constant": Arm(
        _ticket_mask,
        _sign_constant,
        train=False,
        version=_fitted,
        summary="sign_constant before training",
    ),
    "reinit_chain": Arm(
        _ticket_mask,
        _fresh,
        start="zero",
        leads=True,
        summary="iterative pruning with fresh weights in every round, a chain of its own",
    ),
    "random_chain": Arm(
        _ticket_mask,
        rewound,
        leads=True,
        criterion="random",
        summary="iterative pruning of random weights in every round, a chain of its own",
    ),
    "finetune": Arm(
        _ticket_mask,
        _trained,
        final=True,
        held=True,
        summary="the weights from which the ticket's mask was made, trained on at the last learning rate",
    ),
    "lr_rewind": Arm(
        _ticket_mask,
        _trained,
        final=True,
        summary="the weights from which the ticket's mask was made, at the ticket's learning rates",
    ),
    "finetune_chain": Arm(
        _ticket_mask,
        _trained,
        final=True,
        held=True,
        leads=True,
        summary="iterative pruning with finetune in every round, a chain of its own",
    ),
    "lr_rewind_chain": Arm(
        _ticket_mask,
        _trained,
        final=True,
        leads=True,
        summary="iterative pruning with lr_rewind in every round, a chain of its own",
    ),
    "continued": Arm(
        _ticket_mask,
        _trained,
        start="zero",
        final=True,
        leads=True,
        summary="iterative pruning of weights that are never reset, all steps in every round, its own chain",
    ),
    "continued_reset": Arm(
        _ticket_mask,
        rewound,
        on="continued",
        summary="the mask of continued on the weights that a ticket is rewound to",
    ),
    "reshuffle_sizes": Arm(
        _ticket_mask,
        _reshuffled_sizes,
        summary="the ticket's mask, the survivors' magnitudes permuted within their layer, their signs kept",
    ),
    "constant": Arm(
        _ticket_mask,
        _constant,
        start="zero",
        summary="sign_constant with random signs, trained from step 0",
    ),
    "reinit_rescaled_layer": Arm(
        _ticket_mask,
        _dynamic(_fresh),
        start="zero",
        summary="as reinit, every layer divided by its density",
    ),
    "sign_only_rescaled": Arm(
        _ticket_mask,
        _dynamic(_sign_only),
        start="zero",
        summary="sign_only, every layer divided by its density",
    ),
    "sign_constant_rescaled": Arm(
        _ticket_mask,
        _dynamic(_sign_constant),
        summary="sign_constant, every layer divided by its density",
    ),
    "constant_rescaled": Arm(
        _ticket_mask,
        _dynamic(_constant),
        start="zero",
        summary="constant, every layer divided by its density",
    ),
    "untrained_rescaled": Arm(
        _ticket_mask,
        _dynamic(rewound),
        train=False,
        version=_fitted,
        summary="the ticket before training, every layer divided by its density",
    ),
    "untrained_sign_constant_rescaled": Arm(
        _ticket_mask,
        _dynamic(_sign_constant),
        train=False,
        version=_fitted,
        summary="sign_constant before training, every layer divided by its density",
    ),
    "edge_popup": Arm(
        _ticket_mask,
        _frozen,
        scores=lambda context: supermask.scores(context.key, context.origin),
        summary="a mask of the ticket's layer-wise densities, learned by edge-popup on a constant with the "
        "signs of the ticket's weights",
    ),
}
"""The arms by name; add a row to add one."""
SHIPPED = (*ARMS,)
"""The arms of the package, without those that a config file adds."""


def versions(study: Study, model: Model) -> dict[str, int]:
    """A study's arms whose cells earlier versions made otherwise, and the version of today's."""
    known = {name: ARMS[name].version(model) + _redrawn(name, study) for name in study.arms if name in ARMS}
    return {name: version for name, version in known.items() if version > 1}


def _redrawn(name: str, study: Study) -> bool:
    """Whether an arm's masks are of a chain that draws units by a criterion of its own, not the study's."""
    leader = ARMS.get(name if ARMS[name].leads else ARMS[name].on)
    own = leader.criterion if leader else None
    return own is not None and draws_units(own, study.prune.scope, study.prune.granularity)
