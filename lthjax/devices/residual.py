"""Residual networks on TPU, in the blocks of `lthjax.devices.blocks`.

Between residual blocks, the first block of pixels has the pixels -1 and 0 of a side. After the first
convolution of a residual block it has 0 and 1, after the second -1 and 0 again: nothing moves, and the sum
with the shortcut is one of whole arrays. The statistics of a batch are those of the pixels of its images.
docs/performance.md has the estimates of the TPU compiler.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lthjax.devices.blocks import (
    CHANNELS,
    NUMBERS,
    SAME,
    Reach,
    activated,
    block_kernel,
    lane_group,
    ones_inside,
    packed,
)
from lthjax.devices.rows import Product

PyTree = Any
_HALVING = Reach(3, 2)
_SHORTCUT = Reach(2, 2, 1)


class Norm(NamedTuple):
    """How batch normalisations compute.

    Attributes:
        train: by the statistics of the batch, whose moving averages are updated; else by the averages.
        momentum: the share of the old average.
        epsilon: is added to the variance.
    """

    train: bool
    momentum: float
    epsilon: float


class _Place(NamedTuple):
    """Which entries of an array of blocks are pixels of images.

    Attributes:
        images: how many there are.
        group: images in the lanes of a block.
        sides: of an image.
        before: whether the first block has the pixels -1 and 0 of a side.
    """

    images: int
    group: int
    sides: tuple[int, int]
    before: bool

    def inside(self) -> np.ndarray:
        """Of images, or of the padding of the batch; by pixel, as for `blocks.ones_inside`."""
        return np.pad(np.ones(self.sides, bool), int(self.before))

    def real(self, rows: int, lanes: int) -> np.ndarray:
        """Not of the padding of the batch: bool [1, 1, rows, lanes]."""
        image = np.arange(rows).reshape(-1, 1) + rows * np.arange(self.group)
        return np.tile((image < self.images).repeat(lanes // 4 // self.group, 1), (1, 1, 1, 4))


def fits(stages: Any, shape: tuple[int, ...]) -> bool:
    """Whether a residual network has this form: few channels, and even sides in every stage.

    Args:
        stages: a `lthjax.networks.Stages`, or None.
        shape: (H, W, C) of the images.
    """
    if stages is None or max(stages.widths) > CHANNELS:
        return False
    return not (np.array(shape[:2]) % 2 ** len(stages.widths)).any()


def forward(
    stages: Any,
    params: PyTree,
    stats: PyTree,
    images: jax.Array,
    norm: Norm,
    product: Product,
    convolution: Callable[..., jax.Array],
) -> tuple[jax.Array, PyTree]:
    """The logits of a residual network that `fits`, equal to those of its Flax module up to rounding.

    Gradients of any order are those of plain JAX.

    Args:
        stages: a `lthjax.networks.Stages`.
        params: as of its Flax module.
        stats: its collection `batch_stats`.
        images: float [N, H, W, C].
        norm: how batch normalisations compute.
        product: `lax.dot_general`, or a function of the same arguments.
        convolution: `lax.conv_general_dilated`, likewise.

    Returns:
        float [N, units of the output layer], and the new `batch_stats`.
    """
    net = _Network(norm, convolution)
    place = _Place(len(images), lane_group(stages.widths[0]), (images.shape[1], images.shape[2]), True)
    x, _ = packed(images, place.group)
    x = net.convolved(x, params["conv1"], place.group)
    x, first = net.normalised(x, params["norm1"], stats["norm1"], place)
    x = activated(x, place.inside())
    new = {"norm1": first}
    for stage, width in enumerate(stages.widths, 1):
        for block in range(1, stages.blocks + 1):
            name = f"stage{stage}_block{block}"
            given = params[name], stats[name], place
            if stage > 1 and block == 1:
                x, place, new[name] = net.halved(x, *given, min(place.group, lane_group(width)))
            else:
                y = net.convolved(x, params[name]["conv1"], place.group)
                x, new[name] = net.ending(x, y, *given)
    x = x.sum((0, 1)).reshape(x.shape[2], 4, place.group, -1).sum(1) / np.prod(place.sides)
    x = x.transpose(1, 0, 2).reshape(-1, x.shape[-1])[: place.images]
    last = params["output"]
    return product(x, last["kernel"], (((1,), (0,)), ((), ()))) + last["bias"].reshape(1, -1), new


class _Network(NamedTuple):
    """The layers of a residual network."""

    norm: Norm
    convolution: Callable[..., jax.Array]

    def convolved(
        self, x: jax.Array, params: PyTree, group: int, parts: int = 1, reach: Reach = SAME, edge: int = 0
    ) -> jax.Array:
        """A convolution; `edge` is the blocks of padding before the first."""
        kernel, pads = block_kernel(params["kernel"], group, parts, reach), ((edge, 0), (edge, 0))
        strides = (reach.stride, reach.stride)
        x = self.convolution(x, kernel, strides, pads, dimension_numbers=NUMBERS)
        # Lanes of fewer images, each still a whole tile.
        return jnp.concatenate(jnp.split(x, parts, -1), 2)

    def normalised(
        self, x: jax.Array, params: PyTree, stats: PyTree, place: _Place, frame: int = 0
    ) -> tuple[jax.Array, PyTree]:
        """A batch normalisation, then so many blocks around, which are not 0; and its new statistics."""
        mean, variance = stats["mean"], stats["var"]
        if self.norm.train:
            mean, variance = _moments(x, place, len(mean))
            old = self.norm.momentum
            found = {"mean": mean, "var": variance}
            stats = {name: old * stats[name] + (1 - old) * value for name, value in found.items()}
        scale = lax.rsqrt(variance + self.norm.epsilon) * params["scale"]
        # A frame directly before a convolution would become part of it, with a slower gradient.
        x = jnp.pad(x, ((frame, frame), (frame, frame), (0, 0), (0, 0)))
        x = x * _in_lanes(scale, place) + _in_lanes(params["bias"] - mean * scale, place)
        return x, stats

    def ending(
        self, x: jax.Array, y: jax.Array, params: PyTree, stats: PyTree, place: _Place
    ) -> tuple[jax.Array, PyTree]:
        """A residual block from its first normalisation on; x is the shortcut, y the first convolution."""
        y, first = self.normalised(y, params["norm1"], stats["norm1"], place._replace(before=False), 1)
        y = activated(y, np.pad(np.ones(place.sides, bool), 2))
        y = self.convolved(y, params["conv2"], place.group)
        y, second = self.normalised(y, params["norm2"], stats["norm2"], place)
        return activated(x + y, place.inside()), {"norm1": first, "norm2": second}

    def halved(
        self, x: jax.Array, params: PyTree, stats: PyTree, place: _Place, group: int
    ) -> tuple[jax.Array, _Place, PyTree]:
        """The first residual block of a stage, which halves the sides."""
        parts = place.group // group
        y = self.convolved(x, params["conv1"], place.group, parts, _HALVING)
        x = self.convolved(x, params["shortcut"], place.group, parts, _SHORTCUT, 1)
        height, width = place.sides
        place = place._replace(group=group, sides=(height // 2, width // 2))
        x, norm = self.normalised(x, params["shortcut_norm"], stats["shortcut_norm"], place)
        x, new = self.ending(x, y, params, stats, place)
        return x, place, new | {"shortcut_norm": norm}


def _moments(x: jax.Array, place: _Place, channels: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every channel over the pixels of images, as `flax.linen.BatchNorm` has them."""
    rows, lanes = x.shape[2:]
    if place.before:
        x = x * ones_inside(x, place.inside())
    if rows * place.group != place.images:
        x = x * jnp.asarray(place.real(rows, lanes), x.dtype)
    count = place.images * place.sides[0] * place.sides[1]
    mean, square = ((power.sum((0, 1, 2)).reshape(-1, channels).sum(0) / count) for power in (x, x * x))
    return mean, jnp.maximum(0, square - mean * mean)


def _in_lanes(values: jax.Array, place: _Place) -> jax.Array:
    """Values of channels for the lanes of blocks."""
    return jnp.tile(values, 4 * place.group).reshape(1, 1, 1, -1)
