"""What commands share that train more from a finished run: opening it, training, files of their own."""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from analysis import cells
from lthjax import config, files, manifest, progress, study, train
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.store import read_study

_Row = TypeVar("_Row")
# Of the files that an analysis has written to a folder, in that folder.
SUMS = "checksums.json"


class Opened(NamedTuple):
    """A run and one chain of tickets in it.

    Attributes:
        about: its study.json.
        chain: the chain's name.
        rewind: the step that its tickets are rewound to.
        rows: all cells of the run.
        tickets: those of the chain's tickets.
    """

    about: dict[str, Any]
    chain: str
    rewind: int
    rows: list[cells.Row]
    tickets: list[cells.Row]


def opened(run: Path, chain: str | None = None) -> Opened:
    """A run's cells, and the tickets of a chain: by default of the one that is rewound to the lowest step.

    Raises:
        UserError: it is not a run folder, or has no ticket, or no such chain.
    """
    about, rows = read_study(run), cells.load(run)
    tickets = [row for row in rows if row.arm == "ticket"]
    if not tickets:
        raise UserError(f"{run}: there is no ticket in it yet; run the study first.")
    chains = cells.chains(tickets)
    chain = chains[0] if chain is None else chain
    if chain not in chains:
        raise UserError(f"--chain: {chain!r} has no ticket in the run; it may be {', '.join(chains)}.")
    return Opened(about, chain, int(chain.rpartition("-")[2]), rows, cells.select(tickets, chain=chain))


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """A command's options, and those that every command that trains has; keeps programs unless told not to.

    Raises:
        UserError: the chunk is no number of replicates.
    """
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--no-cache", action="store_true", help="keep no compiled programs")
    parser.add_argument("--chunk", type=int, help="replicates trained in one program")
    options = parser.parse_args(arguments)
    if options.chunk is not None and options.chunk < 1:
        raise UserError(f"--chunk: {options.chunk} is not allowed; it must be 1 or more.")
    if not options.no_cache:
        replicate.keep_programs()
    return options


def prepared(about: dict[str, Any], seeds: Iterable[int], data_dir: str | Path) -> study.Prepared:
    """A run's study with these seeds, checked against the data that it was trained on.

    Raises:
        UserError: the data are others.
    """
    wanted = config.from_dict(about["config"])
    made = study.prepare(dataclasses.replace(wanted, seeds=tuple(sorted(seeds))), data_dir)
    if made.dataset.digest != about["data"]["digest"]:
        raise UserError(
            f"--data-dir: {wanted.data.name} there has content hash {made.dataset.digest}, the run's "
            f"has {about['data']['digest']}; name the folder of the data that the run was trained on."
        )
    return made


@contextlib.contextmanager
def watched(name: str, todo: study.Plan, quiet: bool) -> Iterator[study.Watch]:
    """A watch on standard error for the plan, ended whatever happens."""
    watch = progress.watch(quiet)
    watch.begin(name, todo)
    try:
        yield watch
    finally:
        watch.end()


def in_chunks(
    trainer: train.Trainer, jobs: Sequence[tuple[Cell, train.Job]], watch: study.Watch
) -> Iterator[tuple[Cell, train.Job, train.Trained]]:
    """Trains in chunks of the same first and last step, and yields what is finished."""
    spans: dict[tuple[int, int], list[tuple[Cell, train.Job]]] = {}
    for cell, job in jobs:
        spans.setdefault((job.start, job.stop), []).append((cell, job))
    width = trainer.width
    for alike in [of[i : i + width] for of in spans.values() for i in range(0, len(of), width)]:
        watch.chunk([cell for cell, _ in alike], "")
        results = train.train(trainer, [job for _, job in alike], watch.advance)
        for (cell, job), trained in zip(alike, results, strict=True):
            yield cell, job, trained


def read_rows(path: Path, kind: type[_Row]) -> list[_Row]:
    """The rows of a CSV whose columns are the fields of a NamedTuple of str, int, float, bool, or None.

    Raises:
        OSError: it cannot be opened.
        ValueError: it has no rows, lacks a column, is cut off, or a field is not of its type.
    """
    hints, names = get_type_hints(kind), kind._fields  # type: ignore[attr-defined]

    def value(name: str, text: str | None) -> Any:
        if text is None or (not text and hints[name] is not str and type(None) not in get_args(hints[name])):
            raise ValueError(f"{path.name} has a line without {name}")
        if not text and hints[name] is not str:
            return None
        if hints[name] is bool:
            return text == "True"
        return next(of for of in (str, int, float) if hints[name] in (of, of | None))(text)

    text = read_text(path)
    if not text.endswith("\n"):
        raise ValueError(f"{path.name} is empty or ends within a line")
    lines = csv.DictReader(io.StringIO(text, newline=""))
    lacking = [name for name in names if name not in (lines.fieldnames or ())]
    if lacking:
        raise ValueError(f"{path.name} lacks the column {lacking[0]}")
    rows = [kind(*(value(n, line[n]) for n in names)) for line in lines]
    if not rows:
        raise ValueError(f"{path.name} has no rows")
    return rows


def named(run: str | Path) -> Path:
    """A run folder's path that ends in its name, as `.` does not; results are kept under that name."""
    return Path(os.path.abspath(run))


def write_tables(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes files of which the last says that the rest is there, and their checksums in one beside them.

    Args:
        folder: where; made if it is not there.
        contents: file name -> its text.

    Raises:
        OSError: one cannot be written.
    """
    *tables, marker = contents
    folder.mkdir(parents=True, exist_ok=True)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    for name in tables:
        files.write_whole(folder / name, contents[name].encode())
    files.write_whole(folder / SUMS, manifest.sealed(sums).encode())
    files.write_whole(folder / marker, contents[marker].encode())


def read_text(path: Path) -> str:
    """What `write_tables` wrote; a file that has no checksum, as older ones have none, is not checked.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not as it was written.
    """
    content, sums = path.read_bytes(), path.with_name(SUMS)
    if sums.is_file():
        known = manifest.opened(json.loads(sums.read_bytes()))
        if known.get(path.name, "") not in ("", hashlib.sha256(content).hexdigest()):
            raise ValueError(f"the checksum of {path.name} is not the one that it was written with")
    return content.decode("utf-8")
