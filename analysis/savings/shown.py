"""The rows for a reader: tables of counts, bytes, compacted networks and times."""

from collections.abc import Sequence

import numpy as np

from analysis.page import Table
from analysis.savings.table import LevelSavings, Timing


def shown(rows: Sequence[LevelSavings]) -> list[Table]:
    """The rows for the eye: counts and training cost, bytes, compaction, and times."""
    first = rows[-1]
    weights = Table(
        f"Weights, MACs for one image, and what the ticket cost to find (seed {first.seed}, {first.chain})",
        ["level", "weights left", "%", "fewer weights", "MACs", "masked", "fewer MACs", "steps trained",
         "dense trainings"],
        [
            [
                str(row.level), f"{row.counts.weights_left:,}", f"{100 * row.density:.1f}",
                times(row.counts.weights, row.counts.weights_left), f"{row.counts.macs:,}",
                f"{row.counts.macs_left:,}", times(row.counts.macs, row.counts.macs_left),
                f"{row.steps:,}", f"{row.trainings:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    stored = Table(
        "Bytes of the weights, float32, and how much smaller than dense; the exported file is not smaller, "
        "it holds dense arrays, the mask and the initial weights",
        ["level", "dense", "ideal", "bitmask", "CSR-16", "CSR-32", "COO", "exported file"],
        [
            [
                str(row.level),
                f"{row.storage.dense:,}",
                *(f"{part:,} ({times(row.storage.dense, part)})" for part in row.storage[1:]),
                f"{row.file_bytes:,}",
            ]
            for row in rows
        ],
    )
    units = Table(
        "Exact compaction: the units that do nothing taken out, the rest as dense arrays",
        ["level", "units left", "weights", "fewer", "MACs", "fewer", "largest deviation of a logit"],
        [
            [
                str(row.level),
                " ".join(f"{name} {width}" for name, width in row.widths.items()),
                f"{row.compacted.weights:,}",
                times(row.counts.weights, row.compacted.weights),
                f"{row.compacted.macs:,}",
                times(row.counts.macs, row.compacted.macs),
                f"{row.deviation:.1e}",
            ]
            for row in rows
        ],
        2,
    )
    timed = [row for row in rows if row.timings]
    return [weights, stored, units, *([_times_table(timed)] if timed else [])]


def _times_table(rows: Sequence[LevelSavings]) -> Table:
    lines = []
    for row in rows:
        for batch in sorted({timing.batch for timing in row.timings}):
            of_batch = [timing for timing in row.timings if timing.batch == batch]
            dense = [timing.dense_seconds for timing in of_batch if timing.dense_seconds is not None]
            place = [str(row.level), f"{100 * row.density:.1f}", str(batch)]
            lines.append([*place, "dense", *_rate(float(np.median(dense)) if dense else None, batch), ""])
            lines += [
                [*place, timing.variant, *_rate(timing.seconds, batch), compared(timing)]
                for timing in of_batch
            ]
    return Table(
        f"Forward pass, each timed in turn with the dense one, on {rows[0].device}",
        [
            "level",
            "%",
            "batch",
            "network",
            "ms a call",
            "images / s",
            "against dense: median (95 % interval)",
        ],
        lines,
    )


def _rate(seconds: float | None, batch: int) -> tuple[str, str]:
    return ("–", "–") if seconds is None else (f"{1000 * seconds:.3g}", f"{batch / seconds:,.0f}")


def compared(timing: Timing) -> str:
    """A timing in words: faster or slower than dense only where the interval leaves out 1."""
    if timing.ratio is None or timing.low is None or timing.high is None:
        return timing.note
    if timing.low > 1:
        return f"{timing.ratio:.2f}× faster ({timing.low:.2f}–{timing.high:.2f})"
    if timing.high < 1:
        return f"{1 / timing.ratio:.2f}× slower ({1 / timing.high:.2f}–{1 / timing.low:.2f})"
    return f"no clear difference: {timing.ratio:.2f}× its speed ({timing.low:.2f}–{timing.high:.2f})"


def times(dense: int, left: int) -> str:
    """How many times fewer: `9.3×`."""
    return f"{dense / left:.1f}×" if left else "∞"
