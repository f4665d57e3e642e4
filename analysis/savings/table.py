"""The rows of savings.json, and reading and writing them."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis import tables, words
from analysis.run import Run
from lthjax.measures.savings import Counts, Storage
from lthjax.measures.stats import Outcome

FILE = "savings.json"
# The fields of a row that are NamedTuples themselves.
_PARTS = {"counts": Counts, "storage": Storage, "compacted": Counts}


class Timing(NamedTuple):
    """A forward pass and the dense one, timed in turn; None where it was not timed.

    Attributes:
        batch: images.
        variant: a key of `lthjax.measures.savings.VARIANTS`.
        seconds, dense_seconds: medians of one call.
        ratio: median over the pairs of dense / variant; below 1 the variant is slower.
        low, high, pairs: its interval, as `median_interval` says, and the number of pairs.
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

    @property
    def faster(self) -> Outcome | None:
        """Whether it is faster than dense: undecided where the interval has 1 in it, None if not timed."""
        if self.low is None or self.high is None:
            return None
        return "supported" if self.low > 1 else "refuted" if self.high < 1 else "undecided"


class LevelSavings(NamedTuple):
    """What a level's ticket saves, a row of savings.json.

    Attributes:
        seed, chain, level, arm: the cell.
        density: weights left / prunable weights.
        counts, storage: of the masked ticket: its counts, and the bytes of its weights by format.
        file_bytes: size of the file that `analysis.export` writes, with mask and initial weights.
        widths: layer -> units after compaction.
        compacted: counts of the compacted network.
        deviation: largest difference of the compacted network's logits from the ticket's over the test
            set, in float32, divided by the largest logit.
        steps, trainings: training up to this ticket, all rounds together, in steps and in dense trainings.
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
        return [_row(**fields) for fields in json.loads(tables.read_text(path))["rows"]]
    except tables.DAMAGED as error:
        raise tables.unreadable(path, error, words.command("savings", run.path)) from error


def _row(timings: list[dict[str, Any]], **fields: Any) -> LevelSavings:
    parts = {name: kind(**fields.pop(name)) for name, kind in _PARTS.items()}
    return LevelSavings(**fields, **parts, timings=tuple(Timing(**timing) for timing in timings))


def to_json(rows: Sequence[LevelSavings]) -> str:
    """The rows as the text of savings.json."""
    parts = [{name: getattr(row, name)._asdict() for name in _PARTS} for row in rows]
    timings = [{"timings": [timing._asdict() for timing in row.timings]} for row in rows]
    fields = [row._asdict() | own | timed for row, own, timed in zip(rows, parts, timings, strict=True)]
    return json.dumps({"rows": fields}, indent=1) + "\n"
