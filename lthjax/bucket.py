"""Run folders in an object store, such as gs://bucket/runs, which has neither locks nor renames.

A study works in a local folder as ever. A cell or rewind state that is written there is then copied to the
bucket, its result.json last, so that it is there whole or not at all. What is missing here is copied from
there first, and compared with its checksums. Leases in the bucket (`lthjax.locks`) keep two processes from
one seed. log.txt stays here, and so do analyses.
"""

import contextlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lthjax import fields, files, home, locks, manifest
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.places import LOCKS, PLACES, set_aside
from lthjax.folder.store import Store
from lthjax.folder.verified import check_identity
from lthjax.manifest import Manifest

_log = logging.getLogger(__name__)
# Addresses begin with it; etils' epath reaches them by TensorFlow where it is installed, else by gcsfs.
SCHEME = "gs"
_STUDY = "study.json"
# Requests at a time: each waits for the network.
_READERS = 16
_RESULT = "result.json"


def address_of(out: str | Path) -> str | None:
    """The address that `--out` names; None for a folder. `Path` merges its two slashes into one."""
    found = re.match(f"{SCHEME}:/+(?=[^/])", str(out))
    return None if found is None else f"{SCHEME}://{str(out)[found.end() :].rstrip('/')}"


class Bucket:
    """The folder of run folders in an object store, and its local copy.

    Args:
        address: gs://bucket/folder.
        local: the copy, by default in the user's cache folder.

    Raises:
        UserError: the package that reaches it is not installed.
    """

    def __init__(self, address: str, local: Path | None = None) -> None:
        from etils import epath

        self.address = address
        self.local = local or home.copy_of(address)
        self._root = epath.Path(address)
        with self._told(""):
            self._root.exists()

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none. Raises an OSError where it cannot be read."""
        with self._told(name):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, whole or not at all; raises an OSError where it cannot be written."""
        with self._told(name):
            (self._root / name).write_bytes(content)

    def remove(self, name: str) -> None:
        """Removes an object; raises an OSError where it cannot be removed."""
        with self._told(name):
            (self._root / name).unlink(missing_ok=True)

    def names(self, pattern: str) -> list[str]:
        """The objects whose name fits a pattern, sorted."""
        with self._told(pattern):
            prefix = str(self._root) + "/"
            return sorted(str(path).removeprefix(prefix) for path in self._root.glob(pattern))

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turns the many exceptions of the libraries below into an OSError that names the object."""
        try:
            yield
        except ImportError as error:
            raise UserError(
                f"--out: {self.address!r} needs the package gcsfs; pip install gcsfs, or name a folder."
            ) from error
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(f"{self.address}/{name}: {why}") from error

    def leases(self, run: str, names: Iterable[str]) -> list["Lease"]:
        """The places of the leases of a run."""
        return [Lease(self, run, name) for name in names]

    def busy_seeds(self, run: str) -> list[int]:
        """The seeds of a run that processes of any machine train; as `lthjax.folder.claims.busy_seeds`."""
        there = self.names(f"{run}/{LOCKS}/seed=*.lease")
        names = [PurePosixPath(name).name.removesuffix(".lease") for name in there]
        return sorted(int(one.name.removeprefix("seed=")) for one in locks.renewed(self.leases(run, names)))

    def places(self, run: str) -> list[str]:
        """The cells and rewind states that are whole in the bucket."""
        found = [name for pattern in PLACES for name in self.names(f"{run}/{pattern}/{_RESULT}")]
        return [name.removeprefix(f"{run}/").removesuffix(f"/{_RESULT}") for name in found]

    def unsent(self, run: str) -> list[str]:
        """The cells and rewind states of the local copy that are not in the bucket: their upload failed."""
        there = {*self.places(run)}
        return [place for place in self._local_places(run) if place not in there]

    def _local_places(self, run: str) -> list[str]:
        here = self.local / run
        found = [path for pattern in PLACES for path in sorted(here.glob(f"{pattern}/{_RESULT}"))]
        return [path.parent.relative_to(here).as_posix() for path in found]

    def pull_all(self, runs: Iterable[str]) -> None:
        """As `pull`, of several runs."""
        for run in runs:
            self.pull(run)

    def pull(self, run: str, held: Collection[str] = ()) -> list[str]:
        """Copies study.json, and the cells and rewind states of a run that are missing here.

        Two machines may have made a cell with other bits, one before its upload failed. The bucket's is the
        one that stays: ours is set aside, with what was made from it. What does not fit its source in the
        bucket is not copied, so that it counts as missing and is made anew. A seed with the same cells here
        and there is only compared if it is held.

        Args:
            run: the name of its folder.
            held: "seed=N" of the seeds whose locks the caller holds, but not that of study.json.

        Returns:
            The cells and states here that the bucket lacks or has otherwise, each after its sources.

        Raises:
            UserError: one is damaged in the bucket.
            OSError: one cannot be read, or written here.
        """
        self.pull_about(run)
        there, here = _by_seed(self.places(run)), _by_seed(self._local_places(run))
        left = []
        for seed in sorted(there.keys() | here.keys()):
            of = there.get(seed, set()), here.get(seed, set())
            if seed in held or of[0] != of[1]:
                left += self._pull_seed(run, seed, *of, held=seed in held)
        return left

    def pull_about(self, run: str) -> None:
        """Copies study.json, if it is there; raises an OSError."""
        about = self.read(f"{run}/{_STUDY}")
        if about is not None:
            (self.local / run).mkdir(parents=True, exist_ok=True)
            files.write_whole(self.local / run / _STUDY, about)

    def _pull_seed(self, run: str, seed: str, there: set[str], here: set[str], held: bool) -> list[str]:
        """As `pull`, of a seed with these places in the bucket and here."""
        local = self.local / run
        with ThreadPoolExecutor(_READERS) as pool:
            places = sorted(there)
            theirs = dict(
                zip(places, pool.map(lambda place: self._manifest(run, place), places), strict=True)
            )
        # What is damaged here is left to `analysis.check`.
        ours = {place: made for place in sorted(here) if (made := _manifest_of(local / place)) is not None}
        kept = _kept(theirs, ours)
        stale = {place for place, made in ours.items() if not _same(made, kept.get(place))}
        if stale:
            try:
                with contextlib.nullcontext() if held else claims.locked(local, {claims.seed_of(seed)}):
                    for place in sorted(stale):
                        if (local / place).exists():
                            set_aside(local, local / place)
            except locks.Held:
                return []  # a process of this machine trains the seed
            _log.warning(
                "%s: what does not fit its sources or the bucket's %s is in damaged/ now.", local, seed
            )
        for place, made in kept.items():
            if made is theirs.get(place) and (place in stale or place not in here):
                self._pull_place(run, place)
        return [place for place, made in kept.items() if made is ours.get(place)]

    def _manifest(self, run: str, place: str) -> Manifest:
        text = self.read(f"{run}/{place}/{manifest.FILE}")
        try:
            if text is None:
                raise manifest.Damaged(f"{manifest.FILE} is not there")
            return manifest.parsed(text, manifest.FILE)
        except manifest.Damaged as error:
            raise self._damaged(run, place, error) from error

    def _damaged(self, run: str, place: str, why: Exception) -> UserError:
        return UserError(
            f"{self.address}/{run}/{place}: it is damaged ({why}); remove it, and it is made anew."
        )

    def _pull_place(self, run: str, place: str) -> None:
        target = self.local / run / place
        if target.exists():
            set_aside(self.local / run, target)
        label = target.relative_to(self.local / run).parts[0]
        try:
            with files.whole_folder(target, _RESULT, self.local / run, label) as part:
                self._copy(f"{run}/{place}", part, manifest.FILE)
                made = manifest.read(part)
                for name in made.files if made else ():
                    self._copy(f"{run}/{place}", part, name)
                if made is None or _RESULT not in made.files:
                    raise manifest.Damaged("it has no manifest")
                manifest.check(part, made)
        except manifest.Damaged as error:
            raise self._damaged(run, place, error) from error
        except OSError:
            # Another process of this machine may have been faster.
            if not (target / _RESULT).is_file():
                raise

    def _copy(self, place: str, part: Path, name: str) -> None:
        content = self.read(f"{place}/{name}")
        if content is None:
            raise manifest.Damaged(f"{name} is not there")
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(content)

    def push(self, run: str, place: str) -> None:
        """Copies a cell or rewind state to the bucket, its result.json last; raises an OSError."""
        of = self.local / run / place
        names = sorted(path.relative_to(of).as_posix() for path in of.rglob("*") if path.is_file())
        self.remove(f"{run}/{place}/{_RESULT}")  # of a cell that did not fit
        for name in sorted(names, key=lambda name: name == _RESULT):
            self.write(f"{run}/{place}/{name}", (of / name).read_bytes())

    def push_pages(self, pages: Iterable[Path]) -> None:
        """Copies pages of the local copy to the bucket, each after the files beside it; raises an OSError."""
        for page in dict.fromkeys(pages):
            beside = (one for one in page.parent.iterdir() if one.is_file() and not one.name.startswith("."))
            for path in sorted(beside, key=lambda path: (path == page, path.name)):
                self.write(path.relative_to(self.local).as_posix(), path.read_bytes())


def _by_seed(places: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for place in places:
        found.setdefault(place.partition("/")[0], set()).add(place)
    return found


def _manifest_of(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except manifest.Damaged:
        return None


def _same(one: Manifest, other: Manifest | None) -> bool:
    return other is not None and (one.content, one.parents) == (other.content, other.parents)


def _kept(theirs: Mapping[str, Manifest], ours: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Of every place the bucket's cell, else ours, if it was made from what is kept; each after its sources.

    A source that is nowhere may be made anew with the same bits, so it is no obstacle.
    """
    known: dict[str, Manifest | None] = {}

    def look(place: str) -> Manifest | None:
        if place not in known:
            both = [of[place] for of in (theirs, ours) if place in of]
            known[place] = next((made for made in both if fits(made)), None)
        return known[place]

    def fits(made: Manifest) -> bool:
        there = {of: content for of, content in made.parents.items() if of in theirs or of in ours}
        return all((source := look(of)) and source.content == content for of, content in there.items())

    for place in [*theirs, *ours]:
        look(place)
    return {place: made for place, made in known.items() if made is not None}


class Lease(NamedTuple):
    """The place of a lease in a bucket; a `lthjax.locks.Place`."""

    bucket: Bucket
    folder: str
    name: str

    @property
    def run(self) -> str:
        return f"{self.bucket.address}/{self.folder}"

    @property
    def _object(self) -> str:
        return f"{self.folder}/{LOCKS}/{self.name}.lease"

    def read(self) -> str | None:
        content = self.bucket.read(self._object)
        return None if content is None else content.decode("utf-8", errors="replace")

    def write(self, text: str) -> None:
        self.bucket.write(self._object, text.encode())

    def remove(self) -> None:
        self.bucket.remove(self._object)


class _Both(NamedTuple):
    """The lock of the local folder, and the lease in the bucket."""

    here: locks.Lock
    there: locks.Lock

    def check(self) -> None:
        self.here.check()
        self.there.check()

    def close(self) -> None:
        self.there.close()
        self.here.close()


class SharedStore(Store):
    """A store of a study whose cells are in a bucket, too; arguments and errors as of `Store`."""

    def __init__(self, bucket: Bucket, path: Path, about: fields.About, **named: Any) -> None:
        super().__init__(path, about, **named)
        self._bucket, self._run = bucket, path.name
        self._sends = True
        self._left: list[str] = []

    def _take(self, seeds: Collection[int]) -> dict[str, locks.Lock]:
        taken = super()._take(seeds)
        try:
            had = locks.take_leases(self._bucket.leases(self._run, taken))
        except BaseException:
            for lock in taken.values():
                lock.close()
            raise
        there = {place.name: lease for place, lease in had.items()}
        for name in taken.keys() - there.keys():
            taken[name].close()
        if seeds and not there:
            raise locks.Held(
                f"{self._bucket.address}/{self._run}: another process is running this study; wait for it or "
                "stop it."
            )
        both: dict[str, locks.Lock] = {name: _Both(taken[name], lease) for name, lease in there.items()}
        try:
            # Under the seeds' locks: another process may just have finished one. Before that of study.json,
            # for which others wait.
            self._left = self._bucket.pull(self._run, both)
        except BaseException:
            for lock in both.values():
                lock.close()
            raise
        return both

    def _begin(self) -> None:
        (place,) = self._bucket.leases(self._run, ["study"])
        lease = locks.take_leases([place], claims.PATIENCE).get(place)
        if lease is None:
            raise claims.still_written(place.run)
        with contextlib.closing(lease):
            self._bucket.pull_about(self._run)
            check_identity(self.path, self._identity)
            super()._begin()
            self._bucket.write(f"{self._run}/{_STUDY}", (self.path / _STUDY).read_bytes())
        for name in self._left:
            if name.split("/")[0] in self._locks:
                self._bucket.push(self._run, name)

    @contextlib.contextmanager
    def _whole(self, target: Path, last: str = _RESULT) -> Iterator[Path]:
        with super()._whole(target, last) as part:
            yield part
        if last != _RESULT or not self._sends:
            return  # the position of a training run under way stays here
        name = target.relative_to(self.path).as_posix()
        self._locks[name.split("/")[0]].check()
        try:
            self._bucket.push(self._run, name)
        except BaseException as error:
            # No cell is sent before its sources: another machine might make these with other bits.
            self._sends = False
            if isinstance(error, OSError):
                raise files.unwritable(self._bucket.address, error) from error
            raise
