"""Writes a cell of a run folder as one safetensors file, which any framework reads.

On the command line:

    python -m analysis.export runs/quickstart-0123abcd --seed 0 --level 7 --arm ticket ticket.safetensors
    python -m analysis.export runs/quickstart-0123abcd --level 7 hub/ticket.safetensors --card
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from lthjax import arms, cli, config, home, prune
from lthjax.arms import ARMS
from lthjax.errors import UserError
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables
from lthjax.prune import _files

from . import card, tables
from .rows import Row
from .run import Run, open_run

PyTree = Any
_SAID = ("density", "weights_left", "test_accuracy", "validation_accuracy", "steps")


def export(run: str | Path | Run, cell: Cell, to: str | Path, data_dir: str | Path = "data") -> Path:
    """Writes a cell's final weights, its mask and, as origin, its rewind state; returns the file.

    An arm that starts from other weights (fresh, permuted, signs alone) has no origin. Batch statistics lie
    in both trees beside the weights, under the name of their collection: `batch_stats/norm/mean`. The
    metadata has what a forward pass takes: network, shape, classes, and `mean` and `std` of the seed's train
    split, by which images are normalised. These two are left out where the run's data are not in `data_dir`.

    Args:
        run: the run or its folder.
        cell: a cell that did not diverge.
        to: the file, whose folder is made where it is not there; an exported cell there, damaged or not, is
            replaced; any other file is not, a ticket that `prune.save` wrote elsewhere included.
        data_dir: the folder of the data sets; nothing is downloaded to it.

    Raises:
        UserError: there is no such cell, it diverged, or its arm is from outside the package and not loaded;
            or the file is no exported cell, has another ending or cannot be written.
    """
    to = Path(to)
    if to.exists() and not _told(to):
        raise UserError(f"{to}: it is there and is no exported cell, and is not replaced; name another file.")
    if to.suffix != ".safetensors":
        raise UserError(f"{to}: it is not allowed; the file must end in .safetensors.")
    opened = open_run(run)
    row = trained_there(opened, cell)
    opened.check_arms([cell.arm])
    trained, result = opened.variables(cell), opened.results[cell]
    mask = {**opened.mask(cell), **jax.tree.map(lambda _: np.True_, trained.stats)}
    rewound = cell.arm == DENSE or ARMS[cell.arm].params is arms.rewound
    origin = _whole(opened.variables_at(cell.seed, result["start"])) if rewound else None
    split = opened.split_here(cell.seed, data_dir)
    metadata = {
        "study": opened.name,
        "model": opened.study.model,
        "input_shape": list(opened.about["data"]["shape"]),
        "classes": opened.about["data"]["classes"],
        **({} if split is None else {"mean": split.mean.tolist(), "std": split.std.tolist()}),
        **cell._asdict(),
        **{name: getattr(row, name) for name in _SAID},
        "made_from": result["made_from"],
    }
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        prune.save(to, _whole(trained), mask, origin=origin, metadata=metadata)
    except OSError as error:
        raise UserError(f"{to}: it cannot be written ({error.strerror}); choose another file.") from error
    return to


def _whole(variables: Variables) -> PyTree:
    """Weights and batch statistics as one tree."""
    return {**variables.params, **variables.stats}


def _told(file: Path) -> dict[str, Any]:
    """The metadata of a file that holds a cell that `export` wrote, damaged or not; empty of any other."""
    try:
        metadata = json.loads(_files.tensors(file)[0]["metadata"])
    except (OSError, ValueError, KeyError):
        return {}
    known = isinstance(metadata, dict) and {"study", "made_from", *Cell._fields} <= metadata.keys()
    return metadata if known else {}


def there(run: Run, cell: Cell) -> Row:
    """The row of a cell; raises where the run has no such cell, and says which there are."""
    seeds = sorted({row.seed for row in run.rows})
    if cell.seed not in seeds:
        raise UserError(f"--seed: {cell.seed} is not in the run; it has {', '.join(map(str, seeds))}.")
    found = next((row for row in run.rows if row.cell == cell), None)
    if found is not None:
        return found
    own = sorted({(r.chain, r.arm, r.level) for r in run.rows if r.seed == cell.seed and r.chain != DENSE})
    levels = tables.grouped(((chain, arm), str(level)) for chain, arm, level in own)
    arms = tables.grouped(
        (chain, f"{arm} at levels {', '.join(dict.fromkeys(of))}") for (chain, arm), of in levels.items()
    )
    said = [f"{chain}: {' and '.join(of)}" for chain, of in arms.items()]
    raise UserError(
        f"seed {cell.seed} has no cell {cell.chain}, level {cell.level}, {cell.arm}, repeat {cell.repeat}; "
        f"it has {'; '.join(said) or 'the dense network alone'}."
    )


def trained_there(run: Run, cell: Cell) -> Row:
    """As `there`, of a cell that has weights; raises where it diverged."""
    row = there(run, cell)
    if row.status != "done":
        raise UserError("the cell diverged, and its weights were not kept; choose another.")
    return row


def only_chain(rows: Sequence[Row], seed: int, level: int, arm: str, repeat: int = 1) -> str:
    """The chain that has a cell of this seed, level, arm and repeat; of no chain the first one.

    Raises:
        UserError: several chains have one.
    """
    found = [row.chain for row in rows if row.cell == Cell(seed, row.chain, level, arm, repeat)]
    if len(found) > 1:
        raise UserError(
            f"--chain: {', '.join(found)} all have level {level}, {arm}; name one, for example --chain "
            f"{found[0]}."
        )
    return found[0] if found else next((row.chain for row in rows if row.chain != DENSE), "rewind-0")


@dataclass(frozen=True, kw_only=True)
class Named:
    """The options of a command about one cell."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    seed: int | None = None
    """The seed; by default the first of the run."""
    level: int
    """The level; 0 is the dense network."""
    arm: str = "ticket"
    """The arm."""
    repeat: int = 1
    """Which repeat, from 1."""
    chain: str | None = None
    """The chain; may be left out where only one has such a cell."""


@dataclass(frozen=True, kw_only=True)
class Options(Named):
    """Writes a cell of a run folder as one safetensors file, which any framework reads."""

    file: Annotated[Path, tyro.conf.Positional]
    """The safetensors file to write; another exported cell there is replaced."""
    card: bool = False
    """Also write a model card, README.md beside the file: study, accuracy, controls, how to load it."""
    config: Path | None = None
    """A config file to run first, for the arms and other rows it adds; RUN/config.py is the run's own."""
    data_dir: Path = Path("data")
    """Folder of the data sets, for the mean and deviation by which images are normalised."""


def _check_dense(arm: str, chain: str | None) -> None:
    """Rejects an arm or a chain that is named at level 0, which has the dense network alone.

    Raises:
        UserError: names the option.
    """
    for option, named, allowed in (("--arm", arm, ("ticket", DENSE)), ("--chain", chain, (None, DENSE))):
        if named not in allowed:
            raise UserError(
                f"{option}: {named!r} is not allowed with --level 0, the dense network; leave it out."
            )


def chosen(run: Run, options: Named) -> Cell:
    """The cell that the options name.

    Raises:
        UserError: they leave out the chain, and several have such a cell; or no dense network.
    """
    level, arm, repeat = options.level, options.arm, options.repeat
    seed = min(row.seed for row in run.finished()) if options.seed is None else options.seed
    if level == 0:
        _check_dense(arm, options.chain)
        return Cell(seed, DENSE, 0, DENSE, repeat)
    return Cell(seed, options.chain or only_chain(run.rows, seed, level, arm, repeat), level, arm, repeat)


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("export"))
    if options.config is not None:
        config.load_all(options.config)
    run = open_run(options.run)
    cell = chosen(run, options)
    if options.card:
        card.check(options.file)
    elif card.there(options.file):
        told, name = _told(options.file), options.file.name
        of = f"another cell in {name}" if told else f"{name}, which is gone"
        # A file that is there and is no exported cell is refused below.
        known = told or not options.file.exists()
        if known and told | {"study": run.name, **cell._asdict()} != told:
            raise UserError(
                f"{options.file.parent / card.NAME}: it is the card of {of}; give --card, which writes it "
                "anew, or name another file."
            )
    file = export(run, cell, options.file, options.data_dir)
    metadata = prune.load(file).metadata
    if options.card:
        card.write(run, cell, file, metadata)
    if "mean" not in metadata:
        print(
            f"{file}: mean and std of the images are left out, as the run's data ({run.study.data.name}) are "
            f"not in {options.data_dir}; name their folder by --data-dir.",
            file=sys.stderr,
        )
    print(file)


if __name__ == "__main__":
    cli.run(main)
