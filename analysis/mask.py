"""Draws the mask or the weights of one layer of one network of a run folder.

On the command line:

    python -m analysis.mask runs/quickstart-0123abcd --layer conv1 --level 5
    python -m analysis.mask runs/quickstart-0123abcd --layer fc1 --level 5 --weights --arm reinit --seed 1
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lthjax import cli, files, home, prune
from lthjax.errors import UserError, unknown
from lthjax.imp import DENSE, Cell
from lthjax.measures import layers, structure

from . import draw, words
from .export import Named, chosen, there, trained_there
from .run import Run, open_run

# Width over height that a picture of many tiles comes near to.
_ASPECT = 1.5
_KINDS = ("png", "pdf", "svg")
_PRUNED, _GAP = "#bbbbbb", "#ffffff"


@matplotlib.rc_context({**draw.STYLE, "axes.grid": False})
def drawing(run: str | Path | Run, cell: Cell, layer: str, weights: bool = False) -> Figure:
    """The mask of a layer, or its final weights, as a picture; see `tiles` for what is where.

    Args:
        run: the run or its folder.
        cell: the network.
        layer: a path such as `conv1/kernel`, or the layer's name.
        weights: whether to draw the weights; pruned ones are grey.

    Raises:
        UserError: there is no such cell or layer, the layer is never pruned, or the cell diverged and has no
            weights.
    """
    opened = open_run(run)
    (trained_there if weights else there)(opened, cell)
    masks = _by_path(opened.mask(cell))
    path = named(layer, masks)
    mask = masks[path]
    if not mask.ndim and not weights:
        raise UserError(
            f"--layer: {path} is never pruned and has no mask; add --weights to draw its weights."
        )
    values = _by_path(opened.weights(cell))[path] if weights else mask
    left = np.broadcast_to(mask, values.shape)
    image = opened.about["data"]["shape"] if path == _reading(masks, opened.about["data"]["shape"]) else None
    picture, how = tiles(values.astype(float), image)
    kept, _ = tiles(left.astype(float), image)
    where = DENSE if cell.arm == DENSE else f"{cell.chain}, level {cell.level}, {cell.arm}"
    again = f", repeat {cell.repeat}" if cell.repeat > 1 else ""
    heading = f"{words.title(opened.about)}: {path}\n{where}, seed {cell.seed}{again}"
    blue = "" if weights else ", in blue"
    counts = f"{int(left.sum()):,} of {left.size:,} weights left ({words.share(left.mean())}){blue}"
    return _pictured(picture, kept, heading, f"{counts}; {how}", weights)


def _reading(masks: dict[str, np.ndarray], image: Sequence[int]) -> str:
    """The layer that reads the image: without convolutions the first with an input for every pixel, or ""."""
    own = layers.by_number({name: m for name, m in masks.items() if m.ndim})
    if any(m.ndim > 2 for m in own.values()):
        return ""
    return next((name for name, m in own.items() if m.ndim == 2 and len(m) == math.prod(image)), "")


def tiles(array: np.ndarray, image: Sequence[int] | None) -> tuple[np.ndarray, str]:
    """A layer's array as a matrix to be looked at, NaN between tiles, and what is where in it.

    A convolution [height, width, in, out] has a tile for every pair of channels: below each other the input
    channels, beside each other the filters, wrapped where they are many. A fully connected layer [in, out]
    on the image is treated as a convolution as large as the image. Any other array is a matrix of its last
    axis against all others.

    Args:
        array: of the layer.
        image: (height, width, channels) of the images that the layer reads; None of a later layer.
    """
    if image and array.ndim == 2 and len(array) == math.prod(image):
        array = array.reshape(*image, -1)
    if array.ndim != 4:
        matrix = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        turned = len(matrix) > 2 * matrix.shape[1]
        how = "a row an output, a column an input" if turned else "a row an input, a column an output"
        return (matrix.T if turned else matrix), how
    height, width, channels, filters = array.shape
    apart = 2 if channels > 1 else 1
    block = channels * (height + 1) - 1 + apart
    columns = math.ceil(math.sqrt(_ASPECT * filters * block / (width + 1)))
    # Better one row that is somewhat wide than two.
    columns = filters if 1.6 * columns >= filters else columns
    rows = math.ceil(filters / columns)
    picture = np.full((rows * block - apart, columns * (width + 1) - 1), np.nan)
    for row in range(rows):
        part = structure.side_by_side(array[..., row * columns : (row + 1) * columns])
        picture[row * block :][: len(part), : part.shape[1]] = part
    what = f"a tile a filter ({height}×{width})"
    if channels > 1:
        what = f"a column a filter, its {channels} input channels below each other ({height}×{width} each)"
    return picture, what


def named(layer: str, masks: dict[str, np.ndarray]) -> str:
    """The path of a layer: the path itself, or of all below it the one that may be pruned.

    Args:
        layer: a path such as `conv1/kernel`, or `conv1`.
        masks: path -> mask.

    Raises:
        UserError: there is none, or there are several.
    """
    if layer in masks:
        return layer
    below = [path for path, mask in masks.items() if path.startswith(f"{layer.rstrip('/')}/")]
    found = [path for path in below if masks[path].ndim] or below
    if not found:
        raise unknown("--layer", layer, [path for path, mask in masks.items() if mask.ndim])
    if len(found) > 1:
        raise UserError(f"--layer: {layer!r} has {', '.join(found)}; name one of them.")
    return found[0]


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    return dict(zip(prune.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def _pictured(picture: np.ndarray, kept: np.ndarray, heading: str, below: str, weights: bool) -> Figure:
    """The picture under its heading; a colour bar for weights."""
    shape = picture.shape
    width = 7.2
    high = min(max(width * shape[0] / shape[1], 0.8), 9.0)
    figure = Figure(figsize=(width, high + (1.6 if weights else 1.0)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(heading, loc="left", fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_facecolor(_GAP)
    # A line of text that is too long for the figure is broken.
    axes.set_xlabel(below.replace("; ", "\n", 1), loc="left", fontsize=9)
    if not weights:
        axes.imshow(picture, cmap=ListedColormap([_PRUNED, draw.look("ticket")[0]]), vmin=0, vmax=1,
                    interpolation="nearest")  # fmt: skip
        return figure
    axes.imshow(np.where(kept == 0, 0.0, np.nan), cmap=ListedColormap([_PRUNED]), interpolation="nearest")
    seen = np.where(kept == 1, picture, np.nan)
    most = float(np.nanmax(np.abs(seen))) if (kept == 1).any() else 1.0
    shown = axes.imshow(seen, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=40, label="weight")
    return figure


@dataclass(frozen=True, kw_only=True)
class Options(Named):
    """Draws the mask or the weights of one layer of one network of a run folder; prints the file's path."""

    layer: str
    """The layer: its name, for example conv1, or a path, conv1/kernel."""
    weights: bool = False
    """Draw the final weights, the pruned ones grey."""
    to: Path | None = None
    """A new file, .png, .pdf or .svg; by default a PNG in RUN/mask, which is drawn anew if it is there."""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("mask"))
    run = open_run(options.run)
    cell = chosen(run, options)
    name = f"{'weights' if options.weights else 'mask'}-{options.layer.replace('/', '-')}"
    again = f".r{cell.repeat}" if cell.repeat > 1 else ""
    usual = f"{name}-{cell.chain}-level={cell.level}-{cell.arm}{again}-seed={cell.seed}.png"
    to = options.to or run.path / "mask" / usual
    if to.suffix.lstrip(".") not in _KINDS:
        raise UserError(f"--to: {str(to)!r} is not allowed; it must end in .{', .'.join(_KINDS)}.")
    if options.to is not None and to.exists():
        raise UserError(f"--to: {to} is there and is not replaced; name another file, or remove it.")
    drawn = io.BytesIO()
    drawing(run, cell, options.layer, options.weights).savefig(drawn, format=to.suffix.lstrip("."), dpi=200)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(to, drawn.getvalue())
    except OSError as error:
        raise UserError(
            f"{to}: it cannot be written ({error.strerror}); choose another with --to."
        ) from error
    print(to)


if __name__ == "__main__":
    cli.run(main)
