"""Predictability: measures by hand and by brute force, planted signals, and a whole run."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check_section, spoil, unsealed
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis.predict as command
from analysis import cells
from lthjax import config, models, prune, record, rng, study, train
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.measures import predict
from lthjax.store import Store, folder, read_study

Make = Callable[..., study.Prepared]


def test_measures_by_hand_with_ties() -> None:
    """Pairs 1, 1, 1/2, 1 of 4; precision 1 at recall 1/2, then 2/3 at 1; of the two 2s one is chosen."""
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
    # Every set of k weights that leaves out none of a higher score is as likely as any other.
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
    score = predict.by_layer(jax.tree.map(jnp.abs, params), mask)
    kept = predict.by_layer(mask, mask)
    null = predict.shuffled(np.random.default_rng(0), kept)
    assert set(kept) == {"fc1/kernel", "fc2/kernel", "output/kernel"}
    for path in kept:
        found, chance = predict.measure(score[path], kept[path]), predict.measure(score[path], null[path])
        assert found is not None
        assert chance is not None
        assert (found.auroc, found.average_precision, found.precision, found.iou) == (1, 1, 1, 1)
        assert null[path].sum() == kept[path].sum()
        assert abs(chance.auroc - 0.5) < 4 * predict.chance_deviation(kept[path])
    jax.tree.map(np.testing.assert_array_equal, predict.as_mask(kept, mask), mask)


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


def planted(seed: int) -> tuple[predict.Layers, predict.Layers, np.ndarray]:
    """Features, a mask and what it was drawn from: of layer "a" the first two of three, the second turned."""
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
    # Nothing of the held-out seed's own mask goes in.
    other = kept | {0: {path: ~m for path, m in kept[0].items()}}
    np.testing.assert_array_equal(predict.held_out(seen, other)[0]["a"], predicted[0]["a"])
    assert not np.array_equal(predict.held_out(seen, other)[1]["a"], predicted[1]["a"])
    null = {s: predict.shuffled(np.random.default_rng(s), m) for s, m in kept.items()}
    for seed, score in predict.held_out(seen, null).items():
        got = predict.measure(score["a"], null[seed]["a"])
        assert got is not None
        assert abs(got.auroc - 0.5) < 4 * predict.chance_deviation(null[seed]["a"])


def test_scores_are_their_formulas() -> None:
    """A network of tanh, all images at once, the gradient's norm by finite differences."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"in": (4, 5), "out": (5, 3)}
    initial = {k: jax.random.normal(key, shapes[k]) for k, key in zip(shapes, keys, strict=False)}
    params = jax.tree.map(lambda w: w + 0.1 * jnp.cos(7 * w), initial)
    images, labels = jax.random.normal(keys[2], (3, 2, 2, 2, 1)), jnp.array([[0, 1], [2, 0], [1, 1]])

    def logits(params: dict, x: jax.Array) -> jax.Array:
        return jnp.tanh(x.reshape(len(x), -1) @ params["in"]) @ params["out"]

    got = jax.jit(lambda *of: predict.scores(logits, *of))(initial, params, images, labels)
    assert set(got) == set(predict.SCORES)

    def loss(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    x, y = images.reshape(6, 2, 2, 1), labels.ravel()
    gradient = jax.grad(loss)(params, x, y)
    each = [jax.grad(loss)(params, x[i : i + 1], y[i : i + 1]) for i in range(6)]

    @jax.jit
    def norm(params: dict) -> jax.Array:
        """Of the gradient at a temperature of 200, in units of 1 / 200."""

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
        # Of a high score: taking the weight away takes gradient flow away.
        for i in np.ndindex(shapes[k]):
            scaled = [np.array(params[k]) for _ in range(2)]
            for near, by in zip(scaled, (1.02, 0.98), strict=True):
                near[i] *= by
            high, low = (float(norm({**params, k: near})) for near in scaled)
            assert 200**2 * got["grasp"][k][i] == pytest.approx((high - low) / 0.08, rel=0.02, abs=2e-3)
    assert predict.names_at(0) == ["init_magnitude", "snip", "grasp", "synflow", "fisher"]
    assert predict.names_at(1) == list(predict.SCORES)


def test_grasp_of_a_network_with_convolutions() -> None:
    model = models.build("lenet5", (28, 28, 1), 10)
    params = model.init(jax.random.key(0)).params
    images, labels = jax.random.normal(jax.random.key(1), (1, 2, 28, 28, 1)), jnp.array([[1, 2]])

    def logits(params: dict, x: jax.Array) -> jax.Array:
        return model.apply(params, {}, x, False)[0]

    (got,) = jax.jit(lambda *of: predict.scores(logits, *of, ["grasp"]))(
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

    # All weights of a layer scaled: by how much the squared gradient grows, halved.
    slope = float(norm(1.02) - norm(0.98)) / 0.08
    assert float(got["conv1"]["kernel"].sum()) == pytest.approx(slope, rel=0.05)


def test_pixel_variance() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 3, 2), np.uint8)
    std = np.array([0.5, 0.2])
    mask = {"fc1": np.ones((24, 5), bool), "bias": np.array(True), "fc2": np.ones((5, 2), bool)}
    (path, got), *others = predict.pixel_variance(images, std, mask).items()
    assert (path, others) == ("fc1", [])
    expected = (images / 255 / std).reshape(30, -1).var(0)
    np.testing.assert_allclose(got.reshape(24, 5), np.tile(expected[:, None], (1, 5)))
    assert predict.pixel_variance(images, std, mask | {"conv": np.ones((3, 3, 2, 4), bool)}) == {}


def untouched(run: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in run.glob("seed=*/**/*") if p.is_file()}


def test_a_whole_run(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny()
    images = dict(np.load(tmp_path / "data" / "few.npz"))
    images |= {name: images[name][:, 2:26:3, 2:26:3] for name in ("train_images", "test_images")}
    np.savez(tmp_path / "data" / "small.npz", **images)
    made = partial(tiny, data=config.Data(name="small", validation=40))
    prepared = made(arms=("ticket", "random"))
    run = study.run(prepared, tmp_path / "runs")
    before = untouched(run)
    with pytest.raises(UserError, match="its predictability is not known yet"):
        command.load(run)
    options = [str(run), "--levels", "1", "2", "--steps", "3", "12", "--images", "45",
               "--data-dir", str(tmp_path / "data")]  # fmt: skip
    command.main(options)
    said = capsys.readouterr()
    assert said.out == f"{run / 'predict'}\n"
    # 2 seeds x 3 steps again, and 2 seeds x 2 levels x 2 masks x 12 steps
    assert "2 dense trainings to be gone again" in said.err
    assert "8 predicted masks to be trained: 102 steps in all (about " in said.err
    assert untouched(run) == before, "the run's own cells are only read"

    # The state at step 3 is what a study that rewinds there keeps.
    wide = study.run(made(arms=("ticket",), levels=0, rewind=(0, 3)), tmp_path / "wide")
    about = read_study(run)
    theirs, ours = (Store(where, about["identity"], about) for where in (wide, run / "predict"))
    initial = prepared.model.init(rng.stream(1, "init"))
    jax.tree.map(np.testing.assert_array_equal, ours.state(1, 3, initial), theirs.state(1, 3, initial))

    found = command.load(run)
    assert found.notes == []
    at = {(r.seed, r.level, r.step, r.score, r.mask, r.layer): r for r in found.rows}
    store = Store(run, about["identity"], about)
    like = prune.ones(initial.params)
    ticket = predict.by_layer(store.mask(Cell(1, "rewind-0", 2, "ticket"), like), like)
    final = predict.by_layer(store.variables(Cell(1, "dense", 0, "dense"), initial).params, like)
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

    assert len(found.trials) == 2 * 2 * 4
    assert {t.mask for t in found.trials} == {"ticket", "predicted", "predicted_shuffled", "random"}
    for trial in found.trials:
        assert (trial.status, trial.iou == 1) == ("done", trial.mask == "ticket")
        mask = (ours if trial.mask.startswith("predicted") else store).mask(
            Cell(trial.seed, "rewind-0", trial.level, trial.mask), like
        )
        assert record.layers(mask) == record.layers(
            store.mask(Cell(trial.seed, "rewind-0", trial.level, "ticket"), like)
        )
        assert abs(trial.iou - trial.iou_chance) < 0.01 or trial.mask in ("ticket", "predicted")
    for name in ("predict_bars", "predict_curve", "predict_functional"):
        assert (run / "predict" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (run / "predict" / f"{name}.svg").read_bytes()

    # Verdicts name the tickets' density: over the whole network, not the mean over its layers.
    left = [f"{100 * store.result(Cell(0, 'rewind-0', n, 'ticket'))['density']:.1f} %" for n in (1, 2)]
    first, *worth = command.findings(run)
    assert first.estimate.endswith(f"at {left[1]} of the weights")
    assert [one.claim.rpartition("at ")[2] for one in worth] == left

    # A second call trains nothing and finds the same.
    def never(*_: object) -> None:
        raise AssertionError("it trains again")

    with monkeypatch.context() as patched:
        patched.setattr(train, "train", never)
        command.main([*options, "--quiet"])
    assert capsys.readouterr().err == ""
    assert command.load(run) == found

    # Where the ticket itself is predicted, its own numbers come out: same start, same order of data.
    asked = command.ask(run, tmp_path / "data", levels=[2], steps=[0], images=45)
    for cell in (Cell(s, "rewind-0", 2, "predicted") for s in (0, 1)):
        (folder(run / "predict", cell) / "result.json").unlink()
    tickets = iter(
        [predict.by_layer(store.mask(Cell(s, "rewind-0", 2, "ticket"), like), like) for s in (0, 1)]
    )
    with monkeypatch.context() as patched:
        patched.setattr(predict, "keep_highest", lambda *_: next(tickets))
        command.build(asked)
    check_section(command, run)
    trials = {(t.seed, t.mask): t for t in command.load(run).trials}
    for seed in (0, 1):
        twin, own = trials[seed, "predicted"], trials[seed, "ticket"]
        assert twin._replace(mask="ticket") == own

    # A ticket that diverged leaves one seed at level 2, and so nothing to hold out.
    unsealed(run)
    result = folder(run, Cell(1, "rewind-0", 2, "ticket")) / "result.json"
    spoil(result)
    command.build(command.ask(run, tmp_path / "data", levels=[2], steps=[0], images=45), training=False)
    found = command.load(run)
    assert "The ticket of seed 1 at level 2 diverged and is left out." in found.notes
    assert any("no held-out test" in note for note in found.notes)
    assert {r.seed for r in found.rows if r.level == 2} == {0}
    assert not [r for r in found.rows if r.level == 2 and r.score == "logistic"]

    for wrong, said_of in (
        ({"levels": [1, 7]}, "--levels: 7 has no trained ticket"),
        ({"steps": [13]}, "--steps: 13 is not allowed; it must be from 0 to 12"),
        ({"images": 0}, "--images: 0"),
        ({"chain": "rewind-9"}, "--chain: 'rewind-9' has no ticket"),
    ):
        with pytest.raises(UserError, match=said_of):
            command.ask(run, tmp_path / "data", **wrong)  # type: ignore[arg-type]
    where = run / "predict"
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
            command.load(run)
        (where / name).write_text(good)
    command.load(run)
    np.savez(tmp_path / "data" / "small.npz", **images | {"test_images": images["test_images"][::-1]})
    with pytest.raises(UserError, match="--data-dir: small there has content hash"):
        command.ask(run, tmp_path / "data")


def test_levels_by_default_and_a_run_without_tickets(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.run(tiny(levels=0), tmp_path / "runs")
    with pytest.raises(UserError, match="there is no ticket in it yet"):
        command.ask(run, tmp_path / "data")
    dense = cells.load(run)[0]
    density = [1, 0.5, 0.22, 0.17, 0.12, 0.09, 0.035, 0.028, 0.02, 0.01]
    made = [
        dense._replace(chain="rewind-0", level=n, arm="ticket", density=d, seed=s)
        for n, d in enumerate(density)
        for s in (0, 1)
        if n
    ]
    monkeypatch.setattr(cells, "load", lambda _: made)
    asked = command.ask(run, tmp_path / "data")
    assert asked.levels == [2, 5, 7, 9]
    assert asked.steps == [0, 1, 2, 12]
    # 5 batches are wanted, but an epoch has 8
    assert (asked.batches, asked.rewind) == (8, 0)
    assert command.ask(run, tmp_path / "data", images=81).batches == 5
