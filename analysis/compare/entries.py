"""The entries of a comparison: what run folders hold, under a name that tells them apart."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from lthjax import config, imp, sweep
from lthjax.fields import About
from lthjax.imp import DENSE
from lthjax.measures.stats import Interval

from ..differences import mean_accuracy
from ..rows import TICKET, Row, accuracies, arms, by_level, chains, percent, select
from ..tables import grouped
from ..words import title

# Fields left out of the names: they only add cells, or are in the title.
_LEFT_OUT = ("name", "seeds", "arms", "repeats", "control_levels", "rewind", "model", "data.name")
# And those that are left out where other fields tell the studies apart.
_SELDOM = ("data.validation", "train.eval_every")
_VALIDATION = "validation_accuracy"
# The `how` of entries whose points are of several runs.
ONE_SHOT = "one-shot"


class Point(NamedTuple):
    """An arm at one level.

    Attributes:
        density: weights left / prunable weights, mean over seeds.
        accuracies: seed -> test accuracy at the end in percent.
        trainings: the cost of getting there in dense trainings, the dense one included.
        validation: seed -> validation accuracy at the end in percent.
    """

    density: float
    accuracies: dict[int, float]
    trainings: float
    validation: Mapping[int, float] = MappingProxyType({})

    @property
    def accuracy(self) -> Interval:
        """The mean over seeds."""
        return mean_accuracy(self.accuracies)


class Entry(NamedTuple):
    """The levels of a run's chain, or the one-shot tickets of several runs with one dense network.

    Attributes:
        how: the pruning schedule where it differs, else the title of the run.
        variant: the difference to others of the same `how`: the scope, a field, a rewind point.
        dense: seed -> accuracy of the dense network in percent.
        arms: arm -> its points, densest first.
        dense_validation: seed -> validation accuracy of the dense network in percent.
        images: of the test set; 0 where it is not known.
        diverged: density -> the number of seeds whose ticket diverged there or before it in the chain, where
            there are any.
    """

    how: str
    variant: str
    dense: dict[int, float]
    arms: dict[str, list[Point]]
    dense_validation: Mapping[int, float] = MappingProxyType({})
    images: int = 0
    diverged: Mapping[float, int] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Schedule and variant."""
        return ", ".join(part for part in (self.how, self.variant) if part)

    @property
    def tickets(self) -> list[Point]:
        """The points of the ticket; empty where none is trained."""
        return self.arms.get(TICKET, [])


def entries(about: Sequence[About], tables: Sequence[Sequence[Row]]) -> list[Entry]:
    """The entries of runs, from every study.json and its rows; sorted by name, numbers in it by value."""
    studies = [config.from_dict(study["config"]) for study in about]
    titles = [title(facts) for facts in about]
    labels = _labels(studies, (*_LEFT_OUT, *_SELDOM))
    if len({*zip(titles, labels, strict=True)}) < len(studies):
        labels = _labels(studies, _LEFT_OUT)
    parts = [
        _split(study, label, titles[0]) if len(set(titles)) == 1 else (heading, label)
        for study, label, heading in zip(studies, labels, titles, strict=True)
    ]
    named = zip(_unique(parts, studies, about), zip(about, tables, strict=True), strict=True)
    found = []
    for (how, variant), runs in grouped(named).items():
        there = {chain for _, rows in runs for chain in chains(rows)}
        for chain in [c for c in there if imp.leader(c) == TICKET]:
            several = len(there) > 1 or imp.rewind_of(chain) > 0
            rewound = f"rewound to {imp.rewind_of(chain)}" if several else ""
            of_chain = [(facts, rows) for facts, rows in runs if chain in chains(rows)]
            called = ", ".join(part for part in (variant, rewound) if part)
            found.append(_entry(how, called, chain, of_chain))
    return sorted(found, key=_natural)


def _entry(how: str, variant: str, chain: str, runs: Sequence[tuple[About, Sequence[Row]]]) -> Entry:
    """The entry of a chain: of one run, or of several one-shot runs, each of which may lack seeds."""
    dense = {row.seed: row for _, rows in runs for row in select(rows, chain=DENSE)}.values()
    points, diverged = list[tuple[str, Point]](), dict[float, int]()
    for facts, rows in runs:
        own, gone = select(rows, chain=chain), set[int]()
        for arm in arms(own):
            for level in by_level(select(own, arm=arm)).values():
                point = _point(rows, chain, level, facts["lengths"]["total"])
                points += [(arm, point)] if point.accuracies else []
                if arm == TICKET:
                    gone |= {row.seed for row in level if row.status == "diverged"} - {*point.accuracies}
                    diverged |= {point.density: len(gone)} if gone else {}
    of_arm = {arm: sorted(of, key=lambda point: -point.density) for arm, of in grouped(points).items()}
    images = runs[0][0]["data"]["test"]
    return Entry(how, variant, accuracies(dense), of_arm, percent(dense, _VALIDATION), images, diverged)


def _labels(studies: Sequence[config.Study], left_out: Sequence[str]) -> list[str]:
    return sweep.labels([config.replaced(study, dict.fromkeys(left_out)) for study in studies])


def _natural(entry: Entry) -> list[tuple[bool, float, str]]:
    """The key that sorts numbers by their value, and words after them."""
    parts = [part for part in re.split(r"(\d+(?:\.\d+)?)", entry.name) if part]
    return [(False, float(part), part) if part[0].isdigit() else (True, 0.0, part) for part in parts]


def _split(study: config.Study, label: str, heading: str) -> tuple[str, str]:
    """(how, variant) of a run; `how` is its schedule, without the density, where schedules differ."""
    schedule = sweep.schedule(study)
    if not label.startswith(schedule):
        return heading, label
    how = ONE_SHOT if _is_one_shot(study) else sweep.rounds(study)
    return how, sweep.scope(study) + label.removeprefix(schedule)


def _unique(
    parts: Sequence[tuple[str, str]], studies: Sequence[config.Study], about: Sequence[About]
) -> list[tuple[str, str]]:
    """(how, variant) of every run, so that only one-shot runs of one dense network share theirs.

    Where others would, as runs on other data of one name, their variants get the fields that differ.
    """
    every = [_told(study, of) for study, of in zip(studies, about, strict=True)]
    alike = grouped(zip(parts, every, strict=True))
    made = []
    for (how, variant), own in zip(parts, every, strict=True):
        others = alike[how, variant]
        differing = [f"{name} {own[name]}" for name in own if any(o.get(name) != own[name] for o in others)]
        made.append((how, ", ".join(part for part in (variant, *differing) if part)))
    return made


def _told(study: config.Study, about: About) -> dict[str, Any]:
    """The fields in which runs of one entry do not differ, by dotted name."""
    usual = {**config.defaults(), "prune.criterion_version": 1}
    free = sweep.SCHEDULE if _is_one_shot(study) else ()
    return {name: value for name, value in {**usual, **about["identity"]}.items() if name not in free}


def _is_one_shot(study: config.Study) -> bool:
    return study.levels == 1 and study.prune.density is not None


def _point(rows: Sequence[Row], chain: str, cells: Sequence[Row], total: int) -> Point:
    """The point of an arm and level; its cost includes the earlier trainings of the chain's leader."""
    level, leader = cells[0].level, imp.leader(chain)
    before = {row.level: row.steps for row in select(rows, chain=chain, arm=leader) if row.level < level}
    steps = total + sum(before.values()) + cells[0].steps
    density = sum(row.density for row in cells) / len(cells)
    return Point(density, accuracies(cells), steps / total, percent(cells, _VALIDATION))


def at_most(points: Sequence[Point], density: float) -> Point | None:
    """The densest point of no more than a density (within half a percent of it); None if none is."""
    return next((point for point in points if point.density <= 1.005 * density), None)


def highest(accuracies: Sequence[Mapping[int, float]]) -> int:
    """The place of the highest mean over the seeds that all have; over each one's own if none is common."""
    shared = set.intersection(*({*of} for of in accuracies))
    means = [fmean(of[seed] for seed in shared or of) for of in accuracies]
    return means.index(max(means))
