"""Moves a ticket of one network to another: same shapes, wider or narrower, deeper or shallower.

Networks of the same shapes take a mask as it is. Rules between sequential networks (`Model.layers`):

- *Depth.* Convolutions are matched with convolutions and hidden dense layers with hidden dense layers,
  from the input on; the output layer with the output layer. Extra layers of the target copy the source's last
  layer of the kind; extra layers of the source are dropped. (After Elastic LTH, Chen et al. 2021, arXiv
  2103.16547, which replicates or drops layers within a family.)
- *Width.* A wider layer has the source's units in their order, then copies of them: units with the most
  surviving connections (incoming and outgoing) are copied first, round after round. A narrower layer keeps
  the units with the most connections, in their order. The next layer reads the same units;
  a flattened channel moves with all its pixels.
- *Pixels* of a flattened image of another size take the mask of the nearest pixel.

Residual networks of the same channels (`Model.stages`) differ only in depth. The first block of a stage,
which may change the shape, takes the first block of the source's stage. Extra blocks of the target repeat the
source's further blocks in their order; extra blocks of the source are dropped (Elastic LTH replicates and
drops blocks likewise). A block moves as a whole: masks, weights, normalisation, statistics.

In both cases:

- *Classes.* Where the numbers of classes differ, the output layer is drawn anew: every unit keeps its share
  of connections, to random classes.
- *Density.* A layer whose shape changes then loses or gains random connections until it has the source's
  density to the nearest weight.

    from lthjax.measures import transfer

    moved = transfer.mask(source, target, ticket, np.random.default_rng(0))
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import prune
from lthjax.errors import UserError
from lthjax.models import Model, Variables
from lthjax.networks import Layer, block_name

PyTree = Any


class Match(NamedTuple):
    """The source of a target layer's connections.

    Attributes:
        source: index of the source's layer.
        places: int [places], kernel taps or flattened pixels of the source; one entry for a dense layer
            that reads units.
        inputs: int [inputs], input units (channels) of the source.
        units: int [units], units of the source; empty for an output layer of other classes.
    """

    source: int
    places: np.ndarray
    inputs: np.ndarray
    units: np.ndarray


def kernels(layers: Sequence[Layer], tree: PyTree) -> list[np.ndarray]:
    """Every layer's kernel of a pytree as [places, inputs, units].

    Places are the taps of a convolution, the pixels of a flattened image, or one; inputs are channels
    or the units of the layer before.

    Args:
        layers: of the network.
        tree: parameters, or a mask of them.
    """
    found = []
    for i, layer in enumerate(layers):
        kernel = np.asarray(tree[layer.name]["kernel"])
        inputs = layers[i - 1].features if i else None
        if layer.size:
            found.append(kernel.reshape(layer.size**2, *kernel.shape[2:]))
        else:
            # The shape of the first layer does not separate pixels from channels; nothing needs it.
            found.append(kernel.reshape(-1, inputs or 1, layer.features))
    return found


def check(source: Model, target: Model) -> None:
    """Checks whether a mask can be moved.

    Raises:
        UserError: it cannot; gives the reason.
    """
    if not same_shapes(source, target):
        _matched_blocks(source, target) if _residual(source, target) else _matched_layers(source, target)


def same_shapes(source: Model, target: Model) -> bool:
    """Whether the parameters of two networks have the same names and shapes."""

    def shapes(model: Model) -> dict[str, tuple[int, ...]]:
        params = _params(model)
        return {path: x.shape for path, x in zip(prune.paths(params), jax.tree.leaves(params), strict=True)}

    return shapes(source) == shapes(target)


def match(source: Model, target: Model, mask: PyTree) -> list[Match]:
    """The source of every target layer's connections.

    Args:
        source: the ticket's network, sequential.
        target: the network that it is moved to, sequential.
        mask: the ticket's mask.

    Raises:
        UserError: no rule applies.
    """
    taken = _matched_layers(source, target)
    masks = kernels(source.layers, mask)
    degrees = [m.sum((0, 1)) + after.sum((0, 2)) for m, after in pairwise(masks)]
    sides = {id(model): _sides(model) for model in (source, target)}
    found = []
    for i, of in enumerate(taken):
        inputs = (
            _resampled(degrees[of - 1], target.layers[i - 1].features) if i else np.arange(masks[0].shape[1])
        )
        if i < len(taken) - 1:
            units = _resampled(degrees[of], target.layers[i].features)
        else:
            units = np.arange(source.classes if source.classes == target.classes else 0)
        # Taps of a convolution, or pixels of the first layer: the same number in both networks.
        places = np.arange(masks[of].shape[0])
        if i and not target.layers[i].size:
            places = _nearest(sides[id(source)][of], sides[id(target)][i])
        found.append(Match(of, places, inputs, units))
    return found


def mask(source: Model, target: Model, mask: PyTree, generator: np.random.Generator) -> PyTree:
    """A ticket's mask on another network.

    Args:
        source: the ticket's network.
        target: the network that it is moved to.
        mask: the ticket's; bool arrays, or for a leaf that may not be pruned the 0-d True.
        generator: draws the connections to other classes, and those lost or gained to match the density.
            Not used where the shapes are the same.

    Returns:
        The target's mask; numpy. Every layer has its source layer's density, to the nearest weight.

    Raises:
        UserError: the shapes differ and no rule applies.
    """
    if same_shapes(source, target):
        return jax.tree.map(np.asarray, mask)
    if _residual(source, target):
        blocks = _matched_blocks(source, target)
        moved = {name: jax.tree.map(np.asarray, mask[of]) for name, of in blocks.items()}
        if source.classes != target.classes:
            old = moved["output"]["kernel"]
            kept = _remade(old[None], target.classes, generator)[0]
            count = _share(int(old.sum()), old.size, kept.size)
            moved["output"] = {**moved["output"], "kernel": _to_count(kept, count, generator)}
        return moved
    masks, like = kernels(source.layers, mask), _params(target)
    moved = jax.tree.map(np.asarray, prune.ones(like))
    for layer, of in zip(target.layers, match(source, target, mask), strict=True):
        old = masks[of.source]
        kept = old[of.places][:, of.inputs]
        shape = like[layer.name]["kernel"].shape
        kept = kept[:, :, of.units] if of.units.size else _remade(kept, layer.features, generator)
        if kept.shape != old.shape:
            kept = _to_count(kept, _share(int(old.sum()), old.size, kept.size), generator)
        moved[layer.name]["kernel"] = kept.reshape(shape)
    return moved


def initial(source: Model, target: Model, mask: PyTree, values: Variables, own: Variables) -> Variables:
    """The start weights of a moved ticket, along the connections that its mask follows.

    Networks of the same shapes take the values as they are, statistics included, and so do the blocks of
    residual networks. Otherwise a weight takes the source's value where it joins the first copies of two
    units, scaled from the deviation of the source layer's initial weights to that of the target layer's, each
    as its network's `models.INITS` row has it. Further copies take the target's own values, as units that
    start equal would stay equal. An output layer of other classes also takes the target's own values.

    Args:
        source, target, mask: as for `mask`.
        values: the source's weights.
        own: the target's own weights.

    Returns:
        Weights of the target's shapes and their statistics, numpy, not masked.

    Raises:
        UserError: the shapes differ and no rule applies.
    """
    if same_shapes(source, target):
        return jax.tree.map(np.asarray, values)
    if _residual(source, target):
        return _carried_blocks(source, target, values, own)
    theirs, ours = kernels(source.layers, values.params), kernels(target.layers, own.params)
    params = jax.tree.map(np.asarray, own.params)
    for layer, of, mine in zip(target.layers, match(source, target, mask), ours, strict=True):
        if not of.units.size:
            continue
        old = theirs[of.source]
        scale = math.sqrt(_fans(source, layer, old) / _fans(target, layer, mine))
        carried = (scale * old[of.places][:, of.inputs][:, :, of.units]).astype(mine.dtype)
        first = _first(of.inputs)[:, None] & _first(of.units)
        shape = params[layer.name]["kernel"].shape
        bias = np.asarray(values.params[source.layers[of.source].name]["bias"])[of.units]
        params[layer.name] = {
            "kernel": np.where(first, carried, mine).reshape(shape),
            "bias": np.where(_first(of.units), bias, params[layer.name]["bias"]),
        }
    return Variables(params, own.stats)


def same_initial(source: Model, target: Model, theirs: PyTree, ours: PyTree) -> bool:
    """Whether two networks start with the same weights, except for an output layer of other classes.

    Args:
        source: a network.
        target: another.
        theirs: parameters of the source at step 0.
        ours: parameters of the target at step 0.
    """
    if source.classes != target.classes:
        theirs, ours = ({k: v for k, v in params.items() if k != "output"} for params in (theirs, ours))
    return same_values(theirs, ours)


def same_values(a: PyTree, b: PyTree) -> bool:
    """Whether two pytrees of arrays have the same paths, shapes and values."""
    first, second = (dict(zip(prune.paths(tree), jax.tree.leaves(tree), strict=True)) for tree in (a, b))
    return first.keys() == second.keys() and all(np.array_equal(first[p], second[p]) for p in first)


def _residual(source: Model, target: Model) -> bool:
    return source.stages is not None and target.stages is not None


def _no(source: Model, target: Model, why: str) -> UserError:
    return UserError(
        f"--from, --to: a ticket of {source.name} cannot be moved to {target.name}: {why}; choose two "
        "networks of one family on images of one shape."
    )


def _matched_blocks(source: Model, target: Model) -> dict[str, str]:
    """For every part of a residual target, the part of the source; raises where no rule applies."""
    old, new = source.stages, target.stages
    assert old is not None
    assert new is not None
    _check_images(source, target)
    if old.widths != new.widths:
        theirs, ours = ("-".join(map(str, of.widths)) for of in (old, new))
        raise _no(source, target, f"one has stages of {theirs} channels, the other of {ours}")
    if old.blocks == 1 < new.blocks:
        why = f"{source.name} has one block a stage, which changes the shape, and a further one does not"
        raise _no(source, target, why)
    parts = {name: name for name in ("conv1", "norm1", "output")}
    for stage in range(1, len(new.widths) + 1):
        for block in range(1, new.blocks + 1):
            of = block if block <= old.blocks else 2 + (block - 2) % (old.blocks - 1)
            parts[block_name(stage, block)] = block_name(stage, of)
    return parts


def _carried_blocks(source: Model, target: Model, values: Variables, own: Variables) -> Variables:
    """The source's weights and statistics block by block; for other classes the target's output layer."""
    blocks = _matched_blocks(source, target)
    params = {name: jax.tree.map(np.asarray, values.params[of]) for name, of in blocks.items()}
    if source.classes != target.classes:
        params["output"] = jax.tree.map(np.asarray, own.params["output"])
    stats = {
        kind: {name: jax.tree.map(np.asarray, tree[of]) for name, of in blocks.items() if of in tree}
        for kind, tree in values.stats.items()
    }
    return Variables(params, stats)


def _params(model: Model) -> PyTree:
    return jax.eval_shape(model.init, jax.random.key(0)).params


def _matched_layers(source: Model, target: Model) -> list[int]:
    """For every layer of the target, the index of the source's layer; raises where no rule applies."""

    def no(why: str) -> UserError:
        return _no(source, target, why)

    for model in (source, target):
        if not model.layers:
            raise no(f"their shapes differ, and {model.name} is no sequence of layers")
    _check_images(source, target)
    taken: list[int] = []
    for kind, words in ((True, "convolution"), (False, "hidden dense layer")):
        have, want = (
            [i for i, layer in enumerate(model.layers[:-1]) if bool(layer.size) is kind]
            for model in (source, target)
        )
        if bool(have) is not bool(want):
            without = target if have else source
            raise no(f"{without.name} has no {words}")
        if len(want) > len(have) == 1:
            raise no(f"{source.name} has one {words}, which reads the images, and a further one does not")
        taken += [have[min(n, len(have) - 1)] for n in range(len(want))]
    taken.append(len(source.layers) - 1)
    for i, of in enumerate(taken):
        old, new = source.layers[of], target.layers[i]
        if old.size != new.size:
            raise no(f"{old.name} has kernels of side {old.size}, {new.name} of side {new.size}")
    return taken


def _check_images(source: Model, target: Model) -> None:
    if source.input_shape != target.input_shape:
        theirs, ours = ("×".join(map(str, model.input_shape)) for model in (source, target))
        why = f"one reads images of {theirs}, the other of {ours}, whose pixels have no counterparts"
        raise _no(source, target, why)


def _sides(model: Model) -> list[tuple[int, int]]:
    """(height, width) of every layer's input; (1, 1) for units."""
    height, width, _ = model.input_shape
    sides = []
    for layer in model.layers:
        sides.append((height, width))
        if not layer.size:
            height = width = 1
        elif layer.padding == "VALID":
            height, width = height - layer.size + 1, width - layer.size + 1
        if layer.pool:
            height, width = height // 2, width // 2
    return sides


def _nearest(source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """For every pixel of the target's image, row by row, the nearest pixel of the source's image."""
    y, x = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(source, target, strict=True))
    return (y[:, None] * source[1] + x).ravel()


def _resampled(degree: np.ndarray, count: int) -> np.ndarray:
    """The source units that `count` units of the target are copied from."""
    most = np.argsort(-degree.astype(np.int64), kind="stable")
    if count <= len(degree):
        return np.sort(most[:count])
    return np.concatenate([np.arange(len(degree)), np.resize(most, count - len(degree))])


def _remade(kept: np.ndarray, classes: int, generator: np.random.Generator) -> np.ndarray:
    """[places, inputs, classes]: every input keeps its share of connections, to random classes."""
    before = kept.shape[-1]
    counts = _share(kept.sum(-1, dtype=np.int64), before, classes)
    order = generator.random((*kept.shape[:-1], classes)).argsort(-1)
    return order < counts[..., None]


def _share(left: Any, of: int, size: int) -> Any:
    """left / of, applied to a size and rounded to the nearest whole number, halves up."""
    return (2 * left * size + of) // (2 * of)


def _to_count(kept: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """The mask with exactly `count` kept: the fewest changes, at random."""
    flat = kept.ravel().copy()
    surplus = int(flat.sum()) - count
    changed = generator.choice(np.flatnonzero(flat == (surplus > 0)), abs(surplus), replace=False)
    flat[changed] = surplus < 0
    return flat.reshape(kept.shape)


def _first(units: np.ndarray) -> np.ndarray:
    """Whether each unit appears here for the first time; bool, of the same shape."""
    first = np.zeros(len(units), bool)
    first[np.unique(units, return_index=True)[1]] = True
    return first


def _fans(model: Model, layer: Layer, kernel: np.ndarray) -> int:
    """The fans of a layer that the variance of the network's initial weights depends on."""
    # Networks from outside the package have no known layers, and end before.
    assert model.fans is not None
    places, inputs, units = kernel.shape
    return model.fans(places * inputs, (places if layer.size else 1) * units)
