"""The Hessian inside a mask against explicit matrices, and LeNet-5's against its exact spectrum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from lthjax import data, models, prune
from lthjax.devices import conv
from lthjax.measures import hessian, landscape

KEY = jax.random.key(0)


def matrix(eigenvalues: Any, kept: np.ndarray) -> tuple[np.ndarray, hessian.Operator]:
    """A symmetric float64 matrix with that spectrum on the kept coordinates, and its operator."""
    k = len(eigenvalues)
    assert kept.sum() == k
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(k, k)))
    whole = np.zeros((len(kept), len(kept)))
    whole[np.ix_(kept, kept)] = (q * np.asarray(eigenvalues)) @ q.T
    return whole, hessian.Operator(lambda v: v @ jnp.asarray(whole, v.dtype), jnp.asarray(kept))


@pytest.fixture
def x64() -> Any:
    with jax.enable_x64(True):
        yield


def tiny_net() -> tuple[Callable[..., jax.Array], Any, Any, Any]:
    """(loss of a batch, parameters, mask, batch): a convolution, a pool and a dense layer with tanh."""
    keys = jax.random.split(KEY, 4)
    params = {
        "conv": {"bias": jnp.full(3, 0.1), "kernel": jax.random.normal(keys[0], (3, 3, 2, 3))},
        "fc": {"bias": jnp.zeros(4), "kernel": jax.random.normal(keys[1], (27, 4))},
    }
    mask = prune.magnitude(params, prune.ones(params), 0.6)
    x, y = jax.random.normal(keys[2], (6, 6, 6, 2)), jnp.arange(6) % 4

    def loss(params: Any, batch: Any, convolve: Any = conv.conv2d) -> jax.Array:
        images, labels = batch
        hidden = jnp.tanh(
            convolve(images, params["conv"]["kernel"], "SAME") + params["conv"]["bias"][None, None, None]
        )
        logits = conv.max_pool(hidden).reshape(len(images), -1) @ params["fc"]["kernel"]
        logits = logits + params["fc"]["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum() / 6

    return loss, params, mask, (x, y)


def builtin(x: jax.Array, w: jax.Array, padding: str) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def explicit(loss: Any, params: Any, mask: Any, batch: Any) -> np.ndarray:
    """m H m by `jax.hessian`, forward over reverse, through the built-in convolution."""
    flat, unravel = ravel_pytree(prune.apply(params, mask))
    shaped = jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape).ravel(), mask, params)
    kept = np.concatenate(jax.tree.leaves(shaped))
    whole = np.asarray(jax.jit(jax.hessian(lambda p: loss(unravel(p), batch, builtin)))(flat))
    return whole * np.outer(kept, kept)


def test_products_are_those_of_the_explicit_hessian(x64: None) -> None:
    loss, params, mask, batch = tiny_net()
    expected = explicit(loss, params, mask, batch)
    n = len(expected)
    chunked = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), batch)
    on = hessian.operator(loss, params, mask, chunked)
    product = jax.jit(on.product)
    got = np.asarray(product(jnp.eye(n)))
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(got, got.T, atol=1e-12)
    outside = ~np.asarray(on.kept)
    assert outside.sum() == sum(int((~m).sum()) for m in jax.tree.leaves(mask))
    # For any input the output is exactly 0 outside the mask, even if the input there is NaN.
    out = np.asarray(product(jnp.broadcast_to(jnp.where(on.kept, 1.0, jnp.nan), (n, n))))
    assert np.isfinite(out).all()
    assert not out[:, outside].any()
    assert not np.signbit(out[:, outside]).any()
    assert (
        int(hessian.dimension(params, mask)) == int(on.kept.sum()) == 7 + round(54 * 0.4) + round(108 * 0.4)
    )


def test_hvp_takes_and_gives_pytrees() -> None:
    """Uses sum w**4 / 12, whose Hessian is diag(w**2); pruned weights count as 0 even if they are not."""
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([5.0])}
    mask = {"w": jnp.array([[True, False], [True, True]]), "b": jnp.array(True)}
    vector = jax.tree.map(jnp.ones_like, params)
    got = hessian.hvp(
        lambda p: (p["w"] ** 4).sum() / 12 + (p["b"] ** 4).sum() / 12 + p["w"][0, 0] * p["w"][0, 1],
        params,
        mask,
        vector,
    )
    np.testing.assert_allclose(got["w"], [[1, 0], [9, 16]], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [25], rtol=1e-6)


def test_mask_may_be_traced_and_one_program_serves_all() -> None:
    params = {"w": jax.random.normal(KEY, (5, 8))}
    x = jax.random.normal(jax.random.key(1), (9, 5))

    def loss(params: Any) -> jax.Array:
        return jnp.tanh(x @ params["w"]).prod(1).sum()

    compiled = jax.jit(
        lambda params, mask: hessian.extremes(hessian.operator(loss, params, mask), KEY, 3, 30).largest
    )
    mask = prune.ones(params)
    for _ in range(3):
        flat, kept = prune.apply(params, mask)["w"], np.asarray(mask["w"]).ravel()
        whole = np.asarray(jax.hessian(lambda w: loss({"w": w.reshape(5, 8)}))(flat.ravel()))
        exact = np.linalg.eigvalsh(whole[np.ix_(kept, kept)])[::-1][:3]
        np.testing.assert_allclose(compiled(params, mask), exact, rtol=1e-3, atol=1e-5)
        mask = prune.magnitude(params, mask, 0.2)
    assert compiled._cache_size() == 1  # type: ignore[attr-defined]


SPECTRA = {
    "distinct": np.linspace(-3, 10, 24),
    "repeated": np.repeat([-1.0, 0.0, 2.0], 8),
    "outliers": np.r_[np.linspace(0, 1e-3, 20), 1.0, 5.0, 50.0, -2.0],
    "zero": np.zeros(24),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_as_many_steps_as_dimensions_give_every_eigenvalue(name: str, x64: None) -> None:
    """Includes Krylov spaces that end early, and more steps than dimensions."""
    exact = np.sort(SPECTRA[name])
    kept = np.random.default_rng(1).permutation(np.arange(40) < 24)
    whole, on = matrix(exact, kept)
    found = jax.jit(lambda key: hessian.extremes(on, key, 24, 24))(KEY)
    np.testing.assert_allclose(found.largest, exact[::-1], atol=1e-10)
    np.testing.assert_allclose(found.smallest, exact, atol=1e-10)
    vectors = np.asarray(found.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(24), atol=1e-10)
    np.testing.assert_allclose(vectors @ whole, exact[::-1, None] * vectors, atol=1e-9)
    assert not vectors[:, ~kept].any()
    more = hessian.extremes(on, KEY, 30, 32)
    np.testing.assert_allclose(more.largest[:24], exact[::-1], atol=1e-10)
    assert np.isnan(more.largest[24:]).all()
    assert np.isnan(more.smallest[24:]).all()


def test_the_error_bounds_the_distance_to_an_eigenvalue(x64: None) -> None:
    exact = np.random.default_rng(2).normal(size=60)
    _, on = matrix(exact, np.ones(60, bool))
    found = hessian.extremes(on, KEY, 10, 20)
    for values, errors in ((found.largest, found.largest_error), (found.smallest, found.smallest_error)):
        distance = np.abs(np.asarray(values)[:, None] - exact).min(1)
        assert (distance <= np.asarray(errors) + 1e-12).all()
    assert found.largest_error[0] < 1e-3 < found.largest_error[-1]


def test_extremes_and_trace_say_what_they_take() -> None:
    _, on = matrix(np.ones(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="count: it is from 1 to steps = 4, not 5"):
        hessian.extremes(on, KEY, 5, 4)
    with pytest.raises(ValueError, match="probes: a standard error takes 2 or more, not 1"):
        hessian.trace(on, KEY, 1)


def test_trace_of_a_diagonal_is_exact_and_its_error_is_its_spread(x64: None) -> None:
    kept = np.arange(30) % 3 > 0
    diagonal = jnp.arange(30.0)
    exact = float(diagonal[kept].sum())
    found = hessian.trace(hessian.Operator(lambda v: v * diagonal[None], jnp.asarray(kept)), KEY, 4)
    np.testing.assert_allclose(found.total, exact, rtol=1e-12)
    np.testing.assert_allclose(found.mean, exact / 20, rtol=1e-12)
    np.testing.assert_allclose(found.error, 0, atol=1e-10)
    # The variance of one sample is twice the sum of the squared off-diagonal entries.
    whole, on = matrix(np.linspace(-2, 5, 20), kept)
    many = hessian.trace(on, KEY, 4000)
    beside = np.sqrt(2 * ((whole - np.diag(np.diag(whole))) ** 2).sum() / 4000)
    np.testing.assert_allclose(many.error, beside, rtol=0.1)
    np.testing.assert_allclose(many.mean_error, many.error / 20, rtol=1e-12)
    assert abs(many.total - np.trace(whole)) < 4 * many.error


def test_quadrature_is_exact_for_the_moments_of_its_probes(x64: None) -> None:
    """m steps integrate polynomials up to degree 2 m - 1; the test draws the same probes again."""
    exact = np.random.default_rng(3).normal(size=50) ** 3
    kept = np.random.default_rng(4).permutation(np.arange(70) < 50)
    whole, on = matrix(exact, kept)
    found = hessian.density(on, KEY, probes=3, steps=6)
    probes = np.asarray(jnp.where(kept[None], jax.random.rademacher(KEY, (3, 70), float), 0)) / np.sqrt(50)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    reach = float(found.nodes.max() - found.nodes.min())
    np.testing.assert_allclose(found.sigma, reach / 100, rtol=1e-9)
    np.testing.assert_allclose(found.grid[-1] - found.grid[0], 1.08 * reach, rtol=1e-9)
    for power in range(12):
        moments = [v @ np.linalg.matrix_power(whole, power) @ v for v in probes]
        np.testing.assert_allclose((found.weights * found.nodes**power).sum(1), moments, rtol=1e-9, atol=1e-9)


def test_density_is_the_smoothed_spectrum(x64: None) -> None:
    """With as many steps as dimensions and many probes, the Gaussians lie on the eigenvalues."""
    exact = np.array([-1.0, 0.0, 0.0, 0.5, 3.0, 3.1])
    _, on = matrix(exact, np.arange(9) < 6)
    found = hessian.density(on, KEY, probes=600, steps=6, points=200, sigma=0.2)
    bells = np.exp(-0.5 * ((np.asarray(found.grid)[:, None] - exact) / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
    assert np.abs(found.density - bells.mean(1)).max() < 0.06 * bells.mean(1).max()
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-3)


class Spectrum(NamedTuple):
    """A LeNet-5 under a mask: its data, its exact eigenvalues, ascending, and its Hessian's diagonal."""

    params: Any
    mask: Any
    chunks: landscape.Chunk
    exact: np.ndarray
    diagonal: np.ndarray


def lenet5_loss(params: Any, chunk: landscape.Chunk) -> jax.Array:
    model = models.build("lenet5", (28, 28, 1), 10)
    return landscape.cross_entropy(lambda p, images: model.apply(p, {}, images, False)[0])(params, chunk)


@pytest.fixture(scope="module")
def lenet5() -> Spectrum:
    """LeNet-5 with 2 % of its weights, scaled to make up for the rest, on 12 digits in two chunks.

    The mask is ERK, which leaves enough weights in every layer to carry the images through. A disconnected
    network would have only biases left, whose eigenvalues are repeated.
    """
    model = models.build("lenet5", (28, 28, 1), 10)
    params = model.init(KEY).params
    mask = prune.erk(KEY, params, 0.02)
    params = jax.tree.map(lambda p, m: p / jnp.sqrt(m.mean()) if m.ndim else p, params, mask)
    digits = data.load("mnist_10k")
    images = (digits.train_images[:12] / 255 - 0.1307) / 0.3081
    # One chunk for the exact values.
    whole_chunk = jax.tree.map(lambda x: x[0], landscape.chunks(images, digits.train_labels[:12], 12))
    chunks = landscape.chunks(images, digits.train_labels[:12], 6)
    on = hessian.operator(lambda p: lenet5_loss(p, whole_chunk), params, mask)
    where = np.flatnonzero(on.kept)
    some = {"xla_backend_optimization_level": 1}  # without LLVM's optimisation it takes half a minute
    rows = jax.jit(lambda index: on.product(jax.nn.one_hot(index, len(on.kept))), compiler_options=some)
    padded = np.resize(where, -(-len(where) // 200) * 200).reshape(-1, 200)
    whole = np.concatenate([np.asarray(rows(part))[:, where] for part in padded])
    whole = whole[: len(where)].astype(np.float64)
    np.testing.assert_allclose(whole, whole.T, atol=1e-4 * np.abs(whole).max())
    return Spectrum(params, mask, chunks, np.linalg.eigvalsh((whole + whole.T) / 2), np.diag(whole))


@pytest.fixture(scope="module")
def estimates(lenet5: Spectrum) -> tuple[hessian.Extremes, hessian.Trace, hessian.Density]:
    @jax.jit
    def estimate(params: Any, mask: Any, chunks: landscape.Chunk, key: jax.Array) -> Any:
        on = hessian.operator(lenet5_loss, params, mask, chunks)
        return hessian.extremes(on, key, 10, 50), hessian.trace(on, key, 40), hessian.density(on, key, 8, 30)

    return estimate(lenet5.params, lenet5.mask, lenet5.chunks, jax.random.key(7))


def test_golden_top_eigenvalues(lenet5: Spectrum, estimates: Any) -> None:
    assert len(lenet5.exact) == int(hessian.dimension(lenet5.params, lenet5.mask)) > 1000
    found: hessian.Extremes = estimates[0]
    np.testing.assert_allclose(found.largest, lenet5.exact[::-1][:10], rtol=1e-3)
    np.testing.assert_allclose(found.smallest[0], lenet5.exact[0], rtol=1e-3)


def test_golden_trace(lenet5: Spectrum, estimates: Any) -> None:
    found: hessian.Trace = estimates[1]
    assert abs(found.total - lenet5.exact.sum()) < 4 * found.error
    assert abs(found.mean - lenet5.exact.mean()) < 4 * found.mean_error
    # The variance of one sample is twice the sum of the squared off-diagonal entries.
    expected = np.sqrt(2 * ((lenet5.exact**2).sum() - (lenet5.diagonal**2).sum()) / 40)
    np.testing.assert_allclose(found.error, expected, rtol=0.4)


def test_golden_density_moments(lenet5: Spectrum, estimates: Any) -> None:
    found: hessian.Density = estimates[2]
    for power in (1, 2):
        of_probes = np.asarray((found.weights * found.nodes**power).sum(1))
        error = of_probes.std(ddof=1) / np.sqrt(len(of_probes))
        exact = (lenet5.exact**power).mean()
        assert abs(of_probes.mean() - exact) < 4 * error
        assert error < 0.5 * exact
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, atol=1e-2)
    np.testing.assert_allclose(found.nodes.max(), lenet5.exact[-1], rtol=1e-3)
