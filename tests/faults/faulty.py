"""A failing disk, a dying process, and a study without training, for quick fault tests."""

import builtins
import contextlib
import errno
import io
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from analysis import load
from lthjax import config, data, manifest, study
from lthjax.errors import UserError
from lthjax.models import Variables
from lthjax.training import train
from lthjax.training.job import Job, Trained
from lthjax.training.trainer import Trainer

KILLED = 137
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["faulty", "orbax.checkpoint.experimental.v1"])


class Disk:
    """Counts the calls of our threads to the disk; one call, or every call from it on, fails.

    Args:
        fault: makes the exception; None only counts.
        at: the first call that fails, from 1.
        lasting: whether all later calls fail, too.
    """

    def __init__(
        self, fault: Callable[[], BaseException] | None = None, at: int = 0, lasting: bool = True
    ) -> None:
        self.fault, self.at, self.lasting, self.calls = fault, at, lasting, 0

    def _tick(self) -> None:
        if threading.current_thread().name not in ("MainThread", "background"):
            return
        self.calls += 1
        if self.fault and (self.calls == self.at or (self.lasting and self.calls > self.at > 0)):
            raise self.fault()

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            self._tick()
            return call(*arguments, **named)

        return called

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                self._tick()
            return call(file, mode, *arguments, **named)

        return called

    @contextlib.contextmanager
    def mounted(self) -> Iterator["Disk"]:
        """Installs the disk in this process while the block runs."""
        with contextlib.ExitStack() as stack:
            for name in ("replace", "rename", "mkdir", "fsync", "unlink", "rmdir"):
                stack.enter_context(mock.patch.object(os, name, self._failing(getattr(os, name))))
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", self._opening(module.open)))
            yield self


FAULTS: dict[str, Callable[[], BaseException]] = {
    "full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "read-only": lambda: OSError(errno.EROFS, os.strerror(errno.EROFS)),
    "vanished": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
}


def dead() -> BaseException:
    """Stands for the death of the process: none of its code runs any more, including cleanup."""
    os._exit(KILLED)


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces training by a fixed function of the job that takes no time."""

    def changed(job: Job, step: int) -> Variables:
        factor = np.float32(1 + step / 7 + job.noise)
        grown = jax.tree.map(
            lambda m, p: np.where(m, factor * np.asarray(p), 0), job.mask, job.variables.params
        )
        return job.variables._replace(params=grown)

    def fake(trainer: Trainer, jobs: list[Job], progress: Callable[..., None], *_: object) -> list[Trained]:
        made = []
        for job in jobs:
            left = sum(int(np.sum(m)) for m in jax.tree.leaves(job.mask))
            value = (left % 97) / 97
            measured = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
            curves = {"step": [job.stop], **{name: [value] for name in measured}}
            early = ("train_accuracy", "early_stop_test_accuracy", "early_stop_train_accuracy")
            scalars = {name: value for name in (*measured, *early)} | {"early_stop_step": job.stop}
            states = {step: changed(job, step) for step in job.captures}
            final = changed(job, job.stop)
            made.append(Trained(final, states, curves, scalars, "done", "", 0.1))
        return made

    monkeypatch.setattr(train, "train", fake)


def attempt(work: Callable[..., Any], arguments: Sequence[Any], fault: str, at: int, lasting: bool) -> str:
    """Runs some work without training in a separate process whose disk fails; returns how it ended.

    A process that dies while it writes a checkpoint would leave threads and locks behind; a separate process
    protects the test itself. Workers are forked from a server that has loaded everything and started nothing.

    Args:
        work: a function of a module, to be called with the arguments.
        arguments: its arguments.
        fault: "dead" or a key of `FAULTS`; "" only counts the calls.
        at: the first call that fails, from 1.
        lasting: whether all later calls fail, too.

    Returns:
        The sentence of a user's error; "killed"; or "" if the work was completed. With `fault` "" the number
        of calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        process = _SERVER.Process(target=_attempted, args=(said, work, arguments, fault, at, lasting))
        process.start()
        process.join(300)
        assert process.exitcode in (0, KILLED), process.exitcode
        return "killed" if process.exitcode else said.read_text()


def _attempted(
    said: Path, work: Callable[..., Any], arguments: Sequence[Any], fault: str, at: int, lasting: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        untrained(patch)
        text = failed(work, arguments, fault, at, lasting)
    said.write_text(text)


def failed(work: Callable[..., Any], arguments: Sequence[Any], fault: str, at: int, lasting: bool) -> str:
    """As `attempt`, in this process, whose training the caller has replaced; "dead" ends it."""
    disk = Disk(dead if fault == "dead" else FAULTS.get(fault), at, lasting)
    text = ""
    try:
        with disk.mounted():
            work(*arguments)
    except (UserError, OSError) as error:
        text = str(error)
    return text if fault else str(disk.calls)


def small_data(folder: Path) -> Path:
    """Writes 200 + 60 of the packaged images, with every second pixel but for the edges, as `few.npz`."""
    whole = data.load("mnist_10k")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "few.npz",
        train_images=whole.train_images[:200, 2:26:2, 2:26:2],
        train_labels=whole.train_labels[:200],
        test_images=whole.test_images[:60, 2:26:2, 2:26:2],
        test_labels=whole.test_labels[:60],
        classes=np.int64(10),
    )
    return folder


def prepared(folder: Path, **changes: Any) -> study.Prepared:
    """A small study with a late rewind point on `small_data`."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "seeds": (0,),
        "levels": 1,
        "rewind": (0, 3),
        "model": "lenet300",
        "arms": ("ticket", "random"),
        "data": config.Data(name="few", validation=40),
        "train": config.Train(steps=12, batch=20, eval_every=6),
    }
    return study.prepare(config.Study(**{**fields, **changes}), folder)


def contents(run: Path) -> dict[str, Any]:
    """All numbers of a run folder: its rows without times, and hashes of its masks, weights and states."""
    found: dict[str, Any] = {"rows": [row._replace(seconds=0.0) for row in load(run)]}
    for path in sorted(run.glob("seed=*/**/manifest.json")):
        made = manifest.read(path.parent)
        assert made is not None
        found[path.parent.relative_to(run).as_posix()] = (made.content, made.parents)
    return found
