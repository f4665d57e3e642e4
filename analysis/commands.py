"""The commands that a report proposes: the run's own, for all its seeds, with what a claim lacks."""

import dataclasses
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lthjax import config, home, imp, shorthand
from lthjax.config import Study
from lthjax.folder import verified

from .rows import TICKET, Row, densities, select

# Densities of 80 to 90 % sparsity.
RANGE = (0.1, 0.2)
# The mean of equal densities differs from them by rounding.
_ROUNDING = 1e-9
# A last density in the range. One of 0.1 may fall below it, as numbers of weights are whole.
_AIM = 0.11


def is_in_range(density: float) -> bool:
    """Whether a density is one of 80 to 90 % sparsity."""
    return RANGE[0] - _ROUNDING <= density <= RANGE[1] + _ROUNDING


def of_all(study: Mapping[str, Any], seeds: Collection[int], run: Path | None = None) -> str:
    """The first command of a run, for all its seeds; a process may have trained a part of them.

    It adds no seeds by itself: what it is changed for is no look of the claim that it named.

    Args:
        study: the run's study.json.
        seeds: those of its cells.
        run: its folder, which the command fills, wherever its first one wrote.
    """
    commands = study.get("commands")
    if not commands:
        return home.command("run", "--config", "CONFIG")
    command = home.without(commands[0], "--until-decided", "--budget")
    named, every = {*_numbers(command, "--seeds")}, {*seeds}
    if not named:
        # Other commands may have added seeds to those of the config file, which study.json need not have.
        last = {*study.get("config", {}).get("seeds", every)}
        options = {one[0] for of in commands for one in home.options(of) if one}
        if not last >= every or options & {"--seeds", "--until-decided"}:
            command = extended(command, "--seeds", *map(str, sorted(every | last)))
    elif named and named != every:
        command = extended(command, "--seeds", *map(str, sorted(every)))
    return home.again(command, run, verified.name_of(study) if run else "")


def _numbers(command: str, option: str) -> list[int]:
    """The whole numbers that a command gives an option; none where it does not have it."""
    given = next((one[1:] for one in home.options(command) if one[:1] == [option]), [])
    return [int(word) for word in shorthand.expanded(Study, [option, *given])[1:] if word.isdecimal()]


def extended(command: str, option: str, *values: str) -> str:
    """A command with an option, in place of the same one where the command has it: given twice it is refused.

    Arms are added to the command's own. With more levels its choice of control levels is left out, so that
    the new levels have controls.
    """
    given = home.options(command)
    if option == "--levels":
        given = [one for one in given if one[:1] != ["--control-levels"]]
    for one in given[1:]:
        if one[0] == option:
            own = one[1:] if option == "--arms" else []
            one[1:] = dict.fromkeys((*own, *values))
            break
    else:
        given.append([option, *values])
    return shlex.join(word for one in given for word in one)


def is_pattern(study: Mapping[str, Any]) -> bool:
    """Whether a study prunes to an N:M pattern, which is made in one level."""
    return ":" in study.get("config", {}).get("prune", {}).get("granularity", "")


def deeper(again: str, study: Mapping[str, Any], rows: Sequence[Row], chain: str) -> tuple[str, list[int]]:
    """The run's command with levels in the range, and which levels these will be.

    It has as many levels as pass the range, or rounds that do not pass over it; where the config names the
    last density, a density in the range. An N:M pattern has one level, in the range or not.
    """
    left = densities(row for row in select(rows, chain=chain, arm=TICKET) if row.level)
    prune = study.get("config", {}).get("prune", {})
    if is_pattern(study):
        return again, [level for level in left if is_in_range(left[level])]
    if prune.get("density") is not None:
        return _dense_enough(again, config.from_dict(study["config"]), left)
    last, rates = max(left, default=0), prune.get("rates")
    if last and left[last] < 1:
        share, enough = left[last] ** (1 / last), last
        if left[last] > RANGE[0]:
            # Rounds go on to keep the same share of what is left.
            enough = math.ceil(last * math.log(RANGE[0]) / math.log(left[last]))
        enough = min(enough, len(rates)) if rates else enough
        if reached := [n for n in range(1, enough + 1) if is_in_range(left.get(n, share**n))]:
            return extended(again, "--levels", str(enough)), reached
    plain = extended(again, "--prune.rates") if rates else again
    at_rate = extended(plain, "--prune.rate", "0.2") if last or rates else plain
    return extended(at_rate, "--levels", "11"), [n for n in range(1, 12) if is_in_range(0.8**n)]


def _dense_enough(again: str, study: Study, left: Mapping[int, float]) -> tuple[str, list[int]]:
    """As `deeper`, of a study that names its last density, which stays where a level is in the range."""

    def reached(of: Study, known: Mapping[int, float]) -> list[int]:
        every = range(1, of.levels + 1)
        return [n for n in every if is_in_range(known.get(n) or imp.schedule_at(of, n)["density"])]

    if levels := reached(study, left):
        return again, levels
    aimed = dataclasses.replace(study, prune=dataclasses.replace(study.prune, density=_AIM))
    return extended(again, "--prune.density", f"{_AIM:g}"), reached(aimed, {})


def rewound(again: str, study: Mapping[str, Any], own: int) -> str:
    """The run's command with two rewind steps: 0 and its own, or, where that is 0, a later one.

    The later one is an epoch, or, where an epoch is more than half of a training, a tenth of the training.
    """
    lengths = study.get("lengths", {})
    total, epoch = lengths.get("total", math.inf), lengths.get("per_epoch", 0)
    late = "1 epoch" if 2 * epoch <= total else str(max(1, total // 10))
    return extended(again, "--rewind", "0", str(own) if own else late)


def controlled(again: str, deeper: str, study: Mapping[str, Any], reached: Sequence[int]) -> str:
    """The deeper command, with controls in the range where the run's own control levels are all outside."""
    own = {*(study.get("config", {}).get("control_levels") or _numbers(again, "--control-levels"))}
    last = _numbers(deeper, "--levels")[:1]
    # A last level that the command names gets controls by itself, unless it names their levels, too.
    by_itself = [] if _numbers(deeper, "--control-levels") else last
    if not own or {*own, *by_itself} & {*reached}:
        return deeper
    allowed = [n for n in {*own, *reached} if not last or n <= last[0]]
    return extended(deeper, "--control-levels", *map(str, sorted(allowed)))


def with_control(
    study: Mapping[str, Any], rows: Sequence[Row], arm: str, level: int, run: Path | None = None
) -> str:
    """The run's command, by which a control is also trained at a level; arguments as of `of_all`."""
    again = extended(of_all(study, {row.seed for row in rows}, run), "--arms", TICKET, arm)
    own = {*_numbers(again, "--control-levels")} or {*(study.get("config", {}).get("control_levels") or ())}
    return extended(again, "--control-levels", *map(str, sorted({*own, level}))) if own else again
