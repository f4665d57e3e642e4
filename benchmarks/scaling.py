"""Growth of cost: with replicates, with levels, and at the start.

    python -m benchmarks.scaling [--json]

Measures the cost per replicate for R = 1 ... 16 trained in one program, seconds per cell for studies with
more and more levels, peak memory of studies with more and more seeds, and wall time of `run.py --help` and of
a finished study.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.train_step import trainer_of
from lthjax import config, models, prune, rng, study
from lthjax.devices import replicate
from lthjax.measures import timing
from lthjax.training.job import Job
from lthjax.training.probe import prepared_segment

ROOT = Path(__file__).parent.parent


def replicates(model: str, batch: int, steps: int, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds per step and replicate for every R: median, lowest and highest of interleaved rounds."""
    segments = {}
    for r in (1, 2, 4, 8, 16):
        trainer, built, _ = trainer_of(model, batch, r, steps)
        variables = built.init(rng.stream(0, "init"))
        job = Job(0, 0, 0, steps, variables, prune.ones(variables.params))
        segments[r] = prepared_segment(trainer, job)
        jax.block_until_ready(segments[r]())
    timed: dict[int, list[float]] = {r: [] for r in segments}
    for _ in range(count):
        for r, segment in segments.items():
            taken = timing.seconds(lambda segment=segment: jax.block_until_ready(segment()))  # type: ignore[misc]
            timed[r].append(1000 * taken / steps / r)
    return {
        str(r): {"ms": statistics.median(v), "lowest": min(v), "highest": max(v)} for r, v in timed.items()
    }


def levels() -> dict[str, float]:
    """Seconds per cell, compilation included, of studies of 2, 4 and 8 levels."""
    found = {}
    for count in (2, 4, 8):
        asked = config.Study(
            seeds=(0, 1),
            levels=count,
            arms=("ticket",),
            model="lenet5",
            data=config.Data(name="mnist_10k", validation=1000),
            train=config.Train(steps=150, batch=60, eval_every=150),
        )
        with tempfile.TemporaryDirectory() as out:
            jax.clear_caches()
            began = time.perf_counter()
            study.run(study.prepare(asked), out)
            found[str(count)] = (time.perf_counter() - began) / (2 * (count + 1))
    return found


def memory() -> dict[str, float]:
    """Peak resident MiB of processes that run a study of 1, 4 and 16 seeds."""
    found = {}
    for count in (1, 4, 16):
        with tempfile.TemporaryDirectory() as out:
            small = ["--levels", "1", "--train.steps", "20", "--quiet", "--no-cache", "--out", out]
            seeds = ["--seeds", *map(str, range(count))]
            command = [sys.executable, "run.py", "--config", "configs/quickstart.py", *small, *seeds]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"the study of {count} seeds failed")
            found[str(count)] = usage.ru_maxrss / 1024
    return found


def starts(count: int) -> dict[str, float]:
    """Median wall seconds of `--help`, and of a finished study."""
    small = ["--levels", "1", "--train.steps", "2", "--control-levels", "1"]
    with tempfile.TemporaryDirectory() as out:
        base = [sys.executable, "run.py", "--config", "configs/quickstart.py"]

        def call(*more: str) -> None:
            subprocess.run([*base, *more], cwd=ROOT, capture_output=True, check=True)

        call(*small, "--out", out)
        return {
            "help_s": statistics.median(timing.seconds(lambda: call("--help")) for _ in range(count)),
            "finished_s": statistics.median(
                timing.seconds(lambda: call(*small, "--out", out)) for _ in range(count)
            ),
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--model", choices=sorted(models.MODELS), default="lenet5")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    replicate.use_all_cores()
    got: dict[str, Any] = {
        "model": options.model,
        "batch": options.batch,
        "replicates": replicates(options.model, options.batch, options.steps, options.rounds),
        "levels_s_a_cell": levels(),
        "peak_mib": memory(),
        **starts(options.rounds),
    }
    if options.json:
        print(json.dumps(got))
        return
    for r, row in got["replicates"].items():
        span = f"({row['lowest']:.2f} to {row['highest']:.2f})"
        print(f"{options.model}, {r} replicates: {row['ms']:.2f} ms a step and replicate {span}")
    for count, seconds in got["levels_s_a_cell"].items():
        print(f"{count} levels: {seconds:.2f} s a cell, compilation included")
    for count, mib in got["peak_mib"].items():
        print(f"{count} seeds: {mib:.0f} MiB at most")
    print(f"--help: {got['help_s']:.2f} s; a finished study: {got['finished_s']:.2f} s")


if __name__ == "__main__":
    main()
