"""Several run folders side by side: networks, data sets, rewind points, or pruning schedules."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from lthjax import home
from lthjax.errors import UserError, counted
from lthjax.fields import About
from lthjax.measures.stats import Interval

from .. import page, tables, words
from ..differences import FLOORED, difference, mean_accuracy
from ..page import Drawn, Section, Table
from ..rows import COLUMNS, TICKET, diverged
from ..run import Run, open_run
from . import budget, equal, figures
from .entries import ONE_SHOT, Entry, Point, at_most, entries, highest

# The percentage points of mean accuracy that the cheapest schedule may lose to the best one.
MARGIN = 0.2
_DENSITIES = (0.5, 0.2, 0.1, 0.05)


def opened_apart(runs: Sequence[str | Path | Run]) -> list[Run]:
    """The runs, opened, if each can be a run of its own on a comparison.

    Raises:
        UserError: one is no run folder, is named twice, or is of the same study as another.
    """
    paths = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    places = [Path(os.path.abspath(path)) for path in paths]
    twice = [str(path) for i, path in enumerate(paths) if places[i] in places[:i]]
    if twice:
        raise UserError(f"run: {twice[0]!r} is named twice; name every run folder once.")
    opened = [open_run(run) for run in runs]
    for place, run in enumerate(opened):
        for earlier in range(place):
            if run.about["identity"] == opened[earlier].about["identity"]:
                a, b = str(paths[earlier]), str(paths[place])
                raise UserError(
                    f"run: {a!r} and {b!r} are parts of one study; join them by "
                    f"{home.command('merge', a, b, '--into', 'FOLDER')}, and name that."
                )
    return opened


def build(runs: Sequence[str | Path | Run], *, only_if_changed: bool = False) -> Path:
    """Writes `comparisons/NAME-HASH/` beside the first run folder; returns the path of its `index.html`.

    The hash is of the names of the runs, and of the evaluations of which their accuracies are the means.

    Args:
        runs: two run folders or more.
        only_if_changed: whether to keep a comparison that is whole and up to date.

    Raises:
        UserError: as `opened_apart`; or one has no cell, or the page cannot be written.
    """
    opened = opened_apart(runs)
    paths = [run.path for run in opened]
    rows, about = [run.finished() for run in opened], [run.about for run in opened]
    names = [*dict.fromkeys(study["config"]["name"] for study in about)]
    digest = _digest(" ".join(sorted(map(_compared, opened))))[:8]
    # As it was typed, but beside the run where that is `.` or ends in `..`.
    first = paths[0]
    beside = (Path(os.path.abspath(first)) if first.name in ("", "..") else first).parent
    folder = beside / "comparisons" / f"{'-'.join(names[:3])}-{digest}"
    table = tables.to_csv(["run", *COLUMNS], [[run.name, *row] for run in opened for row in run.rows])
    shows = _digest(json.dumps([table, about]))
    if only_if_changed and page.is_whole(folder, shows):
        return folder / "index.html"
    found = entries(about, rows)
    heading = "; ".join(dict.fromkeys(map(words.title, about)))
    sections = [_overview(found, heading)._replace(notes=_notes(opened, found))]
    if budget.differ(about):
        apart, lacking = budget.gaps(about, rows), budget.lacking(about, rows)
        sections += [budget.section(apart, heading, lacking)] if apart or lacking else []
    if _one_training(about) and len({entry.how for entry in found}) > 1:
        sections.append(_schedules(found, heading))
    return page.write(
        folder,
        title=f"{heading}: {len(runs)} studies compared",
        subtitle=f"{sum(map(len, rows))} cells of {len(runs)} studies.",
        sections=sections,
        facts=_facts(opened),
        config=json.dumps([study["config"] for study in about], indent=1),
        table=("comparison.csv", table),
        shows=shows,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _compared(run: Run) -> str:
    """A run's name, with the evaluations of which its accuracies are the means, if they are."""
    return run.name if run.last == 1 else f"{run.name} --last {run.last}"


def _notes(runs: Sequence[Run], found: Sequence[Entry]) -> list[str]:
    """The runs, cells and networks that are not shown, and what accuracies are the means of."""
    without = tables.grouped(
        (diverged(run.rows) or "no ticket is trained yet", run.name)
        for run in runs
        if all(row.arm != TICKET for row in run.rows)
    )
    failed = [
        f"{bad} of {counted(len(run.rows), 'cell')} of {run.name}"
        for run in runs
        if (bad := sum(row.status == "diverged" for row in run.rows))
    ]
    points = [(entry.name, point) for entry in found for of_arm in entry.arms.values() for point in of_arm]
    emptied = sorted({name for name, point in points if not point.density})
    notes = [f"Not shown: {', '.join(names)}, as {why}." for why, names in without.items()]
    if failed:
        notes.append(
            "Left out of figures and means, as they diverged (their loss was not finite): "
            f"{'; '.join(failed)}. A density at which a ticket diverged, or one before it in its chain, does "
            "not match the dense network."
        )
    if emptied:
        notes.append(
            "Networks without a single weight left have no place on the log scale of densities: some of "
            f"{'; '.join(emptied)}."
        )
    by_last = tables.grouped((run.last, run.name) for run in runs)
    for last, of in by_last.items():
        if last > 1:
            whose = f" of {', '.join(of)}" if len(by_last) > 1 else ""
            notes.append(
                f"Accuracies and losses at the end{whose} are means of the last {last} evaluations; train "
                "accuracy is that of the end."
            )
    return notes


def _one_training(about: Sequence[About]) -> bool:
    """Whether the runs differ in pruning alone."""
    every = [study["identity"].items() for study in about]
    rest = [{k: v for k, v in of if k != "levels" and not k.startswith("prune.")} for of in every]
    return all(other == rest[0] for other in rest)


def tickets(found: Sequence[Entry]) -> Table:
    """A line for every entry: its dense network, its sparsest ticket that matches, its best gain."""
    lines = []
    for entry in found:
        # Where a seed's ticket diverged the others are no sample of all.
        whole = [point for point in entry.tickets if point.density not in entry.diverged]
        gains = [(point, difference(point.accuracies, entry.dense, entry.images)) for point in whole]
        matching = [point for point, gain in gains if gain.mean >= 0]
        sparsest = min(matching, key=lambda point: point.density, default=None)
        best, gain = max(gains, key=lambda one: one[1].mean, default=(None, None))
        # Where the last trained ticket matches, its density is a bound: sparser ones may match, too.
        trained = {*entry.diverged, *(point.density for point in entry.tickets)}
        bound = "≤ " if sparsest and sparsest.density == min(trained) else ""
        matches = f"{bound}{100 * sparsest.density:.1f}" if sparsest else "none"
        most = [words.points(gain), f"{100 * best.density:.1f}"] if best and gain else ["–", "–"]
        lines.append([entry.name, words.percent(mean_accuracy(entry.dense)), matches, *most])
    header = ["study", "dense (%)", "sparsest that matches (%)", "best gain (pp)", "at (%)"]
    return Table("Tickets", header, lines)


def _overview(found: Sequence[Entry], heading: str) -> Section:
    near = (
        " The lower panel shows the same near the dense network, and its points are left out above."
        if figures.is_far(found)
        else ""
    )
    drawn = Drawn(
        "compared",
        "Difference to the dense network against weights left",
        figures.compared(found, f"{heading}: difference to dense"),
        "Test accuracy at the end of training minus that of the same seed's dense network, in percentage "
        "points; one panel an arm, on shared axes. Lines are means over seeds, points the seeds, bars the "
        f"95 % interval of the mean by Student's t, {FLOORED}. "
        f"Look for where each line leaves zero.{near}",
        (("study", "arm", "density", "seed", "test_accuracy_percent", "dense_percent", "trainings"), [
            (entry.name, arm, point.density, seed, value, entry.dense.get(seed), point.trainings)
            for entry in found for arm, points in entry.arms.items() for point in points
            for seed, value in point.accuracies.items()
        ]),
    )  # fmt: skip
    return Section(
        "dense",
        "Against the dense network",
        figures=[drawn],
        tables=[tickets(found)],
        remark="Accuracies in percent, mean over seeds with the 95 % interval of Student's t on the logit "
        "scale in brackets. The sparsest ticket that matches is the one of the lowest density whose mean "
        "accuracy is the dense network's or more (≤: the last that was trained); the best gain is the "
        "largest mean difference of any level, found by looking at all of them, so it flatters. A level "
        "at which a seed's ticket diverged, or one before it in its chain, is neither.",
    )


def targets(found: Sequence[Entry]) -> list[float]:
    """The densities at which schedules are compared: those of one-shot pruning, or the default ones.

    Of the default ones those that every schedule reaches that has a ticket.
    """
    shot = {float(f"{point.density:.3g}") for e in found if e.how == ONE_SHOT for point in e.tickets}
    lowest = max(_lowest(found).values(), default=math.inf)
    return sorted(shot, reverse=True) or [density for density in _DENSITIES if density >= lowest]


def _lowest(found: Sequence[Entry]) -> dict[str, float]:
    """The density of the sparsest ticket of every schedule that has one, by name."""
    return {entry.name: min(point.density for point in entry.tickets) for entry in found if entry.tickets}


def cheapest(
    found: Sequence[Entry], density: float, margin: float = MARGIN
) -> list[tuple[Entry, Point, Interval, bool]]:
    """The schedules that reach a density, cheapest first: (entry, its point, difference to the best, near).

    The point is the first of no more than the density; the best is the `highest`. `near` says that the mean
    difference to it, paired by seed, is no less than −`margin` percentage points.
    """
    there = [(entry, at_most(entry.tickets, density)) for entry in found]
    reached = [(entry, point) for entry, point in there if point is not None]
    if not reached:
        return []
    ranked = sorted(reached, key=lambda one: (one[1].trainings, -one[1].accuracy.mean))
    best = ranked[highest([point.accuracies for _, point in ranked])][1]
    apart = [difference(point.accuracies, best.accuracies, entry.images) for entry, point in ranked]
    return [(*one, lost, lost.mean >= -margin) for one, lost in zip(ranked, apart, strict=True)]


def schedules(found: Sequence[Entry]) -> tuple[list[str], Table]:
    """A sentence on the best and the cheapest schedule at every density, and a table of all schedules."""
    notes, lines = [], []
    for density in targets(found):
        ranked = cheapest(found, density)
        near = [row for row in ranked if row[3]]
        if not near:
            continue
        of_all = [point.accuracies for _, point, *_ in ranked]
        place = highest(of_all)
        best = ranked[place]
        if near[0][0] is best[0]:
            apart = any(not lost.n for _, _, lost, _ in ranked[:place])
            those = " that has seeds of it" if apart else ""
            cheap = f"nothing cheaper{those} is within {MARGIN:g} points"
        else:
            told = _told(*near[0][:2], f", difference {words.points(near[0][2])} pp")
            cheap = f"the cheapest within {MARGIN:g} points is {told}"
        shared = set.intersection(*({*of} for of in of_all))
        own = "" if shared else " No seed has all schedules there: each mean is of its own seeds."
        notes.append(
            f"At {100 * density:.1f} % of the weights or fewer: best is {_told(*best[:2])}; {cheap}.{own}"
        )
        lines += [
            [
                f"≤ {100 * density:.1f}",
                entry.name,
                f"{100 * point.density:.1f}",
                f"{point.trainings:.3g}",
                words.percent(point.accuracy),
                "best" if point is best[1] else words.points(lost),
                str(lost.n),
                "–" if not lost.n else "yes" if close else "no",
            ]
            for entry, point, lost, close in ranked
        ]
    header = ["weights (%)", "schedule", "reached (%)", "trainings", "accuracy (%)", "− best (pp)", "n",
              f"within {MARGIN:g} pp"]  # fmt: skip
    return notes, Table("By density, cheapest first", header, lines, 2)


def _told(entry: Entry, point: Point, more: str = "") -> str:
    lost = entry.diverged.get(point.density, 0)
    gone = f", tickets of {lost} of its {counted(len(entry.dense), 'seed')} diverged" if lost else ""
    return f"{entry.name} ({point.accuracy.mean:.2f} %, {point.trainings:.3g} trainings{more}{gone})"


def _not_compared(found: Sequence[Entry]) -> str:
    """Why there is no density at which schedules are compared."""
    early = {name: lowest for name, lowest in _lowest(found).items() if lowest > _DENSITIES[0]}
    if not early:
        return "Not shown, as no schedule has a ticket."
    *most, last = (f"{100 * density:g}" for density in _DENSITIES)
    ends = "; ".join(f"{name} has none below {words.share(lowest)}" for name, lowest in early.items())
    return (
        f"Not shown, as not all schedules have tickets at {', '.join(most)} or {last} % of weights: {ends}."
    )


def _schedules(found: Sequence[Entry], heading: str) -> Section:
    if not targets(found):
        return Section("schedules", "Schedules", notes=[_not_compared(found)])
    notes, table = schedules(found)
    drawn = Drawn(
        "cost",
        "Accuracy against cost",
        figures.cost(found, targets(found), f"{heading}: accuracy against cost"),
        "Test accuracy of the ticket at its first level of no more than the density above each panel, "
        "against what it costs to get there in whole trainings, the dense one included. Points are seeds, "
        "the larger marks their mean with its 95 % interval (hollow: global pruning). The scales of accuracy "
        "differ. Look for the leftmost mark that is level with "
        "the highest.",
        (("at_most", "study", "density", "trainings", "seed", "test_accuracy_percent"), [
            (density, entry.name, point.density, point.trainings, seed, value)
            for density in targets(found) for entry, point, *_ in cheapest(found, density)
            for seed, value in point.accuracies.items()
        ]),
    )  # fmt: skip
    return Section(
        "schedules",
        "Schedules",
        notes=notes,
        figures=[drawn],
        tables=[of for of in (table, equal.table(found, targets(found))) if of.rows],
        remark="By density, every schedule is taken at its first level of no more than the density, so a "
        "coarse one may be sparser than asked. The best is the one of the highest mean over the seeds that "
        "all these schedules have; differences to it are over the n seeds that both have, paired, with the "
        "95 % interval of Student's t, and the choice flatters it. Where tickets of some seeds diverged, the "
        "accuracy is of the others, which flatters that schedule, too, in both tables. At equal density, "
        "accuracies are interpolated in log density between the two levels around it, of the seeds that have "
        "both; the best is chosen by its validation accuracy, which the comparison does not use, and "
        "p-values are two-sided, by t, with Holm's correction over the schedules compared at the density.",
    )


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    commands = dict.fromkeys(command for run in runs for command in run.about.get("commands", []))
    seconds = sum(row.seconds for run in runs for row in run.rows)
    return [
        ("Commands", "; ".join(commands)),
        ("Run folders", ", ".join(run.name for run in runs)),
        ("Time", f"{seconds / 60:.1f} minutes of training in all"),
        ("Devices", ", ".join(dict.fromkeys(run.about.get("devices") or "not known" for run in runs))),
        ("Commit", ", ".join(dict.fromkeys(run.about.get("git") or "not known" for run in runs))),
    ]
