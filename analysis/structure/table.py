"""What survives in a run, as rows: of layers, pixels, kernels, units, signs and pairs of masks."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from analysis import words
from analysis.run import TICKET, Row, Run, chains, densities, nearest, select
from lthjax import imp, prune
from lthjax.imp import DENSE
from lthjax.measures import layers, structure
from lthjax.measures.layers import Layers

# Where one level is shown, it is the one nearest to this density.
_SHOWN = 0.1
# Arms that start at the chain's rewind state, so that the weights that they started from are known.
REWOUND = (TICKET, "random")
_overlap = jax.jit(prune.overlap)
PyTree = Any


class LayerDensity(NamedTuple):
    """How much of a layer a ticket keeps."""

    seed: int
    level: int
    density: float
    layer: str
    weights: int
    left: int


class Ring(NamedTuple):
    """The pixels at one distance from the image's border, and their surviving connections."""

    seed: int
    level: int
    density: float
    ring: int
    pixels: int
    survivors: int
    survivors_a_pixel_over_mean: float


class Degree(NamedTuple):
    """How many units of one side of a layer have so many survivors."""

    seed: int
    layer: str
    side: str
    survivors: int
    units: int
    units_expected_by_chance: float


class DeadUnits(NamedTuple):
    """The dead units of a hidden layer; see `lthjax.measures.structure.Dead`."""

    arm: str
    seed: int
    repeat: int
    level: int
    density: float
    layer: str
    units: int
    no_input: int
    no_output: int
    either: int
    either_share_by_chance: float


class SignChanges(NamedTuple):
    """How many survivors of a cell change their sign in training."""

    arm: str
    seed: int
    repeat: int
    level: int
    density: float
    changed: int
    survivors: int


class MaskOverlap(NamedTuple):
    """The overlap of two masks; no seed where they are of two."""

    between: str
    which: str
    seed: int | None
    level: int
    density: float
    iou: float
    iou_by_chance: float


@dataclass(frozen=True)
class Survivors:
    """The cells of a run that have weights left and did not diverge.

    Attributes:
        run: the run.
        rows: the cells.
        chain: the first chain that has a ticket among them; "" if none has.
        heading: what the run trains.
        shape: (height, width, channels) of an image.
    """

    run: Run
    rows: list[Row]
    chain: str
    heading: str
    shape: tuple[int, int, int]

    @cached_property
    def tickets(self) -> list[Row]:
        """Those of the chain."""
        return select(self.rows, chain=self.chain, arm=TICKET)

    @cached_property
    def levels(self) -> dict[int, float]:
        """Level -> mean density of its tickets."""
        return densities(self.tickets)

    @cached_property
    def example(self) -> PyTree:
        """The mask of one ticket: it says which leaves may be pruned."""
        return self.run.mask(self.tickets[0].cell)

    @cached_property
    def network(self) -> Layers:
        """The same by layer, for the names and shapes of the network's layers."""
        return in_order(self.example, self.example)

    @property
    def shown_level(self) -> int:
        """The level that is shown where one is."""
        return nearest(self.levels, _SHOWN)

    @property
    def some_levels(self) -> list[int]:
        """Up to three: near half of the weights, near a tenth, and the sparsest."""
        return sorted({nearest(self.levels, of) for of in (0.5, _SHOWN, min(self.levels.values()))})

    def mask(self, row: Row) -> Layers:
        """A cell's mask."""
        mask = self.run.mask(row.cell)
        return in_order(mask, mask)

    def final(self, row: Row) -> Layers:
        """A cell's prunable weights at the end of training."""
        return in_order(self.run.weights(row.cell), self.example)

    def origin(self, seed: int) -> Layers:
        """The prunable weights that the chain rewinds to."""
        return in_order(self.run.state(seed, imp.rewind_of(self.chain)), self.example)

    def parent(self, row: Row) -> Row | None:
        """The ticket, or the dense network, from which a ticket's mask was made."""
        return next((other for other in self.rows if other.cell == imp.parent_of(row.cell)), None)

    def pixels(self, level: int) -> dict[int, np.ndarray]:
        """Seed -> surviving connections of every pixel: int [height, width]; for `reads_pixels`."""
        return {
            row.seed: structure.pixels(next(iter(self.mask(row).values())), self.shape)
            for row in select(self.tickets, level=level)
        }


def survivors(run: Run) -> Survivors:
    """The cells of a run that have something to show.

    Raises:
        UserError: a cell cannot be read.
    """
    rows = [row for row in run.rows if row.status == "done" and row.weights_left]
    led = [chain for chain in chains(rows) if select(rows, chain=chain, arm=TICKET)]
    height, width, channels = run.about["data"]["shape"]
    shape = (height, width, channels)
    return Survivors(run, rows, led[0] if led else "", words.title(run.about), shape)


def in_order(tree: PyTree, mask: PyTree) -> Layers:
    """The leaves of a tree that its mask says may be pruned, by path, in the order of the network."""
    return layers.by_number(layers.by_layer(tree, mask))


def layer(path: str) -> str:
    """A layer's name, of its kernel's path."""
    return path.removesuffix("/kernel")


def layer_densities(of: Survivors) -> list[LayerDensity]:
    """The layers of the dense networks and the tickets."""
    return [
        LayerDensity(row.seed, row.level, row.density, layer(path), leaf.size, int(leaf.sum()))
        for row in [*select(of.rows, chain=DENSE), *of.tickets]
        for path, leaf in of.mask(row).items()
    ]


def rings(of: Survivors) -> list[Ring]:
    """The rings of pixels at some levels; of tickets that have a connection to a pixel."""
    return [
        Ring(seed, level, of.levels[level], *ring)
        for level in of.some_levels
        for seed, image in of.pixels(level).items()
        if image.any()
        for ring in structure.by_ring(image)
    ]


def degrees(of: Survivors) -> tuple[list[Degree], dict[tuple[str, str], list[float]]]:
    """How many units have so many survivors, at the level that is shown.

    Returns:
        The rows; and (layer, side) -> the variance of a unit's survivors over that by chance, one a seed;
        none where chance has no variance.
    """
    rows: list[Degree] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in select(of.tickets, level=of.shown_level):
        for path, leaf in of.mask(row).items():
            sides = ("output units", "input units") if leaf.ndim == 2 else ("filters", "input channels")
            both = structure.incoming(leaf), structure.outgoing(leaf, leaf.shape[-2])
            for side, found in zip(sides, both, strict=True):
                rows += [Degree(row.seed, layer(path), side, *n) for n in structure.degrees(found, leaf)]
                expected = structure.variance_by_chance(leaf, len(found))
                ratio = [float(found.var() / expected)] if expected else []
                ratios.setdefault((layer(path), side), []).extend(ratio)
    return rows, ratios


def dead_units(of: Survivors) -> list[DeadUnits]:
    """The dead units of the random masks, if there are any, and of the tickets; for layers in a row."""
    rows = []
    for row in [*select(of.rows, chain=of.chain, arm="random"), *of.tickets]:
        mask = of.mask(row)
        chance = structure.dead_by_chance(mask)
        place = (row.arm, row.seed, row.repeat, row.level, row.density)
        rows += [
            DeadUnits(*place, layer(path), *units, chance[path])
            for path, units in structure.dead(mask).items()
        ]
    return rows


def sign_changes(of: Survivors) -> list[SignChanges]:
    """The sign changes of the dense networks and of the arms in `REWOUND`, since the rewind step."""
    rows = []
    arms = [row for arm in REWOUND for row in select(of.rows, chain=of.chain, arm=arm)]
    trained = [*select(of.rows, chain=DENSE), *arms]
    for seed in dict.fromkeys(row.seed for row in of.tickets):
        before = of.origin(seed)
        for row in trained:
            if row.seed == seed:
                counted = structure.sign_changes(before, of.final(row), of.mask(row))
                rows.append(SignChanges(row.arm, seed, row.repeat, row.level, row.density, *counted))
    return rows


def overlaps(of: Survivors) -> list[MaskOverlap]:
    """The overlap of tickets with those of other seeds, of the level before, and of other chains."""
    rows = []
    others = [chain for chain in chains(of.rows) if chain != of.chain]
    before: dict[int, Layers] = {}
    for level, density in of.levels.items():
        masks = {row.seed: of.mask(row) for row in select(of.tickets, level=level)}
        for seed in masks.keys() & before.keys():
            both = map(float, _overlap(masks[seed], before[seed]))
            rows.append(MaskOverlap("levels", "the level before", seed, level, density, *both))
        before = masks
        for a, b in itertools.combinations(masks, 2):
            both = map(float, _overlap(masks[a], masks[b]))
            rows.append(MaskOverlap("seeds", f"{a} and {b}", None, level, density, *both))
        for chain in others:
            for row in select(of.rows, chain=chain, level=level, arm=imp.leader(chain)):
                if row.seed in masks:
                    both = map(float, _overlap(masks[row.seed], of.mask(row)))
                    rows.append(MaskOverlap("chains", chain, row.seed, level, density, *both))
    return rows
