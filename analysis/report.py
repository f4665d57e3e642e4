"""The report of a run folder: a self-contained page, figures, cells.csv and verdicts.csv.

python -m analysis.report runs/quickstart-0123abcd
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from analysis import (
    compare,
    curves,
    geography,
    landscape,
    page,
    predict,
    savings,
    structure,
    transfer,
    verdicts,
)
from analysis.cells import Row, accuracies, arms, chains, difference, load, mean_accuracy, select, to_csv
from analysis.entries import title
from analysis.page import Link, Section, Table
from lthjax import cli, config, imp
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.measures.stats import Interval
from lthjax.store import read_study


def build(run: str | Path, *, only_if_changed: bool = False) -> Path:
    """Writes `report/` into a run folder.

    Args:
        run: the run folder; what is not trained yet is simply not shown.
        only_if_changed: whether to leave a report as it is that shows all this and is whole.

    Returns:
        The path of `report/index.html`.

    Raises:
        UserError: it is not a run folder, there is no cell in it, or it cannot be written.
    """
    run = Path(run)
    study, rows = read_study(run), load(run)
    if not rows:
        raise UserError(f"{run}: there is no finished cell in it yet; run the study first.")
    folder = run / "report"
    table = to_csv(rows)
    shows = _digest(run, table)
    if only_if_changed and page.is_whole(folder, shows):
        return folder / "index.html"
    heading = title(study)
    seeds = len({row.seed for row in rows})
    parts = [_part(other, run) for other in OTHERS]
    found = [*verdicts.findings(study, rows), *(one for part in parts for one in part.findings)]
    said = [[f.claim, f.outcome, f.estimate, f.n, str(f.where)] for f in found]
    survivors = _structure(run)
    whole = survivors.whole and all(part.whole for part in parts)
    sections = _sections(run, study, rows, heading, found)
    sections += [part.section for part in (survivors, *parts) if part.section is not None]
    written = page.write(
        folder,
        title=heading,
        subtitle=f"Lottery-ticket study {study['config']['name']!r}: {len(rows)} cells, {seeds} "
        f"seed{'s' if seeds > 1 else ''}.",
        sections=sections,
        facts=_facts(study, rows),
        config=json.dumps(study["config"], indent=1),
        table=("cells.csv", table),
        beside={"verdicts.csv": page.to_csv(verdicts.Finding._fields, said)},
        # One that lacks a part is made anew the next time.
        shows=shows if whole else "",
    )
    return written


# What else may have been found out of a run: each says what it has written, its verdicts and its section.
OTHERS = (savings, landscape, predict, geography, transfer)


class _Part(NamedTuple):
    """What the report has of files beside the cells' results; not `whole` where they cannot be read."""

    findings: list[verdicts.Finding]
    section: Section | None
    whole: bool = True


def _part(other: ModuleType, run: Path) -> _Part:
    """What another analysis has found; where its files cannot be read, the reason in its place."""
    try:
        return _Part(other.findings(run), other.section(run))
    except UserError as error:
        name = other.__name__.rpartition(".")[2]
        title = name.capitalize()
        claim = f"{title}: its claims"
        lacking = verdicts.Finding(claim, "not tested", "cannot be read", 0, Link(name, f"#{name}"))
        return _Part([lacking], Section(name, title, [f"Not shown: {error}"]), whole=False)


def _structure(run: Path) -> _Part:
    """What survives; where masks or weights cannot be read, the reason in its place."""
    try:
        return _Part([], structure.section(run))
    except UserError as error:
        return _Part([], Section("structure", "What survives", [f"Not shown: {error}"]), whole=False)


def _digest(run: Path, table: str) -> str:
    """Names all that a run's report is made of, by its contents."""
    files = [run / "study.json", *(path for other in OTHERS for path in other.written(run))]
    contents = [table.encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def _sections(
    run: Path, study: dict[str, Any], rows: Sequence[Row], heading: str, found: Sequence[verdicts.Finding]
) -> list[Section]:
    said = [[f.claim, f.outcome, f.estimate, str(f.n or "–"), f.where] for f in found]
    header = ["claim", "verdict", "estimate", "n", "where, or the command that tests it"]
    own = chains(rows)
    tickets = [chain for chain in own if imp.leader(chain) == "ticket"]
    collapsed = verdicts.collapsed(rows, study["data"]["classes"])
    return [
        Section("verdicts", "Verdicts", _notes(study, rows), (), [Table("", header, said, 5)], _RULES),
        curves.section(run, rows, heading),
        Section(
            "gaps",
            "Differences",
            tables=[of(rows, chain) for chain in tickets for of in (verdicts.summaries, verdicts.gaps)],
            remark=_TESTS,
        ),
        Section(
            "levels",
            "Levels",
            tables=[*(levels(rows, chain) for chain in own), *([collapsed] if collapsed else [])],
            remark=_remark(study, rows),
        ),
    ]


def build_all(runs: Sequence[str | Path], *, only_if_changed: bool = False) -> Path:
    """Writes the reports of run folders and, of several, the page that compares them.

    Returns:
        The path of the only report, or of the comparison.

    Raises:
        UserError: as `build`.
    """
    pages = [build(run, only_if_changed=only_if_changed) for run in runs]
    return pages[0] if len(pages) == 1 else compare.build(runs, only_if_changed=only_if_changed)


_RULES = (
    "Rules, fixed before the data: a claim is supported if the lower one-sided 95 % bound of its mean lies "
    "above its threshold, refuted if the upper one lies below, else undecided; seeds are the unit, arms "
    "of a seed are paired. A claim about 80–90 % sparsity is one about every level of that range; its "
    "estimate is that of the least favourable level, with the two-sided 95 % interval. Claims about some "
    "density are searched for over all levels, with Holm's correction. Few seeds give wide intervals, and "
    "so “undecided”. “10–15 points” is tested as 10 points or more."
)
_TESTS = (
    "An arm matches the dense network of its seed down to a density if it does so at every larger one (≤: "
    "it still does at the last level, and sparser ones may do so, too); the "
    "area between two curves is taken on the densities that both have. Differences in percentage points, "
    "paired by seed, with the 95 % interval of Student's t. p-values are two-sided: by t, the same "
    "adjusted by Holm within the block of one control, and by exact sign flips, which cannot go below "
    "2/2ⁿ. Hedges' g_z is the mean difference over its standard deviation, unbiased, with its 95 % "
    "interval."
)


def _remark(study: dict[str, Any], rows: Sequence[Row]) -> str:
    images = study["data"]["test"]
    typical = max((row.test_accuracy for row in rows if row.test_accuracy is not None), default=0.5)
    error = 100 * stats.sampling_error(typical, images)
    return (
        "Test accuracy at the end of training in percent, mean over seeds with the 95 % interval of "
        "Student's t on the logit scale in brackets, so that it stays below 100 %; differences in "
        "percentage points (pp), paired by seed, repeats averaged "
        f"within a seed. One seed has no interval. Another {images:,} test images would move an accuracy of "
        f"{100 * typical:.1f} % by {error:.2f} points (standard error). A run has collapsed if it has less "
        "than twice the accuracy of chance."
    )


def _notes(study: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What a reader must know before the figures."""
    notes = []
    dense, best = select(rows, chain=DENSE), _sparsest_match(rows)
    if dense:
        accuracy = page.percent(mean_accuracy(accuracies(dense)))
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
            f"{page.points(gain)} pp{'; sparser ones were not trained' if last else ''}."
        )
    fresh = [arm for arm in arms(rows) if arm in ARMS and ARMS[arm].start == "zero"]
    if any(not chain.endswith("-0") for chain in chains(rows)) and fresh:
        notes.append(
            "Rewound tickets start at their rewind step and train the steps that are left. Without a state "
            f"there, these train all steps from step 0, which favours them: {', '.join(fresh)}."
        )
    diverged = [row for row in rows if row.status == "diverged"]
    if diverged:
        notes.append(
            f"{len(diverged)} of {len(rows)} cells diverged (their loss was not finite) and are left out of "
            "figures and means; a chain ends where its ticket diverges."
        )
    asked = config.from_dict(study["config"])
    # What an arm from outside the package adds is not known where it is not loaded.
    known = all(arm in ARMS for arm in asked.arms)
    planned = imp.cells(asked, config.Lengths(**study["lengths"])) if known else []
    missing = len(
        set(planned) - {imp.Cell(row.seed, row.chain, row.level, row.arm, row.repeat) for row in rows}
    )
    if missing:
        reason = (
            "lie behind a diverged training or are not trained yet" if diverged else "are not trained yet"
        )
        notes.append(f"{missing} of the {len(planned)} cells last asked for {reason}.")
    return notes


def _sparsest_match(rows: Sequence[Row]) -> tuple[str, Row, Interval] | None:
    """The sparsest level at which the mean ticket is at least as good as the mean dense network."""
    dense = accuracies(select(rows, chain=DENSE))
    matching = []
    for chain in chains(rows):
        tickets = select(rows, chain=chain, arm="ticket")
        # Without weights it is no ticket, whatever it reaches.
        for level in {row.level for row in tickets if row.density}:
            of_level = select(tickets, level=level)
            gain = difference(accuracies(of_level), dense)
            if gain.n and gain.mean >= 0:
                matching.append((chain, of_level[0], gain))
    return min(matching, key=lambda found: found[1].density, default=None)


def levels(rows: Sequence[Row], chain: str) -> Table:
    """A chain's levels: accuracy of every arm, and its leader's paired differences."""
    leader = imp.leader(chain)
    controls = [arm for arm in arms(select(rows, chain=chain)) if arm != leader]
    names = [leader, *controls]
    header = ["level", "weights left", "%", *names, f"{leader} − dense (pp)"]
    header += [f"{leader} − {arm} (pp)" for arm in controls]
    dense_rows = select(rows, chain=DENSE)
    dense = accuracies(dense_rows)
    lines = []
    if dense_rows:
        first = dense_rows[0]
        accuracy = page.percent(mean_accuracy(dense))
        blank = [""] * (len(header) - 4)
        lines.append(["0 (dense)", f"{first.weights_left:,}", "100.0", accuracy, *blank])
    for level in sorted({row.level for row in select(rows, chain=chain)}):
        of_level = select(rows, chain=chain, level=level)
        of_arm = {arm: accuracies(select(of_level, arm=arm)) for arm in names}
        line = [str(level), f"{of_level[0].weights_left:,}", f"{100 * of_level[0].density:.1f}"]
        line += [page.percent(mean_accuracy(values)) for values in of_arm.values()]
        line += [
            page.points(difference(of_arm[leader], other))
            for other in (dense, *(of_arm[arm] for arm in controls))
        ]
        lines.append(line)
    led = "" if leader == "ticket" else f"{leader}: "
    return Table(f"{led}Rewound to step {chain.rpartition('-')[2]}", header, lines)


def _facts(study: dict[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run, on what, how long."""
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
        ("Devices", study.get("devices") or "not known"),
        ("Versions", versions or "not known"),
        ("Commit", study.get("git") or "not known"),
    ]  # fmt: skip


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Writes the reports of run folders and, of several, the page that compares them; prints "
        "the path of the last page.",
    )
    parser.add_argument("run", nargs="+", help="a run folder, for example runs/quickstart-0123abcd")
    print(build_all(parser.parse_args(arguments).run))


if __name__ == "__main__":
    cli.run(main)
