"""The one error a user can cause: names it suggests, how a command ends with it, what is turned into it."""

import difflib
import shlex
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable

DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,  # NotImplementedError among them: a flag or version that zipfile does not know
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged .npz may raise."""


class UserError(ValueError):
    """Bad input: its message is one sentence that names the field, the value and what is allowed.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def unknown(field: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest name that is."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"{field}: {value!r} is not known; {hint}Known: {', '.join(names)}.")


def shell(*words: object) -> str:
    """A command as it can be pasted into a shell: its words, those quoted that need it."""
    return shlex.join(map(str, words))


def command_line(main: Callable[[list[str]], None]) -> None:
    """Runs a command: a user's mistake ends it with its one sentence and status 2, Ctrl-C with 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
