"""The tables of `analysis.predict`: their rows, and how they are read."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lthjax.measures.scores import PIXEL_VARIANCE

from .. import tables, words
from ..rows import TICKET, densities, select
from ..run import Run

SCORES, TRIALS, ABOUT = "scores.csv", "functional.csv", "about.json"
SHUFFLED, RANDOM = "shuffled", "random"
PREDICTED, TWIN = "predicted", "predicted_shuffled"


class Scored(NamedTuple):
    """How well a score at a step finds one ticket's mask, as in scores.csv.

    Attributes:
        seed, chain, level: which ticket.
        step: of the dense training, at which the score is taken.
        score: a key of `scores.SCORES`, "pixel_variance", or "logistic": the predictor fitted to all
            the other seeds; or "logistic_init_magnitude": the same, which sees |θ₀| alone.
        mask: "ticket", or "shuffled": the null, in which all masks are shuffled within layers, by what was
            pruned: single weights, whole units or those of each N:M group.
        layer, density, ...: as `predict.against` gives them.
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
        step: the ticket's rewind step, at which the prediction's scores were taken.
        iou, iou_chance: overlap with the ticket's mask, and that of a random mask of the same densities.
        density, test_accuracy, early_stop_step, status: as in `analysis.rows.Row`.
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
    """The contents of RUN/predict, and level -> density (the mean of the run's tickets)."""

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
    with tables.reading(where, words.command("predict", run.path)):
        about = json.loads(tables.read_text(where / ABOUT))
        rows = tables.read_rows(where / SCORES, Scored, about.get("scores"))
        trials = tables.read_rows(where / TRIALS, Trial, about.get("functional"))
        density = densities(select(run.rows, chain=rows[0].chain, arm=TICKET))
        unknown = {*(row.level for row in rows), *(trial.level for trial in trials)} - {*density}
        if unknown:
            raise ValueError(f"the run has no ticket of level {min(unknown)}")
        return Loaded(rows, trials, [*about["notes"]], density)


def notes(
    seeds: Mapping[int, Sequence[int]],
    paths: set[str],
    rows: Sequence[Scored],
    trials: Sequence[Trial],
    granularity: str = "weight",
    normalised: bool = False,
) -> list[str]:
    """Sentences for a reader of the rows, from level -> seeds and the paths of all prunable leaves."""
    made = []
    if normalised:
        made.append(
            "The network has running statistics. SynFlow has those of the step, as its criterion; SNIP and "
            "GraSP have each batch's own; for Fisher they are computed anew from the images."
        )
    if granularity != "weight":
        what = words.parts(granularity)
        made.append(
            f"prune.granularity is {granularity}: the null shuffles {what}; predicted masks and their "
            "shuffled twins are of single weights."
        )
    for level, of_level in seeds.items():
        if len(of_level) < 2:
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
        masks = {one.mask for one in trials if one.level == level}
        if TWIN in masks and RANDOM not in masks:
            made.append(
                f"The run has no arm `random` at level {level}; the predicted mask's shuffled twin is a "
                "random mask of the same layer-wise densities."
            )
    if not any(row.score == PIXEL_VARIANCE for row in rows):
        made.append("Pixel variance is left out: the first layer is not known to read the pixels one by one.")
    bad = sum(trial.status == "diverged" for trial in trials)
    if bad:
        made.append(f"{bad} of the {len(trials)} trained masks diverged and are left out of means.")
    return made
