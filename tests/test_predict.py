"""Predictability: measures by hand and by brute force, planted signals, and a whole run."""

import contextlib
import io
import itertools
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check_section, made_anew, spoil, unsealed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis import record
from analysis.predict import ANALYSIS, table
from analysis.predict.table import TWIN, Loaded, Trial
from analysis.predict.work import Options, _Predicting, ask
from analysis.rows import TICKET
from analysis.run import open_run
from analysis.work import Work, kept
from lthjax import config, data, imp, models, prune, study
from lthjax.errors import UserError
from lthjax.folder.places import folder, state_folder
from lthjax.folder.reader import Reader
from lthjax.imp import Cell
from lthjax.measures import layers, predict, scores
from lthjax.measures.layers import Layers
from lthjax.models import Variables
from lthjax.record import layers as layers_of
from lthjax.training import train


def test_measures_by_hand_with_ties() -> None:
    """Pairs count 1, 1, 1/2, 1 of 4; precision is 1 at recall 1/2, 2/3 at 1; one of the two 2s is chosen."""
    got = predict.measure(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert got == pytest.approx((1 / 2, 3.5 / 4, 5 / 6, 3 / 4, 3 / 2, 3 / 5, 1 / 3))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=7))
def test_measures_by_brute_force(weights: list[tuple[int, bool]]) -> None:
    score, kept = np.array([s for s, _ in weights], float), np.array([k for _, k in weights])
    got = predict.measure(score, kept)
    if kept.all() or not kept.any():
        assert got is None
        return
    assert got is not None
    k = int(kept.sum())
    pairs = [(a > b) + (a == b) / 2 for a in score[kept] for b in score[~kept]]
    assert got.auroc == pytest.approx(np.mean(pairs))
    steps = [score >= s for s in sorted(set(score), reverse=True)]
    recall = [0.0, *(kept[of].sum() / k for of in steps)]
    area = sum(kept[of].mean() * (r - was) for of, r, was in zip(steps, recall[1:], recall, strict=False))
    assert got.average_precision == pytest.approx(area)
    # All sets of k weights that omit no weight with a higher score are equally likely.
    chosen = [c for c in map(list, itertools.combinations(range(len(score)), k))
              if score[c].min() >= max(np.delete(score, c), default=-1)]  # fmt: skip
    assert got.precision == pytest.approx(np.mean([kept[c].mean() for c in chosen]))


def test_nothing_is_told_of_a_layer_that_is_whole_or_gone_or_not_finite() -> None:
    score = np.arange(4.0)
    assert predict.measure(score, np.ones(4, bool)) is None
    assert predict.measure(score, np.zeros(4, bool)) is None
    assert predict.measure(np.array([1.0, np.nan, 2.0, 3.0]), np.array([True, False, True, False])) is None
    assert predict.pooled_auroc({"a": score}, {"a": np.ones(4, bool)}) is None


def test_overlap_is_that_of_the_predicted_mask() -> None:
    generator = np.random.default_rng(0)
    score, kept = generator.permutation(200.0 + np.arange(200)), generator.random(200) < 0.3
    mask = predict.keep_highest({"w": score}, {"w": int(kept.sum())})
    np.testing.assert_array_equal(np.flatnonzero(mask["w"]), np.sort(np.argsort(score)[-kept.sum() :]))
    iou, chance = prune.overlap({"w": jnp.asarray(mask["w"])}, {"w": jnp.asarray(kept)})
    got = predict.measure(score, kept)
    assert got is not None
    assert (got.iou, got.iou_chance) == pytest.approx((float(iou), float(chance)), rel=1e-6)


def test_a_mask_made_of_initial_magnitudes_is_found_and_its_shuffle_is_not() -> None:
    model = models.build("lenet300", (8, 8, 1), 10)
    params = model.init(jax.random.key(0)).params
    mask = prune.magnitude(params, prune.ones(params), {"output": 0.3, "fc": 0.8})
    score = layers.flat(layers.by_layer(jax.tree.map(jnp.abs, params), mask))
    kept = layers.flat(layers.by_layer(mask, mask))
    null = predict.shuffled(np.random.default_rng(0), kept)
    assert set(kept) == {"fc1/kernel", "fc2/kernel", "output/kernel"}
    for path in kept:
        found, chance = predict.measure(score[path], kept[path]), predict.measure(score[path], null[path])
        assert found is not None
        assert chance is not None
        assert (found.auroc, found.average_precision, found.precision, found.iou) == (1, 1, 1, 1)
        assert null[path].sum() == kept[path].sum()
        assert abs(chance.auroc - 0.5) < 4 * predict.chance_deviation(kept[path])
    jax.tree.map(np.testing.assert_array_equal, layers.as_mask(kept, mask), mask)


@pytest.mark.parametrize("granularity", ["unit-l1", "2:4"])
def test_the_null_keeps_the_structure_of_a_mask(granularity: str) -> None:
    """Whole units stay whole, and every group of an N:M pattern has as many weights; the rest is shuffled."""
    params = {"fc": jax.random.normal(jax.random.key(0), (64, 32))}
    mask = prune.magnitude(params, prune.ones(params), 0.5, granularity=granularity)
    kept = layers.by_layer(mask, mask)
    null = predict.shuffled(np.random.default_rng(0), kept, granularity)["fc"]
    assert (null != kept["fc"]).any()
    if granularity == "2:4":
        assert (null.reshape(16, 4, 32).sum(1) == 2).all()
    else:
        assert sorted(null.sum(0)) == [0] * 16 + [64] * 16
    said = table.notes({}, set(), [], [], granularity)
    assert any(f"prune.granularity is {granularity}" in note for note in said)
    assert not any("granularity" in note for note in table.notes({}, set(), [], [], "weight"))


def test_pooled_auroc_rewards_knowing_the_layers_and_nothing_else() -> None:
    kept = {"a": np.arange(100) % 10 == 0, "b": np.arange(100) % 10 != 0}
    score = {"a": np.zeros(100), "b": np.ones(100)}
    assert [predict.measure(score[p], kept[p]).auroc for p in "ab"] == [0.5, 0.5]  # type: ignore[union-attr]
    assert predict.pooled_auroc(score, kept) == pytest.approx(0.9)


def test_deviation_of_chance_is_that_of_shuffles() -> None:
    kept, score = np.arange(60) < 12, np.arange(60.0)
    generator = np.random.default_rng(0)
    drawn = [predict.measure(score, generator.permutation(kept)).auroc for _ in range(600)]  # type: ignore[union-attr]
    assert np.std(drawn) == pytest.approx(predict.chance_deviation(kept), rel=0.12)


def test_ranks_and_features() -> None:
    np.testing.assert_allclose(predict.ranks(np.array([5.0, 1.0, 5.0, 9.0])), [0.5, 0.125, 0.5, 0.875])
    found = {
        "z": {"a": np.array([1.0, 2.0]), "b": np.array([np.inf, 2.0])},
        "first": {"a": np.array([4.0, 3.0])},
    }
    got = predict.features(found)
    np.testing.assert_allclose(got["a"], [[0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_allclose(got["b"], [[0.5, 0.5], [0.5, 0.5]])


def planted(seed: int) -> tuple[Layers, Layers, np.ndarray]:
    """Features, a mask and its source: in layer "a" the first two of three features, the second negated."""
    generator = np.random.default_rng(seed)
    seen = {name: generator.random((n, 3)).astype(np.float32) for name, n in (("a", 6000), ("whole", 50))}
    truth = 4 * seen["a"][:, 0] - 6 * seen["a"][:, 1]
    kept = generator.random(6000) < 1 / (1 + np.exp(1 - truth))
    return seen, {"a": kept, "whole": np.ones(50, bool)}, truth


def test_the_logistic_predictor_recovers_a_planted_signal_on_a_held_out_seed() -> None:
    drawn = {seed: planted(seed) for seed in range(3)}
    seen, kept = ({seed: of[i] for seed, of in drawn.items()} for i in (0, 1))
    fitted = predict.fit([seen[0], seen[1]], [kept[0], kept[1]])
    np.testing.assert_allclose(fitted.weights["a"], [4, -6, 0], atol=0.4)
    assert fitted.bias["a"] == pytest.approx(-1, abs=0.3)
    assert not fitted.weights["whole"].any()
    predicted = predict.held_out(seen, kept)
    for seed, score in predicted.items():
        best = predict.measure(drawn[seed][2], kept[seed]["a"])
        got = predict.measure(score["a"], kept[seed]["a"])
        assert got is not None
        assert best is not None
        assert best.auroc - 0.005 < got.auroc
        assert got.auroc > 0.85
    # The held-out seed's own mask is not used.
    other = kept | {0: {path: ~m for path, m in kept[0].items()}}
    np.testing.assert_array_equal(predict.held_out(seen, other)[0]["a"], predicted[0]["a"])
    assert not np.array_equal(predict.held_out(seen, other)[1]["a"], predicted[1]["a"])
    null = {s: predict.shuffled(np.random.default_rng(s), m) for s, m in kept.items()}
    for seed, score in predict.held_out(seen, null).items():
        got = predict.measure(score["a"], null[seed]["a"])
        assert got is not None
        assert abs(got.auroc - 0.5) < 4 * predict.chance_deviation(null[seed]["a"])


def test_scores_are_their_formulas() -> None:
    """Uses a tanh network, all images at once, and finite differences of the gradient's norm."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"in": (4, 5), "out": (5, 3)}
    initial = {k: jax.random.normal(key, shapes[k]) for k, key in zip(shapes, keys, strict=False)}
    params = jax.tree.map(lambda w: w + 0.1 * jnp.cos(7 * w), initial)
    images, labels = jax.random.normal(keys[2], (3, 2, 2, 2, 1)), jnp.array([[0, 1], [2, 0], [1, 1]])

    def logits(params: dict, x: jax.Array) -> jax.Array:
        return jnp.tanh(x.reshape(len(x), -1) @ params["in"]) @ params["out"]

    got = jax.jit(lambda *of: scores.compute(logits, *of))(initial, params, images, labels)
    assert set(got) == set(scores.SCORES)

    @jax.jit
    @jax.grad
    def gradient_of(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    x, y = images.reshape(6, 2, 2, 1), labels.ravel()
    gradient = gradient_of(params, x, y)
    each = [gradient_of(params, x[i : i + 1], y[i : i + 1]) for i in range(6)]

    @jax.jit
    def norm(params: dict) -> jax.Array:
        """The gradient's norm at a temperature of 200, in units of 1 / 200."""

        def cold(params: dict) -> jax.Array:
            warm = logits(params, x) / 200
            return 200 * optax.softmax_cross_entropy_with_integer_labels(warm, y).mean()

        return sum(jnp.vdot(g, g) for g in jax.tree.leaves(jax.grad(cold)(params)))  # type: ignore[return-value]

    for k in shapes:
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(got["init_magnitude"][k], np.abs(initial[k]))
        np.testing.assert_allclose(got["magnitude"][k], np.abs(params[k]))
        np.testing.assert_allclose(got["movement"][k], np.abs(params[k] - initial[k]))
        np.testing.assert_allclose(got["snip"][k], np.abs(gradient[k] * params[k]), **close)
        np.testing.assert_allclose(got["fisher"][k], np.mean([np.square(e[k]) for e in each], 0), **close)
        # Removing a weight with a high score reduces gradient flow.
        for i in np.ndindex(shapes[k]):
            scaled = [np.array(params[k]) for _ in range(2)]
            for near, by in zip(scaled, (1.02, 0.98), strict=True):
                near[i] *= by
            high, low = (float(norm({**params, k: near})) for near in scaled)
            assert 200**2 * got["grasp"][k][i] == pytest.approx((high - low) / 0.08, rel=0.02, abs=2e-3)
    assert scores.names_at(0) == ["init_magnitude", "snip", "grasp", "synflow", "fisher"]
    assert scores.names_at(1) == list(scores.SCORES)


def test_grasp_of_a_network_with_convolutions() -> None:
    model = models.build("lenet5", (28, 28, 1), 10)
    params = model.init(jax.random.key(0)).params
    images, labels = jax.random.normal(jax.random.key(1), (1, 2, 28, 28, 1)), jnp.array([[1, 2]])

    def logits(params: dict, x: jax.Array) -> jax.Array:
        return model.apply(params, {}, x, False)[0]

    (got,) = jax.jit(lambda *of: scores.compute(logits, *of, ["grasp"]))(
        params, params, images, labels
    ).values()

    @jax.jit
    def norm(scale: float) -> jax.Array:
        def loss(params: dict) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(params, images[0]) / 200, labels[0]
            ).mean()

        conv1 = {**params["conv1"], "kernel": params["conv1"]["kernel"] * scale}
        gradient = jax.grad(loss)({**params, "conv1": conv1})
        return sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient) if g.ndim > 1)  # type: ignore[return-value]

    # Scales all weights of a layer: half the growth of the squared gradient.
    slope = float(norm(1.02) - norm(0.98)) / 0.08
    assert float(got["conv1"]["kernel"].sum()) == pytest.approx(slope, rel=0.05)


def normalised(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Two layers with batch normalisation between them, and its running mean and variance."""
    x = images.reshape(len(images), -1) @ params["in"]
    seen = {"mean": x.mean(0, keepdims=True), "var": x.var(0, keepdims=True)}
    use = seen if train else stats
    logits = jnp.tanh((x - use["mean"]) / jnp.sqrt(use["var"] + 1e-5)) @ params["out"]
    return logits, jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, seen) if train else stats


def test_scores_of_a_network_with_batch_normalisation_are_the_criteria_s() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"in": jax.random.normal(keys[0], (16, 5)), "out": jax.random.normal(keys[1], (5, 3))}
    now = Variables(params, {"mean": jnp.full((1, 5), 0.1), "var": jnp.full((1, 5), 2.0)})
    images, labels = jax.random.normal(keys[2], (12, 4, 4, 1)), jnp.arange(12) % 3
    model = models.Model("own", (4, 4, 1), 3, lambda key: now, normalised)
    names, scorer = ("snip", "grasp", "synflow", "fisher"), scores.scorer(model)
    got, other = (scorer(params, now, x[None], labels[None], names=names) for x in (images, 3 * images + 1))
    # SynFlow sees no image; Fisher is of the statistics of those that it sees.
    for k in params:
        np.testing.assert_array_equal(got["synflow"][k], other["synflow"][k])
    x = images.reshape(12, 16) @ params["in"]
    fitted = {"mean": x.mean(0, keepdims=True), "var": x.var(0, keepdims=True)}
    ours, theirs = (
        got.pop("fisher"),
        scorer(params, now._replace(stats=fitted), images[None], labels[None], names=names),
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), ours, theirs["fisher"])
    mask = prune.ones(params)
    for name, ours in got.items():
        given = (jax.random.key(2), now, imp.Leader(mask, params), (images, labels), jnp.zeros(2, jnp.int32))
        theirs, _ = imp.next_mask(imp.How(name, "layer"), model, *given)
        for k in params:
            np.testing.assert_allclose(ours[k], theirs[k], rtol=1e-3, atol=1e-5 * np.abs(theirs[k]).max())


@pytest.mark.parametrize("normalised", [False, True])
def test_predicted_masks_are_trained_anew_only_where_their_scores_changed(normalised: bool) -> None:
    """Without batch normalisation they are made from what the first versions wrote down."""
    asked = SimpleNamespace(seeds={2: [0, 1, 2]})
    work = SimpleNamespace(_asked=asked, _rewind=0, _images=60, _normalised=normalised)
    found = _Predicting._basis(work, Cell(1, "rewind-0", 2, "predicted"))  # type: ignore[arg-type]
    seen = ["init_magnitude", "snip", "grasp", "synflow", "fisher", "pixel_variance"]
    before = {"predictor": predict.LOGISTIC, "fitted_to": [0, 2], "step": 0, "scores": seen, "grasp": 2}
    marks = {"loss": "training", "synflow": "without data"} if normalised else {}
    assert found == {**before, "images": 60, **marks}
    notes = table.notes({}, set(), [], [], normalised=normalised)
    assert any("SynFlow has those of the step" in note for note in notes) is normalised


def test_pixel_variance() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 3, 2), np.uint8)
    std = np.array([0.5, 0.2])
    mask = {"fc1": np.ones((24, 5), bool), "bias": np.array(True), "fc2": np.ones((5, 2), bool)}
    (path, got), *others = scores.pixel_variance(images, std, mask).items()
    assert (path, others) == ("fc1", [])
    expected = (images / 255 / std).reshape(30, -1).var(0)
    np.testing.assert_allclose(got.reshape(24, 5), np.tile(expected[:, None], (1, 5)))
    assert scores.pixel_variance(images, std, mask | {"conv": np.ones((3, 3, 2, 4), bool)}) == {}
    # Hidden layers as wide as the image: the first one by name, or that which is used first.
    wide = {name: np.ones((24, 24), bool) for name in ("fc1", "fc10", "fc2")}
    assert [*scores.pixel_variance(images, std, wide)] == ["fc1"]
    assert [*scores.pixel_variance(images, std, wide, ("fc2", "bias", "fc1", "fc10"))] == ["fc2"]


def test_leaves_by_path() -> None:
    """Own shapes, the tree's order, no unprunable leaves; by number; shuffled."""
    generator = np.random.default_rng(0)
    mask = {
        f"conv{n}": {"kernel": generator.random((n, 3)) < 0.5, "bias": np.array(True)} for n in (1, 2, 10)
    }
    kept = layers.by_layer(mask, mask)
    assert {path: leaf.shape for path, leaf in kept.items()} == {
        "conv1/kernel": (1, 3), "conv10/kernel": (10, 3), "conv2/kernel": (2, 3)
    }  # fmt: skip
    assert [*layers.by_number(kept)] == ["conv1/kernel", "conv2/kernel", "conv10/kernel"]
    for of in (kept, layers.flat(kept), layers.by_number(kept)):
        jax.tree.map(np.testing.assert_array_equal, layers.as_mask(of, mask), mask)
    arrays = [np.arange(12).reshape(3, 4), np.arange(5)]
    one, other = layers.shuffled(np.random.default_rng(1), arrays, [-x for x in arrays])
    (alone,) = layers.shuffled(np.random.default_rng(1), arrays)
    for x, y, z, whole in zip(one, other, alone, arrays, strict=True):
        np.testing.assert_array_equal(x, -y)
        np.testing.assert_array_equal(x, z)
        np.testing.assert_array_equal(np.sort(x, None), whole.ravel())
        assert x.shape == whole.shape
    # Values and indices are drawn alike.
    by_value = np.random.default_rng(1).permutation(arrays[0].ravel())
    np.testing.assert_array_equal(one[0].ravel(), by_value)


def test_scores_are_judged_against_every_kind_of_mask() -> None:
    kept = {seed: {"a": planted(seed)[1]["a"]} for seed in (0, 1)}
    found = {seed: {"true": {"a": planted(seed)[2]}, "nowhere": {}} for seed in (0, 1)}
    null = {seed: predict.shuffled(np.random.default_rng(seed), mask) for seed, mask in kept.items()}
    masks = {"ticket": {1: kept, 2: {0: kept[0]}}, "null": {1: null, 2: {0: null[0]}}}
    rows, odds = predict.judge(found.items(), masks)
    assert {row.score for row in rows} == {"true", "logistic"}
    assert {row[:4] for row in rows if row.score == "logistic"} == {
        (seed, 1, "logistic", kind) for seed in (0, 1) for kind in masks
    }
    assert set(odds) == {(kind, 1, seed) for seed in (0, 1) for kind in masks}
    own = {row.layer: row.values for row in rows if row[:4] == (0, 2, "true", "ticket")}
    measured = predict.measure(planted(0)[2], kept[0]["a"])
    assert own["a"] == own["mean"] == measured
    assert own["pooled"] == (None, predict.pooled_auroc(found[0]["true"], kept[0]), *[None] * 5)


def test_a_twin_that_is_not_there_is_not_named() -> None:
    """Without training there are the run's own tickets alone."""
    ticket = Trial(0, "rewind-0", 1, 1, TICKET, 0, 0.5, 1.0, 0.3, 0.9, 100, "done")
    for trials, told in (([ticket], False), ([ticket, ticket._replace(mask=TWIN)], True)):
        said = table.notes({1: [0, 1]}, set(), [], trials)
        assert any("shuffled twin" in note for note in said) == told


def test_what_is_added_to_the_initial_magnitude() -> None:
    """|theta_0| is half of what decides; the nested predictor ranks as it does, the whole one better."""
    generator = np.random.default_rng(0)
    found, kept = {}, {}
    for seed in (0, 1, 2):
        magnitude, other, noise = (generator.normal(size=4000) for _ in range(3))
        total = abs(magnitude) + abs(other) + 0.5 * noise
        kept[seed] = {"a": total > np.quantile(total, 0.8)}
        found[seed] = {"init_magnitude": {"a": abs(magnitude)}, "other": {"a": abs(other)}}
    rows, odds = predict.judge(found.items(), {"ticket": {1: kept}})
    auroc = {(row.score, row.seed): row.values[1] for row in rows if row.layer == "mean"}
    for seed in (0, 1, 2):
        assert auroc["logistic_init_magnitude", seed] == pytest.approx(auroc["init_magnitude", seed])
        assert (auroc["logistic", seed] or 0) > (auroc["init_magnitude", seed] or 1) + 0.1
    # The masks that are trained are those of the whole predictor.
    whole = predict.held_out({seed: predict.features(of) for seed, of in found.items()}, kept)
    for (_, _, seed), score in odds.items():
        np.testing.assert_array_equal(score["a"], whole[seed]["a"])
    # Where the other score is noise, nothing is added.
    noise = {seed: {**of, "other": {"a": generator.normal(size=4000)}} for seed, of in found.items()}
    rows, _ = predict.judge(noise.items(), {"ticket": {1: kept}})
    auroc = {(row.score, row.seed): row.values[1] for row in rows if row.layer == "mean"}
    gains = [(auroc["logistic", s] or 0) - (auroc["logistic_init_magnitude", s] or 0) for s in (0, 1, 2)]
    assert max(map(abs, gains)) < 0.01


class Made(NamedTuple):
    """A finished run of two seeds and two levels, its data, and its study."""

    run: Path
    data: Path
    prepared: study.Prepared


def prepare(folder: Path, **changes: object) -> study.Prepared:
    asked = {
        "name": "tiny",
        "seeds": (0, 1),
        "levels": 2,
        "model": "lenet300",
        "data": config.Data(name="small", validation=40),
        "train": config.Train(steps=12, batch=20, eval_every=5),
    }
    return study.prepare(config.Study(**{**asked, **changes}), folder)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run trained on 200 digits of 8 by 8 pixels."""
    folder = tmp_path_factory.mktemp("finished")
    whole = data.load("mnist_10k")
    images = {
        of: getattr(whole, f"{of}_images")[:n, 2:26:3, 2:26:3] for of, n in (("train", 200), ("test", 60))
    }
    labels = {of: getattr(whole, f"{of}_labels")[:n] for of, n in (("train", 200), ("test", 60))}
    arrays = {f"{of}_images": images[of] for of in images} | {f"{of}_labels": labels[of] for of in labels}
    np.savez(folder / "small.npz", **arrays, classes=np.int64(10))
    prepared = prepare(folder, arms=("ticket", "random"))
    return Made(study.run(prepared, folder / "runs"), folder, prepared)


def options(made: Made) -> list[str]:
    return [str(made.run), "--levels", "1", "2", "--steps", "3", "12", "--images", "45",
            "--data-dir", str(made.data)]  # fmt: skip


@pytest.fixture(scope="module")
def looked_at(finished: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, str, str]:
    """The run after `analysis.predict`, and the command's output."""
    made = finished._replace(run=tmp_path_factory.mktemp("looked_at") / finished.run.name)
    shutil.copytree(finished.run, made.run)
    before = untouched(made.run)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        record.command(ANALYSIS)(options(made))
    assert untouched(made.run) == before, "the run's own cells are only read"
    return made, out.getvalue(), err.getvalue()


@pytest.fixture
def copied(looked_at: tuple[Made, str, str], tmp_path: Path) -> Made:
    """A copy of `looked_at` that a test may change."""
    made, _, _ = looked_at
    shutil.copytree(made.run, tmp_path / made.run.name)
    shutil.copy(made.data / "small.npz", tmp_path)
    return made._replace(run=tmp_path / made.run.name, data=tmp_path)


def untouched(run: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in run.glob("seed=*/**/*") if p.is_file()}


def rewritten(run: Path, seed: int, made_from: dict[str, Any]) -> None:
    """Has the replayed state of a seed say that it was made from something else."""
    with kept(open_run(run), "predict") as store:
        state = store.state(seed, 3)
        shutil.rmtree(state_folder(store.path, seed, 3))
        store.write_state(seed, 3, state, made_from)


def load(run: Path) -> Loaded:
    return record.needed(ANALYSIS, open_run(run))


def test_the_command_says_first_what_it_costs(finished: Made, looked_at: tuple[Made, str, str]) -> None:
    with pytest.raises(UserError, match="predictability is not known yet; run python"):
        load(finished.run)
    made, out, err = looked_at
    assert out == f"{made.run / 'predict'}\n"
    # 2 seeds x 3 replayed steps, and 2 seeds x 2 levels x 2 masks x 12 steps
    assert "2 dense trainings to be replayed" in err
    assert "8 predicted masks to be trained: 102 steps in all (about " in err


def test_a_replayed_state_is_that_which_a_study_keeps(
    looked_at: tuple[Made, str, str], tmp_path: Path
) -> None:
    made, _, _ = looked_at
    wide = study.run(prepare(made.data, arms=("ticket",), levels=0, rewind=(0, 3)), tmp_path)
    theirs, ours = (Reader(where) for where in (wide, made.run / "predict"))
    jax.tree.map(np.testing.assert_array_equal, ours.state(1, 3), theirs.state(1, 3))


def test_the_rows_are_the_measures(looked_at: tuple[Made, str, str]) -> None:
    made, _, _ = looked_at
    found = load(made.run)
    assert found.notes == []
    at = {(r.seed, r.level, r.step, r.score, r.mask, r.layer): r for r in found.rows}
    run = open_run(made.run)
    mask = run.mask(Cell(1, "rewind-0", 2, "ticket"))
    ticket = layers.flat(layers.by_layer(mask, mask))
    final = layers.flat(layers.by_layer(run.weights(Cell(1, "dense", 0, "dense")), mask))
    paths = ("fc1/kernel", "fc2/kernel", "output/kernel")
    for path in paths:
        row = at[1, 2, 12, "magnitude", "ticket", path]
        assert row[7:] == pytest.approx(predict.measure(np.abs(final[path]), ticket[path]), rel=1e-6)
        # The first level's mask is made of the dense network's final magnitudes.
        assert at[1, 1, 12, "magnitude", "ticket", path].auroc == 1
    aurocs = [at[1, 2, 0, "snip", "ticket", path].auroc for path in paths]
    assert at[1, 2, 0, "snip", "ticket", "mean"].auroc == pytest.approx(np.mean(aurocs))
    assert at[1, 2, 0, "snip", "ticket", "pooled"].density is None
    assert {r.layer for r in found.rows if r.score == "pixel_variance"} == {"fc1/kernel", "mean", "pooled"}
    assert {r.step for r in found.rows if r.score == "movement"} == {3, 12}
    assert {r.step for r in found.rows if r.mask == "shuffled"} == {0}
    for seed in (0, 1):
        predicted, null = (at[seed, 2, 0, "logistic", kind, "fc1/kernel"] for kind in ("ticket", "shuffled"))
        assert predicted.auroc > 0.7  # twelve steps hardly change a magnitude
        assert abs(null.auroc - 0.5) < 4 * predict.chance_deviation(ticket["fc1/kernel"])


def test_trained_masks_figures_and_findings(looked_at: tuple[Made, str, str]) -> None:
    made, _, _ = looked_at
    found, run, ours = load(made.run), open_run(made.run), Reader(made.run / "predict")
    assert len(found.trials) == 2 * 2 * 4
    assert {t.mask for t in found.trials} == {"ticket", "predicted", "predicted_shuffled", "random"}
    for trial in found.trials:
        assert (trial.status, trial.iou == 1) == ("done", trial.mask == "ticket")
        own = ours if trial.mask.startswith("predicted") else run
        mask = own.mask(Cell(trial.seed, "rewind-0", trial.level, trial.mask))
        ticket = run.mask(Cell(trial.seed, "rewind-0", trial.level, "ticket"))
        assert layers_of(mask) == layers_of(ticket)
        assert abs(trial.iou - trial.iou_chance) < 0.01 or trial.mask in ("ticket", "predicted")
    for name in ("predict_bars", "predict_curve", "predict_functional"):
        assert (made.run / "predict" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (made.run / "predict" / f"{name}.svg").read_bytes()
    check_section(ANALYSIS, made.run)
    # Verdicts give the tickets' density over the whole network, not the mean over its layers.
    left = [f"{100 * run.results[Cell(0, 'rewind-0', n, 'ticket')]['density']:.1f} %" for n in (1, 2)]
    first, added, *worth = ANALYSIS.findings(run, found)
    assert added.claim.startswith("Scores at initialisation add to |θ₀| alone")
    assert added.n == 2
    assert first.estimate.endswith(f"at {left[1]} of the weights")
    assert [one.claim.rpartition("at ")[2] for one in worth] == left
    # Scores of a later step are no prediction before training, and the claim says of which step they are.
    late = found._replace(trials=[trial._replace(step=1500) for trial in found.trials])
    said = [one.claim.rpartition("at ")[2] for one in ANALYSIS.findings(run, late)[2:]]
    assert said == [f"{share}, by scores of step 1,500" for share in left]
    # All are best at their end: longer training narrows the gap where the shuffled mask is behind.
    for behind, marked in (("predicted_shuffled", True), ("predicted", False)):
        trials = [
            trial._replace(
                early_stop_step=run.lengths.total, test_accuracy=0.5 - 0.1 * (trial.mask == behind)
            )
            for trial in found.trials
        ]
        beside = [one.beside for one in ANALYSIS.findings(run, found._replace(trials=trials))[2:]]
        assert [of.startswith("the shuffled mask is still learning") for of in beside] == [marked] * 2


def test_a_second_call_trains_nothing_and_finds_the_same(
    copied: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(copied.run)

    def never(*_: object) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr(train, "train", never)
    # A state of an earlier version names no dense network; it counts, as it is newer than that.
    rewritten(copied.run, 1, {})
    record.command(ANALYSIS)([*options(copied), "--quiet"])
    assert capsys.readouterr().err == ""
    assert load(copied.run) == found


def test_what_was_made_from_a_cell_that_is_made_anew_is_trained_anew(
    copied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Cell] = []
    genuine = Work.train

    def counted(self: Work, jobs: Any) -> Any:
        trained.extend(cell for cell, _ in jobs)
        return genuine(self, jobs)

    monkeypatch.setattr(Work, "train", counted)
    made_anew(copied.run, Cell(1, "rewind-0", 2, "ticket"))
    rewritten(copied.run, 0, {"of": ["of another dense network"]})
    for again in ([(0, 0), (0, 2), (0, 2), (1, 2), (1, 2)], []):
        record.command(ANALYSIS)([*options(copied), "--quiet"])
        # A dense network is replayed; one predictor is fitted to the other seed's ticket, the other keeps as
        # many weights.
        assert [(cell.seed, cell.level) for cell in trained] == again
        trained.clear()


def test_where_the_ticket_is_predicted_its_own_numbers_come_out(
    copied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start and the order of data are the same."""
    run = open_run(copied.run)
    for cell in (Cell(s, "rewind-0", 2, "predicted") for s in (0, 1)):
        (folder(copied.run / "predict", cell) / "result.json").unlink()
    tickets = (run.mask(Cell(s, "rewind-0", 2, "ticket")) for s in (0, 1))
    kept = (layers.by_layer(mask, mask) for mask in tickets)
    monkeypatch.setattr(predict, "keep_highest", lambda *_: next(kept))
    asked = {"levels": (2,), "steps": (0,), "images": 45, "data_dir": copied.data}
    record.perform(ANALYSIS, run, **asked)
    check_section(ANALYSIS, copied.run)
    trials = {(t.seed, t.mask): t for t in load(copied.run).trials}
    for seed in (0, 1):
        twin, own = trials[seed, "predicted"], trials[seed, "ticket"]
        assert twin._replace(mask="ticket") == own


def test_a_ticket_that_diverged_leaves_one_seed_and_nothing_to_hold_out(copied: Made) -> None:
    unsealed(copied.run)
    spoil(folder(copied.run, Cell(1, "rewind-0", 2, "ticket")) / "result.json")
    asked = {"levels": (2,), "steps": (0,), "images": 45, "data_dir": copied.data}
    record.perform(ANALYSIS, copied.run, training=False, **asked)
    found = load(copied.run)
    assert "The ticket of seed 1 at level 2 diverged and is left out." in found.notes
    assert any("no held-out test" in note for note in found.notes)
    assert {r.seed for r in found.rows if r.level == 2} == {0}
    assert not [r for r in found.rows if r.level == 2 and r.score == "logistic"]


def test_what_cannot_be_asked(copied: Made) -> None:
    for wrong, said_of in (
        ({"levels": (1, 7)}, "--levels: 7 has no trained ticket"),
        ({"steps": (13,)}, "--steps: 13 is not allowed; it must be from 0 to 12"),
        ({"images": 0}, "--images: 0"),
        ({"chain": "rewind-9"}, "--chain: 'rewind-9' has no ticket"),
    ):
        with pytest.raises(UserError, match=said_of):
            record.perform(ANALYSIS, copied.run, data_dir=copied.data, **wrong)
    arrays = dict(np.load(copied.data / "small.npz"))
    np.savez(copied.data / "small.npz", **arrays | {"test_images": arrays["test_images"][::-1]})
    with pytest.raises(UserError, match="--data-dir: small there has content hash"):
        record.perform(ANALYSIS, copied.run, data_dir=copied.data)


def test_damaged_tables_name_the_command_that_makes_them(copied: Made) -> None:
    where = copied.run / "predict"
    (where / "checksums.json").unlink()
    for name, change, refused in (
        ("scores.csv", lambda text: text.splitlines()[0] + "\n", "scores.csv has no rows"),
        ("scores.csv", lambda text: "".join(text.splitlines(True)[:-1]), "scores.csv has not as many rows"),
        ("functional.csv", lambda text: text[:-4], "functional.csv is empty or ends within a line"),
        ("functional.csv", lambda text: text.replace("rewind-0,2,", "rewind-0,9,"), "no ticket of level 9"),
        ("about.json", lambda text: text.replace('"notes"', '"words"'), "notes"),
    ):
        good = (where / name).read_text()
        (where / name).write_text(change(good))
        with pytest.raises(UserError, match=f"{refused}.*run python -m analysis.predict .* again"):
            load(copied.run)
        (where / name).write_text(good)
    load(copied.run)


def test_levels_by_default_and_a_run_without_tickets(finished: Made, tmp_path: Path) -> None:
    run = open_run(study.run(prepare(finished.data, levels=0), tmp_path / "runs"))
    with pytest.raises(UserError, match="there is no ticket in it yet"):
        record.perform(ANALYSIS, run, data_dir=finished.data)
    dense = run.rows[0]
    density = [1, 0.5, 0.22, 0.17, 0.12, 0.09, 0.035, 0.028, 0.02, 0.01]
    run.rows = [
        dense._replace(chain="rewind-0", level=n, arm="ticket", density=d, seed=s)
        for n, d in enumerate(density)
        for s in (0, 1)
        if n
    ]
    asked = ask(run, Options(run=run.path, data_dir=finished.data))
    assert [*asked.seeds] == [2, 5, 7, 9]
    assert asked.steps == [0, 1, 2, 12]
    # 5 batches are wanted, but an epoch has 8
    assert (asked.batches, asked.tickets.rewind) == (8, 0)
    assert ask(run, Options(run=run.path, data_dir=finished.data, images=81)).batches == 5


def test_the_claim_is_about_what_is_added(looked_at: tuple[Made, str, str]) -> None:
    run = open_run(looked_at[0].run)
    found = load(looked_at[0].run)
    (row, *_) = [r for r in found.rows if (r.step, r.score, r.layer) == (0, "logistic", "mean")]

    def rows(score: str, level: int, values: tuple[float, ...]) -> list[Any]:
        return [row._replace(score=score, level=level, seed=seed, auroc=of) for seed, of in enumerate(values)]

    both = rows("logistic", 2, (0.824, 0.826, 0.825)) + rows(
        "logistic_init_magnitude", 2, (0.822, 0.823, 0.822)
    )
    made = ANALYSIS.findings(run, found._replace(rows=both, trials=[]))
    assert [one.outcome for one in made] == ["supported", "supported"]
    low, _ = scipy_stats.t.interval(0.9, 2, 8 / 3e3, scipy_stats.sem([0.002, 0.003, 0.003]))
    bound = f"at least {low:+.4f} (one-sided 95 %)"
    assert made[1].estimate.startswith(f"+0.0027, {bound} (0.825 against 0.822) at ")
    # A difference that is none is found to be within 0.01.
    none = rows("logistic", 2, (0.824, 0.826, 0.825)) + rows(
        "logistic_init_magnitude", 2, (0.825, 0.825, 0.825)
    )
    same = ANALYSIS.findings(run, found._replace(rows=none, trials=[]))[1]
    assert (same.outcome, same.test) == ("equivalent", "equivalence, ±0.01")
    older = [r for r in both if r.score == "logistic"]
    assert ANALYSIS.findings(run, found._replace(rows=older, trials=[]))[1].outcome == "not tested"
    assert {one.outcome for one in ANALYSIS.findings(run, None)} == {"not tested"}
