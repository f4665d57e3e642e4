"""Whether everything in a run folder is as it was written; what is damaged can be set aside.

python -m analysis.check runs/quickstart-0123abcd
python -m analysis.check runs/quickstart-0123abcd --repair

Compares every file of every cell and rewind state with its checksum (`lthjax.manifest`), loads nothing and
changes nothing. Cells of an older version have no checksums; they are counted. With --repair what is damaged
goes to RUN/damaged/N/, nothing is deleted, and the command that made it then makes it anew.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from analysis import tables
from lthjax import cli, files, manifest
from lthjax.errors import UserError
from lthjax.store import checked, read_result, read_study, set_aside


class Checked(NamedTuple):
    """What was found in a run folder.

    Attributes:
        whole: folders of cells and rewind states, and tables, that are as they were written.
        unchecked: those without a checksum.
        damaged: what is not as it was written -> why, in a sentence.
    """

    whole: list[Path]
    unchecked: list[Path]
    damaged: dict[Path, str]


def check(run: str | Path) -> Checked:
    """Compares all that a run folder holds, what analyses trained and wrote included, with its checksums.

    Raises:
        UserError: it is not a run folder.
    """
    run = Path(run)
    if not (run / "study.json").is_file():
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    found = Checked([], [], {})
    for path in _everything(run):
        try:
            (found.whole if _is_checked(path) else found.unchecked).append(path)
        except (UserError, OSError, ValueError) as error:
            found.damaged[path] = str(error)
    return found


def _everything(run: Path) -> Iterator[Path]:
    """The studies, cells, rewind states and tables of a run folder, those of its analyses after its own."""

    def there(name: str) -> list[Path]:
        # What was set aside, or what a killed process has left half written, is not part of it.
        return sorted(
            path
            for path in run.rglob(name)
            if not any(p == "damaged" or p.startswith(".") for p in path.relative_to(run).parts)
        )

    cells = {path.parent for name in ("result.json", manifest.FILE) for path in there(name)}
    yield from [*there("study.json"), *sorted(cells), *there(tables.SUMS)]


def _is_checked(path: Path) -> bool:
    """Whether it has checksums, which are right.

    Raises:
        UserError, OSError, ValueError: it is damaged.
    """
    if path.name == "study.json":
        read_study(path.parent)
        return "sha256" in json.loads(path.read_bytes())
    if path.name == tables.SUMS:
        for name in manifest.opened(json.loads(path.read_bytes())):
            tables.read_text(path.with_name(name))
        return True
    made = checked(path)
    if made is None and not path.name.startswith("state="):
        read_result(path)
    return made is not None


def repair(run: str | Path, found: Checked) -> dict[Path, Path]:
    """Sets aside what is damaged.

    Returns:
        What was moved -> where to.

    Raises:
        UserError: the run is being written to by another process, or the folder cannot be written.
    """
    run = Path(run)
    moved = {}
    try:
        with contextlib.closing(files.locked(run / ".lock")):
            for path in found.damaged:
                moved[path] = set_aside(run, path)
    except OSError as error:
        raise files.unwritable(run, error) from error
    return moved


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compares everything in run folders with the checksums that it was written with."""

    run: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, for example runs/quickstart-0123abcd."""
    repair: bool = False
    """Set aside what is damaged."""


def main(arguments: list[str]) -> None:
    """The command line; status 1 where something is damaged and was not set aside."""
    options = cli.parsed(Options, arguments, "python -m analysis.check")
    if not options.run:
        raise UserError("RUN: it is missing; name a run folder, or several.")
    left = 0
    for run in options.run:
        found = check(run)
        for why in found.damaged.values():
            print(why)
        if options.repair and found.damaged:
            for path, where in repair(run, found).items():
                print(f"{path}: set aside as {where}")
        elif found.damaged:
            left += len(found.damaged)
        counts = f"{len(found.whole)} as written, {len(found.damaged)} damaged"
        old = f", {len(found.unchecked)} without a checksum" if found.unchecked else ""
        print(f"{run}: {counts}{old}")
    if left:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
