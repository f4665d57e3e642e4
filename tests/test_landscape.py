"""Directions, surfaces, paths, sharpness, noise and distances against closed forms and numpy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from lthjax import prune
from lthjax.measures import hessian, landscape, quantities

SHAPES = {"conv": {"bias": (6,), "kernel": (3, 3, 2, 6)}, "fc": {"bias": (5,), "kernel": (12, 5)}}


def draw(seed: int, density: float) -> tuple[Any, Any]:
    """Parameters and a random mask; conv's filter 0 is dead, fc's unit 1 has one survivor."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    params = jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    mask = prune.uniform(next(keys), params, density)
    mask["conv"]["kernel"] = mask["conv"]["kernel"].at[..., 0].set(False)
    mask["fc"]["kernel"] = mask["fc"]["kernel"].at[:, 1].set(jnp.arange(12) == 4)
    return prune.apply(params, mask), mask


def filters(kernel: Any) -> np.ndarray:
    """The kernel as [filters, weights], by a loop."""
    kernel = np.asarray(kernel)
    return np.stack([kernel[..., f].ravel() for f in range(kernel.shape[-1])])


@given(seed=st.integers(0, 2**31), density=st.sampled_from([0.0, 0.1, 0.4, 1.0]))
@settings(max_examples=20, deadline=None)
def test_directions_stay_inside_are_as_long_as_their_filters_and_orthogonal(
    seed: int, density: float
) -> None:
    params, mask = draw(seed, density)
    first, second = landscape.directions(jax.random.key(seed), params, mask)
    for layer in params:
        kept, theta = filters(mask[layer]["kernel"]), filters(params[layer]["kernel"])
        for number, d in enumerate((first, second)):
            assert not np.asarray(d[layer]["bias"]).any()
            inside = filters(d[layer]["kernel"])
            assert not inside[~kept].any()
            live = kept.sum(1) > number
            np.testing.assert_allclose(
                np.linalg.norm(inside, axis=1), np.where(live, np.linalg.norm(theta, axis=1), 0), rtol=1e-4
            )
        inner = (filters(first[layer]["kernel"]) * filters(second[layer]["kernel"])).sum(1)
        assert (np.abs(inner) <= 1e-4 * (theta**2).sum(1)).all()


def test_a_direction_is_the_formula_by_loops() -> None:
    params, mask = draw(0, 0.4)
    key = jax.random.key(3)
    got = landscape.direction(key, params, mask)
    # The same normal numbers, leaf by leaf.
    keys = jax.random.split(jax.random.fold_in(key, 0), 4)
    raw = [
        np.asarray(jax.random.normal(k, leaf.shape), np.float64)
        for k, leaf in zip(keys, jax.tree.leaves(params), strict=True)
    ]
    for layer, d in (("conv", raw[1]), ("fc", raw[3])):
        expected = np.zeros_like(d)
        theta, kept = np.asarray(params[layer]["kernel"]), np.asarray(mask[layer]["kernel"])
        for f in range(d.shape[-1]):
            inside = [(i, d[(*i, f)]) for i in np.ndindex(d.shape[:-1]) if kept[(*i, f)]]
            length = sum(value**2 for _, value in inside) ** 0.5
            goal = sum(theta[(*i, f)] ** 2 for i, _ in inside) ** 0.5
            for i, value in inside:
                expected[(*i, f)] = value * goal / (length + 1e-10)
        np.testing.assert_allclose(got[layer]["kernel"], expected, rtol=1e-4, atol=1e-7)


def test_directions_of_other_keys_are_others_and_the_mask_may_be_traced() -> None:
    params, mask = draw(1, 0.5)
    compiled = jax.jit(landscape.direction)
    one, same, other = (compiled(jax.random.key(i), params, mask) for i in (0, 0, 1))
    flat = [np.asarray(ravel_pytree(d)[0]) for d in (one, same, other)]
    np.testing.assert_array_equal(flat[0], flat[1])
    assert np.abs(flat[0] - flat[2]).max() > 0.1


def test_surface_of_a_quadratic() -> None:
    """(theta + a d + b e)' A (theta + a d + b e) / 2, with rows of the grid for a and columns for b."""
    rng = np.random.default_rng(0)
    root, theta, d, e = rng.normal(size=(4, 4)), *rng.normal(size=(3, 4))
    a_matrix = root @ root.T
    a, b = np.linspace(-1, 1, 5), np.linspace(0, 2, 3)

    def measure(w: jax.Array) -> dict[str, jax.Array]:
        return {"loss": w @ jnp.asarray(a_matrix, w.dtype) @ w / 2, "first": w[0]}

    start, one, two = (jnp.asarray(v, jnp.float32) for v in (theta, d, e))
    for together in (1, 4):
        got = landscape.plane(measure, start, one, two, a, b, together=together)
        points = theta + a[:, None, None] * d + b[None, :, None] * e
        np.testing.assert_allclose(
            got["loss"], np.einsum("abi,ij,abj->ab", points, a_matrix, points) / 2, rtol=1e-4
        )
        np.testing.assert_allclose(got["first"], points[..., 0], rtol=1e-4, atol=1e-6)
        along = landscape.line(measure, start, one, a, together=together)
        points = theta + a[:, None] * d
        np.testing.assert_allclose(
            along["loss"], np.einsum("ai,ij,aj->a", points, a_matrix, points) / 2, rtol=1e-4
        )
    usual = landscape.plane(lambda w: w[0], start, one, two)
    assert usual.shape == (51, 51)
    np.testing.assert_allclose(usual[25, 25], theta[0], rtol=1e-6)


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(n, 2, 2, 1)).astype(np.float32), rng.integers(0, 3, n)


def linear(params: Any, pixels: jax.Array) -> jax.Array:
    return pixels.reshape(len(pixels), -1) @ params["w"]


W = {"w": jax.random.normal(jax.random.key(9), (4, 3))}


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_chunks_add_up_to_means_over_all_images(size: int) -> None:
    """Includes a partly filled last chunk; softmax and hits are written out with numpy."""
    x, y = images(7)
    data = landscape.chunks(x, y, size)
    assert data.labels.shape == (-(-7 // size), min(size, 7))
    logits = x.reshape(7, 4).astype(np.float64) @ np.asarray(W["w"], np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), y]
    got = landscape.total(landscape.measured(linear), data)(W)
    np.testing.assert_allclose(got.loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(got.accuracy, (logits.argmax(1) == y).mean(), rtol=1e-6)
    np.testing.assert_allclose(landscape.total(landscape.cross_entropy(linear), data)(W), got.loss, rtol=1e-6)


def test_chunks_say_what_they_take() -> None:
    x, y = images(3)
    with pytest.raises(ValueError, match="images: 3 with 2 labels"):
        landscape.chunks(x, y[:2], 2)


def double_well(w: jax.Array) -> jax.Array:
    return ((w["x"][0] ** 2 - 1) ** 2 + 3 * w["x"][1] ** 2).sum()


def test_barrier_of_a_double_well() -> None:
    """Between its two minima (x**2 - 1)**2 rises to 1; between -1 and 2 it is 9 at one end."""
    ends = [{"x": jnp.array([x, 0.0])} for x in (-1.0, 1.0, 2.0)]
    alphas = np.linspace(0, 1, 31)
    values = landscape.path(double_well, ends[0], ends[1], alphas)
    x = alphas * -1 + (1 - alphas)
    np.testing.assert_allclose(values, (x**2 - 1) ** 2, atol=1e-5)
    np.testing.assert_allclose(landscape.barrier(values), 1, rtol=1e-5)
    # alpha = 1 is the first network.
    values = landscape.path(double_well, ends[0], ends[2])
    assert values.shape == (30,)
    np.testing.assert_allclose(values[jnp.array([0, -1])], [9, 0], atol=1e-5)
    np.testing.assert_allclose(landscape.barrier(values), 9 - 4.5, rtol=1e-5)
    np.testing.assert_allclose(landscape.barrier(jnp.stack([values, 0 * values])), [4.5, 0], atol=1e-5)


def test_the_barrier_of_counts_of_images_is_free_of_float32() -> None:
    """Of 600 images 3 are wrong at the ends and 4 between; accuracies come as float64, losses as float32."""
    path = {"accuracy": np.array([597, 596, 597]) / 600, "loss": np.float32([0.1, 0.3, 0.2])}
    arrays = {f"{part}_{name}": of for name, of in path.items() for part in ("train", "test")}
    arrays |= dict.fromkeys(("disagreement", "path_length", "path_degrees"), np.float64(0))
    found = quantities.values("path", arrays)
    assert found["barrier_test_error"][0] == pytest.approx(1 / 600, rel=1e-12)
    assert found["barrier_train_loss"][0] == pytest.approx(0.15, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_barrier_to_itself_and_none_below_zero(seed: int) -> None:
    point = {"x": jax.random.normal(jax.random.key(seed), (2,))}
    values = landscape.path(double_well, point, point)
    np.testing.assert_allclose(landscape.barrier(values), 0, atol=1e-5)
    # A convex loss exceeds the mean of the ends by at most half their difference.
    other = {"x": jax.random.normal(jax.random.key(seed + 100), (2,))}
    values = landscape.path(lambda w: (w["x"] ** 2).sum(), point, other)
    gap = abs(float(values[0] - values[-1])) / 2
    np.testing.assert_allclose(landscape.barrier(values), gap, atol=1e-5)


def test_a_path_prepares_its_points() -> None:
    """Statistics are recomputed at every point; here they are a mean that is subtracted."""
    one, two = {"x": jnp.array([2.0, 4.0])}, {"x": jnp.array([0.0, 10.0])}
    values = landscape.path(
        lambda point: (point[0]["x"] - point[1])[0],
        one,
        two,
        [0.0, 0.5, 1.0],
        prepare=lambda params: (params, params["x"].mean()),
    )
    np.testing.assert_allclose(values, [-5, -3, -1], rtol=1e-6)


def test_sharpness_of_a_quadratic_inside_the_mask() -> None:
    """L = c' w**2 / 2 has gradient g = c w; the pruned weight, with the largest gradient, is left out."""
    c, w, kept = np.array([1.0, 4.0, 100.0]), np.array([2.0, -0.5, 0.0]), np.array([True, True, False])

    def loss(params: Any) -> jax.Array:
        return (jnp.asarray(c, jnp.float32) * (params["w"][0] + jnp.array([0.0, 0.0, 1.0])) ** 2).sum() / 2

    def value(w: np.ndarray) -> float:
        return float((c * (w + np.eye(3)[2]) ** 2).sum() / 2)

    params, mask = {"w": jnp.asarray(w, jnp.float32)[None]}, {"w": jnp.asarray(kept)[None]}
    g = np.where(kept, c * w, 0)
    for rho in (0.05, 0.5):
        step = rho * g / np.linalg.norm(g)
        np.testing.assert_allclose(
            landscape.sharpness(loss, params, mask, rho), value(w + step) - value(w), rtol=2e-4
        )
        step = rho * w**2 * g / np.linalg.norm(np.abs(w) * g)
        np.testing.assert_allclose(
            landscape.sharpness(loss, params, mask, rho, adaptive=True), value(w + step) - value(w), rtol=2e-4
        )
    flat = landscape.sharpness(lambda p: 0 * p["w"].sum(), params, mask)
    assert float(flat) == 0


def two_layers() -> tuple[Any, Any, Callable[[Any, jax.Array], jax.Array]]:
    """Parameters, mask and function of a network of two dense layers with a ReLU between."""
    keys = jax.random.split(jax.random.key(2), 4)
    params = {
        "a": {"bias": 0.3 * jax.random.normal(keys[2], (6,)), "kernel": jax.random.normal(keys[0], (4, 6))},
        "b": {"bias": 0.3 * jax.random.normal(keys[3], (3,)), "kernel": jax.random.normal(keys[1], (6, 3))},
    }

    def apply(p: Any, pixels: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(pixels.reshape(len(pixels), -1) @ p["a"]["kernel"] + p["a"]["bias"][None])
        return hidden @ p["b"]["kernel"] + p["b"]["bias"][None]

    return params, prune.magnitude(params, prune.ones(params), 0.4), apply


def test_only_adaptive_sharpness_is_the_same_after_rescaling_relu_layers() -> None:
    x, y = images(8)
    data = landscape.chunks(x, y, 3)
    params, mask, apply = two_layers()
    factors = jnp.array([0.1, 0.5, 1, 2, 5, 10])
    scaled = {
        "a": {"bias": params["a"]["bias"] * factors, "kernel": params["a"]["kernel"] * factors[None]},
        "b": {"bias": params["b"]["bias"], "kernel": params["b"]["kernel"] / factors[:, None]},
    }
    loss = landscape.cross_entropy(apply)
    for adaptive, rho in ((True, 0.5), (False, 0.05)):
        before, after = (
            float(landscape.sharpness(loss, p, mask, rho, data, adaptive=adaptive)) for p in (params, scaled)
        )
        assert before > 0
        if adaptive:
            assert after == pytest.approx(before, rel=1e-4)
        else:
            assert abs(after - before) > 0.1 * before


def test_only_filter_curvature_is_the_same_after_rescaling_layers() -> None:
    """Two layers by 4 and 1/4; the directions by the same draws. The mean eigenvalue is another."""
    x, y = images(8)
    data = landscape.chunks(x, y, 4)
    params, mask, apply = two_layers()
    loss, draws = landscape.cross_entropy(apply), jax.random.split(jax.random.key(3), 40)

    @jax.jit
    def measured(own: Any) -> tuple[hessian.Curvature, jax.Array, jax.Array, jax.Array]:
        along = jax.vmap(lambda key: ravel_pytree(landscape.direction(key, own, mask))[0])(draws)
        flat, unravel = ravel_pytree(prune.apply(own, mask))
        on = hessian.operator(loss, own, mask, data)
        whole = jax.hessian(lambda flat: landscape.total(loss, data)(unravel(flat)))(flat)
        return hessian.curvature(on, along), along, whole, on.kept

    found = []
    for factor in (1.0, 4.0):
        own = {
            "a": jax.tree.map(lambda w, f=factor: f * w, params["a"]),
            "b": {"bias": params["b"]["bias"], "kernel": params["b"]["kernel"] / factor},
        }
        curvature, *matrices = measured(own)
        along, whole, kept = map(np.asarray, matrices)
        each = np.einsum("pi,ij,pj->p", along, whole, along)
        assert float(curvature.mean) == pytest.approx(each.mean(), rel=1e-4)
        assert float(curvature.error) == pytest.approx(each.std(ddof=1) / np.sqrt(40), rel=1e-4)
        found.append((float(curvature.mean), np.diag(whole)[kept].mean()))
    (before, mean), (after, other) = found
    assert before > 0
    assert after == pytest.approx(before, rel=1e-4)
    assert abs(other - mean) > 0.5 * mean


def test_gradient_noise_is_the_trace_of_numpys_covariance() -> None:
    """Uses the written-out gradients of a linear softmax, for single images and batches of two."""
    x, y = images(12)
    mask = {"w": jax.random.bernoulli(jax.random.key(1), 0.6, (4, 3))}
    w = np.where(mask["w"], W["w"], 0).astype(np.float64)
    logits = x.reshape(12, 4) @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    each = np.einsum("ni,nj->nij", x.reshape(12, 4), p - np.eye(3)[y]) * np.asarray(mask["w"])
    for size in (1, 2):
        batches = each.reshape(12 // size, size, -1).mean(1)
        got = landscape.gradient_noise(
            landscape.cross_entropy(linear), W, mask, landscape.chunks(x, y, size), size
        )
        trace = np.trace(np.cov(batches, rowvar=False))
        np.testing.assert_allclose(got.trace, trace, rtol=1e-4)
        np.testing.assert_allclose(got.per_example, size * trace, rtol=1e-4)
        np.testing.assert_allclose(got.gradient, np.linalg.norm(each.mean(0)), rtol=1e-4)
    with pytest.raises(ValueError, match="two or more, not 1"):
        landscape.gradient_noise(landscape.cross_entropy(linear), W, mask, landscape.chunks(x, y, 12), 12)


def test_gradient_stays_inside_the_mask() -> None:
    x, y = images(6)
    mask = {"w": jax.random.bernoulli(jax.random.key(1), 0.5, (4, 3))}
    g = landscape.gradient(landscape.cross_entropy(linear), W, mask, landscape.chunks(x, y, 4))
    assert not g["w"][~mask["w"]].any()
    assert (g["w"][mask["w"]] != 0).all()


@pytest.mark.parametrize(
    ("start", "end", "distance", "degrees"),
    [
        ([3.0, 0, 7], [0, 4.0, -9], 5, 90),
        ([1.0, 0, 0], [-2.0, 0, 0], 3, 180),
        ([1.0, 1, 0], [2.0, 2, 5], 2**0.5, 0),
        ([1.0, 0, 0], [1.0, 1e-4, 0], 1e-4, np.degrees(1e-4)),
    ],
)
def test_travel_counts_what_the_mask_keeps(start: list, end: list, distance: float, degrees: float) -> None:
    mask = {"w": jnp.array([True, True, False])}
    got = landscape.travelled({"w": jnp.array(start)}, {"w": jnp.array(end)}, mask)
    np.testing.assert_allclose(got.distance, distance, rtol=1e-5)
    np.testing.assert_allclose(got.degrees, degrees, rtol=1e-4, atol=1e-4)


def test_disagreement_is_the_share_of_different_answers() -> None:
    first = jnp.array([[2.0, 1, 0], [0, 1, 0], [0, 0, 3], [5, 4, 4]])
    second = jnp.array([[9.0, 8, 0], [1, 0, 0], [0, 0, 1], [1, 2, 0]])
    assert float(landscape.disagreement(first, second)) == 0.5
    assert float(landscape.disagreement(first, first)) == 0


def test_steps_add_up() -> None:
    steps: Callable[..., Any] = landscape.moved
    got = steps({"w": jnp.array([1.0])}, [{"w": jnp.array([2.0])}, {"w": jnp.array([10.0])}], [3.0, -1.0])
    assert float(got["w"][0]) == -3
