"""GGN and empirical Fisher against explicit Jacobians in float64, and the trace by Hutch++."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lthjax import prune
from lthjax.measures import gauss_newton, hessian, landscape

KEY = jax.random.key(0)
PARAMS = {
    "a": {"bias": jnp.full(4, 0.1), "kernel": jax.random.normal(KEY, (5, 4))},
    "b": {"bias": jnp.zeros(3), "kernel": jax.random.normal(jax.random.key(1), (4, 3))},
}
MASK = prune.magnitude(PARAMS, prune.ones(PARAMS), 0.4)
IMAGES = np.random.default_rng(0).normal(size=(7, 5, 1, 1)).astype(np.float32)
LABELS = np.arange(7) % 3


@pytest.fixture
def x64() -> Any:
    with jax.enable_x64(True):
        yield


def apply(params: Any, images: jax.Array) -> jax.Array:
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def linear(params: Any, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ params["a"]["kernel"] + params["a"]["bias"][None]


def explicit(of: Any, params: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """GGN, empirical Fisher and Hessian of the mean loss by forward-mode Jacobians, masked, in float64."""
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), prune.apply(params, mask))
    flat, unravel = ravel_pytree(params)
    images = jnp.asarray(IMAGES, jnp.float64)
    jacobian = np.asarray(jax.jacfwd(lambda f: of(unravel(f), images))(flat))
    logits = np.asarray(of(params, images))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.eye(logits.shape[1])[LABELS % logits.shape[1]]
    ggn, fisher = np.zeros((len(flat), len(flat))), np.zeros((len(flat), len(flat)))
    for j, one, label in zip(jacobian, p, y, strict=True):
        ggn += j.T @ (np.diag(one) - np.outer(one, one)) @ j / len(IMAGES)
        gradient = j.T @ (one - label)
        fisher += np.outer(gradient, gradient) / len(IMAGES)

    def loss(f: jax.Array) -> jax.Array:
        return -(jax.nn.log_softmax(of(unravel(f), images)) * y).sum() / len(IMAGES)

    kept = np.asarray(hessian.kept_of(params, mask))
    whole = np.asarray(jax.jacfwd(jax.grad(loss))(flat))
    ggn, fisher, whole = (x * np.outer(kept, kept) for x in (ggn, fisher, whole))
    return ggn, fisher, whole


def test_products_are_those_of_explicit_jacobians(x64: None) -> None:
    """In chunks of three with two images of padding; NaN outside the mask are ignored."""
    data = landscape.chunks(IMAGES, LABELS, 3)
    expected = explicit(apply, PARAMS, MASK)[:2]
    for make, matrix in zip((gauss_newton.ggn, gauss_newton.empirical_fisher), expected, strict=True):
        on = make(apply, PARAMS, MASK, data)
        n = len(matrix)
        vectors = jnp.where(on.kept[None], jnp.eye(n, dtype=jnp.float32), jnp.nan)
        got = np.asarray(jax.jit(on.product)(vectors))
        np.testing.assert_allclose(got, matrix, atol=2e-6)
        assert not got[:, ~np.asarray(on.kept)].any()
        assert np.linalg.eigvalsh(matrix).min() > -1e-12


def test_of_a_linear_network_it_is_the_hessian(x64: None) -> None:
    params = {"a": {"bias": jnp.zeros(3), "kernel": PARAMS["a"]["kernel"][:, :3]}}
    mask = prune.magnitude(params, prune.ones(params), 0.3)
    ggn, fisher, whole = explicit(linear, params, mask)
    np.testing.assert_allclose(ggn, whole, atol=1e-12)
    assert np.abs(fisher - whole).max() > 0.01
    on = gauss_newton.ggn(linear, params, mask, landscape.chunks(IMAGES, LABELS, 7))
    np.testing.assert_allclose(on.product(jnp.eye(len(ggn), dtype=jnp.float32)), whole, atol=2e-6)
    # Of a network with a hidden layer it is not.
    ggn, _, whole = explicit(apply, PARAMS, MASK)
    assert np.abs(ggn - whole).max() > 0.01


def operator(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, hessian.Operator]:
    """A symmetric matrix with that spectrum on the kept coordinates."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))
    whole = np.zeros((len(kept), len(kept)))
    whole[np.ix_(kept, kept)] = (q * values) @ q.T
    return whole, hessian.Operator(lambda v: v @ jnp.asarray(whole, v.dtype), jnp.asarray(kept))


def test_hutch_plus_plus_is_exact_where_the_sketch_spans_the_range(x64: None) -> None:
    """Rank 4 of 60 with a sketch of 4 or more; 5 of the 12 columns depend on the others, or all are 0."""
    kept = np.arange(90) % 3 > 0
    values = np.zeros(60)
    values[:4] = 5.0, 2.0, -1.0, 0.5
    _, on = operator(values, kept)
    for products in (12, 36):
        found = jax.jit(lambda key, n=products: hessian.deflated_trace(on, key, n))(KEY)
        np.testing.assert_allclose([found.total, found.mean], [6.5, 6.5 / 60], rtol=1e-6)
        assert float(found.error) < 1e-6
    nothing = hessian.Operator(jnp.zeros_like, jnp.asarray(kept))
    assert float(hessian.deflated_trace(nothing, KEY, 6).total) == 0
    # More columns than dimensions.
    whole, on = operator(np.array([3.0, -1.0]), np.arange(9) < 2)
    np.testing.assert_allclose(hessian.deflated_trace(on, KEY, 15).total, np.trace(whole), rtol=1e-6)
    with pytest.raises(ValueError, match="6 or more, two for each part, not 5"):
        hessian.deflated_trace(on, KEY, 5)


def test_hutch_plus_plus_is_unbiased_and_better_where_few_eigenvalues_dominate(x64: None) -> None:
    kept = np.arange(200) % 4 > 0
    values = 1 / np.arange(1, 151) ** 1.5
    whole, on = operator(values, kept)
    keys = jax.random.split(KEY, 200)
    plain = np.array(jax.lax.map(lambda key: hessian.trace(on, key, 33).total, keys))
    found = jax.lax.map(lambda key: hessian.deflated_trace(on, key, 33), keys)
    better, said = np.asarray(found.total), np.asarray(found.error)
    assert abs(better.mean() - np.trace(whole)) < 4 * better.std() / np.sqrt(200)
    assert better.std() < 0.5 * plain.std()
    # Its error is that of its spread.
    assert np.sqrt((said**2).mean()) == pytest.approx(better.std(), rel=0.25)
