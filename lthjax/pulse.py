"""Words for what takes longer than three seconds, from a thread; loads neither JAX nor anything large."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

SILENT_SECONDS = 3.0
"""Nothing that a user waits for is silent for longer."""
# The start of the process, nearly; while it starts up, one thing after another is loaded, each in silence.
_BEGAN = time.monotonic()
_STARTING_SECONDS = 30.0


class Pulse:
    """Calls a function every few seconds, from a thread of its own, until it is closed.

    Args:
        call: the function.
        seconds: between two calls.
        first: seconds before the first call; by default those between two.
    """

    def __init__(self, call: Callable[[], None], seconds: float, first: float | None = None) -> None:
        """Starts the thread."""
        self._call, self._seconds = call, seconds
        self._first = seconds if first is None else first
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        seconds = self._first
        while not self._closed.wait(seconds):
            self._call()
            seconds = self._seconds

    def close(self) -> None:
        """Ends the calls; waits for one under way."""
        self._closed.set()
        self._thread.join()


@contextlib.contextmanager
def telling(
    say: Callable[[str], None], what: str, at_once: bool = True, every: float = SILENT_SECONDS
) -> Iterator[None]:
    """Says what is being done, and every three seconds for how long so far.

    Where it is not said at the start, a process that has just begun says it at the next multiple of three
    seconds since then.

    Args:
        say: takes a line, as `Watch.say` does.
        what: what the block does, for example "writing the report".
        at_once: whether it is also said at the start.
        every: seconds between two lines.
    """
    began = time.monotonic()
    first = every
    if at_once:
        say(what)
    elif began - _BEGAN < _STARTING_SECONDS:
        first = every - (began - _BEGAN) % every

    def tell() -> None:
        seconds = time.monotonic() - began
        say(f"{what}: {duration(seconds)} so far" if seconds >= 0.5 else what)

    pulse = Pulse(tell, every, first)
    try:
        yield
    finally:
        pulse.close()


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
