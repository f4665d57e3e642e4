"""Networks by name. The only file that imports flax.

Layers are named `conv1`, `fc1`, ..., `output`, so that a pruning rate can address them by a regex on
the path (`conv1/kernel`); those of residual blocks as `stage2_block1/conv1/kernel` and
`stage2_block1/shortcut/kernel`. Initialisation is Glorot normal with zero biases, as in Frankle & Carbin
2019 (arXiv 1803.03635), table 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lthjax import settings
from lthjax.devices import conv, precision, rows
from lthjax.errors import UserError, unknown

PyTree = Any


class Variables(NamedTuple):
    """The arrays of a network: trained parameters, and running statistics (or {})."""

    params: PyTree
    stats: PyTree


class Layer(NamedTuple):
    """A layer of a sequential network. A ReLU follows every layer but the last.

    Attributes:
        name: name of its parameters: `bias`, and `kernel` [size, size, inputs, features] or [inputs,
            features].
        features: channels or units.
        size: side of a convolution's kernel; 0 for a dense layer, whose input is flattened, channels last.
        padding: "SAME" or "VALID", for a convolution; its stride is 1.
        pool: whether max-pooling over 2 by 2 windows of stride 2 follows.
    """

    name: str
    features: int
    size: int = 0
    padding: str = "SAME"
    pool: bool = False


class Stages(NamedTuple):
    """A residual network: a 3x3 convolution, stages of blocks, the mean over pixels, the output layer.

    A block is two 3x3 convolutions, each with batch normalisation, added to the block's input. A ReLU follows
    the first normalisation and the sum. The first block of every stage but the first halves the sides; where
    the shape changes, its shortcut is a 1x1 convolution with its own normalisation.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2, with their projections as shortcuts.

    Attributes:
        widths: channels of every stage.
        blocks: number of blocks in every stage; with three stages the depth is 6 blocks + 2.
    """

    widths: tuple[int, ...]
    blocks: int


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
        name: the key in `MODELS`.
        input_shape: (height, width, channels) of one image.
        classes: number of classes.
        init: key -> Variables; float32.
        apply: (params, stats, images float [N, H, W, C], train) -> (logits float [N, classes],
            stats).
        layers: all its layers if it is sequential; else ().
        stages: its stages if it is residual; else None.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    init: Callable[[jax.Array], Variables]
    apply: Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]]
    layers: tuple[Layer, ...] = ()
    stages: Stages | None = None


_INIT = nn.initializers.glorot_normal()
_CONVOLUTION = precision.rounded(conv.general_dilated)
_PRODUCT = precision.rounded(lax.dot_general)


class _Sequential(nn.Module):
    """Layers one after another."""

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for layer in self.layers:
            x = _product(layer)(x if layer.size else x.reshape(x.shape[0], -1))
            if layer is not self.layers[-1]:
                # Pooling first is cheaper; ReLU and maximum are monotone, so the values are the same.
                x = nn.relu(conv.max_pool(x) if layer.pool else x)
        return x


def _product(layer: Layer) -> nn.Module:
    if not layer.size:
        return _dense_layer(layer.name, layer.features)
    return nn.Conv(
        layer.features,
        (layer.size, layer.size),
        padding=layer.padding,
        kernel_init=_INIT,
        conv_general_dilated=_CONVOLUTION,
        name=layer.name,
    )


def _dense_layer(name: str, features: int) -> nn.Module:
    return nn.Dense(features, kernel_init=_INIT, dot_general=_PRODUCT, name=name)


class _Block(nn.Module):
    """A residual block."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.relu(_norm("norm1", train)(_convolution("conv1", self.width, 3, self.stride)(x)))
        y = _norm("norm2", train)(_convolution("conv2", self.width, 3)(y))
        if x.shape != y.shape:
            x = _norm("shortcut_norm", train)(_convolution("shortcut", self.width, 1, self.stride)(x))
        return nn.relu(x + y)


class _Residual(nn.Module):
    """Stages of residual blocks."""

    stages: Stages
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(_norm("norm1", train)(_convolution("conv1", self.stages.widths[0], 3)(x)))
        for stage, width in enumerate(self.stages.widths, 1):
            for block in range(1, self.stages.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = _Block(width, stride, name=block_name(stage, block))(x, train)
        return _dense_layer("output", self.classes)(x.mean((1, 2)))


def block_name(stage: int, block: int) -> str:
    """The name of a block's parameters in a residual network; both numbers start at 1."""
    return f"stage{stage}_block{block}"


def _convolution(name: str, features: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution without bias, because a normalisation follows."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=False,
        kernel_init=_INIT,
        conv_general_dilated=_CONVOLUTION,
        name=name,
    )


def _norm(name: str, train: bool) -> nn.Module:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


def _dense(*widths: int) -> tuple[Layer, ...]:
    return tuple(Layer(f"fc{i}", width) for i, width in enumerate(widths, 1))


def _pooled_pairs(*channels: int) -> tuple[Layer, ...]:
    """Pairs of 3x3 SAME convolutions, each pair followed by a pool."""
    return tuple(
        Layer(f"conv{2 * i + j}", features, 3, pool=j == 2)
        for i, features in enumerate(channels)
        for j in (1, 2)
    )


class Entry(NamedTuple):
    """A row of `MODELS`.

    Attributes:
        network: all layers but the output layer, which depends on the number of classes; or the stages of a
            residual network; or, for any other network, number of classes -> Flax module, called as
            `module(images, train=False)`.
        divisor: the sides of its images must be divisible by this number.
        summary: one line for help and errors.
    """

    network: tuple[Layer, ...] | Stages | Callable[[int], nn.Module]
    divisor: int
    summary: str

    @property
    def stages(self) -> Stages | None:
        """The stages of a residual network; else None."""
        return self.network if isinstance(self.network, Stages) else None

    def layers(self, classes: int) -> tuple[Layer, ...]:
        """The layers of a sequential network, with the output layer; else ()."""
        if self.stages or not isinstance(self.network, tuple):
            return ()
        return (*self.network, Layer("output", classes))


MODELS: dict[str, Entry] = {
    "lenet300": Entry(
        _dense(300, 100),
        1,
        "LeNet-300-100: fully connected 300, 100 (266,200 weights on MNIST)",
    ),
    "lenet5": Entry(
        (Layer("conv1", 6, 5, pool=True), Layer("conv2", 16, 5, "VALID", pool=True), *_dense(120, 84)),
        4,
        "LeNet-5: conv 6@5x5 same, pool, conv 16@5x5 valid, pool, 120, 84 (61,470 weights on MNIST)",
    ),
    "lenet5_wide": Entry(
        (Layer("conv1", 12, 5, pool=True), Layer("conv2", 32, 5, "VALID", pool=True), *_dense(240, 168)),
        4,
        "LeNet-5 with twice its channels and units: 12, 32, 240, 168 (243,900 weights on MNIST)",
    ),
    "small_cnn": Entry(
        (*_pooled_pairs(16, 32), *_dense(128)),
        4,
        "conv 16-16, pool, 32-32, pool, dense 128 (279,984 weights on CIFAR-10)",
    ),
    "conv2": Entry(
        (*_pooled_pairs(64), *_dense(256, 256)),
        2,
        "Conv-2: conv 64-64, pool, 256, 256 (4,300,992 weights on CIFAR-10)",
    ),
    "conv4": Entry(
        (*_pooled_pairs(64, 128), *_dense(256, 256)),
        4,
        "Conv-4: Conv-2 and conv 128-128, pool (2,425,024 weights on CIFAR-10)",
    ),
    "conv6": Entry(
        (*_pooled_pairs(64, 128, 256), *_dense(256, 256)),
        8,
        "Conv-6: Conv-4 and conv 256-256, pool (2,261,184 weights on CIFAR-10)",
    ),
    "resnet8": Entry(
        Stages((16, 32, 64), 1),
        4,
        "ResNet-8: stages of 16, 32 and 64 channels, one block each (77,360 weights on CIFAR-10)",
    ),
    "resnet14": Entry(Stages((16, 32, 64), 2), 4, "ResNet-14: two blocks each (174,128 weights on CIFAR-10)"),
    "resnet20": Entry(
        Stages((16, 32, 64), 3), 4, "ResNet-20: three blocks each (270,896 weights on CIFAR-10)"
    ),
    "resnet32": Entry(
        Stages((16, 32, 64), 5), 4, "ResNet-32: five blocks each (464,432 weights on CIFAR-10)"
    ),
}
"""The networks by name; add a row to add one."""


def for_tpu(model: Model) -> Model:
    """The model in its form for TPU: the same function up to rounding, from `lthjax.devices.rows`.

    Only sequential networks with convolutions of few channels have one; any other is returned as it is.
    """
    if not rows.narrow(model.layers, model.input_shape[1]):
        return model

    def apply(params: PyTree, stats: PyTree, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return rows.forward(model.layers, params, images, _PRODUCT), stats

    return model._replace(apply=apply)


def statistics(model: Model, params: PyTree, stats: PyTree, images: jax.Array, use: Any = None) -> PyTree:
    """Running statistics that fit these weights: the mean of the batch statistics over all batches.

    Needed for weights that were never trained, such as those between two trained networks. Works under `jit`
    and `vmap`.

    Args:
        model: its statistics are moving averages, new = m old + (1 - m) batch, for any m.
        params: the weights.
        stats: any statistics of the network; {} stays {}.
        images: float [batches, B, H, W, C], normalised; one batch at a time is in memory.
        use: bool [batches], which batches count; by default all.
    """
    if not jax.tree.leaves(stats):
        return stats

    def of_batch(batch: jax.Array) -> PyTree:
        def updated(start: Callable[[jax.Array], jax.Array]) -> PyTree:
            return model.apply(params, jax.tree.map(start, stats), batch, True)[1]

        from_zeros, from_ones = updated(jnp.zeros_like), updated(jnp.ones_like)
        # m is the same everywhere; the median is robust to the rounding of large statistics.
        return jax.tree.map(lambda zero, one: zero / (1 - jnp.median(one - zero)), from_zeros, from_ones)

    weights = jnp.ones(len(images)) if use is None else jnp.asarray(use, jnp.float32)
    found = jax.lax.map(of_batch, images)
    return jax.tree.map(lambda x: jnp.tensordot(weights / weights.sum(), x, 1), found)


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> Model:
    """The model of that name for images of that shape.

    Args:
        name: a key of `MODELS`.
        input_shape: (height, width, channels).
        classes: number of classes.

    Raises:
        UserError: the name is unknown, or the model does not support images of that shape.
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
    layers, stages = entry.layers(classes), entry.stages
    if layers:
        module: nn.Module = _Sequential(layers)
    elif stages:
        module = _Residual(stages, classes)
    else:
        assert callable(entry.network)
        module = entry.network(classes)

    def init(key: jax.Array) -> Variables:
        variables = dict(module.init(key, jnp.zeros((1, *input_shape)), train=False))
        return Variables(variables.pop("params"), variables)

    def apply(params: PyTree, stats: PyTree, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, **stats}
        if not train or not stats:
            return module.apply(variables, images, train=train), stats  # type: ignore[return-value]
        logits, updated = module.apply(variables, images, train=train, mutable=list(stats))
        return logits, dict(updated)

    return Model(name, input_shape, classes, settings.pinned()(jax.jit(init)), apply, layers, stages)
