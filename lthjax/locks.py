"""Locks between processes: flock where it reaches every process, leases elsewhere.

A lease is a file beside the lock file. It names its owner, and the owner changes it every `RENEW` seconds. It
has expired when it has not changed for `EXPIRES` seconds, by the clock of the process that waits for it:
clocks of different machines are never compared. A lease of a process of this machine that has ended is free
at once. Whoever takes a lease writes it, waits `SETTLE` seconds, and reads back who was the last to do so.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from lthjax import files
from lthjax.errors import UserError

RENEW = 20.0
EXPIRES = 120.0
SETTLE = 2.0
# Seconds until a lock counts as held; `held` takes it for a moment only.
BRIEF = 1.0
_LEASE = ".lease"
_MOUNTS = Path("/proc/self/mountinfo")
_log = logging.getLogger(__name__)


class Lock(Protocol):
    """A lock that this process holds until it is closed or the process ends."""

    def check(self) -> None:
        """Raises a UserError where another process has taken it over, as may happen to a lease."""

    def close(self) -> None:
        """Gives it back."""


class Place(Protocol):
    """Where a lease is kept: a file, or an object in a bucket; equal if it is the same."""

    @property
    def name(self) -> str:
        """What it is of: `seed=3`."""

    @property
    def run(self) -> str:
        """The run folder, for messages."""

    def read(self) -> str | None:
        """Its text; None where there is none."""

    def write(self, text: str) -> None:
        """Writes it whole."""

    def remove(self) -> None:
        """Removes it."""


class Held(UserError):
    """Another process holds the lock."""


class _Lacking(Exception):
    """The file system has no locks, or none that other machines see."""


def take(path: Path, wait: float = BRIEF) -> Lock:
    """Takes a lock.

    Args:
        path: the lock file; its folder must exist.
        wait: seconds to wait for it.

    Raises:
        Held: another process holds it.
        OSError: its file cannot be made.
    """
    taken = take_all([path], wait)
    if not taken:
        raise Held(f"{_File(path).run}: another process is running this study; wait for it or stop it.")
    return taken[path]


def take_all(paths: Sequence[Path], wait: float = BRIEF) -> dict[Path, Lock]:
    """Takes those of several locks that can be had.

    Args:
        paths: the lock files, all in one folder, which must exist.
        wait: seconds to wait for them; leases that may have expired take up to `EXPIRES` seconds.

    Raises:
        OSError: a file cannot be made.
    """
    taken: dict[Path, Lock] = {}
    end = time.monotonic() + wait
    try:
        while left := [path for path in paths if path not in taken]:
            for path in left:
                if (lock := _flock(path)) is not None:
                    taken[path] = lock
            if time.monotonic() >= end or len(taken) == len(paths):
                break
            time.sleep(0.05)
    except _Lacking:
        leases = take_leases([_File(path) for path in paths], wait)
        return {path: leases[_File(path)] for path in paths if _File(path) in leases}
    except BaseException:
        for had in taken.values():
            had.close()
        raise
    return taken


def held(folder: Path, pattern: str) -> list[str]:
    """The names of the locks in a folder that processes hold, this one included.

    Args:
        folder: the folder; need not exist.
        pattern: of their names.

    Raises:
        OSError: one cannot be read.
    """
    names = sorted({path.name.removesuffix(_LEASE) for path in folder.glob(pattern)})
    try:
        return [name for name in names if _is_locked(folder / name)]
    except _Lacking:
        return [place.name for place in renewed([_File(folder / name) for name in names])]


@contextlib.contextmanager
def alone(path: Path, wait: float) -> Iterator[None]:
    """Holds a lock for a block that any process may run, one at a time.

    Where the lock cannot be made, the block runs without it: what it then cannot write it will say itself.

    Raises:
        Held: another process still holds it after `wait` seconds.
    """
    lock: Lock | None = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take(path, wait)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


class _Flock:
    """A lock of the operating system; it ends with its process."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def check(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def _flock(path: Path) -> _Flock | None:
    """Locks a file; None where another process holds it."""
    lock = _locking(path.parent)
    file = path.open("ab")
    try:
        if lock(file, True):
            return _Flock(file)
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _is_locked(path: Path) -> bool:
    lock = _locking(path.parent)
    try:
        with path.open("rb") as file:
            return not lock(file, False)
    except FileNotFoundError:
        return False


def _locking(folder: Path) -> Callable[[IO[bytes], bool], bool]:
    """The call that locks an open file for this process alone, or only to look, and says whether it could.

    Raises:
        _Lacking: there are no locks here that hold; the call raises it, too.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        files.warn(folder, f"there are no locks here; {_INSTEAD}")
        raise _Lacking from error
    if _is_local(folder):
        files.warn(folder, f"other machines may not see locks there; {_INSTEAD}")
        raise _Lacking

    def lock(file: IO[bytes], alone: bool) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in files.UNKNOWN:
                raise
            files.warn(folder, f"files cannot be locked there; {_INSTEAD}")
            raise _Lacking from error
        return True

    return lock


_INSTEAD = (
    f"leases are used instead, which expire {EXPIRES:.0f} s after their process has ended on another machine."
)


def _is_local(folder: Path) -> bool:
    """Whether flock may succeed there without reaching other machines.

    So it is on FUSE, as of Google Drive in Colab, whose locks the kernel keeps to itself, and on Lustre and
    NFS that are mounted so.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    where, longest, local = os.path.join(os.path.realpath(folder), ""), "", False
    for line in lines:
        before, _, after = line.partition(" - ")
        words, kinds = before.split(), after.split()
        if len(words) < 5 or len(kinds) < 2:
            continue
        mount = os.path.join(words[4].replace("\\040", " "), "")
        # Of two mounts at one place the later one is seen.
        if where.startswith(mount) and len(mount) >= len(longest):
            options = ",".join(kinds[2:]).split(",")
            marks = {"localflock", "local_lock=flock", "local_lock=all"}
            longest, local = mount, kinds[0].startswith("fuse.") or bool(marks & {*options})
    return local


class _File(NamedTuple):
    """A lease beside a lock file."""

    lock: Path

    @property
    def name(self) -> str:
        return self.lock.name

    @property
    def run(self) -> str:
        return str(self.lock.parent.parent if self.lock.parent.name.startswith(".") else self.lock.parent)

    @property
    def _lease(self) -> Path:
        return self.lock.with_name(self.lock.name + _LEASE)

    def read(self) -> str | None:
        try:
            return self._lease.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        files.write_whole(self._lease, text.encode())

    def remove(self) -> None:
        self._lease.unlink()


class _Lease:
    """A lease of this process; its owner is a random name, so that no two leases are alike."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._owner = secrets.token_hex(8)
        self._beat = 0
        self._guard = threading.Lock()
        self.closed = False

    def write(self) -> None:
        """Takes or renews it."""
        self._beat += 1
        about = {"owner": self._owner, "machine": _machine(), "process": os.getpid(), "beat": self._beat}
        self.place.write(json.dumps(about) + "\n")

    def is_ours(self) -> bool:
        return _said(self.place.read()).get("owner") == self._owner

    def renew(self) -> None:
        """Renews it unless it is closed, or another process has taken it over."""
        with self._guard:
            if not self.closed and self.is_ours():
                self.write()

    def check(self) -> None:
        with self._guard:
            if self.is_ours():
                return
        raise UserError(
            f"{self.place.run}: another process has taken over {self.place.name}, as this one's "
            f"lease was not renewed for {EXPIRES:.0f} s; run the same command again when that one has ended."
        )

    def close(self) -> None:
        with self._guard, contextlib.suppress(OSError):
            self.closed = True
            if self.is_ours():
                self.place.remove()


class _Watched:
    """A lease as another process sees it.

    Attributes:
        renewed: whether it has changed while it was watched.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.renewed = place, False
        self._text, self._since = place.read(), time.monotonic()

    def look(self) -> None:
        text = self.place.read()
        if text != self._text:
            self._text, self._since, self.renewed = text, time.monotonic(), True

    @property
    def free(self) -> bool:
        """Whether nobody holds it: it is not there, its process has ended here, or it has expired."""
        return self._text is None or _ended(self._text) or time.monotonic() - self._since >= EXPIRES


def renewed(places: Sequence[Place]) -> list[Place]:
    """Those of several leases that processes hold, this one included; they are watched until they tell.

    Raises:
        OSError: one cannot be read.
    """
    watched = [_Watched(place) for place in places]
    while undecided := [one for one in watched if not one.free and not one.renewed]:
        _wait(undecided)
    return [one.place for one in watched if one.renewed and not one.free]


def take_leases(places: Sequence[Place], wait: float = BRIEF) -> dict[Place, Lock]:
    """Takes those of several leases that are free, or become so while they are watched.

    Args:
        places: where they are kept.
        wait: seconds to wait for those that are renewed.

    Raises:
        OSError: one cannot be read or written.
    """
    end = time.monotonic() + wait
    taken: dict[Place, Lock] = {}
    left = [_Watched(place) for place in places]
    try:
        while left:
            taken |= _claim([one.place for one in left if one.free])
            left = [one for one in left if one.place not in taken]
            left = [one for one in left if one.free or not one.renewed or time.monotonic() < end]
            if left:
                _wait(left)
    except BaseException:
        for lock in taken.values():
            lock.close()
        raise
    return taken


def _claim(places: Sequence[Place]) -> dict[Place, _Lease]:
    """Writes leases, and returns those that no other process has written after us."""
    if not places:
        return {}
    leases = [_Lease(place) for place in places]
    for lease in leases:
        lease.write()
    time.sleep(SETTLE)
    won = [lease for lease in leases if lease.is_ours()]
    threading.Thread(target=_keep, args=(won,), name="leases", daemon=True).start()
    return {lease.place: lease for lease in won}


def _keep(leases: Sequence[_Lease]) -> None:
    """Renews leases until all are closed."""
    while leases := [lease for lease in leases if not lease.closed]:
        time.sleep(RENEW)
        for lease in leases:
            # The disk may be back the next time; until then the lease has not expired.
            with contextlib.suppress(OSError):
                lease.renew()


def _wait(watched: Sequence[_Watched]) -> None:
    """Looks at leases again a little later."""
    where = watched[0].place.run
    files.warn(where, f"a lease is there; it takes up to {EXPIRES:.0f} s to see whether it is renewed.")
    time.sleep(min(1.0, RENEW / 4))
    for one in watched:
        one.look()


def _said(text: str | None) -> dict[str, object]:
    """The fields of a lease; none of one that is damaged or half written."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _ended(text: str) -> bool:
    """Whether a lease's owner was a process of this machine that is no longer there."""
    said = _said(text)
    number = said.get("process")
    return said.get("machine") == _machine() and isinstance(number, int) and not files.runs(number)


def _machine() -> str:
    """A name for all that shares process numbers with us: two containers of one machine do not."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
