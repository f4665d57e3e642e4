"""Run folders in an object store, by a stand-in in memory under the same library; training takes no time."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import jax
import numpy as np
import pytest
from conftest import ROOT
from etils.epath import backend, gpath
from faulty import contents, prepared, small_data, untrained
from fsspec.implementations.memory import MemoryFileSystem

from lthjax import bucket, check, cli, files, growth, launch, locks, manifest, record, study
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.imp import DENSE
from lthjax.training import train
from lthjax.training.job import Trained

OUT = "gs://bucket/some/runs"
LEFT = {"text": "", "refuse": ""}


class Stand(MemoryFileSystem):
    """Google's object store as fsspec shows it, in memory: flat names, `bucket/name`."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(re.sub("^(gs|gcs)://", "", str(path)))

    def glob(self, path: str, **named: Any) -> list[str]:
        return [name.lstrip("/") for name in super().glob(path, **named)]

    def _open(self, path: str, mode: str = "rb", **named: Any) -> Any:
        if LEFT["refuse"] and LEFT["refuse"] in path and "w" in mode:
            raise ConnectionResetError("the line is dead\nfor now")
        return super()._open(path, mode, **named)


@pytest.fixture(autouse=True)
def _stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    untrained(monkeypatch)
    files._said.clear()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(LEFT, "refuse", "")
    for name, value in (("RENEW", 0.2), ("EXPIRES", 20.0), ("SETTLE", 0.02), ("BRIEF", 0.01)):
        monkeypatch.setattr(locks, name, value)
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, Stand, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Stand.store.clear()
    yield
    backend.fsspec_backend._get_filesystem.cache_clear()
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, "gcsfs.GCSFileSystem", clobber=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one(folder: Path) -> study.Prepared:
    return prepared(folder, seeds=(0, 1, 2), levels=1)


@pytest.fixture(scope="module")
def whole(one: study.Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers of a run in a folder of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        return contents(study.run(one, tmp_path_factory.mktemp("whole")))


def machine(tmp_path: Path, name: str) -> bucket.Bucket:
    return bucket.Bucket(OUT, tmp_path / name)


def fill(of: bucket.Bucket, one: study.Prepared, *seeds: int) -> study.Filled:
    of.pull(one.folder)
    return study.fill([one], of.local, seeds=seeds or None, bucket=of)


def names() -> set[str]:
    return {name.removeprefix("/bucket/some/runs/") for name in Stand.store}


def test_an_address_is_told_from_a_folder() -> None:
    for text, address in (
        (OUT, OUT),
        (Path(OUT), OUT),
        ("gs://b/x/", "gs://b/x"),
        ("s3://b/x", None),
        ("gs://b", "gs://b"),
        ("runs", None),
        ("gs:", None),
        ("gs://", None),
        ("ftp://host/x", None),
        ("./gs:/x", None),
    ):
        assert bucket.address_of(text) == address


def test_two_machines_fill_one_bucket(one: study.Prepared, whole: dict[str, Any], tmp_path: Path) -> None:
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    assert fill(here, one, 0, 2).others == []
    (run,) = fill(there, one).runs
    assert contents(run) == whole
    log = (run / "log.txt").read_text()
    assert set(re.findall(r"training seed (\d)", log)) == {"1"}, "what the bucket has is not trained again"
    assert not check.check(run).damaged
    here.pull(one.folder)
    assert contents(here.local / one.folder) == whole
    assert not [name for name in names() if ".locks" in name or ".tmp-" in name or "log.txt" in name]
    about = json.loads(Stand.store[f"/bucket/some/runs/{one.folder}/study.json"].getvalue())
    assert about["config"]["seeds"] == [0, 1, 2]


def test_a_seed_that_another_machine_trains_is_left_to_it(one: study.Prepared, tmp_path: Path) -> None:
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    about = record.about(one.study, one.identity, one.lengths, one.dataset)
    path = there.local / one.folder
    with bucket.SharedStore(there, path, about, seeds=(1,)) as other:
        assert other.seeds == [1]
        assert fill(here, one).others == [1]
        assert {cell.split("/")[0] for cell in here.places(one.folder)} == {"seed=0", "seed=2"}
        with pytest.raises(UserError, match=rf"{OUT}/{one.folder}: another process is running this study"):
            fill(here, one)
    assert fill(here, one).others == []


def test_a_lease_that_was_taken_stops_its_old_owner(
    one: study.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, here = growth.Run.write, machine(tmp_path, "here")

    def write(self: Any, item: Any, trained: Any) -> None:
        if item.cell and item.cell.arm == DENSE and item.cell.seed == 1:
            text = json.dumps({"owner": "other", "machine": "elsewhere", "process": 1})
            here.write(f"{one.folder}/.locks/seed=1.lease", text.encode())
        genuine(self, item, trained)

    monkeypatch.setattr(growth.Run, "write", write)
    with pytest.raises(UserError, match=rf"^{OUT}/{one.folder}: another process has taken over seed=1"):
        fill(here, one)
    assert "seed=1/dense" not in here.places(one.folder)


@pytest.mark.parametrize(
    "part", ["seed=1/dense/mask.npz", "seed=1/dense/result.json", "seed=2/chain=rewind-0/level=01/random"]
)
def test_a_cell_whose_upload_failed_is_not_there_and_is_sent_the_next_time(
    one: study.Prepared, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    here = machine(tmp_path, "here")
    monkeypatch.setitem(LEFT, "refuse", part)
    with pytest.raises(UserError, match=rf"{OUT}: it cannot be written \({OUT}/.*: the line is dead\); "):
        fill(here, one)
    place = part.removesuffix("/mask.npz").removesuffix("/result.json")
    assert place not in here.places(one.folder)
    assert place in here.unsent(one.folder)
    monkeypatch.setitem(LEFT, "refuse", "")
    fill(here, one)
    assert here.unsent(one.folder) == []
    there = machine(tmp_path, "there")
    there.pull(one.folder)
    assert contents(there.local / one.folder) == whole


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A machine of another kind, whose trainings end with other bits while the block runs."""
    usual = train.train

    def other(*arguments: Any) -> list[Trained]:
        def changed(of: Trained) -> Trained:
            params = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.000001), of.variables.params)
            return of._replace(variables=of.variables._replace(params=params))

        return [changed(of) for of in usual(*arguments)]

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(train, "train", other)
            yield

    return block


def test_after_an_upload_that_failed_nothing_is_sent_that_was_made_from_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Any
) -> None:
    one = prepared(folder, seeds=(0, 1), levels=2)
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    monkeypatch.setitem(LEFT, "refuse", "seed=0/dense")
    with pytest.raises(UserError, match="the line is dead"):
        fill(here, one)
    assert not [place for place in here.places(one.folder) if "seed=0/chain" in place]
    monkeypatch.setitem(LEFT, "refuse", "")
    with others():
        fill(there, one)
    assert not check.check(there.local / one.folder).damaged
    (run,) = fill(here, one).runs
    assert contents(run) == contents(there.local / one.folder)
    assert check.check(run).damaged == {}


@pytest.mark.parametrize("levels", [1, 2])
def test_a_cell_that_was_not_sent_gives_way_to_another_machines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Any, levels: int
) -> None:
    """It was killed before the upload; here and there may have the same places since."""
    one = prepared(folder, seeds=(0,), levels=1)
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    genuine = bucket.Bucket.push

    def push(self: bucket.Bucket, run: str, place: str) -> None:
        if place.endswith("dense"):
            raise KeyboardInterrupt
        genuine(self, run, place)

    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "push", push)
        with pytest.raises(KeyboardInterrupt):
            fill(here, one)
    assert here.unsent(one.folder) == ["seed=0/dense"]
    with others():
        fill(there, one)
    (run,) = fill(here, prepared(folder, seeds=(0,), levels=levels)).runs
    assert check.check(run).damaged == {}
    assert len(list(run.glob("damaged/*/seed=0/dense"))) == 1
    there.pull(one.folder)
    assert contents(run) == contents(there.local / one.folder)


def test_cells_in_the_bucket_that_do_not_fit_are_made_anew(folder: Path, tmp_path: Path, others: Any) -> None:
    """A dense network was removed from it and made anew, with other bits."""
    one = prepared(folder, seeds=(0,), levels=2)
    fill(machine(tmp_path, "here"), one)
    for name in list(Stand.store):
        if "/seed=0/dense/" in name:
            del Stand.store[name]
    there, later = machine(tmp_path, "there"), machine(tmp_path, "later")
    with others():
        (run,) = fill(there, one).runs
        found = check.check(run)
        assert {path.name for path in found.damaged} == {"ticket", "random"}
        check.repair(run, found)
        fill(there, one)
    assert check.check(run).damaged == {}
    fill(later, one)
    assert contents(later.local / one.folder) == contents(run)
    # The first machine goes on from the bucket's cells.
    (run,) = fill(machine(tmp_path, "here"), prepared(folder, seeds=(0,), levels=3)).runs
    assert check.check(run).damaged == {}
    later.pull(one.folder)
    assert contents(later.local / one.folder) == contents(run)


def test_while_others_wait_for_study_json_no_manifest_is_read(
    folder: Path, one: study.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten thousand cells that takes minutes."""
    here, waiting, seen = machine(tmp_path, "here"), [], []
    fill(here, one)
    locked, read = claims.about_locked, bucket.Bucket.read

    @contextlib.contextmanager
    def about_locked(run: Path) -> Iterator[None]:
        with locked(run):
            waiting.append(run)
            yield
            waiting.pop()

    def noted(self: bucket.Bucket, name: str) -> bytes | None:
        seen.append((name.rpartition("/")[2], len(waiting)))
        return read(self, name)

    monkeypatch.setattr(claims, "about_locked", about_locked)
    monkeypatch.setattr(bucket.Bucket, "read", noted)
    fill(here, prepared(folder, seeds=(0, 1, 2), levels=2))
    assert ("manifest.json", 0) in seen
    assert ("manifest.json", 1) not in seen
    assert ("study.json", 1) in seen


def test_damage_in_the_bucket_is_noticed(one: study.Prepared, tmp_path: Path) -> None:
    fill(machine(tmp_path, "here"), one, 0)
    there = machine(tmp_path, "there")
    place = f"{one.folder}/seed=0/dense"
    good = there.read(f"{place}/mask.npz")
    assert good is not None
    there.write(f"{place}/mask.npz", good[:-1])
    with pytest.raises(UserError, match=rf"{OUT}/{place}: it is damaged \(.*checksum.*; remove it, and it"):
        there.pull(one.folder)
    assert not list((there.local / one.folder).rglob("dense"))
    there.remove(f"{place}/{manifest.FILE}")
    with pytest.raises(UserError, match=r"it is damaged \(manifest.json is not there\)"):
        there.pull(one.folder)
    assert not list((there.local / one.folder).glob(".tmp-*"))
    assert there.read(f"{place}/nothing") is None


def test_a_folder_of_another_config_in_the_bucket_is_refused(
    one: study.Prepared, folder: Path, tmp_path: Path
) -> None:
    here = machine(tmp_path, "here")
    fill(here, one, 0)
    about = json.loads(here.read(f"{one.folder}/study.json") or b"")
    about["identity"]["optim.lr"] = 0.5
    here.write(f"{one.folder}/study.json", manifest.sealed(about).encode())
    with pytest.raises(UserError, match=r"made by another config: optim.lr is 0.5 there"):
        fill(machine(tmp_path, "there"), one, 1)


def test_the_command_takes_an_address(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(replicate, "keep_programs", lambda: None)
    config = ("--config", str(ROOT / "configs" / "quickstart.py"), "--levels", "1", "--control-levels", "1")
    words = [*config, "--seeds", "3", "--train.steps", "6", "--out", OUT, "--quiet"]
    cli.check_arguments(words, {"--out": "gs"})
    launch.main([*words, "--dry-run"])
    assert "0 cells; 4 to train" in capsys.readouterr().out
    assert not names()
    launch.main(words)
    page = Path(capsys.readouterr().out.strip())
    assert page.relative_to(tmp_path / "lthjax/out/gs/bucket/some/runs").parts[1:] == ("report", "index.html")
    name = page.parent.parent.name
    assert {f"{name}/report/index.html", f"{name}/report/cells.csv", f"{name}/study.json"} <= names()
    assert f"{name}/seed=3/dense/result.json" in names()
    # The copy here lacks what others still train, so no report of it is offered.
    monkeypatch.setattr(launch, "_filled", lambda *_, **__: study.Filled([page.parent.parent], [4]))
    launch.main(words)
    assert capsys.readouterr() == (
        "",
        "other processes train seed 4; the report is left to the last of them; the same command, given again "
        "when they have ended, writes it here, too\n",
    )


def test_what_is_missing_or_out_of_reach_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: Exception) -> Callable[..., bool]:
        def exists(*_: object) -> bool:
            raise error

        return exists

    monkeypatch.setattr(Stand, "exists", broken(ImportError("Please install gcsfs")))
    with pytest.raises(
        UserError, match=r"--out: 'gs://.*' needs the package gcsfs; pip install gcsfs, or na"
    ):
        machine(tmp_path, "here")
    monkeypatch.setattr(Stand, "exists", broken(RuntimeError("401 anonymous\nmore")))
    with pytest.raises(OSError, match=rf"^{OUT}/: 401 anonymous$"):
        machine(tmp_path, "here")
    for words in (["--data-dir", "gs://x/y"], ["--out", "ftp://x/y"], ["--out=ftp://x/y"], ["gs://x/y"]):
        with pytest.raises(UserError, match="is an address, and only folders and files of this machine"):
            cli.check_arguments(words, {"--out": "gs"})
