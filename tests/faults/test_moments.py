"""A study that dies, or whose disk fails, at any single call to the disk.

Training takes no time, so that every moment of the writing can be tested. What dies is a process of its own;
a disk fails in this one, as in a notebook, and what comes after it must not be disturbed by what is left.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from faulty import FAULTS, attempt, contents, failed, prepared, small_data, untrained

from analysis import check, report
from lthjax import files, study

QUICK = 4


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    untrained(monkeypatch)
    files._said.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data"))


def run(folder: Path, out: Path) -> Path:
    return study.run(prepared(folder), out)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, int]:
    """The result of an undisturbed run, and its number of calls to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        made = run(folder, tmp_path_factory.mktemp("first"))  # which also writes compiled programs
        calls = attempt(run, (folder, tmp_path_factory.mktemp("undisturbed")), "", 0, False)
        return contents(made), int(calls)


def moments(calls: int, count: int) -> list[int]:
    """`count` of the calls, or all: the first, the last and evenly spaced ones between."""
    return sorted({*np.linspace(1, calls, min(count, calls)).round().astype(int).tolist()})


@pytest.mark.parametrize("count", [QUICK, pytest.param(25, marks=pytest.mark.faults)])
def test_killed_at_any_call_it_goes_on_to_the_same_numbers(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, count: int
) -> None:
    right, calls = undisturbed
    assert calls > 50
    killed = 0
    for at in moments(calls, count):
        killed += attempt(run, (folder, tmp_path / "runs"), "dead", at, True) == "killed"
        (cut,) = [*(tmp_path / "runs").glob("tiny-*")] or [None]
        if cut and (cut / "study.json").exists():
            assert not check.check(cut).damaged, at
        cut = run(folder, tmp_path / "runs")
        assert contents(cut) == right, at
        assert not [*cut.rglob(".tmp-*")]
        shutil.rmtree(tmp_path / "runs")
    # The number of calls for JAX's own cache varies, so the last moments may come too late.
    assert killed > 0.9 * min(count, calls) - 1


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("count", [QUICK // 2, pytest.param(15, marks=pytest.mark.faults)])
def test_a_disk_that_fails_at_any_call_is_one_sentence(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, kind: str, count: int
) -> None:
    right, calls = undisturbed
    for at in moments(calls, count):
        said = failed(run, (folder, tmp_path / "runs"), kind, at, True)
        assert "\n" not in said
        assert said or at > 1, "the first call of all does not fail"
        if not said:  # everything that is needed was already written
            (there,) = (tmp_path / "runs").glob("tiny-*")
            assert contents(there) == right, at
        assert contents(run(folder, tmp_path / "runs")) == right, at
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_call_that_fails_once_loses_nothing(
    folder: Path, undisturbed: tuple[dict, int], tmp_path: Path, kind: str
) -> None:
    right, calls = undisturbed
    for at in moments(calls, QUICK // 2):
        said = failed(run, (folder, tmp_path / "runs"), kind, at, False)
        assert "\n" not in said
        assert said or at > 1, "the first call of all does not fail"
        assert contents(run(folder, tmp_path / "runs")) == right, at
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.usefixtures("drawn_pngs")  # as a process that is cut short draws them
@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.faults)])
def test_a_report_cut_short_anywhere_is_whole_after_the_next(
    folder: Path, tmp_path: Path, count: int
) -> None:
    made = run(folder, tmp_path / "runs")
    page = report.build(made)
    right = {p.name: p.read_bytes() for p in page.parent.iterdir()}
    shutil.rmtree(page.parent)
    calls = int(attempt(report.build, (made,), "", 0, False))
    killed = 0
    for at in moments(calls, count):
        shutil.rmtree(page.parent)
        killed += attempt(report.build, (made,), "dead", at, True) == "killed"
        report.build(made, only_if_changed=True)
        assert {p.name: p.read_bytes() for p in page.parent.iterdir()} == right, at
    assert killed > 0.9 * min(count, calls) - 1
