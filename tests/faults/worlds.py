"""A small study with its commands, as processes of their own."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT
from faulty import contents, small_data

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
