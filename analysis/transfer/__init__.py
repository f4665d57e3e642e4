"""What a run's tickets are worth on another seed, data set, optimiser or architecture.

    python -m analysis.transfer --from runs/quickstart-0123abcd --to configs/lenet5_mnist.py
    python -m analysis.transfer --from runs/A runs/B --to runs/A runs/B --levels 7 10
    python -m analysis.transfer --from runs/A --to runs/A --permuted --arms shuffled
    python -m analysis.transfer --to runs/A runs/B                  # trains nothing, draws what there is

A target is a config, whose missing cells are trained first, or a run folder, which is taken as it is. Moved
tickets are compared with its dense networks and its own tickets. The source's seed gives the mask
(`lthjax.measures.transfer` fits it to another network); the target's seed gives the split, the order of the
data and the initial weights. Like networks have the same initial weights for the same seed: there, mask and
initialisation move together. Between unlike ones the arm `transferred_init` moves the initial values, too.
With --permuted a mask goes to another seed with its units in the order of that seed's dense network, too
(sparse re-basin, Adnan et al. 2025, arXiv 2505.05143).

    TARGET/transfer/
      from=SOURCE/source_seed=3/seed=4/chain=C/level=07/ARM/    a trained cell; its level is the source's
      transfer.csv, transfer_arms.*, transfer_permuted.*        `TransferRow`, and figures: all moved here
    OUT/transfer/transfer.csv, transfer_matrix.*                the targets of the last call together
"""

from collections.abc import Mapping, Sequence

from lthjax import imp
from lthjax.measures import stats
from lthjax.measures.transfer_arms import CARRIED, MOVED, PERMUTED

from .. import ends, record, words
from ..claims import NON_INFERIOR, SAME, SUPERIOR, At, beside, everywhere, named
from ..page import Link, Section
from ..record import Analysis, Finding, settled, untested
from ..rows import TICKET, grouped, images_of
from ..run import Run
from . import figures
from .table import CONTROLS, PAIRS, Difference, TransferRow, chain_words, differences, load, names
from .work import Options, build

__all__ = [
    "ANALYSIS", "Difference", "Options", "TransferRow", "build", "chain_words", "differences", "load"
]  # fmt: skip
# Percentage points within which a moved ticket counts as good as the target's own.
MARGIN = 0.5
# Arm that is subtracted -> claim, and the largest accepted loss (None: the difference must be above 0).
_CLAIMS: dict[str, tuple[str, float | None]] = {
    TICKET: (f"Tickets moved here are within {MARGIN:g} points of the run's own", MARGIN),
    "shuffled": ("Tickets moved here beat the same masks shuffled within layers", None),
}
_PLACE = ("source", "pair", "chain")
_WHERE, _FORM, _UNIT = Link("transfer", "#transfer"), "+.2f", " pp"
_MATCHED = "Tickets moved here are better where their units are matched first"
_ALONG = {CARRIED: ", its initial values carried along", PERMUTED: ", units matched"}
_OWN_WEIGHTS = (
    "the shuffled masks start from the target's own weights: the difference is of mask and values together"
)


def section(run: Run, rows: Sequence[TransferRow]) -> Section:
    """The report's section."""
    said, images = names([run]), {run.name: images_of(run.about)}
    drawn = [figures.matrix(rows, said, images), figures.arms(rows, said)] if rows else []
    drawn += figures.permuted(rows, said, images)
    return Section("transfer", "Transfer", figures=drawn)


def findings(run: Run, rows: Sequence[TransferRow] | None) -> list[Finding]:
    """Whether tickets moved to a run are as good as its own, and better than the same masks shuffled.

    A claim is one about every level that was moved; its estimate is that of the worst. That about own tickets
    leaves out levels at whose density the run has none, and says which controls pass the same test; the other
    says whether the shuffled masks are still learning.
    """
    # A run's own ticket on its own seed is the ticket again.
    images = {run.name: images_of(run.about)}
    every = differences(rows or (), images=images)
    moved = [one for one in every if (one.source, one.pair) != (run.name, "same")]
    if not moved:
        command = words.command("transfer", "--from", "RUN", "--to", run.path)
        none = "no ticket was moved here"
        return [untested(claim, none, command) for claim, _ in _CLAIMS.values()]
    said, chains, found = names([run]), chain_words(rows or ()), []
    to_own = differences(rows or (), (TICKET,), images, CONTROLS)
    controls = {place: grouped(of, "arm") for place, of in grouped(to_own, *_PLACE).items()}
    cells = grouped(rows or (), *_PLACE, "arm")
    for (source, pair, chain, arm), own in grouped(moved, *_PLACE, "arm").items():
        levels, where = grouped(own, "other"), f"from {said[source]}, {PAIRS[pair]}{chains[chain]}"
        for other, (claim, margin) in _CLAIMS.items():
            if other in levels:
                what = f"{claim}: {where}{_ALONG.get(arm, '')}"
                if margin is not None:
                    beside_own = controls.get((source, pair, chain), {})
                    found.append(_near_own(what, levels[other], margin, beside_own))
                else:
                    mixed = _OWN_WEIGHTS if (arm, other) == (CARRIED, "shuffled") else ""
                    learning = _learning(run, levels[other], cells[source, pair, chain, other])
                    told = "; ".join(filter(None, (mixed, learning)))
                    found.append(_finding(what, levels[other], None)._replace(beside=told))
        # It is trained where it is asked for only.
        if arm == PERMUTED and MOVED in levels:
            learning = _learning(run, levels[MOVED], cells[source, pair, chain, MOVED])
            found.append(_finding(f"{_MATCHED}: {where}", levels[MOVED], None)._replace(beside=learning))
    return found


def _near_own(
    claim: str, levels: Sequence[Difference], margin: float, controls: Mapping[str, Sequence[Difference]]
) -> Finding:
    """The claim that moved tickets are as good as own ones; the same of controls, and what is left out.

    Left out are levels at whose density there is no own ticket.
    """
    near = [one for one in levels if not one.far]
    apart = "; ".join(
        f"{words.share(one.density)} of weights, the nearest own ticket has {words.share(one.other_density)}"
        for one in levels
        if one.far
    )
    none = f"no own ticket of that density (moved: {apart})"
    if not near:
        return untested(claim, none, _WHERE)
    found, tested = _finding(claim, near, margin), [one.level for one in near]
    judged = {
        arm: everywhere([_tried(one, margin) for one in there])
        for arm in CONTROLS
        if (there := [one for one in controls.get(arm, ()) if one.level in tested and not one.far])
    }
    said = beside(settled(found).outcome, judged, _FORM, _UNIT, levels=len(near))
    return found._replace(beside="; ".join(filter(None, (f"left out: {none}" if apart else "", said))))


def _learning(run: Run, gaps: Sequence[Difference], rows: Sequence[TransferRow]) -> str:
    """What is said of a gap to an arm, of these rows, that is behind and still learning."""
    end, levels = ends.total(run.about, run.rows), {gap.level for gap in gaps}
    # Tables of earlier versions do not name the chain.
    trained = [
        ends.Ended(end - (imp.rewind_of(row.chain) if row.chain else 0), row.early_stop_step)
        for row in rows
        if row.level in levels
    ]
    behind = max((gap.interval.mean for gap in gaps), default=0.0)
    return ends.mark(trained, rows[0].arm, end, ends.spacing(run.about), behind)


def _finding(claim: str, levels: Sequence[Difference], margin: float | None) -> Finding:
    """A claim about the levels: that the loss is below a margin, or that the difference is above 0."""
    tested = everywhere([_tried(one, margin) for one in levels])
    n = min(len(one.values) for one in levels)
    test = named(tested, SUPERIOR if margin is None else f"{NON_INFERIOR}, margin {margin:g} pp")
    return Finding(claim, tested.outcome, tested.said(_FORM, _UNIT), n, _WHERE, test)


def _tried(one: Difference, margin: float | None) -> At:
    place = f"at {words.share(one.density)} of weights"
    if margin is not None:
        return At(place, stats.noninferior(one.values, margin, floor=one.floor))
    better = stats.verdict(one.values, floor=one.floor)
    return At(place, better, stats.equivalent(one.values, SAME, floor=one.floor))


# It reads several runs, so its command is one of its own: see `__main__`.
ANALYSIS = Analysis(
    "transfer", "Transfer", record.Options, None, {"transfer.csv": TransferRow}, section, findings, load=load,
    marker="transfer/transfer.csv",
)  # fmt: skip
