"""What is measured of one network, as functions of a pytree: compiled, one replicate a device.

Every function takes (model, settings, each) and gives arrays by name. `each` holds "variables", "mask",
"train" (a `landscape.Chunk`) and, where they are needed, "test", "noise" (batches of their own), "start"
(the weights that training started from), "keys" (PRNG key data, uint32 [draws, 2]), "other" and
"other_mask" (the other end of a path).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from analysis.landscape_table import Settings
from lthjax import models
from lthjax.measures import hessian, landscape
from lthjax.models import Model, Variables

PyTree = Any


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


_Program = Callable[[Model, Settings, dict[str, Any]], dict[str, jax.Array]]


PROGRAMS: dict[str, _Program] = {
    "point": _point,
    "lines": _lines,
    "plane": _plane,
    "path": _path,
    "spectrum": _spectrum,
    "loss": _loss,
    "product": _product,
}


def _key(key_data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key_data, impl="threefry2x32")


def _parts(
    measure: Callable[[landscape.Chunk], landscape.Measured], each: dict[str, Any]
) -> dict[str, jax.Array]:
    """Losses and accuracies on train and test images, by name."""
    found = {part: measure(each[part]) for part in ("train", "test")}
    return {f"{part}_{name}": x for part, of in found.items() for name, x in of._asdict().items()}
