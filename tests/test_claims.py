"""What is said of a claim: the bound that decides, the least favourable level, too few seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis import words
from analysis.claims import At, everywhere, named
from analysis.record import COUNT, TIMING, Finding, settled
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
            "+0.00 pp, at most +0.00 (one-sided 95 %)",
        ),
        (Verdict("undecided", Interval(1.0, math.nan, math.nan, 1)), {}, "+1.00 pp"),
        (Verdict("undecided", Interval(math.nan, math.nan, math.nan, 0)), {}, "–"),
        (Verdict("supported", Interval(math.nan, 7.6, math.inf, 3)), {}, "at least +7.60 (one-sided 95 %)"),
        (Verdict("undecided", Interval(math.nan, -math.inf, math.inf, 3)), {}, "no bound is known"),
    ],
)
def test_the_bound_that_decides_is_said(verdict: Verdict, more: dict, said: str) -> None:
    assert words.decided(verdict, "+.2f", " pp", **more) == said


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


def test_below_three_seeds_there_is_no_verdict() -> None:
    def outcome(n: int, said: str, test: str = "superiority") -> str:
        return settled(Finding("claim", said, "", n, "", test)).outcome  # type: ignore[arg-type]

    for said in ("supported", "refuted", "equivalent", "undecided"):
        assert outcome(2, said) == outcome(1, said) == "too few seeds"
        assert outcome(3, said) == said
        # Counts and timings are not over seeds.
        assert outcome(1, said, COUNT) == outcome(1, said, TIMING) == said
    assert outcome(0, "not tested") == "not tested"
