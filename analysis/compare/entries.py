"""What run folders hold that can be compared, and what it is called."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from analysis.run import Row, accuracies, arms, chains, select
from analysis.words import title
from lthjax import config, imp, sweep
from lthjax.fields import About
from lthjax.imp import DENSE

# Fields that tell no runs apart: they only add cells, or are told by the title.
_LEFT_OUT = ("name", "seeds", "arms", "repeats", "control_levels", "rewind", "model", "data.name",
             "data.validation", "train.eval_every")  # fmt: skip


class Point(NamedTuple):
    """An arm at one level.

    Attributes:
        density: weights left / prunable weights, mean over seeds.
        accuracies: seed -> test accuracy at the end in percent.
        trainings: dense trainings' worth of steps that it takes to get there, the dense one included.
    """

    density: float
    accuracies: dict[int, float]
    trainings: float


class Entry(NamedTuple):
    """What is compared: the levels of a run's chain, or the one-shot tickets of several runs.

    Attributes:
        how: the pruning schedule where it differs, else what the run is.
        variant: what tells it from others of the same `how`: the scope, a field, a rewind point.
        dense: seed -> accuracy of the dense network in percent.
        arms: arm -> its points, densest first.
    """

    how: str
    variant: str
    dense: dict[int, float]
    arms: dict[str, list[Point]]

    @property
    def name(self) -> str:
        """Both in words."""
        return ", ".join(part for part in (self.how, self.variant) if part)


def entries(about: Sequence[About], tables: Sequence[Sequence[Row]]) -> list[Entry]:
    """What there is to compare, by name, numbers in it as numbers, whatever the order of the runs.

    Args:
        about: every run's study.json.
        tables: every run's rows.
    """
    studies = [config.from_dict(study["config"]) for study in about]
    plain = [config.replaced(study, {name: None for name in _LEFT_OUT}) for study in studies]
    labels = sweep.labels(plain)
    titles = [title(facts) for facts in about]
    found: dict[tuple[str, str], Entry] = {}
    for study, label, facts, rows in zip(studies, labels, about, tables, strict=True):
        how, variant = _split(study, label, titles[0]) if len(set(titles)) == 1 else (title(facts), label)
        for chain in [c for c in chains(rows) if imp.leader(c) == "ticket"]:
            several = len(chains(rows)) > 1 or imp.rewind_of(chain) > 0
            rewound = f"rewound to {imp.rewind_of(chain)}" if several else ""
            own = select(rows, chain=chain)
            points = {
                arm: [
                    _point(rows, chain, select(own, arm=arm, level=level), facts["lengths"]["total"])
                    for level in sorted({row.level for row in own if row.arm == arm})
                ]
                for arm in arms(own)
            }
            key = (how, ", ".join(part for part in (variant, rewound) if part))
            entry = found.setdefault(key, Entry(*key, accuracies(select(rows, chain=DENSE)), {}))
            for arm, of_arm in points.items():
                joined = [*entry.arms.get(arm, []), *(point for point in of_arm if point.accuracies)]
                entry.arms[arm] = sorted(joined, key=lambda point: -point.density)
    return sorted(found.values(), key=_natural)


def _natural(entry: Entry) -> list[tuple[bool, float, str]]:
    """Numbers by their value, words after them."""
    parts = re.split(r"(\d+(?:\.\d+)?)", entry.name)
    return [
        (not part[:1].isdigit(), float(part) if part[:1].isdigit() else 0.0, part) for part in parts if part
    ]


def _split(study: config.Study, label: str, heading: str) -> tuple[str, str]:
    """(how, variant) of a run: its schedule without the density it aims at, if that tells runs apart."""
    schedule = sweep.schedule(study)
    if not label.startswith(schedule):
        return heading, label
    how, _, scope = schedule.rpartition(", ")
    if study.levels == 1 and study.prune.density is not None:
        how = "one-shot"
    return how, scope + label.removeprefix(schedule)


def _point(rows: Sequence[Row], chain: str, cells: Sequence[Row], total: int) -> Point:
    """The point of an arm and level; costs are those of the chain's leader before it, and its own."""
    level, leader = cells[0].level, imp.leader(chain)
    before = {row.level: row.steps for row in select(rows, chain=chain, arm=leader) if row.level < level}
    steps = total + sum(before.values()) + cells[0].steps
    density = sum(row.density for row in cells) / len(cells)
    return Point(density, accuracies(cells), steps / total)


def at_most(points: Sequence[Point], density: float) -> Point | None:
    """The densest point of no more than a density (within half a percent of it); None if none is."""
    return next((point for point in points if point.density <= 1.005 * density), None)
