"""The locks of a run folder: of study.json, and of every seed."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from lthjax import locks
from lthjax.folder.places import LOCKS

# Held while study.json is read and written; by earlier versions as long as they ran.
LOCK = ".lock"
# Seconds to wait for it: processes that start together take turns, of some seconds each with leases.
PATIENCE = 600.0


def lock_seeds(run: Path, seeds: Collection[int]) -> dict[str, locks.Lock]:
    """Takes the locks of those seeds of a run folder that no other process writes.

    Returns:
        "seed=N" -> its lock.

    Raises:
        Held: there are none, though some were asked for.
        OSError: a lock cannot be made.
    """
    if not seeds:
        return {}
    (run / LOCKS).mkdir(exist_ok=True)
    taken = locks.take_all([run / LOCKS / f"seed={seed}" for seed in seeds])
    if not taken:
        raise locks.Held(f"{run}: another process is running this study; wait for it or stop it.")
    return {path.name: lock for path, lock in taken.items()}


def busy_seeds(run: Path) -> list[int]:
    """The seeds of a run folder that processes write, this one included.

    Raises:
        OSError: a lock cannot be read.
    """
    return sorted(map(seed_of, locks.held(run / LOCKS, "seed=*")))


@contextlib.contextmanager
def locked(run: Path, seeds: Collection[int]) -> Iterator[None]:
    """Holds the locks of study.json and of all these seeds, of which no other process may hold any.

    Raises:
        Held: another process holds one.
        OSError: a lock cannot be made.
    """
    with contextlib.ExitStack() as stack:
        taken = lock_seeds(run, seeds)
        for lock in taken.values():
            stack.enter_context(contextlib.closing(lock))
        if len(taken) < len(seeds):
            raise locks.Held(f"{run}: another process is running this study; wait for it or stop it.")
        stack.enter_context(about_locked(run))
        yield


@contextlib.contextmanager
def about_locked(run: Path) -> Iterator[None]:
    """Holds the lock of study.json.

    Raises:
        Held: another process still holds it after `PATIENCE` seconds.
        OSError: the lock cannot be made.
    """
    try:
        lock = locks.take(run / LOCK, PATIENCE)
    except locks.Held as error:
        raise still_written(run) from error
    with contextlib.closing(lock):
        yield


def still_written(run: Path | str) -> locks.Held:
    """The refusal of who has waited for study.json in vain."""
    return locks.Held(f"{run}: another process still writes study.json; run the same command again.")


def seed_of(name: str) -> int:
    """The seed of a lock\'s name; -1 for that of the whole folder."""
    return int(name.removeprefix("seed=") or -1)
