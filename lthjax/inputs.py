"""What is trained of a study: its programs with their data, and the inputs of every cell."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from lthjax import batches, data, imp, optim, settings
from lthjax.arms import Context
from lthjax.devices import replicate
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell, Task
from lthjax.plan import Prepared
from lthjax.training.trainer import Trainer, assemble


@settings.pinned()
def make_trainer(studies: Sequence[Prepared], chunk: int | None, seeds: Iterable[int]) -> Trainer:
    """The compiled programs of studies that differ only in pruning.

    Args:
        studies: the studies.
        chunk: replicates in a program, or None.
        seeds: the seeds to train.
    """
    prepared = studies[0]
    study = prepared.study
    first = sum(len(one.study.seeds) * _cells(one, 1) for one in studies)
    widest = sum(
        len(one.study.seeds) * max(_cells(one, level) for level in range(1, max(one.study.levels, 1) + 1))
        for one in studies
    )
    mesh = replicate.mesh(widest)
    # A chunk that is not full is filled with copies: on a CPU on cores that would be idle, but on an
    # accelerator beside the others.
    fits = widest if chunk is not None or replicate.one_by_one(mesh) else first
    return assemble(
        prepared.model,
        optim.make(study.optim, prepared.lengths),
        prepared.lengths,
        prepared.dataset,
        data.splits(prepared.dataset, seeds, study.data.validation),
        batch=study.train.batch,
        augment=study.data.augment,
        precision=study.train.precision,
        log_every=study.train.log_every,
        mesh=mesh,
        width=replicate.width(mesh, fits, chunk),
    )


def _cells(prepared: Prepared, level: int) -> int:
    """The cells of a seed at a level, of all chains."""
    chains = imp.chains(prepared.study, prepared.lengths)
    return sum(len(imp.cells_at(prepared.study, 0, chain, level)) for chain in chains)


@settings.pinned()
def first_batch(prepared: Prepared, split: data.Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first batch of a seed's dense network, on which criteria compute gradients."""
    images, labels = first_batches(prepared, split, seed, 1)
    return images[0], labels[0]


@settings.pinned()
def first_batches(
    prepared: Prepared, split: data.Split, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first batches of a seed's dense network: float32 [count, B, H, W, C], normalised, and labels.

    Args:
        prepared: the study.
        split: the seed's split.
        seed: the seed.
        count: number of batches, at most those of one epoch.
    """
    dataset = prepared.dataset
    index = batches.order(split.train, prepared.lengths, prepared.study.train.batch, seed, 0, 0, count)
    images = jnp.asarray(dataset.train_images[index.ravel()])
    scaled = data.gather(images, jnp.arange(index.size), jnp.asarray(split.mean), jnp.asarray(split.std))
    return np.asarray(scaled).reshape(*index.shape, *dataset.shape), dataset.train_labels[index]


@settings.pinned()
def task(prepared: Prepared, run: Reader, cell: Cell) -> Task:
    """The training inputs of a cell: start weights, mask, first and last step.

    Masks and rewind states are read from the folder; fresh weights are drawn again from the cell's own random
    stream. The criterion's scores are left out, as only the making of masks needs them.

    Args:
        prepared: the run's study.
        run: its folder; the cell, its ticket and all that they were made from are done.
        cell: a cell of any seed, chain, level and arm.

    Raises:
        UserError: one of these is missing or cannot be read.
    """
    initial, total = run.state(cell.seed, 0), prepared.lengths.total
    if cell.arm == DENSE:
        return Task(cell, 0, total, initial, run.mask(cell))
    chain = imp.chain_of(prepared.study, cell.chain)
    origin = run.state(cell.seed, chain.rewind)
    ticket = Cell(cell.seed, cell.chain, cell.level, chain.leader)
    parent = imp.parent_of(cell)
    trained = run.variables(parent)
    context = Context(
        imp.key_of(cell),
        lambda key: prepared.model.init(key).params,
        origin.params,
        trained.params,
        run.mask(parent),
        run.mask(ticket),
        scores=None,
    )
    stats = imp.Statistics(initial.stats, origin.stats, trained.stats)
    return imp.task(cell, chain, total, context, run.mask(cell), stats)
