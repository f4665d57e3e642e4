"""Where everything lies in a run folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthjax import files
from lthjax.imp import DENSE, Cell

# A copy of the config file of the last command; code, and never run unasked.
CONFIG = "config.py"
# The file by which a folder that `analysis.publish` has written is known: tables, and no cells.
PUBLISHED = "published.json"
LOCKS = ".locks"
# Patterns of the places of states and cells, in the order in which they are made.
PLACES = ("seed=*/state=*", "seed=*/dense", "seed=*/chain=*/level=*/*")


def folder(run: Path, cell: Cell) -> Path:
    """The path of a cell in a run folder."""
    seed = run / f"seed={cell.seed}"
    if cell.arm == DENSE:
        return seed / "dense"
    repeat = f".r{cell.repeat}" if cell.repeat > 1 else ""
    return seed / f"chain={cell.chain}" / f"level={cell.level:02d}" / f"{cell.arm}{repeat}"


def cells_of(run: Path, arm: str) -> list[Path]:
    """The folders of an arm's cells in a run folder, of all seeds."""
    name = re.compile(rf"{re.escape(arm)}(\.r\d+)?")
    return [path for path in sorted(run.glob(PLACES[-1])) if name.fullmatch(path.name)]


def state_folder(run: Path, seed: int, step: int) -> Path:
    """The path of a rewind state in a run folder."""
    return run / f"seed={seed}" / f"state={step}"


def saved_step(run: Path, cell: Cell) -> int:
    """The step at which a cell's interrupted training run was saved; 0 if it was not."""
    return max((step_of(of) for of in positions(run, cell).glob("step=*")), default=0)


def positions(run: Path, cell: Cell) -> Path:
    """The folder of a cell's position while it is trained."""
    name = folder(Path(), cell).relative_to(f"seed={cell.seed}")
    return run / f"seed={cell.seed}" / "under-way" / ",".join(name.parts)


def step_of(position: Path) -> int:
    """The step of a saved position."""
    return int(position.name.removeprefix("step="))


def place_of(what: Mapping[str, Any]) -> str:
    """The path in a run folder of the cell, state or position that a manifest describes."""
    if "at" in what:
        cell = Cell(**{name: value for name, value in what.items() if name != "at"})
        return (positions(Path(), cell) / f"step={what['at']}").as_posix()
    if "step" in what:
        return state_folder(Path(), what["seed"], what["step"]).as_posix()
    return folder(Path(), Cell(**what)).as_posix()


def set_aside(run: Path, *paths: Path) -> dict[Path, Path]:
    """Moves files or folders of a run folder, in this order, to one `damaged/N/`; returns old -> new path.

    Raises:
        OSError: one cannot be moved.
    """
    there = run / "damaged"
    there.mkdir(exist_ok=True)
    number = 1 + max((int(p.name) for p in there.glob("*") if p.name.isdigit()), default=0)
    # Another process may just have taken this number.
    while not _is_new(there / str(number)):
        number += 1
    moved = {path: there / str(number) / path.relative_to(run) for path in paths}
    for path, target in moved.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        files.move(path, target)
    return moved


def _is_new(folder: Path) -> bool:
    """Makes a folder; whether it was not there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True
