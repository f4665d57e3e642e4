"""Makes several studies from one: settings are lists of {field: value}, built by small pure functions.

In Python:

    from lthjax import sweep
    from lthjax.config import Study

    configs = sweep.studies(
        Study(name="rates"),
        sweep.product(sweep.values("prune.scope", "layer", "global"), sweep.values("prune.rate", 0.2, 0.4)),
    )
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lthjax import config
from lthjax.config import Study
from lthjax.errors import UserError, counted

Settings = Mapping[str, Any]
# The fields of `rounds`.
SCHEDULE = ("levels", "prune.rate", "prune.rates", "prune.density", "prune.course")


def values(field: str, *of_field: Any) -> list[Settings]:
    """One setting per value.

    >>> values("prune.rate", 0.2, 0.4)
    [{'prune.rate': 0.2}, {'prune.rate': 0.4}]
    """
    return [{field: value} for value in of_field]


def product(*axes: Iterable[Settings]) -> list[Settings]:
    """Every combination of one setting from each axis; the last axis varies fastest.

    >>> product(values("model", "lenet300", "lenet5"), values("optim.lr", 0.1))
    [{'model': 'lenet300', 'optim.lr': 0.1}, {'model': 'lenet5', 'optim.lr': 0.1}]

    Raises:
        UserError: two axes set the same field.
    """
    return [_merged(combination) for combination in itertools.product(*axes)]


def zipped(*axes: Sequence[Settings]) -> list[Settings]:
    """Combines the axes in step: the first settings of all axes, then the second settings, and so on.

    >>> zipped(values("levels", 9, 4), values("prune.rate", 0.2, 0.4))
    [{'levels': 9, 'prune.rate': 0.2}, {'levels': 4, 'prune.rate': 0.4}]

    Raises:
        UserError: the axes differ in length, or two set the same field.
    """
    lengths = [len(axis) for axis in axes]
    if len(set(lengths)) > 1:
        raise UserError(f"sweep.zipped: its axes have {lengths} settings; they must have as many each.")
    return [_merged(together) for together in zip(*axes, strict=True)]


def studies(base: Study, settings: Iterable[Settings]) -> list[Study]:
    """One study per setting: the base with the setting's fields replaced.

    Raises:
        UserError: a setting names an unknown field.
    """
    return [config.replaced(base, setting) for setting in settings]


def schedule(study: Study) -> str:
    """A description of a study's pruning: `20 % a round, layer-wise`, `one-shot to 5 %, global`."""
    return f"{rounds(study)}, {scope(study)}"


def rounds(study: Study) -> str:
    """How much is pruned in every round: `20 % a round`, `one-shot to 5 %`; the first part of `schedule`."""
    prune = study.prune
    if prune.density is not None and study.levels == 1:
        return f"one-shot to {_percent(prune.density)}"
    if prune.density is not None:
        return f"{prune.course} to {_percent(prune.density)} in {counted(study.levels, 'round')}"
    if prune.rates:
        return f"{', '.join(map(_percent, prune.rates))}, a round each"
    if isinstance(prune.rate, tuple):
        return f"{', '.join(f'{_percent(rate)} ({pattern})' for pattern, rate in prune.rate)} a round"
    return f"{_percent(prune.rate)} a round"


def scope(study: Study) -> str:
    """What is pruned, and among which: `layer-wise`, `global, unit-l1`; the second part of `schedule`."""
    prune = study.prune
    where = {"layer": "layer-wise", "global": "global", "group": "grouped"}[prune.scope]
    return where + (f", {prune.granularity}" if prune.granularity != "weight" else "")


def labels(of_studies: Sequence[Study]) -> list[str]:
    """Labels that distinguish studies; "" for each if nothing differs.

    A label has only fields that differ; the pruning schedule is described as in `schedule`.
    """
    flat = [config.flat(study) for study in of_studies]
    differing = [name for name in flat[0] if any(fields[name] != flat[0][name] for fields in flat)]
    told = (*SCHEDULE, "prune.scope", "prune.granularity")
    scheduled = any(name in told for name in differing)
    others = [name for name in differing if name not in told]
    return [
        ", ".join([*([schedule(study)] if scheduled else []), *(f"{n} {fields[n]}" for n in others)])
        for study, fields in zip(of_studies, flat, strict=True)
    ]


def _merged(parts: Iterable[Settings]) -> Settings:
    merged: dict[str, Any] = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise UserError(f"sweep: {sorted(twice)[0]} is set by two axes; leave it out of one.")
        merged |= part
    return merged


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
