"""The report's numbers as files for a thesis: levels and differences, as CSV and as LaTeX (booktabs)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lthjax.imp import DENSE
from lthjax.measures.stats import Interval

from .. import tables
from ..differences import mean_accuracy
from ..rows import Row, accuracies, arms, by_level, chains, images_of, select, ticket_chains
from ..run import Run
from . import gaps

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
    "<": "$<$", ">": "$>$", "≤": r"$\leq$", "×": r"$\times$",
}  # fmt: skip


class LevelRow(NamedTuple):
    """An arm at a level, over seeds, as in levels.csv.

    Attributes:
        chain, level, arm: which cells; the dense network is level 0.
        density, weights_left: mean over them of weights left / prunable weights, and of weights left.
        n: seeds.
        test_accuracy_percent: mean over seeds at the end of training, repeats averaged.
        low, high: its 95 % interval by Student's t on the logit scale; None for one seed.
    """

    chain: str
    level: int
    arm: str
    density: float
    weights_left: float
    n: int
    test_accuracy_percent: float | None
    low: float | None
    high: float | None


def beside(run: Run) -> dict[str, str]:
    """File name -> text of the four files."""
    levels = level_rows(run.rows)
    differences = [
        one
        for chain in ticket_chains(run.rows)
        for one in gaps.compared(run.rows, chain, images_of(run.about))
    ]
    return {
        "levels.csv": tables.of_rows(LevelRow, levels),
        "levels.tex": _levels_tex(levels),
        "differences.csv": tables.of_rows(gaps.Compared, differences),
        "differences.tex": _differences_tex(differences),
    }


def level_rows(rows: Sequence[Row]) -> list[LevelRow]:
    """Every chain, level and arm that has an accuracy or diverged, the dense network first."""
    found = []
    for chain in (DENSE, *chains(rows)):
        for level, of_level in by_level(select(rows, chain=chain)).items():
            for arm in [DENSE] if chain == DENSE else arms(of_level):
                own = select(of_level, arm=arm)
                interval = mean_accuracy(accuracies(own))
                density, left = (
                    sum(getattr(row, name) for row in own) / len(own) for name in ("density", "weights_left")
                )
                found.append(LevelRow(chain, level, arm, density, left, interval.n, *_bounds(interval)))
    return found


def _bounds(of: Interval) -> tuple[float | None, float | None, float | None]:
    """Mean, low and high; None for what is not known."""
    mean, low, high = (value if math.isfinite(value) else None for value in of[:3])
    return (mean, low, high) if of.n > 1 else (mean if of.n else None, None, None)


def latex(
    header: Sequence[str], blocks: Iterable[Sequence[Sequence[str]]], words_first: int, note: str
) -> str:
    """A tabular with the rules of booktabs.

    Args:
        header: names of the columns.
        blocks: groups of rows, with a rule between two groups.
        words_first: how many of the first columns are set to the left.
        note: a comment on top: what it shows.
    """
    columns = "l" * words_first + "r" * (len(header) - words_first)
    line = lambda cells: " & ".join(map(escaped, cells)) + r" \\"  # noqa: E731
    groups = ["\n".join(map(line, block)) for block in blocks if block]
    body = "\n\\midrule\n".join([line(header), *groups])
    return (
        f"% {note}\n% In the preamble: \\usepackage{{booktabs}}\n"
        "% Too wide for the page? \\usepackage{graphicx}, then "
        "\\resizebox{\\linewidth}{!}{\\input{this file}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def escaped(text: str) -> str:
    """Text as LaTeX sets it: without characters that it has a meaning for, and with minus signs."""
    minus = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)
    return "".join(_ESCAPED.get(character, character) for character in minus)


def _levels_tex(rows: Sequence[LevelRow]) -> str:
    names = list(dict.fromkeys(row.arm for row in rows if row.arm != DENSE))
    by_chain = tables.grouped((row.chain, row) for row in rows if row.chain != DENSE)
    several = len(by_chain) > 1
    header = [*(["chain"] if several else []), "level", "weights left (%)", *names]
    blocks = [_levels_block(chain, own, names, several) for chain, own in by_chain.items()]
    dense = [_accuracy(row) for row in rows if row.chain == DENSE]
    note = (
        "Test accuracy (%), mean over seeds with its 95 % interval"
        + (f"; the dense network: {dense[0]}" if dense else "")
    )  # fmt: skip
    return latex(header, blocks, int(several), note)


def _levels_block(
    chain: str, own: Sequence[LevelRow], names: Sequence[str], several: bool
) -> list[list[str]]:
    lines = []
    for level, of in tables.grouped((row.level, row) for row in own).items():
        there: Mapping[str, str] = {row.arm: _accuracy(row) for row in of}
        first = [*([chain] if several else []), str(level), f"{100 * of[0].density:.1f}"]
        lines.append([*first, *(there.get(name, "") for name in names)])
    return lines


def _accuracy(row: LevelRow) -> str:
    if row.test_accuracy_percent is None:
        return "–"
    mean = f"{row.test_accuracy_percent:.2f}"
    return mean if row.low is None else f"{mean} [{row.low:.2f}, {row.high:.2f}]"


def _differences_tex(rows: Sequence[gaps.Compared]) -> str:
    header = [
        "weights left (%)",
        "difference",
        "points",
        "n",
        "p (t)",
        "p (Holm)",
        "p (sign flips)",
        "Hedges' g",
    ]
    several = len({row.chain for row in rows}) > 1
    blocks = [
        [[*([chain] if several else []), *gaps.words_of(row)] for row in own]
        for (chain, _), own in tables.grouped(((row.chain, row.other), row) for row in rows).items()
    ]
    note = "Differences of test accuracy in percentage points, paired by seed, with 95 % intervals"
    first = ["chain"] if several else []
    return latex([*first, *header], blocks, 2 + len(first), note)
