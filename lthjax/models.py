"""Networks by name, as two pure functions.

Layers are named `conv1`, `fc1`, ..., `output`, so that a pruning rate can address them by a regex on
the path (`conv1/kernel`); those of residual blocks as `stage2_block1/conv1/kernel` and
`stage2_block1/shortcut/kernel`. Initial weights are drawn as a row of `INITS` says; biases start at 0.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lthjax import outside, settings
from lthjax.devices import blocks, residual, rows
from lthjax.errors import UserError, unknown
from lthjax.networks import (
    BUILTIN,
    EPSILON,
    MOMENTUM,
    PRODUCT,
    Init,
    Layer,
    Pooled,
    Residual,
    Sequential,
    Stages,
    Vgg,
)

PyTree = Any
_LEAST_SIDE = 8


class Variables(NamedTuple):
    """The arrays of a network: trained parameters, and running statistics (or {})."""

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
            stats). With dropout a PRNG key may follow: units are dropped if it is given and train is True.
        layers: all its layers if it is sequential; else ().
        stages: its stages if it is residual; else None.
        pooled: its stages if it is a sequence of normalised convolutions; else None.
        dropout: whether units are dropped in training, so that a step needs a key.
        fans: of the `Init` that its weights are drawn by; None of a network from outside the package.
        order: of a network from outside the package the paths of its parameters, in the order in which a
            forward pass uses them; else ().
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[jax.Array, PyTree]]
    layers: tuple[Layer, ...] = ()
    stages: Stages | None = None
    pooled: Pooled | None = None
    dropout: bool = False
    fans: Callable[[int, int], int] | None = None
    order: tuple[str, ...] = ()


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype)


def _both(inputs: int, outputs: int) -> int:
    return inputs + outputs


def _inputs(inputs: int, outputs: int) -> int:
    return inputs


_ONES = nn.initializers.ones
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
INITS: dict[str, Init] = {
    "glorot": Init(
        nn.initializers.glorot_normal(),
        _ONES,
        _both,
        "Glorot normal, truncated at two standard deviations and rescaled (Frankle & Carbin 2019)",
    ),
    "glorot_untruncated": Init(
        nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
        _ONES,
        _both,
        "Glorot normal, not truncated",
    ),
    "kaiming": Init(
        _KAIMING, _ONES, _inputs, "normal of variance 2 / inputs, as the ResNets of He et al. 2016"
    ),
    "kaiming_uniform_scale": Init(
        _KAIMING,
        _uniform,
        _inputs,
        "kaiming, scales of batch normalisation uniform in [0, 1], as the ResNets of Frankle et al. 2020",
    ),
}
"""The distributions of initial weights by name; add a row to add one."""


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
            residual network or of one with pools; or, for any other network, number of classes -> Flax
            module, called as `module(images, train=False)`. It may use `nn.Dropout`; without statistics
            also other means that draw from the stream "dropout".
        divisor: the sides of its images must be divisible by this number.
        summary: one line for help and errors.
        dropout: share of the units of hidden dense layers that is dropped in training; for layers.
    """

    network: tuple[Layer, ...] | Stages | Pooled | Callable[[int], nn.Module]
    divisor: int
    summary: str
    dropout: float = 0.0

    @property
    def stages(self) -> Stages | None:
        """The stages of a residual network; else None."""
        return self.network if isinstance(self.network, Stages) else None

    def layers(self, classes: int) -> tuple[Layer, ...]:
        """The layers of a sequential network, with the output layer; else ()."""
        if isinstance(self.network, Stages | Pooled) or not isinstance(self.network, tuple):
            return ()
        return (*self.network, Layer("output", classes))

    def module(self, classes: int, init: Init) -> nn.Module:
        """Its Flax module; one from outside the package has initial weights of its own."""
        if isinstance(self.network, Stages):
            return Residual(self.network, classes, init)
        if isinstance(self.network, Pooled):
            return Vgg(self.network, classes, init)
        if isinstance(self.network, tuple):
            return Sequential(self.layers(classes), init, self.dropout)
        return self.network(classes)


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
    "lenet5_deep": Entry(
        (
            Layer("conv1", 6, 5, pool=True),
            Layer("conv2", 16, 5, "VALID"),
            Layer("conv3", 16, 5, pool=True),
            *_dense(120, 84, 84),
        ),
        4,
        "LeNet-5 with a third convolution, 16@5x5 same, and a third layer of 84 (74,926 weights on MNIST)",
    ),
    "small_cnn": Entry(
        (*_pooled_pairs(16, 32), *_dense(128)),
        4,
        "conv 16-16, pool, 32-32, pool, dense 128 (279,984 weights on CIFAR-10)",
    ),
    "small_cnn_wide": Entry(
        (*_pooled_pairs(32, 64), *_dense(256)),
        4,
        "small_cnn with twice its channels and units: 32, 64, 256 (1,116,512 weights on CIFAR-10)",
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
    "resnet56": Entry(
        Stages((16, 32, 64), 9), 4, "ResNet-56: nine blocks each (851,504 weights on CIFAR-10)"
    ),
    "vgg11": Entry(
        Pooled(((64,), (128,), (256, 256), (512, 512), (512, 512))),
        16,
        "VGG-11 with batch normalisation: eight convolutions (9,222,848 weights on CIFAR-10)",
    ),
    "vgg16": Entry(
        Pooled(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)),
        16,
        "VGG-16 with batch normalisation: thirteen convolutions (14,715,584 weights on CIFAR-10)",
    ),
    "lenet300_dropout": Entry(
        _dense(300, 100), 1, "LeNet-300-100 with dropout of 0.5 after its hidden layers", 0.5
    ),
    "conv2_dropout": Entry(
        (*_pooled_pairs(64), *_dense(256, 256)), 2, "Conv-2 with dropout of 0.5 after its dense layers", 0.5
    ),
    "conv4_dropout": Entry(
        (*_pooled_pairs(64, 128), *_dense(256, 256)), 4, "Conv-4 with dropout of 0.5 likewise", 0.5
    ),
    "conv6_dropout": Entry(
        (*_pooled_pairs(64, 128, 256), *_dense(256, 256)), 8, "Conv-6 with dropout of 0.5 likewise", 0.5
    ),
}
"""The networks by name; add a row to add one."""
SHIPPED = frozenset(MODELS)
"""The names of the networks that are part of the package."""


def for_tpu(model: Model) -> Model:
    """The model in its form for TPU: the same function up to rounding.

    Only networks with convolutions of few channels have one, from `lthjax.devices`: sequential ones `blocks`
    or `rows`, residual ones `residual`. Any other is returned as it is.
    """
    in_blocks = blocks.fits(model.layers, model.input_shape)
    in_rows = not in_blocks and rows.narrow(model.layers, model.input_shape[1])
    if model.dropout or not (in_blocks or in_rows or residual.fits(model.stages, model.input_shape)):
        return model

    def apply(params: PyTree, stats: PyTree, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        if in_blocks:
            return blocks.forward(model.layers, params, images, PRODUCT, BUILTIN), stats
        if in_rows:
            return rows.forward(model.layers, params, images, PRODUCT), stats
        norm = residual.Norm(train, MOMENTUM, EPSILON)
        given = (model.stages, params, stats["batch_stats"], images, norm, PRODUCT, BUILTIN)
        logits, new = residual.forward(*given)
        return logits, {"batch_stats": new}

    return model._replace(apply=apply)


def has_statistics(model: Model) -> bool:
    """Whether a network has running statistics, as batch normalisation does."""
    return bool(jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)).stats))


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


def _least_side(layers: Sequence[Layer]) -> int:
    """The smallest side of images that these layers leave something of; at least 8."""
    side = 1
    for layer in reversed(layers):
        side = side * 2 if layer.pool else side
        side += layer.size - 1 if layer.size and layer.padding == "VALID" else 0
    return max(side, _LEAST_SIDE)


def build(name: str, input_shape: tuple[int, int, int], classes: int, init: str = "glorot") -> Model:
    """The model of that name for images of that shape.

    Args:
        name: a key of `MODELS`.
        input_shape: (height, width, channels).
        classes: number of classes.
        init: a key of `INITS`.

    Raises:
        UserError: a name is unknown, or the model does not support images of that shape; or it is from
            outside the package, and has initial weights of its own or cannot be called as `Entry` says.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    entry = MODELS[name]
    if not isinstance(entry, Entry):
        raise UserError(f"model: MODELS[{name!r}] is {outside.kind(entry)}, no Entry; {outside.ASKED}")
    height, width, channels = input_shape
    least = _least_side(entry.layers(classes))
    if min(height, width) < least or height % entry.divisor or width % entry.divisor:
        sides = f"at least {least} and " if least > entry.divisor else ""
        raise UserError(
            f"model: {name!r} takes images whose height and width are {sides}divisible by {entry.divisor}, "
            f"not {height}x{width}x{channels}; choose another model or data set."
        )
    if init not in INITS:
        raise unknown("init", init, INITS)
    if init != "glorot" and not isinstance(entry.network, tuple):
        raise UserError(f"init: {init!r} is not for {name!r}, which draws its own weights; leave init out.")
    given = (name, entry, INITS[init], tuple(input_shape), classes)
    try:
        hash(given)
    except TypeError:  # a list in a row of one's own
        return _built.__wrapped__(*given)
    return _built(*given)


@lru_cache(maxsize=64)
def _built(name: str, entry: Entry, init: Init, input_shape: tuple[int, int, int], classes: int) -> Model:
    """The same model for the same rows: what JAX traced of its functions serves all who build it."""
    layers = entry.layers(classes)
    if isinstance(entry.network, tuple):
        module, fans = entry.module(classes, init), init.fans
        seen = outside.Seen(entry.dropout > 0)
    else:
        module, fans = outside.module_of(name, entry.network, classes), None
        seen = outside.tried(name, module, input_shape, classes)

    def start(key: jax.Array) -> Variables:
        variables = dict(module.init(key, jnp.zeros((1, *input_shape)), train=False))
        return Variables(variables.pop("params"), variables)

    def apply(
        params: PyTree, stats: PyTree, images: jax.Array, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        variables, drawn = {"params": params, **stats}, None if key is None else {"dropout": key}
        all_units = seen.dropout and key is None
        train = train and not (all_units and seen.elsewhere)
        whole = nn.intercept_methods(outside.undropped) if all_units else contextlib.nullcontext()
        with whole:
            if not train or not stats:
                return _wide(module.apply(variables, images, train=train, rngs=drawn)), stats
            logits, updated = module.apply(variables, images, train=train, mutable=list(stats), rngs=drawn)
            return _wide(logits), dict(updated)

    drawn_by = settings.pinned()(jax.jit(start))
    pooled = entry.network if isinstance(entry.network, Pooled) else None
    more = (layers, entry.stages, pooled, seen.dropout, fans, seen.order)
    return Model(name, input_shape, classes, drawn_by, apply, *more)


def _wide(logits: Any) -> jax.Array:
    """The logits in float32 at least, so that losses are."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
