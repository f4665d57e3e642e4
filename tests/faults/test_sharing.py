"""Several processes in one folder, and folders that are merged; training takes no time here."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import unsealed
from faulty import contents, prepared, small_data, untrained

from analysis import load, open_run, report
from analysis import merge as merge_command
from lthjax import check, config, files, growth, locks, manifest, merge, progress, record, study, sweep
from lthjax.errors import UserError
from lthjax.folder import places, store
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell

SEEDS = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    untrained(monkeypatch)
    files._said.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one(folder: Path) -> study.Prepared:
    return prepared(folder, seeds=SEEDS)


@pytest.fixture(scope="module")
def whole(one: study.Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process; tests leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        return study.run(one, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def halves(one: study.Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folders of two machines; tests leave them as they are."""
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        outs = [tmp_path_factory.mktemp(name) for name in ("here", "there")]
        return fill(one, outs[0], 0, 1), fill(one, outs[1], 2, 3)


def fill(one: study.Prepared, out: Path, *seeds: int) -> Path:
    return study.fill([one], out, seeds=seeds).runs[0]


def opened(one: study.Prepared, out: Path, *seeds: int) -> store.Store:
    about = record.about(one.study, one.identity, one.lengths, one.dataset)
    return store.Store(out / one.folder, about, seeds=seeds)


def plain(run: Path) -> dict[str, Any]:
    """`contents`, with every result.json without its time and every mask bit for bit."""
    found = contents(run)
    for path in run.glob("seed=*/**/result.json"):
        text = re.sub(r'"seconds": [^,]*,', "", path.read_text())
        mask = path.with_name("mask.npz")
        found[str(path.relative_to(run))] = (text, mask.read_bytes() if mask.exists() else b"")
    return found


def everything(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


# Several processes


def test_each_takes_the_seeds_that_are_free_and_the_last_one_knows(
    one: study.Prepared, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    class Watch(progress.Silent):
        def say(self, text: str) -> None:
            said.append(text)

    with opened(one, tmp_path, 1, 2) as other:
        assert other.seeds == [1, 2]
        first = study.fill([one], tmp_path, watch=Watch())
        assert first.others == [1, 2]
        assert {row.seed for row in load(other.path)} == {0, 3}
        runs_on, *others = said
        assert runs_on.startswith("lthjax runs on ")
        assert others == [f"{one.folder}: other processes train seeds 1, 2; this one trains seeds 0, 3"]
        assert others[0].partition(": ")[2] in (other.path / "log.txt").read_text()
        assert study.fill([one], tmp_path, seeds=[0, 3]).others == [], "nothing to train, so it may report"
        with pytest.raises(UserError, match="another process is running this study; wait for it or stop it"):
            study.fill([one], tmp_path)
    last = study.fill([one], tmp_path)
    assert last.others == []
    assert plain(other.path) == plain(whole)
    assert json.loads((other.path / "study.json").read_text())["config"]["seeds"] == list(SEEDS)


def test_shards_deal_the_seeds_out(one: study.Prepared, folder: Path) -> None:
    dealt = [study.shard([one], number, 3) for number in (1, 2, 3)]
    assert dealt == [[0, 3], [1], [2]]
    more = prepared(folder, seeds=(3, 7), levels=0)
    assert [study.shard([one, more], number, 2) for number in (1, 2)] == [[0, 2, 7], [1, 3]]
    for number, of, why in (
        (0, 3, "i/n with i from 1 to n"),
        (4, 3, "i/n with i"),
        (5, 5, "4 seeds make at m"),
    ):
        with pytest.raises(UserError, match=rf"--shard: {number}/{of} is not allowed; .*{why}"):
            study.shard([one], number, of)
    plan = study.plan(study.narrowed([one], dealt[0])[0], "nowhere")
    assert ({cell.seed for cell in plan.cells}, plan.seeds, len(plan.done)) == ({0, 3}, (0, 3), 0)
    assert study.plan(one, "nowhere").steps == 2 * plan.steps


def test_what_another_process_is_writing_is_not_cleared(one: study.Prepared, tmp_path: Path) -> None:
    theirs = tmp_path / one.folder / ".tmp-seed=1,elsewhere-7-0"
    ours = tmp_path / one.folder / ".tmp-seed=10,elsewhere-7-0"
    older = tmp_path / one.folder / ".tmp-elsewhere-7-0"
    table, about = (tmp_path / one.folder / f".tmp-elsewhere-7-0-{n}.json" for n in ("savings", "study"))
    for path in (theirs, ours, older):
        path.mkdir(parents=True)
    for path in (table, about):
        path.write_text("")
    with opened(one, tmp_path, 1) as other, opened(one, tmp_path, 10):
        assert [path.exists() for path in (theirs, ours, older, about, table)] == [False] * 4 + [True]
        theirs.mkdir()
        fill(one, tmp_path, 0)
        assert theirs.exists()
        assert other.seeds == [1]


def test_damage_is_set_aside_by_two_processes_under_two_numbers(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(whole, tmp_path / whole.name)
    genuine = places._is_new

    def meanwhile(folder: Path) -> bool:
        if not folder.exists():
            folder.mkdir(parents=True)
            monkeypatch.setattr(places, "_is_new", genuine)
            return False
        return genuine(folder)

    monkeypatch.setattr(places, "_is_new", meanwhile)
    (aside,) = places.set_aside(run, run / "seed=1" / "dense").values()
    assert aside == run / "damaged/2/seed=1/dense"


def test_damage_of_a_seed_in_training_is_left_alone(one: study.Prepared, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / whole.name)
    mask = run / "seed=2" / "dense" / "mask.npz"
    mask.write_bytes(b"")
    found = check.check(run)
    with opened(one, tmp_path, 2), pytest.raises(locks.Held):
        check.repair(run, found)
    with opened(one, tmp_path, 1):
        assert [*check.repair(run, found)] == [mask.parent]


def test_a_seed_of_a_sweep_is_trained_by_one_process_in_all_its_studies(folder: Path, tmp_path: Path) -> None:
    base = prepared(folder, seeds=(0, 1, 2), levels=1).study
    made = sweep.studies(base, sweep.values("prune.rate", 0.2, 0.5))
    studies = study.prepare_all([*made], folder)
    alone = study.run_all(studies, tmp_path / "alone")
    with opened(studies[1], tmp_path / "shared", 1):
        shared, others = study.fill(studies, tmp_path / "shared")
        assert others == [1]
        assert [{row.seed for row in load(run)} for run in shared] == [{0, 2}, {0, 2}]
    with opened(studies[0], tmp_path / "shared", 1), pytest.raises(locks.Held):
        study.fill(studies, tmp_path / "shared")
    study.fill(studies, tmp_path / "shared")
    assert [plain(run) for run in shared] == [plain(run) for run in alone]


def test_a_sweep_borrows_dense_networks_of_a_folder_of_an_older_version(folder: Path, tmp_path: Path) -> None:
    base = prepared(folder, seeds=(0, 1), levels=1)
    studies = study.prepare_all([*sweep.studies(base.study, sweep.values("prune.rate", 0.2, 0.5))], folder)
    alone = study.run_all(studies, tmp_path / "alone")
    unsealed(study.run(studies[0], tmp_path / "runs"))
    for seeds in ((0,), (0, 1), (0, 1)):
        runs = study.fill(studies, tmp_path / "runs", seeds=seeds).runs
        assert check.check(runs[1]).damaged == {}
    rows = [[row._replace(seconds=0) for row in load(run)] for run in (runs[1], alone[1])]
    assert rows[0] == rows[1]
    unchecked = {path.relative_to(runs[1]).as_posix() for path in check.check(runs[1]).unchecked}
    assert {path for path in unchecked if "chain" in path} == set()
    assert {"seed=0/dense", "seed=1/dense"} < unchecked


# Without locks


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, and short times."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, value in (("RENEW", 0.2), ("EXPIRES", 30.0), ("SETTLE", 0.05), ("BRIEF", 0.01)):
        monkeypatch.setattr(locks, name, value)


def test_a_study_with_leases_is_one_with_locks(
    one: study.Prepared, whole: Path, tmp_path: Path, leases: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), opened(one, tmp_path, 1, 2):
        assert study.fill([one], tmp_path).others == [1, 2]
    assert any("leases are used instead" in record.message for record in caplog.records)
    run, others = study.fill([one], tmp_path)
    assert others == []
    assert plain(run[0]) == plain(whole)
    assert not [*run[0].rglob("*.lease"), *run[0].rglob(".tmp-*")]


def test_a_process_whose_lease_was_taken_writes_nothing_more(
    one: study.Prepared, tmp_path: Path, leases: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = growth.Run.write

    def write(self: Any, item: Any, trained: Any) -> None:
        if item.cell and item.cell.arm == DENSE and item.cell.seed == 1:
            path = self._store.path / ".locks" / "seed=1.lease"
            path.write_text(json.dumps({"owner": "other", "machine": "elsewhere", "process": 1}))
        genuine(self, item, trained)

    monkeypatch.setattr(growth.Run, "write", write)
    # A renewal that had read its own lease before would write over the other's.
    monkeypatch.setattr(locks, "RENEW", 20.0)
    with pytest.raises(UserError, match="another process has taken over seed=1, as this one's lease was not"):
        study.fill([one], tmp_path)
    run = tmp_path / one.folder
    assert not Reader(run).has(Cell(1, DENSE, 0, DENSE))
    assert (run / ".locks" / "seed=1.lease").exists()
    assert not check.check(run).damaged


# Merging


def test_two_folders_merged_are_one_processs(
    one: study.Prepared, whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    done = merge.merge(halves, tmp_path / "all" / one.folder)
    assert plain(done.into) == plain(whole)
    assert {path: count for path, count in done.copied.items()} == dict.fromkeys(halves, done.there // 2)
    for half in halves:
        copied = {name: of for name, of in everything(half).items() if name.startswith("seed=")}
        assert copied.items() <= everything(done.into).items()
    assert not check.check(done.into).damaged
    assert open_run(done.into).study.seeds == SEEDS
    page = report.build(done.into)
    rows = [line.split(",") for line in page.with_name("cells.csv").read_text().splitlines()]
    again = report.build(shutil.copytree(whole, tmp_path / whole.name))
    others = [line.split(",") for line in again.with_name("cells.csv").read_text().splitlines()]
    time = rows[0].index("seconds")
    assert [r[:time] + r[time + 1 :] for r in rows] == [r[:time] + r[time + 1 :] for r in others]
    # A second call copies nothing, and the study is complete.
    assert sum(merge.merge(halves, done.into).copied.values()) == 0
    assert study.plan(one, tmp_path / "all").missing == []


def test_a_folder_is_merged_into_one_that_has_a_part(
    one: study.Prepared, whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    into = shutil.copytree(halves[0], tmp_path / one.folder)
    cell = next(iter(into.glob("seed=0/dense/result.json")))
    text = cell.read_bytes()
    done = merge.merge([into, halves[1], whole], into)
    assert list(done.copied.values()) == [done.there // 2, 0]
    assert cell.read_bytes() == text, "of two alike the one that is there stays"
    assert plain(into) == plain(whole)


def changed(run: Path, place: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a result.json, and makes its manifest fit."""
    path = run / place / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    made = json.loads(path.with_name("manifest.json").read_text())
    made["files"]["result.json"] = files.sha256(path)
    path.with_name("manifest.json").write_text(manifest.sealed(made))


def test_cells_that_differ_are_named_and_nothing_is_written(
    one: study.Prepared, whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(whole, tmp_path / one.folder)
    tickets = [f"seed={seed}/chain=rewind-0/level=01/ticket" for seed in (0, 2)]
    for place in tickets:
        changed(other, place, lambda result: result.update(test_accuracy=0.123))
    changed(other, "seed=1/dense", lambda result: result.update(seconds=99.0, platform="1 x tpu"))
    before = everything(other)
    with pytest.raises(UserError) as said:
        merge.merge([*halves, other], tmp_path / "new")
    for place, half in zip(tickets, halves, strict=True):
        assert f"{place} of {half} and {other}" in str(said.value)
    assert "dense" not in str(said.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=tickets[0]):
        merge.merge([halves[0]], other)
    assert everything(other) == before


def test_other_mistakes_are_one_sentence(
    one: study.Prepared, folder: Path, whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    strange = study.run(
        prepared(folder, seeds=(0,), levels=0, train=config.Train(steps=6, batch=20)), tmp_path
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    damaged = shutil.copytree(halves[1], tmp_path / "damaged")
    (damaged / "seed=2" / "dense" / "mask.npz").write_bytes(b"")
    new = tmp_path / "new"
    for runs, into, why in (
        ([whole, strange], new, "of another study than .*: train.steps is 6 there and 12 here"),
        ([tmp_path / "full"], new, "is not a run folder"),
        ([tmp_path / "circle"], new, "is not a run folder"),
        ([], new, "RUN: it is missing"),
        ([whole], whole, "RUN: it is missing"),
        ([whole], whole / "inner", "lies in the run folder"),
        ([whole], tmp_path / "full", "is neither a run folder nor empty"),
        ([whole], tmp_path / "full" / "file", "cannot be read .Not a directory."),
        ([halves[0], damaged], new, "seed=2/dense/mask.npz: .*checksum.*--repair sets it aside"),
    ):
        with pytest.raises(UserError, match=why):
            merge.merge(runs, into)
        assert not new.exists()
    into = shutil.copytree(halves[0], tmp_path / "into" / one.folder)
    with opened(one, tmp_path / "into", 2), pytest.raises(UserError, match="another process is running"):
        merge.merge([halves[1]], into)


def test_a_cell_made_from_another_parent_is_refused(
    whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its own parent is gone, so only the manifest knows."""
    orphan = shutil.copytree(whole, tmp_path / "orphan")
    path = orphan / "seed=0" / "chain=rewind-0" / "level=01" / "ticket"
    made = json.loads((path / "manifest.json").read_text())
    made["parents"]["seed=0/dense"] = "0" * 64
    (path / "manifest.json").write_text(manifest.sealed(made))
    shutil.rmtree(orphan / "seed=0" / "dense")
    with pytest.raises(
        UserError, match=r"level=01/ticket of .*orphan, which was not made from seed=0/dense of"
    ):
        merge.merge([orphan, halves[0]], tmp_path / "new")


def test_folders_of_older_versions_are_merged(
    one: study.Prepared, whole: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    older = shutil.copytree(halves[0], tmp_path / "older")
    unsealed(older)
    (older / ".lock").touch()
    done = merge.merge([older, *halves], tmp_path / "new")
    assert len(check.check(done.into).unchecked) == len(check.check(done.into).whole) - 1
    assert not check.check(done.into).damaged
    rows = [[row._replace(seconds=0) for row in load(run)] for run in (done.into, whole)]
    assert rows[0] == rows[1]
    mask = np.load(older / "seed=0" / "dense" / "mask.npz")
    np.savez(older / "seed=0" / "dense" / "mask.npz", **{**mask, "fc1/kernel": ~mask["fc1/kernel"]})
    with pytest.raises(UserError, match="seed=0/dense of"):
        merge.merge([older, whole], tmp_path / "newer")


def test_a_killed_merge_goes_on(
    halves: tuple[Path, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = store.Store.copy, []

    def copy(self: store.Store, other: Reader, place: Path) -> None:
        calls.append(place)
        if len(calls) == 4:
            raise KeyboardInterrupt
        genuine(self, other, place)

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "copy", copy)
        with pytest.raises(KeyboardInterrupt):
            merge.merge(halves, tmp_path / "new")
    done = merge.merge(halves, tmp_path / "new")
    assert sum(done.copied.values()) == done.there - 3
    assert plain(done.into) == plain(whole)


def test_a_merge_that_was_stopped_before_study_json_goes_on(
    halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, genuine = tmp_path / "new", files.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "study.json":
            (path.parent / ".tmp-host-1-study.json").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        genuine(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", full)
        with pytest.raises(UserError, match=r"No space left on device.; choose another folder with --into"):
            merge.merge(halves, into)
    assert {path.name for path in into.iterdir()} == {".lock", ".locks", ".tmp-host-1-study.json"}
    done = merge.merge(halves, into)
    assert sum(done.copied.values()) == done.there


def test_the_command_says_what_it_did(
    one: study.Prepared, halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = shutil.copytree(halves[0], tmp_path / "here")
    (here / "landscape").mkdir()
    (here / "savings.json").write_text("{}")
    merge_command.main([str(here), str(halves[1]), "--into", str(tmp_path / "all")])
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'all'}\n"
    lines = said.err.splitlines()
    assert re.fullmatch(rf"{re.escape(str(here))}: \d+ cells and rewind states copied", lines[0])
    assert lines[3:] == [
        f"not merged, as analyses look at whole runs: {here / 'savings.json'}, {here / 'landscape'}",
        f"run.py goes on with the study where the folder is called {one.folder}",
        f"python -m analysis.report {tmp_path / 'all'} writes the report",
    ]
    assert dataclasses.asdict(open_run(tmp_path / "all").study)["seeds"] == SEEDS
