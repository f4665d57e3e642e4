"""The run folder: every cell is written once and atomically, and checked whenever it is read.

The only file that imports orbax. Several processes may write to one folder, each to other seeds.

<out>/<name>-<fingerprint>/
  study.json                              config, versions, devices; with a checksum
  log.txt
  .lock, .locks/seed=3                    `lthjax.locks`: of study.json, and of each seed
  seed=3/state=500/                       weights and statistics at a rewind step (and at 0)
  seed=3/dense/                           level 0
  seed=3/chain=rewind-0/level=07/ARM[.rN]/
      result.json                         scalars, curves, sources
      mask.npz                            bit-packed
      variables/                          final weights and statistics (orbax)
      manifest.json                       `lthjax.manifest`: identity, and a checksum of every file
  seed=3/under-way/CELL/step=500/         a training run that is not finished: its position
  damaged/                                files that `analysis.check --repair` has set aside

A folder of an older version has no manifests; it can be read, with one warning that it is unchecked.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from lthjax import config, fields, files, home, locks, manifest, models, prune, train
from lthjax.errors import DAMAGED, UserError
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.prune._files import nested

PyTree = Any
_log = logging.getLogger(__name__)
# Key in study.json: whether every cell has a manifest, or only those written since manifests exist.
_MANIFESTS = "manifests"
LOCKS = ".locks"
# A copy of the config file of the last command; code, and never run unasked.
CONFIG = "config.py"
# Patterns of the places of states and cells, in the order in which they are made.
PLACES = ("seed=*/state=*", "seed=*/dense", "seed=*/chain=*/level=*/*")
# Held while study.json is read and written; by earlier versions as long as they ran.
_LOCK = ".lock"
_PATIENCE = 30.0


class Reader:
    """A run folder, open for reading; takes no lock and needs neither config, data nor network.

    Arrays are nested dictionaries of numpy arrays, verified by their checksums. Their shapes are stored in
    the folder; only for cells older than manifests they come from the network.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def has(self, cell: Cell) -> bool:
        """Whether a cell exists, done or diverged."""
        return (folder(self.path, cell) / "result.json").is_file()

    def has_state(self, seed: int, step: int) -> bool:
        """Whether a rewind state exists."""
        return (state_folder(self.path, seed, step) / "result.json").is_file()

    def result(self, cell: Cell) -> fields.Result:
        """The result that was given to `Store.write`."""
        return read_result(folder(self.path, cell))

    def mask(self, cell: Cell) -> PyTree:
        """A cell's mask: bool, of the weights' shapes; True, 0-d, for a leaf that is never pruned."""
        path = folder(self.path, cell) / "mask.npz"
        shapes = self._shapes(path.parent, ("mask",), "mask.npz")["mask"]
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
                return nested({p: _unpacked(packed[p], p, shape) for p, (shape, _) in shapes.items()})
        except DAMAGED as error:
            raise _damaged(path, error) from error

    def variables(self, cell: Cell) -> Variables:
        """A cell's final weights and batch statistics."""
        return self._variables(folder(self.path, cell), "variables")

    def state(self, seed: int, step: int) -> Variables:
        """The dense network's weights and batch statistics at a rewind step."""
        return self._variables(state_folder(self.path, seed, step))

    def position(self, cell: Cell) -> train.Position | None:
        """Where the interrupted training run of a cell goes on; None if it was not saved.

        Raises:
            UserError: what was saved is damaged.
        """
        of = _positions(self.path, cell) / f"step={saved_step(self.path, cell)}"
        if not of.is_dir():
            return None
        made = checked(of)
        if made is None:
            raise _damaged(of / manifest.FILE, FileNotFoundError())
        arrays = self._arrays(of, made.arrays)
        states = {
            int(step): Variables(state["params"], state.get("stats", {}))
            for step, state in arrays.pop("states").items()
        }
        try:
            known = json.loads((of / "progress.json").read_bytes())
            return train.Position(made.what["at"], arrays, states=states, **known)
        except (TypeError, *DAMAGED) as error:
            raise _damaged(of / "progress.json", error) from error

    def _variables(self, of: Path, *names: str) -> Variables:
        return Variables(**self._arrays(of, self._shapes(of, Variables._fields, *names)))

    def _arrays(self, of: Path, shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, PyTree]:
        """Arrays of these shapes, whose checksums have been verified."""
        from orbax.checkpoint import v1 as ocp

        host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = {
            name: nested(
                {p: jax.ShapeDtypeStruct(tuple(s), d, sharding=host) for p, (s, d) in of_part.items()}
            )
            for name, of_part in shapes.items()
        }
        try:
            with _quiet(), _alone():
                return cast(dict[str, PyTree], jax.device_get(ocp.load(of / "variables", template)))
        except Exception as error:  # Orbax and tensorstore raise many kinds
            raise _damaged(of / "variables", error) from error

    def _shapes(self, of: Path, parts: Iterable[str], *names: str) -> dict[str, dict[str, Any]]:
        """{part: {path: (shape, dtype)}} of a folder's arrays, after a check of their files.

        Raises:
            UserError: a file is damaged, or the folder is older and its network is not known here.
        """
        made = checked(of, *names)
        arrays = _older_shapes(self.path) if made is None else made.arrays
        try:
            return {part: arrays[part] for part in parts}
        except KeyError as error:
            raise _damaged(of / "variables", FileNotFoundError(f"it holds no {error.args[0]}")) from error


class Store(Reader):
    """A run folder, open for one study to write to.

    Args:
        path: the folder; created if missing.
        about: its study.json: the settings its numbers depend on (`config.identity`), config, versions,
            devices.
        option: the command line option that names the folder, for messages; "" if there is none.
        seeds: the seeds to write, each under a lock of its own, so that other processes may write others; by
            default all, and no other process may write to the folder.

    Attributes:
        seeds: inside the `with` block, those that no other process writes; empty where all may be written.

    Raises:
        UserError: the folder cannot be written, belongs to another study, or all of it that is asked for is
            in use.
    """

    def __init__(
        self, path: Path, about: fields.About, *, option: str = "", seeds: Collection[int] | None = None
    ) -> None:
        super().__init__(path)
        self._option, self._asked = option, seeds
        self._identity, self._about = about["identity"], about
        # Of the whole folder under "", of a seed under "seed=N".
        self._locks: dict[str, locks.Lock] = {}
        check_identity(self.path, self._identity)

    def __enter__(self) -> "Store":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._asked is None:
                self._locks = {"": locks.take(self.path / _LOCK)}
                self._begin()
            else:
                self._locks = self._take(self._asked)
                with contextlib.closing(locks.take(self.path / _LOCK, _PATIENCE)):
                    self._begin()
        except OSError as error:
            self.__exit__()
            where, advice = str(self.path), "it must be a folder that you may write to, or not be there yet"
            if self._option:
                where = f"{self._option}: {str(self.path)!r}"
                advice = f"choose another folder with {self._option}"
            raise files.unwritable(where, error, advice) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks = {}

    @property
    def seeds(self) -> list[int]:
        """See the class."""
        return [_seed_of(name) for name in self._locks if name]

    def keep(self, seeds: Collection[int]) -> None:
        """Gives back the locks of all other seeds."""
        for name in [name for name in self._locks if _seed_of(name) not in seeds]:
            self._locks.pop(name).close()

    def _take(self, seeds: Collection[int]) -> dict[str, locks.Lock]:
        """The locks of those of the seeds that no other process writes, as `lock_seeds`."""
        return lock_seeds(self.path, seeds)

    def _begin(self) -> None:
        """Removes what killed processes have left, and writes study.json."""
        files.clear(self.path, self._is_left)
        about: dict[str, Any] = {**self._about}
        if (self.path / "study.json").exists():
            # Several commands may fill one folder, each for some of its cells.
            earlier = _about(self.path)
            for key in ("commands", "environment"):
                now = about.get(key, [])
                about[key] = [*(value for value in earlier.get(key, []) if value not in now), *now]
            known = earlier.get(_MANIFESTS, "some")
        else:
            known = "some" if any(self.path.glob("seed=*")) else "all"
        about[_MANIFESTS] = about.get(_MANIFESTS, known)
        files.write_whole(self.path / "study.json", manifest.sealed(about).encode())

    def _is_left(self, part: Path) -> bool:
        """Whether an incomplete file or folder is written under a lock that we hold, and so is left over."""
        label = files.label_of(part)
        return (
            "" in self._locks
            or label in self._locks
            or (not label and (part.is_dir() or part.name.endswith("-study.json")))
        )

    def write(
        self,
        cell: Cell,
        result: fields.Result,
        mask: PyTree,
        variables: Variables | None,
        parents: Iterable[Path] = (),
    ) -> None:
        """Writes a cell.

        Args:
            cell: the cell.
            result: scalars, curves, status.
            mask: bool pytree; saved bit-packed.
            variables: final weights and statistics, or None to save none.
            parents: the folders in the run that it was made from.

        Raises:
            UserError: it cannot be written.
        """
        trees: dict[str, PyTree] = {"mask": mask}
        with self._whole(folder(self.path, cell)) as part:
            if variables is not None:
                _save(part / "variables", variables._asdict())
                trees |= variables._asdict()
            packed = {p: np.asarray(m) for p, m in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)}
            np.savez(part / "mask.npz", **{p: np.packbits(m) for p, m in packed.items()})  # type: ignore[arg-type]
            _write_json(part / "result.json", result)
            self._seal(part, cell._asdict(), parents, trees)

    def write_state(self, seed: int, step: int, variables: Variables) -> None:
        """Writes a rewind state.

        Raises:
            UserError: it cannot be written.
        """
        what = {"seed": seed, "step": step}
        with self._whole(state_folder(self.path, seed, step)) as part:
            _save(part / "variables", variables._asdict())
            _write_json(part / "result.json", what)
            self._seal(part, what, (), variables._asdict())

    def write_position(self, cell: Cell, position: train.Position, parents: Iterable[Path]) -> None:
        """Writes the position of a cell's training run under way, in place of an earlier one.

        Args:
            cell: the cell.
            position: the position.
            parents: the folders in the run that the cell is made from.

        Raises:
            UserError: it cannot be written.
        """
        target = _positions(self.path, cell) / f"step={position.at}"
        if target.exists():
            return
        # Orbax does not give back an empty part inside another one.
        states = {
            str(step): {name: tree for name, tree in state._asdict().items() if tree}
            for step, state in position.states.items()
        }
        trees = {**position.arrays, "states": states}
        with self._whole(target, "progress.json") as part:
            _save(part / "variables", jax.tree.map(np.asarray, trees))
            known = {"curves": position.curves, "losses": position.losses, "seconds": position.seconds}
            _write_json(part / "progress.json", known)
            self._seal(part, {**cell._asdict(), "at": position.at}, parents, trees)
        for earlier in target.parent.glob("step=*"):
            if earlier != target:
                shutil.rmtree(earlier, ignore_errors=True)

    def drop_position(self, cell: Cell) -> None:
        """Removes the position of a training run that is finished."""
        place = _positions(self.path, cell)
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.parent.rmdir()

    def _seal(
        self, part: Path, what: Mapping[str, Any], parents: Iterable[Path], trees: Mapping[str, PyTree]
    ) -> None:
        made = {parent: manifest.read(self.path / parent) for parent in parents}
        contents = {parent.as_posix(): of.content for parent, of in made.items() if of is not None}
        manifest.write(part, what, config.fingerprint(self._identity), contents, trees)

    def copy_seed(self, other: Reader, seed: int) -> None:
        """Copies the missing dense network and rewind states of a seed from another folder.

        Raises:
            UserError: a source is damaged, or cannot be written.
        """
        sources = [
            *(other.path / f"seed={seed}").glob("state=*"),
            folder(other.path, Cell(seed, DENSE, 0, DENSE)),
        ]
        for source in sources:
            place = source.relative_to(other.path)
            if not (self.path / place / "result.json").is_file():
                self.copy(other, place)

    def copy(self, other: Reader, place: Path) -> None:
        """Copies a cell or rewind state that is missing here from another folder.

        Args:
            other: the other folder.
            place: the path of the cell or state in both.

        Raises:
            UserError: the source is damaged, or it cannot be written.
        """
        made = checked(other.path / place)
        with self._whole(self.path / place) as part:
            shutil.copytree(other.path / place, part, dirs_exist_ok=True)
            if made is None:
                return
            # The same numbers, now as part of this study.
            adopted = made._replace(study=config.fingerprint(self._identity))
            if adopted != made:
                text = manifest.sealed(adopted._asdict())
                (part / manifest.FILE).write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _whole(self, target: Path, last: str = "result.json") -> Iterator[Path]:
        """A temporary folder that is renamed to `target` if the block succeeds.

        Raises:
            UserError: it cannot be written, or another process has taken over its seed.
        """
        label = target.relative_to(self.path).parts[0]
        lock = self._locks["" if "" in self._locks else label]
        try:
            lock.check()
            if target.exists():
                # A folder without its result.json: something else changed it.
                set_aside(self.path, target)
            with files.whole_folder(target, last, self.path, label) as part:
                yield part
                lock.check()
        except OSError as error:
            lock.check()
            raise files.unwritable(target, error) from error


def contents(run: Path, seeds: Collection[int]) -> dict[str, str]:
    """Place of every cell, rewind state and saved position of these seeds -> checksum of its manifest."""
    patterns = [pattern.removeprefix("seed=*/") for pattern in (*PLACES, "seed=*/under-way/*/step=*")]
    found = {}
    for place in (of for seed in seeds for p in patterns for of in sorted((run / f"seed={seed}").glob(p))):
        if any((place / name).is_file() for name in ("result.json", "progress.json")):
            made = place / manifest.FILE
            found[place.relative_to(run).as_posix()] = files.sha256(made) if made.is_file() else ""
    return found


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
    return sorted(map(_seed_of, locks.held(run / LOCKS, "seed=*")))


def _seed_of(name: str) -> int:
    return int(name.removeprefix("seed=") or -1)


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
        stack.enter_context(contextlib.closing(locks.take(run / _LOCK, _PATIENCE)))
        yield


def set_aside(run: Path, path: Path) -> Path:
    """Moves a file or folder of a run folder to `damaged/N/`, and returns its new path.

    Raises:
        OSError: it cannot be moved.
    """
    there = run / "damaged"
    there.mkdir(exist_ok=True)
    number = 1 + max((int(p.name) for p in there.glob("*") if p.name.isdigit()), default=0)
    # Another process may just have taken this number.
    while not _is_new(there / str(number)):
        number += 1
    target = there / str(number) / path.relative_to(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.move(path, target)
    return target


def _is_new(folder: Path) -> bool:
    """Makes a folder; whether it was not there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def folder(run: Path, cell: Cell) -> Path:
    """The path of a cell in a run folder."""
    seed = run / f"seed={cell.seed}"
    if cell.arm == DENSE:
        return seed / "dense"
    repeat = f".r{cell.repeat}" if cell.repeat > 1 else ""
    return seed / f"chain={cell.chain}" / f"level={cell.level:02d}" / f"{cell.arm}{repeat}"


def saved_step(run: Path, cell: Cell) -> int:
    """The step at which a cell's interrupted training run was saved; 0 if it was not."""
    return max((_step(of) for of in _positions(run, cell).glob("step=*")), default=0)


def state_folder(run: Path, seed: int, step: int) -> Path:
    """The path of a rewind state in a run folder."""
    return run / f"seed={seed}" / f"state={step}"


def read_result(cell_folder: Path) -> fields.Result:
    """A cell's result.json.

    Raises:
        UserError: it is missing or damaged, or a field of it has a wrong type or value.
    """
    checked(cell_folder, "result.json")
    return cast(fields.Result, _sound(cell_folder / "result.json", fields.result))


def checked(of: Path, *names: str) -> manifest.Manifest | None:
    """Verifies the checksums of a cell's or state's files before they are read.

    Args:
        of: the folder of a cell or rewind state.
        names: files and folders in it; by default all of them.

    Returns:
        Its manifest; None if it is older than manifests.

    Raises:
        UserError: a file has changed since it was written, the folder belongs to another run, or its parent
            is not the one that it was made from.
    """
    first = max(i for i, part in enumerate(of.parts) if part.startswith("seed="))
    run, place = Path(*of.parts[:first]), "/".join(of.parts[first:])
    try:
        made = manifest.read(of)
        about = _about(run)
        if made is None:
            if about.get(_MANIFESTS) == "all":
                raise manifest.Damaged(f"{of / manifest.FILE}: not there")
            _unchecked(run)
            return None
        if place != _place(made.what):
            raise manifest.Damaged(f"{of}: it is a copy of {_place(made.what)}")
        if made.study != config.fingerprint(about["identity"]):
            raise manifest.Damaged(f"{of}: it is of another study, {made.study}")
        for parent, content in made.parents.items():
            now = manifest.read(run / parent)
            if now is not None and now.content != content:
                raise manifest.Damaged(f"{of}: it was made from another {parent} than is there now")
        manifest.check(of, made, names or None)
    except manifest.Damaged as error:
        raise UserError(f"{error}; {_mend(run)}.") from error
    return made


def _positions(run: Path, cell: Cell) -> Path:
    """The folder of a cell's position while it is trained."""
    name = folder(Path(), cell).relative_to(f"seed={cell.seed}")
    return run / f"seed={cell.seed}" / "under-way" / ",".join(name.parts)


def _step(position: Path) -> int:
    return int(position.name.removeprefix("step="))


def _place(what: Mapping[str, Any]) -> str:
    if "at" in what:
        cell = Cell(**{name: value for name, value in what.items() if name != "at"})
        return (_positions(Path(), cell) / f"step={what['at']}").as_posix()
    if "step" in what:
        return state_folder(Path(), what["seed"], what["step"]).as_posix()
    return folder(Path(), Cell(**what)).as_posix()


@cache
def _unchecked(run: Path) -> None:
    _log.warning("%s: cells of an older version have no checksums; damage to them cannot be noticed.", run)


def read_study(run: Path) -> fields.About:
    """A run folder's study.json.

    Raises:
        UserError: it is missing or damaged, a field of it has a wrong type or value, or a newer version of
            lthjax has written it.
    """
    about = {name: value for name, value in _about(run).items() if name != _MANIFESTS}
    return cast(fields.About, about)


def has_manifests(run: Path) -> bool:
    """Whether every cell of a run folder has a manifest, as in all folders that are not older than these."""
    return _about(run).get(_MANIFESTS) == "all"


def _about(run: Path) -> dict[str, Any]:
    """study.json, with the fields that only this module reads."""
    path = run / "study.json"
    if not path.is_file():
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    return _sound(path, fields.study)


def check_identity(run: Path, identity: dict[str, Any]) -> None:
    """Checks that a folder holds numbers of this study.

    Raises:
        UserError: names the first field that differs.
    """
    if not (run / "study.json").exists():
        return
    if (differs := difference(read_study(run)["identity"], identity)) is not None:
        name, there, here = differs
        raise UserError(
            f"{run}: it was made by another config: {name} is {there!r} there and {here!r} here; choose "
            "another folder with --out, or another name."
        )


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs between two identities, and its two values; None if there is none."""
    # A folder older than a field was made with the meaning of the field's default.
    usual = config.defaults()
    there, here = {**usual, **there}, {**usual, **here}
    names = (name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name))
    return next(((name, there.get(name), here.get(name)) for name in names), None)


def _save(path: Path, trees: Mapping[str, PyTree]) -> None:
    from orbax.checkpoint import v1 as ocp

    try:
        with _quiet():
            if jax.process_count() == 1:
                ocp.save(path, {**trees})
            else:
                _save_alone(path, trees)
    except Exception as error:  # Orbax and tensorstore raise many kinds, for a full disk too
        raise OSError(str(error)) from error


def _save_alone(path: Path, trees: Mapping[str, PyTree]) -> None:
    """As `ocp.save`, by one process of a program over several hosts (`lthjax.devices.hosts`).

    Orbax's newer interface waits for the other processes whatever its options say; it reads what the older
    one writes.
    """
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(**_alone_options())
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path, ocp.args.Composite(pytree=ocp.args.PyTreeSave({**trees})))


def _alone() -> contextlib.AbstractContextManager[Any]:
    """Keeps Orbax from waiting for the other processes of a program when it reads."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    from orbax.checkpoint import v1 as ocp

    options = ocp.options.MultiprocessingOptions(**_alone_options())
    return cast(contextlib.AbstractContextManager[Any], ocp.Context(multiprocessing_options=options))


def _alone_options() -> dict[str, Any]:
    own = jax.process_index()
    return {"primary_host": own, "active_processes": {own}, "barrier_sync_key_prefix": f"lthjax{own}"}


def _damaged(path: Path, error: Exception) -> UserError:
    run = next((p for p in path.parents if (p / "study.json").exists()), path.parent)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0] if path.exists() else "not there"
    return UserError(f"{path}: it cannot be read ({reason}); {_mend(run)}.")


def _mend(run: Path) -> str:
    command = home.command("check", run, "--repair")
    return f"{command} sets it aside, and the command that made it then makes it anew"


def _sound(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A JSON object, after a check of its checksum, if it has one, and of its fields."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        if any(key in value for key in (_MANIFESTS, "sha256")):
            value = manifest.opened(value)
        check(value)
    except fields.Newer as error:
        raise UserError(
            f"{path}: a newer version of lthjax has written it ({error}); update lthjax, or name another "
            "folder."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return value


@cache
def _older_shapes(run: Path) -> dict[str, dict[str, Any]]:
    """The shapes of a run's masks, weights and batch statistics, taken from its network.

    Raises:
        UserError: the network is not known here.
    """
    about = read_study(run)
    shape, name = tuple(about["data"]["shape"]), about["config"]["model"]
    if name not in models.MODELS:
        raise UserError(
            f"{run}: its cells are older than manifests and do not hold their shapes, and the network "
            f"{name!r} is from outside the package; load the config file that defines it first."
        )
    model = models.build(name, shape, about["data"]["classes"])  # type: ignore[arg-type]
    like = jax.eval_shape(model.init, jax.random.key(0))
    trees = {"mask": jax.eval_shape(prune.ones, like.params), **like._asdict()}
    return {
        part: {
            path: (leaf.shape, leaf.dtype)
            for path, leaf in zip(prune.paths(tree), jax.tree.leaves(tree), strict=True)
        }
        for part, tree in trees.items()
    }


def _unpacked(bits: np.ndarray, path: str, shape: Sequence[int]) -> np.ndarray:
    """Unpacks a mask leaf from its bits."""
    size = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"{path} has {bits.size} bytes of {bits.dtype} for {size} bits")
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Orbax's log messages, and its tracebacks for errors that it raises anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n")
