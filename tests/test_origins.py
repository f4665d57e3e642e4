"""Whether something was measured of the cells that are there now."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import about, made_anew, result, unsealed

from analysis import origins, tables
from lthjax import prune
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables

PARAMS = {"fc": {"kernel": np.arange(1, 31, dtype=np.float32).reshape(6, 5)}}
TICKET = Cell(0, "rewind-0", 1, "ticket")
BASIS = {"images": 60}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A state, a dense network and a ticket, untrained, each a second newer than what it was made from."""
    path, state = tmp_path / "x-0", state_folder(Path(), 0, 0)
    dense = Cell(0, DENSE, 0, DENSE)
    with Store(path, about()) as store:  # type: ignore[arg-type]
        weights = Variables(PARAMS, {})
        store.write_state(0, 0, weights)
        mask = prune.ones(PARAMS)
        store.write(dense, result(dense), mask, weights, [state])  # type: ignore[arg-type]
        store.write(TICKET, result(TICKET), mask, weights, [folder(Path(), dense), state])  # type: ignore[arg-type]
    for time, place in enumerate((state, folder(Path(), dense), folder(Path(), TICKET))):
        for file in ("manifest.json", "result.json"):
            os.utime(path / place / file, (10**9 + time, 10**9 + time))
    return path


def written(run: Path, basis: dict, time: int) -> Path:
    """An analysis's file, written at a time; the ticket is of time 2."""
    path = run / "forgetting" / "ticket.npz"
    tables.write_arrays(path, basis, {"events": np.arange(3)})
    os.utime(path, (10**9 + time, 10**9 + time))
    return path


def test_what_was_measured_counts_until_the_cell_is_made_anew(run: Path) -> None:
    ticket = [folder(run, TICKET)]
    path = written(run, origins.named(BASIS, ticket), 0)
    assert origins.read_arrays(path, BASIS, ticket) is not None, "whatever the times"
    assert origins.read_arrays(path, {"images": 61}, ticket) is None
    made_anew(run, TICKET)
    os.utime(path)
    assert origins.read_arrays(path, BASIS, ticket) is None
    shutil.rmtree(ticket[0])
    assert origins.read_arrays(path, BASIS, ticket) is None
    assert origins.read_arrays(run / "gone.npz", BASIS, ticket) is None


def none(run: Path) -> None:
    pass


def older(name: str) -> Callable[[Path], None]:
    """The time of a copy that has lost them: the last that is made anew is not the last that is copied."""
    return lambda run: os.utime(run / name / "manifest.json", (10**9 - 5, 10**9 - 5))


@pytest.mark.parametrize(
    ("time", "change", "is_read"),
    [
        (3, none, True),
        (3, unsealed, True),
        (2, none, False),
        (1, none, False),
        (1, unsealed, False),
        (3, lambda run: made_anew(run, TICKET), False),
        (3, older("seed=0/chain=rewind-0/level=01/ticket"), False),
        (3, older("seed=0/dense"), False),
        (3, lambda run: shutil.rmtree(run / "seed=0" / "dense"), False),
        (3, lambda run: shutil.rmtree(folder(run, TICKET)), False),
    ],
    ids=["newer", "no manifests", "of one time", "older", "older, no manifests", "made anew", "a copy",
         "a copy of what it is made from", "what it is made from is gone", "the cell is gone"],
)  # fmt: skip
def test_a_file_without_contents_counts_where_all_cells_are_surely_older(
    time: int, change: Callable[[Path], None], is_read: bool, run: Path
) -> None:
    path = written(run, BASIS, time)
    change(run)
    assert (origins.read_arrays(path, BASIS, [folder(run, TICKET)]) is not None) == is_read
    assert origins.fits(BASIS, BASIS, [folder(run, TICKET)], path) == is_read
    assert not origins.fits(None, BASIS, [folder(run, TICKET)], path)


@pytest.mark.parametrize("made_from", [{"noise": 1}, origins.named({"noise": 1}, [])])
def test_of_what_an_analysis_has_trained_the_times_do_not_count(made_from: dict, run: Path) -> None:
    """A copy mixes them up; but one that names its cells may have been made anew after the file."""
    twin = TICKET._replace(arm="ticket_twin")
    weights, mask = Variables(PARAMS, {}), prune.ones(PARAMS)
    with Store(run / "landscape", about()) as store:  # type: ignore[arg-type]
        store.write(twin, {**result(twin), "made_from": made_from}, mask, weights, [])  # type: ignore[arg-type, typeddict-item]
    path = written(run, BASIS, 3)
    found = origins.read_arrays(path, BASIS, [folder(run, TICKET), folder(run / "landscape", twin)])
    assert (found is None) == ("of" in made_from)
