"""Where analyses and configs lie, and what commands are called: in a checkout, and installed.

In a checkout `analysis/` and `configs/` lie beside `lthjax/`, and commands are `python run.py` and
`python -m analysis.X`. The wheel holds both folders inside `lthjax/`; there the commands are `lthjax X`.
"""

import contextlib
import os
import re
import shlex
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
# Options of one process among several.
_OF_ONE = ("--shard", "--distributed", "--coordinator", "--processes", "--process")


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


def copy_of(out: str) -> Path:
    """A folder; of an address such as gs://bucket/folder that of its local copy.

    Raises:
        UserError: it is an address, and the user has no home.
    """
    address = re.match("(gs):/+(.*)", out)
    return Path(out) if address is None else cache() / "out" / address[1] / address[2]


def config(name: str) -> str:
    """A shipped config as the value of `--config`: `configs/quickstart.py`, or installed `quickstart`."""
    return name if INSTALLED else f"configs/{name}.py"


def typed() -> str:
    """The command of this process, as run folders record it: `run.py --config …`, `lthjax run --config …`."""
    name, *rest = sys.argv
    ours = Path(name).stem == "lthjax" or Path(name).parts[-2:] == ("lthjax", "__main__.py")
    return shell("lthjax" if ours else name, *rest)


def options(command: str) -> list[list[str]]:
    """The words of a command: before its first option, then of every option its name and values."""
    given: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            name, *value = word.split("=", 1)
            given.append([f"--{name[2:].replace('_', '-')}", *value])
        else:
            given[-1].append(word)
    return given


def without(command: str, *names: str) -> str:
    """A command without some options, if it has them."""
    kept = [one for one in options(command) if not {*one[:1]} & {*names}]
    return shlex.join(word for one in kept for word in one)


def again(recorded: str, run: Path | None = None) -> str:
    """A recorded command as one process gives it again here: `python run.py --config …`.

    Args:
        recorded: the command, as `typed` gives it.
        run: the run folder that it is to fill, which may have been copied or merged from another place.
    """
    given = options(without(recorded, *_OF_ONE))
    by_name = {one[0]: one for one in given[1:]}
    # A script of one's own has no --config, and perhaps no --out.
    if run is not None and "--config" in by_name:
        out = by_name.get("--out", ["--out", "runs"])
        if not _is_in(run, *out[1:2]):
            real = run.is_symlink() or run.name in ("", "..")
            out[1:] = [str(Path(os.path.realpath(run) if real else run).parent)]
            given += [] if "--out" in by_name else [out]
    recorded = shlex.join(word for one in given for word in one)
    if recorded.startswith("lthjax "):
        return recorded
    program = re.match(r"(?:(?:\S*/)?run\.py|'[^']*/run\.py')(?: |$)", recorded) if INSTALLED else None
    return f"lthjax run {recorded[program.end() :]}" if program else f"python {recorded}"


def _is_in(run: Path, out: str = "") -> bool:
    """Whether a run folder, or what a symbolic link leads to, lies in what `--out` names."""
    with contextlib.suppress(UserError):
        named, real = os.path.dirname(os.path.abspath(run)), os.path.dirname(os.path.realpath(run))
        return os.path.realpath(copy_of(out)) in (os.path.realpath(named), real)
    return False
