"""Criteria, arms, chains and schedules, as a study runs them."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unsealed
from scipy import stats

from analysis import card, export, open_run
from lthjax import batches, config, data, durations, imp, models, prune, rng, study, validate
from lthjax.arms import ARMS, Context, versions
from lthjax.criteria import CRITERIA, Criterion, Weights
from lthjax.errors import UserError
from lthjax.folder.places import folder
from lthjax.folder.reader import Reader
from lthjax.imp import Cell
from lthjax.prune._selection import random_scores

Make = Callable[..., study.Prepared]
PATHS = {"a": (6, 4), "b": (4, 3)}


def model() -> models.Model:
    """A bilinear network, x a b without nonlinearity, whose derivatives can be written down."""

    def init(key: jax.Array) -> models.Variables:
        keys = jax.random.split(key)
        drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, PATHS.items(), strict=True)}
        return models.Variables(drawn, {})

    def apply(params: dict, stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        return images.reshape(len(images), -1) @ params["a"] @ params["b"], stats

    return models.Model("bilinear", (2, 3, 1), 3, init, apply)


INITIAL = model().init(jax.random.key(0))
FINAL = model().init(jax.random.key(1)).params
BATCH = (
    np.random.default_rng(0).normal(size=(5, 2, 3, 1)).astype(np.float32),
    np.array([0, 1, 2, 1, 0], np.int32),
)


def scores_of(criterion: str) -> dict[str, np.ndarray]:
    full = jax.tree.map(np.asarray, prune.ones(FINAL))
    parent = imp.Leader(full, FINAL)
    going = np.array([5, 3], np.int32)
    scores, mask = imp.next_mask(
        (criterion, "layer"), model(), jax.random.key(2), INITIAL, parent, BATCH, going
    )
    assert int(mask["a"].sum()) == 24 - 5
    assert int(mask["b"].sum()) == 12 - 3
    for name, kept in mask.items():
        assert np.asarray(scores[name])[~kept].max() <= np.asarray(scores[name])[kept].min()
    return {name: np.asarray(s, np.float64) for name, s in scores.items()}


def gradients(a: np.ndarray, b: np.ndarray, temperature: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the mean cross-entropy, by hand: dL/dz = (softmax - onehot) / n."""
    x = BATCH[0].reshape(5, -1).astype(np.float64)
    z = x @ a @ b / temperature
    p = np.exp(z - z.max(1, keepdims=True))
    delta = (p / p.sum(1, keepdims=True) - np.eye(3)[BATCH[1]]) / 5 / temperature
    return x.T @ delta @ b.T, (x @ a).T @ delta


def by_hand(criterion: str) -> tuple[np.ndarray, np.ndarray]:
    initial = [np.asarray(INITIAL.params[n], np.float64) for n in PATHS]
    final = [np.asarray(FINAL[n], np.float64) for n in PATHS]
    if criterion in ("taylor", "snip"):
        at = final if criterion == "taylor" else initial
        ga, gb = gradients(*at)
        return abs(ga * at[0]), abs(gb * at[1])
    if criterion == "grasp":
        # H g by central differences of the hand-written gradient along g; logits are divided by 200.
        g, h = gradients(*initial, 200), 1e-3
        up = gradients(*(w + h * d for w, d in zip(initial, g, strict=True)), 200)
        down = gradients(*(w - h * d for w, d in zip(initial, g, strict=True)), 200)
        return tuple(w * (u - d) / (2 * h) for w, u, d in zip(initial, up, down, strict=True))  # type: ignore[return-value]
    if criterion == "synflow":
        a, b = map(abs, initial)
        # R = 1' |a| |b| 1: the score of a weight is the sum of the paths through it.
        return a * b.sum(1), a.sum(0)[:, None] * b
    by_weight = {
        "large_final": lambda i, f: abs(f),
        "small_final": lambda i, f: -abs(f),
        "large_init": lambda i, f: abs(i),
        "small_init": lambda i, f: -abs(i),
        "large_init_large_final": lambda i, f: np.minimum(abs(i), abs(f)),
        "magnitude_increase": lambda i, f: abs(f) - abs(i),
        "movement": lambda i, f: abs(f - i),
        "small_init_small_final": lambda i, f: -np.maximum(abs(i), abs(f)),
        "large_final_same_sign": lambda i, f: np.where(i * f > 0, abs(f), -abs(f)),
        "large_final_diff_sign": lambda i, f: np.where(i * f > 0, -abs(f), abs(f)),
        "magnitude_increase_same_sign": lambda i, f: np.sign(i) * f - abs(i),
        "magnitude_increase_diff_sign": lambda i, f: -np.sign(i) * f - abs(i),
    }[criterion]
    return tuple(by_weight(i, f) for i, f in zip(initial, final, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {"random"}))
def test_scores_by_hand(criterion: str) -> None:
    for name, expected in zip(PATHS, by_hand(criterion), strict=True):
        close = {"rtol": 2e-3, "atol": 2e-5 * min(1, np.abs(expected).max())}
        np.testing.assert_allclose(scores_of(criterion)[name], expected, **close)


def test_scores_that_are_not_finite_end_a_study_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(weights: Weights) -> dict:
        return {"a": jnp.abs(weights.final["a"]).at[3, 1:3].set(jnp.nan), "b": weights.final["b"]}

    monkeypatch.setitem(CRITERIA, "mine", Criterion(score, "mine"))
    asked = config.Study(levels=1, prune=config.Prune(criterion="mine"))
    lengths = durations.lengths(asked, 1000)
    (chain,) = imp.chains(asked, lengths)
    parent = imp.Leader(prune.ones(FINAL), FINAL)
    rounds = imp.rounds(asked, lengths, chain, 7, model(), INITIAL, INITIAL, parent, BATCH)
    said = r"^prune\.criterion: mine gives 2 of the 24 weights left in a .*\(seed 7, rewind-0, level 1\)"
    with pytest.raises(UserError, match=said):
        next(rounds)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_says_whether_it_reads_the_initial_weights(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads shows in its scores."""
    before = scores_of(criterion)
    other = INITIAL._replace(params=jax.tree.map(lambda w: -w[::-1] / 2, INITIAL.params))
    monkeypatch.setitem(globals(), "INITIAL", other)
    changed = any((scores_of(criterion)[name] != before[name]).any() for name in PATHS)
    assert changed == CRITERIA[criterion].initial
    asked = config.Study(prune=config.Prune(criterion=criterion, rate=0.2))
    for arms in (("random_chain", "finetune_chain", "continued"), ("reinit_chain",)):
        if arms == ("reinit_chain",) and CRITERIA[criterion].initial:
            said = rf"^prune\.criterion: '{criterion}' is not allowed with the arm 'reinit_chain', .* one of "
            with pytest.raises(UserError, match=said + "large_final, small_final, random, taylor"):
                validate.check_chains(dataclasses.replace(asked, arms=arms))
        else:
            validate.check_chains(dataclasses.replace(asked, arms=arms))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_says_whether_it_reads_the_trained_weights(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores_of(criterion)
    monkeypatch.setitem(globals(), "FINAL", jax.tree.map(lambda w: -w[::-1] / 2, FINAL))
    changed = any((scores_of(criterion)[name] != before[name]).any() for name in PATHS)
    assert changed == CRITERIA[criterion].final


def test_a_chain_that_an_earlier_version_trained_is_still_looked_at(tiny: Make, tmp_path: Path) -> None:
    asked = tiny(levels=2, arms=("ticket", "reinit_chain")).study
    asked = dataclasses.replace(asked, prune=dataclasses.replace(asked.prune, criterion="movement"))
    with pytest.raises(UserError, match=r"^prune\.criterion: 'movement' is not allowed with the arm"):
        study.prepare(asked, tmp_path / "data")
    assert study.prepare(asked, tmp_path / "data", trained=True).study == asked


def test_random_scores_are_other_with_another_key_and_uniform() -> None:
    one, other = (random_scores(jax.random.key(k), {"a": jnp.zeros((40, 50))})["a"] for k in (0, 1))
    assert (one != other).mean() > 0.99
    assert stats.kstest(np.ravel(one) / 2**32, "uniform").pvalue > 1e-3
    assert len(np.unique(scores_of("random")["a"])) == 24


def context(origin: dict | None = None) -> Context:
    origin = origin or INITIAL.params
    parent = jax.device_get(prune.magnitude(FINAL, prune.ones(FINAL), 0.25))
    mask = jax.device_get(prune.magnitude(FINAL, parent, 0.5))
    scores = jax.tree.map(jnp.abs, FINAL)
    fresh = lambda key: model().init(key).params  # noqa: E731
    return Context(jax.random.key(3), fresh, origin, FINAL, parent, mask, scores)


@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_arm_keeps_as_many_weights_as_the_ticket(name: str) -> None:
    at = context()
    mask = ARMS[name].mask(at)
    params = ARMS[name].params(at, mask)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, FINAL)
    assert int(prune.totals(mask)[0]) == int(prune.totals(at.mask)[0])


def test_arms_by_definition() -> None:
    at = context()
    kept = {n: np.asarray(m) for n, m in at.mask.items()}

    def start(name: str) -> dict[str, np.ndarray]:
        return {n: np.asarray(p) for n, p in ARMS[name].params(at, ARMS[name].mask(at)).items()}

    for n in PATHS:
        origin = np.asarray(at.origin[n])
        moved = start("reshuffle")[n]
        assert sorted(moved[kept[n]]) == sorted(origin[kept[n]])
        assert not np.array_equal(moved[kept[n]], origin[kept[n]])
        np.testing.assert_allclose(start("sign_constant")[n], np.sign(origin) * origin.std(), rtol=1e-5)
        sizes = start("reshuffle_sizes")[n]
        np.testing.assert_array_equal(np.sort(abs(sizes[kept[n]])), np.sort(abs(origin[kept[n]])))
        np.testing.assert_array_equal(np.sign(sizes[kept[n]]), np.sign(origin[kept[n]]))
        assert not np.array_equal(sizes[kept[n]], origin[kept[n]])
        density = kept[n].mean()
        np.testing.assert_allclose(start("untrained_rescaled")[n], origin / density, rtol=1e-5)
        constant = np.sign(origin) * origin.std()
        np.testing.assert_allclose(
            start("untrained_sign_constant_rescaled")[n], constant / density, rtol=1e-5
        )
        drawn = np.asarray(at.init(at.key)[n])
        np.testing.assert_allclose(start("constant")[n], np.sign(drawn) * origin.std(), rtol=1e-5)
        np.testing.assert_allclose(start("sign_constant_rescaled")[n], constant / density, rtol=1e-5)
        for name, values in {
            "reinit_rescaled_layer": drawn,
            "sign_only_rescaled": np.abs(drawn) * np.sign(origin),
            "constant_rescaled": np.sign(drawn) * origin.std(),
        }.items():
            np.testing.assert_allclose(start(name)[n] * kept[n].sum(), values * kept[n].size, rtol=1e-5)
        popup = np.sign(origin) * np.sqrt(2 / (len(origin) * density))
        np.testing.assert_allclose(start("edge_popup")[n], popup, rtol=1e-5)
        fresh = start("reinit")[n]
        np.testing.assert_array_equal(start("sign_only")[n], np.abs(fresh) * np.sign(origin))
        share = kept[n].mean(0)
        scaled = np.where(share > 0, fresh / np.sqrt(np.where(share > 0, share, 1)), fresh)
        np.testing.assert_allclose(start("reinit_rescaled")[n], scaled, rtol=1e-5)
        worst = np.asarray(ARMS["invert"].mask(at)[n])
        parent, scores = np.asarray(at.parent[n]), np.asarray(at.scores[n])
        assert worst.sum() == kept[n].sum()
        assert not (worst & ~parent).any()
        assert scores[worst].max() <= scores[parent & ~worst].min()


def test_a_study_of_every_arm_and_criterion(tiny: Make, tmp_path: Path) -> None:
    """Runs all of them; two chains rewind, five arms lead chains of their own."""
    arms = tuple(ARMS)
    prepared = tiny(arms=arms, seeds=(0,), rewind=(0, 3), levels=2)
    run = study.run(prepared, tmp_path / "runs")
    names = [chain.name for chain in imp.chains(prepared.study, prepared.lengths)]
    two = [f"{arm}-{k}" for arm in ("random_chain", "finetune_chain", "lr_rewind_chain") for k in (0, 3)]
    assert names == ["rewind-0", "rewind-3", "reinit_chain-0", *two, "continued-0"]
    assert not study.plan(prepared, tmp_path / "runs").missing
    store = Reader(run)
    untrained = store.result(Cell(0, "rewind-3", 1, "untrained"))
    assert (untrained["steps"], untrained["start"]) == (0, 3)
    assert untrained["curves"]["train_loss"] == [None]
    mask = store.mask(Cell(0, "rewind-3", 1, "untrained"))
    origin = prune.apply(store.state(0, 3).params, mask)
    kept = store.variables(Cell(0, "rewind-3", 1, "untrained")).params
    jax.tree.map(np.testing.assert_array_equal, kept, origin)
    second = store.result(Cell(0, "reinit_chain-0", 2, "reinit_chain"))
    assert second["made_from"]["parent"] == "seed=0/chain=reinit_chain-0/level=01/reinit_chain"
    # A chain's mask is made from its own leader.
    leader = Cell(0, "reinit_chain-0", 1, "reinit_chain")
    expected = prune.magnitude(store.variables(leader).params, store.mask(leader), prepared.study.prune.rate)
    got = store.mask(Cell(0, "reinit_chain-0", 2, "reinit_chain"))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    chance = store.mask(Cell(0, "random_chain-0", 1, "random_chain"))
    ticket = store.mask(Cell(0, "rewind-0", 1, "ticket"))
    iou, by_chance = prune.overlap(chance, ticket)
    assert abs(float(iou) - float(by_chance)) < 0.01


@pytest.mark.parametrize("criterion", ["taylor", "grasp", "synflow", "random"])
def test_a_study_by_criterion(tiny: Make, tmp_path: Path, criterion: str) -> None:
    prepared = tiny(prune=config.Prune(criterion=criterion), seeds=(0,), arms=("ticket",), levels=1)
    run = study.run(prepared, tmp_path / "runs")
    result = Reader(run).result(Cell(0, "rewind-0", 1, "ticket"))
    assert result["density"] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "densities"),
    [
        ({"rates": (0.5, 0.2, 0.1)}, (0.5, 0.4, 0.36)),
        ({"density": 0.125}, (0.5, 0.25, 0.125)),
        ({"density": 0.1, "course": "linear"}, (0.7, 0.4, 0.1)),
        ({"density": 0.1, "course": "cubic"}, (1 - 0.9 * 19 / 27, 1 - 0.9 * 26 / 27, 0.1)),
    ],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_schedules_reach_their_densities_exactly(changes: dict, densities: tuple, scope: str) -> None:
    """Compares with counts by numpy in float64, by layer and over all layers, with the model's shapes."""
    how = config.Prune(scope=scope, rate=0.2)  # type: ignore[arg-type]
    asked = config.Study(levels=3, prune=dataclasses.replace(how, **changes))
    validate.validate(asked)
    params = models.build("lenet300", (28, 28, 1), 10).init(jax.random.key(0)).params
    mask = jax.device_get(prune.ones(params))
    scores = jax.tree.map(jnp.abs, params)
    sizes = [784 * 300, 300 * 100, 100 * 10] if scope == "layer" else [784 * 300 + 300 * 100 + 100 * 10]
    left = list(sizes)
    for level, density in enumerate(densities, 1):
        mask = jax.device_get(
            prune.remove_counted(
                scores, mask, list(imp.removals(asked, level, mask)), scope=asked.prune.scope
            )
        )
        if "rates" in changes:
            left = [n - int(np.floor(changes["rates"][level - 1] * n + 0.5)) for n in left]
        else:
            left = [int(np.floor(density * n + 0.5)) for n in sizes]
        got = [int(n) for n, size in prune.survivors(mask, asked.prune.scope) if size]
        assert got == left


def test_a_cell_is_exported(tiny: Make, tmp_path: Path, command: Callable) -> None:
    prepared = tiny(seeds=(0,), levels=1, arms=("ticket", "reinit", "reshuffle"), rewind=(3,))
    run = study.run(prepared, tmp_path / "runs")
    file = tmp_path / "t.safetensors"
    done = command("-m", "analysis.export", run, file, "--level", 1, "--chain", "rewind-3")
    assert done.stdout.strip() == str(file), done.stderr
    ticket = prune.load(file)
    store = Reader(run)
    initial = prepared.model.init(rng.stream(0, "init"))
    cell = Cell(0, "rewind-3", 1, "ticket")
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    same(ticket.params, store.variables(cell).params)
    same(ticket.mask, store.mask(cell))
    same(ticket.origin, store.state(0, 3).params)
    assert ticket.metadata["test_accuracy"] == store.result(cell)["test_accuracy"]
    assert (ticket.metadata["seed"], ticket.metadata["level"], ticket.metadata["model"]) == (0, 1, "lenet300")
    steps = "| rewound to step | {} |\n| trained from step | {} |"
    assert steps.format(3, 3) in card.card(open_run(run), cell, "t", {})
    for arm, start in (("reinit", 0), ("reshuffle", 3)):
        other = cell._replace(arm=arm)
        assert prune.load(export.export(run, other, file)).origin is None
        assert steps.format("–", start) in card.card(open_run(run), other, "t", {})
    dense = prune.load(export.export(run, Cell(0, "dense", 0, "dense"), file))
    same(dense.origin, initial.params)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a damaged one is still an exported cell
    same(prune.load(export.export(run, Cell(0, "dense", 0, "dense"), file)).params, dense.params)
    for wrong, says in (
        (["--level", 7], "has no cell rewind-3, level 7"),
        (["--level", 1, "--seed", 5], "--seed: 5"),
    ):
        failed = command("-m", "analysis.export", run, file, "--chain", "rewind-3", *wrong)
        assert failed.returncode == 2
        assert says in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_folder_older_than_a_field_is_gone_on_with(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(seeds=(0,), levels=1, arms=("ticket",))
    run = study.run(prepared, tmp_path / "runs")
    unsealed(run)
    about = json.loads((run / "study.json").read_text())
    del about["identity"]["prune.course"]
    (run / "study.json").write_text(json.dumps(about))
    assert not study.plan(prepared, tmp_path / "runs").missing
    about["identity"]["prune.course"] = "cubic"
    (run / "study.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"prune\.course is 'cubic' there and 'geometric' here"):
        study.plan(prepared, tmp_path / "runs")


def test_chance_removes_units_of_every_layer_alike() -> None:
    """Units of 6 and of 4 inputs, ranked together: all layers lose the same share on average."""
    net, full = model(), jax.device_get(prune.ones(FINAL))
    how = imp.How("random", "group", "unit-l1", (0, 0))
    parent, going = imp.Leader(full, FINAL), np.array([3], np.int32)
    lost = []
    for k in range(100):
        made = imp.next_mask(how, net, jax.random.key(k), INITIAL, parent, BATCH, going)
        scores, mask = jax.device_get(made)
        for m in mask.values():
            np.testing.assert_array_equal(m, np.broadcast_to(m[:1], m.shape))
        gone = {name: ~m[0] for name, m in mask.items()}
        assert sum(int(g.sum()) for g in gone.values()) == 3
        lost.append([g.mean() for g in gone.values()])
        if k > 1:
            continue
        at = context()._replace(mask=mask, parent=full, scores=scores, granularity="unit-l1")
        for name, m in ARMS["invert"].mask(at).items():  # as many units, those of the lowest draws
            order, left = np.argsort(scores[name][0]), int((~gone[name]).sum())
            assert {*np.flatnonzero(m[0])} == {*order[:left]}
            assert {*np.flatnonzero(~gone[name])} == {*order[len(order) - left :]}
    share = np.mean(lost, 0)
    assert abs(share - 3 / 7).max() < 0.08, share
    # A unit that is gone stays gone, and counts no more.
    gone = full | {"a": np.broadcast_to([True, False, False, True], (6, 4))}
    parent = imp.Leader(gone, FINAL)
    _, mask = imp.next_mask(how, net, jax.random.key(0), INITIAL, parent, BATCH, going)
    assert not (np.asarray(mask["a"]) & ~gone["a"]).any()
    assert sum(int(m[0].sum()) for m in mask.values()) == 2
    # Within layers units have the sums of their weights' draws, as ever.
    alone, going = imp.How("random", "layer", "unit-l1"), np.array([2, 1], np.int32)
    for k in range(5):
        parent = imp.Leader(full, FINAL)
        _, mask = imp.next_mask(alone, net, jax.random.key(k), INITIAL, parent, BATCH, going)
        draws = random_scores(jax.random.key(k), FINAL)
        for (name, m), n in zip(mask.items(), going, strict=True):
            order = np.argsort(np.asarray(draws[name], np.float64).sum(0))
            assert {*np.flatnonzero(~np.asarray(m[0]))} == {*order[:n]}


def test_units_drawn_otherwise_have_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the chain of random removals in its cells, of the criterion of a study in its folder's name."""
    leaf = ARMS["ticket"]._replace(leads=False, on="random_chain")
    monkeypatch.setitem(ARMS, "after_chance", leaf)
    net, lengths = models.build("lenet5", (28, 28, 1), 10), config.Lengths(10, 10, 5, 0, (), (0,))
    chance = ("random_chain", "after_chance")
    for granularity in ("weight", "unit-l1", "unit-l2"):
        for scope in ("layer", "group"):
            how = config.Prune(granularity=granularity, scope=scope, rate=(("conv", 0.2),))
            asked = config.Study(arms=("reinit_chain", "random", *chance), prune=how)
            other = granularity != "weight" and scope == "group"
            assert versions(asked, net) == (dict.fromkeys(chance, 2) if other else {})
            assert "prune.criterion_version" not in config.identity(asked, lengths, "x")
            drawn = dataclasses.replace(asked, prune=dataclasses.replace(how, criterion="random"))
            found = config.identity(drawn, lengths, "x").get("prune.criterion_version")
            assert found == (2 if other else None)


class Normalised(nn.Module):
    """A network with batch normalisation, which trains quickly."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(16, use_bias=False, name="fc1")(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm1")(x)
        return nn.Dense(self.classes, name="output")(nn.relu(x))


def test_untrained_networks_have_the_batch_statistics_of_their_own_weights(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares with numpy: the mean over the first batches of the level of each one's mean and variance."""
    monkeypatch.setitem(models.MODELS, "normalised", models.Entry(Normalised, 1, "for a test"))
    both = ("untrained", "untrained_sign_constant")
    asked = tiny(model="normalised", levels=1, rewind=(0, 5), arms=both)
    run = study.run(asked, tmp_path / "runs", chunk=2)
    store, dataset = Reader(run), asked.dataset
    for seed in (0, 1):
        split = data.split(dataset, seed, 40)
        index = batches.order(split.train, asked.lengths, 20, seed, 1, 0, asked.lengths.per_epoch)

        def pixels(images: np.ndarray, split: data.Split = split) -> np.ndarray:
            return ((images / 255 - split.mean) / split.std).reshape(*images.shape[:-3], -1)

        for chain in ("rewind-0", "rewind-5"):
            for arm in ("untrained", "untrained_sign_constant"):
                cell = Cell(seed, chain, 1, arm)
                params, stats = store.variables(cell)
                first = params["fc1"]["kernel"].astype(np.float64)
                units = pixels(dataset.train_images[index]) @ first
                mean, var = units.mean((0, 1)), units.var(1).mean(0)
                found = stats["batch_stats"]["norm1"]
                np.testing.assert_allclose(found["mean"], mean, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(found["var"], var, rtol=1e-3)
                hidden = (pixels(dataset.test_images) @ first - mean) / np.sqrt(var + 1e-5)
                hidden = np.maximum(hidden * params["norm1"]["scale"] + params["norm1"]["bias"], 0)
                logits = hidden @ params["output"]["kernel"] + params["output"]["bias"]
                share = (logits.argmax(1) == dataset.test_labels).mean()
                assert store.result(cell)["test_accuracy"] == pytest.approx(share, abs=1.5 / 60)
            ticket = store.state(seed, int(chain[-1])).stats["batch_stats"]["norm1"]
            assert abs(ticket["mean"] - found["mean"]).max() > 0.1
    # Earlier versions gave them the dense network's: new cells do not come beside such ones.
    old = folder(run, Cell(0, "rewind-0", 1, "untrained"))
    unsealed(run)
    result = json.loads((old / "result.json").read_text())
    assert result.pop("version") == 2
    (old / "result.json").write_text(json.dumps(result))
    assert study.run(asked, tmp_path / "runs", chunk=2) == run
    more, alone = (
        tiny(model="normalised", levels=1, rewind=(0, 5), arms=both, seeds=seeds)
        for seeds in ((0, 1, 2), (2,))
    )
    for asks, seeds in ((more, None), (more, (2,)), (alone, None)):
        with pytest.raises(UserError, match=r"1 cell of untrained, .* the first, are of another version"):
            study.fill([asks], tmp_path / "runs", chunk=2, seeds=seeds)
    assert not (run / "seed=2").exists()
    shutil.rmtree(old)
    study.run(more, tmp_path / "runs", chunk=2)
    assert Reader(run).result(Cell(0, "rewind-0", 1, "untrained"))["version"] == 2
    assert versions(asked.study, asked.model) == {arm: 2 for arm in asked.study.arms if arm in both}
    every = config.Study(arms=(*ARMS, "dense"))
    assert versions(every, models.build("lenet5", (28, 28, 1), 10)) == {}


@pytest.mark.parametrize("name", ["mine/arm", "../mine", ".mine", "random.r2", "dense", "", "x" * 101])
def test_an_arm_whose_cells_would_be_lost_is_refused(
    name: str, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reader looks into deeper folders, and the second repeat of random lies in random.r2."""
    monkeypatch.setitem(ARMS, name, ARMS["random"])
    with pytest.raises(
        UserError, match=f"arms: '{re.escape(name)}' is not allowed; it must be .* names a folder"
    ):
        tiny(arms=("ticket", "random", name), repeats=(("random", 2),))


@pytest.mark.parametrize("name", ["mine", "Mine-2_b.r", "random.r2d2", "x.2", "_mine", "lr=0.1", "mine arm"])
def test_any_other_name_is_an_arm(name: str, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, name, ARMS["random"])
    assert tiny(arms=("ticket", name)).study.arms == ("ticket", name)
