"""Where analyses and configs lie, and what commands are called: in a checkout, and installed.

In a checkout `analysis/` and `configs/` lie beside `lthjax/`, and commands are `python run.py` and
`python -m analysis.X`. The wheel holds both folders inside `lthjax/`; there the commands are `lthjax X`.
"""

import os
import re
import sys
from pathlib import Path

from lthjax.errors import UserError, shell

_HERE = Path(__file__).parent
INSTALLED = (_HERE / "analysis" / "__init__.py").is_file()
"""Whether this is an installed package, and not a checkout."""
FOLDER = _HERE if INSTALLED else _HERE.parent
"""The folder of `analysis` and `configs`."""
RUN = "lthjax run" if INSTALLED else "run.py"
"""The program that trains, as its usage line names it."""


def command(name: str, *arguments: object) -> str:
    """A command as it can be pasted into a shell here: `python -m analysis.predict runs/A`.

    Args:
        name: "run", or the name of an analysis.
        *arguments: its arguments; they are quoted where needed.
    """
    if INSTALLED:
        return shell("lthjax", name, *arguments)
    before = ("python", "run.py") if name == "run" else ("python", "-m", f"analysis.{name}")
    return shell(*before, *arguments)


def cache() -> Path:
    """Our folder in the user's cache folder: under XDG_CACHE_HOME or ~/.cache (on Windows LOCALAPPDATA).

    Raises:
        UserError: the user has no home, as a user id of a container may have none.
    """
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return Path(named or Path.home() / ".cache") / "lthjax"
    except RuntimeError as error:
        raise UserError("HOME: this user has no home folder; set HOME or XDG_CACHE_HOME to one.") from error


def config(name: str) -> str:
    """A shipped config as the value of `--config`: `configs/quickstart.py`, or installed `quickstart`."""
    return name if INSTALLED else f"configs/{name}.py"


def typed() -> str:
    """The command of this process, as run folders record it: `run.py --config …`, `lthjax run --config …`."""
    name, *rest = sys.argv
    ours = Path(name).stem == "lthjax" or Path(name).parts[-2:] == ("lthjax", "__main__.py")
    return shell("lthjax" if ours else name, *rest)


def again(recorded: str) -> str:
    """A recorded command as it is given again here: `python run.py --config …`."""
    if recorded.startswith("lthjax "):
        return recorded
    program = re.match(r"(?:(?:\S*/)?run\.py|'[^']*/run\.py')(?: |$)", recorded) if INSTALLED else None
    return f"lthjax run {recorded[program.end() :]}" if program else f"python {recorded}"
