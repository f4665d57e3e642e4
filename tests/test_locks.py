"""Locks: held by one process, gone with it; leases where there are none."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lthjax import files, locks
from lthjax.errors import UserError
from lthjax.folder import claims

WITHOUT = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


@pytest.fixture(autouse=True)
def once() -> None:
    files._said.clear()


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A file system without locks, and times a hundred times as short."""

    def refused(number: int = errno.ENOSYS, expires: float = 0.6) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        for name, value in (("RENEW", 0.1), ("EXPIRES", expires), ("SETTLE", 0.05), ("BRIEF", 0.01)):
            monkeypatch.setattr(locks, name, value)

    return refused


def lease(folder: Path, name: str = "seed=1") -> Path:
    return folder / f"{name}.lease"


def left(folder: Path, **changes: object) -> str:
    """A lease that a process of another machine has left behind."""
    text = json.dumps({"owner": "other", "machine": "elsewhere", "process": 1, "beat": 7, **changes})
    lease(folder).write_text(text)
    return text


def elsewhere(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process of this machine, with short leases in place of locks."""
    head = """
import errno, fcntl, sys, time
from pathlib import Path
from lthjax import locks
def flock(*_): raise OSError(errno.ENOLCK, "no")
fcntl.flock = flock
locks.RENEW, locks.EXPIRES, locks.SETTLE, locks.BRIEF = 0.1, 0.6, 0.05, 0.01
folder = Path(sys.argv[1])
"""
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = f"from lthjax import locks; from pathlib import Path; locks.take(Path({str(lock)!r})); print(1)"
    mine = locks.take(lock)
    with pytest.raises(locks.Held, match=r"another process is running this study; wait for it or stop it\.$"):
        locks.take(lock, 0.1)
    assert locks.held(tmp_path, "lo*") == ["lock"]
    mine.check()
    mine.close()
    assert locks.held(tmp_path, "lo*") == []
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr
    locks.take(lock).close()


def test_of_several_locks_those_that_are_free_are_taken(tmp_path: Path) -> None:
    paths = [tmp_path / f"seed={seed}" for seed in range(3)]
    mine = locks.take(paths[1])
    taken = locks.take_all(paths, 0.1)
    assert [*taken] == [paths[0], paths[2]]
    for lock in (mine, *taken.values()):
        lock.close()
    assert locks.held(tmp_path / "nowhere", "*") == []


def test_who_only_looks_does_not_keep_others_from_a_lock(tmp_path: Path) -> None:
    """`held` takes a lock for a moment; `take` waits for longer than that."""
    path, over = tmp_path / "seed=1", threading.Event()
    path.touch()

    def look() -> None:
        while not over.is_set():
            locks.held(tmp_path, "seed=*")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(50):
            locks.take(path).close()
    finally:
        over.set()
        looking.join()


def test_a_block_that_one_process_runs_at_a_time(tmp_path: Path) -> None:
    path, inside = tmp_path / "new" / "report", []

    def work() -> None:
        with locks.alone(path, 10):
            inside.append("in")
            time.sleep(0.05)
            inside.append("out")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert inside == ["in", "out"] * 3
    (tmp_path / "file").write_text("")
    with locks.alone(tmp_path / "file" / "report", 10):
        pass


@pytest.mark.parametrize("number", WITHOUT)
def test_leases_where_there_are_no_locks(
    leases: Callable[..., None], tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    leases(number, 20)
    with caplog.at_level(logging.WARNING):
        mine = locks.take(tmp_path / "seed=1")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: files cannot be locked there; leases are used instead, which expire 120 s after their "
        "process has ended on another machine."
    ]
    first = lease(tmp_path).read_text()
    time.sleep(0.3)
    assert lease(tmp_path).read_text() != first, "it must be renewed"
    mine.check()
    with pytest.raises(locks.Held):
        locks.take(tmp_path / "seed=1")
    assert locks.held(tmp_path, "seed=*") == ["seed=1"]
    mine.close()
    assert not lease(tmp_path).exists()
    assert locks.held(tmp_path, "seed=*") == []
    locks.take(tmp_path / "seed=1").close()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_lease_that_is_not_renewed_expires(leases: Callable[..., None], tmp_path: Path) -> None:
    """By the clock of the process that waits, whatever time the file or its machine says."""
    leases()
    left(tmp_path)
    os.utime(lease(tmp_path), (time.time() + 10**6, time.time() + 10**6))
    assert locks.held(tmp_path, "seed=*") == []
    began = time.monotonic()
    mine = locks.take(tmp_path / "seed=1")
    assert time.monotonic() - began > locks.EXPIRES
    mine.check()
    mine.close()


def test_a_lease_of_another_machine_that_is_renewed_is_held(
    leases: Callable[..., None], tmp_path: Path
) -> None:
    leases(expires=20)
    left(tmp_path)
    over = threading.Event()

    def renew() -> None:
        beat = 7
        while not over.wait(locks.RENEW):
            left(tmp_path, beat=(beat := beat + 1))

    there = threading.Thread(target=renew)
    there.start()
    try:
        began = time.monotonic()
        with pytest.raises(locks.Held):
            locks.take(tmp_path / "seed=1")
        assert time.monotonic() - began < locks.EXPIRES
        assert locks.held(tmp_path, "seed=*") == ["seed=1"]
        taken = locks.take_all([tmp_path / "seed=1", tmp_path / "seed=2"])
        assert [path.name for path in taken] == ["seed=2"]
        taken[tmp_path / "seed=2"].close()
    finally:
        over.set()
        there.join()


def test_a_killed_process_of_this_machine_holds_no_lease(leases: Callable[..., None], tmp_path: Path) -> None:
    leases(expires=20)
    code = "mine = locks.take(folder / 'seed=1'); print('taken', flush=True); time.sleep(60)"
    with elsewhere(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        with pytest.raises(locks.Held):
            locks.take(tmp_path / "seed=1")
        process.kill()
    began = time.monotonic()
    locks.take(tmp_path / "seed=1").close()
    assert time.monotonic() - began < locks.EXPIRES


def test_a_lease_that_was_taken_over_is_noticed_and_not_renewed(
    leases: Callable[..., None], tmp_path: Path
) -> None:
    leases()
    (tmp_path / ".locks").mkdir()
    mine = locks.take(tmp_path / ".locks" / "seed=1")
    theirs = left(tmp_path / ".locks")
    with pytest.raises(UserError, match="another process has taken over seed=1, as this one's lease was not"):
        mine.check()
    time.sleep(2 * locks.RENEW)
    assert lease(tmp_path / ".locks").read_text() == theirs
    mine.close()
    assert lease(tmp_path / ".locks").read_text() == theirs, "it is not ours to remove"
    lease(tmp_path / ".locks").unlink()
    with pytest.raises(UserError, match="taken over"):
        mine.check()


@pytest.mark.parametrize("content", ["", "[]", '{"owner": 3}'])
def test_a_damaged_lease_expires(leases: Callable[..., None], tmp_path: Path, content: str) -> None:
    leases()
    lease(tmp_path).write_text(content)
    locks.take(tmp_path / "seed=1").close()


def test_of_processes_that_take_a_lease_at_once_one_wins(leases: Callable[..., None], tmp_path: Path) -> None:
    code = """
while not (folder / "go").exists(): pass
taken = locks.take_all([folder / f"seed={seed}" for seed in range(5)])
print(*sorted(path.name for path in taken), flush=True)
time.sleep(1)
"""
    processes = [elsewhere(code, tmp_path) for _ in range(3)]
    time.sleep(1)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(name for names in said for name in names) == [f"seed={seed}" for seed in range(5)]


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("30 1 0:41 / {at} rw,relatime - fuse.drive drive rw,user_id=0", True),
        ("30 1 0:41 / {at} rw shared:1 - lustre mds:/fs rw,localflock", True),
        ("30 1 0:41 / {at} rw - nfs4 host:/x rw,vers=4.2,local_lock=none", False),
        ("30 1 0:41 / {at} rw - nfs host:/x rw,local_lock=all", True),
        ("30 1 0:41 / {at} rw - ext4 /dev/sda rw", False),
        ("30 1 0:41 / {at}x rw - fuse.drive drive rw", False),
        ("nonsense", False),
    ],
)
def test_locks_that_other_machines_do_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, local: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("20 1 8:1 / / rw - ext4 /dev/root rw\n" + line.format(at=os.path.realpath(tmp_path)))
    monkeypatch.setattr(locks, "_MOUNTS", mounts)
    assert locks._is_local(tmp_path / "runs") == local
    monkeypatch.setattr(locks, "SETTLE", 0.01)
    locks.take(tmp_path / "seed=1").close()
    monkeypatch.setattr(locks, "_MOUNTS", tmp_path / "none")
    assert not locks._is_local(tmp_path)


def test_processes_that_start_together_wait_for_their_turn_at_study_json(
    leases: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of 16 seeds with leases, by a clock that runs forty times as fast."""
    usual = locks.SETTLE
    leases(expires=20)
    monkeypatch.setattr(claims, "PATIENCE", claims.PATIENCE * locks.SETTLE / usual)
    done, refused = [], []

    def start(seed: int) -> None:
        try:
            with claims.locked(tmp_path, [seed]):
                done.append(seed)
        except locks.Held as error:
            refused.append(str(error))

    tasks = [threading.Thread(target=start, args=(seed,)) for seed in range(16)]
    for one in tasks:
        one.start()
    for one in tasks:
        one.join()
    assert (sorted(done), refused) == ([*range(16)], [])


def test_who_waits_in_vain_for_study_json_is_told_so_and_a_busy_seed_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with (
        claims.locked(tmp_path, [1]),
        pytest.raises(locks.Held, match="another process is running this study"),
        claims.locked(tmp_path, [1]),
    ):
        pass
    assert time.monotonic() - began < 10
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    with (
        claims.about_locked(tmp_path),
        pytest.raises(
            locks.Held, match=r"another process still writes study\.json; run the same command again"
        ),
        claims.locked(tmp_path, [1]),
    ):
        pass
