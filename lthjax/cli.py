"""The start and end of every command: argument checks, one sentence for an error or a signal."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from lthjax import pulse, shorthand, signals
from lthjax.errors import UserError, of_disk

_Options = TypeVar("_Options")
_NONE: Mapping[str, str] = {}


def run(
    main: Callable[[list[str]], None],
    addresses: Mapping[str, str] = _NONE,
    arguments: list[str] | None = None,
) -> None:
    """Runs a command, and reports an early end in one sentence.

    Args:
        main: the command.
        addresses: option -> the scheme of the addresses that it takes.
        arguments: its arguments; by default those of the process.

    A user's mistake or a disk error ends it with status 2. Ctrl-C, SIGTERM and SIGHUP end it within a few
    seconds, with status 128 plus the signal's number. Files written until then are complete.
    """
    open_streams()
    try:
        with signals.stoppable():
            arguments = sys.argv[1:] if arguments is None else arguments
            check_arguments(arguments, addresses)
            main(arguments)
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of the output has closed it, so nothing can be reported.
        signals.leave(128 + 13)
    except OSError as error:
        _fail(of_disk(error))
    except Exception:
        why = _no_device()
        if not why:
            raise
        _fail(why)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        signals.end(signals.INTERRUPT)
    except signals.Stopped as stop:
        signals.end(stop.args[0])


def open_streams() -> None:
    """Makes the standard streams ready for a command: whatever is printed ends no command.

    One that is closed, as in some daemons, becomes the null device; the next file that is opened would take
    its number, and get what libraries write there. A character that the encoding lacks is printed as "?", or
    as the byte of a file's name that it stands for.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "replace")


def _fail(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def check_arguments(arguments: Sequence[str], addresses: Mapping[str, str] = _NONE) -> None:
    """Rejects arguments that are surely mistakes: a repeated option, an empty value, a URL.

    Of a repeated option only the last value would count. An empty value, for example from an unset shell
    variable, would mean the current folder, and in an address another bucket. A URL would become a folder of
    that name.

    Raises:
        UserError: names the option or the value.
    """
    seen: set[str] = set()
    option = "an argument"
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and len(argument) > 2:
            option, value = name, value if equals else "-"
            # --dry-run and --no-dry-run are one option, as --data.augment and --data.no-augment; - and _ are
            # equivalent.
            plain = "--" + re.sub(r"(^|\.)no-", r"\1", name[2:].replace("_", "-"))
            if plain in seen:
                raise UserError(f"{name}: it is given twice; give it once, all its values after it.")
            seen.add(plain)
        else:
            value = argument
        if not value.strip():
            raise UserError(f"{option}: {value!r} is empty; give a value, or leave the option out.")
        scheme, _, rest = value.partition("://")
        if option in addresses and scheme == addresses[option] and value != scheme:
            if not rest.strip() or rest.startswith("/"):
                raise UserError(f"{option}: {value!r} names no bucket; write {scheme}://BUCKET/FOLDER.")
        elif re.match(r"[A-Za-z][\w+.-]+://", value):
            raise UserError(
                f"{option}: {value!r} is an address, and only folders and files of this machine are read and "
                "written; mount it, or copy it from and to a local folder."
            )


def parsed(kind: type[_Options], arguments: Sequence[str], program: str, usual: Any = None) -> _Options:
    """Parses the options of a command line; `--help` shows the docstrings of their fields.

    `0..4` and `0,1,2` are understood as whole numbers, `30%` as 0.3.

    Args:
        kind: a dataclass.
        arguments: the command line's arguments.
        program: name of the command.
        usual: default options; by default the fields' own defaults.

    Raises:
        UserError: the arguments are not valid.
    """
    import tyro

    arguments = shorthand.expanded(kind, arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                default=tyro.MISSING_NONPROP if usual is None else usual,
                args=arguments,
                prog=program,
                console_outputs=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(one_sentence(said.getvalue(), kind)) from None


def several(metavar: str) -> Any:
    """Marks a field that takes one value or more: `--help` calls it required, and shows no empty default."""
    import tyro

    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(required)")


def one_sentence(box: str, kind: type) -> str:
    """The text of the box that tyro draws around an error, without the box and its advice.

    A value that is no number, where `kind` takes numbers alone, is named with what is allowed.

    Where the terminal takes no UTF-8, there is no frame: a title and a rule come before the text.
    """
    framed = [line for line in box.splitlines() if line.startswith("│")] or box.splitlines()[2:]
    lines = [line.strip("│ \n") for line in framed]
    heading, _, advice = re.sub("[─-]{4,}", "\n", " ".join(lines)).partition("\n")
    wrong = re.match(r"Error parsing (--[\w.-]+):.*?(?:\[|: )('[^\]]*')", heading)
    if wrong and (allowed := shorthand.values(kind, wrong[1])):
        given = re.findall(r"'([^']*)'", wrong[2])
        if allowed.startswith("one or more"):
            is_right = re.compile(r"-?\d+").fullmatch if "whole" in allowed else shorthand.is_number
            given = [value for value in given if not is_right(value)] or given
        verb = "are" if len(given) > 1 else "is"
        return f"{wrong[1]}: {', '.join(map(repr, given))} {verb} not allowed; it must be {allowed}."
    meant = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", advice)
    hint = f"did you mean {meant[1]}? " if meant else ""
    return f"{heading.strip().rstrip('.')}; {hint}--help lists every option and its values."


def seconds(option: str, text: str) -> float:
    """A time that was given as text, such as `5 min`, in seconds.

    Args:
        option: the option's name, for the message.
        text: a number, 0 or more, with the unit s, min or h; a bare 0 needs no unit.

    Raises:
        UserError: it is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    if found is None and text.strip() != "0":
        raise UserError(
            f"{option}: {text!r} is not allowed; give a number and a unit, for example '30 s', '5 min' or "
            "'1 h', or 0 for never."
        )
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0


@contextlib.contextmanager
def loading(tell: bool) -> Iterator[None]:
    """Says that the imports in its block load JAX, and every three seconds for how long so far.

    On a terminal it is said at once; in a log, where an error should be the first line, after three seconds.
    A signal ends the command at once meanwhile. Does nothing where JAX is loaded already.

    Args:
        tell: whether to say anything; nothing is said with `--quiet` either.
    """
    if "jax" in sys.modules:
        yield
        return
    told = pulse.telling(_say, "loading JAX", at_once=sys.stderr.isatty())
    undo = signals.end_at_once()
    try:
        with told if tell and "--quiet" not in sys.argv else contextlib.nullcontext():
            yield
    finally:
        undo()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def load_jax() -> None:
    """Imports JAX, which reads its environment variables.

    Raises:
        UserError: one of the variables has a value that JAX does not accept.
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


def _no_device() -> str:
    """Why JAX finds no device, if its environment variables are the cause; else ""."""
    said = [
        f"{name}: {os.environ[name]!r}"
        for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
        if os.environ.get(name)
    ]
    if not said or "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # JAX raises several types, some without a message
        reason = (str(error).strip() or "no such device").splitlines()[0]
        return (
            f"{' and '.join(said)}: JAX cannot start with it ({reason}); unset the variable, or name what "
            "this machine and this JAX have, for example JAX_PLATFORMS=cpu."
        )
    return ""
