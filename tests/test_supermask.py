"""Groups of layers ranked together, structures as a study prunes them, and masks that are learned."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_arms import BATCH, FINAL, INITIAL, context, gradients, model

from lthjax import config, imp, models, plan, prune, study, supermask, validate
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.folder.reader import Reader
from lthjax.imp import Cell
from lthjax.optim import Optimiser
from lthjax.training import train
from lthjax.training.job import Checkpoints, Job, Position
from lthjax.training.step import State, step

Make = Callable[..., study.Prepared]


def test_a_group_is_ranked_together_and_other_layers_stay() -> None:
    """Against the definition: one stable sort of the group's survivors, layer after layer."""
    generator = np.random.default_rng(0)
    shapes = {
        "conv1": (3, 3, 2, 4),
        "conv2": (3, 3, 4, 4),
        "fc": (20, 6),
        "output": (6, 3),
        "shortcut": (4, 8),
    }
    params = {n: {"kernel": generator.integers(1, 9, s).astype(np.float32)} for n, s in shapes.items()}
    mask = {n: {"kernel": generator.random(s) < 0.8} for n, s in shapes.items()}
    rates = (("conv", 0.3), ("fc|output", 0.15))
    got = jax.jit(partial(prune.magnitude, rate=rates, scope="group"))(params, mask)
    for names, rate in ((("conv1", "conv2"), 0.3), (("fc", "output"), 0.15)):
        sizes = np.concatenate([params[n]["kernel"].ravel() for n in names])
        kept = np.concatenate([mask[n]["kernel"].ravel() for n in names])
        alive = np.flatnonzero(kept)
        going = int(np.floor(rate * len(alive) + 0.5))
        kept[alive[np.argsort(sizes[alive], kind="stable")][:going]] = False
        np.testing.assert_array_equal(np.concatenate([np.ravel(got[n]["kernel"]) for n in names]), kept)
    np.testing.assert_array_equal(got["shortcut"]["kernel"], mask["shortcut"]["kernel"])
    with pytest.raises(ValueError, match="rate: with scope 'group' it is a mapping"):
        prune.magnitude(params, mask, 0.2, scope="group")


def test_resnet20_as_published_prunes_its_3x3_convolutions_together() -> None:
    """270,896 weights, less 640 of the output layer and 16 · 32 + 32 · 64 of the shortcuts."""
    asked = config.Study(model="resnet20", levels=2, prune=config.Prune(scope="group", rate=(("conv", 0.2),)))
    validate.validate(asked)
    shapes = jax.eval_shape(models.build("resnet20", (32, 32, 3), 10).init, jax.random.key(0)).params
    mask = prune.ones(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
    pool = 270_896 - 640 - 512 - 2_048
    (going,) = imp.removals(asked, 1, mask)
    assert going == round(0.2 * pool)
    how = imp.how_of(asked, "large_final", mask)
    free = [path for path, group in zip(prune.paths(mask), how.groups, strict=True) if group < 0]
    kernels = {path for path in free if path.endswith("kernel")}
    assert kernels == {"output/kernel", "stage2_block1/shortcut/kernel", "stage3_block1/shortcut/kernel"}


def pruned(granularity: str, rate: float | tuple) -> tuple[dict, dict, config.Study]:
    """Scores and mask after one level of the bilinear network, 6 x 4 and 4 x 3, by magnitude."""
    asked = config.Study(levels=1, prune=config.Prune(granularity=granularity, rate=rate))
    validate.validate(asked)
    full = jax.device_get(prune.ones(FINAL))
    how = imp.how_of(asked, "large_final", full)
    going = imp.removals(asked, 1, full)
    parent = imp.Leader(full, FINAL)
    made = imp.next_mask(how, model(), jax.random.key(2), INITIAL, parent, BATCH, going)
    return *jax.device_get(made), asked


@pytest.mark.parametrize(("granularity", "power"), [("unit-l1", 1), ("unit-l2", 2)])
def test_a_study_prunes_whole_units(granularity: str, power: int) -> None:
    _, mask, asked = pruned(granularity, (("a", 0.5),))
    norms = (np.abs(np.asarray(FINAL["a"], np.float64)) ** power).sum(0)
    expected = np.zeros(4, bool)
    expected[np.argsort(norms)[2:]] = True
    np.testing.assert_array_equal(mask["a"], np.broadcast_to(expected, (6, 4)))
    assert mask["b"].all()
    # The next level counts the units that are left: half of 2.
    assert imp.removals(asked, 1, mask)[0] == 1
    # The controls have as many whole units, chosen otherwise.
    at = context()._replace(
        mask=mask,
        parent=jax.device_get(prune.ones(FINAL)),
        scores=jax.tree.map(jnp.abs, FINAL),
        granularity=granularity,
    )
    worst = np.asarray(ARMS["invert"].mask(at)["a"])
    np.testing.assert_array_equal(worst, np.broadcast_to(~expected, (6, 4)))
    drawn = {
        np.asarray(ARMS["random"].mask(at._replace(key=jax.random.key(k)))["a"]).tobytes() for k in range(20)
    }
    for bits in drawn:
        units = np.frombuffer(bits, bool).reshape(6, 4)
        assert (units == units[:1]).all()
        assert units[0].sum() == 2
    assert len(drawn) > 3  # of six


def test_a_study_prunes_to_a_pattern() -> None:
    _, mask, _ = pruned("1:2", 0.5)
    size = np.abs(np.asarray(FINAL["a"]))
    for pair in range(3):
        first = size[2 * pair] > size[2 * pair + 1]
        np.testing.assert_array_equal(mask["a"][2 * pair], first)
        np.testing.assert_array_equal(mask["a"][2 * pair + 1], ~first)
    at = context()._replace(
        mask=mask,
        parent=jax.device_get(prune.ones(FINAL)),
        scores=jax.tree.map(jnp.abs, FINAL),
        granularity="1:2",
    )
    np.testing.assert_array_equal(ARMS["invert"].mask(at)["a"], ~mask["a"])
    drawn = np.asarray(ARMS["random"].mask(at)["a"]).reshape(3, 2, 4)
    assert (drawn.sum(1) == 1).all()


@pytest.mark.parametrize(
    ("prune_", "levels", "says"),
    [
        (config.Prune(scope="group", rate=0.2), 2, "prune.rate: 0.2 .* pairs of a regex"),
        (
            config.Prune(granularity="units"),
            2,
            "prune.granularity: 'units' .* weight, unit-l1, unit-l2, or N:M",
        ),
        (config.Prune(granularity="4:2", rate=0.5), 1, "prune.granularity: '4:2'"),
        (config.Prune(granularity="2:4", rate=0.5), 3, "levels: 3 is not allowed; it must be 1"),
        (config.Prune(granularity="2:4"), 1, "prune.rate: .* must be 0.5, alone or in pairs"),
        (config.Prune(granularity="2:4", density=0.5), 1, "prune.density: 0.5"),
    ],
)
def test_structures_that_do_not_go_together(prune_: config.Prune, levels: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        validate.validate(config.Study(levels=levels, prune=prune_))


@pytest.mark.parametrize(
    ("prune_", "says"),
    [
        (config.Prune(granularity="unit-l1"), "the units of output/kernel are the classes"),
        (config.Prune(granularity="unit-l1", scope="global", rate=0.2), "the units of output/kernel"),
        (
            config.Prune(granularity="unit-l1", rate=(("fc", 0.5),), rates=(0.5, 0.5)),
            "with prune.scope group",
        ),
        (config.Prune(granularity="unit-l1", rate=(("fc", 0.5),), density=0.3), "the units of output/kernel"),
        (config.Prune(granularity="2:3", rate=1 / 3), "2:3 does not fit fc1/kernel, whose 784 inputs"),
    ],
)
def test_structures_that_a_network_does_not_have(prune_: config.Prune, says: str) -> None:
    made = models.build("lenet300", (28, 28, 1), 10)
    with pytest.raises(UserError, match=says):
        plan._check_rates(config.Study(levels=1, prune=prune_), plan._weights(made))


def test_edge_popup_by_hand() -> None:
    """Three steps of gradient descent on scores, with the hand-written gradients of the bilinear network."""
    mask = context().mask
    weights = {n: np.asarray(w, np.float64) for n, w in INITIAL.params.items()}
    start = supermask.scores(jax.random.key(5), INITIAL.params)
    assert all(abs(start[n]).max() <= (w.shape[0]) ** -0.5 for n, w in weights.items())
    scores = {n: np.asarray(s, np.float64) for n, s in start.items()}

    def taking_part() -> dict[str, np.ndarray]:
        made = {}
        for n, w in weights.items():
            order = np.argsort(-abs(scores[n]).ravel(), kind="stable")
            keep = np.zeros(w.size, bool)
            keep[order[: int(mask[n].sum())]] = True
            made[n] = np.where(keep.reshape(w.shape), w, 0)
        return made

    optimiser = Optimiser(lambda at: optax.sgd(0.5), lambda at: 0.5)
    params, opt = supermask.begin(optimiser.at(0), INITIAL.params, start, mask)
    state, changed = State(params, {}, opt), 0
    for at in range(3):
        now = taking_part()
        for n in weights:
            np.testing.assert_array_equal(np.float32(now[n]), state.params[n])
        ga, gb = gradients(now["a"], now["b"])
        scores = {n: scores[n] - 0.5 * g * weights[n] * np.sign(scores[n]) for n, g in (("a", ga), ("b", gb))}
        batch = (jnp.asarray(BATCH[0]), jnp.asarray(BATCH[1]))
        state, _ = step(model(), optimiser, state, mask, batch, jnp.int32(at), scored=True)
        changed += sum(int((np.float32(now[n]) != state.params[n]).sum()) for n in weights)
    for n in weights:
        np.testing.assert_allclose(state.opt.scores[n], scores[n], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(state.opt.weights[n], INITIAL.params[n])
        assert int((state.params[n] != 0).sum()) == int(mask[n].sum())
    assert changed  # the choice moved


def test_a_chain_is_pruned_within_the_mask_that_its_leader_learned(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is after an interruption, when that mask is read from the run folder."""
    monkeypatch.setitem(ARMS, "popped", ARMS["edge_popup"]._replace(leads=True))
    monkeypatch.setitem(ARMS, "popped_reset", ARMS["continued_reset"]._replace(on="popped"))
    prepared = tiny(seeds=(0,), levels=2, arms=("popped", "popped_reset"), optim=config.Optim("sgd", lr=0.1))
    run = Reader(study.run(prepared, tmp_path / "runs"))
    learned, given = (
        run.mask(Cell(0, "popped-0", level, arm)) for level, arm in ((1, "popped"), (2, "popped_reset"))
    )
    for name, layer in learned.items():
        assert given[name]["kernel"].any()
        assert not (given[name]["kernel"] & ~layer["kernel"]).any()


def test_a_learned_mask_in_a_study(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tiny(seeds=(0,), levels=1, arms=("edge_popup",), optim=config.Optim(name="sgd", lr=0.1))
    run = Reader(study.run(prepared, tmp_path / "runs"))
    ticket, cell = Cell(0, "rewind-0", 1, "ticket"), Cell(0, "rewind-0", 1, "edge_popup")
    mask, made, origin = run.mask(cell), run.variables(cell).params, run.state(0, 0).params
    for name, layer in made.items():
        size = layer["kernel"].shape[0] * float(run.mask(ticket)[name]["kernel"].mean())
        expected = np.where(mask[name]["kernel"], np.sqrt(2 / size) * np.sign(origin[name]["kernel"]), 0)
        np.testing.assert_allclose(layer["kernel"], expected, rtol=1e-5)
        assert mask[name]["kernel"].sum() == run.mask(ticket)[name]["kernel"].sum()
        np.testing.assert_array_equal(layer["bias"], 0)
    task = study.task(prepared, run, cell)
    first = supermask.chosen(task.scores, task.mask)
    assert any((first[name]["kernel"] != mask[name]["kernel"]).any() for name in made)
    result = run.result(cell)
    assert result["weights_left"] == run.result(ticket)["weights_left"]
    # Going on from any position gives the same bits.
    monkeypatch.setattr(train, "_FIRST_STEPS", 5)
    trainer = study.make_trainer([prepared], None, [0])
    job = Job(0, 1, 0, 12, task.variables, task.mask, scores=task.scores)
    saved: list[Position] = []
    keep = Checkpoints(0.0, lambda i, position: saved.append(position))
    (whole,) = train.train(trainer, [job], lambda *_: None, keep)
    (again,) = train.train(trainer, [job._replace(position=saved[1])], lambda *_: None)
    for trained in (whole, again):
        jax.tree.map(np.testing.assert_array_equal, trained.variables.params, made)
        assert trained.curves == result["curves"]
