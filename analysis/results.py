"""Renders the pages about published results from the tables in `results/`.

    python -m analysis.results

    results/README.md.jinja    becomes results/README.md
    results/summary.md.jinja   becomes the part of README.md between its two `results` marks

Templates see every folder of `analysis.publish` as `study(NAME)`, a `Published`, or as `compared(NAME)`, a
`Compared`, where it holds several runs; `render` lists what else they may call.
"""

import csv
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import jinja2
import tyro

from lthjax import cli, files, home, progress
from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Interval, Outcome, mean_interval, paired

from . import compare, conform, tables, transfer, words
from .compare import budget
from .compare.entries import Entry, Point, at_most, entries
from .compare.equal import Contrast, contrasts
from .conform.measured import Cells, Measured, published
from .differences import floor, mean_accuracy
from .forgetting.table import EventRow
from .landscape.table import ArmDifference
from .page import Table
from .report import facts
from .retraining import table as retraining
from .rows import TICKET, images_of, percent, select

OPEN, CLOSE = "<!-- results: written by python -m analysis.results -->", "<!-- end of results -->"


class _Folder(Cells):
    """A folder that `analysis.publish` has written: its cells, and the tables beside them."""

    _what, _table = "study", "cells.csv"

    def __init__(self, folder: Path) -> None:
        """Reads its tables; a UserError where it is no such folder."""
        super().__init__(folder, *published(folder, self._table, self._what))
        try:
            self._read()
        except tables.DAMAGED as error:
            raise UserError(f"{folder}: it is no published {self._what} ({error}).") from error

    def _read(self) -> None:
        """Reads the tables that only one kind of folder has."""
        raise NotImplementedError

    def _lines(self, table: str) -> list[dict[str, str]]:
        """The lines of a table, as text."""
        with (self.folder / table).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def hours(self) -> str:
        """The time of all trainings, in words; a dense network of several studies was trained once."""
        trained = dict.fromkeys((row.cell, row.seconds) for row in self.rows)
        return progress.duration(sum(seconds for _, seconds in trained))


class Published(_Folder, Measured):
    """A folder that `analysis.publish` has written of one run."""

    def _read(self) -> None:
        self.verdicts = self._lines("verdicts.csv")

    def verdict(self, claim: str) -> dict[str, str]:
        """The first row of verdicts.csv whose claim begins so."""
        found = (line for line in self.verdicts if line["claim"].startswith(claim))
        return self._known(next(found, None), f"no claim begins with {claim!r}")

    def by_level(self, rewind: int = 0) -> Table:
        """The report's table of levels."""
        return facts.levels(self.rows, f"rewind-{rewind}")

    def retrained(self) -> Table:
        """The report's table of arms that train after pruning, at equal density and cost."""
        found = retraining.of_rows(self.rows, self.about)
        return retraining.shown(self._known(found, "no arm starts from trained weights"))[0]

    @property
    def looks(self) -> EventRow:
        """A row of forgetting/events.csv, whose numbers of images and evaluations all rows share."""
        rows = tables.read_rows(self.folder / "forgetting" / "events.csv", EventRow)
        return self._known(next(iter(rows), None), "forgetting/events.csv has no row")

    def apart(self, level: int, other: str, quantity: str) -> Interval:
        """Ticket − another arm in a measure of the landscape at the end of training, paired by seed."""
        folders = sorted(self.folder.glob(f"landscape/chain=*/level={level:02}"))
        rows = [
            row
            for folder in folders
            for row in tables.read_rows(folder / "differences.csv", ArmDifference)
            if (row.other, row.where, row.quantity) == (other, "end", quantity)
        ]
        found = self._known(next(iter(rows), None), f"no {quantity} of ticket − {other} at level {level}")
        return Interval(found.mean, found.low, found.high, found.n)

    def moved(self) -> Table:
        """The differences between the tickets moved here and the arms beside them, level by level."""
        rows = tables.read_rows(self.folder / "transfer" / "transfer.csv", transfer.TransferRow)
        others = {
            TICKET: "− own ticket (pp)",
            "shuffled": "− shuffled",
            "transferred_reinit": "− moved reinit",
            DENSE: "− dense",
        }
        of: dict[tuple[str, ...], dict[str, str]] = {}
        images = dict.fromkeys((row.target for row in rows), images_of(self.about))
        chains = transfer.chain_words(rows)
        for one in transfer.differences(rows, tuple(others), images=images):
            arm = one.arm + chains[one.chain]
            place = (one.source, one.pair, arm, str(one.level), f"{100 * one.density:.1f}")
            of.setdefault(place, {})[one.other] = words.points(one.interval)
        header = ["from", "seed", "arm", "level", "% of weights", *others.values()]
        lines = [[*place, *(said.get(other, "–") for other in others)] for place, said in of.items()]
        return Table("", header, lines, 5)


class Compared(_Folder):
    """A folder into which `analysis.publish` has written several runs side by side."""

    _what, _table = "comparison", "comparison.csv"

    def _read(self) -> None:
        of_run = [line["run"] for line in self._lines(self._table)]
        by_run = tables.grouped(zip(of_run, self.rows, strict=True))
        self.by_run = [*by_run.values()]
        self.entries: list[Entry] = entries(self.about, self.by_run)
        self.gaps: list[budget.Gap] = []
        if budget.differ(self.about):
            self.gaps = budget.gaps(self.about, self.by_run)

    @property
    def evaluations(self) -> dict[int, list[int]]:
        """Evaluations of a training -> the lengths, in steps, of the trainings that have as many."""
        lengths = [about["lengths"] for about in self.about]
        by_count = tables.grouped((-(-of["total"] // of["evaluate"]), of["total"]) for of in lengths)
        return {count: sorted(steps) for count, steps in by_count.items()}

    def entry(self, name: str) -> Entry:
        """The entry of that name."""
        by_name = {entry.name: entry for entry in reversed(self.entries)}
        known = ", ".join(entry.name for entry in self.entries)
        return self._known(by_name.get(name), f"it has no {name!r}; it has {known}")

    def point(self, name: str, density: float) -> Point:
        """An entry's first ticket of no more than a density (1: the dense network)."""
        entry = self.entry(name)
        if density == 1:
            return Point(1.0, entry.dense, 1.0)
        found = at_most(entry.tickets, density)
        return self._known(found, f"{name} does not reach {density:g}")

    def _densities(self, name: str) -> list[float]:
        """The densities of an entry, the dense network's first."""
        return [1.0, *(point.density for point in self.entry(name).tickets)]

    def accuracy(self, name: str, density: float) -> Interval:
        """Test accuracy at the end of training in percent, mean over seeds."""
        return self.point(name, density).accuracy

    def _apart(self, name: str, other: str, density: float) -> list[float]:
        return paired(self.point(name, density).accuracies, self.point(other, density).accuracies)

    def gap(self, name: str, other: str, density: float) -> Interval:
        """One entry's tickets − another's, in percentage points, paired by seed."""
        return mean_interval(self._apart(name, other, density))

    def contrasts(self, pairs: Sequence[tuple[str, str]], density: float) -> list[Contrast]:
        """The claims that the first entry of each pair is better at equal density, by Holm over the pairs."""
        return contrasts([(self.entry(one), self.entry(other)) for one, other in pairs], density)

    def alike(self, name: str, other: str, margin: float) -> Outcome:
        """The verdict on the claim that both are within `margin` points of each other, at every density."""
        return stats.conjunction(
            stats.equivalent(self._apart(name, other, d), margin, floor=self._floor(name, other, d)).outcome
            for d in self._densities(other)
        )

    def _floor(self, name: str, other: str, density: float) -> float:
        ours, theirs = (self.point(of, density).accuracies for of in (name, other))
        return floor(ours, theirs, images_of(self.about[0]))

    def widest(self, name: str, other: str) -> tuple[float, Interval]:
        """(density, gap) where the gap's interval, with the test set's error, reaches furthest from 0."""
        gaps = (
            (d, mean_interval(self._apart(name, other, d), floor=self._floor(name, other, d)))
            for d in self._densities(other)
        )
        return max(gaps, key=lambda found: max(-found[1].low, found[1].high))

    def against(self, other: str) -> Table:
        """The accuracy of an entry at all its densities, and the differences of all others to it."""
        others = [entry for entry in self.entries if entry.name != other]
        named = self.entry(other).variant or other
        differences = (f"{entry.variant or entry.name} − it (pp)" for entry in others)
        header = ["weights left (%)", f"{named} (%)", *differences]
        lines = [
            [
                f"{100 * d:.1f}",
                words.percent(self.accuracy(other, d)),
                *(words.points(self.gap(entry.name, other, d)) for entry in others),
            ]
            for d in self._densities(other)
        ]
        return Table("", header, lines, 0)

    def by_validation(self, field: str, named: Sequence[str]) -> Table:
        """Validation accuracy at the end of training, by a setting that the runs differ in.

        Args:
            field: the setting, for example "optim.lr".
            named: arms. The setting with the highest mean over all of them is the chosen one.
        """
        found = []
        for about, rows in zip(self.about, self.by_run, strict=True):
            measured = [percent(select(rows, arm=arm), "validation_accuracy") for arm in named]
            mean = fmean(fmean(of.values()) for of in measured) if all(measured) else -math.inf
            found.append((about["identity"][field], measured, mean))
        best = max(mean for *_, mean in found)
        lines = [
            [
                f"{value:g}",
                *(words.percent(mean_accuracy(of)) if of else "–" for of in measured),
                f"{mean:.2f}" if math.isfinite(mean) else "–",
                "chosen" if mean == best > -math.inf else "",
            ]
            for value, measured, mean in sorted(found, key=lambda one: one[0])
        ]
        header = [field, *(f"{arm} (%)" for arm in named), "mean (%)", ""]
        return Table("", header, lines, 0)


def markdown(table: Table) -> str:
    """A table of the report in Markdown."""
    align = [":--" if place < table.words else "--:" for place in range(len(table.header))]
    lines = [table.header, align, *([str(value) for value in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(folder: Path, template: str) -> str:
    """The text of a template in the folder.

    Raises:
        UserError: the template is not there, or asks for something that no folder has.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals |= {
        "study": functools.cache(lambda name: Published(folder / name)),
        "compared": functools.cache(lambda name: Compared(folder / name)),
        "published": sorted(path.parent.name for path in folder.glob("*/study.json")),
        "conform": conform.rows,
        "tickets": compare.tickets,
        "schedules": compare.schedules,
        "budget": budget,
        "at_equal_density": lambda entries: compare.equal.table(entries, compare.targets(entries)),
    }
    environment.tests["match"] = lambda value, pattern: re.match(pattern, value) is not None
    environment.filters |= {
        "percent": words.percent,
        "points": words.points,
        "times": words.times,
        "signed": lambda of: words.interval(of, "+.2g"),
        "markdown": markdown,
        "anchor": lambda heading: re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"),
        "density": words.share,
        "count": lambda value: f"{value:,}",
    }
    try:
        return environment.get_template(template).render()
    except jinja2.TemplateError as error:
        raise UserError(f"{folder / template}: {error}.") from error


def pages(root: Path) -> dict[Path, str]:
    """Path -> text of the pages of a repository, which holds README.md and results/.

    Raises:
        UserError: as `render`, or it is no such repository, or README.md lacks the two marks.
    """
    folder, front = root / "results", root / "README.md"
    if not folder.is_dir() or not front.is_file():
        raise UserError(
            f"{root}: it has no README.md beside results/, which it renders; name a checkout of lthjax."
        )
    before, found, rest = front.read_text(encoding="utf-8").partition(OPEN)
    _, ended, after = rest.partition(CLOSE)
    if not (found and ended):
        raise UserError(f"{front}: it has not the marks {OPEN!r} and {CLOSE!r}, one after the other.")
    summary = render(folder, "summary.md.jinja").strip()
    return {
        folder / "README.md": render(folder, "README.md.jinja"),
        front: f"{before}{OPEN}\n{summary}\n{CLOSE}{after}",
    }


@dataclass(frozen=True)
class Options:
    """Writes the pages about published results; every number is computed from the tables in `results/`."""

    root: Annotated[Path, tyro.conf.Positional] = Path()
    """The repository's root."""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("results"))
    for path, text in pages(options.root).items():
        files.write_whole(path, text.encode())
        print(path)


if __name__ == "__main__":
    cli.run(main)
