"""The command `lthjax`: lists its commands, or runs one of them.

Commands are `run` and the modules of `analysis` that can be run. The list is read from their sources, so
that it is there at once.
"""

import contextlib
import functools
import importlib
import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from lthjax import __version__, cli, home
from lthjax.errors import UserError, unknown

_RUN = "run"
_RUNS = '\nif __name__ == "__main__":\n'


def commands() -> dict[str, str]:
    """Name -> one line of what it does, `run` first; imports none of them."""
    found = {_RUN: _first_line(Path(__file__).with_name("launch.py"))}
    for path in sorted((home.FOLDER / "analysis").iterdir()):
        if (path / "__main__.py").is_file():
            found[path.name] = _first_line(path / "__init__.py")
        elif path.suffix == ".py" and _RUNS in path.read_text(encoding="utf-8"):
            found[path.stem] = _first_line(path)
    return found


def _first_line(source: Path) -> str:
    said = re.match(r'"""(.*?)(?:"""|\n)', source.read_text(encoding="utf-8"))
    return said[1] if said else ""


def listing() -> str:
    """All commands, a line each."""
    known, columns = commands(), shutil.get_terminal_size((120, 24)).columns
    widest = max(map(len, known))
    left = max(columns - widest - 4, 20)
    lines = (
        f"  {name:{widest}}  {textwrap.shorten(said, left, placeholder=' …')}" for name, said in known.items()
    )
    usage = "usage: lthjax COMMAND [OPTIONS]; lthjax COMMAND --help lists the options"
    return "\n".join([usage, "", *lines])


def laboratory(name: str = "") -> ModuleType:
    """A module of `lthjax.analysis`, or that package itself.

    Args:
        name: of the module, below the package.

    Raises:
        UserError: a package that it needs is not installed.
    """
    with laboratory_needed():
        return importlib.import_module(f"lthjax.analysis.{name}".rstrip("."))


@contextlib.contextmanager
def laboratory_needed() -> Iterator[None]:
    """Imports in it may need what the extra `lab` installs.

    Raises:
        UserError: a package is not installed, or another one named `analysis` comes first.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("lthjax", "analysis", ""):
            raise
        raise UserError(
            f"the package {package} is not installed, which studies and reports need; "
            "pip install 'lthjax[lab]' adds it."
        ) from error
    except ImportError as error:
        if error.name != "lthjax.analysis":
            raise
        raise UserError(str(error)) from error


def load(name: str) -> Callable[[list[str]], None]:
    """The main function of a command.

    Raises:
        UserError: there is no such command, or a package that it needs is not installed.
    """
    known = commands()
    if name not in known:
        raise unknown("command", name, known)
    if name == _RUN:
        with laboratory_needed():
            return importlib.import_module("lthjax.launch").main
    package = (home.FOLDER / "analysis" / name).is_dir()
    return laboratory(f"{name}.__main__" if package else name).main


def perform(name: str, arguments: list[str]) -> None:
    """Runs a command to its end, and the process with it where it fails; see `cli.run`."""
    addresses = {"--out": "gs"} if name == _RUN else {}
    if name == _RUN:
        logging.getLogger("absl").setLevel(logging.ERROR)
    cli.run(functools.partial(_main, name), addresses, arguments)


def _main(name: str, arguments: list[str]) -> None:
    # A study is parsed before it loads JAX, and says so itself.
    with cli.loading(name != _RUN):
        command = load(name)
    command(arguments)


def main() -> None:
    """The command line."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        cli.run(lambda _: print(listing()), arguments=[])
    elif name == "--version":
        print(f"lthjax {__version__}")
    else:
        perform(name, rest)
