"""Several processes and machines that fill one folder."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from faulty import contents
from worlds import World, world

from analysis import check, load

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
