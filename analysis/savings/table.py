"""The rows of savings.json, and reading and writing them."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis import tables, words
from analysis.run import Run
from lthjax.measures.savings import Counts, Storage

FILE = "savings.json"


class Timing(NamedTuple):
    """A forward pass against the dense one, timed in turn.

    Attributes:
        batch: images.
        variant: a key of `lthjax.measures.savings.VARIANTS`.
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


class LevelSavings(NamedTuple):
    """What a level's ticket saves, a row of savings.json.

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


def load(run: Run) -> list[LevelSavings]:
    """The rows of a run's savings.json, by level.

    Raises:
        UserError: it cannot be read.
    """
    path = run.path / FILE
    try:
        return [_row(fields) for fields in json.loads(tables.read_text(path))["rows"]]
    except tables.DAMAGED as error:
        raise tables.unreadable(path, error, words.command("savings", run.path)) from error


def _row(fields: dict[str, Any]) -> LevelSavings:
    made = {
        "counts": Counts(**fields["counts"]),
        "storage": Storage(**fields["storage"]),
        "compacted": Counts(**fields["compacted"]),
        "timings": tuple(Timing(**timing) for timing in fields["timings"]),
    }
    return LevelSavings(**{**fields, **made})


def to_json(rows: Sequence[LevelSavings]) -> str:
    """The rows as the text of savings.json."""
    fields = [
        {
            **row._asdict(),
            **{name: getattr(row, name)._asdict() for name in ("counts", "storage", "compacted")},
            "timings": [timing._asdict() for timing in row.timings],
        }
        for row in rows
    ]
    return json.dumps({"rows": fields}, indent=1) + "\n"
