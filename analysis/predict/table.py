"""The tables of `analysis.predict`: their rows, and how they are read."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis import tables, words
from analysis.run import TICKET, Run, densities, select
from lthjax.measures.scores import PIXEL_VARIANCE

SCORES, TRIALS, ABOUT = "scores.csv", "functional.csv", "about.json"
SHUFFLED, RANDOM = "shuffled", "random"
PREDICTED, TWIN = "predicted", "predicted_shuffled"


class Scored(NamedTuple):
    """How well a score at a step finds one ticket's mask, as in scores.csv.

    Attributes:
        seed, chain, level: which ticket.
        step: of the dense training, at which the score is taken.
        score: a key of `scores.SCORES`, "pixel_variance", or "logistic": the predictor fitted to all
            the other seeds.
        mask: "ticket"; "shuffled" is the null, the ticket's mask shuffled within layers (for the logistic
            predictor the masks that it was fitted to are shuffled as well).
        layer: path of the leaf; "mean" over the layers where there is something to tell; "pooled".
        density, ...: as in `predict.Measured`; of "pooled" only `auroc`, the others None.
    """

    seed: int
    chain: str
    level: int
    step: int
    score: str
    mask: str
    layer: str
    density: float | None
    auroc: float | None
    average_precision: float | None
    precision: float | None
    lift: float | None
    iou: float | None
    iou_chance: float | None


class Trial(NamedTuple):
    """A mask trained from the weights that the ticket starts from, as in functional.csv.

    Attributes:
        seed, chain, level, repeat: of the cell.
        mask: "ticket"; "predicted" by the other seeds' predictor, with the ticket's layer-wise
            densities; "predicted_shuffled", the same shuffled within layers; "random", the run's own.
        step: at which the scores were taken for the prediction: that to which the ticket is rewound.
        density: weights left / prunable weights.
        iou: with the ticket's mask.
        iou_chance: of a random mask of the same layer-wise densities.
        test_accuracy: a fraction, at the end; None where it diverged.
        early_stop_step: the step of the lowest validation loss; None where it diverged.
        status: "done" or "diverged".
    """

    seed: int
    chain: str
    level: int
    repeat: int
    mask: str
    step: int
    density: float
    iou: float
    iou_chance: float
    test_accuracy: float | None
    early_stop_step: int | None
    status: str


class Loaded(NamedTuple):
    """The contents of RUN/predict.

    Attributes:
        rows: how well scores find masks.
        trials: the trained masks.
        notes: sentences that a reader of the rows must know.
        density: level -> weights left / prunable weights, mean of the run's tickets.
    """

    rows: list[Scored]
    trials: list[Trial]
    notes: list[str]
    density: dict[int, float]


def load(run: Run) -> Loaded:
    """The contents of RUN/predict.

    Raises:
        UserError: a file cannot be read.
    """
    where = run.path / "predict"
    try:
        about = json.loads(tables.read_text(where / ABOUT))
        notes: list[str] = [*about["notes"]]
        rows = tables.read_rows(where / SCORES, Scored)
        trials = tables.read_rows(where / TRIALS, Trial)
        for name, count, written in ((SCORES, len(rows), "scores"), (TRIALS, len(trials), "functional")):
            if count != about.get(written, count):
                raise ValueError(f"{name} has not as many rows as were written")
        density = densities(select(run.rows, chain=rows[0].chain, arm=TICKET))
        unknown = {*(row.level for row in rows), *(trial.level for trial in trials)} - {*density}
        if unknown:
            raise ValueError(f"the run has no ticket of level {min(unknown)}")
        return Loaded(rows, trials, notes, density)
    except tables.DAMAGED as error:
        raise tables.unreadable(where, error, words.command("predict", run.path)) from error


def notes(
    seeds: Mapping[int, Sequence[int]], paths: set[str], rows: Sequence[Scored], trials: Sequence[Trial]
) -> list[str]:
    """Sentences that a reader of the rows must know.

    Args:
        seeds: level -> seeds whose ticket is looked at.
        paths: of the prunable leaves.
        rows, trials: what was found.
    """
    made = []
    for level, of_level in seeds.items():
        alone = len(of_level) < 2
        if alone:
            made.append(
                f"Level {level} has the ticket of one seed only: there is no held-out test of the logistic "
                "predictor, and no predicted mask."
            )
        for seed in of_level:
            seen = {row.layer for row in rows if (row.seed, row.level) == (seed, level)}
            made += [
                f"Level {level}, seed {seed}: all weights of {layer} are kept, or none, and it is left out."
                for layer in sorted(paths - seen)
            ]
        trained = {trial.mask for trial in trials if trial.level == level}
        if not alone and RANDOM not in trained:
            made.append(
                f"The run has no arm `random` at level {level}; the predicted mask's shuffled twin is a "
                "random mask of the same layer-wise densities."
            )
    if not any(row.score == PIXEL_VARIANCE for row in rows):
        made.append(
            "Pixel variance is left out: the first layer is a convolution, whose weights read every pixel."
        )
    bad = sum(trial.status == "diverged" for trial in trials)
    if bad:
        made.append(f"{bad} of the {len(trials)} trained masks diverged and are left out of means.")
    return made
