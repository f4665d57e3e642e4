"""Counts and bytes against published values, compaction against brute force, and the command."""

import functools
import itertools
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import check_section, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from analysis import open_run, page, record, report
from analysis import savings as command
from analysis.record import Finding
from analysis.savings.table import LevelSavings, Timing, _rate, compared, shown, to_json
from analysis.savings.work import _forms, timed_levels
from analysis.tables import write_tables
from lthjax import config, models, prune, study
from lthjax.errors import UserError
from lthjax.measures import savings, timing
from lthjax.models import Variables
from lthjax.networks import Layer

PAPER = {"lenet5": (28, 28, 1), "conv2": (32, 32, 3), "conv4": (32, 32, 3), "conv6": (32, 32, 3)}
OUTPUT_10 = (("output", 0.1), (".", 0.2))
CONV_10 = (("conv", 0.1), *OUTPUT_10)
CONV_15 = (("conv", 0.15), *OUTPUT_10)


def zeros(model: models.Model) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize(
    ("name", "rates", "fewer_weights", "fewer_macs"),
    [
        ("conv2", CONV_10, 9.1, 3.1),
        ("conv4", CONV_10, 7.5, 2.9),
        ("conv6", CONV_15, 6.5, 5.1),
        ("lenet5", ((".", 0.2),), 9.3, 9.2),
        ("lenet5", OUTPUT_10, 9.0, 9.1),
    ],
)
def test_ten_rounds_of_the_papers_rates(
    name: str, rates: tuple, fewer_weights: float, fewer_macs: float
) -> None:
    """Layers and pruning rates of Frankle & Carbin 2019, table 1."""
    model = models.build(name, PAPER[name], 10)
    params = zeros(model)
    whole = prune.ones(params)
    masks = []
    for leaf, rate in zip(jax.tree.leaves(whole), prune.rates_of(rates, prune.paths(whole)), strict=True):
        left = leaf.size
        for _ in range(10):
            left -= prune.count(rate, left)
        masks.append((np.arange(leaf.size) < left).reshape(leaf.shape) if leaf.ndim else leaf)
    mask = jax.tree.unflatten(jax.tree.structure(whole), masks)
    got = savings.counts(model.layers, params, mask, model.input_shape)
    assert round(got.weights / got.weights_left, 1) == fewer_weights
    assert round(got.macs / got.macs_left, 1) == fewer_macs


def test_macs_by_hand() -> None:
    model = models.build("lenet5", (28, 28, 1), 10)
    params = zeros(model)
    mask = jax.tree.map(np.array, prune.ones(params))
    mask["conv2"]["kernel"][0, 0, 0, :7] = False
    got = savings.counts(model.layers, params, mask, model.input_shape)
    macs = 150 * 28 * 28 + 2400 * 10 * 10 + 400 * 120 + 120 * 84 + 84 * 10
    assert got == (61_470, 61_470 - 7, macs, macs - 7 * 100)


def test_layers_that_are_not_pruned_count_as_whole_multiplications() -> None:
    """fc2 alone is pruned, to 10 %; it has a tenth of the network's products, whether compacted or not."""
    model = models.build("lenet300", (28, 28, 1), 10)
    params = zeros(model)
    mask = jax.tree.map(lambda leaf: np.ones((), bool), params)
    mask["fc2"]["kernel"] = np.arange(30_000).reshape(300, 100) % 10 == 0
    got = savings.counts(model.layers, params, mask, model.input_shape)
    assert got == (30_000, 3_000, 266_200, 266_200 - 27_000)
    # Every tenth unit has inputs.
    small = savings.compact(model.layers, params, mask)
    assert len(small.kept["fc2"]) == 10
    got = savings.counts(small.layers, small.params, small.mask, model.input_shape)
    assert got == (3_000, 3_000, 235_200 + 3_000 + 100, 235_200 + 3_000 + 100)


@pytest.mark.parametrize("empty", ["conv1", "conv2"])
def test_a_ticket_without_a_convolution_is_counted(empty: str) -> None:
    """Its layers have no units after compaction; the forward pass skips their products."""
    model = models.build("lenet5", (28, 28, 1), 10)
    mask = random_mask(model, 0.5)
    mask[empty]["kernel"][:] = False
    forms = _forms(model, Variables(zeros(model), {}), mask)
    assert forms is not None
    assert forms.widths[empty] == 0
    # The logits are the output layer's biases, which compaction has folded the rest into.
    assert forms.counts == (0, 0, 0, 0)


def test_multiplications_that_cannot_be_counted_are_refused() -> None:
    """Weights in a `while` loop would count as none."""

    def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1) @ params["first"]
        return jax.lax.while_loop(lambda y: (y < 9).all(), lambda y: y @ params["again"] + 1, x)

    params = {"first": jnp.ones((4, 2)), "again": jnp.ones((2, 2))}
    first = {"first": params["first"]}
    known = savings.counted(first, prune.ones(first), lambda p, x: x.reshape(1, -1) @ p["first"], (2, 2, 1))
    assert known.macs == 8
    with pytest.raises(UserError, match=r"savings: the multiplications of again cannot be counted"):
        savings.counted(params, prune.ones(params), apply, (2, 2, 1))


def test_published_ratios_of_storage_at_ten_percent() -> None:
    """Rows of 50,000 weights: their starts are negligible, and 16 bits can index them."""
    mask = np.zeros((50_000, 20), bool)
    mask[np.arange(0, 50_000, 10)] = True
    size = savings.storage({"w": mask, "b": np.ones((), bool)})
    assert [round(size.dense / part, 1) for part in size] == [1.0, 10.0, 7.6, 6.7, 5.0, 3.3]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_storage_is_what_scipy_and_packbits_take(inputs: int, outputs: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random((inputs, outputs)) < generator.random()
    weights = np.where(mask, 1, 0).astype(np.float32).T
    csr, coo = sparse.csr_array(weights), sparse.coo_array(weights)
    assert {csr.indices.dtype, csr.indptr.dtype, coo.row.dtype} == {np.dtype(np.int32)}
    rows, values = csr.indptr.nbytes, csr.data.nbytes
    assert savings.storage({"w": mask}) == (
        weights.nbytes,
        values,
        values + np.packbits(mask).nbytes,
        values + csr.indices.astype(np.uint16).nbytes + rows,
        values + csr.indices.nbytes + rows,
        coo.data.nbytes + coo.row.nbytes + coo.col.nbytes,
    )


def test_storage_of_a_convolution_and_of_rows_too_long_for_16_bits() -> None:
    kernel = np.ones((3, 3, 2, 5), bool)
    assert savings.storage({"w": kernel}).csr32 == 8 * 90 + 4 * 6, "a row an output channel"
    long = np.zeros((2**16 + 1, 3), bool)
    long[0] = True
    got = savings.storage({"w": long})
    assert (got.csr16, got.csr32) == (3 * 6 + 4 * (2 * 3 + 1), 3 * 8 + 4 * (3 + 1))


def test_training_cost() -> None:
    assert savings.training_steps(500, 0, 11) == 12 * 500
    assert savings.training_steps(500, 100, 2) == 500 + 2 * 400


def net(*weights: Any) -> tuple[tuple[Layer, ...], dict[str, Any], dict[str, Any]]:
    """Dense layers from (kernel, bias); the mask is where the kernel is not 0."""
    names = [*(f"fc{i}" for i in range(1, len(weights))), "output"]
    params = {
        name: {"kernel": np.array(kernel, np.float32), "bias": np.array(bias, np.float32)}
        for name, (kernel, bias) in zip(names, weights, strict=True)
    }
    mask = {
        name: {"kernel": layer["kernel"] != 0, "bias": np.ones((), bool)} for name, layer in params.items()
    }
    layers = tuple(Layer(name, params[name]["bias"].size) for name in names)
    return layers, params, mask


def test_a_constant_unit_is_folded_by_hand() -> None:
    """Unit 1 has no inputs and bias 2: the next biases grow by 2 w. Unit 2's constant relu(-3) is 0."""
    layers, params, mask = net(
        ([[1, 0, 0], [4, 0, 0]], [0.5, 2, -3]), ([[7, 8], [3, -5], [11, 13]], [10, 20])
    )
    small = savings.compact(layers, params, mask)
    assert {name: units.tolist() for name, units in small.kept.items()} == {"fc1": [0], "output": [0, 1]}
    np.testing.assert_array_equal(small.params["fc1"]["kernel"], [[1], [4]])
    np.testing.assert_array_equal(small.params["fc1"]["bias"], [0.5])
    np.testing.assert_array_equal(small.params["output"]["kernel"], [[7, 8]])
    np.testing.assert_array_equal(small.params["output"]["bias"], [10 + 2 * 3, 20 - 2 * 5])
    assert [layer.features for layer in small.layers] == [1, 2]
    assert small.params["output"]["bias"].dtype == np.float32


def test_units_go_in_a_row_by_hand() -> None:
    """Only fc2's unit 1 reads fc1's unit 1, and nothing reads fc2's unit 1. fc2's unit 0 has only a folded
    input, so it is the constant 1 + 2 * 3."""
    layers, params, mask = net(
        ([[0, 1, 1]], [2, 0, 0]), ([[3, 0, 0], [0, 5, 0], [0, 6, 1]], [1, 0, 0]), ([[10], [0], [1]], [0.5])
    )
    small = savings.compact(layers, params, mask)
    assert {name: units.tolist() for name, units in small.kept.items()} == {
        "fc1": [2], "fc2": [2], "output": [0]}  # fmt: skip
    np.testing.assert_array_equal(small.params["output"]["bias"], [0.5 + 10 * (1 + 2 * 3)])


def test_pruned_weights_count_as_zero_and_nothing_left_gives_the_biases() -> None:
    layers, params, mask = net(([[1, 2]], [1, 1]), ([[3, 4], [5, 6]], [0.25, 0.5]))
    params["output"]["kernel"] = np.full((2, 2), np.nan, np.float32)
    mask["output"]["kernel"] = np.zeros((2, 2), bool)
    small = savings.compact(layers, params, mask)
    assert small.params["output"]["kernel"].shape == (0, 2)
    assert small.params["fc1"]["kernel"].shape == (1, 0)
    logits = savings.forward(small.layers, small.params, jnp.ones((3, 1, 1, 1)))
    np.testing.assert_array_equal(logits, [[0.25, 0.5]] * 3)


def convolutions(padding: str) -> tuple[tuple[Layer, ...], dict[str, Any], dict[str, Any]]:
    """Two convolutions and an output on 4x4 images; conv1's channel 1 has no inputs, and bias 2."""
    layers = (Layer("conv1", 2, 3), Layer("conv2", 1, 3, padding), Layer("output", 1))
    side = 4 if padding == "SAME" else 2
    shapes = {"conv1": (3, 3, 1, 2), "conv2": (3, 3, 2, 1), "output": (side**2, 1)}
    params = {n: {"kernel": np.ones(s, np.float32), "bias": np.zeros(s[-1], np.float32)}
              for n, s in shapes.items()}  # fmt: skip
    params["conv1"]["bias"][1] = 2
    mask = jax.tree.map(np.array, prune.ones(params))
    mask["conv1"]["kernel"][..., 1] = False
    return layers, params, mask


def test_a_constant_channel_goes_before_a_valid_convolution_and_stays_before_a_padded_one() -> None:
    layers, params, mask = convolutions("VALID")
    small = savings.compact(layers, params, mask)
    assert small.kept["conv1"].tolist() == [0]
    np.testing.assert_array_equal(small.params["conv2"]["bias"], [2 * 9])
    layers, params, mask = convolutions("SAME")
    assert savings.compact(layers, params, mask).kept["conv1"].tolist() == [0, 1]
    params["conv1"]["bias"][1] = -2
    small = savings.compact(layers, params, mask)
    assert small.kept["conv1"].tolist() == [0], "relu(-2) is 0 at the border too"
    np.testing.assert_array_equal(small.params["conv2"]["bias"], [0])


def test_a_channel_goes_only_with_all_its_pixels() -> None:
    """Channels are last: channel c of pixel p is input 2 p + c of the dense layer."""
    layers, params, mask = convolutions("VALID")
    layers = (layers[0], Layer("output", 1))
    del params["conv2"], mask["conv2"]
    params["output"]["kernel"] = np.arange(32, dtype=np.float32)[:, None]
    mask["conv1"]["kernel"][:] = True
    mask["output"]["kernel"] = np.ones((32, 1), bool)
    mask["output"]["kernel"][1:31:2] = False
    assert savings.compact(layers, params, mask).kept["conv1"].tolist() == [0, 1]
    mask["output"]["kernel"][31] = False
    small = savings.compact(layers, params, mask)
    assert small.kept["conv1"].tolist() == [0]
    np.testing.assert_array_equal(small.params["output"]["kernel"][:, 0], np.arange(0, 32, 2))


TINY = {name: (8, 8, 2) for name, entry in models.MODELS.items() if entry.layers(3)}
TINY |= dict.fromkeys(("lenet5", "lenet5_wide", "lenet5_deep"), (12, 12, 1))

forward = jax.jit(savings.forward, static_argnums=0)
apply = jax.jit(prune.apply)


@functools.cache
def full_logits(name: str) -> Callable[[Any, jax.Array], jax.Array]:
    """The model's own forward pass."""
    model = models.build(name, TINY[name], 3)
    return jax.jit(lambda params, x: model.apply(params, {}, x, False)[0])


def ticket(name: str, density: float, seed: int, dtype: type) -> tuple[models.Model, Any, Any]:
    """Random weights and biases, some positive, under a random mask; some units lack inputs or outputs."""
    model = models.build(name, TINY[name], 3)
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    params = jax.tree.map(lambda s: generator.normal(0, 0.3, s.shape).astype(dtype), shapes)

    def masked(leaf: Any) -> np.ndarray:
        if leaf.ndim < 2:
            return np.ones((), bool)
        mask = generator.random(leaf.shape) < density
        mask[..., generator.random(leaf.shape[-1]) < 0.3] = False
        mask[..., generator.random(leaf.shape[-2]) < 0.2, :] = False
        return mask

    return model, params, jax.tree.map(masked, shapes)


def left_units(layers: tuple[Layer, ...], params: Any, mask: Any) -> dict[str, list[int]]:
    """The units that stay, by the written rules: removes one unit at a time until none can be removed."""
    mask, params = jax.tree.map(np.array, (mask, params))
    here = {layer.name: set(range(layer.features)) for layer in layers}

    def of(layer: Layer, unit: int, features: int) -> slice | int:
        """The rows of the next kernel that read a unit."""
        return unit if layer.size else slice(unit, None, features)

    changed = True
    while changed:
        changed = False
        for own, after in itertools.pairwise(layers):
            for unit in sorted(here[own.name]):
                rows = of(after, unit, own.features)
                outgoing = mask[after.name]["kernel"][..., rows, :]
                constant = max(params[own.name]["bias"][unit], 0)
                padded = after.size and after.padding == "SAME"
                idle = not mask[own.name]["kernel"][..., unit].any() and not (padded and constant)
                if outgoing.any() and not idle:
                    continue
                if idle:
                    weights = np.where(outgoing, params[after.name]["kernel"][..., rows, :], 0)
                    params[after.name]["bias"] += constant * weights.sum(axis=tuple(range(weights.ndim - 1)))
                mask[after.name]["kernel"][..., rows, :] = False
                mask[own.name]["kernel"][..., unit] = False
                here[own.name].remove(unit)
                changed = True
    return {name: sorted(units) for name, units in here.items()}


@pytest.mark.parametrize("density", [0.2, 0.01])
@pytest.mark.parametrize("name", TINY)
def test_compacted_logits_are_the_tickets(name: str, density: float) -> None:
    """In float64 and float32, against the model's own forward pass; the units against brute force."""
    with jax.enable_x64(True):
        model, params, mask = ticket(name, density, 7, np.float64)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(5, *TINY[name])))
        small = savings.compact(model.layers, params, mask)
        expected = np.asarray(full_logits(name)(apply(params, mask), x))
        got = np.asarray(forward(small.layers, small.params, x))
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    params, x = jax.tree.map(np.float32, params), x.astype(np.float32)
    small = savings.compact(model.layers, params, mask)
    expected = full_logits(name)(apply(params, mask), x)
    got = forward(small.layers, small.params, x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    kept = {name: units.tolist() for name, units in small.kept.items()}
    assert kept == left_units(model.layers, params, mask)
    assert sum(layer.features for layer in small.layers) < sum(layer.features for layer in model.layers)
    for layer in small.layers:
        assert small.params[layer.name]["kernel"].shape[-1] == layer.features == len(kept[layer.name])
        assert small.mask[layer.name]["kernel"].shape == small.params[layer.name]["kernel"].shape


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_compaction_is_exact_and_complete(density: float, seed: int, widths: list[int]) -> None:
    generator = np.random.default_rng(seed)
    weights = [
        (
            generator.normal(size=(a, b)) * (generator.random((a, b)) < density),
            generator.normal(size=b),
        )
        for a, b in itertools.pairwise(widths)
    ]
    layers, params, mask = net(*weights)
    small = savings.compact(layers, params, mask)
    images = generator.normal(size=(4, 1, 1, widths[0])).astype(np.float32)

    def by_numpy(params: Any, layers: tuple[Layer, ...]) -> np.ndarray:
        x = images.reshape(4, -1).astype(float)
        for layer in layers:
            x = x @ params[layer.name]["kernel"] + params[layer.name]["bias"]
            x = x if layer is layers[-1] else np.maximum(x, 0)
        return x

    expected = by_numpy(params, layers)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        by_numpy(small.params, small.layers), expected, rtol=0, atol=1e-5 * scale + 1e-6
    )
    kept = {name: units.tolist() for name, units in small.kept.items()}
    assert kept == left_units(layers, params, mask)
    again = savings.compact(small.layers, small.params, small.mask)
    jax.tree.map(np.testing.assert_array_equal, again.params, small.params)


def test_a_mask_of_ones_takes_nothing_out() -> None:
    model, params, _ = ticket("lenet5", 1, 0, np.float32)
    small = savings.compact(model.layers, params, prune.ones(params))
    assert small.layers == model.layers
    jax.tree.map(np.testing.assert_array_equal, small.params, params)


def test_what_does_not_fit_is_refused() -> None:
    layers, params, mask = net(([[1, 2]], [1, 1]), ([[3], [4]], [0]))
    with pytest.raises(ValueError, match="only sequential networks"):
        savings.compact((), params, mask)
    with pytest.raises(ValueError, match=r"layers: \['output'\] are not those of \['fc1', 'output'\]"):
        savings.compact(layers[1:], params, mask)
    with pytest.raises(ValueError, match=r"features=3.* does not fit its kernel of shape \(1, 2\)"):
        savings.compact((layers[0]._replace(features=3), layers[1]), params, mask)


def test_sparse_products_give_the_same_logits() -> None:
    model, params, mask = ticket("lenet5", 0.3, 3, np.float32)
    params = apply(params, mask)
    x = jax.random.normal(jax.random.key(0), (5, *TINY["lenet5"]))
    expected = full_logits("lenet5")(params, x)
    got = [savings.scipy_forward(model.layers, params)(x)]
    for kind in ("BCOO", "BCSR"):
        made = savings.sparsified(model.layers, params, kind)
        assert made["fc1"]["kernel"].nse == int(mask["fc1"]["kernel"].sum())
        got.append(forward(model.layers, made, x))
    for logits in got:
        assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_which_levels_are_timed() -> None:
    densities = {level: 0.8**level for level in range(18)}
    # 0.8**7 = 21 %, 0.8**10 = 10.7 %, 0.8**13 = 5.5 % (0.8**14 = 4.4 % is further by ratio)
    assert timed_levels(densities) == {7, 10, 13, 17}
    assert timed_levels(densities, quick=True) == {17}
    assert timed_levels({0: 1.0}) == set()
    assert timed_levels({0: 1.0, 1: 0.8, 2: 0.64}) == {2}


def test_a_timing_in_words() -> None:
    def said(ratio: float, low: float, high: float) -> str:
        return compared(Timing(1, "masked", 1.0, ratio, ratio, low, high, 5, ""))

    assert said(0.5, 0.4, 0.8) == "2.00× slower (1.25–2.50)"
    assert said(1.5, 1.2, 2.0) == "1.50× faster (1.20–2.00)"
    assert said(1.1, 0.9, 1.2) == "no clear difference: 1.10× its speed (0.90–1.20)"


def row_with(chain: str = "rewind-0", level: int = 1, *timings: Timing) -> LevelSavings:
    """A row of a network that was not compacted."""
    counts, sizes = savings.Counts(1000, 100, 5000, 500), savings.storage({"w": np.ones((10, 10), bool)})
    return LevelSavings(
        0, chain, level, "ticket", 0.1, counts, sizes, 9, {}, None, None, 24, 2.0, "a CPU", timings
    )


def test_a_time_stands_beside_the_dense_one_that_it_was_compared_with() -> None:
    """The machine was six times as fast when the masked network had its turn."""
    masked = Timing(256, "masked", 0.00208, 0.00183, 0.89, 0.83, 0.95, 15)
    later = Timing(256, "compacted", 0.0074, 0.0118, 1.6, 1.3, 1.7, 15)
    lines = shown([row_with("rewind-0", 1, masked, later)])[-1].rows
    assert [line[3:] for line in lines] == [
        ["dense", "6.81", "37,564", "", ""],
        ["masked", "2.08", "123,077", "1.83", "1.12× slower (1.05–1.20)"],
        ["compacted", "7.4", "34,595", "11.8", "1.60× faster (1.30–1.70)"],
    ]


def test_a_narrow_terminal_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that does not fit has no lines between its columns; one that fits has them."""
    console = page.Console
    row = row_with("rewind-0", 3, Timing(256, "masked", 0.5, 0.25, 0.5, 0.4, 0.6, 15))
    large = row._replace(counts=savings.Counts(266_200, 213_060, 1_266_200, 1_213_060))
    for width, ruled in ((40, False), (80, False), (120, True)):
        monkeypatch.setattr(page, "Console", lambda width, of=width: console(width=of))
        page.print_section(page.Section("savings", "Savings", tables=shown([large])[:1]))
        said = capsys.readouterr().out
        assert "…" not in said
        assert {"213,060", "1,266,200", "trainings"} <= {*re.split("[ │┃\n]+", said)}
        assert ("│" in said) == ruled


@pytest.mark.parametrize("n", [6, 7, 15, 40])
def test_the_interval_of_a_median_holds_it_in_95_of_100(n: int) -> None:
    """By binomial sums: the true median is outside with probability at most 5 %; with ranks further in, the
    probability would be larger."""
    low, high = timing.median_interval([float(i) for i in np.random.default_rng(0).permutation(n)])
    rank = int(low) + 1
    assert high == n - rank

    def outside(rank: int) -> float:
        return 2 * sum(math.comb(n, i) for i in range(rank)) / 2**n

    assert outside(rank) <= 0.05 < outside(rank + 1)
    with pytest.raises(ValueError, match="5 are too few"):
        timing.median_interval([1.0] * 5)


def test_timing_takes_what_it_is_given_a_call() -> None:
    """A dense network that sleeps ten times as long: the ratio is per call, not per sample."""
    import time

    def sleeps(seconds: float) -> Callable[[], Any]:
        return lambda: time.sleep(seconds)

    got = timing.calls(sleeps(0.002), sleeps(0.02), 6)
    assert got.pairs == 6
    assert 4 < got.ratio < 11
    assert got.low <= got.ratio <= got.high
    assert got.ratio == pytest.approx(got.peer / got.ours, rel=0.3)


def rows_of(run: Path) -> list[LevelSavings]:
    return record.needed(command.ANALYSIS, open_run(run))


def findings_of(run: Path, rows: list[LevelSavings]) -> list[Finding]:
    return command.findings(open_run(run), rows)


def errors_of_the_command(run: Path, tmp_path: Path) -> None:
    """Errors for a run of seed 4, rewound to step 3, levels 0 to 2; the run stays unchanged."""

    def refused(said: str, **asked: Any) -> None:
        with pytest.raises(UserError, match=said):
            record.perform(command.ANALYSIS, run, **asked)

    with pytest.raises(UserError, match=r"run python -m analysis\.savings .* first"):
        rows_of(run)
    (run / "savings.json").write_text('{"rows": [{}]}')
    with pytest.raises(
        UserError, match=r"savings\.json: it cannot be read .*; run python -m analysis\.savings"
    ):
        rows_of(run)
    (run / "savings.json").unlink()
    refused(r"--seed: 3 is not in the run; it has \[4\]", seed=3)
    refused("--chain: 'rewind-5' is not in the run; it has rewind-3", chain="rewind-5")
    refused(r"--levels: \[3\] are not done in seed 4, rewind-3; it has \[0, 1, 2\]", levels=(1, 3))
    with pytest.raises(UserError, match="is not a run folder"):
        record.perform(command.ANALYSIS, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with np.load(tmp_path / "data" / "few.npz") as few:
        np.savez(other / "few.npz", **{**few, "test_images": few["test_images"] + 1})
    refused("--data-dir: few there has content hash .*, the run's has", data_dir=other)


def test_a_residual_network_is_counted_layer_by_layer() -> None:
    """Positions of every layer's outputs, by its stage, times the survivors of its kernel."""
    model = models.build("resnet8", (32, 32, 3), 10)
    mask = random_mask(model, 0.3)
    shapes = jax.eval_shape(model.init, jax.random.key(0)).stats
    stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    found = savings.counted(
        zeros(model), mask, lambda p, x: model.apply(p, stats, x, False)[0], model.input_shape
    )
    sides, whole, left = {"conv1": 32, "stage1": 32, "stage2": 16, "stage3": 8, "output": 1}, 0, 0
    for path, leaf in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True):
        if leaf.ndim:
            places = sides[path.split("/")[0].split("_")[0]] ** 2
            whole, left = whole + places * leaf.size, left + places * int(leaf.sum())
    assert (found.macs, found.macs_left) == (whole, left)
    assert (found.weights, found.weights_left) == (77_360, int(prune.totals(mask)[0]))


def test_the_forms_of_a_residual_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked and compacted compute what the network does; the section says what is taken out of what."""
    monkeypatch.setitem(models.MODELS, "own", models.Entry(models.Stages((3, 4), 1), 2, "for a test"))
    model = models.build("own", (8, 8, 1), 2)
    mask = random_mask(model, 0.5)
    for layer in (mask["conv1"], mask["stage1_block1"]["conv2"]):
        layer["kernel"][..., 1] = False
    variables = model.init(jax.random.key(0))
    variables = variables._replace(params=apply(variables.params, mask))
    forms = _forms(model, variables, mask)
    assert forms is not None
    assert [*forms.variants] == ["masked", "compacted"]
    assert forms.widths["conv1"] == forms.widths["stage1_block1/conv2"] == 2
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    assert np.abs(forms.whole(images)).max() > 0.01
    for logits in (forms.dense, *forms.variants.values()):
        assert savings.deviation(forms.whole, logits, images) <= savings.TOLERANCE
    with pytest.raises(RuntimeError, match="differ from the ticket's by 1 of the largest"):
        savings.deviation(forms.whole, lambda x: 0 * forms.whole(x), images)
    assert _forms(model._replace(stages=None), variables, mask) is None
    timing = Timing(1, "masked", 1.0, 1.0, 1.0, 0.9, 1.2, 6)
    sizes, counts = savings.storage(mask), forms.counts
    row = LevelSavings(0, "rewind-0", 3, "ticket", 0.5, counts, sizes, 9, forms.widths, counts, 0.0, 24, 2.0,
                       "a CPU", (timing,))  # fmt: skip
    run: Any = SimpleNamespace(study=config.Study())
    said = command.section(run, [row])
    assert "out of all layers of its permutation group" in said.notes[0]
    assert "scipy" not in said.remark
    assert len(said.tables) == 4


def test_what_is_not_compacted_is_left_out_of_tables_and_verdicts(tmp_path: Path) -> None:
    row = row_with("rewind-0", 3)
    (tmp_path / "savings.json").write_text(to_json([row]))
    (again,) = command.load(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    assert again == row
    run: Any = SimpleNamespace(study=config.Study())
    shown = command.section(run, [row])
    assert len(shown.tables) == 2
    assert "Units are not taken out" in shown.notes[0]
    claims = command.findings(SimpleNamespace(path=tmp_path, study=config.Study()), [row])  # type: ignore[arg-type]
    assert "compaction" not in claims[0].estimate
    assert "10.0× fewer multiplications" in claims[0].estimate


@pytest.mark.parametrize(
    ("criterion", "chain", "needed"),
    [("large_final", "rewind-0", True), ("snip", "rewind-0", False), ("large_final", "random_chain-0", False),
     ("one of a config file", "rewind-0", True), ("taylor", "arm_of_a_config_file-0", True)],
)  # fmt: skip
def test_training_that_a_criterion_does_not_need_is_no_cost(criterion: str, chain: str, needed: bool) -> None:
    row = row_with(chain)
    run: Any = SimpleNamespace(study=config.Study(prune=config.Prune(criterion=criterion)))
    title = command.section(run, [row]).tables[0].title
    assert f"(seed 0, {chain})" in title
    assert ("cost to find" in title) == needed
    assert ("its criterion needs nothing after the rewind step" in title) != needed


def test_the_command_and_its_errors(
    tiny: Callable[..., study.Prepared],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run = study.run(tiny(levels=2, rewind=(3,), seeds=(4,), arms=("ticket",)), tmp_path / "runs")
    errors_of_the_command(run, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    record.command(command.ANALYSIS)([str(run), "--quick", "--data-dir", str(tmp_path / "data")])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(run / "savings.json")
    for word in ("JAX BCOO", "scipy CSR", "compacted", "CSR-16", "dense trainings"):
        assert word in said, word
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {run / "savings.json", run / "checksums.json"}
    assert all(after[path] == contents for path, contents in before.items())

    rows = rows_of(run)
    assert [(row.seed, row.level, row.arm) for row in rows] == [
        (4, 0, "dense"), (4, 1, "ticket"), (4, 2, "ticket")]  # fmt: skip
    last = rows[-1]
    result = json.loads((run / "seed=4/chain=rewind-3/level=02/ticket/result.json").read_text())
    assert last.counts.weights_left == result["weights_left"]
    assert last.counts.macs == last.counts.weights == 74_200, "a dense weight is one product"
    assert last.storage.ideal == 4 * result["weights_left"]
    # weights and those at the rewind step, biases among them, the mask, and the file's head
    arrays = 2 * 4 * (74_200 + 410) + 74_200 // 8
    assert arrays <= last.file_bytes <= arrays + 3000
    assert [row.steps for row in rows] == [12, 12 + 9, 12 + 2 * 9]
    assert last.trainings == pytest.approx(30 / 12)
    assert 0 <= last.deviation <= 1e-5
    assert last.compacted.weights <= 74_200
    assert last.widths["output"] == 10
    assert [bool(row.timings) for row in rows] == [False, False, True]
    assert {(t.batch, t.variant) for t in last.timings} == {
        (batch, name) for batch in (1, 256) for name in savings.VARIANTS}  # fmt: skip
    assert all(t.low <= t.ratio <= t.high and t.seconds > 0 for t in last.timings)
    assert rows_of(run) == rows
    check_section(command.ANALYSIS, run)
    counted = findings_of(run, rows)[0]
    assert counted.outcome == "refuted", "half the weights are not a tenth"
    assert f"{74_200 / result['weights_left']:.1f}× fewer multiplications if zeros" in counted.estimate
    tenth = last._replace(counts=last.counts._replace(macs_left=7_420), storage=savings.Storage(*[1000] * 6))
    tenth = tenth._replace(storage=tenth.storage._replace(bitmask=150))
    assert command._counted([rows[1], tenth._replace(density=0.1)]).outcome == "supported"
    text = report.build(run, only_if_changed=True).read_text()
    assert 'id="savings"' in text
    assert "computes one image faster, compacted" in text
    write_tables(run, {"savings.json": to_json(rows[:2])})
    assert rows_of(run) == rows[:2]
    os.utime(run / "savings.json", (time.time() + 9, time.time() + 9))
    again = report.build(run, only_if_changed=True).read_text()
    assert "Tickets compute faster than the dense network" in again, "no times are left"


def test_the_commands_error_is_a_sentence(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("-m", "analysis.savings", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}: it is not a run folder (no study.json in it).\n"


def test_times_are_written_without_powers_of_ten() -> None:
    assert _rate(6.57, 256) == ("6,570", "39")
    assert _rate(0.09996, 1) == ("100", "10")
    assert _rate(0.0482, 1) == ("48.2", "21")
    assert _rate(None, 1) == ("–", "–")
