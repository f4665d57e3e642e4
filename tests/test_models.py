import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lthjax import models, prune
from lthjax.errors import UserError

# Frankle & Carbin 2019, table 1, and the counts that follow from the layers
WEIGHTS = {
    "lenet300": ((28, 28, 1), 266_200),
    "lenet5": ((28, 28, 1), 61_470),
    "lenet5_wide": ((28, 28, 1), 243_900),
    "small_cnn": ((32, 32, 3), 279_984),
    "conv2": ((32, 32, 3), 4_300_992),
    "conv4": ((32, 32, 3), 2_425_024),
    "conv6": ((32, 32, 3), 2_261_184),
}


def test_every_model_is_counted() -> None:
    assert WEIGHTS.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_counts_and_shapes(name: str) -> None:
    shape, weights = WEIGHTS[name]
    model = models.build(name, shape, 10)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    kernels = [leaf for leaf in jax.tree.leaves(variables.params) if leaf.ndim >= 2]
    assert sum(leaf.size for leaf in kernels) == weights
    images = jnp.zeros((3, *shape))
    logits, stats = jax.eval_shape(lambda v: model.apply(v.params, v.stats, images, True), variables)
    assert logits.shape == (3, 10)
    assert stats == {}
    assert prune.paths(variables.params)[-1] == "output/kernel"


def test_lenet5_has_61706_parameters() -> None:
    model = models.build("lenet5", (28, 28, 1), 10)
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


def test_initialisation_is_glorot_normal_with_zero_biases() -> None:
    params = models.build("lenet300", (28, 28, 1), 10).init(jax.random.key(0)).params
    kernel = np.asarray(params["fc1"]["kernel"])
    # flax draws a normal truncated at two standard deviations and rescales it to this variance
    assert kernel.std() == pytest.approx(np.sqrt(2 / (784 + 300)), rel=0.01)
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
    assert all((layer["bias"] == 0).all() for layer in params.values())


def test_lenet5_against_plain_arithmetic() -> None:
    """The forward pass written out with numpy loops over the taps."""
    model = models.build("lenet5", (28, 28, 1), 10)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(1)).params)
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)

    def convolve(x: np.ndarray, layer: dict, pad: int) -> np.ndarray:
        w = layer["kernel"]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height = x.shape[1] - w.shape[0] + 1
        taps = [
            x[:, i : i + height, j : j + height] @ w[i, j]
            for i in range(w.shape[0])
            for j in range(w.shape[1])
        ]
        return np.maximum(sum(taps) + layer["bias"], 0)

    def pool(x: np.ndarray) -> np.ndarray:
        return np.max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    y = pool(convolve(x, params["conv1"], 2))
    y = pool(convolve(y, params["conv2"], 0)).reshape(2, -1)
    for name in ("fc1", "fc2"):
        y = np.maximum(y @ params[name]["kernel"] + params[name]["bias"], 0)
    y = y @ params["output"]["kernel"] + params["output"]["bias"]
    logits, _ = model.apply(params, {}, jnp.asarray(x), False)
    np.testing.assert_allclose(logits, y, atol=1e-4)


def test_errors() -> None:
    with pytest.raises(UserError, match="model: 'lenet55' is not known; did you mean 'lenet5'"):
        models.build("lenet55", (28, 28, 1), 10)
    with pytest.raises(UserError, match="divisible by 8, not 28x28x1"):
        models.build("conv6", (28, 28, 1), 10)
