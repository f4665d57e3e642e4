"""Measures networks of a run and what it adds to them, as many side by side as there are devices."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import jax
import numpy as np

from analysis.landscape.table import SIBLING, Item, Network, Scope, write_arrays
from analysis.run import Run
from lthjax import imp, progress, prune, record
from lthjax.devices import replicate
from lthjax.imp import Cell
from lthjax.measures import programs
from lthjax.measures.programs import Settings
from lthjax.models import Variables
from lthjax.store import Store
from lthjax.study import Prepared, Watch
from lthjax.train import Job

PyTree = Any
_Of = TypeVar("_Of")
# Images that a program sees at a time.
_ON_CPU, _ELSEWHERE = 50, 500
# Seconds that compiling a program takes.
_COMPILING = 5


class Networks:
    """The networks of a run, and the siblings and replays that lie in RUN/landscape.

    Args:
        run: the run.
        kept: the store in RUN/landscape.
        prepared: the run's study.
    """

    def __init__(self, run: Run, kept: Store, prepared: Prepared) -> None:
        self._run, self._kept = run, kept
        self.task: Callable[[Cell], imp.Task] = cache(lambda cell: run.task(prepared, cell))
        """What a cell of the run was trained from."""

    def done(self, network: Network) -> bool:
        """Whether a network is there and did not diverge; the run's own are, of those that are asked for."""
        stored = network.stored
        return network.role == "own" or (
            self._kept.has(stored) and self._kept.result(stored)["status"] == "done"
        )

    def read(self, network: Network) -> tuple[Variables, PyTree]:
        """(weights under the mask and statistics, mask)."""
        where: Run | Store = self._run if network.role == "own" else self._kept
        mask = where.mask(network.stored)
        return masked(where.variables(network.stored), mask), mask

    def job(self, network: Network) -> Job:
        """The training of a network: a sibling's has other noise than its cell's, a replay's is the same."""
        task, seed, level = self.task(network.cell), network.cell.seed, network.cell.level
        noise = int(network.role == SIBLING)
        return Job(seed, level, task.start, task.stop, task.variables, task.mask, noise=noise)


def masked(variables: Variables, mask: PyTree) -> Variables:
    """The same with weights under the mask; numpy."""
    return variables._replace(params=jax.device_get(prune.apply(variables.params, mask)))


class Measurer:
    """What is compiled and loaded to measure.

    Args:
        run: the run, into whose folder arrays are written.
        prepared: its study.
        scope: which networks, and how much.
        networks: where they are read from.
        watch: is told what was measured.
    """

    def __init__(self, run: Run, prepared: Prepared, scope: Scope, networks: Networks, watch: Watch) -> None:
        self._run, self._prepared, self._scope = run, prepared, scope
        self._networks, self._watch = networks, watch
        self._mesh = replicate.mesh(len(scope.networks()))
        self._program = cache(lambda name, how: programs.compiled(name, prepared.model, how, self._mesh))
        of, count = (prepared.dataset, prepared.study.data.validation), scope.settings.images
        self._images = cache(lambda seed: programs.images(*of, seed, count))

    def measure(self, missing: Sequence[Item]) -> None:
        """Measures items, and writes their arrays."""
        done, began, how = 0, time.perf_counter(), self._scope.settings
        for _, of_kind in itertools.groupby(missing, lambda item: item.name):
            for chunk in self._chunked([*of_kind]):
                kind = chunk[0].kind
                each = [self._each(kind, item.network, item.end, how) for item in chunk]
                for item, arrays in zip(chunk, self.run(kind, each, how), strict=True):
                    exact = programs.exact(arrays, programs.images_of(kind, how))
                    write_arrays(self._run.path, item, how, exact)
                done += len(chunk)
                seconds = progress.duration(time.perf_counter() - began)
                names = "; ".join(record.describe(item.network.stored) for item in chunk)
                what = chunk[0].name.replace("_", " to ")
                self._watch.say(f"[{done}/{len(missing)}] {what}: {names} ({seconds})")

    def _chunked(self, of: Sequence[_Of]) -> list[Sequence[_Of]]:
        width = self._mesh.devices.size
        return [of[i : i + width] for i in range(0, len(of), width)]

    def losses(self, network: Network, states: Sequence[Variables]) -> list[float]:
        """The train losses of states of a network's training."""
        how, losses = self._scope.settings, []
        shared = self._each("loss", network, None, how)
        for chunk in self._chunked(states):
            each = [{**shared, "variables": masked(state, shared["mask"])} for state in chunk]
            losses += [float(found["loss"]) for found in self.run("loss", each, how)]
        return losses

    def seconds(self, missing: Sequence[Item]) -> float:
        """What items will take, by timing passes and products of the Hessian on some of the images."""
        if not missing:
            return 0.0
        how = self._scope.settings
        short = dataclasses.replace(how, points=9, draws=1, spectrum_images=min(500, how.images))
        one, taken = self._scope.networks()[0], []
        # A short line, as most images go forward on lines and planes; the quicker of two calls.
        for name, images in (("lines", 2 * how.images * short.points), ("product", short.spectrum_images)):
            each = [self._each(name, one, None, short)] * self._mesh.devices.size
            self.run(name, each, short)
            calls = []
            for _ in range(2):
                began = time.perf_counter()
                self.run(name, each, short)
                calls.append(time.perf_counter() - began)
            taken.append(min(calls) / images / len(each))
        passes = [programs.passes(item.kind, how) for item in missing]
        measured = sum(forward * taken[0] + products * taken[1] for forward, products in passes)
        return measured + _COMPILING * len({item.kind for item in missing})

    def run(self, name: str, each: Sequence[dict[str, Any]], how: Settings) -> list[dict[str, np.ndarray]]:
        """Runs a program on networks, one a device; compiles it at first."""
        return replicate.run(self._program(name, how), self._mesh, each)

    def _each(self, name: str, network: Network, end: Network | None, how: Settings) -> dict[str, Any]:
        """What a program reads of one network."""
        seed, images = network.cell.seed, self._images(network.cell.seed)
        size = _ON_CPU if replicate.one_by_one(self._mesh) else _ELSEWHERE
        each = programs.inputs(name, how, seed, images, size)
        each["variables"], each["mask"] = self._networks.read(network)
        if name == "point":
            each["start"] = self._networks.task(network.cell).variables.params
            each["noise"] = programs.batches(images, how, self._prepared.study.train.batch)
        if end is not None:
            each["other"], each["other_mask"] = self._networks.read(end)
        return each
