"""Removing exactly the k lowest: against sorting, on the bits of any dtype, and what memory it takes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lthjax.prune import _lowest, _masks, _selection

SHAPES = ((3, 7), (2, 5, 3))


def drawn(draw: np.random.Generator, dtype: str, shape: tuple[int, ...], distinct: int) -> np.ndarray:
    """Numbers of any bits (NaN, infinities, -0, below the normal range), few of them distinct."""
    kind = jnp.dtype(dtype)
    pool = draw.integers(0, 256, (distinct, kind.itemsize), np.uint8).view(kind).ravel()
    if jnp.issubdtype(kind, jnp.floating):
        tiny = ml_dtypes.finfo(kind).smallest_subnormal
        special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, tiny, 2 * tiny], kind)
        pool[: distinct // 2] = draw.choice(special, distinct // 2)
    return draw.choice(pool, shape)


def by_sorting(values: list[np.ndarray], kept: list[np.ndarray], removed: int, sizes: bool) -> np.ndarray:
    """The definition: a stable sort of the survivors of all arrays, NaN last."""
    with np.errstate(invalid="ignore"):
        numbers = np.concatenate([v.astype(np.float64).ravel() for v in values])
    out = np.concatenate([m.ravel() for m in kept])
    alive = np.flatnonzero(out)
    out[alive[np.argsort((abs(numbers) if sizes else numbers)[alive], kind="stable")][:removed]] = False
    return out


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize(
    "dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16"), ("int8", "uint8")]
)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 6, 60]), st.sampled_from([0.3, 0.9, 1]), st.floats(0, 1)
)
@settings(deadline=None, max_examples=60)
def test_the_lowest_of_all_go_and_ties_by_place(
    sizes: bool, dtypes: tuple[str, str], seed: int, distinct: int, alive: float, share: float
) -> None:
    draw = np.random.default_rng(seed)
    values = [drawn(draw, dtype, shape, distinct) for dtype, shape in zip(dtypes, SHAPES, strict=True)]
    kept = [draw.random(shape) < alive for shape in SHAPES]
    removed = round(share * sum(int(m.sum()) for m in kept))
    got = np.concatenate([m.ravel() for m in _lowest.remove_lowest(values, kept, removed, sizes)])
    np.testing.assert_array_equal(got, by_sorting(values, kept, removed, sizes))
    assert sum(m.sum() for m in kept) - got.sum() == removed


def test_of_equal_numbers_in_many_arrays_the_first_go() -> None:
    """By hand: 5 ones go from 2 + 4 places in two arrays, one of which is pruned already."""
    kept = [jnp.array([[True, False]]), jnp.ones((2, 2), bool)]
    got = _lowest.remove_lowest([jnp.ones((1, 2)), jnp.ones((2, 2))], kept, 3)
    assert got[0].tolist() == [[False, False]]
    assert got[1].tolist() == [[False, False], [True, True]]


def test_under_vmap_every_row_has_its_own_threshold_and_ties() -> None:
    draw = np.random.default_rng(0)
    values, kept = draw.integers(-4, 4, (5, 6, 4)).astype(np.float32), draw.random((5, 6, 4)) < 0.8
    removed = (kept.sum((1, 2)) * np.linspace(0, 1, 5)).astype(np.int32)
    got = jax.vmap(lambda v, m, n: _lowest.remove_lowest([v], [m], n, True)[0])(values, kept, removed)
    for i in range(5):
        expected = by_sorting([values[i]], [kept[i]], int(removed[i]), True)
        np.testing.assert_array_equal(got[i].ravel(), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_pass_writes_numbers_to_memory(dtype: jnp.dtype) -> None:
    """Selection and the counts before it take no memory besides the masks."""
    shapes = [(500, 400), (300, 200)]
    values = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    kept = [jax.ShapeDtypeStruct(shape, bool) for shape in shapes]
    selection = jax.jit(lambda values, kept, n: _lowest.remove_lowest(values, kept, n, True))
    programs = {
        "selection": selection.lower(values, kept, 7),
        "check": _selection.count_bad.lower(values[0], kept[0]),
        "survivors": _masks._left_and_gone.lower(kept[0]),
    }
    for name, lowered in programs.items():
        taken = lowered.compile().memory_analysis().temp_size_in_bytes
        assert taken < 10_000, (name, taken)


def test_eager_traced_and_of_known_arrays_inside_a_program_the_same() -> None:
    draw = np.random.default_rng(0)
    values = [draw.integers(-4, 4, shape).astype(np.float32) for shape in SHAPES]
    kept = [draw.random(shape) < 0.8 for shape in SHAPES]
    for removed in (0, 11, sum(int(m.sum()) for m in kept)):
        eager = _lowest.remove_lowest(values, kept, removed)
        np.testing.assert_array_equal(
            np.concatenate([m.ravel() for m in eager]), by_sorting(values, kept, removed, False)
        )
        traced = jax.jit(lambda v, m, n: _lowest.remove_lowest(v, m, n))(values, kept, removed)
        known = jax.jit(lambda removed=removed: _lowest.remove_lowest(values, kept, removed))()
        jax.tree.map(np.testing.assert_array_equal, traced, eager)
        jax.tree.map(np.testing.assert_array_equal, known, eager)
