"""How predictable a run's tickets are, at initialisation and early in training.

python -m analysis.predict runs/quickstart-0123abcd
python -m analysis.predict runs/quickstart-0123abcd --levels 7 11 --steps 0 10 100 --no-training

Scores every weight at some steps of the dense training, compares the scores with the tickets' masks
(`lthjax.measures.predict`), and trains predicted masks beside shuffled ones. The first steps of the dense
training are replayed for it, with the same bits on one CPU. The run's own cells are only read. Writes
RUN/predict:

  scores.csv                        `Scored`: how well every score finds a ticket's mask
  functional.csv                    `Trial`: the accuracy of predicted masks, trained
  about.json                        chain, levels, seeds, steps, notes
  predict_bars, _curve, _functional figures, as PNG, SVG and the CSV of their data
  seed=3/state=50/                  the dense network at a step that the run did not keep
  seed=3/chain=C/level=07/ARM/      a trained mask; ARM is predicted or predicted_shuffled
"""

from analysis import words
from analysis.claims import SAME, SUPERIOR, At, everywhere, named
from analysis.page import Link, Section
from analysis.predict import table, work
from analysis.predict.figures import drawn
from analysis.predict.table import PREDICTED, TWIN, Loaded, Scored, Trial
from analysis.record import Analysis, Finding
from analysis.run import TICKET, Run, accuracies, floor, nearest
from lthjax.measures.predict import LOGISTIC, MEAN
from lthjax.measures.stats import SHARE, equivalent, paired, verdict


def _section(run: Run, found: Loaded) -> Section:
    return Section("predict", "Predictability", found.notes, drawn(found))


def _findings(run: Run, found: Loaded | None) -> list[Finding]:
    """Whether masks are predictable, near 10 % of the weights; and the worth of predicted masks, by level."""
    claim = "The ticket's mask is predictable at initialisation: AUROC within layers above chance"
    command = words.command("predict", run.path)
    if found is None:
        return [Finding(claim, "not tested", "no scores", 0, command)]
    density = found.density
    held = [r for r in found.rows if (r.step, r.score, r.mask, r.layer) == (0, LOGISTIC, TICKET, MEAN)]
    if not held:
        return [Finding(claim, "not tested", "one seed: none is held out", 0, command)]
    level = nearest({row.level: density[row.level] for row in held}, 0.1)
    values = [float(row.auroc or 0) for row in held if row.level == level]
    found_above = verdict(values, 0.5, within=SHARE)
    estimate = f"{words.decided(found_above, '.3f')} at {words.share(density[level])} of the weights"
    link = Link("predictability", "#predict")
    made = [Finding(claim, found_above.outcome, estimate, len(values), link, f"{SUPERIOR} to 0.5")]
    for level in sorted({trial.level for trial in found.trials}):
        by_mask = [
            [trial for trial in found.trials if (trial.level, trial.mask) == (level, mask)]
            for mask in (PREDICTED, TWIN)
        ]
        ours, theirs = map(accuracies, by_mask)
        gaps, least = paired(ours, theirs), floor(ours, theirs, run.about["data"]["test"])
        if gaps:
            claim = f"Predicted masks train to more than the same shuffled, at {words.share(density[level])}"
            tested = everywhere([At("", verdict(gaps, floor=least), equivalent(gaps, SAME, floor=least))])
            said = tested.said("+.2f", " pp")
            made.append(Finding(claim, tested.outcome, said, len(gaps), link, named(tested, SUPERIOR)))
    return made


ANALYSIS = Analysis(
    "predict", "Predictability", work.Options, work.work, {table.SCORES: Scored, table.TRIALS: Trial},
    _section, _findings, table.load, marker=f"predict/{table.ABOUT}",
)  # fmt: skip
