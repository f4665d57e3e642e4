"""Conformance: marks by an independent TOST, settings field by field, no verdict on what was not measured."""

import csv
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, about, result
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from analysis import conform
from analysis.conform import ledger, settings
from analysis.conform.ledger import Ledger, Line
from analysis.conform.measured import Measured, opened
from analysis.rows import Row
from lthjax import config, durations
from lthjax.errors import UserError
from lthjax.imp import Cell

NOISE = [-0.1, 0.05, 0.05, 0.02, -0.02]
ALL_SEEDS = range(5)
LEDGERS = ledger.known()


def line(quantity: str = "accuracy", **fields: Any) -> Line:
    empty: dict[str, Any] = dict.fromkeys(Line._fields, "") | dict.fromkeys(("rewind", "spread", "margin"))
    usual = {"of": "ticket", "at": "end", "relation": "=", "value": "97", "margin": 0.2, "source": "a paper"}
    return Line(**{**empty, **usual, "quantity": quantity, **fields})


def setting(name: str, value: str, needs: str = "") -> Line:
    return line("setting", of=name, value=value, needs=needs, margin=None)


def row(seed: int, chain: str, level: int, arm: str, percent: float, **fields: Any) -> Row:
    made = Row(seed, chain, level, arm, 1, 0.8**level, round(1000 * 0.8**level), percent / 100, 0.1, 0.99,
               0.97, 0.1, 100, percent / 100, 500, 1.5, "done")  # fmt: skip
    return made._replace(**fields)


def study(accuracies: dict[tuple[str, int, str], list[float]], **changes: Any) -> Measured:
    """Cells by (chain, level, arm) -> accuracy in percent of every seed."""
    rows = [
        row(seed, *place, value) for place, of in accuracies.items() for seed, value in enumerate(of)
    ]  # fmt: skip
    made = about(**changes)
    # So many images that the test set's own error is none.
    made["data"]["test"] = 10**10
    return Measured(Path("here"), made, rows)


def around(*means: float) -> list[list[float]]:
    return [[mean + noise for noise in NOISE] for mean in means]


def usual() -> Measured:
    dense, ticket, reinit = around(97.0, 97.4, 96.9)
    return study({("dense", 0, "dense"): dense, ("rewind-0", 1, "ticket"): ticket,
                  ("rewind-0", 1, "reinit"): reinit[::-1]})  # fmt: skip


def judged(measured: Measured, *lines: Line) -> list[conform.Judged]:
    own = [one for one in lines if one.quantity == "setting"]
    return conform.judge(measured, Ledger("own", own, [one for one in lines if one.quantity != "setting"]))


def mark(measured: Measured, of: Line) -> str:
    return judged(measured, of)[0].mark


@given(
    st.lists(st.floats(90, 99), min_size=2, max_size=8).filter(lambda values: np.ptp(values) > 1e-3),
    st.floats(92, 97), st.floats(0.01, 3), st.sampled_from([None, 0.1, 1.0]),
)  # fmt: skip
@examples(max_examples=80, deadline=None)
def test_an_equality_is_two_one_sided_tests(
    values: list[float], published: float, margin: float, spread: float | None
) -> None:
    found = mark(study({("dense", 0, "dense"): values}),
                 line(of="dense", value=repr(published), margin=margin, spread=spread))  # fmt: skip
    apart = np.array([100 * (value / 100) for value in values]) - published
    wide = margin + (spread or 0)
    inside, above, below = DescrStatsW(apart).ttost_mean(-wide, wide)
    # above tests > −wide, below tests < wide; outside is the other side of one of them.
    outside = above[1] > 0.95 or below[1] > 0.95
    if len(values) < 3:
        assert found == "undecided"
    elif min(abs(p - limit) for p in (inside, above[1], below[1]) for limit in (0.05, 0.95)) > 1e-9:
        assert found == ("agrees" if inside < 0.05 else "differs" if outside else "undecided")


def test_the_three_marks_by_hand() -> None:
    for value, margin, expected in (
        ("97.4", 0.2, "agrees"),
        ("97.9", 0.2, "differs"),
        ("97.5", 0.1, "undecided"),
    ):
        assert mark(usual(), line(density="0.8", value=value, margin=margin)) == expected
    assert mark(usual(), line(density="0.8", value="97.5", margin=0.1, spread=0.2)) == "agrees"
    (one,) = judged(usual(), line(density="0.8", value="97.5", spread=0.2))
    assert one[:3] == ("ticket at 80.0 %", "end", "97.5 ± 0.2")
    assert (one.ours.partition(" ")[0], one.n, one.margin) == ("97.40", 5, "±0.2")


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.5, "agrees"), (0.3, "undecided"), (0.1, "differs"), (-0.5, "differs")]
)
def test_a_published_inequality_agrees_differs_or_is_undecided(gain: float, expected: str) -> None:
    values = [gain + noise for noise in NOISE]
    for relation in (">", ">="):
        assert (
            conform._mark(line("gap", relation=relation, value="0.3"), conform._Ours(values, "")) == expected
        )
    values = [-gain + noise for noise in NOISE]
    for relation in ("<", "<="):
        assert (
            conform._mark(line("gap", relation=relation, value="-0.3"), conform._Ours(values, "")) == expected
        )


def test_gaps_are_paired_and_read_where_they_are_published() -> None:
    measured = usual()
    of = {"other": "reinit", "density": "0.8", "relation": ">"}
    assert mark(measured, line("gap", **of, value="0.3")) == "agrees"
    early = [one._replace(early_stop_test_accuracy=0.9) for one in measured.rows]
    there = Measured(Path("here"), measured.about, early)
    assert mark(there, line("gap", **of, value="0.3", at="early stop")) == "differs"
    assert mark(there, line("gap", **of, value="0.3", at="end")) == "agrees"
    (one,) = judged(measured, line("gap", other="dense", density="best", relation="<=", value="0.35"))
    assert (one.quantity, one.published) == ("ticket − dense at 80.0 %", "at most 0.35")


@pytest.mark.parametrize("looked", [1, 2, 16, 100])
def test_the_best_of_several_levels_is_tested_at_a_smaller_error(looked: int) -> None:
    values = [0.5, 0.9, 0.7, 0.55, 0.95, 0.6]
    p = stats.ttest_1samp(values, 0.35, alternative="greater").pvalue
    best = line("gap", other="dense", density="best", relation="<=", value="0.35")
    got = conform._mark(best, conform._Ours(values, "", looked=looked))
    assert got == ("differs" if p < 0.05 / looked else "undecided")
    assert 0.05 / 100 < p < 0.05 / 16, "both are seen"
    # An equality, whose nearer limit is 0.4 from the mean of 0.7, inside or outside.
    p = stats.ttest_1samp(values, 0.3, alternative="greater").pvalue
    for value, expected in (("0.7", "agrees"), ("1.5", "differs")):
        equal = best._replace(relation="=", value=value, margin=0.4)
        got = conform._mark(equal, conform._Ours(values, "", looked=looked))
        assert got == (expected if p < 0.05 / looked else "undecided")
    assert 0.05 / 100 < p < 0.05 / 16, "both are seen"


def test_speedups_are_ratios_on_a_logarithmic_scale() -> None:
    measured = usual()
    slow = [
        one._replace(early_stop_step=250 + 2 * one.seed) if one.arm == "reinit" else one
        for one in measured.rows
    ]
    there = Measured(Path("here"), measured.about, slow)
    of = {"other": "reinit", "density": "0.8", "at": "early stop"}
    ratio = math.exp(np.mean(np.log([(250 + 2 * seed) / 100 for seed in ALL_SEEDS])))
    assert mark(there, line("speedup", **of, value="2.51", margin=1.05)) == "agrees"
    # Just inside and outside of a factor of 1.25 on both sides: a symmetric interval of logarithms.
    for value, expected in ((ratio * 1.23, "agrees"), (ratio / 1.23, "agrees"),
                            (ratio * 1.27, "differs"), (ratio / 1.27, "differs")):  # fmt: skip
        assert mark(there, line("speedup", **of, value=repr(value), margin=1.25)) == expected
    # A spread is in the value's own unit: 2.5 ± 0.5 is a factor of 1.2, on which a margin of 1.1 comes.
    for value, expected in ((ratio / 1.3, "agrees"), (ratio / 1.34, "differs")):
        printed = line("speedup", **of, value=repr(value), spread=value / 5, margin=1.1)
        assert mark(there, printed) == expected
        assert mark(there, printed._replace(spread=None)) == "differs"
    (one,) = judged(there, line("speedup", **of, value="2.51", margin=1.05))
    assert (one.published, one.margin, one.ours.partition(" ")[0]) == ("2.51×", "×1.05", f"{ratio:.2f}×")


def test_a_gap_is_no_surer_than_the_test_set() -> None:
    """Seeds that happen to agree: s is at least √(p(1 − p)/N + q(1 − q)/N)."""
    cells = {("dense", 0, "dense"): [97.0, 97.0, 97.0], ("rewind-0", 1, "ticket"): [97.3, 97.3, 97.31]}
    measured, of = study(cells), line("gap", other="dense", density="0.8", value="0.3")
    assert mark(measured, of) == "agrees"
    measured.about["data"]["test"] = 10_000
    (one,) = judged(measured, of)
    p, q = 0.9730333, 0.97
    half = 4.302653 * 100 * ((p * (1 - p) + q * (1 - q)) / 10_000) ** 0.5 / 3**0.5
    assert one.ours == f"+0.30 [{0.3033 - half:+.2f}, {0.3033 + half:+.2f}]"
    assert one.mark == "undecided"
    assert mark(measured, of._replace(relation=">", value="0.2")) == "undecided"


def test_a_step_at_the_last_evaluation_is_but_a_bound() -> None:
    measured = usual()
    late = [
        one._replace(early_stop_step=12 if one.arm == "reinit" and one.seed < 2 else 5)
        for one in measured.rows
    ]
    there, of = Measured(Path("here"), measured.about, late), {"density": "0.8", "at": "early stop"}
    (one,) = judged(there, line("speedup", other="reinit", **of, value="2.51", margin=1.25))
    assert (one.mark, one.why) == (
        "not comparable",
        "the lowest validation loss is at the last evaluation in 2 seeds",
    )
    (one,) = judged(there, line("early_stop_step", **of, value="5"))
    assert one.mark == "agrees"
    # A seed that has not both arms is in no ratio.
    apart = [row for row in late if (row.arm, row.seed) not in (("ticket", 0), ("ticket", 1))]
    of_pairs = line("speedup", other="reinit", **of, value="1", margin=1.25)
    (one,) = judged(Measured(Path("here"), measured.about, apart), of_pairs)
    assert (one.mark, one.why, one.n) == ("agrees", "", 3)


def test_counts_are_compared_exactly() -> None:
    for value, expected in (("1000", "agrees"), ("1001", "differs")):
        assert mark(usual(), line("weights", of="dense", value=value, margin=None)) == expected
    # LeNet-5: 61,470 weights, 61,706 parameters.
    for value, expected in (("61706", "agrees"), ("61470", "differs")):
        (one,) = judged(usual(), line("parameters", value=value, margin=None))
        assert (one.mark, one.ours, one.quantity) == (expected, "61,706", "parameters")
    other = usual()
    other.about["identity"]["model"] = "from elsewhere"
    (one,) = judged(other, line("parameters", value="61706", margin=None))
    assert (one.mark, one.why) == ("not comparable", "not measured")


def test_late_rewinding() -> None:
    early, late = around(95.0, 96.0)
    cells = {("dense", 0, "dense"): early, ("rewind-0", 1, "ticket"): early, ("rewind-40", 1, "ticket"): late}
    measured = study(cells)
    measured.about["lengths"]["rewind"] = [0, 40]
    of = {"density": "0.8", "rewind": 40, "relation": ">", "value": "0.5"}
    assert mark(measured, line("rewound", **of)) == "agrees"
    assert mark(measured, line("accuracy", density="0.8", rewind=40, value="96")) == "agrees"
    # The last command named one step; tickets rewound to the other one are there all the same.
    measured.about["lengths"]["rewind"] = [40]
    assert mark(measured, line("rewound", **of)) == "agrees"
    assert mark(measured, line("accuracy", density="0.8", value="95")) == "agrees"
    assert settings.of(measured, "rewind") == [0, 40]
    assert measured.rewound(1).mean == pytest.approx(1.0)
    measured = study({place: of for place, of in cells.items() if place[0] != "rewind-0"})
    (one,) = judged(measured, line("rewound", **of))
    assert (one.mark, one.why) == ("not comparable", "not measured: no ticket is rewound to an earlier step")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"of": "random", "density": "0.8"}, "not measured"),
        ({"of": "ticket", "density": "0.211"}, "not measured: the nearest level has 80.0 %"),
        ({"of": "ticket", "density": "0.8", "rewind": 500}, "not measured: no ticket is rewound to step 500"),
        ({"of": "ticket", "density": "0.8", "value": ""}, "none printed"),
        ({"of": "ticket", "density": "0.8", "needs": "train.steps"}, "train.steps is 12 here, 9 there"),
        ({"of": "ticket", "density": "0.8", "needs": "optim.lr=0.1"}, "optim.lr is 0.0012 here, 0.1 there"),
    ],
)
def test_what_was_not_measured_has_no_verdict(fields: dict[str, Any], why: str) -> None:
    (one,) = judged(usual(), setting("train.steps", "9"), line(**fields))
    assert (one.mark, one.why) == ("not comparable", why)
    (one,) = judged(usual(), setting("model", "conv2", "all"), line(density="0.8"))
    assert (one.mark, one.why) == ("not comparable", "model is lenet5 here, conv2 there")
    unread = [one._replace(test_accuracy=None) for one in usual().rows]
    (one,) = judged(Measured(Path("here"), about(), unread), line(density="0.8"))
    assert (one.mark, one.why, one.ours) == ("not comparable", "not measured", "–")


def lost(measured: Measured, *cells: tuple[str, int]) -> Measured:
    """The same where these arms of these seeds diverged."""
    gone = {"test_accuracy": None, "early_stop_test_accuracy": None, "early_stop_step": None}
    rows = [
        one._replace(status="diverged", **gone) if (one.arm, one.seed) in cells else one
        for one in measured.rows
    ]
    return Measured(measured.folder, measured.about, rows)


def test_what_diverged_is_said_to_have() -> None:
    some = lost(usual(), ("dense", 0), ("ticket", 1))
    (dense, gap) = judged(some, line(of="dense", value="97"), line("gap", other="dense", density="0.8"))
    assert dense.ours.endswith("]; diverged in 1 seed")
    assert (gap.ours.partition("; ")[2], gap.n) == ("diverged in 2 seeds", 3)
    (count,) = judged(some, line("weights", of="dense", value="1000", margin=None))
    assert (count.ours, count.mark) == ("1,000", "agrees")
    (of,) = judged(lost(usual(), *(("reinit", seed) for seed in ALL_SEEDS)), line(of="reinit", density="0.8"))
    assert (of.mark, of.why, of.ours) == ("not comparable", "diverged in 5 seeds", "–")
    none = lost(usual(), *(("dense", seed) for seed in ALL_SEEDS))
    alone = Measured(none.folder, none.about, [one for one in none.rows if one.arm == "dense"])
    why = ("diverged in 5 seeds", "all dense networks diverged; lower the learning rate (optim.lr)")
    found = judged(alone, line(of="dense"), line(density="0.8"))
    assert [(one.mark, one.why) for one in found] == [("not comparable", said) for said in why]


def test_arms_that_lead_chains_are_found_there() -> None:
    """finetune_chain has one chain a rewind step, continued but one, as it always starts at step 0."""
    early, late, tuned, on = around(95.0, 96.0, 94.0, 93.0)
    measured = study({
        ("rewind-0", 1, "ticket"): early, ("rewind-40", 1, "ticket"): late,
        ("finetune_chain-40", 1, "finetune_chain"): tuned, ("continued-0", 1, "continued"): on,
        ("continued-0", 1, "continued_reset"): on,
    })  # fmt: skip
    for arm, rewind, value in (
        ("finetune_chain", 40, "94"),
        ("continued", None, "93"),
        ("continued", 40, "93"),
        ("continued_reset", 0, "93"),
    ):
        assert mark(measured, line(of=arm, density="0.8", rewind=rewind, value=value)) == "agrees"
    (gap,) = judged(measured, line("gap", other="finetune_chain", density="best", rewind=40, value="2"))
    assert (gap.quantity, gap.mark) == ("ticket − finetune_chain at 80.0 %", "agrees")
    for arm, rewind in (("finetune_chain", 0), ("continued_reset", 40)):
        (one,) = judged(measured, line(of=arm, density="0.8", rewind=rewind))
        assert (one.mark, one.why) == ("not comparable", "not measured")


def test_counts_may_be_written_as_any_whole_number(tmp_path: Path) -> None:
    for value, said in (("6.147e4", "61,470"), ("61470.0", "61,470"), ("1000", "1,000")):
        read = ledger.read(str(write(tmp_path / "mine.csv", line("weights", of="dense", value=value))))
        (one,) = conform.judge(usual(), read)
        assert (one.published, one.mark) == (said, "agrees" if said == "1,000" else "differs")


def test_the_best_level_is_one_that_both_arms_have() -> None:
    """An arm that the run lacks, or levels without tickets, once ended the command."""
    best = line("gap", other="sign_constant", density="best", relation=">", value="0")
    (one,) = judged(usual(), best)
    assert (one.mark, one.why, one.ours) == ("not comparable", "not measured", "–")
    dense, ticket, reinit = around(97.0, 97.4, 96.9)
    some = study({("rewind-0", 1, "ticket"): ticket, ("rewind-0", 1, "reinit"): reinit,
                  ("rewind-0", 2, "ticket"): dense, ("rewind-0", 3, "reinit"): reinit})  # fmt: skip
    (one,) = judged(some, best._replace(other="reinit"))
    assert (one.quantity, one.mark) == ("ticket − reinit at 80.0 %", "agrees")
    assert some.shared("reinit") == [1]
    (one,) = judged(some, best._replace(other="dense"))
    assert (one.mark, one.why) == ("not comparable", "not measured")


def test_a_level_without_a_weight_is_near_no_density() -> None:
    dense, ticket, empty = around(97.0, 97.4, 10.0)
    cells = {
        ("dense", 0, "dense"): dense,
        ("rewind-0", 1, "ticket"): ticket,
        ("rewind-0", 2, "ticket"): empty,
    }
    emptied = [
        one._replace(density=0.0, weights_left=0) if one.level == 2 else one for one in study(cells).rows
    ]
    measured = Measured(Path("here"), study(cells).about, emptied)
    assert mark(measured, line(density="0.8", value="97.4")) == "agrees"
    (one,) = judged(measured, line(density="0.01"))
    assert one.why == "not measured: the nearest level has 80.0 %"
    alone = Measured(Path("here"), measured.about, [one for one in emptied if one.level != 1])
    (one,) = judged(alone, line(density="0.8"))
    assert one.why == "not measured: no ticket has a weight left"


def test_two_seeds_decide_nothing() -> None:
    alike = study({("rewind-0", 1, "ticket"): [97.3, 97.3]})
    for measured in (alike, Measured(Path("here"), about(), [one for one in alike.rows if one.seed == 0])):
        for value in ("97.3", "90"):
            assert mark(measured, line(density="0.8", value=value)) == "undecided"
        assert mark(measured, line(density="0.8", value="90", relation=">")) == "undecided"


def test_settings_are_compared_field_by_field() -> None:
    measured = usual()
    wanted = {"model": '"lenet5"', "train.steps": "12", "train.eval_every": "5", "optim.lr": "1.2e-3",
              "rewind": "0", "seeds": "5", "repeats.reinit": "1", "optim.milestones": "[]"}  # fmt: skip
    for name, value in wanted.items():
        (one,) = settings.compared(measured, Ledger("", [setting(name, value)], []))
        assert one.same, one
        assert not settings.same(measured, name, 77)
    with pytest.raises(UserError, match=r"of: 'optim\.rate' is not known"):
        settings.of(measured, "optim.rate")


def test_rates_in_other_words_are_the_same() -> None:
    measured = usual()
    assert measured.about["identity"]["prune.rate"] == [["output", 0.1], [".", 0.2]]
    for rate, same in (
        ([["output", 0.1], ["conv|fc", 0.2]], True),
        ([["output", 0.1], ["fc", 0.2]], False),
        ([["conv", 0.2], ["fc", 0.2], ["output", 0.1]], True),
        (0.2, False),
    ):
        assert settings.same(measured, "prune.rate", rate) == same


@pytest.mark.parametrize("name", LEDGERS)
def test_every_ledger_can_be_read(name: str) -> None:
    found = ledger.read(name)
    assert found.values
    assert {one.of for one in found.settings if one.needs == "all"} == {"model", "data.name"}


@pytest.mark.parametrize(
    ("name", "differs"),
    [("fc2019_lenet300", set()), ("fc2019_conv2", set()), ("fc2019_conv4", set()), ("fc2019_conv6", set()),
     ("lmc2020_resnet20", set()), ("stabilizing2019_lenet300", {"seeds"}),
     # The config follows the later paper, which trains twice as long.
     ("stabilizing2019_resnet20", {"train.steps", "optim.milestones"})],
)  # fmt: skip
def test_configs_that_follow_a_paper_have_its_settings(name: str, differs: set[str]) -> None:
    """Two places say what a paper did: its ledger, and the config that reproduces it."""
    network = name.partition("_")[2]
    data = "mnist" if network == "lenet300" else "cifar"
    asked = config.load(ROOT / "configs" / f"{network}_{data}_paper.py")
    lengths = durations.lengths(asked, 45_000 if data == "cifar" else 55_000)
    rows = [
        row(seed, f"rewind-{step}", 1, arm, 90.0, repeat=repeat)
        for step in lengths.rewind
        for seed in asked.seeds
        for arm in asked.arms
        for repeat in range(1, config.repeats(asked, arm) + 1)
    ]
    shape = [32, 32, 3] if data == "cifar" else [28, 28, 1]
    made = {"identity": json.loads(json.dumps(config.flat(asked))), "lengths": lengths._asdict(),
            "data": {"shape": shape, "classes": 10}}  # fmt: skip
    compared = settings.compared(Measured(Path("here"), made, rows), ledger.read(name))
    found = {one.name: (one.published, one.ours) for one in compared if not one.same}
    assert {*found} == differs


@pytest.mark.parametrize("name", LEDGERS)
def test_every_line_says_where_it_is_printed_or_that_nobody_looked(name: str) -> None:
    found = ledger.read(name)
    for one in (*found.settings, *found.values):
        assert re.search(
            r"(section|appendix|figure|table|algorithm) \w|not checked$|not checked;", one.source
        )


def test_what_was_not_checked_is_printed(tmp_path: Path) -> None:
    source = "my paper, figure 9, not checked"
    own = (setting("model", "lenet5")._replace(source=source), line(source=source, density="0.8"))
    read, measured = ledger.read(str(write(tmp_path / "mine.csv", *own))), usual()
    tables = (conform.setting_table(measured, read), conform.value_table(conform.judge(measured, read)))
    assert [table.rows[0][-1] for table in tables] == [source] * 2
    assert "Not checked" in conform.REMARK


def test_ledgers_agree_with_each_other() -> None:
    (gap,) = [one for one in ledger.read("lmc2020_resnet20").values if one.quantity == "gap"]
    of = {(one.of, one.note): float(one.value) for one in ledger.read("stabilizing2019_resnet20").values}
    apart = of["ticket", "standard learning rate"] - of["random", "standard learning rate"]
    assert float(gap.value) == apart
    (earlier,) = [one for one in ledger.read("fc2019_lenet300").values if "38 % earlier" in one.source]
    assert round(1 / (1 - 0.38), 2) == float(earlier.value)


def test_what_the_configs_say_of_papers_is_in_the_ledgers() -> None:
    gains = {}
    for network in ("conv2", "conv4", "conv6"):
        (best,) = [one for one in ledger.read(f"fc2019_{network}").values if "best gain" in one.note]
        gains[network] = f"{best.value} points above the dense network, at {100 * float(best.density):.1f} %"
    for network, said in gains.items():
        assert said in (ROOT / "configs" / f"{network}_cifar_paper.py").read_text()


def write(path: Path, *lines: Line) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Line._fields)
        writer.writerows(lines)
    return path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantity": "speed"}, r"line 2: quantity: 'speed' is not allowed; it must be setting, weights"),
        ({"source": ""}, "source: '' is not allowed"),
        ({"at": "sometime"}, "at: 'sometime' is not allowed; it must be 'early stop' or 'end'"),
        ({"quantity": "gap"}, "other: '' is not allowed"),
        ({"density": "21.1"}, r"density: '21.1' is not allowed; it must be a number in \(0, 1\]"),
        ({"density": "best"}, "only gaps of the ticket have a best level"),
        ({"relation": "~"}, "relation: '~' is not allowed; it must be =, >, >=, <, <="),
        ({"value": "98 %"}, "value: '98 %' is not allowed; it must be a number"),
        ({"value": "nan"}, "value: 'nan' is not allowed; it must be a number"),
        ({"quantity": "weights", "value": "6147.5"}, "value: '6147.5' is not allowed; it must be a whole"),
        ({"quantity": "parameters", "value": "inf"}, "value: 'inf' is not allowed; it must be a number"),
        ({"quantity": "weights", "value": "-1"}, "it must be a whole number above 0"),
        ({"spread": -0.5}, "spread: -0.5 is not allowed; it must be a number of 0 or more, or empty"),
        ({"margin": None}, "margin: None is not allowed"),
        ({"margin": 0}, "margin: .* is not allowed; it must be a number above 0"),
        ({"quantity": "speedup", "other": "reinit", "margin": 1}, "it must be a number above 1"),
        ({"quantity": "speedup", "other": "reinit", "value": "-1"}, "it must be a ratio above 0"),
        ({"quantity": "rewound"}, "rewind: None is not allowed; it must be a step after the earliest"),
        ({"quantity": "rewound", "rewind": 0}, "rewind: 0 is not allowed; it must be a step after"),
        (
            {"quantity": "rewound", "rewind": 40, "of": "random"},
            "of: 'random' is not allowed; it must be 'ticket'",
        ),
        ({"needs": "train.steps"}, "needs: 'train.steps' has no value"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "mine.csv", line(**{"quantity": "accuracy", **fields}))
    with pytest.raises(UserError, match=f"mine.csv, line 2: .*{said}" if "line" not in said else said):
        ledger.read(str(path))


def run_folder(path: Path, rows: list[Row]) -> Path:
    path.mkdir()
    (path / "study.json").write_text(json.dumps(about()))
    for one in rows:
        cell = Cell(*(getattr(one, name) for name in Cell._fields))
        place = path / f"seed={one.seed}" / (
            "dense" if one.arm == "dense" else f"chain={one.chain}/level={one.level:02d}/{one.arm}"
        )  # fmt: skip
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps({**result(cell), **one._asdict()}))
    return path


def test_a_run_folder_and_a_ledger_of_ones_own(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = run_folder(tmp_path / "run", usual().rows)
    assert [one._replace(seconds=0) for one in opened(path).rows] == sorted(
        (one._replace(seconds=0) for one in usual().rows),
        key=lambda one: (one.seed, one.level, one.arm),
    )
    mine = write(tmp_path / "mine.csv", setting("model", "lenet5", "all"), line(density="0.8", value="97.4"))
    done = command("-m", "analysis.conform", path, "--against", mine, "fc2019_lenet300")
    assert (done.returncode, done.stderr) == (0, ""), done
    (found,) = [text for text in done.stdout.splitlines() if "ticket at 80.0 %" in text]
    assert "agrees" in found
    titles = [text.split(",")[0].rstrip() for text in done.stdout.splitlines() if text.startswith("Values")]
    assert titles == ["Values: mine", "Values: fc2019_lenet300 (other settings: model"]
    # Of the other ledger nothing can be compared.
    (dense,) = [text for text in done.stdout.splitlines() if re.search("│ dense +│", text)]
    assert "98.1" in dense
    assert "not comparable: model is lenet5" in dense


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "against"),
        (("--against", "fc2019_lenet30"), "did you mean 'fc2019_lenet300'?"),
        (
            ("--against", "none.csv"),
            "--against: there is no file 'none.csv'; name a CSV, or one of fc2019",
        ),
        (("--against", "README.md.csv"), "there is no file"),
        (("--against", "README.md"), "a file must have a name that ends in .csv."),
    ],
)
def test_errors_are_one_sentence(
    arguments: tuple[str, ...], said: str, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command("-m", "analysis.conform", ROOT / "results" / "lenet300_mnist", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        opened(tmp_path)
    with pytest.raises(UserError, match="it holds several runs side by side"):
        opened(ROOT / "results" / "rates_lenet5")
    (tmp_path / "cells.csv").write_text("nothing")
    with pytest.raises(UserError, match="it is no published study"):
        opened(tmp_path)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"it is no ledger .*its columns are quantity, of"):
        ledger.read(str(tmp_path / "bad.csv"))


def test_published_folders_are_as_the_page_shows_them() -> None:
    measured = opened(ROOT / "results" / "lenet300_mnist")
    table = conform.rows(measured, "stabilizing2019_lenet300")
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert all(" | ".join(map(str, of)) in text for of in table.rows)
