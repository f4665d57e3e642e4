"""The doctor's checks of a run folder: every cell against its results, its schedule and its saved states."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from lthjax import imp, manifest, prune
from lthjax.arms import ARMS
from lthjax.folder import places
from lthjax.imp import DENSE, Cell
from lthjax.measures import doctor
from lthjax.measures.doctor import Check
from lthjax.measures.layers import PyTree, by_layer
from lthjax.study import Watch

from ..rows import TICKET, Row
from ..run import Run

# Arms whose masks have layer densities of their own, by a rule, and the ticket's in all.
_BY_RULE = ("random_uniform", "random_erk", "random_smart_ratio")


def diagnose(path: Path, watch: Watch) -> list[Check]:
    """The checks of all cells of a run folder, one a claim.

    Raises:
        UserError: it is no run folder, has no pruned cell, or a file in it is damaged.
    """
    run = Run(path)
    rows = [row for row in run.finished() if row.chain != DENSE]
    if not rows:
        raise run.lacks("pruned network")
    return doctor.together(_all(run, rows, watch))


def _all(run: Run, rows: list[Row], watch: Watch) -> Iterator[tuple[str, Check]]:
    for row in rows:
        where = places.folder(Path(), row.cell).as_posix()
        watch.say(where)
        tree = run.mask(row.cell)
        mask = by_layer(tree, tree)
        for check in _of_mask(run, row, tree, mask):
            yield where, check
        if row.status == "done":
            for check in _of_weights(run, row, mask):
                yield where, check


def _of_mask(run: Run, row: Row, tree: PyTree, mask: doctor.Arrays) -> Iterator[Check]:
    """What a mask says by itself, beside the ticket's, and beside the level's before it."""
    at_zero = _state(run, row.seed, 0)
    weights = doctor.prunable(at_zero)
    yield doctor.left_alone({n: m for n, m in _named(tree).items() if m.ndim}, at_zero, weights)
    yield doctor.sparsity(mask, at_zero, [*mask], 1 - row.density, 0.0)
    leader = imp.leader(row.chain)
    if row.arm == leader:
        parent = run.mask(imp.parent_of(row.cell))
        before = by_layer(parent, parent)
        yield doctor.shrunk(before, mask)
        yield _counted(run, row, parent, before, mask)
    else:
        theirs = run.mask(Cell(row.seed, row.chain, row.level, leader))
        # What an arm from outside the package does with its layers is not known.
        by_rule = row.arm in _BY_RULE or row.arm not in ARMS
        compared = doctor.same_total if by_rule else doctor.same_density
        yield compared(by_layer(theirs, theirs), mask)


def _counted(run: Run, row: Row, parent: PyTree, before: doctor.Arrays, mask: doctor.Arrays) -> Check:
    """Whether a level removed as many weights as the study's schedule says, by layer or group of layers."""
    how = imp.how_of(run.study, "", parent)
    if how.granularity != "weight" and ":" not in how.granularity:
        return Check(doctor.COUNTED, lacking=f"whole units ({how.granularity}) are removed, not weights")
    going, paths = imp.removals(run.study, row.level, parent).tolist(), prune.paths(parent)
    if how.scope == "layer":
        of_layer = {name: n for name, n in zip(paths, going, strict=True) if name in before}
        return doctor.counted(before, mask, of_layer, {})
    groups = how.groups if how.scope == "group" else [0] * len(paths)
    members = {
        f"group {number}" if how.scope == "group" else doctor.ALL: [
            name for name, group in zip(paths, groups, strict=True) if group == number and name in before
        ]
        for number in range(len(going))
    }
    return doctor.counted(before, mask, dict(zip(members, going, strict=True)), members)


def _of_weights(run: Run, row: Row, mask: doctor.Arrays) -> Iterator[Check]:
    """What the final weights say, and the record of what they were trained from."""
    final = _named(run.weights(row.cell))
    yield doctor.zeros(final, mask)
    yield doctor.unsigned(final, mask)
    yield doctor.finite(final, mask)
    if row.arm == TICKET:
        yield _rewound(run, row, mask)
        yield doctor.both_signs(_state(run, row.seed, imp.rewind_of(row.chain)), final, mask)


def _rewound(run: Run, row: Row, mask: doctor.Arrays) -> Check:
    """Whether a ticket's record names the state of its rewind step, with the bits that are there now."""
    step = imp.rewind_of(row.chain)
    state, size = places.state_folder(Path(), row.seed, step).as_posix(), sum(m.size for m in mask.values())
    made = manifest.read(places.folder(run.path, row.cell))
    if made is None:
        return Check(doctor.REWOUND, lacking="the run is older than records of what cells were made from")
    variables = run.variables_at(row.seed, step)
    _, content = manifest.described({"params": variables.params, "stats": variables.stats})
    left = sum(int(m.sum()) for m in mask.values())
    if made.parents.get(state) == content:
        return Check(doctor.REWOUND, layers=len(mask), weights=left)
    why = f"trained from another state than {state}"
    return Check(doctor.REWOUND, [doctor.Fault(doctor.ALL, left, size, why)], len(mask), left)


@lru_cache(maxsize=4)
def _state(run: Run, seed: int, step: int) -> dict[str, np.ndarray]:
    return _named(run.state(seed, step))


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of nested dictionaries by path."""
    return dict(zip(prune.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
