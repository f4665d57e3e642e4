"""A 3x3 convolution with a quarter of the multiplications, and its weight gradient likewise.

Tiles of 4x4 outputs are computed like products of polynomials: images and kernels are evaluated at six
points, multiplied there, and transformed back (Winograd's F(4x4, 3x3)). The products are 36 matrix products
over channels, so the method pays with many channels. It sums other terms than direct convolution; with the
points below its rounding error is about four times as large (`tests/test_conv.py`).

Source: Lavin & Gray 2016 (arXiv 1509.09308), section 4. Points other than the usual 0, ±1, ±2 round less:
Alam et al. 2022 (arXiv 2201.10369); the points here had the smallest error of the simple ones tried.
"""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

TILE = 4
"""Outputs per tile along height and width."""
_TAPS = 3
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_REACH = TILE + _TAPS - 1
# A weight gradient is computed for this many numbers of the images at a time, so that operands fit the cache.
_BLOCK = 2**17

_pinned = lax.optimization_barrier


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [6, 4], G [6, 3], B [6, 6] with A^T ((G g) * (B d)) the outputs y[i] = sum over j of g[j] d[i + j].

    One row per point; the last row is for the point at infinity.
    """

    others = [[other for other in _POINTS if other != point] for point in _POINTS]
    scale = [[np.prod([point - other for other in of])] for point, of in zip(_POINTS, others, strict=True)]
    kernels = np.vander(_POINTS, _TAPS, increasing=True) / scale
    images = [*([*np.poly(of)[::-1], 0] for of in others), np.poly(_POINTS)[::-1]]
    back = np.vander(_POINTS, TILE, increasing=True)
    return np.vstack([back, np.eye(TILE)[-1]]), np.vstack([kernels, np.eye(_TAPS)[-1]]), np.array(images)


_BACK, _KERNELS, _IMAGES = _matrices()


def convolution(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """The convolution of stride 1.

    Args:
        x: images, float [N, H, W, C].
        w: kernel, float [3, 3, C, K].
        padding: ((top, bottom), (left, right)) in pixels.

    Returns:
        float [N, H', W', K].
    """
    k = w.shape[3]
    n, (height, width) = x.shape[0], _outputs(x, padding)
    down, across = _tiles(height), _tiles(width)
    images, kernels = _of_images(x, padding, (height, width)), _of_kernel(w)
    products = [
        [_pinned(v @ u) for v, u in zip(*row, strict=True)] for row in zip(images, kernels, strict=True)
    ]
    rows = [[_pinned(_sum(_BACK[:, i], row)) for i in range(TILE)] for row in products]
    # Pinned, because XLA:CPU would compute the concatenated tiles element by element.
    tiles = [
        [_pinned(_sum(_BACK[:, i], column).reshape(n, down, across, k)) for column in zip(*rows, strict=True)]
        for i in range(TILE)
    ]
    y = jnp.stack([jnp.stack(of_row, 3) for of_row in tiles], 2)
    return y.reshape(n, down * TILE, across * TILE, k)[:, :height, :width]


def weight_gradient(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    """The gradient with respect to the kernel: sums products at the six points, then transforms back.

    Args:
        x: images, float [N, H, W, C].
        dy: gradient of the output, float [N, H', W', K].
        padding: of the convolution.

    Returns:
        float [3, 3, C, K].
    """
    n, height, width, k = dy.shape
    c = x.shape[3]
    down, across = _tiles(height), _tiles(width)
    size = max(s for s in range(1, n + 1) if n % s == 0 and (s == 1 or s * x[0].size <= _BLOCK))

    def block(so_far: list[jax.Array], images: tuple[jax.Array, ...]) -> tuple[list[jax.Array], None]:
        x, dy = images
        whole = ((0, 0), (0, down * TILE - height), (0, across * TILE - width), (0, 0))
        rows = _every(jnp.pad(dy, whole), TILE, down, 1)
        gradients = []
        for i in range(_REACH):
            columns = _every(_pinned(_sum(_BACK[i], rows)), TILE, across, 2)
            gradients += [_pinned(_sum(_BACK[j], columns).reshape(-1, k)) for j in range(_REACH)]
        seen = [v for row in _of_images(x, padding, (height, width)) for v in row]
        return [s + v.T @ g for s, v, g in zip(so_far, seen, gradients, strict=True)], None

    start = [jnp.zeros((c, k), dy.dtype)] * _REACH**2
    blocks = tuple(of.reshape(n // size, size, *of.shape[1:]) for of in (x, dy))
    found, _ = lax.scan(block, start, blocks)
    rows = [
        [_pinned(_sum(_KERNELS[:, j], found[i : i + _REACH])) for j in range(_TAPS)]
        for i in range(0, _REACH**2, _REACH)
    ]
    taps = [[_sum(_KERNELS[:, i], column) for column in zip(*rows, strict=True)] for i in range(_TAPS)]
    return jnp.stack([jnp.stack(of_row) for of_row in taps])


def _outputs(x: jax.Array, padding: Padding) -> tuple[int, int]:
    height, width = (side + sum(pad) - _TAPS + 1 for side, pad in zip(x.shape[1:3], padding, strict=True))
    return height, width


def _tiles(outputs: int) -> int:
    return -(-outputs // TILE)


def _sum(row: np.ndarray, of: Sequence[jax.Array]) -> jax.Array:
    """row @ of, skipping the zeros of `row`."""
    terms = [
        x if factor == 1 else x * np.asarray(factor, x.dtype)
        for factor, x in zip(row, of, strict=True)
        if factor
    ]
    return reduce(jnp.add, terms)


def _every(x: jax.Array, count: int, tiles: int, axis: int) -> list[jax.Array]:
    """For each of `count` positions in a tile, the values at that position in every tile along an axis."""
    return [lax.slice_in_dim(x, first, first + TILE * (tiles - 1) + 1, TILE, axis) for first in range(count)]


def _of_images(x: jax.Array, padding: Padding, outputs: tuple[int, int]) -> list[list[jax.Array]]:
    """Tiles at the points: [6][6] of float [N tiles, C]."""
    edges = [
        (low, _tiles(out) * TILE + _TAPS - 1 - side - low, 0)
        for side, (low, _), out in zip(x.shape[1:3], padding, outputs, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    rows = _every(x, _REACH, _tiles(outputs[0]), 1)
    found = []
    for i in range(_REACH):
        columns = _every(_pinned(_sum(_IMAGES[i], rows)), _REACH, _tiles(outputs[1]), 2)
        found.append([_pinned(_sum(_IMAGES[j], columns).reshape(-1, x.shape[3])) for j in range(_REACH)])
    return found


def _of_kernel(w: jax.Array) -> list[list[jax.Array]]:
    """The kernel at the points: [6][6] of float [C, K]."""
    rows = [_pinned(_sum(_KERNELS[i], list(w))) for i in range(_REACH)]
    return [[_pinned(_sum(_KERNELS[j], list(row))) for j in range(_REACH)] for row in rows]
