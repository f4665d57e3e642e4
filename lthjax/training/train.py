"""Whole training runs: a chunk of jobs, trained in segments to the last step, with their records."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lthjax import batches, settings, signals
from lthjax.devices import hosts, replicate
from lthjax.measures import layers
from lthjax.measures.earlybird import CURVES, Draws
from lthjax.models import Variables
from lthjax.training.job import Checkpoints, Job, Position, PyTree, Trained
from lthjax.training.step import State
from lthjax.training.trainer import Evaluation, Trainer, evaluate, feed_of, rows_of, statistics

# Length of a segment: a training run that is asked to stop is saved at the end of one.
_SEGMENT_SECONDS = 1.5
# The length of a training run's first segment, when its speed is not known.
_FIRST_STEPS = 16
_CURVES = (
    "step",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)

Progress = Callable[[int, float | None], None]
"""Called with (replicate steps done since the last call, last mean test accuracy or None)."""


@settings.pinned()
def train(
    trainer: Trainer, jobs: Sequence[Job], progress: Progress, checkpoints: Checkpoints | None = None
) -> list[Trained]:
    """Trains up to `trainer.width` jobs with equal start, stop and position together.

    Args:
        trainer: the programs.
        jobs: the training runs to do.
        progress: called after every segment.
        checkpoints: saves the positions of the jobs; without it an interruption loses their steps.

    Returns:
        One result per job, in the order of the jobs.
    """
    chunk = _Chunk(trainer, jobs)
    if checkpoints is None:
        for _ in chunk.train(progress):
            pass
        return chunk.results()
    saved = time.monotonic()
    with signals.delayed() as delay:
        for _ in chunk.train(progress):
            due = time.monotonic() - saved >= checkpoints.seconds
            if _kept(chunk, checkpoints, delay, due):
                saved = time.monotonic()
        trained = chunk.results()
        # Whoever is asked to stop meanwhile has nothing but the last evaluation left.
        _kept(chunk, checkpoints, delay, due=False)
    return trained


def _kept(chunk: "_Chunk", checkpoints: Checkpoints, delay: signals.Delay, due: bool) -> bool:
    """Saves the positions of a chunk if that is due or a signal has come, which then acts; whether it did."""
    asked, number = delay.asked, hosts.signalled(delay.number)
    if not number and not hosts.decided(due):
        return False
    chunk.save(checkpoints.save)
    delay.deliver()
    if number and not asked:
        raise signals.Stopped(number)  # another process of the program was asked
    return True


class _Chunk:
    """Jobs that are trained together: their states on the devices, and their records."""

    def __init__(self, trainer: Trainer, jobs: Sequence[Job]) -> None:
        spans = {
            (job.start, job.stop, job.at, job.scores is None, job.position is None, job.fitted)
            for job in jobs
        }
        assert len(spans) == 1, "jobs of one chunk start, stop and go on together, in one program"
        ((self.start, self.stop, self.at, weights, _, fitted),) = spans
        self._program = trainer.segment if weights else trainer.segment_scored
        self._began = time.perf_counter()
        self._trainer, self._jobs = trainer, jobs
        self._padded = [*jobs, *[jobs[0]] * (trainer.width - len(jobs))]
        self._mask = self._stack(job.mask for job in self._padded)
        self._feed = self._stack(feed_of(trainer, job) for job in self._padded)
        begun = [_begun(trainer, job) for job in self._padded]
        self._state = self._stack(state for state, _ in begun)
        # In buffers of their own, because every segment donates those of its state to the next.
        self._best = self._stack(best for _, best in begun)
        if fitted:
            stats = statistics(trainer, self._padded, self._now, self._feed)
            self._state = self._state._replace(stats=stats)
        self._held_out = rows_of(trainer, self._padded, "validation", "test")
        self._records = [_Record(job.position, trainer.log_every, _drawing(job)) for job in jobs]
        self._steps = _FIRST_STEPS

    def _stack(self, trees: Iterable[PyTree]) -> PyTree:
        return replicate.stack(self._trainer.mesh, list(trees))

    def train(self, progress: Progress) -> Iterator[None]:
        """Trains to the last step; yields wherever a training run could go on from."""
        every = self._trainer.lengths.evaluate
        marks = {*range(self.start - self.start % every, self.stop, every), self.stop}
        marks |= {step for job in self._jobs for step in job.captures}
        # What belongs to the step of a position was done before it was saved.
        first = self.start if self._jobs[0].position is None else self.at + 1
        for mark in sorted(mark for mark in marks if mark >= first):
            while True:
                done = self._segment(mark)
                accuracy = self._arrive() if self.at == mark else None
                progress(done * len(self._jobs), accuracy)
                yield
                if self.at == mark:
                    break
            if all(record.reason for record in self._records):
                progress((self.stop - self.at) * len(self._jobs), None)
                return

    def _segment(self, mark: int) -> int:
        """Trains towards a step, for about `_SEGMENT_SECONDS`; returns the number of steps."""
        trainer, count = self._trainer, min(mark - self.at, self._steps, self._trainer.longest)
        if not count:
            return 0
        began = time.perf_counter()
        orders = _orders(trainer, self._padded, self.at, count)
        shared = (trainer.images, np.int32(self.at), np.int32(count))
        self._state, losses = self._program(
            shared, self._state, (self._mask, self._feed, self._stack(orders))
        )
        for record, values in zip(self._records, replicate.fetch(losses), strict=False):
            record.add_losses(self.at, values[:count])
        self.at += count
        wanted = count * _SEGMENT_SECONDS / (time.perf_counter() - began)
        self._steps = hosts.decided(max(1, min(int(wanted), 4 * self._steps)))
        return count

    def _arrive(self) -> float | None:
        """Captures and evaluates what is due at this step; the mean test accuracy if it was evaluated."""
        jobs, now = self._jobs, self._now
        if any(self.at in job.captures for job in jobs):
            copies = replicate.unstack(now, len(jobs))
            for job, record, copy in zip(jobs, self._records, copies, strict=True):
                if self.at in job.captures and not record.reason:
                    record.states[self.at] = copy
        every = self._trainer.lengths.evaluate
        if self.at != self.stop and (self.at == self.start or self.at % every):
            return None
        measured = evaluate(self._trainer, now, self._feed, self._held_out, len(jobs))
        better = [
            record.add_evaluation(self.at, *values)
            for record, *values in zip(self._records, *measured, strict=True)
        ]
        if any(job.draws for job in jobs):
            params = replicate.unstack(now.params, len(jobs))
            for job, record, own in zip(jobs, self._records, params, strict=True):
                record.draw(own, job.mask)
        better += [False] * (len(self._padded) - len(jobs))
        self._best = self._trainer.keep(self._best, now, np.array(better))
        return float(np.mean([test.accuracy for test in measured[1]]))

    @property
    def _now(self) -> Variables:
        return Variables(self._state.params, self._state.stats)

    def _seconds(self) -> float:
        return (time.perf_counter() - self._began) / len(self._jobs)

    def save(self, save: Callable[[int, Position], None]) -> None:
        """Saves the positions of the jobs, except those that have diverged; none where nothing is trained."""
        if self.at == self.start:
            return
        optimiser = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(self._state.opt))}
        best = {"best_params": self._best.params, "best_stats": self._best.stats}
        trees = {**self._now._asdict(), "opt": optimiser, **best}
        for i, (arrays, record) in enumerate(
            zip(replicate.unstack(trees, len(self._jobs)), self._records, strict=True)
        ):
            if not record.reason:
                save(i, record.position(self.at, arrays, self._seconds()))

    def results(self) -> list[Trained]:
        """The results of the jobs, after a last evaluation on the train split."""
        count, feed = len(self._jobs), self._feed
        seen = rows_of(self._trainer, self._padded, "train")
        finals = replicate.unstack(self._now, count)
        ends = [m.accuracy for m in evaluate(self._trainer, self._now, feed, seen, count)[0]]
        earlies = ends
        if not all(record.ended_best() for record in self._records):
            earlies = [m.accuracy for m in evaluate(self._trainer, self._best, feed, seen, count)[0]]
        return [
            record.result(final, end, early, self._seconds())
            for record, final, end, early in zip(self._records, finals, ends, earlies, strict=True)
        ]


def _begun(trainer: Trainer, job: Job) -> tuple[State, Variables]:
    """The state that a job goes on from, and its best one so far."""
    scored = job.scores is not None
    init: Callable[..., State] = trainer.init_scored if scored else trainer.init
    given = (job.variables, job.mask, *([job.scores] if scored else []))
    if job.position is None:
        state = init(*given)
        return state, Variables(state.params, state.stats)
    arrays = job.position.arrays
    like = jax.eval_shape(init, *given).opt
    leaves = [arrays["opt"][str(i)] for i in range(len(jax.tree.leaves(like)))]
    opt = jax.tree.unflatten(jax.tree.structure(like), leaves)
    best = Variables(arrays["best_params"], arrays["best_stats"])
    return State(arrays["params"], arrays["stats"], opt), best


def _drawing(job: Job) -> dict[str, Draws]:
    """Scope -> the masks that a job draws, from where its position left off; empty if it draws none."""
    newest = {}
    if job.position is not None:
        if not {*CURVES.values()} <= job.position.curves.keys():
            return {}  # an earlier version, which drew none or those of one scope, saved the position
        newest = job.position.arrays.get("draws", {})
    if not job.draws:
        return {}
    return {scope: Draws(scope == "global", newest.get(scope)) for scope in CURVES}


def _orders(trainer: Trainer, jobs: Sequence[Job], at: int, count: int) -> list[np.ndarray]:
    """The next `count` batches of every job from a step on: int32 [longest, batch], padded with 0."""
    orders = np.zeros((len(jobs), trainer.longest, trainer.batch), np.int32)
    for i, job in enumerate(jobs):
        split = trainer.splits[job.seed].train
        orders[i, :count] = batches.order(
            split, trainer.lengths, trainer.batch, job.seed, job.level, at, count, job.noise
        )
    return list(orders)


class _Record:
    """Losses and evaluations of one training run, collected while it runs."""

    def __init__(
        self,
        position: Position | None = None,
        log_every: int = 0,
        draws: Mapping[str, Draws] | None = None,
    ) -> None:
        self.states: dict[int, Variables] = {}
        # Part of a loss curve would look like all of it.
        self._log_every = log_every if position is None or "loss" in position.curves else 0
        logged = ("loss_step", "loss") if self._log_every else ()
        self._draws = draws or {}
        drawn = (CURVES[scope] for scope in self._draws)
        self.curves: dict[str, list[Any]] = {name: [] for name in (*_CURVES, *logged, *drawn)}
        self.reason = ""
        self.losses: list[np.ndarray] = []
        self._seconds = 0.0
        if position is not None:
            self.states |= position.states
            known = position.curves
            self.curves |= {name: [*known[name]] for name in self.curves if name in known}
            self.losses.append(np.array(position.losses, np.float32))
            self._seconds = position.seconds

    def position(self, at: int, arrays: dict[str, PyTree], seconds: float) -> Position:
        curves = {name: [*values] for name, values in self.curves.items()}
        losses = [float(loss) for part in self.losses for loss in part]
        newest = {scope: draws.newest for scope, draws in self._draws.items() if draws.newest is not None}
        if newest:
            arrays = {**arrays, "draws": newest}
        return Position(at, arrays, curves, losses, {**self.states}, self._seconds + seconds)

    def add_losses(self, at: int, losses: np.ndarray) -> None:
        """Adds the losses of the steps from `at` on, up to the first that is not finite.

        So the record of a run that diverges does not depend on how long others of its chunk go on.
        """
        if self.reason:
            return
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            self.reason = f"the training loss was not finite at step {at + int(bad[0])}"
            losses = losses[: bad[0] + 1]
        self.losses.append(losses)
        if self._log_every:
            for step, loss in enumerate(losses.tolist(), at):
                if step % self._log_every == 0:
                    self.curves["loss_step"].append(step)
                    self.curves["loss"].append(loss if math.isfinite(loss) else None)

    def add_evaluation(self, at: int, validation: Evaluation, test: Evaluation) -> bool:
        """Adds an evaluation; True if its validation loss is the lowest so far."""
        for part, measured in (("validation", validation), ("test", test)):
            if not math.isfinite(measured.loss) and not self.reason:
                self.reason = f"the {part} loss was not finite at step {at}"
        if self.reason:
            return False
        lowest = min(self.curves["validation_loss"], default=math.inf)
        steps = np.concatenate([*self.losses, np.empty(0, np.float32)])
        train_loss = float(steps.mean(dtype=np.float64)) if steps.size else None
        self.losses = []
        for name, value in zip(_CURVES, (at, train_loss, *validation, *test), strict=True):
            self.curves[name].append(value)
        return validation.loss < lowest

    def draw(self, params: PyTree, mask: PyTree) -> None:
        """Draws masks of these weights, if that was asked for and the training has not diverged."""
        if not self.reason:
            weights = layers.by_layer(params, mask) if self._draws else {}
            for scope, draws in self._draws.items():
                self.curves[CURVES[scope]].append(draws.add(weights))

    def ended_best(self) -> bool:
        """Whether the last evaluation has the lowest validation loss."""
        losses = self.curves["validation_loss"]
        return len(losses) > 0 and int(np.argmin(losses)) == len(losses) - 1

    def result(
        self, final: Variables, train_accuracy: float, early_train_accuracy: float, seconds: float
    ) -> Trained:
        seconds += self._seconds
        # The record stays whole: the position at the end may still be saved.
        curves = {name: values for name, values in self.curves.items() if name not in CURVES.values()}
        distances = {scope: self.curves[CURVES[scope]] for scope in self._draws} or None
        if self.reason:
            reason = self.reason
            return Trained(final, self.states, curves, {}, "diverged", reason, seconds, distances)
        early = int(np.argmin(self.curves["validation_loss"]))
        scalars = {name: self.curves[name][-1] for name in _CURVES if name != "step"} | {
            "train_accuracy": train_accuracy,
            "early_stop_step": self.curves["step"][early],
            "early_stop_test_accuracy": self.curves["test_accuracy"][early],
            "early_stop_train_accuracy": early_train_accuracy,
        }
        return Trained(final, self.states, curves, scalars, "done", "", seconds, distances)
