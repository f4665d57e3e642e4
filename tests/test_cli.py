"""The command line, as a user sees it; what ends early is called in this process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, arrays, write_npz

from analysis import check, merge, publish
from analysis.report import __main__ as report
from lthjax import cli
from lthjax.errors import UserError

Call = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("run.py", "--config", "configs/quickstart.py")
SMALL = (
    *QUICK,
    "--levels",
    "1",
    "--train.steps",
    "6",
    "--seeds",
    "3",
    "--model",
    "lenet300",
    "--control-levels",
    "1",
)


def test_help_shows_every_field_and_this_configs_values_at_once(command_line: Call) -> None:
    done = command_line("-X", "importtime", *QUICK, "--help")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lthjax.config" in loaded
    assert not loaded & {"jax", "flax", "optax", "matplotlib"}, "it answers at once"
    text = re.sub(r"[\s│]+", " ", done.stdout)
    assert done.returncode == 0
    for field, value in {
        "--seeds": "0 1 2",
        "--levels": "11",
        "--control-levels": "3 5 7 9 11",
        "--train.steps": "450",
        "--data.name": "mnist_10k",
        "--prune.rate": "output 0.1 . 0.2",
        "--optim.lr": "0.0012",
        "--rewind": "0",
        "--out": "runs",
    }.items():
        assert re.search(rf"{re.escape(field)}[, ].*?\(default: {re.escape(value)}\)", text), field


def test_without_a_config_it_says_which_there_are(command_line: Call) -> None:
    done = command_line("run.py")
    assert done.returncode == 2
    assert "configs/quickstart.py" in done.stderr
    assert done.stderr.endswith(
        "\npython run.py --config configs/quickstart.py --help lists every option with that config's value.\n"
    )
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_plan_and_trains_nothing(command: Call, tmp_path: Path) -> None:
    done = command(*QUICK, "--dry-run", "--levels", "3", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        "61,706 parameters, 61,470 prunable weights",
        "0 cells; 18 to train",
        "450 steps of batch 60 (150 an epoch)",
        "8,100 in all",
        "MiB",
        "ms a step and replicate",
        "time     about",
        "detects  with 3 seeds, differences from ",
    ):
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())


def test_only_the_reports_path_is_on_stdout_and_a_finished_study_answers(
    command_line: Call, command: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = command_line(*SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert Path(line).is_file()
    assert done.stderr.startswith("lthjax runs on ")
    assert "[4/4] seed 3, rewind-0, level 1, random: 80.0 % of weights" in done.stderr
    assert "steps" not in done.stdout
    run = Path(line).parent.parent
    assert "seed 3, dense: 100.0 % of weights" in (run / "log.txt").read_text()
    cell = run / "seed=3" / "dense" / "result.json"
    when = cell.stat().st_mtime_ns
    again = command(*SMALL, "--out", tmp_path)
    assert again.stdout == done.stdout
    assert cell.stat().st_mtime_ns == when
    planned = command(*SMALL, "--out", tmp_path, "--dry-run")
    assert "4 cells; 0 to train" in planned.stdout
    dense = (*QUICK, "--levels", "0", "--train.steps", "6", "--seeds", "4")
    capfd.readouterr()
    quiet = command(*dense, "--out", tmp_path, "--quiet")
    assert quiet.stderr == capfd.readouterr().err == "", "nor do the libraries say anything"
    report = command("-m", "analysis.report", run)
    assert report.stdout.strip() == str(run / "report" / "index.html")


@pytest.mark.parametrize("arguments", [("-m", "analysis.report", "no_such_run"), (*QUICK, "--chunk", "0")])
def test_on_a_terminal_loading_is_not_silent(arguments: tuple[str, ...]) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stderr=theirs, check=False)
        os.close(theirs)
        first, *rest = screen.read(10_000).decode().splitlines()
    assert first == "loading JAX"
    assert done.returncode == 2
    assert "error: " in "\n".join(rest)


def test_overrides(command: Call, tmp_path: Path) -> None:
    done = command(
        *QUICK, "--dry-run", "--train.steps", "2 epochs", "--rewind", "0", "1 epoch", "50 steps",
        "--arms", "ticket", "reinit", "--repeats", "reinit", "2", "--seeds", "5", "6", "7", "--levels", "2",
        "--control-levels", "2", "--prune.rate", "conv", "0.1", ".", "0.3", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "chains rewind-0, rewind-50, rewind-150" in done.stdout
    # 3 seeds x (dense + 3 chains x (2 tickets + 2 reinits at level 2))
    assert "39: 3 seeds" in done.stdout
    assert "300 steps of batch 60" in done.stdout


BAD = {
    "no such config": (["--config", "configs/quikstart.py"], "did you mean 'configs/quickstart.py'"),
    "unknown model": (["--model", "lenet6"], "model: 'lenet6' is not known; did you mean 'lenet5'"),
    "unknown arm": (["--arms", "tickets"], "arms: 'tickets' is not known; did you mean 'ticket'"),
    "unknown data": (["--data.name", "minst"], "data.name: 'minst' is not known; did you mean 'mnist'"),
    "rate": (["--prune.rate", "1.2"], "prune.rate: 1.2 is not allowed; it must be in (0, 1)"),
    "rewind": (["--rewind", "450"], "rewind: 450 is step 450, beyond the end of training at step 450"),
    "batch": (["--train.batch", "9001"], "train.batch: 9001 is larger than the train split of 9000"),
    "seeds": (["--seeds", "1", "1"], "seeds: (1, 1) is not allowed; it must be all different"),
    "not a number": (["--levels", "x"], "--levels: 'x' is not allowed; it must be a whole number."),
    "not a choice": (["--prune.scope", "lay"], "Expected one of ('layer', 'global', 'group')"),
    "unknown optimiser": (["--optim.name", "adm"], "optim.name: 'adm' is not known; did you mean 'adam'"),
    "unquoted": (["--rewind", "1", "epoch"], "'epoch' is not a duration"),
    "not finite": (["--optim.lr", "inf"], "optim.lr: inf is not allowed; it must be above 0 and finite"),
    "twice": (["--data.augment", "--data.no-augment"], "--data.no-augment: it is given twice; give it once"),
    "no rates": (["--prune.rate"], "prune.rate: () is not allowed"),
    "idle rate": (["--prune.rate", "cnv", "0.1"], "'cnv' matches no weight of lenet5"),
    "validation": (["--data.validation", "10000"], "must be less than the 10000 train images"),
    "chunk": (["--chunk", "0"], "--chunk: 0 is not allowed; it must be 1 or more"),
    "shard 0": (["--shard", "0/2"], "--shard: 0/2 is not allowed; it must be i/n with i from 1 to n"),
    "shard 4": (["--shard", "4/3"], "--shard: 4/3 is not allowed; it must be i/n with i from 1 to n"),
    "shards": (["--shard", "1/4"], "--shard: 1/4 is not allowed; 3 seeds make at most as many shards"),
    "no shard": (["--shard", "-1/3"], "--shard: '-1/3' is not allowed; it must be i/n, the i-th of n parts"),
    "alone": (["--process", "1"], "--process: they belong to --distributed; add it"),
    "half named": (["--distributed", "--process", "1"], "give all of --coordinator, --processes and"),
    "process": (
        ["--distributed", "--coordinator", "here:1", "--processes", "2", "--process", "2"],
        "--process: 2 is not allowed; it must be from 0 to --processes - 1",
    ),
    "port": (
        ["--distributed", "--coordinator", "here", "--processes", "2", "--process", "0"],
        "--coordinator: 'here' is not allowed; it must be HOST:PORT",
    ),
    "distributed plan": (["--distributed", "--dry-run"], "--dry-run: it measures one machine"),
    "distributed bucket": (["--distributed", "--out", "gs://some/runs"], "of which every machine would have"),
    "shape": (["--model", "conv6"], "divisible by 8, not 28x28x1"),
    "out": (["--out", "/proc/nowhere"], "--out: '/proc/nowhere/"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case: str, command: Call) -> None:
    arguments, sentence = BAD[case]
    start = ["run.py"] if "--config" in arguments else list(QUICK)
    done = command(*start, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("main", [check.main, merge.main, publish.main, report.main])
def test_help_names_no_default_of_what_is_required(
    main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "RUN [RUN ...]" in said
    assert "(required)" in said
    assert "(default: )" not in said


def test_a_misspelt_option_suggests_the_right_one(command_line: Call) -> None:
    done = command_line(*QUICK, "--train.step", "4")
    assert done.returncode == 2
    assert done.stderr == (
        "error: Unrecognized options: --train.step, 4; did you mean --train.steps? "
        "--help lists every option and its values.\n"
    )


def test_malformed_data_get_one_sentence(command: Call, tmp_path: Path) -> None:
    own = ("--data.name", "own", "--data-dir", tmp_path, "--data.validation", "10", "--train.batch", "5")
    for changed, sentence in (
        ({"train_labels": None}, "it lacks train_labels"),
        ({"train_images": np.zeros((80, 28, 28, 1))}, "has dtype float64; it must be uint8"),
        ({"test_labels": np.full(20, 77, np.uint8)}, "run from 77 to 77"),
        (arrays(shape=(30, 30, 1)), "'lenet5' takes images whose height and width"),
    ):
        write_npz(tmp_path, "own", **changed)
        done = command(*QUICK, *own)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert sentence in done.stderr


def test_report_of_nothing(command: Call, tmp_path: Path) -> None:
    done = command("-m", "analysis.report", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "is not a run folder" in done.stderr


def _alone(code: str, how: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """A command whose body is this code, in a process of its own; `how` redirects its streams."""
    program = f"import gc, os, signal, time\nfrom lthjax import cli\ndef main(_):\n    {code}\ncli.run(main)"
    shell = ["bash", "-c", f'exec "$@" {how}', "bash", sys.executable, "-c", program]
    return subprocess.run(shell, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, **more)


def test_a_command_without_standard_error() -> None:
    """As of some daemons; a file that it opens is not written where libraries report."""
    code = "with cli.loading(True): print(open(os.devnull).fileno() > 2)"
    done = _alone(code, "2>&-")
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_what_a_terminal_cannot_show_ends_no_command() -> None:
    done = _alone("print('2 \u00d7 3')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "2 ? 3\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_a_callback_of_the_garbage_collector_ends_a_command(name: str) -> None:
    """JAX has such callbacks; an exception in one is printed and lost."""
    callback = f"lambda *_: (gc.callbacks.clear(), os.kill(os.getpid(), signal.{name}), [*range(10**6)])"
    code = f"gc.callbacks.append({callback}); gc.collect(); time.sleep(20)"
    began = time.monotonic()
    done = _alone(code, stderr=subprocess.PIPE)
    assert time.monotonic() - began < 3.5, "well before it is ended by force"
    by = "" if name == "SIGINT" else f" by {name}"
    assert done.stderr == f"stopped{by}; the same command goes on from here\n"
    assert done.returncode == 128 + getattr(signal, name)


@pytest.mark.parametrize("value", ["gs://", "gs:///runs", "gs:// ", "gs:////"])
def test_an_address_without_a_bucket_is_refused(value: str) -> None:
    """As of an unset variable in gs://$BUCKET/runs."""
    for words in (["--out", value], [f"--out={value}"]):
        with pytest.raises(UserError, match=r"^--out: 'gs:.* names no bucket; write gs://BUCKET/FOLDER\.$"):
            cli.check_arguments(words, {"--out": "gs"})
    cli.check_arguments(["--out", "gs://bucket"], {"--out": "gs"})
    cli.check_arguments(["--out", "gs"], {"--out": "gs"})
