"""Measures the networks of a level, as many side by side as there are devices."""

import dataclasses
import itertools
import time
import timeit
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from lthjax import progress, prune, record
from lthjax.devices import replicate
from lthjax.folder.places import folder
from lthjax.folder.store import Store
from lthjax.imp import Cell
from lthjax.measures import programs
from lthjax.measures.programs import Settings
from lthjax.models import Variables
from lthjax.study import Prepared, Watch
from lthjax.training.job import Job

from .. import origins
from ..run import Run
from .table import SIBLING, Arrays, Item, Network, Scope, place, read, write_arrays

PyTree = Any
_Of = TypeVar("_Of")
# Seconds that compiling a program takes.
_COMPILING = 5


class Measurer:
    """Reads and measures the networks of a level: the run's, and the siblings and replays in the store."""

    def __init__(self, run: Run, prepared: Prepared, scope: Scope, store: Store, watch: Watch) -> None:
        self._run, self._prepared, self._scope = run, prepared, scope
        self._store, self._watch = store, watch
        self._mesh = replicate.mesh(len(scope.networks()))
        self._batch = programs.statistics_batch(prepared.model, scope.settings, self._mesh)
        self._program = cache(lambda name, how: programs.compiled(name, prepared.model, how, self._mesh))
        of, count = (prepared.dataset, prepared.study.data.validation), scope.settings.images
        self._images = cache(lambda seed: programs.images(*of, seed, count))
        self._task = cache(lambda cell: run.task(prepared, cell))

    def stored(self, network: Network, made_from: Mapping[str, Any]) -> bool:
        """Whether a sibling or replay is stored, made from this and from the cell that is there now."""
        if not self._store.has(network.stored):
            return False
        told, cells = self._store.result(network.stored).get("made_from"), self.source(network)
        return origins.fits(told, made_from, cells, place(self._run.path, network) / "result.json")

    def source(self, network: Network) -> list[Path]:
        """The folder of the run's cell that a sibling or replay trains again, for `analysis.origins`."""
        return [place(self._run.path, Network(network.cell))]

    def is_trained(self, sibling: Network) -> bool:
        """Whether a sibling is stored, of the cell that is there now."""
        return self.stored(sibling, self.sibling_of(sibling))

    def sibling_of(self, sibling: Network) -> dict[str, Any]:
        """What a sibling is made from, without the cell's content."""
        return {"sibling_of": str(folder(Path(), sibling.cell)), "noise": _noise(sibling)}

    def done(self, network: Network) -> bool:
        """Whether a sibling is trained and did not diverge; the run's own networks always are."""
        own = network.role == "own"
        return own or (self.is_trained(network) and self._store.result(network.stored)["status"] == "done")

    def job(self, network: Network) -> Job:
        """The training of a network: a sibling has another noise seed than its cell, a replay the same."""
        task, seed, level = self._task(network.cell), network.cell.seed, network.cell.level
        of = (task.start, task.stop, task.variables, task.mask)
        return Job(seed, level, *of, noise=_noise(network))

    def read(self, item: Item) -> Arrays | None:
        """An item's arrays, as `table.read`; None also of a path with statistics of other batches."""
        found = read(self._run.path, item, self._scope.settings)
        known = found is None or item.kind != "path" or programs.has_statistics_of(found, self._batch)
        return found if known else None

    def measure(self, missing: Sequence[Item]) -> None:
        """Measures items, and writes their arrays."""
        done, began, how = 0, time.perf_counter(), self._scope.settings
        for _, of_name in itertools.groupby(missing, lambda item: item.name):
            for chunk in self._chunked([*of_name]):
                kind = chunk[0].kind
                measured = self.run(kind, [self._each(item, how) for item in chunk], how)
                for item, arrays in zip(chunk, measured, strict=True):
                    exact = programs.exact(arrays, programs.images_of(kind, how))
                    write_arrays(self._run.path, item, how, exact)
                done += len(chunk)
                seconds = progress.duration(time.perf_counter() - began)
                what = f"{kind} to {chunk[0].to}" if chunk[0].to else kind.replace("_", " ")
                names = "; ".join(record.describe(item.network.stored) for item in chunk)
                self._watch.say(f"[{done}/{len(missing)}] {what}: {names} ({seconds})")

    def losses(self, cell: Cell, states: Mapping[int, Variables]) -> dict[int, float]:
        """Step -> train loss, of the states of a cell's training."""
        how, losses = self._scope.settings, []
        shared = self._each(Item("loss", Network(cell)), how)
        for chunk in self._chunked([*states.values()]):
            each = [{**shared, "variables": _masked(state, shared["mask"])} for state in chunk]
            losses += [float(found["loss"]) for found in self.run("loss", each, how)]
        return dict(zip(states, losses, strict=True))

    def seconds(self, missing: Sequence[Item]) -> float:
        """The time that items will take, by timing passes and products of the Hessian on some images."""
        if not missing:
            return 0.0
        how = self._scope.settings
        short = dataclasses.replace(how, points=9, draws=1, spectrum_images=min(500, how.images))
        one, taken = self._scope.networks()[0], []
        # A short line, as most images go forward on lines and planes. The first of the calls compiles.
        for name, images in (("lines", 2 * how.images * short.points), ("product", short.spectrum_images)):
            each = [self._each(Item(name, one), short)] * self._mesh.devices.size
            calls = timeit.repeat(partial(self.run, name, each, short), number=1, repeat=3)
            taken.append(min(calls) / images / len(each))
        passes = [programs.passes(item.kind, how) for item in missing]
        measured = sum(forward * taken[0] + products * taken[1] for forward, products in passes)
        return measured + _COMPILING * len({item.kind for item in missing})

    def run(self, name: str, each: Sequence[dict[str, Any]], how: Settings) -> list[dict[str, np.ndarray]]:
        """Runs a program on networks, one a device; its first call compiles it."""
        return replicate.run(self._program(name, how), self._mesh, each)

    def _chunked(self, of: Sequence[_Of]) -> list[Sequence[_Of]]:
        width = self._mesh.devices.size
        return [of[i : i + width] for i in range(0, len(of), width)]

    def _each(self, item: Item, how: Settings) -> dict[str, Any]:
        """The inputs of a program for one network."""
        seed, images = item.network.cell.seed, self._images(item.network.cell.seed)
        each = programs.inputs(item.kind, how, seed, images, programs.chunk_size(self._mesh))
        each["variables"], each["mask"] = self._read(item.network)
        if item.kind == "point":
            each["start"] = self._task(item.network.cell).variables.params
            each["noise"] = programs.batches(images, how, self._prepared.study.train.batch)
        if item.end is not None:
            each["other"], each["other_mask"] = self._read(item.end)
        return each

    def _read(self, network: Network) -> tuple[Variables, PyTree]:
        """(weights under the mask and batch statistics, mask)."""
        where: Run | Store = self._run if network.role == "own" else self._store
        mask = where.mask(network.stored)
        return _masked(where.variables(network.stored), mask), mask


def _noise(network: Network) -> int:
    return int(network.role == SIBLING)


def _masked(variables: Variables, mask: PyTree) -> Variables:
    """The same with pruned weights 0; numpy."""
    return variables._replace(params=jax.device_get(prune.apply(variables.params, mask)))
