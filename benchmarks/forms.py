"""Convolutions of replicates trained together: the form in use on this device against grouped ones.

    python -m benchmarks.forms --model lenet5 --batch 60 --replicates 16 [--json]

Under `vmap` over replicates, as on accelerators, the built-in convolution becomes a grouped one. On NVIDIA
GPUs convolutions of few channels are products over windows instead (`lthjax.devices.windows`). For every
convolution of a network it times the value and both gradients of R kernels on R batches, on the device that
JAX finds. ratio = grouped / ours: above 1 the form in use is faster.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp

from benchmarks import measure
from lthjax import config, models
from lthjax.devices import conv
from lthjax.measures import timing

Form = Callable[[jax.Array, jax.Array], jax.Array]


def convolutions(model: str, batch: int) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    """(name, shape of the images, shape of the kernel, padding) of a sequential model's convolutions."""
    side, channels = (28, 1) if model.startswith("lenet") else (32, 3)
    for layer in models.MODELS[model].layers(10):
        if not layer.size:
            return
        yield (
            layer.name,
            (batch, side, side, channels),
            (layer.size, layer.size, channels, layer.features),
            layer.padding,
        )
        side -= layer.size - 1 if layer.padding == "VALID" else 0
        side, channels = side // (2 if layer.pool else 1), layer.features


def forms(images: tuple[int, ...], kernel: tuple[int, ...], padding: str) -> tuple[Form, Form]:
    """(grouped, ours): functions of images [R, N, H, W, C] and kernels [R, kh, kw, C, K]."""
    pads = conv._explicit(padding, images, kernel, 1)
    return (
        jax.vmap(partial(conv._builtin, padding=pads)),
        jax.vmap(partial(conv.conv2d, padding=pads)),
    )


def run(model: str, batch: int, replicates: int, count: int, precision: str) -> list[dict[str, Any]]:
    """Times both forms; one row per convolution."""
    rows = []
    for name, images, kernel, padding in convolutions(model, batch):
        x, w = (
            jax.random.normal(jax.random.key(i), (replicates, *shape))
            for i, shape in enumerate((images, kernel))
        )

        def work(form: Form, x: jax.Array = x, w: jax.Array = w) -> Callable[[], object]:
            both = jax.jit(jax.value_and_grad(lambda x, w: jnp.square(form(x, w)).sum(), (0, 1)))

            def call() -> object:
                with jax.default_matmul_precision(precision):
                    return jax.block_until_ready(both(x, w))

            return call

        grouped, ours = forms(images, kernel, padding)
        timed = timing.pairs(work(ours), work(grouped), count)
        rows.append(
            {
                "layer": name,
                "images": images,
                "kernel": kernel,
                "replicates": replicates,
                "device": jax.local_devices()[0].device_kind,
                "grouped_ms": 1000 * timed.peer,
                "ours_ms": 1000 * timed.ours,
                "ratio": timed.ratio,
                "spread": timed.spread,
            }
        )
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    with_some = [name for name in measure.MODELS if [*convolutions(name, 1)]]
    parser.add_argument("--model", choices=with_some, default="lenet5")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--replicates", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--precision", choices=get_args(config.Precision), default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    for row in run(options.model, options.batch, options.replicates, options.pairs, options.precision):
        if options.json:
            print(json.dumps(row))
            continue
        low, high = row["spread"]
        print(
            f"{options.model}, {row['layer']}, {row['replicates']} replicates on {row['device']}: grouped "
            f"{row['grouped_ms']:.2f} ms, ours {row['ours_ms']:.2f} ms, ratio {row['ratio']:.2f} "
            f"({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
