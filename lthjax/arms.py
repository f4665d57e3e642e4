"""What is trained at a level: the ticket and its controls, one row of `ARMS` each.

An arm is a leaf of its chain: it is trained once on the level's mask and nothing is pruned from it,
but for `ticket`, from whose final weights the next level's mask is made.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from lthjax import prune

PyTree = Any
_shuffle = jax.jit(prune.shuffle)


class Context(NamedTuple):
    """What an arm may draw on.

    Attributes:
        key: this cell's own random stream.
        init: key -> fresh parameters of the model's initial distribution.
        origin: the parameters that the chain rewinds to (step 0 or step k).
        final: the parameters from which this level's mask was made.
        mask: the ticket's mask at this level.
        scores: the criterion's scores of `final`, by which the mask was made.
    """

    key: jax.Array
    init: Callable[[jax.Array], PyTree]
    origin: PyTree
    final: PyTree
    mask: PyTree
    scores: PyTree


class Arm(NamedTuple):
    """How a cell's mask and start weights come about.

    Attributes:
        mask: context -> mask.
        params: (context, mask) -> start weights; the mask is applied to them afterwards.
        train: whether the cell is trained, or evaluated as it stands.
        start: "rewind" starts at the chain's rewind step and trains what is left; "zero" starts at
            step 0 and trains all steps, for weights that have no state at the rewind step.
        summary: one line for help and report.
    """

    mask: Callable[[Context], PyTree]
    params: Callable[[Context, PyTree], PyTree]
    train: bool = True
    start: Literal["rewind", "zero"] = "rewind"
    summary: str = ""


ARMS: dict[str, Arm] = {
    "ticket": Arm(
        mask=lambda context: context.mask,
        params=lambda context, mask: context.origin,
        summary="the ticket: its mask on the weights it is rewound to",
    ),
    "reinit": Arm(
        mask=lambda context: context.mask,
        params=lambda context, mask: context.init(context.key),
        start="zero",
        summary="the ticket's mask on fresh weights of the same distribution, trained from step 0",
    ),
    "random": Arm(
        mask=lambda context: _shuffle(context.key, context.mask),
        params=lambda context, mask: context.origin,
        summary="a random mask of the ticket's layer-wise densities on the weights it is rewound to",
    ),
}
