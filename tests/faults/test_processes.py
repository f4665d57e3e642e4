"""Real processes: killed at random moments, stopped by signals, two at a time, on a disk that fills up."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from faulty import contents, small_data

from analysis import check, load
from lthjax.folder.places import saved_step
from lthjax.imp import Cell

CONFIG = """
from lthjax.config import Data, Study, Train
config = Study(
    name={name!r}, seeds=(0, 1), levels=2, arms=("ticket", "reinit", "random"), control_levels=(2,),
    model="lenet300", data=Data(name="few", validation=40), train=Train(steps=60, batch=20, eval_every=20),
)
"""
# The smallest possible landscape.
LITTLE = {
    "images": 20, "plane-images": 10, "plane-test-images": 10, "spectrum-images": 10, "points": 3, "draws": 1,
    "alphas": 2, "eigenvalues": 1, "steps": 3, "probes": 1, "probe-steps": 2, "trace-probes": 2,
}  # fmt: skip


class World(NamedTuple):
    """The folders of a test's study, and its commands."""

    root: Path

    @property
    def run(self) -> Path:
        (run,) = (self.root / "runs").glob("tiny-*")
        return run

    def commands(self) -> dict[str, list[str]]:
        """Every command that writes to a run folder, by name, in a valid order."""
        out, data = str(self.root / "runs"), ["--data-dir", str(self.root / "data")]
        little = [word for name, value in LITTLE.items() for word in (f"--{name}", str(value))]
        run = str(next(iter((self.root / "runs").glob("tiny-*")), "none yet"))
        return {
            "run": ["run.py", "--config", str(self.root / "tiny.py"), "--out", out, *data, "--quiet"],
            "savings": ["-m", "analysis.savings", run, "--quick", "--levels", "0", "2", *data],
            "geography": ["-m", "analysis.geography", run, "--draws", "1", "--quiet"],
            "predict": ["-m", "analysis.predict", run, "--levels", "2", "--steps", "0", "60",
                        "--images", "40", *data, "--quiet"],
            "landscape": ["-m", "analysis.landscape", run, "--level", "2", *little, *data, "--quiet"],
            "stability": ["-m", "analysis.stability", run, "--levels", "2", "--k", "0", "30", "--alphas", "3",
                          *data, "--quiet"],
            "transfer": ["-m", "analysis.transfer", "--from", run, "--to", run, "--levels", "2", "--arms",
                         "transferred", "shuffled", "--out", out, *data, "--quiet"],
            "report": ["-m", "analysis.report", run],
        }  # fmt: skip

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, *self.commands()[name], *more]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, name: str, *more: str) -> float:
        """Runs a command to its end; returns its seconds."""
        began = time.perf_counter()
        process = self.start(name, *more)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return time.perf_counter() - began

    def killed(self, name: str, after: float) -> None:
        """Starts a command and kills it after so many seconds unless it has ended."""
        process = self.start(name)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def found(self, names: list[str], copied_from: Path | None = None) -> dict:
        """All numbers of the run and of the output of these commands."""
        numbers = contents(self.run)
        for name in names:
            for path in sorted((self.run / name).rglob("*.csv")):
                # Commands in the output name the folder.
                text = path.read_text().replace(str(self.root), "").replace(str(copied_from or self.root), "")
                lines = [{**line, "seconds": ""} for line in csv.DictReader(text.splitlines())]
                numbers[path.relative_to(self.run).as_posix()] = lines
        return numbers


def world(root: Path) -> World:
    small_data(root / "data")
    (root / "tiny.py").write_text(CONFIG.format(name="tiny"))
    return World(root)


# `make faults` gives tests that share a slow fixture to one worker.
shares_analyses = pytest.mark.xdist_group("analyses")
shares_six = pytest.mark.xdist_group("six")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, float]]:
    """A study with all analyses, and the seconds of each command."""
    made = world(tmp_path_factory.mktemp("undisturbed"))
    return made, {name: made.finish(name) for name in made.commands()}


def test_killed_twice_and_run_again(tmp_path: Path) -> None:
    whole, cut = world(tmp_path / "whole"), world(tmp_path / "cut")
    seconds = whole.finish("run")
    for share in (0.6, 0.9):
        cut.killed("run", share * seconds)
    cut.finish("run")
    assert cut.found(["report"]) == whole.found(["report"])


@shares_analyses
@pytest.mark.faults
@pytest.mark.parametrize("number", range(4))
def test_a_study_killed_again_and_again(
    undisturbed: tuple[World, dict[str, float]], tmp_path: Path, number: int
) -> None:
    """Five kills each: together with the analyses below, more than 50."""
    whole, seconds = undisturbed
    moments, cut = random.Random(number), world(tmp_path)
    for _ in range(5):
        cut.killed("run", moments.uniform(0.3, 1) * seconds["run"])
    cut.finish("run")
    assert contents(cut.run) == contents(whole.run)
    assert not check.check(cut.run).damaged
    assert {p.name for p in (cut.run / "report").iterdir()} >= {"index.html", "cells.csv", "verdicts.csv"}


@shares_analyses
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
    for _ in range(5):
        cut.killed(name, moments.uniform(0.3, 1) * seconds[name])
    cut.finish(name)
    names = [] if name == "savings" else [name]  # whose times differ
    assert cut.found(names, whole.root) == whole.found(names)
    assert not check.check(cut.run).damaged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_say_how_to_go_on(tmp_path: Path, number: int) -> None:
    made = world(tmp_path)
    config = made.root / "tiny.py"
    config.write_text(config.read_text().replace("steps=60", "steps=200000"))
    process = made.start("run")
    deadline = time.monotonic() + 120
    while not list(made.root.glob("runs/*/seed=0/state=0/result.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    assert said.splitlines()[-1] == f"stopped by {name}; the same command goes on from here"
    assert "Traceback" not in said
    (run,) = made.root.glob("runs/*/")
    for seed in (0, 1):
        assert saved_step(run, Cell(seed, "dense", 0, "dense")) > 0
    assert not check.check(run).damaged


def test_two_processes_train_no_cell_twice(tmp_path: Path) -> None:
    made = world(tmp_path)
    first, second = made.start("run"), made.start("run")
    said = [process.communicate(timeout=300)[1] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    # The later process is refused, finds a free seed, or starts after the earlier one has ended.
    assert codes in ([0, 2], [0, 0])
    assert codes == [0, 0] or "another process is running this study" in "".join(said)
    made.finish("run")
    assert not check.check(made.run).damaged
    trained = re.findall("training (.*)", (made.run / "log.txt").read_text())
    assert len(trained) == len(set(trained)) == len(load(made.run))


SIX = ("--seeds", "0", "1", "2", "3", "4", "5")


def bits(run: Path) -> dict[str, object]:
    """Numbers, masks and weights of a run folder, and its tables of cells and verdicts; no times."""
    found = contents(run)
    for path in run.glob("seed=*/**/result.json"):
        text = re.sub(r'"seconds": [^,]*,', "", path.read_text())
        mask = path.with_name("mask.npz")
        found[path.relative_to(run).as_posix()] = (text, mask.read_bytes() if mask.exists() else b"")
    for name in ("cells.csv", "verdicts.csv"):
        # Commands name the folders that the tests are in.
        text = re.sub(r"/\S*/(?=tiny\.py|runs|data)", "", (run / "report" / name).read_text())
        lines = csv.DictReader(text.splitlines())
        found[name] = [{**line, "seconds": ""} for line in lines]
    return found


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six seeds trained by one process."""
    made = world(tmp_path_factory.mktemp("six"))
    made.finish("run", *SIX)
    return made


@shares_six
@pytest.mark.faults
def test_three_processes_fill_one_folder(six: World, tmp_path: Path) -> None:
    made = world(tmp_path)
    processes = [made.start("run", *SIX, "--shard", f"{number}/3") for number in (1, 2, 3)]
    ended = [(process.communicate(timeout=600), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0, 0], ended
    page = f"{made.run / 'report' / 'index.html'}\n"
    told = [(out, "the report is left to the last of them" in said) for (out, said), _ in ended]
    assert set(told) <= {(page, False), ("", True)}
    assert (page, False) in told
    assert bits(made.run) == bits(six.run)
    assert not check.check(made.run).damaged
    log = (made.run / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \w", line) for line in log)
    assert len([line for line in log if " training " in line]) == len(load(made.run))
    about = json.loads((made.run / "study.json").read_text())
    assert len(about["commands"]) == 3
    assert about["config"]["seeds"] == [0, 1, 2, 3, 4, 5]


@shares_six
@pytest.mark.faults
def test_one_of_three_processes_is_killed(six: World, tmp_path: Path) -> None:
    made = world(tmp_path)
    processes = [made.start("run", *SIX, "--shard", f"{number}/3") for number in (1, 2, 3)]
    deadline = time.monotonic() + 300
    while not list(made.root.glob("runs/*/seed=1/dense/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(processes[1].pid, signal.SIGKILL)
    ended = [(process.communicate(timeout=600), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, -signal.SIGKILL, 0], ended
    rows = load(made.run)
    assert {row.seed for row in rows} >= {0, 1, 2, 3, 5}
    assert len(rows) < len(load(six.run))
    made.finish("run", *SIX, "--shard", "2/3")
    assert bits(made.run) == bits(six.run)
    assert not check.check(made.run).damaged
    assert not [*made.run.rglob(".tmp-*")]


def run_module(*words: object) -> str:
    """The standard output of a command that must succeed."""
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@shares_six
@pytest.mark.faults
def test_an_array_of_single_seeds_and_two_machines_merged(six: World, tmp_path: Path) -> None:
    """`--seeds N` a process, two folders, and `analysis.merge`."""
    here, there = world(tmp_path / "here"), world(tmp_path / "there")
    processes = [here.start("run", "--seeds", seed) for seed in ("4", "0", "2")]
    ended = [(process.communicate(timeout=600), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0, 0], ended
    there.finish("run", "--seeds", "1", "3", "5")
    both = World(tmp_path / "both")
    into = both.root / "runs" / here.run.name
    assert run_module("analysis.merge", here.run, there.run, "--into", into) == f"{into}\n"
    run_module("analysis.report", into)
    assert bits(both.run) == bits(six.run)


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


@shares_analyses
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
