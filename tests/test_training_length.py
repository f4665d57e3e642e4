"""Whether training was long enough, and accuracy as the mean of the last evaluations."""

from pathlib import Path
from typing import Any

import pytest
from conftest import about, result
from test_verdicts import STUDY, row, run

from analysis.report import facts, training, verdicts
from analysis.run import Row, Run
from lthjax.config import Optim
from lthjax.errors import UserError
from lthjax.imp import Cell


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
    found = training.ends(ended(steps, trained), 500)
    assert (found.word, found[:2], found.networks) == (word, counts, len(steps))


def test_untrained_and_diverged_networks_do_not_count() -> None:
    rows = ended([500, 500, 500])
    untrained, diverged = rows[0]._replace(steps=0), rows[1]._replace(early_stop_step=None)
    assert training.ends([untrained, diverged, rows[2]], 500) == (1, 0, 1)


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
    assert found["… by 10 points or more at some density"].beside == ""
    calm = verdicts.findings(STUDY, rows)
    assert not any("still learning" in of.beside for of in calm)


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


def test_only_where_the_learning_rate_is_constant() -> None:
    with pytest.raises(UserError, match="--last: 2 is not allowed, as the learning rate falls to the end"):
        _ = made(2, optim=Optim(schedule="cosine")).rows
    steps = made(3, optim=Optim(schedule="steps", milestones=(9,)))
    # The evaluation at step 8 shows the rate before the drop.
    steps.about["lengths"]["milestones"] = [8]
    with pytest.raises(UserError, match="--last: 3 is not allowed; seed 0, dense has 2 evaluations"):
        _ = steps.rows
    with pytest.raises(UserError, match="--last: 0 is not allowed"):
        Run("anywhere", 0)
