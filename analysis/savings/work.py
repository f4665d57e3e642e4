"""Counts what tickets save, compacts them, and times their forward passes."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import data, imp, prune
from lthjax.devices import hardware
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.measures import compaction, savings, timing, wiring
from lthjax.measures.stats import nearest
from lthjax.models import Model, Variables
from lthjax.study import Watch

from .. import page, record, words
from ..export import export
from ..rows import Row, chains, select
from ..run import Run
from .table import FILE, LevelSavings, Timing, to_json

TIMED_DENSITIES = (0.2, 0.1, 0.05)
BATCHES = (1, 256)
# A product with BCOO holds one number for every survivor and image.
_MOST_BYTES = 2**30
_PAIRS = 15
# Compiled once a shape, whatever the level.
_masked = jax.jit(prune.apply)


@dataclass(frozen=True, kw_only=True)
class Options(record.Options):
    """What the tickets of a run save: prints tables and writes savings.json into the run folder.

    Counts are given for every level. Forward passes are timed at the levels nearest to 20, 10 and 5 % of the
    weights and at the sparsest, interleaved with the dense network: masked, compacted, and where layers
    form a plain sequence scipy's CSR, and BCSR and BCOO of jax.experimental.sparse, at batch 1 and 256.
    """

    seed: int | None = None
    """The seed; by default the first."""
    chain: str | None = None
    """The chain; by default the one rewound to the earliest step."""
    levels: tuple[int, ...] = ()
    """Levels; by default all; 0 is the dense network."""
    quick: bool = False
    """Time the sparsest level only, in fewer pairs."""
    data_dir: Path = Path("data")
    """Where the study's images are."""


def work(run: Run, options: Options, watch: Watch) -> Path:
    """Writes RUN/savings.json, a row a level.

    Raises a UserError where a cell or the images are not there, and a RuntimeError where a compacted network
    computes something else than its ticket.
    """
    chosen, model = choose(run, options), run.network()
    dataset = run.dataset(options.data_dir)
    split = data.split(dataset, chosen[0].seed, run.study.data.validation)
    raw, mean, std = map(jnp.asarray, (dataset.test_images, split.mean, split.std))
    images = data.gather(raw, jnp.arange(len(raw)), mean, std)
    timed = timed_levels({row.level: row.density for row in chosen}, options.quick)
    most = timing.FEWEST_PAIRS if options.quick else _PAIRS
    rows = []
    for row in chosen:
        watch.say(f"level {row.level}, {words.share(row.density)} of the weights")
        rows.append(_saved(run, row, model, images, most if row.level in timed else 0))
    page.write_folder(run.path, (), {FILE: to_json(rows)})
    return run.path / FILE


def _saved(run: Run, row: Row, model: Model, images: jax.Array, pairs: int) -> LevelSavings:
    """What a level's ticket saves; 0 pairs: it is not timed.

    Networks from outside the package are neither compacted nor timed.
    """
    (params, stats), mask = run.variables(row.cell), run.mask(row.cell)
    total, shape = run.lengths.total, model.input_shape
    steps = savings.training_steps(total, run.results[row.cell]["start"], row.level)
    told = LevelSavings(
        *row.cell[:4],
        row.density,
        savings.counted(params, mask, lambda p, x: model.apply(p, stats, x, False)[0], shape),
        savings.storage(mask),
        _exported(run, row.cell),
        {},
        None,
        None,
        steps,
        steps / total,
        hardware.described(),
        (),
    )
    forms = _forms(model, Variables(_masked(params, mask), stats), mask)
    if forms is None:
        return told
    return told._replace(
        widths=forms.widths,
        compacted=forms.counts,
        deviation=savings.deviation(forms.whole, forms.variants["compacted"], images),
        timings=timings(forms, images, pairs) if pairs else (),
    )


class Forms(NamedTuple):
    """A ticket's forward pass in every form, and the compacted network's layers and counts.

    Attributes:
        whole: the network's own forward pass.
        dense: the pass that the others are timed against.
        variants: a key of `savings.VARIANTS` -> pass.
        survivors: the most weights left in a layer that is multiplied as a sparse matrix.
        widths: layer -> units of the compacted network.
        counts: of the compacted network.
    """

    whole: savings.Logits
    dense: savings.Logits
    variants: dict[str, savings.Logits]
    survivors: int
    widths: dict[str, int]
    counts: savings.Counts


def _forms(model: Model, variables: Variables, mask: Any) -> Forms | None:
    """The forms of a ticket, pruned weights 0; None for a network from outside the package."""
    params, shape = variables.params, model.input_shape
    if model.layers:
        layers, small = model.layers, savings.compact(model.layers, params, mask)
        counts = savings.counts(small.layers, small.params, small.mask, shape)
        variants = savings.variants(layers, params, mask, small)
        dense = partial(savings.compiled, layers, params)
        survivors = max(int(np.count_nonzero(params[x.name]["kernel"])) for x in layers if not x.size)
        kept = small.kept
    elif wiring.layers(model):
        narrower = compaction.compact(model, variables, mask)
        counts = compaction.counts(model, narrower)
        variants = compaction.variants(model, variables, mask, narrower)
        dense, survivors, kept = partial(compaction.compiled, model, variables), 0, narrower.kept
    else:
        return None
    widths = {name: len(units) for name, units in kept.items()}
    return Forms(partial(_whole, model, variables), dense, variants, survivors, widths, counts)


@partial(jax.jit, static_argnums=0)
def _whole(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    return model.apply(variables.params, variables.stats, images, False)[0]


def choose(run: Run, options: Options) -> list[Row]:
    """The dense network and the leaders of a seed's chain, by level; raises where there is no such cell."""
    done = [row for row in run.finished() if row.status == "done" and row.repeat == 1]
    if not done:
        raise run.lacks("finished cell")
    seeds = sorted({row.seed for row in done})
    seed = seeds[0] if options.seed is None else options.seed
    if seed not in seeds:
        raise UserError(f"--seed: {seed} is not in the run; it has {seeds}.")
    of_seed = [row for row in done if row.seed == seed]
    there = chains(of_seed)
    chain = options.chain or next(iter(there), DENSE)
    if options.chain is not None and chain not in there:
        raise UserError(f"--chain: {chain!r} is not in the run; it has {', '.join(there) or 'none'}.")
    leaders = select(of_seed, chain=chain, arm=imp.leader(chain))
    found = {row.level: row for row in (*select(of_seed, chain=DENSE), *leaders)}
    absent = sorted(set(options.levels) - found.keys())
    if absent:
        raise UserError(f"--levels: {absent} are not done in seed {seed}, {chain}; it has {sorted(found)}.")
    return [found[level] for level in sorted(options.levels or found)]


def timed_levels(densities: dict[int, float], quick: bool = False) -> set[int]:
    """The sparsest level and, unless it is to be quick, those nearest to `TIMED_DENSITIES`.

    Level 0, the dense network, is never timed against itself.
    """
    pruned = {level: density for level, density in densities.items() if level and density > 0}
    if not pruned:
        return set()
    sparsest = min(pruned, key=lambda level: (pruned[level], level))
    return {sparsest, *(nearest(pruned, density) for density in TIMED_DENSITIES if not quick)}


def timings(forms: Forms, images: jax.Array, pairs: int) -> tuple[Timing, ...]:
    """Every variant and the dense forward pass, timed in turn at every batch size.

    `images`, float [N, H, W, C], are repeated where there are too few. Fewer `pairs`, down to 6, where a pair
    takes long. Raises a RuntimeError where a variant computes something else than the dense network.
    """
    made = []
    for batch in BATCHES:
        x = jnp.resize(images, (batch, *images.shape[1:]))
        dense = partial(forms.dense, x)
        expected, needed = dense(), 4 * forms.survivors * batch
        for name, variant in forms.variants.items():
            if name == "JAX BCOO" and needed > _MOST_BYTES:
                made.append(Timing(batch, name, note=f"not timed: needs {needed / 2**30:.1f} GiB"))
                continue
            savings.check_logits(name, variant(x), expected)
            made.append(Timing(batch, name, *timing.calls(partial(variant, x), dense, pairs)))
    return tuple(made)


def _exported(run: Run, cell: Cell) -> int:
    """The size in bytes of the file that `analysis.export` writes of a cell."""
    with tempfile.TemporaryDirectory() as folder:
        return export(run, cell, Path(folder) / "ticket.safetensors").stat().st_size
