"""The cost of a study's own programs on TPU, estimated by the TPU compiler. No TPU is needed.

    pip install --editable '.[lab,tpu]'
    python -m benchmarks.tpu --model lenet5 --replicates 16 --topology v5e:1x1 [--json]

It compiles the training segment, the evaluation and the next mask, and prints the seconds that took, the
estimated cycles, the memory, and the dearest instructions with the line of this project that they come from.
Cycles are the compiler's estimate, not a measured time. x86-64 Linux only; one process at a time, because the
compiler holds a lock.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from benchmarks import hlo, measure
from lthjax import config, data, durations, imp, models, optim, prune, rng, settings
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.training.step import Feed, programs
from lthjax.training.trainer import _EVALUATION_BATCH_ELSEWHERE

PyTree = Any
TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v6e:1x1", "v6e:2x2")
PROGRAMS = ("segment", "evaluate", "next_mask")
_ROOT = Path(__file__).resolve().parents[1]
_TOP = 10


class Chip(NamedTuple):
    """Numbers of a chip, from JAX's table (`jax.experimental.pallas.tpu.get_tpu_info`).

    Attributes:
        bandwidth: bytes a second between memory and chip.
        peak: products of two bfloat16 a second, times two.
        clock: cycles a second.
        room: bytes of the chip's own memory.
    """

    bandwidth: float
    peak: float
    clock: float
    room: int


# The clock is the peak over the operations of a cycle, 2^17 on v5e and 2^19 on v6e. The compiler's estimate
# of a float32 product of 4096 x 4096 matrices reaches 98 % and 84 % of these numbers.
CHIPS = {
    "v5e": Chip(820e9, 197e12, 1.50e9, 128 << 20),
    "v6e": Chip(1640e9, 920e12, 1.75e9, 128 << 20),
}
# A float32 product takes six of bfloat16.
_PASSES = {"float32": 6, "tensorfloat32": 3, "bfloat16": 1}


def devices(topology: str) -> list[Any]:
    """The devices of a topology, to compile for.

    Args:
        topology: one of `TOPOLOGIES`.

    Raises:
        UserError: the compiler cannot be loaded.
    """
    # Without these, libtpu asks a server of Google's cloud which machine it is on, and JAX looks for a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    one = {"chips_per_host_bounds": [1, 1, 1]} if topology.endswith("1x1") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **one).devices)
    except Exception as error:  # the plugin raises several types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--topology {topology}: the TPU compiler (libtpu) cannot be used here ({lines[0][:200]}); on "
            "x86-64 Linux install it with pip install 'lthjax[tpu]', and run one process at a time."
        ) from error


class Study(NamedTuple):
    """The programs of a study for a topology, with the shapes of their arguments.

    Attributes:
        model: its network.
        mesh: the devices.
        replicates: number trained together on all of them.
        lowered: program -> a function that lowers it.
    """

    model: models.Model
    mesh: Mesh
    replicates: int
    lowered: dict[str, Any]


def study(
    name: str, replicates: int, batch: int, chips: list[Any], precision: config.Precision = "float32"
) -> Study:
    """The programs that `lthjax.study` would run on these devices, on MNIST or CIFAR-10.

    Args:
        name: one of `models.MODELS`.
        replicates: number trained together; rounded up to a multiple of the devices.
        batch: images in a batch.
        chips: from `devices`.
        precision: of the factors of products.
    """
    shape, train_count, test_count = _data(name)
    asked = config.Study(model=name, train=config.Train(batch=batch, precision=precision))
    lengths = durations.lengths(asked, train_count - asked.data.validation)
    model, optimiser = models.build(name, shape, 10), optim.make(asked.optim, lengths)
    mesh = jax.make_mesh((len(chips),), (replicate._AXIS,), axis_types=(AxisType.Auto,), devices=chips)
    width = replicate.width(mesh, replicates, replicates)
    compiled = programs(model, optimiser, augment=asked.data.augment, precision=precision, mesh=mesh)

    def on(tree: PyTree, *leading: int) -> PyTree:
        sharding = NamedSharding(mesh, PartitionSpec(replicate._AXIS) if leading else PartitionSpec())
        return _shapes(tree, sharding, *leading)

    def ints(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, jnp.int32)

    # One image of each kind tells how a data set lies on the devices.
    image, label = np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32)
    sample = data.stack(
        data.Dataset("sample", image, label, image, label, 10, "", ""), flat=not replicate.one_by_one(mesh)
    )
    count = train_count + test_count
    images = on(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), sample))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    mask = jax.eval_shape(prune.ones, variables.params)
    state = jax.eval_shape(compiled.init, variables, mask)
    floats = jax.ShapeDtypeStruct(shape[2:], jnp.float32)
    key, held = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32)
    feed = Feed(floats, floats, key, held, key)  # type: ignore[arg-type]
    each = on((mask, feed, ints(lengths.evaluate, batch)), width)
    rows = -(-asked.data.validation // _EVALUATION_BATCH_ELSEWHERE)
    rows += -(-test_count // _EVALUATION_BATCH_ELSEWHERE)
    seen = on((feed, ints(rows, _EVALUATION_BATCH_ELSEWHERE)), width)

    alone = SingleDeviceSharding(chips[0])
    parent = imp.Leader(mask, variables.params)
    first = (jax.ShapeDtypeStruct((batch, *shape), jnp.float32), ints(batch))
    going = jnp.asarray(imp.removals(asked, 1, prune.ones(_zeros(variables.params))))
    key = jax.eval_shape(lambda: rng.stream(0, "criterion", 1))
    of_mask = _shapes((key, variables, parent, first, going), alone)
    how = (asked.prune.criterion, asked.prune.scope)
    return Study(
        model,
        mesh,
        width,
        {
            "segment": lambda: compiled.segment.lower(  # type: ignore[attr-defined]
                (images, on(ints()), on(ints())), on(state, width), each
            ),
            "evaluate": lambda: compiled.evaluate.lower(  # type: ignore[attr-defined]
                (images,), on(variables, width), seen
            ),
            "next_mask": lambda: imp.next_mask.lower(how, model, *of_mask),
        },
    )


def run(built: Study, program: str, dump: Path | None = None) -> dict[str, Any]:
    """Compiles a program and reads its cost.

    Args:
        built: from `study`.
        program: one of `PROGRAMS`.
        dump: a file for the compiled program's text, or None.

    Returns:
        Seconds, cycles (of one step and replicate for the segment, else of one execution and replicate),
        bytes, and the dearest instructions.
    """
    with settings.pinned():
        began = time.perf_counter()
        lowered = built.lowered[program]()
        traced, before = time.perf_counter(), time.process_time()
        compiled = lowered.compile()
        done, after = time.perf_counter(), time.process_time()
    text = compiled.as_text() or ""
    if dump is not None:
        dump.write_text(text, encoding="utf-8")
    read = hlo.parse(text)
    computation = read.loop().calls[0] if program == "segment" else read.entry
    local = 1 if program == "next_mask" else built.replicates // built.mesh.devices.size
    sizes = compiled.memory_analysis()
    outside = 0
    if program == "segment":
        outside = read.cycles(read.entry) - read.cycles(computation)
    return {
        "program": program,
        "trace_s": traced - began,
        "compile_s": done - traced,
        "compile_cpu_s": after - before,
        "cycles": read.cycles(computation) / local,
        "cycles_outside": outside,
        "arguments_bytes": sizes.argument_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
        "largest_copy_bytes": max(
            (i.bytes for i in read.computations[read.entry] if i.opcode in ("copy", "fusion")), default=0
        ),
        "dearest": dearest(read, computation, local),
    }


def dearest(read: hlo.Program, computation: str, local: int, count: int = _TOP) -> list[dict[str, Any]]:
    """The instructions that cost most, cycles divided by the replicates of a device."""
    executed = [(i.cycles * times, i) for i, times in read.executed(computation)]
    executed.sort(key=lambda pair: -pair[0])
    return [
        {"cycles": cycles / local, "name": i.name, "result": i.result, "line": line_of_ours(i)}
        for cycles, i in executed[:count]
        if cycles
    ]


def line_of_ours(instruction: hlo.Instruction) -> str:
    """`lthjax/devices/conv.py:120`: the innermost line of this project that an instruction comes from.

    The wrapper that rounds factors is skipped, since it calls all products.
    """
    for file, line in instruction.source:
        path = Path(file)
        if path.is_relative_to(_ROOT / "lthjax") and path.name != "precision.py":
            return f"{path.relative_to(_ROOT)}:{line}"
    return ""


def limit(built: Study, batch: int, precision: str, chip: Chip) -> dict[str, float]:
    """The fewest cycles that a step of a replicate could take.

    Products: those of the matrix products and convolutions, in as many passes as the precision takes. Bytes:
    the batch is read; parameters and two moments are read and written, and the mask is read, unless those of
    all replicates of a chip fit in its own memory. Activations may stay there.
    """
    gflop = measure.step_gflop(built.model, batch)
    variables = jax.eval_shape(built.model.init, jax.random.key(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    height, width, channels = built.model.input_shape
    local = built.replicates // built.mesh.devices.size
    stays = local * weights * (3 * 4 + 1) <= chip.room
    moved = batch * height * width * channels + (0 if stays else weights * (3 * 2 * 4 + 1))
    products = 1e9 * gflop * _PASSES[precision] / chip.peak * chip.clock
    transfers = moved / chip.bandwidth * chip.clock
    return {"products": products, "bytes": transfers, "limit": max(products, transfers)}


def _data(model: str) -> tuple[tuple[int, int, int], int, int]:
    """(shape of an image, train images, test images) of MNIST or CIFAR-10."""
    return ((28, 28, 1), 60_000, 10_000) if model.startswith("lenet") else ((32, 32, 3), 50_000, 10_000)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def _shapes(tree: PyTree, sharding: Any, *leading: int) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding), tree
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu", description=__doc__)
    parser.add_argument("--model", choices=models.MODELS, default="lenet5")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--replicates", type=int, default=16, help="on all chips together")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=TOPOLOGIES[0])
    parser.add_argument("--precision", choices=get_args(config.Precision), default="float32")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--dump", type=Path, help="a folder for the texts of the compiled programs")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        chips = devices(options.topology)
    except UserError as error:
        raise SystemExit(str(error)) from None
    built = study(options.model, options.replicates, options.batch, chips, options.precision)
    chip = CHIPS[options.topology.split(":")[0]]
    about = {
        "model": options.model,
        "batch": options.batch,
        "replicates": built.replicates,
        "topology": options.topology,
        "precision": options.precision,
    }
    for program in options.programs:
        dump = options.dump and options.dump / f"{options.model}-{options.replicates}-{program}.txt"
        row = about | run(built, program, dump)
        if program == "segment":
            row |= limit(built, options.batch, options.precision, chip)
        print(json.dumps(row) if options.json else _shown(row), flush=True)


def _shown(row: dict[str, Any]) -> str:
    per = {
        "segment": "a step and replicate",
        "evaluate": "a replicate, all images",
        "next_mask": "a replicate",
    }
    lines = [
        f"{row['model']}, batch {row['batch']}, {row['replicates']} replicates, {row['topology']}, "
        f"{row['program']}: {row['cycles']:,.0f} cycles {per[row['program']]}, compiled in "
        f"{row['compile_s']:.1f} s ({row['compile_cpu_s']:.1f} s of CPU), "
        f"{row['arguments_bytes'] / 2**20:,.0f} MiB of arguments, "
        f"{row['temporary_bytes'] / 2**20:,.0f} MiB of temporary memory"
    ]
    if "limit" in row:
        lines.append(
            f"  limit {row['limit']:,.0f} cycles (products {row['products']:,.0f}, bytes "
            f"{row['bytes']:,.0f}), reached {100 * row['limit'] / row['cycles']:.1f} %; outside the loop "
            f"{row['cycles_outside']:,} cycles a segment, largest copy "
            f"{row['largest_copy_bytes'] / 2**20:,.1f} MiB"
        )
    lines += [
        f"  {part['cycles']:>12,.0f}  {part['line']:<28} {part['name']} {part['result'][:70]}"
        for part in row["dearest"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
