from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from lthjax.devices import conv, windows, winograd

CASES = [
    # images, kernel, padding: every convolution of the models, and odd ones
    ((3, 28, 28, 1), (5, 5, 1, 6), "SAME"),
    ((3, 14, 14, 6), (5, 5, 6, 16), "VALID"),
    ((2, 32, 32, 3), (3, 3, 3, 16), "SAME"),
    ((2, 16, 16, 16), (3, 3, 16, 32), "SAME"),
    ((2, 8, 8, 64), (3, 3, 64, 64), "SAME"),
    ((2, 9, 7, 20), (4, 2, 20, 3), "SAME"),
    ((2, 9, 7, 5), (2, 4, 5, 3), "SAME"),
    ((2, 9, 7, 20), (3, 2, 20, 3), "VALID"),
    ((2, 9, 7, 20), (3, 3, 20, 3), ((2, 0), (0, 1))),
    ((2, 9, 7, 2), (3, 3, 2, 3), ((2, 0), (0, 1))),
    ((1, 5, 5, 12), (1, 1, 12, 4), "VALID"),
    # with many channels and tiles: fewer products
    ((4, 9, 7, 64), (3, 3, 64, 65), "SAME"),
]


STRIDED = [
    # images, kernel, padding, stride: those of the residual networks, and odd ones
    ((2, 32, 32, 16), (3, 3, 16, 32), ((1, 1), (1, 1)), 2),
    ((2, 16, 16, 32), (1, 1, 32, 64), "VALID", 2),
    ((2, 9, 7, 3), (3, 2, 3, 4), "SAME", 2),
    ((2, 9, 8, 3), (5, 4, 3, 4), "VALID", 3),
    ((2, 7, 9, 2), (2, 2, 2, 3), ((1, 0), (0, 2)), 3),
    ((2, 7, 9, 2), (1, 1, 2, 3), ((1, 0), (0, 2)), 2),
]


def builtin(x: jax.Array, w: jax.Array, padding: object, stride: int = 1) -> jax.Array:
    strides, layout = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)  # type: ignore[arg-type]


def draw(shape: tuple[int, ...], seed: int) -> jax.Array:
    """Normal numbers of float64, by numpy: JAX would compile a program for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float64)


@pytest.mark.parametrize(("images", "kernel", "padding", "stride"), [*((*c, 1) for c in CASES), *STRIDED])
@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_values_and_gradients_are_those_of_the_builtin(
    images: tuple, kernel: tuple, padding: object, stride: int, inside_a_loop: bool
) -> None:
    with jax.enable_x64(True):
        x, w = draw(images, 0), draw(kernel, 1)
        dy = draw(jax.eval_shape(lambda x, w: builtin(x, w, padding, stride), x, w).shape, 2)

        def of(convolve: Any) -> Any:
            def both(x: jax.Array, w: jax.Array) -> tuple:
                out, pull = jax.vjp(lambda x, w: convolve(x, w, padding, stride), x, w)
                return out, *pull(dy)

            return both

        ours, expected = of(conv.conv2d), jax.jit(of(builtin))(x, w)
        if inside_a_loop:
            start = jax.tree.map(jnp.zeros_like, expected)
            got = jax.jit(lambda x, w: lax.fori_loop(0, 2, lambda i, _: ours(x, w), start))(x, w)
        else:
            got = jax.jit(ours)(x, w)
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("images", "kernel", "padding", "stride"), [*((*c, 1) for c in (*CASES[1:9:3], CASES[-1])), STRIDED[2]]
)
def test_gradients_of_gradients_are_those_of_the_builtin(
    images: tuple, kernel: tuple, padding: object, stride: int
) -> None:
    """Reverse over reverse: gradients of the input gradient and of the weight gradient."""
    with jax.enable_x64(True):
        x, w = draw(images, 0), draw(kernel, 1)

        def second(convolve: Any) -> Any:
            def value(x: jax.Array, w: jax.Array) -> jax.Array:
                return jnp.sin(convolve(x, w, padding, stride)).sum()

            def once(x: jax.Array, w: jax.Array) -> jax.Array:
                return sum((g**2).sum() for g in jax.grad(value, (0, 1))(x, w))  # type: ignore[return-value]

            return jax.jit(jax.grad(once, (0, 1)))(x, w)

        for mine, expected in zip(second(conv.conv2d), second(builtin), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 3))])
@pytest.mark.parametrize("images", [1, 4, 7])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_large_weight_gradient_in_blocks_of_images_and_rows(
    padding: Any, images: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images a block, so many rows: the last block may be partly zeros, the last rows fewer."""
    with jax.enable_x64(True):
        x, w = draw((images, 7, 6, 3), 0), draw((3, 2, 3, 5), 1)
        dy = draw(builtin(x, w, padding).shape, 2)
        expected = jax.vjp(lambda w: builtin(x, w, padding), w)[1](dy)[0]
        size = -(-images // -(-images // 4))
        monkeypatch.setattr(conv, "_LARGE", 0)
        monkeypatch.setattr(conv, "_BLOCK_IMAGES", 4)
        monkeypatch.setattr(conv, "_BLOCK_BYTES", rows * size * dy.shape[2] * (3 + 5) * 8)
        got = jax.jit(lambda x, dy: conv._weight_gradient_cpu(x, dy, padding))(x, dy)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
        text = str(jax.make_jaxpr(lambda x, dy: conv._weight_gradient_cpu(x, dy, padding))(x, dy))
        assert text.count("conv_general_dilated") == -(-dy.shape[1] // min(rows, dy.shape[1]))


@pytest.mark.parametrize("padding", [((6, 6), (4, 4)), ((3, 0), (0, 0)), ((0, 9), (1, 1))])
def test_a_large_weight_gradient_of_images_in_wide_padding(
    padding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some blocks of rows would lie in the padding alone."""
    monkeypatch.setattr(conv, "_LARGE", 0)
    monkeypatch.setattr(conv, "_BLOCK_BYTES", 1)
    with jax.enable_x64(True):
        x, w = draw((5, 7, 6, 3), 0), draw((3, 2, 3, 5), 1)
        dy = draw(builtin(x, w, padding).shape, 2)
        expected = jax.vjp(lambda w: builtin(x, w, padding), w)[1](dy)[0]
        got = jax.jit(lambda x, dy: conv._weight_gradient_cpu(x, dy, padding))(x, dy)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("images", "kernel", "padding", "stride"), [*((*c, 1) for c in CASES), *STRIDED])
def test_under_vmap(images: tuple, kernel: tuple, padding: object, stride: int) -> None:
    """Replicates together, each with its own kernel."""
    with jax.enable_x64(True):
        x, w = draw((2, *images), 0), draw((2, *kernel), 1)
        ours, theirs = (
            jax.jit(
                jax.vmap(jax.value_and_grad(lambda x, w, c=c: (c(x, w, padding, stride) ** 2).sum(), (0, 1)))
            )(x, w)
            for c in (conv.conv2d, builtin)
        )
        for mine, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 3))])
@pytest.mark.parametrize("images", [(6, 8, 8, 3), (5, 11, 6, 2), (1, 6, 7, 4)])
def test_fewer_products_give_the_same(images: tuple, padding: winograd.Padding) -> None:
    """Any number of images, rows and columns, multiples of the tile size or not."""
    with jax.enable_x64(True):
        x, w = draw(images, 0), draw((3, 3, images[-1], 5), 1)
        dy = draw(jax.eval_shape(lambda x, w: builtin(x, w, padding), x, w).shape, 2)

        @jax.jit
        def both(x: jax.Array, w: jax.Array, dy: jax.Array) -> Any:
            y, pull = jax.vjp(lambda w: builtin(x, w, padding), w)
            ours = winograd.convolution(x, w, padding), winograd.weight_gradient(x, dy, padding)
            return ours, (y, *pull(dy))

        for mine, theirs in zip(*both(x, w, dy), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-11)


def test_a_weight_gradient_in_blocks_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with jax.enable_x64(True):
        x, dy = draw((6, 6, 6, 2), 0), draw((6, 6, 6, 3), 1)
        sizes = [1, 2 * 72, 4 * 72, 6 * 72]  # 1, 2, 3 (4 is no divisor) and 6 images
        found = []
        for numbers in sizes:
            monkeypatch.setattr(winograd, "_BLOCK", numbers)
            found.append(jax.jit(lambda x, dy: winograd.weight_gradient(x, dy, ((1, 1), (1, 1))))(x, dy))
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=1e-12)


def test_fewer_products_round_little_more() -> None:
    """In float32, against float64: at most 6 times the error of direct convolution, 10 times in gradients."""
    pads = ((1, 1), (1, 1))
    with jax.enable_x64(True):
        x, w, dy = draw((4, 16, 16, 128), 0), draw((3, 3, 128, 64), 1), draw((4, 16, 16, 64), 2)
        exact, pull = jax.vjp(lambda w: builtin(x, w, pads), w)
        exact_gradient = pull(dy)[0]
    x, w, dy = (jnp.asarray(of, jnp.float32) for of in (x, w, dy))

    def off(got: jax.Array, expected: jax.Array) -> float:
        return float(np.linalg.norm(np.asarray(got, float) - np.asarray(expected)))

    direct, pull = jax.vjp(lambda w: builtin(x, w, pads), w)
    assert off(winograd.convolution(x, w, pads), exact) < 6 * off(direct, exact)
    few = off(winograd.weight_gradient(x, dy, pads), exact_gradient)
    assert few < 10 * off(pull(dy)[0], exact_gradient)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the built-in convolution is used")
@pytest.mark.parametrize(("images", "channels", "few"), [(4, 64, True), (3, 64, False), (4, 63, False)])
def test_when_fewer_products_are_used(images: int, channels: int, few: bool) -> None:
    """Needs at least 16 tiles and 64 channels."""
    x, w = jnp.zeros((images, 8, 8, 64)), jnp.zeros((3, 3, 64, channels))
    text = jax.jit(conv.conv2d).lower(x, w).compile().as_text() or ""
    assert (" convolution(" not in text and "custom-call" not in text) == few


@pytest.mark.parametrize("strides", [1, 2])
def test_as_flax_convolution(strides: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    mine = nn.Conv(4, (3, 3), strides=strides, conv_general_dilated=conv.general_dilated)
    plain = nn.Conv(4, (3, 3), strides=strides)
    variables = plain.init(jax.random.key(1), x)
    np.testing.assert_allclose(mine.apply(variables, x), plain.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 1)])
def test_max_pool_is_the_builtin(shape: tuple) -> None:
    x = jax.random.normal(jax.random.key(0), shape)

    def theirs(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    np.testing.assert_array_equal(conv.max_pool(x), theirs(x))
    ours = jax.grad(lambda x: (conv.max_pool(x) ** 2).sum())(x)
    np.testing.assert_array_equal(ours, jax.grad(lambda x: (theirs(x) ** 2).sum())(x))


def test_max_pool_shares_the_gradient_among_equals() -> None:
    gradient = jax.grad(lambda x: conv.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [0.25] * 4)


@pytest.mark.parametrize(("images", "kernel", "padding"), [CASES[i] for i in (0, 1, 3, 6, 8)])
def test_windows_of_several_columns_are_the_convolution(images: tuple, kernel: tuple, padding: Any) -> None:
    """The GPU's form and its gradients, in float64 on any device, against the built-in convolution."""
    pads = conv._explicit(padding, images, kernel, 1)

    @jax.jit
    def both(x: jax.Array, w: jax.Array) -> Any:
        y, gradients = jax.vjp(lambda x, w: builtin(x, w, pads), x, w)
        dy = y**2
        ours = (
            windows.convolution(x, w, pads),
            conv._input_gradient_cuda(w, dy, pads),
            windows.weight_gradient(x, dy, kernel, pads),
        )
        return ours, (y, *gradients(dy))

    with jax.enable_x64(True):
        for ours, theirs in zip(*both(draw(images, 0), draw(kernel, 1)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-10)


def test_windows_are_for_few_channels_on_nvidia_gpus_only() -> None:
    """The lowered programs, forward and both gradients, for kernels of 32 and of 33 channels."""

    def gradients(x: jax.Array, w: jax.Array) -> Any:
        return jax.grad(lambda x, w: jnp.square(conv.conv2d(x, w)).sum(), (0, 1))(x, w)

    def convolutions(channels: int, platform: str) -> int:
        shapes = ((2, 8, 8, 16), (3, 3, 16, channels))
        of = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        text = export.export(jax.jit(gradients), platforms=[platform])(*of).mlir_module()
        return text.count("stablehlo.convolution")

    assert convolutions(32, "cuda") == 0
    assert convolutions(33, "cuda") == convolutions(32, "tpu") == convolutions(32, "rocm") == 3
