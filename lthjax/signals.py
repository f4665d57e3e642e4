"""Signals that end a command: as an exception, within seconds, and delayed while a training run is saved."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

INTERRUPT = int(signal.SIGINT)
# Seconds that a command may take to end by itself after a signal.
_GRACE = 4.0
# Seconds after which a signal whose exception was lost is sent anew.
_AGAIN = 0.02
# What `at_end` was given. As that of `atexit`, the list is the process's.
_last: list[Callable[[], object]] = []


class Stopped(BaseException):
    """A signal has asked the process to end; its argument is the signal's number."""


def goes_on(number: int) -> str:
    """The sentence for a command that this signal has stopped."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return f"stopped{by}; the same command goes on from here"


def end(number: int) -> NoReturn:
    """Ends the process at once; library threads would delay a normal exit."""
    # RuntimeError: the signal came in the middle of another print.
    with contextlib.suppress(OSError, RuntimeError):
        print(goes_on(number), file=sys.stderr, flush=True)
    leave(128 + number)


def at_end(act: Callable[[], object]) -> None:
    """Has `act` called when the process ends, also by `leave`; it must be quick, and may be called twice."""
    atexit.register(act)
    _last.append(act)


def leave(status: int) -> NoReturn:
    """Ends the process with that status at once, after what `at_end` was given alone."""
    for act in _last:
        with contextlib.suppress(Exception):
            act()
    os._exit(status)


def end_at_once() -> Callable[[], None]:
    """Has a signal `end` the process where it arrives; returns what undoes that.

    It is for imports: an exception in the middle of one may become another error, or a crash, in a library
    that is not Python, and no file is open for writing yet.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # only the main thread may handle signals
    before = {number: signal.signal(number, lambda came, _: end(came)) for number in _heeded()}

    def undo() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turns signals into an exception, and ends the process if that takes too long.

    Python handles signals only between its own instructions, and a compiled program may run for longer. So a
    thread waits for signals, too. And an exception may get lost, in a callback of the garbage collector.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    ending = _heeded()
    seen, told = os.pipe()
    os.set_blocking(told, False)
    over = threading.Event()

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    def watch() -> None:
        while heard := os.read(seen, 1):
            if heard[0] in ending and not over.wait(_GRACE):
                end(heard[0])
        os.close(seen)

    def again(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt | Stopped):
            usual(lost)
            return
        number = INTERRUPT if lost.exc_type is KeyboardInterrupt else lost.exc_value.args[0]
        # Later, as it would be lost here, too.
        threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()

    before = {number: signal.getsignal(number) for number in ending}
    for number in ending:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
    earlier = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    usual, sys.unraisablehook = sys.unraisablehook, again
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        sys.unraisablehook = usual
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        over.set()
        os.close(told)


class Delay:
    """Whether a signal has come while signals are delayed."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: tuple[int, FrameType | None] | None = None

    @property
    def asked(self) -> bool:
        """Whether one has come."""
        return self._came is not None

    @property
    def number(self) -> int:
        """The one that has come; 0 if none has."""
        return 0 if self._came is None else self._came[0]

    def deliver(self) -> None:
        """Handles the signal that has come, which raises; does nothing if none has."""
        if self._came is not None:
            (number, frame), self._came = self._came, None
            self._handlers[number](number, frame)

    def _take(self, number: int, frame: FrameType | None) -> None:
        # Who sends a second signal does not want to wait.
        self.deliver()
        self._came = number, frame


@contextlib.contextmanager
def delayed() -> Iterator[Delay]:
    """Delays the signals that end a command until `Delay.deliver` or the end of the block.

    Signals without a Python handler act at once, as do all of them outside the main thread.
    """
    delay = Delay()
    if threading.current_thread() is threading.main_thread():
        for number in _ending():
            handler = signal.getsignal(number)
            if callable(handler):
                delay._handlers[number] = handler
                signal.signal(number, delay._take)
    try:
        yield delay
    finally:
        for number, handler in delay._handlers.items():
            signal.signal(number, handler)
    delay.deliver()


def _heeded() -> list[int]:
    """Those that are not ignored, as Ctrl-C is by what a shell runs in the background."""
    return [number for number in _ending() if signal.getsignal(number) is not signal.SIG_IGN]


def _ending() -> list[int]:
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
