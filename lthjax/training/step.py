"""One masked training step, and the programs of a study: a segment of steps as one loop, evaluation.

A segment is compiled once per study: state, mask, data order, first step and number of steps are arguments.
So levels, arms, seeds, rewind points and odd segment lengths need no further compilation, and a training run
gives the same bits however it is cut into segments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lthjax import data, models, prune, supermask
from lthjax.devices import replicate
from lthjax.models import Model, Variables
from lthjax.optim import Optimiser
from lthjax.training.job import PyTree


class State(NamedTuple):
    """The state that a step updates.

    Attributes:
        params: parameters; pruned ones are exactly 0.
        stats: the model's running statistics, or {}.
        opt: optax state; the moments of pruned weights are exactly 0.
    """

    params: PyTree
    stats: PyTree
    opt: Any


class Feed(NamedTuple):
    """The inputs of one replicate's training besides its state and mask.

    Attributes:
        mean: float32 [C], of the train split.
        std: float32 [C], of the train split.
        key: data of the augmentation's PRNG key, uint32 [2].
        held: the step whose learning rate every step has; -1: each has its own. int32 of shape ().
        dropout: data of dropout's PRNG key, uint32 [2].
    """

    mean: jax.Array
    std: jax.Array
    key: jax.Array
    held: jax.Array
    dropout: jax.Array


class Programs(NamedTuple):
    """The programs of a study; each is compiled at its first call, or lowered for shapes.

    Attributes:
        init: (variables, mask) -> State, of one replicate.
        segment: ((images, start, count), state, (mask, feed, order int32 [R, steps, B])) -> (state after
            `count` steps, losses float32 [R, steps]). All but the first argument have a leading axis of
            replicates.
        evaluate: ((images,), variables, (feed, rows int32 [R, rows, B])) -> sums of losses float32 [R, rows],
            numbers correct int32 [R, rows].
        fit: ((images,), variables, (feed, rows int32 [R, rows, B])) -> the statistics of `models.statistics`
            on these rows, not augmented.
        init_scored: (variables, mask, scores) -> State of a mask that is learned, of one replicate.
        segment_scored: as `segment`, of masks that are learned.
    """

    init: Callable[[Variables, PyTree], State]
    segment: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    fit: Callable[..., PyTree]
    init_scored: Callable[[Variables, PyTree, PyTree], State]
    segment_scored: Callable[..., tuple[State, jax.Array]]


def step(
    model: Model,
    optimiser: Optimiser,
    state: State,
    mask: PyTree,
    batch: tuple,
    at: jax.Array,
    scored: bool = False,
    key: jax.Array | None = None,
) -> tuple[State, jax.Array]:
    """One masked training step.

    Args:
        model, optimiser: as built.
        state: the state before the step; pruned weights are 0 in it, as `init` and every step leave them.
        mask: the mask.
        batch: (images float32 [B, H, W, C], labels int32 [B]).
        at: number of the step, for the learning rate schedule.
        scored: whether the mask is learned, and the weights stay as they are.
        key: for the dropout of this step.

    Returns:
        (state after the step, loss before it in nats, shape ()).
    """
    images, labels = batch

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        drawn = (key,) if model.dropout else ()
        logits, stats = model.apply(params, state.stats, images, True, *drawn)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    tx = (supermask.scored if scored else prune.masked)(optimiser.at(at), mask)
    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    # The precision that was asked for is that of the network's products; an optimiser may have some, too.
    with jax.default_matmul_precision("float32"):
        updates, opt = tx.update(gradients, state.opt, state.params)
    return State(optax.apply_updates(state.params, updates), stats, opt), value


def programs(
    model: Model, optimiser: Optimiser, *, augment: bool, precision: str = "float32", mesh: Mesh
) -> Programs:
    """The programs of a study, without its data.

    Args:
        model, optimiser, augment, precision, mesh: as for `make`.
    """
    if mesh.devices.flat[0].platform == "tpu":
        model = models.for_tpu(model)

    def init(variables: Variables, mask: PyTree) -> State:
        params = prune.apply(variables.params, mask)
        return State(params, variables.stats, optimiser.at(0).init(params))

    def init_scored(variables: Variables, mask: PyTree, scores: PyTree) -> State:
        params, opt = supermask.begin(optimiser.at(0), variables.params, scores, mask)
        return State(params, variables.stats, opt)

    def segment(shared: PyTree, state: State, each: PyTree, scored: bool = False) -> tuple[State, jax.Array]:
        # A loop whose length is an argument, not a scan: one program, and so the same bits, for a full
        # segment, for a shorter last one, and up to a rewind point.
        images, start, count = shared
        mask, feed, order = each

        def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, losses = carry
            index = order[i]
            key = _at_step(feed.key, start + i) if augment else None
            pixels = data.gather(images.images, index, feed.mean, feed.std, key, model.input_shape)
            batch = (pixels, images.labels[index])
            at = jnp.where(feed.held < 0, start + i, feed.held)
            drop = _at_step(feed.dropout, start + i) if model.dropout else None
            state, loss = step(model, optimiser, state, mask, batch, at, scored, drop)
            return state, losses.at[i].set(loss)

        with jax.default_matmul_precision(precision):
            return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(len(order))))

    def fit(shared: PyTree, variables: Variables, each: PyTree) -> PyTree:
        (images,) = shared
        feed, rows = each
        pixels = data.gather(images.images, rows.ravel(), feed.mean, feed.std, shape=model.input_shape)
        with jax.default_matmul_precision(precision):
            return models.statistics(model, *variables, pixels.reshape(*rows.shape, *model.input_shape))

    def segment_scored(shared: PyTree, state: State, each: PyTree) -> tuple[State, jax.Array]:
        return segment(shared, state, each, scored=True)

    return Programs(
        init=jax.jit(init),
        segment=replicate.spread(segment, mesh, donate=True),
        evaluate=replicate.spread(_evaluation(model, precision), mesh),
        fit=replicate.spread(fit, mesh),
        init_scored=jax.jit(init_scored),
        segment_scored=replicate.spread(segment_scored, mesh, donate=True),
    )


def _evaluation(model: Model, precision: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """((images,), variables, (feed, rows)) -> for every row the sum of losses and the number correct."""

    def evaluate(shared: PyTree, variables: Variables, each: PyTree) -> tuple[jax.Array, jax.Array]:
        (images,) = shared
        feed, rows = each

        def row(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            labels = images.labels[index]
            pixels = data.gather(images.images, index, feed.mean, feed.std, shape=model.input_shape)
            logits, _ = model.apply(variables.params, variables.stats, pixels, False)
            real = index >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = logits.argmax(-1) == labels
            return jnp.where(real, losses, 0).sum(), (real & hits).sum(dtype=jnp.int32)

        with jax.default_matmul_precision(precision):
            return jax.lax.map(row, rows)

    return evaluate


def _at_step(key_data: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), step)
