"""Compaction of networks with batch normalisation: by hand, against the networks themselves, and complete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lthjax import models, networks, prune
from lthjax.measures import compaction, savings, wiring
from lthjax.models import Model, Variables


def built(network: Any, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int] = (4, 4, 1)) -> Model:
    monkeypatch.setitem(models.MODELS, "own", models.Entry(network, 2, "for a test"))
    return models.build("own", (8, 8, shape[2]), 2)


def filled(model: Model, weight: float, dtype: type = np.float64) -> tuple[Variables, Any]:
    """All weights the same; normalisations of scale 1, variance 1, mean and bias 0; a mask of ones."""
    made = jax.eval_shape(model.init, jax.random.key(0))
    params, stats = jax.tree.map(lambda x: np.zeros(x.shape, dtype), tuple(made))
    for wire in wiring.layers(model):
        wiring.leaf(params, wire.name)["kernel"][:] = weight
        if norm := wiring.norm(wire.name):
            wiring.leaf(params, norm)["scale"][:] = 1
            wiring.leaf(stats["batch_stats"], norm)["var"][:] = 1 - networks.EPSILON
    return Variables(params, stats), jax.tree.map(np.array, prune.ones(params))


def drawn(model: Model, density: float, seed: int, dtype: type = np.float64) -> tuple[Variables, Any]:
    """Random weights and statistics under a random mask; some channels lack inputs, some are not read."""
    generator = np.random.default_rng(seed)
    made = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: generator.normal(0, 0.3, x.shape).astype(dtype), made.params)
    stats = jax.tree.map(lambda x: generator.uniform(0.5, 1.5, x.shape).astype(dtype), made.stats)

    def masked(leaf: Any) -> np.ndarray:
        if leaf.ndim < 2:
            return np.ones((), bool)
        mask = generator.random(leaf.shape) < density
        mask[..., generator.random(leaf.shape[-1]) < 0.5] = False
        mask[..., generator.random(leaf.shape[-2]) < 0.2, :] = False
        return mask

    return Variables(params, stats), jax.tree.map(masked, made.params)


def under(mask: Any, variables: Variables) -> Variables:
    params = jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, variables.params)
    return variables._replace(params=params)


def logits_of(model: Model, variables: Variables, images: Any) -> np.ndarray:
    """The network's own forward pass."""
    return np.asarray(jax.jit(lambda v, x: model.apply(*v, x, False)[0])(tuple(variables), images))


def test_a_constant_channel_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """conv1's channel 0 has no inputs, and is relu(3 - 5 · 0.5 / √1) = 0.5 everywhere."""
    model = built(networks.Pooled(((2,), (2,))), monkeypatch)
    variables, mask = filled(model, 1.0)
    params, stats = variables.params, variables.stats["batch_stats"]
    params["norm1"]["bias"][0], params["norm1"]["scale"][0], stats["norm1"]["mean"][0] = 3, 0.5, 5
    mask["conv1"]["kernel"][..., 0] = False
    # Read by all taps of a padded convolution it stays.
    assert compaction.compact(model, variables, mask).kept["conv1"].tolist() == [0, 1]
    # By the centre tap alone it goes into the means.
    mask["conv2"]["kernel"][:, :, 0] = False
    mask["conv2"]["kernel"][1, 1, 0, 1] = True
    params["conv2"]["kernel"][1, 1, 0, 1] = 7
    small = compaction.compact(model, variables, mask)
    assert {name: kept.tolist() for name, kept in small.kept.items()} == {
        "conv1": [1], "conv2": [0, 1], "output": [0, 1]}  # fmt: skip
    np.testing.assert_allclose(small.variables.stats["batch_stats"]["norm2"]["mean"], [0, -0.5 * 7])
    assert small.variables.params["conv1"]["kernel"].shape == (3, 3, 1, 1)
    assert small.mask["conv2"]["kernel"].shape == (3, 3, 1, 2)
    # A constant of 0 is 0 on the border, too.
    mask["conv2"]["kernel"][:] = True
    params["norm1"]["bias"][0] = 2.5
    assert compaction.compact(model, variables, mask).kept["conv1"].tolist() == [1]
    # Of conv2's channel 1 all inputs are folded, so that it is relu(4 · 0.5 · 7 - 1) = 2, in the biases.
    params["norm1"]["bias"][0] = 3
    mask["conv2"]["kernel"][:, :, :, 1] = False
    mask["conv2"]["kernel"][:, :, 0] = False
    mask["conv2"]["kernel"][1, 1, 0, 1] = True
    params["norm2"]["scale"][1], params["norm2"]["bias"][1] = 4, -12
    params["output"]["kernel"][1] = [10, 100]
    small = compaction.compact(model, variables, mask)
    assert {name: kept.tolist() for name, kept in small.kept.items()} == {
        "conv1": [1], "conv2": [0], "output": [0, 1]}  # fmt: skip
    np.testing.assert_allclose(small.variables.params["output"]["bias"], [20, 200], rtol=1e-6)


def test_a_channel_of_a_stream_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of 3 channels with one block, and of 2: the stream of the first is conv1's and the block's."""
    model = built(networks.Stages((3, 2), 1), monkeypatch)
    first, second = "stage1_block1", "stage2_block1"

    def kept(mask: Any, variables: Variables) -> dict[str, list[int]]:
        small = compaction.compact(model, variables, mask)
        return {name: units.tolist() for name, units in small.kept.items()}

    variables, mask = filled(model, 1.0)
    whole = kept(mask, variables)
    assert whole == {"conv1": [0, 1, 2], f"{first}/conv1": [0, 1, 2], f"{first}/conv2": [0, 1, 2],
                     f"{second}/conv1": [0, 1], f"{second}/shortcut": [0, 1], f"{second}/conv2": [0, 1],
                     "output": [0, 1]}  # fmt: skip
    # Channel 0 has no input from conv1; the block still writes to it.
    mask["conv1"]["kernel"][..., 0] = False
    assert kept(mask, variables) == whole
    # After neither writes it is 0 everywhere and goes out of every layer.
    mask[first]["conv2"]["kernel"][..., 0] = False
    without = whole | {"conv1": [1, 2], f"{first}/conv2": [1, 2]}
    assert kept(mask, variables) == without
    # The block's constant is 2 before the sum, and the second block reads it by all its taps: it stays.
    variables.params[first]["norm2"]["bias"][0] = 2
    assert kept(mask, variables) == whole
    # By the shortcut alone, 1x1 without padding: it goes into the mean of the shortcut's normalisation.
    mask[second]["conv1"]["kernel"][:, :, 0] = False
    variables.params[second]["shortcut"]["kernel"][0, 0, 0] = [3, 5]
    assert kept(mask, variables) == without
    small = compaction.compact(model, variables, mask)
    found = small.variables.stats["batch_stats"][second]["shortcut_norm"]["mean"]
    np.testing.assert_allclose(found, [-6, -10])
    assert small.variables.params[first]["norm2"]["bias"].shape == (2,)
    # Channel 1 is read by the first block alone, whose unit 2 it alone reads; and that writes to it alone.
    variables, mask = filled(model, 1.0)
    for name in ("conv1", "shortcut"):
        mask[second][name]["kernel"][:, :, 1] = False
    mask[first]["conv1"]["kernel"][:, :, 1, :2] = False
    mask[first]["conv2"]["kernel"][:, :, 2] = False
    mask[first]["conv2"]["kernel"][:, :, 2, 1] = True
    found = kept(mask, variables)
    assert (found["conv1"], found[f"{first}/conv1"]) == ([0, 2], [0, 1])


CASES = {
    "resnet8": (None, (8, 8, 2), 0.05),
    "vgg11": (None, (16, 16, 1), 0.002),
    "residual": (networks.Stages((5, 4), 2), (8, 8, 2), 0.15),
    "pooled": (networks.Pooled(((4,), (6, 5))), (8, 8, 2), 0.15),
}


@pytest.mark.parametrize("case", CASES)
def test_compacted_logits_are_the_networks_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in float64, those of the package in float32; a second compaction finds nothing more."""
    network, shape, density = CASES[case]
    dtype, tolerance = (np.float64, 1e-10) if network else (np.float32, savings.TOLERANCE)
    if network is not None:
        monkeypatch.setitem(models.MODELS, case, models.Entry(network, 4, "for a test"))
    model = models.build(case, shape, 3)
    variables, mask = drawn(model, density, 3, dtype)
    small = compaction.compact(model, variables, mask)
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(1).normal(size=(3, *shape)).astype(dtype))
        expected = logits_of(model, under(mask, variables), images)
        got = np.asarray(compaction.compiled(model, small.variables, images))
    assert got.dtype == expected.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert np.ptp(expected) > 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(small.variables)} == {np.dtype(dtype)}
    names = [wire.name for wire in wiring.layers(model)]
    before = sum(wiring.leaf(variables.params, name)["kernel"].shape[-1] for name in names)
    assert sum(map(len, small.kept.values())) < 0.9 * before
    again = compaction.compact(model, small.variables, small.mask)
    jax.tree.map(np.testing.assert_array_equal, again[:2], small[:2])
    assert jax.tree.map(np.shape, small.mask["output"]) == {
        "bias": (), "kernel": small.variables.params["output"]["kernel"].shape}  # fmt: skip


@pytest.mark.parametrize("network", [networks.Stages((5, 4), 2), models.Pooled(((6,), (5, 4)))])
def test_every_channel_that_stays_matters(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ReLUs are open, so that a path of surviving weights changes the logits; no constant is foldable."""
    model = built(network, monkeypatch)
    variables, mask = drawn(model, 0.12, 5)
    params = variables.params
    for wire in wiring.layers(model):
        if norm := wiring.norm(wire.name):
            wiring.leaf(params, norm)["bias"][:] = 1e3
            wiring.leaf(params, norm)["scale"][:] = 1e-2
        mask_of = wiring.leaf(mask, wire.name)["kernel"]
        if wire.name != "output":
            # A unit that is fed is fed by a pixel, not by constants alone.
            mask_of[..., mask_of.any((0, 1, 2))] |= np.arange(mask_of.shape[2])[:, None] == 0
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(1).normal(size=(2, *model.input_shape)))
        small = compaction.compact(model, variables, mask)
        forward = jax.jit(lambda v: compaction.forward(model, v, images))
        whole = under(mask, variables)
        before, groups = np.asarray(forward(whole)), {}
        np.testing.assert_allclose(forward(whole), logits_of(model, whole, images), rtol=1e-10)
        for wire in wiring.layers(model):
            groups.setdefault(wire.units, (wire.name, small.kept[wire.name]))
        removed = 0
        for group, (name, kept) in groups.items():
            if group == wiring.FIXED:
                continue
            bias = wiring.leaf(whole.params, wiring.norm(name))["bias"]
            for unit in range(len(bias)):
                bias[unit] += 10
                moved = np.abs(np.asarray(forward(whole)) - before).max() > 1e-6 * np.abs(before).max()
                bias[unit] -= 10
                constant = not wiring.leaf(mask, name)["kernel"][..., unit].any()
                assert moved or unit not in kept
                assert unit in kept or constant or not moved
                removed += unit not in kept
    assert removed > 1


def test_nothing_left_gives_the_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(networks.Stages((3, 4), 1), monkeypatch)
    variables, mask = filled(model, 1.0, np.float32)
    variables.params["output"]["bias"][:] = [0.25, 0.5]
    none = jax.tree.map(lambda m: m & False if m.ndim else m, mask)
    small = compaction.compact(model, variables, none)
    assert small.variables.params["conv1"]["kernel"].shape == (3, 3, 1, 0)
    images = jnp.ones((3, 8, 8, 1))
    got = compaction.compiled(model, small.variables, images)
    np.testing.assert_array_equal(got, [[0.25, 0.5]] * 3)
    whole = compaction.compact(model, variables, mask)
    jax.tree.map(np.testing.assert_array_equal, (whole.variables, whole.mask), (variables, mask))


def test_multiplications_of_the_compacted_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """conv1 loses one of two channels on 8 by 8 pixels, conv2 an input on 4 by 4."""
    model = built(networks.Pooled(((2,), (2,))), monkeypatch)
    variables, mask = filled(model, 1.0, np.float32)
    mask["conv1"]["kernel"][..., 0] = False
    small = compaction.compact(model, variables, mask)
    found = compaction.counts(model, small)
    assert found.macs == 9 * 64 + 9 * 2 * 16 + 2 * 2
    assert found.weights == found.weights_left == 9 + 9 * 2 + 2 * 2


@pytest.mark.parametrize(("name", "empty"), [("vgg11", "conv8"), ("resnet8", "conv1")])
def test_multiplications_of_a_network_without_a_convolution(name: str, empty: str) -> None:
    """The forward pass skips the product of a layer that lost all its channels; it counts as 0."""
    model = models.build(name, (32, 32, 3), 10)
    variables, mask = filled(model, 1.0, np.float32)
    mask[empty]["kernel"][:] = False
    if name == "resnet8":
        # The stage's stream has no channel left when no layer writes to it.
        mask["stage1_block1"]["conv2"]["kernel"][:] = False
    small = compaction.compact(model, variables, mask)
    found = compaction.counts(model, small)
    assert len(small.kept[empty]) == 0
    assert found.macs == found.macs_left == found.weights == 0


def test_a_sequence_is_refused() -> None:
    model = models.build("lenet300", (8, 8, 1), 10)
    with pytest.raises(ValueError, match="lenet300 has neither residual stages nor normalised ones"):
        compaction.compact(model, Variables({}, {}), {})
