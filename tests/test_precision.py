"""Rounded factors: bit patterns by hand, products and gradients by independent computations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lthjax import models
from lthjax.devices import conv, precision

BITS = {"tensorfloat32": 10, "bfloat16": 7}
DTYPES = pytest.mark.parametrize("name", BITS)


def by_hand(x: Any, name: str) -> np.ndarray:
    """Rounds to nearest, ties to even, on the bits of float32; returns float64."""
    dropped = 23 - BITS[name]
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    odd = (bits >> np.uint64(dropped)) & np.uint64(1)
    half = np.uint64(2 ** (dropped - 1) - 1)
    kept = (bits + half + odd) >> np.uint64(dropped) << np.uint64(dropped)
    return kept.astype(np.uint32).view(np.float32).astype(np.float64)


def drawn(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@DTYPES
def test_a_product_of_ones_shows_the_rounding(name: str) -> None:
    ulp = 2.0 ** -BITS[name]
    a = jnp.array([1 + ulp, 1 + 0.49 * ulp, 1 + 0.5 * ulp, 1 + 1.5 * ulp, -3.7e-30, 2.0**100])
    with jax.default_matmul_precision(name):
        got = precision.rounded(jnp.multiply)(a, jnp.ones(6))
    np.testing.assert_array_equal(got[:4], [1 + ulp, 1, 1, 1 + 2 * ulp])
    np.testing.assert_array_equal(got, by_hand(a, name))


@DTYPES
def test_products_and_gradients_of_a_dense_layer_by_hand(name: str) -> None:
    x, w, t = drawn(0, 20, 50), drawn(1, 50, 30), drawn(2, 20, 30)

    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        return (precision.rounded(jnp.matmul)(x, w) * t).sum()

    with jax.default_matmul_precision(name):
        got = jax.jit(precision.rounded(jnp.matmul))(x, w)
        dx, dw = jax.jit(jax.grad(value, (0, 1)))(x, w)
    rx, rw, rt = (by_hand(v, name) for v in (x, w, t))
    np.testing.assert_allclose(got, rx @ rw, atol=2e-5)
    np.testing.assert_allclose(dx, rt @ rw.T, atol=2e-5)
    np.testing.assert_allclose(dw, rx.T @ rt, atol=2e-5)
    assert np.abs(got - np.asarray(x, np.float64) @ np.asarray(w, np.float64)).max() > 1e-3


@pytest.mark.parametrize(
    ("images", "kernel"),
    [((4, 12, 12, 1), (5, 5, 1, 6)), ((4, 8, 8, 16), (3, 3, 16, 32)), ((4, 16, 16, 64), (3, 3, 64, 64))],
)
def test_convolutions_as_of_bfloat16_arrays(images: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Compares with the built-in convolution of bfloat16 arrays, which sums in float32."""
    x, w = drawn(0, *images), drawn(1, *kernel)
    t = drawn(2, *images[:3], kernel[3])

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )

    def ours(x: jax.Array, w: jax.Array) -> jax.Array:
        return precision.rounded(conv.conv2d)(x, w)

    half = [v.astype(jnp.bfloat16) for v in (x, w, t)]
    back = jax.linear_transpose
    exact = [v.astype(jnp.float32) for v in half]
    wanted_dx = back(lambda x: plain(x, exact[1]), exact[0])(exact[2])[0]
    wanted_dw = back(lambda w: plain(exact[0], w), exact[1])(exact[2])[0]
    with jax.default_matmul_precision("bfloat16"):
        got = jax.jit(ours)(x, w)
        dx, dw = jax.jit(jax.grad(lambda x, w: (ours(x, w) * t).sum(), (0, 1)))(x, w)
    for mine, wanted in ((got, plain(half[0], half[1])), (dx, wanted_dx), (dw, wanted_dw)):
        np.testing.assert_allclose(mine, wanted, atol=3e-6 * float(jnp.linalg.norm(wanted)))
    full = np.asarray(plain(x, w))
    assert np.abs(np.asarray(got) - full).max() > 1e-3 * np.abs(full).max()


@DTYPES
@pytest.mark.parametrize("model", ["lenet300", "lenet5", "small_cnn", "resnet8"])
def test_every_product_of_a_network_is_of_rounded_factors(model: str, name: str) -> None:
    """One rounding per factor, and one for the gradient of the output."""
    shape = (28, 28, 1) if model.startswith("lenet") else (32, 32, 3)
    built = models.build(model, shape, 10)
    variables = built.init(jax.random.key(0))
    kernels = sum(leaf.ndim >= 2 for leaf in jax.tree.leaves(variables.params))

    def loss(params: Any) -> jax.Array:
        return (built.apply(params, variables.stats, drawn(0, 4, *shape), True)[0] ** 2).sum()

    with jax.default_matmul_precision(name):
        text = str(jax.make_jaxpr(jax.grad(loss))(variables.params))
    assert text.count("reduce_precision[") == 3 * kernels
    assert text.count(f"mantissa_bits={BITS[name]}") == 3 * kernels
    with jax.default_matmul_precision("float32"):
        assert "reduce_precision" not in str(jax.make_jaxpr(jax.grad(loss))(variables.params))


def test_gradients_of_gradients() -> None:
    """Rounding counts as the identity, so second derivatives of a quadratic form are not 0."""
    w = drawn(1, 5, 5)

    def value(x: jax.Array) -> jax.Array:
        return (precision.rounded(jnp.matmul)(x, w) ** 2).sum() / 2

    with jax.default_matmul_precision("tensorfloat32"):
        x, v = drawn(0, 5), drawn(2, 5)
        got = jax.vjp(jax.grad(value), x)[1](v)[0]
    rounded = by_hand(w, "tensorfloat32")
    np.testing.assert_allclose(got, rounded @ rounded.T @ np.asarray(v, np.float64), rtol=5e-3, atol=5e-3)
