"""Publish replaces only its own files, and loses nothing, whenever it is stopped."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import about, result

from analysis import (
    analyses,
    card,
    check,
    compare,
    doctor,
    export,
    page,
    publish,
    report,
    tables,
    tensorboard,
)
from analysis.report.__main__ import main as writes_reports
from analysis.run import Run
from lthjax import config, models, prune
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.places import PUBLISHED, folder, positions
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell

Files = dict[str, bytes]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the reports by a list of the runs whose report was built."""
    of: list[Path] = []

    def build_all(runs: list[Path], **_: Any) -> Path:
        of.extend(runs)
        name = "cells.csv" if len(runs) == 1 else "comparison.csv"
        folder = runs[0] / "report" if len(runs) == 1 else runs[0].parent / "comparisons" / "x"
        return page.write(
            folder, title="", subtitle="", sections=[], facts=[], config="", table=(name, "seed\n")
        )

    monkeypatch.setattr(report, "build_all", build_all)
    return of


def run_folder(path: Path) -> Path:
    """A run folder with contents that could be lost."""
    (path / "seed=0" / "dense" / "variables").mkdir(parents=True)
    (path / "seed=0" / "dense" / "variables" / "weights").write_text("hours of training")
    (path / "study.json").write_text(json.dumps(about()))
    return path


def contents(folder: Path) -> Files:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return run_folder(tmp_path / "runs" / "x-0"), run_folder(tmp_path / "runs" / "x-1")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the current folder to one that holds the others, as is usual for relative paths."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


REFUSED: dict[str, tuple[list[str], str]] = {
    "the target is forgotten": (
        ["runs/x-0", "runs/x-1"],
        "it is a run folder; the folder to write comes last",
    ),
    "a run twice": (["runs/x-0", "runs/x-0"], "it is the run folder runs/x-0 or lies in it"),
    "a slash behind": (["runs/x-0", "runs/x-0/"], "it is the run folder"),
    "by another way": (["runs/x-0", "runs/../runs/x-1/../x-0"], "it is the run folder"),
    "by a link": (["runs/x-0", "link"], "it is the run folder"),
    "a run named by a link": (["link", "runs/x-0"], "it is the run folder"),
    "a link to another run": (["runs/x-1", "link"], "it is a symbolic link"),
    "a link that leads nowhere": (["runs/x-0", "nowhere"], "it is a symbolic link"),
    "the runs' folder": (["runs/x-0", "runs"], "the run folder runs/x-0 lies in it"),
    "above": (["runs/x-0", "runs/x-0/.."], "the run folder runs/x-0 lies in it"),
    "the report": (["runs/x-0", "runs/x-0/report"], "it is the run folder runs/x-0 or lies in it"),
    "a folder of a run": (["runs/x-0", "runs/x-0/new/folder"], "it is the run folder runs/x-0 or lies in it"),
    "a folder of another run": (["runs/x-0", "runs/x-1/new"], "lies in .*x-1, which is a run or a published"),
    "here": (["runs/x-0", "."], "the run folder runs/x-0 lies in it"),
    "here, no run in it": (["../{0}/runs/x-0", "../{0}/home/../home"], "it is or holds the folder .*home"),
    "the root": (["runs/x-0", "/"], "the run folder runs/x-0 lies in it"),
    "home": (["runs/x-0", "home"], "it is or holds the folder .*home"),
    "a file": (["runs/x-0", "file"], "it is a file; name a folder"),
    "something else": (["runs/x-0", "other"], "it holds letter.txt, which publish did not write"),
    "something else, hidden": (["runs/x-0", "hidden"], "it holds .git, which publish did not write"),
    "published without a mark": (["runs/x-0", "older"], "it holds cells.csv, which publish did not write"),
    "a letter in it": (["runs/x-0", "mixed"], "it holds sub/letter.txt, which publish did not write"),
    "an edited file in it": (
        ["runs/x-0", "edited"],
        "cells.csv is not as publish wrote it there, and would be",
    ),
    "a mark that lies": (["runs/x-0", "lies"], "it holds published.json, which publish did not write"),
    "no run": (["other", "to"], "it is not a run folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_never_a_target(
    case: str, tmp_path: Path, runs: tuple[Path, Path], built: list[Path]
) -> None:
    (tmp_path / "link").symlink_to(runs[0])
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("mine")
    for name in ("other/letter.txt", "hidden/.git/config", "older/study.json", "older/cells.csv",
                 "mixed/cells.csv", "mixed/sub/scores.csv", "mixed/sub/letter.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "mixed" / PUBLISHED).write_text('{"files": ["cells.csv", "sub/scores.csv"]}')
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "cells.csv").write_text("mine")
    (tmp_path / "edited" / PUBLISHED).write_text(f'{{"files": {{"cells.csv": "{"0" * 64}"}}}}')
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / PUBLISHED).write_text('{"files": ["../file"]}')
    before = contents(tmp_path)
    arguments, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        publish.main([argument.format(tmp_path.name) for argument in arguments])
    assert contents(tmp_path) == before
    assert not built, "it is refused before anything is built"


def test_a_published_folder_is_replaced_and_keeps_its_mode(
    runs: tuple[Path, Path], built: list[Path]
) -> None:
    to = publish.publish([runs[0]], "results/x/")
    assert {*contents(to)} == {"cells.csv", "study.json", PUBLISHED}
    assert publish.listed(to) == ["cells.csv", "study.json", PUBLISHED]
    (runs[0] / "predict").mkdir()
    (runs[0] / "predict" / "scores.csv").write_text("1\n")
    publish.publish([runs[0]], to)
    assert {*contents(to)} == {"cells.csv", "study.json", PUBLISHED, "predict/scores.csv"}
    publish.publish(runs, to)
    assert {*contents(to)} == {"comparison.csv", "study.json", PUBLISHED}
    assert [p.name for p in to.parent.iterdir()] == ["x"]
    new = to.parent / "made"
    new.mkdir()
    assert to.stat().st_mode == new.stat().st_mode
    assert publish.publish([runs[0]], new) == new, "an empty folder may be written"
    written = (new / "study.json").read_bytes()
    (new / "study.json").write_bytes(written.replace(b" ", b"  ", 1))
    with pytest.raises(UserError, match=r"study.json is not as publish wrote it there"):
        publish.publish([runs[0]], new)
    (new / "study.json").unlink()
    assert (publish.publish([runs[0]], new) / "study.json").read_bytes() == written
    assert built == [runs[0], runs[0], *runs, runs[0], runs[0]]
    with pytest.raises(UserError, match=r"it lies in .*x, which is a run or a published folder"):
        publish.publish([runs[0]], to / "deeper")


def test_a_run_that_is_not_finished_is_published_with_a_warning(
    tmp_path: Path, built: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "x-0"
    cells = [Cell(0, DENSE, 0, DENSE), *(Cell(0, "rewind-0", level, "ticket") for level in (1, 2, 3))]
    with Store(run, about(seeds=(0,), arms=("ticket",))) as store:
        for cell in cells:
            store.write(cell, result(cell), {"fc": {"kernel": np.ones((3, 2), bool)}}, None)
    publish.main([str(run), "to"])
    assert capsys.readouterr() == (f"{tmp_path / 'to'}\n", "")
    with claims.locked(run, [0]):
        publish.main([str(run), "to"])
    assert capsys.readouterr().err == f"warning: {run}: another process trains seed 0\n"
    shutil.rmtree(folder(run, cells[-1]))
    with claims.locked(run, [0]):
        publish.main([str(run), "to"])
    left = "1 of the 4 cells last asked for are not trained yet; another process trains seed 0"
    assert capsys.readouterr().err == f"warning: {run}: {left}\n"
    assert built == [run, run, run]
    # Seeds of other commands, as of the tasks of a SLURM array; one was stopped in its first training.
    with Store(run, about(seeds=(0,), arms=("ticket",))) as store:
        one = cells[0]._replace(seed=1)
        store.write(one, result(one), {"fc": {"kernel": np.ones((3, 2), bool)}}, None)
    (positions(run, cells[0]._replace(seed=2)) / "step=2").mkdir(parents=True)
    publish.main([str(run), "to"])
    left = "8 of the 12 cells last asked for, counted for every seed begun, are not trained yet"
    assert capsys.readouterr().err == f"warning: {run}: {left}\n"


OWN = """
from lthjax.analysis import analyses
from lthjax.config import Study
from lthjax.models import MODELS

MODELS["own"] = MODELS["lenet300"]
analyses.ANALYSES["margin"] = analyses.ANALYSES["forgetting"]._replace(name="margin")
config = Study()
"""


def test_results_of_rows_of_ones_own_are_not_left_out_in_silence(
    runs: tuple[Path, Path],
    built: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(analyses.ANALYSES, "margin", analyses.ANALYSES["forgetting"])
    del analyses.ANALYSES["margin"]
    monkeypatch.setitem(models.MODELS, "own", models.MODELS["lenet300"])
    del models.MODELS["own"]
    (runs[0] / "study.json").write_text(json.dumps(about(model="own")))
    (runs[0] / "config.py").write_text("")
    for name in ("margin", "forgetting"):
        tables.write_tables(runs[0] / name, {"starts.csv": "seed\n"})
    Path("mine.py").write_text(OWN)
    for command, asked in ((publish.main, [str(runs[0]), "to"]), (writes_reports, [str(runs[0])])):
        command(asked)
        said = capsys.readouterr().err
        assert f"warning: {runs[0]}: the results in margin are of no analysis that is loaded here" in said
        assert "by --config" in said
        survives = f"warning: the section What survives is left out. {runs[0]}: the network 'own' is a row of"
        assert survives in said
        assert f"run again with --config {runs[0] / 'config.py'}" in said
        command([*asked, "--config", "mine.py"])
        said = capsys.readouterr().err
        assert "margin" not in said
        assert "What survives" not in said
        assert (Path("to") / "margin" / "starts.csv").is_file()
        del analyses.ANALYSES["margin"], models.MODELS["own"]


@pytest.mark.parametrize(
    "name", ["forgetting/events.csv", "landscape/level=01/landscape.csv", "savings.json"]
)
def test_a_damaged_table_is_not_published(name: str, runs: tuple[Path, Path], built: list[Path]) -> None:
    run, table = runs[0], runs[0] / name
    tables.write_tables(table.parent, {table.name: "events 1904\n"})
    half = run / "forgetting" / ".tmp-myhost-77-3-events.csv"
    half.parent.mkdir(exist_ok=True)
    half.write_text("as a killed analysis leaves it")
    to = publish.publish([run], "results/x")
    before = contents(to)
    assert {*before} == {"cells.csv", "study.json", PUBLISHED, name}
    built.clear()
    table.write_text("events 2904\n")
    with pytest.raises(
        UserError, match=rf"{name}: it cannot be read .*check runs/x-0 --repair sets it aside"
    ):
        publish.publish([Path("runs/x-0")], to)
    assert contents(to) == before
    assert not built, "it is refused before anything is built"
    check.main(["runs/x-0", "--repair"])
    publish.publish([run], to)
    assert {*contents(to)} == {*before} - {name}


class Killed(BaseException):
    """Stands for SIGKILL: after it no change to a file works."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """Sets how many changes to files succeed before the process is killed."""
    left = [10**9]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return change(*args, **more)

        return call

    for owner, name in ((os, "replace"), (shutil, "copyfile"), (Path, "unlink"), (Path, "rmdir"),
                        (Path, "mkdir"), (Path, "write_bytes")):  # fmt: skip
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def after(changes: int) -> None:
        left[0] = changes

    yield after
    left[0] = 10**9


def test_a_call_that_is_killed_leaves_the_old_or_the_new(
    runs: tuple[Path, Path], tmp_path: Path, killed_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    page.write(source, title="", subtitle="", sections=[], facts=[], config="", table=("cells.csv", "new\n"))
    monkeypatch.setattr(report, "build_all", lambda _: source / "index.html")
    (runs[0] / "predict").mkdir()
    (runs[0] / "predict" / "scores.csv").write_text("1\n")
    new = contents(publish.publish([runs[0]], "new"))
    old = {"cells.csv": b"old\n", "geography/overlap.csv": b"old\n", PUBLISHED: b""}
    old[PUBLISHED] = json.dumps({"files": ["cells.csv", "geography/overlap.csv"]}).encode()
    ended, changes = False, 0
    while not ended:
        to = tmp_path / "results" / f"{changes}"
        for name, content in old.items():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(content)
        killed_at(changes)
        try:
            publish.publish([runs[0]], to)
            ended = True
        except Killed:
            changes += 1
        killed_at(10**9)
        aside = to.with_name(f".{to.name}.old")
        assert contents(to if to.exists() else aside) in (old, new), changes
        left = to.with_name(f".{to.name}.new")
        if left.exists() and publish.listed(left) is None:
            # Killed before the folder has its mark: the error says so, and the folder is not removed.
            with (
                pytest.raises(UserError, match="a call that was stopped left it")
                if contents(left)
                else contextlib.nullcontext()
            ):
                publish.publish([runs[0]], to)
            shutil.rmtree(left, ignore_errors=True)
        publish.publish([runs[0]], to)
        assert contents(to) == new
        assert [p.name for p in to.parent.iterdir()] == [to.name]
        shutil.rmtree(to.parent)
    assert changes > 12


def test_a_disk_that_fills_up_leaves_the_old(
    runs: tuple[Path, Path], built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = publish.publish([runs[0]], "results/x")
    before = contents(to)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"x: it cannot be written \(No space left on device\)"):
        publish.publish([runs[0]], to)
    assert contents(to) == before
    assert [p.name for p in to.parent.iterdir()] == ["x"]


def test_an_export_replaces_an_exported_cell_and_nothing_else(runs: tuple[Path, Path]) -> None:
    before = contents(runs[0])
    with pytest.raises(UserError, match="it is there and is no exported cell, and is not replaced"):
        export.export(runs[0], Cell(0, "dense", 0, "dense"), runs[0] / "study.json")
    with pytest.raises(UserError, match="it is there and is no exported cell, and is not replaced"):
        export.export(runs[0], Cell(0, "dense", 0, "dense"), runs[0])
    assert contents(runs[0]) == before
    with pytest.raises(UserError, match=r"ticket\.npz: .* the file must end in \.safetensors"):
        export.export(runs[0], Cell(0, "dense", 0, "dense"), runs[0].parent / "ticket.npz")
    own = runs[0].parent / "own.safetensors"
    prune.save(own, {"w": np.ones((2, 2))}, {"w": np.ones((2, 2), bool)}, metadata={"study": "mine"})
    with pytest.raises(UserError, match=r"own\.safetensors: it is there and is no exported cell"):
        export.export(runs[0], Cell(0, "dense", 0, "dense"), own)
    assert prune.load(own).metadata == {"study": "mine"}


def test_a_network_with_batch_statistics_computes_from_its_file_alone(tmp_path: Path) -> None:
    model = models.build("resnet8", (28, 28, 1), 10)
    drawn, compiled = jax.jit(model.init), jax.jit(model.apply, static_argnums=3)
    start, trained = (jax.device_get(drawn(jax.random.key(seed))) for seed in (0, 1))
    whole = jax.device_get(prune.ones(start.params))
    trained = trained._replace(stats=jax.tree.map(lambda s: s + np.float32(0.25), trained.stats))
    cell = Cell(0, "dense", 0, "dense")
    with Store(tmp_path / "run", about(model="resnet8")) as store:  # type: ignore[arg-type]
        store.write_state(0, 0, start)
        done = {**result(cell), "density": 1.0, "start": 0}
        store.write(cell, done, whole, trained)  # type: ignore[arg-type]
    run = Run(tmp_path / "run")
    ticket = prune.load(export.export(run, cell, tmp_path / "t.safetensors"))
    shown = card.card(run, cell, "t", ticket.metadata)
    split, running = (code for code in re.findall(r"```python\n(.*?)```", shown, re.S) if "stats" in code)
    assert (
        'models.build("resnet8", (28, 28, 1), 10)\nlogits, _ = model.apply(params, stats, images' in running
    )
    images = np.random.default_rng(0).normal(size=(4, 28, 28, 1)).astype(np.float32)
    for tree, wanted in ((ticket.params, trained), (ticket.origin, start)):
        names: dict[str, Any] = {"ticket": ticket._replace(params=tree)}
        exec(split, names)
        got, expected = (
            compiled(*of, images, False)[0] for of in ((names["params"], names["stats"]), wanted)
        )
        np.testing.assert_array_equal(got, expected)
        prune.check(names["params"], names["mask"])
        assert jax.tree.structure(names["origin"]) == jax.tree.structure(names["params"])
    left = [path for path, m in zip(prune.paths(ticket.mask), jax.tree.leaves(ticket.mask), strict=True)
            if m.ndim]  # fmt: skip
    assert left == [
        path for path, m in zip(prune.paths(whole), jax.tree.leaves(whole), strict=True) if m.ndim
    ]
    # What else reads tickets takes it for what it is.
    file = tmp_path / "t.safetensors"
    found = doctor.diagnose(
        doctor.Options(init=file, final=file, mask=file, rewound=file, claimed_sparsity=0)
    )
    assert [check.claim for check in found if check.outcome == "FAILED"] == []


@pytest.mark.parametrize("levels", [1, 3])
def test_a_card_says_how_the_weights_were_pruned(levels: int, tmp_path: Path) -> None:
    made = about(
        model="own", arms=("ticket", "random_chain"), prune=config.Prune(criterion="snip", density=0.15)
    )
    made["config"]["levels"] = levels
    made["commands"] = ["run.py --prune.rate 'conv|fc' 0.4"]
    others = ("random", "invert", "edge_popup", "gone")
    of_chains = (("rewind-0", "ticket"), ("random_chain-0", "random_chain"))
    cells = [Cell(0, chain, 1, arm) for chain, arm in of_chains]
    cells += [Cell(0, DENSE, 0, DENSE), *(Cell(0, "rewind-0", 1, arm) for arm in others)]
    mask = {"fc": {"kernel": np.ones((3, 2), bool)}}
    with Store(tmp_path / "run", made) as store:  # type: ignore[arg-type]
        for cell in cells:
            store.write(
                cell,
                result(cell),
                mask,
                models.Variables({"fc": {"kernel": np.ones((3, 2), np.float32)}}, {}),
            )
    ticket, chain, dense, *controls = (card.card(Run(tmp_path / "run"), cell, "t", {}) for cell in cells)
    assert f"level 1 of {'one-shot' if levels == 1 else 'iterative'} pruning." in ticket
    assert f"| criterion | snip ({CRITERIA['snip'].summary.replace('|', chr(92) + '|')}) |" in ticket
    assert f"| criterion | random ({CRITERIA['random'].summary}) |" in chain
    assert "| criterion | – |" in dense
    # Hubs show an entity within backticks as it is written.
    assert r"| command | `run.py --prune.rate 'conv\|fc' 0.4` |" in dense
    for arm, control in zip(others, controls, strict=True):
        own = "" if arm == "gone" else "; the mask here is the arm's own"
        criterion = CRITERIA["snip"].summary.replace("|", r"\|")
        assert f"| criterion | of `ticket` beside it: snip ({criterion}){own} |" in control


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"arm": "reinit"}, "--arm: 'reinit'"), ({"chain": "rewind-0"}, "--chain: 'rewind-0'")],
)
def test_an_export_of_the_dense_network_has_neither_arm_nor_chain(
    runs: tuple[Path, Path], asked: dict[str, str], says: str
) -> None:
    options = export.Options(run=runs[0], file=Path("dense.safetensors"), level=0, seed=0)
    dense = Cell(0, "dense", 0, "dense")
    for same in (options, dataclasses.replace(options, arm="dense", chain="dense")):
        assert export.chosen(Run(runs[0]), same) == dense
    with pytest.raises(UserError, match=f"{says} is not allowed with --level 0, the dense network"):
        export.chosen(Run(runs[0]), dataclasses.replace(options, **asked))  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [True, False])
def test_event_files_of_other_programs_are_kept(runs: tuple[Path, Path], tmp_path: Path, named: bool) -> None:
    result = {
        **Cell(0, "dense", 0, "dense")._asdict(), "status": "diverged", "reason": "it was told to",
        "density": 1.0, "weights_left": 1, "weights": 1, "start": 0, "made_from": None,
        "steps": 2, "seconds": 1.0, "curves": {"step": [1, 2], "test_loss": [1.0, 0.5]},
    }  # fmt: skip
    (runs[0] / "seed=0" / "dense" / "result.json").write_text(json.dumps(result))
    to = tmp_path / "logs" if named else None
    logs = to or runs[0] / "tensorboard"
    theirs = logs / "seed=0" / "dense" / "events.out.tfevents.1.host"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    for _ in range(2):
        tensorboard.write(runs[0], to)
        assert theirs.read_text() == "theirs"
        assert len([*theirs.parent.iterdir()]) == 2
    with pytest.raises(UserError, match=r"--to: .* is a run folder, which holds its cells alone"):
        tensorboard.write(runs[0], runs[0])
    if to:
        other, before = tmp_path / "other-0123abcd", contents(to)
        shutil.copytree(runs[0], other)
        known = about()
        known["identity"] |= {"levels": 9}
        (other / "study.json").write_text(json.dumps(known))
        with pytest.raises(UserError, match=r"logs.* has curves of another run, or of an earlier version, "):
            tensorboard.write(other, to)
        assert contents(to) == before


def test_a_comparison_that_is_not_whole_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a report: `compare.build` calls `page.is_whole` for everything it shows."""
    asked: list[Path] = []
    monkeypatch.setattr(page, "is_whole", lambda folder, shows: not asked.append(folder))
    monkeypatch.setattr(Run, "rows", [()])
    one, other = (run_folder(tmp_path / name) for name in "ab")
    known = about()
    (other / "study.json").write_text(json.dumps(known | {"identity": known["identity"] | {"levels": 9}}))
    found = compare.build([one, other], only_if_changed=True)
    assert asked == [found.parent]
