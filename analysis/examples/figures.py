"""The figures: images won and lost by level, and agreement between networks beyond chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lthjax.imp import DENSE
from lthjax.measures.stats import PERCENT

from .. import draw
from ..page import Drawn
from ..rows import TICKET
from .table import LOSSES, AgreementRow, PairRow, arms, between, by_seed, levels

# Arms, whether of one seed, what of -> name, number of the series, line.
_AGREEMENTS = (
    (TICKET, DENSE, True, "ticket and its own dense network", 0, "-"),
    (TICKET, DENSE, False, "ticket and another seed's dense network", 1, "--"),
    (TICKET, TICKET, False, "tickets of two seeds", 2, "-"),
    (DENSE, DENSE, False, "dense networks of two seeds", 6, ":"),
)


@matplotlib.rc_context(draw.STYLE)
def drawn(found: Mapping[str, Any]) -> list[Drawn]:
    """Both figures with their captions, from the tables by file."""
    pairs: Sequence[PairRow] = found["pairs.csv"]
    agreement: Sequence[AgreementRow] = found["agreement.csv"]
    images = f"{pairs[0].images:,}" if pairs else "no"
    counts = (
        f"Of {images} test images, the share that a network gets right and the dense network of its seed "
        "does not (won), and the reverse (lost). Their difference is the difference of the two accuracies; "
        "their sum says how much two networks of one accuracy differ. Points are seeds, lines their "
        f"means, {draw.BANDS} the 95 % interval over seeds."
    )
    agreed = (
        "Cohen's κ of errors, the agreement on which test images are wrong beyond chance: 1 for the "
        "same images, 0 for independent ones (left). κ of losses, the images that a ticket gets wrong and "
        "its own dense network does not (right). Bands are 95 % intervals over seeds (of three or more; of "
        "pairs of seeds by the jackknife); n is the number of seeds."
    )
    won = Drawn("examples_pairs", "Images won and lost", _pairs(pairs), counts, (PairRow._fields, pairs))
    title, data = "Do networks err on the same images?", (AgreementRow._fields, agreement)
    return [won, Drawn("examples_agreement", title, _agreement(pairs, agreement), agreed, data)]


def _places(pairs: Sequence[PairRow]) -> dict[int, float]:
    """Level -> mean density of the tickets in percent."""
    own = {n: [row.density for row in pairs if (row.level, row.arm) == (n, TICKET)] for n in levels(pairs)}
    return {level: 100 * sum(of) / len(of) for level, of in own.items() if of}


def _pairs(pairs: Sequence[PairRow]) -> Figure:
    places, shown = _places(pairs), arms(pairs)
    figure, (row,) = draw.panels("", (1, len(shown) or 1), (1.2 + 3.4 * max(len(shown), 1), 4.0), sharey=True)
    for axes, arm in zip(row, shown, strict=False):
        axes.set_title(f"{arm} beside dense", loc="left", fontsize=10)
        for column, style in (("lost", ("#D55E00", "v", "-")), ("won", ("#0072B2", "^", "--"))):
            by_level = {n: [*by_seed(pairs, n, arm, DENSE, column).values()] for n in places}
            draw.over_levels(axes, places, by_level, style, column, within=PERCENT)
        draw.weights_axis(axes, {*places.values()})
        axes.set_xlabel("weights left (%, log scale)")
        axes.legend(fontsize=8)
    row[0].set_ylabel("test images (%)")
    row[0].set_ylim(0, None)
    return figure


def _agreement(pairs: Sequence[PairRow], rows: Sequence[AgreementRow]) -> Figure:
    places = _places(pairs)
    figure, ((left, right),) = draw.panels("", (1, 2), (10.0, 4.4))
    for arm, other, same, name, place, line in _AGREEMENTS:
        colour, marker = draw.series(place)
        values = {n: between(rows, n, arm, other, same=same) for n in places}
        # Bands of all would hide each other.
        style = (colour, marker, line)
        draw.over_levels(left, places, values, style, name, interval=same, points=False)
    lost = {n: between(rows, n, TICKET, TICKET, LOSSES) for n in places}
    draw.over_levels(right, places, lost, ("#CC79A7", "D", "-"), "tickets of two seeds", points=False)
    right.axhline(0, **draw.CHANCE)
    if right.get_legend_handles_labels()[0]:  # of one seed there is none
        right.legend(fontsize=8)
    for axes, name in ((left, "κ of errors"), (right, "κ of losses")):
        draw.weights_axis(axes, {*places.values()})
        axes.set(xlabel="weights left (%, log scale)", ylabel=name)
    left.set_ylim(min(0.0, left.get_ylim()[0]), None)
    draw.legend_below(figure, left)
    return figure
