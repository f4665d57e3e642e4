"""The order of the batches of a training run."""

from functools import lru_cache

import jax
import numpy as np

from lthjax import rng, settings
from lthjax.config import Lengths


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
    return np.asarray(jax.random.permutation(rng.stream(seed, stream_of("order", noise), level, epoch), n))


def stream_of(name: str, noise: int) -> str:
    """The name of a random stream; noise 0, the study's own, adds no number."""
    return f"{name}/{noise}" if noise else name
