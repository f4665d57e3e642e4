"""The rows for a reader: tables of counts, bytes, compacted networks and times."""

from collections.abc import Callable, Sequence

import numpy as np

from analysis.page import Table
from analysis.run import grouped
from analysis.savings.table import LevelSavings, Timing

_STORED = (
    "Bytes of the weights, float32, and how much smaller than dense; the exported file is not smaller, it "
    "holds dense arrays, the mask and the initial weights"
)
_COMPACTED = "Exact compaction: the units that do nothing taken out, the rest as dense arrays"
_Cells = tuple[int | str, ...]


def shown(rows: Sequence[LevelSavings]) -> list[Table]:
    """Counts and training cost, bytes, compaction, and times where there are any."""

    def table(title: str, header: str, cells: Callable[[LevelSavings], _Cells], words: int = 1) -> Table:
        lines = [[f"{x:,}" if isinstance(x, int) else x for x in cells(row)] for row in rows]
        return Table(title, header.split(", "), lines, words)

    cost = f"what the ticket cost to find (seed {rows[-1].seed}, {rows[-1].chain})"
    weights = (
        "level, weights left, %, fewer weights, MACs, masked, fewer MACs, steps trained, dense trainings"
    )
    stored = "level, dense, ideal, bitmask, CSR-16, CSR-32, COO, exported file"
    compacted = "level, units left, weights, fewer, MACs, fewer, largest deviation of a logit"
    timed = [row for row in rows if row.timings]
    return [
        table(f"Weights, MACs for one image, and {cost}", weights, _weights),
        table(_STORED, stored, _stored),
        table(_COMPACTED, compacted, _compacted, 2),
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
    fewer, less = times(row.counts.weights, small.weights), times(row.counts.macs, small.macs)
    return row.level, units, small.weights, fewer, small.macs, less, f"{row.deviation:.1e}"


def _times(rows: Sequence[LevelSavings]) -> Table:
    """At every level and batch size the dense network, then the variants."""
    lines: list[list[str]] = []
    for row in rows:
        for batch, of_batch in sorted(grouped(row.timings, "batch").items()):
            dense = [timing.dense_seconds for timing in of_batch if timing.dense_seconds is not None]
            place = [str(row.level), f"{100 * row.density:.1f}", str(batch)]
            lines.append([*place, "dense", *_rate(float(np.median(dense)) if dense else None, batch), ""])
            lines += [[*place, one.variant, *_rate(one.seconds, batch), compared(one)] for one in of_batch]
    title = f"Forward pass, each timed in turn with the dense one, on {rows[0].device}"
    header = "level, %, batch, network, ms a call, images / s, against dense: median (95 % interval)"
    return Table(title, header.split(", "), lines)


def _rate(seconds: float | None, batch: int) -> tuple[str, str]:
    return ("–", "–") if seconds is None else (f"{1000 * seconds:.3g}", f"{batch / seconds:,.0f}")


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
