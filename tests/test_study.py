"""Whole studies: the sources of a cell, resuming, extending, divergence."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_tiny, result

from analysis import load, report
from lthjax import __version__, config, imp, manifest, plan, prune, record, rng, study
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.folder.verified import read_study
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.training import train
from lthjax.training.job import Job, Position, Trained
from lthjax.training.trainer import Trainer

Make = Callable[..., study.Prepared]


def numbers(run: Path) -> list[tuple]:
    """cells.csv without `seconds`, the only column that may differ."""
    return [row._replace(seconds=0.0) for row in load(run)]


def opened(prepared: study.Prepared, out: Path) -> Store:
    about = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
    return Store(out / prepared.folder, about)


def same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Prepared, Path]:
    """A study and its run folder, which no test changes."""
    where = tmp_path_factory.mktemp("finished")
    prepared = make_tiny(where)(rewind=(0, "3 steps"), repeats=(("reinit", 2),))
    return prepared, study.run(prepared, where / "runs")


def test_every_planned_cell_is_there_and_says_what_it_came_from(
    finished: tuple[study.Prepared, Path],
) -> None:
    prepared, run = finished
    rows = load(run)
    planned = imp.cells(prepared.study, prepared.lengths)
    # 2 seeds x (dense + 2 chains x 2 levels x (ticket, 2 reinit, random))
    assert len(rows) == len(planned) == len(set(planned)) == 2 * (1 + 2 * 2 * 4)
    assert {(r.seed, r.chain, r.level, r.arm, r.repeat) for r in rows} == {tuple(c) for c in planned}
    result = json.loads(
        (run / "seed=1" / "chain=rewind-3" / "level=02" / "reinit.r2" / "result.json").read_text()
    )
    assert result["made_from"] == {
        "parent": "seed=1/chain=rewind-3/level=01/ticket",
        "origin": "fresh weights",
        "criterion": "large_final",
        "scope": "layer",
        "rate": [["output", 0.1], [".", 0.2]],
    }
    assert (result["start"], result["steps"]) == (0, 12)
    assert "cpu" in result["platform"]
    ticket = json.loads(
        (run / "seed=1" / "chain=rewind-3" / "level=02" / "ticket" / "result.json").read_text()
    )
    assert (ticket["start"], ticket["steps"]) == (3, 9)
    assert ticket["made_from"]["origin"] == "seed=1/state=3"
    assert study.plan(prepared, run.parent).missing == []


def test_masks_and_start_weights_are_what_they_claim(
    finished: tuple[study.Prepared, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebuilds every task of a seed from the store, by the definition, with numpy."""
    prepared, run = finished
    store = opened(prepared, run.parent)
    initial = prepared.model.init(rng.stream(0, "init"))
    same(store.state(0, 0), initial)
    for chain in imp.chains(prepared.study, prepared.lengths):
        origin = store.state(0, chain.rewind)
        parent = Cell(0, DENSE, 0, DENSE)
        for level in (1, 2):
            ticket = Cell(0, chain.name, level, "ticket")
            old, new = store.mask(parent), store.mask(ticket)
            final = store.variables(parent).params
            for layer, rate in (("fc1", 0.2), ("fc2", 0.2), ("output", 0.1)):
                was, now = np.asarray(old[layer]["kernel"]), np.asarray(new[layer]["kernel"])
                assert not (now & ~was).any()
                removed = int(np.floor(rate * was.sum() + 0.5))
                assert now.sum() == was.sum() - removed
                values = np.abs(np.asarray(final[layer]["kernel"]))
                assert values[was & ~now].max() <= values[now].min()
                assert new[layer]["bias"].shape == ()
            shuffled = store.mask(Cell(0, chain.name, level, "random"))
            assert record.layers(shuffled) == record.layers(new)
            assert not np.array_equal(shuffled["fc1"]["kernel"], new["fc1"]["kernel"])
            same(store.mask(Cell(0, chain.name, level, "reinit", 2)), new)
            tasks = next(
                imp.rounds(
                    prepared.study,
                    prepared.lengths,
                    chain,
                    0,
                    prepared.model,
                    initial,
                    origin,
                    imp.Leader(old, final),
                    (np.zeros((2, 12, 12, 1), np.float32), np.zeros(2, np.int32)),
                    level,
                )
            )
            by_arm = {(t.cell.arm, t.cell.repeat): t for t in tasks}
            same(by_arm["ticket", 1].variables.params, prune.apply(origin.params, new))
            same(by_arm["random", 1].variables.params, prune.apply(origin.params, shuffled))
            fresh = [by_arm["reinit", r].variables.params["fc1"]["kernel"] for r in (1, 2)]
            assert not np.array_equal(*fresh)
            kept = np.asarray(new["fc1"]["kernel"])
            assert all((np.asarray(f)[~kept] == 0).all() for f in fresh)
            spread = np.asarray(fresh[0])[kept].std()
            assert spread == pytest.approx(np.sqrt(2 / (144 + 300)), rel=0.05)
            starts = {arm: t.start for (arm, _), t in by_arm.items()}
            assert starts == {"ticket": chain.rewind, "random": chain.rewind, "reinit": 0}
            for task in tasks:
                # Reading it again from the folder gives the same.
                read = study.task(prepared, store, task.cell)
                assert read[:3] == task[:3]
                same((read.variables, read.mask), (task.variables, task.mask))
            parent = ticket
    dense = study.task(prepared, store, Cell(0, DENSE, 0, DENSE))
    assert (dense.start, dense.stop) == (0, prepared.lengths.total)
    same(dense.variables, initial)
    same(dense.mask, prune.ones(initial.params))


def test_late_rewinding_starts_bitwise_at_the_dense_network_of_that_step(
    finished: tuple[study.Prepared, Path],
) -> None:
    """The state at step 3 equals a dense training stopped there; the ticket is that state under the mask."""
    prepared, run = finished
    store = opened(prepared, run.parent)
    initial = prepared.model.init(rng.stream(1, "init"))
    trainer = study.make_trainer([prepared], None, [1])
    job = Job(1, 0, 0, 3, initial, prune.ones(initial.params))
    (dense,) = train.train(trainer, [job], lambda *_: None)
    same(store.state(1, 3), dense.variables)


def test_the_same_study_twice_gives_the_same_bits(tiny: Make, tmp_path: Path) -> None:
    runs = [study.run(tiny(), tmp_path / name) for name in ("one", "two")]
    assert numbers(runs[0]) == numbers(runs[1])


def test_a_study_cut_anywhere_goes_on_to_the_same_numbers(tiny: Make, tmp_path: Path) -> None:
    whole = study.run(tiny(rewind=(0, 3)), tmp_path / "whole")

    class Stop:
        def __init__(self, after: int) -> None:
            self.left = after

        def begin(self, *_: object) -> None: ...
        def say(self, *_: object) -> None: ...
        def chunk(self, *_: object) -> None: ...
        def end(self) -> None: ...
        def finished(self, *_: object) -> None: ...
        def advance(self, *_: object) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    cut = tmp_path / "cut"
    stops = 0
    for after in (1, 9, 1000):
        try:
            run = study.run(tiny(rewind=(0, 3)), cut, watch=Stop(after))
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2
    assert numbers(run) == numbers(whole)
    assert not list(run.glob(".tmp-*"))


@pytest.mark.parametrize("rewind", [(0,), (5,)])
def test_initial_weights_that_are_gone_are_made_anew(
    tiny: Make, tmp_path: Path, rewind: tuple[int, ...]
) -> None:
    one = tiny(seeds=(0,), levels=0, rewind=rewind)
    run = study.run(one, tmp_path)
    before = {path.relative_to(run): path.read_bytes() for path in (run / "seed=0").rglob("result.json")}
    first = opened(one, tmp_path).state(0, 0)
    shutil.rmtree(run / "seed=0" / "state=0")
    assert plan.plan(one, tmp_path).seeds == (0,)
    study.run(one, tmp_path)
    again = opened(one, tmp_path).state(0, 0)
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, again.params))
    assert before == {
        path.relative_to(run): path.read_bytes() for path in (run / "seed=0").rglob("result.json")
    }
    assert plan.plan(one, tmp_path).seeds == ()


def test_widening_keeps_every_old_cell_and_agrees_with_the_wide_study(tiny: Make, tmp_path: Path) -> None:
    narrow = tiny(seeds=(1,), levels=1, arms=("ticket",))
    run = study.run(narrow, tmp_path / "runs")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.glob("seed=*/**/*") if p.is_file()}
    wide = tiny(rewind=(0, 3, 7), repeats=(("reinit", 2),), control_levels=(2,))
    assert wide.folder == narrow.folder
    assert study.run(wide, tmp_path / "runs") == run
    for path, (when, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (when, content), path
    at_once = study.run(wide, tmp_path / "at_once")
    assert numbers(run) == numbers(at_once)
    for step in (0, 3, 7):
        same(
            opened(wide, tmp_path / "runs").state(1, step),
            opened(wide, tmp_path / "at_once").state(1, step),
        )


def test_control_levels(tiny: Make, tmp_path: Path) -> None:
    rows = load(study.run(tiny(levels=3, control_levels=(2, 9)), tmp_path / "runs"))
    assert {row.level for row in rows if row.arm in ("reinit", "random")} == {2}
    assert {row.level for row in rows if row.arm == "ticket"} == {1, 2, 3}


def test_chunks_have_room_for_the_controls_of_later_levels(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed with a ticket alone at level 1, and three cells at level 2."""
    prepared, devices = tiny(seeds=(0,), control_levels=(2,)), min(len(jax.local_devices()), 3)

    def whole(replicates: int) -> int:
        return -(-replicates // devices) * devices

    assert study.make_trainer([prepared], None, [0]).width == devices
    assert study.make_trainer([prepared], 8, [0]).width == whole(3)
    # Copies that fill a chunk of tickets alone would cost time on an accelerator.
    monkeypatch.setattr(replicate, "one_by_one", lambda on: False)
    assert study.make_trainer([prepared], None, [0]).width == whole(1)
    assert study.make_trainer([prepared], 8, [0]).width == whole(3)


def test_global_scope_and_levels_zero(tiny: Make, tmp_path: Path) -> None:
    rows = load(study.run(tiny(prune=config.Prune(scope="global", rate=0.3), levels=1), tmp_path / "runs"))
    left = {row.weights_left for row in rows if row.level == 1}
    assert left == {74_200 - 22_260}
    dense = load(study.run(tiny(levels=0), tmp_path / "runs"))
    assert [row.arm for row in dense] == [DENSE, DENSE]


def test_controls_share_order_and_split_with_their_ticket(tiny: Make, tmp_path: Path) -> None:
    """Trained again as a control with the ticket's own start, a cell gets the ticket's numbers."""
    prepared = tiny(seeds=(0,), levels=1, arms=("ticket",))
    run = study.run(prepared, tmp_path / "runs")
    store = opened(prepared, tmp_path / "runs")
    initial = prepared.model.init(rng.stream(0, "init"))
    cell = Cell(0, "rewind-0", 1, "ticket")
    mask = store.mask(cell)
    trainer = study.make_trainer([prepared], None, [0])
    job = Job(0, 1, 0, 12, initial, mask)
    (again,) = train.train(trainer, [job], lambda *_: None)
    same(again.variables, store.variables(cell))
    assert run.is_dir()


def spoil(monkeypatch: pytest.MonkeyPatch, seed: int, level: int) -> None:
    """Makes every training run of this seed and level diverge."""
    genuine = train.train

    def spoilt(trainer: Trainer, jobs: list[Job], *others: object) -> list[Trained]:
        results = genuine(trainer, jobs, *others)  # type: ignore[arg-type]
        bad = {"status": "diverged", "reason": "spoilt", "scalars": {}}
        return [
            result._replace(**bad) if (job.seed, job.level) == (seed, level) else result  # type: ignore[arg-type]
            for job, result in zip(jobs, results, strict=True)
        ]

    monkeypatch.setattr(train, "train", spoilt)


def test_a_diverged_ticket_ends_its_chain_and_the_study_goes_on(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tiny(levels=3)
    spoil(monkeypatch, 0, 2)
    run = study.run(prepared, tmp_path / "runs")
    rows = load(run)
    bad = [row for row in rows if row.status == "diverged"]
    assert {(row.seed, row.level) for row in bad} == {(0, 2)}
    assert all(row.test_accuracy is None for row in bad)
    assert max(row.level for row in rows if row.seed == 0) == 2
    assert max(row.level for row in rows if row.seed == 1) == 3
    assert study.plan(prepared, tmp_path / "runs").missing == []
    assert study.run(prepared, tmp_path / "runs") == run
    assert not (folder(run, Cell(0, "rewind-0", 2, "ticket")) / "variables").exists()


def test_a_diverged_dense_network_leaves_the_other_seeds(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 0, 0)
    prepared = tiny()
    rows = load(study.run(prepared, tmp_path / "runs"))
    assert [row.level for row in rows if row.seed == 0] == [0]
    assert len([row for row in rows if row.seed == 1]) == 7
    assert study.plan(prepared, tmp_path / "runs").missing == []


def test_a_learning_rate_that_diverges_is_recorded(tiny: Make, tmp_path: Path) -> None:
    rows = load(study.run(tiny(optim=config.Optim(name="sgd", lr=1e30)), tmp_path / "runs"))
    assert {row.status for row in rows} == {"diverged"}
    assert len(rows) == 2
    plan = study.plan(tiny(optim=config.Optim(name="sgd", lr=1e30)), tmp_path / "runs")
    assert (len(plan.cells), len(plan.done), len(plan.missing)) == (14, 2, 0)
    said: list[str] = []
    again = tiny(optim=config.Optim(name="sgd", lr=1e30))
    study.run(again, tmp_path / "runs", watch=types.SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    assert said == [
        "12 of 14 cells lie behind a diverged training and are not trained; a lower learning rate (optim.lr) "
        "may help"
    ]


# The store


def test_a_folder_that_an_earlier_version_fills_is_in_use(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held one lock for the whole folder, as an analysis does for its own cells."""
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    prepared = tiny(levels=0)
    with (
        opened(prepared, tmp_path / "runs"),
        pytest.raises(UserError, match=r"another process still writes study\.json; run the same command"),
    ):
        study.run(prepared, tmp_path / "runs")
    study.run(prepared, tmp_path / "runs")


def test_a_folder_of_another_config_is_refused(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(levels=0)
    run = study.run(prepared, tmp_path / "runs")
    about = read_study(run)
    about["identity"]["optim.lr"] = 0.5
    (run / "study.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"made by another config: optim.lr is 0.5 there and 0.0012 here"):
        study.plan(prepared, tmp_path / "runs")


def test_damaged_files_are_named_and_a_deleted_cell_is_made_anew(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(seeds=(0,), levels=1)
    run = study.run(prepared, tmp_path / "runs")
    before = numbers(run)
    wider = tiny(seeds=(0,), levels=2)
    ticket = folder(run, Cell(0, "rewind-0", 1, "ticket"))
    for file, content in (
        (ticket / "mask.npz", b"no npz"),
        (ticket / "result.json", b"[]"),
        (ticket / "result.json", b"\xff"),
        (ticket / "manifest.json", b"[]"),
        (run / "study.json", b"[]"),
        (run / "study.json", b"\xff"),
    ):
        good = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{file.name}: .*analysis.check {run} --repair sets it aside"):
            study.run(wider, tmp_path / "runs")
        file.write_bytes(good)
    (ticket / "variables").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"ticket/variables/.*: No such file or directory; python -m"):
        study.run(wider, tmp_path / "runs")
    (ticket / "result.json").unlink()
    assert report.build(run).is_file()
    study.run(prepared, tmp_path / "runs")
    assert numbers(run) == before
    assert (run / "damaged/1" / ticket.relative_to(run) / "mask.npz").is_file()


def test_study_json_names_the_version_of_the_code_that_ran(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout need not be installed, and what is installed may be another version."""

    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    one = tiny()
    versions = record.about(one.study, one.identity, one.lengths, one.dataset)["versions"]
    assert (versions["lthjax"], versions["jax"]) == (__version__, "not installed as a package")


def test_study_json_remembers_every_command(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for levels, name in ((0, "first"), (1, "second"), (1, "not needed")):
        monkeypatch.setattr(sys, "argv", [name])
        run = study.run(tiny(levels=levels), tmp_path / "runs")
    assert json.loads((run / "study.json").read_text())["commands"] == ["first", "second"]


def test_an_unwritable_folder_is_refused(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out: .* cannot be written \(Not a directory\)"):
        study.run(tiny(), tmp_path / "file")


def test_a_cell_is_whole_or_not_there(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny()
    initial = prepared.model.init(rng.stream(0, "init"))
    mask = prune.ones(initial.params)
    cell = Cell(0, DENSE, 0, DENSE)
    with opened(prepared, tmp_path / "runs") as store:
        with pytest.raises(ValueError, match="JSON compliant"):
            store.write(cell, {"loss": float("nan")}, mask, initial)
        assert not store.has(cell)
        store.write(cell, result(cell), mask, initial)
        assert store.result(cell) == result(cell)
        same(store.variables(cell), initial)
        assert not list(store.path.glob(".tmp-*"))
    (store.path / ".tmp-of-a-killed-process").mkdir()
    with opened(prepared, tmp_path / "runs"):
        assert not list(store.path.glob(".tmp-*"))


def test_no_cell_or_position_stands_without_its_sources(tiny: Make, tmp_path: Path) -> None:
    """The source's write may have failed, and its children have been trained from memory."""
    weights = Variables({"fc": {"kernel": np.ones((3, 2), np.float32)}}, {})
    mask, parents = prune.ones(weights.params), [Path("seed=0/dense")]
    dense, ticket = Cell(0, DENSE, 0, DENSE), Cell(0, "rewind-0", 1, "ticket")
    position = Position(3, {"params": weights.params}, {"step": []}, [], {}, 0.0)
    with opened(tiny(seeds=(0,)), tmp_path / "runs") as store:
        with pytest.raises(UserError, match="seed=0/dense: it is not there, so what was made from it"):
            store.write(ticket, result(ticket), mask, None, parents)
        with pytest.raises(UserError, match="seed=0/dense: it is not there"):
            store.write_position(ticket, position, parents)
        assert not store.has(ticket)
        assert store.position(ticket) is None
        store.write(dense, result(dense), mask, weights)
        # A source that is older than manifests is there.
        (store.path / parents[0] / manifest.FILE).unlink()
        store.write(ticket, result(ticket), mask, None, parents)
        assert store.has(ticket)


def test_masks_round_trip_bit_packed(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny()
    initial = prepared.model.init(rng.stream(0, "init"))
    mask = prune.random(jax.random.key(0), prune.ones(initial.params), 0.37)
    cell = Cell(0, "rewind-0", 1, "ticket")
    with opened(prepared, tmp_path / "runs") as store:
        store.write(cell, {}, mask, None)
        same(store.mask(cell), mask)
        assert (folder(store.path, cell) / "mask.npz").stat().st_size < 266_200 / 8 + 4000
    assert state_folder(Path("r"), 3, 500) == Path("r/seed=3/state=500")
