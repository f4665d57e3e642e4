"""Real processes, killed at random moments; a disk that fills up."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import contents
from worlds import World, world

from analysis import check


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, float]]:
    """A study with all analyses, and the seconds of each command."""
    made = world(tmp_path_factory.mktemp("undisturbed"))
    return made, {name: made.finish(name) for name in made.commands()}


@pytest.mark.faults
@pytest.mark.parametrize("number", range(4))
def test_a_study_killed_again_and_again(
    undisturbed: tuple[World, dict[str, float]], tmp_path: Path, number: int
) -> None:
    """Six kills each: together with the analyses below, more than 50."""
    whole, seconds = undisturbed
    moments, cut = random.Random(number), world(tmp_path)
    for _ in range(6):
        cut.killed("run", moments.uniform(0.3, 1) * seconds["run"])
    cut.finish("run")
    assert contents(cut.run) == contents(whole.run)
    assert not check.check(cut.run).damaged
    assert {p.name for p in (cut.run / "report").iterdir()} >= {"index.html", "cells.csv", "verdicts.csv"}


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["savings", "geography", "predict", "landscape", "stability", "transfer", "report"]
)
def test_an_analysis_killed_again_and_again(
    undisturbed: tuple[World, dict[str, float]], tmp_path: Path, name: str
) -> None:
    whole, seconds = undisturbed
    cut = World(tmp_path / "cut")
    shutil.copytree(whole.root, cut.root)
    for written in (cut.run / name, cut.run / f"{name}.json"):
        shutil.rmtree(written) if written.is_dir() else written.unlink(missing_ok=True)
    moments = random.Random(name)
    for _ in range(4):
        cut.killed(name, moments.uniform(0.3, 1) * seconds[name])
    cut.finish(name)
    names = [] if name == "savings" else [name]  # whose times differ
    assert cut.found(names, whole.root) == whole.found(names)
    assert not check.check(cut.run).damaged


@pytest.fixture
def filling(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of a given number of MiB, which can be created anew or resized."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def sized(mebibytes: int) -> Path:
        option = f"{'remount,' if os.path.ismount(disk) else ''}size={mebibytes}m"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", disk], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("a disk that fills up needs the right to mount a tmpfs; test_moments has a stand-in")
        return disk

    yield sized
    while os.path.ismount(disk) and not subprocess.run(["umount", "-l", disk], check=False).returncode:
        pass


@pytest.mark.faults
def test_a_disk_that_fills_up(
    undisturbed: tuple[World, dict[str, float]], tmp_path: Path, filling: Callable[[int], Path]
) -> None:
    whole, _ = undisturbed
    made = world(filling(2) / "world")
    said = []
    for size in (4, 8, 12, 14, 16, 18):
        filling(size)
        process = made.start("run")
        said.append(process.communicate(timeout=300)[1])
        if process.returncode == 0:
            break
        assert process.returncode == 2
        assert len(said[-1].splitlines()) == 1, said[-1]
        assert "No space left on device" in said[-1]
    assert len(said) > 2
    filling(200)
    made.finish("run")
    assert contents(made.run) == contents(whole.run)
    assert not [p for p in (made.run / "report").iterdir() if not p.stat().st_size]
