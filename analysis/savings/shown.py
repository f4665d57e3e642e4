"""The rows for a reader: tables of counts, bytes, compacted networks and times."""

from collections.abc import Callable, Sequence

import numpy as np

from analysis.page import Table
from analysis.savings.table import LevelSavings, Timing

_Column = tuple[str, Callable[[LevelSavings], str]]
_LEVEL: _Column = ("level", lambda row: str(row.level))
_WEIGHTS: tuple[_Column, ...] = (
    _LEVEL,
    ("weights left", lambda row: f"{row.counts.weights_left:,}"),
    ("%", lambda row: f"{100 * row.density:.1f}"),
    ("fewer weights", lambda row: times(row.counts.weights, row.counts.weights_left)),
    ("MACs", lambda row: f"{row.counts.macs:,}"),
    ("masked", lambda row: f"{row.counts.macs_left:,}"),
    ("fewer MACs", lambda row: times(row.counts.macs, row.counts.macs_left)),
    ("steps trained", lambda row: f"{row.steps:,}"),
    ("dense trainings", lambda row: f"{row.trainings:.2f}"),
)
_STORED: tuple[_Column, ...] = (
    _LEVEL,
    ("dense", lambda row: f"{row.storage.dense:,}"),
    ("ideal", lambda row: _smaller(row.storage.dense, row.storage.ideal)),
    ("bitmask", lambda row: _smaller(row.storage.dense, row.storage.bitmask)),
    ("CSR-16", lambda row: _smaller(row.storage.dense, row.storage.csr16)),
    ("CSR-32", lambda row: _smaller(row.storage.dense, row.storage.csr32)),
    ("COO", lambda row: _smaller(row.storage.dense, row.storage.coo)),
    ("exported file", lambda row: f"{row.file_bytes:,}"),
)
_COMPACTED: tuple[_Column, ...] = (
    _LEVEL,
    ("units left", lambda row: " ".join(f"{name} {width}" for name, width in row.widths.items())),
    ("weights", lambda row: f"{row.compacted.weights:,}"),
    ("fewer", lambda row: times(row.counts.weights, row.compacted.weights)),
    ("MACs", lambda row: f"{row.compacted.macs:,}"),
    ("fewer", lambda row: times(row.counts.macs, row.compacted.macs)),
    ("largest deviation of a logit", lambda row: f"{row.deviation:.1e}"),
)
_TIMES = [
    "level",
    "%",
    "batch",
    "network",
    "ms a call",
    "images / s",
    "against dense: median (95 % interval)",
]


def shown(rows: Sequence[LevelSavings]) -> list[Table]:
    """Counts and training cost, bytes, compaction, and times where there are any."""

    def table(title: str, columns: Sequence[_Column], words: int = 1) -> Table:
        lines = [[cell(row) for _, cell in columns] for row in rows]
        return Table(title, [name for name, _ in columns], lines, words)

    found = f"what the ticket cost to find (seed {rows[-1].seed}, {rows[-1].chain})"
    made = [
        table(f"Weights, MACs for one image, and {found}", _WEIGHTS),
        table(
            "Bytes of the weights, float32, and how much smaller than dense; the exported file is not "
            "smaller, it holds dense arrays, the mask and the initial weights",
            _STORED,
        ),
        table(
            "Exact compaction: the units that do nothing taken out, the rest as dense arrays", _COMPACTED, 2
        ),
    ]
    timed = [row for row in rows if row.timings]
    if timed:
        title = f"Forward pass, each timed in turn with the dense one, on {timed[0].device}"
        made.append(Table(title, _TIMES, [line for row in timed for line in _times(row)]))
    return made


def _times(row: LevelSavings) -> list[list[str]]:
    """The lines of a level: at every batch size the dense network, then the variants."""
    lines = []
    for batch in sorted({timing.batch for timing in row.timings}):
        of_batch = [timing for timing in row.timings if timing.batch == batch]
        dense = [timing.dense_seconds for timing in of_batch if timing.dense_seconds is not None]
        place = [str(row.level), f"{100 * row.density:.1f}", str(batch)]
        lines.append([*place, "dense", *_rate(float(np.median(dense)) if dense else None, batch), ""])
        lines += [[*place, one.variant, *_rate(one.seconds, batch), compared(one)] for one in of_batch]
    return lines


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


def _smaller(dense: int, size: int) -> str:
    return f"{size:,} ({times(dense, size)})"
