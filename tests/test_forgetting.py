"""Forgetting along trainings: events and their ranks by other programs, verdicts by hand, and the command."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import check_section, made_anew, of_an_earlier_version
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from analysis import draw, open_run, record
from analysis import forgetting as analysed
from analysis.forgetting.table import EventRow
from analysis.work import Work
from lthjax import config, models, study
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.measures import examples
from lthjax.models import Layer


@given(st.lists(st.text("Rw", min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_events_are_falls_from_right_to_wrong(images: list[str], length: int) -> None:
    said = [(image * length)[:length] for image in images]
    right = np.array([[letter == "R" for letter in image] for image in said]).T
    expected = [image.count("Rw") if "R" in image else -1 for image in said]
    assert examples.events(right).tolist() == expected


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=2, max_size=40))
@settings(max_examples=80, deadline=None)
def test_the_rank_correlation_puts_images_that_are_never_right_last(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(of) for of in zip(*pairs, strict=True))
    found = examples.rank_correlation(a, b)
    ranks = [rankdata(np.where(of == -1, 99, of)) for of in (a, b)]
    if any(len({*of.tolist()}) == 1 for of in (a, b)):
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


def rows(**by_arm: list[tuple[int, float | None]]) -> dict[str, Any]:
    """Arm -> events of 100 images and the likeness to the dense network, one a seed."""
    made = []
    for arm, seeds in by_arm.items():
        chain, level, density = ("dense", 0, 1.0) if arm == DENSE else ("rewind-0", 3, 0.5)
        made += [
            EventRow(chain, level, seed, arm, "train", density, 100, 5, 100, 90, count, like)
            for seed, (count, like) in enumerate(seeds)
        ]
    return {"events.csv": made}


def test_verdicts_by_hand() -> None:
    dense: list[tuple[int, float | None]] = [(20, None), (23, None), (20, None), (20, None)]
    ticket = [(10, 0.5), (12, 0.6), (11, 0.5), (10, 0.6)]
    reinit = [(30, 0.2), (31, 0.3), (30, 0.3), (33, 0.2)]
    run: Any = SimpleNamespace(path=Path("runs/A"))
    less, beside = analysed.findings(run, rows(dense=dense, ticket=ticket, reinit=reinit))
    assert [of.outcome for of in (less, beside)] == ["supported"] * 2
    # (10 + 11 + 9 + 10) / 4 of 100 images; (20 + 19 + 19 + 23) / 4.
    assert less.estimate.startswith("+0.100 events an image, at least +0.0")
    assert beside.estimate.startswith("+0.203 events an image, at least +0.1")
    turned = analysed.findings(
        run, rows(dense=[(4, None)] * 4, ticket=[(10, 0.3)] * 4, random=[(5, 0.6)] * 4)
    )
    assert [of.outcome for of in turned] == ["refuted"] * 2
    assert "random masks" in turned[1].claim
    # Precise zeros: both bounds are within the margin.
    events, like = (
        [(20, 0.50), (21, 0.52), (20, 0.50), (21, 0.52)],
        [(21, 0.52), (20, 0.50), (21, 0.50), (20, 0.52)],
    )
    none = analysed.findings(run, rows(dense=[(20, None), (21, None)] * 2, ticket=events, reinit=like))
    assert [of.outcome for of in none] == ["equivalent", "undecided"]
    assert [of.test for of in none] == ["equivalence, ±0.01", "superiority"]
    # Without a control its claim is not tested.
    alone, lacking = analysed.findings(run, rows(dense=dense, ticket=dense))
    assert alone.outcome != "supported"
    assert (lacking.outcome, lacking.estimate) == ("not tested", "no control was replayed")


def test_the_seeds_of_a_claim_are_those_of_the_level_with_fewest() -> None:
    """A level with one seed has no bound that could decide, whatever its mean."""
    found = rows(dense=[(40, None), (41, None), (42, None)], ticket=[(20, 0.5), (22, 0.5), (24, 0.5)])
    for events in (5, 39):
        alone = found["events.csv"][3]._replace(level=7, events=events)
        own, _ = analysed.findings(
            SimpleNamespace(path=Path("runs/A")),  # type: ignore[arg-type]
            {"events.csv": [*found["events.csv"], alone]},
        )
        assert (own.n, record.settled(own).outcome) == (1, "too few seeds")


def test_fewer_events_alone_lower_the_rank_correlation() -> None:
    """Why there is no verdict on it: all networks find the very same images hard."""
    draw = np.random.default_rng(0)
    hard = draw.gamma(0.15, 1.0, 2000)
    dense, many, few = (draw.poisson(hard * events / hard.sum()) for events in (800, 500, 100))
    often, seldom = (examples.rank_correlation(of, dense) for of in (many, few))
    assert often is not None
    assert seldom is not None
    assert seldom < often - 0.1


def test_forgetting_of_a_run(
    tiny: Callable[..., study.Prepared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(models.MODELS, "narrow", models.Entry((Layer("fc1", 12),), 1, "for a test"))
    plain = config.Train(steps=12, batch=20, eval_every=6)
    prepared = tiny(model="narrow", arms=("ticket", "reinit"), levels=1, train=plain)
    run, where = study.run(prepared, tmp_path / "runs"), {"data_dir": tmp_path / "data"}
    assert {of.outcome for of in analysed.findings(open_run(run), None)} == {"not tested"}
    asked = ["--every", "6", "--images", "60", "--data-dir", str(where["data_dir"])]
    record.command(analysed.ANALYSIS)([str(run), "--quiet", *asked])
    assert capsys.readouterr().out == f"{run / 'forgetting'}\n"
    check_section(analysed.ANALYSIS, run)
    opened = open_run(run)
    tables = record.needed(analysed.ANALYSIS, opened)
    assert draw.BANDS in analysed.section(opened, tables).figures[0].caption
    found = tables["events.csv"]
    assert {(row.arm, row.part) for row in found} == {
        (arm, part) for arm in (DENSE, "ticket", "reinit") for part in ("train", "test")
    }
    for row in (row for row in found if row.part == "test"):
        curves = opened.results[Cell(row.seed, row.chain, row.level, row.arm)]["curves"]
        first, last = (60 * curves["test_accuracy"][curves["step"].index(step)] for step in (6, 12))
        # Of two evaluations: what is right at the second was learned, and not forgotten.
        assert (row.images, row.evaluations) == (60, 2)
        assert row.learned - row.events == round(last)
        assert max(first, last) - 1e-6 <= row.learned <= first + last + 1e-6
        assert row.unforgettable == row.learned - row.events
        assert (row.like_dense is None) == (row.arm == DENSE)
    check_a_second_call(run, where, monkeypatch)
    check_an_arm_that_is_not_loaded(run, where, monkeypatch)
    for options, said in (
        ({"every": 13}, "--every: 13 is not allowed; it must be from 1 to 12"),
        ({"every": 12}, "--every: 12 is not allowed; it looks at step 12 alone"),
        ({"images": 0}, "--images: 0 is not allowed"),
        ({"levels": (7,)}, "--levels: 7 has no trained ticket"),
        ({"arms": ("rienit",)}, "--arms: 'rienit' is not in the run"),
        ({"arms": ("random",)}, "no network is left"),
    ):
        with pytest.raises(UserError, match=said):
            record.perform(analysed.ANALYSIS, run, **where, **options)


def check_an_arm_that_is_not_loaded(run: Path, where: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """A call for other arms, too, ends with the sentence that says what to load."""
    said = r"the arm 'reinit' is a row of a config file.*by --config"
    with patch.context() as without:
        # Not out of the table itself: put back, the arm would come last in it.
        without.setattr("analysis.run.ARMS", {name: row for name, row in ARMS.items() if name != "reinit"})
        with pytest.raises(UserError, match=said):
            record.perform(analysed.ANALYSIS, run, every=6, images=60, arms=("ticket",), **where)
        with pytest.raises(UserError, match=said):
            open_run(run).prepared((0,), where["data_dir"])


def check_a_second_call(run: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call trains nothing, one that was stopped what is missing, another interval everything."""
    trained: list[tuple[int, str]] = []
    train, before = Work.train, (run / "forgetting" / "events.csv").read_bytes()

    def counted(self: Work, jobs: Any) -> Any:
        trained.extend((cell.seed, cell.arm) for cell, _ in jobs)
        return train(self, jobs)

    monkeypatch.setattr(Work, "train", counted)
    record.perform(analysed.ANALYSIS, run, every=6, images=60, **where)
    assert trained == []
    # What is not asked for again stays in the table.
    record.perform(analysed.ANALYSIS, run, every=6, images=60, arms=("ticket",), **where)
    assert (run / "forgetting" / "events.csv").read_bytes() == before
    (kept,) = (run / "forgetting" / "events" / "seed=1").rglob("reinit.npz")
    kept.unlink()
    record.perform(analysed.ANALYSIS, run, every=6, images=60, **where)
    assert trained == [(1, "reinit")]
    assert (run / "forgetting" / "events.csv").read_bytes() == before
    trained.clear()
    for path in (run / "forgetting" / "events").rglob("*.npz"):
        of_an_earlier_version(path)
    record.perform(analysed.ANALYSIS, run, every=6, images=60, **where)
    assert trained == []
    for _ in range(2):
        # The second time the file names what it was counted of.
        made_anew(run, Cell(0, "rewind-0", 1, "ticket"))
        record.perform(analysed.ANALYSIS, run, every=6, images=60, **where)
        assert trained == [(0, "ticket")]
        trained.clear()
    assert (run / "forgetting" / "events.csv").read_bytes() == before, "of a replay, which is what it was"
    record.perform(analysed.ANALYSIS, run, every=4, images=60, **where)
    assert len(trained) == 6


def test_the_help_says_which_levels_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """Controls may have few levels, as in the quickstart; those beside them are chosen."""
    with pytest.raises(SystemExit):
        record.command(analysed.ANALYSIS)(["--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out).replace("`", "")
    assert (
        "nearest to 20, 10 and 3 % of the weights of those that have a control of --arms, where any has one"
        in said
    )
