"""Early-Bird: distances and the queue by hand, and the command on a tiny study."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import check_section, made_anew
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special as scipy_special
from scipy import stats as scipy_stats

from analysis import earlybird as analysed
from analysis import open_run, record
from analysis.earlybird.table import DrawRow, MaskRow
from analysis.work import Work
from lthjax import config, fields, merge, models, prune, study
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.measures import earlybird
from lthjax.networks import Layer

CLAIM = "Early-Bird: masks settle within the first 20 % of the dense training"


def masks(*bits: str) -> list[dict[str, np.ndarray]]:
    """Masks of two layers, 2 and the rest of the weights."""
    flat = [np.array([bit == "1" for bit in one]) for one in bits]
    return [{"a": one[:2], "b": one[2:]} for one in flat]


def test_distance_is_hammings() -> None:
    a, b, c = masks("110010", "110010", "001101")
    assert earlybird.distance(a, b) == 0
    assert earlybird.distance(a, c) == 1
    assert earlybird.distance(*masks("110010", "101010")) == pytest.approx(2 / 6)


@given(st.lists(st.text("01", min_size=7, max_size=7), min_size=1, max_size=9), st.integers(2, 5))
@settings(max_examples=80, deadline=None)
def test_the_queue_by_hand(bits: list[str], queue: int) -> None:
    found = earlybird.largest(masks(*bits), queue)
    for place in range(len(bits)):
        first = place - queue + 1
        if first < 0:
            assert found[place] is None
            continue
        differ = [
            sum(x != y for x, y in zip(bits[place], bits[other], strict=True))
            for other in range(first, place)
        ]
        assert found[place] == pytest.approx(max(differ) / 7)
    for threshold in (0.1, 0.3, 0.99):
        place = earlybird.drawn(found, threshold)
        below = [n for n, apart in enumerate(found) if apart is not None and apart < threshold]
        assert place == (below[0] if below else None)


def test_draws_keep_as_many_as_pruning_does() -> None:
    """Of 45 weights 70 % are 31.5, which is rounded up, though 0.7 · 45 is less in binary."""
    sizes = np.random.default_rng(0).permutation(45).astype(np.float32)
    kept = [int(mask.sum()) for mask in earlybird._largest_of(sizes)]
    assert kept == [int(prune.rounded_share(density, 45)) for density in earlybird.DENSITIES]
    assert kept[earlybird.DENSITIES.index(0.7)] == 32


def test_the_rule_waits_until_the_whole_queue_is_near() -> None:
    """Each mask is near the one before it, and yet they drift."""
    drift = masks(*("0" * n + "1" * 6 + "0" * (14 - n) for n in range(9)))
    assert max(earlybird.distance(a, b) for a, b in itertools.pairwise(drift)) == pytest.approx(0.1)
    assert earlybird.drawn(earlybird.largest(drift, 2), 0.11) == 1
    assert earlybird.drawn(earlybird.largest(drift, 5), 0.11) is None
    settled = [*drift, *drift[-1:] * 5]
    assert earlybird.drawn(earlybird.largest(settled, 5), 0.11) == len(drift) + 2


def test_chance_is_the_distance_of_random_masks() -> None:
    generator, shares = np.random.default_rng(0), {"a": 0.1, "b": 0.5}
    sizes = {"a": 40_000, "b": 10_000}

    def drawn() -> dict[str, np.ndarray]:
        return {n: generator.permutation(np.arange(size) < shares[n] * size) for n, size in sizes.items()}

    expected = (2 * 0.1 * 0.9 * 40_000 + 2 * 0.25 * 10_000) / 50_000
    assert earlybird.chance(drawn()) == pytest.approx(expected)
    assert earlybird.distance(drawn(), drawn()) == pytest.approx(expected, abs=0.005)
    # At the threshold of the paper, masks below 5.3 % density are near each other by chance.
    sparse = {"a": np.arange(10_000) < 527}
    assert 0.0995 < earlybird.chance(sparse) < earlybird.THRESHOLD


def plain_masks(weights: dict[str, np.ndarray], density: float, whole: bool) -> np.ndarray:
    """By a stable sort of all sizes, largest first."""
    parts = [abs(leaf).ravel() for leaf in weights.values()]
    kept = []
    for part in [np.concatenate(parts)] if whole else parts:
        mask = np.zeros(part.size, bool)
        mask[np.argsort(-part, kind="stable")[: int(density * part.size + 0.5)]] = True
        kept.append(mask)
    return np.concatenate(kept)


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=9, max_size=9), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 8),
)
@settings(max_examples=80, deadline=None)
def test_draws_along_a_training(steps: list[list[int]], whole: bool, stop: int) -> None:
    """Against a sort, with many ties; a training that goes on from what is saved draws the same."""
    weights = [{"a": np.float32(one[:4]).reshape(2, 2), "b": np.float32(one[4:])} for one in steps]
    watch = earlybird.Draws(whole)
    found = []
    for place, own in enumerate(weights):
        found.append(watch.add(own))
        if place == stop:
            watch = earlybird.Draws(whole, watch.newest)
    for place, density in enumerate(earlybird.DENSITIES):
        plain = [{"all": plain_masks(own, density, whole)} for own in weights]
        assert [of[place] for of in found] == earlybird.largest(plain)


def draws(steps: list[int | None], every: int = 2) -> dict[str, Any]:
    rows = [
        DrawRow(
            "rewind-0", 1, seed, 0.5, 5, 0.1, every, 100, step, None if step is None else step / 10, 0.5, 0.8
        )
        for seed, step in enumerate(steps)
    ]
    return {"draws.csv": rows, "masks.csv": []}


@pytest.mark.parametrize(
    ("steps", "every", "outcome"),
    [
        ([14, 14, 16], 2, "supported"),
        ([40, 42, 44], 2, "refuted"),
        ([14, 60, 16], 2, "undecided"),
        ([None, None, None], 2, "refuted"),
        # The queue is full at 40 % for the first time: the masks may have settled before 20 %.
        ([40, 40, 42], 8, "undecided"),
        ([10, 10, 12], 2, "supported"),
        ([10, None, None], 2, "undecided"),
        # A queue that spans more than 20 % of the training does not show that denser masks would not settle.
        ([None, None, None], 6, "undecided"),
        ([40, 42, 44], 6, "undecided"),
    ],
)
def test_the_verdict(steps: list[int | None], every: int, outcome: str) -> None:
    (found,) = analysed.findings(open_run_like(), draws(steps, every))
    assert (found.claim, found.outcome, found.n) == (CLAIM, outcome, 3)
    assert ("never" in found.estimate) == (None in steps)
    # The bound that decides, on the logit scale: below 20 % it is the upper one. It is no nearer than by the
    # spread of a uniform distribution between two masks.
    shares = [1.0 if step is None else step / 100 for step in steps]
    share = sum(shares) / 3
    slope = 1 / (share * (1 - share)) if share < 1 else 0.0
    half = slope * scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem(shares)
    low, high = 100 * scipy_special.expit(scipy_special.logit(share) + half * np.array([-1, 1]))
    floor = every / math.sqrt(12)
    if floor > 100 * np.std(shares, ddof=1):
        half = scipy_stats.t.ppf(0.95, 2) * floor / math.sqrt(3)
        low, high = min(low, 100 * share - half), max(high, min(100 * share + half, 100.0))
    known = {"supported": f"at most {high:.1f}", "refuted": f"at least {low:.1f}"}
    both = f"at least {low:.1f} and at most {high:.1f}"
    first = sum(step is not None and step <= 5 * every for step in steps)
    # A step that is an upper bound leaves no lower one.
    bounds = f"at most {high:.1f} (one-sided" if first else f"{known.get(outcome, both)} ("
    most = "at most " if first else ""
    assert found.estimate.startswith(f"after {most}{100 * share:.1f} % of the training, {bounds}")
    assert ("perhaps sooner" in found.estimate) == (first > 0)
    assert (f"; {first} of 3 known by a bound" in found.estimate) == (first > 0)
    assert found.beside == ""
    sparse = draws(steps, every)
    sparse["draws.csv"] = [of._replace(chance=of.threshold / 2) for of in sparse["draws.csv"]]
    (found,) = analysed.findings(open_run_like(), sparse)
    assert found.beside == "two random masks of that density pass the same rule"


@pytest.mark.parametrize(
    ("steps", "outcome", "said"),
    [
        ([20, 20, None, None, None], "undecided", "after at most 68.0 % of the training, at most 93.5 ("),
        ([20, None, None, None, None], "refuted", "after at least 80.0 % of the training, at least 21.8 ("),
    ],
)
def test_upper_bounds_refute_only_with_0_in_their_place(
    steps: list[int | None], outcome: str, said: str
) -> None:
    """With 20 % in their place, the bounds above are 23.8 and 29.3 %, with 0 they are 14.5 and 21.8 %."""
    (found,) = analysed.findings(open_run_like(), draws(steps, every=4))
    assert found.outcome == outcome
    assert found.estimate.startswith(said)
    assert found.estimate.endswith(", counted as 0 %") == (outcome == "refuted")


def test_levels_of_one_printed_density_keep_their_own_seeds() -> None:
    """Of five and of three seeds; the latter decides, though it is printed as the former is."""
    settled = [of._replace(level=20, density=0.00112) for of in draws([12, 13, 14, 12, 13])["draws.csv"]]
    late = [of._replace(level=21, density=0.00094) for of in draws([90, None, None])["draws.csv"]]
    (found,) = analysed.findings(open_run_like(), {"draws.csv": [*settled, *late]})
    assert (found.outcome, found.n) == ("refuted", 3)
    assert "; 2 of 3 never, counted as 100 %" in found.estimate


def test_an_epoch_in_which_masks_settle_at_once_is_no_zero() -> None:
    """Step 30 of 916 in an epoch; seeds that agree are no more certain than the steps between two masks."""
    own = [one._replace(epoch=30 / 916) for one in draws([30, 30, 30], every=2)["draws.csv"]]
    half = scipy_stats.t.ppf(0.975, 2) * 2 / math.sqrt(12) / math.sqrt(3)
    low, high = 30 - half, 30 + half
    assert analysed._line(3, own)[2:5] == [
        f"30 [{low:.0f}, {high:.0f}]",
        f"30.0 [{low:.1f}, {high:.1f}]",
        f"0.033 [{low / 916:.3f}, {high / 916:.3f}]",
    ]
    assert low < 29 < 31 < high
    assert analysed._line(3, draws([100] * 3)["draws.csv"])[2].endswith(", 100]")
    never = [one._replace(step=None, epoch=None) for one in own]
    assert analysed._line(3, never)[2:5] == ["– (3 of 3 never)", "–", "–"]
    # Step 10 is the first at which the queue is full: an upper bound, which has no interval.
    first = [one._replace(epoch=one.step / 10) for one in draws([10, 10, 40])["draws.csv"]]
    assert analysed._line(3, first[:2])[2:5] == ["≤ 10 (2 of 2 known by a bound)", "≤ 10.0", "≤ 1.000"]
    assert analysed._line(3, first)[2:5] == ["≤ 20 (2 of 3 known by a bound)", "≤ 20.0", "≤ 2.000"]
    partly = [*first[:2], never[0]]
    assert analysed._line(3, partly)[2] == "≤ 10 (2 of 3 known by a bound, 1 of 3 never)"


@pytest.mark.parametrize("granularity", ["weight", "unit-l2", "2:4"])
def test_masks_of_single_weights_say_so_beside_tickets_of_units(granularity: str) -> None:
    run = open_run_like(granularity)
    mask = MaskRow("rewind-0", 1, 0, 14, 0.5, None, 0.05, 0.5, 0.8, 0.3)
    found = {**draws([14, 14, 16]), "masks.csv": [mask]}
    notes, (finding,) = analysed.section(run, found).notes, analysed.findings(run, found)
    told = granularity != "weight"
    assert any(f"prune.granularity is {granularity}" in note for note in notes) == told
    assert finding.beside == ("masks of single weights, other than the study prunes" if told else "")


def test_the_seeds_of_a_claim_are_those_of_the_level_with_fewest() -> None:
    """A level with one seed has no bound that could decide, whatever its step."""
    several = draws([14, 14, 16])["draws.csv"]
    for step in (10, 18):
        alone = draws([step])["draws.csv"][0]._replace(level=2, density=0.1)
        (found,) = analysed.findings(open_run_like(), {"draws.csv": [*several, alone]})
        assert (found.n, record.settled(found).outcome) == (1, "too few seeds")


def open_run_like(granularity: str = "weight") -> Any:
    """Findings and section read nothing but the table, the path and what is pruned."""
    asked = config.Study(name="any", prune=config.Prune(granularity=granularity))
    return SimpleNamespace(study=asked, path=Path("any"))


def test_masks_of_a_run(
    tiny: Callable[..., study.Prepared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(models.MODELS, "narrow", models.Entry((Layer("fc1", 12),), 1, "for a test"))
    prepared = tiny(model="narrow", arms=("ticket",), levels=2, prune=config.Prune(rate=0.7))
    run, where = study.run(prepared, tmp_path / "runs"), {"data_dir": tmp_path / "data"}
    assert (
        record.found(analysed.ANALYSIS, open_run(run)) is None
    )  # fewer evaluations than the queue has masks
    (lacking,) = analysed.findings(open_run(run), None)
    assert (lacking.outcome, lacking.estimate) == ("not tested", "3 masks were drawn, the rule compares 5")
    asked = ["--every", "3", "--queue", "2", "--threshold", "0.5", "--levels", "1"]
    record.command(analysed.ANALYSIS)([str(run), "--data-dir", str(where["data_dir"]), "--quiet", *asked])
    assert capsys.readouterr().out == f"{run / 'earlybird'}\n"
    check_section(analysed.ANALYSIS, run)
    opened = open_run(run)
    found = record.needed(analysed.ANALYSIS, opened)
    rows = found["masks.csv"]
    assert [(row.seed, row.step) for row in rows] == [(s, n) for s in (0, 1) for n in (3, 6, 9, 12)]
    for seed in (0, 1):
        # The last mask is that of the dense network's final weights, which level 1 is made from: the ticket.
        last = next(row for row in rows if (row.seed, row.step) == (seed, 12))
        ticket = opened.mask(Cell(seed, "rewind-0", 1, "ticket"))
        final = opened.weights(Cell(seed, DENSE, 0, DENSE))
        for name, layer in ticket.items():
            size = abs(final[name]["kernel"])
            assert size[layer["kernel"]].min() > size[~layer["kernel"]].max()
        assert (last.iou, last.density) == (1.0, pytest.approx(opened.tickets().done[0].density))
        kept = {name: float(layer["kernel"].mean()) for name, layer in ticket.items()}
        sizes = {name: layer["kernel"].size for name, layer in ticket.items()}
        by_chance = sum(2 * kept[n] * (1 - kept[n]) * sizes[n] for n in kept) / sum(sizes.values())
        assert last.chance == pytest.approx(by_chance)
        assert last.previous == last.largest
        assert 0 < last.iou_chance < 1
    assert [row.step for row in found["draws.csv"]] == [6, 6]
    before = (run / "earlybird" / "masks.csv").read_bytes()
    check_a_second_call(run, where, monkeypatch, before)
    for options, said in (
        ({"every": 13}, "--every: 13 is not allowed; it must be from 1 to 12"),
        ({"every": 3}, "--every: 3 gives 4 masks in 12 steps, fewer than the queue's 5"),
        ({"queue": 1}, "--queue: 1 is not allowed"),
        ({"threshold": 0.0}, "--threshold: 0 is not allowed"),
        ({"levels": (7,)}, "--levels: 7 has no trained ticket"),
    ):
        with pytest.raises(UserError, match=said):
            record.perform(analysed.ANALYSIS, run, **where, **options)


def test_what_the_study_draws_is_what_the_command_draws(
    tiny: Callable[..., study.Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "narrow", models.Entry((Layer("fc1", 12),), 1, "for a test"))
    every = config.Train(steps=9, batch=20, eval_every=1)
    made = tiny(model="narrow", arms=("ticket",), levels=1, prune=config.Prune(rate=0.7), train=every)
    run = study.run(made, tmp_path / "runs")
    own = record.needed(analysed.ANALYSIS, open_run(run))
    section = analysed.ANALYSIS.section(open_run(run), own)
    assert [row[:2] for row in section.tables[0].rows] == [
        ["–", "70.0"],
        ["–", "50.0"],
        ["–", "30.0"],
        ["–", "10.0"],
    ]
    assert "ranked by magnitude within every layer," in " ".join(section.notes)
    (run / "config.py").touch()
    finer = analysed.section(open_run(run), own).notes[-1]
    assert finer.endswith(f"python -m analysis.earlybird {run} --config {run / 'config.py'}")
    (finding,) = analysed.findings(open_run(run), own)
    assert (finding.claim, finding.outcome) == (CLAIM, "not tested")
    assert finding.estimate.endswith("5 of them, which the rule compares, take 56 % of the training")
    seldom = [row._replace(total=25) for row in own["draws.csv"]]
    (finding,) = analysed.findings(open_run(run), {**own, "draws.csv": seldom})
    assert (finding.claim, finding.n) == (CLAIM, 2)
    assert finding.outcome != "not tested"
    assert not (run / "earlybird").exists()
    asked: dict[str, Any] = {"every": 1, "data_dir": tmp_path / "data"}
    record.perform(analysed.ANALYSIS, run, **asked)
    drawn = record.needed(analysed.ANALYSIS, open_run(run))
    for name, columns in (
        ("masks.csv", ("seed", "step", "largest")),
        ("draws.csv", ("seed", "step", "epoch")),
    ):
        mine = [[getattr(row, of) for of in columns] for row in own[name] if row.density == 0.3]
        assert mine == [[getattr(row, of) for of in columns] for row in drawn[name]]
        assert any(row[-1] is not None for row in mine)
    path = run / "seed=0" / "dense"
    result = json.loads((path / "result.json").read_text())
    largest = result["draws"]["largest"]
    for change, said in (
        ({"scope": "all"}, "draws.scope"),
        ({"queue": 0}, "draws.queue"),
        ({"largest": {"layer": largest["layer"]}}, "draws.largest.global"),
        ({"largest": largest | {"global": largest["global"][1:]}}, "draws.largest"),
        ({"scope": "layer", "largest": largest["layer"][1:]}, "draws.largest"),
    ):
        with pytest.raises(ValueError, match=said):
            fields.result(result | {"draws": result["draws"] | change})
    # Earlier versions recorded one scope; a dense network borrowed from a study of another has none to show.
    for scope in ("layer", "global"):
        earlier = result["draws"] | {"scope": scope, "largest": largest[scope]}
        fields.result(result | {"draws": earlier})
        old = open_run(run)
        old.results = {cell: of | {"draws": earlier} for cell, of in old.results.items() if cell.seed == 0}
        found = analysed.recorded(old)
        if scope == "layer":
            assert found == {name: [row for row in of if row.seed == 0] for name, of in own.items()}
        else:
            assert found is None
            assert analysed.findings(old, None)[0].estimate == "no masks were drawn"


def test_a_dense_network_is_the_same_whatever_the_scope(
    tiny: Callable[..., study.Prepared], tmp_path: Path
) -> None:
    every = config.Train(steps=6, batch=20, eval_every=1)
    asked = [
        tiny(seeds=(0,), levels=0, train=every, prune=config.Prune(scope=scope, rate=0.2)).study
        for scope in ("layer", "global")
    ]
    both = study.run_all(study.prepare_all(asked, tmp_path / "data"), tmp_path / "both")
    alone = study.run(study.prepare(asked[1], tmp_path / "data"), tmp_path / "alone")
    runs = [open_run(path) for path in (*both, alone)]
    layer, *others = (run.results[Cell(0, DENSE, 0, DENSE)] | {"seconds": 0} for run in runs)
    assert others == [layer, layer]
    assert layer["draws"]["largest"]["layer"] != layer["draws"]["largest"]["global"]
    for run, scope in zip(runs, ("layer", "global", "global"), strict=True):
        found = analysed.recorded(run)
        assert found is not None
        shown = [[row.largest for row in found["masks.csv"] if row.density == d] for d in earlybird.DENSITIES]
        assert shown == [list(of) for of in zip(*layer["draws"]["largest"][scope], strict=True)]
        section = analysed.section(run, found)
        assert ("would be nearer to each other" in section.notes[1]) == (scope == "global")
        assert "of two random masks with that density in every layer" in section.figures[0].caption
    merged = merge.merge([both[1], alone], tmp_path / "merged")
    assert open_run(merged.into).results.keys() == runs[1].results.keys()


def check_a_second_call(
    run: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    """A second call trains nothing, one that was stopped after a seed the other seed, another queue both.

    Another level trains both and keeps what there is of the first.
    """
    trained: list[int] = []
    train = Work.train

    def counted(self: Work, jobs: Any) -> Any:
        trained.extend(job.seed for _, job in jobs)
        return train(self, jobs)

    monkeypatch.setattr(Work, "train", counted)
    asked: dict[str, Any] = {"every": 3, "queue": 2, "threshold": 0.5, **where}
    record.perform(analysed.ANALYSIS, run, levels=(1,), **asked)
    assert trained == []
    shutil.rmtree(run / "earlybird" / "masks=1")
    record.perform(analysed.ANALYSIS, run, levels=(1,), **asked)
    assert trained == [1]
    assert (run / "earlybird" / "masks.csv").read_bytes() == before
    trained.clear()
    shutil.copytree(run / "earlybird" / "masks=0", run / "kept")
    about = json.loads((run / "kept" / "about.json").read_text())
    # As earlier versions wrote it.
    assert {*about.pop("of")} == {"1"}
    (run / "kept" / "about.json").write_text(json.dumps({**about, "levels": [1]}))
    (run / "kept" / "checksums.json").unlink()
    for levels, replayed in (((2,), [0, 1]), ((1,), []), ((1, 2), [])):
        record.perform(analysed.ANALYSIS, run, levels=levels, **asked)
        found = record.needed(analysed.ANALYSIS, open_run(run))
        assert {(row.level, row.seed) for row in found["draws.csv"]} == {
            (n, s) for n in levels for s in (0, 1)
        }
        assert trained == replayed
        trained.clear()
        if levels == (1,):
            assert (run / "earlybird" / "masks.csv").read_bytes() == before
    shutil.rmtree(run / "earlybird" / "masks=0")
    (run / "kept").rename(run / "earlybird" / "masks=0")
    record.perform(analysed.ANALYSIS, run, levels=(1,), **asked)
    assert trained == []
    assert (run / "earlybird" / "masks.csv").read_bytes() == before
    # Another ticket at level 2: its masks alone are compared anew.
    record.perform(analysed.ANALYSIS, run, levels=(1, 2), **asked)
    assert trained == [0]
    trained.clear()
    made_anew(run, Cell(1, "rewind-0", 2, "ticket"))
    for levels, replayed in (((1,), []), ((1, 2), [1]), ((1, 2), [])):
        record.perform(analysed.ANALYSIS, run, levels=levels, **asked)
        assert trained == replayed
        trained.clear()
    record.perform(analysed.ANALYSIS, run, levels=(1,), **{**asked, "queue": 3})
    assert trained == [0, 1]
