"""The forms of networks for TPU, run here: the numbers are those of the plain network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_conv import CASES, builtin, draw

from lthjax import data, models, networks
from lthjax.devices import blocks, residual, rows

# Whole networks in these forms take a minute in float64 where LLVM optimises nothing.
SOME = {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(("images", "kernel", "padding"), [*CASES[:4], *CASES[6:9], CASES[10]])
@pytest.mark.parametrize("halves", [False, True])
def test_a_convolution_on_rows(images: tuple, kernel: tuple, padding: Any, halves: bool) -> None:
    """Values and gradients; even and odd columns apart, or all together."""
    pads = padding if not isinstance(padding, str) else None
    pads = pads or tuple(lax.padtype_to_pads(images[1:3], kernel[:2], (1, 1), padding))
    with jax.enable_x64(True):
        x, w = draw(images, 0), draw(kernel, 1)

        def plain(x: jax.Array, w: jax.Array) -> list[jax.Array]:
            y = builtin(x, w, pads)
            even = y.shape[2] // 2 * 2
            return [y[:, :, 0:even:2], y[:, :, 1:even:2]] if halves else [y]

        def ours(x: jax.Array, w: jax.Array) -> list[jax.Array]:
            lanes = x.transpose(1, 0, 2, 3).reshape(images[1], images[0], -1)
            parts = rows.convolution(lanes, w, pads, halves, lax.dot_general)
            return [y.reshape(*y.shape[:2], -1, kernel[3]).transpose(1, 0, 2, 3) for y in parts]

        dy = [draw(y.shape, 2 + i) for i, y in enumerate(jax.eval_shape(plain, x, w))]

        def both(form: Any) -> Any:
            y, pull = jax.vjp(form, x, w)
            return (*y, *pull(dy))

        for mine, theirs in zip(
            jax.jit(both, static_argnums=0)(ours), jax.jit(both, static_argnums=0)(plain), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def network(name: str) -> tuple[models.Model, models.Model, Any, jax.Array]:
    """(plain, for TPU, float64 parameters with biases, images)."""
    shape = (28, 28, 1) if name.startswith("lenet") else (32, 32, 3)
    plain = models.build(name, shape, 10)
    params = jax.eval_shape(plain.init, jax.random.key(0)).params
    leaves, tree = jax.tree.flatten(params)
    drawn = [0.2 * draw(leaf.shape, i) for i, leaf in enumerate(leaves)]
    return plain, models.for_tpu(plain), jax.tree.unflatten(tree, drawn), draw((3, *shape), 99)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_wide", "lenet5_deep", "small_cnn", "small_cnn_wide"])
def test_a_network_for_tpu_has_the_numbers_of_the_plain_one(name: str) -> None:
    """Logits and gradients, alone and of two replicates together; in float64, so that no rounding hides."""
    with jax.enable_x64(True):
        plain, ours, params, images = network(name)

        def found(model: models.Model) -> Any:
            def loss(params: Any) -> tuple[jax.Array, jax.Array]:
                logits = model.apply(params, {}, images, True)[0]
                return jnp.sin(logits).sum(), logits

            both = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
            return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)), compiler_options=SOME)(both)

        assert ours is not plain
        for mine, expected in zip(jax.tree.leaves(found(ours)), jax.tree.leaves(found(plain)), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["lenet5", "small_cnn"])
def test_gradients_of_gradients_for_tpu(name: str) -> None:
    """A Hessian-vector product, reverse over reverse."""
    with jax.enable_x64(True):
        plain, ours, params, images = network(name)

        def product(model: models.Model) -> Any:
            def slope(params: Any) -> jax.Array:
                logits = lambda p: model.apply(p, {}, images, True)[0]  # noqa: E731
                gradient = jax.grad(lambda p: jnp.sin(logits(p)).sum())(params)
                return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient))  # type: ignore[return-value]

            return jax.jit(jax.grad(slope), compiler_options=SOME)(params)

        for mine, expected in zip(
            jax.tree.leaves(product(ours)), jax.tree.leaves(product(plain)), strict=True
        ):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(mine, expected, rtol=1e-7, atol=1e-9 * scale)


C = networks.Layer
DENSE = (C("hidden", 7), C("output", 5))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((C("a", 16, 3), C("b", 16, 3, pool=True)), (4, 8, 3)),
        ((C("a", 8, 3), C("b", 12, 3)), (6, 2, 1)),
        ((C("a", 5, 3), C("b", 24, 3), C("c", 9, 3), C("d", 40, 3, pool=True)), (4, 12, 2)),
        ((C("a", 4, 3), C("b", 16, 3, pool=True), C("c", 64, 3), C("d", 8, 3, pool=True)), (8, 16, 3)),
    ],
)
def test_blocks_have_the_numbers_of_pixels(layers: tuple, shape: tuple) -> None:
    """Groups of one to eight images that become smaller, a batch that fills none, no pool."""
    layers = (*layers, *DENSE)
    assert blocks.fits(layers, shape)
    plain = networks.Sequential(layers, models.INITS["glorot"])
    with jax.enable_x64(True):
        images = draw((3, *shape), 0)
        params = jax.eval_shape(plain.init, jax.random.key(0), images)["params"]
        leaves, tree = jax.tree.flatten(params)
        params = jax.tree.unflatten(tree, [0.3 * draw(leaf.shape, i) for i, leaf in enumerate(leaves)])

        def both(apply: Any) -> Any:
            def found(params: Any, images: jax.Array) -> Any:
                y, pull = jax.vjp(apply, params, images)
                return y, pull(jnp.cos(y))

            return jax.jit(found, compiler_options=SOME)(params, images)

        mine = both(lambda p, x: blocks.forward(layers, p, x, lax.dot_general, lax.conv_general_dilated))
        expected = both(lambda p, x: plain.apply({"params": p}, x))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), mine, expected)


def test_blocks_fill_the_lanes_of_a_tpu() -> None:
    """The kernels of four replicates: but for the images, a replicate has 128 lanes or twice as many."""
    with jax.enable_x64(True):
        _, ours, params, _ = network("small_cnn")
        replicates = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
        of_all = jax.vmap(lambda p, x: ours.apply(p, {}, x, True)[0], (0, None))
        program = jax.make_jaxpr(of_all)(replicates, jnp.zeros((60, 32, 32, 3)))
    kernels = [e.invars[1].aval.shape for e in program.eqns if e.primitive.name == "conv_general_dilated"]
    assert [shape[2] for shape in kernels] == [24, 128, 128, 128]
    assert [shape[3] for shape in kernels] == [4 * 128, 4 * 128, 4 * 256, 4 * 128]


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((C("a", 16, 3), C("b", 16, 3, pool=True)), (6, 8, 3)),  # half a block remains
        ((C("a", 16, 3, pool=True), C("b", 16, 3)), (8, 8, 3)),
        ((C("a", 16, 3),), (8, 8, 3)),
        ((C("a", 16, 5), C("b", 16, 5)), (8, 8, 3)),
        ((C("a", 16, 3, "VALID"), C("b", 16, 3)), (8, 8, 3)),
        ((C("a", 16, 3), C("b", 65, 3)), (8, 8, 3)),
        ((), (8, 8, 3)),
    ],
)
def test_what_blocks_do_not_fit(layers: tuple, shape: tuple) -> None:
    assert not blocks.fits((*layers, *DENSE), shape)


R = networks.Stages


@pytest.mark.parametrize(
    ("stages", "shape", "count"),
    [
        (R((8, 12, 40), 1), (8, 16, 1), 3),
        (R((4,), 2), (4, 6, 2), 64),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_residual_blocks_have_the_numbers_of_pixels(
    stages: networks.Stages, shape: tuple, count: int, train: bool
) -> None:
    """Logits, gradients and running statistics; batches that fill no group of images, and one that does."""
    plain = networks.Residual(stages, 5, models.INITS["kaiming"])
    assert residual.fits(stages, shape)
    with jax.enable_x64(True):
        images = draw((count, *shape), 0)
        start = jax.eval_shape(plain.init, jax.random.key(0), images)
        leaves, tree = jax.tree.flatten(start)
        drawn = [1 + 0.3 * draw(leaf.shape, i) for i, leaf in enumerate(leaves)]
        variables = jax.tree.unflatten(tree, [x if x.ndim == 1 else x - 1 for x in drawn])
        stats = jax.tree.map(jnp.abs, variables["batch_stats"])

        def theirs(params: Any, images: jax.Array) -> Any:
            given = {"params": params, "batch_stats": stats}
            y, new = plain.apply(given, images, train=train, mutable="batch_stats")
            return y, new["batch_stats"]

        def ours(params: Any, images: jax.Array) -> Any:
            norm = residual.Norm(train, networks.MOMENTUM, networks.EPSILON)
            products = (lax.dot_general, lax.conv_general_dilated)
            return residual.forward(stages, params, stats, images, norm, *products)

        def both(apply: Any) -> Any:
            def found(params: Any, images: jax.Array) -> Any:
                y, pull, new = jax.vjp(apply, params, images, has_aux=True)
                return y, new, pull(jnp.cos(y))

            return jax.jit(found, compiler_options=SOME)(variables["params"], images)

        def same(mine: jax.Array, expected: jax.Array) -> None:
            scale = float(np.abs(expected).max()) + 1e-3
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-10 * scale)

        jax.tree.map(same, both(ours), both(theirs))


@pytest.mark.parametrize(
    ("stages", "shape"),
    [
        (R((16, 32, 64), 3), (28, 28, 1)),  # sides of 7 in the last stage
        (R((16, 65), 1), (32, 32, 3)),
        (None, (32, 32, 3)),
    ],
)
def test_what_residual_blocks_do_not_fit(stages: networks.Stages | None, shape: tuple) -> None:
    assert not residual.fits(stages, shape)


def test_running_statistics_for_tpu_are_those_of_the_plain_network() -> None:
    """Through the model: its collection, in training alone, and as `models.statistics` finds them."""
    plain = models.build("resnet8", (8, 8, 3), 10)
    ours, start = models.for_tpu(plain), plain.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 3))
    for train in (True, False):
        mine, theirs = (m.apply(*start, images[0], train) for m in (ours, plain))
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), mine, theirs)
    found, expected = (models.statistics(m, *start, images) for m in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("precision", ["bfloat16", "tensorfloat32"])
def test_blocks_round_the_factors_of_products(precision: str) -> None:
    """As the plain network does; in float64 the sums are too exact to round a factor to another side."""
    with jax.enable_x64(True):
        plain, ours, params, images = network("small_cnn")

        def logits(model: models.Model, precision: str) -> np.ndarray:
            with jax.default_matmul_precision(precision):
                return np.asarray(jax.jit(lambda p: model.apply(p, {}, images, True)[0])(params))

        rounded = logits(plain, precision)
        np.testing.assert_allclose(logits(ours, precision), rounded, rtol=1e-9)
        assert np.abs(rounded / logits(plain, "float32") - 1).max() > 1e-4


def test_a_pool_on_blocks_shares_the_gradient_among_equals() -> None:
    """Of two or all four; and the pixel of every maximum is one of its own window."""
    pixels = jnp.array([[1.0, 1, 5, 2], [0, 0, 3, 4], [7, 7, 9, 9], [7, 7, 0, 9]])
    x = pixels.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(2, 2, 1, 4)

    def pooled(x: jax.Array) -> jax.Array:
        return blocks._halved(blocks._halved(x, 0, 2), 1, 1)

    np.testing.assert_array_equal(pooled(x).ravel(), [1, 5, 7, 9])
    gradient = jax.grad(lambda x: pooled(x).sum())(x).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    halves = [[0.5, 0.5, 1, 0], [0, 0, 0, 0], [0.25, 0.25, 0.5, 0.25], [0.25, 0.25, 0, 0.25]]
    np.testing.assert_array_equal(gradient, halves)


def test_a_pool_on_rows_shares_the_gradient_among_equals() -> None:
    gradient = jax.grad(lambda x: rows._pooled(x, x).sum())(jnp.ones((3, 1, 2)))
    np.testing.assert_array_equal(gradient, jnp.array([0.5, 0.5, 0.0]).reshape(3, 1, 1) * jnp.ones((3, 1, 2)))


@pytest.mark.parametrize("name", ["lenet300", "conv6", "vgg11"])
def test_other_networks_stay_as_they_are(name: str) -> None:
    """Those without convolutions, or with many channels."""
    shape = (28, 28, 1) if name.startswith("lenet") else (32, 32, 3)
    built = models.build(name, shape, 10)
    assert models.for_tpu(built) is built


def test_flat_images_give_the_same_batch() -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (9, 4, 5, 3), np.uint8), np.zeros(9, np.int32)
    dataset = data.Dataset("random", images[:6], labels[:6], images[6:], labels[6:], 2, "", "")
    stacked, flat = data.stack(dataset).images, data.stack(dataset, flat=True).images
    assert flat.shape == (9, 128)
    index, mean, std = jnp.array([3, 0, 8]), jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 2.0, 3.0])
    for key in (None, jax.random.key(0)):
        whole = data.gather(stacked, index, mean, std, key)
        np.testing.assert_array_equal(data.gather(flat, index, mean, std, key, (4, 5, 3)), whole)
