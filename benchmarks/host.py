"""The host's work around the trainings of a study, with a stand-in for the device.

python -m benchmarks.host [--seconds 1] [--against CHECKOUT] [--json]

The study is `configs/quickstart.py` with 5 seeds, 12 levels and controls at each: 185 cells of 2 steps. The
stand-in sleeps instead of training and evaluating, so that all the rest is the host's work: preparing and
stacking inputs, making masks, writing and checking cells. `host` is the study with a stand-in that does not
sleep, `device` the time that it sleeps, `together` the study with one that does. --against measures the
host's work of another checkout in turn with this one.
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
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def run(seconds: float) -> dict[str, Any]:
    """Measures this checkout: `host`, `device` and `together` in seconds, and the number of cells."""
    from lthjax import config, study, train

    quick = config.load(ROOT / "configs" / "quickstart.py")
    prepared = study.prepare(
        dataclasses.replace(
            quick,
            seeds=(0, 1, 2, 3, 4),
            levels=12,
            control_levels=(),
            train=dataclasses.replace(quick.train, steps=2, eval_every=2),
        )
    )
    genuine, sleep, segments = train.make, 0.0, 0

    def make(*given: Any, **named: Any) -> train.Trainer:
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
            study.run(prepared, out)
            return time.perf_counter() - began

    train.make = make
    try:
        timed()  # compiles
        host = timed()
        if not seconds:
            return {"cells": 185, "host": host}
        sleep, segments = seconds, 0
        together = timed()
    finally:
        train.make = genuine
    return {"cells": 185, "host": host, "device": seconds * segments, "together": together}


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
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    got = run(options.seconds)
    if options.against is not None:
        got["against"] = elsewhere(options.against.resolve())
    if options.json:
        print(json.dumps(got))
        return
    print(f"host {got['host']:.1f} s, {1000 * got['host'] / got['cells']:.0f} ms a cell")
    if options.seconds:
        slower = max(got["host"], got["device"])
        print(
            f"device {got['device']:.1f} s, together {got['together']:.1f} s: "
            f"{got['together'] / slower:.3f} of the larger"
        )
    if options.against is not None:
        print(f"against {got['against']:.1f} s: {got['host'] / got['against']:.2f} of it")


if __name__ == "__main__":
    main()
