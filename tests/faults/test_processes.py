"""Real processes: killed, stopped by signals, two at a time; `test_killed` has more of it."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from worlds import world

from analysis import check, load
from lthjax.folder.places import saved_step
from lthjax.imp import Cell


def test_killed_twice_and_run_again(tmp_path: Path) -> None:
    """First as soon as a dense network is there, then a ticket; `test_killed` kills at any moment."""
    whole, cut = world(tmp_path / "whole"), world(tmp_path / "cut")
    for made in (whole, cut):
        config = made.root / "tiny.py"
        config.write_text(config.read_text().replace("steps=60", "steps=200"))
    whole.finish("run")
    for cell in ("dense", "chain=rewind-0/level=01/ticket"):
        process = cut.start("run")
        deadline = time.monotonic() + 120
        while not list(cut.root.glob(f"runs/*/seed=0/{cell}/result.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert 0 < len(load(cut.run)) < len(load(whole.run))
    cut.finish("run")
    assert cut.found(["report"]) == whole.found(["report"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_say_how_to_go_on(tmp_path: Path, number: int) -> None:
    made = world(tmp_path)
    config = made.root / "tiny.py"
    config.write_text(config.read_text().replace("steps=60", "steps=200000"))
    process = made.start("run", "--checkpoint-every", "2 s")
    cells = [Cell(seed, "dense", 0, "dense") for seed in (0, 1)]
    before, deadline = list[int](), time.monotonic() + 120
    while not (before and all(before)) and time.monotonic() < deadline:
        time.sleep(0.1)
        before = [saved_step(run, cell) for run in made.root.glob("runs/*/") for cell in cells]
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + number
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert said.splitlines()[-1] == f"stopped{by}; the same command goes on from here"
    assert "Traceback" not in said
    (run,) = made.root.glob("runs/*/")
    assert all(saved_step(run, cell) > step for cell, step in zip(cells, before, strict=True))
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
