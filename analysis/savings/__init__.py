"""What the tickets of a run folder save: weights, multiplications, bytes, units, and time as measured.

    python -m analysis.savings runs/quickstart-0123abcd
    python -m analysis.savings runs/quickstart-0123abcd --levels 0 4 8 --quick

Trains nothing. Prints tables and writes RUN/savings.json, `LevelSavings` a level.
"""

from collections.abc import Sequence

from lthjax import imp, models
from lthjax.criteria import CRITERIA
from lthjax.measures.savings import VARIANTS
from lthjax.measures.stats import nearest

from .. import words
from ..page import Link, Section
from ..record import COUNT, TIMING, Analysis, Finding, may_be_wired, untested
from ..run import Run
from .table import FILE, LevelSavings, compared, load, shown, times
from .work import Options, work

_HERE = Link("savings", "#savings")
_FEWER = "5–10× fewer multiplications and bytes"
_REMARK = (
    "Multiplications are those of all layers, also of those that may not be pruned; weights are the prunable "
    "ones. Fewer multiplications are not less time. A network is called faster or slower only where the "
    "interval of the median ratio leaves out 1."
)
_OUTSIDE = (
    "Units are not taken out, and nothing is timed: the network is a Flax module of one's own, or an earlier "
    "version wrote the file."
)
_NORMALISED = (
    "Batch normalisation: a channel goes out of all layers of its permutation group, in a residual network "
    "out of the whole stage; sparse products, which are of dense layers, are not timed."
)


def section(run: Run, found: Sequence[LevelSavings]) -> Section:
    """The report's section; the command prints it, too."""
    tables = shown(found, _reads_trained(run, found[-1].chain))
    if any(row.compacted is None for row in found):
        return Section("savings", "Savings", [_OUTSIDE], tables=tables)
    timed = {timing.variant for row in found for timing in row.timings}
    forms = "; ".join(f"{name}: {VARIANTS[name]}" for name in VARIANTS if name in timed)
    notes = [_NORMALISED] if timed and "JAX BCSR" not in timed else []
    remark = f"{_REMARK} {forms}." if timed else _REMARK
    return Section("savings", "Savings", notes, tables=tables, remark=remark)


def _reads_trained(run: Run, chain: str) -> bool:
    """Whether the criterion of a chain reads trained weights; so does one that no loaded table has."""
    criterion = CRITERIA.get(imp.criterion_of(run.study, chain))
    return criterion is None or criterion.final


def findings(run: Run, found: Sequence[LevelSavings] | None) -> list[Finding]:
    """What the level nearest to 10 % of the weights saves in multiplications, bytes, and time at batch 1."""
    # A network without weights is no ticket, whatever it saves.
    rows = [row for row in found or () if row.level and row.density]
    command = words.command("savings", run.path)
    said = [_counted(rows) if rows else untested(_FEWER, "no counts", command)]
    timed = [row for row in rows if row.timings]
    if not timed:
        claim = "Tickets compute faster than the dense network"
        # An own network need not be loaded here; the file says that it cannot be compacted.
        uncounted = run.study.model not in models.SHIPPED and any(row.compacted is None for row in rows)
        if uncounted or not may_be_wired(run):
            return [*said, untested(claim, "Flax modules of one's own are not timed", "")]
        return [*said, untested(claim, "no times", command)]
    row = _near_a_tenth(timed)
    for timing in row.timings:
        if timing.batch == 1 and timing.faster is not None:
            claim = f"A ticket at {words.share(row.density)} computes one image faster, {timing.variant}"
            estimate = f"{compared(timing)}, {timing.pairs} pairs"
            said.append(Finding(claim, timing.faster, estimate, 1, _HERE, TIMING))
    return said


def _counted(rows: Sequence[LevelSavings]) -> Finding:
    """Counts are exact: the claim holds or does not."""
    row = _near_a_tenth(rows)
    macs = row.counts.macs / max(row.counts.macs_left, 1)
    size = row.storage.dense / row.storage.bitmask
    said = (
        f"at {words.share(row.density)} {macs:.1f}× fewer multiplications if zeros were skipped, {size:.1f}× "
        "fewer bytes as bitmask"
    )
    if row.compacted is not None:
        said += f", {times(row.counts.macs, row.compacted.macs)} fewer multiplications by compaction"
    claim = f"{_FEWER} at {100 * row.density:.0f} %"
    return Finding(claim, "supported" if min(macs, size) >= 5 else "refuted", said, 1, _HERE, COUNT)


def _near_a_tenth(rows: Sequence[LevelSavings]) -> LevelSavings:
    by_level = {row.level: row for row in rows}
    return by_level[nearest({row.level: row.density for row in rows}, 0.1)]


ANALYSIS = Analysis(
    "savings", "Savings", Options, work, {}, section, findings, load=load, marker=FILE, prints=True
)
