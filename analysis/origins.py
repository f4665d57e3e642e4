"""Of which cells something was measured: a cell that is made anew may have other numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lthjax import manifest
from lthjax.folder.verified import checked

from . import tables

# Key of the contents of the cells, in a basis.
_OF = "of"
# Key of what a cell of the run itself was made from.
_PARENT = "parent"


def content(of: Path) -> str:
    """The digest of the arrays in a cell's or state's folder; "" in a folder older than manifests."""
    made = checked(of, "result.json")
    return made.content if made else ""


def contents(cells: Sequence[Path]) -> list[str]:
    """The digests of cells; "" also of one that is not there."""
    return [content(cell) if (cell / "result.json").is_file() else "" for cell in cells]


def named(basis: Mapping[str, Any], cells: Sequence[Path]) -> dict[str, Any]:
    """A basis with the digests of the cells that something is measured of or made from."""
    return {**basis, _OF: contents(cells)}


def fits(told: Any, basis: Mapping[str, Any], cells: Sequence[Path], file: Path) -> bool:
    """Whether what `file` holds, made by `told`, is of this basis and of these cells as they are now."""
    return told == named(basis, cells) or (told == basis and surely_of(file, cells))


def read_arrays(path: Path, basis: Mapping[str, Any], cells: Sequence[Path]) -> dict[str, np.ndarray] | None:
    """The arrays that were written with `named(basis, cells)`, or by an earlier version with the basis alone.

    None where they are not there, damaged, of another basis, or of cells that were made anew since.
    """
    if not path.is_file():
        return None
    found = tables.read_arrays(path, named(basis, cells))
    if found is None and surely_of(path, cells):
        return tables.read_arrays(path, basis)
    return found


def surely_of(file: Path, cells: Sequence[Path]) -> bool:
    """Whether a file that does not name its cells is of those that are there now, which all are older.

    A copy may have lost the times; it shows where a cell is older than one that it was made from.
    """
    try:
        return all(_is_older(cell, file.stat().st_mtime_ns) for cell in cells)
    except (OSError, ValueError, manifest.Damaged):
        return False


def _is_older(of: Path, than: int) -> bool:
    """Whether a cell or state was written before a time, and all that it was made from before it.

    Of what an analysis has trained, copies often mix up the times. It is as old as the file if it does not
    name the contents of its cells either.
    """
    made_from = json.loads((of / "result.json").read_bytes()).get("made_from") or {}
    if made_from and _PARENT not in made_from:
        return _OF not in made_from
    made, run = manifest.read(of), next(p for p in of.parents if p.name.startswith("seed=")).parent
    written = (of / ("result.json" if made is None else manifest.FILE)).stat().st_mtime_ns
    return written < than and all(_is_older(run / one, written) for one in (made.parents if made else ()))
