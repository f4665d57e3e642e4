"""Statistics against scipy and statsmodels, by hand, as properties, and by simulation."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from statsmodels.stats import multitest, proportion, weightstats

from lthjax.errors import UserError
from lthjax.measures import stats

NUMBERS = st.integers(-1000, 1000).map(lambda i: i / 100)
VALUES = st.lists(NUMBERS, min_size=2, max_size=12)
PS = st.lists(st.floats(0, 1), max_size=12)
TURNED = {"supported": "refuted", "refuted": "supported", "undecided": "undecided"}
ALTERNATIVES = ("two-sided", "greater", "less")
TICKET = [(1.0, 0.98), (0.8, 0.981), (0.4, 0.975), (0.2, 0.98), (0.1, 0.90)]
# Number of cases in a simulation.
MANY = 2500


def varied(values: Sequence[float]) -> bool:
    return len(set(values)) > 1


def samples(n: int, mean: float = 0.0, many: int = MANY) -> list[list[float]]:
    """Normal values of variance 1, n per study; the same in every call."""
    return np.random.default_rng(n).normal(mean, 1, (many, n)).tolist()


def within(often: float, expected: float, many: int = MANY) -> bool:
    """Whether a share of `many` cases lies within 3.5 standard errors of the expected share."""
    return abs(often - expected) <= 3.5 * math.sqrt(expected * (1 - expected) / many)


def at_most(often: float, limit: float, many: int = MANY) -> bool:
    """Whether a share of `many` cases is at most the limit plus 3.5 standard errors."""
    return often <= limit + 3.5 * math.sqrt(limit * (1 - limit) / many)


# Intervals


def test_paired_takes_common_seeds_in_order() -> None:
    assert stats.paired({3: 5.0, 0: 1.0, 7: 9.0}, {0: 0.5, 3: 7.0, 8: 1.0}) == [0.5, -2.0]
    assert stats.paired({1: 1.0}, {2: 1.0}) == []


def test_bounds_by_hand() -> None:
    """Mean 3, s = √2.5; t(.95, 4) = 2.131847, one-sided, where the two-sided interval has 2.776445."""
    half = 2.1318468 * math.sqrt(2.5 / 5)
    assert stats.bounds([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half, 5), rel=1e-7)


@given(VALUES.filter(varied), st.floats(0.51, 0.99))
@settings(deadline=None)
def test_intervals_are_scipys(values: list[float], confidence: float) -> None:
    two = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert stats.mean_interval(values, confidence)[1:3] == pytest.approx(two, rel=1e-9, abs=1e-9)
    low = scipy.stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(confidence).low
    high = scipy.stats.ttest_1samp(values, 0, alternative="less").confidence_interval(confidence).high
    assert stats.bounds(values, confidence)[1:3] == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_identical_and_few_values() -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3 in floating point.
    assert stats.mean_interval([0.1] * 3) == (0.1, 0.1, 0.1, 3)
    assert stats.bounds([0.0, 0.0]) == (0, 0, 0, 2)
    for values in ([], [1.0]):
        assert np.isnan(stats.bounds(values)[1:3]).all()
    assert np.isnan(stats.mean_interval([1.0, math.nan, 2.0])[:3]).all()


@pytest.mark.parametrize("n", [3, 5, 6, 10])
def test_coverage_of_the_intervals(n: int) -> None:
    """Exactly 95 % for normal values, for the two-sided interval and for either bound."""
    two = [stats.mean_interval(values) for values in samples(n)]
    assert within(np.mean([i.low <= 0 <= i.high for i in two]), 0.95)
    one = [stats.bounds(values) for values in samples(n)]
    assert within(np.mean([i.low <= 0 for i in one]), 0.95)
    assert within(np.mean([i.high >= 0 for i in one]), 0.95)


def on_a_scale(
    values: list[float], there: Callable[[float], float], back: Callable[[float], float], slope: float
) -> tuple[float, float]:
    """The delta method by hand: t's interval of the mean on another scale, transformed back."""
    at = there(float(np.mean(values)))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values) * slope
    return back(at - half), back(at + half)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=8).filter(varied))
@settings(deadline=None, max_examples=50)
def test_intervals_of_shares_are_those_of_logits(hits: list[int]) -> None:
    values = [of_seed / 10_000 for of_seed in hits]
    mean = float(np.mean(values))
    hand = on_a_scale(values, scipy.special.logit, scipy.special.expit, 1 / (mean * (1 - mean)))
    got = stats.mean_interval(values, within=stats.SHARE)
    assert got[1:3] == pytest.approx(hand, rel=1e-6, abs=1e-9)
    assert 0 <= got.low <= got.mean <= got.high <= 1
    percent = stats.mean_interval([100 * value for value in values], within=stats.PERCENT)
    assert percent[:3] == pytest.approx([100 * x for x in got[:3]], rel=1e-6, abs=1e-7)
    turned = stats.mean_interval([1 - value for value in values], within=stats.SHARE)
    assert (1 - turned.high, 1 - turned.low) == pytest.approx(got[1:3], rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(0, 100).map(lambda x: round(x, 3)), min_size=2, max_size=8).filter(varied))
@settings(deadline=None, max_examples=50)
def test_intervals_of_positive_values_are_those_of_logarithms(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        hand = on_a_scale(values, np.log, np.exp, 1 / float(np.mean(values)))
    got = stats.mean_interval(values, within=stats.POSITIVE)
    assert got[1:3] == pytest.approx(hand, rel=1e-6)
    assert 0 <= got.low <= got.mean <= got.high
    below = stats.mean_interval([-value for value in values], within=(-math.inf, 0))
    assert below[:3] == pytest.approx((-got.mean, -got.high, -got.low))


def test_intervals_within_a_range_by_hand() -> None:
    """A published row: t gives 89.44 [77.97, 100.91] %, but no accuracy is above 100 %."""
    values = [94.0, 85.0, 89.32]
    plain, inside = (stats.mean_interval(values, within=r) for r in (stats.ANY, stats.PERCENT))
    assert plain.high > 100 > inside.high > inside.mean == plain.mean
    # Two seeds say almost nothing, but the bounds stay in the range.
    assert stats.mean_interval([0.0, 1.0], within=stats.SHARE)[1:3] == pytest.approx((0, 1), abs=1e-10)
    assert stats.mean_interval([1.0, 1.0, 1.0], within=stats.SHARE) == (1, 1, 1, 3)
    assert stats.mean_interval([0.0, 0.0], within=stats.POSITIVE) == (0, 0, 0, 2)
    assert np.isnan(stats.mean_interval([0.2, math.nan], within=stats.SHARE)[:3]).all()
    # Far from the limits it is t's interval.
    near = [0.5001, 0.4998, 0.5002]
    assert stats.mean_interval(near, within=stats.SHARE)[:3] == pytest.approx(
        stats.mean_interval(near)[:3], abs=1e-8
    )
    low, high = stats.bounds(values, within=stats.PERCENT)[1:3]
    assert (low, high) == pytest.approx(stats.mean_interval(values, 0.9, stats.PERCENT)[1:3])
    for threshold, outcome in ((low - 0.01, "supported"), (low + 0.01, "undecided"), (high + 1, "refuted")):
        assert stats.verdict(values, threshold, within=stats.PERCENT).outcome == outcome


@pytest.mark.parametrize("n", [3, 5, 6])
@pytest.mark.parametrize("kind", ["near 100 %", "spread below 100 %", "barriers"])
def test_coverage_of_the_intervals_within_a_range(kind: str, n: int) -> None:
    """Shares near 1 and barriers near 0 are skewed: these intervals cover 93 % or more, t's do not."""
    rng, runs = np.random.default_rng(n), 1500
    drawn, mean, within = {
        "near 100 %": (rng.beta(0.989 * 2700, 0.011 * 2700, (runs, n)), 0.989, stats.SHARE),
        "spread below 100 %": (rng.beta(7.2, 0.8, (runs, n)), 0.9, stats.SHARE),
        "barriers": (rng.exponential(1, (runs, n)), 1.0, stats.POSITIVE),
    }[kind]
    found = [stats.mean_interval(values, within=within) for values in drawn]
    covered = np.mean([i.low <= mean <= i.high for i in found])
    half = scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(drawn, axis=1)
    by_t = np.mean(np.abs(drawn.mean(1) - mean) <= half)
    assert at_most(1 - covered, 0.07, runs)
    assert at_most(covered, 0.96, runs), "not by being too wide"
    assert kind == "near 100 %" or not at_most(1 - by_t, 0.07, runs)
    assert all(within[0] <= i.low and i.high <= within[1] for i in found)


def test_geometric_bounds_by_hand() -> None:
    """Five seeds still match at 1/32 of the weights, one stops at 1/2: logs 5 ln 2 and ln 2."""
    ratios = [stats.Ratio(32, math.inf)] * 5 + [stats.Ratio(2, 2)]
    got = stats.geometric_bounds(ratios)
    logs = np.array([5, 5, 5, 5, 5, 1])
    half = scipy.stats.t.ppf(0.95, 5) * scipy.stats.sem(logs)
    assert math.isnan(got.mean)
    assert got.low == pytest.approx(2 ** (logs.mean() - half))
    assert (got.high, got.n) == (math.inf, 6)
    assert stats.geometric_verdict(ratios, 5).outcome == "supported"
    assert stats.geometric_verdict(ratios, 40).outcome == "undecided", "a bound from below refutes nothing"
    turned = [stats.Ratio(1 / high if high < math.inf else 0, 1 / low) for low, high in ratios]
    assert stats.geometric_bounds(turned)[1:3] == pytest.approx((0, 1 / got.low))
    assert stats.geometric_verdict(turned, 1 / 5).outcome == "refuted"
    known = [stats.Ratio(x, x) for x in (1, 2, 4)]
    assert stats.geometric_bounds(known)[0] == pytest.approx(2)
    assert stats.geometric_bounds(known)[1:3] == pytest.approx(
        np.exp(stats.bounds(np.log([1, 2, 4]).tolist())[1:3])
    )
    # If no ratio is known, five seeds are needed: all five lie above the median with probability 1/32.
    assert stats.geometric_bounds(ratios[:5]) == pytest.approx((math.nan, 32, math.inf, 5), nan_ok=True)
    assert stats.geometric_bounds(ratios[:4])[1:3] == (0, math.inf)
    for few in (ratios[:1], []):
        assert np.isnan(stats.geometric_bounds(few)[1:3]).all()
        assert stats.geometric_verdict(few, 5).outcome == "undecided"


@given(st.lists(st.integers(2**19, 2**21), min_size=2, max_size=8, unique=True), st.floats(1, 3))
@settings(deadline=None)
def test_ratios_are_equivalent_where_their_logarithms_are(numbers: list[int], factor: float) -> None:
    """Of ratios that differ by more than rounding; the others count as the same, and have no bound."""
    values = [number / 2**20 for number in numbers]
    ratios = [stats.Ratio(value, value) for value in values]
    logs = stats.equivalent([math.log(value) for value in values], math.log(factor))
    found = stats.geometric_equivalent(ratios, factor)
    assert found.outcome == logs.outcome
    assert found.bounds[:3] == pytest.approx(np.exp(logs.bounds[:3]))
    same = [stats.Ratio(value, value) for value in (values[0], math.nextafter(values[0], 3))]
    assert stats.geometric_bounds(same)[1:3] == (0, math.inf)


def test_ratios_known_by_bounds_are_equivalent_only_where_both_are_near() -> None:
    """Supported needs both bounds; a bound far on one side refutes."""
    near = [stats.Ratio(0.98, 1.02)] * 6
    assert stats.geometric_equivalent(near, 1.1).outcome == "supported"
    assert stats.geometric_equivalent([stats.Ratio(0.98, math.inf)] * 6, 1.1).outcome == "undecided"
    assert stats.geometric_equivalent([stats.Ratio(2, math.inf)] * 6, 1.1).outcome == "refuted"
    assert stats.geometric_equivalent([stats.Ratio(0, 0.5)] * 6, 1.1).outcome == "refuted"
    assert stats.geometric_equivalent(near[:1], 1.1).outcome == "undecided"


@pytest.mark.parametrize("n", [3, 6])
def test_coverage_of_the_bound_with_censored_ratios(n: int) -> None:
    """Ratios of geometric mean 8, observed only up to 10: the bound exceeds 8 in at most 6 % of the cases."""
    drawn = np.exp(np.random.default_rng(n).normal(math.log(8), 0.5, (1500, n)))
    seen = [[stats.Ratio(min(x, 10), x if x < 10 else math.inf) for x in of_run] for of_run in drawn]
    found = [stats.geometric_bounds(ratios) for ratios in seen]
    assert np.mean([i.low > 8 for i in found]) <= 0.06
    # Using the bounds as values gives a mean that is too low.
    naive = [np.exp(np.mean(np.log([ratio.low for ratio in ratios]))) for ratios in seen]
    assert np.mean(naive) < 7.5


def test_geometric_interval_by_hand() -> None:
    """Logs 0, ln 2, 2 ln 2: mean ln 2, s = ln 2, so the bounds are 2 · 2^∓(4.302653 / √3)."""
    wide = 2 ** (4.3026527 / math.sqrt(3))
    assert stats.geometric_interval([1, 2, 4]) == pytest.approx((2, 2 / wide, 2 * wide, 3), rel=1e-7)
    assert np.isnan(stats.geometric_interval([])[:3]).all()
    with pytest.raises(UserError, match="values: 0 has no logarithm"):
        stats.geometric_interval([1.0, 0.0])


# Verdicts


def test_verdicts_by_hand() -> None:
    """Values 9, 10, 11: mean 10, s / √3 = 0.577350, t(.95, 2) = 2.919986: bounds 8.31414 and 11.68586."""
    values = [9.0, 10.0, 11.0]
    cases = [(8.3, "supported"), (8.32, "undecided"), (11.68, "undecided"), (11.69, "refuted")]
    for threshold, outcome in cases:
        assert stats.verdict(values, threshold).outcome == outcome
    assert stats.verdict(values).bounds == pytest.approx((10, 8.31414, 11.68586, 3), abs=1e-5)
    # The same around 0, ∓1.68586.
    for margin, outcome in ((1.7, "supported"), (1.68, "undecided"), (0.0, "undecided")):
        assert stats.noninferior([-1.0, 0.0, 1.0], margin).outcome == outcome
        assert stats.equivalent([-1.0, 0.0, 1.0], margin).outcome == outcome
    # Above is noninferior but not equivalent; below is inferior. Bounds 8.3 and 11.7, margin 8 or 12.
    below = [-value for value in values]
    assert stats.noninferior(values, 8).outcome == "supported"
    assert stats.noninferior(below, 8).outcome == stats.equivalent(below, 8).outcome == "refuted"
    assert stats.equivalent(values, 8).outcome == "refuted"
    assert stats.equivalent(values, 10).outcome == stats.equivalent(below, 10).outcome == "undecided"
    assert stats.equivalent(values, 12).outcome == "supported"


def test_verdicts_of_few_and_of_identical_values() -> None:
    for values in ([], [100.0]):
        assert stats.verdict(values).outcome == stats.equivalent(values, 1000).outcome == "undecided"
    assert stats.verdict([0.3, 0.3], 0.2).outcome == "supported"
    assert stats.verdict([0.3, 0.3], 0.3).outcome == "undecided"
    assert stats.verdict([0.3, 0.3], 0.4).outcome == "refuted"
    assert stats.noninferior([0.0, 0.0, 0.0], 0.2).outcome == "supported"


@given(VALUES, NUMBERS, NUMBERS)
@settings(deadline=None)
def test_verdicts_turn_with_the_sign_and_move_with_the_values(
    values: list[float], threshold: float, shift: float
) -> None:
    got = stats.verdict(values, threshold)
    turned = stats.verdict([-value for value in values], -threshold)
    assert turned.outcome == TURNED[got.outcome]
    moved = stats.bounds([value + shift for value in values])
    assert moved[:3] == pytest.approx([shift + b for b in got.bounds[:3]], rel=1e-9, abs=1e-9)
    margin = abs(threshold)
    assert stats.equivalent(values, margin).outcome == stats.equivalent([-v for v in values], margin).outcome
    assert stats.noninferior(values, margin) == stats.verdict(values, -margin)


@given(VALUES.filter(varied), NUMBERS)
@settings(deadline=None)
def test_verdicts_are_tests_at_5_percent(values: list[float], threshold: float) -> None:
    """Compares with p-values of scipy and of statsmodels, except exactly at the limit."""
    for alternative, outcome in (("greater", "supported"), ("less", "refuted")):
        p = scipy.stats.ttest_1samp(values, threshold, alternative=alternative).pvalue
        if abs(p - 0.05) > 1e-9:
            assert (stats.verdict(values, threshold).outcome == outcome) == (p < 0.05)
    margin = abs(threshold)
    p = weightstats.ttost_paired(np.array(values), np.zeros(len(values)), -margin, margin)[0]
    if abs(p - 0.05) > 1e-9:
        assert (stats.equivalent(values, margin).outcome == "supported") == (p < 0.05)


@pytest.mark.parametrize("n", [3, 5, 6, 10])
def test_false_verdicts_at_the_boundary(n: int) -> None:
    """Exactly 5 % at the threshold in either direction, and with margins of 20 standard errors."""
    for threshold, judge in (
        (2.0, stats.verdict),
        (-2.0, lambda values, limit: stats.noninferior(values, -limit)),
    ):
        outcomes = np.array([judge(values, threshold).outcome for values in samples(n, threshold)])
        assert within(np.mean(outcomes == "supported"), 0.05)
        assert within(np.mean(outcomes == "refuted"), 0.05)
    margin = 20 / math.sqrt(n)
    outcomes = np.array([stats.equivalent(values, margin).outcome for values in samples(n, margin)])
    assert within(np.mean(outcomes == "supported"), 0.05)
    assert within(np.mean(outcomes == "refuted"), 0.05)


def test_false_equivalence_with_narrow_margins() -> None:
    """At the margin: supported in at most 5 %; refuted in up to 10 %, as the docstring says."""
    for margin, refuted in ((0.5, None), (0.0, 0.1)):
        outcomes = np.array([stats.equivalent(values, margin).outcome for values in samples(5, margin)])
        assert at_most(np.mean(outcomes == "supported"), 0.05)
        assert at_most(np.mean(outcomes == "refuted"), 0.1)
        if refuted is not None:
            assert within(np.mean(outcomes == "refuted"), refuted)


def test_conjunction() -> None:
    s, r, u = "supported", "refuted", "undecided"
    cases: list[tuple[list, str]] = [([s], s), ([s, s], s), ([s, u], u), ([u, r, s], r), ([r], r), ([], u)]
    for outcomes, expected in cases:
        assert stats.conjunction(outcomes) == stats.conjunction(reversed(outcomes)) == expected
    with pytest.raises(UserError, match="did you mean 'supported'"):
        stats.conjunction(["suported"])  # type: ignore[list-item]


def test_false_conjunctions() -> None:
    """One of three levels at the threshold: 5 % supported. All three there: 1 − .95³ = 14.3 % refuted."""
    drawn = np.random.default_rng(0).normal(0, 1, (1000, 3, 5))
    for means, outcome, expected in (([0, 9, 9], "supported", 0.05), ([0, 0, 0], "refuted", 1 - 0.95**3)):
        families = [[stats.verdict(level).outcome for level in f] for f in drawn + np.reshape(means, (3, 1))]
        often = np.mean([stats.conjunction(family) == outcome for family in families])
        assert within(often, expected, 1000)


# The test set's sampling error


def test_the_floor_by_hand() -> None:
    """70 % and 55 % on 10,000 images: √(.21 + .2475) / 100 = .67639 %; seeds agree to .01 points."""
    floor = stats.difference_error(0.7, 0.55, 10_000)
    assert floor == pytest.approx(math.sqrt(0.21 + 0.2475) / 100)
    assert stats.difference_error(0.7, 0.7, 10_000) == pytest.approx(0.0064807, abs=1e-7)
    values = [0.15, 0.1501, 0.1499]
    half = 4.3026527 * floor / math.sqrt(3)
    assert stats.mean_interval(values, floor=floor)[:3] == pytest.approx((0.15, 0.15 - half, 0.15 + half))
    # Identical values are no exception, and one value has no interval.
    assert stats.bounds([0.1] * 3, floor=floor)[1] == pytest.approx(0.1 - 2.9199856 * floor / math.sqrt(3))
    assert np.isnan(stats.bounds([0.1], floor=floor)[1:3]).all()
    assert stats.verdict([0.15] * 3, 0.145).outcome == "supported"
    assert stats.verdict([0.15] * 3, 0.145, floor=floor).outcome == "undecided"
    assert stats.noninferior([0.0] * 3, 0.005, floor=floor).outcome == "undecided"
    assert stats.equivalent([0.0] * 3, 0.02, floor=floor).outcome == "supported"
    # On images of which the networks answer 4 % differently; bounds stay in the range.
    floor = stats.paired_error(0.04, 2500)
    assert floor == pytest.approx(0.004)
    cut = stats.mean_interval([0.001, 0.002, 0.0015], within=stats.SHARE, floor=floor)
    assert cut == pytest.approx((0.0015, 0.0, 0.0015 + 4.3026527 * floor / math.sqrt(3), 3))
    # A floor widens only: by the logit scale the bound above is farther than by Student's t.
    skewed = stats.mean_interval([0.0, 0.0, 0.006], within=stats.SHARE)
    floored = stats.mean_interval([0.0, 0.0, 0.006], within=stats.SHARE, floor=floor)
    assert floored == (0.002, 0.0, skewed.high, 3)
    assert skewed.high > 0.002 + 4.3026527 * floor / math.sqrt(3)
    spread = [0.1, 0.2, 0.15]
    assert stats.mean_interval(spread, within=stats.SHARE, floor=floor) == stats.mean_interval(
        spread, within=stats.SHARE
    )
    for share, images, field in ((1.1, 10, "share: 1.1"), (0.1, 0, "images: 0")):
        with pytest.raises(UserError, match=field):
            stats.paired_error(share, images)
    for wrong in (lambda: stats.bounds(values, floor=-1), lambda: stats.t_p_value(values, floor=-1)):
        with pytest.raises(UserError, match="floor: -1 is not allowed"):
            wrong()


@given(VALUES.filter(varied), st.floats(0, 20), NUMBERS, st.sampled_from(ALTERNATIVES))
@settings(deadline=None)
def test_the_floor_binds_only_below_it(values: list[float], floor: float, null: float, how: str) -> None:
    """A floor below s changes nothing; one above it gives the p-value at which its own bounds touch."""
    if floor <= np.std(values, ddof=1):
        assert stats.mean_interval(values, floor=floor) == stats.mean_interval(values)
        assert stats.t_p_value(values, null, how, floor=floor) == stats.t_p_value(values, null, how)
    else:
        t = (np.mean(values) - null) / (floor / math.sqrt(len(values)))
        tails = {
            "greater": scipy.stats.t.sf(t, len(values) - 1),
            "less": scipy.stats.t.cdf(t, len(values) - 1),
        }
        p = tails.get(how, 2 * min(tails.values()))
        assert stats.t_p_value(values, null, how, floor=floor) == pytest.approx(p, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [3, 5, 6])
@pytest.mark.parametrize(("accuracy", "gap"), [(0.7, 0.15), (0.7, 0.0), (0.988, 0.014)])
def test_coverage_with_the_floor(n: int, accuracy: float, gap: float) -> None:
    """Seeds alike but for noise, one test set: the interval covers the difference on all images.

    An image is right if a normal variable passes a threshold: 60 % of its variance is the image's own, 10 %
    the image's and the arm's, so that nets of all seeds err on many of the same images, 30 % the net's.
    """
    rng, images, runs, limits = (
        np.random.default_rng(n),
        500,
        400,
        scipy.stats.norm.ppf([accuracy, accuracy - gap]),
    )
    covered, plain = [], []
    for _ in range(runs):
        shared = rng.normal(0, 0.6**0.5, images) + rng.normal(0, 0.1**0.5, (2, images))
        right = limits[:, None] + shared + rng.normal(0, 0.3**0.5, (n, 2, images)) > 0
        ours, theirs = right.mean(-1).T
        floor = stats.difference_error(ours.mean(), theirs.mean(), images)
        values = (ours - theirs).tolist()
        for found, least in ((covered, floor), (plain, 0.0)):
            interval = stats.mean_interval(values, floor=least)
            found.append(interval.low <= gap <= interval.high)
    assert np.mean(covered) >= 0.95
    assert np.mean(plain) < 0.95, "the seeds alone do not know of the test set"


# p-values and effect sizes


@given(VALUES.filter(varied), NUMBERS, st.sampled_from(ALTERNATIVES))
@settings(deadline=None)
def test_t_p_value_from_the_distribution(values: list[float], null: float, alternative: str) -> None:
    """t and its tail are written out; the function calls scipy's test."""
    n = len(values)
    mean = sum(values) / n
    s = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    t = (mean - null) / (s / math.sqrt(n))
    tail = {"two-sided": -abs(t), "greater": -t, "less": t}[alternative]
    expected = (2 if alternative == "two-sided" else 1) * scipy.special.stdtr(n - 1, tail)
    assert stats.t_p_value(values, null, alternative) == pytest.approx(expected, rel=1e-6, abs=1e-12)  # type: ignore[arg-type]


def test_t_p_value_of_identical_and_few_values() -> None:
    got = [[stats.t_p_value([0.1] * 3, null, a) for a in ALTERNATIVES] for null in (0, 0.1, 1)]  # type: ignore[arg-type]
    assert got == [[0, 0, 1], [1, 0.5, 0.5], [0, 1, 0]]
    assert math.isnan(stats.t_p_value([1.0]))


def test_sign_flips_by_hand() -> None:
    """Of 8 sums of ±1 ±2 ±4, two (7 and 5) are 5 or more; 1 + 2 − 3 = 0 ties with −1 − 2 + 3."""
    got = [stats.sign_flip_p_value([-1, 2, 4], alternative=a) for a in ALTERNATIVES]  # type: ignore[arg-type]
    assert got == [4 / 8, 2 / 8, 7 / 8]
    got = [stats.sign_flip_p_value([0.1, 0.2, -0.3], alternative=a) for a in ALTERNATIVES]  # type: ignore[arg-type]
    assert got == [1, 5 / 8, 5 / 8]
    assert stats.sign_flip_p_value([3, 6, 8], 4) == 4 / 8, "not the 2 / 8 about 0"
    assert stats.sign_flip_p_value([0.0, 0.0]) == 1
    assert math.isnan(stats.sign_flip_p_value([]))
    with pytest.raises(UserError, match="at most 20"):
        stats.sign_flip_p_value([1.0] * 21)


def test_the_floor_of_sign_flips_and_what_it_does_to_holm() -> None:
    for n in range(1, 13):
        best = [1.0 + i for i in range(n)]
        assert stats.sign_flip_p_value(best) == 2 / 2**n
        assert stats.sign_flip_p_value(best, alternative="greater") == 1 / 2**n
        assert (stats.sign_flip_p_value(best) < 0.05) == (n >= 6)
    assert min(stats.holm([2 / 2**6] * 2)) > 0.05


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7), st.sampled_from(ALTERNATIVES))
@settings(deadline=None, max_examples=60)
def test_sign_flips_are_scipys_permutations(values: list[int], alternative: str) -> None:
    expected = scipy.stats.permutation_test(
        (np.array(values, float),),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative=alternative,
    ).pvalue
    got = stats.sign_flip_p_value(values, alternative=alternative)  # type: ignore[arg-type]
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("p_value", "expected"), [(stats.t_p_value, 0.05), (stats.sign_flip_p_value, 2 / 64)]
)
def test_false_finds_of_p_values(p_value: Callable[..., float], expected: float) -> None:
    """At n = 6 two-sided sign flips have level 2/64, the largest below 5 %; one-sided 3/64."""
    one_sided = 0.05 if expected == 0.05 else 3 / 64
    for alternative, level in (("two-sided", expected), ("greater", one_sided), ("less", one_sided)):
        found = [p_value(values, alternative=alternative) < 0.05 for values in samples(6, many=1000)]
        assert within(np.mean(found), level, 1000)


def test_holm_by_hand() -> None:
    """.01 · 4, .02 · 3, .03 · 2 raised to the previous .06, and .9 · 1."""
    assert stats.holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert stats.holm([0.6, 0.7]) == [1, 1]
    assert stats.holm([]) == []
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="p_values"):
            stats.holm([0.5, bad])


def test_holm_is_statsmodels() -> None:
    """A few families with ties, because one call takes 0.1 s."""
    generator = np.random.default_rng(0)
    for m in (1, 2, 5, 12):
        ps = np.round(generator.uniform(size=m) ** 3, 2)
        np.testing.assert_allclose(
            stats.holm(ps.tolist()), multitest.multipletests(ps, method="holm")[1], rtol=1e-12
        )


@given(PS)
@settings(deadline=None)
def test_holm_is_its_definition_and_keeps_order(ps: list[float]) -> None:
    """For p: the largest over all q ≤ p of q times the number of p-values that are q or more."""
    got = stats.holm(ps)
    expected = [min(1, max(q * sum(other >= q for other in ps) for q in ps if q <= p)) for p in ps]
    assert got == pytest.approx(expected, rel=1e-12)
    assert all(p <= adjusted <= 1 for p, adjusted in zip(ps, got, strict=True))
    for p, a in zip(ps, got, strict=True):
        assert all(a <= b for q, b in zip(ps, got, strict=True) if p <= q)


def test_false_finds_of_a_family() -> None:
    """Four true nulls: a false finding in at most 5 %; without Holm it would be 1 − .95⁴ = 18.5 %."""
    found = []
    for family in np.random.default_rng(1).normal(0, 1, (600, 4, 5)):
        raw = [stats.t_p_value(values) for values in family]
        found.append((min(raw) < 0.05, min(stats.holm(raw)) < 0.05))
    plain, adjusted = np.mean(found, axis=0)
    assert within(plain, 1 - 0.95**4, 600)
    # The smallest of four is below .05 / 4 in 1 − (1 − .0125)⁴ = 4.9 % of the cases.
    assert within(adjusted, 1 - (1 - 0.0125) ** 4, 600)


def test_hedges_gz_by_hand() -> None:
    """Values 1 … 5: d = 3 / √2.5; ν = 4: J = Γ(2) / (√2 Γ(1.5)) = 1 / (√2 √π / 2) = √(2 / π)."""
    got = stats.hedges_gz([1, 2, 3, 4, 5])
    assert got.g == pytest.approx(3 / math.sqrt(2.5) * math.sqrt(2 / math.pi), rel=1e-12)
    assert got.n == 5
    # Two values, ν = 1, have no unbiased estimate.
    for few in ([], [1.0], [1.0, 3.0], [2.0, 2.0, 2.0]):
        assert np.isnan(stats.hedges_gz(few)[:3]).all()


@pytest.mark.parametrize("n", [3, 5, 6, 10])
def test_hedges_gz_is_unbiased(n: int) -> None:
    """E d = E t / √n, with the mean of the noncentral t distribution; J = g / d removes its bias."""
    values = samples(n, many=1)[0]
    j = stats.hedges_gz(values).g / (np.mean(values) / np.std(values, ddof=1))
    for effect in (0.3, 2.0):
        mean_of_d = scipy.stats.nct.mean(n - 1, effect * math.sqrt(n)) / math.sqrt(n)
        assert j * mean_of_d == pytest.approx(effect, rel=1e-9)


@pytest.mark.parametrize("n", [3, 6, 10])
@pytest.mark.parametrize("mean", [-30.0, -0.7, 0.0, 0.3, 5.0])
def test_interval_of_the_effect(n: int, mean: float) -> None:
    """At its bounds, t has the tails .025 and .975: P(t' ≤ t) = ∫ Φ(t √(c / ν) − δ√n) dχ²(c)."""
    values = samples(n, mean, 1)[0]
    got = stats.hedges_gz(values)
    nu, t = n - 1, np.mean(values) / np.std(values, ddof=1) * math.sqrt(n)
    for effect, expected in ((got.low, 0.975), (got.high, 0.025)):
        probability = scipy.integrate.quad(
            lambda x, at: scipy.special.ndtr(t * x / math.sqrt(nu) - at) * scipy.stats.chi.pdf(x, nu),
            0,
            15,
            args=(effect * math.sqrt(n),),
            limit=500,
        )[0]
        assert probability == pytest.approx(expected, abs=1e-6)


@given(VALUES.filter(lambda values: len(values) > 2 and varied(values)))
@settings(deadline=None, max_examples=25)
def test_the_effect_turns_with_the_sign_and_agrees_with_t(values: list[float]) -> None:
    got, turned = stats.hedges_gz(values), stats.hedges_gz([-value for value in values])
    assert turned[1:3] == pytest.approx((-got.high, -got.low), rel=1e-6, abs=1e-9)
    # Without an effect the noncentral t is Student's, so both intervals exclude 0 together.
    mean = stats.mean_interval(values)
    if min(abs(mean.low), abs(mean.high)) > 1e-6:
        assert (got.low > 0, got.high < 0) == (mean.low > 0, mean.high < 0)


@pytest.mark.parametrize("values", [(0.7, 0.71, 0.69), (2.0, 2.0, 2.0), (1.0, 2.0, 4.0), (-5.0, -5.1, -5.2)])
def test_the_effect_has_the_floor_of_the_mean(values: tuple[float, ...]) -> None:
    """Seeds that agree to less than the floor: both intervals exclude 0, or neither does."""
    got, mean = stats.hedges_gz(values, floor=1.5), stats.mean_interval(values, floor=1.5)
    assert (got.low > 0, got.high < 0) == (mean.low > 0, mean.high < 0)
    # Γ(1) / (√1 Γ(1/2)) of the mean over the spread.
    spread = max(1.5, np.std(values, ddof=1))
    assert got.g == pytest.approx(np.mean(values) / spread / math.sqrt(math.pi))
    assert stats.hedges_gz(values, floor=0.0)[:3] == pytest.approx(stats.hedges_gz(values)[:3], nan_ok=True)


def test_an_effect_beyond_all_measure() -> None:
    """The limit for large t agrees with the root: no step at |t| = 1,000."""
    for n in (3, 5, 20):
        near = [stats._noncentrality(t, n - 1, p) / t for p in (0.975, 0.025) for t in (999.9, 1000.1)]
        assert near[0] == pytest.approx(near[1], rel=1e-4)
        assert near[2] == pytest.approx(near[3], rel=1e-4)
    huge = stats.hedges_gz([1.0, 1.0 + 1e-9, 1.0 - 1e-9])
    assert huge.g > 1e8
    assert 0 < huge.low < huge.g < huge.high < math.inf


# Accuracies


def test_collapse_share() -> None:
    """With ten classes a run collapses below 20 %, not at 20 %."""
    got = stats.collapse_share([0.1, 0.1999, 0.2, 0.9, 0.98], 10)
    assert got[:1] + got[3:] == (0.4, 2, 5)
    assert got[1:3] == pytest.approx(proportion.proportion_confint(2, 5, method="beta"), rel=1e-9)
    none = stats.collapse_share([0.9] * 5, 10)
    # None of 5: the upper bound solves (1 − p)⁵ = .025.
    assert none == pytest.approx((0, 0, 1 - 0.025**0.2, 0, 5), rel=1e-9)
    assert stats.collapse_share([0.1] * 5, 10).low == pytest.approx(0.025**0.2, rel=1e-9)
    assert stats.collapse_share([], 10)[1:] == (0, 1, 0, 0)
    for arguments, match in ((([0.5], 2), "classes: 2"), (([98.0], 10), "accuracy: 98 .*percent")):
        with pytest.raises(UserError, match=match):
            stats.collapse_share(*arguments)


def test_sampling_error_is_the_published_one() -> None:
    """√(.98 · .02 / 10⁴) = .0014 and √(.8 · .2 / 10⁴) = .0040."""
    assert stats.sampling_error(0.98, 10_000) == pytest.approx(0.0014)
    assert stats.sampling_error(0.80, 10_000) == pytest.approx(0.0040)
    drawn = np.random.default_rng(0).binomial(500, 0.9, 4000) / 500
    # The standard error of a standard deviation is about its 1/√(2 · 4000).
    assert stats.sampling_error(0.9, 500) == pytest.approx(drawn.std(), rel=3.5 / math.sqrt(8000))
    with pytest.raises(UserError, match="accuracy: 98 "):
        stats.sampling_error(98, 10_000)
    with pytest.raises(UserError, match="images: 0"):
        stats.sampling_error(0.98, 0)


def test_smallest_match_by_hand() -> None:
    """At .98: 1, .8 and .2 match; at .975 also .4; at .9 all; at .99 none."""
    cases = [(0.98, 0, 0.2, 0.8), (0.98, 0.005, 0.2, 0.2), (0.98, 0.08, 0.1, 0.1), (0.99, 0, None, None)]
    for dense, tolerance, any_match, unbroken in cases:
        for curve in (TICKET, TICKET[::-1]):
            assert stats.smallest_match(curve, dense, tolerance) == any_match
            assert stats.smallest_match(curve, dense, tolerance, unbroken=True) == unbroken
    # The densest does not match, a sparser one does.
    assert stats.smallest_match([(0.8, 0.9), (0.6, 0.98)], 0.98) == 0.6
    assert stats.smallest_match([(0.8, 0.9), (0.6, 0.98)], 0.98, unbroken=True) is None
    assert stats.smallest_match([], 0.98) is None


def test_an_accuracy_at_the_tolerance_matches_whatever_the_rounding() -> None:
    """Fifty of 10,000 images fewer than the dense network are within 0.5 pp, 51 are not.

    In percent, 99.27 is less than 99.77 − 0.5 in floating point.
    """
    for hits in range(9_900, 10_001):
        for unit in (1, 100):
            fewer = [[(0.5, unit * ((hits - images) / 10_000))] for images in (50, 51)]
            got = [stats.smallest_match(curve, unit * (hits / 10_000), unit * 0.005) for curve in fewer]
            assert got == [0.5, None]


CURVES = st.dictionaries(
    st.integers(1, 100).map(lambda i: i / 100), st.integers(0, 100).map(lambda i: i / 100), min_size=1
).map(lambda d: list(d.items()))


@given(CURVES, st.integers(0, 100).map(lambda i: i / 100), st.sampled_from([0.0, 0.05, 0.3]))
@settings(deadline=None)
def test_matches_and_crossings_are_in_order(
    curve: list[tuple[float, float]], dense: float, tolerance: float
) -> None:
    anywhere = stats.smallest_match(curve, dense, tolerance)
    unbroken = stats.smallest_match(curve, dense, tolerance, unbroken=True)
    at = stats.crossing(curve, dense - tolerance)
    if unbroken is None:
        assert at == max(curve)[0]
        assert anywhere is None or anywhere < at
    else:
        assert anywhere is not None
        assert anywhere <= unbroken
        # The crossing lies between the last unbroken match and the next density.
        lower = [density for density, _ in curve if density < unbroken]
        assert (at is None) == (not lower)
        assert at is None or max(lower) < at + 1e-12 <= unbroken + 2e-12
    looser = stats.smallest_match(curve, dense, tolerance + 0.1)
    assert anywhere is None or (looser is not None and looser <= anywhere)


def test_crossing_by_hand() -> None:
    """From .96 at density .8 to .90 at .2, .93 is halfway: √(.8 · .2) = .4."""
    curve = [(0.2, 0.90), (0.8, 0.96), (0.05, 0.99)]
    assert stats.crossing(curve, 0.93) == pytest.approx(0.4)
    assert stats.crossing(curve, 0.94) == pytest.approx(0.8 * 0.25 ** (1 / 3))
    assert stats.crossing(curve, 0.96) == pytest.approx(0.8)
    assert stats.crossing([(0.8, 0.96 - 1e-7), (0.2, 0.90)], 0.96) == 0.8, "below by rounding alone"
    assert stats.crossing(curve, 0.97) == 0.8, "it starts below"
    assert stats.crossing(curve, 0.90) is None, "at the target is not below it"
    assert stats.crossing([], 0.9) is None


def test_iso_ratio_by_hand() -> None:
    """Dense .98, tolerance .01: the ticket falls below .97 halfway from .2 to .05, the control at .4."""
    ticket = [(0.8, 0.985), (0.2, 0.98), (0.05, 0.96)]
    control = [(0.8, 0.98), (0.2, 0.96)]
    assert stats.iso_ratio(ticket, control, 0.98, 0.01) == pytest.approx((4, 4))
    assert stats.iso_ratio(control, ticket, 0.98, 0.01) == pytest.approx((1 / 4, 1 / 4))
    # At no tolerance the ticket falls from .2 on, the control from .8 on.
    assert stats.iso_ratio(ticket, control, 0.98) == pytest.approx((4, 4))
    # Below at its first level: it falls halfway between that level and the dense network, density 1.
    low = [(0.25, 0.96)]
    sparse = [(0.25, 0.98), (0.2, 0.98), (0.05, 0.96)]
    assert stats.iso_ratio(sparse, low, 0.98, 0.01) == pytest.approx((5, 5))
    assert stats.iso_ratio(sparse, [(1.0, 0.5), *low], 0.98, 0.01) == pytest.approx((5, 5))


def test_a_fall_across_levels_that_were_not_trained_is_known_by_bounds() -> None:
    """The ticket falls at .1; the control somewhere from 1 to .25, as nothing was trained at .8."""
    ticket = [(0.8, 0.985), (0.25, 0.98), (0.2, 0.98), (0.05, 0.96)]
    control = [(0.25, 0.96)]
    assert stats.iso_ratio(ticket, control, 0.98, 0.01) == pytest.approx((0.25 / 0.1, 1 / 0.1))
    assert stats.iso_ratio(control, ticket, 0.98, 0.01) == pytest.approx((0.1 / 1, 0.1 / 0.25))
    # A mask that differs in single weights is at the same level.
    beside = [(0.8, 0.98), (0.2497, 0.96)]
    assert stats.iso_ratio(ticket, beside, 0.98, 0.01).low > 0.3 / 0.1
    # Both are the same concave curve: the bounds hold 1, a line across levels would say 1.3.
    curve = lambda density: (density, 0.98 - 0.002 * math.log2(density) ** 2)  # noqa: E731
    every = [curve(0.8**level) for level in range(1, 14)]
    few = [every[7], every[11]]
    ratio = stats.iso_ratio(every, few, 0.98, 0.005)
    assert ratio.low < 1 < ratio.high
    assert stats.iso_ratio(every, every, 0.98, 0.005) == pytest.approx((1, 1))
    assert stats.iso_ratio(every[:0] + few, few, 0.98, 0.005) == pytest.approx((1, 1)), "nothing lies between"


def test_iso_ratio_of_curves_that_never_fall() -> None:
    falls, stays = [(0.8, 0.98), (0.2, 0.96)], [(0.8, 0.98), (0.02, 0.98)]
    assert stats.iso_ratio(stays, falls, 0.98, 0.01) == pytest.approx((0.4 / 0.02, math.inf))
    assert stats.iso_ratio(falls, stays, 0.98, 0.01) == pytest.approx((0, 0.02 / 0.4))
    assert stats.iso_ratio(stays, stays, 0.98, 0.01) == (0, math.inf)


def test_the_ratio_of_the_smallest_match_by_hand() -> None:
    """Dense .98, tolerance .01. Another curve has points at .8, .4, .2 and .1."""
    every = [0.8, 0.4, 0.2, 0.1]
    whole = [(0.8, 0.98), (0.4, 0.97), (0.2, 0.96), (0.1, 0.98)]
    assert stats.match_ratio(whole, 0.98, 0.01, every) == (2.5, 2.5)
    # It matches at .4 and fails at .1: it may match at .2.
    assert stats.match_ratio([(0.4, 0.98), (0.1, 0.9)], 0.98, 0.01, every) == (2.5, 5)
    assert stats.match_ratio([(0.4, 0.98), (0.1, 0.9)], 0.98, 0.01) == (2.5, 2.5)
    # It fails where it was first trained; a mask that differs in single weights is at the same level.
    assert stats.match_ratio([(0.2, 0.9), (0.1, 0.98)], 0.98, 0.01, every) == (1, 2.5)
    assert stats.match_ratio([(0.799, 0.9)], 0.98, 0.01, every) == (1, 1)
    assert stats.match_ratio([(0.4, 0.98)], 0.98, 0.01, every) == (2.5, math.inf)


def test_iso_accuracy_counts_what_it_leaves_out() -> None:
    falls, stays = [(0.8, 0.98), (0.2, 0.96)], [(0.8, 0.98), (0.02, 0.98)]
    deep = [(0.2, 0.98), (0.05, 0.96)]
    tickets = {0: deep, 1: stays, 2: falls, 3: deep, 9: deep}
    controls = {0: falls, 1: falls, 2: falls, 3: stays, 8: falls}
    got = stats.iso_accuracy(tickets, controls, dict.fromkeys(range(12), 0.98), 0.01)
    assert list(got.ratios) == [0, 1, 2, 3]
    assert got.censored == 2
    assert np.isnan(got.interval[:3]).all(), "there is no mean over bounds"
    assert got.interval.n == 4
    assert got.bounds[1:] == (0, math.inf, 4), "a control and a ticket that never fall leave no bound"
    known = stats.iso_accuracy({0: deep, 2: falls}, controls, dict.fromkeys(range(12), 0.98), 0.01)
    assert known.interval == pytest.approx(stats.geometric_interval([4, 1]), rel=1e-9)
    assert got.ratios[1] == pytest.approx((20, math.inf))
    assert got.ratios[3] == pytest.approx((0, 0.2))
    nothing = stats.iso_accuracy({}, controls, {})
    assert (nothing.interval.n, nothing.ratios, nothing.censored) == (0, {}, 0)


def humped(at: float) -> list[tuple[float, float]]:
    """A curve that falls below .98 at `at`, at levels of 20 % a round."""
    return [(0.8**level, 0.98 + 0.005 * math.log2(0.8**level / at)) for level in range(1, 40)]


@pytest.mark.parametrize("n", [3, 6, 10])
def test_coverage_of_the_iso_accuracy_interval(n: int) -> None:
    """Log-normal crossings about 1 % and 4 %, so a geometric mean of 4: 2.5 % lie beyond either bound."""
    drawn = np.random.default_rng(n).normal(0, 0.5, (1000, 2, n))
    beyond = []
    for tickets, controls in np.exp(drawn) * np.array([0.01, 0.04]).reshape(2, 1):
        got = stats.iso_accuracy(
            dict(enumerate(map(humped, tickets))),
            dict(enumerate(map(humped, controls))),
            dict.fromkeys(range(n), 0.98),
        )
        assert got.interval.n == n
        beyond.append((got.interval.low > 4, got.interval.high < 4))
    too_high, too_low = np.mean(beyond, axis=0)
    assert within(too_high, 0.025, 1000)
    assert within(too_low, 0.025, 1000)


def test_area_between_by_hand() -> None:
    """From 1 to 1/4 ours falls by 2 in log density, theirs is 0: the mean of 4 … 2 is 3."""
    assert stats.area_between([(1, 4.0), (0.25, 2.0)], [(1, 0.0), (0.25, 0.0)]) == pytest.approx(3)
    # Only what both measured counts: 4 at density 1 and 2 at 1/4, whatever one of them is between.
    kinked = [(1, 4.0), (0.5, 9.0), (0.25, 2.0)]
    assert stats.area_between(kinked, [(1, 0.0), (0.2505, 0.0)]) == pytest.approx(3)
    assert stats.area_between([(1, 4.0), (0.25, 2.0)], [(0.5, 1.0), (0.125, -1.0)]) is None
    assert stats.area_between([(1, 4.0), (0.5, 2.0)], [(0.5, 0.0), (0.25, 0.0)]) is None, "one density"
    assert stats.area_between([], [(1, 1.0)]) is None


@given(CURVES, CURVES, NUMBERS)
@settings(deadline=None)
def test_area_turns_and_shifts(
    ours: list[tuple[float, float]], theirs: list[tuple[float, float]], shift: float
) -> None:
    area = stats.area_between(ours, theirs)
    back = stats.area_between(theirs, ours)
    moved = stats.area_between([(density, value + shift) for density, value in ours], theirs)
    both = sorted(dict(ours).keys() & dict(theirs).keys())
    if len(both) < 2:
        assert area is back is moved is None
        return
    assert area == pytest.approx(-back, abs=1e-9)
    assert moved == pytest.approx(area + shift, abs=1e-9)
    # An independent computation: many small steps along the line between the common densities.
    grid = np.linspace(math.log(both[0]), math.log(both[-1]), 20_001)
    gaps = [dict(ours)[density] - dict(theirs)[density] for density in both]
    assert area == pytest.approx(np.mean(np.interp(grid, np.log(both), gaps)), abs=1e-3)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean_interval([1, 2], 95), "confidence: 95 is not between 0 and 1"),
        (lambda: stats.mean_interval([98, 99], within=stats.SHARE), r"their mean 98.5 is not in \[0, 1\]"),
        (lambda: stats.verdict([-1, -2], within=stats.POSITIVE), r"their mean -1.5 is not in \[0, inf\]"),
        (lambda: stats.bounds([1, 2], 0.05), "confidence: 0.05 is not between 0.5 and 1"),
        (lambda: stats.verdict([1, math.nan]), "values: nan is not a finite number; leave diverged runs out"),
        (lambda: stats.equivalent([1, math.inf], 1), "values: inf is not a finite number"),
        (lambda: stats.noninferior([1, 2], -0.5), "margin: -0.5 is not allowed"),
        (lambda: stats.equivalent([1, 2], -0.5), "margin: -0.5 is not allowed"),
        (lambda: stats.geometric_equivalent([], 0.9), "factor: 0.9 is not allowed"),
        (lambda: stats.geometric_equivalent([], math.nan), "factor: nan is not allowed"),
        (lambda: stats.t_p_value([1, 2], alternative="more"), "alternative: 'more' is not known"),
        (lambda: stats.sign_flip_p_value([1, 2], alternative="grater"), "did you mean 'greater'"),
        (lambda: stats.sign_flip_p_value([1, math.nan]), "values: nan"),
        (lambda: stats.hedges_gz([1, math.nan]), "values: nan"),
        (lambda: stats.hedges_gz([1, 2], 1), "confidence: 1 "),
        (lambda: stats.hedges_gz([1, 2], floor=-1), "floor: -1 "),
        (lambda: stats.smallest_match(TICKET, 0.98, -1), "tolerance: -1 is not allowed"),
        (lambda: stats.match_ratio(TICKET, 0.98, -1), "tolerance: -1 is not allowed"),
        (lambda: stats.iso_ratio(TICKET, TICKET, 0.98, math.nan), "tolerance: nan is not allowed"),
        (lambda: stats.crossing([(80, 0.9)], 0.9), r"curve: density 80 is not in \(0, 1\]"),
        (lambda: stats.crossing([(0.0, 0.9)], 0.9), "curve: density 0 "),
        (lambda: stats.crossing([(0.5, math.nan)], 0.9), "curve: nan"),
        (lambda: stats.area_between([(0.5, 1), (0.5, 2)], TICKET), "density 0.5 occurs twice"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_ratios_of_steps_by_hand() -> None:
    """Evaluated up to step 500: a lowest loss there is a lower bound of the step."""
    assert stats.step_ratio([400], [100], 500) == (4, 4)
    assert stats.step_ratio([200, 400], [100, 50], 500) == pytest.approx((4, 4))
    assert stats.step_ratio([500], [100], 500) == (5, math.inf)
    assert stats.step_ratio([100], [500], 500) == (0, 0.2)
    assert stats.step_ratio([500], [500], 500) == (0, math.inf)
    # One of two repeats is censored: their mean is a lower bound.
    assert stats.step_ratio([500, 300], [100], 500) == (4, math.inf)
    for wrong in ([], [0]):
        with pytest.raises(UserError, match=r"steps: .* is not allowed"):
            stats.step_ratio(wrong, [100], 500)


# Planning


@pytest.mark.parametrize("n", [3, 4, 6, 10])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_detectable_effect_has_about_its_power(n: int, power: float) -> None:
    """The exact power, by the noncentral t distribution, of the one-sided test."""
    effect = stats.detectable(0.7, n, power)
    limit = scipy.stats.t.ppf(0.95, n - 1)
    assert scipy.stats.nct.sf(limit, n - 1, effect * math.sqrt(n) / 0.7) == pytest.approx(power, abs=0.01)


def test_the_detectable_effect_is_found_that_often() -> None:
    """The verdict itself, on simulated differences."""
    effect = stats.detectable(1.0, 5)
    often = np.mean([stats.verdict(values).outcome == "supported" for values in samples(5, effect)])
    assert within(often, 0.807)


@given(st.floats(0.05, 3), st.floats(0.05, 3))
@example(0.0625, 3.0)
@settings(deadline=None)
def test_seeds_for_is_the_least_number(difference: float, spread: float) -> None:
    n = stats.seeds_for(difference, spread)
    if n is None:
        assert stats.detectable(spread, 10_000) > difference
        return
    assert stats.detectable(spread, n) <= difference
    assert n == 3 or stats.detectable(spread, n - 1) > difference


def test_planning_refuses_what_it_cannot_answer() -> None:
    assert stats.detectable(0.0, 3) == 0
    assert stats.seeds_for(1e-4, 1.0) is None
    for ask, message in (
        (lambda: stats.detectable(1.0, 1), "n: 1 is too few"),
        (lambda: stats.detectable(-1.0, 3), "spread: -1 is not allowed"),
        (lambda: stats.detectable(1.0, 3, 1.5), "power: 1.5 is not between"),
        (lambda: stats.seeds_for(0, 1.0), "difference: 0 is not between"),
    ):
        with pytest.raises(UserError, match=message):
            ask()


@pytest.mark.parametrize(
    ("n", "outcome"), [(3, "undecided"), (4, "undecided"), (5, "supported"), (6, "supported")]
)
def test_ratios_that_all_agree_decide_as_bounds_do(n: int, outcome: str) -> None:
    """Levels of pruning are a grid: three seeds at one of its points show no spread."""
    assert stats.geometric_verdict([stats.Ratio(5.96, 5.96)] * n, 5).outcome == outcome
    assert stats.geometric_verdict([stats.Ratio(1 / 5.96, 1 / 5.96)] * n, 0.2).outcome == outcome.replace(
        "supported", "refuted"
    )
    apart = [stats.Ratio(value, value) for value in (5.96, 5.97, 5.95)]
    assert stats.geometric_verdict(apart, 5).outcome == "supported"
