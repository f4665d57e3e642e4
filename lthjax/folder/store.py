"""A run folder, open for one study to write to."""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lthjax import config, fields, files, locks, manifest, prune
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.arrays import PyTree, save
from lthjax.folder.places import PLACES, folder, positions, set_aside, state_folder
from lthjax.folder.reader import Reader
from lthjax.folder.verified import MANIFESTS, check_identity, checked, read_about
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.training.job import Position


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
                self._locks = {"": locks.take(self.path / claims.LOCK)}
                self._begin()
            else:
                self._locks = self._take(self._asked)
                with claims.about_locked(self.path):
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
        return [claims.seed_of(name) for name in self._locks if name]

    def keep(self, seeds: Collection[int]) -> None:
        """Gives back the locks of all other seeds."""
        for name in [name for name in self._locks if claims.seed_of(name) not in seeds]:
            self._locks.pop(name).close()

    def _take(self, seeds: Collection[int]) -> dict[str, locks.Lock]:
        """The locks of those of the seeds that no other process writes, as `claims.lock_seeds`."""
        return claims.lock_seeds(self.path, seeds)

    def _begin(self) -> None:
        """Removes what killed processes have left, and writes study.json."""
        files.clear(self.path, self._is_left)
        about: dict[str, Any] = {**self._about}
        if (self.path / "study.json").exists():
            # Several commands may fill one folder, each for some of its cells.
            earlier = read_about(self.path)
            for key in ("commands", "environment"):
                now = about.get(key, [])
                about[key] = [*(value for value in earlier.get(key, []) if value not in now), *now]
            if made := list(dict.fromkeys([*filled_before(earlier, about), *about.get("earlier", [])])):
                about["earlier"] = made
            known = earlier.get(MANIFESTS, "some")
        else:
            cells = (path.parent for pattern in PLACES for path in self.path.glob(f"{pattern}/result.json"))
            known = "all" if all((cell / manifest.FILE).is_file() for cell in cells) else "some"
        about[MANIFESTS] = about.get(MANIFESTS, known)
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
            UserError: it cannot be written, or one of `parents` is not there.
        """
        trees: dict[str, PyTree] = {"mask": mask}
        with self._whole(folder(self.path, cell)) as part:
            if variables is not None:
                save(part / "variables", variables._asdict())
                trees |= variables._asdict()
            packed = {p: np.asarray(m) for p, m in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)}
            np.savez(part / "mask.npz", **{p: np.packbits(m) for p, m in packed.items()})  # type: ignore[arg-type]
            _write_json(part / "result.json", result)
            self._seal(part, cell._asdict(), parents, trees)

    def write_state(
        self, seed: int, step: int, variables: Variables, made_from: Mapping[str, Any] | None = None
    ) -> None:
        """Writes a rewind state; an analysis that replays one says what it was made from.

        Raises:
            UserError: it cannot be written.
        """
        what = {"seed": seed, "step": step}
        with self._whole(state_folder(self.path, seed, step)) as part:
            save(part / "variables", variables._asdict())
            _write_json(part / "result.json", {**what, "made_from": made_from} if made_from else what)
            self._seal(part, what, (), variables._asdict())

    def write_position(self, cell: Cell, position: Position, parents: Iterable[Path]) -> None:
        """Writes the position of a cell's training run under way, in place of an earlier one.

        Args:
            cell: the cell.
            position: the position.
            parents: the folders in the run that the cell is made from.

        Raises:
            UserError: it cannot be written, or one of `parents` is not there.
        """
        target = positions(self.path, cell) / f"step={position.at}"
        if target.exists():
            return
        # Orbax does not give back an empty part inside another one.
        states = {
            str(step): {name: tree for name, tree in state._asdict().items() if tree}
            for step, state in position.states.items()
        }
        trees = {**position.arrays, "states": states}
        with self._whole(target, "progress.json") as part:
            save(part / "variables", jax.tree.map(np.asarray, trees))
            known = {"curves": position.curves, "losses": position.losses, "seconds": position.seconds}
            _write_json(part / "progress.json", known)
            self._seal(part, {**cell._asdict(), "at": position.at}, parents, trees)
        for earlier in target.parent.glob("step=*"):
            if earlier != target:
                shutil.rmtree(earlier, ignore_errors=True)

    def drop_position(self, cell: Cell) -> None:
        """Removes the position of a training run that is finished."""
        place = positions(self.path, cell)
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.parent.rmdir()

    def _seal(
        self, part: Path, what: Mapping[str, Any], parents: Iterable[Path], trees: Mapping[str, PyTree]
    ) -> None:
        """Writes the manifest. The write of a source may have failed, which was then read from memory."""
        contents = {}
        for place in parents:
            source = self.path / place
            if not (source / "result.json").is_file():
                raise UserError(
                    f"{source}: it is not there, so what was made from it was not written; run the same "
                    "command again, which goes on from here."
                )
            # None where the source is older than manifests.
            if (made := manifest.read(source)) is not None:
                contents[place.as_posix()] = made.content
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
        if made is None:
            self._take_unchecked()
        with self._whole(self.path / place) as part:
            shutil.copytree(other.path / place, part, dirs_exist_ok=True)
            if made is None:
                return
            # The same numbers, now as part of this study.
            adopted = made._replace(study=config.fingerprint(self._identity))
            if adopted != made:
                text = manifest.sealed(adopted._asdict())
                (part / manifest.FILE).write_text(text, encoding="utf-8")

    def _take_unchecked(self) -> None:
        """Has study.json say that not every cell has a manifest, before one without is copied."""
        try:
            with contextlib.nullcontext() if "" in self._locks else claims.about_locked(self.path):
                about = read_about(self.path)
                if about.get(MANIFESTS) == "all":
                    text = manifest.sealed({**about, MANIFESTS: "some"})
                    files.write_whole(self.path / "study.json", text.encode())
        except OSError as error:
            raise files.unwritable(self.path, error) from error

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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n")


def filled_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """By which devices, versions and commits a folder was filled before, where they are others now.

    Args:
        before: its study.json until now.
        now: the one that is to be written.
    """
    made = [f"{before.get('devices', 'devices not known')}; "
            f"{', '.join(f'{name} {version}' for name, version in before.get('versions', {}).items())}; "
            f"commit {before.get('git') or 'not known'}"]  # fmt: skip
    same = all(before.get(key) == now.get(key) for key in ("devices", "versions", "git"))
    return list(dict.fromkeys([*before.get("earlier", []), *([] if same else made)]))
