"""What of a run is worth keeping under version control: numbers, verdicts and figures, no weights.

python -m analysis.publish runs/lenet5_mnist-0123abcd results/lenet5_mnist
python -m analysis.publish runs/rates_lenet5-* results/rates_lenet5

  FOLDER/
    published.json           the names of all files here: the mark of a folder that may be replaced
    study.json               of the run; of several a list
    cells.csv, verdicts.csv  of the report; of several comparison.csv
    NAME.svg (or .png)       the report's figures
    landscape/, predict/, geography/, transfer/, savings.json
                             the tables of what else was found out, under their names in the run folder
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro

from analysis import page, report
from analysis.analyses import ANALYSES
from lthjax import cli, files
from lthjax.errors import UserError
from lthjax.store import read_study

# Bytes of a figure that a page on the web shows without being waited for.
LARGEST = 300_000
MARK = "published.json"


def publish(runs: Sequence[str | Path], to: str | Path) -> Path:
    """Writes the reports anew and copies what is small.

    Args:
        runs: a run folder, or several, whose comparison is published.
        to: the folder: not there yet, empty, or one that an earlier call wrote, which is replaced. It is
            there whole, old or new, whenever this ends; nothing but what an earlier call wrote is removed.

    Returns:
        The folder.

    Raises:
        UserError: as `report.build_all`; the folder holds something else, is a run's, lies in a run or
            holds one, or cannot be written. All but the last is found before anything is written.
    """
    to, folders = Path(os.path.abspath(to)), [Path(run) for run in runs]
    about = [read_study(run) for run in folders]
    try:
        _check(to, folders)
        _recover(to)
        foreign = _foreign(to)
    except OSError as error:
        raise UserError(f"{to}: it cannot be read ({error.strerror}); name another folder.") from error
    if foreign is not None:
        raise UserError(
            f"{to}: it holds {foreign}, which publish did not write there, as far as its {MARK} says; move "
            "that or name another folder."
        )
    source = report.build_all(folders).parent
    tables = [source / name for name in ("cells.csv", "verdicts.csv", "comparison.csv")]
    contents = {table.name: table for table in [*tables, *_figures(source)] if table.is_file()}
    if len(folders) == 1:
        contents |= {path.relative_to(folders[0]).as_posix(): path for path in _found(folders[0])}
    facts = json.dumps(about[0] if len(about) == 1 else about, indent=1) + "\n"
    try:
        _replace(to, {**contents, "study.json": facts.encode()})
    except OSError as error:
        raise UserError(f"{to}: it cannot be written ({error.strerror}).") from error
    return to


def listed(folder: Path) -> list[str] | None:
    """The names of the files that `publish` wrote into a folder, its mark among them; None without a mark."""
    try:
        names = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A name that leads out of the folder is none that `publish` writes.
    inside = isinstance(names, list) and all(
        isinstance(name, str) and name and PurePosixPath(name).parts[0] != "/" and ".." not in name.split("/")
        for name in names
    )
    return [*names, MARK] if inside else None


def _check(to: Path, runs: Sequence[Path]) -> None:
    """Raises unless the folder may be written: it is nobody else's, and no run is in it or around it."""
    last = "the folder to write comes last, after the run folders, and must be another"
    around = [one.resolve() for one in (to, *to.parents) if one.exists()]
    for run in runs:
        if any(_same(run, one) for one in around):
            raise UserError(f"{to}: it is the run folder {run} or lies in it; {last}.")
        if any(_same(one, to) for one in run.resolve().parents):
            raise UserError(f"{to}: the run folder {run} lies in it; {last}.")
    for here in (Path.cwd(), Path(os.path.expanduser("~"))):
        if any(_same(one, to) for one in (here.resolve(), *here.resolve().parents)):
            raise UserError(f"{to}: it is or holds the folder {here}; {last}.")
    if to.is_symlink():
        raise UserError(f"{to}: it is a symbolic link; name the folder itself.")
    if to.exists() and not to.is_dir():
        raise UserError(f"{to}: it is a file; name a folder.")
    if (to / "study.json").is_file() and any(to.glob("seed=*")):
        raise UserError(f"{to}: it is a run folder; {last}.")
    for one in around:
        if (one / "study.json").is_file() and not _same(one, to):
            raise UserError(f"{to}: it lies in {one}, which is a run or a published folder; {last}.")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, whatever they are called."""
    return one.exists() and other.exists() and one.samefile(other)


def _foreign(folder: Path) -> str | None:
    """The first name in a folder that is none that `publish` has written there; None where all are."""
    ours = listed(folder) or []
    parents = {parent.as_posix() for name in ours for parent in PurePosixPath(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if path.is_symlink() or name not in (parents if is_folder else ours):
            return name
    return None


def _replace(to: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Writes the files into a folder beside, which then, whole, takes the place of the folder."""
    new, old = _beside(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    new.mkdir()
    mark = json.dumps({"files": sorted(contents)}, indent=1) + "\n"
    # First, so that what a killed call leaves is known as ours.
    files.write_whole(new / MARK, mark.encode())
    try:
        for name, content in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (new / name).write_bytes(content)
            else:
                shutil.copyfile(content, new / name)
        if to.exists():
            os.replace(to, old)
        try:
            os.replace(new, to)
        except BaseException:
            if old.exists():
                os.replace(old, to)
            raise
    finally:
        _remove(new)
    _remove(old)


def _beside(to: Path) -> tuple[Path, Path]:
    """Where the new folder is made, and where the old one waits while the new one takes its place."""
    return to.with_name(f".{to.name}.new"), to.with_name(f".{to.name}.old")


def _recover(to: Path) -> None:
    """Puts right what a killed call left: the old folder back where there is no new one, the rest away."""
    new, old = _beside(to)
    if old.exists() and not to.exists():
        os.replace(old, to)
    for left in (new, old):
        foreign = _foreign(left)
        if foreign is not None:
            raise UserError(f"{left}: a call that was stopped left it, with {foreign} in it; delete it.")
        _remove(left)


def _remove(folder: Path) -> None:
    """Removes what `publish` has written to a folder, and the folder; nothing else, so never a whole tree.

    Raises:
        OSError: something else is in it.
    """
    if not folder.exists():
        return
    names = [name for name in listed(folder) or [] if name != MARK]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in PurePosixPath(name).parents} - {PurePosixPath(".")}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        if (folder / parent).is_dir():
            (folder / parent).rmdir()
    # Last, so that a call that is killed before knows the rest as its own.
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def _figures(folder: Path) -> Iterable[Path]:
    """A report's figures as SVG or, where that is too large, as PNG; neither where both are."""
    for vector in [folder / name for name in page.written(folder) if name.endswith(".svg")]:
        small = [p for p in (vector, vector.with_suffix(".png")) if p.stat().st_size <= LARGEST]
        yield from small[:1]


def _found(run: Path) -> Iterable[Path]:
    """The tables that other commands have left in a run folder, without those that figures are drawn from."""
    for name in ANALYSES:
        for path in sorted((run / name).rglob("*.csv")):
            if not path.with_suffix(".png").is_file():
                yield path
    yield from run.glob("savings.json")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Copies numbers, verdicts and figures of runs, without weights, to a folder; prints it."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...] FOLDER")]
    """A run folder, or several to be compared; last the folder to write, for example results/lenet5_mnist."""


def main(arguments: list[str]) -> None:
    """The command line."""
    *runs, folder = cli.parsed(Options, arguments, "python -m analysis.publish").paths or [Path()]
    if not runs:
        raise UserError("FOLDER: it is missing; name the run folders, and last the folder to write.")
    print(publish(runs, folder))


if __name__ == "__main__":
    cli.run(main)
