"""What is said of a claim: the bound that decides, the least favourable level, too few seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis import words
from analysis.claims import TIMES, At, Judged, beside, everywhere, named
from analysis.compare import equal, figures
from analysis.compare.entries import Entry, Point
from analysis.record import COUNT, TIMING, Finding, settled
from analysis.report import facts
from lthjax import models
from lthjax.measures import stats
from lthjax.measures.stats import Interval, Verdict

BOUNDS = Interval(6.95, 0.52, 13.38, 6)


@pytest.mark.parametrize(
    ("verdict", "more", "said"),
    [
        (Verdict("supported", BOUNDS), {}, "+6.95 pp, at least +0.52 (one-sided 95 %)"),
        (Verdict("refuted", BOUNDS), {}, "+6.95 pp, at most +13.38 (one-sided 95 %)"),
        (
            Verdict("undecided", BOUNDS),
            {},
            "+6.95 pp, at least +0.52 and at most +13.38 (each one-sided 95 %)",
        ),
        # A claim that the mean is below a threshold is tested on negated values.
        (Verdict("supported", BOUNDS), {"below": True}, "-6.95 pp, at most -0.52 (one-sided 95 %)"),
        (Verdict("refuted", BOUNDS), {"below": True}, "-6.95 pp, at least -13.38 (one-sided 95 %)"),
        (
            Verdict("supported", BOUNDS),
            {"both": True},
            "+6.95 pp, at least +0.52 and at most +13.38 (each one-sided 95 %)",
        ),
        (Verdict("refuted", BOUNDS), {"both": True}, "+6.95 pp, at least +0.52 (one-sided 95 %)"),
        (
            Verdict("refuted", Interval(-0.001, -0.002, 0.001, 3)),
            {},
            "+0.00 pp, at most +0.001 (one-sided 95 %)",
        ),
        # A bound that rounds to 0 is above it, or not.
        (
            Verdict("supported", Interval(0.002, 0.0004, 0.004, 3)),
            {},
            "+0.00 pp, at least +0.0004 (one-sided 95 %)",
        ),
        (
            Verdict("supported", Interval(0.0, -0.002, 0.002, 3)),
            {"below": True},
            "+0.00 pp, at most +0.002 (one-sided 95 %)",
        ),
        (
            Verdict("undecided", Interval(1.0, -math.inf, math.inf, 3)),
            {},
            "+1.00 pp, no bound of the mean is known",
        ),
        (Verdict("undecided", Interval(1.0, math.nan, math.nan, 1)), {}, "+1.00 pp"),
        (Verdict("undecided", Interval(math.nan, math.nan, math.nan, 0)), {}, "–"),
        (Verdict("supported", Interval(math.nan, 7.6, math.inf, 3)), {}, "at least +7.60 (one-sided 95 %)"),
        (
            Verdict("undecided", Interval(math.nan, -math.inf, math.inf, 3)),
            {},
            "no bound of the mean is known",
        ),
    ],
)
def test_the_bound_that_decides_is_said(verdict: Verdict, more: dict, said: str) -> None:
    assert words.decided(verdict, "+.2f", " pp", **more) == said


def test_every_network_has_a_name_for_titles() -> None:
    assert words._NETWORKS.keys() == models.MODELS.keys()
    about = {"config": {"model": "resnet8", "data": {"name": "cifar10"}}}
    assert words.title(about) == "ResNet-8 on CIFAR-10"


@given(st.lists(st.integers(-300, 300), min_size=3, max_size=8), st.integers(-200, 200))
@settings(deadline=None)
def test_the_bound_that_is_said_is_on_its_side_of_the_threshold(numbers: list[int], threshold: int) -> None:
    """Recomputed by scipy from the values: no supported claim with a bound that does not carry it."""
    verdict = stats.verdict(numbers, threshold)
    said = words.decided(verdict, "+.6f")
    low = high = float(np.mean(numbers))
    if len(set(numbers)) > 1:
        low, high = scipy_stats.t.interval(0.9, len(numbers) - 1, low, scipy_stats.sem(numbers))
    if verdict.outcome == "supported":
        assert f"at least {low:+.6f}" in said
        assert "at most" not in said
        assert low > threshold - 1e-9
    elif verdict.outcome == "refuted":
        assert f"at most {high:+.6f}" in said
        assert "at least" not in said
        assert high < threshold + 1e-9


def at(place: str, low: float, high: float, outcome: str, zero: str = "undecided") -> At:
    bounds = Interval((low + high) / 2, low, high, 6)
    return At(place, Verdict(outcome, bounds), Verdict(zero, bounds))  # type: ignore[arg-type]


def test_the_least_favourable_level_is_the_one_of_the_least_bound() -> None:
    """The level of the least mean (1) has a higher bound than the one that varies most."""
    steady, wide = at("steady", 0.9, 1.1, "supported"), at("wide", 0.1, 3.9, "supported")
    tested = everywhere([steady, wide])
    assert (tested.outcome, tested.decides.place) == ("supported", "wide")
    assert tested.said("+.1f", " pp") == "+2.0 pp, at least +0.1 (one-sided 95 %) wide, the least of 2 levels"
    # A refuted claim is refuted by an upper bound.
    low, sure = at("low", -9.0, 0.5, "undecided"), at("sure", -0.3, -0.1, "refuted")
    tested = everywhere([low, sure])
    assert (tested.outcome, tested.decides.place) == ("refuted", "sure")
    assert tested.said("+.1f") == "-0.2, at most -0.1 (one-sided 95 %) sure, the least of 2 levels"


def test_equivalent_takes_every_level() -> None:
    near, far = (
        at("near", -0.1, 0.1, "undecided", "supported"),
        at("far", -0.15, 0.1, "undecided", "supported"),
    )
    tested = everywhere([near, far])
    assert (tested.outcome, tested.decides.place) == ("equivalent", "far")
    assert tested.said("+.2f").endswith("far, the most of 2 levels")
    assert named(tested, "superiority") == "equivalence, ±0.2 pp"
    assert everywhere([near, far, at("open", -1, 1, "undecided")]).outcome == "undecided"
    above = everywhere([at("above", 0.01, 0.1, "supported", "supported")])
    assert (above.outcome, named(above, "superiority")) == ("supported", "superiority")


def test_equivalent_ratios_reach_from_one() -> None:
    """1/0.92 is further from 1 than 1.08 is; their bounds' distances from 0 say the contrary."""
    below, above = (
        at("below", 0.92, 1.01, "undecided", "supported"),
        at("above", 0.99, 1.08, "undecided", "supported"),
    )
    tested = everywhere([above, below], same=1)
    assert (tested.outcome, tested.decides.place) == ("equivalent", "below")
    assert named(tested, "superiority", TIMES) == "equivalence, within 1.1×"
    assert everywhere([above, below]).decides.place == "above"


def test_below_three_seeds_there_is_no_verdict() -> None:
    def outcome(n: int, said: str, test: str = "superiority") -> str:
        return settled(Finding("claim", said, "", n, "", test)).outcome  # type: ignore[arg-type]

    for said in ("supported", "refuted", "equivalent", "undecided"):
        assert outcome(2, said) == outcome(1, said) == "too few seeds"
        assert outcome(3, said) == said
        # Counts and timings are not over seeds.
        assert outcome(1, said, COUNT) == outcome(1, said, TIMING) == said
    assert outcome(0, "not tested") == "not tested"


def test_a_control_that_passes_is_said_not_to_be_told_apart() -> None:
    passing, failing = (at("there", *of) for of in ((-0.3, 0.1, "supported"), (-2.0, -1.5, "refuted")))
    controls = {"reinit": Judged("supported", passing, 1), "random": Judged("refuted", failing, 1)}
    assert beside("supported", controls, "+.1f", " pp") == (
        "reinit passes the same test: -0.1 pp, at least -0.3 there; random does not pass (refuted): "
        "-1.8 pp, at most -1.5 there; so the claim does not tell tickets from reinit"
    )
    assert "does not tell" not in beside("refuted", controls, "+.1f")
    assert "does not tell" not in beside("supported", {"random": controls["random"]}, "+.1f")
    assert beside("too few seeds", controls, "+.1f") == beside("supported", {}, "+.1f") == ""


def test_how_many_verdicts_chance_may_have_made_false() -> None:
    said = ["supported", "refuted", "undecided", "equivalent", "not tested"]
    found = [Finding("", one, "", 6, "") for one in said]  # type: ignore[arg-type]
    (note,) = facts.of_verdicts([*found, Finding("", "supported", "", 1, "", COUNT)])
    assert note.startswith("4 claims tested over seeds, 3 verdicts.")
    assert "up to 0.2 false" in note
    assert facts.of_verdicts([Finding("", "undecided", "", 6, "")]) == []


# Schedules at equal density


def schedule(how: str, points: dict[float, tuple[float, ...]], validation: float = 0.0) -> Entry:
    """Three seeds whose dense network has 90 %; validation accuracies are test accuracies and a constant."""
    made = [
        Point(density, dict(enumerate(of)), 1.0, {seed: v + validation for seed, v in enumerate(of)})
        for density, of in points.items()
    ]
    dense = dict.fromkeys(range(3), 90.0)
    return Entry(how, "", dense, {"ticket": made}, dense)


def test_a_comparison_of_networks_without_weights_alone_is_drawn() -> None:
    """The panel of differences near 0 would have none."""
    emptied = [schedule("one-shot", {0.0: (10.0, 10.0, 10.0)})]
    assert not figures.is_far(emptied)
    assert len(figures.compared(emptied, "heading").axes) == 1
    assert figures.is_far([schedule("one-shot", {0.1: (10.0, 10.0, 10.0)})])


def test_schedules_meet_at_equal_density() -> None:
    """At 20 % one is half way from 40 to 10 % in log density, the other from 80 to 5 %."""
    near = schedule("near", {0.4: (90, 91, 92), 0.1: (80, 81, 82)})
    wide = schedule("wide", {0.8: (90, 90, 90), 0.05: (70, 72, 74)}, validation=20)
    assert equal.at(near, 0.2) == pytest.approx({0: 85, 1: 86, 2: 87})
    assert equal.at(wide, 0.2) == pytest.approx({0: 80, 1: 81, 2: 82})
    assert equal.at(near, 0.05) == {}
    assert equal.at(near, 0.0998) == pytest.approx({0: 80, 1: 81, 2: 82}), "half a percent off"
    # The best is chosen on validation, although it is worse on the test images.
    best, other = equal.compared([near, wide], 0.2)
    assert (best.entry.how, other.entry.how) == ("wide", "near")
    assert other.values == pytest.approx([5, 5, 5])
    assert (other.outcome, equal.compared([near, wide], 0.05)) == ("better", [])
    lines = equal.table([near, wide], [0.2]).rows
    assert [[line[1], *line[3:5], line[6]] for line in lines] == [
        ["wide", "best on validation", "3", "–"],
        ["near", lines[1][3], "3", "better"],
    ]


def test_no_accuracy_is_made_up_for_a_seed_that_lacks_a_level() -> None:
    """A line from the dense network to 10 % once stood for a ticket of 30 % that was not trained."""
    full = schedule("full", {0.5: (91, 91, 91), 0.3: (90, 91, 92), 0.1: (80, 81, 82)})
    lacks = schedule("lacks", {0.5: (91, 91, 91), 0.3: (90, 91), 0.1: (80, 81, 82)})
    for density in (0.7, 0.5, 0.4995, 0.4, 0.3005, 0.3, 0.2, 0.1):
        assert [*equal.at(lacks, density)] == ([0, 1] if 0.15 < density < 0.45 else [0, 1, 2])
    assert [line[4] for line in equal.table([full, lacks], [0.3, 0.1]).rows] == ["3", "2", "3", "3"]
    # A level of which no seed has a ticket is a gap as well.
    gone = schedule("gone", {0.5: (91, 91, 91), 0.1: (80, 81, 82)})._replace(diverged={0.3: 1})
    assert equal.at(gone, 0.2) == equal.at(gone, 0.3) == {}
    assert [*equal.at(gone, 0.1)] == [0, 1, 2]


def test_the_best_is_chosen_on_the_seeds_that_all_have() -> None:
    """Of the two seeds that both have, the first is better; its third seed is bad for all."""
    full, short = schedule("full", {0.1: (90, 91, 70)}), schedule("short", {0.1: (89, 90)})
    best, other = equal.compared([full, short], 0.1)
    assert (best.entry.how, other.values) == ("full", [-1, -1])


def test_schedules_are_corrected_by_holm() -> None:
    """Four schedules worse by 1 ± .2: p = .0131 each, 4 × p = .0525 and no finding; two of them alone are."""
    best = schedule("best", {0.1: (90.0, 90.0, 90.0)}, validation=5)
    worse = [schedule(f"worse {i}", {0.1: (88.8, 89.0, 89.2)}) for i in range(4)]
    p = scipy_stats.ttest_1samp([-1.2, -1.0, -0.8], 0).pvalue
    assert 0.05 / 4 < p < 0.05 / 2
    for several, outcome in ((4, "undecided"), (2, "worse")):
        _, *others = equal.compared([best, *worse[:several]], 0.1)
        assert [of.p for of in others] == pytest.approx([several * p] * several)
        assert {of.outcome for of in others} == {outcome}
    # On a test set of 1,000 images a difference of 1 point is within its error.
    small = [one._replace(images=1000) for one in (best, worse[0])]
    assert equal.compared(small, 0.1)[1].outcome == "undecided"


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True), st.integers(1, 1000))
def test_interpolation_is_linear_in_log_density(thousandths: list[int], at_density: int) -> None:
    """A curve that is a straight line in log density gives that line, and nothing outside its range."""
    curve = [(x / 1000, 3 * math.log(x) - 1) for x in thousandths]
    got = stats.interpolated(curve, at_density / 1000)
    if min(thousandths) <= at_density <= max(thousandths):
        assert got == pytest.approx(3 * math.log(at_density) - 1, abs=1e-9)
    else:
        assert got is None
