"""Masked training: one step, a segment of steps as one compiled loop, evaluation, and whole training runs.

A segment is compiled once per study: state, mask, data order, first step and number of steps are arguments.
So levels, arms, seeds, rewind points and odd segment lengths need no further compilation, and a training run
gives the same bits however it is cut into segments.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lthjax import data, models, prune, rng, settings
from lthjax.config import Lengths
from lthjax.devices import replicate
from lthjax.models import Model, Variables
from lthjax.optim import Optimiser

PyTree = Any
# Images per evaluation batch. On CPU batches that fit the cache are fastest; an accelerator needs large ones.
_EVALUATION_BATCH = {"cpu": 50}
_EVALUATION_BATCH_ELSEWHERE = 1000
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
    """

    mean: jax.Array
    std: jax.Array
    key: jax.Array


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
    """

    seed: int
    level: int
    start: int
    stop: int
    variables: Variables
    mask: PyTree
    captures: tuple[int, ...] = ()
    noise: int = 0


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
    """

    init: Callable[[Variables, PyTree], State]
    segment: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]


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
        keep: compiled; (best, params and stats, better [R]) -> best.
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
    keep: Callable[..., PyTree]


Progress = Callable[[int, float | None], None]
"""Called with (replicate steps done since the last call, last mean test accuracy or None)."""


def step(
    model: Model, optimiser: Optimiser, state: State, mask: PyTree, batch: tuple, at: jax.Array
) -> tuple[State, jax.Array]:
    """One masked training step.

    Args:
        model, optimiser: as built.
        state: the state before the step; pruned weights count as 0, whatever their value.
        mask: the mask.
        batch: (images float32 [B, H, W, C], labels int32 [B]).
        at: number of the step, for the learning rate schedule.

    Returns:
        (state after the step, loss before it in nats, shape ()).
    """
    images, labels = batch

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        logits, stats = model.apply(params, state.stats, images, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    tx = prune.masked(optimiser.at(at), mask)
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

    def segment(shared: PyTree, state: State, each: PyTree) -> tuple[State, jax.Array]:
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
            state, loss = step(model, optimiser, state, mask, batch, start + i)
            return state, losses.at[i].set(loss)

        with jax.default_matmul_precision(precision):
            return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(len(order))))

    return Programs(
        init=jax.jit(init),
        segment=replicate.spread(segment, mesh, donate=True),
        evaluate=replicate.spread(_evaluation(model, precision), mesh),
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
def train(trainer: Trainer, jobs: Sequence[Job], progress: Progress) -> list[Trained]:
    """Trains up to `trainer.width` jobs with equal start and stop together.

    Args:
        trainer: the programs.
        jobs: the training runs to do.
        progress: called after every segment.

    Returns:
        One result per job, in the order of the jobs.
    """
    began = time.perf_counter()
    (start, stop), *others = {(job.start, job.stop) for job in jobs}
    assert not others, "jobs of one chunk start and stop together"
    every, mesh = trainer.lengths.evaluate, trainer.mesh
    padded = [*jobs, *[jobs[0]] * (trainer.width - len(jobs))]
    mask = replicate.stack(mesh, [job.mask for job in padded])
    feed = replicate.stack(mesh, [_feed(trainer, job) for job in padded])
    state = replicate.stack(mesh, [trainer.init(job.variables, job.mask) for job in padded])
    # A copy, because every segment donates the buffers of its state to the next.
    best = jax.tree.map(jnp.copy, Variables(state.params, state.stats))
    held_out, seen = _rows(trainer, padded, "validation", "test"), _rows(trainer, padded, "train")
    progresses = [_Record() for _ in jobs]
    marks = {*range(start - start % every, stop, every), stop}
    marks |= {step for job in jobs for step in job.captures}
    marks = {mark for mark in marks if mark >= start}

    at = start
    for mark in sorted(marks):
        if mark > at:
            each = (mask, feed, replicate.stack(mesh, _orders(trainer, padded, at, mark - at)))
            shared = (trainer.images, np.int32(at), np.int32(mark - at))
            state, losses = trainer.segment(shared, state, each)
            for record, values in zip(progresses, np.asarray(losses), strict=False):
                record.add_losses(at, values[: mark - at])
        done, at, accuracy = mark - at, mark, None
        now = Variables(state.params, state.stats)
        wanted = [i for i, job in enumerate(jobs) if at in job.captures]
        if wanted:
            copies = replicate.unstack(now, len(jobs))
            for i in wanted:
                progresses[i].states[at] = copies[i]
        if at == stop or (at > start and at % every == 0):
            measured = _evaluate(trainer, now, feed, held_out, len(jobs))
            better = [
                record.add_evaluation(at, *values)
                for record, *values in zip(progresses, *measured, strict=True)
            ]
            better += [False] * (len(padded) - len(jobs))
            best = trainer.keep(best, now, np.array(better))
            accuracy = float(np.mean([test.accuracy for test in measured[1]]))
        progress(done * len(jobs), accuracy)
        if all(record.reason for record in progresses):
            progress((stop - at) * len(jobs), None)
            break

    now = Variables(state.params, state.stats)
    finals = replicate.unstack(now, len(jobs))
    ends = [m.accuracy for m in _evaluate(trainer, now, feed, seen, len(jobs))[0]]
    earlies = ends
    if not all(record.ended_best() for record in progresses):
        earlies = [m.accuracy for m in _evaluate(trainer, best, feed, seen, len(jobs))[0]]
    seconds = (time.perf_counter() - began) / len(jobs)
    return [
        record.result(final, end, early, seconds)
        for record, final, end, early in zip(progresses, finals, ends, earlies, strict=True)
    ]


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

    def __init__(self) -> None:
        self.states: dict[int, Variables] = {}
        self.curves: dict[str, list[Any]] = {name: [] for name in _CURVES}
        self.reason = ""
        self.losses: list[np.ndarray] = []

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
        steps = np.concatenate(self.losses) if self.losses else None
        train_loss = None if steps is None else float(steps.mean(dtype=np.float64))
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
    return Feed(split.mean, split.std, jax.random.key_data(key))  # type: ignore[arg-type]


class _Rows(NamedTuple):
    """Images for one evaluation.

    Attributes:
        images: indices, one part after another, int32 [R, rows, batch], padded with -1.
        parts: number of rows of every part.
    """

    images: jax.Array
    parts: tuple[int, ...]


def _rows(trainer: Trainer, jobs: Sequence[Job], *names: str) -> _Rows:
    """The images of these parts of the data, in evaluation batches."""
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

    return _Rows(replicate.stack(trainer.mesh, [filled(job) for job in jobs]), parts)


def _evaluate(
    trainer: Trainer, variables: Variables, feed: Feed, rows: _Rows, count: int
) -> list[list[Evaluation]]:
    """Mean loss and accuracy of the first `count` replicates, for every part."""
    losses, hits = trainer.evaluate((trainer.images,), variables, (feed, rows.images))
    images = (np.asarray(rows.images) >= 0).sum(2)
    measured = []
    for last, rows_in_part in zip(np.cumsum(rows.parts), rows.parts, strict=True):
        part = (slice(count), slice(last - rows_in_part, last))
        n = images[part].sum(1)
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
        few = _Rows(rows.images[:, : 1 + rows.images.shape[1] // 10], (1 + rows.images.shape[1] // 10,))
        _evaluate(trainer, now, feed, few, width)
        began = time.perf_counter()
        _evaluate(trainer, now, feed, few, width)
        costs.append((time.perf_counter() - began) * rows.images.shape[1] / few.parts[0] / width)
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    memory = sum(int(getattr(sizes, part, 0)) for part in parts)
    # Two evaluations on the train split: at the end, and for the early stop.
    return Probed(taken / count / width, costs[0], 2 * costs[1], memory)
