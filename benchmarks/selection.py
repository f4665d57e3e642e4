"""Global magnitude pruning of millions of weights: time of the first and of later calls, and peak memory.

python -m benchmarks.selection [--millions 25 100] [--leaves 10] [--against CHECKOUT] [--json]

Every measurement is a process of its own, as the first call includes compilation and the peak is that of a
process. The sides are ours, another checkout's, the same mask by numpy.partition, and by torch.nn.utils.prune
where it is installed. They take turns, and the best of the rounds counts. The weights are normal, in float32
matrices; a fifth is pruned. Memory is the most that the process ever held, interpreter and libraries
included, over that of the weights.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
_RATE, _COLUMNS, _LATER = 0.2, 1000, 4


class Measured(NamedTuple):
    """One process.

    Attributes:
        first: seconds of the first call, compilation included.
        later: seconds of the fastest of the later calls.
        first_cpu, later_cpu: likewise of all cores, which depend less on what else the machine does.
        peak: peak resident memory of the process / memory of the weights.
    """

    first: float
    later: float
    first_cpu: float
    later_cpu: float
    peak: float


def drawn(millions: float, leaves: int) -> list[np.ndarray]:
    """Float32 matrices [rows, 1000], together so many weights."""
    rows = round(millions * 1e6 / leaves / _COLUMNS)
    generators = (np.random.default_rng(i) for i in range(leaves))
    return [of.standard_normal((rows, _COLUMNS), np.float32) for of in generators]


def of_lthjax(weights: list[np.ndarray]) -> Callable[[], Any]:
    """The mask by `prune.magnitude`, of weights that lie where JAX puts them."""
    import jax

    from lthjax import prune

    params = {}
    for i in reversed(range(len(weights))):
        params[f"layer{i}/kernel"] = jax.block_until_ready(jax.device_put(weights.pop(i)))
    mask = prune.ones(params)
    return lambda: jax.block_until_ready(prune.magnitude(params, mask, _RATE, scope="global"))


def of_numpy(weights: list[np.ndarray]) -> Callable[[], Any]:
    """The mask by `numpy.partition` of all weights in one array, ties left as they fall."""

    def masks() -> list[np.ndarray]:
        sizes = np.concatenate([np.abs(w).ravel() for w in weights])
        removed = round(_RATE * sizes.size)
        sizes.partition(removed)
        return [np.abs(w) >= sizes[removed] for w in weights]

    return masks


def of_torch(weights: list[np.ndarray]) -> Callable[[], Any]:
    """The mask by `torch.nn.utils.prune.global_unstructured`."""
    import torch
    from torch.nn.utils import prune

    def masks() -> list[Any]:
        layers = [torch.nn.Linear(1, 1, bias=False) for _ in weights]
        for layer, values in zip(layers, weights, strict=True):
            layer.weight = torch.nn.Parameter(torch.from_numpy(values))
        of = [(layer, "weight") for layer in layers]
        prune.global_unstructured(of, prune.L1Unstructured, amount=_RATE)
        return [layer.weight_mask.numpy() for layer in layers]

    return masks


SIDES = {"lthjax": of_lthjax, "numpy.partition": of_numpy, "torch.nn.utils.prune": of_torch}
"""Names of the sides -> a function from matrices to the call that is timed; it may empty the list."""


def measured(side: str, millions: float, leaves: int) -> Measured:
    """Measures one side in this process, which must be a fresh one."""
    weights = drawn(millions, leaves)
    total = sum(w.nbytes for w in weights)
    call = SIDES[side](weights)
    first, *later = (_seconds(call) for _ in range(1 + _LATER))
    wall, cpu = (min(of) for of in zip(*later, strict=True))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / total
    return Measured(first[0], wall, first[1], cpu, peak)


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) time of a call. (`benchmarks.measure` would load libraries, whose memory would count.)"""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_process(side: str, millions: float, leaves: int, checkout: Path = ROOT) -> Measured:
    """`measured` in a process of its own, with the lthjax of a checkout."""
    asked = ["--side", side, "--millions", str(millions), "--leaves", str(leaves)]
    path = os.pathsep.join([str(checkout), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *asked],
        env={**os.environ, "PYTHONPATH": path, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout))


def best(runs: Sequence[Measured]) -> Measured:
    """The least of every figure."""
    return Measured(*(min(of) for of in zip(*runs, strict=True)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--millions", type=float, nargs="+", default=[25, 100], help="of weights")
    parser.add_argument("--leaves", type=int, default=10, help="matrices that the weights are divided over")
    parser.add_argument("--rounds", type=int, default=3, help="processes of every side")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--side", choices=SIDES, help="measure this side in this process, print JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measured(options.side, options.millions[0], options.leaves)._asdict()))
        return
    sides = {side: (side, ROOT) for side in SIDES if side[:5] != "torch" or importlib.util.find_spec("torch")}
    if options.against:
        sides["the other checkout"] = ("lthjax", options.against.resolve())
    found: dict[str, dict[str, Measured]] = {}
    for millions in options.millions:
        rounds = [
            {name: in_process(side, millions, options.leaves, at) for name, (side, at) in sides.items()}
            for _ in range(options.rounds)
        ]
        found[f"{millions:g}"] = {name: best([of[name] for of in rounds]) for name in sides}
    if options.json:
        print(json.dumps({n: {name: m._asdict() for name, m in of.items()} for n, of in found.items()}))
        return
    for millions, of in found.items():
        for name, got in of.items():
            print(
                f"{millions:>4} M weights, {name:20}: first call {got.first:5.2f} s "
                f"(CPU {got.first_cpu:5.2f}), later {got.later:5.2f} s (CPU {got.later_cpu:5.2f}), "
                f"peak {got.peak:.2f} x the weights"
            )


if __name__ == "__main__":
    main()
