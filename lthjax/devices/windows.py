"""Convolutions of few channels on NVIDIA GPUs: matrix products over windows of several output columns.

Under `vmap` over replicates the built-in convolution becomes a grouped one, which is slow there. Here an
image is cut into windows, each with the pixels that a few neighbouring output columns read; one matrix
product makes those columns from it. That reads fewer pixels twice than one window for each output pixel, and
gives the product more columns. docs/performance.md has the measurements.
"""

import jax
import jax.numpy as jnp

from lthjax.devices.winograd import Padding

# Columns of the product at which it was fastest: features times output columns of a window.
_COLUMNS = 64
_MOST = 8
# The form was measured for kernels of up to so many input and output channels; others stay built in.
_FEW = 32


def few(kernel: tuple[int, ...]) -> bool:
    """Whether this form is used for a kernel [kh, kw, C, K] of this shape."""
    return max(kernel[2:]) <= _FEW


def convolution(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """A convolution of stride 1.

    Args:
        x: float [N, H, W, C].
        w: float [kh, kw, C, K].
        padding: ((top, bottom), (left, right)) in pixels.

    Returns:
        float [N, H', W', K].
    """
    kh, kw, _, k = w.shape
    width = x.shape[2] + sum(padding[1]) - kw + 1
    cut = _cut(x, (kh, kw), padding, width, _together(k))
    y = cut.reshape(-1, cut.shape[-1]) @ _joint(w, _together(k))
    return y.reshape(*cut.shape[:2], -1, k)[:, :, :width]


def weight_gradient(x: jax.Array, dy: jax.Array, kernel: tuple[int, ...], padding: Padding) -> jax.Array:
    """The gradient of the sum of y * dy with respect to the kernel, y being the convolution.

    Args:
        x: float [N, H, W, C].
        dy: float [N, H', W', K].
        kernel: the kernel's shape, (kh, kw, C, K).
        padding: of the convolution.

    Returns:
        float [kh, kw, C, K].
    """
    n, height, width, k = dy.shape
    together = _together(k)
    cut = _cut(x, kernel[:2], padding, width, together)
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, cut.shape[2] * together - width), (0, 0)))
    # One product for each image: the sum over all pixels in one would leave most of the GPU idle.
    products = jnp.einsum(
        "npi,npj->nij", cut.reshape(n, -1, cut.shape[-1]), dy.reshape(n, height * cut.shape[2], -1)
    )
    like = jax.ShapeDtypeStruct(kernel, dy.dtype)
    return jax.linear_transpose(lambda w: _joint(w, together), like)(products.sum(0))[0]


def input_gradient(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    """The gradient of the sum of y * dy with respect to the images, by a convolution of `dy`.

    Args:
        w: float [kh, kw, C, K].
        dy: float [N, H', W', K].
        padding: of the convolution; smaller than the kernel.

    Returns:
        float [N, H, W, C].
    """
    (top, bottom), (left, right) = padding
    kh, kw = w.shape[:2]
    pads = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
    return convolution(dy, w[::-1, ::-1].transpose(0, 1, 3, 2), pads)


def _together(features: int) -> int:
    """Output columns of a window."""
    return max(1, min(_MOST, _COLUMNS // features))


def _cut(x: jax.Array, kernel: tuple[int, ...], padding: Padding, width: int, together: int) -> jax.Array:
    """Windows for `together` of `width` output columns each.

    Returns:
        float [N, H', windows, kh (kw + together - 1) C].
    """
    (top, bottom), (left, right) = padding
    windows, columns = -(-width // together), kernel[1] + together - 1
    beyond = (windows - 1) * together + columns - x.shape[2] - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, max(right, beyond)), (0, 0)))
    height, last = x.shape[1] - kernel[0] + 1, (windows - 1) * together + 1
    x = jnp.concatenate([x[:, :, j : j + last : together] for j in range(columns)], axis=-1)
    return jnp.concatenate([x[:, i : i + height] for i in range(kernel[0])], axis=-1)


def _joint(w: jax.Array, together: int) -> jax.Array:
    """The matrix [kh (kw + together - 1) C, together K] that makes a window's output columns."""
    kh, kw, c, k = w.shape
    shifted = [jnp.pad(w, ((0, 0), (q, together - 1 - q), (0, 0), (0, 0))) for q in range(together)]
    return jnp.stack(shifted, axis=3).reshape(kh * (kw + together - 1) * c, together * k)
