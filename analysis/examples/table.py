"""The rows of images.csv, agreement.csv and pairs.csv, and values of seeds from them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lthjax.imp import DENSE
from lthjax.measures.geography import over_pairs

from .. import tables

ERRORS, LOSSES, FORGOTTEN = "errors", "losses", "forgotten"


class PairRow(NamedTuple):
    """The test images that one network of a seed gets right and another does not, as in pairs.csv.

    Attributes:
        chain, level, seed: of ours.
        repeat: of ours; of a ticket beside a control that of the control.
        arm, other: ours and theirs: arms of the same level, or the dense network of the seed.
        density: weights left in ours / prunable weights.
        images, both, won, lost, neither: as in `lthjax.measures.examples.Discordant`.
        difference, low, high: ours − theirs in percentage points, with the 95 % interval over test images.
        p: of McNemar's exact test.
    """

    chain: str
    level: int
    seed: int
    repeat: int
    arm: str
    other: str
    density: float
    images: int
    both: int
    won: int
    lost: int
    neither: int
    difference: float
    low: float
    high: float
    p: float


class AgreementRow(NamedTuple):
    """How much two networks agree on the images, beyond chance, as in agreement.csv.

    Of a control it is the first repeat.

    Attributes:
        chain, level: which level.
        of: "errors": the images that a network gets wrong; "losses": those that it gets wrong and its own
            dense network does not; "forgotten", at the last level: those that were forgotten on the way.
        arm, seed: of the one network.
        other, other_seed: of the other.
        kappa: Cohen's; None where both err on all images, or on none.
    """

    chain: str
    level: int
    of: str
    arm: str
    seed: int
    other: str
    other_seed: int
    kappa: float | None


class ImageRow(NamedTuple):
    """An image that tickets win or lose most often, as in images.csv.

    A level has as many rows of either kind, 20 of a large test set. Where fewer images are won or lost, the
    last ones are images that as many tickets as dense networks get wrong.

    Attributes:
        chain, level: which tickets.
        image, label: its index in the test set, and its class.
        seeds: number of seeds.
        wrong, dense_wrong: in how many of them the ticket, and the dense network, get it wrong.
    """

    chain: str
    level: int
    image: int
    label: int
    seeds: int
    wrong: int
    dense_wrong: int


class ForgettingRow(NamedTuple):
    """What a seed's tickets forget from level to level, the dense network first, as in forgetting.csv.

    Attributes:
        chain, seed: which tickets.
        networks: number of networks in the sequence.
        first, last: levels at its ends.
        images: number of test images.
        always, never: images that all networks get right, and that none does.
        forgotten: images that go from right to wrong at least once.
        events: how often that happens, over all images.
    """

    chain: str
    seed: int
    networks: int
    first: int
    last: int
    images: int
    always: int
    never: int
    forgotten: int
    events: int


TABLES: dict[str, type] = {
    "images.csv": ImageRow,
    "forgetting.csv": ForgettingRow,
    "agreement.csv": AgreementRow,
    "pairs.csv": PairRow,
}


def between(
    rows: Iterable[AgreementRow], level: int, arm: str, other: str, of: str = ERRORS, same: bool = False
) -> list[float]:
    """κ of two arms, one value a seed.

    Args:
        rows: of agreement.csv.
        level: the level.
        arm: the one.
        other: the other.
        of: `ERRORS` or `LOSSES`.
        same: of networks of one seed; else of all pairs of different seeds that have both arms, by
            `lthjax.measures.geography.over_pairs`. None where κ of a pair is not known: the others are no
            sample of the seeds.
    """
    if same:
        own = _of(rows, level, arm, other, of)
        known = {row.seed: row.kappa for row in own if row.seed == row.other_seed and row.kappa is not None}
        return [kappa for _, kappa in sorted(known.items())]
    found = {}
    for pair, kappas in _pairs(rows, level, arm, other, of).items():
        known_of = [kappa for kappa in kappas if kappa is not None]
        if len(known_of) < len(kappas):
            return []
        # Of two arms a pair of seeds is there in both orders: their mean is the pair's.
        found[pair] = sum(known_of) / len(known_of)
    return over_pairs(found)


def unknown(
    rows: Iterable[AgreementRow], level: int, arm: str, other: str, of: str = ERRORS
) -> tuple[int, int]:
    """In how many pairs of seeds κ of two arms is not known, and of how many; arguments as of `between`."""
    pairs = _pairs(rows, level, arm, other, of)
    return sum(None in kappas for kappas in pairs.values()), len(pairs)


def _pairs(
    rows: Iterable[AgreementRow], level: int, arm: str, other: str, of: str
) -> dict[tuple[int, int], list[float | None]]:
    """Pair of different seeds, the lower first -> κ in the orders that there are."""
    own = _of(rows, level, arm, other, of)
    ours, theirs = {row.seed for row in own}, {row.other_seed for row in own}
    seeds = ours | theirs if arm == other else ours & theirs
    apart = [row for row in own if row.seed != row.other_seed and {row.seed, row.other_seed} <= seeds]
    return tables.grouped(
        ((min(row.seed, row.other_seed), max(row.seed, row.other_seed)), row.kappa) for row in apart
    )


def _of(rows: Iterable[AgreementRow], level: int, arm: str, other: str, of: str) -> list[AgreementRow]:
    return [row for row in rows if (row.level, row.of, row.arm, row.other) == (level, of, arm, other)]


def by_seed(rows: Iterable[PairRow], level: int, arm: str, other: str, column: str) -> dict[int, float]:
    """Seed -> a count as a share of the test images in percent, or a difference; repeats averaged."""
    own = [row for row in rows if (row.level, row.arm, row.other) == (level, arm, other)]
    scale = 1.0 if column in ("difference", "low", "high") else None
    values = tables.grouped((r.seed, getattr(r, column) * (scale or 100 / r.images)) for r in own)
    return {seed: sum(of) / len(of) for seed, of in sorted(values.items())}


def levels(rows: Iterable[Any]) -> list[int]:
    """The levels of some rows, ascending."""
    return sorted({row.level for row in rows})


def arms(rows: Sequence[PairRow]) -> list[str]:
    """The arms that are held against the dense network, the ticket first."""
    return list(dict.fromkeys(row.arm for row in rows if row.other == DENSE))
