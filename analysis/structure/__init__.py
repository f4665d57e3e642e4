"""What survives: a run's masks layer by layer, at the input, unit by unit, and against its weights.

The report works it out; there is no command of its own and nothing is written but the section's figures. All
of it is of the first chain that rewinds, unless a figure says otherwise. Cells that diverged are left out.

    from analysis import open_run, record, structure

    run = open_run("runs/quickstart-f91424be")
    structure.ANALYSIS.section(run, record.found(structure.ANALYSIS, run)).figures
"""

from analysis.page import Section
from analysis.record import Analysis, Options
from analysis.run import Run
from analysis.structure import figures, table
from analysis.structure.table import Survivors
from lthjax import models, settings

_NAME, _TITLE = "structure", "What survives"


@settings.pinned()
def _section(run: Run, found: Survivors) -> Section:
    """The figures; a note says why where there are none, or fewer as the network is no plain sequence."""
    lacking = _lacking(run, found)
    if lacking:
        return Section(_NAME, _TITLE, [f"Not shown: {lacking}"])
    left_out = figures.left_out(found)
    return Section(_NAME, _TITLE, [left_out] if left_out else [], figures.drawn(found))


def _lacking(run: Run, found: Survivors) -> str:
    """Why nothing can be shown; "" where something can."""
    if not found.chain:
        return "no ticket that has weights left is trained yet."
    if run.study.model not in models.MODELS:
        return f"the network {run.study.model!r} is from outside the package, and is not loaded here."
    return ""


ANALYSIS = Analysis(
    name=_NAME,
    title=_TITLE,
    options=Options,
    work=None,
    tables={},
    section=_section,
    findings=lambda run, found: [],
    load=table.survivors,
)
"""As `analysis.record.Analysis` says."""
