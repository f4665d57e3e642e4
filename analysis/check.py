"""Checks every file of a run folder, and sets damaged ones aside on demand.

python -m analysis.check runs/quickstart-0123abcd
python -m analysis.check runs/quickstart-0123abcd --repair

Compares the files of every cell, rewind state and table with their checksums (`lthjax.manifest`). Cells of
an older version have no checksums; they are counted. With --repair damaged ones are moved to RUN/damaged/N/,
and the command that made them then makes them anew.
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
    """The cells, rewind states and tables of a run folder.

    Attributes:
        whole: their paths, where the checksum is right.
        unchecked: those without a checksum.
        damaged: the others -> the reason, in a sentence.
    """

    whole: list[Path]
    unchecked: list[Path]
    damaged: dict[Path, str]


def check(run: str | Path) -> Checked:
    """Compares the contents of a run folder, those of analyses included, with their checksums.

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
    """The studies, cells, rewind states and tables of a run folder."""

    def there(name: str) -> list[Path]:
        # Without the files that were set aside, or left half written by a killed process.
        inner = ((path, path.relative_to(run).parts) for path in run.rglob(name))
        return sorted(p for p, of in inner if not any(x == "damaged" or x.startswith(".") for x in of))

    cells = {path.parent for name in ("result.json", manifest.FILE) for path in there(name)}
    yield from [*there("study.json"), *sorted(cells), *there(tables.SUMS)]


def _is_checked(path: Path) -> bool:
    """Whether it has checksums; raises a UserError, OSError or ValueError where they are wrong."""
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
    """Sets the damaged paths aside; returns path -> where it is now.

    Raises:
        UserError: another process writes to the run, or the folder cannot be written.
    """
    run = Path(run)
    try:
        with contextlib.closing(files.locked(run / ".lock")):
            return {path: set_aside(run, path) for path in found.damaged}
    except OSError as error:
        raise files.unwritable(run, error) from error


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
