"""Ledgers: published settings and values as CSV files, each with its source; a user's own are read likewise.

Columns, all text; a field may be empty where nothing is said:

    quantity   "setting", "weights" (prunable), "parameters" (all that are trained), "accuracy", "gap",
               "speedup", "rewound" or "early_stop_step"
    of         the setting's name; or an arm
    other      gap: the arm that is subtracted; speedup: the arm that takes longer
    density    weights left / prunable weights; "best": the level of the largest gap
    rewind     the step that tickets are rewound to; empty: the earliest of the run, which in "rewound" is
               subtracted from the step that must be named there
    at         accuracies and gaps: "early stop", the step of the lowest validation loss, or "end"
    relation   "=", ">", ">=", "<" or "<=": the measured value is so to `value`
    value      the published one: percent, percentage points, a ratio, a count; empty: none is printed
    spread     its own spread, as printed; of a speedup as a ratio, so that 2.5 ± 0.3 is a factor of 2.8 / 2.5
    margin     for "=": the largest difference that is still agreement; of a speedup a factor
    needs      settings that must be equal, blanks between: `train.steps`, or `optim.lr=0.1`; of a setting
               "all" says that no value can be compared without it
    source     paper, section, figure or table; says "not checked" where its text was not read
    note       words after the quantity
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from lthjax.errors import UserError, unknown
from lthjax.shorthand import is_number

from .. import tables
from ..rows import TICKET

FOLDER = Path(__file__).parent.parent / "ledgers"
COUNTS = ("weights", "parameters")
QUANTITIES = ("setting", *COUNTS, "accuracy", "gap", "speedup", "rewound", "early_stop_step")
RELATIONS = ("=", ">", ">=", "<", "<=")
BEST, EARLY, END, ALL = "best", "early stop", "end", "all"


class Line(NamedTuple):
    """A line of a ledger; see the module for its columns."""

    quantity: str
    of: str
    other: str
    density: str
    rewind: int | None
    at: str
    relation: str
    value: str
    spread: float | None
    margin: float | None
    needs: str
    source: str
    note: str


class Ledger(NamedTuple):
    """A ledger.

    Attributes:
        name: its name.
        settings: the lines of settings.
        values: all other lines.
    """

    name: str
    settings: list[Line]
    values: list[Line]


def known() -> list[str]:
    """The names of the ledgers that are there."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read(name: str) -> Ledger:
    """A ledger by its name, or by the path of a CSV.

    Raises:
        UserError: there is none, or a line of it is not allowed; the message names line and field.
    """
    path = Path(name) if name.endswith(".csv") else FOLDER / f"{name}.csv"
    if not path.is_file():
        if name.endswith(".csv"):
            raise UserError(
                f"--against: there is no file {name!r}; name a CSV, or one of {', '.join(known())}."
            )
        if Path(name).is_file():
            raise UserError(f"--against: {name!r} is not allowed; a file must have a name that ends in .csv.")
        raise unknown("--against", name, known())
    try:
        lines = tables.read_rows(path, Line)
    except tables.DAMAGED as error:
        raise UserError(
            f"{path}: it is no ledger ({error}); its columns are {', '.join(Line._fields)}."
        ) from error
    for number, line in enumerate(lines, 2):
        _check(f"{path}, line {number}", line)
    settings = [line for line in lines if line.quantity == "setting"]
    named = {line.of for line in settings}
    for number, line in enumerate(lines, 2):
        for need in () if line.quantity == "setting" else line.needs.split():
            if "=" not in need and need not in named:
                raise UserError(
                    f"{path}, line {number}: needs: {need!r} has no value; add a line with the setting, or "
                    f"write {need}=VALUE."
                )
    return Ledger(path.stem, settings, [line for line in lines if line.quantity != "setting"])


def _check(where: str, line: Line) -> None:
    def wrong(field: str, allowed: str) -> UserError:
        return UserError(f"{where}: {field}: {getattr(line, field)!r} is not allowed; it must be {allowed}.")

    if line.quantity not in QUANTITIES:
        raise wrong("quantity", ", ".join(QUANTITIES))
    if not line.source:
        raise wrong("source", "the paper, with its section, figure or table")
    if line.quantity == "setting":
        return
    if line.quantity in ("accuracy", "gap", "rewound") and line.at not in (EARLY, END):
        raise wrong("at", f"{EARLY!r} or {END!r}")
    if line.quantity == "rewound" and line.of != TICKET:
        raise wrong("of", f"{TICKET!r}, whose rewind steps are compared")
    if line.quantity == "rewound" and not line.rewind:
        raise wrong("rewind", "a step after the earliest, which is subtracted")
    if line.quantity in ("gap", "speedup") and not line.other:
        raise wrong("other", "an arm")
    if (
        line.density != BEST
        and line.density
        and not (is_number(line.density) and 0 < float(line.density) <= 1)
    ):
        raise wrong("density", f"a number in (0, 1], or {BEST!r}")
    if line.density == BEST and (line.quantity, line.of) != ("gap", TICKET):
        raise wrong("density", "a number in (0, 1]: only gaps of the ticket have a best level")
    if not line.value:
        return
    if line.relation not in RELATIONS:
        raise wrong("relation", ", ".join(RELATIONS))
    if not (is_number(line.value) and math.isfinite(float(line.value))):
        raise wrong("value", "a number")
    if line.quantity in COUNTS and not (float(line.value).is_integer() and float(line.value) > 0):
        raise wrong("value", "a whole number above 0")
    if line.quantity == "speedup" and float(line.value) <= 0:
        raise wrong("value", "a ratio above 0")
    if line.spread is not None and not 0 <= line.spread < math.inf:
        raise wrong("spread", "a number of 0 or more, or empty")
    if line.relation == "=" and line.quantity not in COUNTS:
        least = 1 if line.quantity == "speedup" else 0
        if line.margin is None or not line.margin > least:
            raise wrong("margin", f"a number above {least}")


def parsed(text: str) -> Any:
    """The value of a setting: JSON where it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
