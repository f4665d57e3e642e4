"""What the tickets of a run folder save: weights, multiplications, bytes, units, and time as measured.

python -m analysis.savings runs/quickstart-0123abcd
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy.stats import binom

from analysis import cells, extra, page
from analysis.export import export
from analysis.page import Link, Section, Table
from analysis.verdicts import Finding
from benchmarks import measure
from lthjax import cli, config, data, models, prune, settings
from lthjax.arms import ARMS
from lthjax.errors import UserError, shell
from lthjax.imp import DENSE, Cell
from lthjax.measures import savings
from lthjax.measures.savings import Counts, Storage
from lthjax.measures.stats import Outcome
from lthjax.models import Model
from lthjax.record import devices
from lthjax.store import read_study

FILE = "savings.json"
TIMED_DENSITIES = (0.2, 0.1, 0.05)
BATCHES = (1, 256)
VARIANTS = {
    "masked": "dense arrays, the mask applied in every call",
    "compacted": "dense arrays without the units that do nothing",
    "scipy CSR": "dense layers by scipy, convolutions dense by JAX",
    "JAX BCSR": "dense layers by jax.experimental.sparse, convolutions dense",
    "JAX BCOO": "dense layers by jax.experimental.sparse, convolutions dense",
}
# In float32, of the largest logit.
_TOLERANCE = 1e-5
# A product with BCOO holds one number for every survivor and image.
_MOST_BYTES = 2**30
_SAMPLE_SECONDS, _PAIR_SECONDS = 0.01, 4.0
# The fewest with which the interval of a median can reach 95 % are 6.
_PAIRS, _QUICK_PAIRS = 15, 6

# Compiled once a shape, whatever the level.
_forward = jax.jit(savings.forward, static_argnums=0)
_masked = jax.jit(prune.apply)


@partial(jax.jit, static_argnums=0)
def _masked_forward(layers: tuple[models.Layer, ...], params: Any, mask: Any, images: jax.Array) -> jax.Array:
    return savings.forward(layers, prune.apply(params, mask), images)


@partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: Any, images: jax.Array) -> jax.Array:
    return model.apply(params, {}, images, False)[0]


class Timing(NamedTuple):
    """A forward pass against the dense one, timed in turn.

    Attributes:
        batch: images.
        variant: a key of `VARIANTS`.
        seconds: median of one call; None where it was not timed.
        dense_seconds: median of the dense one.
        ratio: median over the pairs of dense / variant; below 1 the variant is slower.
        low, high: its interval, as `median_interval` says.
        pairs: how many.
        note: why it was not timed, or "".
    """

    batch: int
    variant: str
    seconds: float | None
    dense_seconds: float | None
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int
    note: str


class Level(NamedTuple):
    """What a level's ticket saves.

    Attributes:
        seed, chain, level, arm: which cell.
        density: weights left / prunable weights.
        counts: of the ticket, as it is masked.
        storage: bytes of its weights by format.
        file_bytes: size of the file that `analysis.export` writes of it: dense arrays, the mask as bits,
            and the weights that training started from.
        widths: layer -> units after compaction.
        compacted: counts of the compacted network.
        deviation: largest difference of the compacted network's logits from the ticket's over the test
            set, in float32, divided by the largest logit.
        steps: of training, all rounds up to this ticket.
        trainings: the same in dense trainings.
        device: what timings were taken on.
        timings: empty where the level was not timed.
    """

    seed: int
    chain: str
    level: int
    arm: str
    density: float
    counts: Counts
    storage: Storage
    file_bytes: int
    widths: dict[str, int]
    compacted: Counts
    deviation: float
    steps: int
    trainings: float
    device: str
    timings: tuple[Timing, ...]


def load(run: str | Path) -> list[Level]:
    """The rows of a run folder's savings.json, by level.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(run) / FILE
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; make it by {_command(run)}.")
    try:
        return [_level_of(fields) for fields in json.loads(extra.read_text(path))["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); make it again by {_command(run)}.") from error


def _command(run: str | Path) -> str:
    return shell("python", "-m", "analysis.savings", run)


def write(run: str | Path, rows: Sequence[Level]) -> Path:
    """Writes a run folder's savings.json, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(run) / FILE
    text = json.dumps({"rows": [_fields(row) for row in rows]}, indent=1) + "\n"
    try:
        extra.write_tables(path.parent, {FILE: text})
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror}).") from error
    return path


@settings.pinned()
def measured(
    run: str | Path,
    *,
    seed: int | None = None,
    chain: str | None = None,
    levels: Sequence[int] = (),
    quick: bool = False,
    data_dir: str | Path = "data",
    tell: Callable[[str], None] = lambda text: None,
) -> list[Level]:
    """What the tickets of one seed and chain save.

    Args:
        run: the run folder.
        seed: which; by default the first.
        chain: which; by default the one rewound to the earliest step.
        levels: which; none named means all that are done. 0 is the dense network.
        quick: whether to time the sparsest level only, in fewer pairs.
        data_dir: where the study's images are.
        tell: is told how it is getting on.

    Returns:
        A row a level. Timed are the levels next to 20, 10 and 5 % of the weights, and the sparsest.

    Raises:
        UserError: there is no such cell, the network is not sequential, or the images are not there.
        RuntimeError: a compacted network computes something else than its ticket.
    """
    run = Path(run)
    about = read_study(run)
    chosen = choose(cells.load(run), run, seed, chain, levels)
    study = config.from_dict(about["config"])
    model = models.build(study.model, tuple(about["data"]["shape"]), about["data"]["classes"])
    if not model.layers:
        raise UserError(
            f"{run}: its model {study.model!r} is not sequential; what it saves is not worked out."
        )
    images = _test_images(about, study, chosen[0].seed, data_dir)
    timed = timed_levels({row.level: row.density for row in chosen}, quick)
    total = about["lengths"]["total"]
    rows = []
    for row in chosen:
        tell(f"level {row.level}, {100 * row.density:.1f} % of the weights")
        ticket, size = _exported(run, Cell(row.seed, row.chain, row.level, row.arm, row.repeat))
        start = 0 if row.level == 0 else _start(row.chain, row.arm)
        steps = savings.training_steps(total, start, row.level)
        small = savings.compact(model.layers, ticket.params, ticket.mask)
        rows.append(
            Level(
                row.seed,
                row.chain,
                row.level,
                row.arm,
                row.density,
                savings.counts(model.layers, ticket.params, ticket.mask, model.input_shape),
                savings.storage(ticket.mask),
                size,
                {layer.name: layer.features for layer in small.layers},
                savings.counts(small.layers, small.params, small.mask, model.input_shape),
                _deviation(model, ticket, small, images),
                steps,
                steps / total,
                devices(),
                timings(model, ticket, small, images, _QUICK_PAIRS if quick else _PAIRS)
                if row.level in timed
                else (),
            )
        )
    return rows


def choose(
    rows: Sequence[cells.Row],
    run: Path,
    seed: int | None = None,
    chain: str | None = None,
    levels: Sequence[int] = (),
) -> list[cells.Row]:
    """The dense network and the leaders of a seed's chain, by level; arguments as for `measured`.

    Raises:
        UserError: there is no such cell.
    """
    done = [row for row in rows if row.status == "done" and row.repeat == 1]
    if not done:
        raise UserError(f"{run}: there is no finished cell in it yet; run the study first.")
    seeds = sorted({row.seed for row in done})
    if seed is not None and seed not in seeds:
        raise UserError(f"--seed: {seed} is not in the run; it has {seeds}.")
    of_seed = [row for row in done if row.seed == (seeds[0] if seed is None else seed)]
    chains = cells.chains(of_seed)
    if chain is not None and chain not in chains:
        raise UserError(f"--chain: {chain!r} is not in the run; it has {', '.join(chains) or 'none'}.")
    chain = chain or next(iter(chains), DENSE)
    found = cells.select(of_seed, chain=DENSE) + cells.select(of_seed, chain=chain, arm=_leader(chain))
    found = sorted(set(found), key=lambda row: row.level)
    there = [row.level for row in found]
    absent = sorted(set(levels) - set(there))
    if absent:
        raise UserError(
            f"--levels: {absent} are not done in seed {of_seed[0].seed}, {chain}; it has {there}."
        )
    return [row for row in found if not levels or row.level in levels]


def timed_levels(densities: dict[int, float], quick: bool = False) -> set[int]:
    """The levels nearest to `TIMED_DENSITIES` on a logarithmic scale, and the sparsest.

    Args:
        densities: level -> density; level 0, the dense network, is never timed against itself.
        quick: whether to take the sparsest only.
    """
    pruned = {level: density for level, density in densities.items() if level and density > 0}
    if not pruned:
        return set()
    sparsest = min(pruned, key=lambda level: (pruned[level], level))
    if quick:
        return {sparsest}
    return {sparsest} | {cells.nearest(pruned, density) for density in TIMED_DENSITIES}


def timings(
    model: Model, ticket: prune.Ticket, small: savings.Compacted, images: jax.Array, pairs: int
) -> tuple[Timing, ...]:
    """Every variant against the dense forward pass, at every batch size, timed in turn.

    Args:
        model: a sequential network.
        ticket: its weights and mask.
        small: the same compacted.
        images: float [N, H, W, C]; repeated where there are too few.
        pairs: of samples; fewer, down to 6, where a pair takes long.

    Raises:
        RuntimeError: a variant computes something else than the dense network.
    """
    layers = model.layers
    params = _masked(ticket.params, ticket.mask)
    survivors = max(int(np.count_nonzero(params[x.name]["kernel"])) for x in layers if not x.size)
    mask, narrower = jax.device_put(ticket.mask), jax.device_put(small.params)
    bcsr, bcoo = (savings.sparsified(layers, params, kind) for kind in ("BCSR", "BCOO"))
    variants: dict[str, Callable[[jax.Array], Any]] = {
        "masked": lambda x: _masked_forward(layers, params, mask, x),
        "compacted": lambda x: _forward(small.layers, narrower, x),
        "scipy CSR": savings.scipy_forward(layers, params),
        "JAX BCSR": lambda x: _forward(layers, bcsr, x),
        "JAX BCOO": lambda x: _forward(layers, bcoo, x),
    }
    made = []
    for batch in BATCHES:
        x = jnp.resize(images, (batch, *images.shape[1:]))
        expected = np.asarray(_forward(layers, params, x))
        for name, variant in variants.items():
            needed = 4 * survivors * batch
            if name == "JAX BCOO" and needed > _MOST_BYTES:
                note = f"not timed: needs {needed / 2**30:.1f} GiB"
                made.append(Timing(batch, name, None, None, None, None, None, 0, note))
                continue
            got = np.asarray(variant(x))
            difference = float(np.abs(got - expected).max(initial=0))
            if not difference <= 10 * _TOLERANCE * max(np.abs(expected).max(), 1e-30):
                raise RuntimeError(f"{name}: its logits differ from the dense network's by {difference:g}.")
            made.append(_timing(batch, name, variant, lambda x: _forward(layers, params, x), x, pairs))
    return tuple(made)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median by the sign test: two of the values, whatever they are distributed like.

    Args:
        values: at least 6.
    """
    rank = int(binom.ppf(0.025, len(values), 0.5))
    if rank < 1:
        raise ValueError(f"values: {len(values)} are too few; give 6 or more.")
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]


def _timing(
    batch: int,
    name: str,
    variant: Callable[[jax.Array], Any],
    dense: Callable[[jax.Array], Any],
    x: jax.Array,
    pairs: int,
) -> Timing:
    (calls, ours_s), (dense_calls, dense_s) = (_calls(forward, x) for forward in (variant, dense))
    ours, theirs = _sample(variant, x, calls), _sample(dense, x, dense_calls)
    count = max(min(pairs, int(_PAIR_SECONDS / (ours_s + dense_s))), _QUICK_PAIRS)
    got = measure.pairs(ours, theirs, count)
    a_call = calls / dense_calls
    low, high = median_interval(got.ratios)
    return Timing(
        batch,
        name,
        got.ours / calls,
        got.peer / dense_calls,
        got.ratio * a_call,
        low * a_call,
        high * a_call,
        count,
        "",
    )


def _sample(forward: Callable[[jax.Array], Any], x: jax.Array, calls: int) -> Callable[[], None]:
    """So many calls, each waited for."""

    def sample() -> None:
        for _ in range(calls):
            jax.block_until_ready(forward(x))

    return sample


def _calls(forward: Callable[[jax.Array], Any], x: jax.Array) -> tuple[int, float]:
    """How many calls fill a sample, and its seconds; the first call, which may compile, does not count."""
    once = _sample(forward, x, 1)
    once()
    shortest = measure.seconds(once)
    if shortest < _SAMPLE_SECONDS:
        shortest = max(min(shortest, *(measure.seconds(once) for _ in range(2))), 1e-9)
    calls = max(1, min(1000, math.ceil(_SAMPLE_SECONDS / shortest)))
    return calls, calls * shortest


def _exported(run: Path, cell: Cell) -> tuple[prune.Ticket, int]:
    """A cell as `analysis.export` writes it, and the file's size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = export(run, cell, Path(folder) / "ticket.safetensors")
        return prune.load(path), path.stat().st_size


def _test_images(about: dict[str, Any], study: config.Study, seed: int, data_dir: str | Path) -> jax.Array:
    """The test images as the seed's networks saw them, float32 [N, H, W, C]."""
    dataset = data.load(study.data.name, data_dir)
    if dataset.digest != about["data"]["digest"]:
        raise UserError(
            f"--data-dir: {study.data.name!r} in {str(data_dir)!r} is not what the run was trained on "
            f"(content hash {dataset.digest}, not {about['data']['digest']}); name the folder that has it."
        )
    split = data.split(dataset, seed, study.data.validation)
    index = jnp.arange(len(dataset.test_images))
    return data.gather(
        jnp.asarray(dataset.test_images), index, jnp.asarray(split.mean), jnp.asarray(split.std)
    )


def _deviation(
    model: Model, ticket: prune.Ticket, small: savings.Compacted, images: jax.Array, batch: int = 500
) -> float:
    """Largest difference of logits over the images, divided by the largest logit."""
    params = _masked(ticket.params, ticket.mask)
    difference = largest = np.float32(0)
    for first in range(0, len(images), batch):
        x = images[first : first + batch]
        expected = np.asarray(_logits(model, params, x))
        apart = np.abs(np.asarray(_forward(small.layers, small.params, x)) - expected).max()
        # np.maximum keeps NaN.
        difference, largest = np.maximum(difference, apart), np.maximum(largest, np.abs(expected).max())
    relative = float(difference / largest) if difference else 0.0
    if not relative <= _TOLERANCE:
        raise RuntimeError(
            f"the compacted network's logits differ from the ticket's by {relative:g} of the largest one, "
            f"more than the {_TOLERANCE:g} that rounding explains."
        )
    return relative


def _leader(chain: str) -> str:
    name = chain.rpartition("-")[0] or chain
    return "ticket" if name == "rewind" else name


def _start(chain: str, arm: str) -> int:
    """The step at which a chain's rounds start training."""
    return int(chain.rpartition("-")[2]) if ARMS[arm].start == "rewind" else 0


def _fields(row: Level) -> dict[str, Any]:
    return {
        **row._asdict(),
        **{name: getattr(row, name)._asdict() for name in ("counts", "storage", "compacted")},
        "timings": [timing._asdict() for timing in row.timings],
    }


def _level_of(fields: dict[str, Any]) -> Level:
    made = {
        "counts": Counts(**fields["counts"]),
        "storage": Storage(**fields["storage"]),
        "compacted": Counts(**fields["compacted"]),
        "timings": tuple(Timing(**timing) for timing in fields["timings"]),
    }
    return Level(**{**fields, **made})


def tables(rows: Sequence[Level]) -> list[Table]:
    """The rows for the eye: counts and training cost, bytes, compaction, and times."""
    first = rows[-1]
    weights = Table(
        f"Weights, MACs for one image, and what the ticket cost to find (seed {first.seed}, {first.chain})",
        ["level", "weights left", "%", "fewer weights", "MACs", "masked", "fewer MACs", "steps trained",
         "dense trainings"],
        [
            [
                str(row.level), f"{row.counts.weights_left:,}", f"{100 * row.density:.1f}",
                _times(row.counts.weights, row.counts.weights_left), f"{row.counts.macs:,}",
                f"{row.counts.macs_left:,}", _times(row.counts.macs, row.counts.macs_left),
                f"{row.steps:,}", f"{row.trainings:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    stored = Table(
        "Bytes of the weights, float32, and how much smaller than dense; the exported file is not smaller, "
        "it holds dense arrays, the mask and the initial weights",
        ["level", "dense", "ideal", "bitmask", "CSR-16", "CSR-32", "COO", "exported file"],
        [
            [
                str(row.level),
                f"{row.storage.dense:,}",
                *(f"{part:,} ({_times(row.storage.dense, part)})" for part in row.storage[1:]),
                f"{row.file_bytes:,}",
            ]
            for row in rows
        ],
    )
    units = Table(
        "Exact compaction: the units that do nothing taken out, the rest as dense arrays",
        ["level", "units left", "weights", "fewer", "MACs", "fewer", "largest deviation of a logit"],
        [
            [
                str(row.level),
                " ".join(f"{name} {width}" for name, width in row.widths.items()),
                f"{row.compacted.weights:,}",
                _times(row.counts.weights, row.compacted.weights),
                f"{row.compacted.macs:,}",
                _times(row.counts.macs, row.compacted.macs),
                f"{row.deviation:.1e}",
            ]
            for row in rows
        ],
        2,
    )
    timed = [row for row in rows if row.timings]
    return [weights, stored, units, *([_times_table(timed)] if timed else [])]


def _times_table(rows: Sequence[Level]) -> Table:
    lines = []
    for row in rows:
        for batch in sorted({timing.batch for timing in row.timings}):
            of_batch = [timing for timing in row.timings if timing.batch == batch]
            dense = [timing.dense_seconds for timing in of_batch if timing.dense_seconds is not None]
            place = [str(row.level), f"{100 * row.density:.1f}", str(batch)]
            lines.append([*place, "dense", *_rate(float(np.median(dense)) if dense else None, batch), ""])
            lines += [
                [*place, timing.variant, *_rate(timing.seconds, batch), words(timing)] for timing in of_batch
            ]
    return Table(
        f"Forward pass, each timed in turn with the dense one, on {rows[0].device}",
        [
            "level",
            "%",
            "batch",
            "network",
            "ms a call",
            "images / s",
            "against dense: median (95 % interval)",
        ],
        lines,
    )


_REMARK = (
    "Fewer multiplications are not less time. A network is called faster or slower only where the interval "
    "of the median ratio leaves out 1. "
    + "; ".join(f"{name}: {what}" for name, what in VARIANTS.items())
    + "."
)


def written(run: Path) -> list[Path]:
    """The files that say that there is something to report."""
    return [run / FILE] if (run / FILE).is_file() else []


def section(run: Path) -> Section | None:
    """The report's section, where the run has savings.json."""
    if not (run / FILE).is_file():
        return None
    return Section("savings", "Savings", tables=tables(load(run)), remark=_REMARK)


_FEWER = "5–10× fewer multiplications and bytes"


def _near_a_tenth(rows: Sequence[Level]) -> Level:
    level = cells.nearest({row.level: row.density for row in rows}, 0.1)
    return next(row for row in rows if row.level == level)


def _counted(rows: Sequence[Level]) -> Finding:
    """Counts are exact: the claim holds or does not."""
    row = _near_a_tenth(rows)
    macs = row.counts.macs / max(row.counts.macs_left, 1)
    size = row.storage.dense / row.storage.bitmask
    outcome: Outcome = "supported" if min(macs, size) >= 5 else "refuted"
    said = (
        f"at {100 * row.density:.1f} % {macs:.1f}× fewer multiplications if zeros were skipped, {size:.1f}× "
        f"fewer bytes as bitmask, {_times(row.counts.macs, row.compacted.macs)} fewer multiplications by "
        "compaction"
    )
    return Finding(f"{_FEWER} at {100 * row.density:.0f} %", outcome, said, 1, Link("savings", "#savings"))


def findings(run: Path) -> list[Finding]:
    """What the level nearest to 10 % of the weights saves in multiplications, bytes, and time at batch 1."""
    # A network without weights is no ticket, whatever it saves.
    rows = [row for row in load(run) if row.level and row.density] if (run / FILE).is_file() else []
    command = _command(run)
    found = [_counted(rows) if rows else Finding(_FEWER, "not tested", "no counts", 0, command)]
    timed = [row for row in rows if row.timings]
    if not timed:
        claim = "Tickets compute faster than the dense network"
        return [*found, Finding(claim, "not tested", "no times", 0, command)]
    row = _near_a_tenth(timed)
    for timing in row.timings:
        if timing.batch != 1 or timing.ratio is None or timing.low is None or timing.high is None:
            continue
        outcome: Outcome = "supported" if timing.low > 1 else "refuted" if timing.high < 1 else "undecided"
        claim = f"A ticket at {100 * row.density:.1f} % computes one image faster, {timing.variant}"
        pairs = f"{words(timing)}, {timing.pairs} pairs"
        found.append(Finding(claim, outcome, pairs, 1, Link("savings", "#savings")))
    return found


def _rate(seconds: float | None, batch: int) -> tuple[str, str]:
    return ("–", "–") if seconds is None else (f"{1000 * seconds:.3g}", f"{batch / seconds:,.0f}")


def words(timing: Timing) -> str:
    """A timing in words: faster or slower than dense only where the interval leaves out 1."""
    if timing.ratio is None or timing.low is None or timing.high is None:
        return timing.note
    if timing.low > 1:
        return f"{timing.ratio:.2f}× faster ({timing.low:.2f}–{timing.high:.2f})"
    if timing.high < 1:
        return f"{1 / timing.ratio:.2f}× slower ({1 / timing.high:.2f}–{1 / timing.low:.2f})"
    return f"no clear difference: {timing.ratio:.2f}× its speed ({timing.low:.2f}–{timing.high:.2f})"


def _times(dense: int, left: int) -> str:
    return f"{dense / left:.1f}×" if left else "∞"


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.savings",
        description=f"{__doc__.splitlines()[0]} Prints tables and writes {FILE} into the run folder.",
        epilog="Counts are given for every level. Forward passes are timed at the levels nearest to 20, 10 "
        "and 5 % of the weights and at the sparsest, in turn with the dense network: masked, compacted, "
        "scipy's CSR, and BCSR and BCOO of jax.experimental.sparse, at batch 1 and 256.",
    )
    parser.add_argument("run", help="a run folder, for example runs/quickstart-0123abcd")
    parser.add_argument("--seed", type=int, help="by default the first")
    parser.add_argument("--chain", help="by default the one rewound to the earliest step")
    parser.add_argument(
        "--levels", type=int, nargs="+", default=[], help="by default all; 0 is the dense network"
    )
    parser.add_argument("--quick", action="store_true", help="time the sparsest level only, in fewer pairs")
    parser.add_argument("--data-dir", default="data", help="where the study's images are (default: data)")
    options = parser.parse_args(arguments)
    rows = measured(
        options.run,
        seed=options.seed,
        chain=options.chain,
        levels=options.levels,
        quick=options.quick,
        data_dir=options.data_dir,
        tell=lambda text: print(text, file=sys.stderr),
    )
    path = write(options.run, rows)
    # Piped, the tables are not squeezed into the 80 columns of no terminal.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(rows):
        console.print(page.rich_table(table))
    console.print(_REMARK)
    print(path)


if __name__ == "__main__":
    cli.run(main)
