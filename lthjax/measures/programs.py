"""The landscape around one network, as functions of a pytree that may be compiled and run side by side.

Every program takes (model, settings, each) and gives arrays by name. `each` holds "variables", "mask",
"train" (a `landscape.Chunk`) and, where they are needed, "test", "noise" (batches of their own), "start"
(the weights that training started from), "keys" (PRNG key data, uint32 [draws, 2]), "other" and
"other_mask" (the other end of a path).
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
from lthjax.measures import hessian, landscape
from lthjax.models import Model, Variables

PyTree = Any
Labelled = tuple[np.ndarray, np.ndarray]
"""Images, normalised, float32 [N, H, W, C], and their labels, int32 [N]."""
Images = Mapping[str, Labelled]
"""By "train" and "test"."""
# Points, draws, probes and steps, each.
_MOST = 10_000
# Cost of a gradient, in forward passes.
_GRADIENT = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    images: int = 2000
    """Train images, and as many test images, for losses, gradients, lines and paths."""
    plane_images: int = 2000
    """Train images for surfaces, the first of `images`."""
    plane_test_images: int = 500
    """Test images for surfaces, likewise."""
    spectrum_images: int = 500
    """Train images for spectra, likewise."""
    points: int = 51
    """Points on a line, and on either side of a surface; odd."""
    reach: float = 1.0
    """How far lines and surfaces go either way, in lengths of the filters."""
    draws: int = 3
    """Random directions of lines."""
    plane_draws: int = 1
    """Pairs of orthogonal directions of surfaces; the first of a pair is that of the line."""
    alphas: int = 30
    """Points on a path, ends included."""
    eigenvalues: int = 10
    """How many of the largest eigenvalues are found."""
    steps: int = 40
    """Lanczos steps for the largest eigenvalues."""
    probes: int = 4
    """Probes of the spectral density."""
    probe_steps: int = 30
    """Lanczos steps of every probe."""
    trace_probes: int = 32
    """Products of the Hessian for the trace."""
    rho: float = 0.05
    """Length of the step up the gradient for sharpness (SAM)."""
    adaptive_rho: float = 0.5
    """Length of that step for adaptive sharpness (ASAM), relative to the weights."""

    def limited(self, images: int) -> "Settings":
        """The same on at most so many images of either part."""
        names = ("images", "plane_images", "plane_test_images", "spectrum_images")
        return replace(self, **{name: min(getattr(self, name), images) for name in names})


def check(settings: Settings) -> None:
    """Raises for what is not allowed.

    Raises:
        UserError: names the setting, as an option of the command line.
    """
    least = {"images": 4, "points": 3, "alphas": 2, "trace_probes": 2}
    for name, value in asdict(settings).items():
        lowest = least.get(name, 1 if isinstance(value, int) else 0.0)
        # Of images there may be asked for more than there are; so many of anything else take for ever.
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
    (first, stats), (second, its_stats) = each["variables"], each["other"]
    alphas = jnp.linspace(0, 1, how.alphas)
    union = jax.tree.map(jnp.logical_or, each["mask"], each["other_mask"])
    travel = landscape.travelled(first, second, union)
    train = each["train"]

    def point(params: PyTree) -> Variables:
        # Of whole chunks: what fills up the last one is no image.
        return Variables(params, models.statistics(model, params, stats, train.images, train.weights.all(1)))

    def measure(at: Variables, chunk: landscape.Chunk) -> landscape.Measured:
        return landscape.measured(_logits(model, at.stats))(at.params, chunk)

    def differing(chunk: landscape.Chunk) -> jax.Array:
        ours, theirs = (
            _logits(model, own)(params, chunk.images).argmax(-1)
            for params, own in ((first, stats), (second, its_stats))
        )
        return jnp.where(ours != theirs, chunk.weights, 0).sum()

    def walked(chunks: landscape.Chunk) -> landscape.Measured:
        return landscape.path(measure, first, second, alphas, chunks, prepare=point)

    return {
        "alphas": alphas,
        **_parts(walked, each),
        "disagreement": jax.lax.map(differing, each["test"]).sum(),
        "path_length": travel.distance,
        "path_degrees": travel.degrees,
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
    "loss": _loss,
    "product": _product,
}
"""By what they measure; "loss" and "product" (of the Hessian with ones) are parts of the others."""


def compiled(name: str, model: Model, how: Settings, on: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """A program as `replicate.run` takes it: one network a device, products in float32."""

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
        "path": ("images", "alphas"),
    }[name]
    # Smaller sets are the first images of the same order.
    return {setting: getattr(how, setting) for setting in needed}


def images_of(name: str, how: Settings) -> dict[str, int]:
    """How many "train" and "test" images a program sees."""
    if name == "plane":
        return {"train": how.plane_images, "test": how.plane_test_images}
    if name in ("spectrum", "product"):
        return {"train": how.spectrum_images, "test": 0}
    return {"train": how.images, "test": 0 if name == "loss" else how.images}


def images(dataset: data.Dataset, validation: int, seed: int, count: int) -> Images:
    """So many train and test images of a seed in random order; fewer are the first of more.

    Args:
        dataset: the data set.
        validation: how many of its train images are held out.
        seed: the seed.
        count: of either part, at most.
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
    """What a program reads besides the network: images, and keys of random directions or probes.

    Args:
        name: of the program.
        how: how much is measured.
        seed: the seed, by which all its networks have the same keys.
        of: the seed's images.
        size: images at a time.
    """
    each: dict[str, Any] = {
        part: landscape.chunks(of[part][0][:count], of[part][1][:count], size)
        for part, count in images_of(name, how).items()
        if count
    }
    draws = {"lines": how.draws, "plane": how.plane_draws, "spectrum": 1}.get(name)
    if draws:
        stream = "landscape/spectrum" if name == "spectrum" else "landscape/direction"
        keys = [jax.random.key_data(rng.stream(seed, stream, draw)) for draw in range(draws)]
        each["keys"] = np.stack([np.asarray(key) for key in keys])
    return each


def batches(of: Images, how: Settings, batch: int) -> landscape.Chunk:
    """Train images in whole batches, two or more, as the noise of gradients is measured on."""
    (shown, labels), size = of["train"], min(batch, how.images // 2)
    whole = how.images // size * size
    return landscape.chunks(shown[:whole], labels[:whole], size)


def passes(name: str, how: Settings) -> tuple[int, int]:
    """A program's cost: images that go forward, and images that go through a product of the Hessian."""
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
        case _:
            return seen * (how.alphas + 1), 0


def exact(arrays: Mapping[str, np.ndarray], images: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Shares of images as the fractions that they are, which sums of float32 miss by rounding.

    Args:
        arrays: what a program gives.
        images: how many "train" and "test" images it has seen.

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
    measure: Callable[[landscape.Chunk], landscape.Measured], each: dict[str, Any]
) -> dict[str, jax.Array]:
    """Losses and accuracies on train and test images, by name."""
    found = {part: measure(each[part]) for part in ("train", "test")}
    return {f"{part}_{name}": x for part, of in found.items() for name, x in of._asdict().items()}
