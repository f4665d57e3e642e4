"""Builds an optax transformation and its schedule from the config; optimisers are rows of `OPTIMISERS`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lthjax.config import Lengths, Optim


class Method(NamedTuple):
    """A row of `OPTIMISERS`.

    Attributes:
        direction: config -> the optax transformation from a gradient to a step's direction, with moments
            and weight decay; it is then multiplied by minus the learning rate.
        summary: one line for help and report.
    """

    direction: Callable[[Optim], optax.GradientTransformation]
    summary: str


def _decay(optim: Optim) -> optax.GradientTransformation:
    return optax.add_decayed_weights(optim.weight_decay) if optim.weight_decay else optax.identity()


def _adam(optim: Optim) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(), _decay(optim))


def _sgd(optim: Optim) -> optax.GradientTransformation:
    momentum = optax.trace(optim.momentum) if optim.momentum else optax.identity()
    return optax.chain(_decay(optim), momentum)


OPTIMISERS: dict[str, Method] = {
    "adam": Method(_adam, "Adam with the constants 0.9, 0.999, 1e-8; weight decay is decoupled (AdamW)"),
    "sgd": Method(_sgd, "gradient descent with momentum; weight decay is added to the gradient"),
}
"""The optimisers by name; add a row to add one."""


class Optimiser(NamedTuple):
    """An optimiser whose learning rate is a function of the step, not of its own state.

    So training from step k on uses the learning rate of step k, while its moments start fresh.

    Attributes:
        at: step (int, may be traced) -> the optax transformation of that step; all steps share one
            state type.
        schedule: step -> learning rate.
    """

    at: Callable[[jax.Array | int], optax.GradientTransformation]
    schedule: optax.Schedule


def make(optim: Optim, lengths: Lengths) -> Optimiser:
    """The optimiser of a study.

    Args:
        optim: the config.
        lengths: the study's durations in steps.
    """
    base = OPTIMISERS[optim.name].direction(optim)
    schedule = _schedule(optim, lengths)

    def at(step: jax.Array | int) -> optax.GradientTransformation:
        rate = jnp.asarray(schedule(step), jnp.float32)  # type: ignore[arg-type]
        return optax.chain(base, optax.scale(-rate))

    return Optimiser(at, schedule)


def _schedule(optim: Optim, lengths: Lengths) -> optax.Schedule:
    """Linear warm-up to the peak, then the configured schedule; milestones count from step 0."""
    warmup = lengths.warmup
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(optim.lr, max(lengths.total - warmup, 1))
    elif optim.schedule == "steps":
        drops = {m - warmup: optim.decay for m in lengths.milestones}
        after = optax.piecewise_constant_schedule(optim.lr, drops)
    else:
        after = optax.constant_schedule(optim.lr)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, optim.lr, warmup), after], [warmup])
