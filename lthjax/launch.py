"""Runs a lottery-ticket study: plans its cells, trains what is missing, writes the report.

On the command line:

    python run.py --config configs/quickstart.py
    python run.py --config configs/lenet5_mnist.py --seeds 0 1 --levels 8 --train.steps 2000
    python run.py --config configs/cifar_cnn.py --dry-run
    python run.py --config configs/cifar_cnn.py --shard 2/5
    srun python run.py --config configs/cifar_cnn.py --out /shared/runs --distributed
"""

import argparse
import contextlib
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lthjax import cli, command, config, home, overrides, pulse
from lthjax.config import Study
from lthjax.errors import UserError, check_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.run import Run
    from lthjax.bucket import Bucket
    from lthjax.study import Filled, Prepared

# How long a process waits for another one that writes the same report.
_REPORT_SECONDS = 600.0


@dataclass(frozen=True)
class Options:
    """Trains what is missing of a study and writes its report; the report's path is printed last."""

    config: Path
    """The config file, Python ending in `config = Study(...)`; or the bare name of one of the package."""
    study: Annotated[Study, tyro.conf.arg(name="")]
    out: Path = Path("runs")
    """Folder of the run folders; gs://bucket/folder works in a local copy of that one."""
    data_dir: Path = Path("data")
    """Folder of the data sets."""
    dry_run: bool = False
    """Print the plan (cells, parameters, steps, memory, time) and train nothing."""
    quiet: bool = False
    """Show no progress."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    chunk: int | None = None
    """Replicates trained in one program; by default one for each core, or up to 16 for each GPU or TPU."""
    checkpoint_every: str = "5 min"
    """Time between two saves of a training run under way, for example `30 s` or `1 h`; `0` saves none."""
    until_decided: str | None = None
    """Add seeds, at looks fixed beforehand, until this claim is decided: within-2, within-0.5, within-0.2
    (points of the dense network), beats-reinit, beats-reinit-by-10, beats-random; at 80–90 % sparsity."""
    budget: str = "0"
    """With --until-decided: the time after which no seeds are added, for example `2 h`; `0` for no limit."""
    shard: str | None = None
    """i/n: train every n-th seed from the i-th on, beside other processes. The last one writes the report."""
    distributed: bool = False
    """Join the same command on other machines to one program over all their devices. SLURM, Kubernetes, MPI
    or the TPU say who takes part, or the next three options. The first process writes."""
    coordinator: str | None = None
    """HOST:PORT of the first process, a free port there."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    code: tyro.conf.Suppress[tyro.conf.Fixed[bytes]] = b""
    """The config file's code, as it was executed: the file may change or go away meanwhile. No option."""


def main(arguments: list[str]) -> None:
    """Plans, trains, reports."""
    sweep = parse(arguments)
    options = sweep[0]
    _check_distributed(options)
    _check_until(sweep)

    # What follows loads JAX; `--help` above does not wait for it.
    with cli.loading(not options.quiet):
        cli.load_jax()
        from lthjax import bucket, locks, progress, study
        from lthjax.devices import hosts, replicate
        from lthjax.folder.places import LOCKS

        report = command.laboratory("report")

    if options.chunk is not None and options.chunk < 1:
        raise UserError(f"--chunk: {options.chunk} is not allowed; it must be 1 or more.")
    if options.cache:
        replicate.keep_programs()
    address = bucket.address_of(options.out)
    shared = None if address is None else bucket.Bucket(address)
    with contextlib.ExitStack() as stack:
        if options.distributed:
            stack.enter_context(hosts.program(options.coordinator, options.processes, options.process))
            hosts.alike(options.code, "its config file has another text; start all with the same one.")
        writes = hosts.leads()
        filled = _grown(options) if options.until_decided else _filled(sweep, shared, writes=writes)
    if filled is None or not writes:
        return
    runs, others = filled
    if others:
        makes = f"{home.command('report', *_begun(runs))} writes one of the cells so far"
        if shared is not None:  # the copy here lacks the cells that others have written since
            makes = "the same command, given again when they have ended, writes it here, too"
        left = f"the report is left to the last of them; {makes}"
        print(f"other processes train {study.seeds_in_words(others)}; {left}", file=sys.stderr)
        return
    if shared is not None:
        shared.pull_all(run.name for run in runs)
    begun = _begun(runs)
    if absent := [run.name for run in runs if run not in begun]:
        print(f"the report leaves out what no process has begun: {', '.join(absent)}", file=sys.stderr)
    runs = begun
    writing = pulse.telling(progress.watch(options.quiet).say, "writing the report")
    with locks.alone(runs[0] / LOCKS / "report", _REPORT_SECONDS), writing:
        page = report.build_all(runs, only_if_changed=True)
    if shared is not None:
        shared.push_pages([*(run / "report" / page.name for run in runs), page])
    print(page)


def _filled(sweep: list[Options], shared: "Bucket | None", writes: bool) -> "Filled | None":
    """Trains what is missing; with `--dry-run` prints the plan and returns None.

    Args:
        sweep: the options, once for each study.
        shared: the bucket, if `--out` names one.
        writes: whether this process shows its progress.
    """
    from lthjax import progress, study
    from lthjax.devices import hardware

    options = sweep[0]
    every = cli.seconds("--checkpoint-every", options.checkpoint_every)
    part = None if options.shard is None else _numbers(options.shard)
    prepared = study.prepare_all([one.study for one in sweep], options.data_dir)
    seeds = None if part is None else study.shard(prepared, *part)
    out = options.out if shared is None else shared.local
    check_folder(out, "--out")
    watch = progress.watch(options.quiet or not writes)
    if unused := hardware.unused():
        print(f"warning: {unused}", file=sys.stderr)
    if shared is not None:
        shared.pull_all(one.folder for one in prepared)
    if options.dry_run:
        whole = prepared
        prepared = prepared if seeds is None else study.narrowed(prepared, seeds)
        plans = study.plan_all(prepared, out)
        networks = ", ".join(dict.fromkeys(one.study.model for one in prepared))
        with pulse.telling(watch.say, f"compiling {networks} and timing some of its steps"):
            cost = study.estimate(prepared, plans, options.chunk)
        print(progress.plan_text(prepared, plans, cost, out))
        _print_detectable(whole, out)
        return None
    try:
        return study.fill(
            prepared,
            out,
            seeds=seeds,
            watch=watch,
            chunk=options.chunk,
            checkpoint_seconds=every,
            bucket=shared,
        )
    finally:
        if writes:
            _keep_config(options.config, options.code, [out / one.folder for one in prepared])


def _begun(runs: "Sequence[Path]") -> list[Path]:
    """The run folders that are there; a shard has no seed of a study whose seeds are all in others."""
    return [run for run in runs if (run / "study.json").is_file()]


def _keep_config(path: Path, code: bytes, runs: "Sequence[Path]") -> None:
    """Writes the code of the config file into the run folders, for analyses of networks that it adds.

    A copy that is there stays: the cells of before were trained with it, or somebody has changed it.
    """
    from lthjax import files
    from lthjax.folder.places import CONFIG

    for copy in [run / CONFIG for run in runs if run.is_dir()]:
        try:
            if not copy.exists():
                files.write_whole(copy, code)
            elif copy.read_bytes() != code:
                print(
                    f"warning: {copy} is not {path} and stays as it is; remove it to renew it",
                    file=sys.stderr,
                )
        except OSError as error:
            raise files.unwritable(copy, error) from error


def _grown(options: Options) -> "Filled | None":
    """As `_filled`, with more and more seeds until the claim is decided or the budget is used up.

    Looks that the run folder has already had are not taken again.

    Raises:
        Held: another process adds seeds to this study, or trains seeds of the next look.
    """
    from lthjax import locks, progress, study
    from lthjax.folder.claims import busy_seeds
    from lthjax.folder.places import LOCKS

    until = command.laboratory("report.until")

    assert options.until_decided is not None
    until.checked(options.until_decided)
    watch = progress.watch(options.quiet)
    filled: list[Filled | None] = []

    def check_free(seeds: list[int], busy: list[int]) -> None:
        if taken := {*seeds} & {*busy}:
            of_it = f"{study.seeds_in_words(taken)} of the next look"
            raise locks.Held(f"--until-decided: other processes train {of_it}; let them end first.")

    def train(seeds: list[int]) -> "Run":
        wider = dataclasses.replace(options.study, seeds=tuple(seeds))
        # A look that has all its cells is judged whatever others do.
        if study.plan(study.prepare(wider, options.data_dir), options.out).seeds:
            check_free(seeds, busy_seeds(path))
        done = _filled([dataclasses.replace(options, study=wider)], None, writes=True)
        assert done is not None
        check_free(seeds, done.others)
        filled[:] = [done]
        return command.laboratory("run").Run(done.runs[0])

    budget = cli.seconds("--budget", options.budget)
    prepared = study.prepare(options.study, options.data_dir)
    path = options.out / prepared.folder
    if options.until_decided not in until.read(path):
        until.check_planned(options.until_decided, prepared)
    # Two searches at once would each write over the looks of the other.
    with locks.alone(path / LOCKS / "looks", locks.BRIEF):
        until.grow(options.until_decided, options.study.seeds, path, train, budget, watch.say)
    return filled[0]


def _check_until(sweep: "Sequence[Options]") -> None:
    """Checks the options of a study that grows.

    Raises:
        UserError: some do not go together, or are no times.
    """
    options = sweep[0]
    if options.until_decided is None:
        if options.budget != "0":
            raise UserError("--budget: it belongs to --until-decided; add it.")
        return
    cli.seconds("--budget", options.budget)
    cli.seconds("--checkpoint-every", options.checkpoint_every)  # before a lock makes the run folder
    address = "://" in str(options.out) or re.match(r"[a-z]+:/", str(options.out)) is not None
    unlike = {
        "--shard": options.shard is not None,
        "--distributed": options.distributed,
        "--dry-run": options.dry_run,
        "a config of several studies": len(sweep) > 1,
        "an address as --out": address,
    }
    for name, there in unlike.items():
        if there:
            raise UserError(f"--until-decided: it does not go together with {name}; leave one of them out.")


def _print_detectable(prepared: "Sequence[Prepared]", out: Path) -> None:
    """Says which differences the seeds of a plan can detect, by the spread of those that are there."""
    power, run = command.laboratory("report.power"), command.laboratory("run")
    for one in prepared:
        there = run.Run(out / one.folder) if (out / one.folder / "study.json").is_file() else None
        about, rows = (there.about, there.rows) if there else ({}, [])
        label = f"{one.label}: " if len(prepared) > 1 else ""
        print(f"{'detects':8} {label}{power.planned(about, rows, len(one.study.seeds))}")


def _check_distributed(options: Options) -> None:
    """Checks the options of a program over several hosts.

    Raises:
        UserError: some do not go together.
    """
    named = (options.coordinator, options.processes, options.process)
    if not options.distributed:
        if any(one is not None for one in named):
            raise UserError("--coordinator, --processes, --process: they belong to --distributed; add it.")
        return
    if any(one is None for one in named) != all(one is None for one in named):
        raise UserError(
            "--distributed: give all of --coordinator, --processes and --process, or none of them."
        )
    if options.coordinator is not None and not re.fullmatch(r".+:[0-9]{1,5}", options.coordinator):
        raise UserError(f"--coordinator: {options.coordinator!r} is not allowed; it must be HOST:PORT.")
    if options.process is not None and not 0 <= options.process < (options.processes or 0):
        raise UserError(f"--process: {options.process} is not allowed; it must be from 0 to --processes - 1.")
    if options.dry_run:
        raise UserError("--dry-run: it measures one machine; leave --distributed out.")
    if "://" in str(options.out) or re.match(r"[a-z]+:/", str(options.out)):
        raise UserError(
            f"--out: {str(options.out)!r} is an address, of which every machine would have its own copy; "
            "with --distributed name a folder that all of them share."
        )


def _numbers(shard: str) -> tuple[int, int]:
    """The two numbers of `--shard i/n`.

    Raises:
        UserError: there are no such numbers.
    """
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", shard)
    if found is None:
        raise UserError(f"--shard: {shard!r} is not allowed; it must be i/n, the i-th of n parts, as in 2/3.")
    return int(found[1]), int(found[2])


def parse(arguments: list[str]) -> list[Options]:
    """The options, with the config file's study as their default; of a sweep once for each study."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    named = first.parse_known_args(arguments)[0].config
    if named is None:
        print(_overview(), file=sys.stdout if "--help" in arguments else sys.stderr)
        raise SystemExit(0 if {"--help", "-h"} & set(arguments) else 2)
    path = config.located(named)
    code = config.source(path)
    sweep = [
        cli.parsed(Options, arguments, home.RUN, Options(config=path, study=study, code=code))
        for study in config.executed(path, code)
    ]
    fitted = [overrides.fitted(options.study, arguments) for options in sweep]
    overrides.check_idle(fitted, arguments)
    return [
        dataclasses.replace(options, config=path, study=study)
        for options, study in zip(sweep, fitted, strict=True)
    ]


def _overview() -> str:
    """What the command is for, with examples, which configs there are, and how to see the options."""
    there = [str(path) for path in sorted(Path("configs").glob("*.py"))] or [*config.shipped()]
    text = __doc__ or ""
    if home.INSTALLED:
        text = re.sub(r"configs/(\w+)\.py", r"\1", text.replace("python run.py", home.RUN))
    options = home.command("run", "--config", home.config("quickstart"), "--help")
    return f"{text}\nconfigs: {', '.join(there)}\n\n{options} lists every option with that config's value."
