"""Records of a study: results, provenance, logs; and descriptions of cells."""

import contextlib
import dataclasses
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from lthjax import __version__, config, data, fields, home, prune, settings
from lthjax.devices import hardware
from lthjax.folder import verified
from lthjax.imp import DENSE, Cell
from lthjax.measures import earlybird
from lthjax.training.job import Job, Trained

_log = logging.getLogger(__name__)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def result(cell: Cell, job: Job, trained: Trained, made_from: dict[str, Any] | None) -> fields.Result:
    """The contents of a cell's result.json."""
    left, total = prune.totals(job.mask)
    found: dict[str, Any] = {
        **cell._asdict(),
        "status": trained.status,
        "reason": trained.reason,
        "density": int(left) / total,
        "weights_left": int(left),
        "weights": total,
        **trained.scalars,
        "start": job.start,
        "steps": job.stop - job.start,
        "seconds": trained.seconds,
        "curves": trained.curves,
        "layers": layers(job.mask),
        "made_from": made_from,
        "platform": hardware.described(),
    }
    if trained.distances:
        found["draws"] = {
            "densities": [*earlybird.DENSITIES],
            "queue": earlybird.QUEUE,
            "largest": {**trained.distances},
        }
    return cast(fields.Result, found)


def layers(mask: Any) -> list[dict[str, Any]]:
    """[{"path", "left", "weights"}, ...] of the prunable leaves of a mask."""
    return [
        {"path": path, "left": int(np.asarray(leaf).sum()), "weights": int(leaf.size)}
        for path, leaf in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
        if leaf.ndim
    ]


def describe(cell: Cell) -> str:
    """A description of a cell: `seed 0, rewind-0, level 3, reinit, repeat 2`."""
    if cell.arm == DENSE:
        return f"seed {cell.seed}, dense"
    repeat = f", repeat {cell.repeat}" if cell.repeat > 1 else ""
    return f"seed {cell.seed}, {cell.chain}, level {cell.level}, {cell.arm}{repeat}"


def outcome(result: fields.Result) -> str:
    """A description of a result: density and test accuracy, or why there is none."""
    if result["status"] == "diverged":
        return f"diverged: {result['reason']}"
    accuracy = 100 * (result["test_accuracy"] or 0.0)
    return f"{100 * result['density']:.1f} % of weights, test accuracy {accuracy:.2f} %"


def about(
    study: config.Study, identity: dict[str, Any], lengths: config.Lengths, dataset: data.Dataset
) -> fields.About:
    """The contents of study.json."""
    found = {
        "identity": identity,
        "config": dataclasses.asdict(study),
        "lengths": lengths._asdict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "digest": dataset.digest,
            "shape": list(dataset.shape),
            "classes": dataset.classes,
            "train": len(dataset.train_images) - study.data.validation,
            "validation": study.data.validation,
            "test": len(dataset.test_images),
        },
        **provenance(),
    }
    return cast(fields.About, found)


def provenance() -> dict[str, Any]:
    """The entries of study.json that say by what cells are trained from now on."""
    # Of the code that runs, whatever else is installed.
    versions = {"lthjax": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "commands": [home.typed()],
        "versions": {"python": platform.python_version(), **versions},
        "devices": hardware.described(),
        "environment": [settings.environment()],
        "git": _git_commit(),
    }


def warn_of_environment(run: Path) -> None:
    """Warns if a run folder was started with other threads or XLA flags than now."""
    if not (run / "study.json").is_file():
        return
    # A folder older than this record has no entry for them.
    there, here = verified.read_study(run).get("environment"), settings.environment()
    if there and here not in there:
        before, now = (one or "no flags of XLA" for one in (there[-1], here))
        _log.warning(
            "%s: begun with %s, it goes on with %s; numbers may differ by rounding.", run, before, now
        )


def _git_commit() -> str | None:
    """The commit of the checkout that this package is in; None of an installed package.

    An environment may lie in a repository of other things, whose commit says nothing of this package.
    """
    if home.INSTALLED:
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class _LogFile(logging.FileHandler):
    """A log that stops silently on a full disk; the error is reported when cells are written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logged(run: Path) -> Iterator[None]:
    """Copies the package's log messages to a run folder's log.txt, except those for other folders."""
    logger = logging.getLogger("lthjax")
    handler = _LogFile(run / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(lambda record: getattr(record, "folder", run.name) == run.name)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # The watch handles output to standard error.
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)
        handler.close()
