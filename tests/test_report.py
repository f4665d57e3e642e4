import csv
import errno
import html.parser
import json
import math
import re
import shutil
import subprocess
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_tiny
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy import special as scipy_special
from scipy import stats as scipy_stats

import analysis
from analysis import draw, open_run, page, publish, report
from analysis.geography.table import OverlapRow
from analysis.record import Finding
from analysis.report import accuracy, facts, figures, gaps, paired
from analysis.rows import Row, by_seed, select
from analysis.run import Run
from lthjax import config, files, models, record, study
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.measures.stats import PERCENT, mean_interval


def row(seed: int, level: int, arm: str, accuracy: float | None, **changes: object) -> Row:
    chain = "dense" if arm == "dense" else "rewind-0"
    made = Row(
        seed, chain, level, arm, 1, 0.8**level, round(1000 * 0.8**level), accuracy, 0.1, 0.99, 0.97, 0.1,
        100 * level, accuracy, 500, 1.5, "done" if accuracy is not None else "diverged",
    )  # fmt: skip
    return made._replace(**changes)


ROWS = [
    row(0, 0, "dense", 0.95),
    row(1, 0, "dense", 0.97),
    row(0, 1, "ticket", 0.96),
    row(1, 1, "ticket", 0.98),
    row(0, 1, "reinit", 0.90),
    row(0, 1, "reinit", 0.94, repeat=2),
    row(1, 1, "reinit", 0.91),
    row(0, 2, "ticket", 0.93),
    row(1, 2, "ticket", 0.90),
    row(1, 2, "reinit", None),
]


def test_networks_that_were_not_trained_have_no_early_stop_step() -> None:
    """As in the figure, so in its CSV."""
    untrained = [row(seed, 1, "untrained", 0.1, steps=0, early_stop_step=0) for seed in (0, 1)]
    (header, plain), (_, more) = (accuracy._early_stop(of, "").data for of in (ROWS, ROWS + untrained))
    assert header[-1] == "early_stop_step"
    assert {line[1] for line in more} == {"dense", "ticket", "reinit"}
    assert more == plain
    assert any(line[1] == "untrained" for line in accuracy.overview(ROWS + untrained, "").data[1])


def test_mean_interval_by_hand() -> None:
    """Mean 3, s = sqrt(2.5), t(.975, 4) = 2.776445."""
    got = mean_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * np.sqrt(2.5) / np.sqrt(5)
    assert got == pytest.approx((3, 3 - half, 3 + half, 5), rel=1e-6)
    assert mean_interval([2.0])[0] == 2.0
    assert np.isnan(mean_interval([2.0]).low)
    assert mean_interval([]).n == 0


def test_repeats_are_averaged_within_a_seed_and_diverged_left_out() -> None:
    reinit = select(ROWS, level=1, arm="reinit")
    assert by_seed(reinit, "test_accuracy") == {0: pytest.approx(0.92), 1: pytest.approx(0.91)}
    assert by_seed(select(ROWS, level=2, arm="reinit"), "test_accuracy") == {}


def test_table_of_levels() -> None:
    table = facts.levels(ROWS, "rewind-0")
    assert table.header[3:] == ["ticket", "reinit", "ticket − dense (pp)", "ticket − reinit (pp)"]
    dense, first, second = table.rows
    assert dense[:3] == ["0 (dense)", "1,000", "100.0"]
    assert dense[3].startswith("96.00 [")
    # seeds 0 and 1: 96 - 95 and 98 - 97; 96 - 92 and 98 - 91
    assert first[5] == "+1.00 [+1.00, +1.00]"
    assert first[6].startswith("+5.50 [")
    assert second[4] == "–"
    assert all(len(line) == len(table.header) for line in (dense, first, second))
    # The highest and the lowest mean of the table: seeds of 96 and 98 % reach beyond it.
    run = types.SimpleNamespace(rows=ROWS, about={"data": {"test": 2000}})
    (moved,) = re.findall(r"Another 2,000 test images would .*? \(standard error\)\.", facts.remark(run))
    shown = re.findall(r"of ([\d.]+) % by ([\d.]+) points", moved)
    means = {cell.split()[0] for line in table.rows for cell in line[3:5] if cell not in ("", "–")}
    assert len(shown) == 2
    assert {mean for mean, _ in shown} <= means
    for mean, error in shown:
        assert float(error) == pytest.approx(math.sqrt(float(mean) * (100 - float(mean)) / 2000), abs=0.005)


def test_weights_of_a_level_are_the_mean_of_its_leader() -> None:
    """Seeds differ where units are ranked over layers, and an arm may have its own density."""
    left = {0: {"density": 0.5, "weights_left": 500}, 1: {"density": 0.3, "weights_left": 300}}
    rows = [
        *(row(seed, 1, "aaa", 0.2, density=0.9, weights_left=900) for seed in (0, 1)),
        *ROWS[:2],
        *(row(seed, 1, "ticket", 0.98, **left[seed]) for seed in (0, 1)),
    ]
    assert facts.levels(rows, "rewind-0").rows[1][:3] == ["1", "400", "40.0"]
    found = facts._sparsest_match(rows, 0)
    assert found is not None
    assert (found[1].weights_left, found[1].density) == (400, 0.4)
    (collapsed,) = gaps.collapsed([one._replace(test_accuracy=0.1) for one in rows[-2:]], 10).rows
    assert collapsed[1] == "40.0"
    run = types.SimpleNamespace(
        results={one.cell: {"curves": {"step": [5], "test_accuracy": [0.5]}} for one in rows}
    )
    assert [*accuracy._learning(run, rows, "rewind-0")] == ["40.0 % of the weights"]


def test_figures_show_every_seed_and_the_means() -> None:
    figure = figures.accuracy(ROWS, "title")
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {"dense (n = 2)", "ticket (n = 2)", "reinit (n = 2)"} <= lines.keys()
    np.testing.assert_allclose(lines["ticket (n = 2)"].get_ydata(), [97, 91.5])
    np.testing.assert_allclose(lines["ticket (n = 2)"].get_xdata(), [80, 64])
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "fewer weights are to the right"
    assert "%" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()
    points = [line for line in axes.get_lines() if line.get_marker() == "."]
    shown = sorted(float(y) for line in points for y in np.atleast_1d(line.get_ydata()))
    np.testing.assert_allclose(shown, sorted([96, 98, 92, 91, 93, 90]))
    assert "steps" in figures.early_stop(ROWS, "title").axes[0].get_ylabel()


def test_accuracies_near_the_dense_network_have_a_panel_where_others_fall_far() -> None:
    rows = [row(0, 0, "dense", 0.99), row(0, 1, "ticket", 0.985), row(0, 2, "ticket", 0.98)]
    assert len(figures.accuracy([*rows, row(0, 2, "reinit", 0.8)], "title").axes) == 1
    whole, near = figures.accuracy([*rows, row(0, 2, "reinit", 0.5)], "title").axes
    assert whole.get_ylim()[0] < 50
    assert 94 < near.get_ylim()[0] <= 95, "four points below, and a margin"
    assert near.get_ylim()[1] == pytest.approx(99, abs=0.5)
    assert whole.get_xlim() == near.get_xlim()
    assert whole.get_legend() is not None
    assert near.get_xlabel()
    shown = accuracy.overview([*rows, row(0, 2, "reinit", 0.5)], "title").caption
    assert "near the dense network" in shown
    assert "near the dense network" not in accuracy.overview(rows, "title").caption


def test_no_two_arms_look_alike() -> None:
    every = [*ARMS, "dense", "mine", "yours", "an arm from outside"]
    looks = {arm: draw.look(arm) for arm in every}
    assert len({*looks.values()}) == len(every)
    assert len({(colour, line) for colour, _, line in map(draw.style, (*ARMS, "dense"))}) == len(ARMS) + 1
    # As in the figures of results/, which are not drawn anew.
    assert looks["reinit_rescaled"] == ("#CC79A7", "X")
    assert looks["finetune_chain"] == ("#56B4E9", "h")
    assert looks["lr_rewind_chain"] == ("#CC79A7", "D")


def test_arms_of_one_colour_differ_in_line_and_marker_in_every_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether or not the config file that adds an arm is loaded."""
    arms = ["reinit_rescaled", "random_erk", "reinit_chain", "reshuffle", "finetune", "mine"]
    rows = [row(seed, n, arm, 0.9, repeat=1) for arm in ("ticket", *arms) for n in (1, 2) for seed in (0, 1)]
    gaps = {arm: paired.differences(rows, "rewind-0", "ticket", arm) for arm in arms}
    seen: dict[str, set[tuple]] = {arm: set() for arm in arms}
    for added in ((), ("another", "mine")):
        for arm in added:
            monkeypatch.setitem(ARMS, arm, ARMS["random"])
        for figure in (figures.accuracy(rows, "title"), figures.gaps(gaps, "title")):
            for line in figure.axes[0].get_lines():
                name = str(line.get_label()).removeprefix("ticket − ").partition(" (")[0]
                if name in arms:
                    dashes = str(line._unscaled_dash_pattern)  # type: ignore[attr-defined]
                    seen[name].add((line.get_color(), line.get_marker(), dashes))
    assert all(len(of) == 1 for of in seen.values())
    for place in (1, 2):
        assert len({(next(iter(of))[0], next(iter(of))[place]) for of in seen.values()}) == len(arms)


def test_an_arm_has_one_line_in_all_panels_of_learning_curves() -> None:
    curve = figures.Curve(np.arange(2), np.ones((1, 2)), [0])
    panels = {"first": {"ticket": curve, "random": curve}, "second": {"ticket": curve, "reinit": curve}}
    panels["third"] = {"ticket": curve, "reinit": curve, "random": curve}
    lines: dict[str, set[str]] = {}
    for axes in figures.learning(panels, "title").axes:
        for line in axes.get_lines():
            lines.setdefault(str(line.get_label()), set()).add(str(line.get_linestyle()))
    assert sorted(map(len, lines.values())) == [1, 1, 1]
    assert len({next(iter(of)) for of in lines.values()}) == 3


def test_no_two_chains_have_one_line() -> None:
    dense = [row(seed, 0, "dense", 0.95) for seed in range(2)]
    chains = [f"rewind-{step}" for step in range(9)]
    rows = [row(seed, level, "ticket", 0.9, chain=of) for of in chains for seed in (0, 1) for level in (1, 2)]
    axes = figures.accuracy([*dense, *rows], "title").axes[0]
    lines = [line for line in axes.get_lines() if "rewound to" in str(line.get_label())]
    assert len(lines) == len(chains)
    dashes = {str(line._unscaled_dash_pattern) for line in lines}  # type: ignore[attr-defined]
    assert len(dashes) == len(chains)


def test_geometric_bands_are_those_of_logarithms() -> None:
    values = [[0.01, 0.02, 0.4], [3.0, 1.0, 2.0]]
    axes = Figure().subplots()
    draw.curve(axes, [0, 1], values, ("k", "", "-"), "loss", points=False, geometric=True)
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), scipy_stats.gmean(values, axis=1))
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    for x, at in enumerate(np.log(values)):
        low, high = scipy_stats.t.interval(0.95, 2, at.mean(), scipy_stats.sem(at))
        drawn = edges[edges[:, 0] == x, 1]
        np.testing.assert_allclose([drawn.min(), drawn.max()], np.exp([low, high]))
        assert drawn.min() > 0


@pytest.mark.parametrize(("places", "bars"), [(1, True), (2, False)])
@pytest.mark.parametrize("points", [True, False])
def test_a_single_place_has_a_bar_for_its_interval(places: int, bars: bool, points: bool) -> None:
    axes = Figure().subplots()
    draw.curve(axes, range(places), [[1.0, 2.0, 4.0]] * places, ("k", "o", "-"), "ticket", points=points)
    (shown,) = axes.collections
    low, high = mean_interval([1.0, 2.0, 4.0])[1:3]
    heights = np.concatenate([path.vertices[:, 1] for path in shown.get_paths()])
    np.testing.assert_allclose([heights.min(), heights.max()], [low, high])
    assert isinstance(shown, LineCollection) is bars


def test_bands_of_shares_stay_in_their_range() -> None:
    """Three seeds near 100 %, one of them far lower: Student's t would reach to 105 %."""
    values = [[99.0, 98.0, 90.0], [99.9, 99.8, 99.0]]
    axes = Figure().subplots()
    draw.curve(axes, [0, 1], values, ("k", "o", "-"), "ticket", within=PERCENT)
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    for x, at in enumerate(values):
        mean = np.mean(at) / 100
        half = scipy_stats.t.ppf(0.975, 2) * scipy_stats.sem(at) / 100 / (mean * (1 - mean))
        expected = 100 * scipy_special.expit(scipy_special.logit(mean) + np.array([-half, half]))
        drawn = edges[edges[:, 0] == x, 1]
        np.testing.assert_allclose([drawn.min(), drawn.max()], expected)
    assert edges[:, 1].max() < 100 < mean_interval(values[0]).high


def test_bands_of_figures_over_rows_stay_in_their_range() -> None:
    rows = [row(seed, 0, "dense", value) for seed, value in enumerate((0.99, 0.999, 0.93))]
    for level in (1, 2):
        rows += [row(seed, level, "ticket", value) for seed, value in enumerate((0.999, 0.998, 0.91))]
    steps = {0: 499, 1: 499, 2: 10}
    rows = [one._replace(early_stop_step=steps[one.seed]) for one in rows]
    for figure, most in ((figures.accuracy, 100), (figures.early_stop, 500)):
        axes = figure(rows, "title").axes[0]
        bands = [shape for shape in axes.collections if not isinstance(shape, LineCollection)]
        ends = np.concatenate([path.vertices[:, 1] for band in bands for path in band.get_paths()])
        ends = np.concatenate([ends, *(patch.get_corners()[:, 1] for patch in axes.patches)])
        assert len(bands) == 1
        assert len(axes.patches) == 1
        assert 0 <= ends.min() < ends.max() <= most


@pytest.mark.parametrize(("level", "last"), [(1, True), (2, False)])
def test_a_match_at_the_last_level_is_said_to_be_a_bound(level: int, last: bool) -> None:
    """Level 1 matches, level 2 does not; if level 1 is the last, sparser levels might match."""
    run = open_run(ROOT / "results" / "quickstart")
    run.rows = [one for one in ROWS if one.level <= level]
    notes = facts.notes(run)
    (said,) = [note for note in notes if note.startswith("The sparsest tickets")]
    assert ("; sparser ones were not trained" in said) is last


@pytest.mark.parametrize(
    ("last", "said"), [("gpu", "3 cells on gpu"), ("cpu", "2 cells on gpu, 1 cell on cpu")]
)
def test_a_run_on_devices_of_several_kinds_says_so(last: str, said: str) -> None:
    run = open_run(ROOT / "results" / "quickstart")
    run.rows = ROWS
    run.results = {
        Cell(seed, "dense", 0, "dense"): {"platform": platform}
        for seed, platform in enumerate(("gpu", "gpu", last))
    }
    mixed = [note for note in facts.notes(run) if said in note]
    assert len(mixed) == (last == "cpu")
    assert dict(facts.of_run(run))["Devices"] == (said if mixed else "gpu")


def test_an_analysis_of_fewer_seeds_than_the_run_says_so() -> None:
    run = open_run(ROOT / "results" / "quickstart")
    run.rows = ROWS
    section = page.Section("a", "A", ["a note"])
    tables = {"rows.csv": [row(0, 1, "ticket", 0.9)], "others.csv": []}
    (first, *others) = report._of_some(section, tables, run).notes
    assert first == "Of seed 0 alone; the run has 2. Its command, called again, adds what is missing."
    assert others == ["a note"]
    whole = {"rows.csv": [row(seed, 1, "ticket", 0.9) for seed in (0, 1)]}
    # A pair of seeds has one row, under the smaller one.
    pair = {"overlap.csv": [OverlapRow("rewind-0", 1, 0, 1, "all", "none", "ticket", 0.5, 0.4)]}
    for found in (whole, [whole["rows.csv"]], pair, {"rows.csv": []}, {}):
        assert report._of_some(section, found, run) == section


def test_a_claim_that_goes_on_stands_below_the_one_that_it_goes_on_from() -> None:
    """Where one of the two was not tested, they are in two tables, and the claim is named with both."""
    found = [
        Finding("A", "not tested", "why", 0, "do a"),
        Finding("… at most", "supported", "1", 3, "gaps"),
        Finding("… at least", "refuted", "2", 3, "gaps"),
        Finding("B", "supported", "3", 3, "gaps"),
        Finding("… later", "not tested", "why", 0, "do b"),
        Finding("C", "not tested", "why", 0, "do c"),
        Finding("… earlier", "not tested", "why", 0, "do c"),
    ]
    tested, others = report._said(found)
    assert [row[:2] for row in tested.rows] == [
        ["A … at most", "supported"], ["… at least", "refuted"], ["B", "supported"],
    ]  # fmt: skip
    assert [row[0] for row in others.rows] == ["A", "B … later", "C", "… earlier"]
    assert others.folded.startswith("4 claims were not tested")


@pytest.mark.parametrize(("most", "named"), [(0.9, False), (12.0, True)])
def test_gaps_name_the_claimed_range_where_the_axis_reaches_it(most: float, named: bool) -> None:
    levels = [paired.Level(1, 0.8, [0.1, 0.3]), paired.Level(2, 0.64, [0.5, most])]
    axes = figures.gaps({"reinit": levels}, "title").axes[0]
    assert ("10–15 points" in axes.get_legend_handles_labels()[1]) is named
    assert axes.get_ylim()[0] < 0 < most < axes.get_ylim()[1]


class Page(html.parser.HTMLParser):
    """Collects the references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_report_of_a_run(tiny: Callable[..., study.Prepared], tmp_path: Path) -> None:
    run = study.run(tiny(rewind=(0, 3)), tmp_path / "runs")
    built = report.build(run)
    assert built == run / "report" / "index.html"
    for name in ("accuracy", "gaps", "early_stop", "learning"):
        assert len((run / "report" / f"{name}.csv").read_text().splitlines()) > 4
        assert (run / "report" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (run / "report" / f"{name}.svg").read_bytes()
    parsed = Page()
    text = built.read_text()
    parsed.feed(text)
    assert parsed.references
    outside = [ref for ref in parsed.references if not ref.startswith(("data:", "#"))]
    assert outside == [], "nothing leaves the page"
    anchors = {ref.removeprefix("#") for ref in parsed.references if ref.startswith("#")}
    assert {"verdicts", "accuracy", "gaps", "levels", "run"} <= anchors
    assert all(f'id="{anchor}"' in text for anchor in anchors)
    urls = [ref for ref in parsed.references if len(ref) > 1000]
    assert len(set(urls)) == len(urls), "nothing is in the page twice"
    for expected in ("LeNet-300-100 on few", "Rewound to step 0", "Rewound to step 3", "seed", "jax "):
        assert expected in text
    with (run / "report" / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    columns = (
        "seed chain level arm repeat density weights_left test_accuracy test_loss train_accuracy "
        "validation_accuracy validation_loss early_stop_step early_stop_test_accuracy steps seconds status"
    )
    assert list(lines[0]) == columns.split()
    assert len(lines) == 2 * (1 + 2 * 2 * 3)
    dense = [line for line in lines if line["arm"] == "dense"]
    assert [(d["seed"], d["chain"], d["level"], d["density"]) for d in dense] == [
        ("0", "dense", "0", "1.0"), ("1", "dense", "0", "1.0")]  # fmt: skip
    ticket = next(x for x in lines if (x["chain"], x["level"], x["arm"]) == ("rewind-3", "1", "ticket"))
    result = json.loads((run / "seed=0/chain=rewind-3/level=01/ticket/result.json").read_text())
    assert float(ticket["test_accuracy"]) == result["test_accuracy"]
    assert (ticket["steps"], ticket["status"]) == ("9", "done")
    assert int(ticket["weights_left"]) == result["weights_left"] == 74_200 - 14_640 - 100
    assert analysis.load(run)[0].arm == "dense"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>window.onload = () => {
  document.querySelector("figure button").click();
  const broken = [...document.images].filter(image => image.src && !image.naturalWidth).length;
  document.querySelector("dialog").click();
  const table = [...document.querySelectorAll("table")].find(t => t.tHead && t.tHead.textContent.includes("weights left"));
  const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "%");
  head.click();
  const sorted = [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent).join(" ");
  const asked = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
  const links = [...document.querySelectorAll("a.image")].filter(link => link.href.startsWith("data:image/")).length;
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = `probe: images ${links}, broken ${broken}, asked ${asked}, wide ${wide}, sorted ${sorted}`;
}</script>"""  # noqa: E501


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's page with PROBE at its end."""
    where = tmp_path_factory.mktemp("probed")
    built = report.build(study.run(make_tiny(where)(levels=3), where / "runs"))
    (where / "probed.html").write_text(built.read_text().replace("</body>", f"{PROBE}</body>"))
    return where / "probed.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("size", ["1300,900", "500,900"])
def test_the_page_in_a_browser(probed: Path, tmp_path: Path, size: str) -> None:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr", "--dump-dom",
            f"--window-size={size}", "--virtual-time-budget=5000", probed.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.search(
        r"<title>probe: images (\d+), broken (\d+), asked (\d+), wide (-?\d+), sorted ([^<]*)<", done.stdout
    )
    assert said is not None, done.stderr
    assert int(said[1]) >= 4
    assert said.group(2, 3) == ("0", "0")
    assert int(said[4]) <= 0, "the page is wider than the screen"
    assert said[5].split() == ["51.5", "64.2", "80.1", "100.0"]
    assert "CONSOLE" not in done.stderr


def test_an_unchanged_report_is_left_alone_and_a_changed_one_is_not(
    tiny: Callable[..., study.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.run(tiny(levels=0), tmp_path / "runs")
    built = report.build(run, only_if_changed=True)
    when = built.stat().st_mtime_ns
    assert report.build(run, only_if_changed=True).stat().st_mtime_ns == when
    study.run(tiny(levels=1), tmp_path / "runs")
    assert report.build(run, only_if_changed=True).stat().st_mtime_ns > when
    with monkeypatch.context() as patched:
        # A table of its own: a row that is put back would be the last one.
        others = {name: of for name, of in models.MODELS.items() if name != Run(run).study.model}
        patched.setattr(models, "MODELS", others)
        assert "is not loaded here" in report.build(run).read_text()
    assert "is not loaded here" not in report.build(run, only_if_changed=True).read_text()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report."""
    where = tmp_path_factory.mktemp("reported")
    run = study.run(make_tiny(where)(levels=0, seeds=(0,)), where / "runs")
    report.build(run)
    return run


@pytest.fixture
def copied(reported: Path, tmp_path: Path) -> Path:
    """A copy of `reported` that a test may change."""
    return Path(shutil.copytree(reported, tmp_path / "runs" / reported.name))


@pytest.mark.parametrize("how", ["cut", "damaged", "gone", "older"])
def test_a_report_that_is_not_whole_is_mended(
    copied: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = copied, copied / "report"
    report.build(run)  # its commands name this copy
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(whole) == {*page.written(folder), "files.json"}
    shown: list[str] = []
    write = page.write
    monkeypatch.setattr(page, "write", lambda *args, **more: shown.append(how) or write(*args, **more))
    report.build(run, only_if_changed=True)
    assert not shown
    for name, content in whole.items():
        if how == "gone":
            (folder / name).unlink()
        elif how == "cut":
            (folder / name).write_bytes(content[: len(content) // 2])
        elif how == "damaged":
            (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        elif name == "files.json":
            (folder / name).unlink()
        else:
            continue
        assert not page.is_whole(folder, json.loads(whole["files.json"])["shows"]), name
        (folder / name).write_bytes(content)
    (folder / ("files.json" if how == "older" else "index.html")).write_text("{}")
    (folder / "verdicts.csv").write_bytes(b"")
    report.build(run, only_if_changed=True)
    assert shown == [how]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_report_is_written_anew_when_what_it_shows_changes(
    tiny: Callable[..., study.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study.run(tiny(levels=0, seeds=(0,)), tmp_path / "runs")
    monkeypatch.setattr(page, "show", lambda folder, drawn: page.Shown("", "", "", "", "", ""))
    monkeypatch.setattr(page, "_KINDS", ())
    written: list[Path] = []
    write = page.write
    monkeypatch.setattr(page, "write", lambda folder, **more: written.append(folder) or write(folder, **more))
    for change, times in (
        (lambda: None, 1),
        (lambda: None, 1),
        (lambda: (run / "study.json").write_text((run / "study.json").read_text() + " "), 2),
        # The report names what cannot be read, and tries again the next time.
        (lambda: (run / "savings.json").write_text("{"), 3),
        (lambda: None, 4),
        ((run / "savings.json").unlink, 5),
        (lambda: None, 5),
    ):
        change()
        text = report.build(run, only_if_changed=True).read_text()
        assert len(written) == times
        assert ("Not shown: " in text and "savings.json: it cannot be read" in text) is (times in (3, 4))


def test_a_full_disk_leaves_the_report_that_was_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = copied, copied / "report"
    report.build(run)  # its commands name this copy
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(UserError, match=r"the report cannot be written \(No space left on device\)"):
        report.build(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_not_a_run_folder(tiny: Callable[..., study.Prepared], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        report.build(tmp_path)
    prepared = tiny(levels=1)
    about = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
    (tmp_path / "study.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="no finished cell in it yet"):
        report.build(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match="it cannot be read"):
        report.build(tmp_path)


def test_a_published_folder_is_no_run_folder() -> None:
    """It has 66 finished cells as lines of a table, so "no finished cell in it yet" would be untrue."""
    folder = ROOT / "results" / "quickstart"
    for read in (report.build, lambda of: analysis.open_run(of).tickets()):
        with pytest.raises(UserError, match="it is a published folder, which holds tables and no") as found:
            read(folder)
        assert "by running python run.py --config configs/quickstart.py" in str(found.value)
    assert not (folder / "report").exists()


def test_what_is_published(
    tiny: Callable[..., study.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [study.run(tiny(arms=("ticket",), levels=1, optim=config.Optim(lr=lr)), tmp_path / "runs")
            for lr in (1e-3, 2e-3)]  # fmt: skip
    (runs[0] / "predict").mkdir()
    for name in ("scores.csv", "drawn.csv", "drawn.png"):
        (runs[0] / "predict" / name).write_text(name)
    to = tmp_path / "results" / "tiny"
    publish.main([str(runs[0]), str(to)])
    assert sorted(publish.listed(to) or []) == sorted(
        path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()
    )
    assert (to / "predict" / "scores.csv").read_text() == "scores.csv"
    for name in ("cells.csv", "verdicts.csv", "accuracy.svg"):
        assert (to / name).read_bytes() == (runs[0] / "report" / name).read_bytes()
    assert json.loads((to / "study.json").read_text())["config"]["name"] == "tiny"
    with (to / "verdicts.csv").open() as file:
        said = list(csv.DictReader(file))
    assert {line["outcome"] for line in said} <= {"too few seeds", "not tested"}, "two seeds"
    assert said[0]["claim"] in (runs[0] / "report" / "index.html").read_text()
    kinds = {path.suffix for path in to.rglob("*") if path.is_file()}
    assert kinds == {".json", ".csv", ".svg"}
    assert not (to / "predict" / "drawn.csv").exists()

    # A PNG replaces an SVG that is too large, and leftovers of an earlier call are removed.
    vector = runs[0] / "report" / "accuracy.svg"
    monkeypatch.setattr(publish, "LARGEST", vector.stat().st_size - 1)
    shutil.rmtree(runs[0] / "predict")
    publish.publish(runs[:1], to)
    assert not (to / "predict").exists()
    assert not (to / "accuracy.svg").exists()
    assert (to / "accuracy.png").is_file() is (vector.with_suffix(".png").stat().st_size < publish.LARGEST)

    publish.publish(runs, to)
    assert [of["config"]["optim"]["lr"] for of in json.loads((to / "study.json").read_text())] == [1e-3, 2e-3]
    assert (to / "comparison.csv").is_file()
    assert not (to / "cells.csv").exists()
