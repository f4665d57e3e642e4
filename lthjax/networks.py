"""The kinds of networks, and their Flax modules. With `lthjax.models` the only file that imports flax."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from jax import lax

from lthjax.devices import conv, precision


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


class Pooled(NamedTuple):
    """Convolutions 3x3, each with batch normalisation and a ReLU, the mean over pixels, the output layer.

    Source: Simonyan & Zisserman 2015 (arXiv 1409.1556), with the batch normalisation and the single dense
    layer of Frankle et al. 2020 (arXiv 1912.05671).

    Attributes:
        widths: channels of the convolutions, stage by stage; a 2x2 max-pool between stages.
    """

    widths: tuple[tuple[int, ...], ...]


class Init(NamedTuple):
    """A row of `INITS`.

    Attributes:
        kernel: (key, shape, dtype) -> the weights of a layer, inputs on all axes but the last.
        scale: the same for the scales of normalisations.
        fans: (inputs, outputs of a weight's unit) -> n; the weights have a variance of 2 / n.
        summary: one line for help and errors.
    """

    kernel: Callable[..., jax.Array]
    scale: Callable[..., jax.Array]
    fans: Callable[[int, int], int]
    summary: str


EPSILON = 1e-5
"""What batch normalisations add to the variance."""
MOMENTUM = 0.9
"""The share of the old running statistics of batch normalisations, at each step."""
_CONVOLUTION = precision.rounded(conv.general_dilated)
PRODUCT = precision.rounded(lax.dot_general)
BUILTIN = precision.rounded(lax.conv_general_dilated)


class Sequential(nn.Module):
    """Layers one after another; dropout after every hidden dense layer."""

    layers: tuple[Layer, ...]
    drawn: Init
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [N, H, W, C] to logits [N, classes]."""
        for layer in self.layers:
            x = _product(layer, self.drawn)(x if layer.size else x.reshape(x.shape[0], -1))
            if layer is not self.layers[-1]:
                # Pooling first is cheaper; ReLU and maximum are monotone, so the values are the same.
                x = nn.relu(conv.max_pool(x) if layer.pool else x)
                if self.dropout and not layer.size:
                    x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


def _product(layer: Layer, init: Init) -> nn.Module:
    if not layer.size:
        return _dense_layer(layer.name, layer.features, init)
    return nn.Conv(
        layer.features,
        (layer.size, layer.size),
        padding=layer.padding,
        kernel_init=init.kernel,
        conv_general_dilated=_CONVOLUTION,
        name=layer.name,
    )


def _dense_layer(name: str, features: int, init: Init) -> nn.Module:
    return nn.Dense(features, kernel_init=init.kernel, dot_general=PRODUCT, name=name)


class _Block(nn.Module):
    """A residual block."""

    width: int
    stride: int
    drawn: Init

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Features [N, H, W, C] to features."""

        def normalised(name: str, norm: str, x: jax.Array, size: int, stride: int) -> jax.Array:
            product = _convolution(name, self.width, size, self.drawn, stride)
            return _norm(norm, self.drawn, train)(product(x))

        y = nn.relu(normalised("conv1", "norm1", x, 3, self.stride))
        y = normalised("conv2", "norm2", y, 3, 1)
        if x.shape != y.shape:
            x = normalised("shortcut", "shortcut_norm", x, 1, self.stride)
        return nn.relu(x + y)


class Residual(nn.Module):
    """Stages of residual blocks."""

    stages: Stages
    classes: int
    drawn: Init

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [N, H, W, C] to logits [N, classes]."""
        stem = _convolution("conv1", self.stages.widths[0], 3, self.drawn)
        x = nn.relu(_norm("norm1", self.drawn, train)(stem(x)))
        for stage, width in enumerate(self.stages.widths, 1):
            for block in range(1, self.stages.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = _Block(width, stride, self.drawn, name=block_name(stage, block))(x, train)
        return _dense_layer("output", self.classes, self.drawn)(x.mean((1, 2)))


class Vgg(nn.Module):
    """Stages of convolutions with pools between them."""

    pooled: Pooled
    classes: int
    drawn: Init

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [N, H, W, C] to logits [N, classes]."""
        number = 0
        for stage, widths in enumerate(self.pooled.widths):
            x = conv.max_pool(x) if stage else x
            for width in widths:
                number += 1
                x = _convolution(f"conv{number}", width, 3, self.drawn)(x)
                x = nn.relu(_norm(f"norm{number}", self.drawn, train)(x))
        return _dense_layer("output", self.classes, self.drawn)(x.mean((1, 2)))


def block_name(stage: int, block: int) -> str:
    """The name of a block's parameters in a residual network; both numbers start at 1."""
    return f"stage{stage}_block{block}"


def _convolution(name: str, features: int, size: int, init: Init, stride: int = 1) -> nn.Module:
    """A convolution without bias, because a normalisation follows."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=False,
        kernel_init=init.kernel,
        conv_general_dilated=_CONVOLUTION,
        name=name,
    )


def _norm(name: str, init: Init, train: bool) -> nn.Module:
    average = {"use_running_average": not train, "momentum": MOMENTUM}
    return nn.BatchNorm(**average, epsilon=EPSILON, scale_init=init.scale, name=name)
