"""Networks by name. The only file that imports flax.

Layers are named `conv1`, `fc1`, ..., `output`, so that a pruning rate can address them by a regex on
the path (`conv1/kernel`). Initialisation is Glorot normal with zero biases, as in Frankle & Carbin
2019 (arXiv 1803.03635), table 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lthjax import conv
from lthjax.errors import UserError, unknown

PyTree = Any


class Variables(NamedTuple):
    """What a network holds: trained parameters, and statistics that training updates (or {})."""

    params: PyTree
    stats: PyTree


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
        name: the key in `MODELS`.
        input_shape: (height, width, channels) of one image.
        classes: number of classes.
        init: key -> Variables; float32.
        apply: (params, stats, images float [N, H, W, C], train) -> (logits float [N, classes],
            stats).
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    init: Callable[[jax.Array], Variables]
    apply: Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]]


_INIT = nn.initializers.glorot_normal()


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_INIT, name=name)


def _conv(features: int, size: int, name: str, padding: str = "SAME") -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        padding=padding,
        kernel_init=_INIT,
        conv_general_dilated=conv.general_dilated,
        name=name,
    )


def _pooled(x: jax.Array) -> jax.Array:
    """ReLU, then max-pool, in the cheaper order: both are monotone, so the values are the same."""
    return nn.relu(conv.max_pool(x))


class _FullyConnected(nn.Module):
    """ReLU layers of the given widths, then the output layer."""

    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(_dense(width, f"fc{i}")(x))
        return _dense(self.classes, "output")(x)


class _LeNet5(nn.Module):
    """conv 6@5x5 same, pool, conv 16@5x5 valid, pool, 120, 84, output."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = _pooled(_conv(6, 5, "conv1")(x))
        x = _pooled(_conv(16, 5, "conv2", "VALID")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(_dense(120, "fc1")(x))
        x = nn.relu(_dense(84, "fc2")(x))
        return _dense(self.classes, "output")(x)


class _PooledPairs(nn.Module):
    """Pairs of 3x3 same convolutions, each pair followed by a pool; then dense layers."""

    pairs: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, channels in enumerate(self.pairs):
            x = nn.relu(_conv(channels, 3, f"conv{2 * i + 1}")(x))
            x = _pooled(_conv(channels, 3, f"conv{2 * i + 2}")(x))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(_dense(width, f"fc{i}")(x))
        return _dense(self.classes, "output")(x)


class Entry(NamedTuple):
    """A row of `MODELS`: what makes the network, and what its images' sides must be divisible by."""

    make: Callable[[int], nn.Module]
    divisor: int
    summary: str


MODELS: dict[str, Entry] = {
    "lenet300": Entry(
        lambda classes: _FullyConnected((300, 100), classes),
        1,
        "LeNet-300-100: fully connected 300, 100 (266,200 weights on MNIST)",
    ),
    "lenet5": Entry(
        lambda classes: _LeNet5(classes),
        4,
        "LeNet-5: conv 6@5x5 same, pool, conv 16@5x5 valid, pool, 120, 84 (61,470 weights on MNIST)",
    ),
    "small_cnn": Entry(
        lambda classes: _PooledPairs((16, 32), (128,), classes),
        4,
        "conv 16-16, pool, 32-32, pool, dense 128 (279,984 weights on CIFAR-10)",
    ),
    "conv2": Entry(
        lambda classes: _PooledPairs((64,), (256, 256), classes),
        2,
        "Conv-2: conv 64-64, pool, 256, 256 (4,300,992 weights on CIFAR-10)",
    ),
    "conv4": Entry(
        lambda classes: _PooledPairs((64, 128), (256, 256), classes),
        4,
        "Conv-4: Conv-2 and conv 128-128, pool (2,425,024 weights on CIFAR-10)",
    ),
    "conv6": Entry(
        lambda classes: _PooledPairs((64, 128, 256), (256, 256), classes),
        8,
        "Conv-6: Conv-4 and conv 256-256, pool (2,261,184 weights on CIFAR-10)",
    ),
}
"""The networks by name; a new one is a new row."""


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> Model:
    """The model of that name for images of that shape.

    Args:
        name: a key of `MODELS`.
        input_shape: (height, width, channels).
        classes: number of classes.

    Raises:
        UserError: the name is unknown, or the model does not take images of that shape.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    entry = MODELS[name]
    height, width, channels = input_shape
    if min(height, width) < 8 or height % entry.divisor or width % entry.divisor:
        raise UserError(
            f"model: {name!r} takes images whose height and width are at least 8 and divisible by "
            f"{entry.divisor}, not {height}x{width}x{channels}; choose another model or data set."
        )
    module = entry.make(classes)

    def init(key: jax.Array) -> Variables:
        variables = dict(module.init(key, jnp.zeros((1, *input_shape)), train=False))
        return Variables(variables.pop("params"), variables)

    def apply(params: PyTree, stats: PyTree, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, **stats}
        if not train or not stats:
            return module.apply(variables, images, train=train), stats  # type: ignore[return-value]
        logits, updated = module.apply(variables, images, train=train, mutable=list(stats))
        return logits, dict(updated)

    return Model(name, input_shape, classes, jax.jit(init), apply)
