"""Work in a thread of its own, so that devices need not wait for the disk."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from lthjax import settings

_log = logging.getLogger(__name__)
Task = Callable[[], None]


class Background:
    """A thread that does tasks one after another: urgent ones first, and each kind in the order it came.

    A task that fails does not keep the others from being done. Its error, or the first of several, is raised
    in the thread that adds or waits, and at the latest at the end of the block; it is logged where the block
    ends by another error.

    Args:
        waiting: so many tasks may wait; `add` blocks while there are more.
    """

    def __init__(self, waiting: int) -> None:
        self.changed = threading.Condition()
        self._waiting = waiting
        self._urgent: deque[Task] = deque()
        self._others: deque[Task] = deque()
        self._failure: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        with self.changed:
            self._over = True
            self.changed.notify_all()
        self._thread.join()
        if kind is None:
            self.check()
        elif self._failure is not None and self._failure is not error:
            _log.warning("Something else failed before the end: %s", self._failure)

    def add(self, task: Task, *, urgent: bool = False) -> None:
        """Adds a task; one that is not urgent waits until there is room."""
        with self.changed:
            self.wait(lambda: urgent or len(self._others) < self._waiting)
            (self._urgent if urgent else self._others).append(task)
            self.changed.notify_all()

    def wait(self, until: Callable[[], bool]) -> None:
        """Waits until something is true, which is looked at after every task, or a task has failed."""
        with self.changed:
            self.changed.wait_for(lambda: self._failure is not None or until())
        self.check()

    def check(self) -> None:
        """Raises the error of a task that has failed."""
        if self._failure is not None:
            raise self._failure

    @settings.pinned()
    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._urgent or self._others or self._over)
                tasks = self._urgent or self._others
                if not tasks:
                    return
                task = tasks.popleft()
            try:
                task()
            except Exception as error:  # raised again where it is waited for
                self._failure = self._failure or error
            except BaseException as error:
                # Not a fault of the task: an end of the process.
                with self.changed:
                    self._failure = error
                    self._urgent.clear()
                    self._others.clear()
            with self.changed:
                self.changed.notify_all()
