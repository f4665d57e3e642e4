"""What survives in a run, as rows: of layers, pixels, kernels, units, signs and pairs of masks."""

from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import imp, prune
from lthjax.imp import DENSE
from lthjax.measures import layers, structure, wiring
from lthjax.measures.layers import Layers
from lthjax.measures.stats import nearest

from .. import words
from ..rows import TICKET, Row, chains, densities, select
from ..run import Run

# Where one level is shown, it is the one nearest to this density.
_SHOWN = 0.1
# Arms that start at the chain's rewind state, so that the weights that they started from are known.
REWOUND = (TICKET, "random")
_overlap = jax.jit(prune.overlap)
PyTree = Any
# (layer, side) -> the variance of a unit's survivors over that by chance, one a seed.
Ratios = dict[tuple[str, str], list[float]]


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


class Survivors:
    """The cells of a run that have weights left and did not diverge.

    Attributes:
        run, rows: the run, and the cells.
        chain: the first chain that has a ticket among them; "" if none has.
        tickets, levels: the tickets of the chain, and level -> their mean density.
        shown_level: the level of figures that show one; 0 if there is no ticket.
        granularity: what the run prunes by, as in `config.Prune`.
        heading: what the run trains.
        shape: (height, width, channels) of an image.
    """

    def __init__(self, run: Run) -> None:
        """Raises a UserError where a cell cannot be read."""
        self.run = run
        self.rows = [row for row in run.rows if row.status == "done" and row.weights_left]
        led = (chain for chain in chains(self.rows) if select(self.rows, chain=chain, arm=TICKET))
        self.chain = next(led, "")
        self.tickets = select(self.rows, chain=self.chain, arm=TICKET)
        self.levels, self.heading = densities(self.tickets), words.title(run.about)
        self.granularity = run.study.prune.granularity
        self.shown_level = nearest(self.levels, _SHOWN) if self.levels else 0
        height, width, channels = run.about["data"]["shape"]
        self.shape = (height, width, channels)

    @cached_property
    def network(self) -> Layers:
        """The mask of one ticket, for the names and shapes of the network's layers."""
        return self.mask(self.tickets[0])

    @cached_property
    def ends(self) -> structure.Ends | None:
        """Path -> the groups of its inputs and units; None where layers are in a row, {} where not known."""
        wires = wiring.layers(self.run.network())
        # Names and shapes of a network from outside the package do not tell of connections that skip layers.
        if wires and structure.in_a_row(self.network):
            return None
        names = [f"{wire.name}/kernel" for wire in wires]
        return dict(zip(names, wiring.groups(wires), strict=True))

    def mask(self, row: Row) -> Layers:
        """A cell's mask."""
        return self._prunable(self.run.mask(row.cell))

    def final(self, row: Row) -> Layers:
        """A cell's prunable weights at the end of training."""
        return self._prunable(self.run.weights(row.cell))

    def origin(self, seed: int) -> Layers:
        """The prunable weights that the chain rewinds to."""
        return self._prunable(self.run.state(seed, imp.rewind_of(self.chain)))

    def _prunable(self, tree: PyTree) -> Layers:
        return layers.by_number(layers.by_layer(tree, self._example))

    @cached_property
    def _example(self) -> PyTree:
        """A mask of the network: it says which leaves may be pruned."""
        return self.run.mask(self.tickets[0].cell)

    @cached_property
    def pixels(self) -> dict[int, dict[int, np.ndarray]]:
        """Level -> seed -> surviving connections of every pixel: int [height, width]; for `reads_pixels`.

        Of up to three levels: near half of the weights, near a tenth, and the sparsest.
        """
        some = {nearest(self.levels, of) for of in (0.5, _SHOWN, min(self.levels.values()))}

        def image(row: Row) -> np.ndarray:
            return structure.pixels(next(iter(self.mask(row).values())), self.shape)

        return {n: {row.seed: image(row) for row in select(self.tickets, level=n)} for n in sorted(some)}


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
        for level, of_seeds in of.pixels.items()
        for seed, image in of_seeds.items()
        if image.any()
        for ring in structure.by_ring(image)
    ]


def degrees(of: Survivors) -> tuple[list[Degree], Ratios]:
    """How many units have so many survivors, at `shown_level`; no ratio where chance has no variance."""
    rows: list[Degree] = []
    ratios: Ratios = {}
    for row in select(of.tickets, level=of.shown_level):
        for path, leaf in of.mask(row).items():
            for place, (side, found) in enumerate(structure.by_side(leaf).items()):
                how: dict[str, Any] = {"granularity": of.granularity, "inputs": place == 1}
                rows += [
                    Degree(row.seed, layer(path), side, *n) for n in structure.degrees(found, leaf, **how)
                ]
                expected = structure.variance_by_chance(leaf, len(found), **how)
                ratio = [float(found.var() / expected)] if expected else []
                ratios.setdefault((layer(path), side), []).extend(ratio)
    return rows, ratios


def dead_units(of: Survivors) -> list[DeadUnits]:
    """The dead units of the random masks, if there are any, and of the tickets."""
    rows = []
    for row in [*select(of.rows, chain=of.chain, arm="random"), *of.tickets]:
        place, mask = (row.arm, row.seed, row.repeat, row.level, row.density), of.mask(row)
        chance = structure.dead_by_chance(mask, of.ends, of.granularity)
        for path, units in structure.dead(mask, of.ends).items():
            rows.append(DeadUnits(*place, layer(path), *units, chance[path]))
    return rows


def last_round(of: Survivors) -> tuple[Row, Row] | None:
    """A ticket of `shown_level`, and the ticket or dense network from which its mask was made."""
    cells = {row.cell: row for row in of.rows}
    pairs = [(row, cells.get(imp.parent_of(row.cell))) for row in select(of.tickets, level=of.shown_level)]
    return next(((row, parent) for row, parent in pairs if parent is not None), None)


def sign_changes(of: Survivors) -> list[SignChanges]:
    """The sign changes of the dense networks and of the arms in `REWOUND`, since the rewind step."""
    arms = [row for arm in REWOUND for row in select(of.rows, chain=of.chain, arm=arm)]
    rows = []
    for seed in dict.fromkeys(row.seed for row in of.tickets):
        before = of.origin(seed)
        for row in [*select(of.rows, chain=DENSE), *arms]:
            if row.seed == seed:
                counted = structure.sign_changes(before, of.final(row), of.mask(row))
                rows.append(SignChanges(row.arm, seed, row.repeat, row.level, row.density, *counted))
    return rows


def overlaps(of: Survivors) -> list[MaskOverlap]:
    """The overlap of tickets with those of other seeds, of the level before, and of other chains."""
    rows: list[MaskOverlap] = []
    before: dict[int, Layers] = {}
    for level, density in of.levels.items():
        masks = {row.seed: of.mask(row) for row in select(of.tickets, level=level)}
        pairs: list[Any] = [
            ("levels", "the level before", seed, masks[seed], before[seed])
            for seed in masks.keys() & before.keys()
        ]
        pairs += [("seeds", f"{a} and {b}", None, masks[a], masks[b]) for a, b in combinations(masks, 2)]
        pairs += [
            ("chains", chain, row.seed, masks[row.seed], of.mask(row))
            for chain in chains(of.rows)
            for row in select(of.rows, chain=chain, level=level, arm=imp.leader(chain))
            if chain != of.chain and row.seed in masks
        ]
        for between, which, seed, one, other in pairs:
            both = map(float, _overlap(one, other))
            rows.append(MaskOverlap(between, which, seed, level, density, *both))
        before = masks
    return rows
