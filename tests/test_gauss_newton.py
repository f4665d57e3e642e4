"""GGN and empirical Fisher against explicit Jacobians in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lthjax import prune
from lthjax.measures import gauss_newton, hessian, landscape, traces

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


def test_a_sketch_that_spans_the_range_gives_the_exact_trace(x64: None) -> None:
    """Of seven images the Gauss-Newton matrix has a rank of 14 at most, the empirical Fisher one of seven."""
    data = landscape.chunks(IMAGES, LABELS, 7)
    matrices = explicit(apply, PARAMS, MASK)[:2]
    for make, matrix in zip((gauss_newton.ggn, gauss_newton.empirical_fisher), matrices, strict=True):
        on = make(apply, PARAMS, MASK, data)
        assert on.semidefinite
        found = jax.jit(lambda key, on=on: traces.sketched_trace(on, key, 20))(KEY)
        np.testing.assert_allclose(found.total, np.trace(matrix), rtol=1e-5)
    loss = landscape.cross_entropy(apply)
    assert not hessian.operator(loss, PARAMS, MASK, data).semidefinite
