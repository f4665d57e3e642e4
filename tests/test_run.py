"""A run folder reads itself: rows, masks, weights and states, without config, data or network."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_tiny, unsealed

from analysis import landscape, open_run, report, rows
from analysis.landscape import work
from analysis.run import Run
from lthjax import imp, models, prune, rng, study
from lthjax.errors import UserError
from lthjax.folder import reader, verified
from lthjax.imp import DENSE, Cell

TICKET = Cell(1, "rewind-3", 2, "ticket")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Prepared, Path]:
    """Two seeds, two levels, chains rewound to 0 and 3."""
    prepared = make_tiny(tmp_path_factory.mktemp("data"))(rewind=(0, 3), levels=2)
    return prepared, study.run(prepared, tmp_path_factory.mktemp("runs"))


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_arrays_come_from_the_folder_alone(
    trained: tuple[study.Prepared, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, folder = trained
    initial = jax.device_get(prepared.model.init(rng.stream(1, "init")))
    first = imp.Cell(1, "rewind-3", 1, "ticket")
    for name in ("build", "MODELS"):
        monkeypatch.delattr(models, name)
    run = open_run(folder)
    same(run.state(1, 0), initial.params)
    mask = run.mask(TICKET)
    assert {name: {leaf: m.dtype for leaf, m in layer.items()} for name, layer in mask.items()} == {
        layer: {"kernel": bool, "bias": bool} for layer in ("fc1", "fc2", "output")
    }
    assert mask["fc1"]["kernel"].shape == (144, 300)
    assert (mask["fc1"]["bias"].shape, bool(mask["fc1"]["bias"])) == ((), True)
    # The mask of level 2 is made from the weights of level 1, whose start is the state at 3.
    same(prune.magnitude(run.weights(first), run.mask(first), prepared.study.prune.rate), mask)
    trees = (run.weights(TICKET), mask)
    assert all((w[~m] == 0).all() for w, m in zip(*map(jax.tree.leaves, trees), strict=True) if m.ndim)
    with pytest.raises(AttributeError):
        run.network()


def test_a_row_knows_its_cell_and_what_it_was_trained_from(trained: tuple[study.Prepared, Path]) -> None:
    prepared, folder = trained
    run = open_run(folder)
    assert [row.cell for row in run.rows] == [*run.results]
    (row,) = [row for row in run.rows if row.cell == TICKET]
    assert row.weights_left == sum(int(m.sum()) for m in jax.tree.leaves(run.mask(row.cell)) if m.ndim)
    task = run.task(prepared, row.cell)
    same(task.variables.params, prune.apply(run.state(1, 3), run.mask(row.cell)))
    assert (task.start, task.stop) == (3, run.lengths.total)


def test_older_folders_take_shapes_from_the_network(
    trained: tuple[study.Prepared, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = trained
    older = shutil.copytree(folder, tmp_path / folder.name)
    unsealed(older)
    new, old = open_run(folder), open_run(older)
    for cell in (TICKET, Cell(0, DENSE, 0, DENSE)):
        same((new.mask(cell), new.variables(cell)), (old.mask(cell), old.variables(cell)))
    same(new.variables_at(0, 3), old.variables_at(0, 3))
    reader._older_shapes.cache_clear()
    # Not deleted: it would come back at the end of the table.
    others = {name: entry for name, entry in models.MODELS.items() if name != "lenet300"}
    monkeypatch.setattr(models, "MODELS", others)
    with pytest.raises(UserError, match="'lenet300' is from outside the package; load the config file"):
        old.mask(TICKET)


def test_a_report_reads_every_cell_once(
    trained: tuple[study.Prepared, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained[1], tmp_path / trained[1].name)
    read: Counter[Path] = Counter()
    genuine = verified.read_result

    def noted(path: Path) -> Any:
        read[path] += 1
        return genuine(path)

    monkeypatch.setattr(verified, "read_result", noted)
    report.build(folder)
    assert {*read.values()} == {1}
    assert len(read) == len(open_run(folder).rows)


def test_chains_levels_and_seeds_are_chosen_in_one_place(trained: tuple[study.Prepared, Path]) -> None:
    run = open_run(trained[1])
    tickets = run.tickets()
    assert (tickets.chain, tickets.rewind, tickets.seeds(2)) == ("rewind-0", 0, [0, 1])
    assert run.tickets("rewind-3").rewind == 3
    with pytest.raises(UserError, match="--chain: 'rewind-4' has no ticket in the run; it may be rewind-0"):
        run.tickets("rewind-4")
    density = {1: 0.8, 2: 0.5, 3: 0.21, 4: 0.12, 5: 0.05, 6: 0.02}
    assert rows.worth_seeing(density) == [3, 4, 6]
    assert rows.worth_seeing(density, (0.5,), last=False) == [2]
    assert rows.asked_levels((5, 2), density, "ticket") == [2, 5]
    assert rows.asked_levels((), density, "ticket") == [3, 4, 6]
    assert rows.asked_levels((), density, "ticket", beside=(2, 6, 9)) == [2, 6], "levels with controls"
    assert rows.asked_levels((), density, "ticket", beside=(9,)) == [3, 4, 6], "none is allowed"
    assert rows.asked_levels((5,), density, "ticket", beside=(2,)) == [5]
    with pytest.raises(UserError, match="--levels: 9 has no ticket; it may be 1, 2, 3, 4, 5, 6"):
        rows.asked_levels((9,), density, "ticket")


def made_up(**statuses: str) -> Run:
    """A run without a folder: chain -> its tickets by level, "d" for done and "x" for diverged."""
    run = object.__new__(Run)
    run.path = Path("runs/x")
    run.rows = [
        rows.Row(
            0, chain.replace("_", "-"), level, "ticket", 1, 0.8**level, 9, *[None] * 7, 9, 1.0,
            "done" if status == "d" else "diverged",
        )
        for chain, of in statuses.items()
        for level, status in enumerate(of, 1)
    ]  # fmt: skip
    return run


@pytest.mark.parametrize(
    ("rewind_0", "rewind_5", "rewind_45", "chosen"),
    [
        ("ddd", "ddd", "ddd", "rewind-0"),
        ("dx", "ddd", "ddd", "rewind-0"),
        ("x", "", "ddd", "rewind-45"),
        ("x", "dx", "ddd", "rewind-5"),
        ("x", "x", "d", "rewind-45"),
        ("x", "x", "x", "rewind-0"),
    ],
)
def test_where_no_chain_is_named_the_first_with_a_trained_ticket_is_chosen(
    rewind_0: str, rewind_5: str, rewind_45: str, chosen: str
) -> None:
    run = made_up(rewind_0=rewind_0, rewind_5=rewind_5, rewind_45=rewind_45)
    tickets = run.tickets()
    assert tickets == run.tickets(chosen)
    assert (tickets.chain, tickets.rewind) == (chosen, imp.rewind_of(chosen))
    assert run.tickets("rewind-0").chain == "rewind-0", "as it is named"


def test_a_named_chain_that_diverged_is_said_to_have() -> None:
    run = made_up(rewind_0="x", rewind_45="ddd")
    options = landscape.LandscapeOptions(run=run.path, level=3, chain="rewind-0")
    with pytest.raises(UserError, match=r"runs/x: every ticket of rewind-0 diverged; there is nothing to me"):
        work.ask(run, options)


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is not a run folder"):
        open_run(tmp_path)
