"""The landscape of a level: what is trained, what is measured, and what a second call skips."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, check_section, made_anew, of_an_earlier_version, unsealed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special as scipy_special
from scipy import stats as scipy_stats

from analysis import landscape as command
from analysis import open_run, record, tables
from analysis.landscape import measure, table, work
from analysis.landscape.table import Item, Network
from lthjax import batches, config, data, models, prune, rng, study
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.folder.places import folder
from lthjax.folder.reader import Reader
from lthjax.folder.store import Store
from lthjax.folder.verified import read_result, read_study
from lthjax.imp import Cell
from lthjax.measures import landscape, programs, quantities
from lthjax.measures.programs import PROGRAMS, Settings
from lthjax.models import Variables
from lthjax.networks import Stages
from lthjax.training import train
from lthjax.training.job import Job

LEVEL, CHAIN = 2, "rewind-0"
SMALL = Settings(
    images=2000,
    plane_images=40,
    plane_test_images=25,
    spectrum_images=40,
    points=5,
    draws=2,
    plane_draws=2,
    alphas=5,
    eigenvalues=2,
    steps=14,
    probes=2,
    probe_steps=4,
    trace_probes=4,
)
IMAGES = 60
RESIDUAL, PLAIN = ("resnet8", (8, 8, 1), 4), ("lenet300", (8, 8, 1), 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, data folder) of two seeds, with level 2 measured."""
    where = tmp_path_factory.mktemp("landscape")
    whole = data.load("mnist_10k")
    few = {
        f"{part}_{what}": getattr(whole, f"{part}_{what}")[:n]
        for part, n in (("train", 200), ("test", 60))
        for what in ("images", "labels")
    }
    # Every second pixel but for the edges: a fifth of the weights.
    few |= {name: images[:, 2:26:2, 2:26:2] for name, images in few.items() if name.endswith("images")}
    np.savez(where / "few.npz", **few, classes=np.int64(10))
    wanted = config.Study(
        name="tiny",
        seeds=(0, 1),
        levels=LEVEL,
        model="lenet300",
        arms=("ticket", "reinit", "random"),
        control_levels=(LEVEL,),
        data=config.Data(name="few", validation=40),
        train=config.Train(steps=12, batch=20, eval_every=5),
    )
    run = study.run(study.prepare(wanted, where), where / "runs")
    perform((run, where))
    return run, where


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `made` that a test may change."""
    return Path(shutil.copytree(made[0], tmp_path / made[0].name)), made[1]


def options(made: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    return {"level": LEVEL, "data_dir": made[1], **dataclasses.asdict(SMALL), **changes}


def perform(made: tuple[Path, Path], **changes: Any) -> Path:
    return record.perform(command.ANALYSIS, made[0], **options(made, **changes))


def asked(made: tuple[Path, Path], **changes: Any) -> work.Asked:
    return work.ask(open_run(made[0]), command.LandscapeOptions(run=made[0], **options(made, **changes)))


def loaded(path: Path) -> list[table.Found]:
    found = record.found(command.ANALYSIS, open_run(path))
    assert isinstance(found, list)
    return found


def findings(path: Path) -> list[record.Finding]:
    run = open_run(path)
    return command.findings(run, record.found(command.ANALYSIS, run))


def level_folder(run: Path) -> Path:
    return run / "landscape" / f"chain={CHAIN}" / f"level={LEVEL:02d}"


def rows_of(run: Path) -> list[dict[str, str]]:
    with (level_folder(run) / "landscape.csv").open() as file:
        return list(csv.DictReader(file))


def value(run: Path, seed: int, arm: str, where: str, quantity: str) -> float:
    key = {"seed": str(seed), "arm": arm, "where": where, "quantity": quantity}
    (row,) = [row for row in rows_of(run) if key.items() <= row.items()]
    return float(row["value"])


def arrays(run: Path, seed: int, arm: str, kind: str) -> dict[str, np.ndarray]:
    cell = Cell(seed, "dense", 0, "dense") if arm == "dense" else Cell(seed, CHAIN, LEVEL, arm)
    (path,) = folder(run / "landscape", cell).glob(f"{kind}-*.npz" if arm == "dense" else f"{kind}.npz")
    with np.load(path) as of:
        return {name: of[name] for name in of.files}


def stored(run: Path, cell: Cell) -> tuple[Any, Any]:
    """(weights, mask) of a trained cell, of the run or of its landscape."""
    own = (folder(run, cell) / "result.json").is_file()
    reader = Reader(run if own else run / "landscape")
    return reader.variables(cell).params, reader.mask(cell)


def seen(made: tuple[Path, Path], seed: int, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that the command uses, by numpy: float64 [N, 144], and their labels."""
    dataset = data.load("few", made[1])
    split = data.split(dataset, seed, 40)
    index = split.train if part == "train" else np.arange(60)
    order = np.asarray(jax.random.permutation(rng.stream(seed, f"landscape/{part}"), len(index)))
    index = index[order[:count]]
    images, labels = getattr(dataset, f"{part}_images")[index], getattr(dataset, f"{part}_labels")[index]
    return ((images / 255 - split.mean) / split.std).reshape(len(index), -1), labels.astype(int)


def forward(params: Any, images: np.ndarray) -> np.ndarray:
    """The forward pass of LeNet-300-100 in float64."""
    x = images
    for layer in ("fc1", "fc2", "output"):
        w, b = (np.asarray(params[layer][name], np.float64) for name in ("kernel", "bias"))
        x = x @ w + b
        x = x if layer == "output" else np.maximum(x, 0)
    return x


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


def error(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) != labels).mean())


def steps_up_to_the_target(losses: np.ndarray, target: float, most: int) -> tuple[dict[int, float], int]:
    """(what the search looks at, rounds it takes), of a training whose losses at all steps are known."""
    seen, rounds = {0: float(losses[0]), len(losses) - 1: float(losses[-1])}, 0
    while steps := quantities.finer_steps(seen, target, most):
        assert not {*steps} & {*seen}
        assert len(steps) <= most
        seen, rounds = dict(sorted({**seen, **{k: float(losses[k]) for k in steps}}.items())), rounds + 1
    return seen, rounds


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 32]), st.floats(0.02, 0.95))
@settings(max_examples=60, deadline=None)
def test_the_search_ends_within_two_percent_or_between_neighbours(seed: int, most: int, share: float) -> None:
    """On noisy losses that fall on the whole; on smooth ones it is plain bisection, written here again."""
    generator, n = np.random.default_rng(seed), 1500
    smooth = 2.3 * np.exp(-5 * np.arange(n + 1) / n)
    noisy = smooth * np.exp(0.2 * generator.normal(size=n + 1))
    for losses in (noisy, smooth):
        target = float(losses[-1] + share * (losses[0] - losses[-1]))
        if target <= losses[-1]:
            continue
        seen, rounds = steps_up_to_the_target(losses, target, most)
        step = quantities.nearest_step(seen, target)
        ends = quantities.around(seen, target)
        assert quantities.off(seen[step], target) <= 0.02 or ends[1] - ends[0] == 1
        # Every round leaves one of most + 1 parts, but for rounding.
        assert rounds <= np.ceil(np.log(n) / np.log(most + 1)) + 1
    if most == 1:
        low, high = 0, n
        while min(abs(np.log(smooth[[low, high]] / target))) > np.log(1.02) and high - low > 1:
            middle = round((low + high) / 2)
            low, high = (low, middle) if smooth[middle] <= target else (middle, high)
        assert quantities.around(seen, target) == [low, high]


def test_how_far_losses_are() -> None:
    assert quantities.off(1.02, 1.0) == quantities.off(1.0, 1.02) == pytest.approx(0.02)
    assert quantities.off(0.5, 0.5) == 0
    assert quantities.off(0.0, 0.0) == 0
    assert quantities.off(float("nan"), 1.0) == float("inf")


@pytest.mark.parametrize(
    ("steps", "passes"), [(0, 1), (12, 1), (32, 1), (33, 2), (450, 2), (3000, 3), (50_000, 4)]
)
def test_passes_of_a_search(steps: int, passes: int) -> None:
    """Of 32 steps each: the gap is a 32nd of the training first, then a 33rd of itself."""
    assert work._passes(steps) == passes
    gap, count = -(-steps // 32), 1
    while gap > 1:
        between = np.linspace(0, gap, 34).round().astype(int)
        gap, count = int(np.diff(between).max()), count + 1
    assert count <= passes


ENDS = [("dense", Cell(0, "dense", 0, "dense"))] + [
    (arm, Cell(0, CHAIN, LEVEL, arm)) for arm in ("ticket", "reinit", "random")
]


@pytest.mark.parametrize(("arm", "cell"), ENDS, ids=[arm for arm, _ in ENDS])
def test_the_end_is_the_stored_cell(made: tuple[Path, Path], arm: str, cell: Cell) -> None:
    """All 60 test images are used, so the values are the cell's own test loss and accuracy."""
    run = made[0]
    result = read_result(folder(run, cell))
    assert value(run, 0, arm, "end", "test_loss") == pytest.approx(result["test_loss"], rel=1e-5)
    assert value(run, 0, arm, "end", "test_accuracy") == result["test_accuracy"]
    params, mask = stored(run, cell)
    images, labels = seen(made, 0, "train", IMAGES)
    logits = forward(params, images)
    assert value(run, 0, arm, "end", "train_loss") == pytest.approx(cross_entropy(logits, labels), rel=1e-4)
    assert value(run, 0, arm, "end", "train_accuracy") == (logits.argmax(1) == labels).mean()
    biases = 300 + 100 + 10
    assert value(run, 0, arm, "end", "dimension") == result["weights_left"] + biases
    # The middle of the surface and of every line is the network itself, on fewer images.
    plane = arrays(run, 0, arm, "plane")
    lines = arrays(run, 0, arm, "lines")
    assert plane["train_loss"].shape == (2, 5, 5)
    assert lines["test_loss"].shape == (2, 5)
    for part in ("train", "test"):
        images, labels = seen(made, 0, part, {"train": 40, "test": 25}[part])
        logits = forward(params, images)
        here = cross_entropy(logits, labels)
        np.testing.assert_allclose(plane[f"{part}_loss"][:, 2, 2], here, rtol=1e-4)
        np.testing.assert_allclose(plane[f"{part}_accuracy"][:, 2, 2], 1 - error(logits, labels), rtol=1e-12)
        images, labels = seen(made, 0, part, IMAGES)
        here = cross_entropy(forward(params, images), labels)
        np.testing.assert_allclose(lines[f"{part}_loss"][:, 2], here, rtol=1e-4)
    for surface in plane["train_loss"]:
        assert (np.delete(surface.ravel(), 12) != surface[2, 2]).all()
    assert (plane["train_loss"][0] != plane["train_loss"][1]).sum() >= 24
    assert not any(np.asarray(params[x]["kernel"])[~mask[x]["kernel"]].any() for x in ("fc1", "output"))


def test_lines_stay_in_the_mask_and_share_their_draws(made: tuple[Path, Path]) -> None:
    """Computes the first line by numpy: normal numbers of the seed's stream, masked, scaled per filter."""
    run = made[0]
    for arm, draw in itertools.product(("ticket", "random"), (0, 1)):
        params, mask = stored(run, Cell(0, CHAIN, LEVEL, arm))
        key = jax.random.fold_in(rng.stream(0, "landscape/direction", draw), 0)
        leaves, treedef = jax.tree.flatten(params)
        drawn = [
            jax.random.normal(k, x.shape)
            for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        moved = jax.tree.map(np.array, params)
        for name, of_layer in jax.tree.unflatten(treedef, drawn).items():
            w = np.asarray(params[name]["kernel"], np.float64)
            d = np.asarray(of_layer["kernel"], np.float64) * mask[name]["kernel"]
            lengths = [np.sqrt((x * x).sum(0)) for x in (w, d)]
            moved[name]["kernel"] = w + 0.5 * d * (lengths[0] / (lengths[1] + 1e-10))
        images, labels = seen(made, 0, "test", IMAGES)
        expected = cross_entropy(forward(moved, images), labels)
        assert arrays(run, 0, arm, "lines")["test_loss"][draw, 3] == pytest.approx(expected, rel=1e-4)
        # The first direction of a plane is that of the line.
        images, labels = seen(made, 0, "test", 25)
        expected = cross_entropy(forward(moved, images), labels)
        assert arrays(run, 0, arm, "plane")["test_loss"][draw, 3, 2] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("arm", ["ticket", "reinit", "random"])
def test_a_sibling_differs_in_data_order_alone(made: tuple[Path, Path], arm: str) -> None:
    """From the test's own start weights, the study's order gives the cell, the other order the sibling."""
    run, prepared = made[0], asked(made).prepared
    cell = Cell(1, CHAIN, LEVEL, arm)
    params, mask = stored(run, cell)
    start = prepared.model.init(rng.stream(1, "init"))
    if arm == "reinit":
        start = prepared.model.init(rng.stream(1, f"arm/{CHAIN}/reinit", LEVEL, 1))
    trainer = study.make_trainer([prepared], None, [1])
    jobs = [Job(1, LEVEL, 0, 12, Variables(start.params, {}), mask, noise=noise) for noise in (0, 1)]
    same, other = train.train(trainer, jobs, lambda *_: None)
    jax.tree.map(np.testing.assert_array_equal, same.variables.params, params)
    sibling, its_mask = stored(run, cell._replace(arm=f"{arm}_sibling"))
    jax.tree.map(np.testing.assert_array_equal, other.variables.params, sibling)
    jax.tree.map(np.testing.assert_array_equal, its_mask, mask)
    assert np.abs(sibling["fc1"]["kernel"] - params["fc1"]["kernel"]).max() > 1e-4


def test_noise_names_another_order_and_leaves_the_first_as_it_was(made: tuple[Path, Path]) -> None:
    prepared = asked(made).prepared
    split = np.arange(100, 260, dtype=np.int32)
    own, plain, other, again = (
        batches.order(split, prepared.lengths, 20, 3, 2, 0, 16, *noise) for noise in ((0,), (), (1,), (1,))
    )
    np.testing.assert_array_equal(own, plain)
    expected = split[np.asarray(jax.random.permutation(rng.stream(3, "order", 2, 1), 160))]
    np.testing.assert_array_equal(own[8:].ravel(), expected)
    np.testing.assert_array_equal(other, again)
    assert (other != own).mean() > 0.9
    for epoch in (other[:8], other[8:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), split)


@pytest.mark.parametrize(
    ("arm", "other", "end"),
    [
        ("ticket", "sibling", Cell(1, CHAIN, LEVEL, "ticket_sibling")),
        ("random", "sibling", Cell(1, CHAIN, LEVEL, "random_sibling")),
        ("ticket", "reinit", Cell(1, CHAIN, LEVEL, "reinit")),
        ("ticket", "dense", Cell(1, "dense", 0, "dense")),
    ],
    ids=["ticket", "random", "to reinit", "to dense"],
)
def test_paths_by_numpy(made: tuple[Path, Path], arm: str, other: str, end: Cell) -> None:
    run = made[0]
    first, _ = stored(run, Cell(1, CHAIN, LEVEL, arm))
    second, _ = stored(run, end)
    where = f"path to {other}"
    for part in ("train", "test"):
        images, labels = seen(made, 1, part, IMAGES)
        losses, errors = [], []
        for alpha in np.linspace(0, 1, 5):
            point = jax.tree.map(lambda a, b, t=alpha: t * np.float64(a) + (1 - t) * b, first, second)
            logits = forward(point, images)
            losses.append(cross_entropy(logits, labels))
            errors.append(error(logits, labels))
        got = arrays(run, 1, arm, f"path_{other}")
        np.testing.assert_allclose(got[f"{part}_loss"], losses, rtol=1e-4)
        np.testing.assert_allclose(got[f"{part}_accuracy"], 1 - np.array(errors), atol=1e-9)
        for name, along in (("loss", losses), ("error", errors)):
            barrier = max(along) - (along[0] + along[-1]) / 2
            assert value(run, 1, arm, where, f"barrier_{part}_{name}") == pytest.approx(barrier, abs=2e-5)
    images, _ = seen(made, 1, "test", IMAGES)
    answers = [forward(params, images).argmax(1) for params in (first, second)]
    assert value(run, 1, arm, where, "disagreement") == np.mean(answers[0] != answers[1])
    apart = np.sqrt(
        sum(
            float(((np.float64(a) - b) ** 2).sum())
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
        )
    )
    assert value(run, 1, arm, where, "path_length") == pytest.approx(apart, rel=1e-5)


def test_sharpness_and_the_largest_eigenvalue_by_another_route(made: tuple[Path, Path]) -> None:
    """The loss after a step up numpy's gradient, and power iteration by forward over reverse."""
    run = made[0]
    params, mask = stored(run, Cell(0, CHAIN, LEVEL, "ticket"))

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda x, m: x * m, tree, mask)

    def loss_on(count: int) -> Callable[[Any], jax.Array]:
        images, labels = seen(made, 0, "train", count)

        def loss(tree: Any) -> jax.Array:
            x = jnp.asarray(images, jnp.float32)
            for layer in ("fc1", "fc2"):
                x = jnp.maximum(x @ tree[layer]["kernel"] + tree[layer]["bias"].reshape(1, -1), 0)
            logits = x @ tree["output"]["kernel"] + tree["output"]["bias"].reshape(1, -1)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

        return loss

    gradient = masked(jax.grad(loss_on(IMAGES))(params))
    norm = np.sqrt(sum(float((np.float64(g) ** 2).sum()) for g in jax.tree.leaves(gradient)))
    up = jax.tree.map(lambda w, g: np.float64(w) + 0.05 * np.float64(g) / norm, params, gradient)
    images, labels = seen(made, 0, "train", IMAGES)
    rise = cross_entropy(forward(up, images), labels) - cross_entropy(forward(params, images), labels)
    assert value(run, 0, "ticket", "end", "gradient_norm") == pytest.approx(norm, rel=1e-4)
    assert value(run, 0, "ticket", "end", "sharpness") == pytest.approx(rise, rel=1e-3)

    loss = loss_on(40)

    @jax.jit
    def times(v: Any) -> tuple[Any, jax.Array]:
        image = masked(jax.jvp(jax.grad(loss), (params,), (masked(v),))[1])
        size = jnp.sqrt(sum((x * x).sum() for x in jax.tree.leaves(image)))
        return jax.tree.map(lambda x: x / size, image), size

    vector = gradient
    for _ in range(60):
        vector, size = times(vector)
    assert value(run, 0, "ticket", "end", "eigenvalue_1") == pytest.approx(float(size), rel=1e-2)
    spectrum = arrays(run, 0, "ticket", "spectrum")
    assert spectrum["nodes"].shape == (2, 4)
    assert value(run, 0, "ticket", "end", "trace_per_dimension") == pytest.approx(
        value(run, 0, "ticket", "end", "trace") / value(run, 0, "ticket", "end", "dimension"), rel=1e-5
    )


def test_gauss_newton_and_fisher_by_the_gram_matrix_of_the_jacobian(made: tuple[Path, Path]) -> None:
    """J J' of 40 images has the non-zero eigenvalues of J' J; A and the gradients by numpy."""
    run = made[0]
    params, mask = stored(run, Cell(0, CHAIN, LEVEL, "ticket"))
    images, labels = seen(made, 0, "train", 40)
    images = images.astype(np.float32)

    def logits(tree: Any, x: jax.Array) -> jax.Array:
        for layer in ("fc1", "fc2"):
            x = jnp.maximum(tree[layer]["kernel"].T @ x + tree[layer]["bias"], 0)
        return tree["output"]["kernel"].T @ x + tree["output"]["bias"]

    jacobian = jax.jit(jax.jacrev(logits))
    rows, norms = [], []
    for image, label in zip(images, labels, strict=True):
        each = jax.tree.map(
            lambda j, m: np.where(m[None], j, 0).reshape(10, -1), jacobian(params, image), mask
        )
        j = np.concatenate(jax.tree.leaves(each), 1)
        z = forward(params, image[None].astype(np.float64))[0]
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        norms.append(float(((j.T @ (p - np.eye(10)[label])) ** 2).sum()))
        # A = R R' with R = diag(sqrt p) - p sqrt(p)'.
        root = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
        rows.append(root.T @ j / np.sqrt(40))
    whole = np.concatenate(rows)
    gram = whole @ whole.T
    top = np.linalg.eigvalsh(gram)[-1]
    assert value(run, 0, "ticket", "end", "ggn_eigenvalue") == pytest.approx(top, rel=2e-2)
    # With more products than the small settings have.
    key = np.asarray(jax.random.key_data(jax.random.key(0)))[None]
    chunks = landscape.chunks(images.reshape(40, 12, 12, 1), labels, 20)
    each = {"variables": Variables(params, {}), "mask": mask, "train": chunks, "keys": key}
    how, model = dataclasses.replace(SMALL, trace_probes=60), asked(made).prepared.model
    got = jax.jit(lambda each: PROGRAMS["gauss_newton"](model, how, each))(each)
    assert float(got["trace"]) == pytest.approx(np.trace(gram), abs=5 * float(got["trace_error"]))
    assert float(got["trace_error"]) < 0.05 * np.trace(gram)
    assert float(got["fisher_trace"]) == pytest.approx(np.mean(norms), rel=0.02)


def test_distance_is_from_the_start_weights(made: tuple[Path, Path]) -> None:
    run = made[0]
    params, mask = stored(run, Cell(0, CHAIN, LEVEL, "random"))
    start = jax.device_get(asked(made).prepared.model.init(rng.stream(0, "init"))).params
    pairs = zip(*(jax.tree.leaves(tree) for tree in (params, start, mask)), strict=True)
    one, two = (
        np.concatenate(x) for x in zip(*((w.ravel(), (s * m).ravel()) for w, s, m in pairs), strict=True)
    )
    assert value(run, 0, "random", "end", "distance") == pytest.approx(np.linalg.norm(one - two), rel=1e-4)
    angle = np.degrees(np.arccos(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))
    assert value(run, 0, "random", "end", "degrees") == pytest.approx(angle, rel=1e-2)


def test_train_losses_are_matched_by_exact_replays(made: tuple[Path, Path]) -> None:
    run, prepared = made[0], asked(made).prepared
    trainer = study.make_trainer([prepared], None, [0, 1])
    found = sorted(run.glob("landscape/seed=*/chain=*/level=02/*_matched_*"))
    assert len(found) == 4  # a pair per seed and control
    for place in found:
        result = read_result(place)
        seed, (arm, _, other) = result["seed"], result["arm"].partition("_matched_")
        control = other if arm == "ticket" else arm
        ends = {a: value(run, seed, a, "end", "train_loss") for a in (arm, other)}
        assert result["exact"]
        assert ends[arm] < ends[other] == result["made_from"]["target"]
        label = f"matched {control}"
        # The arm with the lower loss is taken earlier, the other at its end.
        assert value(run, seed, arm, label, "step") == result["step"] < 12
        assert value(run, seed, other, label, "step") == 12
        assert value(run, seed, other, label, "sharpness") == value(run, seed, other, "end", "sharpness")
        assert value(run, seed, arm, label, "train_loss") == pytest.approx(result["train_loss"], rel=1e-5)
        before, after = ends[arm], ends[other]
        assert abs(result["train_loss"] - after) < abs(before - after)
        # The saved state is that of the training run at that step.
        cell = Cell(seed, CHAIN, LEVEL, arm)
        start = prepared.model.init(rng.stream(seed, "init"))
        if arm == "reinit":
            start = prepared.model.init(rng.stream(seed, f"arm/{CHAIN}/reinit", LEVEL, 1))
        mask = stored(run, cell)[1]
        job = Job(seed, LEVEL, 0, result["step"], Variables(start.params, {}), mask)
        (part,) = train.train(trainer, [job], lambda *_: None)
        kept = stored(run, cell._replace(arm=result["arm"]))[0]
        jax.tree.map(np.testing.assert_array_equal, part.variables.params, kept)


def test_a_search_in_several_passes_keeps_an_exact_state(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two steps a pass instead of all; an older replay that is too far off is searched for again."""
    run = copied[0]
    places = sorted(run.glob("landscape/seed=*/chain=*/level=02/*_matched_*"))
    whole = {place: read_result(place) for place in places}
    for place, result in whole.items():
        assert result["finest"]  # type: ignore[typeddict-item]
        old = {name: of for name, of in result.items() if name != "finest"} | {"train_loss": 9.0}
        (place / "result.json").write_text(json.dumps(old))
    unsealed(run)
    spans, real = [], train.train
    monkeypatch.setattr(work, "_CAPTURES", 2)
    monkeypatch.setattr(work, "drawn_of", lambda run, found: [])  # drawing takes seconds

    def counted(trainer: Any, jobs: Any, *of: Any) -> Any:
        spans.extend((len(job.captures), job.stop) for job in jobs)
        return real(trainer, jobs, *of)

    monkeypatch.setattr(train, "train", counted)
    perform(copied)
    assert {count for count, stop in spans if stop == 12} >= {3}
    assert len(spans) > len(whole)
    for place, before in whole.items():
        after = read_result(place)
        assert after["exact"]
        # Cells without manifests have no content to be compared.
        assert after["made_from"] == {**(before["made_from"] or {}), "of": [""]}
        target = (after["made_from"] or {})["target"]
        # All steps were looked at before; noise may lead elsewhere, but no farther than a step or 2 %.
        assert (
            quantities.off(float(after["train_loss"] or 0), target)
            <= max(0.02, quantities.off(float(before["train_loss"] or 0), target) + 1e-6)
            or abs(after["step"] - before["step"]) <= 1
        )
    spans.clear()
    perform(copied)
    assert spans == []


def test_the_losses_of_every_pair_are_shown(made: tuple[Path, Path]) -> None:
    run = made[0]
    _, matched = command.section(open_run(run), loaded(run)).tables
    assert [row[:3] for row in matched.rows] == [
        ["2", control, str(seed)] for control in ("reinit", "random") for seed in (0, 1)
    ]
    for row in matched.rows:
        control, seed = str(row[1]), int(str(row[2]))
        ours, theirs = (
            value(run, seed, arm, f"matched {control}", "train_loss") for arm in ("ticket", control)
        )
        assert row[5:7] == [f"{ours:.4g}", f"{theirs:.4g}"]
        assert float(str(row[7])) == pytest.approx(
            100 * (max(ours, theirs) / min(ours, theirs) - 1), abs=0.051
        )
        steps = [int(value(run, seed, arm, f"matched {control}", "step")) for arm in ("ticket", control)]
        assert row[3:5] == [*map(str, steps)]
        assert 12 in steps


def test_pairs_whose_losses_are_far_apart_are_said() -> None:
    """Published tables: one of an earlier version, which matched no single pairs, and one of this."""

    def published(name: str, level: int) -> list[table.Number]:
        of_level = f"results/{name}/landscape/chain=rewind-0/level={level}/landscape.csv"
        return tables.read_rows(ROOT / of_level, table.Number)

    rows = published("lenet5_mnist", 16)
    losses = [
        [row.value for row in rows
         if (row.arm, row.where, row.quantity) == (arm, "matched reinit", "train_loss")]
        for arm in ("ticket", "reinit")
    ]  # fmt: skip
    far = [off for a, b in zip(*losses, strict=True) if (off := max(a, b) / min(a, b) - 1) > 0.02]
    said = f"train losses of {len(far)} of 3 pairs are more than 2 % apart, by up to {100 * max(far):.0f} %"
    assert command.unmatched(rows, "reinit") == said
    assert command.unmatched(published("stability_lenet300", 10), "reinit") == ""


def test_the_dense_networks_sibling_is_one_for_all_levels(made: tuple[Path, Path]) -> None:
    run, prepared = made[0], asked(made).prepared
    trainer = study.make_trainer([prepared], None, [1])
    start = prepared.model.init(rng.stream(1, "init"))
    job = Job(1, 0, 0, 12, Variables(start.params, {}), prune.ones(start.params), noise=1)
    (other,) = train.train(trainer, [job], lambda *_: None)
    sibling, _ = stored(run, Cell(1, "dense", 0, "dense_sibling"))
    jax.tree.map(np.testing.assert_array_equal, other.variables.params, sibling)
    assert len([*run.glob("landscape/seed=1/dense/path_sibling-*.npz")]) == 1


def test_a_level_of_other_settings_leaves_the_dense_networks_arrays(tmp_path: Path) -> None:
    """All levels share them; a file of an earlier version, without settings in its name, is read, too."""
    dense, ticket = (Item("lines", Network(cell)) for _, cell in ENDS[:2])
    more = dataclasses.replace(SMALL, draws=3)
    for item in (dense, ticket):
        for how in (SMALL, more):
            table.write_arrays(tmp_path, item, how, {"draws": np.array(how.draws)})
    kept = [table.read(tmp_path, dense, how) for how in (SMALL, more)]
    assert [int(arrays["draws"]) for arrays in kept if arrays is not None] == [2, 3]
    assert table.read(tmp_path, ticket, SMALL) is None
    last = dataclasses.replace(SMALL, draws=4)
    result = folder(tmp_path, dense.network.cell) / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    os.utime(result, (10**9, 10**9))
    old = folder(tmp_path / "landscape", dense.network.cell) / "lines.npz"
    tables.write_arrays(old, programs.basis("lines", last), {"draws": np.array(4)})
    found = table.read(tmp_path, dense, last)
    assert found is not None
    assert int(found["draws"]) == 4


@pytest.mark.parametrize(
    ("losses", "target", "step"),
    [
        ({0: 2.3, 10: 1.0, 20: 0.5, 30: 0.1}, 0.9, 10),
        ({0: 2.3, 10: 1.0, 20: 0.5, 30: 0.1}, 0.6, 20),
        ({0: 2.3, 10: 1.0, 20: 0.5, 30: 0.1}, 0.5, 20),
        ({0: 2.3, 10: 1.0, 20: 0.5, 30: 0.1}, 0.05, 30),
        ({0: 2.3, 10: 0.4, 20: 0.9, 30: 0.1}, 0.9, 10),
        ({0: 2.3, 30: 0.1}, 5.0, 0),
        ({0: 2.3, 30: 0.0}, 0.0, 30),
    ],
)
def test_nearest(losses: dict[int, float], target: float, step: int) -> None:
    """The nearer of the first step at or below the target and the step before.

    0.4 is 0.9 / 2.25, and 2.3 is 0.9 × 2.56.
    """
    assert quantities.nearest_step(losses, target) == step


def test_differences_are_paired(made: tuple[Path, Path]) -> None:
    run = made[0]
    with (level_folder(run) / "differences.csv").open() as file:
        rows = {(row["other"], row["where"], row["quantity"]): row for row in csv.DictReader(file)}
    for other, where, quantity in (
        ("reinit", "end", "eigenvalue_1"),
        ("reinit", "matched reinit", "sharpness"),
        ("random", "matched random", "trace"),
        ("dense", "end", "test_loss"),
    ):
        row = rows[other, where, quantity]
        values = [
            value(run, seed, "ticket", where, quantity) - value(run, seed, other, where, quantity)
            for seed in (0, 1)
        ]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        low, high = scipy_stats.t.interval(0.95, 1, np.mean(values), scipy_stats.sem(values))
        assert [float(row["low"]), float(row["high"])] == pytest.approx([low, high])
        assert row["n"] == "2"
    # No other arm has the same path, unless it has a sibling, as all have.
    for other in ("dense", "reinit", "random"):
        assert (other, "path to sibling", "disagreement") in rows
        assert (other, "path to dense", "disagreement") not in rows


def test_eigenvalues_are_in_their_order() -> None:
    names = ["eigenvalue_10", "trace", "eigenvalue_2", "eigenvalue_lowest", "eigenvalue_1"]
    rows = [table.Number(0, CHAIN, LEVEL, "ticket", "end", name, 1.0, None) for name in names]
    order = [row.quantity for row in sorted(rows, key=table.place_of)]
    assert order == ["eigenvalue_1", "eigenvalue_2", "eigenvalue_10", "eigenvalue_lowest", "trace"]


def test_the_page_leaves_out_the_further_eigenvalues(made: tuple[Path, Path]) -> None:
    section = command.section(open_run(made[0]), loaded(made[0]))
    shown = [line[3] for line in section.tables[0].rows]
    with (level_folder(made[0]) / "differences.csv").open() as file:
        written = {row["quantity"] for row in csv.DictReader(file)}
    assert "eigenvalue_2" in written
    assert "largest eigenvalue of the Hessian" in shown
    assert not [name for name in shown if name.startswith("eigenvalue_")]


@pytest.mark.parametrize(
    ("points", "reach", "there"),
    [(5, 1.0, True), (3, 1.0, False), (9, 2.0, True), (41, 2.0, True), (9, 0.4, False)],
)
def test_the_rise_is_that_half_a_filters_length_away_or_left_out(
    points: int, reach: float, there: bool
) -> None:
    """On a parabola the rise is 3 a² at a = 0.5, whatever the line's reach."""
    steps = np.linspace(-reach, reach, points)
    lines = {"steps": steps, **{f"{part}_loss": (3 * steps**2)[None] for part in ("train", "test")}}
    item = Item("lines", Network(Cell(0, CHAIN, LEVEL, "ticket")))
    got = {row.quantity: row.value for row in table.numbers(item, lines)}
    assert got == ({"rise_train": pytest.approx(0.75), "rise_test": pytest.approx(0.75)} if there else {})


def test_damaged_arrays_are_made_anew_and_never_raise(made: tuple[Path, Path], tmp_path: Path) -> None:
    item = Item("lines", Network(Cell(0, CHAIN, LEVEL, "ticket")))
    good = (folder(made[0] / "landscape", item.network.cell) / "lines.npz").read_bytes()
    path = folder(tmp_path / "landscape", item.network.cell) / "lines.npz"
    path.parent.mkdir(parents=True)
    shutil.copytree(folder(made[0], item.network.cell), folder(tmp_path, item.network.cell))
    generator, lost = np.random.default_rng(0), 0
    for at in generator.integers(0, 8 * len(good), 400):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << (at % 8)
        path.write_bytes(bad)
        lost += table.read(tmp_path, item, SMALL) is None
    assert lost > 100
    path.write_bytes(good)
    assert table.read(tmp_path, item, dataclasses.replace(SMALL, images=IMAGES)) is not None


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("landscape.csv", lambda text: text[: len(text) // 2], "ends within a line"),
        ("landscape.csv", lambda text: "", "is empty"),
        ("landscape.csv", lambda text: text.splitlines()[0] + "\n", "has no rows"),
        ("landscape.csv", lambda text: text.replace("quantity", "quality", 1), "lacks the column quantity"),
        ("landscape.csv", lambda text: text.replace(",ticket,", "\n", 1), "has a line without arm"),
        ("landscape.csv", lambda text: "".join(text.splitlines(True)[:-3]), "not as many rows"),
        ("about.json", lambda text: text.replace('"alphas"', '"betas"'), "lacks alphas"),
        ("about.json", lambda text: text.replace('"arms"', '"legs"'), "arms"),
        ("about.json", lambda text: text[:-9], "cannot be read"),
    ],
)
def test_a_damaged_table_is_refused(
    copied: tuple[Path, Path], name: str, change: Callable[[str], str], said: str
) -> None:
    path = level_folder(copied[0]) / name
    path.write_text(change(path.read_text()))
    # Noticed by its checksum; in a folder without checksums, by its contents.
    with pytest.raises(UserError, match=f"the checksum of {name} is not"):
        loaded(copied[0])
    (path.parent / "checksums.json").unlink()
    again = f"run python -m analysis.landscape {copied[0]} --level 2 --chain rewind-0 again"
    with pytest.raises(UserError, match=f"{said}.*{re.escape(again)}"):
        loaded(copied[0])


class Computed(Exception):
    pass


def test_a_second_call_computes_nothing(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied[0]
    before = {path.name: path.read_bytes() for path in level_folder(run).iterdir()}
    drawn = {f"landscape_{kind}" for kind in ("contours", "surfaces", "spectra", "barriers")}
    assert drawn <= {name.partition("_level_")[0] for name in before if name.endswith(".png")}
    assert "landscape.csv" in before

    def forbidden(*_: object) -> None:
        raise Computed

    monkeypatch.setattr(train, "train", forbidden)
    monkeypatch.setattr(measure.Measurer, "run", forbidden)
    perform(copied)
    assert {path.name: path.read_bytes() for path in level_folder(run).iterdir()} == before
    # Other settings give other numbers.
    with pytest.raises(Computed):
        perform(copied, rho=0.1)


def test_what_was_measured_of_a_cell_that_is_made_anew_is_measured_anew(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers, its sibling, its replay, and the paths to it; nothing else, and only once."""
    run, changed = copied[0], Cell(0, CHAIN, LEVEL, "reinit")
    before, measured, trained = rows_of(run), list[Item](), list[Cell]()
    write, genuine = measure.write_arrays, work._Landscape.train

    def counted(self: work._Landscape, jobs: Any) -> Any:
        trained.extend(cell for cell, _ in jobs)
        return genuine(self, jobs)

    monkeypatch.setattr(work, "drawn_of", lambda run, found: [])  # drawing takes seconds
    monkeypatch.setattr(work._Landscape, "train", counted)
    monkeypatch.setattr(
        measure, "write_arrays", lambda run, item, *of: (measured.append(item), write(run, item, *of))
    )
    made_anew(run, changed)
    perform(copied)
    ends = [{item.network.cell, *([item.end.cell] if item.end else [])} for item in measured]
    pair = {"ticket_matched_reinit", "reinit_matched_ticket"}
    assert all(
        changed in end or item.network.stored.arm in pair for end, item in zip(ends, measured, strict=True)
    )
    assert {cell.arm for cell in trained} - pair == {"reinit_sibling"}
    assert {cell.arm for cell in trained} & pair
    assert {cell.seed for cell in trained} == {0}
    assert {(item.kind, item.to) for item in measured if item.network == Network(changed)} >= {
        ("point", ""), ("lines", ""), ("spectrum", ""), ("path", "sibling"),
    }  # fmt: skip
    assert Item("path", Network(changed._replace(arm="ticket")), Network(changed)) in measured
    now = rows_of(run)
    own = [[row for row in rows if (row["seed"], row["arm"], row["where"]) == ("0", "reinit", "end")]
           for rows in (before, now)]  # fmt: skip
    assert own[0] != own[1]
    assert [row for row in before if row["seed"] == "1"] == [row for row in now if row["seed"] == "1"]
    measured.clear(), trained.clear()
    perform(copied)
    assert (measured, trained) == ([], [])


def test_a_landscape_of_an_earlier_version_is_kept_where_its_cells_are_older(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither arrays nor siblings and replays named the contents of the cells."""
    run = copied[0]
    before = (level_folder(run) / "landscape.csv").read_bytes()
    about, reader = read_study(run / "landscape"), Reader(run / "landscape")
    with Store(run / "landscape", about, seeds=[0, 1]) as store:
        for path in run.glob("landscape/seed=*/**/result.json"):
            result = read_result(path.parent)
            cell = Cell(*(result[name] for name in Cell._fields))  # type: ignore[literal-required]
            told = {name: of for name, of in (result["made_from"] or {}).items() if name != "of"}
            kept = {of.name: of.read_bytes() for of in path.parent.glob("*.npz") if of.name != "mask.npz"}
            mask, variables = reader.mask(cell), reader.variables(cell)
            shutil.rmtree(path.parent)
            store.write(cell, {**result, "made_from": told}, mask, variables)
            for name, content in kept.items():
                (path.parent / name).write_bytes(content)
    for path in run.glob("landscape/seed=*/**/*.npz"):
        if path.name != "mask.npz":
            of_an_earlier_version(path)

    def forbidden(*_: object) -> None:
        raise Computed

    monkeypatch.setattr(work, "drawn_of", lambda run, found: [])  # drawing takes seconds
    with monkeypatch.context() as nothing:
        nothing.setattr(train, "train", forbidden)
        nothing.setattr(measure.Measurer, "run", forbidden)
        perform(copied)
    assert (level_folder(run) / "landscape.csv").read_bytes() == before
    made_anew(run, Cell(1, CHAIN, LEVEL, "random"))
    monkeypatch.setattr(train, "train", forbidden)
    with pytest.raises(Computed):
        perform(copied)


def test_a_killed_command_goes_on(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied[0]
    before = (level_folder(run) / "landscape.csv").read_bytes()
    shutil.rmtree(level_folder(run))
    for gone in run.glob("landscape/seed=*/chain=*/level=02/*/path_*.npz"):
        gone.unlink()
    for gone in run.glob("landscape/seed=1/chain=*/level=02/ticket_sibling"):
        shutil.rmtree(gone)
    damaged = run / f"landscape/seed=0/chain={CHAIN}/level=02/random/path_sibling.npz"
    damaged.write_bytes(b"PK half of it")
    written: list[Item] = []
    write = measure.write_arrays

    def twice(path: Path, item: Item, settings: Settings, of: dict[str, np.ndarray]) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(item)
        write(path, item, settings, of)

    monkeypatch.setattr(work, "drawn_of", lambda run, found: [])  # drawing takes seconds
    monkeypatch.setattr(measure, "write_arrays", twice)
    with pytest.raises(KeyboardInterrupt):
        perform(copied)
    assert not (level_folder(run) / "about.json").exists()
    assert read_result(run / f"landscape/seed=1/chain={CHAIN}/level=02/ticket_sibling")["status"] == "done"
    first, rest = list(written), []
    monkeypatch.setattr(
        measure, "write_arrays", lambda run, item, *of: (rest.append(item), write(run, item, *of))
    )
    perform(copied)
    assert len({*first, *rest}) == len(first) + len(rest) == 10  # two seeds: three siblings and two others
    assert (level_folder(run) / "landscape.csv").read_bytes() == before


def test_without_training_and_on_the_command_line(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the cost first; without training there are no siblings or matched losses; keeps the run."""
    run, where = copied
    # Surfaces that an earlier call asked for are in the folder; the one below asks for none.
    for part in level_folder(run).iterdir():
        if not part.name.startswith("landscape_contours_"):
            part.unlink()
    assert list(level_folder(run).iterdir())
    own = level_folder(run) / f"landscape_spectra_level_02_{CHAIN}_for_talk.svg"
    own.touch()
    for gone in [*run.glob("landscape/seed=*/chain=*/*/*_*"), *run.glob("landscape/**/path_*.npz")]:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    kept = (path for path in run.rglob("*") if path.is_file() and path.parent != level_folder(run))
    before = {path: path.read_bytes() for path in kept}
    small = [
        text
        for name, number in dataclasses.asdict(SMALL).items()
        for text in (f"--{name.replace('_', '-')}", str(number))
    ]
    arguments = [str(run), "--level", str(LEVEL), "--seeds", "1", "--no-training", "--data-dir", str(where)]
    record.command(command.ANALYSIS)([*arguments, "--plane-seeds", *small])
    said = capsys.readouterr()
    assert Path(said.out.strip()) == level_folder(run)
    assert re.fullmatch(
        r"0 siblings and at most 0 replays to be trained, 0 steps in all; to be measured: 2 of path; about "
        r".*\d s on \d+ x cpu \(.*\)",
        said.err.splitlines()[0],
    )
    wheres = {row["where"] for row in rows_of(run)}
    assert wheres == {"end", "path to dense", "path to reinit"}
    notes = json.loads((level_folder(run) / "about.json").read_text())["notes"]
    assert any("not matched in 2 of 2 pairs" in note for note in notes)
    assert any("4 siblings are not trained" in note for note in notes)
    assert not list(level_folder(run).glob("landscape_contours_*"))
    own.unlink()
    flat, *_, basin = findings(run)
    assert "not matched" in flat.estimate
    assert (basin.outcome, basin.n) == ("not tested", 0)
    changed = {path.name for path in before if path.read_bytes() != before[path]}
    assert changed <= {"study.json"}  # the landscape's own, which records the command
    assert (run / "study.json").read_bytes() == before[run / "study.json"]


def test_findings_by_hand(made: tuple[Path, Path], tmp_path: Path) -> None:
    run = made[0]
    (found,) = loaded(run)
    check_section(command.ANALYSIS, run)
    assert (found.scope.chain, found.scope.level, found.scope.planes) == (CHAIN, LEVEL, [0])
    *flat, basin = findings(run)
    left = read_result(run / f"seed=0/chain={CHAIN}/level=02/ticket")["density"]
    claims = [
        f"Tickets lie in flatter minima than {other} ones, at {100 * left:.1f} %: {measure}"
        for other in ("reinitialised", "random")
        for measure in ("ASAM", "filter-normalised curvature")
    ]
    assert [one.claim for one in flat] == claims
    assert {one.n for one in (*flat, basin)} == {2}
    for one, control in zip(flat[::2], ("reinit", "random"), strict=True):
        # Decided by ASAM at matched loss; the eigenvalues are beside it.
        both = [
            [value(run, s, arm, f"matched {control}", "adaptive_sharpness") for s in (0, 1)]
            for arm in ("ticket", control)
        ]
        low, high = scipy_stats.t.interval(
            0.9, 1, np.mean(np.subtract(*both)), scipy_stats.sem(np.subtract(*both))
        )
        matched = "supported" if high < 0 else "refuted" if low > 0 else "undecided"
        ends = [
            [value(run, s, arm, "end", "adaptive_sharpness") for s in (0, 1)] for arm in ("ticket", control)
        ]
        at_end = scipy_stats.t.interval(
            0.9, 1, np.mean(np.subtract(*ends)), scipy_stats.sem(np.subtract(*ends))
        )
        same = {"supported": at_end[1] < 0, "refuted": at_end[0] > 0}.get(matched, True)
        assert one.outcome == (matched if same else "undecided")
        assert ("at the ends" in one.beside) is not same
        assert one.estimate.startswith(f"{np.mean(both[0]):.3g} against {np.mean(both[1]):.3g}: ")
        assert re.search(
            r"; with the scale: largest eigenvalue \S+ against \S+, mean eigenvalue", one.estimate
        )
    barriers = [100 * value(run, s, "ticket", "path to sibling", "barrier_test_error") for s in (0, 1)]
    differ = [100 * value(run, s, "ticket", "path to sibling", "disagreement") for s in (0, 1)]
    share = np.mean(barriers) / 100
    floor = 100 * np.sqrt(np.mean(np.maximum(barriers, differ)) / 100 / found.scope.settings.images)
    if floor > np.std(barriers, ddof=1):
        half = scipy_stats.t.ppf(0.95, 1) * floor / np.sqrt(2)
        lower, bound = np.clip(np.mean(barriers) + np.array([-half, half]), 0, 100)
    else:
        # On the logit scale, as no error is below 0 or above 100 %.
        half = scipy_stats.t.ppf(0.95, 1) * scipy_stats.sem(barriers) / 100 / (share * (1 - share))
        lower, bound = 100 * scipy_special.expit(scipy_special.logit(share) + np.array([-half, half]))
    outcome = "supported" if bound < 2 else "refuted" if lower > 2 else "undecided"
    assert basin.outcome == outcome
    # As published once: 0.0333 [-0.00252, 0.0692] pp by t.
    few = [
        table.Number(seed, CHAIN, 2, "ticket", "path to sibling", "barrier_test_error", barrier, None)
        for seed, barrier in enumerate((0.00025, 0.0005, 0.00025))
    ]
    few += [row._replace(quantity="disagreement", value=0.01) for row in few]
    # Of so many images that the barrier's own error is nothing.
    settings = dataclasses.replace(found.scope.settings, images=10**12)
    found = found._replace(scope=found.scope._replace(settings=settings))
    more = [
        row._replace(arm=arm, value=of * row.value)
        for row in few
        for arm, of in (("reinit", 2), ("random", 400))
    ]
    told = command.connected(open_run(run), found._replace(rows=few + more)).beside
    assert "reinit passes the same test, so connection does not tell tickets from it" in told
    assert "random does not pass (" in told
    close = command.connected(open_run(run), found._replace(rows=few))
    half = scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem([0.025, 0.05, 0.025]) / 0.0333333
    high = 0.0333333 * np.exp(half)
    assert close.estimate == f"barrier of the test error 0.0333 pp, at most {high:.3g} (one-sided 95 %)"
    assert (close.outcome, close.beside) == ("supported", "")
    # 100 images, of which the ends answer 1 % differently: three seeds that agree by chance say less.
    scope = found.scope._replace(settings=dataclasses.replace(settings, images=100))
    coarse = command.connected(open_run(run), found._replace(rows=few, scope=scope))
    high = 0.0333333 + scipy_stats.t.ppf(0.95, 2) / np.sqrt(3)
    assert coarse.estimate == f"barrier of the test error 0.0333 pp, at most {high:.3g} (one-sided 95 %)"
    # A control whose siblings are connected, too: the claim says nothing of tickets.
    # The mean difference and its spread, as fractions; 0.2 points are within the margin of barriers.
    for more, spread, outcome, said in (
        (0.0, 0.0, "equivalent within ±0.5 pp", "reinit passes the same test"),
        (0.002, 0.0014, "equivalent within ±0.5 pp", "reinit passes the same test"),
        (0.05, 0.0, "supported", "reinit does not"),
    ):
        apart = [0.0 if row.quantity == "disagreement" else more + spread * (row.seed - 1) for row in few]
        both = [
            *few,
            *(row._replace(arm="reinit", value=row.value + of) for row, of in zip(few, apart, strict=True)),
        ]
        beside = command.connected(open_run(run), found._replace(rows=both)).beside
        assert said in beside
        assert ("does not tell" in beside) is (more < 0.02)
        assert f"reinit − ticket {100 * more:+.3g} pp" in beside
        assert beside.endswith(f": {outcome}")
    # Three seeds whose tickets are clearly flatter at matched losses, and at the end flatter, too, or not.
    for end, outcome, note in (
        (2.0, "supported", ""),
        (5.0, "undecided", "supported at matched loss, refuted at the ends; "),
    ):
        flat = [
            table.Number(seed, CHAIN, 2, arm, where, "adaptive_sharpness", base + 0.01 * seed, None)
            for seed in (0, 1, 2)
            for where, pair in (("matched reinit", (1.0, 3.0)), ("end", (end, 3.0)))
            for arm, base in zip(("ticket", "reinit"), pair, strict=True)
        ]
        losses = [row._replace(quantity="train_loss", value=0.1) for row in flat]
        steps = [
            row._replace(quantity="step", value=20 if row.arm == "ticket" else 30 + row.seed)
            for row in flat
            if row.where == "matched reinit"
        ]
        said = command.flatter(open_run(run), found._replace(rows=flat + losses + steps))[0]
        assert said.outcome == outcome
        assert "1.01 against 3.01: -2, at most -2 (one-sided 95 %) at matched train loss" in said.estimate
        assert said.beside == f"{note}matched at step 20 of the ticket and 30 to 32 of reinit"
        unknown = command.flatter(open_run(run), found._replace(rows=flat + losses))[0]
        assert unknown.beside == note.removesuffix("; "), "a table without steps"
    turned = [row for row in flat if row.where == "end"]
    losses = [row._replace(quantity="train_loss", value=0.1) for row in turned]
    assert command.flatter(open_run(run), found._replace(rows=turned + losses))[0].outcome == "refuted"
    # Where neither is found flatter, they may be as flat, within a factor.
    for apart, outcome, test in (
        (0.01, "equivalent", "equivalence, within 1.1×"),
        (0.5, "undecided", "superiority"),
    ):
        near = [
            row._replace(value=3.0 + (apart * (row.seed - 1) if row.arm == "ticket" else 0.0))
            for row in turned
        ]
        alike = command.flatter(open_run(run), found._replace(rows=near + losses))[0]
        assert (alike.outcome, alike.test) == (outcome, test)
        assert ("ticket / reinit 1.00×, at least 0.99 and at most 1.01" in alike.estimate) is (apart < 0.1)
    signed = [row._replace(value=row.value - 3.0) for row in near]
    assert command.flatter(open_run(run), found._replace(rows=signed + losses))[0].outcome == "undecided"
    # A table of an earlier version lacks the curvature, and says how to get it.
    lacking = [row for row in found.rows if row.quantity != "filter_curvature"]
    older = command.flatter(open_run(run), found._replace(rows=lacking))
    assert [one.outcome == "not tested" for one in older] == [False, True, False, True]
    assert older[1].where == f"python -m analysis.landscape {run} --level 2 --chain {CHAIN}"
    # A run without any measurement names the command.
    empty = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("landscape"))
    for one in findings(empty):
        assert one.outcome == "not tested"
        assert one.where == f"python -m analysis.landscape {empty} --level 2"


def by_hand(rows: list[table.Number], images: int = 2000) -> table.Found:
    """What a level has, of three seeds."""
    arms = {arm: [0, 1, 2] for arm in ("dense", "ticket", "reinit", "random")}
    how = dataclasses.replace(SMALL, images=images)
    return table.Found(table.Scope(CHAIN, LEVEL, 0.1, 0, arms, [0], how), rows, [])


@pytest.mark.parametrize(
    ("end", "outcome", "note"),
    [
        (9.0, "undecided", "equivalent at matched loss, refuted at the ends; "),
        (1.0, "undecided", "equivalent at matched loss, supported at the ends; "),
        (3.0, "equivalent", ""),
    ],
)
def test_equal_flatness_must_be_found_at_the_ends_too(
    made: tuple[Path, Path], end: float, outcome: str, note: str
) -> None:
    """At matched losses tickets are as flat as reinit, whose measure is 3."""
    rows = [
        table.Number(seed, CHAIN, LEVEL, arm, where, quantity, value, None)
        for seed in (0, 1, 2)
        for where, base in (("matched reinit", 3.0), ("end", end))
        for arm, of in (("ticket", base + 0.01 * seed), ("reinit", 3.0))
        for quantity, value in (("adaptive_sharpness", of), ("train_loss", 0.1), ("step", 20.0))
    ]
    said = command.flatter(open_run(made[0]), by_hand(rows))[0]
    assert (said.outcome, said.test) == (outcome, "equivalence, within 1.1×")
    assert said.beside == f"{note}matched at step 20 of the ticket and 20 of reinit"


def test_figures_show_the_arrays(made: tuple[Path, Path]) -> None:
    run = made[0]
    figures = command.section(open_run(run), loaded(run)).figures
    assert all(command.figures.is_figure(loaded(run)[0], figure.name) for figure in figures)
    assert [figure.name.partition("rewind-0")[2] for figure in figures[:4]] == ["", "", "_draw_2", "_draw_2"]
    assert [figure.name.split("_")[1] for figure in figures[2:4]] == ["contours", "surfaces"]
    assert "draw 2 of 2" in figures[2].caption
    drawn = {figure.name.split("_")[1]: figure for figure in (*figures[:2], *figures[4:])}
    assert [*drawn] == ["contours", "surfaces", "profiles", "spectra", "barriers", "sharpness"]
    plane = arrays(run, 0, "reinit", "plane")
    for draw, figure in enumerate((figures[0], figures[2])):
        header, rows = figure.data
        got = {tuple(row[1:5]): row[5] for row in rows}
        assert got[draw, "reinit", 0.5, -1.0] == pytest.approx(plane["train_loss"][draw, 3, 0])
        assert header == ("seed", "draw", "arm", "a", "b", "train_loss", "test_loss")
    panels = drawn["contours"].figure.axes
    assert [axes.get_title(loc="left") for axes in panels[:4]] == ["dense", "ticket", "reinit", "random"]
    # A seed's losses are averaged over draws; the seeds are averaged on the log scale of the figure.
    (line,) = [x for x in drawn["profiles"].figure.axes[1].get_lines() if "random" in str(x.get_label())]
    means = [arrays(run, seed, "random", "lines")["test_loss"].mean(0) for seed in (0, 1)]
    np.testing.assert_allclose(line.get_ydata(), scipy_stats.gmean(means), rtol=1e-5)
    _, rows = drawn["barriers"].data
    along = [row[4] for row in rows if row[:3] == ("ticket", "reinit", 1)]
    path = arrays(run, 1, "ticket", "path_reinit")
    np.testing.assert_allclose(along, 100 * (1 - path["test_accuracy"]))
    # The path starts from the ticket, where alpha is 1.
    assert [row[3] for row in rows][:5] == [1.0, 0.75, 0.5, 0.25, 0.0]
    _, rows = drawn["spectra"].data
    density = np.array([row[3:] for row in rows if row[:3] == ("density", "random", 1)])
    assert np.trapezoid(density[:, 1], density[:, 0]) == pytest.approx(1, abs=0.01)
    for figure in drawn.values():
        assert "level 2 (" in figure.caption.lower()
        assert "Look" in figure.caption or "Compare" in figure.caption or "barrier" in figure.caption
        assert figure.raster == (figure.name.split("_")[1] in ("contours", "surfaces"))


def test_surfaces_of_every_seed_are_drawn(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first seed's names are those of a single one; each figure has its own seed's losses."""
    (found,) = loaded(made[0])
    item = next(item for item in table.items(found.scope) if item.kind == "plane")
    plane = table.read(made[0], item, found.scope.settings)
    assert plane is not None
    of_seed = {seed: {**plane, "train_loss": plane["train_loss"] + seed} for seed in (0, 1)}
    monkeypatch.setattr(command.figures, "_of_kind", lambda *_: {"ticket": of_seed})
    one_draw = dataclasses.replace(found.scope.settings, plane_draws=1)
    both = found._replace(scope=found.scope._replace(planes=[0, 1], settings=one_draw))
    drawn = command.figures._surfaces(open_run(made[0]), both)
    named = [f"landscape_{kind}_level_02_{CHAIN}" for kind in ("contours", "surfaces")]
    assert [figure.name for figure in drawn] == [*named, *(f"{name}_seed_1" for name in named)]
    assert all(command.figures.is_figure(both, figure.name) for figure in drawn)
    for figure, seed in zip(drawn, (0, 0, 1, 1), strict=True):
        assert f", seed {seed}, one draw of" in figure.caption
        assert {row[0] for row in figure.data[1]} == {seed}
        assert figure.data[1][0][5] == pytest.approx(float(plane["train_loss"][0, 0, 0]) + seed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 5}, r"--level: 5 has no trained ticket in rewind-0; it may be 1, 2\."),
        ({"chain": "rewind-3"}, r"--chain: 'rewind-3' has no ticket in the run"),
        ({"seeds": [0, 7]}, r"--seeds: 7 has no trained ticket at level 2; it may be \[0, 1\]"),
        ({"plane_seeds": [9]}, r"--plane-seeds: 9 has no trained ticket"),
        ({"plane_seeds": [1], "seeds": [0]}, r"--plane-seeds: 1 is not among --seeds; it may be \[0\]"),
        ({"reach": float("inf")}, r"--reach: inf is not allowed; .* above 0 and finite"),
        ({"points": 6}, r"--points: 6 is even"),
        ({"eigenvalues": 15}, r"--eigenvalues: 15 is not allowed"),
        ({"plane_images": 0}, r"--plane-images: 0 is not allowed; .* 1 or more"),
        ({"rho": 0.0}, r"--rho: 0.0 is not allowed; it must be above 0"),
    ],
)
def test_what_is_not_allowed(made: tuple[Path, Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(made, **changes)


def test_a_folder_in_the_way_is_named(copied: tuple[Path, Path]) -> None:
    shutil.rmtree(copied[0] / "landscape")
    (copied[0] / "landscape").write_text("")
    with pytest.raises(
        UserError, match=r"/landscape: it cannot be written \(File exists\); it must be a folder"
    ):
        perform(copied)


def test_an_arm_that_is_not_there_is_said(copied: tuple[Path, Path]) -> None:
    run = copied[0]
    shutil.rmtree(folder(run, Cell(1, CHAIN, LEVEL, "reinit")))
    got = asked(copied)
    assert got.scope.arms == {"dense": [0, 1], "ticket": [0, 1], "reinit": [0], "random": [0, 1]}
    assert got.notes == [
        "The reinit cell of seed 1 at level 2 is not there or diverged, and is left out.",
        "2,000 train and as many test images were asked for; 60 of each are looked at, as there are 160 and "
        "60.",
    ]
    shutil.rmtree(folder(run, Cell(1, "dense", 0, "dense")))
    assert "The dense cell of seed 1 is not there or diverged, and is left out." in asked(copied).notes
    kinds = [(item.name, item.network.cell.seed) for item in table.items(got.scope) if item.to == "reinit"]
    assert kinds == [("path_reinit", 0)]


def test_a_path_between_residual_networks_has_statistics_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with statistics by hand, at both ends and between: means over the whole chunks of batches."""
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Stages((3,), 1), 1, "for a test"))
    model = models.build("tiny", (8, 8, 1), 4)
    ends = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    mask = prune.ones(ends[0].params)
    images = 1 + 2 * np.random.default_rng(0).normal(size=(25, 8, 8, 1)).astype(np.float32)
    images *= np.linspace(-2, 2, 25, dtype=np.float32)[[*range(0, 25, 2), *range(1, 25, 2)], None, None, None]
    labels = np.arange(25) % 4
    each = {
        "variables": ends[0],
        "mask": mask,
        "other": ends[1],
        "other_mask": mask,
        "train": landscape.chunks(images, labels, 10),
        "test": landscape.chunks(images[:10], labels[:10], 10),
    }
    how = dataclasses.replace(SMALL, alphas=3)
    got, answers = jax.jit(lambda each: PROGRAMS["path"](model, how, each))(each), []

    for i, alpha in enumerate((0, 0.5, 1)):
        params = jax.tree.map(lambda a, b, s=alpha: s * a + (1 - s) * b, ends[0].params, ends[1].params)
        zeros = jax.tree.map(jnp.zeros_like, ends[0].stats)
        # From 0 a moving average of momentum 0.9 takes a tenth; the last five images fill no chunk.
        tenths = [model.apply(params, zeros, images[n : n + 10], True)[1] for n in (0, 10)]
        stats = jax.tree.map(lambda a, b: 10 * (a + b) / 2, *tenths)
        for part, count in (("train", 25), ("test", 10)):
            logits = model.apply(params, stats, images[:count], False)[0]
            right = (np.asarray(logits).argmax(1) == labels[:count]).mean()
            loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(count), labels[:count]].mean()
            assert got[f"{part}_loss"][i] == pytest.approx(loss, rel=1e-3)
            assert got[f"{part}_accuracy"][i] == pytest.approx(right, abs=1e-6)
        answers.append(np.asarray(logits).argmax(1))
    assert got["disagreement"] == pytest.approx(np.mean(answers[0] != answers[-1]), abs=1e-6)
    running = [np.asarray(model.apply(*end, images[:10], False)[0]).argmax(1) for end in ends]
    assert np.mean(running[0] != running[1]) != np.mean(answers[0] != answers[-1])
    assert programs.has_statistics_of(got, 10)


def test_paths_with_statistics_of_other_batches_are_measured_anew(tmp_path: Path) -> None:
    """Those of an earlier version among them, whose ends disagree by running statistics."""
    on = replicate.mesh(1)
    batches = [programs.statistics_batch(models.build(*of), SMALL, on) for of in (RESIDUAL, PLAIN)]
    assert batches == [programs.chunk_size(on), 0] == [50, 0]
    dense, ticket = (Network(cell) for _, cell in ENDS[:2])
    path, point = Item("path", ticket, dense), Item("point", ticket)
    scope: Any = SimpleNamespace(settings=SMALL)
    for batch, old in itertools.product((0, 50), (0, 50, 500)):
        arrays = {"disagreement": np.array(0.5), **({"statistics_batch": np.array(old)} if old else {})}
        for item in (path, point):
            table.write_arrays(tmp_path, item, SMALL, arrays)
        reader: Any = SimpleNamespace(_run=SimpleNamespace(path=tmp_path), _scope=scope, _batch=batch)
        assert (measure.Measurer.read(reader, path) is None) == (batch != old)
        assert measure.Measurer.read(reader, point) is not None
        # The figure of an earlier version's table is drawn from its arrays.
        assert table.read(tmp_path, path, SMALL) is not None


def test_the_page_says_what_a_landscape_trains() -> None:
    seeds, steps = [0, 1, 2], 5000
    arms = dict.fromkeys(("dense", "ticket", "reinit", "random"), seeds)
    scope = table.Scope("rewind-0", 10, 0.1, 0, arms, [0], Settings())
    siblings, replays, passes = len(scope.siblings()), len(scope.replays()), work._passes(steps)
    said = " ".join((ROOT / "docs" / "looking.md").read_text(encoding="utf-8").split())
    assert passes == 3
    total = (siblings + replays * passes) * steps
    assert f"{siblings} siblings and at most {replays} replays, {total:,} steps in all if every" in said
