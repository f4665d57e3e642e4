"""Transfer by hand on tiny networks, planted permutations, and the two commands on a tiny study."""

import csv
import dataclasses
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import check_section, make_tiny, random_mask, shapes, unsealed, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy import stats as scipy_stats

from analysis import open_run, record, tables
from analysis import transfer as command
from analysis.transfer import figures, work
from analysis.transfer.__main__ import main
from analysis.transfer.table import notes
from lthjax import config, models, prune, study
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.measures import geography, transfer, transfer_arms, wiring
from lthjax.models import Model, Variables
from lthjax.networks import Layer, Stages
from lthjax.training import train
from lthjax.training.job import Job
from lthjax.training.trainer import Trainer


def network(
    layers: tuple[Layer, ...] | Stages, shape: tuple[int, int, int] = (8, 8, 1), classes: int = 10
) -> Model:
    """A network of `models.build` with the given layers."""
    models.MODELS["own"] = models.Entry(layers, 1, "for a test")
    try:
        return models.build("own", shape, classes)
    finally:
        del models.MODELS["own"]


def dense(*widths: int, **how: Any) -> Model:
    return network(tuple(Layer(f"fc{i}", width) for i, width in enumerate(widths, 1)), **how)


def moved(source: Model, target: Model, mask: Any, seed: int = 0) -> Any:
    return transfer.mask(source, target, mask, np.random.default_rng(seed))


def lefts(mask: Any) -> list[tuple[int, int]]:
    return [(int(m.sum()), m.size) for m in jax.tree.leaves(mask) if m.ndim]


def test_the_same_shapes_take_a_mask_as_it_is() -> None:
    source, target = dense(5, 4), dense(5, 4)
    mask = random_mask(source, 0.3)
    generator = np.random.default_rng(0)
    got = transfer.mask(source, target, mask, generator)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, mask))
    assert generator.random() == np.random.default_rng(0).random()
    values = Variables(jax.tree.map(lambda x: np.full(x.shape, 2.0), shapes(source)), {})
    own = Variables(jax.tree.map(lambda x: np.zeros(x.shape), shapes(source)), {})
    carried = transfer.initial(source, target, mask, values, own)
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(carried.params))


def test_narrowing_by_hand() -> None:
    """Of three units the one with the fewest connections is dropped, with its row in the next layer."""
    source, target = dense(3, classes=2), dense(2, classes=2)
    mask = jax.tree.map(np.array, prune.ones(shapes(source)))
    mask["fc1"]["kernel"][:] = False
    mask["fc1"]["kernel"][0, 0] = mask["fc1"]["kernel"][:3, 2] = True  # incoming 1, 0, 3
    mask["output"]["kernel"][:] = [[True, False], [True, True], [False, True]]  # outgoing 1, 2, 1
    # Degrees 2, 2, 4; ties keep the first.
    first, second = transfer.match(source, target, mask)
    assert (first.source, list(first.units), list(second.inputs)) == (0, [0, 2], [0, 2])
    got = moved(source, target, mask)
    # 4 of 192 is 2.67 of 128, to 3: of the 4 that came along one goes.
    along = mask["fc1"]["kernel"][:, [0, 2]]
    kept = got["fc1"]["kernel"]
    assert kept.sum() == 3
    assert not (kept & ~along).any()
    # 4 of 6 is 2.67 of 4, to 3: the two that came along and one more.
    assert got["output"]["kernel"].sum() == 3
    assert got["output"]["kernel"][[0, 1], [0, 1]].all()


def test_widening_by_hand() -> None:
    """Three units to eight: copies are made in rounds by degree, and the next layer reads the same copies."""
    source, target = dense(3, classes=2), dense(8, classes=2)
    mask = jax.tree.map(np.array, prune.ones(shapes(source)))
    mask["fc1"]["kernel"][:] = False
    for unit, degree in enumerate((1, 5, 3)):
        mask["fc1"]["kernel"][:degree, unit] = True
    order = [0, 1, 2, 1, 2, 0, 1, 2]
    first, second = transfer.match(source, target, mask)
    assert list(first.units) == list(second.inputs) == order
    # 9 of 192 is 24 of 512; the copies have 1 · 2 + 5 · 3 + 3 · 3 = 26.
    kept, along = moved(source, target, mask)["fc1"]["kernel"], mask["fc1"]["kernel"][:, order]
    assert (along.sum(), kept.sum()) == (26, 24)
    assert not (kept & ~along).any()


def test_the_first_copies_carry_their_values() -> None:
    source, target = dense(3, classes=2), dense(4, classes=2)
    mask = jax.tree.map(np.array, prune.ones(shapes(source)))
    values = Variables(jax.tree.map(lambda x: np.full(x.shape, 3.0, np.float32), shapes(source)), {})
    own = Variables(jax.tree.map(lambda x: np.full(x.shape, 7.0, np.float32), shapes(target)), {})
    params = transfer.initial(source, target, mask, values, own).params
    scale = np.float32(np.sqrt((64 + 3) / (64 + 4)))
    np.testing.assert_allclose(params["fc1"]["kernel"], np.tile([3 * scale] * 3 + [7], (64, 1)), rtol=1e-6)
    np.testing.assert_array_equal(params["fc1"]["bias"], [3, 3, 3, 7])
    scale = np.float32(np.sqrt((3 + 2) / (4 + 2)))
    np.testing.assert_allclose(params["output"]["kernel"], [[3 * scale] * 2] * 3 + [[7, 7]], rtol=1e-6)
    np.testing.assert_array_equal(params["output"]["bias"], [3, 3])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("init", models.INITS)
@pytest.mark.parametrize("before", ["glorot", "kaiming"])
def test_carried_values_have_the_deviation_of_the_targets_own(before: str, init: str) -> None:
    """Whatever the two studies draw their initial weights by; the deviations are those that are seen."""
    source = models.build("lenet5", (28, 28, 1), 10, before)
    target = models.build("lenet5_wide", (28, 28, 1), 10, init)
    values, own = (model.init(jax.random.key(seed)) for seed, model in enumerate((source, target)))
    params = transfer.initial(source, target, prune.ones(values.params), values, own).params
    for name, theirs in values.params.items():
        carried, mine = np.asarray(params[name]["kernel"]), np.asarray(own.params[name]["kernel"])
        carried = carried[carried != mine]
        assert carried.size == theirs["kernel"].size
        assert carried.std() == pytest.approx(mine.std(), rel=0.25 if name == "conv1" else 0.1)


def test_channels_keep_their_pixels() -> None:
    """Two channels of a convolution replace three; flattened channels are last."""
    layers = (Layer("conv1", 3, 3, pool=True), Layer("fc1", 2))
    source, target = network(layers), network((layers[0]._replace(features=2), layers[1]))
    mask = jax.tree.map(np.array, prune.ones(shapes(source)))
    mask["conv1"]["kernel"][..., 1] = False
    mask["conv1"]["kernel"][0, 0, 0, 0] = False
    flat = mask["fc1"]["kernel"].reshape(4, 4, 3, 2)
    flat[:] = False
    flat[1, 2, 2, 1] = flat[3, 0, 0, 0] = flat[0, 0, 1] = True
    got = moved(source, target, mask)
    # Channels 0 and 2 stay; 17 of 27 is 11.33 of 18, so of their 17 taps 11.
    assert got["conv1"]["kernel"].sum() == 11
    # 4 of 96 is 2.67 of 64: the two that came along and one more.
    left = got["fc1"]["kernel"].reshape(4, 4, 2, 2)
    assert left.sum() == 3
    assert left[1, 2, 1, 1]
    assert left[3, 0, 0, 0]


def test_conv2_to_conv4_and_back_share_a_prefix() -> None:
    conv2, conv4 = (models.build(name, (32, 32, 3), 10) for name in ("conv2", "conv4"))
    mask = random_mask(conv2, 0.1)
    assert [m.source for m in transfer.match(conv2, conv4, mask)] == [0, 1, 1, 1, 2, 3, 4]
    deeper = moved(conv2, conv4, mask)
    for name in ("conv1", "conv2", "fc2", "output"):
        np.testing.assert_array_equal(deeper[name]["kernel"], mask[name]["kernel"])
    # conv4 is conv2 with further copies of its units: the first 64 of both sides equal it, minus the surplus.
    copy = deeper["conv4"]["kernel"][:, :, :64, :64]
    same = copy == mask["conv2"]["kernel"]
    assert same.mean() > 0.95
    taken = ["conv1", "conv2", "conv2", "conv2", "fc1", "fc2", "output"]
    for (left, size), of in zip(lefts(deeper), taken, strict=True):
        kernel = mask[of]["kernel"]
        assert abs(left - kernel.sum() / kernel.size * size) <= 0.5
    back = moved(conv4, conv2, deeper)
    for name in ("conv1", "conv2", "fc2", "output"):
        np.testing.assert_array_equal(back[name]["kernel"], mask[name]["kernel"])


def test_pixels_of_a_smaller_image_take_the_nearest() -> None:
    assert list(transfer._nearest((4, 4), (2, 2))) == [5, 7, 13, 15]
    assert list(transfer._nearest((2, 2), (4, 4))) == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert list(transfer._nearest((3, 2), (3, 2))) == list(range(6))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 12), st.integers(2, 12), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_every_layer_keeps_its_density(a: int, b: int, classes: int, others: int, seed: int) -> None:
    source, target = dense(a, 4, classes=classes), dense(b, 5, classes=others)
    mask = random_mask(source, 0.3, seed)
    got = moved(source, target, mask, seed)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, prune.ones(shapes(target)))
    for (left, size), (kept, of) in zip(lefts(got), lefts(mask), strict=True):
        assert abs(left - kept / of * size) <= 0.5


def test_the_output_layer_is_made_anew() -> None:
    """Ten classes to twenty: every unit keeps its share, with other classes than in the source."""
    source, target = dense(40), dense(40, classes=20)
    mask = random_mask(source, 0.4)
    got = moved(source, target, mask)
    np.testing.assert_array_equal(got["fc1"]["kernel"], mask["fc1"]["kernel"])
    np.testing.assert_array_equal(got["output"]["kernel"].sum(1), 2 * mask["output"]["kernel"].sum(1))
    assert (got["output"]["kernel"][:, :10] != mask["output"]["kernel"]).mean() > 0.3
    other = moved(source, target, mask, seed=1)
    assert (other["output"]["kernel"] != got["output"]["kernel"]).mean() > 0.3


def test_what_cannot_be_moved_is_refused_by_a_sentence() -> None:
    lenet300, lenet5 = (models.build(name, (28, 28, 1), 10) for name in ("lenet300", "lenet5"))
    with pytest.raises(
        UserError, match="of lenet300 cannot be moved to lenet5: lenet300 has no convolution;"
    ):
        transfer.check(lenet300, lenet5)
    with pytest.raises(
        UserError, match="of lenet5 cannot be moved to lenet300: lenet300 has no convolution;"
    ):
        transfer.check(lenet5, lenet300)
    with pytest.raises(UserError, match="one reads images of 28×28×1, the other of 32×32×3"):
        transfer.check(lenet5, models.build("lenet5", (32, 32, 3), 10))
    with pytest.raises(UserError, match="conv1 has kernels of side 5, conv1 of side 3"):
        transfer.check(lenet5, models.build("conv2", (28, 28, 1), 10))
    with pytest.raises(UserError, match="has one hidden dense layer, which reads the images"):
        transfer.check(dense(5), dense(5, 5))
    unlike = lenet5._replace(name="residual", layers=())
    with pytest.raises(UserError, match="their shapes differ, and residual is no sequence of layers"):
        transfer.check(lenet300, unlike)
    transfer.check(lenet5, unlike)  # of the same shapes: nothing need be known of its layers
    transfer.check(lenet5, models.build("lenet5_wide", (28, 28, 1), 10))
    transfer.check(lenet5, models.build("lenet5_deep", (28, 28, 1), 10))


def residual(widths: tuple[int, ...], blocks: int, **how: Any) -> Model:
    return network(Stages(widths, blocks), **how)


def numbered(model: Model, first: int) -> Variables:
    """Every leaf filled with its own number."""
    made = jax.eval_shape(model.init, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(made)
    return jax.tree.unflatten(
        treedef, [np.full(x.shape, float(i), np.float32) for i, x in enumerate(leaves, first)]
    )


def test_residual_networks_replicate_and_drop_blocks() -> None:
    shallow, deep = residual((3, 4), 3), residual((3, 4), 6)
    mask = random_mask(shallow, 0.4)
    got = moved(shallow, deep, mask)
    assert jax.tree.structure(got) == jax.tree.structure(shapes(deep))
    ways = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 2}
    for stage in (1, 2):
        for block, of in ways.items():
            ours, theirs = got[f"stage{stage}_block{block}"], mask[f"stage{stage}_block{of}"]
            assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    for part in ("conv1", "norm1", "output"):
        assert jax.tree.all(jax.tree.map(np.array_equal, got[part], mask[part]))
    back = moved(deep, shallow, got)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, mask))

    # Weights, normalisation and running statistics go with their block.
    values, own = numbered(shallow, 0), numbered(deep, 1000)
    carried = transfer.initial(shallow, deep, mask, values, own)
    assert jax.tree.map(np.shape, carried) == jax.tree.map(np.shape, own)
    for ours, theirs in (
        (carried.params, values.params),
        (carried.stats["batch_stats"], values.stats["batch_stats"]),
    ):
        for stage, block in ((1, 4), (2, 5), (2, 1)):
            expected = theirs[f"stage{stage}_block{ways[block]}"]
            assert jax.tree.all(jax.tree.map(np.array_equal, ours[f"stage{stage}_block{block}"], expected))
    logits, _ = deep.apply(carried.params, carried.stats, np.ones((2, 8, 8, 1), np.float32), False)
    assert logits.shape == (2, 10)


def test_residual_networks_to_other_classes() -> None:
    source, target = residual((3, 4), 1), residual((3, 4), 1, classes=25)
    mask = random_mask(source, 0.5)
    got = moved(source, target, mask)
    old, new = mask["output"]["kernel"], got["output"]["kernel"]
    assert new.shape == (4, 25)
    assert new.sum() == (2 * int(old.sum()) * 100 + 40) // 80
    values, own = numbered(source, 0), numbered(target, 1000)
    carried = transfer.initial(source, target, mask, values, own)
    assert np.array_equal(carried.params["output"]["kernel"], own.params["output"]["kernel"])
    block = "stage2_block1"
    assert jax.tree.all(jax.tree.map(np.array_equal, carried.params[block], values.params[block]))


def test_the_same_shapes_take_statistics_too() -> None:
    source = residual((3, 4), 1)
    values, own = numbered(source, 0), numbered(source, 1000)
    carried = transfer.initial(source, source, random_mask(source, 0.5), values, own)
    assert jax.tree.all(jax.tree.map(np.array_equal, carried, values))


def test_residual_networks_that_cannot_match() -> None:
    for source, target, why in (
        (residual((3, 4), 1), residual((3, 4), 2), "has one block a stage"),
        (residual((3, 4), 2), residual((3, 5), 2), "stages of 3-4 channels, the other of 3-5"),
        (
            residual((3, 4), 2),
            residual((3, 4), 3, shape=(12, 12, 1)),
            "images of 8×8×1, the other of 12×12×1",
        ),
        (residual((3, 4), 2), dense(4), "is no sequence of layers"),
    ):
        with pytest.raises(UserError, match=f"cannot be moved to own: .*{why}"):
            transfer.check(source, target)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one family that train in seconds."""
    narrow_and_wide(monkeypatch)


def narrow_and_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, widths in {"narrow": (12, 8), "wide": (20, 8)}.items():
        layers = tuple(Layer(f"fc{i}", width) for i, width in enumerate(widths, 1))
        monkeypatch.setitem(models.MODELS, name, models.Entry(layers, 1, "for a test"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are trained from now on."""
    jobs: list[Job] = []
    really = train.train

    def note(trainer: Trainer, chunk: Any, *others: Any) -> Any:
        jobs.extend(chunk)
        return really(trainer, chunk, *others)

    monkeypatch.setattr(train, "train", note)
    return jobs


def written(of: config.Study, folder: Path) -> Path:
    """Writes a config file of a study."""
    path = folder / f"{of.name}.py"
    path.write_text(f"from lthjax.config import *\n\nconfig = {of!r}\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set and of a trained run of the narrow network: two seeds, two levels."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        narrow_and_wide(patch)
        how = {"model": "narrow", "arms": ("ticket",), "prune": config.Prune(rate=0.5)}
        study.run(make_tiny(folder)(**how), folder / "runs")
    return folder


@pytest.fixture
def narrow(small: None, trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, in runs/ beside data/."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (run,) = (tmp_path / "runs").iterdir()
    return run


def asked(tmp_path: Path, *sources: Path, to: tuple[Path, ...] = (), **how: Any) -> command.Options:
    return command.Options(
        sources=sources, targets=to, out=tmp_path / "runs", data_dir=tmp_path / "data", **how
    )


def rows_of_run(path: Path) -> list[command.TransferRow]:
    return command.load(open_run(path))


def findings_of_run(path: Path) -> list[Any]:
    run = open_run(path)
    return command.ANALYSIS.findings(run, record.found(command.ANALYSIS, run))


def drawn_of(path: Path) -> list[str]:
    run = open_run(path)
    return [one.name for one in command.ANALYSIS.section(run, command.load(run)).figures]


def check_the_ticket_again(run: Path, by_arm: dict[tuple[int, str], command.TransferRow]) -> None:
    """Checks that a ticket moved to its own seed gets the same bits, and that controls have its densities."""
    for seed in (0, 1):
        ticket, again = by_arm[seed, "ticket"], by_arm[seed, "transferred"]
        assert again[6:] == ticket[6:]
        assert (again.shared_init, again.own_level, again.source_seed) == (True, 2, seed)
        cell = run / f"seed={seed}/chain=rewind-0/level=02/ticket/result.json"
        copy = run / f"transfer/from={run.name}/source_seed={seed}" / cell.relative_to(run).parent.parent
        first, second = (json.loads(p.read_text()) for p in (cell, copy / "transferred/result.json"))
        assert first["curves"] == second["curves"]
        assert by_arm[seed, "shuffled"].density == again.density
        assert [of["left"] for of in first["layers"]] == [
            of["left"] for of in json.loads((copy / "shuffled/result.json").read_text())["layers"]
        ]
        assert by_arm[seed, "random_uniform"].density == pytest.approx(again.density, abs=1e-3)


def test_tickets_moved_within_a_run_and_to_a_wider_network(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "runs", narrow
    of = open_run(run).study
    wide = written(dataclasses.replace(of, model="wide", name="wide", optim=config.Optim(lr=1e-3)), tmp_path)

    # To itself: the ticket again, bit for bit; its init is its own, so there is no `transferred_init`.
    jobs = counted(monkeypatch)
    command.build(asked(tmp_path, run, to=(run,), levels=(2,), pairs=("same",)))
    assert len(jobs) == 2 * 4
    rows = rows_of_run(run)
    by_arm = {(row.seed, row.arm): row for row in rows}
    assert len(rows) == len(by_arm) == 2 * 6
    check_the_ticket_again(run, by_arm)
    assert {tuple(d.values) for d in command.differences(rows, ["ticket"])} == {(0.0, 0.0)}

    # To the other seed, and to a wider network whose own run is trained first.
    jobs.clear()
    both = asked(tmp_path, run, to=(run, wide), levels=(2,))
    command.build(both)
    (elsewhere,) = out.glob("wide-*")
    assert (elsewhere / "seed=1/dense/result.json").is_file()
    within, across = 2 * 5, 2 * 5
    assert len(jobs) == within + across + 2 * 3  # the wider one's own: dense and two levels, two seeds
    theirs = rows_of_run(elsewhere)
    check_section(command.ANALYSIS, elsewhere)
    assert {(row.source_seed, row.seed) for row in theirs} == {(0, 0), (1, 1)}
    assert not any(row.shared_init for row in theirs)
    with (out / "transfer" / "transfer.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows_of_run(run)) + len(theirs) == 12 + 14 + 14
    assert {row["source_seed"] + row["seed"] for row in table if row["target"] == run.name} == {
        "00", "11", "01", "10",
    }  # fmt: skip
    for row in theirs:
        if row.arm in ("transferred", "shuffled"):
            assert row.density == pytest.approx(by_arm[0, "ticket"].density, abs=1e-3)
    assert all(
        (out / "transfer" / f"transfer_matrix.{kind}").stat().st_size for kind in ("png", "svg", "csv")
    )

    # A second call trains nothing, and the table is the same.
    jobs.clear()
    before = (out / "transfer" / "transfer.csv").read_bytes()
    command.build(both)
    assert jobs == []
    assert (out / "transfer" / "transfer.csv").read_bytes() == before
    found = findings_of_run(elsewhere)
    assert len(found) == 4  # moved, and with its values; against the own ticket, and shuffled
    assert not any(one.outcome == "not tested" for one in found)
    assert drawn_of(elsewhere) == ["transfer_matrix", "transfer_arms"]
    # Only a lost cell is trained again, to the same numbers.
    lost = next(elsewhere.glob("transfer/*/*/seed=1/*/*/shuffled"))
    shutil.rmtree(lost)
    assert len(rows_of_run(elsewhere)) == 13
    command.build(asked(tmp_path, run, to=(wide,), levels=(2,)))
    assert len(jobs) == 1
    jobs.clear()
    main(["--to", str(run), str(elsewhere), "--out", str(out), "--quiet"])
    assert jobs == []
    assert (out / "transfer" / "transfer.csv").read_bytes() == before
    # Earlier versions scaled carried values as Glorot's: those of networks drawn otherwise are made anew.
    monkeypatch.setattr(work, "INITS", {"glorot": models.INITS["kaiming"]})
    for trained in (2, 0):
        jobs.clear()
        command.build(asked(tmp_path, run, to=(wide,), levels=(2,)))
        assert len(jobs) == trained
    carried = [
        json.loads(p.read_text()) for p in elsewhere.glob("transfer/*/*/*/*/*/transferred_init/result.json")
    ]
    assert [result["made_from"]["inits"] for result in carried] == [["glorot", "glorot"]] * 2


def test_tickets_moved_to_deeper_networks_and_other_classes_from_a_later_step(
    tiny: Callable[..., study.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residual networks of two and three blocks, rewound to step 4, onto a data set of four classes."""
    for blocks in (2, 3):
        entry = models.Entry(Stages((3,), blocks), 4, "for a test")
        monkeypatch.setitem(models.MODELS, f"blocks{blocks}", entry)
    digits = np.load(tmp_path / "data" / "few.npz")
    arrays = {name: digits[name] for name in digits if name != "classes"}
    few = {name: x % 4 if name.endswith("labels") else x for name, x in arrays.items()}
    np.savez(tmp_path / "data" / "four.npz", **few, classes=np.int64(4))

    out = tmp_path / "runs"
    how = {"arms": ("ticket",), "levels": 1, "rewind": (4,), "prune": config.Prune(rate=0.5)}
    shallow = tiny(model="blocks2", **how)
    run = study.run(shallow, out)
    deeper = dataclasses.replace(shallow.study, name="deeper", model="blocks3")
    other = dataclasses.replace(shallow.study, name="other", data=config.Data(name="four", validation=40))
    options = asked(tmp_path, run, to=(written(deeper, tmp_path), written(other, tmp_path)))
    (source,) = work.sources_of(options)
    assert source.tickets.rewind == 4
    jobs = counted(monkeypatch)
    command.build(options)
    for target in work.targets_of(options):
        rows = rows_of_run(target.path)
        assert {row.arm for row in rows} == {*transfer_arms.DEFAULT, "ticket", "dense"}
        assert len(rows) == 2 * 7
        kept = {row.arm: row.density for row in rows}
        assert kept["transferred"] == kept["transferred_init"] == kept["shuffled"]
    # All but fresh weights start at the tickets' rewind step, with its batch statistics.
    own = [job for job in jobs if job.level == 1 and job.start == 4]
    fresh = [job for job in jobs if job.level == 1 and job.start == 0]
    assert (len(own), len(fresh)) == (2 * 2 * 5, 2 * 2)
    zero = shallow.model.init(jax.random.key(0)).stats
    moving = jax.tree.leaves(own[0].variables.stats)
    assert any(not np.array_equal(a, b) for a, b in zip(moving, jax.tree.leaves(zero), strict=False))


def chosen(options: command.Options, target: Path) -> list[work.Move]:
    run = open_run(target)
    return [move for of in work.sources_of(options) for move in work.moves(of, run, run.tickets())]


def test_a_run_is_known_by_its_folder_however_it_is_named(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "runs", narrow
    jobs = counted(monkeypatch)
    monkeypatch.chdir(tmp_path)
    # A report goes elsewhere: the command in it names the run as the caller does.
    assert {found.where for found in findings_of_run(Path(f"runs/{run.name}"))} == {
        f"python -m analysis.transfer --from RUN --to runs/{run.name}"
    }
    monkeypatch.chdir(run)
    # Within one run, so to the other seed.
    options = ["--to", ".", "--arms", "transferred", "--out", str(out), "--data-dir", str(tmp_path / "data")]
    main(["--from", str(run), *options, "--quiet"])
    assert [path.name for path in (run / "transfer").glob("from=*")] == [f"from={run.name}"]
    assert {(row.source_seed, row.seed) for row in rows_of_run(Path())} == {(0, 1), (1, 0)}
    assert len(jobs) == 2
    main(["--from", ".", str(run), *options, "--quiet"])
    assert len(jobs) == 2
    twin = shutil.copytree(run, tmp_path / "elsewhere" / run.name)
    with pytest.raises(UserError, match=r"--from: .* and .* have the same name, .* rename one"):
        main(["--from", ".", str(twin), *options, "--quiet"])
    with pytest.raises(UserError, match=r"--to: 'nowhere' is not there; name a config file or a run folder"):
        main(["--from", ".", "--to", "nowhere"])
    # The dense network is compared, too.
    shutil.rmtree(run / "seed=0" / "dense")
    asks = asked(tmp_path, run, to=(run,))
    assert [move.seed for move in chosen(asks, run)] == [1]
    shutil.rmtree(run / "seed=1" / "dense")
    with pytest.raises(UserError, match="no seed has both a ticket and a trained dense network"):
        chosen(asks, run)
    path = next(run.glob("transfer/*/*/*/*/*/transferred/result.json"))
    unsealed(run)
    path.write_text(path.read_text().replace('"source"', '"sauce"'))
    with pytest.raises(UserError, match=r"it cannot be read \(source is missing or unknown\); delete "):
        rows_of_run(run)


def test_a_mask_goes_to_another_seed_with_its_units_matched(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, jobs, of = narrow, counted(monkeypatch), open_run(narrow)
    how = {"levels": (2,), "arms": ("transferred",), "permuted": True}
    command.build(asked(tmp_path, run, to=(run,), **how))
    masks = {seed: of.mask(Cell(seed, "rewind-0", 2, "ticket")) for seed in (0, 1)}
    assert [(job.seed, job.level, job.start) for job in jobs] == [(0, 2, 0)] * 2 + [(1, 2, 0)] * 2
    for plain, matched in zip(jobs[::2], jobs[1::2], strict=True):
        seed, before = matched.seed, masks[1 - matched.seed]
        jax.tree.map(np.testing.assert_array_equal, plain.mask, before)
        jax.tree.map(np.testing.assert_array_equal, matched.variables, of.variables_at(seed, 0))
        # By the definition: the order in which the other seed's dense weights come nearest to this seed's.
        ends = [of.weights(Cell(end, "dense", 0, "dense")) for end in (seed, 1 - seed)]
        units = geography.align(*(geography.kernels(of.network().layers, end) for end in ends)).units
        first, second = (matched.mask[name]["kernel"] for name in ("fc1", "output"))
        np.testing.assert_array_equal(first, before["fc1"]["kernel"][:, units[0]])
        np.testing.assert_array_equal(second, before["output"]["kernel"][units[1]])
        assert (units[0] != np.arange(12)).any()
    jobs.clear()
    table = (run / "transfer" / "transfer.csv").read_bytes()
    command.build(asked(tmp_path, run, to=(run,), **how))
    assert jobs == []
    assert (run / "transfer" / "transfer.csv").read_bytes() == table
    rows = {(row.seed, row.arm): row for row in rows_of_run(run)}
    assert rows[0, "transferred_permuted"].density == rows[0, "transferred"].density
    scores = [[rows[seed, arm].test_accuracy or 0 for seed in (0, 1)]
              for arm in ("transferred", "transferred_permuted")]  # fmt: skip
    (said,) = [one for one in findings_of_run(run) if "better where their units are matched" in one.claim]
    assert f"{100 * np.mean(np.subtract(*reversed(scores))):+.2f}" in said.estimate
    assert said.n == 2
    assert (run / "transfer" / "transfer_permuted.png").stat().st_size


def test_units_are_matched_by_the_dense_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's dense network is the source's with its units in another order, and so then is the mask."""
    model = residual((4, 5), 2)
    layers, generator = wiring.layers(model), np.random.default_rng(0)
    own = numbered(model, 0)
    dense = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), own.params)
    mask = random_mask(model, 0.3)
    sizes = {wire.units: wiring.leaf(mask, wire.name)["kernel"].shape[-1] for wire in layers}
    units = [generator.permutation(sizes[group]) for group in range(len(sizes) - 1)]
    moved = geography.reordered(layers, dense, units)
    arm = transfer_arms.ARMS["transferred_permuted"]
    moving = transfer_arms.Moving(model, model, mask, mask, own, own, numbered(model, 500), (dense, moved))
    start = arm.start(moving, jax.random.key(0))
    assert start is not None
    jax.tree.map(np.testing.assert_array_equal, start.mask, geography.reordered(layers, mask, units))
    assert (start.variables, start.rewound) == (own, True)  # at the target's rewind step
    # Onto its own seed the mask would not change.
    assert arm.start(moving._replace(ends=(dense, dense)), jax.random.key(0)) is None
    transfer_arms.check_matching(model, model)
    with pytest.raises(
        UserError, match="--permuted: the units of own and own cannot be matched: their shapes"
    ):
        transfer_arms.check_matching(model, residual((4, 6), 2))
    outside = model._replace(stages=None, name="outside")
    with pytest.raises(UserError, match="it is not known which layers of outside share units"):
        transfer_arms.check_matching(outside, outside)


def test_chains_are_compared_each_with_its_own(
    tiny: Callable[..., study.Prepared], small: None, tmp_path: Path
) -> None:
    """A later call moves tickets of another chain, with fewer controls: those of the first keep theirs."""
    run = study.run(tiny(model="narrow", arms=("ticket",), levels=1, rewind=(0, 4)), tmp_path / "runs")
    arms = ("shuffled", "transferred_reinit")
    command.build(asked(tmp_path, run, to=(run,), arms=arms))
    first = rows_of_run(run)
    assert {row.chain for row in first} == {"rewind-0"}
    alone = command.differences(first, (*arms, "ticket"))
    claims = [(found.claim, found.estimate) for found in findings_of_run(run)]
    command.build(asked(tmp_path, run, to=(run,), chain="rewind-4", arms=("shuffled",)))
    rows = rows_of_run(run)
    assert [row for row in rows if row.chain == "rewind-0"] == first
    found = command.differences(rows, (*arms, "ticket"))
    assert [one for one in found if one.chain == "rewind-0"] == alone
    assert [one.other for one in found if one.chain == "rewind-4"] == ["shuffled", "ticket"]
    said = [(found.claim, found.estimate) for found in findings_of_run(run)]
    assert [one for one in said if "rewind-4" not in one[0]] == [(f"{c}, rewind-0", of) for c, of in claims]
    assert len(said) == 2 * len(claims)
    for drawn in command.ANALYSIS.section(open_run(run), rows).figures:
        titles = [axes.get_title(loc="left") for axes in drawn.figure.axes]
        assert {title.rpartition(", ")[2] for title in titles if title} == {"rewind-0", "rewind-4"}
    # Targets of one chain each share the panels of the matrix, and no chain is named.
    lone = [row._replace(target=row.chain) for row in rows]
    titles = [axes.get_title(loc="left") for axes in figures.matrix(lone, {}, {}).figure.axes]
    assert not any("rewind" in title for title in titles)


def test_arms_beside_another_own_ticket_are_left_out(narrow: Path, tmp_path: Path) -> None:
    """The target gets a level that is nearer to the moved ticket, and a later call moves some arms anew."""
    young = dataclasses.replace(open_run(narrow).study, name="young", levels=1)
    target = study.run(study.prepare(young, tmp_path / "data"), tmp_path / "runs")
    arms = ("shuffled", "transferred_reinit")
    command.build(asked(tmp_path, narrow, to=(target,), levels=(2,), arms=arms))
    assert {row.own_level for row in rows_of_run(target)} == {1}
    grown = study.prepare(dataclasses.replace(young, levels=2), tmp_path / "data")
    assert study.run(grown, tmp_path / "runs") == target
    command.build(asked(tmp_path, narrow, to=(target,), levels=(2,), arms=("shuffled",)))
    rows = {(row.seed, row.arm): row for row in rows_of_run(target)}
    assert len(rows) == 2 * 5
    for seed in (0, 1):
        for arm in ("dense", "ticket", "transferred", "shuffled"):
            assert (rows[seed, arm].own_level, rows[seed, arm].status) == (2, "done")
        left_out = rows[seed, "transferred_reinit"]
        assert left_out[7:12] == (1, True, None, None, "left out")
    assert not command.differences(rows.values(), ("transferred_reinit",))
    where = f"{narrow.name} to {target.name}, level 2"
    (note,) = notes([*rows.values()])
    assert note == (
        f"{where}: transferred_reinit is left out where it was trained beside another own ticket, or from "
        "another chain, than transferred; move it again with --arms transferred_reinit."
    )
    command.build(asked(tmp_path, narrow, to=(target,), levels=(2,), arms=("transferred_reinit",)))
    assert {row.status for row in rows_of_run(target)} == {"done"}


def test_a_table_of_an_earlier_version_has_no_chain(tmp_path: Path) -> None:
    rows = [row(arm, 0.5) for arm in ("ticket", "transferred")]
    written = [line.rpartition(",")[0] for line in tables.of_rows(command.TransferRow, rows).splitlines()]
    assert written[0].endswith(",status")
    tables.write_tables(tmp_path, {"transfer.csv": "\n".join([*written, ""])})
    assert tables.read_rows(tmp_path / "transfer.csv", command.TransferRow) == rows
    (one,) = command.differences(rows)
    assert one.chain == ""


@pytest.mark.parametrize("granularity", ["unit-l2", "2:4"])
def test_a_structured_mask_is_shuffled_by_its_structure(granularity: str, small: None) -> None:
    """Units come out whole, and every group of four inputs keeps two weights."""
    model = models.build("narrow", (8, 8, 1), 10)
    scores = jax.tree.map(lambda x: np.random.default_rng(0).random(x.shape), shapes(model))
    rates = {"output": 0.0, "": 0.5}
    ticket = jax.device_get(prune.by_score(scores, prune.ones(scores), rates, granularity=granularity))
    own = Variables(scores, {})
    moving = transfer_arms.Moving(model, model, ticket, ticket, own, own, own, granularity=granularity)
    shuffled = transfer_arms.ARMS["shuffled"].start
    start = shuffled(moving, jax.random.key(1))
    assert start is not None
    for name in ("fc1", "fc2"):
        was, got = (mask[name]["kernel"] for mask in (ticket, start.mask))
        assert (was != got).any()
        each = 4 if ":" in granularity else len(was)
        sums = [np.sort(m.reshape(-1, each, m.shape[1]).sum(1), axis=None) for m in (was, got)]
        np.testing.assert_array_equal(*sums)
    # Between layers of other shapes single weights are removed or added: there is no pattern to shuffle by.
    for target in (models.build("wide", (8, 8, 1), 10), models.build("narrow", (8, 8, 1), 4)):
        across = moving._replace(target=target, mask=moved(model, target, ticket))
        other = shuffled(across, jax.random.key(1))
        assert other is not None
        assert lefts(other.mask) == lefts(across.mask)
    # To four classes the hidden layers go as they are.
    for name in ("fc1", "fc2"):
        np.testing.assert_array_equal(other.mask[name]["kernel"], start.mask[name]["kernel"])


def test_shuffled_cells_of_a_structured_source_are_trained_anew(
    tiny: Callable[..., study.Prepared], small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions shuffled single weights, and their results name no granularity."""
    pruned = config.Prune(rate=(("fc", 0.5),), granularity="unit-l1")
    run = study.run(tiny(model="narrow", arms=("ticket",), levels=1, prune=pruned), tmp_path / "runs")
    jobs = counted(monkeypatch)
    options = asked(tmp_path, run, to=(run,), arms=("shuffled",))
    command.build(options)
    assert len(jobs) == 2 * 2
    for job in jobs[1::2]:
        left = job.mask["fc1"]["kernel"].sum(0)
        assert set(left) == {0, len(job.mask["fc1"]["kernel"])}
    unsealed(run)
    for path in run.glob("transfer/*/*/*/*/*/*/result.json"):
        result = json.loads(path.read_text())
        granularity = result["made_from"].pop("granularity", None)
        assert granularity == ("unit-l1" if result["arm"] == "shuffled" else None)
        path.write_text(json.dumps(result))
    jobs.clear()
    command.build(options)
    assert len(jobs) == 2
    # They shuffled N:M patterns by single weights wherever any layer has another shape.
    few = models.build("narrow", (8, 8, 1), 4)
    same, other = (few, few), (models.build("narrow", (8, 8, 1), 10), few)
    assert work.made_otherwise(same, [], "2:4")["shuffled"] == {"granularity": "2:4"}
    assert work.made_otherwise(other, [], "2:4")["shuffled"] == {"granularity": "2:4", "by_layer": True}
    assert work.made_otherwise(other, [], "unit-l1")["shuffled"] == {"granularity": "unit-l1"}
    assert work.made_otherwise(other, [], "weight")["shuffled"] == {}


def test_tickets_of_an_own_network_move_where_its_file_is_loaded(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(models.MODELS, "narrow")
    options = ["--from", str(narrow), "--to", str(narrow), "--arms", "transferred", "--levels", "2",
               "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "runs"), "--quiet"]  # fmt: skip
    refused = "the network 'narrow' is a row of a config file, .*; give its file by --config"
    with pytest.raises(UserError, match=refused):
        main(options)
    with pytest.raises(UserError, match=refused):
        open_run(narrow).prepared((0,), tmp_path / "data")
    (tmp_path / "mine.py").write_text(
        "from lthjax.config import Study\nfrom lthjax.models import MODELS, Entry\n"
        "from lthjax.networks import Layer\n"
        "MODELS['narrow'] = Entry((Layer('fc1', 12), Layer('fc2', 8)), 1, 'own')\nconfig = Study()\n"
    )
    main([*options, "--config", str(tmp_path / "mine.py")])
    assert {row.arm for row in rows_of_run(narrow)} == {"dense", "ticket", "transferred"}


def test_impossible_pairs_are_refused_before_any_training(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "runs", narrow
    shutil.rmtree(run / "seed=1")
    with pytest.raises(UserError, match="it is not a run folder"):
        work.sources_of(asked(tmp_path, out))
    (source,) = work.sources_of(asked(tmp_path, run))
    assert {level: source.tickets.seeds(level) for level in source.levels} == {2: [0]}
    jobs = counted(monkeypatch)
    lenet5 = written(dataclasses.replace(open_run(run).study, model="lenet5"), tmp_path)
    with pytest.raises(UserError, match="of narrow cannot be moved to lenet5: narrow has no convolution"):
        command.build(asked(tmp_path, run, to=(lenet5,)))
    assert list(out.iterdir()) == [run]
    with pytest.raises(UserError, match="--pairs: other leaves nothing to move"):
        command.build(asked(tmp_path, run, to=(run,)))
    with pytest.raises(UserError, match="--arms: 'shufled' is not known; did you mean 'shuffled'"):
        command.build(asked(tmp_path, run, to=(run,), arms=("shufled",)))
    with pytest.raises(UserError, match="nothing was moved to"):
        command.build(asked(tmp_path, to=(run,)))
    with pytest.raises(UserError, match=r"--from: it is missing, and configs/x.py is no run folder"):
        main(["--to", "configs/x.py"])
    with pytest.raises(UserError, match="--to: it is missing; name a config file or a run folder"):
        main(["--from", str(run), "--to"])
    assert jobs == []
    with pytest.raises(
        UserError, match=r"--levels: 3 has no trained ticket of rewind-0 in .*; it may be 1, 2"
    ):
        work.sources_of(asked(tmp_path, run, levels=(3,)))
    with pytest.raises(UserError, match="--chain: 'rewind-9' has no ticket"):
        work.sources_of(asked(tmp_path, run, chain="rewind-9"))
    write_npz(tmp_path / "others", "few")
    with pytest.raises(UserError, match="--data-dir: few there has content hash"):
        work.targets_of(command.Options(targets=(run,), data_dir=tmp_path / "others"))
    assert {found.outcome for found in findings_of_run(run)} == {"not tested"}
    assert drawn_of(run) == []


def test_whose_mask_goes_to_which_seed() -> None:
    assert [transfer_arms.partner(seed, [0, 3, 7], "other") for seed in (0, 3, 5, 7, 9)] == [3, 7, 7, 0, 0]
    assert [transfer_arms.partner(seed, [0, 3], "same") for seed in (0, 1)] == [0, None]
    assert transfer_arms.partner(4, [4], "other") is None


def row(arm: str, accuracy: float | None, seed: int = 0, source_seed: int = 0) -> command.TransferRow:
    return command.TransferRow("a", "b", source_seed, seed, 3, arm, 0.1, 3, True, accuracy, 1, "done")


def test_differences_pair_the_targets_seeds() -> None:
    """Two masks on one seed count once; a diverged cell and its partner do not count."""
    rows = [
        *(row("transferred", v, s, 9) for s, v in enumerate((0.5, 0.7, 0.9))),
        row("transferred", 0.6, 0, 8),
        *(row("ticket", v, s, 9) for s, v in enumerate((0.8, 0.6, None))),
        row("ticket", 0.8, 0, 8),
    ]
    (one,) = command.differences(rows)
    assert one[:7] == ("a", "b", "other", 3, pytest.approx(0.1), "transferred", "ticket")
    assert one.values == pytest.approx([-25, 10])
    assert one.interval.mean == pytest.approx(-7.5)


def test_a_ticket_of_another_density_is_no_measure_of_a_moved_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 3 moves 10 % of the weights to tickets of 51 % (worse by 0.8 points), level 2 48 to 51 %."""
    monkeypatch.setattr(command, "names", lambda _: {"a": "A"})
    target = open_run(next((trained / "runs").iterdir()))
    target.about["data"]["test"] = 10_000
    sides = [("ticket", 0.51, 0.98), ("transferred", 0.1, 0.972), ("shuffled", 0.1, 0.96)]
    far = [row(arm, v + 0.0002 * s, s, s)._replace(density=d) for s in range(6) for arm, d, v in sides]
    own, shuffled = command.findings(target, far)
    assert (own.outcome, own.n) == ("not tested", 0)
    none = "no own ticket of that density (moved: 10.0 % of weights, the nearest own ticket has 51.0 %)"
    assert own.estimate == none
    assert (shuffled.outcome, shuffled.beside) == ("supported", "")
    of = {"ticket": (0.51, 0.98), "transferred": (0.48, 0.981), "shuffled": (0.48, 0.96)}
    near = [
        one._replace(level=2, density=density, test_accuracy=accuracy + 0.0002 * one.seed)
        for one in far
        for density, accuracy in [of[one.arm]]
    ]
    own, shuffled = command.findings(target, [*near, *far])
    assert (own.outcome, own.n, shuffled.beside) == ("supported", 6, "")
    assert own.estimate.endswith("(one-sided 95 %) at 48.0 % of weights")
    fails = "shuffled does not pass (refuted): -2.00 pp, at most -2.00 at 48.0 % of weights"
    assert own.beside == f"left out: {none}; {fails}"


def test_shuffled_masks_do_not_carry_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start from the target's own weights, as the moved mask alone does."""
    monkeypatch.setattr(command, "names", lambda _: {"a": "A"})
    target: Any = SimpleNamespace(name="b", about={"lengths": {"total": 10, "evaluate": 5}}, rows=[])
    sides = {"ticket": 0.98, "transferred": 0.97, "transferred_init": 0.98, "shuffled": 0.96}
    rows = [row(arm, v + 0.0002 * s, s, s) for s in range(3) for arm, v in sides.items()]
    said = {of.claim: of.beside for of in command.findings(target, rows)}
    with_values = (
        "Tickets moved here beat the same masks shuffled within layers: from A, mask of the same seed"
    )
    caveat = "the shuffled masks start from the target's own weights: the difference is of mask and values"
    assert said.pop(f"{with_values}, its initial values carried along") == f"{caveat} together"
    assert {of for claim, of in said.items() if "beat the same" in claim} == {""}


def test_a_claim_that_controls_pass_too_and_a_control_that_still_learns_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "names", lambda _: {"a": "A"})
    target: Any = SimpleNamespace(name="b", about={"lengths": {"total": 10, "evaluate": 5}}, rows=[])
    sides = {"ticket": 0.97, "transferred": 0.9705, "shuffled": 0.97, "random_uniform": 0.93}
    rows = [row(arm, v + 0.0002 * s, s, s) for s in range(6) for arm, v in sides.items()]
    own, shuffled = command.findings(target, rows)
    assert own.outcome == "supported"
    assert own.beside == (
        "shuffled passes the same test: +0.00 pp, at least +0.00 at 10.0 % of weights; random_uniform does "
        "not pass (refuted): -4.00 pp, at most -4.00 at 10.0 % of weights; so the claim does not tell "
        "tickets from shuffled"
    )
    assert (shuffled.outcome, shuffled.beside) == ("supported", "")
    late = [one._replace(early_stop_step=10) if one.arm == "shuffled" and one.seed else one for one in rows]
    own, shuffled = command.findings(target, late)
    assert shuffled.beside == (
        "shuffled is still learning (lowest validation loss at the last evaluation in 5 of 6 networks): "
        "longer training may narrow the gap"
    )
    # Not where the moved mask is behind.
    behind = [one._replace(test_accuracy=0.9) if one.arm == "transferred" else one for one in late]
    assert command.findings(target, behind)[1].beside == ""
    # The controls are no lines of the tables and figures.
    assert {one.arm for one in command.differences(rows)} == {"transferred"}


def test_differences_of_matched_masks() -> None:
    """From the same mask as it is, and the own ticket; there is no such line of what was not matched."""
    plain = [row("transferred", v, s, 9) for s, v in enumerate((0.5, 0.7))]
    matched = [row("transferred_permuted", v, s, 9) for s, v in enumerate((0.6, 0.75))]
    own = [row("ticket", v, s, 9) for s, v in enumerate((0.8, 0.8))]
    found = {(one.arm, one.other): one.values for one in command.differences([*plain, *matched, *own])}
    assert found["transferred_permuted", "transferred"] == pytest.approx([10, 5])
    assert found["transferred_permuted", "ticket"] == pytest.approx([-20, -5])
    assert ("transferred", "transferred") not in found
    (drawn,) = figures.permuted([*plain, *matched, *own], {}, {})
    assert [line[5:7] for line in drawn.data[1]] == [
        ("transferred", "ticket"), ("transferred_permuted", "ticket"),
        ("transferred_permuted", "transferred"),
    ]  # fmt: skip
    assert figures.permuted([*plain, *own], {}, {}) == []


def test_seeds_that_agree_leave_a_difference_open_by_the_test_sets_error() -> None:
    """Three seeds lose 2 points each; 10,000 images tell two networks at 90 % apart to within 0.4 or so."""
    accuracies = {"transferred": 0.9, "transferred_permuted": 0.9, "ticket": 0.92}
    rows = [row(arm, accuracy, seed, 9) for arm, accuracy in accuracies.items() for seed in range(3)]
    spread = 100 * np.sqrt((0.9 * 0.1 + 0.92 * 0.08) / 10_000)
    half = scipy_stats.t.ppf(0.975, 2) * spread / np.sqrt(3)
    drawn = figures.matrix(rows, {}, {"b": 10_000})
    said = f"-2.00\n[{-2 - half:+.2f}, {-2 + half:+.2f}]\nn = 3".replace("-", "−")
    assert said in [text.get_text() for axes in drawn.figure.axes for text in axes.texts]
    (permuted,) = figures.permuted(rows, {}, {"b": 10_000})
    for header, lines in (drawn.data, permuted.data):
        low, high = (header.index(name) for name in ("low", "high"))
        to_own = [line for line in lines if line[header.index("other")] == "ticket"]
        assert to_own
        for line in to_own:
            assert (line[low], line[high]) == pytest.approx((-2 - half, -2 + half))
    # Of a target whose test set is not known there is none.
    assert {one.interval[:3] for one in command.differences(rows)} == {(-2.0, -2.0, -2.0), (0.0, 0.0, 0.0)}


def like_runs(levels: int) -> tuple[list[command.TransferRow], dict[str, str]]:
    """Masks of two runs of the same words, of some levels, moved to one target; and the words of all runs."""
    words = "LeNet-300-100 on 10,000 images of MNIST, adam 0.0012"
    arms = ("ticket", "transferred", "transferred_permuted", "shuffled")
    rows = [
        row(arm, 0.9, seed, 9)._replace(source=source, level=level)
        for source in ("c", "d")
        for level in range(1, levels + 1)
        for arm in arms
        for seed in range(3)
    ]
    return rows, {
        "b": "LeNet-5 on MNIST, adam 0.0012",
        "c": f"{words}, c-fd2d3aa9",
        "d": f"{words}, d-0ab1c7e2",
    }


def test_what_is_not_drawn_is_said() -> None:
    for levels, said in ((3, ("", "", "")), (4, ("6 of 8 lines of panels", "6 of 8 panels", ""))):
        rows, names = like_runs(levels)
        drawn = (
            figures.matrix(rows, names, {}),
            figures.arms(rows, names),
            *figures.permuted(rows, names, {}),
        )
        for one, what in zip(drawn, said, strict=True):
            assert ("Shown are" in one.caption) is bool(what)
            assert f"Shown are {what}" in one.caption or not what
    (seven,) = figures.permuted(*like_runs(7), {})
    assert "Shown are 6 of 7 levels; the CSV has all." in seven.caption


def test_titles_of_panels_do_not_overprint_one_another() -> None:
    """Of one target panels are narrow, and two runs of the same words have their folders in the titles."""
    rows, names = like_runs(2)
    drawn = (figures.matrix(rows, names, {}), figures.arms(rows, names), *figures.permuted(rows, names, {}))
    for one in drawn:
        canvas = FigureCanvasAgg(one.figure)
        canvas.draw()
        titles = [
            text.get_window_extent(canvas.get_renderer())
            for axes in one.figure.axes
            for text in axes.get_children()
            if isinstance(text, Text) and text.get_text() and text.get_text() == axes.get_title(loc="left")
        ]
        assert len(titles) >= 2
        assert Bbox.union(titles).x1 <= one.figure.bbox.x1
        for a, b in itertools.combinations(titles, 2):
            assert not a.overlaps(b), one.name


def test_figures_of_trainings_that_all_diverged_are_empty() -> None:
    rows = [row(arm, None)._replace(status="diverged") for arm in ("ticket", "transferred")]
    for drawn in (figures.matrix(rows, {}, {}), figures.arms(rows, {})):
        assert "1 of the 1 trained cells diverged" in drawn.caption
        drawn.figure.savefig(io.BytesIO(), format="svg")
