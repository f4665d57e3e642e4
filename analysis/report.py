"""The report of a run folder: a self-contained page, figures, and cells.csv.

python -m analysis.report runs/quickstart-0123abcd
"""

import argparse
import base64
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from analysis import figures
from analysis.cells import Row, arms, by_seed, chains, load, select, to_csv
from lthjax import config, imp
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE
from lthjax.stats import Interval, mean_interval
from lthjax.store import read_study


class Shown(NamedTuple):
    """A figure as the page shows it."""

    name: str
    title: str
    caption: str
    svg: str


class Table(NamedTuple):
    """A table as the page shows it."""

    title: str
    header: list[str]
    rows: list[list[str]]


def build(run: str | Path, *, only_if_changed: bool = False) -> Path:
    """Writes `report/` into a run folder.

    Args:
        run: the run folder; what is not trained yet is simply not shown.
        only_if_changed: whether to leave a report that shows these very cells as it is.

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
    page, table = folder / "index.html", to_csv(rows)
    written = (folder / "cells.csv").read_text() if (folder / "cells.csv").is_file() else None
    if only_if_changed and page.is_file() and written == table:
        return page
    title = _title(study)
    drawn = [
        (
            "accuracy",
            "Test accuracy against weights left",
            figures.accuracy(rows, f"{title}: accuracy"),
            "Test accuracy at the end of training for every level and arm. Points are seeds (repeats "
            "averaged), lines their mean, bands (bars for two seeds) the 95 % interval of the mean by "
            "Student's t, cut off at the figure's edge. The dense network is the horizontal line. Look for "
            "how far to the right the ticket stays at it, and where the controls leave it.",
        ),
        (
            "early_stop",
            "Early-stop step against weights left",
            figures.early_stop(rows, f"{title}: early stopping"),
            "The step of the lowest validation loss, found after training, among the steps at which it was "
            "evaluated; a lower one means faster learning. Points, lines and bands as above.",
        ),
    ]
    try:
        folder.mkdir(exist_ok=True)
        shown = [_write_figure(folder, *of_figure) for of_figure in drawn]
        html = _render(title, study, rows, table, shown)
        page.write_text(html, encoding="utf-8")
        # Last, as it is what says that the rest shows these cells.
        part = folder / ".cells.csv.tmp"
        part.write_text(table)
        os.replace(part, folder / "cells.csv")
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror}).") from error
    return page


def _write_figure(folder: Path, name: str, title: str, figure: Figure, caption: str) -> Shown:
    figure.savefig(folder / f"{name}.png", dpi=160)
    svg = io.BytesIO()
    # No date, so that the same cells give the same file.
    figure.savefig(svg, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_bytes(svg.getvalue())
    return Shown(name, title, caption, base64.b64encode(svg.getvalue()).decode())


def _render(title: str, study: dict[str, Any], rows: Sequence[Row], cells: str, shown: list[Shown]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    seeds = len({row.seed for row in rows})
    return environment.get_template("report.html").render(
        title=title,
        subtitle=f"Lottery-ticket study {study['config']['name']!r}: {len(rows)} cells, {seeds} "
        f"seed{'s' if seeds > 1 else ''}.",
        notes=_notes(study, rows),
        figures=shown,
        tables=[_levels(rows, chain) for chain in chains(rows)],
        facts=_facts(study, rows),
        config=json.dumps(study["config"], indent=1),
        cells=base64.b64encode(cells.encode()).decode(),
    )


def _title(study: dict[str, Any]) -> str:
    names = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5", "small_cnn": "Small CNN"}
    names |= {f"conv{n}": f"Conv-{n}" for n in (2, 4, 6)}
    sets = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "KMNIST"}
    sets |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist_10k": "10,000 images of MNIST"}
    model, data = study["config"]["model"], study["config"]["data"]["name"]
    return f"{names.get(model, model)} on {sets.get(data, data)}"


def _notes(study: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What a reader must know before the figures."""
    notes = []
    dense, best = select(rows, chain=DENSE), _sparsest_match(rows)
    if dense:
        accuracy = _percent(mean_interval(list(_accuracies(dense).values())))
        notes.append(
            f"The dense network has {accuracy} % test accuracy with "
            f"{dense[0].weights_left:,} prunable weights."
        )
    if best is not None:
        chain, row, difference = best
        notes.append(
            f"The sparsest tickets whose mean accuracy is that of the dense network or more have "
            f"{row.weights_left:,} weights, {100 * row.density:.1f} % ({chain}, level {row.level}): "
            f"{_points(difference)} pp."
        )
    if any(not chain.endswith("-0") for chain in chains(rows)) and "reinit" in arms(rows):
        notes.append(
            "Rewound tickets start at their rewind step and train the steps that are left; reinit has no "
            "state there and trains all steps from step 0, which favours the control."
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
    dense = _accuracies(select(rows, chain=DENSE))
    matching = []
    for chain in chains(rows):
        tickets = select(rows, chain=chain, arm="ticket")
        for level in {row.level for row in tickets}:
            of_level = select(tickets, level=level)
            difference = _difference(_accuracies(of_level), dense)
            if difference.n and difference.mean >= 0:
                matching.append((chain, of_level[0], difference))
    return min(matching, key=lambda found: found[1].density, default=None)


def _levels(rows: Sequence[Row], chain: str) -> Table:
    """A chain's levels: accuracy of every arm, and its leader's paired differences."""
    names = arms(select(rows, chain=chain))
    leader, *controls = names
    header = ["level", "weights left", "%", *names, f"{leader} − dense (pp)"]
    header += [f"{leader} − {arm} (pp)" for arm in controls]
    dense_rows = select(rows, chain=DENSE)
    dense = _accuracies(dense_rows)
    lines = []
    if dense_rows:
        first = dense_rows[0]
        accuracy = _percent(mean_interval(list(dense.values())))
        blank = [""] * (len(header) - 4)
        lines.append(["0 (dense)", f"{first.weights_left:,}", "100.0", accuracy, *blank])
    for level in sorted({row.level for row in select(rows, chain=chain)}):
        of_level = select(rows, chain=chain, level=level)
        accuracies = {arm: _accuracies(select(of_level, arm=arm)) for arm in names}
        line = [str(level), f"{of_level[0].weights_left:,}", f"{100 * of_level[0].density:.1f}"]
        line += [_percent(mean_interval(list(values.values()))) for values in accuracies.values()]
        line += [
            _points(_difference(accuracies[leader], other))
            for other in (dense, *(accuracies[arm] for arm in controls))
        ]
        lines.append(line)
    made_by, _, step = chain.rpartition("-")
    led = "" if leader == "ticket" else f"{made_by}: "
    return Table(f"{led}Rewound to step {step}", header, lines)


def _accuracies(rows: Sequence[Row]) -> dict[int, float]:
    return {seed: 100 * value for seed, value in by_seed(rows, "test_accuracy").items()}


def _difference(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """The mean difference over the seeds that both have."""
    return mean_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def _percent(interval: Interval) -> str:
    if not interval.n:
        return "–"
    if interval.n == 1:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _points(interval: Interval) -> str:
    if not interval.n:
        return "–"
    if interval.n == 1:
        return f"{interval.mean:+.2f}"
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _facts(study: dict[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run, on what, how long."""
    data, lengths = study["data"], study["lengths"]
    seconds = sum(row.seconds for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    return [
        ("Commands", "; ".join(study.get("commands", []))),
        ("Data", f"{data['name']} ({data['train']:,} train, {data['validation']:,} validation by seed, "
                 f"{data['test']:,} test images of {'×'.join(map(str, data['shape']))}), read from "
                 f"{data['source']}, content hash {data['digest']}"),
        ("Training", f"{lengths['total']:,} steps of batch {study['config']['train']['batch']} "
                     f"({lengths['total'] / lengths['per_epoch']:.1f} epochs), evaluated every "
                     f"{lengths['evaluate']:,} steps"),
        ("Time", f"{seconds / 60:.1f} minutes of training in all, {seconds / len(rows):.1f} s a cell; "
                 f"{sum(row.steps for row in rows) / seconds:,.0f} steps a second, evaluation included"),
        ("Devices", study["devices"]),
        ("Versions", versions),
        ("Commit", study["git"] or "not known"),
    ]  # fmt: skip


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Writes the report of run folders."
    )
    parser.add_argument("run", nargs="+", help="a run folder, for example runs/quickstart-0123abcd")
    for run in parser.parse_args(arguments).run:
        print(build(run))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
