"""The one exception for user errors, the exceptions that become one, and checks of names and paths."""

import difflib
import errno
import os
import re
import shlex
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,  # NotImplementedError among them: a flag or version that zipfile does not know
    SyntaxError,  # a header that is no Python literal
    tokenize.TokenError,  # likewise, from numpy's second attempt
    TypeError,  # a header whose literal is of another type
    MemoryError,  # a header that claims more memory than there is
    zipfile.BadZipFile,
    zlib.error,
)
"""The exceptions that reading a damaged .npz may raise."""


class UserError(ValueError):
    """Bad input: its message is one sentence that names the field, the value and what is allowed.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def unknown(field: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table; suggests the nearest name that is."""
    names = sorted(allowed)
    lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    return UserError(f"{field}: {value!r} is not known; {hint}Known: {', '.join(names)}.")


def of_disk(error: OSError) -> str:
    """The sentence for an error of the disk that nothing else has turned into one."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; mend it, and the same command goes on from here."


def counted(n: int, noun: str, plural: str = "") -> str:
    """A number of things: `1 seed`, `1,200 seeds`; `plural` where it does not end in s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def shell(*words: object) -> str:
    """A command that can be pasted into a shell: its words, quoted where needed."""
    return shlex.join(map(str, words))


def check_folder(path: str | Path, option: str) -> None:
    """Rejects a path that is no local folder and cannot become one.

    Args:
        path: the folder; need not exist.
        option: the command line option that names it.

    Raises:
        UserError: it is a URL, a file, or cannot be accessed.
    """
    # `Path` has merged two slashes into one.
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise UserError(
            f"{option}: {str(path)!r} is an address; it must be a folder of this machine: mount it, or copy "
            "it from and to a local folder."
        )
    try:
        why: object = "" if stat.S_ISDIR(os.stat(path).st_mode) else os.strerror(errno.ENOTDIR)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = getattr(error, "strerror", None) or error
    if why:
        done = "written" if option == "--out" else "read"
        raise UserError(
            f"{option}: {str(path)!r} cannot be {done} ({why}); choose another folder with {option}."
        )
