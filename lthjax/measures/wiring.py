"""Which layers share the order of their units: the permutation groups of a network.

A network computes the same function when the units of a group are permuted everywhere at once: the outputs of
the layers that make them, with biases and normalisations, and the inputs of the layers that read them. In a
plain sequence every hidden layer is a group. In a residual network the blocks of a stage add to one stream,
so all layers that write to it are one group.

Source: Git Re-Basin (Ainsworth et al. 2023, arXiv 2209.04836), section 3 and its permutation specification.

    from lthjax.measures import geography, wiring

    layers = wiring.layers(model)
    a, b = (geography.kernels(layers, params) for params in networks)
    units = geography.align(a, b, wiring.groups(layers)).units
    same = wiring.permuted(layers, variables, units)         # the second network, its units as the first's
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax.models import Model, Variables
from lthjax.networks import Layer, Pooled, Stages, block_name

PyTree = Any
FIXED = -1
"""In place of a group: the inputs of a network, and its classes, keep their order."""


class Wire(NamedTuple):
    """A layer of a network that is no plain sequence.

    Attributes:
        name: its path, keys joined by "/".
        inputs, units: the groups of its inputs and of its units.
    """

    name: str
    inputs: int
    units: int


Named = Sequence[Layer] | Sequence[Wire]
"""The layers of a network, the input first."""


def layers(model: Model) -> Named:
    """The layers of a network, with groups unless it is a sequence; () for one from outside the package."""
    if model.stages is not None:
        return _residual(model.stages)
    return model.layers if model.pooled is None else _with_pools(model.pooled)


def groups(layers: Named) -> list[tuple[int, int]]:
    """The groups of the inputs and of the units of every layer."""
    last = len(layers) - 1
    return [
        (layer.inputs, layer.units)
        if isinstance(layer, Wire)
        else (i - 1 if i else FIXED, i if i < last else FIXED)
        for i, layer in enumerate(layers)
    ]


def _with_pools(pooled: Pooled) -> list[Wire]:
    count = sum(map(len, pooled.widths))
    return [
        *(Wire(f"conv{i + 1}", i - 1 if i else FIXED, i) for i in range(count)),
        Wire("output", count - 1, FIXED),
    ]


def _residual(stages: Stages) -> list[Wire]:
    numbers = itertools.count()
    stream = next(numbers)
    wires = [Wire("conv1", FIXED, stream)]
    for stage in range(1, len(stages.widths) + 1):
        for block in range(1, stages.blocks + 1):
            name, inner = block_name(stage, block), next(numbers)
            wires.append(Wire(f"{name}/conv1", stream, inner))
            if stage > 1 and block == 1:
                before, stream = stream, next(numbers)
                wires.append(Wire(f"{name}/shortcut", before, stream))
            wires.append(Wire(f"{name}/conv2", inner, stream))
    return [*wires, Wire("output", stream, FIXED)]


def norm(path: str) -> str:
    """The path of the batch normalisation that a layer would have after it; "" for the output layer."""
    block, _, name = path.rpartition("/")
    after = f"{name}_norm" if name == "shortcut" else name.replace("conv", "norm")
    return "" if after == name else f"{block}/{after}" if block else after


def leaf(tree: PyTree, path: str) -> Any:
    """The part of nested dictionaries at a path; None where there is none."""
    for key in path.split("/"):
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def permuted(layers: Named, variables: Variables, units: Sequence[np.ndarray]) -> Variables:
    """The same network with the units of every group in another order: weights, biases, batch normalisations.

    Args:
        layers: of the network, from its function `layers`.
        variables: its parameters, or a mask of them, whose 0-d leaves stay as they are; and statistics.
        units: for every group, the old unit at each new place.

    Returns:
        numpy arrays; in evaluation the logits are the old ones, up to rounding.
    """
    params, stats = jax.tree.map(np.asarray, tuple(variables))
    names = [layer.name for layer in layers]
    for path, (inputs, outputs) in zip(names, groups(layers), strict=True):
        part = leaf(params, path)
        if inputs != FIXED:
            # Channels come last where an image is flattened into a dense layer.
            axes = part["kernel"].shape
            places = part["kernel"].reshape(*axes[:-2], -1, len(units[inputs]), axes[-1])
            part["kernel"] = places[..., units[inputs], :].reshape(axes)
        if outputs != FIXED:
            place = norm(path)
            beside = [leaf(of, place) for of in (params, *stats.values())] if place else []
            for vectors in (part, *(of for of in beside if of is not None)):
                for key, value in vectors.items():
                    vectors[key] = value[..., units[outputs]] if value.ndim else value
    return Variables(params, stats)
