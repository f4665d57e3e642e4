"""One program over several hosts, on JAX's distributed runtime: who takes part, who decides, how all end.

Every process runs the same program. Where a clock, a signal or the disk decides, process 0 does, and the
others are told. A process that ends early says why, and the others end with that sentence; one that dies is
missed. Decisions go through the runtime's table of keys and need no device. The runtime is JAX's own state,
so there is at most one program in a process; without one, all of this is about a single process.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import jax
from jax._src import distributed

from lthjax import signals
from lthjax.errors import UserError, of_disk

_T = TypeVar("_T")
# Seconds between two looks at the other processes, and until one that gives no sign of life counts as dead.
LOOK = 1.0
DEAD = 30.0
# Seconds that process 0, which holds the table of keys, waits for the others to read why it ends.
_FAREWELL = 4.0
# Seconds that a process may take to save what it does when another one was sent a signal.
_GRACE = 4.0
# Seconds to wait for all processes at the start.
_GATHER = 300.0
# Decisions that stay readable; processes are never that far apart.
_KEPT = 1000
_BROKEN = re.compile("gloo|nccl|connection|unavailable|coordination|socket", re.IGNORECASE)
_AGAIN = "start all of its processes again, and they go on from here."
_ENDED = "lthjax/ended"
_numbers = itertools.count()


def count() -> int:
    """Processes of the program; 1 without one."""
    return distributed.global_state.num_processes if _client() is not None else 1


def index() -> int:
    """The number of this process, from 0."""
    return distributed.global_state.process_id if _client() is not None else 0


def leads() -> bool:
    """Whether this process decides and writes."""
    return index() == 0


@contextlib.contextmanager
def program(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[None]:
    """Joins the other processes of a program for the time of a block. JAX must not have used a device yet.

    All processes end together: an error or a signal inside the block is printed, the others are told, and
    this process ends, with status 2, or 128 plus the signal's number.

    Args:
        coordinator: HOST:PORT of process 0; None finds all three by SLURM, Kubernetes, MPI or the TPU.
        processes: number of processes.
        process: the number of this one.

    Raises:
        UserError: the processes do not find one another.
    """
    _join(coordinator, processes, process)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), name="hosts", daemon=True)
    watch.start()
    try:
        with _no_output():
            yield
            barrier("end")
    except BaseException as error:
        over.set()
        _end(error)
    over.set()
    watch.join()
    jax.distributed.shutdown()


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    # The runtime's own handler of SIGTERM would replace ours.
    for name, value in (
        ("jax_enable_preemption_service", False),
        ("jax_cpu_collectives_implementation", "gloo"),
    ):
        if name in jax.config.values:
            jax.config.update(name, value)
    how = None if coordinator is None else "deactivate"
    # The runtime itself aborts when it has waited long enough.
    vain = threading.Timer(_GATHER, _vain, (coordinator,))
    vain.daemon = True
    vain.start()
    try:
        jax.distributed.initialize(coordinator, processes, process, None, how, int(2 * _GATHER) + 60)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the processes did not find one another ({_line(error)}); {_advice(coordinator)}."
        ) from error
    finally:
        vain.cancel()
    if not leads():
        _retell()


def _advice(coordinator: str | None) -> str:
    """What to do where the processes do not find one another."""
    if coordinator is not None:
        return f"the port of {coordinator} must be free on the machine of process 0, and reached by all"
    # A batch script runs on one machine; only srun starts its command on all of them, and says who they are.
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_NODELIST" not in os.environ:
        return "a job of SLURM starts all of them by srun: write srun before the command"
    return (
        "where neither SLURM, Kubernetes, MPI nor a TPU says who they are, give --coordinator HOST:PORT "
        "--processes N --process I, and start all of them"
    )


def _vain(coordinator: str | None) -> None:
    at = "" if coordinator is None else f" at {coordinator}"
    why = (
        f"not all processes of this program have come together{at} within {_GATHER:.0f} s; start all of them"
    )
    print(f"error: --distributed: {why}, each with its own number.", file=sys.stderr, flush=True)
    os._exit(2)


def _retell() -> None:
    """Puts one sentence in place of the stack trace with which the runtime ends us when process 0 dies.

    The runtime aborts within a millisecond, which no thread of ours can precede. So another process passes on
    what is written to standard error.
    """
    why = f"error: process 0 of this program has died; {_AGAIN}"
    relay = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py")), why], stdin=subprocess.PIPE
    )
    assert relay.stdin is not None
    os.dup2(relay.stdin.fileno(), 2)
    relay.stdin.close()


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Keeps from standard output that Gloo is connected; only the path of a report belongs there."""
    sys.stdout.flush()
    before = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(before, 1)
        os.close(before)


def decided(value: _T) -> _T:
    """Process 0's value, in all processes, each of which must ask; it must survive JSON."""
    if count() == 1:
        return value
    number, client = next(_numbers), _client()
    key = f"lthjax/decided/{number}"
    if leads():
        client.key_value_set(key, json.dumps(value))
        if number >= _KEPT:
            client.key_value_delete(f"lthjax/decided/{number - _KEPT}")
        return value
    while True:
        try:
            return cast(_T, json.loads(client.blocking_key_value_get(key, int(1000 * LOOK))))
        except jax.errors.JaxRuntimeError as error:
            # In pieces, so that signals are handled in between; it is `_watch` that ends a vain wait.
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def signalled(number: int) -> int:
    """The signal that some process was sent, in all processes; 0 if there was none.

    Args:
        number: the signal that this process was sent, or 0. Where it is not process 0, all others may hear
            of it at a later call only.
    """
    if count() == 1:
        return number
    if leads():
        number = number or int(_read("lthjax/signal") or 0)
    elif number:
        _client().key_value_set("lthjax/signal", str(number), allow_overwrite=True)
    return decided(number)


def alike(value: object, why: str) -> None:
    """Checks that a value is the same in all processes.

    Raises:
        UserError: it is another one here than in process 0; `why` says what that means.
    """
    if count() > 1:
        digest = hashlib.sha256(repr(value).encode()).hexdigest()
        if decided(digest) != digest:
            raise UserError(f"process {index()} of this program differs from process 0: {why}")


def barrier(name: str) -> None:
    """Waits for all processes."""
    if count() > 1:
        _client().wait_at_barrier(f"lthjax/{name}/{next(_numbers)}", 24 * 3600 * 1000)


def _client() -> Any:
    return distributed.global_state.client


def _read(key: str) -> str | None:
    try:
        return cast(str, _client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def _watch(over: threading.Event) -> None:
    """Ends this process when another one has ended or gives no sign of life."""
    client, me = _client(), index()
    seen: dict[str, tuple[str, float]] = {}
    for turn in itertools.count():
        try:
            client.key_value_set(f"lthjax/alive/{me}", str(turn), allow_overwrite=True)
            told = _read(_ENDED)
            alive = dict(client.key_value_dir_get("lthjax/alive/")) if me == 0 else {}
        except jax.errors.JaxRuntimeError:
            told, alive = None, {}  # the runtime itself ends us where process 0 is gone
        now = time.monotonic()
        for key, sign in alive.items():
            if seen.get(key, ("", 0.0))[0] != sign:
                seen[key] = sign, now
        dead = [key.rpartition("/")[2] for key, (_, since) in seen.items() if now - since > DEAD]
        if over.is_set():
            return
        if told is not None:
            number, why = json.loads(told)
            # Who was sent a signal has asked all to save what they do.
            if number and over.wait(_GRACE):
                return
            _leave(number, why)
        if dead:
            _leave(
                0, f"process {dead[0]} of this program has given no sign of life for {DEAD:.0f} s; {_AGAIN}"
            )
        if over.wait(LOOK):
            return


def _end(error: BaseException) -> NoReturn:
    """Ends this process because of an error or a signal."""
    if isinstance(error, signals.Stopped | KeyboardInterrupt):
        number = signals.INTERRUPT if isinstance(error, KeyboardInterrupt) else int(error.args[0])
        _leave(number, signals.goes_on(number))
    if isinstance(error, UserError):
        _leave(0, str(error))
    if isinstance(error, OSError):
        _leave(0, of_disk(error))
    if isinstance(error, jax.errors.JaxRuntimeError) and _BROKEN.search(str(error)):
        _leave(0, f"the connection to another process of this program is lost; {_AGAIN}")
    traceback.print_exception(error)
    _leave(0, f"process {index()} has failed: {_line(error)}")


def _leave(number: int, why: str) -> NoReturn:
    """Says why this process ends, tells the others, and ends it at once: JAX's exit would wait for them.

    Args:
        number: the signal that ends it, or 0.
        why: one sentence.
    """
    with contextlib.suppress(OSError):
        print(why if number else f"error: {why}", file=sys.stderr, flush=True)
    client = _client()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if _read(_ENDED) is None:
            client.key_value_set(_ENDED, json.dumps([number, why]), allow_overwrite=True)
        client.key_value_set(f"lthjax/left/{index()}", "", allow_overwrite=True)
        # With process 0 the table ends, and the runtime aborts whoever still looks at it.
        until = time.monotonic() + _FAREWELL
        while (
            leads() and len(client.key_value_dir_get("lthjax/left/")) < count() and time.monotonic() < until
        ):
            time.sleep(0.1)
    if leads():
        time.sleep(0.3)
    signals.leave(128 + number if number else 2)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
