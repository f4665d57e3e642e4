"""Adding seeds until a claim is decided: the level of the looks, and when it stops."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import about
from scipy import stats as scipy_stats
from test_short import gone
from test_verdicts import NOISE, STUDY, row, run

import analysis.run
from analysis.report import until, verdicts
from analysis.rows import Row
from analysis.run import Run
from lthjax import config, imp, launch, locks, prune, study
from lthjax.errors import UserError
from lthjax.measures import stats


@pytest.mark.parametrize("looks", [(3, 6, 9, 12), (6, 12, 18, 24), (3, 4, 5, 6)])
def test_all_looks_together_err_in_five_percent(looks: tuple[int, ...]) -> None:
    """Another simulation, of p-values by scipy: at most 5 % with the level, and far more with 5 % each."""
    many, level = 20_000, stats.level_of_looks(looks)
    drawn = np.random.default_rng(sum(looks)).normal(3, 2, (many, looks[-1]))
    p = np.array(
        [scipy_stats.ttest_1samp(drawn[:, :n], 3, axis=1, alternative="greater").pvalue for n in looks]
    )
    error = 3.5 * np.sqrt(0.05 * 0.95 / many)
    ever = np.mean(p.min(0) < level)
    assert 0.04 < ever <= 0.05 + error
    assert np.mean(p.min(0) < 0.05) > 0.09
    # Refuted is the mirror image.
    assert np.mean((1 - p).min(0) < level) <= 0.05 + error


def test_the_level_of_looks_by_hand() -> None:
    assert stats.level_of_looks((7,)) == 0.05
    assert stats.level_of_looks((3, 6)) > stats.level_of_looks((3, 6, 9)) > 0.05 / 3
    for wrong in ((), (1, 3), (3, 3), (6, 3)):
        with pytest.raises(UserError, match=r"looks: .* is not allowed"):
            stats.level_of_looks(wrong)
    assert 0.0005 < stats.level_of_looks((3, 6), 0.002) < 0.002
    for alpha in (1e-5, 1e-4, 0.5):
        with pytest.raises(UserError, match=r"alpha: .* is not between 0\.001 and 0\.5"):
            stats.level_of_looks((3, 6), alpha)


def test_looks_and_seeds() -> None:
    assert until.looks_of(2) == [3, 6, 9, 12]
    assert until.looks_of(6) == [6, 12, 18, 24]
    assert until.widened((4, 1), 5) == [4, 1, 0, 2, 3]
    assert until.widened((0, 1), 2) == [0, 1]


class Made(Run):
    """A run of given rows, which only knows where it lies."""

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.path, self.rows, self.last, self.about = path, rows, 1, about()
        self.about["data"]["test"] = 10**9


class Lab:
    """Trains by looking the rows up; a seed takes ten seconds by its own clock.

    Tickets of the seeds `lost` diverge, and reinitialised ones of `unpaired`.
    """

    def __init__(
        self, path: Path, gap: float, lost: Sequence[int] = (), unpaired: Sequence[int] = ()
    ) -> None:
        self.path, self.gap, self.now, self.asked = path, gap, 0.0, list[list[int]]()
        self.lost, self.unpaired = lost, unpaired

    def train(self, seeds: list[int]) -> Run:
        self.now += 10.0 * (len(seeds) - len(self.asked[-1] if self.asked else []))
        self.asked.append(seeds)
        rows = []
        for seed in seeds:
            noise = float(np.random.default_rng(seed).normal())
            rows.append(row(seed, "dense", 0, "dense", 1.0, 70.0))
            rows.append(row(seed, "rewind-0", 1, "ticket", 0.15, 70.0 + self.gap + noise))
            rows.append(row(seed, "rewind-0", 1, "reinit", 0.15, 70.0))
        rows = gone(rows, "reinit", 0.15, self.unpaired)
        return Made(self.path, gone(rows, "ticket", 0.15, self.lost))

    def grow(self, key: str, budget: float = 0.0, seeds: tuple[int, ...] = (0, 1, 2)) -> until.State:
        self.said = list[str]()
        return until.grow(key, seeds, self.path, self.train, budget, self.said.append, lambda: self.now)


@pytest.mark.parametrize(
    ("gap", "outcome", "seeds"), [(20.0, "supported", 3), (-20.0, "refuted", 3), (0.0, "undecided", 12)]
)
def test_it_stops_once_decided_or_at_the_last_look(
    tmp_path: Path, gap: float, outcome: str, seeds: int
) -> None:
    lab = Lab(tmp_path, gap)
    state = lab.grow("beats-reinit")
    assert (state.outcome, state.seeds) == (outcome, seeds)
    assert state.ended == ("last look" if outcome == "undecided" else "decided")
    assert [len(asked) for asked in lab.asked] == [n for n in (3, 6, 9, 12) if n <= seeds]
    assert until.read(tmp_path) == {"beats-reinit": state}
    assert state.chain == "rewind-0"
    assert lab.said[-1] == str(state)


_HOLDS = ", which holds for the others; lower the learning rate (optim.lr)"


@pytest.mark.parametrize(
    ("gap", "lost", "ended", "seeds", "why"),
    [
        (20.0, [1], "diverged", 6, _HOLDS),
        (0.0, [1], "last look", 12, ", only refute it"),
        (-20.0, [1], "decided", 6, ""),
        (20.0, range(3), "diverged", 3, "; lower the learning rate (optim.lr)"),
    ],
)
def test_no_seeds_are_added_for_what_a_ticket_that_diverged_leaves_open(
    tmp_path: Path, gap: float, lost: Sequence[int], ended: str, seeds: int, why: str
) -> None:
    """Two of three pairs decide nothing. Where a ticket diverged, more seeds can refute a claim alone."""
    lab = Lab(tmp_path, gap, lost)
    state = lab.grow("beats-reinit")
    assert (state.ended, state.seeds, lab.asked[-1]) == (ended, seeds, [*range(seeds)])
    which = "ticket of seed 1" if len(lost) == 1 else "tickets of seeds 0, 1, 2"
    said = f"; the {which} diverged, so that more seeds cannot support the claim"
    assert state.outcome == ("undecided" if why else "refuted")
    assert lab.said[-1] == (f"{state}{said}{why}" if why else str(state))
    assert lab.said[:-1] == [
        f"beats-reinit: undecided after {n} seeds{said}, only refute it; adding seeds"
        for n in range(3, seeds, 3)
    ]
    again = Lab(tmp_path, gap, lost)
    assert (again.grow("beats-reinit"), again.said, len(again.asked)) == (state, lab.said[-1:], 1)
    # The report names the seeds, too.
    rows = lab.train([*range(seeds)]).rows
    rows += [row(seed, "rewind-0", 0, "ticket", 0.5, 70.0) for seed in range(seeds)]
    noted = until.noted({state.claim: state}, verdicts.findings(STUDY, rows), STUDY, rows)
    (of,) = [of for of in noted if of.claim == until.CLAIMS[state.claim].words]
    assert (of.outcome, said in of.beside) == (state.outcome if seeds > 3 else "not tested", bool(why))
    # A search of an earlier version, which did not look at divergences, is over.
    old = state._replace(outcome="supported", ended="decided")
    until.keep(tmp_path, {state.claim: old})
    again = Lab(tmp_path, gap, lost)
    assert (again.grow("beats-reinit"), again.said) == (old, [str(old)])


@pytest.mark.parametrize(
    ("lost", "unpaired", "seeds", "outcome"),
    [
        ([], [0, 1, 2], 6, "supported"),
        ([2], [0, 1], 6, "undecided"),  # Three pairs, for which it holds.
        ([], range(12), 12, "undecided"),
    ],
)
def test_a_control_that_diverged_in_all_seeds_of_a_look_leaves_the_claim_open(
    tmp_path: Path, lost: Sequence[int], unpaired: Sequence[int], seeds: int, outcome: str
) -> None:
    """More seeds may have pairs; after the last look without any the report says why."""
    lab = Lab(tmp_path, 20.0, lost, unpaired)
    state = lab.grow("beats-reinit")
    assert (state.seeds, state.outcome) == (seeds, outcome)
    names = "0, 1" if lost else "0, 1, 2"
    why = f"; reinit of seeds {names} diverged, which leaves no pair"
    assert lab.said[0].startswith(f"beats-reinit: undecided after 3 seeds{why}; ")
    rows = lab.train([*range(seeds)]).rows
    noted = until.noted({state.claim: state}, verdicts.findings(STUDY, rows), STUDY, rows)
    (of,) = [of for of in noted if of.claim == until.CLAIMS[state.claim].words]
    everyone = f"; reinit of seeds {', '.join(map(str, range(12)))} diverged, which leaves no pair"
    assert (everyone in of.beside) == (seeds == 12)
    assert of.outcome == ("not tested" if seeds == 12 else outcome)


def test_the_bound_of_a_look_is_stricter_than_that_of_a_single_test() -> None:
    """p = .03 is a finding of three seeds, but not of the first of four looks."""
    values = np.random.default_rng(5).normal(0, 1, 3)
    values -= values.mean()
    gap = scipy_stats.t.isf(0.03, 2) * np.std(values, ddof=1) / np.sqrt(3)
    rows = [row(seed, "rewind-0", 1, "ticket", 0.15, 70 + gap + value) for seed, value in enumerate(values)]
    rows += [row(seed, "rewind-0", 1, "reinit", 0.15, 70.0) for seed in range(3)]
    assert until.judged("beats-reinit", {}, rows, 0.05).outcome == "supported"
    strict = until.judged("beats-reinit", {}, rows, stats.level_of_looks(until.looks_of(3)))
    assert strict.outcome == "undecided"
    with pytest.raises(UserError, match="within-2 compares tickets with dense at 10 to 20 %"):
        until.judged("within-2", {}, rows, 0.05)


@pytest.mark.parametrize(("budget", "seeds"), [(59.0, 3), (60.0, 6), (95.0, 9)])
def test_no_look_is_begun_that_would_exceed_the_budget(tmp_path: Path, budget: float, seeds: int) -> None:
    """Three seeds take 30 seconds: the second look ends after 60."""
    state = Lab(tmp_path, 0.0).grow("beats-reinit", budget)
    assert (state.seeds, state.outcome, state.ended) == (seeds, "undecided", "budget")
    assert "the budget is used up" in str(state)


def test_seeds_that_were_there_count_by_the_time_they_took(tmp_path: Path) -> None:
    """Nothing is trained at the first look, whose seeds took 3 × 1.5 seconds each: three more take 13.5."""
    lab = Lab(tmp_path, 0.0)
    lab.asked.append([0, 1, 2])
    assert lab.grow("beats-reinit", 13.0).seeds == 3
    again = Lab(tmp_path, 0.0)
    again.asked.append([0, 1, 2])
    assert again.grow("beats-reinit", 14.0).seeds == 6


def test_the_report_shows_the_outcome_of_the_looks(tmp_path: Path) -> None:
    """Every claim is one that the report makes; its row gets the outcome and the bound of the looks."""
    rows = run({arm: {0.15: 0.0 if arm == "ticket" else -5.0} for arm in ("ticket", "reinit", "random")})
    found = verdicts.findings(STUDY, rows)
    assert until.noted({}, found, STUDY, rows) == found
    for key, claim in until.CLAIMS.items():
        state = until.State(key, [6, 12], 0.03, 6, until.judged(key, STUDY, rows, 0.03).outcome, "last look")
        noted = until.noted({key: state}, found, STUDY, rows)
        (changed,) = [one for one in noted if "with looks at 6, 12 seeds" in one.beside]
        assert (changed.claim, changed.outcome) == (claim.words, state.outcome)
        assert "one-sided 97.0 % at every look" in changed.beside
        assert "one-sided 97.0 %)" in changed.estimate
    low = -scipy_stats.t.isf(0.03, 5) * scipy_stats.sem(NOISE)
    supported = until.State("within-2", [6], 0.03, 6, "supported", "decided")
    within = until.noted({"within-2": supported}, found, STUDY, rows)
    assert within[0].estimate == f"+0.00 pp, at least {low:+.2f} (one-sided 97.0 %) at 15.0 % of the weights"
    # The other half of "10–15 points", at the level of the looks: of 14.6 points the upper
    # bound of a single test is below 15, that of a look above.
    claim = until.CLAIMS["beats-reinit-by-10"].words
    gaps = NOISE - np.roll(NOISE, -1)
    wide = scipy_stats.t.isf(0.01, 5) * scipy_stats.sem(gaps)
    assert scipy_stats.t.isf(0.05, 5) * scipy_stats.sem(gaps) < 0.4 < wide
    for gap, plainly, looked in ((30.0, "refuted", "refuted"), (14.6, "supported", "undecided")):
        rows = run({"ticket": {0.15: 0.0}, "reinit": {0.15: -gap}})
        plain = verdicts.findings(STUDY, rows)
        state = until.State("beats-reinit-by-10", [6, 12], 0.01, 6, "supported", "decided")
        for shown, most in (
            (plain, plainly),
            (until.noted({state.claim: state}, plain, STUDY, rows), looked),
        ):
            (one,) = [of for of in shown if of.claim == claim]
            assert one.outcome == "supported"
            assert one.estimate.endswith(f"; 15 pp or less: {most}")
    (tmp_path / until.FILE).write_text("{")
    with pytest.raises(UserError, match="it cannot be read"):
        until.read(tmp_path)
    (tmp_path / until.FILE).unlink()
    assert until.read(tmp_path) == {}


def test_the_seeds_of_a_look_are_those_that_it_was_made_of(tmp_path: Path) -> None:
    """Seeds 5, 6, 7 were looked at; seeds 0, 1, 2, added later by hand, say something else."""
    lab = Lab(tmp_path, 10.0)
    state = lab.grow("within-2", seeds=(5, 6, 7))
    assert (state.seeds, state.chosen, state.outcome) == (3, [5, 6, 7], "supported")
    there = until.read(tmp_path)
    assert there == {"within-2": state}
    ours = lab.train([5, 6, 7]).rows
    lab.gap = -10.0
    rows = [*ours, *lab.train([0, 1, 2]).rows]
    study = Made(tmp_path, rows).about
    (one,) = [
        of
        for of in until.noted(there, verdicts.findings(study, rows), study, rows)
        if "looks at" in of.beside
    ]
    assert (one.outcome, one.n) == ("supported", 3)
    assert one.estimate.startswith(
        f"{10 + np.mean([np.random.default_rng(s).normal() for s in (5, 6, 7)]):+.2f} pp"
    )


@pytest.mark.parametrize("gap", [20.0, 0.0])
def test_a_search_that_is_over_is_not_begun_anew(tmp_path: Path, gap: float) -> None:
    """Decided at three seeds, or no look left: the same call looks at nothing, and more seeds are refused."""
    lab = Lab(tmp_path, gap)
    state = lab.grow("beats-reinit")
    text = (tmp_path / until.FILE).read_text()
    again = Lab(tmp_path, -20.0)
    assert again.grow("beats-reinit") == state
    assert (again.asked, again.said) == ([state.chosen], [str(state)])
    assert (tmp_path / until.FILE).read_text() == text
    more = Lab(tmp_path, gap)
    refused = (
        r"--seeds: 20, 21 are not allowed with --until-decided beats-reinit, whose looks take seeds 0, 1, 2"
    )
    with pytest.raises(UserError, match=rf"{refused}.* \({state.outcome} after {state.seeds} seeds\)"):
        more.grow("beats-reinit", seeds=(0, 20, 21))
    assert more.asked == []
    # Of a file of before, of one claim.
    (tmp_path / until.FILE).write_text(json.dumps({**state._asdict(), "chain": ""}))
    assert Lab(tmp_path, -20.0).grow("beats-reinit").outcome == state.outcome


def test_a_search_goes_on_with_the_looks_that_it_began_with(tmp_path: Path) -> None:
    """Stopped by the budget at three seeds; a call for six goes on to the look at six, of 3, 6, 9, 12."""
    first = Lab(tmp_path, 0.0).grow("beats-reinit", budget=59.0)
    assert (first.seeds, first.ended) == (3, "budget")
    lab = Lab(tmp_path, 0.0)
    lab.asked.append([0, 1, 2])
    state = lab.grow("beats-reinit", seeds=tuple(range(6)))
    assert (state.looks, state.level) == (first.looks, first.level)
    assert [len(asked) for asked in lab.asked[1:]] == [3, 6, 9, 12]
    assert (state.seeds, state.outcome, state.ended) == (12, "undecided", "last look")
    # The same budget again: no further look where three seeds take longer by their own time.
    third = Lab(tmp_path / "other", 0.0)
    third.path.mkdir()
    third.grow("beats-reinit", budget=59.0)
    assert third.grow("beats-reinit", budget=1.0).seeds == 3


def test_a_look_is_kept_before_the_next_is_trained(tmp_path: Path) -> None:
    """Killed in the second look: the looks stay fixed, whatever seeds the next call asks for."""
    lab = Lab(tmp_path, 0.0)

    def killed(seeds: list[int]) -> Run:
        if len(seeds) > 3:
            raise KeyboardInterrupt
        return lab.train(seeds)

    with pytest.raises(KeyboardInterrupt):
        until.grow("beats-reinit", (0, 1, 2), tmp_path, killed, 0, lambda _: None)
    there = until.read(tmp_path)["beats-reinit"]
    assert (there.seeds, there.outcome, there.ended, there.over) == (3, "undecided", "", False)
    assert lab.grow("beats-reinit", seeds=(0, 1, 2, 3)).looks == [3, 6, 9, 12]


def test_a_claim_keeps_its_rule_when_another_is_grown(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 20.0)
    first = lab.grow("beats-reinit")
    second = lab.grow("within-2", seeds=(0, 1, 2, 3))
    there = until.read(tmp_path)
    assert there == {"beats-reinit": first, "within-2": second}
    made = Made(tmp_path, lab.train([0, 1, 2, 3]).rows)
    noted = until.noted(there, verdicts.findings(made.about, made.rows), made.about, made.rows)
    looked = {of.claim: of for of in noted if "with looks at" in of.beside}
    assert {claim: of.n for claim, of in looked.items()} == {
        until.CLAIMS["beats-reinit"].words: 3, until.CLAIMS["within-2"].words: 4
    }  # fmt: skip


def grown_late(gap: float, early: float) -> list[Row]:
    """Six seeds: tickets rewound to step 500 that differ from dense by `gap`, and to 0, by `early`."""
    late = run({"ticket": {0.17: gap}}, chain="rewind-500")
    return [*late, *(of for of in run({"ticket": {0.17: early}}) if of.chain != "dense")]


def test_a_chain_that_comes_first_later_has_a_verdict_of_its_own() -> None:
    """Seeds were added for tickets rewound to step 500, within 0.5 points; those of step 0 lose 1.5."""
    rows = grown_late(0.0, -1.5)
    claim = until.CLAIMS["within-0.5"].words
    plain = verdicts.findings(STUDY, rows)
    state = until.State("within-0.5", [3, 6], 0.03, 6, "supported", "decided", [*range(6)], "rewind-500")
    noted = until.noted({state.claim: state}, plain, STUDY, rows)
    early, late = [one for one in noted if one.claim.startswith(claim)]
    before, without = [one for one in plain if one.claim.startswith(claim)]
    assert before == early
    # In place of the finding on that chain without looks.
    assert noted == [late if one is without else one for one in plain]
    assert (late.claim, late.outcome, late.n) == (f"{claim}: rewound to step 500", "supported", 6)
    assert late.estimate.startswith("+0.00 pp, at least -0.")
    assert (late.test, late.beside) == ("non-inferiority, margin 0.5 pp, 2 looks", state.how)
    assert (early.claim, early.outcome) == (claim, "refuted")
    assert early.estimate.endswith("; rewound to step 0")
    # Of a file that does not name the chain it cannot be known: the first, by what is found now.
    unknown = {state.claim: state._replace(chain="")}
    (old,) = [of for of in until.noted(unknown, plain, STUDY, rows) if of.claim == claim]
    assert old.outcome == "refuted"
    assert old.estimate.startswith("-1.50 pp, at most -1.")
    assert old.estimate.endswith("; rewound to step 0")
    assert old.beside == f"{state.how}; at the last look it was supported"


def test_looks_at_some_of_the_levels_say_so() -> None:
    """Controls of one of two levels in the range: by looks, as without."""
    rows = run({"ticket": {0.2: 0.0, 0.15: 0.0}, "reinit": {0.2: -5.0}})
    plain, claim = verdicts.findings(STUDY, rows), until.CLAIMS["beats-reinit"].words
    for chain in ("", "rewind-0"):
        state = until.State("beats-reinit", [6], 0.03, 6, "supported", "decided", [*range(6)], chain)
        for found in (plain, until.noted({"beats-reinit": state}, plain, STUDY, rows)):
            (one,) = [of for of in found if of.claim == claim]
            assert one.estimate.endswith("; both were trained at 1 of the tickets' 2 levels there")


def test_a_chain_whose_levels_are_gone_leaves_the_finding_as_it_is() -> None:
    rows = [of for of in grown_late(0.0, 0.0) if of.chain != "rewind-500"]
    plain = verdicts.findings(STUDY, rows)
    state = until.State("within-2", [6, 12], 0.03, 6, "refuted", "decided", [*range(6)], "rewind-500")
    first, *others = until.noted({state.claim: state}, plain, STUDY, rows)
    assert (first._replace(beside=""), others) == (plain[0], plain[1:])
    assert first.beside == f"refuted {state.how}; the cells of those looks are not in the run"


def test_the_test_that_is_named_is_that_of_the_looks() -> None:
    """Differences of a thousandth of a point are equivalent in a single look, and undecided in looks."""
    rows = [of._replace(test_accuracy=0.95 + 1e-5 * NOISE[of.seed] * (of.arm == "ticket"))
            for of in run({"ticket": {0.15: 0.0}, "reinit": {0.15: 0.0}})]  # fmt: skip
    plain = verdicts.findings(STUDY, rows)
    for key, named in (
        ("beats-reinit", "superiority, 2 looks"),
        ("beats-reinit-by-10", "superiority, by 10 pp or more, 2 looks"),
        ("within-0.2", "non-inferiority, margin 0.2 pp, 2 looks"),
    ):
        (before,) = [of for of in plain if of.claim == until.CLAIMS[key].words]
        state = until.State(key, [6, 12], 0.03, 6, "undecided", "budget", [*range(6)], "rewind-0")
        (of,) = [of for of in until.noted({key: state}, plain, STUDY, rows) if of.claim == before.claim]
        assert (before.test == "equivalence, ±0.2 pp") == (key == "beats-reinit")
        assert of.test == named


def test_a_look_at_fewer_than_three_pairs_decides_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 10.0)
    rows = [one for one in lab.train([0, 1, 2]).rows if (one.seed, one.arm) != (1, "ticket")]
    study = Made(tmp_path, rows).about
    assert until.judged("within-2", study, rows, 0.02).outcome == "undecided"
    assert until.judged("within-2", study, lab.train([0, 1, 2]).rows, 0.02).outcome == "supported"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--until-decided", "beats-reinits"), "--until-decided: 'beats-reinits' is not known; did you mean"),
        (("--budget", "2 h"), "--budget: it belongs to --until-decided"),
        (("--until-decided", "within-2", "--budget", "soon"), "--budget: 'soon' is not allowed"),
        (("--until-decided", "within-2", "--checkpoint-every", "5x"), "--checkpoint-every: '5x' is not"),
        (("--until-decided", "within-2", "--shard", "1/2"), "does not go together with --shard"),
        (("--until-decided", "within-2", "--dry-run"), "does not go together with --dry-run"),
        (("--until-decided", "within-2", "--out", "gs://a/b"), "an address as --out"),
    ],
)
def test_what_does_not_go_together_is_refused(
    command: Callable[..., Any], tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    out = () if "--out" in more else ("--out", tmp_path)
    done = command("run.py", "--config", "configs/quickstart.py", *more, *out)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"levels": 8}, {"within-2", "beats-reinit"}),  # 0.8**8 = 0.17
        ({"levels": 7}, set()),  # 0.21
        ({"levels": 8, "control_levels": (7,)}, {"within-2"}),
        ({"levels": 8, "arms": ("ticket", "random")}, {"within-2"}),
        ({"levels": 1, "prune.density": 0.15, "prune.scope": "global"}, {"within-2", "beats-reinit"}),
        ({"levels": 1, "prune.density": 0.25, "prune.scope": "global"}, set()),
        ({"levels": 1, "prune.scope": "group", "prune.rate": (("fc", 0.85),)}, {"within-2", "beats-reinit"}),
        ({"levels": 1, "prune.scope": "group", "prune.rate": (("fc2", 0.9),)}, set()),
        ({"levels": 0}, set()),
    ],
)
def test_what_a_study_cannot_decide_is_said_before_it_is_trained(
    tiny: Callable[..., Any], tmp_path: Path, fields: dict[str, Any], keys: set[str]
) -> None:
    prepared = study.prepare(config.replaced(tiny().study, {"prune.rate": 0.2, **fields}), tmp_path / "data")
    able = set()
    for key in ("within-2", "beats-reinit"):
        with contextlib.suppress(UserError):
            until.check_planned(key, prepared)
            able.add(key)
    assert able == keys


@pytest.mark.parametrize(
    "prune_",
    [
        {"prune.rate": (("output", 0.1), (".", 0.3))},
        {"prune.rate": 0.3, "prune.scope": "global"},
        {"prune.rate": (("fc", 0.3), ("output", 0.2)), "prune.scope": "group"},
        {"prune.density": 0.3, "prune.course": "cubic"},
        {"prune.rates": (0.3, 0.1)},
        {"prune.rate": (("fc", 0.3),), "prune.granularity": "unit-l1"},
    ],
)
def test_planned_densities_are_those_of_the_masks(
    tiny: Callable[..., Any], tmp_path: Path, prune_: dict[str, Any]
) -> None:
    prepared = study.prepare(config.replaced(tiny().study, prune_), tmp_path / "data")
    params = prepared.model.init(jax.random.key(1)).params
    mask, scores = prune.ones(params), jax.tree.map(jnp.abs, params)
    found = []
    for level in (1, 2):
        how = imp.how_of(prepared.study, "", mask)
        going = imp.removals(prepared.study, level, mask)
        mask = prune.remove_counted(
            scores, mask, list(going), scope=how.scope, granularity=how.granularity, groups=how.groups
        )
        left, whole = prune.totals(mask)
        found.append(int(left) / whole)
    assert imp.planned(prepared.study, prepared.model) == pytest.approx(found, abs=1e-9)


def test_a_study_that_cannot_decide_trains_nothing(command: Callable[..., Any], tmp_path: Path) -> None:
    small = ("--model", "lenet300", "--train.steps", "4", "--levels", "2")
    done = command("run.py", "--config", "configs/quickstart.py", *small, "--out", tmp_path,
                   "--until-decided", "beats-reinit")  # fmt: skip
    assert done.returncode == 2
    assert "beats-reinit compares tickets with reinit at 10 to 20 % of the weights" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_other_processes_do_is_minded_before_a_look_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds outside the look are no matter; a seed of it, or another search, ends the command."""
    words = ["--config", "quickstart", "--model", "lenet300", "--levels", "1", "--prune.density", "0.15",
             "--seeds", "0", "1", "2", "--out", str(tmp_path), "--until-decided", "within-2"]  # fmt: skip
    (options,) = launch.parse(words)
    path = tmp_path / study.prepare(options.study).folder
    (path / ".locks").mkdir(parents=True)
    trained: list[tuple[int, ...]] = []

    def fill(sweep: list[launch.Options], *_: object, **__: object) -> study.Filled:
        trained.append(sweep[0].study.seeds)
        return study.Filled([path], others)

    monkeypatch.setattr(launch, "_filled", fill)
    monkeypatch.setattr(until, "grow", lambda key, seeds, run, train, *_: train([*seeds]))
    monkeypatch.setattr(analysis.run, "Run", str)
    others = [6]
    with contextlib.closing(locks.take(path / ".locks" / "seed=6")):
        assert launch._grown(options) == study.Filled([path], [6])
    for name, said in (
        ("seed=1", "--until-decided: other processes train seed 1 of the next look; let them end first"),
        ("looks", f"^{path}: another process is running this study; wait for it or stop it"),
    ):
        with contextlib.closing(locks.take(path / ".locks" / name)), pytest.raises(locks.Held, match=said):
            launch._grown(options)
    assert trained == [(0, 1, 2)]
    others = [1, 6]  # taken while the others were trained
    with pytest.raises(locks.Held, match="train seed 1 of the next look"):
        launch._grown(options)


def test_help_names_every_claim() -> None:
    from lthjax import launch as front

    fields = {field.name for field in dataclasses.fields(front.Options)}
    assert {"until_decided", "budget"} <= fields
    text = Path(front.__file__).read_text(encoding="utf-8")
    said = re.search(r'until_decided: .*?"""(.*?)"""', text, re.DOTALL)
    assert said is not None
    assert all(key in said[1] for key in until.CLAIMS)


def test_the_command_adds_seeds_and_a_second_call_trains_nothing(
    command_line: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Two seeds of a network that hardly learns: the first look takes a third one."""
    small = (
        "run.py", "--config", "configs/quickstart.py", "--model", "lenet300", "--train.steps", "4",
        "--levels", "1", "--control-levels", "1", "--prune.density", "0.15", "--arms", "ticket", "reinit",
        "--out", tmp_path, "--until-decided", "beats-reinit-by-10",
    )  # fmt: skip
    done = command_line(*small)
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    there = until.read(page.parent.parent)
    state = there["beats-reinit-by-10"]
    assert state.looks == [3, 6, 9, 12]
    assert state.ended in ("decided", "last look")
    seeds = {path.name for path in page.parent.parent.glob("seed=*")}
    assert seeds == {f"seed={seed}" for seed in range(state.seeds)}
    assert str(state) in " ".join(done.stderr.split())
    assert "with looks at 3, 6, 9, 12 seeds" in page.read_text()
    with contextlib.closing(locks.take(page.parent.parent / ".locks" / "seed=1")):  # by one that adds levels
        again = command(*small)
    assert again.stdout == done.stdout, again.stderr
    assert "[1/" not in again.stderr, "nothing is trained anew"
    assert str(state) in " ".join(again.stderr.split())
    assert until.read(page.parent.parent) == there
    more = command(*small, "--seeds", "0", str(state.seeds))
    assert more.returncode == 2
    assert f"--seeds: {state.seeds} is not allowed with --until-decided beats-reinit-by-10" in more.stderr
    assert {path.name for path in page.parent.parent.glob("seed=*")} == seeds
