"""The contents of results/; every number quoted from it is computed from it."""

import csv
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats as scipy_stats
from statsmodels.stats import multitest

from analysis import conform, publish, results, retraining, tables, transfer, words
from analysis.conform import ledger
from analysis.page import Table
from analysis.report import verdicts
from analysis.rows import Row, to_csv
from lthjax import config, durations, files, launch
from lthjax.errors import UserError
from lthjax.folder.places import PUBLISHED
from lthjax.measures.stats import mean_interval

RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/cells.csv"))
COMPARED = sorted(path.parent for path in RESULTS.glob("*/comparison.csv"))


def by_hand(folder: Path, arm: str, level: int) -> dict[int, float]:
    """Seed -> accuracy in percent, using only the csv module."""
    with (folder / "cells.csv").open(newline="") as file:
        lines = [x for x in csv.DictReader(file) if (x["arm"], x["level"]) == (arm, str(level))]
    chains = {line["chain"] for line in lines}
    first = [line for line in lines if line["chain"] in (min(chains), "dense")]
    return {int(line["seed"]): 100 * float(line["test_accuracy"]) for line in first}


def test_there_are_results() -> None:
    assert FOLDERS
    assert COMPARED
    assert sorted([*FOLDERS, *COMPARED]) == sorted(path.parent for path in RESULTS.glob("*/study.json"))


@pytest.mark.parametrize("folder", [*FOLDERS, *COMPARED], ids=lambda folder: folder.name)
def test_a_folder_is_small_and_names_no_machine(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.suffix in (".csv", ".json", ".svg", ".png"), "no weights"
            if path.suffix in (".svg", ".png"):
                assert path.stat().st_size <= publish.LARGEST
            else:
                assert not re.search(r"(?<![\w.])/(tmp|home|work|root|mnt|Users)/", path.read_text())


@pytest.mark.parametrize("folder", [*FOLDERS, *COMPARED], ids=lambda folder: folder.name)
def test_a_folder_has_the_mark_by_which_publish_knows_it(folder: Path) -> None:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(publish.listed(folder) or []) == there
    # So that publish replaces it: nothing is there that is not its own, nothing was edited.
    assert files.foreign(folder, PUBLISHED) is None
    assert files.edited(folder, PUBLISHED) is None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_verdicts_follow_from_the_cells(folder: Path) -> None:
    """Verdicts on accuracies are recomputed; the others come after them."""
    got = results.Published(folder)
    found = verdicts.findings(got.about, got.rows)
    said = [[f.claim, f.outcome, f.estimate, str(f.n), str(f.where), f.test, f.beside] for f in found]
    assert [list(line.values()) for line in got.verdicts[: len(said)]] == said


def test_verdicts_on_other_arms_follow_from_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on training after pruning, and on moved tickets, but for the words of their sources."""
    monkeypatch.setattr(transfer, "names", lambda _: {name: name for name in sources})
    for folder in FOLDERS:
        got, sources = results.Published(folder), set[str]()
        run: Any = SimpleNamespace(rows=got.rows, about=got.about, name="", path=folder)
        said = retraining.findings(run, retraining.table.of_rows(got.rows, got.about))
        if (folder / "transfer" / "transfer.csv").is_file():
            moved = tables.read_rows(folder / "transfer" / "transfer.csv", transfer.TransferRow)
            sources, run.name = {row.source for row in moved}, moved[0].target
            said += transfer.findings(run, moved)
        starts = ("Tickets beat finetune", "Weights need no rewinding: ", "Tickets moved here ")
        there = [line for line in got.verdicts if line["claim"].startswith(starts) and line["n"] != "0"]
        found = [[f.outcome, f.estimate, str(f.n), f.test, f.beside] for f in said]
        assert [[line[k] for k in ("outcome", "estimate", "n", "test", "beside")] for line in there] == found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_accuracies_and_gaps_by_hand(folder: Path) -> None:
    got = results.Published(folder)
    for level in got.levels("reinit"):
        ours, theirs = (by_hand(folder, arm, level) for arm in ("ticket", "reinit"))
        assert got.accuracy("ticket", level).mean == pytest.approx(np.mean(list(ours.values())))
        gaps = [ours[seed] - theirs[seed] for seed in ours]
        low, high = scipy_stats.t.interval(
            0.95, len(gaps) - 1, np.mean(gaps), np.std(gaps, ddof=1) / len(gaps) ** 0.5
        )
        found = got.gap("ticket", "reinit", level)
        np.testing.assert_allclose(found[:3], [np.mean(gaps), low, high])
    dense = by_hand(folder, "dense", 0)
    assert got.accuracy("dense").mean == pytest.approx(np.mean(list(dense.values())))
    assert got.seeds == len(dense)


def test_late_rewinding_by_hand() -> None:
    got = results.Published(RESULTS / "rewind_resnet8")
    with (got.folder / "cells.csv").open(newline="") as file:
        lines = [x for x in csv.DictReader(file) if (x["arm"], x["level"]) == ("ticket", "4")]
    middle, late, early = (
        [100 * float(x["test_accuracy"]) for x in lines if x["chain"] == f"rewind-{step}"]
        for step in (500, 2000, 0)
    )
    assert len(middle) == len(late) == len(early) == got.seeds
    np.testing.assert_allclose(got.rewound(4).mean, np.mean(np.subtract(late, early)))
    np.testing.assert_allclose(got.rewound(4, 500).mean, np.mean(np.subtract(middle, early)))
    assert got.rewound(4, 0).mean == 0, "the earliest against itself"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/cells.csv")))
def test_every_study_is_held_against_the_ledgers_that_have_its_values(name: str) -> None:
    """A study whose values any ledger has is beside that ledger on the page, and no other is."""
    study = results.Published(RESULTS / name)
    marks = {"agrees", "differs", "undecided"}
    fitting = {of for of in ledger.known() if any(marks & {*row} for row in conform.rows(study, of).rows)}
    page = (RESULTS / "README.md").read_text()
    command = re.search(rf"analysis\.conform results/{name} --against (.*)", page)
    assert {*(command[1].split() if command else ())} == fitting


def test_moved_tickets_by_hand() -> None:
    got = results.Published(RESULTS / "transfer_mnist")
    with (got.folder / "transfer" / "transfer.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["level"] == "6"]
    moved, own = (
        {line["seed"]: 100 * float(line["test_accuracy"]) for line in lines if line["arm"] == arm}
        for arm in ("transferred", "ticket")
    )
    assert moved.keys() == own.keys()
    shares = [np.mean([*of.values()]) / 100 for of in (moved, own)]
    least = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / 10_000)
    expected = words.points(mean_interval([moved[seed] - own[seed] for seed in moved], floor=least))
    assert [row[5] for row in got.moved().rows if row[3] == "6"] == [expected]


def test_moved_tickets_of_two_chains_have_lines_of_their_own(tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "transfer_mnist", tmp_path / "transfer_mnist")
    rows = tables.read_rows(folder / "transfer" / "transfer.csv", transfer.TransferRow)
    before = results.Published(folder).moved().rows
    both = [row._replace(chain=chain) for chain in ("rewind-0", "rewind-500") for row in rows]
    text = tables.of_rows(transfer.TransferRow, both)
    (folder / "transfer" / "transfer.csv").write_text(text)
    got = results.Published(folder).moved().rows
    named = [
        [*row[:2], f"{row[2]}, {chain}", *row[3:]] for row in before for chain in ("rewind-0", "rewind-500")
    ]
    assert sorted(got) == sorted(named)


def compared_by_hand(folder: Path, density: float, **fields: object) -> dict[int, float]:
    """Seed -> accuracy in percent of one run's ticket at the first level with at most this density."""
    about = json.loads((folder / "study.json").read_text())
    with (folder / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    runs = list(dict.fromkeys(line["run"] for line in lines))
    (place,) = [
        i for i, study in enumerate(about) if all(study["identity"][k] == v for k, v in fields.items())
    ]
    own = [x for x in lines if x["run"] == runs[place] and x["arm"] == ("ticket" if density < 1 else "dense")]
    level = min(int(x["level"]) for x in own if float(x["density"]) <= 1.005 * density)
    return {int(x["seed"]): 100 * float(x["test_accuracy"]) for x in own if x["level"] == str(level)}


def test_schedules_by_hand() -> None:
    got = results.Compared(RESULTS / "rates_lenet5")
    of = {"prune.scope": "layer", "prune.density": None}
    for density in (0.512, 0.055):
        rounds = compared_by_hand(got.folder, density, **of, **{"prune.rate": 0.2})
        shot = compared_by_hand(got.folder, density, **{**of, "prune.density": density})
        gaps = [rounds[seed] - shot[seed] for seed in rounds]
        low, high = scipy_stats.t.interval(
            0.95, len(gaps) - 1, np.mean(gaps), np.std(gaps, ddof=1) / len(gaps) ** 0.5
        )
        found = got.gap("20 % a round, layer-wise", "one-shot, layer-wise", density)
        np.testing.assert_allclose(found[:3], [np.mean(gaps), low, high], rtol=0, atol=1e-9)
    point = got.point("20 % a round, layer-wise", 0.512)
    assert point.trainings == pytest.approx(4), "the dense network's and three rounds'"
    assert got.point("one-shot, layer-wise", 0.055).trainings == pytest.approx(2)


def test_claims_about_schedules_by_hand() -> None:
    """At 5.5 %, the level of one-shot pruning: other schedules are interpolated between their levels."""
    got = results.Compared(RESULTS / "rates_lenet5")
    rounds, shot = "20 % a round, layer-wise", "one-shot, layer-wise"
    pairs = [(rounds, shot), ("40 % a round, layer-wise", rounds)]
    density = got.point(shot, 0.055).density

    def at(name: str) -> np.ndarray:
        points = sorted(got.entry(name).tickets, key=lambda point: point.density)
        x = np.log([point.density for point in points])
        curves = [[point.accuracies[seed] for point in points] for seed in sorted(points[0].accuracies)]
        return np.array([np.interp(np.log(density), x, curve) for curve in curves])

    tails, errors = list[float](), list[tuple[float, float]]()
    for one, other in pairs:
        ours, theirs = at(one), at(other)
        q, r = np.mean(ours) / 100, np.mean(theirs) / 100
        s = max(np.std(ours - theirs, ddof=1), 100 * np.sqrt((q * (1 - q) + r * (1 - r)) / 10_000))
        n = len(ours)
        tails.append(float(scipy_stats.t.sf(np.mean(ours - theirs) / (s / np.sqrt(n)), n - 1)))
        errors.append((np.mean(ours - theirs), s / np.sqrt(n)))
    above = multitest.multipletests(tails, method="holm")[1]
    below = multitest.multipletests([1 - tail for tail in tails], method="holm")[1]
    found = got.contrasts(pairs, density)
    assert [of.p for of in found] == pytest.approx(np.minimum(above, below))
    said = np.where(above < 0.05, "supported", np.where(below < 0.05, "refuted", "undecided"))
    assert [of.outcome for of in found] == said.tolist()
    assert (found[0].outcome, found[1].outcome) == ("supported", "refuted")
    # Either is the first step of its side's family of two.
    (mean, error), (other, further) = errors
    t = scipy_stats.t.ppf(1 - 0.05 / 2, got.seeds - 1)
    assert str(found[0]).startswith(f"{mean:+.2f} pp, at least {mean - t * error:+.2f}, one-sided p")
    assert str(found[1]).startswith(f"{other:+.2f} pp, at most {other + t * further:+.2f}, one-sided p")


def test_a_learning_rate_chosen_on_validation_by_hand() -> None:
    got = results.Compared(RESULTS / "lr_cifar")
    with (RESULTS / "lr_cifar" / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rate = dict(
        zip(
            dict.fromkeys(line["run"] for line in lines),
            [of["identity"]["optim.lr"] for of in got.about],
            strict=True,
        )
    )
    means = {
        value: [
            np.mean(
                [
                    float(line["validation_accuracy"])
                    for line in lines
                    if (rate[line["run"]], line["arm"]) == (value, arm)
                ]
            )
            for arm in ("dense", "reinit")
            if any((rate[line["run"]], line["arm"]) == (value, arm) for line in lines)
        ]
        for value in sorted(rate.values())
    }
    table = got.by_validation("optim.lr", ("dense", "reinit"))
    assert [line[0] for line in table.rows] == [f"{value:g}" for value in means]
    both = {value: np.mean(of) for value, of in means.items() if len(of) == 2}
    for line, of in zip(table.rows, means.values(), strict=True):
        assert [said.split(" [")[0] for said in line[1 : 1 + len(of)]] == [f"{100 * mean:.2f}" for mean in of]
        assert (line[3] == "–") == (len(of) < 2)
    (chosen,) = [float(line[0]) for line in table.rows if line[-1] == "chosen"]
    assert chosen == max(both, key=lambda value: both[value])
    assert chosen == results.Published(RESULTS / "cifar_cnn").about["config"]["optim"]["lr"]


def test_precisions_by_hand() -> None:
    got = results.Compared(RESULTS / "precision_lenet5")
    full, half = (f"LeNet-5 on MNIST, train.precision {name}" for name in ("float32", "bfloat16"))
    densities = [1.0, *(point.density for point in got.entry(full).arms["ticket"])]
    assert len(densities) == 7
    gaps, errors = [], []
    for density in densities:
        exact, rounded = (
            np.array(list(compared_by_hand(got.folder, density, **{"train.precision": name}).values()))
            for name in ("float32", "bfloat16")
        )
        gaps.append(rounded - exact)
        p, q = exact.mean() / 100, rounded.mean() / 100
        spread = max(np.std(gaps[-1], ddof=1), 100 * np.sqrt((p * (1 - p) + q * (1 - q)) / 10_000))
        errors.append(spread / np.sqrt(len(exact)))
    table = got.against(full)
    assert [row[2] for row in table.rows] == [words.points(mean_interval(list(g))) for g in gaps]
    means, errors, df = np.mean(gaps, axis=1), np.array(errors), len(gaps[0]) - 1
    reach = np.abs(means) + scipy_stats.t.ppf(0.975, df) * errors
    density, widest = got.widest(half, full)
    assert density == densities[int(np.argmax(reach))]
    assert max(-widest.low, widest.high) == pytest.approx(reach.max())
    # Two one-sided tests at every density.
    inside = scipy_stats.t.sf((0.5 - np.abs(means)) / errors, df)
    assert (got.alike(half, full, 0.5) == "supported") == (inside.max() < 0.05)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda got: got.gap("nothing", "one-shot, layer-wise", 0.1), "it has no 'nothing'; it has 10 %"),
        (lambda got: got.point("20 % a round, layer-wise", 0.001), "does not reach 0.001"),
    ],
)
def test_what_a_comparison_lacks_is_said(ask: Callable[[results.Compared], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(results.Compared(RESULTS / "rates_lenet5"))
    with pytest.raises(UserError, match="it is no published comparison"):
        results.Compared(RESULTS / "lenet5_mnist")


def test_the_pages_say_what_the_tables_say() -> None:
    """Templates write every number on the pages: `python -m analysis.results` writes them again."""
    for path, text in results.pages(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what its template gives"


def test_the_studies_with_three_seeds_are_named() -> None:
    called = {
        "cifar_cnn": "tickets and controls",
        "lr_cifar": "the learning rate",
        "retraining_cnn": "what to rewind",
        "rewind_resnet8": "late rewinding",
        "transfer_cnn": "transfer",
    }
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    found = re.search(r"On CIFAR-10 the studies of (.*) have three seeds, that of (.*) (\w+)\.", page)
    assert found is not None
    seeds = {}
    for name in called:
        table = "comparison.csv" if name == "lr_cifar" else "cells.csv"
        with (RESULTS / name / table).open(newline="", encoding="utf-8") as file:
            seeds[name] = len({line["seed"] for line in csv.DictReader(file)})
    few = [words for name, words in called.items() if seeds[name] == 3]
    assert re.split(", | and (?!controls)", found[1]) == few
    assert (found[2], {"six": 6}[found[3]]) == (called["cifar_cnn"], seeds["cifar_cnn"])


@pytest.mark.parametrize("name", ["README.md.jinja", "summary.md.jinja"])
def test_no_result_is_typed_into_a_template(name: str) -> None:
    """Numbers with decimals are computed, except published values (in `{% set %}`) and papers."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    text = re.sub(
        r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|`[^`]*`|\([^)]*\.(svg|png|csv|md)\)", "", text, flags=re.DOTALL
    )
    text = re.sub(r"arXiv[ :]\d{4}\.\d{5}|arxiv\.org/abs/\d{4}\.\d{5}", "", text)
    assert re.findall(r"\d+\.\d+", text) == []


def test_figures_and_folders_that_pages_name_are_there() -> None:
    for path, text in results.pages(ROOT).items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name} leads to {link}"


def test_sections_that_pages_name_are_there() -> None:
    """Anchors follow the rules of code hosts: lower case, a hyphen for a blank, no other punctuation."""
    text = results.pages(ROOT)[RESULTS / "README.md"]
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    there = {"".join(c for c in h.lower().replace(" ", "-") if c.isalnum() or c in "-_") for h in headings}
    named = re.findall(r"\]\(#([^)]*)\)", text)
    assert len(named) > 20
    assert set(named) <= there


def abouts(folder: Path) -> list[dict[str, Any]]:
    """study.json of every study of a published folder."""
    read = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return read if isinstance(read, list) else [read]


def sections() -> dict[str, tuple[str, list[Path]]]:
    """Heading -> (text, published folders) of the sections of results/README.md that have commands."""
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    by_heading = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    folders = {
        heading: [RESULTS / name for name in re.findall(r"^    python .* results/(\w+)$", of, re.MULTILINE)]
        for heading, of in by_heading.items()
    }
    return {heading: (by_heading[heading], found) for heading, found in folders.items() if found}


def test_every_study_has_its_commands() -> None:
    """But for the quickstart, which the front page runs."""
    named = {folder.name for _, folders in sections().values() for folder in folders}
    assert named == {folder.name for folder in (*FOLDERS, *COMPARED)} - {"quickstart"}


@pytest.mark.parametrize("heading", sections())
def test_commands_make_what_is_published(heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their studies have the fingerprints, seeds, levels and arms of the tables, given the same data."""
    monkeypatch.chdir(ROOT)
    text, folders = sections()[heading]
    data = {about["data"]["name"]: about["data"] for of in (*FOLDERS, *COMPARED) for about in abouts(of)}
    made: dict[str, list[config.Study]] = {}
    for line in re.findall(r"^    python run\.py (.*)$", text, re.MULTILINE):
        for options in launch.parse(shlex.split(line)):
            study, of = options.study, data[options.study.data.name]
            lengths = durations.lengths(study, of["train"] + of["validation"] - study.data.validation)
            made.setdefault(config.fingerprint(config.identity(study, lengths, of["digest"])), []).append(
                study
            )
    named = re.findall(r"runs/(\w+)-([0-9a-f]{8})\b", text)
    assert set(named) <= {(study.name, of) for of, studies in made.items() for study in studies}
    for folder in folders:
        published = {config.fingerprint(about["identity"]): about for about in abouts(folder)}
        assert published.keys() <= made.keys()
        if folder in FOLDERS:
            ((fingerprint, about),) = published.items()
            assert fingerprint in {of for _, of in named}
            studies = made[fingerprint]
            with (folder / "cells.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            assert {int(row["seed"]) for row in rows} == {s for study in studies for s in study.seeds}
            assert {row["arm"] for row in rows} - {"dense"} == {a for study in studies for a in study.arms}
            assert max(int(row["level"]) for row in rows) == max(study.levels for study in studies)
            rewound = {row["chain"].rpartition("-")[2] for row in rows} - {"dense"}
            assert rewound == {str(k) for k in about["lengths"]["rewind"]}


def test_pages_say_that_other_images_have_another_fingerprint() -> None:
    """The published digest is that of the copy of CIFAR-10 that was used."""
    said = "With the original images the run folder has another fingerprint"
    for heading, (text, folders) in sections().items():
        copied = any(about["data"]["name"] == "cifar10" for of in folders for about in abouts(of))
        named = re.search(r"runs/\w+-[0-9a-f]{8}\b", text)
        assert (said in text) == bool(copied and named), heading
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert said in text.partition("\n¹ ")[2].partition("\n\n")[0]


def test_the_page_says_of_which_trainings_every_bit_is_promised() -> None:
    """CPUs alone, and the code of then: later commits compute the convolutions on CIFAR-10 otherwise."""
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    (said,) = re.findall(r"\. ([^;]*bit for bit[^;]*);", text)
    for condition in ("the commit and the versions that `study.json` names", "MNIST", "one kind of CPU"):
        assert condition in said.rpartition(". ")[2]


@pytest.mark.parametrize("folder", ["budget_cifar", "budget_lenet5"])
def test_of_how_many_evaluations_the_last_is_meant(folder: str) -> None:
    counts: dict[int, list[str]] = {}
    for about in abouts(RESULTS / folder):
        total, every = about["lengths"]["total"], about["lengths"]["evaluate"]
        counts.setdefault(len([*range(every, total, every), total]), []).append(f"{total:,}")
    (text,) = [text for text, folders in sections().values() if folders == [RESULTS / folder]]
    (said,) = re.findall(r"lowest validation loss is that of the last of (.*?)\.", text)
    first, *others = counts
    expected = [f"{first} evaluations"]
    expected += [f"of {count} in trainings of {' or '.join(counts[count])} steps" for count in others]
    assert said == ", ".join(expected)


def test_no_table_is_torn() -> None:
    """After an empty line, a table starts with a header and its line of dashes."""
    for path, text in results.pages(ROOT).items():
        for header, dashes in re.findall(r"\n\n(\|.*)\n(.*)", text):
            assert re.fullmatch(r"[| :-]+", dashes), f"{path.name}: {header[:60]}"


def test_every_row_of_a_table_has_the_columns_of_its_header() -> None:
    for path, text in results.pages(ROOT).items():
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            counts = {line.count("|") for line in block.splitlines()}
            assert len(counts) == 1, f"{path.name}: {block[:80]}"


def test_markdown() -> None:
    table = Table("", ["arm", "pp"], [["ticket", "+1.00"]])
    assert results.markdown(table) == "| arm | pp |\n| :-- | --: |\n| ticket | +1.00 |"


def early_by_hand(arm: str, level: int, column: str) -> dict[int, float]:
    """Seed -> a column of the LeNet-300-100's cells.csv."""
    with (RESULTS / "lenet300_mnist" / "cells.csv").open(newline="") as file:
        lines = [x for x in csv.DictReader(file) if (x["arm"], x["level"]) == (arm, str(level))]
    return {int(line["seed"]): float(line[column]) for line in lines}


def line_of(quantity: str, read_at: str) -> list[str]:
    """The cells of the row of `lenet300_mnist` with this published quantity and this place of reading."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    text = page.partition("## LeNet-300-100 on MNIST, beside")[2].partition("\n## ")[0]
    (found,) = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(f"| {quantity}") and f"| {read_at} |" in line
    ]
    return found


def no_surer_than_the_test_set(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float]:
    """The mean difference in points and its standard error, of which 10,000 images give the least spread."""
    values = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours)]
    p, q = (np.mean(list(of.values())) for of in (ours, theirs))
    spread = max(np.std(values, ddof=1), 100 * ((p * (1 - p) + q * (1 - q)) / 10_000) ** 0.5)
    return float(np.mean(values)), float(spread / len(values) ** 0.5)


def test_published_values_are_read_where_the_papers_read_them() -> None:
    """Frankle & Carbin's gains of LeNet are at early stop; at the end they are at most 0.35 points."""
    column = "early_stop_test_accuracy"
    for quantity, arm, other, level, claim, mark in (
        ("ticket − reinit at 21.1 %", "ticket", "reinit", 7, "0.5", "undecided"),
        ("ticket − dense at 13.5 %", "ticket", "dense", 9, "more than 0.3", "agrees"),
        ("reinit − dense at 21.1 %", "reinit", "dense", 7, "below 0", "differs"),
        ("reinit − dense at 10.8 %", "reinit", "dense", 10, "below 0", "undecided"),
        ("ticket − dense at 2.9 %", "ticket", "dense", 16, "below 0", "differs"),
    ):
        ours = early_by_hand(arm, level, column)
        theirs = early_by_hand(other, 0 if other == "dense" else level, column)
        mean, error = no_surer_than_the_test_set(ours, theirs)
        wide = scipy_stats.t.ppf(0.975, len(ours) - 1) * error
        said = f"{mean:+.2f} [{mean - wide:+.2f}, {mean + wide:+.2f}]"
        assert line_of(quantity, "early stop")[1:5] == ["early stop", claim, said, mark]
        if claim[0].isdigit():
            low, high = (
                scipy_stats.t.sf(side * (mean - float(claim)) / error + 0.2 / error, len(ours) - 1)
                for side in (1, -1)
            )
            assert (mark == "agrees") == (max(low, high) < 0.05)
        else:
            sign, bound = (1, 0.3) if claim.startswith("more") else (-1, 0)
            p = scipy_stats.t.sf(sign * (mean - bound) / error, len(ours) - 1)
            assert mark == ("agrees" if p < 0.05 else "differs" if p > 0.95 else "undecided")
    end = line_of("reinit − dense at 10.8 %", "end")
    ours, theirs = (by_hand(RESULTS / "lenet300_mnist", *of) for of in (("reinit", 10), ("dense", 0)))
    mean, _ = no_surer_than_the_test_set(*({s: of[s] / 100 for s in of} for of in (ours, theirs)))
    assert end[3].startswith(f"{mean:+.2f} [")
    assert end[4] == "not comparable: none printed"
    steps = [early_by_hand(arm, 7, "early_stop_step") for arm in ("reinit", "ticket")]
    ratio = scipy_stats.gmean([steps[0][seed] / steps[1][seed] for seed in steps[0]])
    assert line_of("step of the lowest validation loss, reinit", "early stop")[3].startswith(
        f"{ratio:.2f}× ["
    )


def test_the_best_gain_at_the_end() -> None:
    gains = {}
    dense = by_hand(RESULTS / "lenet300_mnist", "dense", 0)
    for level in range(1, 17):
        ours = by_hand(RESULTS / "lenet300_mnist", "ticket", level)
        gains[level] = np.mean([ours[seed] - dense[seed] for seed in dense])
    assert results.Published(RESULTS / "lenet300_mnist").best() == max(gains, key=lambda n: gains[n])
    assert line_of("ticket − dense at 10.8 %", "end")[2:5:2] == ["at most 0.35", "undecided"]


def test_no_interval_on_a_page_leaves_its_range() -> None:
    """Unsigned values are accuracies, shares, barriers or ratios; differences have a sign."""
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?<![-+\d.])\d+\.\d+×? \[([^],]+), ([^]]+)\]", text)
    assert len(found) >= 100
    for low, high in found:
        assert 0 <= float(low) <= float(high) <= 100


def written(root: Path, template: str) -> Path:
    folder = root / "results" / "one"
    folder.mkdir(parents=True)
    measured = (0.1, 0.9, 0.9, 0.1, 5, 0.9, 10, 1.0, "done")
    rows = [
        Row(seed, chain, level, arm, 1, 0.8**level, 1000 - 200 * level, value, *measured)
        for seed, of_seed in ((0, (0.95, 0.96)), (1, (0.97, 0.99)))
        for chain, level, arm, value in (
            ("dense", 0, "dense", of_seed[0]),
            ("rewind-0", 1, "ticket", of_seed[1]),
        )
    ]
    (folder / "cells.csv").write_text(to_csv(rows))
    (folder / "verdicts.csv").write_text(
        "claim,outcome,estimate,n,where\nTickets win,supported,+1.5,2,Levels\n"
    )
    (folder / "study.json").write_text(json.dumps({"config": {}}))
    (root / "results" / "README.md.jinja").write_text(template)
    (root / "results" / "summary.md.jinja").write_text("{{ published | join }}\n")
    (root / "README.md").write_text(f"before\n{results.OPEN}\nold\n{results.CLOSE}\nafter\n")
    return root


def test_a_page_by_hand(tmp_path: Path) -> None:
    template = (
        "{% set s = study('one') %}\n"
        "{{ s.gap('ticket', 'dense', 1) | points }} at {{ s.density(1) | density }}, "
        "{{ s.weights(1) | count }} of {{ s.weights() | count }}: "
        "{{ s.verdict('Tickets').outcome }}, {{ s.accuracy('dense').mean }}\n"
    )
    root = written(tmp_path, template)
    results.main([str(root)])
    interval = words.points(mean_interval([1.0, 2.0]))
    expected = f"{interval} at 80.0 %, 800 of 1,000: supported, 96.0\n"
    assert (root / "results" / "README.md").read_text() == expected
    assert (root / "README.md").read_text() == f"before\n{results.OPEN}\none\n{results.CLOSE}\nafter\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ study('two').seeds }}", "two: it is no published study"),
        ("{{ study('one').cells('reinit', 1) }}", "it has no cell rewind-0, level 1, reinit"),
        ("{{ study('one').verdict('Nothing') }}", "no claim begins with 'Nothing'"),
        ("{{ study('one').verdict('Tickets').what }}", "README.md.jinja"),
    ],
)
def test_what_is_not_there_is_said(template: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        results.pages(written(tmp_path, template))


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, "")
    (root / "README.md").write_text("nothing")
    with pytest.raises(UserError, match="it has not the marks"):
        results.pages(root)
