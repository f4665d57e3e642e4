"""Where analyses and configs lie, and what commands are called: in a checkout, and installed.

In a checkout `analysis/` and `configs/` lie beside `lthjax/`, and commands are `python run.py` and
`python -m analysis.X`. The wheel holds both folders inside `lthjax/`; there the commands are `lthjax X`.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
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
    words = shlex.split(command)
    ours = _is_ours(words)
    for word in words:
        if word.startswith("--"):
            name, *value = word.split("=", 1)
            given.append([name.replace("_", "-") if ours else name, *value])
        else:
            given[-1].append(word)
    return given


def without(command: str, *names: str) -> str:
    """A command without some options, if it has them."""
    kept = [one for one in options(command) if not {*one[:1]} & {*names}]
    return shlex.join(word for one in kept for word in one)


def again(recorded: str, run: Path | None = None, name: str = "") -> str:
    """A recorded command as one process gives it again here: `python run.py --config …`.

    That of a script of one's own, whose options are not known, stays as it was typed.

    Args:
        recorded: the command, as `typed` gives it.
        run: the run folder that it is to fill, which may have been copied or merged from another place.
        name: what the folder has to be called, for the command to find it.
    """
    if not _is_ours(shlex.split(recorded)):
        return recorded if recorded.startswith("lthjax ") else f"python {recorded}"
    given = options(without(recorded, *_OF_ONE))
    if run is not None:
        by_name = {one[0]: one for one in given[1:]}
        out = by_name.get("--out", ["--out", "runs"])
        # The folder, and what a symbolic link leads to; of two that have the name either is right.
        paths = [Path(os.path.abspath(run)), Path(os.path.realpath(run))]
        parents = [path.parent for path in paths if path.name == name] or [path.parent for path in paths]
        if not _is_one_of(parents, *out[1:2]):
            # Absolute, as a page is also read where it was not made.
            out[1:] = [str(parents[0])]
            given += [] if "--out" in by_name else [out]
    first, *rest = (word for one in given for word in one)
    if first == "lthjax":
        return shlex.join((first, *rest))
    return shlex.join(("lthjax", "run", *rest) if INSTALLED else ("python", first, *rest))


def _is_ours(words: Sequence[str]) -> bool:
    """Whether a command, recorded or offered, is one of the program that trains."""
    program = words[1:2] if words[:1] == ["python"] else words[:1]
    return words[:2] == ["lthjax", "run"] or Path(*program).name == "run.py"


def _is_one_of(folders: Sequence[Path], out: str = "") -> bool:
    """Whether what `--out` names is one of some folders."""
    with contextlib.suppress(UserError):
        return os.path.realpath(copy_of(out)) in {os.path.realpath(folder) for folder in folders}
    return False
