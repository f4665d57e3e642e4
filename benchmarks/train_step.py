"""One training step against PyTorch.

python -m benchmarks.train_step --model lenet5 --batch 60 --replicates 2 [--json]
"""

import argparse
import json
from typing import Any, get_args

import jax
import numpy as np

from benchmarks import measure
from lthjax import batches, config, data, durations, models, optim, prune, rng
from lthjax.devices import replicate
from lthjax.measures import timing
from lthjax.training.job import Job
from lthjax.training.probe import prepared_segment
from lthjax.training.trainer import Trainer, assemble


def run(
    model: str, batch: int, replicates: int, steps: int, count: int, precision: config.Precision = "float32"
) -> dict[str, Any]:
    """Measures both sides.

    Args:
        model: one of `measure.MODELS`.
        batch: images in a batch.
        replicates: number trained together by us, one after another by the peer.
        steps: steps per measurement.
        count: number of pairs.
        precision: our precision; the peer's products are float32.
    """
    from benchmarks import peer

    trainer, built, dataset = trainer_of(model, batch, replicates, steps, precision)
    split, lengths = trainer.splits[0], trainer.lengths
    order = batches.order(split.train, lengths, batch, 0, 0, 0, steps)
    variables = built.init(rng.stream(0, "init"))
    mask = prune.magnitude(variables.params, prune.ones(variables.params), 0.5)
    segment = prepared_segment(trainer, Job(0, 0, 0, steps, variables, mask))
    images, labels, device = dataset.train_images, dataset.train_labels, peer.device()
    loop = peer.Loop(model, images, labels, batch, 1.2e-3, split.mean, split.std, device)
    # The peer trains replicates one after another, so timing one of them is enough.
    timed = timing.pairs(lambda: jax.block_until_ready(segment()), lambda: loop.train(order), count)
    ours = 1000 * timed.ours / steps / trainer.width
    rate = measure.step_gflop(built, batch) / (ours / 1000)
    peak = measure.matmul_peak()
    return {
        "model": model,
        "batch": batch,
        "replicates": trainer.width,
        "precision": precision,
        "device": jax.local_devices()[0].device_kind,
        "ours_ms": ours,
        "peer_ms": 1000 * timed.peer / steps,
        "ratio": timed.ratio * trainer.width,
        "spread": [bound * trainer.width for bound in timed.spread],
        "gflops": rate,
        "peak_gflops": peak,
        "share_of_peak": rate / peak,
    }


def trainer_of(
    model: str, batch: int, replicates: int, steps: int, precision: config.Precision = "float32"
) -> tuple[Trainer, models.Model, data.Dataset]:
    """Programs for so many replicates together, in segments of so many steps, on random images."""
    dataset = images(model)
    study = config.Study(model=model, train=config.Train(steps=steps, batch=batch, eval_every=steps))
    lengths = durations.lengths(study, len(dataset.train_images) - 1000)
    built = models.build(model, dataset.shape, dataset.classes)
    mesh = replicate.mesh(replicates)
    trainer = assemble(
        built,
        optim.make(study.optim, lengths),
        lengths,
        dataset,
        {0: data.split(dataset, 0, 1000)},
        batch=batch,
        augment=False,
        precision=precision,
        mesh=mesh,
        width=replicate.width(mesh, replicates, replicates),
    )
    return trainer, built, dataset


def images(model: str) -> data.Dataset:
    """Random images of the model's size; the content does not change the cost of a step."""
    shape = (28, 28, 1) if model.startswith("lenet") else (32, 32, 3)
    generator = np.random.default_rng(0)
    return data.Dataset(
        "random",
        generator.integers(0, 256, (11_000, *shape), np.uint8),
        generator.integers(0, 10, 11_000, np.int32),
        generator.integers(0, 256, (1000, *shape), np.uint8),
        generator.integers(0, 10, 1000, np.int32),
        10,
        "random",
        "a generator",
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--model", choices=measure.MODELS, default="lenet5")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--replicates", type=int, default=None, help="by default one for each device")
    parser.add_argument("--steps", type=int, default=None, help="in a measurement; by default about 2 s")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--precision", choices=get_args(config.Precision), default="float32", help="of our products"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    replicate.use_all_cores()
    replicates = options.replicates or len(jax.local_devices())
    default = {"lenet300": 1000, "lenet5": 150, "small_cnn": 16}.get(options.model, 8)
    got = run(
        options.model, options.batch, replicates, options.steps or default, options.pairs, options.precision
    )
    if options.json:
        print(json.dumps(got))
        return
    low, high = got["spread"]
    print(
        f"{got['model']}, batch {got['batch']}, {got['replicates']} replicates: "
        f"ours {got['ours_ms']:.2f} ms a step and replicate, PyTorch {got['peer_ms']:.2f} ms, "
        f"ratio {got['ratio']:.2f} ({low:.2f} to {high:.2f}); {got['gflops']:.0f} GFLOP/s, "
        f"{100 * got['share_of_peak']:.0f} % of {got['peak_gflops']:.0f} for a matrix product"
    )


if __name__ == "__main__":
    main()
