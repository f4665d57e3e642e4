"""A study that dies, or whose disk fails, at every single call that it makes to the disk.

In one process, with trainings that take no time, so that every moment of the writing can be tried.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from faulty import FAULTS, Disk, Killed, contents, prepared, small_data, untrained

from analysis import check, report
from lthjax import files, study
from lthjax.errors import UserError

QUICK = 12


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    untrained(monkeypatch)
    files._said.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, int]:
    """What comes out, and how many calls to the disk it takes."""
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        study.run(prepared(folder), tmp_path_factory.mktemp("first"))  # which also writes compiled programs
        with Disk().mounted() as disk:
            run = study.run(prepared(folder), tmp_path_factory.mktemp("undisturbed"))
        return contents(run), disk.calls


def moments(calls: int, count: int) -> list[int]:
    """So many of the calls, or all: the first, the last and those between, evenly."""
    return sorted({*np.linspace(1, calls, min(count, calls)).round().astype(int).tolist()})


def told(folder: Path, tmp_path: Path) -> str:
    """What a study on a bad disk ends with; nothing where it comes to its end."""
    try:
        study.run(prepared(folder), tmp_path / "runs")
    except (UserError, OSError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("count", [QUICK, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_call_it_goes_on_to_the_same_numbers(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, count: int
) -> None:
    right, calls = undisturbed
    assert calls > 50
    killed = 0
    for at in moments(calls, count):
        try:
            with Disk(Killed, at).mounted():
                study.run(prepared(folder), tmp_path / "runs")
        except Killed:
            killed += 1
        (run,) = [*(tmp_path / "runs").glob("tiny-*")] or [None]
        if run and (run / "study.json").exists():
            assert not check.check(run).damaged, at
        run = study.run(prepared(folder), tmp_path / "runs")
        assert contents(run) == right, at
        assert not [*run.rglob(".tmp-*")]
        shutil.rmtree(tmp_path / "runs")
    # Calls that JAX makes for its own cache come and go, so that the last moments may come too late.
    assert killed > 0.9 * min(count, calls) - 1


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("count", [QUICK // 3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_disk_that_fails_at_any_call_is_one_sentence(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, kind: str, count: int
) -> None:
    right, calls = undisturbed
    for at in moments(calls, count):
        with Disk(FAULTS[kind], at).mounted():
            said = told(folder, tmp_path)
        assert "\n" not in said
        if not said:  # nothing that is needed was still to be written
            (run,) = (tmp_path / "runs").glob("tiny-*")
            assert contents(run) == right, at
        run = study.run(prepared(folder), tmp_path / "runs")
        assert contents(run) == right, at
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_call_that_fails_once_loses_nothing(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, kind: str
) -> None:
    right, calls = undisturbed
    for at in moments(calls, QUICK // 3):
        with Disk(FAULTS[kind], at, lasting=False).mounted():
            assert "\n" not in told(folder, tmp_path)
        assert contents(study.run(prepared(folder), tmp_path / "runs")) == right, at
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_report_cut_short_anywhere_is_whole_after_the_next(
    folder: Path, tmp_path: Path, count: int
) -> None:
    run = study.run(prepared(folder), tmp_path / "runs")
    with Disk().mounted() as disk:
        page = report.build(run)
    right = {p.name: p.read_bytes() for p in page.parent.iterdir()}
    for at in moments(disk.calls, count):
        shutil.rmtree(page.parent)
        with pytest.raises(Killed), Disk(Killed, at).mounted():
            report.build(run)
        report.build(run, only_if_changed=True)
        assert {p.name: p.read_bytes() for p in page.parent.iterdir()} == right, at
