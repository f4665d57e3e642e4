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
    "resnet8": ((32, 32, 3), 77_360),
    "resnet14": ((32, 32, 3), 174_128),
    "resnet20": ((32, 32, 3), 270_896),
    "resnet32": ((32, 32, 3), 464_432),
}


def convolve(x: np.ndarray, w: np.ndarray, pad: int, stride: int = 1) -> np.ndarray:
    """A convolution written as a loop over the taps."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1] - w.shape[0] + 1, x.shape[2] - w.shape[1] + 1
    taps = [
        x[:, i : i + height, j : j + width] @ w[i, j] for i in range(w.shape[0]) for j in range(w.shape[1])
    ]
    return sum(taps)[:, ::stride, ::stride]


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
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, variables.stats)
    assert bool(stats) is name.startswith("resnet")
    assert "output/kernel" in prune.paths(variables.params)


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

    def convolved(x: np.ndarray, layer: dict, pad: int) -> np.ndarray:
        return np.maximum(convolve(x, layer["kernel"], pad) + layer["bias"], 0)

    def pool(x: np.ndarray) -> np.ndarray:
        return np.max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    y = pool(convolved(x, params["conv1"], 2))
    y = pool(convolved(y, params["conv2"], 0)).reshape(2, -1)
    for name in ("fc1", "fc2"):
        y = np.maximum(y @ params[name]["kernel"] + params[name]["bias"], 0)
    y = y @ params["output"]["kernel"] + params["output"]["bias"]
    logits, _ = model.apply(params, {}, jnp.asarray(x), False)
    np.testing.assert_allclose(logits, y, atol=1e-4)


@pytest.fixture
def residual(monkeypatch: pytest.MonkeyPatch) -> models.Model:
    """A network of two stages of two blocks, with few channels."""
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(models.Stages((3, 5), 2), 2, "for a test"))
    return models.build("tiny", (8, 8, 2), 4)


@pytest.mark.parametrize("train", [False, True])
def test_residual_network_against_plain_arithmetic(residual: models.Model, train: bool) -> None:
    with jax.enable_x64(True):
        made = jax.eval_shape(residual.init, jax.random.key(0))
        generator = np.random.default_rng(0)
        params, stats = jax.tree.map(lambda x: generator.uniform(0.2, 1.5, x.shape), tuple(made))
        x = generator.normal(size=(6, 8, 8, 2))
        of_batch: dict[str, dict] = {}

        def normalise(x: np.ndarray, own: dict, path: tuple[str, ...]) -> np.ndarray:
            running = stats["batch_stats"]
            for name in path:
                running = running[name]
            mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (running["mean"], running["var"])
            of_batch["/".join(path)] = {"mean": mean, "var": var}
            return (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]

        def block(x: np.ndarray, name: str, stride: int) -> np.ndarray:
            own = params[name]
            y = convolve(x, own["conv1"]["kernel"], 1, stride)
            y = np.maximum(normalise(y, own["norm1"], (name, "norm1")), 0)
            y = normalise(convolve(y, own["conv2"]["kernel"], 1), own["norm2"], (name, "norm2"))
            if stride > 1:
                x = convolve(x, own["shortcut"]["kernel"], 0, stride)
                x = normalise(x, own["shortcut_norm"], (name, "shortcut_norm"))
            else:
                assert "shortcut" not in own
            return np.maximum(x + y, 0)

        y = np.maximum(normalise(convolve(x, params["conv1"]["kernel"], 1), params["norm1"], ("norm1",)), 0)
        for name, stride in (
            ("stage1_block1", 1),
            ("stage1_block2", 1),
            ("stage2_block1", 2),
            ("stage2_block2", 1),
        ):
            y = block(y, name, stride)
        expected = y.mean((1, 2)) @ params["output"]["kernel"] + params["output"]["bias"]
        logits, after = residual.apply(params, stats, jnp.asarray(x), train)
        np.testing.assert_allclose(logits, expected, rtol=1e-6)
        for path, now, before in zip(
            prune.paths(stats["batch_stats"]), jax.tree.leaves(after), jax.tree.leaves(stats), strict=True
        ):
            name, _, kind = path.rpartition("/")
            expected_now = 0.9 * before + 0.1 * of_batch[name][kind] if train else before
            np.testing.assert_allclose(now, expected_now, rtol=1e-6)


def test_statistics_are_the_mean_of_every_batch_s_own(residual: models.Model) -> None:
    """Compares the first normalisation by hand, and all with the limit of training."""
    params, stats = residual.init(jax.random.key(0))
    images = 2 + 3 * jax.random.normal(jax.random.key(1), (3, 10, 8, 8, 2))
    use = np.array([True, False, True])
    found = jax.jit(lambda *of: models.statistics(residual, *of))(params, stats, images, use)["batch_stats"]
    seen = np.stack([convolve(np.asarray(x), np.asarray(params["conv1"]["kernel"]), 1) for x in images[use]])
    np.testing.assert_allclose(found["norm1"]["mean"], seen.mean((0, 1, 2, 3)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["norm1"]["var"], seen.var((1, 2, 3)).mean(0), rtol=1e-3)
    one = models.statistics(residual, params, stats, images[:1])
    after = jax.jit(lambda stats: residual.apply(params, stats, images[0], True)[1])
    for _ in range(150):
        stats = after(stats)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    plain = models.build("lenet300", (8, 8, 1), 10)
    assert models.statistics(plain, {}, {}, images) == {}


def test_errors() -> None:
    with pytest.raises(UserError, match="model: 'lenet55' is not known; did you mean 'lenet5'"):
        models.build("lenet55", (28, 28, 1), 10)
    with pytest.raises(UserError, match="divisible by 8, not 28x28x1"):
        models.build("conv6", (28, 28, 1), 10)
