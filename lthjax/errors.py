"""The one error a user can cause: names it suggests, how a command ends with it, what is turned into it."""

import contextlib
import difflib
import os
import shlex
import signal
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn

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


# Seconds that a command has to end by itself after a signal.
_GRACE = 3.0


class Stopped(BaseException):
    """A signal has asked the process to end; its argument is the signal's number."""


def command_line(main: Callable[[list[str]], None]) -> None:
    """Runs a command and says in one sentence why it ended early.

    A user's mistake ends it with status 2, and so does a fault of the disk; Ctrl-C, SIGTERM and SIGHUP
    with 128 and the signal's number, within a few seconds. What was written until then is whole.
    """
    try:
        with _stoppable():
            main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Who read the output has gone; nothing can be said to them.
        os._exit(128 + 13)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror or error}"
        print(f"error: {why}; mend it, and the same command goes on from here.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(_goes_on(signal.SIGINT), file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        _end(stop.args[0])


def _goes_on(number: int) -> str:
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return f"stopped{by}; the same command goes on from here"


def _end(number: int) -> NoReturn:
    """Ends the process at once: threads of libraries would keep it for longer."""
    with contextlib.suppress(OSError):
        print(_goes_on(number), file=sys.stderr, flush=True)
    os._exit(128 + number)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turns signals into an exception, and ends the process where that does not get through in time.

    Python handles signals between two of its own instructions; a compiled program runs for longer than
    that. So a thread waits for them, too.
    """
    ending = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    ending = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    seen, told = os.pipe()
    os.set_blocking(told, False)
    over = threading.Event()

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    def watch() -> None:
        while heard := os.read(seen, 1):
            if heard[0] in ending and not over.wait(_GRACE):
                _end(heard[0])
        os.close(seen)

    before = {number: signal.getsignal(number) for number in ending}
    for number in ending:
        if number != signal.SIGINT:
            signal.signal(number, stop)
    earlier = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        over.set()
        os.close(told)
