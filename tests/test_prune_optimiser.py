"""Masks in an optimiser's state: replaced, pruned on a schedule, to exact counts, in one program."""

import math
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lthjax import prune


def tree(seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (7, 11)), "bias": jnp.ones(11)},
        "b": {"kernel": jax.random.normal(keys[1], (11, 3)), "bias": jnp.zeros(3)},
    }


def gradients_at(params: Any) -> Any:
    """Of a loss whose gradients are not 0 where the weights are."""
    return jax.tree.map(lambda p: jnp.sin(3 * p) + 0.3, params)


def lowest_removed(scores: np.ndarray, mask: np.ndarray, kept: int) -> np.ndarray:
    """The definition, by sorting, over whole flat arrays."""
    alive = np.flatnonzero(mask)
    out = mask.copy()
    out[alive[np.argsort(scores[alive], kind="stable")][: max(len(alive) - kept, 0)]] = False
    return out


def kept_of(share: Fraction, n: int) -> int:
    return math.floor(share * n + Fraction(1, 2))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruning_on_a_schedule_is_pruning_by_hand(scope: prune.Scope) -> None:
    """One compiled step against numpy: SGD by hand, sorting, and counts by fractions."""
    begin, end, every, last = 2, 11, 3, Fraction(3, 20)
    tx = prune.scheduled(optax.sgd(0.125), "magnitude", 0.15, begin, end, every, scope=scope)
    traced: list[int] = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traced.append(1)
        updates, state = tx.update(gradients_at(params), state, params)
        return optax.apply_updates(params, updates), state

    params = tree()
    state = tx.init(params)
    masks = {name: np.ones(params[name]["kernel"].size, bool) for name in "ab"}
    prunings = 0
    for i in range(15):
        before = {name: np.asarray(params[name]["kernel"]) for name in "ab"}
        params, state = step(params, state)
        if begin <= i <= end and (i - begin) % every == 0:
            part = Fraction(i - begin, end - begin)
            share = last + (1 - last) * (1 - part) ** 3
            prunings += 1
            groups = (["a"], ["b"]) if scope == "layer" else (["a", "b"],)
            for group in groups:
                flat = np.concatenate([np.abs(before[name]).ravel() for name in group])
                left = np.concatenate([masks[name] for name in group])
                left = lowest_removed(flat, left, kept_of(share, len(flat)))
                assert left.sum() == kept_of(share, len(flat))
                sizes = np.cumsum([before[name].size for name in group])[:-1]
                masks |= dict(zip(group, np.split(left, sizes), strict=True))
        got = prune.mask_of(state)
        for name in "ab":
            shape = before[name].shape
            np.testing.assert_array_equal(got[name]["kernel"], masks[name].reshape(shape))
            stepped = before[name] - 0.125 * np.asarray(gradients_at(before[name]))
            np.testing.assert_allclose(
                params[name]["kernel"], np.where(masks[name].reshape(shape), stepped, 0), rtol=1e-5, atol=1e-6
            )
            assert not np.asarray(params[name]["kernel"])[~masks[name].reshape(shape)].any()
    assert prunings == 4
    assert len(traced) == 1
    assert step._cache_size() == 1
    assert [int(x.mask["a"]["bias"].ndim) for x in [state.masked]] == [0]


def test_a_schedule_inside_a_loop_gives_the_same_as_outside() -> None:
    tx = optax.chain(
        optax.clip_by_global_norm(5.0), prune.scheduled(optax.adamw(0.01), "magnitude", 0.3, 0, 6, 2)
    )

    def step(_: Any, carry: Any) -> Any:
        updates, state = tx.update(gradients_at(carry[0]), carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), state

    carry = looped = (tree(), tx.init(tree()))
    for i in range(8):
        carry = jax.jit(step)(i, carry)
    looped = jax.jit(lambda c: jax.lax.fori_loop(0, 8, step, c))(looped)
    jax.tree.map(np.testing.assert_array_equal, prune.mask_of(carry[1]), prune.mask_of(looped[1]))
    assert [int(prune.mask_of(looped[1])[name]["kernel"].sum()) for name in "ab"] == [23, 10]
    # Moments of pruned weights are 0, although the weights had some before they were pruned.
    adam = looped[1][1].masked.inner[0]
    for name in "ab":
        gone = ~np.asarray(prune.mask_of(looped[1])[name]["kernel"])
        for moment in (adam.mu, adam.nu):
            assert not np.asarray(moment[name]["kernel"])[gone].any()
            assert np.asarray(moment[name]["kernel"])[~gone].all()


def test_a_criterion_and_a_course_of_ones_own() -> None:
    course = {Fraction(0): 0.5, Fraction(1, 2): 0.9, Fraction(1): 0.25}
    tx = prune.scheduled(optax.sgd(0.0), lambda p, g: jax.tree.map(lambda x, y: -x * y, p, g), course.get,
                         1, 3, 1)  # type: ignore[arg-type]  # fmt: skip
    params, counts = tree(), []
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(prune.mask_of(state)["a"]["kernel"].sum()))
    # Of 77: 38.5 rounds up; a higher share brings nothing back; 19.25 rounds down.
    assert counts == [77, 39, 39, 19, 19]
    order = np.argsort(-np.asarray(tree()["a"]["kernel"]).ravel(), kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(prune.mask_of(state)["a"]["kernel"]), np.sort(order[-19:]))


def test_a_mask_in_the_state_is_a_mask_given_at_the_start() -> None:
    params = tree()
    mask = prune.magnitude(params, prune.ones(params), 0.4)
    free, fixed = prune.masked(optax.adam(0.1)), prune.masked(optax.adam(0.1), mask)
    ours, theirs = (params, prune.set_mask(free.init(params), mask)), (params, fixed.init(params))
    for _ in range(3):
        stepped = []
        for tx, (p, s) in ((free, ours), (fixed, theirs)):
            updates, s = jax.jit(tx.update)(gradients_at(p), s, p)
            stepped.append((optax.apply_updates(p, updates), s))
        ours, theirs = stepped
    # Two programs may round differently.
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
    jax.tree.map(close, (ours[0], ours[1].inner), theirs)
    np.testing.assert_array_equal(ours[0]["a"]["kernel"] != 0, mask["a"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, prune.mask_of((1, ours[1])), mask)


def test_another_mask_needs_no_other_program_and_clears_moments() -> None:
    params = tree()
    tx = optax.multi_transform({"k": prune.masked(optax.adam(0.1)), "r": optax.sgd(0.1)},
                               {n: {"kernel": "k", "bias": "r"} for n in "ab"})  # fmt: skip
    step = jax.jit(tx.update)
    _, state = step(gradients_at(params), tx.init(params), params)
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    # In other containers, with biases that the state's part has not, and one leaf whole.
    pruned = {"a": {"kernel": mask["a"]["kernel"]}, "b": {"kernel": True}}
    cleared = jax.jit(prune.set_mask)(state, pruned)
    assert jax.tree.structure(cleared) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(cleared), strict=True):
        if before.shape == (7, 11) and before.dtype == jnp.float32:
            np.testing.assert_array_equal(after, np.where(pruned["a"]["kernel"], before, 0))
        elif before.dtype != bool:
            np.testing.assert_array_equal(after, before)
    updates, _ = step(gradients_at(params), cleared, params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["a"]["kernel"] != 0, pruned["a"]["kernel"])
    assert after["b"]["kernel"].all()
    assert step._cache_size() == 1


@pytest.mark.parametrize("outer", ["masked", "multi_transform"])
@pytest.mark.parametrize("inner", ["masked", "scheduled"])
def test_the_mask_of_a_part_of_the_leaves_fits_all_parameters(outer: str, inner: str, tmp_path: Path) -> None:
    params = tree()
    mask = prune.to_density(jax.tree.map(jnp.abs, params), prune.ones(params), 0.5)
    tx = prune.masked(optax.adam(0.1))
    if inner == "scheduled":
        tx = prune.scheduled(optax.adam(0.1), "magnitude", 0.5, 0, 0, 1)
    kernels = {n: {"kernel": True, "bias": False} for n in "ab"}
    tx = (
        optax.masked(tx, kernels)
        if outer == "masked"
        else optax.multi_transform({True: tx, False: optax.sgd(0.1)}, kernels)
    )
    state = tx.init(params)
    state = state if inner == "scheduled" else prune.set_mask(state, mask)
    updates, state = jax.jit(tx.update)(gradients_at(params), state, params)
    stepped, part = optax.apply_updates(params, updates), prune.mask_of(state)
    prune.check(stepped, part)
    whole = prune.magnitude(stepped, part, 0)
    jax.tree.map(np.testing.assert_array_equal, whole, mask)
    jax.tree.map(np.testing.assert_array_equal, prune.apply(params, part), prune.apply(params, mask))
    assert prune.table(stepped, part).rows == prune.table(stepped, mask).rows
    assert float(prune.overlap(mask, part).iou) == 1
    prune.save(tmp_path / "ticket", stepped, part)
    jax.tree.map(np.testing.assert_array_equal, prune.load(tmp_path / "ticket", like=params).mask, mask)
    # Of masks alone: other trees are not filled up.
    with pytest.raises(ValueError, match=r"origin: .*leaf 'a/bias' is in the parameters and not in the"):
        prune.save(tmp_path / "ticket", stepped, part, origin=part)


def test_moments_are_found_where_a_layer_is_called_as_they_are() -> None:
    """`0/mu/mu/w` and `0/mu/w` both end in `mu/w`."""
    params = {"mu": {"w": jnp.ones((2, 2))}, "w": jnp.ones((2, 2))}
    tx = prune.masked(optax.adam(0.1))
    _, state = tx.update(params, tx.init(params), params)
    mask = {"mu": {"w": jnp.ones((2, 2), bool)}, "w": jnp.zeros((2, 2), bool)}
    for own in (mask, jax.tree.map(jnp.invert, mask)):
        adam = prune.set_mask(state, own).inner[0]
        for moment in (adam.mu, adam.nu):
            jax.tree.map(lambda x, m: np.testing.assert_array_equal(x != 0, m), moment, own)
    # optax.masked leaves out one of the two, so that the moments have other containers than the parameters.
    tx = prune.masked(optax.masked(optax.chain(optax.trace(0.9), optax.adam(0.1)), {"mu": False, "w": True}))
    _, state = tx.update(params, tx.init(params), params)
    trace, (adam, _) = prune.set_mask(state, jax.tree.map(jnp.invert, mask)).inner.inner_state
    assert all(moment["w"].all() for moment in (trace.trace, adam.mu, adam.nu))
    trace, (adam, _) = prune.set_mask(state, mask).inner.inner_state
    assert not any(moment["w"].any() for moment in (trace.trace, adam.mu, adam.nu))


def test_misuse_of_masks_in_a_state_is_one_sentence() -> None:
    params = tree()
    tx = prune.masked(optax.sgd(0.1))
    state = tx.init(params)
    for call, said in (
        (lambda: prune.mask_of(optax.sgd(0.1).init(params)), "state: it holds no mask; it is there in"),
        (lambda: prune.mask_of((state, state)), "state: it holds 2 masks"),
        (lambda: prune.set_mask((), prune.ones(params)), "state: it holds no mask"),
        (lambda: prune.set_mask(state, {"a": True}), "mask: .*leaf 'a/bias' is in the mask in the state and"),
        (lambda: prune.set_mask(state, prune.ones(params, ".")), r"mask: leaf 'a/bias' has shape \(11,\)"),
        (lambda: prune.masked(optax.sgd(0.1), prune.ones(params), prunable="a"), "prunable: it is for a"),
        (lambda: tx.update({"a": params["a"]}, state, params),
         "gradients: .*leaf 'b/bias' is in the parameters and not in the gradients"),
        (lambda: tx.update({**params, "b": {"kernel": params["b"]["kernel"], "bias": 1.0}}, state, params),
         r"gradients: leaf 'b/bias' has shape \(\); it must be \(3,\)\."),
        (lambda: tx.update(params, state), "params: prune.masked needs them"),
        (lambda: prune.scheduled(optax.sgd(0.1), "magnitude", 0.1, 0, 10, 3), "begin, end, every: 0, 10, 3"),
        (lambda: prune.scheduled(optax.sgd(0.1), "magnitude", 0.1, 0, 0.8 * 10, 2), "0, 8.0, 2 .* whole num"),
        (lambda: prune.scheduled(optax.sgd(0.1), "magnitude", 0.1, 0, 10, "2"), "0, 10, '2' must be whole"),
        (lambda: (lambda tx: tx.update(params, tx.init(params), params))(
            prune.scheduled(optax.sgd(0.1), lambda p, g: jax.tree.map(jnp.sum, p), 0.1, 0, 9, 3)),
         r"scores: leaf 'a/kernel' has shape \(\); it must be \(7, 11\), as in the mask"),
        (lambda: prune.scheduled(optax.sgd(0.1), "magnitude", 1.5, 0, 9, 3), r"density: 1.5 is outside"),
        (lambda: prune.scheduled(optax.sgd(0.1), "wanda", 0.5, 0, 9, 3), "criterion: 'wanda' is not known"),
        (lambda: prune.scheduled(optax.sgd(1), "magnitude", 0.5, 0, 9, 3, scope="group"), "scope: 'group'"),
        (lambda: prune.scheduled(optax.sgd(1), "magnitude", 0.5, 0, 9, 3, granularity="2:4"), "granularity"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
