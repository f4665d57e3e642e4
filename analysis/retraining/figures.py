"""The figure of the section on what to do after pruning."""

import matplotlib

from lthjax.measures.stats import PERCENT

from .. import draw, words
from ..page import Drawn
from ..run import Run
from .table import Retrained, named, series

_CAPTION = (
    "Test accuracy at the end of training against all that was trained up to there: the dense network, the "
    "leaders of the levels before, the arm itself. Points along a line are levels, sparser to the right. "
    f"Small points are seeds, lines their mean, {draw.BANDS} the 95 % interval by Student's t. "
    "Look for which line is highest at one cost; at equal rewind steps equal places are equal densities."
)
_HEADER = ("chain", "arm", "level", "density", "steps", "dense_trainings", "seed", "test_accuracy_percent")


@matplotlib.rc_context(draw.STYLE)
def drawn(run: Run, found: Retrained) -> Drawn:
    """Accuracy against training cost, a line an arm and chain."""
    figure, axes = draw.single(f"{words.title(run.about)}: accuracy and training cost")
    if found.dense:
        mean = sum(found.dense.values()) / len(found.dense)
        axes.axhline(mean, color=draw.look("dense")[0], lw=1, label=f"dense (n = {len(found.dense)})")
    several = list(dict.fromkeys(chain for chain, _ in series(found)))
    for chain, arm in series(found):
        levels = [row for _, row in sorted(found.of(chain, arm).items()) if row.accuracy]
        if levels:
            values = [list(row.accuracy.values()) for row in levels]
            x, style = [row.trainings for row in levels], draw.style(arm, chain, several)
            draw.curve(axes, x, values, style, named(chain, arm), within=PERCENT)
    axes.set(xlabel="steps trained in all (trainings of the dense network)", ylabel="test accuracy (%)")
    draw.legend(figure, axes)
    rows = [(*row[:6], seed, value) for row in found.levels for seed, value in row.accuracy.items()]
    return Drawn("retraining", "Accuracy against training cost", figure, _CAPTION, (_HEADER, rows))
