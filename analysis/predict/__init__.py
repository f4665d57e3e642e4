"""How predictable a run's tickets are, at initialisation and early in training.

    python -m analysis.predict runs/quickstart-0123abcd
    python -m analysis.predict runs/quickstart-0123abcd --levels 7 11 --steps 0 10 100 --no-training

Scores every weight at some steps of the dense training, compares the scores with the tickets' masks
(`lthjax.measures.predict`), asks what they add to |θ₀| alone, and trains predicted masks beside shuffled
ones. The first steps of the dense training are replayed for it, with the same bits on one CPU. The run's own
cells are only read. Writes RUN/predict:

    scores.csv                        `Scored`: how well every score finds a ticket's mask
    functional.csv                    `Trial`: the accuracy of predicted masks, trained
    about.json                        chain, levels, seeds, steps, notes
    predict_bars, _curve, _functional figures, as PNG, SVG and the CSV of their data
    seed=3/state=50/                  the dense network at a step that the run did not keep
    seed=3/chain=C/level=07/ARM/      a trained mask; ARM is predicted or predicted_shuffled
"""

from lthjax.measures.predict import ALONE, LOGISTIC, MEAN
from lthjax.measures.stats import SHARE, equivalent, nearest, paired, verdict

from .. import ends, words
from ..claims import SAME, SUPERIOR, At, everywhere, named
from ..differences import floor
from ..page import Link, Section
from ..record import Analysis, Finding, untested
from ..rows import TICKET, accuracies
from ..run import Run
from . import table, work
from .figures import drawn
from .table import PREDICTED, TWIN, Loaded, Scored, Trial

_CLAIM = "The ticket's mask is predictable at initialisation: AUROC within layers above chance"
_ADDED = "Scores at initialisation add to |θ₀| alone: AUROC within layers above that of the nested predictor"
# AUROC within which two predictors count as the same.
_SAME_AUROC = 0.01


def _section(run: Run, found: Loaded) -> Section:
    return Section("predict", "Predictability", found.notes, drawn(found))


def _findings(run: Run, found: Loaded | None) -> list[Finding]:
    """Whether masks are predictable, and what is added to |θ₀|, near 10 % of the weights; predicted masks."""
    command = words.command("predict", run.path)
    if found is None:
        return [untested(claim, "no scores", command) for claim in (_CLAIM, _ADDED)]
    density = found.density
    own = [r for r in found.rows if (r.step, r.mask, r.layer) == (0, TICKET, MEAN)]
    held, nested = ([r for r in own if r.score == score] for score in (LOGISTIC, ALONE))
    if not held:
        none = "one seed: none is held out"
        return [untested(claim, none, command) for claim in (_CLAIM, _ADDED)]
    level = nearest({row.level: density[row.level] for row in held}, 0.1)
    both, alone = (
        {r.seed: r.auroc for r in of if r.level == level and r.auroc is not None} for of in (held, nested)
    )
    values, at = [*both.values()], f"at {words.share(density[level])} of the weights"
    found_above = verdict(values, 0.5, within=SHARE)
    estimate = f"{words.decided(found_above, '.3f')} {at}"
    link = Link("predictability", "#predict")
    made = [Finding(_CLAIM, found_above.outcome, estimate, len(values), link, f"{SUPERIOR} to 0.5")]
    if added := paired(both, alone):
        means = f"{sum(values) / len(values):.3f} against {sum(alone.values()) / len(alone):.3f}"
        more = everywhere([At("", verdict(added), equivalent(added, _SAME_AUROC))])
        estimate = f"{more.said('+.4f', '')} ({means}) {at}"
        made.append(
            Finding(
                _ADDED, more.outcome, estimate, len(added), link, named(more, SUPERIOR, f"±{_SAME_AUROC:g}")
            )
        )
    else:
        made.append(untested(_ADDED, "the nested predictor was not fitted", command))
    for level in sorted({trial.level for trial in found.trials}):
        by_mask = [
            [trial for trial in found.trials if (trial.level, trial.mask) == (level, mask)]
            for mask in (PREDICTED, TWIN)
        ]
        ours, theirs = map(accuracies, by_mask)
        gaps, least = paired(ours, theirs), floor(ours, theirs, run.about["data"]["test"])
        if gaps:
            claim = f"Predicted masks train to more than the same shuffled, at {words.share(density[level])}"
            if step := by_mask[0][0].step:
                claim += f", by scores of step {step:,}"
            tested = everywhere([At("", verdict(gaps, floor=least), equivalent(gaps, SAME, floor=least))])
            said, end = tested.said("+.2f", " pp"), ends.total(run.about, run.rows)
            shuffled = [ends.Ended(end - trial.step, trial.early_stop_step) for trial in by_mask[1]]
            every, gap = ends.spacing(run.about), tested.decides.verdict.bounds.mean
            learning = ends.mark(shuffled, "the shuffled mask", end, every, gap)
            test = named(tested, SUPERIOR)
            made.append(Finding(claim, tested.outcome, said, len(gaps), link, test, learning))
    return made


ANALYSIS = Analysis(
    "predict", "Predictability", work.Options, work.work, {table.SCORES: Scored, table.TRIALS: Trial},
    _section, _findings, table.load, marker=f"predict/{table.ABOUT}",
)  # fmt: skip
