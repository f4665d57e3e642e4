"""Verdicts on rows made by hand."""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import about
from scipy import stats as scipy_stats

from analysis.commands import deeper, of_all, with_control
from analysis.page import Link
from analysis.report import facts, gaps, verdicts
from analysis.rows import Row
from lthjax import config, durations, imp, launch, validate

SEEDS = range(6)
STUDY = {"commands": ["run.py --config configs/x.py"]}
NOISE = np.array([-0.3, 0.2, 0.1, -0.1, 0.3, -0.2])


def row(seed: int, chain: str, level: int, arm: str, density: float, percent: float) -> Row:
    return Row(
        seed, chain, level, arm, 1, density, round(1000 * density), percent / 100, 0.1, 0.99, 0.97, 0.1,
        100, percent / 100, 500, 1.5, "done",
    )  # fmt: skip


def run(
    gaps: dict[str, dict[float, float]], dense: float = 95.0, seeds: range = SEEDS, chain: str = "rewind-0"
) -> list[Row]:
    """Rows whose arms differ from the dense network by the given mean points, by density."""
    rows = [row(seed, "dense", 0, "dense", 1.0, dense + seed) for seed in seeds]
    for place, (arm, by_density) in enumerate(gaps.items()):
        for level, (density, gap) in enumerate(by_density.items(), 1):
            values = [dense + seed + gap + NOISE[(seed + place) % 6] for seed in seeds]
            rows += [row(seed, chain, level, arm, density, v) for seed, v in zip(seeds, values, strict=True)]
    return rows


def said(rows: list[Row]) -> dict[str, verdicts.Finding]:
    """Findings by claim."""
    return {finding.claim: finding for finding in verdicts.findings(STUDY, rows)}


WITHIN = "Tickets at 80–90 % sparsity are within {} points of the dense network"
TEN = "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity"
ISO = "Reinitialised masks need more weights than tickets 0.5 points below dense"
TEN_SOMEWHERE = "Tickets beat reinitialised ones by 10 points or more at some density"
SOMEWHERE = "Tickets beat reinitialised ones at some density"


def test_within_is_held_at_every_level_of_the_range_and_only_there() -> None:
    found = said(run({"ticket": {0.5: -9, 0.2: 0.5, 0.15: -0.1, 0.1: -1.0, 0.05: -9}}))
    assert [found[WITHIN.format(margin)].outcome for margin in (2, 0.5, 0.2)] == [
        "supported", "refuted", "refuted",
    ]  # fmt: skip
    worst = found[WITHIN.format(2)]
    half = scipy_stats.t.ppf(0.95, 5) * np.std(NOISE, ddof=1) / math.sqrt(6)
    at = "(one-sided 95 %) at 10.0 % of the weights, the least of 3 levels"
    assert worst.estimate == f"-1.00 pp, at least {-1 - half:+.2f} {at}"
    assert found[WITHIN.format(0.5)].estimate == f"-1.00 pp, at most {-1 + half:+.2f} {at}"
    assert (worst.n, worst.where) == (6, Link("levels", "#levels"))
    assert worst.test == "non-inferiority, margin 2 pp"


def test_two_seeds_decide_nothing_close() -> None:
    found = said(run({"ticket": {0.15: -0.4}}, seeds=range(2)))
    assert found[WITHIN.format(0.5)].outcome == "too few seeds"


@pytest.mark.parametrize(("n", "outcome"), [(1, "too few seeds"), (2, "too few seeds"), (3, "supported")])
def test_three_seeds_are_the_fewest_of_a_verdict(n: int, outcome: str) -> None:
    """Tickets 5 points above dense and 20 above reinit: clear, but not by one or two seeds."""
    rows = run({"ticket": {0.15: 5.0, 0.1: 5.0}, "reinit": {0.15: -15.0, 0.1: -15.0}}, seeds=range(n))
    tested = [of for of in verdicts.findings(STUDY, rows) if of.outcome != "not tested"]
    gaps_of = [of for of in tested if not re.search("learn faster|weights", of.claim)]
    few = {of.outcome for of in gaps_of}
    assert len(gaps_of) == 7
    assert few == {outcome}
    assert all(of.outcome == "too few seeds" for of in tested if n < 3)


def test_a_precise_zero_is_equivalent_and_no_open_question() -> None:
    """Gaps of 0.01 points with a spread of 0.06: within ±0.2, and not above 0."""
    rows = run({"ticket": {0.15: 0.0}, "reinit": {0.15: 0.0}})
    close = [r._replace(test_accuracy=0.95 + 0.002 * NOISE[r.seed]) if r.arm == "ticket" else
             r._replace(test_accuracy=0.95) for r in rows]  # fmt: skip
    found = said(close)["Tickets beat reinitialised ones at 80–90 % sparsity"]
    half = scipy_stats.t.ppf(0.95, 5) * scipy_stats.sem(0.2 * NOISE)
    assert found.outcome == "equivalent"
    assert found.estimate == (
        f"+0.00 pp, at least {-half:+.2f} and at most {half:+.2f} (each one-sided 95 %) "
        "at 15.0 % of the weights"
    )
    assert found.test == "equivalence, ±0.2 pp"
    wide = [r._replace(test_accuracy=0.95 + 0.02 * NOISE[r.seed]) if r.arm == "ticket" else r for r in close]
    assert said(wide)["Tickets beat reinitialised ones at 80–90 % sparsity"].outcome == "undecided"


def test_two_arms_that_need_as_many_weights_or_steps_are_equivalent() -> None:
    """Tickets and reinit fall alike: as many weights within a factor of 1.1; one needs a tenth more steps."""
    falls = {0.5: 1.0, 0.15: 0.3, 0.1: -3.0}
    rows = run({"ticket": falls, "reinit": falls})
    found = said(rows)["Reinitialised masks need more weights than tickets 0.5 points below dense"]
    assert found.outcome == "equivalent"
    assert found.test == "equivalence, within 1.1×"
    assert re.fullmatch(
        r"\d\.\d\d×, at least 0\.9\d and at most 1\.0\d \(each one-sided 95 %\)", found.estimate
    )
    for steps, outcome, test in (
        ([101, 99, 102, 98, 100, 101], "equivalent", "equivalence, within 1.1×"),
        ([140, 99, 120, 70, 100, 101], "undecided", "superiority"),
        ([112, 113, 111, 112, 113, 112], "supported", "superiority"),
    ):
        told = [row._replace(early_stop_step=steps[row.seed]) if row.arm == "reinit" else row for row in rows]
        faster = said(told)["Tickets learn faster than reinitialised ones at 80–90 % sparsity"]
        assert (faster.outcome, faster.test) == (outcome, test), faster


def test_a_search_finds_that_every_level_is_equivalent() -> None:
    """Gaps of ±0.03 points at each of two levels; one level of ±0.3 leaves it open."""
    rows = run({"ticket": {0.15: 0.0, 0.05: 0.0}, "reinit": {0.15: 0.0, 0.05: 0.0}})
    claim = SOMEWHERE

    def with_spread(last: float) -> list[Row]:
        spread = {1: 0.001, 2: last}
        return [
            r._replace(test_accuracy=0.95 + spread[r.level] * NOISE[r.seed] if r.arm == "ticket" else 0.95)
            if r.level
            else r
            for r in rows
        ]

    found = said(with_spread(0.002))[claim]
    assert (found.outcome, found.test) == ("equivalent", "equivalence, ±0.2 pp")
    assert found.estimate.endswith("at 5.0 % of the weights, the most of 2 levels")
    wide = said(with_spread(0.02))[claim]
    assert (wide.outcome, wide.test) == ("undecided", "superiority, 2 levels by Holm")
    ten = said(with_spread(0.002))[TEN_SOMEWHERE]
    assert ten.outcome == "refuted"


def lucky(images: int) -> tuple[dict[str, verdicts.Finding], list[Row]]:
    """Three seeds that all have +1.0 points at 70 %, and a test set of so many images."""
    rows = run({"ticket": {0.15: 1.0}}, dense=70.0, seeds=range(3))
    alike = [r._replace(test_accuracy=0.71 if r.arm == "ticket" else 0.70) for r in rows]
    study = {**STUDY, "data": {"test": images}}
    return {of.claim: of for of in verdicts.findings(study, alike)}, alike


def test_seeds_that_agree_do_not_tell_more_than_the_test_set() -> None:
    """√(.7 · .3 / N + .71 · .29 / N): .645 points of 10,000 images, so the bound is 1 − 2.92 · .645 / √3."""
    found, rows = lucky(10_000)
    error = 100 * math.sqrt((0.7 * 0.3 + 0.71 * 0.29) / 10_000)
    low = 1 - scipy_stats.t.ppf(0.95, 2) * error / math.sqrt(3)
    within = found[WITHIN.format(0.2)]
    assert within.estimate == f"+1.00 pp, at least {low:+.2f} (one-sided 95 %) at 15.0 % of the weights"
    assert within.outcome == "supported"
    few, _ = lucky(1000)
    assert [few[WITHIN.format(margin)].outcome for margin in (2, 0.2)] == ["undecided", "undecided"]
    # Without the number of images there is no floor.
    plain = {of.claim: of for of in verdicts.findings(STUDY, rows)}
    assert plain[WITHIN.format(0.2)].estimate.startswith("+1.00 pp, at least +1.00 (")
    # The tables of the page have the same spread, two-sided.
    half = scipy_stats.t.ppf(0.975, 2) * error / math.sqrt(3)
    said = f"+1.00 [{1 - half:+.2f}, {1 + half:+.2f}]"
    assert gaps.gaps(rows, "rewind-0", 10_000).rows[0][2] == said
    assert facts.levels(rows, "rewind-0", 10_000).rows[1][-1] == said
    p = 2 * scipy_stats.t.sf(1 / (error / math.sqrt(3)), 2)
    assert gaps.gaps(rows, "rewind-0", 10_000).rows[0][4] == f"{p:.3f}".lstrip("0")


def test_what_is_not_there_is_not_tested_and_the_command_is_named() -> None:
    found = said(run({"ticket": {0.5: 0.0}}))
    for claim in (WITHIN.format(2), TEN, "Late rewinding helps at 80–90 % sparsity"):
        assert found[claim].outcome == "not tested"
        assert str(found[claim].where).startswith("python run.py --config configs/x.py --")
    (nothing,) = verdicts.findings(STUDY, run({}))
    assert nothing.outcome == "not tested"


def test_the_gap_to_reinit_and_where_it_appears() -> None:
    tickets = {0.15: 0.0, 0.05: 0.0, 0.02: 0.0}
    found = said(run({"ticket": tickets, "reinit": {0.15: -1.5, 0.05: -8.0, 0.02: -14.0}}))
    assert found[TEN].outcome == "refuted"
    somewhere = found[TEN_SOMEWHERE]
    assert somewhere.outcome == "supported"
    # Only one of three levels is clear, so its bound is the one of Holm's first step: of 1 − .05 / 3.
    gap = 14 + NOISE - np.roll(NOISE, -1)
    low = gap.mean() - scipy_stats.t.isf(0.05 / 3, 5) * scipy_stats.sem(gap)
    assert somewhere.estimate == (
        "first at 2.0 % of the weights: +14.00 pp, "
        f"at least {low:+.2f} (one-sided 95 % over 3 levels by Holm)"
    )
    assert found["Tickets beat reinitialised ones at 80–90 % sparsity"].outcome == "supported"
    assert found["Tickets beat random pruning at 80–90 % sparsity"].outcome == "not tested"
    never = said(run({"ticket": tickets, "reinit": {0.15: -1.0, 0.05: -2.0, 0.02: -3.0}}))
    assert never[TEN_SOMEWHERE].outcome == "refuted"
    assert never[TEN_SOMEWHERE].estimate.startswith(
        "highest bound at 2.0 % of the weights: +3.00 pp, at most +3."
    )


@pytest.mark.parametrize("gap", [0.0, 14.0])
def test_a_search_says_which_levels_have_too_few_seeds(gap: float) -> None:
    """One seed is 30 points ahead at 2 %: nothing is refuted by the other levels, nor hidden at them."""
    tickets = {0.15: 0.0, 0.05: 0.0, 0.02: 0.0}
    rows = run({"ticket": tickets, "reinit": {0.15: -1.0, 0.05: -gap, 0.02: -30.0}})
    few = [one for one in rows if not (one.arm == "reinit" and one.density == 0.02 and one.seed)]
    found = said(few)[TEN_SOMEWHERE]
    assert found.outcome == ("supported" if gap else "undecided")
    assert found.estimate.endswith("; 1 level of fewer seeds left out")
    assert found.n == len(NOISE)


def test_searching_many_levels_is_corrected() -> None:
    """One level of 20 at p = 0.02 is no finding; the same level alone is one."""
    values = {seed: 0.45 + 2 * NOISE[seed] for seed in SEEDS}
    p = scipy_stats.ttest_1samp(list(values.values()), 0, alternative="greater").pvalue
    assert 0.05 / 20 < p < 0.05
    none = NOISE - NOISE.mean()
    rows = [row(seed, "dense", 0, "dense", 1.0, 90.0) for seed in SEEDS]
    for level in range(1, 21):
        gaps = values if level == 1 else dict(zip(SEEDS, none, strict=True))
        for seed in SEEDS:
            density = 0.9 - 0.02 * level
            rows += [row(seed, "rewind-0", level, "ticket", density, 90 + gaps[seed])]
            rows += [row(seed, "rewind-0", level, "reinit", density, 90.0)]
    claim = SOMEWHERE
    assert said(rows)[claim].outcome == "undecided"
    alone = [r for r in rows if r.level <= 1]
    assert said(alone)[claim].outcome == "supported"


def test_weights_saved_and_iso_accuracy() -> None:
    """Within 0.5 points down to 10 %: 10 times fewer; reinit stops matching at 50 %, tickets after 10 %."""
    rows = run(
        {
            "ticket": {0.5: 1.0, 0.1: 1.0, 0.05: -3.0},
            "reinit": {0.5: 1.0, 0.1: -3.0, 0.05: -9.0},
        }
    )
    found = said(rows)
    saved = found["5–10× fewer weights within 0.5 points of the dense network"]
    assert (saved.outcome, saved.estimate, saved.n) == (
        "supported",
        "10.0×, at least 10.0 (one-sided 95 %)",
        6,
    )
    iso = found["Reinitialised masks need more weights than tickets 0.5 points below dense"]
    assert iso.outcome == "supported"
    # By hand for a seed: falling from +1 + e to -3 + f crosses -0.5 at (1.5 + e) / (4 + e - f) of the way.
    ratios = []
    for seed in SEEDS:
        t, c = NOISE[seed], NOISE[(seed + 1) % 6]
        way_t, way_c = (1.5 + t) / 4, (1.5 + c) / 4
        ratios.append(0.5 * (0.1 / 0.5) ** way_c / (0.1 * (0.05 / 0.1) ** way_t))
    mean = math.exp(np.mean(np.log(ratios)))
    low = math.exp(np.mean(np.log(ratios)) - scipy_stats.t.ppf(0.95, 5) * scipy_stats.sem(np.log(ratios)))
    assert iso.estimate == f"{mean:.1f}×, at least {low:.1f} (one-sided 95 %)"
    few = said(run({"ticket": {0.5: 1.0, 0.1: 1.0}, "reinit": {0.5: 1.0, 0.1: -3.0}}))
    assert few[saved.claim].estimate == (
        "≥ 10.0×, one-sided 95 % bound of the mean; 6 of 6 seeds (100 %) still match at the last level, "
        "each ≥ 10.0×"
    )
    # Tickets never fall down to 10 %; reinit falls at (1.5 + c) / 4 of the way there: each ratio is a bound.
    least = min(0.5 * (0.1 / 0.5) ** ((1.5 + c) / 4) / 0.1 for c in NOISE)
    assert few[iso.claim].outcome == "supported"
    assert few[iso.claim].estimate == (
        f"≥ {least:.1f}×, one-sided 95 % bound of the mean; 6 of 6 seeds (100 %) do not fall that low, "
        f"each ≥ {least:.1f}×"
    )


def test_a_claim_that_lacks_its_control_alone_says_so() -> None:
    """Tickets have a level in the range; reinit, random and the late tickets are at 50 % alone."""
    rows = run({"ticket": {0.5: 1.0, 0.15: 1.0}, "reinit": {0.5: 0.0}})
    rows += run({"ticket": {0.5: 1.0}}, chain="rewind-500")[len(SEEDS) :]
    found, there = said(rows), "between 10 and 20 % of the weights"
    why = {claim: of.estimate for claim, of in found.items() if of.outcome == "not tested"}
    faster = "Tickets learn faster than reinitialised ones at 80–90 % sparsity"
    beaten = "Tickets beat reinitialised ones at 80–90 % sparsity"
    assert why[TEN] == why[faster] == why[beaten] == f"reinit was not trained {there}"
    assert why["Tickets beat random pruning at 80–90 % sparsity"] == f"random was not trained {there}"
    late = "Late rewinding helps at 80–90 % sparsity: to step 500 against 0"
    assert why[late] == f"the ticket rewound to step 500 was not trained {there}"
    neither = said(run({"ticket": {0.5: 1.0}}))
    assert {neither[claim].estimate for claim in (TEN, faster, beaten)} == {f"no level {there}"}


def test_a_network_that_diverged_matches_nothing() -> None:
    """Tickets of seeds 0 and 2 diverge at 20 %, where their chains end; the others fall at 10 %."""

    def failed(of: Row) -> Row:
        return of._replace(status="diverged", test_accuracy=None, early_stop_step=None)

    whole = run({"ticket": {0.5: 1.0, 0.2: 1.0, 0.1: -3.0}, "reinit": {0.5: -3.0, 0.2: 1.0, 0.1: -9.0}})
    ends = [of for of in whole if of.seed not in (0, 2) or of.level < 2]
    ends += [failed(of) for of in whole if of.seed in (0, 2) and of.level == 2 and of.arm == "ticket"]
    found = said(ends)
    saved = found["5–10× fewer weights within 0.5 points of the dense network"]
    logs = np.log([2, 5, 2, 5, 5, 5])
    half = scipy_stats.t.ppf(0.95, 5) * scipy_stats.sem(logs)
    mean, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    bounds = f"at least {low:.1f} and at most {high:.1f} (each one-sided 95 %)"
    assert (saved.estimate, saved.n) == (f"{mean:.1f}×, {bounds}", 6)
    # Reinit falls 0.5 / 2.8 of the way from 100 to 50 % with seed 0, the tickets of it below 50 %.
    iso = found["Reinitialised masks need more weights than tickets 0.5 points below dense"]
    least = 0.5 ** (0.5 / 2.8) / 0.5
    assert iso.estimate.endswith(f"2 of 6 seeds (33 %) diverged before they fell, each ≥ {least:.1f}×")
    level = [failed(of) if of.arm == "reinit" and of.level == 2 else of for of in whole if of.level < 3]
    assert said(level)[iso.claim].estimate.endswith("6 of 6 seeds (100 %) do not fall that low, each ≥ 4.4×")
    ticket, _ = gaps.summaries(ends, "rewind-0").rows
    assert ticket[2] == "50.0, 20.0, 50.0, 20.0, 20.0, 20.0"
    # Of the repeats of a control one is enough; without any it matches nothing at the level.
    of_reinit = [of._replace(repeat=2) for of in map(failed, whole) if of.arm == "reinit"]
    assert gaps.summaries([*whole, *of_reinit], "rewind-0") == gaps.summaries(whole, "rewind-0")
    middle = [failed(of) if of.arm == "ticket" and of.level == 1 else of for of in whole]
    assert gaps.summaries(middle, "rewind-0").rows[0][2] == ", ".join(["none"] * 6)


def test_a_control_that_diverged_is_not_said_to_be_untrained() -> None:
    """It is there, so that no command adds it."""
    rows = run({"ticket": {0.2: 1.0, 0.15: 1.0}, "reinit": {0.2: -3.0, 0.15: -3.0}})

    def where_diverged(*levels: int) -> list[Row]:
        gone = {"test_accuracy": None, "early_stop_step": None, "status": "diverged"}
        return [of._replace(**gone) if of.arm == "reinit" and of.level in levels else of for of in rows]

    faster = "Tickets learn faster than reinitialised ones at 80–90 % sparsity"
    found = said(where_diverged(1, 2))
    for claim in (REINIT, TEN, faster):
        assert found[claim].estimate == "reinit diverged between 10 and 20 % of the weights"
    for claim in (SOMEWHERE, TEN_SOMEWHERE):
        assert found[claim].estimate == "reinit diverged wherever it was trained"
    assert {found[claim].where for claim in (REINIT, TEN, faster, SOMEWHERE, TEN_SOMEWHERE)} == {""}
    some = said(where_diverged(2))
    assert some[REINIT].outcome == "supported"
    for claim in (REINIT, faster):
        assert some[claim].estimate.endswith("; reinit diverged at 1 of the tickets' 2 levels there")
    # What was not trained is trained by the command.
    other = [of for of in where_diverged(1, 2) if (of.arm, of.level) != ("reinit", 1)]
    assert said(other)[REINIT].estimate == (
        "reinit diverged at 1 of the tickets' 2 levels between 10 and 20 % of the weights"
    )
    assert str(said(other)[REINIT].where).endswith("--arms ticket reinit")


def test_where_in_every_seed_one_of_two_diverged_no_command_is_offered() -> None:
    """At the only level the ticket of seed 0 diverged, and reinit of the others; of two chains likewise."""

    def lost(of: Row, arm: str, seeds: Sequence[int], level: int = 1) -> Row:
        failed = {"test_accuracy": None, "early_stop_step": None, "status": "diverged"}
        return of._replace(**failed) if (of.arm, of.level) == (arm, level) and of.seed in seeds else of

    rows = run({"ticket": {0.15: 0.0}, "reinit": {0.15: -3.0}})
    found = said([lost(lost(of, "ticket", [0]), "reinit", range(1, 6)) for of in rows])
    there, rest = "between 10 and 20 % of the weights", "in every seed whose ticket did not"
    faster = "Tickets learn faster than reinitialised ones at 80–90 % sparsity"
    for claim in (REINIT, TEN, faster):
        assert (found[claim].estimate, found[claim].where) == (f"reinit diverged {there} {rest}", "")
    for claim in (SOMEWHERE, TEN_SOMEWHERE, ISO):
        assert found[claim].estimate == f"reinit diverged wherever it was trained {rest}"
    # At one of two levels: both were trained at both.
    some = run({"ticket": {0.2: 1.0, 0.15: 1.0}, "reinit": {0.2: -3.0, 0.15: -3.0}})
    two = said([lost(lost(of, "ticket", [0], 2), "reinit", range(1, 6), 2) for of in some])
    assert two[REINIT].estimate.endswith(
        "; reinit diverged at 1 of the tickets' 2 levels there; the ticket of 1 seed diverged there or before"
    )
    early = [lost(of, "ticket", range(5), 2) for of in run({"ticket": {0.3: 0.0, 0.15: 0.0}})]
    later = run({"ticket": {0.3: 0.0, 0.15: 0.0}}, chain="rewind-50")
    both = said([*early, *(lost(of, "ticket", [5], 2) for of in later if of.level)])
    late = both["Late rewinding helps at 80–90 % sparsity: to step 50 against 0"]
    why = f"the ticket rewound to step 50 diverged {there} in every seed whose earliest ticket did not"
    assert (late.estimate, late.where) == (why, "")


def test_controls_at_some_of_the_tickets_levels_are_said_to_be_there_only() -> None:
    """Three levels of tickets in the range, one of reinit, two of random, which is as good as dense."""
    rows = run(
        {
            "ticket": {0.9: 1.0, 0.2: 1.0, 0.15: 1.0, 0.1: 1.0},
            "reinit": {0.15: -3.0},
            "random": {0.2: 1.0, 0.15: 1.0},
        }
    )
    # By level of the tickets: the helper numbers the levels of each arm from 1.
    places = {0.9: 1, 0.2: 2, 0.15: 3, 0.1: 4, 1.0: 0}
    found = said([of._replace(level=places[of.density]) for of in rows])
    gap = found["Tickets beat reinitialised ones at 80–90 % sparsity"]
    assert gap.outcome == "supported"
    assert gap.estimate.endswith(
        "at 15.0 % of the weights; both were trained at 1 of the tickets' 3 levels there"
    )
    within = found[WITHIN.format(2)]
    assert "trained at" not in within.estimate, "tickets are compared with the dense network at all three"
    assert "reinit does not pass (refuted) at 1 of the 3 levels: " in within.beside
    assert "random passes the same test at 2 of the 3 levels: " in within.beside
    assert within.beside.endswith("so the claim does not tell tickets from random at 2 of the 3 levels")
    # Reinit fell somewhere from the dense network to 15 %, where nothing else of it was trained.
    iso = found["Reinitialised masks need more weights than tickets 0.5 points below dense"]
    assert iso.estimate == (
        "≥ 1.5×, one-sided 95 % bound of the mean; 6 of 6 seeds (100 %) do not fall that low, each ≥ 1.5×"
    )
    falls = run({"ticket": {0.9: 1.0, 0.2: 1.0, 0.15: 1.0, 0.1: -9.0}, "reinit": {0.15: -3.0}})
    known = said([of._replace(level=places[of.density]) for of in falls])[iso.claim]
    assert "6 of 6 seeds (100 %) fall between levels without a control" in known.estimate
    assert known.outcome == "supported"


@pytest.mark.parametrize(
    ("command", "levels", "expected"),
    [
        ("run.py --config a.py", (), "--config a.py --arms ticket reinit"),
        ("run.py --config a.py", (3, 5), "--config a.py --arms ticket reinit --control-levels 3 5 7"),
        (
            "run.py --control-levels 9 --config a.py",
            (3,),
            "--control-levels 7 9 --config a.py --arms ticket reinit",
        ),
        ("run.py --config a.py --arms random", (), "--config a.py --arms random ticket reinit"),
    ],
)
def test_the_command_that_trains_a_control_at_a_level(
    command: str, levels: tuple[int, ...], expected: str
) -> None:
    about = {"commands": [command], "config": {"control_levels": levels, "seeds": SEEDS}}
    rows = run({"ticket": {0.15: 1.0}})
    assert with_control(about, rows, "reinit", 7).endswith(expected)


def test_controls_of_too_few_seeds_have_no_outcome_beside_a_claim() -> None:
    rows = run({"ticket": {0.15: 1.0}, "reinit": {0.15: 1.0}})
    few = [of for of in rows if of.arm != "reinit" or of.seed < 2]
    assert said(few)[WITHIN.format(2)].beside == "reinit has 2 seeds, too few"


def test_weights_saved_by_controls_at_some_of_the_tickets_levels_are_known_by_bounds() -> None:
    """Reinit matches at 50 % and fails at 10 %, random fails at 20 %; both may match at levels between."""
    tickets = {0.8: 1.0, 0.5: 1.0, 0.2: 1.0, 0.15: 1.0, 0.1: 1.0}
    rows = run({"ticket": tickets, "reinit": {0.5: 1.0, 0.1: -3.0}, "random": {0.2: -3.0, 0.1: 1.0}})
    claim = "5–10× fewer weights within 0.5 points of the dense network"
    assert said(rows)[claim].beside == (
        "reinit does not pass (undecided): at least 2.0 and at most 6.7; "
        "random does not pass (refuted): at most 2.0"
    )
    # Where it was trained at every level of the tickets nothing is left open.
    every = run({"ticket": tickets, "reinit": {**tickets, 0.1: -3.0}})
    assert said(every)[claim].beside.startswith("reinit passes the same test: 6.7×, at least 6.7")


def test_a_censored_seed_is_a_bound_and_no_value() -> None:
    """One of six seeds stops at 50 %, five still match at 2.5 %: nothing above 40 times was measured."""
    rows = run({"ticket": {0.5: 1.0, 0.1: 1.0, 0.025: 1.0}})
    unlucky = [r._replace(test_accuracy=0.5) if (r.seed, r.level) in ((0, 2), (0, 3)) else r for r in rows]
    claim = "5–10× fewer weights within 0.5 points of the dense network"
    found = said(unlucky)[claim]
    logs = np.log([2, *[40] * 5])
    low = math.exp(logs.mean() - scipy_stats.t.ppf(0.95, 5) * scipy_stats.sem(logs))
    assert found.estimate == (
        f"≥ {low:.1f}×, one-sided 95 % bound of the mean; 5 of 6 seeds (83 %) still match at the last level, "
        "each ≥ 40.0×"
    )
    assert max(float(x) for x in re.findall(r"[\d.]+(?=×)", found.estimate)) <= 40
    # However sparse the last level, a censored claim is never refuted; a single seed gets its own bound.
    short = said(run({"ticket": {0.5: 1.0, 0.4: 1.0}}))[claim]
    assert (short.outcome, short.estimate[:6]) == ("undecided", "≥ 2.5×")
    one = said(run({"ticket": {0.5: 1.0}}, seeds=range(1)))[claim]
    assert (one.outcome, one.estimate) == (
        "too few seeds",
        "≥ 2.0×; its networks still match at the last level",
    )
    three = said(run({"ticket": {0.5: 1.0, 0.1: 1.0}}, seeds=range(3)))[claim]
    assert three.outcome == "undecided", "three bounds that agree do not say how far seeds spread"
    assert three.estimate.startswith("no bound of the mean is known; 3 of 3 seeds (100 %)")


def test_an_upper_bound_where_controls_never_fall() -> None:
    claim = "Reinitialised masks need more weights than tickets 0.5 points below dense"
    found = said(run({"ticket": {0.5: 1.0, 0.25: -3.0}, "reinit": {0.5: 1.0, 0.1: 1.0}}))[claim]
    most = max(0.1 / (0.5 * 0.5 ** ((1.5 + t) / 4)) for t in NOISE)
    assert found.outcome == "refuted"
    assert found.estimate.startswith(f"≤ {most:.1f}×, one-sided 95 % bound of the mean; 6 of 6 seeds (100 %)")
    neither = said(run({"ticket": {0.5: 1.0, 0.25: 1.0}, "reinit": {0.5: 1.0, 0.1: 1.0}}))[claim]
    assert neither.outcome == "undecided"
    assert neither.estimate.startswith("no bound of the mean is known; 6 of 6 seeds")


def two_chains() -> list[Row]:
    """Tickets rewound to step 0 lose 6 points, those rewound to step 500 none."""
    late = run({"ticket": {0.5: 0.2, 0.15: 0.2}, "reinit": {0.15: -9.0}}, chain="rewind-500")
    early = run({"ticket": {0.5: -6.0, 0.15: -6.0}, "reinit": {0.15: -9.0}})
    return [*early, *(of for of in late if of.chain != "dense")]


def test_claims_say_which_of_several_rewind_steps_they_are_of() -> None:
    """Each of them of the earliest step, as it was without the later one; "within" of every step."""
    rows = two_chains()
    found = verdicts.findings(STUDY, rows)
    alone = verdicts.findings(STUDY, [of for of in rows if of.chain != "rewind-500"])
    own = [of for of in found if not re.search("rewound|Late", of.claim) and of.outcome != "not tested"]
    assert own == [
        of._replace(estimate=f"{of.estimate}; rewound to step 0")
        for of in alone
        if of.outcome != "not tested"
    ]
    named = {of.claim: of for of in found if "rewound" in of.claim}
    assert [*named] == [f"{WITHIN.format(margin)}: rewound to step 500" for margin in (2, 0.5, 0.2)]
    within = named[f"{WITHIN.format(2)}: rewound to step 500"]
    assert within.outcome == "supported"
    assert within.estimate.startswith("+0.20 pp, at least ")
    assert within.beside.startswith("reinit does not pass (refuted): -9.00 pp")
    # Without a level in the range there is nothing to say of the later one.
    few = [of for of in rows if (of.chain, of.density) != ("rewind-500", 0.15)]
    assert not [of for of in verdicts.findings(STUDY, few) if "rewound" in of.claim]


def test_late_rewinding_is_paired_by_seed() -> None:
    first = run({"ticket": {0.15: -2.0}})
    later = [r for r in run({"ticket": {0.15: -1.0}}, chain="rewind-50") if r.arm != "dense"]
    found = said([*first, *later])
    claim = "Late rewinding helps at 80–90 % sparsity: to step 50 against 0"
    assert found[claim].outcome == "supported"
    assert found[claim].estimate.startswith("+1.00 pp, at least +1.00 (one-sided 95 %) at 15.0 %")
    # Of levels outside 10 to 20 % the search still says something.
    first = run({"ticket": {0.5: 0.0, 0.25: -2.0}})
    later = [r for r in run({"ticket": {0.5: 0.0, 0.25: -1.0}}, chain="rewind-50") if r.arm != "dense"]
    found = said([*first, *later])
    assert found[claim].outcome == "not tested"
    somewhere = found["Late rewinding helps at some density: to step 50 against 0"]
    assert somewhere.outcome == "supported"
    assert somewhere.estimate.startswith("first at 25.0 % of the weights: +1.00 pp, at least ")


def test_table_of_differences_is_scipys() -> None:
    table = gaps.gaps(run({"ticket": {0.15: -0.2, 0.1: -0.4}, "reinit": {0.15: -1.0, 0.1: -2.0}}), "rewind-0")
    assert [line[:2] for line in table.rows] == [
        ["15.0", "ticket − dense"], ["10.0", "ticket − dense"], ["15.0", "ticket − reinit"],
        ["10.0", "ticket − reinit"],
    ]  # fmt: skip
    p = scipy_stats.ttest_1samp(-0.2 + NOISE, 0).pvalue
    assert table.rows[0][4] == f"{p:.3f}".lstrip("0")
    flips = [
        abs(np.dot(signs, -0.2 + NOISE)) >= abs(np.sum(-0.2 + NOISE)) - 1e-9
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    ]
    assert table.rows[0][6] == f"{np.mean(flips):.3f}".lstrip("0")
    # The arms share their noise except for a seed's shift.
    shifted = 0.8 + NOISE - np.roll(NOISE, -1)
    by_t = [scipy_stats.ttest_1samp(shifted + more, 0).pvalue for more in (0, 0.8)]
    assert table.rows[2][4] == f"{by_t[0]:.3f}".lstrip("0")
    assert table.rows[2][5] == f"{by_t[0]:.3f}".lstrip("0"), "the larger of two p-values stays"
    assert table.rows[3][4] == "< .001"


def test_summaries_by_hand() -> None:
    rows = run({"ticket": {0.5: 1.0, 0.25: 0.0, 0.1: -1.5}, "reinit": {0.5: 0.9, 0.25: -1.0, 0.1: -3.0}})
    ticket, reinit = gaps.summaries(rows, "rewind-0").rows
    # Noise is below -0 for three of the six at 25 %, and never beyond 0.3.
    assert ticket[1].split(", ") == ["50.0" if NOISE[seed] < 0 else "25.0" for seed in SEEDS]
    assert set(ticket[2].split(", ")) == {"25.0"}
    assert set(ticket[3].split(", ")) == {"≤ 10.0"}, "the last level: sparser ones may match, too"
    assert set(reinit[2].split(", ")) == {"50.0"}
    assert ticket[4] == ""
    # Mean gaps 0.1, 1, 1.5 over log density: trapezoids.
    widths = np.log([0.5 / 0.25, 0.25 / 0.1])
    area = np.dot(widths, [(0.1 + 1) / 2, (1 + 1.5) / 2]) / widths.sum()
    assert reinit[4].startswith(f"{area:+.2f} [")


def test_the_mean_over_log_density_has_the_floor_of_its_levels() -> None:
    """Six seeds agree exactly: 4 points at 50 %, 8 at 10 %, of 90 % with 1,000 images."""
    rows = [row(seed, "dense", 0, "dense", 1.0, 90.0) for seed in SEEDS]
    for level, density, percent in ((1, 0.5, 86.0), (2, 0.1, 82.0)):
        for seed in SEEDS:
            rows.append(row(seed, "rewind-0", level, "ticket", density, 90.0))
            rows.append(row(seed, "rewind-0", level, "reinit", density, percent))
    assert gaps.summaries(rows, "rewind-0").rows[1][4] == "+6.00 [+6.00, +6.00]"
    # Half of each level's floor: the interval of two levels whose errors go together.
    floors = [100 * math.sqrt((0.9 * 0.1 + p * (1 - p)) / 1000) for p in (0.86, 0.82)]
    half = scipy_stats.t.ppf(0.975, 5) * np.mean(floors) / math.sqrt(6)
    found = gaps.summaries(rows, "rewind-0", images=1000).rows[1][4]
    assert found == f"+6.00 [{6 - half:+.2f}, {6 + half:+.2f}]"


def test_collapsed_runs_are_counted() -> None:
    rows = run({"ticket": {0.02: 0.0}}) + [
        row(seed, "rewind-0", 1, "reinit", 0.02, percent)
        for seed, percent in enumerate((11.0, 90.0, 19.9, 92.0, 20.0, 88.0))
    ]
    table = gaps.collapsed(rows, 10)
    assert table is not None
    ((chain, density, arm, share, interval, median),) = table.rows
    assert (chain, density, arm, share, median) == ("rewind-0", "2.0", "reinit", "2 of 6", "54.00")
    low, high = scipy_stats.binomtest(2, 6).proportion_ci(method="exact")
    assert interval == f"{100 * low:.0f}–{100 * high:.0f} %"
    assert gaps.collapsed(run({"ticket": {0.02: 0.0}}), 10) is None
    # Two of three repeats of every seed, whose mean is above twice chance.
    repeats = [
        row(seed, "rewind-0", 1, "reinit", 0.02, percent)._replace(repeat=repeat)
        for seed in range(5)
        for repeat, percent in enumerate((10.0, 11.0, 90.0), 1)
    ]
    table = gaps.collapsed(repeats, 10)
    assert table is not None
    assert table.rows[0][3:] == ["10 of 15", "–", "11.00"]
    diverged = [one._replace(test_accuracy=None) if one.repeat > 1 else one for one in repeats]
    table = gaps.collapsed(diverged, 10)
    assert table is not None
    assert table.rows[0][3:] == ["5 of 5", "48–100 %", "10.00"]


@pytest.mark.parametrize("gap", [10.6, 9.4])
def test_ten_points_are_tested_as_ten(gap: float) -> None:
    found = said(run({"ticket": {0.15: 0.0}, "reinit": {0.15: -gap}}))
    assert found[TEN].outcome == ("supported" if gap > 10 else "refuted")
    assert found[TEN].estimate.endswith("; 15 pp or less: supported")
    more = said(run({"ticket": {0.15: 0.0}, "reinit": {0.15: -16.0}}))[TEN]
    assert (more.outcome, more.estimate[-22:]) == ("supported", "15 pp or less: refuted")
    # Two seeds have no outcome, of either half.
    few = said(run({"ticket": {0.15: 0.0}, "reinit": {0.15: -gap}}, seeds=range(2)))[TEN]
    assert few.outcome == "too few seeds"
    assert "15 pp" not in few.estimate


def test_the_command_of_a_part_of_the_seeds_is_told_for_all() -> None:
    for command, told in (
        ("run.py --config c.py --seeds 3 --levels 2", "run.py --config c.py --seeds 0 3 --levels 2"),
        ("run.py --config c.py --seeds 3 0", "run.py --config c.py --seeds 3 0"),
        ("run.py --config c.py --shard 2/3 --quiet", "run.py --config c.py --quiet"),
        ("run.py --shard=2/3 --seeds=1", "run.py --seeds 0 3"),
        (
            "run.py --config c.py --distributed --coordinator h:9876 --processes=2 --process 0 --quiet",
            "run.py --config c.py --quiet",
        ),
        ("run.py --config c.py", "run.py --config c.py"),
        # A command to add seeds would begin new looks; those that it has added are named.
        (
            "run.py --config c.py --until-decided within-2 --budget '2 h' --quiet",
            "run.py --config c.py --quiet --seeds 0 3",
        ),
        ("run.py --until_decided=within-2 --config 'a b.py'", "run.py --config 'a b.py' --seeds 0 3"),
    ):
        assert of_all({"commands": [command]}, {3, 0}) == f"python {told}"
    assert of_all({}, {0}) == "python run.py --config CONFIG"


def test_a_command_that_has_an_option_is_widened_by_no_second_one() -> None:
    given = "run.py --config A.py --levels 2 --control-levels 2 --arms ticket constant --rewind 0 --seeds 0 1"
    study = {"commands": [given]}
    rows = run({"ticket": {0.5: 0.0}}, seeds=range(2))
    found = {str(one.where) for one in verdicts.findings(study, rows) if "A.py" in str(one.where)}
    base = "python run.py --config A.py"
    assert found == {
        f"{base} --levels 4 --arms ticket constant --rewind 0 --seeds 0 1",
        # Level 3, of 12.5 %, is in the range.
        f"{base} --levels 4 --arms ticket constant reinit --rewind 0 --seeds 0 1 --control-levels 2 3",
        f"{base} --levels 4 --arms ticket constant random --rewind 0 --seeds 0 1 --control-levels 2 3",
        f"{base} --levels 2 --control-levels 2 --arms ticket constant reinit --rewind 0 --seeds 0 1",
        f"{base} --levels 2 --control-levels 2 --arms ticket constant --rewind 0 '1 epoch' --seeds 0 1",
    }


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        # Rounds of 36 % of a part of the weights: 0.202^(6/4) is the first density below 10 %.
        ({0.654: 0.0, 0.434: 0.0, 0.292: 0.0, 0.202: 0.0}, "--levels 6"),
        ({0.8: 0.0}, "--levels 11"),
        # Of a level in the range, too, those up to its end; and never fewer levels than there are.
        ({0.5: 0.0, 0.15: 0.0}, "--levels 3"),
        ({0.5: 0.0, 0.15: 0.0, 0.05: 0.0, 0.02: 0.0}, "--levels 4"),
        # No level more is in the range that a round has passed over.
        ({0.3: 0.0, 0.09: 0.0}, "--prune.rate 0.2 --levels 11"),
        # Nor in one that the next round passes over, of 6.25 %.
        ({0.25: 0.0}, "--prune.rate 0.2 --levels 11"),
    ],
)
def test_the_command_asks_for_the_levels_that_the_range_takes(left: dict[float, float], asked: str) -> None:
    rows = run({"ticket": left}, seeds=range(3))
    study = {"commands": ["run.py --config A.py"]}
    command, _ = deeper(of_all(study, {0, 1, 2}), study, rows, "rewind-0")
    assert command == f"python run.py --config A.py {asked}"


def asked_of(**changes: Any) -> config.Study:
    """A config file's study."""
    return config.Study(**{"data": config.Data(name="few"), "levels": 3, "seeds": (*SEEDS,), **changes})


def proposed(rows: list[Row], lengths: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    """Claim -> the command that tests it, of a run of such a study."""
    made = json.loads(json.dumps(dataclasses.asdict(asked_of(**changes))))
    study = {**about(), "config": made, "commands": ["run.py --config A.py"]}
    study |= {} if lengths is None else {"lengths": lengths}
    found = verdicts.findings(study, rows)
    return {one.claim: str(one.where) for one in found if "A.py" in str(one.where)}


REINIT = "Tickets beat reinitialised ones at 80–90 % sparsity"


def as_asked(command: str, tmp_path: Path, **changes: Any) -> config.Study:
    """The study that a command asks for of its config file."""
    text = f"from lthjax.config import *\n\nconfig = {asked_of(**changes)!r}\n"
    (tmp_path / "A.py").write_text(text)
    arguments = shlex.split(command.replace("A.py", str(tmp_path / "A.py")))[2:]
    (options,) = launch.parse(arguments)
    validate.validate(options.study)
    return options.study


@pytest.mark.parametrize(
    ("density", "levels", "left", "asked"),
    [
        # One shot to 50 %: more levels would go to 50 % in smaller steps.
        (0.5, 1, {0.5: 0.0}, "--prune.density 0.11"),
        # One shot past the range, or to its end, of which a weight too many went.
        (0.05, 1, {0.05: 0.0}, "--prune.density 0.11"),
        (0.1, 1, {0.0999: 0.0}, "--prune.density 0.11"),
        # Level 2 of three is of 15.9 %, and not trained yet.
        (0.0631, 3, {0.398: 0.0}, ""),
        (0.15, 1, {0.15: 0.0}, ""),
    ],
)
def test_of_a_last_density_it_is_the_density_that_is_changed(
    density: float, levels: int, left: dict[float, float], asked: str, tmp_path: Path
) -> None:
    changes = {"levels": levels, "prune": config.Prune(density=density)}
    rows = run({"ticket": left})
    command = proposed(rows, **changes)[REINIT]
    assert command == f"python run.py --config A.py {asked} --arms ticket reinit".replace("  ", " ")
    study = as_asked(command, tmp_path, **changes)
    trained = [imp.schedule_at(study, level)["density"] for level in range(1, levels + 1)]
    assert any(0.1 < density < 0.2 for density in trained)


@pytest.mark.parametrize("density", [0.5, 0.125])
def test_an_n_m_pattern_has_one_level(density: float, tmp_path: Path) -> None:
    """Every command that is proposed is one that the run accepts; 1:8 is in the range, 2:4 is not."""
    pattern = {0.5: "2:4", 0.125: "1:8"}[density]
    changes = {"levels": 1, "prune": config.Prune(granularity=pattern, rate=1 - density)}
    commands = proposed(run({"ticket": {density: 0.0}}), **changes)
    assert (REINIT in commands) == (density < 0.2)
    assert commands[SOMEWHERE] == "python run.py --config A.py --arms ticket reinit"
    assert "Late rewinding helps at 80–90 % sparsity" in commands
    for command in {*commands.values()}:
        assert as_asked(command, tmp_path, **changes).levels == 1
    study = {**STUDY, "config": {"prune": {"granularity": pattern}}}
    found = {of.claim: of for of in verdicts.findings(study, run({"ticket": {density: 0.0}}))}
    why = "reinit was not trained between 10 and 20 % of the weights"
    if density > 0.2:
        why = "no level between 10 and 20 % of the weights, and an N:M pattern has one density"
        assert (found[WITHIN.format(2)].estimate, found[WITHIN.format(2)].where) == (why, "")
    assert found[REINIT].estimate == why


@pytest.mark.parametrize(
    ("own", "total", "asked"),
    [
        (0, 450, ("0", "1 epoch")),
        # An epoch is beyond the end, or late in the training.
        (0, 40, ("0", "4")),
        (0, 200, ("0", "20")),
        (0, 5, ("0", "1")),
        # The chain that is there is kept.
        (10, 40, ("0", "10")),
    ],
)
def test_a_second_rewind_step_is_one_of_the_training(
    own: int, total: int, asked: tuple[str, str], tmp_path: Path
) -> None:
    chain = f"rewind-{own}"
    changes = {"rewind": (own,), "train": config.Train(steps=total), "levels": 1}
    rows = run({"ticket": {0.5: 0.0}}, chain=chain)
    lengths = config.Lengths(109, total, 5, 0, (), (own,))._asdict()
    command = proposed(rows, lengths=lengths, **changes)["Late rewinding helps at 80–90 % sparsity"]
    study = as_asked(command, tmp_path, **changes)
    assert tuple(map(str, study.rewind)) == asked
    assert durations.lengths(study, 109 * study.train.batch).total == total


def test_rates_by_level_give_way_to_one_for_all(tmp_path: Path) -> None:
    changes = {"levels": 2, "prune": config.Prune(rates=(0.3, 0.3))}
    command = proposed(run({"ticket": {0.7: 0.0, 0.49: 0.0}}), **changes)[REINIT]
    assert command == (
        "python run.py --config A.py --prune.rates --prune.rate 0.2 --levels 11 --arms ticket reinit"
    )
    study = as_asked(command, tmp_path, **changes)
    assert (study.prune.rates, study.prune.rate, study.levels) == ((), 0.2, 11)


def test_control_levels_of_the_config_file_that_miss_the_range_are_added_to(tmp_path: Path) -> None:
    """Tickets pass the range at levels 2 and 3 of four, of 20 and 13 %; controls are at 1 and 4."""
    rows = run({"ticket": {0.3: 0.0, 0.2: 0.0, 0.13: 0.0, 0.09: 0.0}})
    base = "python run.py --config A.py --levels 4"
    missed = proposed(rows, levels=4, control_levels=(1, 4))
    assert missed[REINIT] == f"{base} --control-levels 1 2 3 4 --arms ticket reinit"
    faster = "Tickets learn faster than reinitialised ones at 80–90 % sparsity"
    assert missed[faster] == missed[REINIT]
    assert as_asked(missed[REINIT], tmp_path, levels=4, control_levels=(1, 4)).control_levels == (1, 2, 3, 4)
    for enough in ((1, 3), ()):
        assert proposed(rows, levels=4, control_levels=enough)[REINIT] == f"{base} --arms ticket reinit"
    # The last level, which the command names, has controls by itself.
    ends = proposed(run({"ticket": {0.3: 0.0, 0.1: 0.0}}), levels=2, control_levels=(1,))[REINIT]
    assert ends == "python run.py --config A.py --levels 2 --arms ticket reinit"
    assert as_asked(ends, tmp_path, levels=2, control_levels=(1,)).control_levels == (1, 2)


def test_seeds_that_other_commands_have_added_are_asked_for(tmp_path: Path) -> None:
    every, own = [*range(6)], {"seeds": (0, 1, 2)}
    first, later = "run.py --config A.py", "run.py --config A.py --seeds 0..5"
    told = "python run.py --config A.py --seeds 0 1 2 3 4 5"
    for commands, seeds, expected in (
        ([first, later], {"seeds": every}, told),
        ([first, later, first], own, told),
        ([f"{first} --until-decided within-2"], {"seeds": every}, told),
        ([first, first], {"seeds": every}, "python run.py --config A.py"),
        ([first], {"seeds": [*range(8)]}, "python run.py --config A.py"),
        # Of several ways to name the same seeds.
        ([later], {"seeds": every}, "python run.py --config A.py --seeds 0..5"),
        (["run.py --config A.py --seeds 0,1"], {"seeds": every}, told),
    ):
        study = {"commands": commands, "config": {**about()["config"], **seeds}}
        assert of_all(study, every) == expected
    assert as_asked(told, tmp_path, **own).seeds == tuple(every)
