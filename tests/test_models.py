import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lthjax import models, prune
from lthjax.errors import UserError
from lthjax.networks import Layer, Pooled, Stages

# Frankle & Carbin 2019, table 1, and the counts that follow from the layers
WEIGHTS = {
    "lenet300": ((28, 28, 1), 266_200),
    "lenet5": ((28, 28, 1), 61_470),
    "lenet5_wide": ((28, 28, 1), 243_900),
    "lenet5_deep": ((28, 28, 1), 74_926),
    "small_cnn": ((32, 32, 3), 279_984),
    "small_cnn_wide": ((32, 32, 3), 1_116_512),
    "conv2": ((32, 32, 3), 4_300_992),
    "conv4": ((32, 32, 3), 2_425_024),
    "conv6": ((32, 32, 3), 2_261_184),
    "resnet8": ((32, 32, 3), 77_360),
    "resnet14": ((32, 32, 3), 174_128),
    "resnet20": ((32, 32, 3), 270_896),
    "resnet32": ((32, 32, 3), 464_432),
    "resnet56": ((32, 32, 3), 851_504),
    "vgg11": ((32, 32, 3), 9_222_848),
    "vgg16": ((32, 32, 3), 14_715_584),
    "lenet300_dropout": ((28, 28, 1), 266_200),
    "conv2_dropout": ((32, 32, 3), 4_300_992),
    "conv4_dropout": ((32, 32, 3), 2_425_024),
    "conv6_dropout": ((32, 32, 3), 2_261_184),
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
    assert bool(stats) is name.startswith(("resnet", "vgg"))
    assert model.dropout is name.endswith("_dropout")
    assert "output/kernel" in prune.paths(variables.params)


def test_a_network_is_built_once_for_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    one = models.build("lenet5", (28, 28, 1), 10)
    assert models.build("lenet5", (28, 28, 1), 10) is one
    assert models.build("lenet5", (28, 28, 1), 9) is not one
    assert models.build("lenet5", (28, 28, 1), 10, "kaiming").init is not one.init
    # Another row of that name is another network, and one that holds a list cannot be remembered.
    monkeypatch.setitem(models.MODELS, "lenet5", models.Entry(Stages([8], 1), 4, "own"))  # type: ignore[arg-type]
    assert models.build("lenet5", (28, 28, 1), 10).stages == Stages([8], 1)  # type: ignore[arg-type]


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


def test_initial_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their variance, whether they end at two standard deviations, and the scales of normalisations."""
    monkeypatch.setitem(models.MODELS, "flat", models.Entry((), 1, "for a test"))
    kernels = {}
    for name, variance in (("glorot", 2 / 884), ("glorot_untruncated", 2 / 884), ("kaiming", 2 / 784)):
        params = models.build("flat", (28, 28, 1), 100, name).init(jax.random.key(0)).params
        kernels[name] = np.asarray(params["output"]["kernel"])
        assert kernels[name].var() == pytest.approx(variance, rel=0.02)
        assert (params["output"]["bias"] == 0).all()
    # Truncated at two, then rescaled by the standard deviation of what is left, 0.8796.
    assert abs(kernels["glorot"]).max() == pytest.approx(2 / 0.87962566 * np.sqrt(2 / 884), rel=1e-3)
    assert (
        min(abs(kernels[name]).max() / kernels[name].std() for name in ("glorot_untruncated", "kaiming"))
        > 3.5
    )
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Pooled(((128,),)), 1, "for a test"))
    for name, low, high in (("kaiming", 1, 1), ("kaiming_uniform_scale", 0, 1)):
        params = jax.device_get(models.build("tiny", (8, 8, 3), 10, name).init(jax.random.key(0)).params)
        assert params["conv1"]["kernel"].var() == pytest.approx(2 / 27, rel=0.1)
        scale = params["norm1"]["scale"]
        assert low <= scale.min() <= low + 0.05
        assert high - 0.05 <= scale.max() <= high


def test_dropout_is_on_with_a_key_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose logits are its hidden units, which dropout sets to 0 or doubles."""
    rate_half = models.Entry((Layer("fc1", 64),), 1, "for a test", 0.5)
    monkeypatch.setitem(models.MODELS, "tiny", rate_half)
    model = models.build("tiny", (8, 8, 1), 64)
    layer = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    params, images = {"fc1": layer, "output": layer}, jnp.linspace(1, 2, 10 * 64).reshape(10, 8, 8, 1)
    units = np.asarray(images).reshape(10, 64)
    for train, key in ((False, None), (True, None), (False, jax.random.key(0))):
        np.testing.assert_array_equal(model.apply(params, {}, images, train, key)[0], units)
    dropped = [np.asarray(model.apply(params, {}, images, True, jax.random.key(k))[0]) for k in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (dropped[0] != dropped[2]).mean() == pytest.approx(0.5, abs=0.1)
    for logits in dropped:
        assert ((logits == 0) | (logits == 2 * units)).all()
        assert (logits == 0).mean() == pytest.approx(0.5, abs=0.1)


def test_a_network_of_one_s_own_may_drop_units(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.Dense(self.classes, name="output")(x)

    monkeypatch.setitem(models.MODELS, "own", models.Entry(Own, 1, "for a test"))
    model = models.build("own", (8, 8, 1), 3)
    assert model.dropout
    params, images = model.init(jax.random.key(0)).params, jnp.ones((2, 8, 8, 1))
    calm, wild = (model.apply(params, {}, images, True, key)[0] for key in (None, jax.random.key(1)))
    np.testing.assert_array_equal(calm, model.apply(params, {}, images, False)[0])
    assert (calm != wild).any()
    with pytest.raises(UserError, match="init: 'kaiming' is not for 'own', which draws its own weights"):
        models.build("own", (8, 8, 1), 3, "kaiming")
    with pytest.raises(UserError, match="init: 'kaimin' is not known"):
        models.build("lenet300", (8, 8, 1), 3, "kaimin")


def test_logits_of_a_narrow_network_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            return nn.Dense(self.classes, dtype=jnp.bfloat16, name="output")(x.reshape(len(x), -1))

    monkeypatch.setitem(models.MODELS, "narrow", models.Entry(Narrow, 1, "for a test"))
    model = models.build("narrow", (8, 8, 1), 3)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for train in (False, True):
        logits, _ = jax.eval_shape(
            lambda v, x, train=train: model.apply(*v, x, train), variables, jnp.zeros((2, 8, 8, 1))
        )
        assert logits.dtype == jnp.float32
    plain = models.build("lenet300", (8, 8, 1), 3)
    program = jax.make_jaxpr(lambda v, x: plain.apply(*v, x, True))(
        jax.eval_shape(plain.init, jax.random.key(0)), jnp.zeros((2, 8, 8, 1))
    )
    assert "convert_element_type" not in str(program)


def test_vgg_against_plain_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Pooled(((3,), (4, 5))), 2, "for a test"))
    model = models.build("tiny", (8, 8, 2), 4)
    made = jax.eval_shape(model.init, jax.random.key(0))
    generator = np.random.default_rng(0)
    params, stats = jax.tree.map(lambda x: generator.uniform(0.2, 1.5, x.shape).astype("f"), tuple(made))
    x = y = generator.normal(size=(3, 8, 8, 2)).astype("f")
    for number in (1, 2, 3):
        own, seen = params[f"norm{number}"], stats["batch_stats"][f"norm{number}"]
        y = convolve(y, params[f"conv{number}"]["kernel"], 1)
        y = (y - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * own["scale"] + own["bias"]
        y = np.maximum(y, 0)
        if number == 1:
            y = np.max([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    expected = y.mean((1, 2)) @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(model.apply(params, stats, x, False)[0], expected, rtol=2e-4)


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
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Stages((3, 5), 2), 2, "for a test"))
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
    with pytest.raises(UserError, match="width are divisible by 8, not 28x28x1"):
        models.build("conv6", (28, 28, 1), 10)
    for name in ("lenet5", "lenet5_wide", "lenet5_deep"):
        for sides in ((8, 8), (8, 12), (12, 8)):
            with pytest.raises(UserError, match=rf"at least 12 and divisible by 4, not {sides[0]}x"):
                models.build(name, (*sides, 1), 10)
        made = models.build(name, (12, 12, 1), 10)
        assert jax.eval_shape(made.init, jax.random.key(0)).params["fc1"]["kernel"].shape[0] in (16, 32)
