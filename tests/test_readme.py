"""Facts in README.md and docs/ are those of configs, networks, published runs and tests."""

import csv
import json
import math
import re
import shlex
from fractions import Fraction
from pathlib import Path

import jax
import pytest
from conftest import LENGTHY, ROOT, SLOW

from analysis.results import Compared, Published
from lthjax import config, durations, launch, models, prune

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
QUICK = ROOT / "results" / "quickstart"
CONFIGS = {
    f"{name}.py": cells
    for names, *cells in re.findall(r"^\| (`\w+\.py`.*?) \| (.*?) \| (.*?) \|$", SHIPPED, re.MULTILINE)
    for name in re.findall(r"`(\w+)\.py`", names)
}


def cells(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_the_quickstart_prints() -> None:
    """The last lines of its output, and the folder that the page names everywhere."""
    rows = cells(QUICK)
    place = ("seed", "chain", "level", "arm")
    of = {tuple(row[name] for name in place): row for row in rows}
    lines = re.findall(
        r"\[(\d+)/(\d+)\] seed (\d+), (\S+), level (\d+), (\w+): "
        r"([\d.]+) % of weights, test accuracy ([\d.]+) %",
        README,
    )
    assert len(lines) == 3
    for done, of_all, *where, density, accuracy in lines:
        row = of[tuple(where)]
        assert f"{100 * float(row['density']):.1f}" == density
        assert f"{100 * float(row['test_accuracy']):.2f}" == accuracy
        assert int(of_all) == len(rows) >= int(done)
    identity = json.loads((QUICK / "study.json").read_text(encoding="utf-8"))["identity"]
    pages = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
    named = {*re.findall(r"quickstart-(\w{8})", "\n".join(pages))}
    assert named == {config.fingerprint(identity)}


def test_run_folders_that_pages_name_are_those_of_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data of published runs; a folder may be made on another page."""
    monkeypatch.chdir(ROOT)
    texts = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
    abouts = [json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("results/*/study.json")]
    facts = {
        one["data"]["name"]: one["data"] for of in abouts for one in (of if isinstance(of, list) else [of])
    }
    made = set()
    for line in re.findall(r"^ {4}python run\.py ([^$#\n]*)(?:#.*)?$", "\n".join(texts), re.MULTILINE):
        if "mine.py" in line:
            continue
        studies = [options.study for options in launch.parse(shlex.split(line))]
        for study in (one for one in studies if one.data.name in facts):
            known = facts[study.data.name]
            split = known["train"] + known["validation"] - study.data.validation
            identity = config.identity(study, durations.lengths(study, split), known["digest"])
            made.add(f"{study.name}-{config.fingerprint(identity)}")
    named = {*re.findall(r"runs/(\w+-[0-9a-f]{8})\b", "\n".join(texts))} - {"mine-0123abcd"}
    assert len(named) >= 5
    assert named <= made


def test_a_student_reads_it_once() -> None:
    """40 to 65 lines, and few numbers in a sentence outside of code and tables."""
    assert 40 <= len(README.splitlines()) <= 65
    not_prose = r"```.*?```|^    .*?$|^\|.*?$|<!--.*?-->|!\[.*?\]\(.*?\)|\(\S*\)"
    prose = re.sub(not_prose, "", README, flags=re.S | re.M)
    for sentence in re.split(r"(?<=[.:;])\s", prose):
        assert len(re.findall(r"(?<![\w.-])\d[\d.,]*(?!\w)", sentence)) <= 2, sentence


def test_what_the_first_paragraph_says_of_the_table() -> None:
    """A ninth of the weights: the ticket's interval includes 0, that of `reinit` does not; less with time."""
    said = README.partition("- A **ticket**")[0]
    assert "pruned to a ninth of its weights" in said
    study = Published(ROOT / "results" / "lenet5_mnist")
    assert study.density(10) == pytest.approx(1 / 9, rel=0.01)
    assert study.gap("ticket", "dense", 10).low < 0 < study.gap("ticket", "dense", 10).high
    assert study.gap("reinit", "dense", 10).high < 0
    assert "by less the longer it trains" in said
    gaps = [gap for gap in Compared(ROOT / "results" / "budget_lenet5").gaps if gap.control == "reinit"]
    for level in {gap.level for gap in gaps}:
        line = sorted((gap.steps, gap.interval) for gap in gaps if gap.level == level)
        assert line[-1][1].high < line[0][1].low, "the interval after the longest training is below"


def test_a_papers_run_has_the_folder_that_is_named() -> None:
    """Its time, too, as in the table of configs."""
    about = json.loads((ROOT / "results" / "lenet300_mnist" / "study.json").read_text(encoding="utf-8"))
    assert f"analysis.conform runs/lenet300_mnist-{config.fingerprint(about['identity'])} --against" in README
    assert "in half an hour.** LeNet-300-100" in README
    assert CONFIGS["lenet300_mnist.py"][1] == "27 min 08 s, measured"
    assert "a fifth of their steps" in README
    paper, ours = (config.load(ROOT / "configs" / f"lenet300_mnist{of}.py") for of in ("_paper", ""))
    assert paper.train.steps == 5 * ours.train.steps


def test_the_home_page_lists_every_guide() -> None:
    home, nav = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/index.md", "mkdocs.yml"))
    guides = re.findall(r"^      - .*?: ((?!api/)\w+\.md)$", nav, re.MULTILINE)
    assert len(guides) > 15
    assert [
        page for page in re.findall(r"^- \[.*?\]\((\w+\.md)\)", home, re.MULTILINE) if page in guides
    ] == guides


def test_what_the_quickstart_is_said_to_do() -> None:
    study = config.load(ROOT / "configs" / "quickstart.py")
    (output, tenth), (_, fifth) = study.prune.rate  # type: ignore[misc]
    assert (output, study.levels) == ("output", 11)
    about = json.loads((QUICK / "study.json").read_text(encoding="utf-8"))["data"]
    text = re.sub(r"\s+", " ", SHIPPED)
    assert "on real digits that come with the package" in re.sub(r"\s+", " ", README)
    assert f"on {about['train'] + about['validation']:,} real digits that come with the package" in text
    assert (
        f"prunes {100 * fifth:.0f} % of the remaining weights a round ({100 * tenth:.0f} % in the output"
        in text
    )
    assert "for eleven rounds" in text
    assert f"{about['train'] + about['validation']:,} + {about['test']:,} digits of MNIST" in DATA


def test_the_documentation_shows_the_quickstarts_own_figure() -> None:
    shown = ROOT / "docs" / "figures" / "quickstart_accuracy.svg"
    assert shown.read_bytes() == (QUICK / "accuracy.svg").read_bytes()


def density(study: config.Study) -> float:
    """The last level's density, by counting alone: ⌊rate n + ½⌋ of n survivors are pruned."""
    shape = (28, 28, 1) if "mnist" in study.data.name else (32, 32, 3)
    params = jax.eval_shape(models.build(study.model, shape, 10).init, jax.random.key(0)).params
    leaves = zip(prune.paths(params), jax.tree.leaves(params), strict=True)
    kernels = {path: leaf.size for path, leaf in leaves if leaf.ndim >= 2}
    left = 0
    for rate, n in zip(prune.rates_of(study.prune.rate, [*kernels]), kernels.values(), strict=True):
        for _ in range(study.levels):
            n -= math.floor(Fraction(str(rate)) * n + Fraction(1, 2))
        left += n
    return left / sum(kernels.values())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_table_of_configs(path: Path) -> None:
    """Every config has a row with its seeds; its steps and final density are those that the row has."""
    what, _ = CONFIGS[path.name]
    first, *others = config.load_all(path)
    seeds = re.findall(r"(\d+) seeds", what)
    assert seeds
    for count in seeds:
        assert int(count) == len(first.seeds)
    for steps in re.findall(r"([\d,]+) steps", what):
        assert int(steps.replace(",", "")) == first.train.steps
    if not others and (said := re.search(r"to ([\d.]+) %", what)):
        assert said[1] == f"{100 * density(first):.1f}"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_measured_times_are_those_of_published_runs(name: str) -> None:
    """Times are those of the training, from the tables in results/."""
    _, time = CONFIGS[name]
    folder = ROOT / "results" / name.removesuffix(".py")
    if not time.endswith("measured"):
        assert re.search(r"estimated by `--dry-run`|days|weeks", time)
        return
    about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    found = Compared(folder) if isinstance(about, list) else Published(folder)
    assert time == f"{found.hours}, measured"


def test_weights_of_networks() -> None:
    """Every number of weights on the page is that of the network named before it."""
    shapes = {"LeNet-5": ("lenet5", (28, 28, 1)), "`lenet5_wide`": ("lenet5_wide", (28, 28, 1)),
              "`lenet5_deep`": ("lenet5_deep", (28, 28, 1)), "`small_cnn`": ("small_cnn", (32, 32, 3)),
              "`small_cnn_wide`": ("small_cnn_wide", (32, 32, 3))}  # fmt: skip
    said = re.search(r'"LeNet-5" is ambiguous.*?\n\n', SHIPPED + "\n\n", re.DOTALL)
    assert said is not None
    parts = re.split(r"(`lenet5_wide`|`lenet5_deep`|`small_cnn`|`small_cnn_wide`)", "LeNet-5" + said[0])
    names = ["LeNet-5", *parts[1::2]]
    for name, text in zip(names, parts[::2], strict=True):
        number = re.search(r"([\d,]+)\s+weights", text)
        assert number is not None, name
        model, shape = shapes[name]
        params = jax.eval_shape(models.build(model, shape, 10).init, jax.random.key(0)).params
        assert int(number[1].replace(",", "")) == sum(p.size for p in jax.tree.leaves(params) if p.ndim >= 2)


# Row of the table in docs/reliability.md, by the start of its first cell -> for every command in its second
# one the tests that it runs.
TRIED = {
    "death of a study": (
        ["test_moments::test_killed_at_any_call_it_goes_on_to_the_same_numbers[4"],
        ["test_moments::test_killed_at_any_call_it_goes_on_to_the_same_numbers[25"],
    ),
    "death of the report": (
        ["test_moments::test_a_report_cut_short_anywhere_is_whole_after_the_next[2"],
        ["test_moments::test_a_report_cut_short_anywhere_is_whole_after_the_next[12"],
    ),
    "full, read-only, vanished disk from": (
        ["test_moments::test_a_disk_that_fails_at_any_call_is_one_sentence[2"],
        ["test_moments::test_a_disk_that_fails_at_any_call_is_one_sentence[15"],
    ),
    "full, read-only, vanished disk at": (["test_moments::test_a_call_that_fails_once_loses_nothing"],),
    "a tmpfs": (["test_killed::test_a_disk_that_fills_up"],),
    "a flipped bit": (
        ["test_damage::test_every_flipped_bit_is_noticed_or_changes_nothing[1]"],
        ["test_damage::test_every_flipped_bit_is_noticed_or_changes_nothing[12]"],
    ),
    "files cut": (["test_damage::test_cut_grown_and_emptied_files_are_noticed"],),
    "masks, cells": (
        [
            "test_damage::test_what_is_copied_into_another_place_is_noticed",
            "test_damage::test_a_cell_of_another_study_or_another_parent_is_noticed",
        ],
    ),
    "SIGKILL of a real study, at": (["test_processes::test_killed_twice_and_run_again"],),
    "SIGKILL of a real study at": (["test_killed::test_a_study_killed_again_and_again"],),
    "SIGKILL of savings": (["test_killed::test_an_analysis_killed_again_and_again"],),
    "SIGINT": (["test_processes::test_signals_say_how_to_go_on"],),
    "a study stopped": (["test_checkpoints::test_a_study_stopped_inside_its_cells_goes_on_inside_them"],),
    "a training continued": (
        ["test_checkpoints::test_from_every_position_a_job_goes_on_to_the_same_bits[adam"],
        ["test_checkpoints::test_from_every_position_a_job_goes_on_to_the_same_bits[statistics"],
    ),
    "two processes": (["test_processes::test_two_processes_train_no_cell_twice"],),
    "three processes, six": (
        [
            "test_one_folder::test_three_processes_fill_one_folder",
            "test_one_folder::test_one_of_three_processes_is_killed",
            "test_one_folder::test_an_array_of_single_seeds_and_two_machines_merged",
        ],
    ),
    "one program of two processes with": (["test_hosts::test_two_processes_give_the_numbers_of_one"],),
    "one program of two processes:": (
        [
            "test_hosts::test_a_process_that_dies_ends_the_other_and_they_go_on",
            "test_hosts::test_a_signal_to_one_ends_both_and_saves",
            "test_hosts::test_a_process_that_stands_still_is_missed",
        ],
    ),
    "three processes that": (["test_locks::test_of_processes_that_take_a_lease_at_once_one_wins"],),
    "a lease": (
        [
            "test_locks::test_a_lease_that_is_not_renewed_expires",
            "test_locks::test_a_lease_that_was_taken_over_is_noticed_and_not_renewed",
            "test_locks::test_a_damaged_lease_expires",
            "test_locks::test_a_killed_process_of_this_machine_holds_no_lease",
            "test_sharing::test_a_process_whose_lease_was_taken_writes_nothing_more",
        ],
    ),
    "a bucket in memory: two": (["test_bucket::test_two_machines_fill_one_bucket"],),
    "a bucket in memory: an upload": (
        [
            "test_bucket::test_a_cell_whose_upload_failed_is_not_there_and_is_sent_the_next_time"
            "[seed=1/dense/result",
            "test_bucket::test_damage_in_the_bucket_is_noticed",
            "test_bucket::test_a_lease_that_was_taken_stops_its_old_owner",
        ],
    ),
    "a bucket in memory: another": (
        [
            "test_bucket::test_after_an_upload_that_failed_nothing_is_sent_that_was_made_from_it",
            "test_bucket::test_a_cell_that_was_not_sent_gives_way_to_another_machines",
            "test_bucket::test_cells_in_the_bucket_that_do_not_fit_are_made_anew",
        ],
    ),
    "merging": (
        [
            "test_sharing::test_cells_that_differ_are_named_and_nothing_is_written",
            "test_sharing::test_other_mistakes_are_one_sentence",
            "test_sharing::test_a_cell_made_from_another_parent_is_refused",
            "test_sharing::test_a_killed_merge_goes_on",
        ],
    ),
    "options": (
        [
            "test_inputs::test_options_of_a_study",
            "test_inputs::test_options_of_the_analyses",
            "test_inputs::test_fields_of_a_study",
            "test_inputs::test_arrays_of_a_data_set",
            "test_inputs::test_bytes_of_a_ticket",
            "test_inputs::test_fields_of_a_run_folder",
        ],
    ),
}


def quickest(test: str) -> str:
    """The make command with the fewest tests that runs this one, by its marks and the lists of conftest.py.

    Args:
        test: its file and name, of one with parameters up to the value that the marks depend on.
    """
    file, name = test.split("::")
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    function, _, value = name.partition("[")
    before, defined, _ = path.read_text(encoding="utf-8").partition(f"\ndef {function}(")
    assert defined, f"{test} is not there"
    decorators = before.rpartition("\n\n\n")[2]
    if re.search(r"^@pytest\.mark\.faults", decorators, re.MULTILINE) or any(
        re.match(rf"{one}\b", value)
        for one in re.findall(r"param\((\w+), marks=pytest\.mark\.faults", decorators)
    ):
        return "faults"
    slow, lengthy = SLOW.get(file, ()), LENGTHY.get(file, ())
    assert not [one for one in (*slow, *lengthy) if one.startswith(name) and one != name], (
        f"the value that decides is missing: {test}"
    )
    if name.startswith(tuple(lengthy)):
        return "test-all"
    return "ci" if name.startswith(tuple(slow)) else "test"


def test_what_is_said_to_try_a_fault() -> None:
    """Every row of the page names the quickest commands that run its tests."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    said = {
        fault: re.findall(r"`make ([\w-]+)`", often)
        for fault, often in re.findall(r"^\| (.*?) \| (.*?) \| .* \|$", page, re.MULTILINE)
        if "`make" in often
    }
    assert len(said) == len(TRIED) == page.count("\n| ") - 1
    for start, parts in TRIED.items():
        (commands,) = (commands for fault, commands in said.items() if fault.startswith(start))
        assert [{quickest(test) for test in tests} for tests in parts] == [{of} for of in commands], start
