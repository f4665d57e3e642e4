"""Checks of every field of a study that can be checked without the data."""

import math
import re
from collections.abc import Iterable
from typing import get_args

from lthjax import durations
from lthjax.arms import ARMS
from lthjax.config import Duration, Optim, Precision, Prune, Study, check_data_name, repeats
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError, counted, unknown
from lthjax.models import INITS, MODELS
from lthjax.optim import SCHEDULES
from lthjax.rows import names
from lthjax.shorthand import is_number

# Cells of a study. Writing this many takes half a day, and 12 GB.
_DIFFERENT = "all different; leave out the duplicates"
_MOST_CELLS = 100_000
# Learning rates are float32.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


def validate(study: Study) -> None:
    """Checks every field that can be checked without the data.

    Raises:
        UserError: names the field, its value and what is allowed.
    """
    _need(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", study.name) is not None,
        "name",
        study.name,
        "up to 200 letters, digits, '_', '-' and '.', as it names a folder",
    )
    _need(len(study.seeds) > 0, "seeds", study.seeds, "at least one seed")
    for seed in study.seeds:
        _need(_whole(seed, 0) and seed < 2**32, "seeds", seed, "whole numbers from 0 to 4294967295")
    _need(_unique(study.seeds), "seeds", study.seeds, _DIFFERENT)
    _need(_whole(study.levels, 0), "levels", study.levels, "a whole number, 0 or more")
    for arm in study.arms:
        _among("arms", arm, ARMS)
        leader = ARMS[arm].on
        _need(leader in ("ticket", *study.arms), "arms", study.arms,
              f"with {leader!r}, too, whose chain {arm!r} is a leaf of")  # fmt: skip
    _need(_unique(study.arms), "arms", study.arms, _DIFFERENT)
    for arm, times in study.repeats:
        _among("repeats", arm, ARMS)
        _need(not ARMS[arm].leads, "repeats", arm, "an arm that leads no chain, as a chain runs once a seed")
        _need(_whole(times, 1), f"repeats of {arm}", times, "a whole number, 1 or more")
    _need(_unique(arm for arm, _ in study.repeats), "repeats", study.repeats, "one pair for an arm")
    for level in study.control_levels:
        _need(_whole(level, 1), "control_levels", level, "whole numbers, 1 or more")
    _need(_unique(study.control_levels), "control_levels", study.control_levels, _DIFFERENT)
    check_size(study)
    _among("model", study.model, MODELS)
    _among("init", study.init, INITS)
    check_data_name(study.data.name)
    _need(_whole(study.data.validation, 1), "data.validation", study.data.validation, "1 or more")
    _need(_whole(study.train.batch, 1), "train.batch", study.train.batch, "1 or more")
    _need(_whole(study.train.log_every, 0), "train.log_every", study.train.log_every, "0 or more")
    _among("train.precision", study.train.precision, get_args(Precision))
    _validate_optim(study.optim)
    _validate_prune(study.prune, study.levels)
    for name, value in _durations(study):
        durations.parse(value, name)


def check_size(study: Study) -> None:
    """Rejects a study with more cells than could be listed or trained.

    Raises:
        UserError: says which number is too large.
    """
    others = [arm for arm in study.arms if arm != "ticket"]
    leaders = 1 + sum(arm in ARMS and ARMS[arm].leads for arm in others)
    controls = sum(repeats(study, arm) for arm in others if arm not in ARMS or not ARMS[arm].leads)
    named = {level for level in study.control_levels if level <= study.levels}
    where = len(named) if study.control_levels else study.levels
    cells = len(study.seeds) * (1 + len(study.rewind) * (study.levels * leaders + where * controls))
    if cells > _MOST_CELLS:
        raise UserError(
            f"levels: {study.levels} with {counted(len(study.seeds), 'seed')}, "
            f"{counted(len(study.rewind), 'rewind step')} and their arms and repeats would be "
            f"{cells:,} cells; there may be {_MOST_CELLS:,}: ask for fewer."
        )


def _validate_optim(optim: Optim) -> None:
    _among("optim.name", optim.name, names("optim", "OPTIMISERS"))
    _among("optim.schedule", optim.schedule, SCHEDULES)
    _need(_SMALLEST <= optim.lr <= _LARGEST, "optim.lr", optim.lr, "above 0 and finite, in float32")
    _need(0 <= optim.momentum < 1, "optim.momentum", optim.momentum, "in [0, 1)")
    decay = optim.weight_decay
    _need(decay == 0 or _SMALLEST <= decay <= _LARGEST, "optim.weight_decay", decay,
          "0 or more and finite, in float32")  # fmt: skip
    _need(0 < optim.decay <= 1, "optim.decay", optim.decay, "in (0, 1]")
    if not SCHEDULES[optim.schedule].milestones:
        using = " or ".join(repr(name) for name, row in SCHEDULES.items() if row.milestones)
        _need(not optim.milestones, "optim.milestones", optim.milestones,
              f"empty unless optim.schedule is {using}")  # fmt: skip


def _validate_prune(prune: Prune, levels: int) -> None:
    _among("prune.criterion", prune.criterion, CRITERIA)
    _among("prune.scope", prune.scope, ("layer", "global", "group"))
    rates = prune.rate
    _need(prune.scope != "group" or not isinstance(rates, int | float), "prune.rate", rates,
          "pairs of a regex and a number where prune.scope is 'group', a pair a group")  # fmt: skip
    _validate_granularity(prune, levels)
    if isinstance(rates, int | float):
        _need(0 < rates < 1, "prune.rate", rates, "in (0, 1), for example 0.2")
    else:
        _need(len(rates) > 0, "prune.rate", rates, "a number, or pairs of a regex and a number")
        used = prune.density is None and not prune.rates
        _need(not used or prune.scope != "global", "prune.rate", rates,
              "one number where prune.scope is 'global'")  # fmt: skip
        for pattern, rate in rates:
            _need(0 < rate < 1, f"prune.rate of {pattern!r}", rate, "in (0, 1), for example 0.2")
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(f"prune.rate: {pattern!r} is not a regex: {error}.") from error
    for rate in prune.rates:
        _need(0 < rate < 1, "prune.rates", rate, "in (0, 1), for example 0.2")
    enough = not prune.rates or len(prune.rates) >= levels
    _need(enough, "prune.rates", prune.rates, f"one for each of the {counted(levels, 'level')}, or empty")
    _need(prune.density is None or 0 < prune.density < 1, "prune.density", prune.density,
          "in (0, 1), for example 0.1")  # fmt: skip
    _need(prune.density is None or not prune.rates, "prune.density", prune.density,
          "left out where prune.rates is given")  # fmt: skip
    _among("prune.course", prune.course, ("geometric", "linear", "cubic"))


def check_chains(study: Study) -> None:
    """Rejects a chain whose leaders are scored against weights that they never had.

    Raises:
        UserError: names the arm, and the criteria that it may have.
    """
    for name in study.arms:
        arm = ARMS[name]
        fresh = arm.leads and arm.start == "zero" and not arm.final
        criterion = arm.criterion or study.prune.criterion
        if fresh and CRITERIA[criterion].initial:
            known = ", ".join(other for other, row in CRITERIA.items() if not row.initial)
            raise UserError(
                f"prune.criterion: {criterion!r} is not allowed with the arm {name!r}, whose networks do not "
                f"start from the initial weights that it reads; leave out the arm, or take one of {known}."
            )


def check_slips(study: Study) -> None:
    """Rejects settings that earlier versions took, and that surely mean something else or lose cells.

    Raises:
        UserError: says what they would do, or what they must be.
    """
    for arm in study.arms:
        # The repeats of arm A are A.r2, A.r3, ...
        own = re.fullmatch(r"(?!.*\.r\d+$|dense$)[^./\\\0][^/\\\0]{0,99}", arm) is not None
        _need(own, "arms", arm, "up to 100 characters without a slash or a first '.', as it names a folder, "
              "but neither 'dense' nor a name that ends as a repeat's, in .r2")  # fmt: skip
    if isinstance(study.prune.rate, tuple):
        patterns = [pattern for pattern, _ in study.prune.rate]
        _need(not all(map(is_number, patterns)), "prune.rate", study.prune.rate,
              "pairs of a regex and a number; one rate per level is prune.rates")  # fmt: skip
    # Rows of the user's own may do without.
    if study.optim.schedule == "steps":
        _need(len(study.optim.milestones) > 0, "optim.milestones", study.optim.milestones,
              "at least one where optim.schedule is 'steps', which drops at them")  # fmt: skip


def _validate_granularity(prune: Prune, levels: int) -> None:
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", prune.granularity)
    if match is None:
        known = ("weight", "unit-l1", "unit-l2")
        return _need(prune.granularity in known, "prune.granularity", prune.granularity,
                     f"{', '.join(known)}, or N:M, for example 2:4")  # fmt: skip
    kept, group = int(match[1]), int(match[2])
    _need(0 < kept < group, "prune.granularity", prune.granularity, "N:M with 0 < N < M, for example 2:4")
    _need(prune.scope == "layer", "prune.scope", prune.scope, "'layer' where prune.granularity is N:M")
    _need(levels <= 1, "levels", levels, "1 where prune.granularity is N:M, as one level makes the pattern")
    _need(prune.density is None and not prune.rates, "prune.density", prune.density or prune.rates,
          "left out, as prune.rates, where prune.granularity is N:M")  # fmt: skip
    rates = [prune.rate] if isinstance(prune.rate, int | float) else [rate for _, rate in prune.rate]
    share = 1 - kept / group
    _need(all(math.isclose(rate, share) for rate in rates), "prune.rate", prune.rate,
          f"{share:g}, alone or in pairs, where prune.granularity is {prune.granularity}")  # fmt: skip


def _durations(study: Study) -> list[tuple[str, Duration]]:
    return [
        ("train.steps", study.train.steps),
        ("train.eval_every", study.train.eval_every),
        ("optim.warmup", study.optim.warmup),
        *(("optim.milestones", m) for m in study.optim.milestones),
        *(("rewind", r) for r in study.rewind),
    ]


def _need(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{name}: {value!r} is not allowed; it must be {allowed}.")


def _among(name: str, value: str, allowed: Iterable[str]) -> None:
    known = tuple(allowed)
    if value not in known:
        raise unknown(name, value, known)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _unique(values: Iterable[object]) -> bool:
    values = list(values)
    return len(set(values)) == len(values)
