"""The rows of savings.json: reading and writing them, and as tables for a reader."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lthjax.measures.savings import Counts, Storage
from lthjax.measures.stats import Outcome

from .. import tables, words
from ..page import Table
from ..rows import grouped
from ..run import Run

FILE = "savings.json"
# The fields of a row that are NamedTuples themselves.
_PARTS = {"counts": Counts, "storage": Storage, "compacted": Counts}
_STORED = (
    "Bytes of the weights, float32, and how much smaller than dense; the exported file is not smaller, it "
    "holds dense arrays, the mask and the initial weights"
)
_COMPACTED = (
    "Exact compaction: the units that do nothing taken out, the rest as dense arrays; constants are folded, "
    "and stay where the padding of a convolution would show"
)
_Cells = tuple[int | str, ...]


class Timing(NamedTuple):
    """A forward pass and the dense one, timed in turn; None where it was not timed.

    Attributes:
        batch, variant: number of images, and a key of `lthjax.measures.savings.VARIANTS`.
        seconds, dense_seconds: medians of one call.
        ratio: median over the pairs of dense / variant; below 1 the variant is slower.
        low, high, pairs: its interval, as `median_interval` says, and the number of pairs.
        note: why it was not timed, or "".
    """

    batch: int
    variant: str
    seconds: float | None = None
    dense_seconds: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    note: str = ""

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
        counts, storage: of the masked ticket, its counts and the bytes of its weights by format.
        file_bytes: size of the file that `analysis.export` writes, with mask and initial weights.
        widths, compacted: layer -> units of the compacted network, and its counts; {} and None of a network
            from outside the package.
        deviation: largest difference of its logits from the ticket's over the test set, in float32,
            divided by the largest logit; None likewise.
        steps, trainings: training up to this ticket, all rounds together, in steps and in dense trainings.
        device, timings: on which timings were taken, and those; empty where the level was not timed.
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
    compacted: Counts | None
    deviation: float | None
    steps: int
    trainings: float
    device: str
    timings: tuple[Timing, ...]


def load(run: Run) -> list[LevelSavings]:
    """The rows of a run's savings.json, by level; raises a UserError where it cannot be read."""
    path = run.path / FILE
    with tables.reading(path, words.command("savings", run.path)):
        return [_row(**fields) for fields in json.loads(tables.read_text(path))["rows"]]


def _row(timings: list[dict[str, Any]], **fields: Any) -> LevelSavings:
    given = {name: (kind, fields.pop(name)) for name, kind in _PARTS.items()}
    parts: dict[str, Any] = {
        name: kind(**of) if of is not None else None for name, (kind, of) in given.items()
    }
    return LevelSavings(**fields, **parts, timings=tuple(Timing(**timing) for timing in timings))


def to_json(rows: Sequence[LevelSavings]) -> str:
    """The rows as the text of savings.json."""
    read = [{name: getattr(row, name) for name in _PARTS} for row in rows]
    parts = [{name: part and part._asdict() for name, part in of.items()} for of in read]
    timings = [{"timings": [timing._asdict() for timing in row.timings]} for row in rows]
    fields = [row._asdict() | own | timed for row, own, timed in zip(rows, parts, timings, strict=True)]
    return json.dumps({"rows": fields}, indent=1) + "\n"


def shown(rows: Sequence[LevelSavings], needed: bool = True) -> list[Table]:
    """Counts and training cost, bytes, compaction, and times where there are any.

    Args:
        rows: of one seed and chain, by level.
        needed: whether the tickets' criterion reads trained weights, so that finding them needs the training.
    """

    small = [row for row in rows if row.compacted is not None]

    def table(
        title: str, header: str, cells: Callable[[LevelSavings], _Cells], words: int = 1, of: Any = rows
    ) -> Table:
        lines = [[f"{x:,}" if isinstance(x, int) else x for x in cells(row)] for row in of]
        return Table(title, header.split(", "), lines, words)

    cost = "what the ticket cost to find"
    if not needed:
        cost = "what was trained up to it, of which its criterion needs nothing after the rewind step"
    cost += f" (seed {rows[-1].seed}, {rows[-1].chain})"
    weights = (
        "level, weights left, %, fewer weights, MACs, masked, fewer MACs, steps trained, dense trainings"
    )
    stored = "level, dense, ideal, bitmask, CSR-16, CSR-32, COO, exported file"
    compacted = "level, units left, weights, fewer, MACs, fewer, largest deviation of a logit"
    timed = [row for row in rows if row.timings]
    return [
        table(f"Weights that may be pruned, MACs of all layers for one image, and {cost}", weights, _weights),
        table(_STORED, stored, _stored),
        *([table(_COMPACTED, compacted, _compacted, 2, small)] if small else []),
        *([_times(timed)] if timed else []),
    ]


def _weights(row: LevelSavings) -> _Cells:
    counts, percent, trainings = row.counts, f"{100 * row.density:.1f}", f"{row.trainings:.2f}"
    fewer, less = times(counts.weights, counts.weights_left), times(counts.macs, counts.macs_left)
    masked = counts.macs_left
    return row.level, counts.weights_left, percent, fewer, counts.macs, masked, less, row.steps, trainings


def _stored(row: LevelSavings) -> _Cells:
    dense, *smaller = row.storage
    return row.level, dense, *(f"{part:,} ({times(dense, part)})" for part in smaller), row.file_bytes


def _compacted(row: LevelSavings) -> _Cells:
    units, small = " ".join(f"{name} {width}" for name, width in row.widths.items()), row.compacted
    assert small is not None
    fewer, less = times(row.counts.weights, small.weights), times(row.counts.macs, small.macs)
    return row.level, units, small.weights, fewer, small.macs, less, f"{row.deviation:.1e}"


def _times(rows: Sequence[LevelSavings]) -> Table:
    """At every level and batch size the dense network, then the variants.

    The dense network's line has the median over all variants' pairs; as a machine's speed drifts, a variant
    is compared with the passes of its own pairs alone, whose time stands beside it.
    """
    lines: list[list[str]] = []
    for row in rows:
        for batch, of_batch in sorted(grouped(row.timings, "batch").items()):
            dense = [timing.dense_seconds for timing in of_batch if timing.dense_seconds is not None]
            place = [str(row.level), f"{100 * row.density:.1f}", str(batch)]
            lines.append([*place, "dense", *_rate(float(np.median(dense)) if dense else None, batch), "", ""])
            for one in of_batch:
                beside = _rate(one.dense_seconds, batch)[0]
                lines.append([*place, one.variant, *_rate(one.seconds, batch), beside, compared(one)])
    title = f"Forward pass, each interleaved with the dense one, on {rows[0].device}"
    header = (
        "level, %, batch, network, ms a call, images / s, ms of dense in its pairs, "
        "against dense: median (95 % interval)"
    )
    return Table(title, header.split(", "), lines)


def _rate(seconds: float | None, batch: int) -> tuple[str, str]:
    if seconds is None:
        return "–", "–"
    milliseconds = 1000 * seconds
    digits = ",.0f" if milliseconds >= 100 else ".3g"
    return f"{milliseconds:{digits}}", f"{batch / seconds:,.0f}"


def compared(timing: Timing) -> str:
    """A timing in words: faster or slower than dense only where the interval leaves out 1."""
    ratio, low, high = timing.ratio, timing.low, timing.high
    if ratio is None or low is None or high is None:
        return timing.note
    if timing.faster == "supported":
        return f"{ratio:.2f}× faster ({low:.2f}–{high:.2f})"
    if timing.faster == "refuted":
        return f"{1 / ratio:.2f}× slower ({1 / high:.2f}–{1 / low:.2f})"
    return f"no clear difference: {ratio:.2f}× its speed ({low:.2f}–{high:.2f})"


def times(dense: int, left: int) -> str:
    """How many times fewer: `9.3×`."""
    return f"{dense / left:.1f}×" if left else "∞"
