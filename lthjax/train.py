"""Masked training: one step, a segment of steps as one compiled loop, evaluation, and whole training runs.

A segment is compiled once per study: state, mask, data order, first step and number of steps are arguments.
So levels, arms, seeds, rewind points and odd segment lengths need no further compilation, and a training run
gives the same bits however it is cut into segments.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lthjax import data, models, prune, rng, settings, signals, supermask
from lthjax.config import Lengths
from lthjax.devices import hosts, replicate
from lthjax.models import Model, Variables
from lthjax.optim import Optimiser

PyTree = Any
# Images per evaluation batch. On CPU batches that fit the cache are fastest; an accelerator needs large ones.
_EVALUATION_BATCH = {"cpu": 50}
_EVALUATION_BATCH_ELSEWHERE = 1000
# Length of a segment: a training run that is asked to stop is saved at the end of one.
_SEGMENT_SECONDS = 1.5
# The length of a training run's first segment, when its speed is not known.
_FIRST_STEPS = 16
# Evaluation sets kept on the devices.
_ROWS_KEPT = 8
_CURVES = (
    "step",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


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
    """

    mean: jax.Array
    std: jax.Array
    key: jax.Array
    held: jax.Array


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

    @property
    def at(self) -> int:
        """The next step to train."""
        return self.start if self.position is None else self.position.at


class Position(NamedTuple):
    """A training run under way: all that the rest of it depends on. Going on from it changes no bit.

    Attributes:
        at: the next step.
        arrays: "params", "stats", "opt" ({number of the leaf: leaf} of the optimiser's state), and those of
            the lowest validation loss so far, "best_params" and "best_stats"; numpy.
        curves: as in `Trained`, so far.
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
            "validation_accuracy", "test_loss", "test_accuracy"; accuracies are fractions, losses nats.
        scalars: "train_accuracy" (whole train split, at the end), "early_stop_step" (first step of
            the lowest validation loss), "early_stop_test_accuracy", "early_stop_train_accuracy",
            and the last value of every curve. Empty if diverged.
        status: "done", or "diverged" if the loss was not finite.
        reason: why it is not done, or "".
        seconds: wall time of its chunk, divided by the replicates in the chunk.
    """

    variables: Variables
    states: dict[int, Variables]
    curves: dict[str, list[Any]]
    scalars: dict[str, Any]
    status: Literal["done", "diverged"]
    reason: str
    seconds: float


class Programs(NamedTuple):
    """The programs of a study; each is compiled at its first call, or lowered for shapes.

    Attributes:
        init: (variables, mask) -> State, of one replicate.
        segment: ((images, start, count), state, (mask, feed, order int32 [R, steps, B])) -> (state after
            `count` steps, losses float32 [R, steps]). All but the first argument have a leading axis of
            replicates.
        evaluate: ((images,), variables, (feed, rows int32 [R, rows, B])) -> sums of losses float32 [R, rows],
            numbers correct int32 [R, rows].
        init_scored: (variables, mask, scores) -> State of a mask that is learned, of one replicate.
        segment_scored: as `segment`, of masks that are learned.
    """

    init: Callable[[Variables, PyTree], State]
    segment: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    init_scored: Callable[[Variables, PyTree, PyTree], State]
    segment_scored: Callable[..., tuple[State, jax.Array]]


class Trainer(NamedTuple):
    """The compiled programs of a study, and their data.

    Attributes:
        mesh: the devices.
        width: replicates in a chunk.
        lengths: durations in steps.
        batch: images in a batch.
        images: all images, on every device.
        train_count: number of train images; the rest are test images.
        splits: seed -> split.
        init: compiled; see `Programs`.
        segment: compiled; see `Programs`.
        evaluate: compiled; see `Programs`.
        init_scored, segment_scored: compiled; see `Programs`.
        keep: compiled; (best, params and stats, better [R]) -> best.
        rows: the images of the last evaluations, on the devices.
    """

    mesh: Mesh
    width: int
    lengths: Lengths
    batch: int
    images: data.Images
    train_count: int
    splits: dict[int, data.Split]
    init: Callable[[Variables, PyTree], State]
    segment: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    init_scored: Callable[[Variables, PyTree, PyTree], State]
    segment_scored: Callable[..., tuple[State, jax.Array]]
    keep: Callable[..., PyTree]
    rows: dict[tuple[tuple[str, ...], tuple[int, ...]], "_Rows"]


Progress = Callable[[int, float | None], None]
"""Called with (replicate steps done since the last call, last mean test accuracy or None)."""


def step(
    model: Model,
    optimiser: Optimiser,
    state: State,
    mask: PyTree,
    batch: tuple,
    at: jax.Array,
    scored: bool = False,
) -> tuple[State, jax.Array]:
    """One masked training step.

    Args:
        model, optimiser: as built.
        state: the state before the step; pruned weights count as 0, whatever their value.
        mask: the mask.
        batch: (images float32 [B, H, W, C], labels int32 [B]).
        at: number of the step, for the learning rate schedule.
        scored: whether the mask is learned, and the weights stay as they are.

    Returns:
        (state after the step, loss before it in nats, shape ()).
    """
    images, labels = batch

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        logits, stats = model.apply(params, state.stats, images, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    tx = (supermask.scored if scored else prune.masked)(optimiser.at(at), mask)
    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt = tx.update(gradients, state.opt, state.params)
    return State(optax.apply_updates(state.params, updates), stats, opt), value


def make(
    model: Model,
    optimiser: Optimiser,
    lengths: Lengths,
    dataset: data.Dataset,
    splits: dict[int, data.Split],
    *,
    batch: int,
    augment: bool,
    precision: str = "float32",
    mesh: Mesh,
    width: int,
) -> Trainer:
    """Builds the programs of a study; each is compiled at its first call.

    Args:
        model, optimiser, lengths: as built from the config.
        dataset: the images.
        splits: seed -> split, for every seed that is trained.
        batch: images in a batch.
        augment: whether batches are augmented.
        precision: of the factors in matrix products and convolutions, as in `config.Train`.
        mesh: devices.
        width: replicates in a chunk, a multiple of the number of devices.
    """
    return Trainer(
        mesh=mesh,
        width=width,
        lengths=lengths,
        batch=batch,
        images=replicate.share(mesh, data.stack(dataset, flat=not replicate.one_by_one(mesh))),
        train_count=len(dataset.train_images),
        splits=splits,
        **programs(model, optimiser, augment=augment, precision=precision, mesh=mesh)._asdict(),
        keep=_keep,
        rows={},
    )


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
            state, loss = step(model, optimiser, state, mask, batch, at, scored)
            return state, losses.at[i].set(loss)

        with jax.default_matmul_precision(precision):
            return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(len(order))))

    def segment_scored(shared: PyTree, state: State, each: PyTree) -> tuple[State, jax.Array]:
        return segment(shared, state, each, scored=True)

    return Programs(
        init=jax.jit(init),
        segment=replicate.spread(segment, mesh, donate=True),
        evaluate=replicate.spread(_evaluation(model, precision), mesh),
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


@jax.jit
def _keep(best: Variables, now: Variables, better: jax.Array) -> Variables:
    """The better of two states, per replicate."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, now, best)


def _at_step(key_data: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), step)


@settings.pinned()
def order(
    split: np.ndarray,
    lengths: Lengths,
    batch: int,
    seed: int,
    level: int,
    start: int,
    count: int,
    noise: int = 0,
) -> np.ndarray:
    """Batches start ... start + count - 1 in the order of a seed and level.

    Every epoch is a new permutation of the train split; its last, incomplete batch is dropped.

    Args:
        split: int32 [n], the train split's indices.
        lengths: for the steps per epoch.
        batch: images in a batch.
        seed, level: identify the order.
        start, count: first batch and number of batches.
        noise: as in `Job`.

    Returns:
        int32 [count, batch], indices into the train images.
    """
    rows: list[np.ndarray] = []
    at, stop = start, start + count
    while at < stop:
        epoch, first = divmod(at, lengths.per_epoch)
        last = min(lengths.per_epoch, first + stop - at)
        permutation = _permutation(seed, level, epoch, len(split), noise)
        permuted = split[permutation[: lengths.per_epoch * batch]]
        rows.append(permuted.reshape(lengths.per_epoch, batch)[first:last])
        at += last - first
    return np.concatenate(rows)


@lru_cache(maxsize=64)
def _permutation(seed: int, level: int, epoch: int, n: int, noise: int) -> np.ndarray:
    # Cached, because the segments of an epoch ask for it one after another.
    return np.asarray(jax.random.permutation(rng.stream(seed, _stream("order", noise), level, epoch), n))


def _stream(name: str, noise: int) -> str:
    """The name of a random stream; noise 0, the study's own, adds no number."""
    return f"{name}/{noise}" if noise else name


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
            asked, number = delay.asked, hosts.signalled(delay.number)
            if number or hosts.decided(time.monotonic() - saved >= checkpoints.seconds):
                chunk.save(checkpoints.save)
                saved = time.monotonic()
                delay.deliver()
                if number and not asked:
                    raise signals.Stopped(number)  # another process of the program was asked
    return chunk.results()


class _Chunk:
    """Jobs that are trained together: their states on the devices, and their records."""

    def __init__(self, trainer: Trainer, jobs: Sequence[Job]) -> None:
        spans = {(job.start, job.stop, job.at, job.scores is None) for job in jobs}
        assert len(spans) == 1, "jobs of one chunk start, stop and go on together, in one program"
        ((self.start, self.stop, self.at, weights),) = spans
        self._program = trainer.segment if weights else trainer.segment_scored
        self._began = time.perf_counter()
        self._trainer, self._jobs = trainer, jobs
        self._padded = [*jobs, *[jobs[0]] * (trainer.width - len(jobs))]
        self._mask = self._stack(job.mask for job in self._padded)
        self._feed = self._stack(_feed(trainer, job) for job in self._padded)
        begun = [_begun(trainer, job) for job in self._padded]
        self._state = self._stack(state for state, _ in begun)
        # In buffers of their own, because every segment donates those of its state to the next.
        self._best = self._stack(best for _, best in begun)
        self._held_out = _rows(trainer, self._padded, "validation", "test")
        self._records = [_Record(job.position) for job in jobs]
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
        trainer, count = self._trainer, min(mark - self.at, self._steps)
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
                if self.at in job.captures:
                    record.states[self.at] = copy
        every = self._trainer.lengths.evaluate
        if self.at != self.stop and (self.at == self.start or self.at % every):
            return None
        measured = _evaluate(self._trainer, now, self._feed, self._held_out, len(jobs))
        better = [
            record.add_evaluation(self.at, *values)
            for record, *values in zip(self._records, *measured, strict=True)
        ]
        better += [False] * (len(self._padded) - len(jobs))
        self._best = self._trainer.keep(self._best, now, np.array(better))
        return float(np.mean([test.accuracy for test in measured[1]]))

    @property
    def _now(self) -> Variables:
        return Variables(self._state.params, self._state.stats)

    def _seconds(self) -> float:
        return (time.perf_counter() - self._began) / len(self._jobs)

    def save(self, save: Callable[[int, Position], None]) -> None:
        """Saves the positions of the jobs, except those that have diverged."""
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
        seen = _rows(self._trainer, self._padded, "train")
        finals = replicate.unstack(self._now, count)
        ends = [m.accuracy for m in _evaluate(self._trainer, self._now, feed, seen, count)[0]]
        earlies = ends
        if not all(record.ended_best() for record in self._records):
            earlies = [m.accuracy for m in _evaluate(self._trainer, self._best, feed, seen, count)[0]]
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


def _orders(trainer: Trainer, jobs: Sequence[Job], at: int, count: int) -> list[np.ndarray]:
    """The next `count` batches of every job from a step on: int32 [evaluate, batch], padded with 0."""
    orders = np.zeros((len(jobs), trainer.lengths.evaluate, trainer.batch), np.int32)
    for i, job in enumerate(jobs):
        split = trainer.splits[job.seed].train
        orders[i, :count] = order(
            split, trainer.lengths, trainer.batch, job.seed, job.level, at, count, job.noise
        )
    return list(orders)


class Evaluation(NamedTuple):
    """Mean loss in nats and accuracy over a set of images."""

    loss: float
    accuracy: float


class _Record:
    """Losses and evaluations of one training run, collected while it runs."""

    def __init__(self, position: Position | None = None) -> None:
        self.states: dict[int, Variables] = {}
        self.curves: dict[str, list[Any]] = {name: [] for name in _CURVES}
        self.reason = ""
        self.losses: list[np.ndarray] = []
        self._seconds = 0.0
        if position is not None:
            self.states |= position.states
            self.curves = {name: [*values] for name, values in position.curves.items()}
            self.losses.append(np.array(position.losses, np.float32))
            self._seconds = position.seconds

    def position(self, at: int, arrays: dict[str, PyTree], seconds: float) -> Position:
        curves = {name: [*values] for name, values in self.curves.items()}
        losses = [float(loss) for part in self.losses for loss in part]
        return Position(at, arrays, curves, losses, {**self.states}, self._seconds + seconds)

    def add_losses(self, at: int, losses: np.ndarray) -> None:
        self.losses.append(losses)
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size and not self.reason:
            self.reason = f"the training loss was not finite at step {at + int(bad[0])}"

    def add_evaluation(self, at: int, validation: Evaluation, test: Evaluation) -> bool:
        """Adds an evaluation; True if its validation loss is the lowest so far."""
        if not math.isfinite(validation.loss) and not self.reason:
            self.reason = f"the validation loss was not finite at step {at}"
        if self.reason:
            return False
        lowest = min(self.curves["validation_loss"], default=math.inf)
        steps = np.concatenate([*self.losses, np.empty(0, np.float32)])
        train_loss = float(steps.mean(dtype=np.float64)) if steps.size else None
        self.losses = []
        for name, value in zip(_CURVES, (at, train_loss, *validation, *test), strict=True):
            self.curves[name].append(value)
        return validation.loss < lowest

    def ended_best(self) -> bool:
        """Whether the last evaluation has the lowest validation loss."""
        losses = self.curves["validation_loss"]
        return len(losses) > 0 and int(np.argmin(losses)) == len(losses) - 1

    def result(
        self, final: Variables, train_accuracy: float, early_train_accuracy: float, seconds: float
    ) -> Trained:
        seconds += self._seconds
        if self.reason:
            return Trained(final, self.states, self.curves, {}, "diverged", self.reason, seconds)
        early = int(np.argmin(self.curves["validation_loss"]))
        scalars = {name: self.curves[name][-1] for name in _CURVES if name != "step"} | {
            "train_accuracy": train_accuracy,
            "early_stop_step": self.curves["step"][early],
            "early_stop_test_accuracy": self.curves["test_accuracy"][early],
            "early_stop_train_accuracy": early_train_accuracy,
        }
        return Trained(final, self.states, self.curves, scalars, "done", "", seconds)


def _feed(trainer: Trainer, job: Job) -> Feed:
    split = trainer.splits[job.seed]
    key = rng.stream(job.seed, _stream("augment", job.noise), job.level)
    held = np.int32(trainer.lengths.total - 1 if job.held else -1)
    return Feed(split.mean, split.std, jax.random.key_data(key), held)  # type: ignore[arg-type]


class _Rows(NamedTuple):
    """Images for one evaluation.

    Attributes:
        images: indices, one part after another, int32 [R, rows, batch], padded with -1.
        parts: number of rows of every part.
        counts: number of images in every row, [R, rows].
    """

    images: jax.Array
    parts: tuple[int, ...]
    counts: np.ndarray


def _rows(trainer: Trainer, jobs: Sequence[Job], *names: str) -> _Rows:
    """The images of these parts of the data, in evaluation batches; kept for the next chunk."""
    key = (names, tuple(job.seed for job in jobs))
    if key in trainer.rows:
        return trainer.rows[key]
    platform = trainer.mesh.devices.flat[0].platform
    batch = _EVALUATION_BATCH.get(platform, _EVALUATION_BATCH_ELSEWHERE)

    def indices(job: Job, name: str) -> np.ndarray:
        if name == "test":
            return np.arange(trainer.train_count, len(trainer.images.labels), dtype=np.int32)
        return getattr(trainer.splits[job.seed], name)

    sizes = [len(indices(jobs[0], name)) for name in names]
    batch = min(batch, max(sizes))
    parts = tuple(-(-size // batch) for size in sizes)

    def filled(job: Job) -> np.ndarray:
        rows = np.full((sum(parts), batch), -1, np.int32)
        for name, first, count in zip(names, np.cumsum([0, *parts]), parts, strict=False):
            index = indices(job, name)
            rows[first : first + count].ravel()[: len(index)] = index
        return rows

    rows = [filled(job) for job in jobs]
    while len(trainer.rows) >= _ROWS_KEPT:
        trainer.rows.pop(next(iter(trainer.rows)))
    counts = np.stack([(row >= 0).sum(1) for row in rows])
    trainer.rows[key] = _Rows(replicate.stack(trainer.mesh, rows), parts, counts)
    return trainer.rows[key]


def _evaluate(
    trainer: Trainer, variables: Variables, feed: Feed, rows: _Rows, count: int
) -> list[list[Evaluation]]:
    """Mean loss and accuracy of the first `count` replicates, for every part."""
    losses, hits = replicate.fetch(trainer.evaluate((trainer.images,), variables, (feed, rows.images)))
    measured = []
    for last, rows_in_part in zip(np.cumsum(rows.parts), rows.parts, strict=True):
        part = (slice(count), slice(last - rows_in_part, last))
        n = rows.counts[part].sum(1)
        mean = np.asarray(losses, np.float64)[part].sum(1) / n
        share = np.asarray(hits, np.int64)[part].sum(1) / n
        measured.append([Evaluation(float(m), float(s)) for m, s in zip(mean, share, strict=True)])
    return measured


class Probed(NamedTuple):
    """The measured cost of a training run.

    Attributes:
        step_seconds: one step of one replicate, with all devices busy.
        evaluation_seconds: one evaluation on validation and test images.
        finish_seconds: the evaluations on the train split at the end.
        bytes: arguments, results and temporary memory of the training program, plus the images.
    """

    step_seconds: float
    evaluation_seconds: float
    finish_seconds: float
    bytes: int


@settings.pinned()
def prepared_segment(trainer: Trainer, job: Job) -> Callable[[], State]:
    """A function that trains a chunk of copies of a job for one more segment per call.

    For measurements: all data are on the devices before the first call.
    """
    width, every = trainer.width, trainer.lengths.evaluate
    mask = replicate.stack(trainer.mesh, [job.mask] * width)
    feed = replicate.stack(trainer.mesh, [_feed(trainer, job)] * width)
    state = replicate.stack(trainer.mesh, [trainer.init(job.variables, job.mask)] * width)
    split = trainer.splits[job.seed].train
    rows = order(split, trainer.lengths, trainer.batch, job.seed, job.level, 0, every)
    each = (mask, feed, replicate.stack(trainer.mesh, [rows] * width))
    shared = (trainer.images, np.int32(0), np.int32(every))

    @settings.pinned()
    def run() -> State:
        nonlocal state
        state, _ = trainer.segment(shared, state, each)
        return state

    return run


@settings.pinned()
def probe(trainer: Trainer, job: Job, seconds: float = 3.0) -> Probed:
    """Measures the cost of a job, for about `seconds` after compilation."""
    width = trainer.width
    mask = replicate.stack(trainer.mesh, [job.mask] * width)
    feed = replicate.stack(trainer.mesh, [_feed(trainer, job)] * width)
    state = replicate.stack(trainer.mesh, [trainer.init(job.variables, job.mask)] * width)
    batches = np.zeros((width, trainer.lengths.evaluate, trainer.batch), np.int32)
    each = (mask, feed, replicate.stack(trainer.mesh, list(batches)))
    shared = (trainer.images, np.int32(0), np.int32(1))
    sizes = trainer.segment.lower(shared, state, each).compile().memory_analysis()  # type: ignore[attr-defined]
    taken = 0.0
    count = 1
    while True:
        began = time.perf_counter()
        shared = (trainer.images, np.int32(0), np.int32(count))
        state, _ = jax.block_until_ready(trainer.segment(shared, state, each))
        taken = time.perf_counter() - began
        if taken > seconds / 2 or count == trainer.lengths.evaluate:
            break
        count = min(2 * count, trainer.lengths.evaluate)
    now = Variables(state.params, state.stats)
    costs = []
    for rows in (_rows(trainer, [job] * width, "validation", "test"), _rows(trainer, [job] * width, "train")):
        # Only the first rows: a whole pass would take too long.
        count = 1 + rows.images.shape[1] // 10
        few = _Rows(rows.images[:, :count], (count,), rows.counts[:, :count])
        _evaluate(trainer, now, feed, few, width)
        began = time.perf_counter()
        _evaluate(trainer, now, feed, few, width)
        costs.append((time.perf_counter() - began) * rows.images.shape[1] / few.parts[0] / width)
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    memory = sum(int(getattr(sizes, part, 0)) for part in parts)
    # Two evaluations on the train split: at the end, and for the early stop.
    return Probed(taken / count / width, costs[0], 2 * costs[1], memory)
