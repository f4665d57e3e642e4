"""The run folder: every cell written once, whole or not at all, and checked whenever it is read.

The only file that imports orbax.

<out>/<name>-<fingerprint>/
  study.json                              config, versions, devices; with a checksum
  log.txt
  seed=3/state=500/                       weights and statistics at a rewind step (and at 0)
  seed=3/dense/                           level 0
  seed=3/chain=rewind-0/level=07/ARM[.rN]/
      result.json                         scalars, curves, what it came from
      mask.npz                            bit-packed
      variables/                          final weights and statistics (orbax)
      manifest.json                       `lthjax.manifest`: what this is, a checksum of every file
  damaged/                                what `analysis.check --repair` has set aside

A folder of an older version has no manifests; it is read, and once said to be unchecked.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import jax
import numpy as np

from lthjax import config, fields, files, manifest, models, prune
from lthjax.errors import DAMAGED, UserError, shell
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables

PyTree = Any
_log = logging.getLogger(__name__)
# In study.json: whether every cell has a manifest, or only those that are younger than a folder's first ones.
_MANIFESTS = "manifests"


class Reader:
    """A run folder, open for reading; it takes no lock and needs neither config, data nor network.

    Arrays come as nested dictionaries of numpy arrays, checked against their checksums. Their shapes lie in
    the folder; only of cells that are older than manifests the network is asked for them.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def has(self, cell: Cell) -> bool:
        """Whether a cell is there, done or diverged."""
        return (folder(self.path, cell) / "result.json").is_file()

    def has_state(self, seed: int, step: int) -> bool:
        """Whether a rewind state is there."""
        return (state_folder(self.path, seed, step) / "result.json").is_file()

    def result(self, cell: Cell) -> fields.Result:
        """What `Store.write` was given as result."""
        return read_result(folder(self.path, cell))

    def mask(self, cell: Cell) -> PyTree:
        """A cell's mask: bool, of the weights' shapes; True, 0-d, for a leaf that is never pruned."""
        path = folder(self.path, cell) / "mask.npz"
        shapes = self._shapes(path.parent, ("mask",), "mask.npz")["mask"]
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
                return _nested({p: _unpacked(packed[p], p, shape) for p, (shape, _) in shapes.items()})
        except DAMAGED as error:
            raise _damaged(path, error) from error

    def variables(self, cell: Cell) -> Variables:
        """A cell's final weights and batch statistics."""
        return self._variables(folder(self.path, cell), "variables")

    def state(self, seed: int, step: int) -> Variables:
        """The dense network's weights and batch statistics at a rewind step."""
        return self._variables(state_folder(self.path, seed, step))

    def _variables(self, of: Path, *names: str) -> Variables:
        from orbax.checkpoint import v1 as ocp

        shapes = self._shapes(of, Variables._fields, *names)
        host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = {
            name: _nested(
                {p: jax.ShapeDtypeStruct(tuple(s), d, sharding=host) for p, (s, d) in of_part.items()}
            )
            for name, of_part in shapes.items()
        }
        try:
            with _quiet():
                return Variables(**jax.device_get(ocp.load(of / "variables", template)))
        except Exception as error:  # Orbax and tensorstore raise many kinds
            raise _damaged(of / "variables", error) from error

    def _shapes(self, of: Path, parts: Iterable[str], *names: str) -> dict[str, dict[str, Any]]:
        """{part: {path: (shape, dtype)}} of a folder's arrays, whose files are checked.

        Raises:
            UserError: something is damaged, or of an older folder the network is not known here.
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
        path: the folder; made where it is not there.
        about: its study.json: what its numbers depend on (`config.identity`), config, versions, devices.
        option: of the command line that names the folder, for messages; empty where none does.

    Raises:
        UserError: the folder cannot be written, belongs to another study, or is in use.
    """

    def __init__(self, path: Path, about: fields.About, *, option: str = "") -> None:
        super().__init__(path)
        self._option = option
        self._identity, self._about = about["identity"], about
        self._lock: IO[str] | None = None
        check_identity(self.path, self._identity)

    def __enter__(self) -> "Store":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = files.locked(self.path / ".lock")
            files.clear(self.path)
            about: dict[str, Any] = {**self._about}
            if (self.path / "study.json").exists():
                # A folder may be filled by several commands, each for some of its cells.
                earlier = _about(self.path)
                for key in ("commands", "environment"):
                    now = about.get(key, [])
                    about[key] = [*(value for value in earlier.get(key, []) if value not in now), *now]
                about[_MANIFESTS] = earlier.get(_MANIFESTS, "some")
            else:
                about[_MANIFESTS] = "some" if any(self.path.glob("seed=*")) else "all"
            files.write_whole(self.path / "study.json", manifest.sealed(about).encode())
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
        if self._lock is not None:
            self._lock.close()

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
            cell: which.
            result: scalars, curves, status.
            mask: bool pytree; saved bit-packed.
            variables: final weights and statistics, or None where there are none worth keeping.
            parents: the folders in the run of what it was made from.

        Raises:
            UserError: it cannot be written.
        """
        trees: dict[str, PyTree] = {"mask": mask}
        with self._whole(folder(self.path, cell)) as part:
            if variables is not None:
                _save(part / "variables", variables)
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
            _save(part / "variables", variables)
            _write_json(part / "result.json", what)
            self._seal(part, what, (), variables._asdict())

    def _seal(
        self, part: Path, what: Mapping[str, Any], parents: Iterable[Path], trees: Mapping[str, PyTree]
    ) -> None:
        made = {parent: manifest.read(self.path / parent) for parent in parents}
        contents = {parent.as_posix(): of.content for parent, of in made.items() if of is not None}
        manifest.write(part, what, config.fingerprint(self._identity), contents, trees)

    def copy_seed(self, other: "Store", seed: int) -> None:
        """Copies the dense network and the rewind states of a seed that are not there from another folder.

        Raises:
            UserError: one is damaged, or cannot be written.
        """
        sources = [
            *(other.path / f"seed={seed}").glob("state=*"),
            folder(other.path, Cell(seed, DENSE, 0, DENSE)),
        ]
        for source in sources:
            target = self.path / source.relative_to(other.path)
            if not (target / "result.json").is_file():
                checked(source)
                with self._whole(target) as part:
                    shutil.copytree(source, part, dirs_exist_ok=True)
                    if (made := manifest.read(part)) is not None:
                        # The same numbers, of another study now.
                        adopted = made._replace(study=config.fingerprint(self._identity))
                        text = manifest.sealed(adopted._asdict())
                        (part / manifest.FILE).write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _whole(self, target: Path) -> Iterator[Path]:
        """A temporary folder that becomes `target` when the block ends well."""
        try:
            if target.exists():
                # A folder without its result.json: somebody has been at it.
                set_aside(self.path, target)
            with files.whole_folder(target, "result.json", self.path) as part:
                yield part
        except OSError as error:
            raise files.unwritable(target, error) from error


def set_aside(run: Path, path: Path) -> Path:
    """Moves a file or folder of a run folder to `damaged/N/` in it, and returns where to.

    Raises:
        OSError: it cannot be moved.
    """
    number = 1 + max((int(p.name) for p in (run / "damaged").glob("*") if p.name.isdigit()), default=0)
    target = run / "damaged" / str(number) / path.relative_to(run)
    target.parent.mkdir(parents=True)
    files.move(path, target)
    return target


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


def read_result(cell_folder: Path) -> fields.Result:
    """A cell's result.json.

    Raises:
        UserError: it is not there, is damaged, or a field of it is not what it must be.
    """
    checked(cell_folder, "result.json")
    return cast(fields.Result, _sound(cell_folder / "result.json", fields.result))


def checked(of: Path, *names: str) -> manifest.Manifest | None:
    """Compares a cell's or state's files with their checksums, before they are read.

    Args:
        of: the folder of a cell or rewind state.
        names: files and folders in it; by default all.

    Returns:
        Its manifest; None where it has none, being older than manifests.

    Raises:
        UserError: a file is not as it was written, or the folder is another's, or was made from another
            parent than is there.
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


def _place(what: Mapping[str, Any]) -> str:
    if "step" in what:
        return state_folder(Path(), what["seed"], what["step"]).as_posix()
    return folder(Path(), Cell(**what)).as_posix()


@cache
def _unchecked(run: Path) -> None:
    _log.warning("%s: cells of an older version have no checksums; damage to them cannot be noticed.", run)


def read_study(run: Path) -> fields.About:
    """A run folder's study.json.

    Raises:
        UserError: there is none, it is damaged, a field of it is not what it must be, or a newer version of
            lthjax has written it.
    """
    about = {name: value for name, value in _about(run).items() if name != _MANIFESTS}
    return cast(fields.About, about)


def _about(run: Path) -> dict[str, Any]:
    """The same with what only this file reads."""
    path = run / "study.json"
    if not path.is_file():
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    return _sound(path, fields.study)


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

    try:
        with _quiet():
            ocp.save(path, variables._asdict())
    except Exception as error:  # Orbax and tensorstore raise many kinds, for a full disk too
        raise OSError(str(error)) from error


def _damaged(path: Path, error: Exception) -> UserError:
    run = next((p for p in path.parents if (p / "study.json").exists()), path.parent)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0] if path.exists() else "not there"
    return UserError(f"{path}: it cannot be read ({reason}); {_mend(run)}.")


def _mend(run: Path) -> str:
    command = shell("python", "-m", "analysis.check", run, "--repair")
    return f"{command} sets it aside, and the command that made it then makes it anew"


def _sound(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A JSON object whose checksum, if it has one, is right, and whose fields are what they must be."""
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


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dictionaries from its leaves by path, keys joined by "/"."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        within = tree
        for parent in parents:
            within = within.setdefault(parent, {})
        within[name] = leaf
    return tree


@cache
def _older_shapes(run: Path) -> dict[str, dict[str, Any]]:
    """The shapes of a run's masks, weights and batch statistics as its network has them.

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
    """A mask leaf from its bits."""
    size = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"{path} has {bits.size} bytes of {bits.dtype} for {size} bits")
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks out of the log, and its tracebacks for what it raises as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n")
