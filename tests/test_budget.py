"""The gap against the length of training: which runs, which numbers, what is claimed of them."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_verdicts import row, run

from analysis.compare import budget
from analysis.rows import Row

GAPS = {625: 12.0, 1250: 11.0, 5000: 4.0}
SEEDS = range(6)


def about(steps: int, **identity: Any) -> Any:
    fields = {"model": "lenet5", "train.steps": steps, "train.eval_every": steps // 5}
    return {
        "identity": fields | identity,
        "lengths": {"total": steps},
        "data": {"test": 10_000},
        "config": {"model": "lenet5", "data": {"name": "mnist"}},
    }


def of_budget(steps: int, gap: float) -> list[Row]:
    """A dense network, tickets at two densities, and a control `gap` points below them at the sparser one."""
    rows = run({"ticket": {0.5: 0.0, 0.17: 0.0}, "reinit": {0.5: -1.0, 0.17: -gap}}, dense=90.0, seeds=SEEDS)
    return [
        one._replace(steps=steps, early_stop_step=steps if one.arm == "reinit" else steps // 3)
        for one in rows
    ]


STUDIES = [about(steps) for steps in GAPS]
TABLES = [of_budget(steps, gap) for steps, gap in GAPS.items()]


def test_runs_that_differ_in_the_length_of_training_alone() -> None:
    assert budget.differ(STUDIES)
    assert not budget.differ([STUDIES[0]])
    assert not budget.differ([STUDIES[0], STUDIES[0]])
    assert not budget.differ([*STUDIES, about(5000, model="lenet300")])
    assert not budget.differ([about(625), about(1250, **{"optim.lr": 0.1})])


def test_another_number_of_levels_to_one_density_is_another_density_at_each() -> None:
    """The identity has the levels only where the last density is given."""
    last = {"prune.density": 0.05}
    assert budget.differ([about(625, levels=5, **last), about(1250, levels=5, **last)])
    assert not budget.differ([about(625, levels=5, **last), about(1250, levels=10, **last)])


def test_gaps_are_paired_by_seed_and_those_of_all_lengths() -> None:
    found = budget.gaps(STUDIES, TABLES)
    assert [(gap.level, gap.steps) for gap in found] == [(1, n) for n in GAPS] + [(2, n) for n in GAPS]
    rows = {(r.seed, r.arm): r for r in TABLES[2] if r.level == 2}
    by_hand = {s: 100 * (rows[s, "ticket"].test_accuracy - rows[s, "reinit"].test_accuracy) for s in SEEDS}
    assert found[-1].values == pytest.approx(by_hand)
    assert found[-1].interval.mean == pytest.approx(4.0)
    assert found[-1].control_ends == (6, 0, 6)
    # What one of the lengths lacks is left out of all; a seed without the control has no gap.
    fewer = [r for r in TABLES[0] if (r.level, r.arm) != (1, "reinit") and (r.seed, r.arm) != (3, "reinit")]
    found = budget.gaps(STUDIES, [fewer, *TABLES[1:]])
    assert [(gap.level, gap.steps, len(gap.values)) for gap in found] == [
        (2, 625, 5),
        (2, 1250, 6),
        (2, 5000, 6),
    ]


def test_ten_points_at_the_longest_and_the_change_since_the_shortest() -> None:
    ten, less = budget.claims([gap for gap in budget.gaps(STUDIES, TABLES) if gap.level == 2])
    assert ten.claim == "Tickets of 17.0 % beat reinit by 10 points or more after 5,000 steps"
    assert (ten.outcome, ten.n, ten.beside) == ("refuted", 6, "6 of 6 of reinit still learn")
    # By hand: t of the six gaps, their spread no less than √(p q / N + p′ q′ / N).
    values = next(gap for gap in budget.gaps(STUDIES, TABLES) if (gap.level, gap.steps) == (2, 5000)).values
    mean, ticket = sum(values.values()) / 6, 0.925
    least = 100 * math.sqrt((ticket * (1 - ticket) + (ticket - 0.04) * (1.04 - ticket)) / 10_000)
    spread = max(float(np.std([*values.values()], ddof=1)), least)
    high = mean + scipy_stats.t.ppf(0.95, 5) * spread / math.sqrt(6)
    assert ten.estimate == f"+4.00 pp, at most {high:+.2f} (one-sided 95 %)"
    assert less.claim == "… and the gap is less after 5,000 steps than after 625"
    assert less.outcome == "supported"
    assert less.estimate.startswith("+8.00 pp, at least +7.")


def test_a_gap_that_stays_and_too_few_seeds() -> None:
    same = [of_budget(steps, 12.0) for steps in GAPS]
    ten, less = budget.claims([gap for gap in budget.gaps(STUDIES, same) if gap.level == 2])
    assert (ten.outcome, less.outcome) == ("supported", "undecided")
    # Where the test set leaves nothing open, that is a precise zero.
    sure: Any = [{**of, "data": {**of["data"], "test": 10**10}} for of in STUDIES]
    _, less = budget.claims([gap for gap in budget.gaps(sure, same) if gap.level == 2])
    assert (less.outcome, less.test) == ("equivalent", "equivalence, ±0.2 pp")
    two = [[r for r in rows if r.seed < 2] for rows in same]
    assert {of.outcome for of in budget.claims(budget.gaps(STUDIES, two))} == {"too few seeds"}
    assert {line[4] for line in budget.table(budget.gaps(STUDIES, two)).rows} == {"too few seeds"}


def test_the_section_has_a_line_a_gap_and_the_numbers_of_its_figure() -> None:
    found = budget.gaps(STUDIES, TABLES)
    section = budget.section(found, "LeNet-5 on MNIST")
    assert section.lead == (
        "After 625 steps tickets of 17.0 % are +12.00 [+11.50, +12.50] points from reinit, after 5,000 steps "
        "+4.00 [+3.57, +4.43]."
    )
    verdicts, table = section.tables
    assert len(verdicts.rows) == 4
    ten = verdicts.rows[2]
    assert table.rows[-1][4] == f"refuted, {ten[2].partition(', ')[2].partition(' (')[0]}"
    assert [row[:2] for row in table.rows[3:]] == [
        ["17.0 %, reinit", "625"],
        ["17.0 %, reinit", "1,250"],
        ["17.0 %, reinit", "5,000"],
    ]
    (drawn,) = section.figures
    assert len(drawn.data[1]) == 6 * 6
    left, right = drawn.figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (left, right)] == [
        "50.0 % of the weights",
        "17.0 % of the weights",
    ]
    line = next(of for of in right.get_lines() if str(of.get_label()).startswith("to reinit"))
    assert [*line.get_xdata()] == [*GAPS]
    assert [*line.get_ydata()] == pytest.approx([*GAPS.values()])


def test_several_chains_are_named() -> None:
    two = [
        [*rows, *(one._replace(chain="rewind-1500") for one in rows if one.chain != "dense")]
        for rows in TABLES
    ]
    found = budget.gaps(STUDIES, two)
    assert [of.claim for of in budget.claims(found)[::2]] == [
        f"Tickets of {share} rewound to step {step} beat reinit by 10 points or more after 5,000 steps"
        for step in ("0", "1,500")
        for share in ("50.0 %", "17.0 %")
    ]
    assert [line[0] for line in budget.table(found).rows[::3]] == [
        f"{share} rewound to step {step}, reinit" for step in ("0", "1,500") for share in ("50.0 %", "17.0 %")
    ]
    lead = budget.section(found, "LeNet-5 on MNIST").lead
    assert lead.startswith("After 625 steps tickets of 17.0 % rewound to step 0 are +12.00 ")


def test_what_not_all_lengths_have_is_named() -> None:
    assert budget.lacking(STUDIES, TABLES) == []
    fewer = [r for r in TABLES[0] if (r.level, r.arm) != (1, "reinit")]
    (note,) = budget.lacking(STUDIES, [fewer, *TABLES[1:]])
    assert note == "Not shown, as not every length of training has both networks: reinit at 50.0 %."
    two = [[*rows, *(r._replace(arm="random") for r in rows if r.arm == "reinit")] for rows in TABLES]
    (note,) = budget.lacking(STUDIES, [[r for r in TABLES[0] if r.arm == "ticket"], *two[1:]])
    assert note.endswith(" has both networks: reinit, random at 50.0, 17.0 %.")
    section = budget.section([], "LeNet-5 on MNIST", [note])
    assert (section.notes, section.tables) == ([note], ())


def test_no_gap_of_networks_that_diverged() -> None:
    gone = [
        one._replace(test_accuracy=None, status="diverged") if one.arm == "reinit" else one
        for one in TABLES[0]
    ]
    assert budget.gaps(STUDIES, [gone, *TABLES[1:]]) == []
    assert row(0, "rewind-0", 1, "ticket", 0.5, 90.0).steps == 500
