"""Sweeps: several studies from one, run together, compared on one page."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import result

from analysis import compare, load, report
from analysis.compare.entries import Entry, Point, at_most, entries
from analysis.rows import Row, row_of
from analysis.run import Run
from lthjax import config, record, study, sweep
from lthjax.config import Study
from lthjax.errors import UserError
from lthjax.folder.verified import read_study
from lthjax.imp import DENSE, Cell

Call = Callable[..., subprocess.CompletedProcess[str]]


def test_axes_and_their_products() -> None:
    rates, nets = sweep.values("prune.rate", 0.2, 0.4), sweep.values("model", "lenet300", "lenet5")
    made = sweep.studies(Study(levels=3), sweep.product(nets, rates))
    assert [(s.model, s.prune.rate, s.levels) for s in made] == [
        ("lenet300", 0.2, 3), ("lenet300", 0.4, 3), ("lenet5", 0.2, 3), ("lenet5", 0.4, 3)
    ]  # fmt: skip
    assert sweep.zipped(nets, rates) == [
        {"model": "lenet300", "prune.rate": 0.2},
        {"model": "lenet5", "prune.rate": 0.4},
    ]
    with pytest.raises(UserError, match=r"sweep\.zipped: its axes have \[2, 1\] settings"):
        sweep.zipped(rates, sweep.values("levels", 1))
    with pytest.raises(UserError, match=r"prune\.rate is set by two axes"):
        sweep.product(rates, rates)
    with pytest.raises(UserError, match=r"field: 'prune\.rat' is not known; did you mean 'prune\.rate'"):
        sweep.studies(Study(), sweep.values("prune.rat", 0.1))


def test_replacing_a_field_is_writing_it() -> None:
    changed = config.replaced(Study(), {"optim.lr": 0.5, "seeds": [1, 2], "name": "x"})
    assert changed == Study(name="x", seeds=(1, 2), optim=config.Optim(lr=0.5))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prune.rate": 0.2}, "20 % a round, layer-wise"),
        ({}, "10 % (output), 20 % (.) a round, layer-wise"),
        ({"prune.rates": (0.5, 0.25)}, "50 %, 25 %, a round each, layer-wise"),
        ({"prune.density": 0.1, "levels": 1, "prune.scope": "global"}, "one-shot to 10 %, global"),
        (
            {"prune.density": 0.1, "levels": 4, "prune.course": "cubic"},
            "cubic to 10 % in 4 rounds, layer-wise",
        ),
    ],
)
def test_schedules_in_words(fields: dict, words: str) -> None:
    assert sweep.schedule(config.replaced(Study(), fields)) == words


def test_labels_say_what_differs() -> None:
    base = Study(prune=config.Prune(rate=0.2))
    by_rate = sweep.studies(
        base, sweep.product(sweep.values("prune.rate", 0.2, 0.4), sweep.values("optim.lr", 1, 2))
    )
    assert sweep.labels(by_rate) == [
        f"{rate} % a round, layer-wise, optim.lr {lr}" for rate in (20, 40) for lr in (1, 2)
    ]
    assert sweep.labels([base]) == [""]


def test_config_files_of_several_studies(tmp_path: Path) -> None:
    head = "from lthjax.config import Study\n"
    file = tmp_path / "c.py"
    file.write_text(f"{head}configs = [Study(levels=1), Study(levels=2)]\n")
    assert [one.levels for one in config.load_all(file)] == [1, 2]
    with pytest.raises(UserError, match=r"defines 2 studies; load them with config\.load_all"):
        config.load(file)
    for wrong, says in {
        "configs = []": r"a `configs` that is empty; end it with",
        "configs = [Study(), 3]": r"a `configs` of type int",
        "config = Study(); configs = [Study()]": r"defines config and configs",
        "x = 1": r"defines no `config`",
        "configs = [Study(), Study(levels='2')]": r"levels: '2' is not allowed",
    }.items():
        file.write_text(head + wrong)
        with pytest.raises(UserError, match=says):
            config.load_all(file)


def bits(run: Path) -> dict[str, bytes]:
    """Every cell's masks and weights, and its result without the seconds."""
    found = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if name.startswith("seed=") and file.is_file():
            text = file.read_bytes()
            if file.name == "result.json":
                text = re.sub(rb'"seconds": [^,]*,', b"", text)
            if file.name == "manifest.json":
                # Checksums of files with times in them.
                text = repr(
                    {k: v for k, v in json.loads(text).items() if k not in ("files", "sha256")}
                ).encode()
            if "variables" not in name:
                found[name] = text
    return found


def weights(run: Path) -> np.ndarray:
    rows = load(run)
    return np.array([[row.test_loss, row.validation_loss, row.train_accuracy] for row in rows])


def test_a_sweep_is_its_studies_and_trains_a_dense_network_once(tiny: Callable, tmp_path: Path) -> None:
    base = tiny(arms=("ticket",), levels=2, seeds=(0, 1)).study
    settings = [
        {"prune.rate": 0.3},
        {"prune.rate": 0.5, "seeds": (1, 2)},
        {"prune.density": 0.2, "levels": 1, "rewind": (4,)},
        {"optim.lr": 1e-4, "levels": 0},
    ]
    studies = study.prepare_all(sweep.studies(base, settings), tmp_path / "data")
    plans = study.plan_all(studies, tmp_path / "sweep")
    # Seed 2 is the second study's own dense network; the third study replays 4 steps for its rewind states;
    # the fourth has other dense networks.
    assert [plan.steps for plan in plans] == [12 * 6, 12 * 5, 2 * (4 + 8), 12 * 2]
    told: list[tuple[str, str]] = []

    class Watch:
        steps = 0

        def begin(self, title: str, plan: study.Plan) -> None:
            assert (title, plan.steps) == ("tiny: 4 studies", 180)

        def chunk(self, *_: object) -> None: ...
        def end(self) -> None: ...
        def say(self, text: str) -> None: ...
        def advance(self, steps: int, accuracy: float | None) -> None:
            self.steps += steps

        def finished(self, cell: object, result: dict, label: str) -> None:
            told.append((label, result["arm"]))

    watch = Watch()
    runs = study.run_all(studies, tmp_path / "sweep", watch=watch)
    assert watch.steps == 180
    assert len(told) == sum(len(plan.cells) for plan in plans)
    assert [told.count((one.label, "dense")) for one in studies] == [2, 2, 2, 2]
    for one, run in zip(studies, runs, strict=True):
        alone = study.run(one, tmp_path / "alone")
        assert bits(run) == bits(alone)
        np.testing.assert_array_equal(weights(run), weights(alone))
        assert "lr" in one.label or "lr" not in (run / "log.txt").read_text()
    logs = [(run / "log.txt").read_text().count("level 1, ticket: ") for run in runs]
    assert logs == [2, 2, 2, 0]
    assert not study.together(study.plan_all(studies, tmp_path / "sweep")).missing
    # Interrupted in the middle, it continues where it stopped.
    shutil.rmtree(runs[1] / "seed=1")
    again = study.plan_all(studies, tmp_path / "sweep")
    assert [plan.steps for plan in again] == [0, 24, 0, 0]
    study.run_all(studies, tmp_path / "sweep")
    assert bits(runs[1]) == bits(tmp_path / "alone" / runs[1].name)


def test_studies_that_would_share_a_folder_are_refused(tiny: Callable, tmp_path: Path) -> None:
    base = tiny().study
    with pytest.raises(UserError, match="studies 1 and 2 differ in nothing that changes a number"):
        study.prepare_all(sweep.studies(base, sweep.values("seeds", (0,), (1,))), tmp_path / "data")


def test_studies_that_only_their_names_keep_apart_are_refused(tiny: Callable, tmp_path: Path) -> None:
    """Their comparison is refused, too: they are parts of one study, and would be trained twice for it."""
    named = sweep.zipped(sweep.values("name", "short", "long"), sweep.values("levels", 1, 2))
    studies = sweep.studies(tiny().study, named)
    with pytest.raises(
        UserError, match="differ in nothing that changes a number, and are parts of one study"
    ):
        study.prepare_all(studies, tmp_path / "data")
    assert len(study.prepare_all(studies, tmp_path / "data", trained=True)) == 2


@pytest.mark.parametrize(
    ("fields", "field", "values", "why"),
    [
        ({}, "optim.momentum", (0.5, 0.9), "where optim.name is 'adam'"),
        ({}, "optim.decay", (0.1, 0.5), "where optim.schedule is 'constant'"),
        ({}, "prune.course", ("geometric", "cubic"), "without prune.density"),
        ({"prune.density": 0.1}, "prune.rate", (0.2, 0.4), "where prune.density is given"),
        ({"prune.rates": (0.2, 0.2)}, "prune.rate", (0.2, 0.4), "where prune.rates is given"),
    ],
)
def test_studies_that_differ_where_it_has_no_effect_are_refused(
    tiny: Callable, tmp_path: Path, fields: dict[str, Any], field: str, values: tuple, why: str
) -> None:
    base = config.replaced(tiny().study, fields)
    studies = sweep.studies(base, sweep.values(field, *values))
    says = f"studies 1 and 2 differ in {field} alone, which has no effect {why}.*; leave one out"
    with pytest.raises(UserError, match=says):
        study.prepare_all(studies, tmp_path / "data")
    assert len(study.prepare_all(studies, tmp_path / "data", trained=True)) == 2
    others = sweep.studies(base, sweep.product(sweep.values(field, *values), sweep.values("optim.lr", 0.1)))
    others[1] = config.replaced(others[1], {"optim.lr": 0.2})
    assert len(study.prepare_all(others, tmp_path / "data")) == 2


def entry(how: str, points: list[tuple[float, float, tuple[float, ...]]], dense: float = 90.0) -> Entry:
    made = [Point(density, dict(enumerate(values)), cost) for density, cost, values in points]
    return Entry(how, "layer-wise", dict.fromkeys(range(3), dense), {"ticket": made})


def test_the_cheapest_near_the_best() -> None:
    slow = entry("slow", [(0.5, 4, (91, 92, 93)), (0.1, 11, (90, 91, 92))])
    fast = entry("fast", [(0.4, 2, (91, 91.7, 92.8)), (0.09, 4, (89, 89, 89))])
    shot = entry("one-shot", [(0.5, 2, (80, 80, 80)), (0.1, 2, (70, 70, 70))])
    found = [slow, fast, shot]
    assert compare.targets(found) == [0.5, 0.1]
    half = compare.cheapest(found, 0.5)
    assert [(row[0].how, row[3]) for row in half] == [("fast", True), ("one-shot", False), ("slow", True)]
    # fast - slow by seed: 0, -0.3, -0.2
    assert half[0][2].mean == pytest.approx(-0.5 / 3)
    assert half[0][2].n == 3
    tenth = compare.cheapest(found, 0.1)
    assert [row[0].how for row in tenth if row[3]] == ["slow"]
    assert compare.cheapest([fast], 0.05) == []
    assert at_most(fast.arms["ticket"], 0.3) == fast.arms["ticket"][1]


def test_schedules_are_compared_on_the_seeds_that_all_have() -> None:
    """Means of unlike seeds once chose the best; the column beside them is paired."""
    full = entry("full", [(0.5, 4, (80, 90, 97))])
    short = entry("short", [(0.5, 2, (80.1, 90.1))])
    ranked = compare.cheapest([full, short], 0.5)
    assert [(of.how, lost.mean, lost.n, near) for of, _, lost, near in ranked] == [
        ("short", 0, 2, True),
        ("full", pytest.approx(-0.1), 2, True),
    ]
    (note,), table = compare.schedules([full, short])
    assert "best is short, layer-wise (85.10 %" in note
    assert [(line[1].split(",")[0], *line[6:]) for line in table.rows] == [
        ("short", "2", "yes"),
        ("full", "2", "yes"),
    ]
    # Where no seed is common, means over each one's own seeds decide.
    alone = entry("alone", [(0.5, 2, ())])
    alone.tickets[0].accuracies[7] = 89.5
    (note,), table = compare.schedules([full, alone])
    assert note.endswith("No seed has all schedules there: each mean is of its own seeds.")
    assert [line[5:] for line in table.rows] == [["best", "1", "yes"], ["–", "0", "–"]]
    # Of a cheaper one without common seeds nothing is known.
    alone.tickets[0].accuracies[7] = 20.0
    (note,), _ = compare.schedules([full, alone])
    assert "; nothing cheaper that has seeds of it is within 0.2 points." in note


def test_a_schedule_without_a_ticket_hides_no_other() -> None:
    falls = entry("falls", [(0.4, 2, (91, 92, 93)), (0.1, 3, (80, 91, 92))])
    none = entry("none", [])
    assert compare.targets([falls, none]) == [0.5, 0.2, 0.1]
    assert len(compare.schedules([falls, none])[1].rows) == 3
    # Where all end early, a sentence stands in place of empty tables and figures.
    early = entry("early", [(0.8, 2, (91, 92, 93))])
    assert compare.targets([none]) == compare.targets([falls, early]) == []
    section = compare._schedules([falls, early], "heading")
    assert section.notes == [
        "Not shown, as not all schedules have tickets at 50, 20, 10 or 5 % of weights: early, layer-wise has "
        "none below 80.0 %."
    ]
    assert (section.figures, section.tables) == ((), ())
    assert len(compare._schedules([falls, none], "heading").tables) == 1, "none at equal density"


def test_a_level_at_which_a_ticket_diverged_does_not_match(tiny: Callable) -> None:
    dense, ticket = two_cells(0.9)
    rows = [dense, dense._replace(seed=1)]
    for level, density, *of in ((1, 0.5, 0.91, 0.91), (2, 0.4, 0.92, None), (3, 0.2, 0.93)):
        for seed, accuracy in enumerate(of):
            cell = {"seed": seed, "level": level, "density": density, "test_accuracy": accuracy}
            rows.append(ticket._replace(**cell, status="done" if accuracy else "diverged"))
    (found,) = entries([facts(tiny())], [rows])
    assert found.diverged == {0.4: 1, 0.2: 1}, "there, or earlier in the chain"
    matches, gain, at = compare.tickets([found]).rows[0][2:]
    assert (matches, gain.partition(" ")[0], at) == ("50.0", "+1.00", "50.0")
    before, there = compare.schedules([found])[0]
    assert "(91.00 %, 1.42 trainings); " in before
    assert "(93.00 %, 2.25 trainings, tickets of 1 of its 2 seeds diverged); " in there
    (found,) = entries([facts(tiny())], [[row for row in rows if row.level < 2 or not row.test_accuracy]])
    assert [point.density for point in found.tickets] == [0.5]
    assert compare.tickets([found]).rows[0][2] == "50.0", "sparser ones diverged"


def test_the_table_of_tickets_says_what_is_a_bound_and_keeps_intervals_in_range() -> None:
    falls = entry("falls", [(0.5, 4, (91, 92, 93)), (0.1, 11, (80, 91, 92))])
    stays = entry("stays", [(0.4, 2, (91, 91.7, 92.8)), (0.09, 4, (91, 91, 91))])
    never = entry("never", [(0.4, 2, (70, 71, 72))])
    assert [line[2] for line in compare.tickets([falls, stays, never]).rows] == ["50.0", "≤ 9.0", "none"]
    # Published once as 89.44 [77.97, 100.91] %.
    few = entry("few", [(0.5, 4, (84.2, 91.0, 93.1))], dense=95)
    (line,) = compare.schedules([few])[1].rows
    low, high = map(float, re.findall(r"[\d.]+(?=[,\]])", line[4]))
    assert line[4].startswith("89.43 [")
    assert 70 < low < 84.2 < 93.1 < high < 97


def test_a_lucky_spread_is_no_narrower_than_the_test_set_allows() -> None:
    """Three seeds that all gain one point; 100 test images leave several points open."""
    lucky = entry("lucky", [(0.5, 2, (91, 91, 91)), (0.4, 3, (90, 90, 90))])
    (line,) = compare.tickets([lucky]).rows
    assert line[3] == "+1.00 [+1.00, +1.00]"
    (line,) = compare.tickets([lucky._replace(images=100)]).rows
    low, high = map(float, re.findall(r"[-+][\d.]+", line[3])[1:])
    # A seed's difference of 91 and 90 % has an error of 4.15 points; t of 2 degrees of freedom is 4.303.
    error = 100 * np.sqrt((0.91 * 0.09 + 0.90 * 0.10) / 100)
    assert (low, high) == pytest.approx(
        (1 - 4.303 * error / np.sqrt(3), 1 + 4.303 * error / np.sqrt(3)), abs=0.01
    )
    both = [lucky, entry("best", [(0.4, 3, (92, 92, 92))])]
    best, (_, _, worse, _) = compare.cheapest([one._replace(images=100) for one in both], 0.4)
    assert best[0].how == "best"
    assert (worse.mean, worse.low < -4, worse.high > 0) == (-2, True, True)


def test_the_comparison_page(tiny: Callable, tmp_path: Path) -> None:
    base = tiny(arms=("ticket",), seeds=(0, 1, 2)).study
    shots = sweep.product(sweep.values("levels", 1), sweep.values("prune.density", 0.5, 0.25))
    settings = [{"prune.rate": 0.5}, *shots, *sweep.product(sweep.values("prune.scope", "global"), shots)]
    studies = study.prepare_all(sweep.studies(base, settings), tmp_path / "data")
    runs = study.run_all(studies, tmp_path / "runs")
    found = entries([read_study(run) for run in runs], [load(run) for run in runs])
    assert [(one.how, one.variant) for one in found] == [
        ("50 % a round", "layer-wise"),
        ("one-shot", "global"),
        ("one-shot", "layer-wise"),
    ]
    assert [[point.trainings for point in one.arms["ticket"]] for one in found] == [[2, 3], [2, 2], [2, 2]]
    page = report.build_all(runs)
    text = page.read_text()
    assert page.parent.parent == tmp_path / "runs" / "comparisons"
    rows = [row for run in runs for row in load(run)]
    lines = (page.parent / "comparison.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].startswith("run,seed,chain,level")
    # At equal cost the better one is named; the same cells give the same page.
    first = re.search(
        r"At 50\.0 % of the weights or fewer: best is ([^(]+) \(([\d.]+) %, 2 trainings\)", text
    )
    assert first is not None
    accuracy = {one.name: at_most(one.tickets, 0.5).accuracy.mean for one in found}  # type: ignore[union-attr]
    assert float(first[2]) == pytest.approx(max(accuracy.values()), abs=0.006)
    assert accuracy[first[1]] == max(accuracy.values())
    before = page.read_bytes()
    compare.build(runs)
    assert page.read_bytes() == before
    # What cannot be compared is refused before a report is written.
    shutil.rmtree(runs[0] / "report")
    with pytest.raises(UserError, match="is named twice"):
        report.build_all([runs[0], runs[0]])
    elsewhere = shutil.copytree(runs[0], tmp_path / "elsewhere" / runs[0].name)
    with pytest.raises(UserError, match=r"are parts of one study; join them by python -m analysis\.merge"):
        report.build_all([runs[0], elsewhere])
    assert not (runs[0] / "report").exists()


def test_studies_are_told_apart_by_what_is_seldom_named(tiny: Callable) -> None:
    """Two that differ in their validation images alone were once joined, with the dense networks of one."""
    about = [
        record.about(of.study, of.identity, of.lengths, of.dataset)
        for of in (tiny(), tiny(data=config.Data("few", validation=30)))
    ]
    result_rows = [
        row_of(result(Cell(0, *place))) for place in ((DENSE, 0, DENSE), ("rewind-0", 1, "ticket"))
    ]
    names = [one.name for one in entries(about, [result_rows] * 2)]
    assert names == ["LeNet-300-100 on few, data.validation 30", "LeNet-300-100 on few, data.validation 40"]


def facts(of: study.Prepared, **identity: Any) -> Any:
    """A study.json, with other fields of its identity."""
    made = record.about(of.study, of.identity, of.lengths, of.dataset)
    return {**made, "identity": {**made["identity"], **identity}}


def two_cells(accuracy: float, density: float = 0.5) -> list[Row]:
    """A dense network and a ticket of as much test accuracy."""
    places = ((DENSE, 0, DENSE), ("rewind-0", 1, "ticket"))
    made = [row_of(result(Cell(0, *place)))._replace(test_accuracy=accuracy) for place in places]
    return [made[0], made[1]._replace(density=density)]


def test_runs_that_differ_in_no_field_of_the_config_stay_apart(tiny: Callable) -> None:
    """Tickets on other data of one name were once held against the dense network of the first run."""
    one, other, third = (
        facts(tiny()),
        facts(tiny(), **{"data.digest": "0123"}),
        facts(tiny(), **{"prune.criterion_version": 2}),
    )
    digest = one["identity"]["data.digest"]
    found = entries([one, other], [two_cells(0.9), two_cells(0.8)])
    name = "LeNet-300-100 on few, data.digest"
    assert {of.name: [*of.dense.values()] for of in found} == {
        f"{name} 0123": [80.0],
        f"{name} {digest}": [90.0],
    }
    assert {of.name: compare.tickets([of]).rows[0][3] for of in found} == dict.fromkeys(
        (f"{name} 0123", f"{name} {digest}"), "+0.00"
    )
    names = [of.name for of in entries([one, third], [two_cells(0.9), two_cells(0.8)])]
    assert names == [f"LeNet-300-100 on few, prune.criterion_version {version}" for version in (1, 2)]


def shot(tiny: Callable, density: float, scope: str = "layer") -> Any:
    return facts(tiny(levels=1, prune=config.Prune(density=density, scope=scope)))


def test_one_shot_runs_join_where_they_have_one_dense_network(tiny: Callable) -> None:
    runs = [shot(tiny, 0.5), shot(tiny, 0.2)]
    tables = [two_cells(0.9), two_cells(0.9, 0.2)]
    (joined,) = entries(runs, tables)
    assert joined.name == "one-shot, layer-wise"
    assert [point.density for point in joined.tickets] == [0.5, 0.2]
    runs[1]["identity"]["data.digest"] = "0123"
    apart = {of.name: [point.density for point in of.tickets] for of in entries(runs, tables)}
    assert apart == {
        f"one-shot, layer-wise, data.digest {digest}": [density]
        for digest, density in ((runs[0]["identity"]["data.digest"], 0.5), ("0123", 0.2))
    }


def test_one_shot_runs_join_in_any_order(tiny: Callable) -> None:
    """The dense networks of the first run alone were kept, and the seeds that it lacks were lost."""
    runs = [shot(tiny, 0.5), shot(tiny, 0.2)]
    more = [row._replace(seed=seed) for seed in (0, 1, 2) for row in two_cells(0.9 + 0.01 * seed, 0.2)]
    tables = [two_cells(0.9), more]
    one, other = (entries(runs[::way], tables[::way]) for way in (1, -1))
    assert one == other
    assert one[0].dense == pytest.approx({0: 90, 1: 91, 2: 92})
    assert [*one[0].dense_validation] == [0, 1, 2]
    # A further rewind point of one run gives the other no name of its own.
    late = [row._replace(chain="rewind-4") for row in more if row.arm == "ticket"]
    found = {of.name: of for of in entries(runs, [tables[0], [*more, *late]])}
    assert {name: [f"{point.density:g}" for point in of.tickets] for name, of in found.items()} == {
        "one-shot, layer-wise, rewound to 0": ["0.5", "0.2"],
        "one-shot, layer-wise, rewound to 4": ["0.2"],
    }


def test_one_shot_runs_of_units_keep_their_scopes(tiny: Callable) -> None:
    scopes, densities = ("layer", "global"), (0.5, 0.2)
    runs = [shot(tiny, density, scope) for scope in scopes for density in densities]
    for run in runs:
        run["config"]["prune"]["granularity"] = "unit-l1"
    found = entries(runs, [two_cells(0.9, density) for _ in scopes for density in densities])
    assert [(of.how, of.variant) for of in found] == [
        ("one-shot", "global, unit-l1"),
        ("one-shot", "layer-wise, unit-l1"),
    ]
    assert [[point.density for point in of.tickets] for of in found] == [[0.5, 0.2]] * 2


def test_networks_and_rewind_points_are_compared(tiny: Callable, tmp_path: Path) -> None:
    one = study.run(tiny(levels=1, rewind=(0, 4)), tmp_path / "runs")
    other = study.run(tiny(levels=1, model="lenet5"), tmp_path / "runs")
    found = entries([read_study(run) for run in (one, other)], [load(run) for run in (one, other)])
    assert [found_.name for found_ in found] == [
        "LeNet-5 on few",
        "LeNet-300-100 on few, rewound to 0",
        "LeNet-300-100 on few, rewound to 4",
    ]
    assert [sorted(one.arms) for one in found] == [["random", "reinit", "ticket"]] * 3
    text = report.build_all([one, other]).read_text()
    assert "Schedules" not in text
    assert "LeNet-300-100 on few; LeNet-5 on few: 2 studies compared" in text


@pytest.fixture
def two_runs(tiny: Callable, tmp_path: Path) -> list[Path]:
    return [
        study.run(tiny(levels=levels, model=model), tmp_path / "runs")
        for levels, model in ((1, "lenet300"), (0, "lenet5"))
    ]


def test_a_comparison_of_means_of_evaluations_says_so(two_runs: list[Path]) -> None:
    """It once replaced the comparison made without --last, and looked like it."""
    plain, smooth = (report.build_all(two_runs, last=last) for last in (1, 2))
    assert plain != smooth
    said = "Accuracies and losses at the end are means of the last 2 evaluations"
    assert said in smooth.read_text()
    assert "means of the last" not in plain.read_text()
    mixed = compare.build([Run(two_runs[0], 2), Run(two_runs[1])])
    assert f"the end of {two_runs[0].name} are means of the last 2 evaluations" in mixed.read_text()


def test_a_run_folder_is_compared_from_inside(two_runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two_runs
    usual = compare.build(two_runs)
    monkeypatch.chdir(one)
    assert compare.build([".", Path("..") / other.name]) == usual
    assert {line.partition(",")[0] for line in (usual.parent / "comparison.csv").read_text().split()[1:]} == {
        one.name,
        other.name,
    }
    assert f"{one.name}, {other.name}" in usual.read_text()
    with pytest.raises(UserError, match="is named twice"):
        compare.build([".", Path("..") / one.name])
    monkeypatch.chdir(one.parent)
    assert compare.build([Path(one.name), other]) == Path("comparisons", usual.parent.name, "index.html")


def test_overrides_go_to_every_study_of_a_sweep(command_line: Call, command: Call, tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(
        "from lthjax import sweep\nfrom lthjax.config import Data, Study\n"
        "few = dict(model='lenet300', arms=('ticket',), levels=1)\n"
        "base = Study(name='two', data=Data('mnist_10k', 1000), **few)\n"
        "configs = sweep.studies(base, sweep.values('prune.rate', 0.2, 0.4))\n"
    )
    few = ("--train.steps", "6", "--seeds", "7", "--out", tmp_path / "runs")
    planned = command_line("run.py", "--config", file, *few, "--dry-run")
    assert "20 % a round, layer-wise: 2 of 2 cells to train" in planned.stdout, planned.stderr
    assert "18 in all" in planned.stdout
    done = command_line("run.py", "--config", file, *few)
    assert Path(done.stdout.strip()).parent.parent == tmp_path / "runs" / "comparisons", done.stderr
    assert "[4/4] 40 % a round, layer-wise: seed 7, rewind-0, level 1, ticket" in done.stderr
    same = command("run.py", "--config", file, *few, "--prune.rate", "0.3")
    assert same.returncode == 2
    assert "error: configs: studies 1 and 2 differ in nothing" in same.stderr


def test_a_shard_without_a_seed_of_one_study_reports_the_others(
    tiny: Callable[..., Any], command: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()  # for its data
    file, out, reported = tmp_path / "two.py", tmp_path / "runs", []
    file.write_text(
        "from lthjax import sweep\nfrom lthjax.config import Data, Study, Train\n"
        "few = dict(data=Data('few', 40), train=Train(6, batch=20))\n"
        "base = Study(name='two', model='lenet300', levels=1, arms=('ticket',), **few)\n"
        "axes = sweep.values('seeds', (0, 1), (0,)), sweep.values('optim.lr', 0.001, 0.002)\n"
        "configs = sweep.studies(base, sweep.zipped(*axes))\n"
    )
    monkeypatch.setattr(report, "build_all", lambda runs, **_: reported.append(runs) or Path("page"))
    shard = ("run.py", "--config", file, "--data-dir", tmp_path / "data", "--out", out, "--quiet", "--shard")
    second = command(*shard, "2/2")
    (begun,) = out.iterdir()
    assert (second.returncode, second.stdout, reported.pop()) == (0, "page\n", [begun]), second.stderr
    assert re.search(r"the report leaves out what no process has begun: two-\w{8}$", second.stderr.strip())
    assert begun.name not in second.stderr
    first = command(*shard, "1/2")
    assert {*reported.pop()} == {*out.iterdir()} > {begun}
    assert "leaves out" not in first.stderr


def test_studies_that_log_other_losses_share_no_dense_network(tiny: Callable[..., Any]) -> None:
    """A dense network that was logged every ten steps has not what every second step would show."""
    none, some, more = (
        tiny(train=config.Train(steps=12, batch=20, eval_every=5, log_every=n)) for n in (0, 2, 10)
    )
    assert none.identity == some.identity == more.identity
    assert len({none.training, some.training, more.training}) == 3
