"""Traces from a random sketch: better than Hutchinson's where few eigenvalues hold most of the trace.

Those of a trained network's Gauss-Newton matrix and Fisher do. Each estimate is unbiased and has an error.

    nystrom_trace     XNysTrace, for operators without negative eigenvalues
    deflated_trace    Hutch++, for all others, such as the Hessian
    sketched_trace    the one of the two that the operator's `semidefinite` allows

    on = gauss_newton.ggn(apply, params, mask, landscape.chunks(images, labels, 100))
    traces.sketched_trace(on, key, 33)

Vectors are flat, and 0 outside the mask, as in `lthjax.measures.hessian`.
"""

import jax
import jax.numpy as jnp

from lthjax.measures.hessian import Operator, Trace, curvature, rademacher

LEAST_PRODUCTS = 6
"""The fewest products of `deflated_trace` and `sketched_trace`."""
# Rounding of inner products, in units of the type's precision times the root of their length.
_ROUNDING = 10


def sketched_trace(on: Operator, key: jax.Array, products: int = 33) -> Trace:
    """The trace by the better of the two estimates: XNysTrace where no eigenvalue is negative, else Hutch++.

    Args:
        on: the operator.
        key: for the random vectors.
        products: in all, 6 or more.
    """
    _enough(products, LEAST_PRODUCTS, "two for each part of Hutch++")
    return (nystrom_trace if on.semidefinite else deflated_trace)(on, key, products)


def nystrom_trace(on: Operator, key: jax.Array, products: int = 33) -> Trace:
    """The trace of a positive semidefinite operator by XNysTrace.

    All products make one sketch Ω. Of every column ω_i, the Nyström approximation A_i of the operator A from
    the other columns gives tr A_i, and ω_i the rest, ω_i' (A - A_i) ω_i. Neither takes a further product:
    with H = Ω'AΩ, the rest is 1 / (H⁻¹)_ii, and A_i differs from the approximation from all columns by a
    matrix of rank one. The mean over i is unbiased. The error is their spread as of independent samples,
    times √2, as what two columns say about each other is in the samples of both. Where eigenvalues fall as a
    power of their rank, the true one was 0.8 to 1.1 times that; where exponentially, up to 1.6 times.

    Args:
        on: the operator; of one with a negative eigenvalue the result is meaningless.
        key: for the columns, Rademacher vectors inside the mask.
        products: columns, 2 or more.

    Source: Epperly, Tropp & Webber 2024 (arXiv 2301.07825), without their scaling of the rest, which matters
    where the space has hardly more dimensions than the sketch has columns.
    """
    _enough(products, 2, "one for the sketch and one for the rest")
    columns = rademacher(key, on.kept, products)
    k = jnp.maximum(on.kept.sum(), 1)
    images = on.product(columns)
    eps, tiny = jnp.finfo(images.dtype).eps, jnp.finfo(images.dtype).tiny
    # Rounding makes small eigenvalues negative. The operator plus shift * I has none, and its trace is
    # shift * k greater: every column says so, as its squares add up to k.
    shift = _ROUNDING * eps * jnp.linalg.norm(columns @ images.T) / jnp.sqrt(k)
    images = images + shift * columns
    core = columns @ images.T
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    # Columns that depend on each other, as they must in few dimensions: without weight, and without NaN.
    values = jnp.maximum(values, jnp.maximum(eps * values[-1], tiny))
    root = vectors / jnp.sqrt(values)[None]
    basis = root.T @ images
    inverse = (root**2).sum(1)
    without = ((root @ basis) ** 2).sum(1) / inverse
    samples = (basis**2).sum() - without + 1 / inverse - shift * k
    total, error = samples.mean(), samples.std(ddof=1) * jnp.sqrt(2 / products)
    return Trace(total, error, total / k, error / k)


def deflated_trace(on: Operator, key: jax.Array, products: int = 33) -> Trace:
    """The trace by Hutch++: exact on the range of a random sketch, Hutchinson's estimate on the rest.

    The error is that of the rest, which alone is estimated.

    Args:
        on: the operator.
        key: for sketch and probes, Rademacher vectors inside the mask.
        products: in all, 6 or more; a third each for the sketch, its range and the rest.

    Source: Meyer et al. 2021 (arXiv 2010.09649), algorithm 1.
    """
    _enough(products, LEAST_PRODUCTS, "two for each part")
    count = products // 3
    first, second = jax.random.split(key)
    basis, beside = jnp.linalg.qr(on.product(rademacher(first, on.kept, count)).T)
    size = jnp.abs(jnp.diag(beside))
    # What depends on earlier columns is arbitrary, and may lie outside the mask.
    basis = jnp.where(size > 100 * jnp.finfo(size.dtype).eps * size.max(), basis, 0).T
    exact = curvature(on, basis).mean * count
    probes = rademacher(second, on.kept, products - 2 * count)
    rest = curvature(on, probes - (probes @ basis.T) @ basis)
    total, k = exact + rest.mean, on.kept.sum()
    return Trace(total, rest.error, total / k, rest.error / k)


def _enough(products: int, least: int, why: str) -> None:
    if products < least:
        raise ValueError(f"products: it takes {least} or more, {why}, not {products}.")
