"""One program of two processes, each with two virtual CPU devices, over loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from conftest import ROOT, result
from faulty import contents, prepared, small_data

from analysis import check
from lthjax import prune
from lthjax.devices import hosts
from lthjax.follower import Follower
from lthjax.imp import DENSE, Cell

# Two studies that share their dense networks, and a late rewind point.
CONFIG = """
from lthjax import sweep
from lthjax.config import Data, Prune, Study, Train
base = Study(
    name="tiny", seeds=(0, 1, 2), levels=2, rewind=(0, 20), arms=("ticket", "reinit"), control_levels=(2,),
    model="lenet300", data=Data(name="few", validation=40), prune=Prune(rate=0.2),
    train=Train(steps={steps}, batch=20, eval_every=20),
)
configs = sweep.studies(base, sweep.values("prune.scope", "layer", "global"))
"""
# Process 0 is told what process 1 does, and waits for that long before it ends.
SECONDS = 15.0


class Program(NamedTuple):
    """The folders of a test's studies, and the commands that fill them."""

    root: Path

    @property
    def runs(self) -> list[Path]:
        return sorted((self.root / "runs").glob("tiny-*"))

    def start(self, devices: int, *more: str, out: str = "runs") -> "subprocess.Popen[str]":
        command = [sys.executable, "run.py", "--config", str(self.root / "tiny.py"), "--out", self.root / out]
        return subprocess.Popen(
            [*command, "--data-dir", self.root / "data", "--quiet", *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The rounding of one process with four devices: XLA sums by as many threads (`settings.threads`).
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "4"},
        )

    def pair(self, *more: str, outs: tuple[str, str] = ("runs", "runs")) -> list["subprocess.Popen[str]"]:
        told = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
        return [self.start(2, *told, str(i), *more, out=out) for i, out in enumerate(outs)]

    def numbers(self) -> dict[str, object]:
        return {run.name: (contents(run), _cells(run)) for run in self.runs}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _cells(run: Path) -> list[list[str]]:
    lines = [line.split(",") for line in (run / "report" / "cells.csv").read_text().splitlines()]
    left_out = lines[0].index("seconds")
    return [[value for i, value in enumerate(line) if i != left_out] for line in lines]


def program(root: Path, steps: int = 40) -> Program:
    small_data(root / "data")
    (root / "tiny.py").write_text(CONFIG.format(steps=steps))
    return Program(root)


def ended(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The studies by one process with four devices."""
    made = program(tmp_path_factory.mktemp("whole"))
    ((code, _, said),) = ended([made.start(4)])
    assert code == 0, said
    return made


def test_the_relay_puts_one_sentence_for_the_runtimes_report() -> None:
    relay = Path(hosts.__file__).with_name("relay.py")
    report = "E1 agent.cc] Polled an error from coordination service.\nF1 client.h] Terminating\n*** Check\n"
    ends = {
        "one\n": "one\n",
        f"one\n{report}": "one\nthe sentence\n",
        f"error: lost\n{report}": "error: lost\n",
    }
    for words, passed in ends.items():
        done = subprocess.run(
            [sys.executable, relay, "the sentence"], input=words, capture_output=True, text=True, check=True
        )
        assert done.stderr == passed


JOIN = """
import sys
from lthjax import cli
from lthjax.devices import hosts
hosts._GATHER = 2.0
def main(words):
    with hosts.program(*words[:1], *map(int, words[1:])):
        pass
cli.run(main)
"""


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        (
            (),
            {},
            "the processes did not find one another (coordinator_address should be defined.); where nei",
        ),
        (
            (),
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            "write srun before the command",
        ),
        (
            ("127.0.0.1:{port}", "2", "0"),
            {},
            "have come together at 127.0.0.1:{port} within 2 s; start all of",
        ),
    ],
)
def test_who_finds_nobody_says_so(words: tuple[str, ...], variables: dict[str, str], sentence: str) -> None:
    port = free_port()
    command = [sys.executable, "-c", JOIN, *(word.format(port=port) for word in words)]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        command, cwd=ROOT, env=outside | variables, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert sentence.format(port=port) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_program_a_process_decides_alone() -> None:
    assert (hosts.count(), hosts.index(), hosts.leads()) == (1, 0, True)
    value = object()
    assert hosts.decided(value) is value
    assert hosts.signalled(15) == 15
    hosts.alike(value, "never")
    hosts.barrier("never")


def test_a_follower_remembers_and_writes_nothing(tmp_path: Path) -> None:
    made, given = prepared(small_data(tmp_path / "data")), tmp_path / "runs"
    cell, later = Cell(0, DENSE, 0, DENSE), Cell(0, "rewind-0", 1, "ticket")
    first = jax.device_get(made.model.init(jax.random.key(0)))
    mask = jax.device_get(prune.ones(first.params))
    lender = Follower(given / made.folder, (0,))
    assert not lender.has(cell)
    lender.write_state(0, 3, first)
    for one in (cell, later):
        lender.write(one, result(one), mask, first)
    borrower = Follower(given / "other", (0,))
    borrower.copy_seed(lender, 0)
    assert borrower.has(cell)
    assert borrower.has_state(0, 3)
    assert not borrower.has(later)
    assert borrower.result(cell) == result(cell)
    assert borrower.mask(cell) is mask
    assert borrower.variables(cell) is borrower.state(0, 3) is first
    assert not given.exists()


def test_two_processes_give_the_numbers_of_one(whole: Program, tmp_path: Path) -> None:
    """The second one sees another folder, empty like the first one's: it shows that it writes nothing."""
    made = program(tmp_path)
    first, second = ended(made.pair(outs=("runs", "elsewhere")))
    assert first[0] == second[0] == 0, (first, second)
    assert Path(first[1].strip()).is_file()
    assert len(first[1].splitlines()) == 1
    assert second[1:] == ("", "")
    assert not (tmp_path / "elsewhere").exists()
    assert made.numbers() == whole.numbers()
    assert not any(check.check(run).damaged for run in made.runs)


@pytest.mark.faults
def test_a_process_that_dies_ends_the_other_and_they_go_on(whole: Program, tmp_path: Path) -> None:
    made = program(tmp_path)
    for victim in (1, 0):
        done = len(list(made.root.glob("runs/*/seed=*/**/result.json")))
        processes = made.pair("--checkpoint-every", "1 s")
        until = time.monotonic() + 120
        while (
            len(list(made.root.glob("runs/*/seed=*/**/result.json"))) < done + 4 and time.monotonic() < until
        ):
            time.sleep(0.05)
        processes[victim].kill()
        began = time.monotonic()
        code, path, said = ended([processes[1 - victim]])[0]
        assert time.monotonic() - began < SECONDS
        processes[victim].communicate()
        assert code != 0
        assert path == ""
        assert len(said.splitlines()) == 1, said
        assert "start all of its processes again" in said
    # A process that does not see what is there would train something else.
    refused = ended(made.pair(outs=("runs", "elsewhere")))
    for code, _, said in refused:
        assert code == 2
        assert len(said.splitlines()) == 1, said
        assert "put --out on a disk that all machines share" in said
    first, second = ended(made.pair())
    assert first[0] == second[0] == 0, (first, second)
    assert made.numbers() == whole.numbers()
    assert not any(check.check(run).damaged for run in made.runs)


@pytest.mark.faults
def test_a_signal_to_one_ends_both_and_saves(tmp_path: Path) -> None:
    made = program(tmp_path, steps=200_000)
    processes = made.pair()
    until = time.monotonic() + 120
    while not list(made.root.glob("runs/*/seed=2/state=0/result.json")) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(4)
    began = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    ends = ended(processes)
    assert time.monotonic() - began < SECONDS
    for code, _, said in ends:
        assert code == 128 + signal.SIGTERM, ends
        assert said == "stopped by SIGTERM; the same command goes on from here\n"
    assert len(list(made.root.glob("runs/*/seed=*/under-way/dense/step=*/manifest.json"))) == 3


@pytest.mark.faults
def test_a_process_that_stands_still_is_missed(tmp_path: Path) -> None:
    made = program(tmp_path, steps=200_000)
    processes = made.pair()
    until = time.monotonic() + 120
    while not list(made.root.glob("runs/*/seed=2/state=0/result.json")) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(4)
    began = time.monotonic()
    processes[1].send_signal(signal.SIGSTOP)
    code, _, said = ended(processes[:1])[0]
    assert hosts.DEAD - 5 < time.monotonic() - began < hosts.DEAD + SECONDS
    assert code == 2
    assert said.startswith("error: process 1 of this program has given no sign of life for 30 s; start all")
    assert len(said.splitlines()) == 1, said
    processes[1].kill()
    processes[1].communicate()
