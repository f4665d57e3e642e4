"""A self-contained page: figures and tables into one HTML file, and beside it as files of their own."""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from matplotlib.figure import Figure

from lthjax.errors import UserError
from lthjax.stats import Interval


class Drawn(NamedTuple):
    """A figure and what is said of it.

    Attributes:
        name: of its files.
        title: of it, in the page's words.
        figure: the figure itself.
        caption: what is shown, n, interval, what to see.
    """

    name: str
    title: str
    figure: Figure
    caption: str


class Shown(NamedTuple):
    """A figure as the page shows it; `svg` is base64."""

    name: str
    title: str
    caption: str
    svg: str


class Table(NamedTuple):
    """A table as the page shows it."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """A part of the page: text, then figures, then tables, then a remark on the tables."""

    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Drawn] = ()
    tables: Sequence[Table] = ()
    remark: str = ""


def write(
    folder: Path,
    *,
    title: str,
    subtitle: str,
    sections: Iterable[Section],
    facts: Iterable[tuple[str, str]],
    config: str,
    table: tuple[str, str],
) -> Path:
    """Writes `index.html`, every figure as PNG and SVG, and a table as CSV.

    Args:
        folder: where; made if it is not there.
        title, subtitle: of the page.
        sections: its parts.
        facts: (name, value) of what was run.
        config: of what was run, as text.
        table: (file name, text) of the CSV; written last, as it says that the rest shows its cells.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown: list[dict[str, Any]] = [
            {**section._asdict(), "figures": [_written(folder, drawn) for drawn in section.figures]}
            for section in sections
        ]
        html = environment.get_template("report.html").render(
            title=title,
            subtitle=subtitle,
            sections=shown,
            facts=list(facts),
            config=config,
            table=table[0],
            cells=base64.b64encode(table[1].encode()).decode(),
        )
        page.write_text(html, encoding="utf-8")
        part = folder / f".{table[0]}.tmp"
        part.write_text(table[1])
        os.replace(part, folder / table[0])
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror}).") from error
    return page


def _written(folder: Path, drawn: Drawn) -> Shown:
    drawn.figure.savefig(folder / f"{drawn.name}.png", dpi=160)
    svg = io.BytesIO()
    # No date and no random names, so that the same cells give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "lthjax"}):
        drawn.figure.savefig(svg, format="svg", metadata={"Date": None})
    (folder / f"{drawn.name}.svg").write_bytes(svg.getvalue())
    return Shown(drawn.name, drawn.title, drawn.caption, base64.b64encode(svg.getvalue()).decode())


def percent(interval: Interval) -> str:
    """An accuracy in a table: `97.12 [96.90, 97.34]`; "–" where there is none."""
    return _bracketed(interval, "")


def points(interval: Interval) -> str:
    """A difference in a table: `+0.21 [-0.10, +0.52]`."""
    return _bracketed(interval, "+")


def _bracketed(interval: Interval, sign: str) -> str:
    if not interval.n:
        return "–"
    mean = f"{interval.mean:{sign}.2f}"
    return mean if interval.n == 1 else f"{mean} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"
