"""A training run: what is asked of it, where it stands, and what it gives."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from lthjax.models import Variables

PyTree = Any


class Job(NamedTuple):
    """A training run to do.

    Attributes:
        seed: fixes the split and the order of batches.
        level: index of the order: every level has its own permutations.
        start: first step. Moments are fresh; learning rate and batches are those of this step on.
        stop: one past the last step; equal to start if there is only an evaluation.
        variables: start weights, to which the mask is applied, and batch statistics.
        mask: the mask.
        captures: steps, start <= step <= stop, whose state is returned.
        noise: noise seed: which of the orders and augmentations of this seed and level; 0 is the study's own.
        position: where an interrupted run of the same job goes on; None starts it anew.
        held: whether every step has the learning rate of the last one.
        scores: start scores of a mask that is learned, see `supermask`; the weights then stay as they are,
            and `mask` says how many of every layer take part. None trains weights.
        draws: whether masks are drawn at the evaluations (`measures.earlybird.Draws`).
        fitted: whether batch statistics are first computed on the start weights (`trainer.statistics`); for
            weights that are evaluated untrained.
    """

    seed: int
    level: int
    start: int
    stop: int
    variables: Variables
    mask: PyTree
    captures: tuple[int, ...] = ()
    noise: int = 0
    position: "Position | None" = None
    held: bool = False
    scores: PyTree = None
    draws: bool = False
    fitted: bool = False

    @property
    def at(self) -> int:
        """The next step to train."""
        return self.start if self.position is None else self.position.at


class Position(NamedTuple):
    """A training run under way: all that the rest of it depends on. Going on from it changes no bit.

    Attributes:
        at: the next step, after the start of its job.
        arrays: "params", "stats", "opt" ({number of the leaf: leaf} of the optimiser's state), those of the
            lowest validation loss so far, "best_params" and "best_stats", and {scope: masks} as "draws" where
            masks have been drawn; numpy.
        curves: as in `Trained`, so far; if masks are drawn, also its `distances` under
            `measures.earlybird.CURVES`.
        losses: training losses since the last evaluation, nats.
        states: captured states so far, as in `Trained`.
        seconds: spent so far.
    """

    at: int
    arrays: dict[str, PyTree]
    curves: dict[str, list[Any]]
    losses: list[float]
    states: dict[int, Variables]
    seconds: float


class Checkpoints(NamedTuple):
    """When and how the positions of training runs are saved.

    Attributes:
        seconds: time between two saves. A signal that asks to stop leads to another one.
        save: called with the index of a job and its position.
    """

    seconds: float
    save: Callable[[int, Position], None]


class Trained(NamedTuple):
    """The result of a training run.

    Attributes:
        variables: final weights and statistics; numpy.
        states: step -> weights and statistics at that step, for every capture.
        curves: "step" and, for the evaluations at these steps, "train_loss" (mean over the steps
            since the previous evaluation, None where there were none), "validation_loss",
            "validation_accuracy", "test_loss", "test_accuracy"; accuracies are fractions, losses nats. With
            `log_every` also "loss_step" and "loss", the training loss before the update of these steps,
            unless the training goes on from a position without them.
        scalars: "train_accuracy" (whole train split, at the end), "early_stop_step" (first step of
            the lowest validation loss), "early_stop_test_accuracy", "early_stop_train_accuracy",
            and the last value of every curve. Empty if diverged.
        status: "done", or "diverged" if the loss was not finite.
        reason: why it is not done, or "".
        seconds: wall time of its chunk, divided by the replicates in the chunk.
        distances: scope -> of the masks drawn at every evaluation, what `measures.earlybird.Draws.add`
            returns; None if none were drawn.
    """

    variables: Variables
    states: dict[int, Variables]
    curves: dict[str, list[Any]]
    scalars: dict[str, Any]
    status: Literal["done", "diverged"]
    reason: str
    seconds: float
    distances: Mapping[str, list[list[float | None]]] | None = None
