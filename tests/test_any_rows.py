"""Any cells of a run give a report, which says what it cannot show."""

import csv
import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import pytest
from conftest import about
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis import compare, draw, page, report, savings
from analysis.analyses import ANALYSES
from analysis.compare.entries import entries
from analysis.report import __main__ as report_command
from analysis.report import accuracy, facts, figures, paired, verdicts
from analysis.rows import Row
from analysis.run import Run, open_run
from analysis.savings.table import LevelSavings
from analysis.tables import to_csv
from lthjax import config, data, fields, record
from lthjax.errors import UserError, shell
from lthjax.folder.places import folder
from lthjax.imp import Cell
from lthjax.measures.savings import Counts, Storage
from lthjax.measures.stats import nearest


@pytest.fixture(autouse=True)
def _any_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets any rows reach the report; tests/faults/test_inputs.py tests which rows a folder may hold."""
    monkeypatch.setattr(fields, "result", lambda _: None)


def row(seed: int, level: int, arm: str, density: float, accuracy: float | None, **changes: Any) -> Row:
    chain = "dense" if arm == "dense" else "rewind-0"
    made = Row(
        seed, chain, level, arm, 1, density, round(266_200 * density), accuracy, 0.1, 0.9, 0.9, 0.1, 10,
        accuracy, 12, 1.5, "diverged" if accuracy is None else "done",
    )  # fmt: skip
    return made._replace(**changes)


def written(run: Path, rows: list[Row], study: dict[str, Any]) -> Path:
    """Writes a run folder of these cells, without masks and weights."""
    for one in rows:
        place = folder(run, Cell(one.seed, one.chain, one.level, one.arm, one.repeat))
        place.mkdir(parents=True)
        result = {**one._asdict(), "curves": curves_of(one)}
        (place / "result.json").write_text(json.dumps(result))
    (run / "study.json").write_text(json.dumps(study))
    return run


def curves_of(one: Row) -> dict[str, list[float]]:
    others = ("test_loss", "validation_accuracy", "validation_loss")
    ends = {"test_accuracy": one.test_accuracy or 0.0} | dict.fromkeys(others, 0.5)
    return {"step": [5, 10, 12]} | {name: [0.1, 0.2, end] for name, end in ends.items()}


def tables(densities: list[float], seeds: int = 2, arms: tuple[str, ...] = ("ticket", "reinit")) -> list[Row]:
    """The dense network and arms at levels of these densities."""
    return [
        row(seed, level, arm, density, 0.5 + 0.01 * seed if density else 0.1)
        for seed in range(seeds)
        for level, density in enumerate([1.0, *densities])
        for arm in (arms if level else ("dense",))
    ]


SOME = tables([0.5, 0.1])
EMPTIED = tables([0.1, 0.01, 0.0, 0.0])
CASES = {
    "only dense": (tables([]), "Not shown, as no trained cells have what is needed: differences"),
    "one seed": (tables([0.5], seeds=1), "1 seed is too few for a verdict"),
    "one level": (tables([0.5]), "have 133,100 weights, 50.0 % ("),
    "all diverged": (
        [one._replace(test_accuracy=None, status="diverged") for one in SOME],
        "Not shown, as no trained cells have what is needed: accuracies, differences",
    ),
    "no weights left": (EMPTIED, "Networks of levels 3 to 4 have no weight left. They have no place"),
    "never a weight": (tables([0.0]), "Networks of level 1 have no weight left. They have no place"),
    "equal densities": (tables([0.5, 0.5, 0.5]), "each one-sided 95 % over 3 levels by Holm"),
    "tiny densities": (tables([1e-5, 4e-6]), "each ≥ 250000.0×"),
    "no time": ([one._replace(seconds=0.0) for one in SOME], "speed not known"),
    "no steps": ([one._replace(steps=0, early_stop_step=None) for one in SOME], "early-stop steps"),
    "nothing measured": (
        [Row(*one[:7], *[None] * 7, *one[14:]) for one in SOME],
        "Not shown, as no trained cells have what is needed: accuracies, differences",
    ),
    "arms from outside": (tables([0.5], arms=("ticket", "$\\frac$", "_x")), "$\\frac$"),
    "no ticket": (tables([0.5], arms=("random",)), "no ticket is trained yet"),
}


# For these cases the figures are drawn too, which takes longest.
DRAWN = ("no weights left", "never a weight", "tiny densities", "arms from outside")


@pytest.fixture
def _quick_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Draws figures small, or not at all."""
    case = request.node.callspec.params["case"] if hasattr(request.node, "callspec") else ""

    def show(to: Path, drawn: page.Drawn) -> page.Shown:
        page._literal(drawn.figure)
        if case in DRAWN:
            drawn.figure.savefig(io.BytesIO(), dpi=15)
        for kind in ("png", "svg", "csv"):
            (to / f"{drawn.name}.{kind}").write_text(to_csv(*drawn.data))
        return page.Shown(drawn.name, drawn.title, drawn.caption, "image", "file", "data")

    monkeypatch.setattr(page, "show", show)


@pytest.mark.usefixtures("_quick_figures")
@pytest.mark.parametrize("case", CASES)
def test_a_report_comes_out(case: str, tmp_path: Path) -> None:
    rows, said = CASES[case]
    run = written(tmp_path / "any-0", rows, about("$\\frac$"))
    text = report.build(run).read_text()
    assert said.replace("'", "&#39;") in text
    assert "What survives" in text
    assert len((run / "report" / "cells.csv").read_text().splitlines()) == 1 + len(rows)
    other = written(tmp_path / "any-1", SOME, about(model="lenet300"))
    assert compare.build([run, other]).is_file()


@pytest.mark.usefixtures("_quick_figures")
def test_a_report_of_the_last_evaluations_holds_until_the_next_one(tmp_path: Path) -> None:
    """Means of 20 % and the accuracy at the end, in every table; the cells stay as they are."""
    run = written(tmp_path / "any-0", SOME, about())
    before = {path: path.read_bytes() for path in run.rglob("result.json")}

    def said(*options: str) -> dict[str, list[dict[str, str]]]:
        report_command.main([str(run), *options])
        texts = {name: (run / "report" / f"{name}.csv").read_text() for name in ("cells", "verdicts")}
        return {name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}

    plain, smooth = said(), said("--last", "2")
    ends = [float(line["test_accuracy"]) for line in plain["cells"]]
    assert [float(line["test_accuracy"]) for line in smooth["cells"]] == pytest.approx(
        [(0.2 + end) / 2 for end in ends]
    )
    assert smooth["verdicts"] != plain["verdicts"]
    assert said() == plain
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(UserError, match=r"--last: 4 is not allowed; .* has 3 evaluations at its last"):
        said("--last", "4")


ACCURACIES = st.sampled_from([None, 0.0, 0.1, 0.5, 0.97, 1.0])


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    densities = draw(st.lists(st.sampled_from([1.0, 0.5, 0.15, 0.1, 1e-6, 0.0]), max_size=4))
    arms = draw(st.sets(st.sampled_from(["ticket", "reinit", "random", "mine"]), min_size=1))
    rows = []
    for seed in range(draw(st.integers(1, 4))):
        rows.append(row(seed, 0, "dense", 1.0, draw(ACCURACIES)))
        for chain in draw(st.sampled_from([["rewind-0"], ["rewind-0", "rewind-3"], ["random-0"]])):
            for level, density in enumerate(sorted(densities, reverse=True), 1):
                rows += [
                    row(seed, level, arm, density, draw(ACCURACIES), chain=chain,
                        steps=draw(st.integers(0, 9)), seconds=float(draw(st.integers(0, 1))),
                        early_stop_step=draw(st.integers(0, 2) | st.none()))
                    for arm in sorted(arms)
                ]  # fmt: skip
    kept = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return [one for one, keep in zip(rows, kept, strict=True) if keep] or rows


class Given(Run):
    """A run of given rows, without a folder."""

    def __init__(self, rows: list[Row]) -> None:
        self.path, self.about, self.rows, self.last = Path("any-0"), about(), rows, 1
        self.results = {one.cell: {"curves": curves_of(one)} for one in rows}


@settings(max_examples=15, deadline=None)
@given(some_rows())
def test_every_part_of_a_page_comes_out_of_any_rows(rows: list[Row]) -> None:
    study, run = about(), Given(rows)
    sections = report._sections(run, verdicts.findings(study, rows))
    anchors = [one.anchor for one in sections if one.anchor != "speed"]
    assert anchors == ["short", "verdicts", "accuracy", "training", "gaps", "levels"]
    for table in (table for section in sections for table in section.tables):
        assert all(len(line) == len(table.header) for line in table.rows)
        assert not any("nan" in str(value) for line in table.rows for value in line)
    assert dict(facts.of_run(run))["Time"]
    compare._overview(entries([study], [rows]), "heading")


def test_a_comparison_names_the_cells_that_diverged() -> None:
    """They were left out without a word, and the runs of which nothing is left were "not trained yet"."""

    def gone(rows: list[Row]) -> list[Row]:
        return [one._replace(test_accuracy=None, status="diverged") for one in rows]

    partly = Given([*SOME[:-1], *gone(SOME[-1:])])
    (note,) = compare._notes([partly, Given(SOME)], [])
    assert note == (
        "Left out of figures and means, as they diverged (their loss was not finite): 1 of 10 cells of "
        "any-0. A density at which a ticket diverged, or one before it in its chain, does not match the "
        "dense network."
    )
    stuck, _ = compare._notes([Given(gone([one for one in SOME if one.arm == "dense"])), Given(SOME)], [])
    assert stuck == "Not shown: any-0, as all dense networks diverged; lower the learning rate (optim.lr)."
    (empty,) = compare._notes([Given(tables([])), Given(SOME)], [])
    assert empty == "Not shown: any-0, as no ticket is trained yet."


def test_a_network_without_weights_is_far_from_all_others() -> None:
    assert nearest({1: 0.5, 2: 0.0}, 0.1) == 1
    assert nearest({1: 0.5, 2: 0.0}, 0.0) == 2
    assert nearest({1: 0.0, 2: 0.0}, 0.1) == 1


def test_no_network_without_weights_matches_or_is_drawn() -> None:
    """A network without weights is no ticket, even if its constant output were as accurate as dense."""
    rows = [one._replace(test_accuracy=0.5) for one in EMPTIED]
    assert [points for _, points in paired.curves(rows, "rewind-0", "ticket")[0]] == [50.0, 50.0]
    found = facts._sparsest_match(rows, 0)
    assert found is not None
    assert found[1].density == 0.01
    axes = figures.accuracy(rows, "heading").axes[0]
    means = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(means), [10, 1])
    assert axes.get_xlim()[1] > 0.9


@pytest.mark.parametrize("lowest", [0.5, 0.02, 1e-3, 3.7e-4])
def test_ticks_of_few_weights(lowest: float) -> None:
    found = draw.ticks(lowest)
    assert found[0] == 100
    assert 4 <= len(found) <= 14
    assert lowest / 1.5 <= min(found) <= 10 * lowest


@pytest.mark.parametrize("lowest", [97.0, 80.1, 64.2, 51.5, 33.1, 20.0, 11.0])
def test_ticks_of_many_weights(lowest: float) -> None:
    """Three numbers or more on the axis, where it ends before 50."""
    axes = Figure().subplots()
    draw.weights_axis(axes, {lowest})
    low, high = sorted(axes.get_xlim())
    shown = [float(tick) for tick in axes.get_xticks() if low <= tick <= high]
    assert shown[0] == 100
    assert 3 <= len(shown) <= 6
    assert shown == sorted(set(shown), reverse=True)


def test_panels_are_at_most_two_beside_each_other() -> None:
    for count, shape in ((0, (1, 1)), (1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (5, (3, 2))):
        figure, grid = draw.few_beside("", count)
        assert grid.shape == shape
        assert sum(axes.get_visible() for axes in grid.ravel()) == max(count, 1)
        assert figure.get_figwidth() == 7.2


def test_options_and_paths_are_not_broken_at_hyphens() -> None:
    shown = page.unbroken("run.py --dry-run a-b <x> runs/q-1 -1.5")
    assert shown == (
        'run.py <span class="whole">--dry-run</span> a-b &lt;x&gt; <span class="whole">runs/q-1</span> -1.5'
    )


@pytest.mark.parametrize("name", ["$\\frac$", "a$b", "$$", "\\$x", "x_1^2", "100 %", "$x$ and $y"])
def test_names_in_figures_stand_as_they_are(name: str) -> None:
    figure = figures.accuracy(SOME, name)
    axes = figure.axes[0]
    axes.set_yticks([50, 60], [name, "b"])
    page._literal(figure)
    figure.savefig(io.BytesIO(), dpi=15)
    shown = [axes.get_title(loc="left"), axes.get_yticklabels()[0].get_text()]
    for text in shown:
        # Matplotlib's output for a text that is no formula.
        words, formula = axes.title._preprocess_math(text)
        assert words == name.replace("\\$", "$")
        assert formula is False


def test_log_scales_keep_their_powers() -> None:
    figure = figures.accuracy(SOME, "a$b$")
    axes = figure.axes[0]
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 1e3)
    page._literal(figure)
    figure.savefig(io.BytesIO(), dpi=15)
    assert "10^{-2}" in " ".join(label.get_text() for label in axes.get_yticklabels())
    assert "\\$" not in " ".join(label.get_text() for label in axes.get_yticklabels())


PLACES = ["My Drive", "it's", "a $HOME `x`", 'with "quotes"', "plain"]


@pytest.mark.parametrize("place", PLACES)
def test_every_command_of_a_report_is_one_for_a_shell(place: str, tmp_path: Path) -> None:
    run = written(tmp_path / place / "any-0", SOME, about())
    opened = open_run(run)
    found = [one for other in ANALYSES.values() for one in other.findings(opened, None)]
    commands = [str(one.where) for one in found]
    assert len(commands) >= 10
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"]
        assert words.count(str(run)) == 1, command
    assert {shlex.split(command)[2] for command in commands} == {
        f"analysis.{name}"
        for name in (
            *("savings", "landscape", "stability", "predict", "geography", "examples", "earlybird"),
            *("forgetting", "transfer"),
        )
    }


def test_a_recorded_command_is_widened_as_a_shell_takes_it() -> None:
    argv = ["run.py", "--config", "My Drive/it's.py", "--rewind", "0", "1 epoch", "--out", "$x"]
    study = {**about(seeds=(0, 1)), "commands": [shell(*argv)]}
    found = [str(one.where) for one in verdicts.findings(study, tables([0.5]))]
    again = [shlex.split(command) for command in found if "My Drive" in command]
    assert again
    assert all(words[: len(argv) + 1] == ["python", *argv] for words in again)
    assert ["--levels", "4"] in [words[len(argv) + 1 :] for words in again]


def test_what_is_recorded_is_the_command_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["run.py", "--config", "configs/quickstart.py", "--rewind", "0", "1 epoch", "--out", "My Drive/$x"]
    monkeypatch.setattr(sys, "argv", argv)
    few = conftest.arrays(8, 4)
    dataset = data.Dataset("few", **few, classes=10, digest="0", source="here")
    study = config.Study(data=config.Data(name="few", validation=2))
    lengths = config.Lengths(1, 1, 1, 0, (), (0,))
    (recorded,) = record.about(study, config.flat(study), lengths, dataset)["commands"]
    assert shlex.split(recorded) == argv


def test_plain_commands_are_recorded_as_they_are() -> None:
    plain = "run.py --config configs/lenet5_mnist.py --seeds 0 1 --train.steps 2000 --out runs/a-0123abcd"
    assert shell(*plain.split()) == plain


def test_counts_of_a_network_that_is_gone_are_said_and_prove_nothing() -> None:
    level = LevelSavings(
        0, "rewind-0", 1, "ticket", 0.0, Counts(100, 0, 100, 0), Storage(400, 0, 13, 4, 4, 0), 9, {"fc1": 0},
        Counts(0, 0, 0, 0), 0.0, 12, 2.0, "1 x cpu", (),
    )  # fmt: skip
    assert "∞ fewer multiplications by compaction" in savings._counted([level]).estimate
    run = SimpleNamespace(path=Path("runs/x"), study=config.Study())
    assert [one.outcome for one in savings.findings(run, [level])] == ["not tested", "not tested"]
    assert savings.section(run, [level]).tables


@pytest.mark.parametrize("rewound", [(0,), (0, 20), (0, 20, 40)])
def test_the_legend_of_several_chains_hides_nothing(rewound: tuple[int, ...]) -> None:
    rows = [
        row(seed, level, arm, 0.8**level, 0.9 - 0.01 * (step + level), chain=f"rewind-{step}")
        for step in rewound
        for seed in range(2)
        for level in range(1, 5)
        for arm in ("ticket", "reinit", "random", "invert")
    ]
    figure = figures.accuracy(rows, "title")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    inside = [legend for legend in [axes.get_legend()] if legend]
    assert len(inside) == (len(rewound) == 1)
    assert len(figure.legends) == (len(rewound) > 1)
    for legend in figure.legends:
        assert len(legend.get_texts()) == 4 * len(rewound)
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert figure.bbox.containsx(legend.get_window_extent().x1)


def test_a_control_of_one_level_has_its_name_in_the_legend() -> None:
    """Controls are trained at some levels; the first panel need not have them."""
    values = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.2, 0.2, 0.4]]) * 100
    curve = figures.Curve(np.array([1, 2, 3]), values, [0, 1, 2])
    few = {"dense": curve, "ticket": curve}
    figure = figures.learning({"first": few, "second": {**few, "reinit": curve}}, "")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["dense (n = 3)", "ticket (n = 3)", "reinit (n = 3)"]


def test_learning_curves_are_of_seeds_not_of_repeats() -> None:
    """Two seeds of two repeats at 50 %, 70 % and 60 %, 90 % accuracy: n = 2, of 60 % and 75 %."""
    ends = {(4, 1): 0.5, (4, 2): 0.7, (1, 1): 0.6, (1, 2): 0.9}
    rows = [row(seed, 1, "reinit", 0.5, end, repeat=repeat) for (seed, repeat), end in ends.items()]
    rows += [
        row(seed, level, arm, 0.5, 0.8) for seed in (1, 4) for level, arm in ((0, "dense"), (1, "ticket"))
    ]
    (panel,) = accuracy._learning(Given(rows), rows, "rewind-0").values()
    assert panel["reinit"].seeds == [1, 4]
    np.testing.assert_allclose(panel["reinit"].values, [[10, 20, 75], [10, 20, 60]])
    drawn = accuracy._curves({"first": panel}, "", "")
    (legend,) = drawn.figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {f"{arm} (n = 2)" for arm in panel}
    header, lines = drawn.data
    last = [dict(zip(header, line, strict=True)) for line in lines if line[1:3] == ("reinit", 12)]
    assert [(line["seed"], line["test_accuracy_percent"]) for line in last] == [(1, 75), (4, 60)]
