"""Tables in files: rows to CSV and back, written whole with their checksums, the marker last."""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

from lthjax import errors, files, manifest
from lthjax.errors import UserError

_Row = TypeVar("_Row")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
# The exceptions of reading a table that is not as it was written.
DAMAGED = (OSError, ValueError, KeyError, TypeError)


def to_csv(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and rows as CSV; floats as Python writes them, None as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def grouped(pairs: Iterable[tuple[_Key, _Value]]) -> dict[_Key, list[_Value]]:
    """Key -> its values, in the order given."""
    found: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def of_rows(kind: type, rows: Iterable[Sequence[Any]]) -> str:
    """The rows of a NamedTuple as CSV, a column for every field."""
    return to_csv(kind._fields, rows)  # type: ignore[attr-defined]


def read_rows(path: Path, kind: type[_Row], count: int | None = None) -> list[_Row]:
    """The rows of a CSV whose columns are the fields of a NamedTuple of str, int, float, bool, or None.

    It may lack the column of a field that has a default.

    Raises:
        OSError: it cannot be opened.
        ValueError: it has no rows, or not `count`; lacks a column, is cut off; a field is not of its type.
    """
    hints, names = get_type_hints(kind), kind._fields  # type: ignore[attr-defined]
    optional = kind._field_defaults  # type: ignore[attr-defined]

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
    there = [name for name in names if name in (lines.fieldnames or ())]
    lacking = [name for name in names if name not in (*there, *optional)]
    if lacking:
        raise ValueError(f"{path.name} lacks the column {lacking[0]}")
    rows = [kind(**{name: value(name, line[name]) for name in there}) for line in lines]
    if not rows:
        raise ValueError(f"{path.name} has no rows")
    if count is not None and len(rows) != count:
        raise ValueError(f"{path.name} has not as many rows as were written")
    return rows


def write_tables(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes tables, their checksums, and last the marker, which says that all others are there.

    Args:
        folder: made if it is not there.
        contents: file name -> its text; the last file is the marker.

    Raises:
        OSError: a file cannot be written.
    """
    *tables, marker = contents
    folder.mkdir(parents=True, exist_ok=True)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    for name in tables:
        files.write_whole(folder / name, contents[name].encode())
    files.write_whole(folder / manifest.SUMS, manifest.sealed(sums).encode())
    files.write_whole(folder / marker, contents[marker].encode())


def read_text(path: Path) -> str:
    """The text of a file of `write_tables`; an OSError, or a ValueError where its checksum is wrong."""
    return manifest.read_listed(path).decode("utf-8")


def read_arrays(path: Path, basis: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of `write_arrays`; None where they are not there, damaged, or of another basis."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if json.loads(str(arrays["basis"])) == basis:
                return {name: arrays[name] for name in arrays.files if name != "basis"}
    except errors.DAMAGED:
        pass
    return None


def write_arrays(path: Path, basis: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and what they depend on to an npz file, whole or not at all; its folder is made."""
    contents = io.BytesIO()
    np.savez_compressed(contents, basis=json.dumps(basis), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, contents.getvalue())


@contextlib.contextmanager
def reading(where: Path, command: str) -> Iterator[None]:
    """Raises a UserError where tables in it are damaged: the folder, why, the command to make them anew."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"{where}: it cannot be read ({error}); run {command} again.") from error
