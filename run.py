"""Runs a lottery-ticket study: plans its cells, trains what is missing, writes the report.

python run.py --config configs/quickstart.py
python run.py --config configs/lenet5_mnist.py --seeds 0 1 --levels 8 --train.steps 2000
python run.py --config configs/cifar_cnn.py --dry-run
"""

import argparse
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, config
from lthjax.errors import UserError


@dataclass(frozen=True)
class Options:
    """Trains what is missing of a study and writes its report; the report's path is printed last."""

    config: Path
    """The config file: Python ending in `config = Study(...)`."""
    study: Annotated[config.Study, tyro.conf.arg(name="")]
    out: Path = Path("runs")
    """Folder of the run folders."""
    data_dir: Path = Path("data")
    """Folder of the data sets."""
    dry_run: bool = False
    """Print the plan (cells, parameters, steps, memory, time) and train nothing."""
    quiet: bool = False
    """Show no progress."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    chunk: int | None = None
    """Replicates trained in one program; by default one for each core, or 16 for each GPU or TPU."""
    checkpoint_every: str = "5 min"
    """Time between two saves of a training run under way, for example `30 s` or `1 h`; `0` saves none."""


def main(arguments: list[str]) -> None:
    """Plans, trains, reports."""
    sweep = parse(arguments)
    options = sweep[0]

    # What follows loads JAX; `--help` above does not wait for it.
    cli.load_jax()
    from analysis import report
    from lthjax import progress, study
    from lthjax.devices import replicate

    if options.chunk is not None and options.chunk < 1:
        raise UserError(f"--chunk: {options.chunk} is not allowed; it must be 1 or more.")
    every = cli.seconds("--checkpoint-every", options.checkpoint_every)
    if options.cache:
        replicate.keep_programs()
    prepared = study.prepare_all([one.study for one in sweep], options.data_dir)
    if options.dry_run:
        plans = study.plan_all(prepared, options.out)
        cost = study.estimate(prepared, plans, options.chunk)
        print(progress.plan_text(prepared, plans, cost, options.out))
        return
    watch = progress.watch(options.quiet)
    runs = study.run_all(prepared, options.out, watch=watch, chunk=options.chunk, checkpoint_seconds=every)
    print(report.build_all(runs, only_if_changed=True))


def parse(arguments: list[str]) -> list[Options]:
    """The options, with the config file's study as their default; of a sweep once for each study."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(arguments)[0].config
    if path is None:
        there = ", ".join(str(p) for p in sorted(Path("configs").glob("*.py"))) or "none here"
        print(f"{__doc__}\nconfigs: {there}", file=sys.stdout if "--help" in arguments else sys.stderr)
        raise SystemExit(0 if {"--help", "-h"} & set(arguments) else 2)
    sweep = [
        cli.parsed(Options, arguments, "run.py", Options(config=Path(path), study=study))
        for study in config.load_all(path)
    ]
    if any(re.match("--control[-_]levels(=|$)", argument) for argument in arguments):
        for options in sweep:
            config.check_control_levels(options.study)
    return sweep


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)
    cli.run(main)
