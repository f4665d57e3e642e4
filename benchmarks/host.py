"""The host's work around the trainings of a study, with a stand-in for the device.

python -m benchmarks.host [--seconds 1] [--against CHECKOUT] [--json]
python -m benchmarks.host --weak 1 2 4 8 --seconds 5

The study is `configs/quickstart.py` with 5 seeds, 12 levels and controls at each: 185 cells of 2 steps. The
stand-in sleeps instead of training and evaluating, so that all the rest is the host's work: preparing and
stacking inputs, making masks, writing and checking cells. `host` is the study with a stand-in that does not
sleep, `device` the time that it sleeps, `together` the study with one that does; each is a single run.
--against measures the host's work of another checkout in turn with this one.

--weak scales weakly over virtual devices: 16 seeds a device, three levels of tickets, and chunks of all
seeds, so that every chunk is one sleep, whatever the number of devices.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
# Replicates of a device in weak scaling.
_EACH = 16


class Measured(NamedTuple):
    """Seconds of a study with a stand-in for the device, and its number of cells."""

    cells: int
    host: float
    device: float
    together: float


def run(seconds: float, devices: int = 0) -> Measured:
    """Measures this checkout.

    Args:
        seconds: the stand-in's sleep; with 0 only the host's work is measured.
        devices: for weak scaling, the number of devices, which JAX must have; 0 is the study of 185 cells.
    """
    from lthjax import config, inputs, study
    from lthjax.training.trainer import Trainer

    quick = config.load(ROOT / "configs" / "quickstart.py")
    changes: dict[str, Any] = {"seeds": (0, 1, 2, 3, 4), "levels": 12, "control_levels": ()}
    if devices:
        changes = {"seeds": tuple(range(_EACH * devices)), "levels": 3, "arms": ("ticket",)}
    steps = dataclasses.replace(quick.train, steps=2, eval_every=2)
    prepared = study.prepare(dataclasses.replace(quick, **changes, train=steps))
    genuine, sleep, segments = inputs.assemble, 0.0, 0

    def make(*given: Any, **named: Any) -> Trainer:
        trainer = genuine(*given, **named)

        def segment(shared: Any, state: Any, each: Any) -> tuple[Any, Any]:
            nonlocal segments
            segments += 1
            time.sleep(sleep)
            return state, np.zeros((trainer.width, trainer.lengths.evaluate), np.float32)

        def evaluate(shared: Any, variables: Any, each: Any) -> tuple[Any, Any]:
            rows = each[1].shape[:2]
            return np.zeros(rows, np.float32), np.zeros(rows, np.int32)

        return trainer._replace(segment=segment, evaluate=evaluate)

    def timed() -> float:
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            study.run(prepared, out, chunk=_EACH * devices or None)
            return time.perf_counter() - began

    inputs.assemble = make
    try:
        timed()  # compiles
        host, together = timed(), 0.0
        if seconds:
            sleep, segments = seconds, 0
            together = timed()
    finally:
        inputs.assemble = genuine
    with tempfile.TemporaryDirectory() as out:
        cells = len(study.plan(prepared, out).cells)
    return Measured(cells, host, sleep * segments, together)


def weak(devices: int, seconds: float) -> Measured:
    """`run` with so many virtual devices, in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.host",
            "--weak",
            str(devices),
            "--seconds",
            str(seconds),
            "--json",
        ],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout))


def elsewhere(checkout: Path) -> float:
    """The host's work of another checkout, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "host_of_another.py"
        script.write_text(Path(__file__).read_text().replace("parents[1]", f"parent / {str(checkout)!r}"))
        done = subprocess.run(
            [sys.executable, script, "--seconds", "0", "--json"],
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return float(json.loads(done.stdout)["host"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="the stand-in's sleep; 0: host only")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--weak", type=int, nargs="+", default=[], help="numbers of virtual devices")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.weak and not options.json:
        print("devices  cells  host work, s  device, s  together, s  together / device")
        for count in options.weak:
            got = weak(count, options.seconds)
            print(
                f"{count:7}  {got.cells:5}  {got.host:12.1f}  {got.device:9.1f}  {got.together:11.1f}  "
                f"{got.together / got.device:17.2f}",
                flush=True,
            )
        return
    got = run(options.seconds, *options.weak[:1])
    against = None if options.against is None else elsewhere(options.against.resolve())
    if options.json:
        print(json.dumps(got._asdict()))
        return
    print(f"host {got.host:.1f} s, {1000 * got.host / got.cells:.0f} ms a cell")
    if got.together:
        slower = max(got.host, got.device)
        print(
            f"device {got.device:.1f} s, together {got.together:.1f} s: {got.together / slower:.3f} of the "
            "larger"
        )
    if against is not None:
        print(f"against {against:.1f} s: {got.host / against:.2f} of it")


if __name__ == "__main__":
    main()
