"""Short ways to write options: `0..4` and `0,1,2` for whole numbers, `30%` for a share."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, get_args, get_origin, get_type_hints

from lthjax.errors import UserError

_MOST = 100_000


def expanded(kind: type, arguments: Sequence[str]) -> list[str]:
    """A command line with its short ways written out; what is no option of a dataclass stays.

    Args:
        kind: the dataclass of the options; a field of a nested one may have its name as a prefix.
        arguments: the command line.

    Raises:
        UserError: an option of whole numbers has something between them that is not understood.
    """
    hints, found, option = dict(_hints(kind)), [], ""
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            if not equals:
                found.append(argument)
                continue
            words = _expanded(option, value, hints.get(_plain(option)))
            # Of several values only the first can stand behind the sign.
            found += [argument] if words == [value] else [option, *words]
        else:
            found += _expanded(option, argument, hints.get(_plain(option)))
    return found


def values(kind: type, option: str) -> str:
    """The values that an option takes, in words: "a whole number"; "" where they are no numbers.

    Args:
        kind: the dataclass of the options.
        option: as it is written on the command line.
    """
    simple: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        (int, ...): "one or more whole numbers",
        (float, ...): "one or more numbers",
        (tuple[str, int], ...): "pairs of a name and a whole number",
        (tuple[str, float], ...): "pairs of a pattern and a number",
    }
    hint = dict(_hints(kind)).get(_plain(option))
    every = [hint] if get_origin(hint) is tuple else get_args(hint) or [hint]
    plain = [get_args(of) if get_origin(of) is tuple else of for of in every if of is not type(None)]
    return " or ".join(simple[of] for of in plain) if {*plain} <= simple.keys() else ""


def is_number(text: str) -> bool:
    """Whether a text can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(option: str) -> str:
    return option[2:].replace("-", "_")


def _hints(kind: type) -> Iterator[tuple[str, Any]]:
    """The types of all options by name, those of nested dataclasses with their prefix and without."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            for inner, of in _hints(hint):  # type: ignore[arg-type]
                yield f"{name}.{inner}", of
                yield inner, of
        else:
            yield name, hint


def _expanded(option: str, value: str, hint: Any) -> list[str]:
    if hint is None:
        return [value]
    if _holds(hint, (int, ...)):
        return _whole(option, value)
    if "float" in str(hint):
        parts = value.split(",") if _holds(hint, (float, ...)) else [value]
        return [_share(part) for part in parts]
    return [value]


def _holds(hint: Any, items: tuple[Any, ...]) -> bool:
    """Whether a type is a tuple of such items, or may be one."""
    if get_origin(hint) is tuple:
        return get_args(hint) == items
    return any(_holds(option, items) for option in get_args(hint))


def _whole(option: str, value: str) -> list[str]:
    """`0..2` and `0,1,2` as three words."""
    if not re.search(r"\d", value) or re.fullmatch(r"-?\d+", value) or re.search(r"[^\d\s.,:;–-]", value):
        return [value]
    found: list[str] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:\.\.\s*(\d{1,10})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < _MOST:
            raise UserError(
                f"{option}: {value!r} is not understood; write whole numbers with spaces or commas between "
                f"them, or the first and the last: {option} 0 1 2, {option} 0,1,2 or {option} 0..2."
            )
        found += map(str, range(first, last + 1))
    return found


def _share(value: str) -> str:
    """`30%` as `0.3`, exactly."""
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,12})?)\s*%\s*", value)
    return str((Decimal(match[1]) / 100).normalize()) if match else value.strip() or value
