"""The opening of the report: the sentence, and which verdicts it shows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_any_rows import Given
from test_verdicts import STUDY, row, run, two_chains

from analysis import report, words
from analysis.record import Finding
from analysis.report import accuracy, power, short, speed, until, verdicts
from analysis.rows import Row
from lthjax.imp import DENSE


def sentence(rows: list[Row]) -> str:
    return short.sentence(STUDY, rows, {})


def test_the_sentence_names_the_sparsest_level_down_to_which_tickets_match() -> None:
    """Tickets match down to 9 %, reinit was trained at 17 % and loses 1.5 points."""
    rows = run({"ticket": {0.5: 0.2, 0.17: 0.1, 0.09: 0.0, 0.05: -3.0}, "reinit": {0.5: 0.0}})
    # Level 2 of reinit, whose first level `run` makes at 50 %.
    rows += [row(seed, "rewind-0", 2, "reinit", 0.17, 95 + seed - 1.5) for seed in range(6)]
    assert sentence(rows) == (
        "With 17 % of its weights the ticket is as good as the dense network (within half a point, 6 seeds); "
        "the same mask on fresh weights loses 1.5 points."
    )
    alone = [r for r in rows if r.arm != "reinit"]
    assert sentence(alone) == (
        "With 9.0 % of its weights the ticket is as good as the dense network (within half a point, 6 seeds)."
    )
    # A level that falls ends it, even if a sparser one matches.
    torn = run({"ticket": {0.5: 0.2, 0.17: -3.0, 0.09: 0.0}})
    assert sentence(torn) == (
        "With 50 % of its weights the ticket is as good as the dense network (within half a point, 6 seeds). "
        "The ticket with 17 % is not found to be within half a point, and sparser ones were not tested for "
        "this sentence."
    )


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (-1.5, "loses 1.5 points."),
        (0.0, "is not found to be worse (+0.0 points)."),
        (2.0, "is 1.9 points better still."),
    ],
)
def test_the_sentence_on_fresh_weights(fresh: float, said: str) -> None:
    got = sentence(run({"ticket": {0.17: 0.1}, "reinit": {0.17: fresh}}))
    assert got.endswith(f"; the same mask on fresh weights {said}")


def test_a_control_above_dense_but_below_the_ticket() -> None:
    got = sentence(run({"ticket": {0.17: 3.0}, "reinit": {0.17: 1.0}}))
    assert got.endswith("the same mask on fresh weights is 2.0 points behind the ticket.")


def test_where_nothing_matches_or_seeds_are_few() -> None:
    none = sentence(run({"ticket": {0.5: -3.0, 0.17: -2.0}}))
    assert none.startswith("No level's tickets can be told to be within 2 points of the dense network")
    assert "nearest with 17 % of its weights, -2.0 points, at least -2.2 (one-sided 95 %, 6 seeds)" in none
    # A mean within 2 points may come of seeds that differ by more.
    wide = [
        of._replace(test_accuracy=of.test_accuracy + (of.seed - 1) / 50) if of.level else of
        for of in run({"ticket": {0.5: 0.2}}, seeds=range(3))
    ]
    assert "+0.2 points, at least -3.5 (one-sided 95 %, 3 seeds)" in sentence(wide)
    near = sentence(run({"ticket": {0.5: -0.6, 0.17: -1.0, 0.05: -9.0}}))
    assert near == "With 17 % of its weights the ticket is within 2 points of the dense network (6 seeds)."
    few = sentence(
        run({"ticket": {0.5: 0.3, 0.17: 0.12}, "reinit": {0.5: -1.0, 0.17: -2.02}}, seeds=range(2))
    )
    assert few == (
        "With 17 % of its weights the ticket is 0.1 points above the dense network, the same mask on fresh "
        "weights 1.9 points below it; 2 seeds are too few for a verdict."
    )
    assert "as good as" not in few
    same = sentence(run({"ticket": {0.5: -0.15}, "reinit": {0.5: 0.0}}, seeds=range(1, 3)))
    assert same.startswith(
        "With 50 % of its weights the ticket is within 0.05 points of the dense network, the same mask on "
        "fresh weights within 0.05 points of it; "
    )
    assert sentence(run({})) == "No ticket has been trained beside its dense network yet."


def test_a_run_whose_trainings_diverged_says_so_and_proposes_no_command() -> None:
    for arm, what in (("dense", "dense networks"), ("ticket", "tickets")):
        rows = run({} if arm == "dense" else {"ticket": {0.5: 0.0}})
        gone = {"test_accuracy": None, "status": "diverged"}
        rows = [of._replace(**gone) if of.arm == arm else of for of in rows]
        assert sentence(rows) == f"All {what} diverged; lower the learning rate (optim.lr)."
        (nothing,) = verdicts.findings(STUDY, rows)
        assert (nothing.outcome, nothing.where) == ("not tested", "")
        assert nothing.estimate == f"all {what} diverged; lower the learning rate (optim.lr)"


def test_where_the_first_of_two_chains_diverged_the_other_is_named() -> None:
    """The first ended at level 1, so that no command takes it to 80 % sparsity."""
    gone = {"test_accuracy": None, "early_stop_step": None, "status": "diverged"}
    rows = [
        of._replace(**gone) if of.chain == "rewind-0" else of
        for of in two_chains()
        if of.chain != "rewind-0" or (of.arm, of.level) == ("ticket", 1)
    ]
    why = (
        "all tickets rewound to step 0 diverged; lower the learning rate (optim.lr), or look at those "
        "rewound to step 500"
    )
    assert sentence(rows) == f"A{why[1:]}."
    found = verdicts.findings(STUDY, rows)
    untested = [of for of in found if of.outcome == "not tested" and "schedule" not in of.claim]
    assert {(of.estimate, of.where) for of in untested} == {(why, "")}
    within = [of.outcome for of in found if of.claim.endswith("network: rewound to step 500")]
    assert within == ["supported"] * 3


def test_where_every_chain_ended_before_the_range_no_command_goes_deeper() -> None:
    rows = [
        of._replace(test_accuracy=None, status="diverged") if of.level == 2 else of
        for of in run({"ticket": {0.5: 0.0, 0.25: 0.0}})
    ]
    found = {of.claim: of for of in verdicts.findings(STUDY, rows)}
    within = found["Tickets at 80–90 % sparsity are within 2 points of the dense network"]
    assert (within.outcome, within.where) == ("not tested", "")
    assert within.estimate == (
        "the ticket of every seed diverged between 10 and 20 % of the weights or before; lower the learning "
        "rate (optim.lr)"
    )


def gone(rows: list[Row], arm: str, density: float, seeds: Sequence[int] = range(9)) -> list[Row]:
    """The rows, of which those of an arm and density diverged in some seeds."""
    lost = {"test_accuracy": None, "early_stop_step": None, "status": "diverged"}
    here = (arm, density)
    return [of._replace(**lost) if (of.arm, of.density) == here and of.seed in seeds else of for of in rows]


def test_what_holds_for_the_tickets_that_did_not_diverge_is_open() -> None:
    """Of four seeds' tickets one diverged at 15 %, or all; at 5 %, behind the range, it says nothing."""
    gaps = {"ticket": {0.5: 0.0, 0.19: 0.3, 0.15: 0.1}, "reinit": {0.5: -9.0, 0.19: -9.0, 0.15: -9.0}}
    rows = run(gaps, seeds=range(4))
    claims = [
        "Tickets at 80–90 % sparsity are within 2 points of the dense network",
        "Tickets beat reinitialised ones at 80–90 % sparsity",
    ]
    for seeds in ([0], range(4)):
        lost = gone(rows, "ticket", 0.15, seeds)
        found = {of.claim: of for of in verdicts.findings(STUDY, lost)}
        for claim in claims:
            said = f"; the ticket of {words.seeds(len(seeds))} diverged there or before"
            assert found[claim].outcome == "undecided"
            assert said in found[claim].estimate
        assert until.judged("within-2", STUDY, lost, 0.05).outcome == "undecided"
        assert sentence(lost).startswith("With 19 % of its weights the ticket is as good as the dense ")
        assert sentence(lost).endswith(
            f"Tickets of {words.seeds(len(seeds))} diverged, from 15.0 % of the weights on."
        )
    sparser = gone(run({"ticket": {0.15: 0.1, 0.05: 0.0}}, seeds=range(4)), "ticket", 0.05)
    (within,) = [of for of in verdicts.findings(STUDY, sparser) if of.claim == claims[0]]
    assert (within.outcome, "diverged" in within.estimate) == ("supported", False)


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_the_sentence_takes_no_level_at_which_a_ticket_diverged(spread: float) -> None:
    """Of six equal densities after eight rounds of 20 % the mean is above them; others differ by seed."""
    dense, sparse = 0.2097145003756574, 0.16777235161532683
    rows = run({"ticket": {dense: 0.1, sparse: 0.1}})
    assert np.mean([sparse] * 6) > sparse
    for density, said in (
        (sparse, "With 21 % of its weights the ticket is as good as the dense network (within half a point, "
         "6 seeds). Tickets of 1 seed diverged, from 16.8 % of the weights on."),
        (dense, "No level has the tickets of all seeds. Tickets of 1 seed diverged, from 21.0 % of the "
         "weights on."),
    ):  # fmt: skip
        lost = gone(rows, "ticket", density, [2])
        apart = [of._replace(density=of.density * (1 + spread * (of.seed - 2))) for of in lost]
        assert sentence(apart) == said


_EARLY = "; of 1 seed the earliest ticket alone diverged there or before"
_LATE = "; the ticket rewound to step 50 of 1 seed diverged there or before"


@pytest.mark.parametrize(
    ("early", "late", "outcomes", "said"),
    [
        ([], [], ["supported", "refuted", "equivalent"], ""),
        ([0], [], ["supported", "undecided", "undecided"], _EARLY),
        ([], [0], ["undecided", "refuted", "undecided"], _LATE),
        ([0], [0], ["undecided", "refuted", "undecided"], _LATE),
        ([0], [1], ["undecided", "undecided", "undecided"], f"{_LATE}{_EARLY}"),
    ],
)
def test_late_rewinding_is_not_refuted_by_early_tickets_that_diverged(
    early: list[int], late: list[int], outcomes: list[str], said: str
) -> None:
    """A later ticket is 3 points better than the first, 3 worse, or the same."""
    first = gone(run({"ticket": {0.3: 0.0, 0.15: 0.0}}), "ticket", 0.15, early)
    for gap, outcome in zip((3.0, -3.0, 0.0), outcomes, strict=True):
        later = gone(run({"ticket": {0.3: 0.0, 0.15: gap}}, chain="rewind-50"), "ticket", 0.15, late)
        found = verdicts.findings(STUDY, [*first, *(of for of in later if of.chain != DENSE)])
        (helps,) = [of for of in found if of.claim.startswith("Late rewinding helps at 80–90")]
        assert helps.outcome == outcome
        assert helps.estimate.endswith(f"at 15.0 % of the weights{said}")


def test_no_command_is_offered_for_what_diverged() -> None:
    """Reinit wherever it was trained; the later chain before the range; rounds that pass over it have one."""
    lost = gone(run({"ticket": {0.15: 0.1}, "reinit": {0.15: -2.0}}), "reinit", 0.15)
    (more,) = [of for of in verdicts.findings(STUDY, lost) if "need more weights" in of.claim]
    assert (more.estimate, more.where) == ("reinit diverged wherever it was trained", "")
    first = run({"ticket": {0.3: 0.2, 0.15: 0.1}})
    later = [of for of in run({"ticket": {0.3: 0.2}}, chain="rewind-50") if of.chain != DENSE]
    found = verdicts.findings(STUDY, [*first, *gone(later, "ticket", 0.3)])
    (late,) = [of for of in found if of.claim.startswith("Late rewinding helps at 80–90")]
    why = "the ticket rewound to step 50 diverged between 10 and 20 % of the weights or before"
    assert (late.estimate, late.where) == (why, "")
    over = gone(run({"ticket": {0.3: 0.5, 0.09: 0.1}}), "ticket", 0.09)
    within = verdicts.findings(STUDY, over)[0]
    assert (within.estimate, bool(within.where)) == ("no level between 10 and 20 % of the weights", True)


def test_where_the_densest_level_alone_fails_sparser_ones_are_not_denied() -> None:
    """One bad seed of three at 80 %; the page supports "within 2 points" at 15 %."""
    rows = run({"ticket": {0.8: 0.0, 0.4: 0.0, 0.15: 0.3}}, seeds=range(3))
    bad = [of._replace(test_accuracy=0.8) if (of.level, of.seed) == (1, 1) else of for of in rows]
    (within,) = [of for of in verdicts.findings(STUDY, bad) if "are within 2 points" in of.claim]
    assert within.outcome == "supported"
    assert sentence(bad) == (
        "The densest tickets, with 80 % of the weights, are not found to be within 2 points of the dense "
        "network (3 seeds), and sparser ones were not tested for this sentence; of these those with 15 % "
        "come nearest, +0.3 points (3 seeds)."
    )
    few = [of for of in rows if of.level != 1 or of.seed < 2]
    assert sentence(few).startswith("The densest tickets, with 80 % of the weights, are not found")
    assert "points of the dense network (2 seeds), and" in sentence(few)


def test_the_sentence_tests_claims_with_looks_at_the_level_of_the_looks(tmp_path: Path) -> None:
    """A single test is sure of tickets .3 points below dense and .4 above reinit, a look is not."""
    rows = run({"ticket": {0.17: -0.3}, "reinit": {0.17: -0.7}})
    plain = "(within half a point, 6 seeds); the same mask on fresh weights loses 0.7"
    assert plain in sentence(rows)
    within, beats = (
        until.State(key, [6, 12], 0.005, 6, "undecided", "budget", [*range(6)], "rewind-0")
        for key in ("within-0.5", "beats-reinit")
    )
    for state, said in (
        (
            within,
            "is within 2 points of the dense network (6 seeds); the same mask on fresh weights loses 0.7",
        ),
        (beats, "(within half a point, 6 seeds); the same mask on fresh weights is not found to be worse"),
        (within._replace(chain="rewind-500"), plain),
    ):
        looks = {state.claim: state}
        assert said in short.sentence(STUDY, rows, looks)
        if state.chain == "rewind-0":
            noted = until.noted(looks, verdicts.findings(STUDY, rows), STUDY, rows)
            assert [of.outcome for of in noted if of.claim == until.CLAIMS[state.claim].words] == [
                "undecided"
            ]
    # The page has the looks of its folder.
    made = Given(rows)
    made.path = tmp_path
    until.keep(tmp_path, {within.claim: within})
    assert "within 2 points" in short.section(made, "", []).lead


def test_of_several_rewind_steps_the_earliest_is_named() -> None:
    """In the sentence, the captions of figures of one chain, and where it is said what seeds detect."""
    rows = two_chains()
    assert sentence(rows).startswith("No level's tickets rewound to step 0 can be told to be within 2 points")
    better = [
        of._replace(test_accuracy=of.test_accuracy + 0.06) if of.chain == "rewind-0" else of for of in rows
    ]
    assert sentence(better).startswith("With 50 % of its weights the ticket rewound to step 0 is as good as")
    few = sentence([of for of in better if of.seed < 2])
    assert few.startswith(
        "With 50 % of its weights the ticket rewound to step 0 is within 0.05 points of the"
    )
    alone = [of for of in rows if of.chain != "rewind-500"]
    for of, said in ((rows, True), (alone, False)):
        run_of = Given(of)
        drawn = [
            *accuracy.drawn(run_of, ""),
            *(one for part in speed.section(run_of, "") for one in part.figures),
        ]
        shown = {one.name: "those rewound to step 0." in one.caption for one in drawn}
        assert shown == {"gaps": said, "early_stop": False, "learning": said, "speed": said}
        table = power.table(STUDY, of)
        assert table is not None
        assert (table.title == f"{power.TITLE}, rewound to step 0") == said
        assert ("of tickets rewound to step 0)" in power.planned(STUDY, of, 6)) == said


def test_levels_and_controls_of_fewer_than_three_seeds_are_not_believed() -> None:
    """Tickets of 50 and 17 % have six seeds, that of 7 % two; controls as many as said."""
    rows = run({"ticket": {0.5: 0.2, 0.17: 0.1, 0.07: 0.2}, "reinit": {0.5: -1.0, 0.17: -1.5, 0.07: -2.0}})

    def of(**seeds: int) -> list[Row]:
        """Of the reinit of level n as many seeds as `reinit_n` says, of every arm of level 3 two."""
        few = {("reinit", int(name[-1])): n for name, n in seeds.items()}
        return [r for r in rows if r.seed < min(few.get((r.arm, r.level), 6), 2 if r.level == 3 else 6)]

    as_good = "the ticket is as good as the dense network (within half a point, 6 seeds)"
    fresh = "the same mask on fresh weights loses"
    assert sentence(of()) == f"With 17 % of its weights {as_good}; {fresh} 1.5 points."
    # The control that is believed is that of 50 %, and of three seeds, which is said.
    assert sentence(of(reinit_2=2)) == f"With 50 % of its weights {as_good}; {fresh} 1.0 points."
    three = sentence(of(reinit_1=2, reinit_2=3))
    assert three.startswith(f"With 17 % of its weights {as_good}; {fresh} 1.")
    assert three.endswith(" points (3 seeds).")
    assert sentence(of(reinit_1=2, reinit_2=2)) == f"With 17 % of its weights {as_good}."
    fallen = run({"ticket": {0.5: 0.2, 0.17: -3.0}})
    assert (
        "they come nearest with 17 % of its weights, -3.0 points, at least -3.2 (one-sided 95 %, 6 seeds)"
        in sentence([r for r in fallen if r.level != 1 or r.seed < 2])
    )


def test_the_number_of_seeds_is_that_of_the_level_that_is_named() -> None:
    """Four seeds of the level that matches, six of the one before it; of two seeds and one, one."""
    rows = run({"ticket": {0.5: 0.2, 0.17: 0.1}})
    four = [r for r in rows if r.level < 2 or r.seed < 4]
    assert sentence(four) == (
        "With 17 % of its weights the ticket is as good as the dense network (within half a point, 4 seeds)."
    )
    one = [r for r in rows if r.seed < 2 - (r.level == 2)]
    assert sentence(one).endswith("; 1 seed is too few for a verdict.")


def test_at_most_six_verdicts_open_the_page_and_untested_claims_are_folded() -> None:
    rows = run({"ticket": {0.17: 0.1}, "reinit": {0.17: -1.5}, "random": {0.17: -1.5}})
    found = verdicts.findings(STUDY, rows)
    chosen = short.chosen(found, short.margin(STUDY, rows, {}))
    assert 4 <= len(chosen) <= 6
    assert "are within 0.5 points" in chosen[0].claim
    assert {of.outcome for of in chosen} <= {"supported", "refuted", "equivalent", "undecided"}
    assert len({of.claim for of in chosen}) == len(chosen)
    # Further rewind steps, which have rows of their own, leave the opening what it was.
    several = [*rows, *(of._replace(chain="rewind-500") for of in rows if of.chain != "dense")]
    earliest = short.chosen(verdicts.findings(STUDY, several), 0.5)
    assert [of.claim for of in earliest] == [of.claim for of in chosen]
    sections = report._sections(Given(rows), found)
    first, second = sections[:2]
    assert (first.anchor, len(first.figures), len(first.tables)) == ("short", 1, 1)
    assert first.lead == short.sentence(Given(rows).about, rows, {})
    tested, untested = second.tables
    assert tested.folded == ""
    assert untested.folded.startswith(f"{len(untested.rows)} claims were not tested")
    assert {line[1] for line in untested.rows} == {"not tested"}
    assert "not tested" not in {line[1] for line in tested.rows}
    assert len(tested.rows) + len(untested.rows) == len(found)


@pytest.mark.parametrize(
    ("gaps", "margin"),
    [
        ({0.5: 0.2, 0.15: -3.0}, 0.5),
        # The densest level fails half a point, or two, alone or as all others.
        ({0.5: -0.6, 0.15: 0.1}, 2),
        ({0.5: -3.0, 0.15: 0.1}, 2),
        ({0.5: -3.0, 0.15: -3.0}, 2),
    ],
)
def test_the_opening_has_the_claim_of_the_margin_that_its_sentence_names(
    gaps: dict[float, float], margin: float, tmp_path: Path
) -> None:
    made = Given(run({"ticket": gaps}))
    made.path = tmp_path
    made.about["data"]["test"] = 10_000
    shown = short.section(made, "", verdicts.findings(made.about, made.rows))
    assert ("half a point" if margin < 1 else "within 2 points") in shown.lead
    claims = [line[0] for line in shown.tables[0].rows]
    assert [claim for claim in claims if " sparsity are within " in claim] == [
        f"Tickets at 80–90 % sparsity are within {margin:g} points of the dense network"
    ]
    # Of few seeds nothing was tested.
    assert short.margin(STUDY, [of for of in made.rows if of.seed < 2], {}) == 0.5


@pytest.mark.parametrize(
    ("beside", "mark"),
    [
        (
            "reinit passes the same test: +1; so the claim does not tell tickets from reinit",
            "; it holds for reinit, too",
        ),
        (
            "reinit is still learning (lowest …): longer training may narrow the gap",
            "; reinit is still learning",
        ),
        ("reinit does not pass (refuted): -3", ""),
        ("", ""),
    ],
)
def test_what_must_be_known_beside_a_verdict(beside: str, mark: str) -> None:
    assert short._mark(Finding("", "supported", "", 6, "", "", beside)) == mark
