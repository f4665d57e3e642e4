"""The one error a user can cause: names it suggests, how a command ends with it, what is turned into it."""

import difflib
import errno
import os
import re
import stat
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,  # NotImplementedError among them: a flag or version that zipfile does not know
    SyntaxError,  # a header that is no Python literal
    tokenize.TokenError,  # likewise, of the second try that numpy makes
    TypeError,  # a header whose literal is of another type
    MemoryError,  # a header that claims more than there is
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


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises for what no command line means: an option twice, an empty value, an address on the net.

    Of an option that is given twice only the last would count; an empty value, as an unset variable of the
    shell leaves it, would be the current folder; an address would be a folder of that name.

    Raises:
        UserError: names the option or the value.
    """
    seen: set[str] = set()
    option = "an argument"
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and len(argument) > 2:
            option, value = name, value if equals else "-"
            # --dry-run and --no-dry-run are one; - and _ mean the same.
            plain = "--" + name[2:].replace("_", "-").removeprefix("no-")
            if plain in seen:
                raise UserError(f"{name}: it is given twice; give it once, all its values after it.")
            seen.add(plain)
        else:
            value = argument
        if not value.strip():
            raise UserError(f"{option}: {value!r} is empty; give a value, or leave the option out.")
        if re.match(r"[A-Za-z][\w+.-]+://", value):
            raise UserError(
                f"{option}: {value!r} is an address, and only folders and files of this machine are read and "
                "written; mount it, or copy it from and to a local folder."
            )


def check_folder(path: str | Path, option: str) -> None:
    """Raises for a path that is no local folder and cannot become one.

    Args:
        path: the folder; need not exist.
        option: of the command line that names it.

    Raises:
        UserError: it is an address, a file, or the system does not let it be looked at.
    """
    # `Path` has made one slash of two.
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


def load_jax() -> None:
    """Imports JAX, which reads its environment variables.

    Raises:
        UserError: one of them has a value that JAX does not take.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:
        named = [
            name for name in os.environ if name.startswith("JAX_") and name.lower() in str(error).lower()
        ]
        if not named:
            raise
        raise UserError(
            f"{named[0]}: {os.environ[named[0]]!r} is not allowed ({error}); unset the variable, or give it "
            "a value that JAX takes."
        ) from error


def command_line(main: Callable[[list[str]], None]) -> None:
    """Runs a command: a user's mistake ends it with its one sentence and status 2, Ctrl-C with 130."""
    try:
        check_arguments(sys.argv[1:])
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        why = _no_device()
        if not why:
            raise
        print(f"error: {why}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _no_device() -> str:
    """Why JAX finds no device, where its environment variables are what is wrong; else ""."""
    said = [
        f"{name}: {os.environ[name]!r}"
        for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
        if os.environ.get(name)
    ]
    if not said or "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # JAX raises several kinds, some of them without a word
        reason = (str(error).strip() or "no such device").splitlines()[0]
        return (
            f"{' and '.join(said)}: JAX cannot start with it ({reason}); unset the variable, or name what "
            "this machine and this JAX have, for example JAX_PLATFORMS=cpu."
        )
    return ""
