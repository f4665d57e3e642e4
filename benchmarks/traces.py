"""Which estimate of a trace is better at as many products: Hutchinson's, Hutch++ or XNysTrace.

python -m benchmarks.traces runs/lenet300_mnist-0123abcd --level 10

Repeats each with other random numbers, on trained networks of a run, for the Hessian, the Gauss-Newton matrix
and the empirical Fisher inside the mask. A line each: the mean of every estimate, and its standard deviation
over the repeats; XNysTrace only where no eigenvalue is negative.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from analysis import open_run
from lthjax import settings
from lthjax.imp import Cell
from lthjax.measures import gauss_newton, hessian, landscape, programs, traces
from lthjax.measures.hessian import Operator

_PRODUCTS, _REPEATS, _IMAGES = 33, 16, 500


def spread(on: Callable[[], Operator], key: jax.Array) -> list[tuple[float, float]]:
    """(mean, standard deviation over the repeats) of Hutchinson's estimate, Hutch++ and XNysTrace."""
    keys, found = jax.random.split(key, _REPEATS), []
    known = (traces.nystrom_trace,) if on().semidefinite else ()
    for estimate in (hessian.trace, traces.deflated_trace, *known):
        total = jax.jit(lambda key, estimate=estimate: estimate(on(), key, _PRODUCTS).total)
        values = np.array([float(total(key)) for key in keys])
        found.append((float(values.mean()), float(values.std(ddof=1))))
    return found


@settings.pinned()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--level", type=int, required=True)
    parser.add_argument("--data-dir", default="data")
    asked = parser.parse_args(arguments)
    run = open_run(asked.run)
    tickets = run.tickets()
    seed = tickets.seeds(asked.level)[0]
    prepared = run.prepared((seed,), asked.data_dir)
    shown = programs.images(prepared.dataset, prepared.study.data.validation, seed, _IMAGES)
    train = landscape.chunks(*shown["train"], 50)
    print("arm      matrix          Hutchinson            Hutch++               XNysTrace")
    for arm in ("ticket", "reinit", "random"):
        cell = Cell(seed, tickets.chain, asked.level, arm)
        if cell not in run.results:
            continue
        (params, stats), mask = run.variables(cell), run.mask(cell)

        def apply(params: Any, images: jax.Array, stats: Any = stats) -> jax.Array:
            return prepared.model.apply(params, stats, images, False)[0]

        of = params, mask, train
        made: dict[str, Callable[[], Operator]] = {
            "Hessian": partial(hessian.operator, landscape.cross_entropy(apply), *of),
            "Gauss-Newton": partial(gauss_newton.ggn, apply, *of),
            "Fisher": partial(gauss_newton.empirical_fisher, apply, *of),
        }
        for name, on in made.items():
            said = [f"{mean:9.4g} ± {error:<8.2g}" for mean, error in spread(on, jax.random.key(1))]
            print(f"{arm:8} {name:14}{'  '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
