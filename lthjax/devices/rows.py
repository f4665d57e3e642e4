"""Sequential networks on TPU: a row of pixels as lanes, a convolution as products with banded matrices.

A TPU works on 128 lanes at a time, and an array [N, H, W, C] of few channels fills few of them. Here images
are [H, N, W C]: a row of pixels with their channels fills the lanes, and rows of an image are slices along
the first axis, which cost nothing. A convolution is one product per row of its kernel, with a matrix whose
bands hold the kernel's weights. Before a pool, the even and the odd columns are separate products, so that
the pool is a maximum of whole arrays. The zeros beside the bands are multiplied too, hence only for narrow
rows.
docs/performance.md has the estimates of the TPU compiler, also for other forms.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lthjax.devices.winograd import Padding

# Kernel rows that fill no more lanes together are one product; every product takes the compiler seconds.
_JOINED = 512
_NARROW = 512
Product = Callable[..., jax.Array]


def narrow(layers: Sequence[Any], width: int) -> bool:
    """Whether a sequential network for images of this width has convolutions, all with narrow rows."""
    lanes = [0]
    for layer in layers:
        if layer.size:
            lanes.append(width * layer.features)
            width = (width - (layer.size - 1 if layer.padding == "VALID" else 0)) // (2 if layer.pool else 1)
    return 0 < max(lanes) <= _NARROW


def forward(layers: Sequence[Any], params: Any, images: jax.Array, product: Product) -> jax.Array:
    """The logits of a sequential network, equal to those of its Flax module up to rounding.

    Gradients of any order are those of plain JAX; ties in a pool share the gradient as in `conv.max_pool`.

    Args:
        layers: of `lthjax.networks.Layer`; a ReLU follows every layer but the last.
        params: layer -> `kernel` and `bias`.
        images: float [N, H, W, C].
        product: `lax.dot_general`, or a function of the same arguments.

    Returns:
        float [N, units of the last layer].
    """
    n, height, width, channels = images.shape
    x = images.transpose(1, 0, 2, 3).reshape(height, n, width * channels)
    for layer in layers:
        kernel, bias = params[layer.name]["kernel"], params[layer.name]["bias"]
        if layer.size:
            sides = (x.shape[0], x.shape[2] // channels)
            pads = lax.padtype_to_pads(sides, kernel.shape[:2], (1, 1), layer.padding)
            parts = convolution(x, kernel, tuple(pads), layer.pool, product)  # type: ignore[arg-type]
            channels = layer.features
            # The bias after the pool: a maximum of sums with one number is the sum with the maximum.
            x = _pooled(*parts) if layer.pool else parts[0]
            x = x + jnp.tile(bias, x.shape[2] // channels).reshape(1, 1, -1)
        elif x.ndim == 3:
            units = kernel.reshape(x.shape[0], x.shape[2], -1)
            x = product(x, units, (((0, 2), (0, 1)), ((), ()))) + bias.reshape(1, -1)
        else:
            x = product(x, kernel, (((1,), (0,)), ((), ()))) + bias.reshape(1, -1)
        if layer is not layers[-1]:
            x = jax.nn.relu(x)
    return x


def convolution(
    x: jax.Array, kernel: jax.Array, padding: Padding, halves: bool, product: Product
) -> list[jax.Array]:
    """A convolution of stride 1 on rows of pixels.

    Args:
        x: float [H, N, W C].
        kernel: float [kh, kw, C, K].
        padding: ((top, bottom), (left, right)) in pixels.
        halves: whether even and odd columns are separate; a last column without a partner is dropped.
        product: as for `forward`.

    Returns:
        [float [H', N, W' K]], or [even, odd columns], float [H', N, (W' // 2) K].
    """
    kh, kw, channels, _ = kernel.shape
    (top, bottom), (left, right) = padding
    lanes, height = x.shape[2], x.shape[0] + top + bottom - kh + 1
    columns, step = lanes // channels + left + right - kw + 1, 2 if halves else 1
    x = jnp.pad(x, ((top, bottom), (0, 0), (0, 0)))
    rows = [x[i : i + height] for i in range(kh)]
    joined = kh * lanes <= _JOINED
    if joined:
        rows = [jnp.concatenate(rows, -1)]
    found = []
    for first in range(step):
        bands = _bands(kernel, (first - left) * channels, lanes, columns // step, step)
        if joined:
            bands = bands.reshape(1, kh * lanes, -1)
        products = [product(r, band, (((2,), (0,)), ((), ()))) for r, band in zip(rows, bands, strict=True)]
        found.append(reduce(jnp.add, products))
    return found


def _bands(kernel: jax.Array, offset: int, lanes: int, count: int, step: int) -> jax.Array:
    """Banded matrices, float [kh, lanes, count K]: output column q reads from lane offset + q step C on."""
    kh, kw, channels, features = kernel.shape
    flat = kernel.reshape(kh, kw * channels, features)
    zero = jnp.zeros((), flat.dtype)
    bands = []
    for q in range(count):
        low = offset + q * step * channels
        # A negative edge cuts off the weights that would read padding.
        edges = (low, lanes - low - kw * channels, 0)
        bands.append(lax.pad(flat, zero, ((0, 0, 0), edges, (0, 0, 0))))
    return jnp.concatenate(bands, -1)


def _pooled(even: jax.Array, odd: jax.Array) -> jax.Array:
    """Max-pooling over 2 by 2 windows of even and odd columns [H, N, L]; an odd last row is dropped."""
    x = larger(even, odd)
    height = x.shape[0] // 2 * 2
    # Slices: a reshape to [H / 2, 2, ...] takes the compiler minutes longer.
    return larger(x[0:height:2], x[1:height:2])


@jax.custom_jvp
def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum; equal values share the gradient. `jnp.maximum` divides by the number of equals instead."""
    return jnp.maximum(a, b)


@larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    # 1, 0 or a half, exact in two bytes. Comparisons would be kept for the gradient, packed row by row into
    # bits: a tenth of LeNet-5's cycles.
    share = (0.5 * (1 + jnp.sign(a - b))).astype(jnp.bfloat16).astype(a.dtype)
    return larger(a, b), share * da + (1 - share) * db
