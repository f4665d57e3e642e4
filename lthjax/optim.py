"""From the config to an optax transformation and its schedule."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lthjax.config import Lengths, Optim


class Optimiser(NamedTuple):
    """An optimiser whose learning rate is a function of the step, not of its own state.

    A training that starts at step k therefore meets the learning rate of step k while its moments
    start fresh.

    Attributes:
        at: step (int, may be traced) -> the optax transformation of that step; all steps share one
            form of state.
        schedule: step -> learning rate.
    """

    at: Callable[[jax.Array | int], optax.GradientTransformation]
    schedule: optax.Schedule


def make(optim: Optim, lengths: Lengths) -> Optimiser:
    """The optimiser of a study.

    sgd adds `weight_decay` times the parameters to the gradient, before momentum; adam subtracts it
    with the learning rate, apart from the moments (AdamW). Adam's constants are 0.9, 0.999, 1e-8.

    Args:
        optim: the config.
        lengths: the study's durations in steps.
    """
    decay = optax.add_decayed_weights(optim.weight_decay) if optim.weight_decay else optax.identity()
    if optim.name == "adam":
        base = optax.chain(optax.scale_by_adam(), decay)
    else:
        momentum = optax.trace(optim.momentum) if optim.momentum else optax.identity()
        base = optax.chain(decay, momentum)
    schedule = _schedule(optim, lengths)

    def at(step: jax.Array | int) -> optax.GradientTransformation:
        rate = jnp.asarray(schedule(step), jnp.float32)  # type: ignore[arg-type]
        return optax.chain(base, optax.scale(-rate))

    return Optimiser(at, schedule)


def _schedule(optim: Optim, lengths: Lengths) -> optax.Schedule:
    """Linear warm-up to the peak, then the chosen course; milestones count from step 0."""
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
