"""A convolution and a max-pool whose gradients are fast inside a compiled loop on XLA:CPU.

XLA:CPU compiles the built-in gradients of a convolution badly inside `lax.scan` and other loops: the weight
gradient of a 3x3 convolution with 64 channels takes two orders of magnitude longer than outside. Here the
gradients are ordinary forward convolutions whose operands are laid out explicitly behind an optimisation
barrier. Convolutions of few channels are brought into a form that is fast on XLA:CPU, those of many channels
into one with fewer products (`lthjax.devices.winograd`). On NVIDIA GPUs convolutions of few channels are
products over windows (`lthjax.devices.windows`). All others, there and on other platforms, are the built-in
convolution: the choice is made at lowering, by platform. docs/performance.md has the measurements.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lthjax.devices import windows, winograd
from lthjax.devices.winograd import Padding

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# XLA:CPU uses its fast library only for a convolution whose input or output has more channels than this.
_SLOW_CHANNELS = 16
# Up to this many input channels the gradient by patches is cheaper than the gradient by a convolution.
_PATCHES_UP_TO = 8
# Up to this output width the weight gradient is faster two rows at a time, as the operands then stay in
# the cache.
_NARROW = 16
# Where the operands of a weight gradient take more bytes than this, it is the sum over blocks of images and
# rows: so many images, and rows whose operands take so many bytes, which a core's own cache holds.
_LARGE, _BLOCK_IMAGES, _BLOCK_BYTES = 2**22, 32, 2**19
# 3x3 convolutions with this many input and output channels, and many tiles, need fewer multiplications.
_DEEP = 64
_MANY_TILES = 16


def conv2d(x: jax.Array, w: jax.Array, padding: str | Padding = "SAME", stride: int = 1) -> jax.Array:
    """Two-dimensional convolution.

    Args:
        x: images, float [N, H, W, C].
        w: kernel, float [kh, kw, C, K].
        padding: "SAME", "VALID", or ((top, bottom), (left, right)) in pixels.
        stride: along height and width.

    Returns:
        float [N, H', W', K], equal to `lax.conv_general_dilated` up to rounding, gradients of any order
        included. Gradients support reverse mode only: write a Hessian-vector product as
        `jax.vjp(jax.grad(f), x)`, not as `jax.jvp(jax.grad(f), ...)`.
    """
    pads = _explicit(padding, x.shape, w.shape, stride)
    if stride == 1:
        return _conv(x, w, pads)
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _strided_cpu(x, w, pads, stride),
        default=lambda x, w: _builtin(x, w, pads, stride),
    )


def general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> jax.Array:
    """`conv2d` with the signature of `lax.conv_general_dilated`, for `flax.linen.Conv`.

    Cases that `conv2d` does not cover (unequal strides, dilation, groups) use the built-in convolution.
    """
    plain = (
        lhs.ndim == 4
        and len({*window_strides}) == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == 1
        and precision is None
        and (padding in ("SAME", "VALID") if isinstance(padding, str) else min(map(min, padding)) >= 0)
    )
    if plain:
        return conv2d(lhs, rhs, padding, window_strides[0])
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **others,
    )


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pooling over 2 by 2 windows of stride 2; an odd last row or column is dropped.

    It is a maximum of slices, which costs less than `reduce_window` or a reduction, gradient included. Ties
    of two or of all four values share the gradient equally; those of three do so pair by pair.

    Args:
        x: float [N, H, W, C].

    Returns:
        float [N, H // 2, W // 2, C].
    """
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    top = jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    return jnp.maximum(top, jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def _explicit(padding: Any, images: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> Padding:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images[1:3], kernel[:2], (stride, stride), padding)
    return tuple((int(low), int(high)) for low, high in padding)  # type: ignore[return-value]


def _builtin(x: jax.Array, w: jax.Array, padding: Padding, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _strided_cpu(x: jax.Array, w: jax.Array, padding: Padding, stride: int) -> jax.Array:
    """A strided convolution as one of stride 1 on squares of pixels as channels, for fast gradients."""
    kh, kw, c, k = w.shape
    if kh == kw == 1:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        return _conv(x[:, ::stride, ::stride], w, ((0, 0), (0, 0)))
    taps = [-(-size // stride) for size in (kh, kw)]
    squares, edges = [], []
    for side, size, (low, high), of_kernel in zip(x.shape[1:3], (kh, kw), padding, taps, strict=True):
        squares.append((side + low + high - size) // stride + of_kernel)
        # No tap reads pixels beyond the last square.
        edges.append((low, squares[-1] * stride - side - low, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    x = x.reshape(-1, squares[0], stride, squares[1], stride, c).transpose(0, 1, 3, 2, 4, 5)
    w = jnp.pad(w, ((0, taps[0] * stride - kh), (0, taps[1] * stride - kw), (0, 0), (0, 0)))
    w = w.reshape(taps[0], stride, taps[1], stride, c, k).transpose(0, 2, 1, 3, 4, 5)
    together = stride * stride * c
    return _conv(x.reshape(-1, *squares, together), w.reshape(*taps, together, k), ((0, 0), (0, 0)))


def _patches(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """The convolution as one matrix product over the gathered patches."""
    kh, kw, c, k = w.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    n, height, width = x.shape[0], x.shape[1] - kh + 1, x.shape[2] - kw + 1
    # First along the width, then along the height: kw + kh slices rather than kw kh, and the producer of
    # x runs at most kw times.
    x = jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], axis=-1)
    x = jnp.concatenate([x[:, i : i + height] for i in range(kh)], axis=-1)
    return (x.reshape(-1, kh * kw * c) @ w.reshape(-1, k)).reshape(n, height, width, k)


def _blocked(x: jax.Array, w: jax.Array, padding: Padding, block: int) -> jax.Array:
    """The convolution on images whose columns are taken `block` at a time, as more channels."""
    kh, kw, c, k = w.shape
    n, height, width, _ = x.shape
    vertical, (left, right) = padding
    out_width = width + left + right - kw + 1
    blocks = -(-out_width // block)
    taps = -(-(block + kw - 1) // block)
    reach = (blocks + taps - 1) * block
    x = jnp.pad(x, ((0, 0), (0, 0), (left, reach - width - left), (0, 0)))
    # The kernel shifted right by q columns computes column q of a block.
    shifted = [jnp.pad(w, ((0, 0), (q, taps * block - kw - q), (0, 0), (0, 0))) for q in range(block)]
    wide = jnp.stack(shifted, axis=3).reshape(kh, taps, block * c, block * k)
    y = _builtin(x.reshape(n, height, -1, block * c), wide, (vertical, (0, 0)))
    return y.reshape(n, -1, blocks * block, k)[:, :, :out_width]


def _few_products(kernel: tuple[int, ...], output: tuple[int, ...]) -> bool:
    """Whether `winograd` is faster for a kernel and an output of these shapes."""
    n, height, width, _ = output
    tiles = n * -(-height // winograd.TILE) * -(-width // winograd.TILE)
    whole = min(height, width) >= winograd.TILE
    return kernel[:2] == (3, 3) and min(kernel[2:]) >= _DEEP and whole and tiles >= _MANY_TILES


def _forward_cpu(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    if _few_products(w.shape, jax.eval_shape(partial(_builtin, padding=padding), x, w).shape):
        return winograd.convolution(x, w, padding)
    block = 1
    while block * max(w.shape[2:]) <= _SLOW_CHANNELS:
        block *= 2
    return _blocked(x, w, padding, block) if block > 1 else _builtin(x, w, padding)


def _images(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.ShapeDtypeStruct:
    """The shape of images for which this kernel gives this output."""
    (top, bottom), (left, right) = padding
    (n, height, width, _), (kh, kw, c, _) = dy.shape, w.shape
    return jax.ShapeDtypeStruct(
        (n, height + kh - 1 - top - bottom, width + kw - 1 - left - right, c), dy.dtype
    )


def _kernel(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.ShapeDtypeStruct:
    """The shape of a kernel that maps these images to this output."""
    (top, bottom), (left, right) = padding
    (_, height, width, c), (_, out_height, out_width, k) = x.shape, dy.shape
    kh, kw = height + top + bottom - out_height + 1, width + left + right - out_width + 1
    return jax.ShapeDtypeStruct((kh, kw, c, k), dy.dtype)


def _transposed(function: Callable[[jax.Array], jax.Array], at: Any, dy: jax.Array) -> jax.Array:
    return jax.linear_transpose(function, at)(dy)[0]


def _input_gradient_cpu(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    if w.shape[2] <= _PATCHES_UP_TO:
        return _transposed(lambda x: _patches(x, w, padding), _images(w, dy, padding), dy)
    flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)
    flipped, dy = lax.optimization_barrier((flipped, dy))
    (top, bottom), (left, right) = padding
    kh, kw = w.shape[:2]
    return _forward_cpu(dy, flipped, ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)))


def _weight_gradient_cpu(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    # dw[i, j, c, k] = sum over n, h, w of x[n, h + i, w + j, c] dy[n, h, w, k]: a convolution in which
    # c is the batch axis, n the channel axis, and dy the kernel.
    kernel = _kernel(x, dy, padding).shape
    if _few_products(kernel, dy.shape):
        return winograd.weight_gradient(x, dy, padding)
    if max(padding[0]) >= kernel[0]:
        # Blocks of rows would lie in the padding alone.
        return _weight_gradient_builtin(x, dy, padding)
    rows = 2 if dy.shape[2] <= _NARROW else dy.shape[1]
    if x.nbytes + dy.nbytes <= _LARGE:
        return _weight_gradient_of_rows(x, dy, padding, rows)
    blocks = -(-len(x) // _BLOCK_IMAGES)
    size = -(-len(x) // blocks)
    row = dy.itemsize * size * dy.shape[2] * (x.shape[3] + dy.shape[3])
    rows = max(1, min(dy.shape[1], _BLOCK_BYTES // row))
    # Images of zeros fill the last block up; they add nothing.
    x, dy = (
        jnp.pad(of, ((0, blocks * size - len(of)), *[(0, 0)] * 3)).reshape(blocks, size, *of.shape[1:])
        for of in (x, dy)
    )

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + _weight_gradient_of_rows(x[i], dy[i], padding, rows)

    one = jax.eval_shape(partial(_weight_gradient_of_rows, padding=padding, rows=rows), x[0], dy[0])
    return lax.fori_loop(0, blocks, add, jnp.zeros(one.shape, one.dtype))


def _weight_gradient_of_rows(x: jax.Array, dy: jax.Array, padding: Padding, rows: int) -> jax.Array:
    """The weight gradient as a convolution, so many rows of `dy` at a time."""
    n, height, width, c = x.shape
    pixels, kernel = lax.optimization_barrier((x.transpose(1, 2, 0, 3), dy.transpose(1, 2, 0, 3)))
    # The transpose as a product with the identity: exact, and faster than XLA's loop.
    images = lax.dot_general(jnp.eye(c, dtype=x.dtype), pixels.reshape(-1, c), (((1,), (1,)), ((), ())))
    images = lax.optimization_barrier(images.reshape(c, height, width, n))
    (top, bottom), horizontal = padding
    out_height = kernel.shape[0]
    kh = height + top + bottom - out_height + 1
    total: Any = 0
    for first in range(0, out_height, rows):
        last = min(first + rows, out_height)
        start, stop = first - top, last + kh - 1 - top
        above, below = max(-start, 0), max(stop - height, 0)
        part = images[:, start + above : stop - below]
        total = total + _builtin(part, kernel[first:last], ((above, below), horizontal))
    return total.transpose(1, 2, 0, 3)


def _input_gradient_builtin(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    return _transposed(lambda x: _builtin(x, w, padding), _images(w, dy, padding), dy)


def _weight_gradient_builtin(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    return _transposed(lambda w: _builtin(x, w, padding), _kernel(x, dy, padding), dy)


def _input_gradient_cuda(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    # With more padding than the kernel is wide, some outputs read no pixel.
    narrow = all(edge < size for edges, size in zip(padding, w.shape[:2], strict=True) for edge in edges)
    form = windows.input_gradient if windows.few(w.shape) and narrow else _input_gradient_builtin
    return form(w, dy, padding)


def _weight_gradient_cuda(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    kernel = _kernel(x, dy, padding)
    if windows.few(kernel.shape):
        return windows.weight_gradient(x, dy, kernel.shape, padding)
    return _weight_gradient_builtin(x, dy, padding)


# A convolution y of images x with a kernel w is linear in both, and so are its two gradients: all three
# are derivatives of one trilinear form <y(x, w), dy>. The gradients of each are therefore the other two, and
# a gradient of a gradient (as in a Hessian-vector product) is as fast as the first.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _forward_cpu(x, w, padding),
        cuda=lambda x, w: (windows.convolution if windows.few(w.shape) else _builtin)(x, w, padding),
        default=lambda x, w: _builtin(x, w, padding),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(w: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    return lax.platform_dependent(
        w,
        dy,
        cpu=lambda w, dy: _input_gradient_cpu(w, dy, padding),
        cuda=lambda w, dy: _input_gradient_cuda(w, dy, padding),
        default=lambda w, dy: _input_gradient_builtin(w, dy, padding),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weight_gradient(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    return lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: _weight_gradient_cpu(x, dy, padding),
        cuda=lambda x, dy: _weight_gradient_cuda(x, dy, padding),
        default=lambda x, dy: _weight_gradient_builtin(x, dy, padding),
    )


def _both(
    function: Callable[[jax.Array, jax.Array, Padding], jax.Array],
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, jax.Array]]]:
    return lambda a, b, padding: (function(a, b, padding), (a, b))


def _conv_backward(padding: Padding, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Two separate functions, so that the compiler can drop the input gradient of a first layer.
    x, w = saved
    return _input_gradient(w, dy, padding), _weight_gradient(x, dy, padding)


def _input_gradient_backward(padding: Padding, saved: Any, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
    w, dy = saved
    return _weight_gradient(dx, dy, padding), _conv(dx, w, padding)


def _weight_gradient_backward(padding: Padding, saved: Any, dw: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, dy = saved
    return _input_gradient(dw, dy, padding), _conv(x, dw, padding)


_conv.defvjp(_both(_conv), _conv_backward)
_input_gradient.defvjp(_both(_input_gradient), _input_gradient_backward)
_weight_gradient.defvjp(_both(_weight_gradient), _weight_gradient_backward)
