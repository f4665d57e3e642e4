"""Sequential networks on TPU: blocks of 2 by 2 pixels as lanes, a 3x3 convolution as one of 2x2 blocks.

A TPU multiplies tiles of 128 by 128, and an array [N, H, W, C] of few channels fills little of one. Here the
lanes are a block of 2 by 2 pixels with their channels, of one or two images. A block of outputs depends on
4 by 4 inputs: these are exactly 2 by 2 blocks, if the blocks of the inputs begin one pixel before those of
the outputs. So the blocks of every second array begin at pixel -1, and no pixel changes its place between two
convolutions. 9 of 16 entries of a kernel between two blocks are weights.

Arrays are [rows of blocks, columns of blocks, N / G, 4 G C]: lanes by row and column in the block, image of a
group of G, and channel. Slices along rows and columns cost nothing.
docs/performance.md has the estimates of the TPU compiler.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lthjax.devices.rows import Product, larger

# A register of a TPU has 8 rows of 128 lanes.
_LANES = 128
_ROWS = 8
# With more channels a block fills more than two tiles, and 2x2 blocks are no fewer products than 3x3 pixels.
CHANNELS = 64
NUMBERS = ("HWNC", "HWIO", "HWNC")


class Reach(NamedTuple):
    """Along a side, which pixels of the inputs one of the outputs depends on.

    Attributes:
        blocks: of inputs that one of outputs depends on.
        stride: pixels of the input from one of the output to the next.
        first: where in these blocks the first tap of the first pixel of the output is.
    """

    blocks: int
    stride: int = 1
    first: int = 0


SAME = Reach(2)


def fits(layers: Sequence[Any], shape: Sequence[int]) -> bool:
    """Whether a sequential network has this form: 3x3 convolutions in pairs, of few channels, even sides.

    Args:
        layers: of `lthjax.networks.Layer`.
        shape: (H, W, C) of the images.
    """
    convolutions = [layer for layer in layers if layer.size]
    sides = np.array(shape[:2])
    for index, layer in enumerate(convolutions):
        if (layer.size, layer.padding) != (3, "SAME") or layer.features > CHANNELS or layers[index] != layer:
            return False
        # A pool, and the end, need blocks that begin at pixel 0, as after an even number of convolutions.
        if (sides % (4 if layer.pool else 2)).any() or (layer.pool and index % 2 == 0):
            return False
        sides = sides // (2 if layer.pool else 1)
    return 0 < len(convolutions) < len(layers) and len(convolutions) % 2 == 0


def forward(
    layers: Sequence[Any],
    params: Any,
    images: jax.Array,
    product: Product,
    convolution: Callable[..., jax.Array],
) -> jax.Array:
    """The logits of a sequential network that `fits`, equal to those of its Flax module up to rounding.

    Gradients of any order are those of plain JAX; two equal values in a pool share the gradient.

    Args:
        layers: of `lthjax.networks.Layer`; a ReLU follows every layer but the last.
        params: layer -> `kernel` and `bias`.
        images: float [N, H, W, C].
        product: `lax.dot_general`, or a function of the same arguments.
        convolution: `lax.conv_general_dilated`, likewise.

    Returns:
        float [N, units of the last layer].
    """
    n, group = images.shape[0], lane_group(layers[0].features)
    x, inside = packed(images, group)
    # Whether the first block has the pixels -1 and 0, rather than 0 and 1.
    before = False
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        kernel, bias = params[layer.name]["kernel"], params[layer.name]["bias"]
        if layer.size:
            parts = group // min(group, lane_group(layer.features))
            of_blocks = block_kernel(kernel, group, parts)
            x = convolution(x, of_blocks, (1, 1), "VALID", dimension_numbers=NUMBERS)
            inside, before = inside[1:-1, 1:-1], not before
            # Lanes of fewer images, each still a whole tile.
            x = jnp.concatenate(jnp.split(x, parts, -1), 2)
            group //= parts
            if layer.pool:
                x = _halved(_halved(x, 0, 2 * group * layer.features), 1, group * layer.features)
                inside = inside[::2, ::2]
            if not before:
                # A frame of blocks for the next convolution to read.
                edge = int(following.size > 0)
                x = jnp.pad(x, ((edge, edge), (edge, edge), (0, 0), (0, 0)))
                inside = np.pad(inside, 2 * edge)
            # The bias after the pool: a maximum of sums with one number is the sum with the maximum.
            x = activated(x + jnp.tile(bias, 4 * group).reshape(1, 1, 1, -1), inside)
            if not following.size:
                x = _flat(x, group)[:n]
        else:
            x = product(x, kernel, (((1,), (0,)), ((), ()))) + bias.reshape(1, -1)
            x = x if following is None else jax.nn.relu(x)
    return x


def lane_group(channels: int) -> int:
    """How many images share the lanes, so that a block with these channels fills them: a power of two."""
    return 1 << max(0, (_LANES // (4 * channels)).bit_length() - 1)


def packed(images: jax.Array, group: int) -> tuple[jax.Array, np.ndarray]:
    """Images in blocks with a frame of one block, and which pixels are inside, bool [H + 4, W + 4].

    Image m of a group's lanes is number m N / G + the position along the third axis, also after every layer.
    """
    n, height, width, channels = images.shape
    more = -n % (_ROWS * group)
    x = jnp.pad(images, ((0, more), (2, 2), (2, 2), (0, 0)))
    x = x.reshape(group, -1, height // 2 + 2, 2, width // 2 + 2, 2, channels).transpose(2, 4, 1, 3, 5, 0, 6)
    return x.reshape(*x.shape[:3], -1), np.pad(np.ones((height, width), bool), 2)


def _flat(x: jax.Array, group: int) -> jax.Array:
    """Blocks that begin at pixel 0, as rows of pixels with their channels, [N, H W C]."""
    down, across, n, lanes = x.shape
    x = x.reshape(down, across, n, 2, 2, group, lanes // (4 * group)).transpose(5, 2, 0, 3, 1, 4, 6)
    return x.reshape(group * n, -1)


def block_kernel(kernel: jax.Array, group: int, parts: int, reach: Reach = SAME) -> jax.Array:
    """A kernel [S, S, C, K] as that of blocks, [B, B, 4 G C, 4 G K].

    The images of a group are in so many parts, outermost in the lanes of outputs; a part has every
    parts-th image.
    """
    size, _, channels, features = kernel.shape
    rest, count, lanes = group // parts, 2 * reach.blocks, np.arange(4 * group * features) // features
    # Weights are copied by products with ones and zeros, which is exact: other ways shuffle lanes.
    x = _exact(kernel, np.tile(np.eye(features), (1, 4 * group)))
    for axis, second in enumerate((lanes // rest // 2 % 2, lanes // rest % 2)):
        # A pixel of the inputs is one tap of the first pixel of the outputs, and another of the second.
        edges = [(first, count - size - first, 0) for first in (reach.first, reach.first + reach.stride)]
        pads = [[edge if axis == a else (0, 0, 0) for a in range(4)] for edge in edges]
        one, two = (lax.pad(x, jnp.zeros((), x.dtype), pad) for pad in pads)
        x = jnp.where(second.astype(bool).reshape(1, 1, 1, -1), two, one)
    x = x.reshape(reach.blocks, 2, reach.blocks, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    if group > 1:
        image = lanes % rest * parts + lanes // rest // 4
        own = (image == np.arange(group).reshape(group, 1)).reshape(1, 1, 1, 1, group, 1, -1)
        x = jnp.where(own, jnp.expand_dims(x, 4), jnp.zeros((), x.dtype))
    return x.reshape(reach.blocks, reach.blocks, 4 * group * channels, -1)


def _halved(x: jax.Array, axis: int, lanes: int) -> jax.Array:
    """Max-pooling along a side whose two pixels in a block are so many lanes apart.

    Two blocks become one. What is to change its place is half of each, brought together first.
    """
    place = np.arange(x.shape[3])
    first = (place // lanes % 2 == 0).reshape(1, 1, 1, -1)
    swap = np.eye(len(place))[place + np.where(first[0, 0, 0], lanes, -lanes)]
    even, odd = (lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
    first = np.broadcast_to(first, even.shape)
    moved = _exact(jnp.where(first, odd, even), swap)
    return larger(jnp.where(first, even, moved), jnp.where(first, moved, odd))


def _exact(x: jax.Array, selection: np.ndarray) -> jax.Array:
    """x times a matrix of ones and zeros with one 1 a column: values in other places, unrounded."""
    selected = jnp.asarray(selection, x.dtype)
    return lax.dot_general(x, selected, (((x.ndim - 1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def activated(x: jax.Array, inside: np.ndarray) -> jax.Array:
    """ReLU, and 0 outside the image; `inside` as for `ones_inside`."""
    return _relu(x, ones_inside(x, inside))


def ones_inside(x: jax.Array, inside: np.ndarray) -> jax.Array:
    """1 where blocks have pixels of the image, else 0, [rows, columns, 1, lanes].

    Args:
        x: the blocks.
        inside: bool [2 rows, 2 columns], by pixel.
    """
    down, across, _, lanes = x.shape
    mask = inside.reshape(down, 2, across, 2).transpose(0, 2, 1, 3).reshape(down, across, 1, 4)
    return jnp.asarray(mask.repeat(lanes // 4, 3), x.dtype)


@jax.custom_jvp
def _relu(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) * mask


@_relu.defjvp
def _relu_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = _relu(*primals)
    return y, jnp.where(y > 0, tangents[0], jnp.zeros((), y.dtype))
