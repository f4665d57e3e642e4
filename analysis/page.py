"""A self-contained page: figures and tables into one HTML file, and beside it as files of their own."""

import base64
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe
import matplotlib
import rich.box
import rich.markup
import rich.table
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter
from rich.cells import cell_len
from rich.console import Console

from lthjax import files
from lthjax.errors import UserError

from . import tables

FILES = "files.json"
# The files of a figure.
_KINDS = ("png", "svg", "csv")
# Columns of a terminal that holds any table.
_ANY = 10_000


class Drawn(NamedTuple):
    """A figure with its texts.

    Attributes:
        name: of its files.
        title: on the page.
        figure: the figure itself.
        caption: what it shows, n, interval, what to look for.
        data: (header, rows) of its CSV.
        raster: whether the page shows the PNG, because the SVG is too large.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    data: tuple[Sequence[str], Sequence[Sequence[Any]]]
    raster: bool = False


class Shown(NamedTuple):
    """A figure as the page shows it; `image` and `data` (its CSV) are URLs."""

    name: str
    title: str
    caption: str
    image: str
    file: str
    data: str


class Link(NamedTuple):
    """Words with an address, for example `#levels` on the page."""

    text: str
    href: str

    def __str__(self) -> str:
        """Its words."""
        return self.text


class Table(NamedTuple):
    """A table as the page shows it.

    Attributes:
        title: "" where the section's is enough.
        header: names of the columns.
        rows: their cells.
        words: how many of the first columns hold words, not numbers.
        folded: the line that unfolds it; "" for a table that is shown.
    """

    title: str
    header: list[str]
    rows: Sequence[Sequence[str | Link]]
    words: int = 1
    folded: str = ""


class Section(NamedTuple):
    """A part of the page: a leading sentence, text, figures, tables, a remark; `#anchor` leads to it."""

    anchor: str
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Drawn] = ()
    tables: Sequence[Table] = ()
    remark: str = ""
    lead: str = ""


def write(
    folder: Path,
    *,
    title: str,
    subtitle: str,
    sections: Iterable[Section],
    facts: Iterable[tuple[str, str]],
    config: str,
    table: tuple[str, str],
    beside: Mapping[str, str] | None = None,
    shows: str = "",
) -> Path:
    """Writes `index.html` with its figures (PNG, SVG, CSV) and tables, last their sums; returns its path.

    Args:
        folder: made if it is not there.
        title, subtitle: of the page.
        sections: its parts.
        facts: (name, value) about the run.
        config: of the run, as text.
        table: (file name, text) of a CSV, which the page holds, too.
        beside: file name -> text of further tables.
        shows: a digest of all that the page is made of, for `is_whole`.

    Raises:
        UserError: the folder cannot be written.
    """
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown: list[dict[str, Any]] = [
            {**section._asdict(), "figures": [show(folder, drawn) for drawn in section.figures]}
            for section in sections
        ]
        cells = data_url(table[1].encode(), "csv")
        _point_to_the_first(cells, shown)
        templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        made = jinja2.Environment(loader=templates, autoescape=True, undefined=jinja2.StrictUndefined)
        made.filters["unbroken"] = unbroken
        made.tests["command"] = lambda value: str(value).startswith(("python ", "lthjax "))
        html = made.get_template("report.html").render(
            title=title,
            subtitle=subtitle,
            sections=shown,
            facts=list(facts),
            config=config,
            config_url=data_url(config.encode(), "json"),
            outcomes=("supported", "refuted", "equivalent", "undecided", "too few seeds", "not tested"),
            table=table[0],
            cells=cells,
        )
        texts = {table[0]: table[1], **(beside or {}), page.name: html}
        for name, text in texts.items():
            files.write_whole(folder / name, text.encode())
        figures = [f"{one.name}.{kind}" for section in shown for one in section["figures"] for kind in _KINDS]
        sums = {name: files.sha256(folder / name) for name in (*figures, *texts)}
        mark = json.dumps({"shows": shows, "files": sums}, indent=1) + "\n"
        files.write_whole(folder / FILES, mark.encode())
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror}).") from error
    return page


def unbroken(text: object) -> markupsafe.Markup:
    """Text as HTML in which options, such as --dry-run, and paths are not broken at a hyphen.

    A word that is wider than its line is still broken.
    """
    words = [
        markupsafe.Markup('<span class="whole">{}</span>').format(word)
        if re.match(r"-{1,2}[a-z]|\S*[/.]\S*-", word)
        else markupsafe.escape(word)
        for word in str(text).split(" ")
    ]
    return markupsafe.Markup(" ").join(words)


def _point_to_the_first(cells: str, shown: Sequence[dict[str, Any]]) -> None:
    """Lets figures of the same data link to the first of them, so that the page holds the data once."""
    first = {cells: "run"}
    for section in shown:
        for place, figure in enumerate(section["figures"]):
            anchor = f"figure-{figure.name}"
            same = first.setdefault(figure.data, anchor)
            if same != anchor:
                section["figures"][place] = figure._replace(data=f"#{same}")


def write_folder(folder: Path, figures: Iterable[Drawn], contents: Mapping[str, str]) -> Path:
    """Writes figures and then, as `tables.write_tables`, tables to a folder, which it makes and returns.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawn in figures:
            show(folder, drawn)
        tables.write_tables(folder, contents)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    return folder


def written(folder: Path) -> list[str]:
    """The names of the files that the last `write` made in a folder, without `files.json`."""
    return [*_listed(folder).get("files", {})]


def is_whole(folder: Path, shows: str) -> bool:
    """Whether a folder holds the page with this digest, and every file is as `write` made it."""
    found = _listed(folder)
    try:
        return found.get("shows") == shows and all(
            files.sha256(folder / name) == digest for name, digest in found["files"].items()
        )
    except (OSError, KeyError):
        return False


def _listed(folder: Path) -> dict[str, Any]:
    """The content of `files.json`; empty where it is missing or damaged."""
    try:
        found = json.loads((folder / FILES).read_text(encoding="utf-8"))
        return found if isinstance(found["files"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def show(folder: Path, drawn: Drawn) -> Shown:
    """Writes a figure's files; they hold no date or random name, so the same data give the same bytes."""
    figure = drawn.figure
    _literal(figure)
    _lay_out(figure)
    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lthjax"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    # Surfaces are large as pixels, too, and have no fine lines.
    png = _png(figure, 120 if drawn.raster else 160)
    contents = {"png": png, "svg": svg.getvalue(), "csv": tables.to_csv(*drawn.data).encode()}
    for kind, content in contents.items():
        files.write_whole(folder / f"{drawn.name}.{kind}", content)
    kind = "png" if drawn.raster else "svg"
    image, data = (data_url(contents[name], name) for name in (kind, "csv"))
    return Shown(drawn.name, drawn.title, drawn.caption, image, f"{drawn.name}.{kind}", data)


def _png(figure: Figure, dpi: int) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
    return png.getvalue()


def _lay_out(figure: Figure) -> None:
    """Lays a figure out for SVG, once for all its files.

    While a figure has a layout engine, `savefig` lays it out and draws it unseen before each file.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        # That of a figure of pyplot holds its window.
        canvas = figure.canvas
        FigureCanvasSVG(figure)
        drawn_at, figure.dpi = figure.dpi, FigureCanvasSVG.fixed_dpi
        engine.execute(figure)
        figure.dpi = drawn_at
        figure.set_canvas(canvas)
    with matplotlib.rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
        figure.set_layout_engine(None)


def _literal(figure: Figure) -> None:
    """Escapes `$` in the texts of a figure, so that a name begins no formula.

    Labels that matplotlib itself writes, as on log scales, stay formulas.
    """

    def escaped(text: str) -> str:
        return text.replace("\\$", "$").replace("$", "\\$")

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_text(escaped(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            given = axis.get_major_formatter()
            if isinstance(given, FixedFormatter | FuncFormatter):
                axis.set_major_formatter(FuncFormatter(lambda x, i, of=given: escaped(of(x, i))))


def data_url(contents: bytes, kind: str) -> str:
    """Bytes as a data URL; `kind` is "png", "svg", "csv" or "json"."""
    media = {"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv", "json": "application/json"}
    return f"data:{media[kind]};base64,{base64.b64encode(contents).decode()}"


def print_section(section: Section) -> None:
    """Prints a section's tables and remark.

    No number or word is cut: a table that is too wide for the terminal has no lines between its columns, and
    where that is not enough, rows as long as they are.
    """
    # A pipe has no width; rich would take 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in section.tables:
        shown = _terminal(table)
        if console.measure(shown, options=console.options.update(width=_ANY)).minimum > console.width:
            shown.box, shown.padding, shown.show_edge = rich.box.SIMPLE_HEAD, 0, False
        console.print(shown, crop=False)
    console.print(section.remark)


def _terminal(table: Table) -> rich.table.Table:
    """A table for the terminal, whose columns are at least as wide as their longest word or number."""
    plain = rich.markup.escape
    shown = rich.table.Table(title=plain(table.title), title_justify="left")
    for place, name in enumerate(table.header):
        texts = [name.split(), *(str(row[place]).split() for row in table.rows)]
        least = max(cell_len(word) for text in texts for word in ["", *text])
        # What has no blank anywhere is as wide as it is: others give way first.
        whole = all(len(text) < 2 for text in texts)
        shown.add_column(
            plain(name),
            justify="left" if place < table.words else "right",
            min_width=least,
            no_wrap=whole,
        )
    for row in table.rows:
        shown.add_row(*(plain(str(value)) for value in row))
    return shown
