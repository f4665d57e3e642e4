"""Setting damage aside: what is whole stays, even where something that it was made from is damaged."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import result

from analysis import check as check_command
from analysis import merge as merge_command
from analysis import open_run, tables
from analysis.analyses import ANALYSES
from analysis.earlybird.work import _ROWS
from analysis.forgetting.table import EventRow
from analysis.record import found as read
from analysis.report import until
from analysis.report.facts import unfinished
from lthjax import check as checking
from lthjax import config, home, manifest, plan, prune, record, study
from lthjax.check import check, repair
from lthjax.errors import UserError
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.folder.verified import absent, has_manifests, read_about, read_result
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.training import train

_PARAMS = {"fc": {"kernel": np.arange(1, 31, dtype=np.float32).reshape(6, 5)}}
STUDY = {"model": "lenet300", "data": config.Data(name="mnist_10k"), "seeds": (0,), "levels": 2,
         "arms": ("ticket",)}  # fmt: skip
_START, _DENSE = Path("seed=0/state=0"), Path("seed=0/dense")
_FIRST, _SECOND = (Path(f"seed=0/chain=rewind-0/level=0{level}/ticket") for level in (1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Learning rate -> a run folder: a state and a dense network and tickets made from it, untrained."""
    found = {}
    for rate in (0.1, 0.2):
        how = {"train": config.Train(steps=5), "optim": config.Optim(name="sgd", lr=rate)}
        prepared = study.prepare(config.Study(**STUDY, **how))
        facts = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
        run = found[rate] = tmp_path_factory.mktemp("made") / prepared.folder
        with Store(run, facts) as store:
            weights = Variables(jax.tree.map(lambda x, r=rate: x * r, _PARAMS), {})
            store.write_state(0, 0, weights)
            mask, before = prune.ones(_PARAMS), [state_folder(Path(), 0, 0)]
            for level in range(3):
                cell = Cell(0, "rewind-0", level, "ticket") if level else Cell(0, DENSE, 0, DENSE)
                store.write(cell, result(cell), mask, weights, before)
                mask = prune.magnitude(_PARAMS, mask, 0.5)
                before = [folder(Path(), cell), state_folder(Path(), 0, 0)]
    return found


def emptied(name: str) -> Callable[[Path, Path], None]:
    return lambda run, _: (run / name).write_bytes(b"") and None


def another(name: str, make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def replace(run: Path, _: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return replace


def swapped(place: Path) -> Callable[[Path, Path], None]:
    def swap(run: Path, other: Path) -> None:
        shutil.rmtree(run / place)
        shutil.copytree(other / place, run / place)

    return swap


@pytest.mark.parametrize(
    ("damage", "aside"),
    [
        (emptied("study.json"), ["study.json"]),
        (emptied(f"{_START}/manifest.json"), [str(_START)]),
        (emptied(f"{_FIRST}/manifest.json"), [str(_FIRST)]),
        (swapped(_DENSE), [str(_DENSE)]),
        (swapped(_START), [str(_START)]),
        (emptied(f"{_SECOND}/mask.npz"), [str(_SECOND)]),
        (another("study.json", Path.mkdir), ["study.json"]),
        (another(f"{_SECOND}/manifest.json", os.mkfifo), [str(_SECOND)]),
        (another(f"{_SECOND}/mask.npz", os.mkfifo), [str(_SECOND)]),
    ],
    ids=[
        "study",
        "state",
        "cell",
        "dense of another study",
        "state of another study",
        "mask",
        "a folder for the study",
        "a pipe for a manifest",
        "a pipe for a mask",
    ],
)
def test_only_the_damaged_is_set_aside(
    damage: Callable[[Path, Path], None], aside: list[str], made: dict[float, Path], tmp_path: Path
) -> None:
    run = tmp_path / "x-0123abcd"
    shutil.copytree(made[0.1], run)
    assert not check(run).damaged
    damage(run, made[0.2])
    found = check(run)
    assert [path.relative_to(run).as_posix() for path in found.damaged] == aside
    left = {"study.json", *map(str, (_START, _DENSE, _FIRST, _SECOND))} - {*aside}
    assert {path.relative_to(run).as_posix() for path in found.whole} == left
    assert [path.relative_to(run).as_posix() for path in repair(run, found)] == aside
    assert all((run / name).exists() for name in left)


def test_what_cells_were_made_from_and_is_gone_is_named(
    made: dict[float, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` cannot mend it, so it is not what a reader is told to run."""
    run = tmp_path / made[0.1].name
    shutil.copytree(made[0.1], run)
    for place in (_START, _SECOND):
        shutil.rmtree(run / place)
    found = check(run)
    assert (found.damaged, found.absent) == ({}, [run / _START]), "no cell was made from the last one"
    said = f"{run / _START}: it is not there; the command that made it makes it anew, for example "
    said += home.again(open_run(run).about["commands"][0])
    with pytest.raises(UserError) as error:
        open_run(run).state(0, 0)
    assert str(error.value) == f"{said}."
    with pytest.raises(SystemExit, match="1"):
        check_command.main([str(run)])
    assert capsys.readouterr().out == f"{said}.\n{run}: 3 as written, 0 damaged, 1 not there\n"
    check_command.main([str(run), "--repair"])
    capsys.readouterr()
    # A merge copies what there is, and names it, too.
    into = tmp_path / "all" / run.name
    merge_command.main([str(run), "--into", str(into)])
    assert said.replace(str(run), str(into)) in capsys.readouterr().err
    # Of several commands any may have asked for it.
    about = read_about(run)
    text = manifest.sealed({**about, "commands": [*about["commands"], "run.py --rewind 0 5"]})
    (run / "study.json").write_text(text)
    assert str(absent(run / _START)) == f"{said}, or another of the commands in study.json."
    # The command fills the folder that is looked at, which has to have its name.
    text = manifest.sealed({**about, "commands": ["run.py --config a.py --out there"]})
    (run / "study.json").write_text(text)
    moved = run.rename(tmp_path / "x-moved")
    assert str(absent(moved / _START)).endswith(
        f"for example python run.py --config a.py --out {tmp_path}; run.py goes on with the study where the "
        f"folder is called {run.name}."
    )


def test_a_cell_whose_result_is_not_copied_yet_is_not_there(made: dict[float, Path], tmp_path: Path) -> None:
    """As beside a study where folders cannot be renamed: no analysis is refused, and what lacks is said."""
    run = tmp_path / made[0.1].name
    shutil.copytree(made[0.1], run)
    cells = len(open_run(run).rows)
    (run / _SECOND / "result.json").unlink()
    left = open_run(run)
    assert len(left.rows) == cells - 1
    missing = f"{len(left.planned) - cells + 1} of the {len(left.planned)} cells last asked for"
    assert unfinished(left) == f"{missing} are not trained yet"


def test_a_study_json_that_is_gone_is_written_anew_without_training(
    made: dict[float, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / made[0.1].name
    shutil.copytree(made[0.1], run)
    (run / "study.json").unlink()
    monkeypatch.setattr(train, "train", None)
    # The arrays of these cells are of no network.
    monkeypatch.setattr(plan, "_check_network", lambda *_: None)
    how = {"train": config.Train(steps=5), "optim": config.Optim(name="sgd", lr=0.1)}
    study.fill([study.prepare(config.Study(**STUDY, **how))], tmp_path)
    assert [path.relative_to(run) for path in check(run).whole] == [
        path.relative_to(made[0.1]) for path in check(made[0.1]).whole
    ]
    assert has_manifests(run)
    # Cells of another study beside no study.json are noticed once it is there.
    (run / "study.json").write_bytes((made[0.2] / "study.json").read_bytes())
    assert len(check(run).damaged) == 4


@pytest.mark.parametrize("name", ["study.json", f"{_FIRST}/mask.npz", str(_SECOND)])
def test_what_may_not_be_read_is_no_damage(
    name: str, made: dict[float, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another user has written it; the superuser, who runs some tests, may read everything."""
    run = made[0.1]
    for of, function in ((Path, "open"), (os, "scandir")):
        genuine = getattr(of, function)

        def refusing(path: Any, *rest: Any, genuine: Any = genuine, **more: Any) -> Any:
            if Path(path) == run / name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return genuine(path, *rest, **more)

        monkeypatch.setattr(of, function, refusing)
    with pytest.raises(UserError, match=rf"{re.escape(name)}: it cannot be read \(Permission denied\)"):
        check(run)


@pytest.mark.parametrize("manifests", [True, False])
def test_a_folder_that_was_half_copied_is_checked_without_study_json(
    made: dict[float, Path], tmp_path: Path, manifests: bool
) -> None:
    run = tmp_path / made[0.1].name
    shutil.copytree(made[0.1], run)
    (run / "study.json").unlink()
    assert [path.relative_to(run) for path in check(run).whole] == [_FIRST, _SECOND, _DENSE, _START]
    cut = run / _SECOND / "result.json"
    cut.write_bytes(cut.read_bytes()[:40])
    if not manifests:
        (run / _SECOND / "manifest.json").unlink()
    with pytest.raises(UserError, match=rf"python -m analysis\.check {run} --repair sets it aside"):
        read_result(run / _SECOND)
    found = check(run)
    assert [*found.damaged] == [run / _SECOND]
    repair(run, found)
    assert not check(run).damaged
    for path in run.rglob("manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match="it is not a run folder"):
        check(run)


def test_a_position_that_a_study_drops_meanwhile_is_not_damaged(
    made: dict[float, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / made[0.1].name
    shutil.copytree(made[0.1], run)
    position = run / "seed=0" / "under-way" / "dense" / "step=3"
    shutil.copytree(run / _START, position)
    genuine = checking._is_checked

    def meanwhile(path: Path) -> bool:
        shutil.rmtree(position, ignore_errors=True)
        return genuine(path)

    assert [*check(run).damaged] == [position]
    monkeypatch.setattr(checking, "_is_checked", meanwhile)
    assert not check(run).damaged


@pytest.mark.parametrize("readable", [True, False])
def test_a_damaged_table_is_set_aside_with_its_checksums(
    readable: bool, made: dict[float, Path], tmp_path: Path
) -> None:
    """Without its checksums alone the table would be read unchecked, and its wrong number believed."""
    run, forgetting = tmp_path / "x-0123abcd", ANALYSES["forgetting"]
    shutil.copytree(made[0.1], run)
    event = EventRow("dense", 0, 0, DENSE, "test", 1.0, 60, 2, 50, 40, 7, None)
    tables.write_tables(run / "forgetting", {"events.csv": tables.of_rows(EventRow, [event])})
    tables.write_tables(run / "earlybird" / "masks=0", {_ROWS: "0\n", "about.json": "{}\n"})
    tables.write_tables(run, {"savings.json": "{}\n"})
    (run / until.FILE).write_text("[]\n")
    (run / "mine.csv").write_text("of the user\n")
    opened = open_run(run)
    assert read(forgetting, opened)["events.csv"] == [event]
    changed = [run / "forgetting" / "events.csv", run / "earlybird" / "masks=0" / _ROWS, run / "savings.json"]
    for path in changed:
        path.write_text(path.read_text().replace("7", "8").replace("0", "1").replace("{}", "[]"))
        if not readable:
            path.with_name(manifest.SUMS).write_bytes(b"{")
    found = check(run)
    assert {*found.damaged} == {path.with_name(manifest.SUMS) for path in changed}
    assert all(why.startswith(str(path)) for path, why in found.damaged.items()), "it names the folder"
    moved = repair(run, found)
    beside = run / "earlybird" / "masks=0" / "about.json"
    assert {*moved} == {*found.damaged, *changed, beside}
    assert all(where.is_file() and not path.exists() for path, where in moved.items())
    assert moved[changed[0]].parent == moved[changed[0].with_name(manifest.SUMS)].parent
    assert read(forgetting, opened) is None
    assert (run / "study.json").is_file()
    assert (run / until.FILE).is_file(), "it is of no analysis"
    assert (run / "mine.csv").is_file(), "it is the user's"
    assert not check(run).damaged
