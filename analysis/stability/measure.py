"""Measures the paths between pairs of trained networks, as many side by side as there are devices."""

import dataclasses
import time
import timeit
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import progress, prune, record
from lthjax.devices import replicate
from lthjax.folder.places import folder
from lthjax.folder.store import Store
from lthjax.imp import Cell, Task
from lthjax.measures import geography, programs, quantities, wiring
from lthjax.measures.programs import Settings
from lthjax.models import Variables
from lthjax.study import Prepared, Watch

from .. import tables
from ..origins import content
from ..run import Run

PyTree = Any
BARRIERS = tuple(f"barrier_{part}_{what}" for what in ("error", "loss") for part in ("train", "test"))
# Seconds that compiling the program takes.
_COMPILING = 5


class Line(NamedTuple):
    """The straight path between two trained networks of a seed.

    Attributes:
        first, second: cells.
        in_run: whether they are cells of the run; if not, of its folder of this analysis.
        matched: whether the second's hidden units are matched with the first's before.
    """

    first: Cell
    second: Cell
    in_run: bool
    matched: bool = False


class Network(NamedTuple):
    """A trained network: weights under the mask and batch statistics, and its mask; numpy."""

    variables: Variables
    mask: PyTree


class Measurer:
    """Reads, measures and keeps paths.

    Args:
        run: the run.
        prepared: its study.
        how: how much to measure.
        store: of the analysis's own cells, beside which paths are kept.
        watch: is told of the progress.
        width: paths to be measured in all.
    """

    def __init__(
        self, run: Run, prepared: Prepared, how: Settings, store: Store, watch: Watch, width: int
    ) -> None:
        self._run, self._model, self._how, self._store, self._watch = run, prepared.model, how, store, watch
        self._mesh = replicate.mesh(width)
        self._batch = programs.statistics_batch(prepared.model, how, self._mesh)
        self._program = cache(lambda how: programs.compiled("path", self._model, how, self._mesh))
        of, count = (prepared.dataset, prepared.study.data.validation), how.images
        self._images = cache(lambda seed: programs.images(*of, seed, count))

    def done(self, *cells: Cell) -> bool:
        """Whether cells of this analysis are there and did not diverge."""
        return all(self._store.has(c) and self._store.result(c)["status"] == "done" for c in cells)

    @property
    def matches(self) -> bool:
        """Whether it is known which layers share units, so that they can be matched."""
        return bool(wiring.layers(self._model))

    def lacks(self, line: Line) -> bool:
        """Whether a path is not measured, or was between other networks."""
        return self._read(line) is None

    def values(self, line: Line) -> dict[str, float]:
        """The quantities of a path that is measured; with matching also "units_moved", a share."""
        arrays = self._read(line)
        assert arrays is not None, "every path was measured"
        found = {name: value for name, (value, _) in quantities.values("path", arrays).items()}
        return found | ({"units_moved": float(arrays["units_moved"])} if line.matched else {})

    def measure(self, lines: Sequence[Line]) -> None:
        """Measures the paths that are missing, and keeps their arrays."""
        missing, began, width = [one for one in lines if self.lacks(one)], time.perf_counter(), self._width
        for i in range(0, len(missing), width):
            chunk = missing[i : i + width]
            ends = [self._ends(line) for line in chunk]
            each = [self._each(line, *both, self._how) for line, (both, _) in zip(chunk, ends, strict=True)]
            # Matching that moves no unit changes nothing.
            known = [self._read(line._replace(matched=False)) if not moved else None
                     for line, (_, moved) in zip(chunk, ends, strict=True)]  # fmt: skip
            every = known if all(known) else replicate.run(self._program(self._how), self._mesh, each)
            for line, arrays, (_, moved) in zip(chunk, every, ends, strict=True):
                exact = programs.exact(arrays or {}, programs.images_of("path", self._how))
                exact |= {"units_moved": np.array(moved)} if line.matched else {}
                tables.write_arrays(self._file(line), self._basis(line), exact)
            what = "path, units matched" if chunk[0].matched else "path"
            said = "; ".join(f"{record.describe(a)} to {record.describe(b)}" for a, b, *_ in chunk)
            taken = progress.duration(time.perf_counter() - began)
            self._watch.say(f"[{i + len(chunk)}/{len(missing)}] {what}: {said} ({taken})")

    def seconds(self, lines: Sequence[Line], task: Task) -> float:
        """The time that so many paths will take, by timing a short one between copies of start weights."""
        if not lines:
            return 0.0
        short = dataclasses.replace(self._how, images=min(500, self._how.images), alphas=2)
        one = Network(task.variables, task.mask)
        each = [self._each(lines[0], one, one, short)] * self._width
        run = partial(replicate.run, self._program(short), self._mesh, each)
        taken = min(timeit.repeat(run, number=1, repeat=3)) / programs.passes("path", short)[0] / len(each)
        # Paths of pairs are measured again where matching moves a unit.
        count = sum(1 if line.in_run or not self.matches else 2 for line in lines)
        return count * programs.passes("path", self._how)[0] * taken + _COMPILING

    @property
    def _width(self) -> int:
        return self._mesh.devices.size

    def _file(self, line: Line) -> Path:
        name = "matched" if line.matched else "path"
        name += f"_{line.first.level}" if line.in_run else ""
        return folder(self._store.path, line.second) / f"{name}.npz"

    def _basis(self, line: Line) -> dict[str, Any]:
        where = self._run.path if line.in_run else self._store.path
        both = [content(folder(where, cell)) for cell in (line.first, line.second)]
        return programs.basis("path", self._how) | {"ends": both}

    def _read(self, line: Line) -> dict[str, np.ndarray] | None:
        found = tables.read_arrays(self._file(line), self._basis(line))
        return found if found is not None and programs.has_statistics_of(found, self._batch) else None

    def _ends(self, line: Line) -> tuple[tuple[Network, Network], float]:
        """The two networks, and the share of hidden units that matching moves."""
        where: Run | Store = self._run if line.in_run else self._store
        first, second = (_network(where, cell) for cell in (line.first, line.second))
        if not line.matched:
            return (first, second), 0.0
        layers = wiring.layers(self._model)
        units = geography.matching(layers, first.variables.params, second.variables.params)
        moved = np.concatenate([np.zeros(0, bool), *(of != np.arange(len(of)) for of in units)])
        mask = geography.reordered(layers, second.mask, units)
        second = Network(wiring.permuted(layers, second.variables, units), mask)
        return (first, second), float(moved.mean()) if moved.size else 0.0

    def _each(self, line: Line, first: Network, second: Network, how: Settings) -> dict[str, Any]:
        """The inputs of the program."""
        seed = line.first.seed
        each = programs.inputs("path", how, seed, self._images(seed), programs.chunk_size(self._mesh))
        each["variables"], each["mask"] = first
        each["other"], each["other_mask"] = second
        return each


def _network(where: Run | Store, cell: Cell) -> Network:
    variables, mask = where.variables(cell), where.mask(cell)
    return Network(variables._replace(params=jax.device_get(prune.apply(variables.params, mask))), mask)
