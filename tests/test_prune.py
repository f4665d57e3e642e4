import math
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import required
from hypothesis import given, settings
from hypothesis import strategies as st

from lthjax import prune
from lthjax.prune import _lowest, _masks

ADAFACTOR = optax.adafactor(0.01)
RATES = st.decimals(0, 1, places=6).map(float) | st.sampled_from([0.0, 0.15, 0.2, 1.0, 1e-6])


def tree(seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "conv1": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 4)), "bias": jnp.ones(4)},
        "output": {"kernel": jax.random.normal(keys[1], (40, 10)), "bias": jnp.zeros(10)},
        "norm": {"scale": jax.random.normal(keys[2], (4,))},
    }


def reference(scores: np.ndarray, mask: np.ndarray, rate: float) -> np.ndarray:
    """The definition, by sorting: removes the round-half-up(rate n) lowest survivors, ties by index."""
    flat, kept = scores.ravel(), mask.ravel().copy()
    alive = np.flatnonzero(kept)
    removed = math.floor(Fraction(str(rate)) * len(alive) + Fraction(1, 2))
    kept[alive[np.argsort(flat[alive], kind="stable")][:removed]] = False
    return kept.reshape(mask.shape)


@given(RATES, st.integers(0, 200_000_000))
@settings(deadline=None)
def test_count_is_exact_concrete_and_traced(rate: float, n: int) -> None:
    expected = math.floor(Fraction(str(rate)) * n + Fraction(1, 2))
    assert prune.count(rate, n) == expected
    assert int(prune.count(rate, jnp.int32(n))) == expected


def test_count_is_not_float32_arithmetic() -> None:
    assert prune.count(0.15, 190) == 29  # 28.5 rounds up; in float32 0.15 * 190 is below 28.5
    assert prune.count(np.float32(0.2), 10) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate", "written"),
    [
        (jnp.float32(0.15), "0.15"),
        (jnp.asarray(0.15, jnp.bfloat16), "0.15"),
        (np.float16(0.15), "0.15"),
        (np.array(0.15), "0.15"),
        (Decimal("0.150"), "0.15"),
        (Decimal("0.4999999999999999999999"), "0.4999999999999999999999"),
        (Fraction(3, 20), "0.15"),
        (Fraction(1, 6), "1/6"),
        (Fraction(2**40 - 1, 2**41), f"{2**40 - 1}/{2**41}"),
        (jnp.int32(1), "1"),
        (np.int8(0), "0"),
        (5e-324, "5e-324"),
    ],
    ids=str,
)
def test_counts_for_numbers_of_any_kind(rate: Any, written: str) -> None:
    for n in (0, 1, 3, 9, 10, 190, 214_748_363):
        expected = math.floor(Fraction(written) * n + Fraction(1, 2))
        assert prune.count(rate, n) == expected
        for given_rate in (prune.rates_of(rate, ["a"]), prune.rates_of([("a", rate)], ["a"])):
            assert prune.count(given_rate[0], n) == expected
    # As arrays count: in 32 bits.
    assert prune.count(rate, np.int32(190)) == math.floor(Fraction(written) * 190 + Fraction(1, 2))


@given(st.fractions(0, 1), st.integers(0, 2**31 // 10 - 1))
@settings(deadline=None)
def test_a_fraction_counts_as_it_is(rate: Fraction, n: int) -> None:
    assert prune.count(rate, n) == math.floor(rate * n + Fraction(1, 2))


def test_a_half_that_no_decimal_has_rounds_up_in_int32() -> None:
    # n / q + 1/2 is whole where 2 n is an odd multiple of q: the hardest case for a decimal expansion.
    n = np.arange(1, 200_000, dtype=np.int32)
    for q in (6, 14, 22, 34, 99_998):
        np.testing.assert_array_equal(prune.count(Fraction(1, q), n), (2 * n.astype(np.int64) + q) // (2 * q))


def test_rates_and_densities_of_any_kind_prune_the_same() -> None:
    params = {"w": jnp.arange(1.0, 11).reshape(2, 5)}
    mask = prune.ones(params)
    for rate in (jnp.float32(0.3), np.array(0.3), Fraction(3, 10), Decimal("0.3"), np.float16(0.3)):
        for got in (
            prune.magnitude(params, mask, rate),
            prune.magnitude(params, mask, {"w": rate}),
            prune.magnitude(params, mask, iter([("w", rate)])),
            prune.magnitude(params, mask, rate, scope="global"),
        ):
            assert got["w"].ravel().tolist() == [False] * 3 + [True] * 7
        assert int(prune.to_density(params, mask, rate)["w"].sum()) == 3
        assert int(prune.erk(jax.random.key(0), params, rate)["w"].sum()) == 3
        assert int(prune.uniform(jax.random.key(0), params, rate)["w"].sum()) == 3


@given(
    st.lists(st.integers(-3, 3), min_size=40, max_size=40),
    st.lists(st.booleans(), min_size=40, max_size=40),
    RATES,
)
@settings(deadline=None, max_examples=150)
def test_by_score_is_the_definition_with_many_ties(values: list, kept: list, rate: float) -> None:
    scores = np.array(values, np.float32).reshape(1, -1)
    mask = np.array(kept).reshape(1, -1)
    got = prune.by_score({"w": jnp.array(scores)}, {"w": jnp.array(mask)}, rate)["w"]
    np.testing.assert_array_equal(got, reference(scores, mask, rate))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_magnitude_agrees_with_sorting(dtype: jnp.dtype) -> None:
    params = jax.tree.map(lambda x: x.astype(dtype), tree())
    mask = prune.ones(params)
    for rate in (0.2, 0.15, 0.5):
        old, mask = mask, prune.magnitude(params, mask, rate)
        for layer in ("conv1", "output"):
            scores = np.abs(np.asarray(params[layer]["kernel"], np.float64))
            expected = reference(scores, np.asarray(old[layer]["kernel"]), rate)
            np.testing.assert_array_equal(mask[layer]["kernel"], expected)
            assert not (mask[layer]["kernel"] & ~old[layer]["kernel"]).any()


def test_global_scope_ranks_all_layers_together_without_normalisation() -> None:
    params = tree()
    params["conv1"]["kernel"] *= 0.01
    mask = prune.magnitude(params, prune.ones(params), 0.16, scope="global")
    flat = np.concatenate([np.abs(params[n]["kernel"]).ravel() for n in ("conv1", "output")])
    expected = reference(flat, np.ones(len(flat), bool), 0.16)
    got = np.concatenate([np.asarray(mask[n]["kernel"]).ravel() for n in ("conv1", "output")])
    np.testing.assert_array_equal(got, expected)
    assert not mask["conv1"]["kernel"].all()
    assert got.sum() == 472 - 76  # 0.16 * 472 = 75.52


def test_all_equal_weights_go_by_index_and_zeros_of_both_signs_are_equal() -> None:
    mask = prune.magnitude({"w": jnp.ones((2, 5))}, {"w": jnp.ones((2, 5), bool)}, 0.3)
    np.testing.assert_array_equal(mask["w"].ravel(), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    zeros = jnp.array([[0.0, -0.0, 0.0, -0.0]])
    mask = prune.by_score({"w": zeros}, {"w": jnp.ones((1, 4), bool)}, 0.5)
    np.testing.assert_array_equal(mask["w"], [[False, False, True, True]])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_that_are_not_finite_cannot_be_ranked(bad: float, scope: prune.Scope) -> None:
    scores = {"a": jnp.ones((2, 3)), "b": jnp.array([[bad, 1.0, 2.0, bad]])}
    mask = {"a": jnp.ones((2, 3), bool), "b": jnp.array([[True, True, False, True]])}
    named = "leaf 'b' has 2 that are not finite, of 3 weights left"
    with pytest.raises(ValueError, match=named):
        prune.by_score(scores, mask, 0.5, scope=scope)
    with pytest.raises(ValueError, match=named):
        prune.magnitude(scores, mask, 0.5, scope=scope)
    with pytest.raises(ValueError, match=named):
        prune.to_density(scores, mask, 0.5, scope=scope)
    # Scores of pruned weights, and of leaves that are not pruned, do not matter.
    gone = {**mask, "b": jnp.array([[False, True, True, False]])}
    assert int(prune.totals(prune.by_score(scores, gone, 0.5, scope=scope))[0]) == 4
    if scope == "layer":
        with pytest.raises(ValueError, match=named):
            prune.by_score(scores, mask, {"b": 0.5}, granularity="unit-l2")
        with pytest.raises(ValueError, match="leaf 'b' has 1 that are not finite, of 4"):
            prune.by_score({"b": scores["b"].at[0, 0].set(1).T}, {"b": mask["b"].T | True}, 0.5,
                           granularity="2:4")  # fmt: skip
        assert int(prune.by_score(scores, mask, {"a": 0.5})["a"].sum()) == 3


def test_where_scores_cannot_be_looked_at_nan_counts_as_highest() -> None:
    scores = jnp.array([[jnp.nan, 1.0, jnp.inf, -jnp.inf]])
    mask = jax.jit(lambda s: prune.by_score({"w": s}, {"w": jnp.ones((1, 4), bool)}, 0.5))(scores)
    np.testing.assert_array_equal(mask["w"], [[True, False, True, False]])


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0xFFC00001])
@pytest.mark.parametrize("granularity", ["weight", "unit-l1", "unit-l2"])
def test_nan_of_either_sign_counts_as_highest(bits: int, granularity: str) -> None:
    """0/0 has its sign bit set on XLA:CPU. Two units that are NaN go by index, after all others."""
    nan = np.array([bits], np.uint32).view(np.float32)[0]
    scores = np.ones((2, 4), np.float32)
    scores[0, [1, 3]], scores[1, [1, 3]] = nan, -np.inf
    scores = scores[:1] if granularity == "weight" else scores
    whole = {"w": jnp.ones(scores.shape, bool)}
    for rate, kept in ((0.5, [0, 1, 0, 1]), (0.75, [0, 0, 0, 1])):
        mask = jax.jit(lambda s, r=rate: prune.by_score({"w": s}, whole, r, granularity=granularity))(scores)
        np.testing.assert_array_equal(mask["w"], np.broadcast_to(np.array(kept, bool), scores.shape))


def test_unprunable_leaves_have_scalar_masks_and_stay() -> None:
    params = tree()
    mask = prune.magnitude(params, prune.ones(params), 0.9)
    for leaf in (mask["conv1"]["bias"], mask["output"]["bias"], mask["norm"]["scale"]):
        assert leaf.shape == ()
        assert bool(leaf)
    np.testing.assert_array_equal(prune.apply(params, mask)["norm"]["scale"], params["norm"]["scale"])
    left, total = prune.totals(mask)
    assert total == 472
    assert int(left) == 72 - 65 + 40  # 0.9 * 72 = 64.8
    assert float(prune.density(mask)) == pytest.approx(47 / 472)


def test_prunable_by_regex_and_by_predicate() -> None:
    params = tree()
    assert prune.ones(params, "scale|conv1/kernel")["norm"]["scale"].shape == (4,)
    assert prune.ones(params, "conv1/kernel")["output"]["kernel"].shape == ()
    assert prune.ones(params, lambda path, leaf: leaf.size == 10)["output"]["bias"].shape == (10,)
    with pytest.raises(ValueError, match="'kernle' matches none of the paths"):
        prune.ones(params, "kernle")


def test_rates_by_path_first_match_wins() -> None:
    params = tree()
    for rates in ((("output", 0.1), (".", 0.5)), {"output": 0.1, ".": 0.5}):
        mask = prune.magnitude(params, prune.ones(params), rates)
        assert int(mask["output"]["kernel"].sum()) == 360
        assert int(mask["conv1"]["kernel"].sum()) == 36
    only = prune.magnitude(params, prune.ones(params), {"conv": 0.5})
    assert bool(only["output"]["kernel"].all())


def test_under_jit_and_vmap_the_same() -> None:
    params, mask = tree(), prune.ones(tree())
    plain = prune.magnitude(params, mask, 0.35)
    jitted = jax.jit(lambda p, m: prune.magnitude(p, m, 0.35))(params, mask)
    jax.tree.map(np.testing.assert_array_equal, plain, jitted)
    both = jax.tree.map(lambda *x: jnp.stack(x), tree(0), tree(1))
    masks = jax.vmap(lambda p: prune.magnitude(p, mask, 0.35, scope="global"))(both)
    for i in range(2):
        alone = prune.magnitude(tree(i), mask, 0.35, scope="global")
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda m, i=i: m[i], masks), alone)


def test_random_and_shuffle() -> None:
    params = tree()
    mask = prune.magnitude(params, prune.ones(params), 0.6)
    key = jax.random.key(3)
    shuffled = prune.shuffle(key, mask)
    drawn = prune.random(key, mask, 0.25)
    for layer in ("conv1", "output"):
        ours, theirs, fewer = (m[layer]["kernel"] for m in (mask, shuffled, drawn))
        assert int(ours.sum()) == int(theirs.sum())
        assert not np.array_equal(ours, theirs)
        assert int(fewer.sum()) == int(ours.sum()) - prune.count(0.25, int(ours.sum()))
        assert not (fewer & ~ours).any()


def test_random_is_uniform() -> None:
    mask = {"w": jnp.ones((1, 20), bool)}
    keys = jax.random.split(jax.random.key(0), 4000)
    kept = jax.vmap(lambda k: prune.random(k, mask, 0.3)["w"])(keys)
    share = np.asarray(kept).mean((0, 1))
    assert np.abs(share - 0.7).max() < 5 * math.sqrt(0.21 / 4000)


def test_apply_gives_positive_zeros_even_for_nan() -> None:
    params = {"w": jnp.array([[jnp.nan, -1.0, 2.0]])}
    out = prune.apply(params, {"w": jnp.array([[False, False, True]])})["w"]
    np.testing.assert_array_equal(out, [[0.0, 0.0, 2.0]])
    assert not np.signbit(out[0, 1])


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adam(0.01),
        optax.adamw(0.01, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.sgd(0.1)),
        ADAFACTOR,
        optax.lion(0.01),
        optax.multi_transform(
            {"conv": optax.adamw(0.01), "rest": optax.sgd(0.1, momentum=0.9)},
            lambda params: {layer: "conv" if "conv" in layer else "rest" for layer in params},
        ),
    ],
    ids=["momentum", "nesterov", "adam", "adamw", "chain", "adafactor", "lion", "multi_transform"],
)
def test_pruned_weights_and_moments_stay_exactly_zero(
    optimiser: optax.GradientTransformation,
) -> None:
    params = tree()
    mask = prune.magnitude(params, prune.ones(params), 0.5)

    @jax.jit
    def step(params: dict, state: object, mask: dict, key: jax.Array) -> tuple:
        gradients = jax.tree.map(lambda p: jax.random.normal(key, p.shape) + p, params)
        tx = prune.masked(optimiser, mask)  # the mask is traced
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = prune.masked(optimiser, mask).init(params)
    for i in range(5):
        params, state = step(params, state, mask, jax.random.key(i))
        for layer in ("conv1", "output"):
            gone = ~mask[layer]["kernel"]
            assert (params[layer]["kernel"][gone] == 0).all()
            assert not np.signbit(params[layer]["kernel"][gone]).any()
            assert (params[layer]["kernel"][~gone] != 0).all()
            # Moments are 0 where they start at 0; adafactor's start at its epsilon.
            moments = [
                leaf[gone]
                for leaf in jax.tree.leaves(state)
                if leaf.shape == gone.shape and optimiser is not ADAFACTOR
            ]
            assert all((moment == 0).all() for moment in moments)


def test_masked_dense_is_the_bare_optimiser() -> None:
    params, gradients = tree(0), tree(1)
    bare = optax.adam(0.01)
    mine = prune.masked(bare, prune.ones(params))
    ours, _ = mine.update(gradients, mine.init(params), params)
    theirs, _ = bare.update(gradients, bare.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_whole_numbers_are_ranked_exactly() -> None:
    scores = jnp.array([[2**24 + 1, 2**24, -5, -(2**31)]], jnp.int32)
    mask = prune.by_score({"w": scores}, {"w": jnp.ones((1, 4), bool)}, 0.75)
    np.testing.assert_array_equal(mask["w"], [[True, False, False, False]])


@pytest.mark.parametrize("dtype", ["int4", "int8", "int16", "int32", "uint8", "uint32"])
def test_magnitudes_of_whole_numbers_are_exact(dtype: str) -> None:
    """A signed dtype's lowest number has the largest magnitude, and no opposite in the dtype."""
    info = jnp.iinfo(dtype)
    values = [int(info.min), int(info.max), int(info.max) - 1, int(info.max) // 2, 3, 1]
    params = {"w": jnp.array([values]).astype(dtype) if dtype == "int4" else jnp.array([values], dtype)}
    for removed in range(1, 6):
        mask = prune.remove_counted(params, prune.ones(params, "."), [removed])
        np.testing.assert_array_equal(mask["w"], reference(np.array([values]), np.ones((1, 6), bool),
                                                           removed / 6))  # fmt: skip
        mask = prune.magnitude(params, prune.ones(params, "."), round(removed / 6, 6))
        expected = reference(np.abs(np.array([values])), np.ones((1, 6), bool), round(removed / 6, 6))
        np.testing.assert_array_equal(mask["w"], expected)


def test_magnitudes_of_64_bits_and_of_whole_numbers_of_either_sign_together() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.array([[-(2**63), 2**63 - 1, 2**62 + 1, 2**62]])}
        for rate, kept in ((0.25, [1, 1, 1, 0]), (0.5, [1, 1, 0, 0]), (0.75, [1, 0, 0, 0])):
            np.testing.assert_array_equal(prune.magnitude(params, prune.ones(params, "."), rate)["w"], [kept])
    params = {"a": jnp.array([[2**32 - 1, 5]], jnp.uint32), "b": jnp.array([[-7, 3]], jnp.int32)}
    mask = prune.by_score(params, prune.ones(params, "."), 0.5, scope="global")
    assert (mask["a"].tolist(), mask["b"].tolist()) == ([[True, True]], [[False, False]])
    params = {"a": jnp.array([[65535, 65520]], jnp.uint16), "b": jnp.array([[65504.0, 1.0]], jnp.float16)}
    mask = prune.by_score(params, prune.ones(params, "."), 0.75, scope="global")
    assert (mask["a"].tolist(), mask["b"].tolist()) == ([[True, False]], [[False, False]])


def test_numbers_below_the_normal_range_are_ranked() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        least = float(jnp.finfo(dtype).smallest_subnormal)
        values = np.array([[3, -2, 1, 0]]) * least
        params = {"w": jnp.array(values.astype(np.float32)).astype(dtype)}
        for removed in range(1, 4):
            mask = prune.magnitude(params, prune.ones(params), removed / 4)
            np.testing.assert_array_equal(mask["w"], [[i < 4 - removed for i in range(4)]])


SCALES = {
    "float32": (1e-44, 1e-30, 1e-23, 1.0, 1e30),
    "bfloat16": (1e-38, 1e-23, 1.0, 1e30),
    "float16": (1e-7, 1e-3, 1.0, 1e4),
    "int8": (1, 25),
    "int32": (1, 4e8),
}


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("norm", [1, 2])
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_norms_of_units_in_any_dtype(dtype: str, norm: int, data: st.DataObject) -> None:
    """Compares with 64-digit numpy: no pruned unit has a larger norm than a unit that stays."""
    drawn = st.lists(st.floats(-5, 5, width=32), min_size=12, max_size=12)
    scales = st.lists(st.sampled_from(SCALES[dtype]), min_size=4, max_size=4)
    leaves = []
    for _ in range(2):
        values = np.array(data.draw(drawn)).reshape(3, 4) * np.array(data.draw(scales))
        leaves.append(jnp.asarray(values.astype(np.float32)).astype(dtype))
    params = dict(enumerate(leaves))
    kept = {i: jnp.array(data.draw(st.lists(st.booleans(), min_size=12, max_size=12))).reshape(3, 4)
            for i in params}  # fmt: skip
    exact = [np.abs(np.asarray(w).astype(np.longdouble)) * np.asarray(m)
             for w, m in zip(leaves, kept.values(), strict=True)]  # fmt: skip
    sums = np.concatenate([(w**norm).sum(0) for w in exact])
    alive = np.concatenate([np.asarray(m).any(0) for m in kept.values()])
    mask = prune.magnitude(params, kept, 0.5, scope="global", granularity=f"unit-l{norm}")
    stays = np.concatenate([np.asarray(m).any(0) for m in mask.values()])
    assert stays.sum() == alive.sum() - prune.count(0.5, int(alive.sum()))
    goes = alive & ~stays
    if goes.any() and stays.any():
        # Sums that are equal in float32 may be pruned in either order, exactly equal ones by index.
        assert sums[goes].max() <= sums[stays].min() * (1 + 1e-6)
        level = sums[goes].max()
        if dtype in ("int8", "float16") and level == sums[stays].min():
            assert (
                np.flatnonzero(goes & (sums == level)).max() < np.flatnonzero(stays & (sums == level)).min()
            )


def test_units_of_narrow_numbers_are_added_up_in_wide_ones() -> None:
    """Squares around 400 exceed float16, 512 terms exceed bfloat16's digits, 4 x 100 exceeds int8."""
    key = jax.random.key(0)
    for params in (
        400 + 10 * jax.random.normal(key, (4, 4), jnp.float16),
        jax.random.normal(key, (512, 512), jnp.bfloat16),
        jax.random.randint(key, (4, 6), 90, 127).astype(jnp.int8),
    ):
        for norm in (1, 2):
            mask = prune.magnitude(
                {"w": params}, prune.ones({"w": params}, "."), 0.5, granularity=f"unit-l{norm}"
            )
            sums = (np.abs(np.asarray(params, np.float64)) ** norm).sum(0)
            expected = reference(sums, np.ones(sums.shape, bool), 0.5)
            np.testing.assert_array_equal(np.asarray(mask["w"]), np.broadcast_to(expected, params.shape))


def test_global_scope_over_mixed_dtypes() -> None:
    with jax.enable_x64(True):
        params = {"a": jnp.full((4, 4), 100.0, jnp.float32), "b": jnp.full((4, 4), 0.001, jnp.float64)}
        mask = prune.magnitude(params, prune.ones(params), 0.5, scope="global")
        assert (int(mask["a"].sum()), int(mask["b"].sum())) == (16, 0)
    params = {"a": jnp.full((4, 4), 100, jnp.uint8), "b": jnp.full((4, 4), 0.001)}
    mask = prune.by_score(params, prune.ones(params, "."), 0.5, scope="global")
    assert (int(mask["a"].sum()), int(mask["b"].sum())) == (16, 0)
    params = {"a": jnp.full((4, 4), 0.125, jnp.float8_e4m3fn), "b": jnp.full((4, 4), 0.13)}
    mask = prune.magnitude(params, prune.ones(params), 0.5, scope="global")
    assert (int(mask["a"].sum()), int(mask["b"].sum())) == (0, 16)


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        ("float8_e4m3fn float8_e4m3fn", "float8_e4m3fn"),
        ("float8_e4m3fn float8_e5m2", "float32"),
        ("float8_e4m3fn bfloat16", "float32"),
        ("float8_e5m2 int32", "float32"),
        ("float4_e2m1fn float16", "float32"),
        ("int4 float32", "float32"),
        ("int4 int8", "int8"),
        ("int2 int4", "int8"),
        ("uint4 uint16", "uint16"),
        ("uint4 int4", "float32"),
        ("bfloat16 float16", "float32"),
        ("bfloat16 bfloat16", "bfloat16"),
    ],
)
def test_the_dtype_in_which_leaves_are_ranked_together(dtypes: str, common: str) -> None:
    """JAX itself promotes neither 8-bit floats nor integers below 8 bits."""
    assert _lowest._common([jnp.dtype(getattr(jnp, name)) for name in dtypes.split()]) == common


def test_masked_hands_on_further_arguments() -> None:
    params = tree()
    tx = prune.masked(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), prune.ones(params))
    tx.update(params, tx.init(params), params, value=jnp.float32(1.0))


def test_more_weights_than_can_be_counted_are_refused() -> None:
    shape = jax.ShapeDtypeStruct((20_000, 20_000), jnp.float32)
    mask = jax.ShapeDtypeStruct((20_000, 20_000), jnp.bool_)
    with pytest.raises(ValueError, match="400,000,000 weights are ranked together"):
        jax.eval_shape(lambda p, m: prune.magnitude({"w": p}, {"w": m}, 0.5), shape, mask)


def test_a_density_is_known_of_more_weights_than_an_int32_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    large = [jax.ShapeDtypeStruct((2**15, 2**15), jnp.bool_)] * 3
    assert jax.eval_shape(prune.density, large).dtype == jnp.float32
    for counted in (prune.totals, lambda m: prune.survivors(m, "group", groups=[0, 0, -1])):
        with pytest.raises(ValueError, match=r"mask: [23],\d{3},\d{3},\d{3} weights are counted together"):
            jax.eval_shape(counted, large)
    assert [size for _, size in prune.survivors([np.ones((2, 3), bool)] * 2, "global")] == [12]
    monkeypatch.setattr(_masks, "_MOST", 12)
    mask = [jnp.arange(6).reshape(2, 3) < left for left in (1, 2, 3)]
    assert float(prune.density(mask)) == np.float32(6 / 18)
    assert [int(left) for left, _ in prune.survivors(mask)] == [1, 2, 3]


def test_misuse_is_named() -> None:
    params, mask = tree(), prune.ones(tree())
    with pytest.raises(ValueError, match=r"rate: 1.5 is outside \[0, 1\]"):
        prune.magnitude(params, mask, 1.5)
    with pytest.raises(ValueError, match=r"rate: nan is outside \[0, 1\]"):
        prune.magnitude(params, mask, float("nan"))
    with pytest.raises(ValueError, match=r"rate: '\(' is not a regex"):
        prune.magnitude(params, mask, {"(": 0.1})
    for wrong, said in (
        (True, "rate: True is no real number"),
        (jnp.bool_(True), "rate: an array of bool is no real number"),
        (np.complex64(0.5), "rate: an array of complex64 is no real number"),
        (jax.random.key(0), "rate: an array of key<fry> is no real number"),
        (np.float32(np.inf), r"rate: .*inf.* is outside"),
        (Decimal("NaN"), r"rate: Decimal\('NaN'\) is outside"),
        (Fraction(3, 2), r"rate: Fraction\(3, 2\) is outside"),
        (Decimal("1e-999999999"), "rate: it is written in more than 1,000 digits"),
        ("0.2", "rate: '0.2' is neither a number"),
        ("", "rate: '' is neither a number"),
        ({}, "rate: the mapping is empty"),
        ([], "rate: the mapping is empty"),
        (np.ones(2), "rate: array.* is neither a number"),
        ([("conv", None)], "rate of 'conv': None is no real number"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            prune.magnitude(params, mask, wrong)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="rate: it is traced; it must be known"):
        jax.eval_shape(lambda rate: prune.magnitude(params, mask, rate), 0.5)
    for traced in (
        lambda d: prune.to_density(params, mask, d),
        lambda d: prune.erk(jax.random.key(0), params, d),
    ):
        with pytest.raises(ValueError, match="density: it is traced; it must be known") as caught:
            jax.eval_shape(traced, 0.5)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="one number"):
        prune.magnitude(params, mask, {}, scope="global")
    with pytest.raises(ValueError, match="rate: the mapping is empty"):
        prune.magnitude(params, mask, {}, scope="group")
    with pytest.raises(ValueError, match=r"paths conv1/bias, conv1/kernel, norm/scale, \.\.\.\.$"):
        prune.ones(params, "kernle")
    with pytest.raises(ValueError, match=r"prunable: '\(' is not a regex: missing \)"):
        prune.ones(params, "(")
    for going, named, said in (
        (
            [1],
            {},
            f"its length is 1; with scope 'layer' it must be {len(jax.tree.leaves(mask))}, one for every",
        ),
        (
            [1, 1],
            {"scope": "global"},
            "its length is 2; with scope 'global' it must be 1, one for all leaves",
        ),
        (
            [1],
            {"scope": "group", "groups": [0]},
            "scope 'group' it must be 1, one for every group, and groups",
        ),
        ([0, 1, 0, 0, 401], {}, "401 for leaf 'output/kernel' .* a whole number from 0 to 400, "),
        ([0, -1, 0, 0, 1], {}, "-1 for leaf 'conv1/kernel' .* a whole number from 0 to 72, "),
        ([9, 1, 0, 0, 1], {}, "9 for leaf 'conv1/bias' .* a whole number from 0 to 0, "),
        ([2.7], {"scope": "global"}, "2.7 for all leaves .* a whole number from 0 to 472, "),
        ([15], {"scope": "global", "granularity": "unit-l1"}, "15 for all leaves .* from 0 to 14, "),
        (
            [0, np.int32(73)],
            {"scope": "group", "groups": [-1, 1, -1, -1, 0]},
            "73 for group 1 .* a whole number from 0 to 72, ",
        ),
    ):
        with pytest.raises(ValueError, match=f"going: .*{said}") as caught:
            prune.remove_counted(params, mask, going, **named)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    for named, said in (
        ({"granularity": "2:4"}, "granularity: '2:4' has a density of its own"),
        ({"granularity": "filter"}, "granularity: 'filter' is not known"),
        ({"granularity": None}, "granularity: None is not known"),
        ({"scope": "x"}, "scope: 'x' is not known"),
    ):
        for counted in (
            lambda named: prune.remove_counted(params, mask, [0] * 5, **named),
            lambda named: prune.survivors(mask, **named),
        ):
            with pytest.raises(ValueError, match=said):
                counted(named)
    with pytest.raises(ValueError, match=r"density: -1 is outside .* weights kept"):
        prune.to_density(params, mask, -1)
    with pytest.raises(ValueError, match="scope: 'layre' is not known"):
        prune.magnitude(params, mask, 0.5, scope="layre")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number"):
        prune.magnitude(params, mask, {"a": 0.5}, scope="global")
    with pytest.raises(ValueError, match="its tree is not that of the parameters"):
        prune.apply(params, {"w": jnp.ones(())})
    bad = {**mask, "conv1": {**mask["conv1"], "kernel": jnp.ones((2, 2), bool)}}
    with pytest.raises(ValueError, match="leaf 'conv1/kernel' has shape"):
        prune.apply(params, bad)
    for scores, said in (
        (bad, r"scores: leaf 'conv1/kernel' has shape \(2, 2\); it must be \(3, 3, 2, 4\), as in the mask\."),
        (None, "scores: its tree is not that of the mask: leaf 'conv1/bias' is in the mask and not in the s"),
    ):
        for refused in (
            lambda s: prune.by_score(s, mask, 0.5),
            lambda s: prune.to_density(s, mask, 0.5),
            lambda s: prune.remove_counted(s, mask, [0] * 5),
        ):
            with pytest.raises(ValueError, match=said):
                refused(scores)
    for other, said in (
        (bad, r"b: leaf 'conv1/kernel' has shape \(2, 2\); it must be \(3, 3, 2, 4\) or \(\)\."),
        ({}, "b: its tree is not that of a: leaf 'conv1/bias' is in a and not in b; give the two"),
    ):
        with pytest.raises(ValueError, match=said):
            prune.overlap(mask, other)
    with pytest.raises(ValueError, match=r"mask: it is traced, and prune\.table looks at values"):
        jax.eval_shape(lambda m: prune.table(params, m), mask)
    with pytest.raises(ValueError, match="optimiser: 'adam' is no transformation of optax"):
        prune.masked("adam")  # type: ignore[arg-type]
    tx = prune.masked(optax.sgd(0.1), mask)
    with pytest.raises(ValueError, match="needs them"):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("false", [False, np.False_, np.zeros((), bool), jnp.zeros((), bool)])
def test_a_leaf_that_is_false_without_dimensions_is_refused(false: Any) -> None:
    """As in a mask of optax, which would set all biases to 0."""
    params = tree()
    mask = jax.tree.map(lambda p: p.ndim > 1 or false, params)
    said = r"mask: leaf 'conv1/bias' is False; it must be bool, or the 0-d True"
    for refused in (
        lambda: prune.apply(params, mask),
        lambda: prune.check(params, mask),
        lambda: prune.density(mask),
        lambda: prune.table(params, mask),
        lambda: prune.magnitude(params, mask, 0.5),
        lambda: prune.masked(optax.sgd(0.1), mask).init(params),
        lambda: prune.set_mask(prune.masked(optax.sgd(0.1)).init(params), mask),
        lambda: jax.jit(lambda p: prune.apply(p, mask))(params),
    ):
        with pytest.raises(ValueError, match=said):
            refused()
    whole = jax.tree.map(lambda _: True, params)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(prune.apply)(params, whole), params)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_mask_without_a_prunable_leaf_is_warned_of(scope: prune.Scope) -> None:
    params = {"a": {"kernel": jnp.ones(WEIGHT)}, "b": jnp.ones(3)}
    for mask in (jax.tree.map(lambda _: True, params), prune.ones(params, lambda path, leaf: False)):
        with pytest.warns(
            UserWarning, match="mask: no leaf is prunable, so nothing is pruned; .* a/kernel, b"
        ):
            prune.magnitude(params, mask, 0.5, scope=scope)
        prune.magnitude(params, mask, 0, scope=scope)
        assert re.search(r"all prunable +0 +0 +100\.0 %", str(prune.table(params, mask)))
        assert prune.density(mask) == 1


def test_rules_and_schedules_warn_of_a_model_without_a_prunable_leaf() -> None:
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    mask, key, x = prune.ones(params), jax.random.key(0), jnp.ones(3)

    def loss(p: dict, x: jax.Array) -> jax.Array:
        return (p["a"] * p["b"] * x).sum()

    for pruned in (
        lambda d: prune.to_density(params, mask, d),
        lambda d: prune.to_density(params, mask, d, scope="global"),
        lambda d: prune.random(key, mask, 1 - d),
        lambda d: prune.uniform(key, params, d),
        lambda d: prune.erk(key, params, d),
        lambda d: prune.smart_ratio(key, params, d),
        lambda d: prune.snip(loss, params, x, d),
        lambda d: prune.grasp(loss, params, x, d),
        lambda d: prune.synflow(loss, params, (3,), d, rounds=2),
        lambda d: prune.scheduled(optax.sgd(0.1), "magnitude", d, 0, 0, 1).init(params),
    ):
        with pytest.warns(UserWarning, match="mask: no leaf is prunable, so nothing is pruned") as caught:
            pruned(0.1)
        # Once, and at the line of the caller.
        assert [warning.filename for warning in caught] == [__file__]
        pruned(1)
    prune.masked(optax.sgd(0.1)).init(params)
    prune.to_density({}, {}, 0.1)


WEIGHT, STACK, WIDE = (8, 4), (3, 4), (1, 1, 8)


@pytest.mark.parametrize(
    ("path", "shape", "prunable"),
    [
        ("dense/kernel", WEIGHT, True),
        ("dense/kernel", (1, 8), True),
        ("conv/kernel", (1, 1, 1, 8), True),
        ("attention/query/kernel", (4, 2, 2), True),
        ("attention/query/bias", (2, 2), False),
        ("scan/dense/bias", STACK, False),
        ("scan/LayerNorm_0/scale", STACK, False),
        ("params/kernel/value", WEIGHT, True),
        ("norm/scale/value", STACK, False),
        ("patch_embed/kernel", (4, 4, 3, 8), True),
        ("embed/embedding", WEIGHT, False),
        ("layer_norm/offset", STACK, False),
        ("linear/w", (8, 1), True),
        ("linear/b", STACK, False),
        ("bias/b", STACK, False),
        ("embed/embeddings", WEIGHT, False),
        ("batch_norm/~/mean_ema/average", STACK, False),
        ("batch_stats/SpectralNorm_0/kernel/u", WEIGHT, False),
        ("cache/cached_key", (2, 5, 2, 2), False),
        ("ln_1/g", STACK, False),
        ("RMSNorm_0/weight", STACK, False),
        ("blocks/norm1/weight", STACK, False),
        ("token_embedding/weight", WEIGHT, False),
        ("wte", WEIGHT, False),
        ("pos_embed", (1, 5, 8), False),
        ("relative_position_bias_table", WEIGHT, False),
        ("W1", (8, 1), True),
        ("b1", STACK, False),
        ("lora_b", WEIGHT, True),
        ("attention/value", WEIGHT, True),
        ("0/0", WEIGHT, True),
        ("cls", WIDE, False),
        ("0/1", WIDE, False),
        ("fc_mean.weight", WEIGHT, True),
        ("patch_embed.proj.weight", (8, 3, 4, 4), True),
        ("norm_block.conv.weight", (8, 3, 3, 3), True),
        ("scale_net.fc.weight", WEIGHT, True),
        ("encoder.mean_head.0.weight", WEIGHT, True),
        ("encoder.mean_head.0.bias", STACK, False),
        ("attention.in_proj_weight", WEIGHT, True),
        ("layers.0.norm1.weight", STACK, False),
        ("emb.weight", WEIGHT, False),
        ("bn1.weight", STACK, False),
        ("layer.b", WEIGHT, False),
        ("state_dict/patch_embed.proj.weight", WEIGHT, True),
    ],
)
def test_what_is_prunable_goes_by_name_then_by_shape(path: str, shape: tuple, prunable: bool) -> None:
    *parents, last = path.split("/")
    tree: Any = {last: np.ones(shape, np.float32)}
    if last in ("b", "b1", "layer.b"):
        tree[last.replace("b", "w")] = np.ones(WEIGHT, np.float32)
    for parent in reversed(parents):
        tree = {parent: tree}
    leaves = dict(zip(prune.paths(tree), jax.tree.leaves(prune.ones(tree)), strict=True))
    assert leaves[path].shape == (shape if prunable else ())


def test_layers_called_a_and_b_are_no_biases() -> None:
    params = {"a": np.ones(WEIGHT), "b": np.ones(WEIGHT)}
    assert [m.shape for m in jax.tree.leaves(prune.ones(params))] == [WEIGHT, WEIGHT]


def test_only_floats_are_prunable_by_default_and_keys_never() -> None:
    params = {
        "half": {"w": jnp.ones(WEIGHT, jnp.bfloat16)},
        "complex": {"w": jnp.ones(WEIGHT, jnp.complex64)},
        "quantised": {"w": jnp.ones(WEIGHT, jnp.int8)},
        "flags": {"w": jnp.ones(WEIGHT, bool)},
        "keys": {"w": jax.random.split(jax.random.key(0), WEIGHT)},
        "number": {"w": 1.0},
    }
    mask = prune.ones(params)
    assert {name for name, m in mask.items() if m["w"].ndim} == {"half", "complex"}
    assert prune.ones(params, "quantised")["quantised"]["w"].shape == WEIGHT
    left = prune.apply(params, prune.magnitude(params, mask, 0.5))
    assert int((left["half"]["w"] == 0).sum()) == 16
    assert (left["keys"]["w"] == params["keys"]["w"]).all()
    prune.table(params, mask)
    for pattern, why in (("keys", "holds PRNG keys"), ("number", "has no dimensions")):
        with pytest.raises(ValueError, match=f"prunable: leaf '{pattern}/w' {why}"):
            prune.ones(params, pattern)
    with pytest.raises(ValueError, match="leaf 'f' is a function, no array"):
        prune.ones({"w": jnp.ones(WEIGHT), "f": tree})
    for optimiser in (prune.masked(optax.adam(0.1), mask), prune.masked(optax.sgd(0.1), mask)):
        with pytest.raises(ValueError, match="params: leaf 'flags/w' is bool, which no optimiser can update"):
            optimiser.init(params)
    only = {"keys": params["keys"]}
    with pytest.raises(ValueError, match="params: leaf 'keys/w' is key<fry>, which no optimiser"):
        prune.masked(optax.sgd(0.1), {"keys": mask["keys"]}).init(only)


def test_the_table_says_once_what_is_left_out() -> None:
    params = {"a": {"kernel": np.ones(WEIGHT), "bias": np.ones(4)}, "b": {"bias": np.ones(STACK)}}
    params |= {"e": {"embedding": np.ones((50, 40))}, "[/e]": {"kernel": np.ones(WEIGHT)}}
    text = " ".join(str(prune.table(params, prune.ones(params))).split())
    assert text.endswith(
        "not prunable, so left whole: bias (2 leaves, 16 in all), embedding (1 leaf, 2,000 in all)"
    )
    assert "[/e]/kernel" in text
    assert "left whole" not in str(prune.table(params, prune.ones(params, ".")))


def test_a_regex_that_matches_nothing_prunable_is_warned_of() -> None:
    params = {"a": {"kernel": {"value": np.ones(WEIGHT)}, "bias": {"value": np.ones(4)}}}
    mask = prune.ones(params)
    for rates in ({"kernel$": 0.5}, [("kernel$", 0.5)], iter([("kernel$", 0.5)]), {"bias": 0.5}):
        with pytest.warns(
            UserWarning, match=r"rate: '(kernel\$|bias)' matches no prunable leaf.*a/kernel/value"
        ):
            got = prune.magnitude(params, mask, rates)
        assert bool(got["a"]["kernel"]["value"].all())
    assert int(prune.magnitude(params, mask, {"kernel": 0.5})["a"]["kernel"]["value"].sum()) == 16


class Boxes(NamedTuple):
    second: Any
    first: Any


def test_masks_are_found_by_path_in_other_containers() -> None:
    params = Boxes(second=[jnp.arange(8.0).reshape(2, 4)], first={"w": -jnp.arange(8.0).reshape(4, 2)})
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    # Dictionaries are sorted, so the leaves come in another order.
    other = {"first": {"w": {"value": mask.first["w"]}}, "second": {"0": mask.second[0]}}
    jax.tree.map(np.testing.assert_array_equal, prune.apply(params, other), prune.apply(params, mask))
    fewer = prune.magnitude(params, mask, 0.5)
    jax.tree.map(np.testing.assert_array_equal, prune.magnitude(params, other, 0.5), fewer)
    jax.tree.map(
        np.testing.assert_array_equal, prune.to_density(jax.tree.map(jnp.abs, params), other, 0.25), fewer
    )
    assert float(prune.overlap(mask, other).iou) == 1
    rows = prune.table(params, other).rows
    assert [(row.path, row.left) for row in rows] == [("second/0", 4), ("first/w", 4)]


def test_what_does_not_match_is_named_by_its_first_path() -> None:
    params = {"a": {"w": jnp.ones((2, 2))}, "c": jnp.ones(3)}
    mask = prune.ones(params)
    with pytest.raises(ValueError, match="leaf 'b/w' is in the parameters and not in the mask"):
        prune.apply({**params, "b": {"w": jnp.ones(2)}}, mask)
    with pytest.raises(ValueError, match="leaf 'c' is in the mask and not in the parameters"):
        prune.masked(optax.sgd(0.1), mask).init({"a": params["a"]})
    with pytest.raises(ValueError, match="two leaves have one path"):
        prune.apply({"a/w": 1.0, "a": {"w": 1.0}}, Boxes(1, 1))


def left_out(
    outer: str, inner: optax.GradientTransformation, labels: Any
) -> optax.GradientTransformationExtraArgs:
    """`inner` for the leaves whose label is True alone, by either of optax's ways."""
    if outer == "masked":
        return optax.masked(inner, labels)
    return optax.multi_transform({True: inner, False: optax.sgd(1.0)}, labels)


@pytest.mark.parametrize("outer", ["masked", "multi_transform"])
def test_optax_may_leave_out_leaves_in_boxes(outer: str) -> None:
    """As `nnx.Optimizer` gives them: `a/kernel/value`, while the mask has `a/kernel`."""
    plain = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    params = jax.tree.map(lambda p: {"value": p}, plain)
    mask = prune.magnitude(plain, prune.ones(plain), 0.5)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: path[-2].key == "kernel", params)
    inner = prune.masked(optax.sgd(0.1), mask)
    tx = left_out(outer, inner, labels)
    updates, _ = tx.update(params, tx.init(params), params)
    stepped = optax.apply_updates(params, updates)["a"]["kernel"]["value"]
    np.testing.assert_allclose(stepped, np.where(mask["a"]["kernel"], 0.9, 0), rtol=1e-6)


@pytest.mark.parametrize("outer", ["masked", "multi_transform"])
def test_optax_may_leave_out_leaves_around_masked(outer: str) -> None:
    params, gradients = tree(0), tree(1)
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    inner = prune.masked(optax.adamw(0.1), mask)
    tx = left_out(outer, inner, labels)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    whole = prune.masked(optax.adamw(0.1), mask)
    expected, _ = jax.jit(whole.update)(gradients, whole.init(params), params)
    stepped = optax.apply_updates(params, updates)
    for layer in ("conv1", "output"):
        np.testing.assert_array_equal(updates[layer]["kernel"], expected[layer]["kernel"])
        assert (stepped[layer]["kernel"][~mask[layer]["kernel"]] == 0).all()
        sign = 1 if outer == "masked" else -1
        np.testing.assert_array_equal(updates[layer]["bias"], sign * gradients[layer]["bias"])


def test_prune_needs_the_base_packages_alone(tmp_path: Path) -> None:
    """What the extra `lab` adds it does without."""
    assert required().keys() == {"jax", "numpy", "optax", "safetensors"}
    lacking = {*required("lab").values()}
    assert {"flax", "orbax", "tensorflow_datasets", "matplotlib"} <= lacking
    code = f"""if True:
        import sys
        for name in {sorted(lacking)}:
            sys.modules[name] = None
        import jax.numpy as jnp, optax
        from lthjax import prune
        params = {{"w": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones(3)}}
        mask = prune.magnitude(params, prune.ones(params), 0.25)
        tx = prune.masked(optax.adam(0.1), mask)
        tx.update(params, tx.init(params), params)
        prune.save({str(tmp_path / "ticket.safetensors")!r}, params, mask)
        print(prune.table(params, prune.load({str(tmp_path / "ticket.safetensors")!r}).mask))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, rule, *rows, _, sums, said = done.stdout.splitlines()
    assert header.split() == ["layer", "shape", "weights", "left", "density"]
    assert [row.split() for row in rows] == [["b", "3", "3", "3", "-"], ["w", "4x3", "12", "9", "75.0", "%"]]
    assert sums.split() == ["all", "prunable", "12", "9", "75.0", "%"]
    assert {len(row) for row in (header, rule, *rows, sums)} == {len(rule)}
    assert said == "not prunable, so left whole: b (1 leaf, 3 in all)"


def test_importing_prune_loads_neither_flax_nor_orbax_nor_tfds() -> None:
    code = (
        "import sys; from lthjax import prune; "
        "heavy = {'flax', 'orbax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (optax.identity(), ""),
        (optax.scale(0.5), "leaf 'conv1/kernel' has 36 pruned weights that are not 0, of 236 in all"),
        (optax.add_decayed_weights(-0.5), "leaf 'conv1/kernel' has 36 pruned"),
        (optax.add_noise(0.1, 0.5, 0), "leaf 'conv1/kernel' has 36 pruned"),
    ],
    ids=["nothing", "scale", "decay", "noise"],
)
def test_the_check_finds_what_comes_after_masked(after: optax.GradientTransformation, named: str) -> None:
    """The parameters start whole, so that an update that is not exactly -p leaves pruned weights."""
    params = tree()
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    inside, outside = (
        prune.masked(optax.chain(optax.adam(0.1), after), mask),
        prune.masked(optax.adam(0.1), mask),
    )
    for tx, said in ((inside, ""), (optax.chain(outside, after), named)):
        updates, _ = tx.update(tree(1), tx.init(params), params)
        stepped = optax.apply_updates(params, updates)
        wrong = sum(int(((np.asarray(stepped[n]["kernel"]) != 0) & ~np.asarray(mask[n]["kernel"])).sum())
                    for n in ("conv1", "output"))  # fmt: skip
        assert bool(wrong) == bool(said)
        if said:
            with pytest.raises(ValueError, match=said) as caught:
                prune.check(stepped, mask)
            assert f"of {wrong} in" in str(caught.value)
        else:
            prune.check(stepped, mask)


def test_the_check_needs_values_and_counts_nan() -> None:
    mask = {"w": jnp.array([[True, False]])}
    prune.check({"w": jnp.array([[jnp.nan, -0.0]])}, mask)
    with pytest.raises(ValueError, match="leaf 'w' has 1 pruned weights that are not 0, of 1 in"):
        prune.check({"w": jnp.array([[1.0, jnp.nan]])}, mask)
    # 1e-40 is subnormal in float32, which compiled programs flush to 0.
    for small in (np.float32(1e-40), np.complex64(1e-40j), np.int8(1)):
        with pytest.raises(ValueError, match="leaf 'w' has 1 pruned weights that are not 0"):
            prune.check({"w": np.array([[1, small]], small.dtype)}, mask)
        prune.check({"w": np.array([[small, 0]], small.dtype)}, mask)
    with pytest.raises(ValueError, match=r"they are traced, and prune\.check looks at values"):
        jax.eval_shape(lambda p: prune.check(p, mask), {"w": jnp.ones((1, 2))})
    assert prune.count is prune.rounded_share


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_mask_that_is_not_bool_is_refused(dtype: str, scope: prune.Scope) -> None:
    """Its values would be counted: of 255s all would go."""
    params = {"w": np.ones((2, 3), np.float32)}
    mask = {"w": np.full((2, 3), 255).astype(dtype)}
    with pytest.raises(ValueError, match=rf"mask: leaf 'w' is of dtype {dtype}; it must be bool"):
        prune.magnitude(params, mask, 0.5, scope=scope)
    alike = {"w": np.ones((2, 3), bool)}
    for refused in (
        lambda: prune.remove_counted(params, mask, [1]),
        lambda: prune.density(mask),
        lambda: prune.table(params, mask),
        lambda: prune.check(params, mask),
        lambda: prune.overlap(mask, alike),
        lambda: prune.overlap(alike, mask),
    ):
        with pytest.raises(ValueError, match="it must be bool"):
            refused()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "complex64"])
def test_weights_in_the_place_of_a_mask_are_refused(dtype: str) -> None:
    """Their zeros would be pruned. Whole numbers, 0 where not kept, do for what only applies a mask."""
    params = {"b": jnp.zeros(()), "w": jnp.array([[1.0, 2.0]])}
    numbers = {"b": True, "w": np.array([[0, 3]], dtype)}
    free, fixed = prune.masked(optax.sgd(0.1)), prune.masked(optax.sgd(0.1), numbers)
    for used in (
        lambda: prune.apply(params, numbers),
        lambda: jax.jit(lambda m: prune.apply(params, {"b": True, "w": m}))(numbers["w"]),
        lambda: optax.apply_updates(params, fixed.update(params, fixed.init(params), params)[0]),
        lambda: prune.mask_of(prune.set_mask(free.init(params), numbers)),
    ):
        if dtype in ("uint8", "int32"):
            assert (used()["w"] != 0).tolist() == [[False, True]]
            continue
        with pytest.raises(ValueError, match=f"mask: leaf 'w' is of dtype {dtype}; it must be bool"):
            used()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_tree_without_leaves_has_nothing_to_prune(scope: prune.Scope) -> None:
    assert prune.magnitude({}, {}, 0.5, scope=scope) == {}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([1j, 2, 3, 4]), "scores: leaf 'w' is complex and has no order; give real scores"),
        (jnp.array([1j, 2, 3, 4]), "scores: leaf 'w' is complex and has no order; give real scores"),
        (
            np.array([1.0, 2, 3, 4], ">f4"),
            "scores: leaf 'w' is of dtype dtype('>f4'), which JAX does not take",
        ),
        (
            np.array([1, "a", None, 4], object),
            "scores: leaf 'w' is of dtype dtype('O'), which JAX does not take",
        ),
        (
            np.array([2**40 + 3, 1, 2**33, 7]),
            "scores: leaf 'w' is of dtype int64 with values that JAX would cut",
        ),
    ],
)
def test_scores_without_an_order_are_refused(scores: Any, message: str) -> None:
    mask, wrong = {"w": np.ones(4, bool)}, {"w": scores}
    for refused in (
        lambda: prune.by_score(wrong, mask, 0.5),
        lambda: prune.to_density(wrong, mask, 0.5),
        lambda: prune.remove_counted(wrong, mask, [2]),
        lambda: prune.remove_counted(wrong, mask, [2], scope="global"),
        lambda: prune.by_score({"w": scores[:, None]}, {"w": mask["w"][:, None]}, 0.5, granularity="2:4"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_complex_weights_go_by_size_and_wide_integers_that_fit_by_value() -> None:
    mask, kept = {"w": np.ones(4, bool)}, [True, False, False, True]
    assert prune.magnitude({"w": np.array([3j, 1, -2, 4])}, mask, 0.5)["w"].tolist() == kept
    assert prune.by_score({"w": np.array([3, -5, 2, 4])}, mask, 0.5)["w"].tolist() == kept
