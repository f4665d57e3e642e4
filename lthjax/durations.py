"""The durations of a study, in steps."""

import re
from typing import Literal

from lthjax.config import Duration, Lengths, Study
from lthjax.errors import UserError

# Steps are counted in int32.
_MOST_STEPS = 2**31 - 1


def parse(value: Duration, name: str) -> tuple[int, Literal["steps", "epochs"]]:
    """The (number, unit) of a duration.

    Raises:
        UserError: it is neither a whole number, "N steps" nor "N epochs".
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, "steps"
    # Limits the digits: Python rejects longer numbers, and no duration has as many.
    pattern = r"\s*(\d{1,20})\s*(steps?|epochs?)?\s*"
    match = re.fullmatch(pattern, value) if isinstance(value, str) else None
    if match is None:
        raise UserError(
            f"{name}: {value!r} is not a duration; write a number of steps (500 or '500 steps') or "
            "of epochs ('2 epochs'), with its unit in one pair of quotes."
        )
    return int(match[1]), "epochs" if (match[2] or "").startswith("epoch") else "steps"


def lengths(study: Study, train_split: int) -> Lengths:
    """The study's durations in steps.

    Args:
        study: a validated study.
        train_split: images in the train split (without validation).

    Raises:
        UserError: the batch is larger than the train split, or a duration is out of range.
    """
    if train_split < 1:
        raise UserError(
            f"data.validation: {study.data.validation} is not allowed; it must be less than the "
            f"{train_split + study.data.validation} train images that there are."
        )
    if train_split < study.train.batch:
        raise UserError(
            f"train.batch: {study.train.batch} is larger than the train split of "
            f"{train_split} images (data.validation holds out {study.data.validation}); "
            "it must be at most that."
        )
    per_epoch = train_split // study.train.batch

    def steps(value: Duration, name: str) -> int:
        number, unit = parse(value, name)
        found = number * per_epoch if unit == "epochs" else number
        if found > _MOST_STEPS:
            raise UserError(f"{name}: {value!r} is more than {_MOST_STEPS} steps, and so are never trained.")
        return found

    total = steps(study.train.steps, "train.steps")
    if total < 1:
        raise UserError(f"train.steps: {study.train.steps!r} is no training; it must be 1 or more.")
    evaluate = steps(study.train.eval_every, "train.eval_every")
    if evaluate < 1:
        raise UserError(f"train.eval_every: {study.train.eval_every!r} is not allowed; it must be 1 or more.")
    rewind = tuple(steps(r, "rewind") for r in study.rewind)
    for written, k in zip(study.rewind, rewind, strict=True):
        if k >= total:
            raise UserError(
                f"rewind: {written!r} is step {k}, beyond the end of training at step {total}; "
                "it must be before the last step."
            )
    if not rewind:
        raise UserError("rewind: it is empty; name at least one step, for example 0.")
    if len(set(rewind)) < len(rewind):
        raise UserError(f"rewind: {study.rewind!r} names a step twice; leave out the duplicates.")
    milestones = tuple(steps(m, "optim.milestones") for m in study.optim.milestones)
    if list(milestones) != sorted(set(milestones)):
        raise UserError(f"optim.milestones: {study.optim.milestones!r} must increase.")
    warmup = steps(study.optim.warmup, "optim.warmup")
    if warmup >= total:
        raise UserError(f"optim.warmup: {study.optim.warmup!r} is not over before step {total}, the end.")
    if milestones and not warmup <= milestones[0] <= milestones[-1] < total:
        raise UserError(
            f"optim.milestones: {study.optim.milestones!r} must lie between the end of the warm-up at step "
            f"{warmup} and the end of training at step {total}."
        )
    return Lengths(
        per_epoch=per_epoch,
        total=total,
        evaluate=min(evaluate, total),
        warmup=warmup,
        milestones=milestones,
        rewind=rewind,
    )
