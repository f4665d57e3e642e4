"""What survives: a run's masks layer by layer, at the input, unit by unit, and against its weights.

The report works it out: it has no command, and writes the section's figures alone. All of it is of the first
chain that rewinds, unless a figure says otherwise. Cells that diverged are left out.

    from lthjax.analysis import open_run, record, structure

    run = open_run("runs/quickstart-f91424be")
    structure.ANALYSIS.section(run, record.found(structure.ANALYSIS, run)).figures
"""

from lthjax import models, settings

from ..page import Section
from ..record import Analysis, Options
from ..run import Run
from . import figures
from .table import Survivors


@settings.pinned()
def _section(run: Run, found: Survivors) -> Section:
    """The figures; a note says why there are none, or fewer because the network is no plain sequence."""
    if not found.chain:
        lacking = "no ticket that has weights left is trained yet."
    elif run.study.model not in models.MODELS:
        lacking = f"the network {run.study.model!r} is from outside the package, and is not loaded here."
    else:
        left_out = figures.left_out(found)
        return Section("structure", "What survives", [left_out] if left_out else [], figures.drawn(found))
    return Section("structure", "What survives", [f"Not shown: {lacking}"])


ANALYSIS = Analysis(
    "structure", "What survives", Options, None, {}, _section, lambda run, found: [], load=Survivors
)
"""As `analysis.record.Analysis` says."""
