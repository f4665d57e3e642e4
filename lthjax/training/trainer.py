"""A study's compiled programs with its data: what a replicate is fed, and what its evaluations measure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lthjax import batches, data, rng
from lthjax.config import Lengths
from lthjax.devices import replicate
from lthjax.models import Model, Variables
from lthjax.optim import Optimiser
from lthjax.training.job import Job, PyTree
from lthjax.training.step import Feed, State, programs

# Images per evaluation batch. On CPU batches that fit the cache are fastest; an accelerator needs large ones.
_EVALUATION_BATCH = {"cpu": 50}
_EVALUATION_BATCH_ELSEWHERE = 1000
# Every segment brings the order of so many steps to the devices, most of which its first ones do not use.
_LONGEST = 2000
# Evaluation sets kept on the devices.
_ROWS_KEPT = 8
# Train images, in whole batches, of the statistics of weights that are not trained: about as many as a moving
# average of momentum 0.9 remembers of batches of 100.
_FITTED_IMAGES = 1000


class Evaluation(NamedTuple):
    """Mean loss in nats and accuracy over a set of images."""

    loss: float
    accuracy: float


class Rows(NamedTuple):
    """Images for one evaluation.

    Attributes:
        images: indices, one part after another, int32 [R, rows, batch], padded with -1.
        parts: number of rows of every part.
        counts: number of images in every row, [R, rows].
    """

    images: jax.Array
    parts: tuple[int, ...]
    counts: np.ndarray


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
        evaluate, fit: compiled; see `Programs`.
        init_scored, segment_scored: compiled; see `Programs`.
        keep: compiled; (best, params and stats, better [R]) -> best.
        rows: the images of the last evaluations, on the devices.
        log_every: steps between the training losses that are recorded one by one; 0 for none.
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
    fit: Callable[..., PyTree]
    init_scored: Callable[[Variables, PyTree, PyTree], State]
    segment_scored: Callable[..., tuple[State, jax.Array]]
    keep: Callable[..., PyTree]
    rows: dict[tuple[tuple[str, ...], tuple[int, ...]], Rows]
    log_every: int = 0

    @property
    def longest(self) -> int:
        """The steps of a segment at most: those between two evaluations, or `_LONGEST`."""
        return min(self.lengths.evaluate, _LONGEST)


def assemble(
    model: Model,
    optimiser: Optimiser,
    lengths: Lengths,
    dataset: data.Dataset,
    splits: dict[int, data.Split],
    *,
    batch: int,
    augment: bool,
    precision: str = "float32",
    log_every: int = 0,
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
        log_every: as in `config.Train`.
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
        log_every=log_every,
    )


@jax.jit
def _keep(best: Variables, now: Variables, better: jax.Array) -> Variables:
    """The better of two states, per replicate."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, now, best)


def feed_of(trainer: Trainer, job: Job) -> Feed:
    """The inputs of a job's training besides its state and mask."""
    split = trainer.splits[job.seed]
    augment, dropout = (
        jax.random.key_data(rng.stream(job.seed, batches.stream_of(name, job.noise), job.level))
        for name in ("augment", "dropout")
    )
    held = np.int32(trainer.lengths.total - 1 if job.held else -1)
    return Feed(split.mean, split.std, augment, held, dropout)  # type: ignore[arg-type]


def rows_of(trainer: Trainer, jobs: Sequence[Job], *names: str) -> Rows:
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
    trainer.rows[key] = Rows(replicate.stack(trainer.mesh, rows), parts, counts)
    return trainer.rows[key]


def evaluate(
    trainer: Trainer, variables: Variables, feed: Feed, rows: Rows, count: int
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


def statistics(trainer: Trainer, jobs: Sequence[Job], variables: Variables, feed: Feed) -> PyTree:
    """Batch statistics that fit these weights: those of the first batches of every job's order.

    So all arms of a seed and level have the same images, 1,000 or a little more, at most one epoch.

    Args:
        trainer: the programs.
        jobs: one per replicate.
        variables, feed: of the replicates.

    Returns:
        The new statistics; {} for a network that has none.
    """
    if not jax.tree.leaves(variables.stats):
        return variables.stats
    count = min(-(-_FITTED_IMAGES // trainer.batch), trainer.lengths.per_epoch)
    rows = [
        batches.order(
            trainer.splits[job.seed].train, trainer.lengths, trainer.batch, job.seed, job.level, 0, count
        )
        for job in jobs
    ]
    return trainer.fit((trainer.images,), variables, (feed, replicate.stack(trainer.mesh, rows)))
