"""A whole small study against a plain sequential PyTorch loop that does the same work.

    python -m benchmarks.study [--seeds 2] [--levels 3] [--steps 1000] [--json]

LeNet-5 on mnist_10k: seeds x (dense, then levels x (ticket, reinit, random)). Every training run is evaluated
on validation and test at the same steps, and on its train split at the end; ours also writes every cell. The
sides run alternately in separate processes, so that each has its own peak memory (of the host). Both use the
device that JAX finds. The GPU study of five seeds in docs/performance.md is `--seeds 5 --levels 12`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from lthjax import config

BATCH = 60


class Size(NamedTuple):
    """Size of a study: seeds, pruning rounds, steps per training run, steps between evaluations."""

    seeds: int
    levels: int
    steps: int
    every: int
    precision: config.Precision

    @property
    def cells(self) -> int:
        """Number of training runs."""
        return self.seeds * (1 + 3 * self.levels)


def ours(size: Size) -> dict[str, Any]:
    """Runs one study of ours; returns the seconds of its parts and its compilations."""
    from lthjax import inputs, study
    from lthjax.devices import replicate
    from lthjax.folder.store import Store
    from lthjax.training.trainer import Trainer

    replicate.use_all_cores()
    import jax
    from jax import monitoring

    compiled: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[str(kwargs.get("fun_name"))] += 1
            spent["compile"] += duration_secs

    def timed(name: str, fn: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began, compiling = time.perf_counter(), spent["compile"]
            out = jax.block_until_ready(fn(*args, **kwargs))
            spent[name] += time.perf_counter() - began - (spent["compile"] - compiling)
            return out

        return call

    monitoring.register_event_duration_secs_listener(listen)
    make = inputs.assemble

    def instrumented(*args: Any, **kwargs: Any) -> Trainer:
        trainer = make(*args, **kwargs)
        return trainer._replace(
            segment=timed("train", trainer.segment), evaluate=timed("evaluate", trainer.evaluate)
        )

    inputs.assemble = instrumented
    Store.write = timed("store", Store.write)  # type: ignore[method-assign]
    Store.write_state = timed("store", Store.write_state)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        prepared = study.prepare(
            config.Study(
                seeds=tuple(range(size.seeds)),
                levels=size.levels,
                model="lenet5",
                data=config.Data(name="mnist_10k", validation=1000),
                train=config.Train(size.steps, BATCH, size.every, size.precision),
            )
        )
        study.run(prepared, out)
        total = time.perf_counter() - began
    parts = {name: spent[name] for name in ("train", "evaluate", "store", "compile")}
    parts["host"] = total - sum(parts.values())
    programs = sum(n for name, n in compiled.items() if "segment" in name)
    return {
        "seconds": total,
        "parts": parts,
        "programs": programs,
        "compilations": sum(compiled.values()),
        "device": jax.local_devices()[0].device_kind,
    }


def peer(size: Size) -> dict[str, Any]:
    """Runs the same training in PyTorch, one run after another."""
    import torch

    from benchmarks.peer import Loop, device
    from lthjax import data

    began = time.perf_counter()
    dataset = data.load("mnist_10k")
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    pixels = dataset.train_images / 255
    mean, std = (np.array([v], np.float32) for v in (pixels.mean(), pixels.std()))
    generator = np.random.default_rng(0)
    rates = [0.2, 0.2, 0.2, 0.2, 0.1]
    test = np.arange(10_000, 12_000)

    def training(loop: Loop) -> None:
        loop.reset()
        for done in range(0, size.steps, size.every):
            count = min(size.every, size.steps - done)
            order = np.concatenate([generator.permutation(9000) for _ in range(count * BATCH // 9000 + 1)])
            loop.train(order[: count * BATCH].reshape(count, BATCH))
            loop.evaluate(np.arange(9000, 10_000))
            loop.evaluate(test)
        loop.evaluate(np.arange(9000))

    for seed in range(size.seeds):
        torch.manual_seed(seed)
        loop = Loop("lenet5", images, labels, BATCH, 1.2e-3, mean, std, device())
        origin = [p.detach().clone() for p in loop.model.parameters()]
        training(loop)
        for _ in range(size.levels):
            loop.prune(rates)
            final: list[torch.Tensor] = []
            masks = loop.masks
            for arm in ("ticket", "reinit", "random"):
                with torch.no_grad():
                    for p, o in zip(loop.model.parameters(), origin, strict=True):
                        p.copy_(o)
                    if arm == "reinit":
                        for w in loop.weights():
                            torch.nn.init.xavier_normal_(w)
                loop.masks = masks
                if arm == "random":
                    loop.masks = [
                        m.flatten()[torch.randperm(m.numel(), device=m.device)].reshape(m.shape)
                        for m in masks
                    ]
                training(loop)
                if arm == "ticket":
                    final = [p.detach().clone() for p in loop.model.parameters()]
            loop.masks = masks
            with torch.no_grad():
                for p, f in zip(loop.model.parameters(), final, strict=True):
                    p.copy_(f)
    return {"seconds": time.perf_counter() - began}


def measured(side: str, size: Size, programs: str | None = None) -> dict[str, Any]:
    """A side's own report, with its process's peak memory and wall time.

    Args:
        side: "ours" or "peer".
        size: size of its study.
        programs: folder of the program cache, if any.
    """
    kept = {}
    if programs is not None:
        kept["JAX_COMPILATION_CACHE_DIR"] = programs
        kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.study", "--side", side, *_options(size)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        env=os.environ | kept,
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the {side} side failed")
    return json.loads(text) | {
        "wall": time.perf_counter() - began,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def _options(size: Size) -> list[str]:
    """The size as command line options."""
    return [word for name, value in size._asdict().items() for word in (f"--{name}", str(value))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--levels", type=int, default=3, help="pruning rounds")
    parser.add_argument("--steps", type=int, default=1000, help="of a training")
    parser.add_argument("--every", type=int, default=250, help="steps from evaluation to evaluation")
    parser.add_argument(
        "--precision", choices=get_args(config.Precision), default="float32", help="of our products"
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(options.seeds, options.levels, options.steps, options.every, options.precision)
    if options.side:
        print(json.dumps({"ours": ours, "peer": peer}[options.side](size)))
        return
    runs, again = [], []
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory() as programs:
            runs.append((measured("ours", size, programs), measured("peer", size)))
            again.append(runs[-1][1]["seconds"] / measured("ours", size, programs)["seconds"])
    ratios = [b["seconds"] / a["seconds"] for a, b in runs]
    mine = sorted((a for a, _ in runs), key=lambda a: a["seconds"])[len(runs) // 2]
    total, parts = mine["seconds"], mine["parts"]
    got = {
        **size._asdict(),
        "cells": size.cells,
        "device": mine["device"],
        "ours_s": total,
        "peer_s": statistics.median(b["seconds"] for _, b in runs),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "ratio_programs_kept": statistics.median(again),
        "ours_peak_mib": mine["peak_mib"],
        "peer_peak_mib": statistics.median(b["peak_mib"] for _, b in runs),
        "compile_s": parts["compile"],
        "training_programs": mine["programs"],
        "compilations": mine["compilations"],
        "shares": {name: value / total for name, value in parts.items()},
    }
    if options.json:
        print(json.dumps(got))
        return
    print(
        f"{size.cells} cells of {size.steps} steps on {got['device']}: "
        f"ours {got['ours_s']:.1f} s, PyTorch {got['peer_s']:.1f} s, "
        f"ratio {got['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"with the programs of an earlier run {got['ratio_programs_kept']:.2f}\n"
        f"peak memory: ours {got['ours_peak_mib']:.0f} MiB, PyTorch {got['peer_peak_mib']:.0f} MiB\n"
        f"compiled: {got['training_programs']} training program, {got['compilations']} programs in all, "
        f"{got['compile_s']:.1f} s\n"
        "share of time: " + ", ".join(f"{name} {100 * s:.1f} %" for name, s in got["shares"].items())
    )


if __name__ == "__main__":
    main()
