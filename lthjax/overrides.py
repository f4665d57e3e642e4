"""Options of a command line that replace fields of a config file's study, and how they fit together."""

import dataclasses
from collections.abc import Mapping, Sequence

from lthjax import config, idle
from lthjax.config import Study
from lthjax.errors import UserError
from lthjax.rows import names


def given(arguments: Sequence[str], option: str) -> bool:
    """Whether a command line has this option, with "-" or "_" in its name, with or without "="."""
    names = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return f"--{option}" in names


def fitted(study: Study, arguments: Sequence[str]) -> Study:
    """The study that the command line asks for, in which its last level has its controls.

    Where `--levels` moves the last level, the control levels of the config file gain the new one.

    Args:
        study: the study of the config file, with the options in its fields.
        arguments: the command line.

    Raises:
        UserError: `--control-levels` names a level beyond the last, or a rate and a density are both given.
    """
    _check_rates(study, arguments)
    if given(arguments, "control-levels"):
        config.check_control_levels(study)
    elif given(arguments, "levels") and study.control_levels and study.levels:
        levels = sorted({*study.control_levels, study.levels})
        return dataclasses.replace(study, control_levels=tuple(levels))
    return study


def check_idle(studies: Sequence[Study], arguments: Sequence[str]) -> None:
    """Rejects an option, or a rate of the config file, that has no effect in any study of the command.

    Args:
        studies: the studies of the config file, with the options in their fields.
        arguments: the command line.

    Raises:
        UserError: names the option, or the rate, and why it has none.
    """
    of_each = [idle.fields(study) for study in studies]
    _check_own_rates(studies, of_each, arguments)
    for name, why in of_each[0].items():
        if given(arguments, name) and all(name in of for of in of_each):
            raise UserError(f"--{name}: it has no effect {why}; leave it out.")
    if given(arguments, "repeats"):
        known = names("arms", "ARMS")
        for arm, _ in studies[0].repeats:
            if arm in known and all(arm not in study.arms for study in studies):
                raise UserError(
                    f"--repeats: it has no effect for {arm!r}, which is not among the arms; leave it out, or "
                    f"add {arm} to --arms."
                )


def _check_rates(study: Study, arguments: Sequence[str]) -> None:
    """Rejects `--prune.rate` where something else in the study replaces it; its patterns may name groups."""
    if not given(arguments, "prune.rate") or study.prune.scope == "group":
        return
    others = {"prune.density": study.prune.density is not None, "prune.rates": bool(study.prune.rates)}
    for name, there in others.items():
        if there and given(arguments, name):
            raise _not_both("--prune.rate", f"--{name}")
        if there:
            nothing = "None" if name == "prune.density" else ""
            raise UserError(
                f"--prune.rate: it has no effect where the config file gives {name}; leave it out, or add "
                f"--{name} {nothing}".rstrip()
                + "."
            )


def _check_own_rates(
    studies: Sequence[Study], of_each: Sequence[Mapping[str, str]], arguments: Sequence[str]
) -> None:
    """Rejects a `prune.rate` of the config file that its own density or rates replace in every study.

    The default rate cannot be told from none. An option for one of the three chooses between them.
    """
    names = ("prune.rate", "prune.density", "prune.rates")
    usual, prunes = config.Prune().rate, [study.prune for study in studies]
    if all(prune.rate == usual for prune in prunes) or any(given(arguments, name) for name in names):
        return
    if all("prune.rate" in of for of in of_each):
        ways = {_replacing(prune) for prune in prunes}
        goes_on = f", or, for a run begun with both, add {' '.join(*ways)}" if len(ways) == 1 else ""
        raise _not_both("prune.rate", names[1 + bool(prunes[0].rates)], goes_on)


def _replacing(prune: config.Prune) -> tuple[str, ...]:
    """The option, with its values, that says what the fields beside the rate say."""
    if prune.rates:
        return ("--prune.rates", *map(str, prune.rates))
    return ("--prune.density", str(prune.density))


def _not_both(rate: str, other: str, goes_on: str = "") -> UserError:
    """What is said of a rate and of what replaces it where the same place gives both."""
    return UserError(f"{rate}: it does not go together with {other}; leave one of them out{goes_on}.")
