"""Whether training was long enough, accuracy as the mean of the last evaluations, speed, and power."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import about, result
from scipy import stats as scipy_stats
from test_any_rows import Given
from test_verdicts import NOISE, STUDY, row, run

from analysis import ends
from analysis.report import facts, figures, power, speed, verdicts
from analysis.rows import Row
from analysis.run import Run
from lthjax.config import Optim
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.optim import SCHEDULES, Course


def ended(steps: list[int], trained: int = 500) -> list[Row]:
    """Networks of a control whose validation loss was lowest at these steps; training ends at step 500."""
    made = [row(seed, "rewind-0", 1, "reinit", 0.15, 90.0) for seed in range(len(steps))]
    return [of._replace(early_stop_step=step, steps=trained) for of, step in zip(made, steps, strict=True)]


@pytest.mark.parametrize(
    ("steps", "trained", "word", "counts"),
    [
        ([500, 500, 400], 500, "still learning", (2, 0)),
        ([500, 400, 300], 500, "long enough", (1, 0)),
        # Half of them is not most of them.
        ([500, 500, 400, 300], 500, "long enough", (2, 0)),
        ([100, 249, 400], 500, "overfitted", (0, 2)),
        ([250, 250, 250], 500, "long enough", (0, 0)),
        # Rewound to step 300: its first half ends at 400.
        ([350, 399, 400], 200, "overfitted", (0, 2)),
        ([], 500, "–", (0, 0)),
    ],
)
def test_where_validation_loss_was_lowest(
    steps: list[int], trained: int, word: str, counts: tuple[int, int]
) -> None:
    found = ends.ends(ended(steps, trained), 500, 50)
    assert (found.word, found[:2], found.networks) == (word, counts, len(steps))


def test_untrained_and_diverged_networks_do_not_count() -> None:
    rows = ended([500, 500, 500])
    untrained, diverged = rows[0]._replace(steps=0), rows[1]._replace(early_stop_step=None)
    assert ends.ends([untrained, diverged, rows[2]], 500, 50) == (1, 0, 1)


@pytest.mark.parametrize(
    ("trained", "every", "counts"),
    [
        (45, 75, False),
        (50, 75, False),
        (51, 75, True),
        (500, 500, False),
        (500, 600, False),
        (500, 499, True),
    ],
)
def test_a_network_that_was_evaluated_once_is_not_called_still_learning(
    trained: int, every: int, counts: bool
) -> None:
    """Evaluations are at multiples of `every` after its start, and at step 500."""
    rows, start = ended([500, 500, 500], trained), 500 - trained
    assert counts == (len({*range(start - start % every + every, 500, every), 500}) > 1)
    found = ends.ends(rows, 500, every)
    assert (found.word, found.networks) == (("still learning", 3) if counts else ("–", 0))
    assert bool(ends.mark(rows, "reinit", 500, every, 0.1)) == counts
    # Longer training of what is ahead narrows no gap.
    assert not ends.mark(rows, "reinit", 500, every, 0)


def test_a_gap_to_a_control_that_still_learns_is_marked() -> None:
    """Of reinit at 15 %, five of six networks end at their lowest validation loss; at 5 % none does."""
    rows = run({"ticket": {0.15: 0.0, 0.05: 0.0}, "reinit": {0.15: -5.0, 0.05: -9.0}})
    slow = [
        r._replace(early_stop_step=500) if (r.arm, r.density) == ("reinit", 0.15) and r.seed else r
        for r in rows
    ]
    found = {of.claim: of for of in verdicts.findings(STUDY, slow)}
    beside = found["Tickets beat reinitialised ones at 80–90 % sparsity"].beside
    assert beside.startswith(
        "reinit is still learning (lowest validation loss at the last evaluation in 5 of 6"
    )
    # The search is over both levels: 5 of 12 networks are not most of them.
    assert found["Tickets beat reinitialised ones by 10 points or more at some density"].beside == ""
    calm = verdicts.findings(STUDY, rows)
    assert not any("still learning" in of.beside for of in calm)


def test_a_control_ahead_of_the_tickets_is_not_said_to_narrow_the_gap() -> None:
    rows = run({"ticket": {0.15: 0.0}, "reinit": {0.15: 5.0}})
    slow = [row._replace(early_stop_step=500) if row.arm == "reinit" else row for row in rows]
    assert not any("still learning" in of.beside for of in verdicts.findings(STUDY, slow))


class Made(Run):
    """A run of given results, without a folder."""

    def __init__(self, results: dict[Cell, Any], last: int = 1, **changes: Any) -> None:
        self.path, self.last, self.about = Path("any"), last, about(**changes)
        self.results = results


CURVE = {"step": [2, 4, 6, 8, 10, 12], "test_accuracy": [0.1, 0.9, 0.7, 0.8, 0.9, 0.85]}
SEED = Cell(0, "dense", 0, "dense")


def made(last: int, **changes: Any) -> Made:
    one = result(SEED)
    names = ("test_loss", "validation_loss", "validation_accuracy")
    values = {name: [0, 0, 0, 1.0, 2.0, 6.0] for name in names}
    one |= {"curves": {**values, **CURVE}, "test_accuracy": 0.85, "train_accuracy": 0.99, "steps": 12}
    return Made({SEED: one}, last, **changes)


def test_the_mean_of_the_last_evaluations() -> None:
    (plain,), (smooth,) = made(1).rows, made(3).rows
    assert plain.test_accuracy == 0.85
    assert smooth.test_accuracy == pytest.approx((0.8 + 0.9 + 0.85) / 3)
    assert (smooth.validation_loss, smooth.test_loss) == (pytest.approx(3.0), pytest.approx(3.0))
    assert (smooth.train_accuracy, smooth.early_stop_step) == (0.99, plain.early_stop_step)
    assert any("means of the last 3 evaluations" in note for note in facts.notes(made(3)))
    assert not any("means of the last" in note for note in facts.notes(made(1)))


def test_only_where_the_learning_rate_is_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "--last: 2 is not allowed, as the learning rate falls to the end"
    for schedule in ("cosine", "linear"):
        with pytest.raises(UserError, match=rf"{said} \(schedule {schedule}\)"):
            _ = made(2, optim=Optim(schedule=schedule)).rows
    # A row of one's own may fall, too: only where it is known, and says that it does not, is there a mean.
    own = made(3, optim=Optim(schedule="own"))
    why = r"it is not known here whether .* schedule own is a row .*; give its file by --config, or in Python"
    with pytest.raises(UserError, match=why):
        _ = own.rows
    course = Course(lambda asked, lengths: lambda step: asked.lr, "", falls=True)
    monkeypatch.setitem(SCHEDULES, "own", course)
    with pytest.raises(UserError, match=r"the learning rate falls to the end \(schedule own\)"):
        _ = own.rows
    monkeypatch.setitem(SCHEDULES, "own", course._replace(falls=False))
    assert own.rows[0].test_accuracy == pytest.approx((0.8 + 0.9 + 0.85) / 3)
    steps = made(3, optim=Optim(schedule="steps", milestones=(9,)))
    # The evaluation at step 8 shows the rate before the drop.
    steps.about["lengths"]["milestones"] = [8]
    with pytest.raises(UserError, match="--last: 3 is not allowed; seed 0, dense has 2 evaluations"):
        _ = steps.rows
    with pytest.raises(UserError, match="--last: 0 is not allowed"):
        Run("anywhere", 0)


# Learning speed


def paced(steps: dict[str, list[int]], density: float = 0.15) -> list[Row]:
    """Dense, ticket and reinit of a seed each with these early-stop steps, of 500."""
    rows = run({arm: {density: 0.0} for arm in steps if arm != "dense"}, seeds=range(len(steps["ticket"])))
    return [r._replace(early_stop_step=steps[r.arm][r.seed], steps=500) for r in rows]


FASTER = "Tickets learn faster than {} at 80–90 % sparsity"


def test_tickets_that_learn_faster() -> None:
    rows = paced({"dense": [200, 300, 400], "ticket": [100, 100, 100], "reinit": [400, 500, 500]})
    found = {of.claim: of for of in verdicts.findings(STUDY, rows)}
    dense, reinit = (found[FASTER.format(of)] for of in ("the dense network", "reinitialised ones"))
    logs = np.log([2, 3, 4])
    low = np.exp(logs.mean() - scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem(logs))
    assert dense.outcome == "supported"
    assert dense.estimate == (
        f"steps of dense / ticket: {np.exp(logs.mean()):.2f}×, at least {low:.2f} (one-sided 95 %) "
        "at 15.0 % of the weights"
    )
    # Two of three are known to be at least 5: no mean, and a bound that counts them as 5.
    logs = np.log([4, 5, 5])
    low = np.exp(logs.mean() - scipy_stats.t.ppf(0.95, 2) * scipy_stats.sem(logs))
    assert (reinit.outcome, reinit.estimate) == (
        "supported",
        f"steps of reinit / ticket: at least {low:.2f} (one-sided 95 %) at 15.0 % of the weights, "
        "2 of 3 seeds known by bounds alone",
    )


def test_nothing_is_known_where_all_end_at_the_last_evaluation() -> None:
    rows = paced({"dense": [500] * 3, "ticket": [500] * 3})
    found = {of.claim: of for of in verdicts.findings(STUDY, rows)}[FASTER.format("the dense network")]
    assert found.outcome == "undecided"
    assert found.estimate == (
        "steps of dense / ticket: no bound of the mean is known at 15.0 % of the weights, 3 of 3 seeds known "
        "by bounds alone"
    )


def ending_at(end: int, rows: list[Row]) -> Given:
    """A run of these rows whose trainings end at a step."""
    made = Given(rows)
    made.about["lengths"]["total"] = end
    return made


def test_the_table_of_speed_shows_levels_of_which_something_is_known() -> None:
    """At 50 % nothing; at 20 % five seeds' tickets take 150 steps, the others 500 or more."""
    first = paced({"dense": [500] * 5, "ticket": [500] * 5, "reinit": [500] * 5}, 0.5)
    second = [of._replace(level=2, density=0.2) for of in first if of.arm != "dense"]
    known = [of._replace(early_stop_step=150) if of.arm == "ticket" else of for of in second]
    (shown,) = speed.section(ending_at(500, [*first, *known]), "")
    (table,) = shown.tables
    assert [line[1:] for line in table.rows] == [
        ["dense", "20.0", "–", "at least 3.33", "5", "5 (100 %)"],
        ["reinit", "20.0", "–", "at least 3.33", "5", "5 (100 %)"],
    ]
    (note,) = shown.notes
    assert note.startswith("No bound of the mean is known of dense at 1 of 2 levels, of reinit at 1 of 2 lev")
    (nothing,) = speed.section(ending_at(500, first), "")
    assert (nothing.tables, len(nothing.figures)) == ([], 1)
    assert nothing.notes[0].startswith("No bound of the mean is known at any level; there is no table. Too ")
    assert (nothing.remark, bool(shown.remark)) == ("", True)
    slow = paced({"dense": [500] * 5, "ticket": [500] * 5, "reinit": [150] * 5}, 0.5)
    (part,) = speed.section(ending_at(500, slow), "")
    assert part.notes[0].startswith("No bound of the mean is known of dense at the only level; these have no")
    (one,) = speed.section(ending_at(500, [of for of in first if of.seed == 0]), "")
    assert one.notes[0].startswith("No bound of the ratio is known at any level")
    (alone,) = speed.section(ending_at(500, [of for of in known if of.seed == 0] + first[:1]), "")
    assert alone.tables[0].rows[0][3:] == ["–", "–", "1", "1 (100 %)"]


def test_the_figure_of_speed_draws_no_mean_over_bounds() -> None:
    """Level 1 is known, at level 2 a seed ends at the last evaluation: a line of one point, a triangle."""
    rows = paced({"dense": [200, 400], "ticket": [100, 100]}, 0.5)
    deeper = [
        r._replace(level=2, density=0.2, early_stop_step=500 if r.seed else 50) for r in rows if r.level
    ]
    (one, two) = speed.slower([*rows, *deeper], "rewind-0", "dense", 500)
    assert (one.censored, two.censored) == (0, 1)
    assert [tuple(r) for r in two.ratios] == [(4, 4), (0, pytest.approx(0.8))]
    axes = figures.speed({"dense": [one, two]}, "heading").axes[0]
    (line,) = [of for of in axes.get_lines() if of.get_label().startswith("dense (n")]
    np.testing.assert_allclose(line.get_xydata(), [[50, np.sqrt(8)]])
    drawn = [of for of in axes.get_lines() if len(of.get_xydata())]
    marks = [(of.get_marker(), *np.round(of.get_xydata()[0], 6)) for of in drawn]
    assert sorted(one for one in marks if one[0] in (".", "^", "v")) == [
        (".", 20, 4), (".", 50, 2), (".", 50, 4), ("v", 20, 0.8),
    ]  # fmt: skip


def test_the_figure_of_speed_says_what_it_cannot_show() -> None:
    """Where a seed's dense network and ticket both end at the last evaluation, their ratio has no bound."""
    rows = paced({"dense": [200, 500], "ticket": [100, 500]}, 0.5)
    (level,) = speed.slower(rows, "rewind-0", "dense", 500)
    assert [tuple(ratio) for ratio in level.ratios] == [(2, 2), (0, np.inf)]

    def legend(*levels: speed.Level) -> list[str]:
        found = figures.speed({"dense": levels}, "heading").axes[0].get_legend()
        return [] if found is None else [text.get_text() for text in found.get_texts()]

    both = legend(level, level._replace(level=2, density=0.2))
    assert both[-1] == "2 ratios not shown, without a bound"
    assert not any("not shown" in label for label in legend(level._replace(ratios=level.ratios[:1])))


# What so many seeds can detect


def test_what_seeds_can_detect_by_hand() -> None:
    """At 17 and 11 % the gaps spread by s and 2 s; the level at 50 % does not count."""
    rows = run({"ticket": {0.5: 9.0, 0.17: 0.0, 0.11: 0.0}}, dense=70.0)
    wide = [
        r._replace(test_accuracy=0.70 + r.seed / 100 + 0.02 * NOISE[r.seed]) if r.density == 0.11 else r
        for r in rows
    ]
    (found,) = power.spreads(STUDY, wide)
    s = np.std(NOISE, ddof=1)
    assert (found.other, found.seeds) == ("dense", 6)
    assert found.points == pytest.approx(s * np.sqrt((1 + 4) / 2))
    factor = (scipy_stats.t.ppf(0.95, 5) + scipy_stats.t.ppf(0.8, 5)) / np.sqrt(6)
    table = power.table(STUDY, wide)
    assert table is not None
    assert table.rows[0][:4] == ["ticket − dense", f"{found.points:.2f}", "6", f"{factor * found.points:.2f}"]
    said = power.planned(STUDY, wide, 12)
    more = (scipy_stats.t.ppf(0.95, 11) + scipy_stats.t.ppf(0.8, 11)) / np.sqrt(12)
    assert said.startswith(f"with 12 seeds, points: ticket − dense {more * found.points:.2f} (")
    assert said.endswith("by the spread of the 6 seeds so far)")
    # A test set of 1,000 images: the spread is no less than its error.
    floored = power.spreads({**STUDY, "data": {"test": 1000}}, wide)[0]
    assert floored.points > 0.9


def test_without_a_spread_the_plan_says_so() -> None:
    assert power.planned({}, [], 1).startswith("one seed shows no spread")
    unit = (scipy_stats.t.ppf(0.95, 3) + scipy_stats.t.ppf(0.8, 3)) / 2
    assert power.planned({}, [], 4) == (
        f"with 4 seeds, differences from {unit:.2f} times their spread between seeds on; the spread is known "
        "once two seeds are trained"
    )
    assert power.table(STUDY, run({"ticket": {0.17: 0.0}}, seeds=range(1))) is None


def test_no_axis_of_accuracies_goes_beyond_100_percent() -> None:
    rows = run({"ticket": {0.5: 5.2, 0.17: 3.0}}, dense=95.0, seeds=range(1))
    assert max(of.test_accuracy or 0 for of in rows) < 1
    assert figures.accuracy(rows, "heading").axes[0].get_ylim()[1] == 100
    low = run({"ticket": {0.5: 0.0, 0.17: -3.0}}, dense=60.0)
    assert 65 < figures.accuracy(low, "heading").axes[0].get_ylim()[1] < 70
