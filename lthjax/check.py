"""Compares a run folder with the checksums in it, and sets aside what is damaged.

`python -m analysis.check` is the command.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lthjax import files, manifest
from lthjax.errors import UserError
from lthjax.folder.claims import locked
from lthjax.folder.places import PLACES, set_aside
from lthjax.folder.verified import checked, is_there, parents, read_result, read_study, sources


class Checked(NamedTuple):
    """The cells, rewind states and tables of a run folder.

    Attributes:
        whole: their paths, where the checksum is right; also of those whose study.json or source is damaged.
        unchecked: those without a checksum.
        damaged: the others -> the reason, in a sentence.
        absent: the paths of cells and states that are not there, though others were made from them.
    """

    whole: list[Path]
    unchecked: list[Path]
    damaged: dict[Path, str]
    absent: list[Path]


def check(run: str | Path) -> Checked:
    """Compares the contents of a run folder, those of analyses included, with their checksums.

    Cells are checked without study.json, too, as a folder that was half copied has none.

    Raises:
        UserError: it is not a run folder, or a file or folder in it may not be read.
    """
    run = Path(run)
    cells = (path for pattern in PLACES for path in run.glob(f"{pattern}/{manifest.FILE}"))
    if not (run / "study.json").is_file() and not any(cells):
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    found = Checked([], [], {}, [])
    for path in _everything(run):
        try:
            (found.whole if _is_checked(path) else found.unchecked).append(path)
        except (UserError, OSError, ValueError) as error:
            _check_access(error)
            found.damaged[path] = str(error)
    # A study that runs meanwhile removes positions of its trainings.
    for path in [path for path in found.damaged if not path.exists()]:
        del found.damaged[path]
    for path in _blameless(run, found):
        del found.damaged[path]
        found.whole.append(path)
    made_from = {of for path in found.whole if path.is_dir() for of in parents(path)}
    found.absent.extend(sorted(of for of in made_from if not is_there(of)))
    return found


def _check_access(error: BaseException | None) -> None:
    """Raises where a file may not be read, which says nothing of what is in it."""
    while error is not None:
        if isinstance(error, PermissionError):
            raise UserError(
                f"{error.filename}: it cannot be read ({error.strerror}), so nothing was checked; run the "
                "same command as a user who may read it."
            ) from error
        error = error.__cause__


def _blameless(run: Path, found: Checked) -> list[Path]:
    """Cells and states that are as written, and are only refused because study.json or a source is damaged.

    They fit again when that is made anew, with the same bits.
    """
    cells = [path for path in found.damaged if path.is_dir() and path.name != "study.json"]
    made_from = {path: of for path in cells if (of := sources(path)) is not None}
    wrong = found.damaged.keys() - made_from.keys()
    return [path for path, of in made_from.items() if run / "study.json" in wrong or not wrong.isdisjoint(of)]


def _everything(run: Path) -> Iterator[Path]:
    """The studies, cells, rewind states and tables of a run folder."""

    def there(name: str) -> list[Path]:
        # Without the files that were set aside, or left half written by a killed process.
        # Unlike `Path.rglob`, `os.walk` passes over folders that vanish meanwhile.
        walk = os.walk(run, onerror=_check_access)
        # A folder may have got in the place of the file.
        every = (Path(of, name) for of, *names in walk if any(name in some for some in names))
        inner = ((path, path.relative_to(run).parts) for path in every)
        return sorted(p for p, of in inner if not any(x == "damaged" or x.startswith(".") for x in of))

    cells = {path.parent for name in ("result.json", manifest.FILE) for path in there(name)}
    yield from [*there("study.json"), *sorted(cells), *there(manifest.SUMS)]


def _is_checked(path: Path) -> bool:
    """Whether it has checksums; raises a UserError, OSError or ValueError where they are wrong."""
    if path.name == "study.json":
        read_study(path.parent)
        return "sha256" in json.loads(path.read_bytes())
    if path.name == manifest.SUMS:
        try:
            for name in manifest.opened(json.loads(path.read_bytes())):
                manifest.read_listed(path.with_name(name))
        except ValueError as error:
            # Several folders have a table of one name.
            raise ValueError(f"{path}: {error}") from error
        return True
    made = checked(path)
    if made is None and not path.name.startswith("state="):
        read_result(path)
    return made is not None


def repair(run: str | Path, found: Checked) -> dict[Path, Path]:
    """Sets the damaged paths aside, and with checksums the tables; returns path -> where it is now.

    Raises:
        UserError: another process writes to the run, or the folder cannot be written.
    """
    run = Path(run)
    parts = (path.relative_to(run).parts[0] for path in found.damaged)
    seeds = {int(part.removeprefix("seed=")) for part in parts if re.fullmatch("seed=[0-9]+", part)}
    try:
        with locked(run, seeds):
            moved: dict[Path, Path] = {}
            for path in found.damaged:
                moved |= set_aside(run, *_tables(run, path), path)
            return moved
    except OSError as error:
        raise files.unwritable(run, error) from error


def _tables(run: Path, path: Path) -> list[Path]:
    """The tables beside a file of checksums, the marker first; none of another path.

    Without their checksums they would be read unchecked. In the run's own folder others may have put files.
    """
    if path.name != manifest.SUMS:
        return []
    try:
        names = [*reversed(manifest.opened(json.loads(path.read_bytes())))]
    except (OSError, ValueError):
        every = (one.name for one in sorted(path.parent.iterdir()) if one.name != manifest.SUMS)
        names = [name for name in every if name == "rows.txt" or name.endswith((".csv", ".json"))]
        names = names if path.parent != run else ["savings.json"]
    return [path.with_name(name) for name in names if path.with_name(name).is_file()]
