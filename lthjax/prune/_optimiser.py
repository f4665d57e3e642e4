"""Optimisers that keep pruned weights at 0, with a mask that is fixed, replaced, or pruned on a schedule."""

import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lthjax.prune._lowest import absolute
from lthjax.prune._masks import (
    PyTree,
    Scope,
    apply,
    check_bool,
    covers,
    is_key,
    matched,
    ones,
    paths,
    survivors,
    unboxed,
)
from lthjax.prune._names import Keys, path_of
from lthjax.prune._placing import all_true, placed
from lthjax.prune._rates import Number, check_density, count, warn_of_nothing
from lthjax.prune._selection import remove_counted

Prunable = str | Callable[[str, jax.Array], bool] | None
Criterion = Literal["magnitude"] | Callable[[PyTree, PyTree], PyTree]
Course = Number | Callable[[Fraction], Number]


class MaskedState(NamedTuple):
    """The state of `masked(optimiser)`, which holds its mask.

    Attributes:
        mask: a mask in the containers of the parameters.
        inner: the optimiser's own state.
    """

    mask: PyTree
    inner: Any


class ScheduledState(NamedTuple):
    """The state of `scheduled`.

    Attributes:
        step: updates so far, int32 of shape ().
        masked: mask and optimiser's state.
    """

    step: jax.Array
    masked: MaskedState


def masked(
    optimiser: optax.GradientTransformation, mask: PyTree | None = None, *, prunable: Prunable = None
) -> optax.GradientTransformationExtraArgs:
    """An optimiser under which pruned weights are exactly 0 after every step.

    The gradient and the parameters are masked before the optimiser sees them, so neither momentum nor
    weight decay brings a weight back. The update takes a pruned weight from any finite value to 0. Moments
    that start at 0 stay exactly 0 for pruned weights, if the state comes from this transformation's own
    `init` or from one with the same mask, and the optimiser's own update of a moment takes 0 to 0. It does
    not where it adds a constant or noise (`adafactor`, `adabelief`, `adamax`), subtracts a mean
    (`centralize`), or evaluates the loss itself (the line search of `lbfgs`). Moments that start elsewhere
    (`adagrad`, `yogi`, `rprop`) are not 0. Weights are 0 under all of those, too. (`optax.masked` differs:
    it leaves out whole leaves.)

    It must be the outermost: what follows it in an `optax.chain` and adds to updates, such as noise or
    weight decay, brings weights back. `prune.check` finds that.

    Args:
        optimiser: any optax gradient transformation, all of it: `masked(optax.chain(...), mask)`.
        mask: the mask; may be traced. Its leaves are matched by path if the trees' containers differ. So
            the result works with `nnx.Optimizer`, and within `optax.masked` and
            `optax.multi_transform`, which leave out leaves of the parameters. Without a mask the state
            holds it: at first the one that keeps everything, then what `set_mask` puts there, so that one
            compiled step serves all masks.
        prunable: as for `prune.ones`, for a mask in the state.

    Returns:
        A gradient transformation whose `update` needs the parameters, and passes on any further
        arguments. With a mask its state is that of the optimiser, without one a `MaskedState`.

    Raises:
        ValueError: both a mask and prunable are given, or no optimiser; or, at `init` and `update`, the trees
            differ or a leaf of the mask is of floats, or False without dimensions.
    """
    if mask is not None and prunable is not None:
        raise ValueError("prunable: it is for a mask in the state; this optimiser was given its mask.")
    if not (hasattr(optimiser, "init") and hasattr(optimiser, "update")):
        raise ValueError(
            f"optimiser: {optimiser!r} is no transformation of optax; give one, for example optax.adam(1e-3)."
        )
    optimiser = optax.with_extra_args_support(optimiser)

    def init(params: PyTree) -> Any:
        own = ones(params, prunable) if mask is None else mask
        inner = optimiser.init(apply(_trainable(params, "params"), own))
        return MaskedState(own, inner) if mask is None else inner

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("params: prune.masked needs them: update(gradients, state, params).")
        own, inner = state if mask is None else (mask, state)
        params = _trainable(params, "params")
        gradients = apply(matched(params, _trainable(updates, "gradients"), "gradients"), own)
        stepped, inner = optimiser.update(gradients, inner, apply(params, own), **extra)
        exact = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), matched(stepped, own), stepped, params)
        return exact, MaskedState(own, inner) if mask is None else inner

    return optax.GradientTransformationExtraArgs(init, update)


def mask_of(state: Any) -> PyTree:
    """The mask in the state of `masked(optimiser)` or of `scheduled`, wherever in a chain it is.

    Within `optax.masked` or `optax.multi_transform` it has no leaf where these leave one out; beside the
    parameters, functions of `lthjax.prune` take it as True there.

    Args:
        state: an optimiser's state, for example the `opt_state` of a TrainState or of an nnx.Optimizer.

    Raises:
        ValueError: the state holds no mask, or more than one.
    """
    found = list(_masked_states(state))
    if len(found) != 1:
        raise ValueError(f"state: it holds {len(found) or 'no'} mask{'s' * (len(found) > 1)}; {_WHERE}")
    return found[0].mask


def set_mask(state: Any, mask: PyTree) -> Any:
    """The optimiser's state with another mask; moments of weights that it prunes become 0.

    Moments are found in leaves that are shaped like parameters, not in those of `optax.flatten`.

    The next update takes the pruned weights to 0. Works under `jit`; shapes and treedef of the state stay
    as they are, so that a compiled step is not compiled again.

    Args:
        state: a state of `masked(optimiser)` or `scheduled`, or one that holds it, as that of a chain.
        mask: the new mask, in any containers; a leaf 0-d True keeps its whole leaf. It may bring weights
            back, which start with moments of 0.

    Raises:
        ValueError: the state holds no mask, or the mask has other leaves or shapes than the one in it, or a
            leaf of floats, or one that is False without dimensions.
    """
    if not list(_masked_states(state)):
        raise ValueError(f"state: it holds no mask; {_WHERE}")

    def replaced(node: Any) -> Any:
        return _with_mask(node, mask) if isinstance(node, MaskedState) else node

    return jax.tree.map(replaced, state, is_leaf=lambda node: isinstance(node, MaskedState))


_WHERE = "it is there in the state of prune.masked(optimiser), without a mask, and of prune.scheduled."


def _masked_states(state: Any) -> Iterator[MaskedState]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, MaskedState))
    return (node for node in nodes if isinstance(node, MaskedState))


def _with_mask(state: MaskedState, mask: PyTree) -> MaskedState:
    mask = matched(state.mask, mask, of="mask in the state", shapes=False)
    check_bool(mask, integers=True)
    for path, old, new in zip(paths(mask), jax.tree.leaves(state.mask), jax.tree.leaves(mask), strict=True):
        if jnp.ndim(new) and jnp.shape(new) != jnp.shape(old):
            allowed = jnp.shape(old) if jnp.ndim(old) else "0-d, as this leaf is not prunable there"
            raise ValueError(f"mask: leaf {path!r} has shape {jnp.shape(new)}; in the state it is {allowed}.")
    whole = jax.tree.map(
        lambda old, new: jnp.asarray(new, bool) if jnp.shape(new) == jnp.shape(old) else all_true(old) & new,
        state.mask,
        mask,
    )
    return MaskedState(whole, _without_moments(state.inner, whole))


def _without_moments(inner: Any, mask: PyTree) -> Any:
    """An optimiser's state with 0 where the mask prunes, in the leaves that are shaped like parameters.

    Such leaves are those of a subtree in the parameters' containers, or with all their leaves but for those
    that `optax.masked` left out. Elsewhere one is a leaf whose path ends in a parameter's path and whose
    shape is the parameter's, as `0/mu/dense/kernel` for `dense/kernel`.
    """
    containers: Any = jax.tree.structure(mask)
    masks = {unboxed(path): m for path, m in zip(paths(mask), jax.tree.leaves(mask), strict=True)}

    def alike(node: Any) -> bool:
        return bool(containers == jax.tree.structure(node)) or covers(node, mask)

    def zeroed(leaf: Any, m: Any) -> Any:
        if not jnp.ndim(m) or jnp.shape(m) != jnp.shape(leaf):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.where(placed(m, leaf), leaf, jnp.zeros_like(leaf))

    def cleared(keys: Keys, node: Any) -> Any:
        if alike(node):
            return jax.tree.map(zeroed, node, matched(node, mask, shapes=False, place=False))
        parts = unboxed(path_of(keys)).split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts) + 1))
        m = next((masks[end] for end in ends if end in masks), None)
        return node if m is None else zeroed(node, m)

    return jax.tree_util.tree_map_with_path(cleared, inner, is_leaf=alike)


def scheduled(
    optimiser: optax.GradientTransformation,
    criterion: Criterion,
    course: Course,
    begin: int,
    end: int,
    every: int,
    *,
    scope: Scope = "layer",
    granularity: str = "weight",
    prunable: Prunable = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that prunes while it trains, at fixed steps and to exact counts.

    After `begin`, `begin + every`, ... and `end` updates the next update first prunes, by the parameters
    and gradients that it is given, and then steps as `masked` does: pruned weights are exactly 0, and
    their moments where it says so. Nothing is compiled again, as mask and step are in the state.

    Args:
        optimiser: any optax gradient transformation.
        criterion: "magnitude", or a function (parameters, gradients) -> scores of the parameters' shapes; the
            lowest are pruned. The gradients are those of all weights, pruned ones too.
        course: the share d of the prunable weights (units) kept at `end`, reached on the cubic course: after
            a share p of the way from `begin` to `end`, d + (1 - d) (1 - p)**3. Or a function from p, a
            Fraction in [0, 1], to the share kept. Each is taken as for `prune.to_density`: floor(share * n +
            1/2) of n, in every layer or over all. A share above the one before prunes nothing.
        begin: updates before the first pruning, 0 or more.
        end: updates before the last one; a multiple of `every` after `begin`.
        every: updates between two prunings.
        scope: "layer" or "global".
        granularity: "weight", "unit-l1" or "unit-l2".
        prunable: as for `prune.ones`.

    Returns:
        A gradient transformation with a `ScheduledState`, whose mask is `prune.mask_of(state)`.

    Raises:
        ValueError: begin, end and every are no whole numbers or do not fit, or a share is outside [0, 1].

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), section 3, for the cubic course.
    """
    begin, end, every = _check_schedule(criterion, begin, end, every, scope, granularity)
    shares = _shares(course, (end - begin) // every)
    inner = masked(optimiser, prunable=prunable)

    def init(params: PyTree) -> ScheduledState:
        state = inner.init(params)
        if any(share < 1 for share in shares):
            warn_of_nothing(state.mask)
        return ScheduledState(jnp.zeros((), jnp.int32), state)

    def update(
        updates: PyTree, state: ScheduledState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScheduledState]:
        if params is None:
            raise ValueError("params: prune.scheduled needs them: update(gradients, state, params).")
        step, before = state
        since = step - begin
        due = (since >= 0) & (step <= end) & (since % every == 0)

        def pruned() -> MaskedState:
            mask = matched(params, before.mask)
            scores = _scores(criterion, params, updates)
            return _with_mask(before, _pruned(mask, scores, shares, since // every, scope, granularity))

        now = jax.lax.cond(due, pruned, lambda: before)
        stepped, now = inner.update(updates, now, params, **extra)
        return stepped, ScheduledState(optax.safe_int32_increment(step), now)

    return optax.GradientTransformationExtraArgs(init, update)


def _scores(criterion: Criterion, params: PyTree, gradients: PyTree) -> PyTree:
    return jax.tree.map(absolute, params) if criterion == "magnitude" else criterion(params, gradients)


def _pruned(
    mask: PyTree, scores: PyTree, shares: Sequence[Number], at: jax.Array, scope: Scope, granularity: str
) -> PyTree:
    """The mask with no more than the share kept that is due at a pruning, their number traced."""
    alive = survivors(mask, scope, granularity)
    table = np.array([[count(share, size) for _, size in alive] for share in shares], np.int32)
    kept = jnp.asarray(table)[jnp.clip(at, 0, len(shares) - 1)]
    going = [jnp.maximum(left - kept[i], 0) for i, (left, _) in enumerate(alive)]
    return remove_counted(scores, mask, going, scope=scope, granularity=granularity)


def _check_schedule(
    criterion: Criterion, begin: int, end: int, every: int, scope: str, granularity: str
) -> tuple[int, int, int]:
    """Begin, end and every; raises a ValueError for arguments of `scheduled` that do not fit."""
    try:
        begin, end, every = map(operator.index, (begin, end, every))
    except TypeError as error:
        raise ValueError(
            f"begin, end, every: {begin!r}, {end!r}, {every!r} must be whole numbers, as int(0.8 * steps) is."
        ) from error
    if not (0 <= begin <= end and every > 0 and (end - begin) % every == 0):
        raise ValueError(
            f"begin, end, every: {begin}, {end}, {every} do not fit; 0 <= begin <= end, and end is begin "
            "plus a multiple of every, so that the last pruning reaches the density of the course."
        )
    if scope not in ("layer", "global"):
        raise ValueError(f"scope: {scope!r} is not known here; it is 'layer' or 'global'.")
    if granularity not in ("weight", "unit-l1", "unit-l2"):
        raise ValueError(
            f"granularity: {granularity!r} has no course; it is 'weight', 'unit-l1' or 'unit-l2'."
        )
    if not (criterion == "magnitude" or callable(criterion)):
        raise ValueError(
            f"criterion: {criterion!r} is not known; it is 'magnitude' or a function (parameters, "
            "gradients) -> scores."
        )
    return begin, end, every


def _shares(course: Course, intervals: int) -> list[float | Fraction]:
    """The shares kept at every pruning, as written; for a single pruning, that of the end."""
    way = [Fraction(i, intervals) for i in range(intervals + 1)] if intervals else [Fraction(1)]
    if callable(course):
        return [check_density(course(part)) for part in way]
    last = Fraction(str(check_density(course)))
    return [last + (1 - last) * (1 - part) ** 3 for part in way]


def _trainable(tree: PyTree, name: str) -> PyTree:
    """The tree; raises if an optimiser cannot update one of its leaves."""
    for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        dtype = getattr(leaf, "dtype", None)
        if is_key(leaf) or dtype in (bool, jax.dtypes.float0):
            raise ValueError(
                f"{name}: leaf {path!r} is {dtype}, which no optimiser can update; split it off, or leave it "
                "out with optax.masked around prune.masked."
            )
    return tree
