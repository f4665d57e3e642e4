"""Removes dead units of networks with batch normalisation, residual blocks among them.

A channel goes only with its whole permutation group (`wiring`): in a residual network out of every layer that
writes to the stream and every layer that reads it. Two rules say when; the function stays equal.

- *Not read.* No path along surviving weights leads from the channel to the logits. Weights that write to a
  stream whose channel is not read any more lead nowhere.
- *Constant.* A channel without inputs is the constant relu(bias - mean scale / sqrt(variance + 1e-5)), which
  need not be 0. A constant input is folded into the mean of the normalisation after the layer that reads it,
  or into the biases of the output layer. That is exact where the constant is 0, and where the layer reads it
  by the centre of its kernel alone, because the centre never lies on the padding. Any other reader keeps the
  channel. A channel all of whose inputs are folded is a constant, too.

    from lthjax.measures import compaction

    small = compaction.compact(model, variables, mask)
    logits = compaction.forward(model, small.variables, images)

Sequential networks have `savings.compact`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lthjax import prune
from lthjax.devices import conv
from lthjax.measures import savings, wiring
from lthjax.models import Model, Variables
from lthjax.networks import EPSILON, block_name
from lthjax.prune._masks import matched

PyTree = Any


class Narrower(NamedTuple):
    """A network without its dead units.

    Attributes:
        variables: parameters and statistics of the new shapes; dtypes as they were.
        mask: of the new shapes; a weight whose input was folded is pruned.
        kept: layer -> int [its new width], the old indices of the units that are left.
    """

    variables: Variables
    mask: PyTree
    kept: dict[str, np.ndarray]


class _Way(NamedTuple):
    """How the parts of a network treat their inputs: images, or what is known of its channels.

    Attributes:
        normalised: (path of a convolution, x, stride) -> its product, normalised.
        output: x, one value a channel -> logits.
        relu, pool, mean: x -> x; the mean is that over all pixels.
    """

    normalised: Callable[[str, Any, int], Any]
    output: Callable[[Any], Any]
    relu: Callable[[Any], Any]
    pool: Callable[[Any], Any]
    mean: Callable[[Any], Any]


def forward(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    """The logits of a network in evaluation, its widths taken from its arrays; 0 is allowed.

    Args:
        model: a network with `stages` or `pooled`; gives the order of its layers.
        variables: as of the model, or narrower; may be traced.
        images: float [N, H, W, C].

    Returns:
        float [N, classes].

    Raises:
        ValueError: the network has neither.
    """
    params, stats = variables.params, variables.stats["batch_stats"]

    def normalised(path: str, x: jax.Array, stride: int) -> jax.Array:
        kernel, norm = wiring.leaf(params, path)["kernel"], wiring.norm(path)
        by, seen = wiring.leaf(params, norm), wiring.leaf(stats, norm)
        x = _convolved(x, kernel, stride)
        factor = lax.rsqrt(seen["var"] + EPSILON) * by["scale"]
        mean, factor, bias = (of[None, None, None] for of in (seen["mean"], factor, by["bias"]))
        return (x - mean) * factor + bias

    def output(x: jax.Array) -> jax.Array:
        return x @ params["output"]["kernel"] + params["output"]["bias"][None]

    return _through(
        model, images, _Way(normalised, output, jax.nn.relu, conv.max_pool, lambda x: x.mean((1, 2)))
    )


compiled = jax.jit(forward, static_argnums=0)
"""`forward`, compiled once for all arrays of the same shapes."""


def compact(model: Model, variables: Variables, mask: PyTree) -> Narrower:
    """Removes the dead units; the network computes the same function, up to rounding.

    Args:
        model: a network with `stages` or `pooled`.
        variables: its parameters and statistics, of any widths.
        mask: its mask; pruned weights count as 0 whatever they are.

    Returns:
        The narrower network; its arrays are numpy's. Inputs and classes stay.

    Raises:
        ValueError: it has neither stages nor pools, or parameters and mask do not match.
    """
    folded = _Folded(variables, matched(variables.params, mask))
    _through(model, np.full(model.input_shape[2], np.nan), folded.way())
    layers = wiring.layers(model)
    names, groups = [layer.name for layer in layers], wiring.groups(layers)
    live = _live([folded.left[name] for name in names], groups)
    (params, stats), small_mask, kept = folded.variables, folded.mask, {}
    for name, (inputs, units) in zip(names, groups, strict=True):
        left, part = folded.left[name], wiring.leaf(params, name)
        shape = part["kernel"].shape
        flat = np.where(left, part["kernel"].reshape(left.shape), 0)
        flat, left = (x[:, live[inputs]][:, :, live[units]] for x in (flat, left))
        now = (*shape[:-2], *left.shape[1:])
        part["kernel"] = flat.reshape(now)
        own = wiring.leaf(small_mask, name)
        own["kernel"] = left.reshape(now) if own["kernel"].ndim else own["kernel"]
        norm = wiring.norm(name)
        vectors = [wiring.leaf(of, norm) for of in (params, stats["batch_stats"], small_mask)] if norm else []
        for of in vectors:
            of.update({key: value[live[units]] if value.ndim else value for key, value in of.items()})
        kept[name] = np.arange(shape[-1])[live[units]]
    return Narrower(Variables(params, stats), small_mask, kept)


def counts(model: Model, small: Narrower) -> savings.Counts:
    """The sizes of a compacted network, as `savings.counted`."""
    params, stats = small.variables
    return savings.counted(
        params, small.mask, lambda p, x: forward(model, Variables(p, stats), x), model.input_shape
    )


def variants(
    model: Model, variables: Variables, mask: PyTree, small: Narrower
) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The forward pass of a ticket in two forms: a key of `savings.VARIANTS` -> (images -> logits).

    Args:
        model: the network.
        variables: its parameters, pruned weights 0, and statistics.
        mask: the ticket's mask.
        small: the compacted network.
    """
    whole, mask, narrower = jax.device_put((variables, mask, small.variables))
    return {
        "masked": lambda x: _masked(model, whole, mask, x),
        "compacted": lambda x: compiled(model, narrower, x),
    }


@partial(jax.jit, static_argnums=0)
def _masked(model: Model, variables: Variables, mask: PyTree, images: jax.Array) -> jax.Array:
    return forward(model, variables._replace(params=prune.apply(variables.params, mask)), images)


def _convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    if kernel.size:
        side = (kernel.shape[0] - 1) // 2
        return conv.conv2d(x, kernel, ((side, side), (side, side)), stride)
    # XLA does not support a convolution without inputs or outputs.
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return jnp.zeros((len(x), height, width, kernel.shape[-1]), x.dtype)


def _through(model: Model, x: Any, way: _Way) -> Any:
    """Takes x through the network, layer by layer."""
    if model.pooled is not None:
        number = 0
        for stage, widths in enumerate(model.pooled.widths):
            x = way.pool(x) if stage else x
            for _ in widths:
                number += 1
                x = way.relu(way.normalised(f"conv{number}", x, 1))
        return way.output(way.mean(x))
    if model.stages is None:
        raise ValueError(f"model: {model.name} has neither residual stages nor normalised ones with pools.")
    x = way.relu(way.normalised("conv1", x, 1))
    for stage in range(1, len(model.stages.widths) + 1):
        for block in range(1, model.stages.blocks + 1):
            name, halves = block_name(stage, block), stage > 1 and block == 1
            y = way.relu(way.normalised(f"{name}/conv1", x, 2 if halves else 1))
            y = way.normalised(f"{name}/conv2", y, 1)
            x = way.relu((way.normalised(f"{name}/shortcut", x, 2) if halves else x) + y)
    return way.output(way.mean(x))


class _Folded:
    """A network whose constant inputs are folded on the way through it, channel by channel.

    What is known of channels is float64 [channels]: their constant, or nan for one that varies.

    Attributes:
        variables: numpy; means and biases hold what was folded.
        mask: numpy, as given.
        left: layer -> bool [places, inputs, units], the weights left.
    """

    def __init__(self, variables: Variables, mask: PyTree) -> None:
        self.variables: Variables
        self.variables, self.mask = jax.tree.map(np.array, jax.device_get((variables, mask)))
        self.left: dict[str, np.ndarray] = {}

    def way(self) -> _Way:
        """Its rules: a pool and a mean of a constant are the constant."""
        return _Way(self._normalised, self._output, lambda x: np.maximum(x, 0), lambda x: x, lambda x: x)

    def _fold(self, path: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the folded inputs, float64 [units]; and whether every input of a unit was folded."""
        kernel, kept = (wiring.leaf(of, path)["kernel"] for of in (self.variables.params, self.mask))
        flat = (math.prod(kernel.shape[:-2]), *kernel.shape[-2:])
        left = np.broadcast_to(kept, kernel.shape).reshape(flat).copy()
        weights, centre = np.where(left, kernel.reshape(flat), 0).astype(float), len(left) // 2
        known = np.where(np.isnan(x), 0, x)
        beside = np.delete(left, centre, axis=0).any(0)
        goes = (~np.isnan(x) & (x == 0))[:, None] | (~np.isnan(x)[:, None] & ~beside)
        folded = known @ np.where(goes, weights[centre], 0)
        self.left[path] = left & ~goes
        return folded, np.logical_not(self.left[path].any((0, 1)))

    def _normalised(self, path: str, x: np.ndarray, _: int) -> np.ndarray:
        folded, constant = self._fold(path, x)
        norm = wiring.norm(path)
        by, seen = (
            wiring.leaf(of, norm) for of in (self.variables.params, self.variables.stats["batch_stats"])
        )
        mean = seen["mean"].astype(float) - folded
        seen["mean"] = mean.astype(seen["mean"].dtype)
        found = by["bias"] - mean * by["scale"] / np.sqrt(seen["var"].astype(float) + EPSILON)
        return np.where(constant, found, np.nan)

    def _output(self, x: np.ndarray) -> None:
        folded, _ = self._fold("output", x)
        bias = self.variables.params["output"]["bias"]
        self.variables.params["output"]["bias"] = (bias + folded).astype(bias.dtype)


def _live(left: list[np.ndarray], groups: list[tuple[int, int]]) -> dict[int, Any]:
    """Group -> bool [units], those from which surviving weights lead to the logits; `FIXED` -> all.

    From the output backwards, so that a layer of a stream is asked for what is read after it. Weights that
    lead nowhere are taken out of `left`.
    """
    sizes = {units: kernel.shape[2] for kernel, (_, units) in zip(left, groups, strict=True)}
    live: dict[int, Any] = {group: np.zeros(size, bool) for group, size in sizes.items()}
    live[wiring.FIXED] = slice(None)
    for kernel, (inputs, units) in reversed([*zip(left, groups, strict=True)]):
        if units != wiring.FIXED:
            kernel &= live[units]
        if inputs != wiring.FIXED:
            live[inputs] = live[inputs] | kernel.any((0, 2))
    return live
