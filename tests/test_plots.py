"""Files for a thesis: the report's numbers, masks as pictures, the page "Plot it yourself"."""

import csv
import io
import itertools
import re
import shutil
import subprocess
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, make_tiny, spoil, unsealed
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats as scipy_stats
from test_any_rows import Given
from test_report import row

from analysis import card, compare, draw, mask, open_run, page, tables
from analysis.compare.entries import Entry, Point
from analysis.earlybird import figures as earlybird_figures
from analysis.earlybird.table import DrawRow, MaskRow
from analysis.geography import figures as geography_figures
from analysis.geography.table import InputRow, OverlapRow
from analysis.predict import figures as predict_figures
from analysis.predict.table import Loaded, Scored
from analysis.report import accuracy, gaps, numbers, paired, speed, training
from analysis.report import figures as report_figures
from analysis.rows import Row
from analysis.run import Run
from analysis.stability import figures as stability_figures
from analysis.stability.table import LevelRow, PairRow
from analysis.structure import figures as structure_figures
from analysis.structure.table import DeadUnits
from lthjax import data, study
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.measures.scores import SCORES
from lthjax.measures.stats import mean_interval

Call = Callable[..., subprocess.CompletedProcess[str]]
THREE = [
    *(row(seed, 0, "dense", value) for seed, value in enumerate((0.95, 0.97, 0.96))),
    *(row(seed, 1, "ticket", value) for seed, value in enumerate((0.96, 0.98, 0.965))),
    *(row(seed, 1, "reinit", value) for seed, value in enumerate((0.90, 0.91, 0.93))),
    row(0, 1, "reinit", 0.94, repeat=2),
    *(row(seed, 2, "ticket", value) for seed, value in enumerate((0.93, 0.90, None))),
]


def test_levels_by_hand() -> None:
    found = {(of.level, of.arm): of for of in numbers.level_rows(THREE)}
    assert [*found] == [(0, "dense"), (1, "ticket"), (1, "reinit"), (2, "ticket")]
    reinit = found[1, "reinit"]
    assert reinit.test_accuracy_percent == pytest.approx((92 + 91 + 93) / 3)
    assert (reinit.n, reinit.density, reinit.weights_left) == (3, 0.8, 800)
    assert reinit.low is not None
    assert reinit.high is not None
    assert reinit.low < 91 < 93 < reinit.high
    assert found[2, "ticket"].n == 2
    alone = numbers.level_rows(THREE[:1])[0]
    assert (alone.test_accuracy_percent, alone.low, alone.high) == (pytest.approx(95), None, None)
    (gone,) = numbers.level_rows([row(0, 1, "ticket", None)])
    assert (gone.n, gone.test_accuracy_percent) == (0, None)


def test_differences_against_scipy() -> None:
    found = {(of.level, of.other): of for of in gaps.compared(THREE, "rewind-0")}
    assert [*found] == [(1, "dense"), (2, "dense"), (1, "reinit")]
    got, values = found[1, "reinit"], [4.0, 7.0, 3.5]
    assert got.difference_points == pytest.approx(np.mean(values))
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert got.p_t == got.p_holm == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue)
    assert got.p_sign_flips == pytest.approx(2 / 2**3)
    # Unbiased with two degrees of freedom: Γ(1) / (√1 Γ(1/2)) of Cohen's d.
    assert got.hedges_gz == pytest.approx(np.mean(values) / np.std(values, ddof=1) / np.sqrt(np.pi))
    # A test set of 20 images tells less apart than these seeds differ: no spread is smaller than its error.
    for of in gaps.compared(THREE, "rewind-0", images=20):
        if of.gz_low is not None:
            assert (of.gz_low > 0, of.gz_high < 0) == (of.low > 0, of.high < 0)
    assert gaps.gaps(THREE, "rewind-0").rows == [gaps.words_of(of) for of in found.values()]


def cells_of(tex: str) -> list[list[str]]:
    """The cells of a tabular, line by line."""
    return [line.removesuffix(r" \\").split(" & ") for line in tex.splitlines() if line.endswith(r" \\")]


def test_latex_has_every_number_of_its_csv(made: Run) -> None:
    files = numbers.beside(made)
    levels = list(csv.DictReader(io.StringIO(files["levels.csv"])))
    header, *lines = cells_of(files["levels.tex"])
    assert header == ["level", r"weights left (\%)", "ticket", "reinit"]
    at = {(int(of["level"]), of["arm"]): of for of in levels}
    for level, left, *of_arms in lines:
        assert left == f"{100 * float(at[int(level), 'ticket']['density']):.1f}"
        for arm, said in zip(("ticket", "reinit"), of_arms, strict=True):
            assert said.split(" [")[0] == f"{float(at[int(level), arm]['test_accuracy_percent']):.2f}"
    header, *lines = cells_of(files["differences.tex"])
    rows = list(csv.DictReader(io.StringIO(files["differences.csv"])))
    assert [line[:2] for line in lines] == [
        [f"{100 * float(of['density']):.1f}", f"ticket $-$ {of['other']}"] for of in rows
    ]
    for tex in (files["levels.tex"], files["differences.tex"]):
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", tex)
        assert columns is not None
        assert {len(line) for line in cells_of(tex)} == {len(columns[1])}
        assert [tex.count(rule) for rule in (r"\toprule", r"\bottomrule", r"\end{tabular}")] == [1, 1, 1]


def test_latex_escapes() -> None:
    assert numbers.escaped("random_erk 5 % − x^2 < {3}") == (
        r"random\_erk 5 \% $-$ x\textasciicircum{}2 $<$ \{3\}"
    )
    assert numbers.escaped("+0.22 [-0.01, +0.44], -.5, p-value, 10-15, random-2") == (
        "+0.22 [$-$0.01, +0.44], $-$.5, p-value, 10-15, random-2"
    )
    tex = numbers.latex(["a", "b"], [[["1", "2"]], [], [["3", "4"]]], 1, "note")
    assert cells_of(tex) == [["a", "b"], ["1", "2"], ["3", "4"]]
    assert (tex.count(r"\midrule"), "{lr}" in tex) == (2, True)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_sets_the_tables(made: Run, tmp_path: Path) -> None:
    texts = {
        **numbers.beside(made),
        "odd.tex": numbers.latex(["a_b"], [[["−1 % & <#>{}~^\\×≤–$"]]], 0, "odd"),
    }
    tables_of = [name for name in texts if name.endswith(".tex")]
    for name in tables_of:
        (tmp_path / name).write_text(texts[name])
    inputs = "".join(
        f"\\noindent\\resizebox{{\\linewidth}}{{!}}{{\\input{{{name}}}}}\n\n" for name in tables_of
    )
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{inputs}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert not re.search(r"(?m)^(!|LaTeX Warning|Overfull)", ended.stdout)


def test_the_figures_data_are_its_points() -> None:
    header, rows = accuracy.overview(THREE, "").data
    points = [dict(zip(header, line, strict=True)) for line in rows]
    assert {(of["arm"], of["seed"]): of["test_accuracy_percent"] for of in points if of["level"] == 1} == {
        ("ticket", 0): 96, ("ticket", 1): 98, ("ticket", 2): 96.5,
        ("reinit", 0): pytest.approx(92), ("reinit", 1): 91, ("reinit", 2): 93,
    }  # fmt: skip
    assert len(points) == 3 + 6 + 2
    assert [of["weights_left_percent"] for of in points][:3] == [100, 100, 100]
    # Seed 0 has no ticket at level 2: the points there are of seeds 1 and 2.
    every = [
        row(seed, level, arm, 0.9, early_stop_step=100 + seed)
        for seed in range(3)
        for level, arm in ((0, "dense"), (1, "ticket"), (1, "reinit"), (2, "ticket"), (2, "reinit"))
    ]
    gone = {"test_accuracy": None, "early_stop_step": None, "status": "diverged"}
    rows = [of._replace(**gone) if (of.seed, of.level, of.arm) == (0, 2, "ticket") else of for of in every]
    (shown,) = speed.section(Given(rows), "")
    drawn = {one.name: one.data for one in (*accuracy.drawn(Given(rows), ""), *shown.figures)}
    for name, arms in (("gaps", {"reinit"}), ("speed", {"dense", "reinit"})):
        header, lines = drawn[name]
        said = [dict(zip(header, line, strict=True)) for line in lines]
        assert {(of["arm"], of["level"], of["seed"]) for of in said} == {
            (arm, level, seed) for arm in arms for level, seed in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2))
        }


def test_tiles_by_hand() -> None:
    """Two filters of 2×1 pixels with two input channels."""
    gap = np.nan
    picture, _ = mask.tiles(np.arange(8.0).reshape(2, 1, 2, 2), (9, 9, 1))
    np.testing.assert_array_equal(picture, [[0, gap, 1], [4, gap, 5], [gap] * 3, [2, gap, 3], [6, gap, 7]])
    dense, how = mask.tiles(np.arange(6.0).reshape(2, 3), (9, 9, 1))
    np.testing.assert_array_equal(dense, [[0, 1, 2], [3, 4, 5]])
    assert how == "a row an input, a column an output"
    high, how = mask.tiles(np.arange(3.0).reshape(3, 1), (9, 9, 1))
    np.testing.assert_array_equal(high, [[0, 1, 2]])
    assert how == "a row an output, a column an input"
    # On the image, a unit's weights are where the pixels are.
    units, how = mask.tiles(np.arange(8.0).reshape(4, 2), (2, 2, 1))
    np.testing.assert_array_equal(units, [[0, 2, gap, 1, 3], [4, 6, gap, 5, 7]])
    assert how == "a tile a filter (2×2)"
    # A later layer with as many inputs has no pixels.
    assert mask.tiles(np.arange(8.0).reshape(4, 2), None)[1] == "a row an input, a column an output"


def test_a_hidden_layer_as_wide_as_the_image_has_no_pixels(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    genuine = mask.tiles
    monkeypatch.setattr(mask, "tiles", lambda array, image: (asked.append(image), genuine(array, image))[1])
    cell = Cell(0, "rewind-0", 1, "ticket")
    for layer in ("fc1", "fc2", "output"):
        mask.drawing(made, cell, layer)
    assert asked == [[12, 12, 1]] * 2 + [None] * 4


def test_the_layer_that_reads_the_image_is_known_by_its_inputs_and_number() -> None:
    def reading(**shapes: tuple[int, ...]) -> str:
        return mask._reading({name: np.ones(shape, bool) for name, shape in shapes.items()}, (4, 4, 1))

    assert reading(hidden=(9, 9), input=(16, 9), output=(9, 2)) == "input", "not the first by name"
    assert reading(fc2=(16, 2), fc10=(16, 16), fc1=(16, 16)) == "fc1"
    assert reading(conv1=(3, 3, 1, 8), fc1=(16, 2)) == ""
    assert reading(fc1=(9, 2)) == ""


@pytest.mark.parametrize("shape", [(5, 5, 1, 6), (3, 3, 16, 32), (1, 1, 8, 8), (3, 3, 1, 100)])
def test_tiles_have_every_weight_once(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).permutation(np.prod(shape)).astype(float).reshape(shape)
    picture, _ = mask.tiles(values, (28, 28, 1))
    shown = picture[np.isfinite(picture)]
    np.testing.assert_array_equal(np.sort(shown), np.arange(values.size))
    assert np.isfinite(picture[-1]).any()
    assert np.isfinite(picture[:, -1]).any()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("plots")
    prepared = make_tiny(folder)(levels=2, arms=("ticket", "reinit"))
    return open_run(study.run(prepared, folder / "runs"))


def test_the_command_draws_a_mask_and_weights(made: Run, command: Call, tmp_path: Path) -> None:
    done = command("-m", "analysis.mask", made.path, "--layer", "fc2", "--level", "2", "--seed", "1")
    path = made.path / "mask" / "mask-fc2-rewind-0-level=2-ticket-seed=1.png"
    assert done.stdout.strip() == str(path), done.stderr
    pixels = image.imread(path)[..., :3]
    kept = np.abs(pixels - matplotlib.colors.to_rgb("#0072B2")).max(-1) < 0.02
    lost = np.abs(pixels - matplotlib.colors.to_rgb("#bbbbbb")).max(-1) < 0.02
    density = made.mask(Cell(1, "rewind-0", 2, "ticket"))["fc2"]["kernel"].mean()
    assert kept.sum() / (kept.sum() + lost.sum()) == pytest.approx(density, abs=0.03)
    to = tmp_path / "w.pdf"
    asked = ("--layer", "fc1/bias", "--level", "0", "--weights", "--to", to)
    assert command("-m", "analysis.mask", made.path, *asked).stdout.strip() == str(to)
    assert to.read_bytes().startswith(b"%PDF")
    to.write_bytes(b"a file of one's own")
    refused = command("-m", "analysis.mask", made.path, *asked)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"--to: {to} is there and is not replaced" in refused.stderr
    assert to.read_bytes() == b"a file of one's own"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--layer", "fc9", "--level", "1"], "--layer: 'fc9' is not known; Known: fc1/kernel, fc2/kernel"),
        (["--layer", "fc1/bias", "--level", "1"], "fc1/bias is never pruned and has no mask; add --weights"),
        (
            ["--layer", "fc1", "--level", "7"],
            "it has rewind-0: reinit at levels 1, 2 and ticket at levels 1, 2",
        ),
        (["--layer", "fc1", "--level", "1", "--seed", "5"], "--seed: 5 is not in the run; it has 0, 1"),
        (
            ["--layer", "fc1", "--level", "0", "--arm", "reinit"],
            "--arm: 'reinit' is not allowed with --level 0",
        ),
        (
            ["--layer", "fc1", "--level", "0", "--chain", "rewind-0"],
            "--chain: 'rewind-0' is not allowed with",
        ),
        (["--layer", "fc1", "--level", "1", "--to", "x.doc"], "it must end in .png, .pdf, .svg"),
    ],
)
def test_what_cannot_be_drawn(made: Run, command: Call, asked: list[str], says: str) -> None:
    done = command("-m", "analysis.mask", made.path, *asked)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert says in done.stderr


def test_weights_of_a_diverged_network_cannot_be_drawn(made: Run, command: Call, tmp_path: Path) -> None:
    run = tmp_path / made.name
    shutil.copytree(made.path, run)
    unsealed(run)
    of = next(run.glob("seed=0/chain=*/level=01/ticket"))
    spoil(of / "result.json")
    shutil.rmtree(of / "variables")
    asked = ("-m", "analysis.mask", run, "--layer", "fc1", "--level", "1", "--seed", "0")
    done = command(*asked, "--weights")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the cell diverged, and its weights were not kept; choose another.\n"
    assert command(*asked).returncode == 0


def test_the_page_runs(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "plotting.md").read_text().replace("runs/quickstart-f91424be", str(made.path))
    names: dict = {}
    for snippet in re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M):
        exec(snippet, names)
    names["plt"].close("all")
    asked = re.findall(r'savefig\("(.*?)"\)', text)
    assert len(asked) == 6
    assert all((tmp_path / name).stat().st_size > 3000 for name in asked)
    by_level = tables.grouped((of.level, of) for of in made.rows)
    one: Callable[[list[Row], str, int], float] = lambda rows, arm, seed: next(  # noqa: E731
        100 * (of.test_accuracy or 0) for of in rows if (of.arm, of.seed) == (arm, seed)
    )
    for level, values in names["gaps"].items():
        wanted = [one(by_level[level], "ticket", s) - one(by_level[level], "reinit", s) for s in (0, 1)]
        assert values == pytest.approx(wanted)


def test_a_model_card_says_and_loads_what_it_is(made: Run, command: Call, tmp_path: Path) -> None:
    hub = tmp_path / "made" / "hub"  # not there yet
    file = hub / "t.safetensors"
    line = ("-m", "analysis.export", made.path, file, "--level", "2", "--seed", "1", "--card")
    without = command(*line)
    assert without.stdout.strip() == str(file)
    assert "t.safetensors: mean and std of the images are left out" in without.stderr
    assert 'data.split(data.load("few"), 1, ' in (hub / "README.md").read_text()
    line = (*line[:-1], "--data-dir", made.path.parents[1] / "data", "--card")
    assert command(*line).stdout.strip() == str(file)
    text = (hub / "README.md").read_text()
    cells = {of.arm: of for of in made.rows if (of.seed, of.level) in ((1, 0), (1, 2))}
    for arm, of in cells.items():
        shown = f"{100 * (of.test_accuracy or 0):.2f}"
        assert (f"| **{arm}** | **{shown}** |" if arm == "ticket" else f"| {arm} | {shown} |") in text
    gap = 100 * np.mean([
        (a.test_accuracy or 0) - (b.test_accuracy or 0)
        for a in made.rows for b in made.rows
        if (a.arm, a.level, b.arm, b.level, a.seed) == ("ticket", 2, "reinit", 2, b.seed)
    ])  # fmt: skip
    assert f"ticket − reinit: {gap:+.2f} [" in text
    assert "(Student's t; the spread between seeds taken as no less than the test set's own error" in text
    assert (
        f"| density | {100 * cells['ticket'].density:.1f} %: {cells['ticket'].weights_left:,} prunable"
        in text
    )
    assert f"| study | `{made.name}` |" in text
    few = data.load("few", made.path.parents[1] / "data")
    names: dict = {"pixels": few.test_images}
    for snippet in re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M):
        exec(snippet.replace('"t.safetensors"', repr(str(file))), names)
    right = np.asarray(names["logits"]).argmax(1) == few.test_labels
    assert right.mean() == pytest.approx(cells["ticket"].test_accuracy), "computed from file and card alone"
    mask_of = made.mask(Cell(1, "rewind-0", 2, "ticket"))
    np.testing.assert_array_equal(names["masks"]["fc1/kernel"], mask_of["fc1"]["kernel"])
    np.testing.assert_array_equal(names["ticket"].mask["fc2"]["kernel"], mask_of["fc2"]["kernel"])
    assert not names["weights"]["fc1/kernel"][~names["masks"]["fc1/kernel"]].any()
    assert command(*line).returncode == 0, "its own card is replaced"
    assert command(*line[:-1]).returncode == 0, "the same cell again, which the card is of"
    there = file.read_bytes(), (hub / "README.md").read_bytes()
    refused = command(*line[:-1], "--arm", "reinit")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "README.md: it is the card of another cell in t.safetensors; give --card, which" in refused.stderr
    assert (file.read_bytes(), (hub / "README.md").read_bytes()) == there
    file.unlink()
    refused = command(*line[:-1], "--arm", "reinit")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "README.md: it is the card of t.safetensors, which is gone; give --card, which" in refused.stderr
    assert not file.exists()
    assert command(*line).returncode == 0
    (hub / "README.md").write_bytes(text.replace("\n", "\r\n").encode())
    assert command(*line).returncode == 0, "with other ends of lines it is its own"
    before = file.read_bytes()
    (hub / "README.md").write_text(edited := text + "More of it is in chapter 3.\n")
    refused = command(*line[:-1], "--arm", "reinit", "--card")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "README.md: it was edited since it was written, and is not replaced" in refused.stderr
    assert ((hub / "README.md").read_text(), file.read_bytes()) == (edited, before)
    (hub / "README.md").write_text(text)
    refused = command(*(hub / "u.safetensors" if word == file else word for word in line))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "README.md: it is the card of t.safetensors, and is not replaced" in refused.stderr
    assert not (hub / "u.safetensors").exists()
    (hub / "README.md").write_text("mine")
    refused = command(*line)
    assert (refused.returncode, "is no model card, and is not replaced" in refused.stderr) == (2, True)
    dense = card.card(made, Cell(0, "dense", 0, "dense"), "x", {})
    assert "| rewound to step | – |\n| trained from step | 0 |" in dense
    assert "before any pruning" in dense
    assert " − " not in dense


def test_a_layer_is_found_by_its_name() -> None:
    whole = {
        "a/kernel": np.ones((2, 2)),
        "a/bias": np.ones(()),
        "b/c/kernel": np.ones(3),
        "b/d/kernel": np.ones(3),
    }
    assert [mask.named(name, whole) for name in ("a", "a/bias", "b/c")] == [
        "a/kernel",
        "a/bias",
        "b/c/kernel",
    ]
    with pytest.raises(UserError, match="--layer: 'b' has b/c/kernel, b/d/kernel; name one of them"):
        mask.named("b", whole)


@pytest.mark.parametrize(
    ("sparsest", "controls", "panels"), [(88.0, 0.0, 2), (93.0, 0.0, 1), (88.0, 95.0, 2)]
)
def test_differences_near_the_dense_network_get_a_panel(
    sparsest: float, controls: float, panels: int
) -> None:
    """Where those of the only arm reach more than 5 points below it; arms share an axis as they are."""
    points = [Point(0.8, {0: 97.5, 1: 98.5}, 2), Point(0.1, {0: sparsest, 1: sparsest + 1}, 11)]
    arms = {"ticket": points} | ({"reinit": [Point(0.1, {0: controls}, 12)]} if controls else {})
    (entry,) = entries = [Entry("20 % a round", "", {0: 97.0, 1: 98.0}, arms)]
    drawn = compare.figures.compared(entries, "A study")
    seen = [axes for axes in drawn.axes if axes.get_visible()]
    assert len(seen) == panels
    near = [axes for axes in seen if axes.get_title("left") == "ticket, near the dense network"]
    assert len(near) == compare.figures.is_far(entries) == (panels == 2 and not controls)
    for axes in near:
        low, high = axes.get_ylim()
        assert (low, high) == (-2, pytest.approx(0.55))
    means = [line.get_ydata() for axes in seen for line in axes.lines if line.get_label() == entry.name]
    assert [*means[0]] == [pytest.approx(0.5), pytest.approx(sparsest + 0.5 - 97.5)]


def test_bands_of_differences_know_the_test_sets_error() -> None:
    """Three seeds that happen to agree leave as much open as the test set does, in every figure of gaps."""
    rows = [
        row(seed, level, arm, value)
        for seed in range(3)
        for level, arm, value in ((0, "dense", 0.9), (1, "ticket", 0.9), (1, "reinit", 0.88),
                                  (2, "ticket", 0.9), (2, "reinit", 0.86))
    ]  # fmt: skip
    error = np.sqrt(0.9 * 0.1 / 2000 + 0.86 * 0.14 / 2000)
    half = 100 * scipy_stats.t.ppf(0.975, 2) * error / np.sqrt(3)
    for images, asked in ((0, 0.0), (2000, half)):
        gaps = paired.differences(rows, "rewind-0", "ticket", "reinit", images=images)
        (axes,) = report_figures.gaps({"reinit": gaps}, "A study").axes
        (band,) = axes.collections
        (outline,) = band.get_paths()
        ends = [y for x, y in outline.vertices if x == pytest.approx(100 * gaps[1].density)]
        assert (min(ends), max(ends)) == (pytest.approx(4 - asked), pytest.approx(4 + asked))
    points = [
        Point(density, dict.fromkeys(range(3), value), 2) for density, value in ((0.8, 90.0), (0.6, 86.0))
    ]
    entry = Entry("20 % a round", "", dict.fromkeys(range(3), 90.0), {"ticket": points}, images=2000)
    (bars,) = compare.figures.compared([entry], "A study").axes[0].collections
    *_, sparsest = bars.get_segments()
    assert [*sparsest[:, 1]] == [pytest.approx(-4 - half), pytest.approx(-4 + half)]


def of_arms(arms: Iterable[str], levels: Iterable[int] = (1, 2), **changes: object) -> list[Row]:
    """The dense network and these arms, each in a chain of its own if it leads one."""
    cells = [
        row(seed, level, arm, 0.9 - 0.01 * seed, **{"early_stop_step": 100 * (seed + 1), **changes})
        for seed in range(3)
        for level, of_level in ((0, ("dense",)), *((level, arms) for level in levels))
        for arm in of_level
    ]
    own = [arm for arm in arms if arm != "ticket" and ARMS[arm].leads]
    return [one._replace(chain=f"{one.arm}-0") if one.arm in own else one for one in cells]


def heights(figure: Figure) -> list[float]:
    """Of the panels, in inches, as they are laid out; that no legend is cut off is asserted."""
    figure.draw_without_rendering()
    whole = figure.bbox
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend is not None:
            box = legend.get_window_extent()
            assert whole.x0 <= box.x0
            assert box.x1 <= whole.x1
            assert whole.y0 <= box.y0
    return [axes.get_position().height * figure.get_figheight() for axes in figure.axes]


def test_with_all_arms_there_is_room_for_their_curves() -> None:
    """Legends of many entries stand below the panel, and the figure grows by them."""
    rows = of_arms([*ARMS][:20])
    levels = {arm: paired.differences(rows, "rewind-0", "ticket", arm) for arm in ARMS}
    assert sum(map(bool, levels.values())) > 10
    steps = {arm: speed.slower(rows, "rewind-0", arm, 500) for arm in levels if levels[arm]}
    for figure in (
        report_figures.accuracy(rows, "A study"),
        report_figures.early_stop(rows, "A study"),
        report_figures.gaps(levels, "A study"),
        report_figures.speed(steps, "A study"),
    ):
        (height,) = heights(figure)
        assert height >= 2.5
        (legend,) = figure.legends
        assert legend.handlelength == 3, "dashes are to be seen"
        names = [text.get_text() for text in legend.get_texts()]
        assert not any("rewound" in name for name in names), "all are rewound to step 0"


def test_a_queue_that_is_filled_once_is_seen() -> None:
    """In early-bird figures; and so are the lines of chance of 70 % and 30 %, which coincide."""
    rows = [MaskRow("dense", None, seed, 60, density, 0.1, 0.06, 0.42, None, None)
            for seed in (0, 1) for density in (0.7, 0.3)]  # fmt: skip
    draws = [DrawRow("dense", None, 0, 0.7, 5, 0.1, 12, 60, 60, 1.0, 0.42, None)]
    (shown,) = earlybird_figures.drawn({"masks.csv": rows, "draws.csv": draws})
    (axes,) = shown.figure.axes
    curves = [line for line in axes.lines if "(n = 2)" in str(line.get_label())]
    assert [line.get_marker() not in ("", "None") for line in curves] == [True, True]
    assert axes.get_xlim() == (0, pytest.approx(61.2)), "from the start of training to its end"
    chance = [line for line in axes.lines if [*line.get_ydata()] == [0.42, 0.42]]
    first, second = (line._unscaled_dash_pattern for line in chance)  # type: ignore[attr-defined]
    assert first != second


def test_the_legend_of_scores_lies_within_a_figure_of_one_level() -> None:
    rows = [
        Scored(seed, "rewind-0", 1, 0, score, "ticket", "mean", 0.1, 0.7, *[0.5] * 5)
        for seed in (0, 1)
        for score in (*SCORES, "pixel_variance", "logistic", "logistic_init_magnitude")
    ]
    figure = predict_figures._curve(rows, {1: 0.1})
    assert heights(figure)[0] >= 2.5
    (axes,) = figure.axes
    assert [*axes.get_xticks()] == [0], "the only step"


@pytest.mark.parametrize("levels", [4, 5])
def test_levels_that_are_not_drawn_are_counted_in_captions(levels: int) -> None:
    at = range(1, levels + 1)
    scored = [Scored(0, "rewind-0", n, 0, "logistic", "ticket", "mean", 0.1, 0.7, *[0.5] * 5) for n in at]
    overlaps = [
        OverlapRow("rewind-0", n, 0, 1, layer, matching, of, 0.1, 0.2)
        for n in at
        for layer, matching, of in itertools.product(
            ("fc1", "all"), ("none", "masks", "magnitudes"), ("ticket", "shuffled")
        )
    ]
    inputs = [InputRow("rewind-0", n, 0, 0, 0, 0.1, 0.2, 0.1) for n in at]
    pair = PairRow(
        **{**dict.fromkeys(PairRow._fields, 0.1), "chain": "rewind-0", "arm": "ticket", "images": 9}
    )
    between = LevelRow(**{**dict.fromkeys(LevelRow._fields, 0), "level": 1, "density": 0.8})
    pairs = [pair._replace(level=n, density=0.8**n, seed=0, k=0) for n in at]
    drawn = [
        *predict_figures.drawn(Loaded(scored, [], [], dict.fromkeys(at, 0.1))),
        *geography_figures.drawn({"overlap.csv": overlaps, "inputs.csv": inputs}),
        stability_figures.drawn({"stability.csv": pairs, "levels.csv": [between]}, 60)[0],
    ]
    assert len(drawn) == 5
    for one in drawn:
        assert one.caption.endswith(" Shown are 4 of 5 levels; the CSV has all.") is (levels == 5)


def test_early_stop_steps_are_whole_numbers_where_all_are_equal() -> None:
    rows = of_arms(("ticket",), early_stop_step=4000, steps=4000)
    figure = report_figures.early_stop(rows, "A study")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert all(float(tick).is_integer() for tick in axes.get_yticks())
    low, high = axes.get_ylim()
    assert high - low >= 0.05 * 4000


def test_early_stop_steps_at_the_last_evaluation_are_bounds() -> None:
    """Seed 2 of the random masks was still learning; its line has a triangle, and no interval."""
    rows = [
        one._replace(early_stop_step=500) if (one.arm, one.seed) == ("random", 2) else one
        for one in of_arms(("ticket", "random"))
    ]
    (axes,) = report_figures.early_stop(rows, "A study").axes
    at = {
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == "^" and line.get_markerfacecolor() == "none"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert sorted(at) == [(pytest.approx(64.0), 500), (pytest.approx(80.0), 500)]
    assert len(axes.collections) == 1, "the ticket's band"
    assert "at least this" in axes.get_legend_handles_labels()[1]
    drawn = {one.name: one for one in accuracy.drawn(Given(rows), "")}
    assert "Means of such seeds are lower bounds" in drawn["early_stop"].caption
    given = Given(rows)
    given.about["lengths"]["total"] = 500
    table = training.section(given).tables[0]
    lowest = {line[1]: line[table.header.index("lowest at step")] for line in table.rows}
    assert lowest == {"dense": "200", "ticket": "200", "random": "≥ 267"}
    known = {one.name: one for one in accuracy.drawn(Given(of_arms(("ticket", "random"))), "")}
    assert "lower bounds" not in known["early_stop"].caption


def test_gaps_show_their_intervals_whole() -> None:
    """From three seeds on; those of two would leave nothing else to see."""
    levels = [1, 2]
    for values, whole in (([1.0, 3.0, 9.0], True), ([1.0, 9.0], False)):
        given = {"reinit": [paired.Level(level, 0.8**level, values) for level in levels]}
        (axes,) = report_figures.gaps(given, "A study").axes
        low, high = axes.get_ylim()
        ends = mean_interval(values)
        assert bool(low < ends.low and ends.high < high) is whole


def test_arms_of_a_single_level_do_not_hide_one_another() -> None:
    arms = ("ticket", "reinit", "random")
    rows = of_arms(arms, (1,))
    gaps_of = {arm: paired.differences(rows, "rewind-0", "ticket", arm) for arm in arms[1:]}
    for figure, count in (
        (report_figures.accuracy(rows, ""), 3),
        (report_figures.early_stop(rows, ""), 3),
        (report_figures.gaps(gaps_of, ""), 2),
    ):
        (axes,) = figure.axes
        places = [
            line.get_xdata()[0] for line in axes.lines if line.get_marker() in "os^" and len(line.get_xdata())
        ]
        assert len({*places}) == count
        assert places == pytest.approx([80.0] * count, rel=0.06)
        assert all(axes.get_xlim()[1] < place for place in places)
    gaps_shown = accuracy.drawn(Given(rows), "")[0]
    for shown in (accuracy.overview(rows, ""), gaps_shown):
        assert "stand beside one another" in shown.caption
    assert "beside one another" not in accuracy.overview(of_arms(arms), "").caption
    # How bands are drawn is said once a page.
    assert draw.FIRST_BANDS in accuracy.overview(rows, "").caption
    assert draw.BANDS in gaps_shown.caption


def test_learning_curves_are_of_levels_with_controls_and_name_the_arms_that_they_leave_out() -> None:
    tickets, controls = of_arms(("ticket",), range(1, 13)), of_arms(("reinit", "invert"), (4, 8, 12))
    rows = [*tickets, *(one for one in controls if one.arm != "dense")]
    given = Given(rows)
    given.results = {one.cell: {"curves": {"step": [5], "test_accuracy": [0.5]}} for one in rows}
    (shown,) = [one for one in accuracy.drawn(given, "") if one.name == "learning"]
    assert shown.caption.endswith(" Not drawn: invert.")
    panels = {(line[0], line[1]) for line in shown.data[1]}
    assert panels == {
        (f"{100 * 0.8**level:.1f} % of the weights", arm) for level in (8, 12)
        for arm in ("dense", "ticket", "reinit")
    }  # fmt: skip


def test_titles_of_panels_lie_beside_one_another() -> None:
    """Of three levels of pixels below the figure's title, of the long names of residual networks."""
    of: Any = types.SimpleNamespace(
        heading="LeNet-300-100 on MNIST",
        chain="rewind-0",
        levels={1: 0.5, 2: 0.2, 3: 0.1},
        ends={},
        granularity="weight",
    )
    pixels = {level: {0: np.ones((28, 28))} for level in of.levels}
    names = ("conv1", "stage2_block1/conv1", "stage2_block1/shortcut", "stage3_block1/shortcut")
    rows = [DeadUnits("ticket", 0, 1, level, 0.8**level, name, 32, 0, 0, 0, 0.1)
            for level in (0, 1) for name in (*names, "stage3_block2/conv1")]  # fmt: skip
    for figure in (
        structure_figures._input_pixels(of, pixels)[0],
        structure_figures._dead_units(of, rows)[0],
    ):
        figure.draw_without_rendering()
        titles = [axes._left_title for axes in figure.axes if axes.get_title("left") and axes.get_visible()]  # type: ignore[attr-defined]
        boxes = [title.get_window_extent() for title in (figure._suptitle, *titles)]  # type: ignore[attr-defined]
        assert len(boxes) >= 4
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def a_figure(places: int, surface: bool) -> page.Drawn:
    """Curves with intervals on log scales, in panels; a title of all, a legend below, a colour bar."""
    figure, generator = Figure(figsize=(7, 4), layout="constrained"), np.random.default_rng(0)
    panels = [figure.subplots()] if places == 1 else figure.subplots(1, places)
    for axes in panels:
        for arm in range(3):
            axes.errorbar(np.geomspace(1, 100, 9), generator.random(9), yerr=0.1, label=f"arm {arm}")
        axes.set(xscale="log", xlabel="weights left (%)", title="pruned to $2\nat once")
    if surface:
        drawn = panels[-1].pcolormesh(np.arange(1, 10), np.arange(9), generator.random((9, 9)))
        figure.colorbar(drawn, ax=panels[-1], label="loss (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("LeNet-300-100 on MNIST")
    return page.Drawn("a", "A figure", figure, "Curves.", (["x"], [[1]]), surface)


@pytest.mark.usefixtures("drawn_pngs")
@pytest.mark.parametrize(("places", "surface"), [(1, False), (3, False), (2, True)])
def test_a_figure_is_laid_out_once_as_matplotlib_does_for_svg(
    places: int, surface: bool, tmp_path: Path
) -> None:
    page.show(tmp_path, a_figure(places, surface))
    usual = a_figure(places, surface).figure
    page._literal(usual)
    with matplotlib.rc_context({"svg.hashsalt": "lthjax"}):
        usual.savefig(tmp_path / "usual.svg", metadata={"Date": None})
    usual.set_layout_engine("none")
    dpi = 120 if surface else 160
    usual.savefig(tmp_path / "usual.png", dpi=dpi, metadata={"Software": None})
    for kind in ("svg", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"usual.{kind}").read_bytes()
    assert image.imread(tmp_path / "a.png").shape[:2] == (4 * dpi, 7 * dpi)


def test_a_figure_of_pyplot_stays_in_its_window(tmp_path: Path) -> None:
    drawn = a_figure(1, False)
    canvas = FigureCanvasAgg(drawn.figure)
    page.show(tmp_path, drawn)
    assert drawn.figure.canvas is canvas
