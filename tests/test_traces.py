"""Traces by Hutch++ and XNysTrace, against their definitions, exact traces and each other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import decomp, stochtrace

from lthjax.measures import hessian, traces

KEY = jax.random.key(0)


@pytest.fixture
def x64() -> Any:
    with jax.enable_x64(True):
        yield


def operator(
    values: np.ndarray, kept: np.ndarray, semidefinite: bool = False
) -> tuple[np.ndarray, hessian.Operator]:
    """A symmetric matrix with that spectrum on the kept coordinates."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))
    whole = np.zeros((len(kept), len(kept)))
    whole[np.ix_(kept, kept)] = (q * values) @ q.T
    of = hessian.Operator(lambda v: v @ jnp.asarray(whole, v.dtype), jnp.asarray(kept), semidefinite)
    return whole, of


def test_hutch_plus_plus_is_exact_where_the_sketch_spans_the_range(x64: None) -> None:
    """Rank 4 of 60 with a sketch of 4 or more; 5 of the 12 columns depend on the others, or all are 0."""
    kept = np.arange(90) % 3 > 0
    values = np.zeros(60)
    values[:4] = 5.0, 2.0, -1.0, 0.5
    _, on = operator(values, kept)
    for products in (12, 36):
        found = jax.jit(lambda key, n=products: traces.deflated_trace(on, key, n))(KEY)
        np.testing.assert_allclose([found.total, found.mean], [6.5, 6.5 / 60], rtol=1e-6)
        assert float(found.error) < 1e-6
    nothing = hessian.Operator(jnp.zeros_like, jnp.asarray(kept))
    assert float(traces.deflated_trace(nothing, KEY, 6).total) == 0
    # More columns than dimensions.
    whole, on = operator(np.array([3.0, -1.0]), np.arange(9) < 2)
    np.testing.assert_allclose(traces.deflated_trace(on, KEY, 15).total, np.trace(whole), rtol=1e-6)
    with pytest.raises(ValueError, match="6 or more, two for each part, not 5"):
        traces.deflated_trace(on, KEY, 5)


def test_hutch_plus_plus_is_unbiased_and_better_where_few_eigenvalues_dominate(x64: None) -> None:
    kept = np.arange(200) % 4 > 0
    values = 1 / np.arange(1, 151) ** 1.5
    whole, on = operator(values, kept)
    keys = jax.random.split(KEY, 200)
    plain = np.array(jax.lax.map(lambda key: hessian.trace(on, key, 33).total, keys))
    found = jax.lax.map(lambda key: traces.deflated_trace(on, key, 33), keys)
    better, said = np.asarray(found.total), np.asarray(found.error)
    assert abs(better.mean() - np.trace(whole)) < 4 * better.std() / np.sqrt(200)
    assert better.std() < 0.5 * plain.std()
    # Its error is that of its spread.
    assert np.sqrt((said**2).mean()) == pytest.approx(better.std(), rel=0.25)


def nystrom(on: hessian.Operator, key: jax.Array, products: int) -> hessian.Trace:
    return jax.jit(lambda key: traces.nystrom_trace(on, key, products))(key)


def left_out(whole: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """XNysTrace by its definition: for every column the approximation from the others, and what it misses."""
    made = []
    for i, column in enumerate(columns):
        others = np.delete(columns, i, 0)
        images = others @ whole
        approximation = images.T @ np.linalg.pinv(others @ images.T, hermitian=True) @ images
        made.append(np.trace(approximation) + column @ (whole - approximation) @ column)
    return np.array(made)


@pytest.mark.parametrize("products", [2, 33])
def test_xnystrace_is_its_definition(x64: None, products: int) -> None:
    kept = np.arange(80) % 4 > 0
    whole, on = operator(1 / np.arange(1, 61) ** 1.5, kept, True)
    samples = left_out(whole, np.asarray(hessian.rademacher(KEY, on.kept, products)))
    found = nystrom(on, KEY, products)
    np.testing.assert_allclose(found.total, samples.mean(), rtol=1e-9)
    np.testing.assert_allclose(found.error, samples.std(ddof=1) * (2 / products) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose([found.mean, found.mean_error], [found.total / 60, found.error / 60])


def test_xnystrace_is_exact_where_the_sketch_spans_the_range(x64: None) -> None:
    kept = np.arange(90) % 3 > 0
    values = np.zeros(60)
    values[:4] = 5.0, 2.0, 1.0, 0.5
    _, on = operator(values, kept, True)
    found = nystrom(on, KEY, 8)
    np.testing.assert_allclose([found.total, found.mean], [8.5, 8.5 / 60], rtol=1e-8)
    assert float(found.error) < 1e-8
    # More columns than dimensions, which depend on each other; and an operator that is 0.
    whole, on = operator(np.array([3.0, 1.0]), np.arange(9) < 2, True)
    np.testing.assert_allclose(nystrom(on, KEY, 15).total, np.trace(whole), rtol=1e-6)
    assert 0 <= float(nystrom(hessian.Operator(jnp.zeros_like, on.kept, True), KEY, 5).total) < 1e-300


def test_xnystrace_is_unbiased_and_the_best_where_few_eigenvalues_dominate(x64: None) -> None:
    whole, on = operator(1 / np.arange(1, 151) ** 1.5, np.arange(200) % 4 > 0, True)
    keys = jax.random.split(KEY, 200)

    def each(key: jax.Array) -> tuple[jax.Array, jax.Array, hessian.Trace]:
        plain, deflated = hessian.trace(on, key, 33), traces.deflated_trace(on, key, 33)
        return plain.total, deflated.total, traces.nystrom_trace(on, key, 33)

    plain, deflated, found = jax.lax.map(each, keys)
    best, said = np.asarray(found.total), np.asarray(found.error)
    assert abs(best.mean() - np.trace(whole)) < 4 * best.std() / np.sqrt(200)
    assert best.std() < 0.75 * np.asarray(deflated).std()
    assert best.std() < 0.3 * np.asarray(plain).std()
    # Its error is that of its spread.
    assert np.sqrt((said**2).mean()) == pytest.approx(best.std(), rel=0.25)


def test_rounding_does_not_spoil_xnystrace() -> None:
    """In float32, of a spectrum that falls far below the precision of its products."""
    whole, on = operator(10.0 ** -np.arange(0, 30, 0.1), np.arange(400) < 300, True)
    found = [float(nystrom(on, key, 60).total) for key in jax.random.split(KEY, 3)]
    np.testing.assert_allclose(found, np.trace(whole), rtol=1e-4)


def test_the_estimate_is_chosen_by_the_operator(x64: None) -> None:
    _, on = operator(1 / np.arange(1, 61), np.arange(80) % 4 > 0, True)

    @jax.jit
    def found(key: jax.Array) -> list[jax.Array]:
        by_rule = (traces.sketched_trace(of, key, 9) for of in (on, on._replace(semidefinite=False)))
        by_name = (of(on, key, 9) for of in (traces.nystrom_trace, traces.deflated_trace))
        return [one.total for one in (*by_rule, *by_name)]

    semidefinite, other, nystrom_trace, deflated = map(float, found(KEY))
    assert (semidefinite, other) == (nystrom_trace, deflated)
    assert nystrom_trace != deflated
    for estimate, least in ((traces.nystrom_trace, 2), (traces.sketched_trace, 6)):
        with pytest.raises(ValueError, match=f"products: it takes {least} or more"):
            estimate(on, KEY, least - 1)


def test_traces_are_matfrees_for_the_same_vectors(x64: None) -> None:
    """Hutchinson and XNysTrace, sample by sample, by another library (Krämer et al. 2024)."""
    kept = np.arange(90) % 3 > 0
    whole, on = operator(1 / np.arange(1, 61) ** 1.5, kept, semidefinite=True)
    vectors = hessian.rademacher(KEY, on.kept, 12)[:, kept]
    product = jnp.asarray(whole[np.ix_(kept, kept)]).__matmul__
    with jax.numpy_rank_promotion("allow"):
        samples = stochtrace.leave_one_out_xnystrace(apply_resphering=False)(product, vectors)
    found = traces.nystrom_trace(on, KEY, 12)
    assert float(found.total) == pytest.approx(float(samples.mean()), rel=1e-8)
    assert float(found.error) == pytest.approx(float(samples.std(ddof=1)) * np.sqrt(2 / 12), rel=1e-6)
    plain = stochtrace.estimator_monte_carlo_mean_and_sem(stochtrace.monte_carlo_trace(), lambda _: vectors)
    mean, error = plain(product, KEY)
    of = hessian.trace(on, KEY, 12)
    assert float(of.total) == pytest.approx(float(mean), rel=1e-12)
    assert float(of.error) == pytest.approx(float(error) * np.sqrt(12 / 11), rel=1e-12)


def test_lanczos_is_matfrees_from_the_same_vector(x64: None) -> None:
    """The tridiagonal matrix and the basis, with full re-orthogonalisation in both."""
    kept = np.arange(90) % 3 > 0
    whole, on = operator(np.linspace(-1, 3, 60) ** 3, kept)
    start = hessian.rademacher(KEY, on.kept, 1)
    run = hessian.lanczos(on, start, 12, KEY)
    product = jnp.asarray(whole[np.ix_(kept, kept)]).__matmul__
    basis, (diagonal, beside), *_ = decomp.tridiag_sym(12, materialize=False)(product, start[0, kept])
    np.testing.assert_allclose(run.diagonal[0], diagonal, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.beside[0, :-1], beside, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(run.basis)[0][:, kept], basis, atol=1e-8)
