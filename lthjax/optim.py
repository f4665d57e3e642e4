"""Builds an optax transformation and its schedule from the config: rows of `OPTIMISERS` and `SCHEDULES`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

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


def _nesterov(optim: Optim) -> optax.GradientTransformation:
    return optax.chain(_decay(optim), optax.trace(optim.momentum, nesterov=True))


def _lion(optim: Optim) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(), _decay(optim))


def _muon(optim: Optim) -> optax.GradientTransformation:
    # Its learning rate turns the sign; the study's own comes afterwards.
    return optax.chain(_as_matrices(optax.contrib.muon(1.0)), optax.scale(-1.0), _decay(optim))


def _as_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation of kernels as matrices [inputs, outputs], whatever their axes."""

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda w: w.reshape(-1, w.shape[-1]) if w.ndim > 2 else w, tree)

    def init(params: Any) -> Any:
        return inner.init(flat(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = inner.update(flat(updates), state, flat(params))
        return jax.tree.map(lambda w, like: w.reshape(like.shape), found, updates), state

    return optax.GradientTransformation(init, update)


OPTIMISERS: dict[str, Method] = {
    "adam": Method(_adam, "Adam with the constants 0.9, 0.999, 1e-8; weight decay is decoupled (AdamW)"),
    "sgd": Method(_sgd, "gradient descent with momentum; weight decay is added to the gradient"),
    "nesterov": Method(_nesterov, "sgd with Nesterov's momentum"),
    "adamw": Method(_adam, "another name of adam, whose weight decay is decoupled"),
    "lion": Method(
        _lion, "the sign of the momentum, 0.9 and 0.99 (Chen et al. 2023); decoupled weight decay"
    ),
    "muon": Method(
        _muon, "orthogonalised momentum, 0.95, of kernels as matrices, NAdam for vectors (Jordan et al. 2024)"
    ),
}
"""The optimisers by name; add a row to add one."""


class Course(NamedTuple):
    """A row of `SCHEDULES`.

    Attributes:
        after: (config, lengths) -> the learning rate by step, counted from the end of the warm-up.
        summary: one line for help and report.
        milestones: whether it uses the config's milestones.
        falls: whether the learning rate changes up to the last step; if not, reports may take the mean of
            evaluations after the warm-up and the milestones (`--last`).
    """

    after: Callable[[Optim, Lengths], optax.Schedule]
    summary: str
    milestones: bool = False
    falls: bool = False


def _left(lengths: Lengths) -> int:
    return max(lengths.total - lengths.warmup, 1)


def _steps(optim: Optim, lengths: Lengths) -> optax.Schedule:
    drops = {m - lengths.warmup: optim.decay for m in lengths.milestones}
    return optax.piecewise_constant_schedule(optim.lr, drops)


SCHEDULES: dict[str, Course] = {
    "constant": Course(lambda optim, lengths: optax.constant_schedule(optim.lr), "the same at every step"),
    "cosine": Course(
        lambda optim, lengths: optax.cosine_decay_schedule(optim.lr, _left(lengths)),
        "a cosine down to 0 at the end",
        falls=True,
    ),
    "steps": Course(_steps, "multiplied by decay at every milestone", milestones=True),
    "linear": Course(
        lambda optim, lengths: optax.linear_schedule(optim.lr, 0.0, _left(lengths)),
        "a line down to 0 at the end",
        falls=True,
    ),
}
"""The courses of the learning rate after the warm-up, by name; add a row to add one."""


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
    after = SCHEDULES[optim.schedule].after(optim, lengths)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, optim.lr, warmup), after], [warmup])
