"""The words and tables of the report: notes, levels, facts about the run."""

from collections import Counter
from collections.abc import Sequence

from lthjax import imp
from lthjax.arms import ARMS
from lthjax.errors import counted
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Interval

from .. import words
from ..differences import FLOORED, difference, mean_accuracy
from ..page import Table
from ..record import COUNT, TIMING, Finding
from ..retraining.table import named
from ..rows import Row, accuracies, arms, by_level, chains, grouped, images_of, select
from ..run import Run


def remark(run: Run) -> str:
    """How to read the tables of accuracies."""
    images = run.about["data"]["test"]
    # The means that the tables show.
    means = [
        mean_accuracy(known).mean
        for own in grouped(run.rows, "chain", "level", "arm").values()
        if (known := accuracies(own))
    ]
    ends = dict.fromkeys([max(means), min(means)]) if means else {}
    moved = [
        f"of {mean:.2f} % by {100 * stats.sampling_error(min(1.0, mean / 100), images):.2f} points"
        for mean in ends
    ]
    sampled = ""
    if moved:
        others = f"Another {images:,} test images would move an accuracy {', one '.join(moved)}"
        sampled = f"{others} (standard error). "
    return (
        "Test accuracy at the end of training in percent, mean over seeds with the 95 % interval of "
        "Student's t on the logit scale in brackets, so that it stays below 100 %; differences in "
        f"percentage points (pp), paired by seed, repeats averaged within a seed, {FLOORED}. "
        f"One seed has no interval. {sampled}A run has collapsed if it has less than twice the accuracy of "
        "chance; repeats count as runs, and as those of a seed are not independent, there is no interval "
        "where there are any."
    )


def notes(run: Run) -> list[str]:
    """The notes before the figures."""
    rows, notes = run.rows, []
    dense, best = select(rows, chain=DENSE), _sparsest_match(rows, images_of(run.about))
    if known := accuracies(dense):
        accuracy = words.percent(mean_accuracy(known))
        notes.append(
            f"The dense network has {accuracy} % test accuracy with "
            f"{dense[0].weights_left:,} prunable weights."
        )
    if best is not None:
        chain, row, gain = best
        last = row.level == max(other.level for other in select(rows, chain=chain, arm="ticket"))
        notes.append(
            f"The sparsest tickets whose mean accuracy is that of the dense network or more have "
            f"{row.weights_left:,} weights, {100 * row.density:.1f} % ({chain}, level {row.level}): "
            f"{words.points(gain)} pp{'; sparser ones were not trained' if last else ''}."
        )
    if len(platforms(run)) > 1:
        notes.append(
            f"The networks were trained on devices of several kinds, whose digits differ: {devices(run)}."
        )
    if run.last > 1:
        notes.append(
            f"Accuracies and losses at the end are means of the last {run.last} evaluations, "
            f"{run.lengths.evaluate:,} steps apart; train accuracy is that of the end."
        )
    fresh = [arm for arm in arms(rows) if arm in ARMS and ARMS[arm].start == "zero" and not ARMS[arm].final]
    if any(imp.rewind_of(chain) for chain in chains(rows)) and fresh:
        notes.append(
            "Rewound tickets start at their rewind step and train the steps that are left. Without a state "
            f"there, these train all steps from step 0, which favours them: {', '.join(fresh)}."
        )
    diverged = [row for row in rows if row.status == "diverged"]
    if diverged:
        notes.append(
            f"{len(diverged)} of {counted(len(rows), 'cell')} diverged (their loss was not finite) and are "
            "left out of figures and means; none matches the dense network, and a chain ends where its "
            "ticket diverges."
        )
    if missing := unfinished(run):
        notes.append(f"{missing}.")
    return notes


def unfinished(run: Run) -> str:
    """How many cells of a run are not trained yet, in words; "" where all are, or where none is known."""
    missing = len({*run.planned} - {*run.results})
    diverged = any(row.status == "diverged" for row in run.rows)
    behind = "lie behind a diverged training or " if diverged else ""
    every = ", counted for every seed begun," if run.other_seeds else ""
    said = f"{missing} of the {len(run.planned)} cells last asked for{every} {behind}are not trained yet"
    return said if missing else ""


def of_verdicts(found: Sequence[Finding]) -> list[str]:
    """How many verdicts there are, and how many of them chance alone may have made false."""
    over_seeds = [one for one in found if one.test not in (COUNT, TIMING)]
    tested = [one for one in over_seeds if one.outcome not in ("not tested", "too few seeds")]
    reached = [one for one in tested if one.outcome in ("supported", "refuted", "equivalent")]
    if not reached:
        return []
    return [
        f"{counted(len(tested), 'claim')} tested over seeds, {counted(len(reached), 'verdict')}. A test errs "
        "in 5 % of the cases at its threshold, less beyond it, and the claims are not corrected for one "
        f"another: up to {0.05 * len(tested):.1f} false verdicts are to be expected. (A claim about several "
        "levels at once is refuted wrongly more often than that, up to 5 % a level.)"
    ]


def _mean_weights(rows: Sequence[Row]) -> Row:
    """The first of the rows of an arm at a level, with the mean density and weights left of all.

    Seeds differ in these where units of several layers are ranked together.
    """
    left = sum(row.weights_left for row in rows) / len(rows)
    density = sum(row.density for row in rows) / len(rows)
    return rows[0]._replace(weights_left=round(left), density=density)


def _sparsest_match(rows: Sequence[Row], images: int) -> tuple[str, Row, Interval] | None:
    """The sparsest level at which the mean ticket is at least as good as the mean dense network.

    `images` of the test set give the floor of the gain's spread.
    """
    dense = accuracies(select(rows, chain=DENSE))
    matching = []
    for chain in chains(rows):
        for of_level in by_level(select(rows, chain=chain, arm="ticket")).values():
            gain = difference(accuracies(of_level), dense, images)
            # A network without weights is no ticket.
            if gain.n and gain.mean >= 0 and any(row.density for row in of_level):
                matching.append((chain, _mean_weights(of_level), gain))
    return min(matching, key=lambda found: found[1].density, default=None)


def levels(rows: Sequence[Row], chain: str, images: int = 0) -> Table:
    """A chain's levels: its leader's weights, accuracy of every arm, and the leader's paired differences.

    Weights are means over seeds.

    `images` of the test set give the floor of the differences' spread, 0 none.
    """
    leader, own = imp.leader(chain), select(rows, chain=chain)
    controls = [arm for arm in arms(own) if arm != leader]
    differences = [f"{leader} − {arm} (pp)" for arm in (DENSE, *controls)]
    header = ["level", "weights left", "%", leader, *controls, *differences]
    dense_rows = select(rows, chain=DENSE)
    dense, lines = accuracies(dense_rows), []
    if dense_rows:
        accuracy, blank = words.percent(mean_accuracy(dense)), [""] * (len(header) - 4)
        lines.append(["0 (dense)", f"{dense_rows[0].weights_left:,}", "100.0", accuracy, *blank])
    for level, of_level in by_level(own).items():
        ours, *theirs = (accuracies(select(of_level, arm=arm)) for arm in (leader, *controls))
        left = _mean_weights(select(of_level, arm=leader) or of_level)
        line = [str(level), f"{left.weights_left:,}", f"{100 * left.density:.1f}"]
        line += [words.percent(mean_accuracy(values)) for values in (ours, *theirs)]
        line += [words.points(difference(ours, other, images)) for other in (dense, *theirs)]
        lines.append(line)
    led = "" if leader == "ticket" else f"{leader}: "
    rewound = f"{led}{words.rewound(chain).capitalize()}"
    trained_on = leader in ARMS and ARMS[leader].final
    return Table(named(chain, leader) if trained_on else rewound, header, lines)


def platforms(run: Run) -> Counter[str]:
    """Devices -> how many cells were trained on them, where the cells say so."""
    return Counter(result["platform"] for result in run.results.values() if result.get("platform"))


def devices(run: Run) -> str:
    """The devices that the cells were trained on, and how many on which if these are several."""
    found = platforms(run)
    if len(found) > 1:
        return ", ".join(f"{counted(count, 'cell')} on {name}" for name, count in found.most_common())
    return next(iter(found), "") or run.about.get("devices") or "not known"


def of_run(run: Run) -> list[tuple[str, str]]:
    """(name, fact): the commands, data, training, time, devices, versions and commit."""
    study, rows = run.about, run.rows
    data, lengths = study["data"], study["lengths"]
    seconds, steps = sum(row.seconds for row in rows), sum(row.steps for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in study.get("versions", {}).items())
    speed = f"{steps / seconds:,.0f} steps a second, evaluation included" if seconds else "speed not known"
    return [
        ("Commands", "; ".join(study.get("commands", []))),
        ("Data", f"{data['name']} ({data['train']:,} train, {data['validation']:,} validation by seed, "
                 f"{data['test']:,} test images of {'×'.join(map(str, data['shape']))}), read from "
                 f"{data['source']}, content hash {data['digest']}"),
        ("Training", f"{lengths['total']:,} steps of batch {study['config']['train']['batch']} "
                     f"({lengths['total'] / lengths['per_epoch']:.1f} epochs), evaluated every "
                     f"{lengths['evaluate']:,} steps"),
        ("Time", f"{seconds / 60:.1f} minutes of training in all, {seconds / len(rows):.1f} s a cell; "
                 f"{speed}"),
        ("Devices", devices(run)),
        ("Versions", versions or "not known"),
        ("Commit", study.get("git") or "not known"),
        *[("Filled before by", one) for one in study.get("earlier", [])],
    ]  # fmt: skip
