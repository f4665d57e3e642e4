"""The run folder: every cell written once, whole or not at all. The only file that imports orbax.

<out>/<name>-<fingerprint>/
  study.json                              config, versions, devices
  log.txt
  seed=3/state=500/                       weights and statistics at a rewind step (and at 0)
  seed=3/dense/                           level 0
  seed=3/chain=rewind-0/level=07/ARM[.rN]/
      result.json                         scalars, curves, what it came from
      mask.npz                            bit-packed
      variables/                          final weights and statistics (orbax)
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from lthjax import config, prune
from lthjax.errors import DAMAGED, UserError
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables

PyTree = Any


class Store:
    """A run folder, open for one study.

    Args:
        path: the folder; made where it is not there.
        identity: what the study's numbers depend on (`config.identity`).
        about: the rest of study.json: config, versions, devices.
        option: of the command line that names the folder, for messages; empty where none does.

    Raises:
        UserError: the folder cannot be written, belongs to another study, or is in use.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], about: dict[str, Any], *, option: str = ""
    ) -> None:
        self.path, self._option = path.absolute(), option
        self._identity, self._about = identity, about
        self._lock: IO[str] | None = None
        check_identity(self.path, identity)

    def __enter__(self) -> "Store":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / ".lock")
        except OSError as error:
            why = error.strerror or error
            if self._option:
                advice = f"choose another folder with {self._option}"
                raise UserError(
                    f"{self._option}: {str(self.path)!r} cannot be written ({why}); {advice}."
                ) from error
            advice = "it must be a folder that you may write to, or not be there yet"
            raise UserError(f"{self.path}: it cannot be written ({why}); {advice}.") from error
        for left in self.path.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        about = {"identity": self._identity, **self._about}
        if (self.path / "study.json").exists():
            # A folder may be filled by several commands, each for some of its cells.
            before = read_study(self.path)
            for key in ("commands", "environment"):
                now = about.get(key, [])
                about[key] = [*[value for value in before.get(key, []) if value not in now], *now]
        text = json.dumps(about, indent=1) + "\n"
        _write_whole(self.path / "study.json", text)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def has(self, cell: Cell) -> bool:
        """Whether a cell is there, done or diverged."""
        return (folder(self.path, cell) / "result.json").is_file()

    def has_state(self, seed: int, step: int) -> bool:
        """Whether a rewind state is there."""
        return (state_folder(self.path, seed, step) / "result.json").is_file()

    def write(self, cell: Cell, result: dict[str, Any], mask: PyTree, variables: Variables | None) -> None:
        """Writes a cell.

        Args:
            cell: which.
            result: scalars, curves, status.
            mask: bool pytree; saved bit-packed.
            variables: final weights and statistics, or None where there are none worth keeping.
        """
        with self._whole(folder(self.path, cell)) as part:
            if variables is not None:
                _save(part / "variables", variables)
            packed = {p: np.asarray(m) for p, m in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)}
            np.savez(part / "mask.npz", **{p: np.packbits(m) for p, m in packed.items()})  # type: ignore[arg-type]
            _write_json(part / "result.json", result)

    def write_state(self, seed: int, step: int, variables: Variables) -> None:
        """Writes a rewind state."""
        with self._whole(state_folder(self.path, seed, step)) as part:
            _save(part / "variables", variables)
            _write_json(part / "result.json", {"seed": seed, "step": step})

    def copy_seed(self, other: "Store", seed: int) -> None:
        """Copies the dense network and the rewind states of a seed that are not there from another folder."""
        sources = [
            *(other.path / f"seed={seed}").glob("state=*"),
            folder(other.path, Cell(seed, DENSE, 0, DENSE)),
        ]
        for source in sources:
            target = self.path / source.relative_to(other.path)
            if not (target / "result.json").is_file():
                with self._whole(target) as part:
                    shutil.copytree(source, part, dirs_exist_ok=True)

    def result(self, cell: Cell) -> dict[str, Any]:
        """What `write` was given as result."""
        return read_result(folder(self.path, cell))

    def mask(self, cell: Cell, like: PyTree) -> PyTree:
        """A cell's mask; `like` is a mask of the same shapes."""
        path = folder(self.path, cell) / "mask.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
                leaves = [
                    np.unpackbits(packed[p], count=max(m.size, 1)).astype(bool).reshape(m.shape)
                    for p, m in zip(prune.paths(like), jax.tree.leaves(like), strict=True)
                ]
        except DAMAGED as error:
            raise _damaged(path, error) from error
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def variables(self, cell: Cell, like: Variables) -> Variables:
        """A cell's final weights and statistics, numpy; `like` gives shapes and dtypes."""
        return _load(folder(self.path, cell) / "variables", like)

    def state(self, seed: int, step: int, like: Variables) -> Variables:
        """A rewind state; `like` gives shapes and dtypes."""
        return _load(state_folder(self.path, seed, step) / "variables", like)

    @contextlib.contextmanager
    def _whole(self, target: Path) -> Iterator[Path]:
        """A temporary folder that becomes `target` when the block ends well."""
        part = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.path))
        if target.exists():
            # A folder without its result.json: somebody has been at it.
            shutil.rmtree(target)
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _sync(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)
        _sync(target.parent)


def folder(run: Path, cell: Cell) -> Path:
    """Where a cell lies in a run folder."""
    seed = run / f"seed={cell.seed}"
    if cell.arm == DENSE:
        return seed / "dense"
    repeat = f".r{cell.repeat}" if cell.repeat > 1 else ""
    return seed / f"chain={cell.chain}" / f"level={cell.level:02d}" / f"{cell.arm}{repeat}"


def state_folder(run: Path, seed: int, step: int) -> Path:
    """Where a rewind state lies in a run folder."""
    return run / f"seed={seed}" / f"state={step}"


def read_result(cell_folder: Path) -> dict[str, Any]:
    """A cell's result.json.

    Raises:
        UserError: it is not there or not JSON.
    """
    return _read_json(cell_folder / "result.json", ("seed", "chain", "level", "arm", "repeat", "status"))


def read_study(run: Path) -> dict[str, Any]:
    """A run folder's study.json.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    if not (run / "study.json").is_file():
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    return _read_json(run / "study.json", ("identity", "config", "lengths", "data"))


def check_identity(run: Path, identity: dict[str, Any]) -> None:
    """Raises where the folder holds another study's numbers.

    Raises:
        UserError: names the first field that differs.
    """
    if not (run / "study.json").exists():
        return
    # A field that is newer than the folder had its default's meaning when the folder was made.
    usual = config.defaults()
    there, here = ({**usual, **fields} for fields in (read_study(run)["identity"], identity))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{run}: it was made by another config: {name} is {there.get(name)!r} there and "
                f"{here.get(name)!r} here; choose another folder with --out, or another name."
            )


def _save(path: Path, variables: Variables) -> None:
    from orbax.checkpoint import v1 as ocp

    with _quiet():
        ocp.save(path, variables._asdict())


def _load(path: Path, like: Variables) -> Variables:
    from orbax.checkpoint import v1 as ocp

    host = jax.local_devices()[0]
    place = jax.sharding.SingleDeviceSharding(host)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like._asdict())
    try:
        with _quiet():
            return Variables(**jax.device_get(ocp.load(path, template)))
    except Exception as error:  # Orbax and tensorstore raise many kinds
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    lost = path if path.name == "study.json" else path.parent
    reason = (str(error).strip() or type(error).__name__).splitlines()[0] if path.exists() else "not there"
    clear = f"delete {lost} and " if lost.exists() else ""
    return UserError(
        f"{path}: it cannot be read ({reason}); {clear}run again what made it (run.py, for cells of a run), "
        "which makes it anew."
    )


def _read_json(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        lacking = [key for key in needed if key not in value] if isinstance(value, dict) else ["an object"]
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if lacking:
        raise _damaged(path, ValueError(f"it lacks {', '.join(lacking)}"))
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks on every save out of the log."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _locked(path: Path) -> IO[str]:
    """The lock file, locked; the lock goes with the process that holds it."""
    file = path.open("a+")
    try:
        import fcntl
    except ImportError:  # no such locks on Windows; there two runs of one study are the user's to avoid
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"{path.parent}: another process is running this study; wait for it or stop it."
        ) from None
    return file


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half."""
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(text)
    _sync(part)
    os.replace(part, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
