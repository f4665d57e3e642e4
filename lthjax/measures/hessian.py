"""The Hessian of a loss inside a mask: products, extreme eigenvalues, trace, spectral density.

The space consists of the parameters that the mask keeps: the surviving weights, and all entries of the
leaves that may not be pruned (their mask is the 0-d True), such as biases. Its dimension k counts both.
The Hessian is m * H * m, with H taken at m * theta.

Vectors are flat. They have one entry per parameter, in the order of `jax.flatten_util.ravel_pytree`, and
are exactly 0 outside the mask. No shape depends on how many weights survive, so the mask may be traced,
and one compiled program serves all levels, arms and seeds.

    @jax.jit
    def spectrum(params, mask, chunks, key):
        operator = hessian.operator(loss, params, mask, chunks)
        return hessian.extremes(operator, key), hessian.density(operator, key)

For more data than fit in memory at once, the loss is `loss(params, chunk)` with `chunks`, a pytree of
arrays with a leading axis of chunks. The whole loss is the *sum* over the chunks (`landscape.chunks` makes
such a pytree, with weights that make the sum a mean).

Products use reverse mode twice: the product with v is the gradient of <gradient, v>, as H is symmetric. So
functions with a reverse rule of their own, such as those of `lthjax.devices.conv`, are allowed. A loop over
data belongs in `chunks`, not in the loss: JAX 0.10 cannot take second derivatives of a `lax.scan` over such
functions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lthjax import prune

PyTree = Any
Loss = Callable[..., jax.Array]
"""(params) -> loss, shape (); or (params, chunk) -> the chunk's contribution to the loss."""


class Operator(NamedTuple):
    """A symmetric linear map of the space inside a mask to itself.

    Attributes:
        product: float [p, n] -> float [p, n], row by row; 0 outside the mask.
        kept: bool [n], the mask.
        semidefinite: whether it is known to have no negative eigenvalue.
    """

    product: Callable[[jax.Array], jax.Array]
    kept: jax.Array
    semidefinite: bool = False


class Lanczos(NamedTuple):
    """Tridiagonal matrices T = Q A Q^T, one for each of p start vectors.

    Attributes:
        diagonal: float [p, m]; NaN from the step at which the space was exhausted.
        beside: float [p, m], the off-diagonal. Entry i couples rows i and i + 1; the last entry couples
            to the residual vector.
        basis: float [p, m, n], the orthonormal rows of Q.
    """

    diagonal: jax.Array
    beside: jax.Array
    basis: jax.Array


class Extremes(NamedTuple):
    """The two ends of a spectrum.

    Attributes:
        largest: float [count], descending; NaN where the space has fewer dimensions.
        smallest: float [count], ascending; NaN likewise.
        largest_error: float [count]; some eigenvalue lies within this distance of the value.
        smallest_error: float [count].
        vectors: float [count, n], unit eigenvectors of the largest eigenvalues.
    """

    largest: jax.Array
    smallest: jax.Array
    largest_error: jax.Array
    smallest_error: jax.Array
    vectors: jax.Array


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        total: float (), the trace.
        error: float (), its standard error over the probes.
        mean: float (), the trace divided by k: the mean eigenvalue.
        mean_error: float (), its standard error.
    """

    total: jax.Array
    error: jax.Array
    mean: jax.Array
    mean_error: jax.Array


class Curvature(NamedTuple):
    """The mean of d . H d over directions d.

    Attributes:
        mean: float ().
        error: float (), its standard error.
    """

    mean: jax.Array
    error: jax.Array


class Density(NamedTuple):
    """An estimate of the density of a spectrum, normalised to 1.

    Attributes:
        grid: float [points], eigenvalues.
        density: float [points], per unit of eigenvalue, smoothed by a Gaussian of width `sigma`.
        sigma: float ().
        nodes: float [probes, steps], quadrature nodes. The mean of f(eigenvalue) is the sum of
            weights * f(nodes), averaged over the probes.
        weights: float [probes, steps]; each probe's weights add up to 1.
    """

    grid: jax.Array
    density: jax.Array
    sigma: jax.Array
    nodes: jax.Array
    weights: jax.Array


def dimension(params: PyTree, mask: PyTree) -> jax.Array:
    """k: surviving weights and all entries of the leaves that may not be pruned; int32 ()."""
    return kept_of(params, mask).sum(dtype=jnp.int32)


def hvp(loss: Loss, params: PyTree, mask: PyTree, vector: PyTree, chunks: PyTree = None) -> PyTree:
    """m * (H (m * v)), with H the loss's Hessian at m * theta.

    Args:
        loss: (params) -> (); with chunks (params, chunk) -> (), and the loss is the sum over chunks.
        params: a pytree of float arrays.
        mask: its mask.
        vector: v, a pytree like the parameters.
        chunks: a pytree of arrays with a leading axis of chunks, or None.

    Returns:
        A pytree like the parameters, exactly 0 outside the mask.
    """
    flat, unravel = ravel_pytree(vector)
    return unravel(operator(loss, params, mask, chunks).product(flat[None])[0])


def operator(loss: Loss, params: PyTree, mask: PyTree, chunks: PyTree = None) -> Operator:
    """The Hessian inside the mask as an operator; arguments as for `hvp`.

    Each call linearises the gradient once per chunk and shares it among all vectors. So pass vectors
    together: for a convolutional network eight together cost less than six one by one.
    """
    start, unravel = ravel_pytree(prune.apply(params, mask))
    kept = kept_of(params, mask)

    def of_chunk(vectors: jax.Array, *chunk: PyTree) -> jax.Array:
        _, pull = jax.vjp(jax.grad(lambda flat: loss(unravel(flat), *chunk)), start)

        # One vector at a time on CPU, where batched convolutions are slow.
        def one_by_one(vectors: jax.Array) -> jax.Array:
            return lax.map(lambda v: pull(v)[0], vectors)

        def together(vectors: jax.Array) -> jax.Array:
            return jax.vmap(lambda v: pull(v)[0])(vectors)

        return lax.platform_dependent(vectors, cpu=one_by_one, default=together)

    def product(vectors: jax.Array) -> jax.Array:
        inside = jnp.where(kept[None], vectors.astype(start.dtype), 0)
        if chunks is None:
            whole = of_chunk(inside)
        else:
            whole, _ = lax.scan(
                lambda total, chunk: (total + of_chunk(inside, chunk), None), jnp.zeros_like(inside), chunks
            )
        return jnp.where(kept[None], whole, 0)

    return Operator(product, kept)


def extremes(on: Operator, key: jax.Array, count: int = 10, steps: int = 40) -> Extremes:
    """The largest and smallest eigenvalues, by Lanczos from one random start vector.

    Lanczos finds a repeated eigenvalue only once at first. Its other copies appear when all other
    eigenvalues are found, or through rounding. So the multiplicity of an eigenvalue may be larger than
    the result shows. This concerns 0 above all, and the biases of a disconnected network.

    Args:
        on: the operator.
        key: for the start vector.
        count: number of eigenvalues at either end, at most `steps`.
        steps: number of products. Isolated eigenvalues converge first; the errors show how far they are.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"count: it is from 1 to steps = {steps}, not {count}.")
    run = lanczos(on, _gaussian(key, on.kept, 1), steps, key)
    values, vectors = _diagonalised(run)
    values, vectors = values[0], vectors[0]
    # Found values are ascending; NaN fill the end.
    found = jnp.isfinite(values).sum()
    up = jnp.arange(count)
    down = found - 1 - up
    error = jnp.abs(vectors[-1]) * run.beside[0, -1]
    there = up < found

    def taken(of: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.where(there, of[index], jnp.nan)

    return Extremes(
        taken(values, down),
        taken(values, up),
        taken(error, down),
        taken(error, up),
        jnp.where(there[:, None], vectors.T[down] @ run.basis[0], jnp.nan),
    )


def trace(on: Operator, key: jax.Array, probes: int = 32) -> Trace:
    """The trace by Hutchinson's estimator with Rademacher vectors inside the mask.

    Where few eigenvalues hold most of it, `lthjax.measures.traces` has better ones.

    Args:
        on: the operator.
        key: for the probes.
        probes: number of products, 2 or more.

    Source: Hutchinson 1989, doi 10.1080/03610918908812806.
    """
    if probes < 2:
        raise ValueError(f"probes: a standard error takes 2 or more, not {probes}.")
    total, error = curvature(on, rademacher(key, on.kept, probes))
    k = on.kept.sum()
    return Trace(total, error, total / k, error / k)


def curvature(on: Operator, directions: jax.Array) -> Curvature:
    """The mean curvature along some directions, d . H d, not divided by their lengths.

    Args:
        on: the operator.
        directions: float [p, n], two or more independent ones, 0 outside the mask; of
            `landscape.direction` the mean is that of a unit of the filters' lengths, which factors between
            whole layers of a ReLU network do not change.
    """
    samples = (directions * on.product(directions)).sum(1)
    return Curvature(samples.mean(), samples.std(ddof=1) / jnp.sqrt(len(directions)))


def density(
    on: Operator,
    key: jax.Array,
    probes: int = 8,
    steps: int = 30,
    *,
    points: int = 1024,
    sigma: float | None = None,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature.

    Needs probes * steps products, and memory for that many vectors.

    Args:
        on: the operator.
        key: for the probes, Rademacher vectors inside the mask.
        probes: number of probes that are averaged.
        steps: Lanczos steps; m steps give the first 2 m moments of a probe's own spectrum exactly.
        points: grid points, from 4 sigma under the lowest node to 4 sigma above the highest.
        sigma: width of the Gaussian, in units of eigenvalue; by default 1 / 100 of the spectrum's
            range.

    Source: Lin, Saad & Yang 2016 (arXiv 1308.5467), section 3.2; Ghorbani, Krishnan & Xiao 2019
    (arXiv 1901.10159), section 2.
    """
    run = lanczos(on, rademacher(key, on.kept, probes), steps, key)
    values, vectors = _diagonalised(run)
    found = jnp.isfinite(values)
    weights = jnp.where(found, vectors[:, 0] ** 2, 0)
    weights = weights / weights.sum(1, keepdims=True)
    lowest, highest = jnp.nanmin(values), jnp.nanmax(values)
    nodes = jnp.where(found, values, 0)
    if sigma is None:
        spread = highest - lowest
        # Where all eigenvalues are equal, any width will do.
        width = jnp.where(spread > 0, spread / 100, 1.0)
    else:
        width = jnp.asarray(sigma, nodes.dtype)
    grid = jnp.linspace(lowest - 4 * width, highest + 4 * width, points)
    bells = jax.scipy.stats.norm.pdf(grid[:, None], nodes.reshape(1, -1), width)
    return Density(grid, bells @ weights.ravel() / probes, width, nodes, weights)


def grid_over(nodes: Sequence[np.ndarray], points: int = 800) -> tuple[np.ndarray, float]:
    """A grid on which several spectra can be compared, and the width of the Gaussian for `smoothed`.

    Args:
        nodes: the eigenvalues of every spectrum, arrays of any shape.
        points: of the grid.

    Returns:
        float64 [points], from four widths below the lowest eigenvalue to four above the highest; and the
        width, a hundredth of the way between these two eigenvalues.
    """
    low, high = (float(of([of(x) for x in nodes])) for of in (np.min, np.max))
    width = (high - low or 1) / 100
    return np.linspace(low - 4 * width, high + 4 * width, points), width


def smoothed(nodes: Any, weights: Any, grid: Any, sigma: float) -> np.ndarray:
    """A quadrature's spectral density on a grid: one Gaussian per node.

    Args:
        nodes: float [probes, m], of `Density`.
        weights: float [probes, m], of `Density`.
        grid: float [points].
        sigma: width of the Gaussians.

    Returns:
        float64 [points].
    """
    at, of = (np.asarray(x, np.float64).ravel() for x in (nodes, weights))
    bells = np.exp(-0.5 * ((np.asarray(grid)[:, None] - at) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return bells @ of / len(nodes)


def lanczos(on: Operator, starts: jax.Array, steps: int, key: jax.Array) -> Lanczos:
    """Lanczos for several start vectors side by side, with full re-orthogonalisation, twice per step.

    Where the Krylov space of a start vector ends before `steps`, the iteration continues with a random
    vector orthogonal to the basis and uncoupled from it. Where the whole space ends, it continues with 0.

    Args:
        on: the operator.
        starts: float [p, n], 0 outside the mask, none of them 0.
        steps: m, the number of products per start vector.
        key: for the random vectors.
    """
    starts = starts / jnp.linalg.norm(starts, axis=1, keepdims=True)
    p, n = starts.shape
    small = 100 * jnp.finfo(starts.dtype).eps

    def cleared(vectors: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):
            vectors = vectors - jnp.einsum("pm,pmn->pn", jnp.einsum("pmn,pn->pm", basis, vectors), basis)
        return vectors

    def step(i: jax.Array, carry: tuple) -> tuple:
        diagonal, beside, basis, scale = carry
        at = basis[:, i]
        image = on.product(at)
        a = (image * at).sum(1)
        exhausted = ~at.any(1)
        rest = cleared(image, basis)
        b = jnp.linalg.norm(rest, axis=1)
        scale = jnp.maximum(scale, jnp.linalg.norm(image, axis=1))
        ended = b <= small * scale

        def fresh() -> jax.Array:
            drawn = _gaussian(jax.random.fold_in(key, i), on.kept, p)
            before = jnp.linalg.norm(drawn, axis=1)
            drawn = cleared(drawn, basis)
            after = jnp.linalg.norm(drawn, axis=1)
            return jnp.where((after > 1e-4 * before)[:, None], drawn / after[:, None], 0)

        new = lax.cond(ended.any(), fresh, lambda: jnp.zeros_like(rest))
        b = jnp.where(ended, 0, b)
        following = jnp.where(ended[:, None], new, rest / jnp.where(ended, 1, b)[:, None])
        return (
            diagonal.at[:, i].set(jnp.where(exhausted, jnp.nan, a)),
            beside.at[:, i].set(b),
            basis.at[:, i + 1].set(following, mode="drop"),
            scale,
        )

    dtype = starts.dtype
    basis = jnp.zeros((p, steps, n), dtype).at[:, 0].set(starts)
    empty = jnp.zeros((p, steps), dtype)
    diagonal, beside, basis, _ = lax.fori_loop(0, steps, step, (empty, empty, basis, jnp.zeros(p, dtype)))
    return Lanczos(diagonal, beside, basis)


def _diagonalised(run: Lanczos) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [p, m], ascending, NaN at the end; eigenvectors of T [p, m, m], in columns."""
    a, b = run.diagonal, run.beside[:, :-1]
    real = jnp.isfinite(a)
    # Missing rows become uncoupled eigenvalues beyond all others, so that they sort to the end.
    beyond = 1 + jnp.nansum(jnp.abs(a), axis=1, keepdims=True) + 2 * b.sum(1, keepdims=True)
    matrices = jax.vmap(lambda a, b: jnp.diag(a) + jnp.diag(b, 1) + jnp.diag(b, -1))(
        jnp.where(real, a, beyond), b
    )
    values, vectors = jnp.linalg.eigh(matrices)
    there = jnp.arange(a.shape[1])[None] < real.sum(1, keepdims=True)
    return jnp.where(there, values, jnp.nan), vectors


def kept_of(params: PyTree, mask: PyTree) -> jax.Array:
    """Which entries of the flat parameters belong to the space: bool [n]."""
    shaped = jax.tree.map(lambda m, p: jnp.broadcast_to(m, jnp.shape(p)).ravel(), mask, params)
    return jnp.concatenate(jax.tree.leaves(shaped))


def rademacher(key: jax.Array, kept: jax.Array, count: int) -> jax.Array:
    """Random vectors of ±1 inside the mask, 0 outside: float [count, n]."""
    drawn = jax.random.rademacher(key, (count, kept.size), jnp.result_type(float))
    return jnp.where(kept[None], drawn, 0)


def _gaussian(key: jax.Array, kept: jax.Array, count: int) -> jax.Array:
    return jnp.where(kept[None], jax.random.normal(key, (count, kept.size)), 0)
