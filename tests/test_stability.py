"""The instability analysis: orders, pairs against trainings of the test's own, verdicts by hand."""

import csv
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import check_section, made_anew, make_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special as scipy_special
from scipy import stats as scipy_stats

from analysis import draw, open_run, record, stability, tables
from analysis.stability import measure, table, work
from analysis.stability.table import LevelRow, PairRow
from lthjax import config, data, files, manifest, models, networks, prune, rng, study
from lthjax.errors import UserError
from lthjax.folder.places import folder
from lthjax.folder.reader import Reader
from lthjax.imp import Cell
from lthjax.measures import geography, wiring
from lthjax.models import Variables
from lthjax.networks import Layer
from lthjax.training import train
from lthjax.training.job import Job

CHAIN = "rewind-4"
LITTLE: dict[str, Any] = {"k": (0, 4, 8), "levels": (2,), "alphas": 5, "arms": ("dense", "ticket", "reinit")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, data folder) of seed 1, rewound to step 4 of 12, with level 2 measured."""
    where = tmp_path_factory.mktemp("stability")
    prepared = make_tiny(where)(
        seeds=(1,),
        arms=("ticket", "reinit"),
        rewind=(4,),
        control_levels=(2,),
        train=config.Train(steps=12, batch=20, eval_every=6),
    )
    run = study.run(prepared, where / "runs")
    perform((run, where / "data"))
    return run, where / "data"


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, data folder) of seed 1, rewound to steps 0 and 4 of 12; every chain at its own step."""
    where = tmp_path_factory.mktemp("rewound")
    prepared = make_tiny(where)(
        seeds=(1,),
        levels=1,
        arms=("ticket", "random"),
        rewind=(0, 4),
        train=config.Train(steps=12, batch=20, eval_every=6),
    )
    run = study.run(prepared, where / "runs")
    arms = ("dense", "ticket", "random")
    record.perform(stability.ANALYSIS, run, data_dir=where / "data", at_rewind=True, alphas=5, arms=arms)
    return run, where / "data"


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return Path(shutil.copytree(made[0], tmp_path / made[0].name)), made[1]


def perform(made: tuple[Path, Path], **changes: Any) -> Path:
    return record.perform(stability.ANALYSIS, made[0], data_dir=made[1], **{**LITTLE, **changes})


def rows_of(run: Path, name: str = "stability.csv") -> list[dict[str, str]]:
    with (run / "stability" / name).open() as file:
        return list(csv.DictReader(file))


def forward(params: Any, images: np.ndarray) -> np.ndarray:
    """The answers of LeNet-300-100 in float64."""
    x = images
    for layer in ("fc1", "fc2", "output"):
        x = x @ np.float64(params[layer]["kernel"]) + np.float64(params[layer]["bias"])
        x = x if layer == "output" else np.maximum(x, 0)
    return x.argmax(1)


def barrier(first: Any, second: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Highest error on five points of the straight path, less the mean of its ends."""
    errors = []
    for alpha in np.linspace(0, 1, 5):
        point = jax.tree.map(lambda a, b, t=alpha: t * np.float64(a) + (1 - t) * np.float64(b), first, second)
        errors.append(float((forward(point, images) != labels).mean()))
    return max(errors) - (errors[0] + errors[-1]) / 2


def all_images(where: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All 60 test images, as the networks of a seed see them."""
    dataset = data.load("few", where)
    split = data.split(dataset, seed, 40)
    images = ((dataset.test_images / 255 - split.mean) / split.std).reshape(60, -1)
    return images, dataset.test_labels.astype(int)


def test_two_copies_differ_in_data_order_alone(made: tuple[Path, Path]) -> None:
    """Trains the ticket to step 8 with the study's order, then on with the two orders; and their barrier."""
    run, where = made
    opened = open_run(run)
    prepared = opened.prepared((1,), where)
    cell = Cell(1, CHAIN, 2, "ticket")
    mask, state = opened.mask(cell), opened.variables_at(1, 4)
    trainer = study.make_trainer([prepared], None, [1])
    start = Variables(jax.device_get(prune.apply(state.params, mask)), state.stats)
    (own,) = train.train(trainer, [Job(1, 2, 4, 8, start, mask)], lambda *_: None)
    noises = work.orders(1, 2, 1)
    jobs = [Job(1, 2, 8, 12, own.variables, mask, noise=noise) for noise in noises]
    ends = [one.variables.params for one in train.train(trainer, jobs, lambda *_: None)]
    store = Reader(run / "stability")
    for number, end in enumerate(ends, 1):
        copy = cell._replace(arm="ticket_from_8", repeat=number)
        jax.tree.map(np.testing.assert_array_equal, store.variables(copy).params, end)
        jax.tree.map(np.testing.assert_array_equal, store.mask(copy), mask)
    assert np.abs(ends[0]["fc1"]["kernel"] - ends[1]["fc1"]["kernel"]).max() > 1e-4

    (row,) = [r for r in rows_of(run) if (r["seed"], r["arm"], r["k"]) == ("1", "ticket", "8")]
    images, labels = all_images(where, 1)
    assert float(row["barrier_test_error"]) == pytest.approx(barrier(*ends, images, labels), abs=1e-7)
    apart = np.concatenate([np.ravel(np.float64(a) - b) for a, b in
                            zip(*map(jax.tree.leaves, ends), strict=True)])  # fmt: skip
    assert float(row["distance"]) == pytest.approx(np.sqrt((apart**2).sum()), rel=1e-5)
    right = [(forward(end, images) == labels).mean() for end in ends]
    assert float(row["test_accuracy"]) == pytest.approx(np.mean(right), abs=1e-9)
    dense = Reader(run).result(Cell(1, "dense", 0, "dense"))["test_accuracy"]
    assert float(row["dense_accuracy"]) == dense
    assert dense is not None
    assert row["matching"] == str(bool(np.mean(right) >= dense - 0.002 - 1e-9))
    assert row["stable"] == str(float(row["barrier_test_error"]) < 0.02)


def test_which_states_pairs_start_from(made: tuple[Path, Path]) -> None:
    """The ticket has none before its rewind step; the dense network's at step 4 is the run's."""
    run = made[0]
    found = {(row["arm"], int(row["k"])) for row in rows_of(run)}
    assert found == {*itertools.product(("dense", "reinit"), (0, 4, 8)), ("ticket", 4), ("ticket", 8)}
    cells = {path.parent.name for path in run.glob("stability/seed=1/*/*/*/result.json")}
    trained = {"dense_to_8", "ticket_to_8", "reinit_to_4", "reinit_to_8"}
    assert {name for name in cells if "_to_" in name} == trained
    made_from = Reader(run / "stability").result(Cell(1, "dense", 0, "dense_from_4"))["made_from"]
    assert made_from is not None
    state = Reader(run).state(1, 4)
    jax.tree.map(np.testing.assert_array_equal, open_run(run).variables_at(1, 4), state)
    assert made_from["state"] == measure.content(run / "seed=1" / "state=4") != ""


def test_every_chain_at_its_own_rewind_step(rewound: tuple[Path, Path]) -> None:
    """Tickets and controls of a chain start at its step, with its mask; only the dense network at both."""
    run = rewound[0]
    found = {(row["chain"], row["arm"], row["k"]) for row in rows_of(run)}
    chains = {(f"rewind-{k}", arm, k) for k in ("0", "4") for arm in ("ticket", "random")}
    assert found == chains | {("dense", "dense", "0"), ("dense", "dense", "4")}
    # No state is trained again: all are the starts of trainings, or the run's own.
    assert not [*run.glob("stability/**/*_to_*")]
    store, opened = Reader(run / "stability"), open_run(run)
    for chain, arm, k in chains:
        mask = store.mask(Cell(1, chain, 1, f"{arm}_from_{k}", 1))
        jax.tree.map(np.testing.assert_array_equal, mask, opened.mask(Cell(1, chain, 1, arm)))
    assert {row["chain"] for row in rows_of(run, "levels.csv")} == {"rewind-0"}
    check_section(stability.ANALYSIS, run)
    tables = record.found(stability.ANALYSIS, opened)
    section = stability.section(opened, tables)
    assert section.remark.endswith("so each k is a chain of its own.")
    assert "tickets and controls being those rewound to step k" in section.figures[0].caption
    claims = [finding.claim for finding in stability.findings(opened, tables)]
    assert claims[0].startswith("From step 0 on the training of the dense network is stable")
    assert claims[1].startswith("Rewound to step 0, the training of tickets of ")
    assert claims[2].startswith("Rewound to step 0, tickets of ")
    assert claims[3].startswith(
        "Tickets are more stable to the order of the data than random, rewound to step 0"
    )


def test_one_chain_of_several_by_its_step(rewound: tuple[Path, Path]) -> None:
    options = work.Options(
        run=rewound[0], data_dir=rewound[1], at_rewind=True, k=(4,), arms=("dense", "ticket")
    )
    origins = work.ask(open_run(rewound[0]), options).origins
    assert [(at.cell.chain, at.k) for at in origins] == [("dense", 4), ("rewind-4", 4)]


def test_paths_between_levels_by_numpy(made: tuple[Path, Path]) -> None:
    run, where = made
    opened, (images, labels) = open_run(run), all_images(where, 1)
    ends = [opened.weights(Cell(1, "dense", 0, "dense"))]
    ends += [opened.weights(Cell(1, CHAIN, level, "ticket")) for level in (1, 2)]
    rows = {(int(r["level"]), int(r["other"])): r for r in rows_of(run, "levels.csv")}
    assert [*rows] == [(1, 0), (2, 1), (2, 0)]
    for (level, other), row in rows.items():
        expected = barrier(ends[other], ends[level], images, labels)
        assert float(row["barrier_test_error"]) == pytest.approx(expected, abs=1e-7)
        assert row["connected"] == str(expected < 0.02)


def test_orders_are_of_their_own_streams() -> None:
    """The stream is drawn here by hand; no two pairs, seeds or levels share an order, nor the study's, 0."""
    key = jax.random.fold_in(jax.random.fold_in(rng.stream(3, "stability"), 2), 7)
    expected = jax.random.randint(key, (2,), 1, 2**31 - 1, np.int32)
    assert work.orders(3, 7, 2) == tuple(np.asarray(expected).tolist())
    places = itertools.product((0, 3), (0, 7), (1, 2))
    every = [noise for seed, level, pair in places for noise in work.orders(seed, level, pair)]
    assert len({*every}) == 16
    assert 0 not in every


class Computed(Exception):
    pass


def test_a_second_call_computes_nothing(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied[0]
    before = {path.name: path.read_bytes() for path in (run / "stability").iterdir() if path.is_file()}
    assert {"stability.csv", "levels.csv", "stability_curve.png", "stability_levels.svg"} <= {*before}
    real = train.train

    def forbidden(*_: object) -> None:
        raise Computed

    for module, name in ((train, "train"), (measure.replicate, "run")):
        monkeypatch.setattr(module, name, forbidden)
    perform(copied)
    after = {path.name: path.read_bytes() for path in (run / "stability").iterdir() if path.is_file()}
    assert before.pop("study.json")
    assert after | before == after
    with pytest.raises(Computed):
        perform(copied, alphas=3)
    # A state of other content: what was made from it no longer counts.
    monkeypatch.setattr(train, "train", real)
    store = Reader(run / "stability")
    assert store.has(Cell(1, CHAIN, 2, "ticket_from_8"))
    content, strange = measure.content, folder(store.path, Cell(1, CHAIN, 2, "ticket_to_8"))
    monkeypatch.setattr(work, "content", lambda of: "other" if of == strange else content(of))
    asked = work.ask(open_run(run), work.Options(run=run, data_dir=copied[1], **LITTLE))
    at = work._Stability(open_run(run), asked, store, None, None)  # type: ignore[arg-type]
    assert [(cell.seed, cell.arm, cell.repeat) for cell in at.copies()] == [
        (1, "ticket_from_8", 1), (1, "ticket_from_8", 2)
    ]  # fmt: skip


def of_an_earlier_version(cells: Path) -> None:
    """Rewrites what is trained there without the contents of the run's cells that it was trained of."""
    for path in cells.glob("seed=*/**/result.json"):
        result, made = json.loads(path.read_text()), manifest.read(path.parent)
        del result["made_from"]["of"]
        path.write_text(json.dumps(result))
        assert made is not None
        of = {**made.files, "result.json": files.sha256(path)}
        (path.parent / manifest.FILE).write_text(manifest.sealed(made._replace(files=of)._asdict()))


@pytest.mark.parametrize("is_old", [False, True])
def test_what_was_trained_of_a_cell_that_was_made_anew_is_trained_again(
    is_old: bool, copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start of its training, and what follows; what names no cells counts as long as it is newer."""
    run = copied[0]
    if is_old:
        of_an_earlier_version(run / "stability")

    options = work.Options(run=run, data_dir=copied[1], **LITTLE)
    asked = work.ask(open_run(run), options)
    at = work._Stability(open_run(run), asked, Reader(run / "stability"), None, None)  # type: ignore[arg-type]
    assert (at.trunks(), at.copies()) == ({}, {})
    made_anew(run, Cell(1, CHAIN, 2, "ticket"))
    trunks = at.trunks()
    assert [cell.arm for cell in trunks] == ["ticket_to_8"]
    assert [cell.arm for cell in at.copies(trunks)] == ["ticket_from_4"] * 2 + ["ticket_from_8"] * 2
    # The new training to the state may diverge, while the copies of the old one are there.
    done = measure.Measurer.done
    monkeypatch.setattr(
        measure.Measurer, "done", lambda self, *of: trunks.keys().isdisjoint(of) and done(self, *of)
    )
    assert [(pair.arm, pair.k) for pair in at.left_out()] == [("ticket", 8)]


def test_a_path_with_statistics_of_other_batches_is_measured_anew(tmp_path: Path) -> None:
    line = measure.Line(Cell(1, CHAIN, 2, "a"), Cell(1, CHAIN, 2, "b"), in_run=False)
    for batch, old in itertools.product((0, 50), (0, 50)):
        arrays = {"disagreement": np.array(0.5), **({"statistics_batch": np.array(old)} if old else {})}
        tables.write_arrays(tmp_path / "path.npz", {}, arrays)
        of: Any = SimpleNamespace(_file=lambda _: tmp_path / "path.npz", _basis=lambda _: {}, _batch=batch)
        assert (measure.Measurer._read(of, line) is None) == (batch != old)


def test_a_killed_command_goes_on(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy is gone: it alone is trained again, its pair alone measured, and the table is as before."""
    run = copied[0]
    before = {name: (run / "stability" / name).read_bytes() for name in table.TABLES}
    for name in table.TABLES:
        (run / "stability" / name).unlink()
    shutil.rmtree(folder(run / "stability", Cell(1, CHAIN, 2, "reinit_from_4", 2)))
    trained, lines = [], []
    train_one, measured = train.train, measure.Measurer._ends

    def counted(trainer: Any, jobs: Any, *of: Any) -> Any:
        trained.extend((job.seed, job.start, job.stop) for job in jobs)
        return train_one(trainer, jobs, *of)

    def seen(self: Any, line: Any) -> Any:
        lines.append(line)
        return measured(self, line)

    monkeypatch.setattr(train, "train", counted)
    monkeypatch.setattr(measure.Measurer, "_ends", seen)
    monkeypatch.setattr(work.figures, "drawn", lambda *of: [])  # drawing takes seconds
    perform(copied)
    assert trained == [(1, 4, 12)]
    assert [(line.second.arm, line.second.seed, line.matched) for line in lines] == [
        ("reinit_from_4", 1, False), ("reinit_from_4", 1, True)
    ]  # fmt: skip
    assert {name: (run / "stability" / name).read_bytes() for name in table.TABLES} == before


def test_the_cost_is_said_first(made: tuple[Path, Path]) -> None:
    """Counts by hand: four copies of every state, and the trainings to the states."""
    run, where = made
    options = work.Options(run=run, data_dir=where, **{**LITTLE, "pairs": 2, "k": (0, 6)})
    asked = work.ask(open_run(run), options)
    said: list[str] = []

    class Watch:
        def say(self, text: str) -> None:
            said.append(text)

    (run.parent / "empty").mkdir(exist_ok=True)
    at = work._Stability(open_run(run), asked, Reader(run.parent / "empty"), Watch(), None)  # type: ignore[arg-type]
    at.seconds = lambda *_: 1.0  # type: ignore[method-assign]
    at._measurer.seconds = lambda *_: 1.0  # type: ignore[method-assign]
    at.announce()
    # From 0: dense and reinit; from 6: all three. Two pairs of two copies; three paths between levels.
    steps = 4 * (2 * 12 + 3 * 6) + (6 + 2 + 6)
    assert said[0].startswith(
        f"20 copies and 3 states to be trained, {steps} steps in all; 13 paths to be measured; about 2 s on "
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([(7, 5), (6,)]))
@settings(max_examples=25, deadline=None)
def test_units_in_another_order_compute_the_same_and_are_matched_back(
    seed: int, widths: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(seed)
    layers = tuple(Layer(f"fc{i}", width) for i, width in enumerate((*widths, 3)))
    params = {
        layer.name: {"kernel": generator.normal(size=(before, layer.features)),
                     "bias": generator.normal(size=layer.features)}
        for layer, before in zip(layers, (4, *widths), strict=True)
    }  # fmt: skip
    units = [generator.permutation(width) for width in widths]
    other = geography.reordered(layers, params, units)

    def out(params: Any, x: np.ndarray) -> np.ndarray:
        for layer in layers:
            x = np.maximum(x, 0) @ params[layer.name]["kernel"] + params[layer.name]["bias"]
        return x

    x = generator.normal(size=(9, 4))
    np.testing.assert_allclose(out(other, x), out(params, x), rtol=1e-9, atol=1e-9)
    back = geography.matching(layers, params, other)
    for planted, got in zip(units, back, strict=True):
        np.testing.assert_array_equal(planted[got], np.arange(len(planted)))
    mask = {"fc0": {"kernel": params["fc0"]["kernel"] > 0, "bias": np.array(True)}}
    moved = geography.reordered(layers[:1], mask, [])["fc0"]
    np.testing.assert_array_equal(moved["kernel"], mask["fc0"]["kernel"])
    assert moved["bias"].shape == ()


def test_channels_in_another_order_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution whose channels are flattened, by the network's own forward pass."""
    layers = (Layer("conv1", 5, 3, pool=True), Layer("fc1", 6))
    monkeypatch.setitem(models.MODELS, "own", models.Entry(layers, 2, "for a test"))
    model = models.build("own", (8, 8, 2), 3)
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    params = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), shapes)
    units = [generator.permutation(layer.features) for layer in layers]
    images = generator.normal(size=(3, 8, 8, 2)).astype(np.float32)
    other = geography.reordered(model.layers, params, units)
    assert not np.array_equal(other["conv1"]["kernel"], params["conv1"]["kernel"])
    ours, theirs = (np.asarray(model.apply(p, {}, images, False)[0]) for p in (params, other))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)


def test_signed_matching_finds_what_magnitudes_cannot() -> None:
    """Two units of equal magnitudes and opposite signs; and a product that is negative however they go."""
    first = [np.array([[[1.0, -1.0], [2.0, -2.0]]]), np.array([[[1.0], [1.0]]])]
    second = geography.permuted(first, [np.array([1, 0])])
    np.testing.assert_array_equal(geography.align(first, second).units[0], [1, 0])
    negative = [np.array([[[-1.0, -3.0]]]), np.array([[[1.0], [1.0]]])]
    positive = [np.array([[[2.0, 1.0]]]), np.array([[[-1.0], [-2.0]]])]
    # As they are −2 − 3 − 1 − 2 = −8; exchanged −1 − 6 − 2 − 1 = −10.
    assert geography.align(negative, positive).common == -8


def test_matching_brings_back_a_residual_network_with_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second network is the first with its units in another order, stream by stream."""
    monkeypatch.setitem(models.MODELS, "own", models.Entry(networks.Stages((4, 5), 2), 4, "for a test"))
    model = models.build("own", (8, 8, 1), 3)
    generator, layers = np.random.default_rng(2), wiring.layers(model)
    made = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), tuple(made))
    first = Variables(*drawn)
    mask = jax.tree.map(lambda w: w > 0 if w.ndim > 1 else np.array(True), first.params)
    first = first._replace(params=jax.device_get(prune.apply(first.params, mask)))
    sizes = {wire.units: wiring.leaf(mask, wire.name)["kernel"].shape[-1] for wire in layers}
    units = [generator.permutation(sizes[group]) for group in range(len(sizes) - 1)]
    other = measure.Network(wiring.permuted(layers, first, units), geography.reordered(layers, mask, units))
    ends = {"a": measure.Network(first, mask), "b": other}
    monkeypatch.setattr(measure, "_network", lambda _, cell: ends[cell.arm])
    at = measure.Measurer.__new__(measure.Measurer)
    at._model, at._run, at._store = model, None, None  # type: ignore[assignment]
    assert at.matches
    line = measure.Line(Cell(0, CHAIN, 1, "a"), Cell(0, CHAIN, 1, "b"), in_run=False, matched=True)
    (one, two), moved = at._ends(line)
    jax.tree.map(np.testing.assert_array_equal, tuple(two), tuple(one))
    changed = [order != np.arange(len(order)) for order in units]
    assert moved == np.concatenate(changed).mean() > 0.5


# Of so many test images the barrier's own error is nothing.
MANY = 10**12


def pair_rows(arm: str, level: int, k: int, barriers: list[float], gaps: list[float]) -> list[PairRow]:
    """Rows of one pair a seed; barriers and gaps to the dense network in points."""
    return [
        PairRow(
            seed, "dense" if arm == "dense" else CHAIN, level, arm, 0.1, k, 1, b / 100, b / 100, b, b,
            b / 100, b / 100, 0.0, 1.0, 10.0, 0.01, 0.97 + gap / 100, 0.97, table.stable(b / 100),
            table.matching(0.97 + gap / 100, 0.97), MANY, 30,
        )
        for seed, (b, gap) in enumerate(zip(barriers, gaps, strict=True))
    ]  # fmt: skip


def level_rows(level: int, barriers: list[float], gaps: list[float]) -> list[LevelRow]:
    return [
        LevelRow(
            seed, CHAIN, level, 0.8**level, level - 1, b / 100, b / 100, b, b, 1.0, 10.0, 0.01,
            0.97 + gap / 100, 0.97, table.stable(b / 100), table.matching(0.97 + gap / 100, 0.97), MANY, 30,
        )
        for seed, (b, gap) in enumerate(zip(barriers, gaps, strict=True))
    ]  # fmt: skip


def test_verdicts_by_hand() -> None:
    rows = pair_rows("dense", 0, 0, [8.0, 9.0, 10.0], [0.0, 0.0, 0.0])
    rows += pair_rows("dense", 0, 50, [0.1, 0.2, 0.15], [0.0, 0.0, 0.0])
    rows += pair_rows("ticket", 2, 0, [0.1, 0.2, 0.15], [0.1, 0.0, 0.05])
    rows += pair_rows("reinit", 2, 0, [4.0, 5.0, 4.5], [-1.0, -2.0, -1.5])
    rows += pair_rows("random", 2, 0, [0.2, 0.1, 0.15], [-1.0, -2.0, -1.5])
    levels = level_rows(1, [0.2, 0.1, 0.1], [0.1, 0.1, 0.2]) + level_rows(2, [1.9, 2.1, 2.0], [0.0, 0.1, 0.1])
    levels += level_rows(3, [6.0, 7.0, 8.0], [-1.0, -1.0, -2.0])
    found = {"stability.csv": rows, "levels.csv": levels}
    run: Any = SimpleNamespace(about={"data": {"test": 0}})
    dense, ticket, matches, reinit, random, successive, apart = stability.findings(run, found)
    assert (dense.outcome, ticket.outcome, matches.outcome) == ("refuted", "supported", "supported")
    # The claim does not tell tickets from a control that matches, too.
    most = -1.5 + scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem([-1.0, -2.0, -1.5])
    said = f"does not pass (refuted): -1.50 pp, at most {most:+.2f}"
    assert matches.beside == f"reinit {said}; random {said}"
    good = [row._replace(test_accuracy=0.971) if row.arm == "random" else row for row in rows]
    alike = stability.findings(run, {**found, "stability.csv": good})[2].beside
    assert "; random passes the same test: +0.10 pp, at least " in alike
    assert alike.endswith("; so the claim does not tell tickets from random")
    # Three seeds cannot tell 0.2 points where the test set leaves a difference of accuracies open by more.
    spread = 100 * np.sqrt((0.9705 * 0.0295 + 0.97 * 0.03) / 10_000)
    low, high = 0.05 + scipy_stats.t.ppf(0.95, 2) * spread / np.sqrt(3) * np.array([-1, 1])
    run.about = {"data": {"test": 10_000}}
    unsure = stability.findings(run, found)[2]
    assert (unsure.outcome, unsure.test) == ("undecided", "non-inferiority, margin 0.2 pp")
    assert unsure.estimate.startswith(f"+0.05 pp, at least {low:+.2f} and at most {high:+.2f} (each ")
    assert dense.claim.startswith("From step 0 on the training of the dense network is stable")
    # On the logit scale, as no error is below 0 or above 100 %.
    share = 0.0015
    half = scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem([0.001, 0.002, 0.0015]) / (share * (1 - share))
    most = f"0.15 pp, at most {100 * scipy_special.expit(scipy_special.logit(share) + half):.2f}"
    assert dense.estimate.endswith(f"; {most} from step 50")
    assert ticket.estimate == f"barrier of the test error {most} (one-sided 95 %)"
    assert ticket.beside.startswith("reinit does not pass (refuted): 4.50 pp, at least ")
    assert ticket.beside.endswith(
        f"; random passes the same test: {most}; so the claim does not tell tickets from random"
    )
    assert reinit.outcome == "supported"
    half = scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem([3.9, 4.8, 4.35])
    assert reinit.estimate == f"barrier less by +4.35 pp, at least {4.35 - half:+.2f} (one-sided 95 %)"
    # Precise and equal is a verdict of its own.
    assert (random.outcome, random.test) == ("equivalent", "equivalence, ±0.5 pp")
    half = scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem([0.1, -0.1, 0.0])
    assert random.estimate.endswith(
        f"pp, at least {-half:+.2f} and at most {half:+.2f} (each one-sided 95 %)"
    )
    assert (successive.outcome, apart.outcome) == ("undecided", "supported")
    assert successive.estimate.startswith("barrier of the test error 2.00 pp, at least ")
    assert "at level 2 (64.0 %), the least favourable of 2 levels" in successive.estimate
    assert apart.estimate.startswith("barrier of the test error 7.00 pp, at least ")
    # 100 images, of which the ends of a path answer 1 % differently: a barrier varies by √(0.01 / 100) = 1 %.
    coarse = {name: [row._replace(images=100) for row in of] for name, of in found.items()}
    dense, ticket, _, reinit, random, *_ = stability.findings(run, coarse)
    half = scipy_stats.t.ppf(0.95, 2) / np.sqrt(3)
    assert dense.estimate.endswith(f"; 0.15 pp, at most {0.15 + half:.2f} from step 50")
    assert (ticket.outcome, random.outcome) == ("supported", "undecided")
    # Of reinit, whose barrier is more than that: √(0.045 / 100).
    half *= 100 * np.hypot(np.sqrt(0.01 / 100), np.sqrt(0.045 / 100))
    assert reinit.estimate == f"barrier less by +4.35 pp, at least {4.35 - half:+.2f} (one-sided 95 %)"
    none = stability.findings(run, {**found, "levels.csv": levels[:3]})[-1]
    assert (none.outcome, none.estimate) == ("not tested", "every level matches")
    # 0.2 points below the dense network exactly match, as in the rows, whatever rounding makes of them.
    rows = level_rows(1, [0.1] * 6, [-0.2] * 6)
    assert (all(row.matching for row in rows), min(table.gaps(rows).values()) < -0.2) == (True, True)
    *_, successive, apart = stability.findings(run, {**found, "levels.csv": rows})
    assert (successive.outcome, apart.estimate) == ("supported", "every level matches")


def test_a_pair_that_diverged_is_said(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the section and beside the claims on its arm and step; a later call that loses none forgets it."""
    real, gone = measure.Measurer.done, {"ticket_from_4"}

    def lost(self: Any, *cells: Cell) -> bool:
        return not any(cell.arm in gone and cell.repeat in (0, 2, 4) for cell in cells) and real(self, *cells)

    monkeypatch.setattr(measure.Measurer, "done", lost)
    monkeypatch.setattr(work.figures, "drawn", lambda *of: [])  # drawing takes seconds
    perform(copied, pairs=2)
    run = open_run(copied[0])
    found = record.found(stability.ANALYSIS, run)
    assert stability.section(run, found).notes == [
        "Left out, as a training diverged: 2 of 2 pairs of ticket at level 2 from step 4 (seed 1)."
    ]
    said = {one.claim: one.beside for one in stability.findings(run, found)}
    of_tickets = [beside for claim, beside in said.items() if "ickets" in claim and "level" not in claim]
    assert len(of_tickets) == 3
    assert all(beside.endswith("level 2 from step 4 (seed 1)") for beside in of_tickets)
    assert not any("left out" in beside for claim, beside in said.items() if "dense network is" in claim)
    gone.clear()
    perform(copied, pairs=2)
    found = record.found(stability.ANALYSIS, run)
    assert (stability.section(run, found).notes, table.left_out(found)) == ([], "")


def test_an_arm_of_which_every_pair_diverged_keeps_its_claim() -> None:
    run: Any = SimpleNamespace(about={"data": {"test": 0}})
    lost = [table.LeftOut(0, "dense", 0, "dense", k, 1) for k in (0, 50)]
    lost += [table.LeftOut(0, CHAIN, level, arm, 50, 1) for level, arm in ((2, "reinit"), (3, "ticket"))]
    rows = pair_rows("ticket", 2, 0, [0.1, 0.2], [0.0, 0.0]) + pair_rows("random", 3, 0, [0.1], [0.0])
    said = stability.findings(run, {"stability.csv": rows, "levels.csv": [], "about.json": lost})
    untested = {one.claim: (one.estimate, one.beside) for one in said if one.outcome == "not tested"}
    ends = "is stable to the order of the data (error barrier below 2 points)"
    left = "left out, as a training diverged: 1 of 1 pairs of {} (seed 0)"
    of_dense = f"{left.format('dense from step 0')}, 1 of 1 pairs of dense from step 50 (seed 0)"
    expected = {
        f"The training of the dense network {ends}": ("every pair diverged", of_dense),
        "Tickets are more stable to the order of the data than reinit": (
            "every pair of reinit diverged", left.format("reinit at level 2 from step 50")
        ),
        **dict.fromkeys(
            (
                f"The training of tickets at level 3 {ends}",
                "Tickets at level 3 match the dense network in other orders of the data",
                "Tickets at level 3 are more stable to the order of the data than random",
            ),
            ("every pair of tickets diverged", left.format("ticket at level 3 from step 50")),
        ),
    }  # fmt: skip
    assert {claim: untested.get(claim) for claim in expected} == expected
    assert said[0].claim == f"The training of the dense network {ends}"


def test_left_out_pairs_are_counted_by_hand() -> None:
    lost = [table.LeftOut(seed, CHAIN, 2, arm, k, 1) for seed, arm, k in
            ((5, "ticket", 0), (3, "ticket", 0), (3, "reinit", 50), (4, "dense", 0))]  # fmt: skip
    lost[-1] = lost[-1]._replace(chain="dense", level=0)
    rows = [row for arm in ("ticket", "reinit") for row in pair_rows(arm, 2, 0, [0.1] * 3, [0.0] * 3)]
    found = {"stability.csv": rows, "about.json": lost}
    ticket = "left out, as a training diverged: 2 of 5 pairs of ticket at level 2 from step 0 (seeds 3, 5)"
    assert table.left_out(found, 2, ("ticket", "reinit"), 0) == ticket
    assert table.left_out(found, 2, ("random",), 50) == ""
    assert table.left_out(found) == (
        "left out, as a training diverged: 1 of 1 pairs of dense from step 0 (seed 4), "
        f"1 of 1 pairs of reinit at level 2 from step 50 (seed 3), {ticket.partition(': ')[2]}"
    )


def test_seeds_that_agree_leave_a_gap_open_by_the_test_sets_error() -> None:
    """In both tables and the figure, as in the verdict."""
    found = {
        "stability.csv": pair_rows("dense", 0, 0, [1.0, 1.1, 1.2], [0.0, 0.0, 0.0])
        + pair_rows("ticket", 2, 0, [0.1, 0.2, 0.15], [0.5, 0.5, 0.5]),
        "levels.csv": [row._replace(other=0) for row in level_rows(2, [0.1, 0.2, 0.1], [0.5, 0.5, 0.5])]
        + [row._replace(other=0) for row in level_rows(3, [0.1, 0.2, 0.1], [0.5, 0.5, 0.5])],
    }
    run: Any = SimpleNamespace(about={"data": {"test": 10_000}})
    section = stability.section(run, found)
    spread = 100 * np.sqrt((0.975 * 0.025 + 0.97 * 0.03) / 10_000)
    half = scipy_stats.t.ppf(0.975, 2) * spread / np.sqrt(3)
    said = f"+0.50 [{0.5 - half:+.2f}, {0.5 + half:+.2f}]"
    assert "bands (bars for two seeds or a single k)" in section.figures[0].caption
    assert draw.BANDS in section.figures[1].caption
    pairs, between = section.tables
    assert [pairs.rows[1][9], between.rows[0][7]] == [said, said]
    (band,) = section.figures[1].figure.axes[1].collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((0.5 - half, 0.5 + half))


def test_barriers_after_matching_are_seen() -> None:
    """Above the others, too; one of a single step has a marker, as its line has no length."""
    rows = pair_rows("dense", 0, 0, [3.0, 3.0], [0.0, 0.0])
    rows += pair_rows("ticket", 2, 0, [1.0, 1.0], [0.0, 0.0])
    rows += pair_rows("ticket", 2, 50, [1.0, 1.0], [0.0, 0.0])
    rows = [row._replace(matched_test_error=0.12 + row.seed / 100) for row in rows]
    # Of a network whose units cannot be matched.
    rows += [row._replace(matched_test_error=None) for row in pair_rows("random", 2, 0, [1.0], [0.0])]
    axes = stability.figures._curves(rows).axes[0]
    dense, ticket, _ = (line for line in axes.get_lines() if line.get_linestyle() == ":")
    assert (dense.get_marker(), dense.get_markerfacecolor(), ticket.get_marker()) == ("o", "none", "")
    assert axes.get_ylim()[1] > max(*dense.get_ydata(), *ticket.get_ydata()) == pytest.approx(12.5)


def test_captions_of_one_seed_name_no_intervals() -> None:
    """There are none in the figures."""
    levels = [level_rows(1, barriers, [0.0] * len(barriers)) for barriers in ([0.1], [0.1, 0.2])]
    pairs = [pair_rows("ticket", 1, 0, barriers, [0.0] * len(barriers)) for barriers in ([0.1], [0.1, 0.2])]
    for seeds, (rows, between) in enumerate(zip(pairs, levels, strict=True), 1):
        drawn = stability.figures.drawn({"stability.csv": rows, "levels.csv": between}, 60)
        for one in drawn:
            named = ["95 % intervals" in one.caption, "mall points" in one.caption]
            assert named == [seeds > 1] * 2, one.caption
            assert ("one seed" in one.caption) == (seeds == 1)


def test_the_limits_are_those_of_the_paper() -> None:
    """2 points of error exactly are not stable; 0.2 points below the dense network exactly match."""
    assert [table.stable(b) for b in (0.0, 0.0199, np.float32(0.02), 0.03)] == [True, True, False, False]
    assert [table.matching(a, 0.97) for a in (0.99, 0.968, 0.9679)] == [True, True, False]


def test_the_section_shows_every_state(made: tuple[Path, Path]) -> None:
    run = made[0]
    check_section(stability.ANALYSIS, run)
    opened = open_run(run)
    shown = stability.section(opened, record.found(stability.ANALYSIS, opened))
    pairs, between = shown.tables
    assert [row[:2] + row[3:4] for row in pairs.rows] == [
        ["0", "dense", "0"], ["0", "dense", "4"], ["0", "dense", "8"], ["2", "ticket", "4"],
        ["2", "ticket", "8"], ["2", "reinit", "0"], ["2", "reinit", "4"], ["2", "reinit", "8"],
    ]  # fmt: skip
    mean = np.mean([100 * float(r["barrier_test_error"]) for r in rows_of(run) if (r["arm"], r["k"]) ==
                    ("ticket", "8")])  # fmt: skip
    assert pairs.rows[4][4].startswith(f"{mean:.2f}")  # type: ignore[union-attr]
    assert [row[:2] for row in between.rows] == [["1", "dense"], ["2", "dense"], ["2", "level 1"]]
    curves = shown.figures[0].figure.axes[0]
    (line,) = [x for x in curves.get_lines() if str(x.get_label()).startswith("reinit")]
    expected = [
        np.mean(
            [
                100 * float(r["barrier_test_error"])
                for r in rows_of(run)
                if (r["arm"], r["k"]) == ("reinit", k)
            ]
        )
        for k in ("0", "4", "8")
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert list(line.get_xdata()) == [0, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (13,)}, r"--k: 13 is not a step of the training; it may be from 0 to 12"),
        ({"levels": (5,)}, r"--levels: 5 has no trained ticket in rewind-4; it may be 1, 2\."),
        ({"seeds": (7,)}, r"--seeds: 7 has no trained ticket"),
        (
            {"arms": ("ticket", "tiket")},
            r"--arms: 'tiket' is not in the run; it may be dense, reinit, ticket",
        ),
        ({"at_rewind": True}, r"--k: 0 is not a step that tickets were rewound to; it may be 4\."),
        (
            {"at_rewind": True, "chain": "rewind-4"},
            r"--chain: rewind-4 is not allowed with --at-rewind, which takes every chain",
        ),
        ({"pairs": 0}, r"--pairs: 0 is not allowed; it must be from 1 to 100"),
        ({"alphas": 1}, r"--alphas: 1 is not allowed"),
        ({"k": (0,), "arms": ("ticket",)}, r"no state to start from \(ticket of rewind-4 begins at step 4"),
        (
            {"arms": ("random",)},
            r"no state to start from \(seed 1, rewind-4, level 2, random: it is not there",
        ),
    ],
)
def test_what_is_not_allowed(made: tuple[Path, Path], changes: dict[str, Any], message: str) -> None:
    options = work.Options(run=made[0], data_dir=made[1], **{**LITTLE, **changes})
    with pytest.raises(UserError, match=message):
        work.ask(open_run(made[0]), options)


def test_an_arm_of_a_config_that_is_not_loaded_is_named(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run whose control is from a config file, which this command was not told to load."""
    run = open_run(copied[0])
    run.rows += [row._replace(arm="mine") for row in run.rows if row.arm == "reinit"]
    options = work.Options(run=copied[0], data_dir=copied[1], **{**LITTLE, "arms": ("ticket", "mine")})
    with pytest.raises(UserError, match=r"the arm 'mine' is a row of a config file.*--config"):
        work.ask(run, options)


def test_its_own_study_json_says_by_what_its_copies_are_trained(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    """The run is of another machine, version and commit."""
    other = {
        "devices": "another machine", "versions": {"lthjax": "0.0.1"}, "git": "0" * 40,
        "environment": ["other flags"], "commands": ["another"], "earlier": ["0.0.0"],
    }  # fmt: skip
    run = open_run(Path(shutil.copytree(made[0], tmp_path / "run", ignore=lambda *_: {"stability"})))
    own = json.loads((made[0] / "stability" / "study.json").read_text())
    run.about.update(other)  # type: ignore[typeddict-item]
    with work.kept(run, "stability"):
        pass
    told = json.loads((run.path / "stability" / "study.json").read_text())
    now = [name for name in other if name not in ("commands", "earlier")]
    assert {name: told[name] for name in now} == {name: own[name] for name in now}
    assert "another" not in told["commands"]
    assert "earlier" not in told
    assert told["config"] == run.about["config"]


def test_copies_of_an_arm_train_as_the_arm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning is held at the last learning rate, which LR rewinding is not; others are refused."""
    every = ("ticket", "finetune", "lr_rewind", "untrained")
    train_of = config.Train(steps=4, batch=20, eval_every=2)
    prepared = make_tiny(tmp_path)(seeds=(1,), levels=1, arms=every, rewind=(1,), train=train_of)
    run = open_run(study.run(prepared, tmp_path / "runs"))
    little = {"run": run.path, "data_dir": tmp_path / "data", "images": 20, "alphas": 2}
    asked = work.ask(run, work.Options(arms=("finetune", "lr_rewind"), k=(1, 3), **little))
    at = work._Stability(run, asked, Reader(tmp_path / "none"), None, None)  # type: ignore[arg-type]
    jobs: list[tuple[Cell, Job]] = []
    monkeypatch.setattr(at, "train", lambda these: jobs.extend(these) or ())
    trunks = at.trunks()
    missing = {cell: one for cell, one in at.copies(trunks).items() if one.at.k == 1} | trunks
    at.train_missing(missing)
    held = {cell.arm: job.held for cell, job in jobs}
    assert held == {f"{arm}_{how}": arm == "finetune" for arm in ("finetune", "lr_rewind")
                    for how in ("from_1", "to_3")}  # fmt: skip
    # Arms that are not held have the `made_from` of before, by which what is there counts as trained.
    for arm, more in (("finetune", {"held": True}), ("lr_rewind", {})):
        cell = Cell(1, "rewind-1", 1, arm)
        named = {"cell": folder(Path(), cell).as_posix(), "step": 1, "state": "start"}
        noises = work.orders(1, 1, 1)
        assert [missing[of].made_from for of in work.Origin(cell, 1, 1, 4, 0.5).copies(1)] == [
            {**named, **more, "noise": noise} for noise in noises
        ]
        again = {"trained_again": folder(Path(), cell).as_posix()}
        assert missing[cell._replace(arm=f"{arm}_to_3")].made_from == again | more
    with pytest.raises(UserError, match=r"--arms: untrained trains nothing, so that no copies of it can be"):
        work.ask(run, work.Options(arms=("ticket", "untrained"), **little))
    assert work._untrained("edge_popup") == "learns a mask"
    assert not any(map(work._untrained, ("dense", "ticket", "finetune_chain", "constant", "of_a_config")))


def test_what_is_measured_where_nothing_is_named(made: tuple[Path, Path]) -> None:
    asked = work.ask(open_run(made[0]), work.Options(run=made[0], data_dir=made[1]))
    # 1, 4 and 20 % of 12 steps are 0, 0 and 2; the ticket begins at 4, and level 2 is nearest to 10 %.
    states = {(at.cell.arm, at.cell.level, at.k) for at in asked.origins}
    assert states == {*itertools.product(("dense",), (0,), (0, 2, 4)), ("ticket", 2, 4),
                      *itertools.product(("reinit",), (2,), (0, 2, 4))}  # fmt: skip


def test_the_help_says_which_levels_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """Controls may have few levels, as in the quickstart; those beside them are chosen."""
    with pytest.raises(SystemExit):
        record.command(stability.ANALYSIS)(["--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out).replace("`", "")
    assert "nearest to 10 % of the weights of those that have a control of --arms, where any has one" in said
