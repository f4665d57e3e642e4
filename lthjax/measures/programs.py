"""Landscape measurements of one network, as compilable functions that run side by side for many networks.

Every program takes (model, settings, each) and returns named arrays. `each` holds "variables", "mask" and
"train" (a `landscape.Chunk`). Where needed it also holds "test", "noise" (separate batches), "start" (the
weights at the start of training), "keys" (PRNG key data, uint32 [draws, 2]), "other" and "other_mask" (the
other end of a path).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from lthjax import data, models, rng
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.measures import gauss_newton, hessian, landscape, traces
from lthjax.models import Model, Variables

PyTree = Any
Labelled = tuple[np.ndarray, np.ndarray]
"""Normalised images, float32 [N, H, W, C], and their labels, int32 [N]."""
Images = Mapping[str, Labelled]
"""Keys are "train" and "test"."""
# The largest number each of points, draws, probes and steps.
_MOST = 10_000
# Cost of a gradient, in forward passes.
_GRADIENT = 3
# Images that a program sees at a time, on CPU and elsewhere.
_ON_CPU, _ELSEWHERE = 50, 500
# Of a path between networks with running statistics: images in a batch of those that are recomputed.
_BATCH = "statistics_batch"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to measure."""

    images: int = 2000
    """Train images, and as many test images, for losses, gradients, lines and paths."""
    plane_images: int = 2000
    """Train images for surfaces: the first of `images`."""
    plane_test_images: int = 500
    """Test images for surfaces, likewise."""
    spectrum_images: int = 500
    """Train images for spectra, likewise."""
    points: int = 51
    """Points on a line, and on either side of a surface; odd."""
    reach: float = 1.0
    """Largest distance of lines and surfaces in either direction, in lengths of the filters."""
    draws: int = 3
    """Number of random directions for lines."""
    plane_draws: int = 1
    """Number of pairs of orthogonal directions for surfaces; the first of a pair is that of the line."""
    alphas: int = 30
    """Points on a path, ends included."""
    eigenvalues: int = 10
    """Number of largest eigenvalues."""
    steps: int = 40
    """Lanczos steps for the largest eigenvalues."""
    probes: int = 4
    """Probes of the spectral density."""
    probe_steps: int = 30
    """Lanczos steps of every probe."""
    trace_probes: int = 32
    """Hessian-vector products for the trace, and as many for the filter-normalised curvature and for the
    traces of Gauss-Newton matrix and Fisher."""
    rho: float = 0.05
    """Length of the step up the gradient for sharpness (SAM)."""
    adaptive_rho: float = 0.5
    """Length of that step for adaptive sharpness (ASAM), relative to the weights."""

    def limited(self, images: int) -> "Settings":
        """The same settings with at most `images` train and test images each."""
        names = ("images", "plane_images", "plane_test_images", "spectrum_images")
        return replace(self, **{name: min(getattr(self, name), images) for name in names})


def check(settings: Settings) -> None:
    """Checks the settings.

    Raises:
        UserError: a setting is not allowed; names it as an option of the command line.
    """
    least = {"images": 4, "points": 3, "alphas": 2, "trace_probes": 2}
    for name, value in asdict(settings).items():
        lowest = least.get(name, 1 if isinstance(value, int) else 0.0)
        # More images than there are may be requested. Other large numbers would take far too long.
        most = math.inf if "images" in name or lowest == 0.0 else _MOST
        if not lowest <= value <= most or not math.isfinite(value) or (lowest == 0.0 and value == 0):
            allowed = f"{lowest} or more" if lowest else "above 0 and finite"
            allowed += f", at most {_MOST}" if most == _MOST else ""
            raise UserError(f"--{name.replace('_', '-')}: {value} is not allowed; it must be {allowed}.")
    if settings.eigenvalues > settings.steps:
        raise UserError(
            f"--eigenvalues: {settings.eigenvalues} is not allowed; it must be --steps = {settings.steps} or "
            "fewer."
        )
    if not settings.points % 2:
        raise UserError(f"--points: {settings.points} is even; an odd number has the network itself on it.")


def _logits(model: Model, stats: PyTree) -> landscape.Apply:
    return lambda params, images: model.apply(params, stats, images, False)[0]


def _point(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    apply = _logits(model, stats)
    mask, loss, measure = each["mask"], landscape.cross_entropy(apply), landscape.measured(apply)
    train, test = (landscape.total(measure, each[part])(params) for part in ("train", "test"))
    size = each["noise"].labels.shape[-1]
    noise = landscape.gradient_noise(loss, params, mask, each["noise"], size)
    travel = landscape.travelled(each["start"], params, mask)
    return {
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "dimension": hessian.dimension(params, mask),
        "sharpness": landscape.sharpness(loss, params, mask, how.rho, each["train"]),
        "adaptive_sharpness": landscape.sharpness(
            loss, params, mask, how.adaptive_rho, each["train"], adaptive=True
        ),
        "gradient_norm": jnp.linalg.norm(
            ravel_pytree(landscape.gradient(loss, params, mask, each["train"]))[0]
        ),
        "gradient_noise": noise.per_example,
        "distance": travel.distance,
        "degrees": travel.degrees,
    }


def _lines(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    (params, stats), a = each["variables"], landscape.grid(how.points, how.reach)
    measure = landscape.measured(_logits(model, stats))

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        along = landscape.direction(_key(key), params, each["mask"])
        return _parts(lambda chunks: landscape.line(measure, params, along, a, chunks), each)

    return {"steps": a, **jax.lax.map(draw, each["keys"])}


def _plane(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    (params, stats), a = each["variables"], landscape.grid(how.points, how.reach)
    measure = landscape.measured(_logits(model, stats))

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        first, second = landscape.directions(_key(key), params, each["mask"])
        return _parts(partial(landscape.plane, measure, params, first, second, a, a), each)

    return {"steps": a, **jax.lax.map(draw, each["keys"])}


def _path(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    (first, stats), (second, _) = each["variables"], each["other"]
    alphas = jnp.linspace(0, 1, how.alphas)
    union = jax.tree.map(jnp.logical_or, each["mask"], each["other_mask"])
    travel = landscape.travelled(first, second, union)
    train = each["train"]

    def point(params: PyTree) -> Variables:
        # From whole chunks only: the last chunk may contain padding.
        return Variables(params, models.statistics(model, params, stats, train.images, train.weights.all(1)))

    def measure(at: Variables, chunk: landscape.Chunk) -> landscape.Losses:
        return landscape.measured(_logits(model, at.stats))(at.params, chunk)

    ends = point(first), point(second)

    def differing(chunk: landscape.Chunk) -> jax.Array:
        ours, theirs = (_logits(model, at.stats)(at.params, chunk.images).argmax(-1) for at in ends)
        return jnp.where(ours != theirs, chunk.weights, 0).sum()

    def walked(chunks: landscape.Chunk) -> landscape.Losses:
        return landscape.path(measure, first, second, alphas, chunks, prepare=point)

    return {
        "alphas": alphas,
        **_parts(walked, each),
        "disagreement": jax.lax.map(differing, each["test"]).sum(),
        "path_length": travel.distance,
        "path_degrees": travel.degrees,
        **({_BATCH: jnp.int32(train.labels.shape[-1])} if jax.tree.leaves(stats) else {}),
    }


def _spectrum(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    loss = landscape.cross_entropy(_logits(model, stats))
    on = hessian.operator(loss, params, each["mask"], each["train"])
    keys = jax.random.split(_key(each["keys"][0]), 3)
    ends = hessian.extremes(on, keys[0], how.eigenvalues, how.steps)
    density = hessian.density(on, keys[1], how.probes, how.probe_steps)
    trace = hessian.trace(on, keys[2], how.trace_probes)
    return {
        "largest": ends.largest,
        "largest_error": ends.largest_error,
        "smallest": ends.smallest,
        "smallest_error": ends.smallest_error,
        "nodes": density.nodes,
        "weights": density.weights,
        "trace": trace.total,
        "trace_error": trace.error,
        "mean": trace.mean,
        "mean_error": trace.mean_error,
        "dimension": hessian.dimension(params, each["mask"]),
    }


def _curvature(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    loss = landscape.cross_entropy(_logits(model, stats))
    on = hessian.operator(loss, params, each["mask"], each["train"])

    def along(key: jax.Array) -> jax.Array:
        return ravel_pytree(landscape.direction(_key(key), params, each["mask"]))[0]

    found = hessian.curvature(on, jax.lax.map(along, each["keys"]))
    return {"curvature": found.mean, "curvature_error": found.error}


def _gauss_newton(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    inputs = _logits(model, stats), params, each["mask"], each["train"]
    on, fisher = gauss_newton.ggn(*inputs), gauss_newton.empirical_fisher(*inputs)
    keys = jax.random.split(_key(each["keys"][0]), 3)
    # Few of their eigenvalues are large, so that a sketch is better than Hutchinson's estimate.
    products = max(how.trace_probes, traces.LEAST_PRODUCTS)
    ends = hessian.extremes(on, keys[0], 1, how.steps)
    found = traces.sketched_trace(on, keys[1], products), traces.sketched_trace(fisher, keys[2], products)
    return {
        "largest": ends.largest,
        "largest_error": ends.largest_error,
        "trace": found[0].total,
        "trace_error": found[0].error,
        "fisher_trace": found[1].total,
        "fisher_trace_error": found[1].error,
    }


def _loss(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    return {"loss": landscape.total(landscape.measured(_logits(model, stats)), each["train"])(params).loss}


def _product(model: Model, how: Settings, each: dict[str, Any]) -> dict[str, jax.Array]:
    params, stats = each["variables"]
    loss = landscape.cross_entropy(_logits(model, stats))
    on = hessian.operator(loss, params, each["mask"], each["train"])
    return {"product": on.product(jnp.where(on.kept, 1.0, 0.0)[None])}


Program = Callable[[Model, Settings, dict[str, Any]], dict[str, jax.Array]]
"""(model, settings, each) -> arrays by name."""
PROGRAMS: dict[str, Program] = {
    "point": _point,
    "lines": _lines,
    "plane": _plane,
    "path": _path,
    "spectrum": _spectrum,
    "curvature": _curvature,
    "gauss_newton": _gauss_newton,
    "loss": _loss,
    "product": _product,
}
"""The programs by name; "loss" and "product" (of the Hessian with ones) are parts of the others."""


def compiled(name: str, model: Model, how: Settings, on: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """A program as `replicate.run` takes it: one network per device, products in float32."""

    def one(shared: PyTree, carried: PyTree, each: dict[str, Any]) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("float32"):
            return PROGRAMS[name](model, how, each)

    one.__name__ = name
    return replicate.spread(one, on)


def basis(name: str, how: Settings) -> dict[str, Any]:
    """The settings that a program's arrays depend on."""
    needed = {
        "point": ("images", "rho", "adaptive_rho"),
        "lines": ("images", "points", "reach", "draws"),
        "plane": ("plane_images", "plane_test_images", "points", "reach", "plane_draws"),
        "spectrum": ("spectrum_images", "eigenvalues", "steps", "probes", "probe_steps", "trace_probes"),
        "curvature": ("spectrum_images", "trace_probes"),
        "gauss_newton": ("spectrum_images", "steps", "trace_probes"),
        "path": ("images", "alphas"),
    }[name]
    # Smaller sets are the first images of the same order.
    return {setting: getattr(how, setting) for setting in needed}


def chunk_size(on: Mesh) -> int:
    """Images that a program sees at a time; on paths also a batch of recomputed statistics."""
    return _ON_CPU if replicate.one_by_one(on) else _ELSEWHERE


def statistics_batch(model: Model, how: Settings, on: Mesh) -> int:
    """Images in a batch of the statistics that paths recompute; 0 for a network without any."""
    return min(chunk_size(on), how.images) if models.has_statistics(model) else 0


def has_statistics_of(arrays: Mapping[str, np.ndarray], batch: int) -> bool:
    """Whether a path's arrays have statistics of such batches, as `statistics_batch` gives them.

    Those of earlier versions name no batch: their ends disagree by running statistics, unlike their barriers.
    """
    return int(arrays.get(_BATCH, 0)) == batch


def images_of(name: str, how: Settings) -> dict[str, int]:
    """The numbers of "train" and "test" images that a program uses."""
    if name == "plane":
        return {"train": how.plane_images, "test": how.plane_test_images}
    if name in ("spectrum", "curvature", "gauss_newton", "product"):
        return {"train": how.spectrum_images, "test": 0}
    return {"train": how.images, "test": 0 if name == "loss" else how.images}


def images(dataset: data.Dataset, validation: int, seed: int, count: int) -> Images:
    """Train and test images in the random order of a seed; a smaller set is the start of a larger one.

    Args:
        dataset: the data set.
        validation: number of train images that are held out.
        seed: the seed.
        count: the largest number of images of either part.
    """
    split = data.split(dataset, seed, validation)

    def part(name: str, raw: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Labelled:
        order = np.asarray(jax.random.permutation(rng.stream(seed, f"landscape/{name}"), len(index)))
        chosen = index[order[:count]]
        shown, mean, std = (jnp.asarray(x) for x in (raw[chosen], split.mean, split.std))
        return np.asarray(data.gather(shown, jnp.arange(len(chosen)), mean, std)), labels[chosen]

    every = np.arange(len(dataset.test_images))
    return {
        "train": part("train", dataset.train_images, dataset.train_labels, split.train),
        "test": part("test", dataset.test_images, dataset.test_labels, every),
    }


def inputs(name: str, how: Settings, seed: int, of: Images, size: int) -> dict[str, Any]:
    """The inputs of a program besides the network: images, and keys of random directions or probes.

    Args:
        name: name of the program.
        how: how much to measure.
        seed: the seed; all its networks get the same keys.
        of: the seed's images.
        size: images in a chunk.
    """
    each: dict[str, Any] = {
        part: landscape.chunks(of[part][0][:count], of[part][1][:count], size)
        for part, count in images_of(name, how).items()
        if count
    }
    draws = {
        "lines": how.draws,
        "plane": how.plane_draws,
        "spectrum": 1,
        "curvature": how.trace_probes,
        "gauss_newton": 1,
    }
    if name in draws:
        stream = f"landscape/{'direction' if name in ('lines', 'plane') else name}"
        keys = [jax.random.key_data(rng.stream(seed, stream, draw)) for draw in range(draws[name])]
        each["keys"] = np.stack([np.asarray(key) for key in keys])
    return each


def batches(of: Images, how: Settings, batch: int) -> landscape.Chunk:
    """Train images in whole batches, two or more, for the gradient noise."""
    (shown, labels), size = of["train"], min(batch, how.images // 2)
    whole = how.images // size * size
    return landscape.chunks(shown[:whole], labels[:whole], size)


def passes(name: str, how: Settings) -> tuple[int, int]:
    """A program's cost: images in forward passes, and images in Hessian-vector products."""
    seen = sum(images_of(name, how).values())
    match name:
        case "point":
            return seen + how.images * (4 * _GRADIENT + 4), 0
        case "lines":
            return seen * how.points * how.draws, 0
        case "plane":
            return seen * how.points**2 * how.plane_draws, 0
        case "spectrum":
            return 0, seen * (how.steps + how.probes * how.probe_steps + how.trace_probes)
        case "curvature":
            return 0, seen * how.trace_probes
        case "gauss_newton":
            return 0, seen * (how.steps + 2 * how.trace_probes)
        case _:
            return seen * (how.alphas + 1), 0


def exact(arrays: Mapping[str, np.ndarray], images: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Replaces shares of images by exact fractions, free of the rounding of float32 sums.

    Args:
        arrays: the arrays that a program returned.
        images: the numbers of "train" and "test" images that it used.

    Returns:
        The same arrays, shares as float64.
    """
    of = {"train_accuracy": "train", "test_accuracy": "test", "disagreement": "test"}

    def fraction(shares: np.ndarray, count: int) -> np.ndarray:
        return np.round(shares.astype(np.float64) * count) / count

    return {name: fraction(x, images[of[name]]) if name in of else x for name, x in arrays.items()}


def _key(key_data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key_data, impl="threefry2x32")


def _parts(
    measure: Callable[[landscape.Chunk], landscape.Losses], each: dict[str, Any]
) -> dict[str, jax.Array]:
    """Losses and accuracies on train and test images, by name."""
    found = {part: measure(each[part]) for part in ("train", "test")}
    return {f"{part}_{name}": x for part, of in found.items() for name, x in of._asdict().items()}
