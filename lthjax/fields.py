"""The fields of a run folder's JSON files: every field that is read, with its type.

A file that passes can be read without further checks; a file that fails gets an error of one sentence. Fields
that are not listed here are allowed.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from lthjax import config, validate
from lthjax.errors import UserError

Check = Callable[[Any], bool]


class Result(TypedDict):
    """A cell's result.json. If the cell diverged, the measurements are None or missing."""

    seed: int
    chain: str
    level: int
    arm: str
    repeat: int
    status: str
    reason: NotRequired[str]
    density: NotRequired[float]
    weights_left: NotRequired[int]
    weights: NotRequired[int]
    test_accuracy: NotRequired[float | None]
    test_loss: NotRequired[float | None]
    train_accuracy: NotRequired[float | None]
    train_loss: NotRequired[float | None]
    validation_accuracy: NotRequired[float | None]
    validation_loss: NotRequired[float | None]
    early_stop_step: NotRequired[int | None]
    early_stop_test_accuracy: NotRequired[float | None]
    early_stop_train_accuracy: NotRequired[float | None]
    start: NotRequired[int]
    steps: NotRequired[int]
    seconds: NotRequired[float]
    curves: NotRequired[dict[str, list[Any]]]
    layers: NotRequired[list[dict[str, Any]]]
    made_from: NotRequired[dict[str, Any] | None]
    platform: NotRequired[str]
    draws: NotRequired["Draws"]
    version: NotRequired[int]
    step: NotRequired[int]
    exact: NotRequired[bool]


class Draws(TypedDict):
    """Distances of the masks that the dense training drew at its evaluations: `measures.earlybird.Draws`.

    Of both scopes, {scope: [[distance, ...], ...]}, whatever the study's own is, as studies of several scopes
    may share a dense network. Earlier versions drew those of one, `scope`, and have its list; see
    `largest_of`.
    """

    scope: NotRequired[str]
    densities: list[float]
    queue: int
    largest: Any


class DataFacts(TypedDict):
    """The data's entry in study.json: counts of images, shape of an image, hash of their content."""

    name: str
    source: str
    digest: str
    shape: list[int]
    classes: int
    train: int
    validation: int
    test: int


class About(TypedDict):
    """A run folder's study.json."""

    identity: dict[str, Any]
    config: dict[str, Any]
    lengths: dict[str, Any]
    data: DataFacts
    commands: NotRequired[list[str]]
    devices: NotRequired[str]
    earlier: NotRequired[list[str]]
    environment: NotRequired[list[str]]
    git: NotRequired[str | None]
    versions: NotRequired[dict[str, str]]
    source: NotRequired[dict[str, str]]


class Newer(ValueError):
    """A file with a field that this version does not know."""


def whole(least: int) -> Check:
    """Checks for a whole number from `least` on that fits a table's column."""
    return lambda value: type(value) is int and least <= value < 2**63


def number(value: object) -> bool:
    """Checks for a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def share(value: object) -> bool:
    """Checks for a fraction, from 0 to 1."""
    return number(value) and 0 <= value <= 1  # type: ignore[operator]


def text(value: object) -> bool:
    """Checks for a string."""
    return isinstance(value, str)


def table(value: object) -> bool:
    """Checks for a JSON object."""
    return isinstance(value, dict)


def many(check: Check) -> Check:
    """Checks for a list whose items pass `check`."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def maybe(check: Check) -> Check:
    """Checks for null or a value that passes `check`."""
    return lambda value: value is None or check(value)


_CELL: Mapping[str, Check] = {
    "seed": whole(0),
    "chain": lambda value: text(value) and re.fullmatch("dense|.+-[0-9]{1,10}", value) is not None,
    "level": whole(0),
    "arm": text,
    "repeat": whole(1),
    "status": lambda value: value in ("done", "diverged"),
}
# Of a trained cell.
_TRAINED: Mapping[str, Check] = {
    "density": share,
    "weights_left": whole(0),
    "start": whole(0),
    "steps": whole(0),
    "seconds": number,
    "curves": table,
    "made_from": maybe(table),
}
# Of a replay, which `analysis.landscape` saves at the step at which its loss matches another cell's.
_REPLAYED: Mapping[str, Check] = {
    "step": whole(0),
    "train_loss": number,
    "exact": lambda value: isinstance(value, bool),
    "made_from": table,
}
# Of a cell that did not diverge.
_MEASURED: Mapping[str, Check] = {
    "test_accuracy": share,
    "test_loss": number,
    "train_accuracy": share,
    "validation_accuracy": share,
    "validation_loss": number,
    "early_stop_step": whole(0),
    "early_stop_test_accuracy": share,
}
_OF_CELL: Mapping[str, Check] = {
    "reason": text,
    "weights": whole(1),
    "draws": table,
    "version": whole(1),
}
_SCOPES = ("layer", "global")
_DRAWS: Mapping[str, Check] = {
    "densities": many(share),
    "queue": whole(2),
}
_OF_DRAWS: Mapping[str, Check] = {"scope": lambda value: value in _SCOPES}
# Of a ticket that `analysis.transfer` has moved: its sources in result.json.
_MOVED: Mapping[str, Check] = {
    "source": text,
    "source_seed": whole(0),
    "own_level": whole(0),
    "shared_init": lambda value: isinstance(value, bool),
}
# Of a cell that did not diverge. There is no training loss before the first step.
_CURVES: Mapping[str, Check] = {
    "train_loss": many(maybe(number)),
    "validation_loss": many(number),
    "validation_accuracy": many(number),
    "test_loss": many(number),
    "test_accuracy": many(number),
}
# Of single steps, which `train.log_every` records.
_LOGGED: Mapping[str, Check] = {"loss_step": many(whole(0)), "loss": many(number)}
_DATA: Mapping[str, Check] = {
    "name": text,
    "digest": text,
    "shape": lambda value: many(whole(1))(value) and len(value) == 3 and math.prod(value) < 2**24,
    "classes": whole(2),
    "train": whole(1),
    "validation": whole(0),
    "test": whole(1),
}
_LENGTHS: Mapping[str, Check] = {
    "per_epoch": whole(1),
    "total": whole(1),
    "evaluate": whole(1),
    "warmup": whole(0),
    "milestones": many(whole(0)),
    "rewind": lambda value: many(whole(0))(value) and len(value) > 0,
}
_OF_STUDY: Mapping[str, Check] = {
    "commands": many(text),
    "devices": text,
    "earlier": many(text),
    "environment": many(text),
    "git": maybe(text),
    "versions": table,
}


def result(fields: dict[str, Any]) -> None:
    """Rejects a cell's result.json that no training run can have written.

    Raises:
        ValueError: names the first field that is wrong.
    """
    _needed(fields, _CELL, "")
    if "exact" in fields:
        return _needed(fields, _REPLAYED, "")
    _needed(fields, _TRAINED, "")
    _optional(fields, _OF_CELL)
    if fields["status"] == "diverged":
        if not text(fields.get("reason")):
            raise ValueError(f"reason is {_shown(fields.get('reason'))}")
        return _optional(fields, dict.fromkeys(_MEASURED, lambda value: value is None))
    _needed(fields, _MEASURED, "")
    curves = fields["curves"]
    _needed(curves, {"step": many(whole(0))}, "curves.")
    _needed(curves, _CURVES, "curves.")
    along = dict.fromkeys(_CURVES, "step")
    if not _LOGGED.keys().isdisjoint(curves):
        _needed(curves, _LOGGED, "curves.")
        along |= {"loss": "loss_step"}
    for name, steps in along.items():
        if len(curves[name]) != len(curves[steps]):
            raise ValueError(
                f"curves.{name} has {len(curves[name])} values and curves.{steps} {len(curves[steps])}"
            )
    if "draws" in fields:
        _drawn(fields["draws"], len(curves["step"]))


def _drawn(draws: Mapping[str, Any], evaluations: int) -> None:
    _needed(draws, _DRAWS, "draws.")
    _optional(draws, _OF_DRAWS, "draws.")
    one = "scope" in draws
    _needed(draws, {"largest": many(many(maybe(share))) if one else table}, "draws.")
    if not one:
        _needed(draws["largest"], dict.fromkeys(_SCOPES, many(many(maybe(share)))), "draws.largest.")
    for distances in [draws["largest"]] if one else [draws["largest"][scope] for scope in _SCOPES]:
        wrong = [len(of) for of in distances if len(of) != len(draws["densities"])]
        if len(distances) != evaluations or wrong:
            raise ValueError("draws.largest has not one distance for each density and evaluation")


def largest_of(draws: Draws, scope: str) -> list[list[float | None]] | None:
    """The distances of masks of that scope; None where an earlier version recorded those of another."""
    if "scope" in draws:
        return draws["largest"] if draws["scope"] == scope else None
    return draws["largest"][scope]


def moved(fields: Mapping[str, Any], arms: Iterable[str]) -> str:
    """The first field of a moved ticket's result.json that is missing or unknown; "" if there is none.

    Args:
        fields: fields of a result.json that has passed `result`.
        arms: the known arms.
    """
    made = fields.get("made_from") or {}
    right = {name: check(made.get(name)) for name, check in _MOVED.items()}
    right |= {"arm": fields["arm"] in arms, "density": isinstance(fields.get("density"), float)}
    return next((name for name, is_right in right.items() if not is_right), "")


def study(fields: dict[str, Any]) -> None:
    """Rejects a study.json that no run can have written.

    Raises:
        Newer: it has a field that this version does not know.
        ValueError: names the first field that is wrong.
    """
    _needed(fields, {"identity": table, "config": table, "lengths": table, "data": table}, "")
    _optional(fields, _OF_STUDY)
    known = config.defaults().keys()
    parts = {name.partition(".")[0] for name in known if "." in name}
    names = {
        f"{name}.{inner}" if name in parts else name
        for name, value in fields["config"].items()
        for inner in (value if name in parts and isinstance(value, dict) else [""])
    }
    strange = sorted(names - known - {f"{part}." for part in parts})
    if strange:
        raise Newer(f"config has the field {strange[0]!r}, which this version does not know")
    try:
        made = config.from_dict(fields["config"])
        config.check_types(made)
        validate.check_size(made)
    except UserError as error:
        raise ValueError(f"config.{error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"config: {error}") from error
    _needed(fields["lengths"], _LENGTHS, "lengths.")
    strange = sorted(fields["lengths"].keys() - _LENGTHS.keys())
    if strange:
        raise Newer(f"lengths has the field {strange[0]!r}, which this version does not know")
    _needed(fields["data"], _DATA, "data.")


def _needed(fields: Mapping[str, Any], checks: Mapping[str, Check], prefix: str) -> None:
    lacking = [name for name in checks if name not in fields]
    if lacking:
        raise ValueError(f"it lacks {', '.join(prefix + name for name in lacking)}")
    for name, check in checks.items():
        if not check(fields[name]):
            raise ValueError(f"{prefix}{name} is {_shown(fields[name])}")


def _optional(fields: Mapping[str, Any], checks: Mapping[str, Check], prefix: str = "") -> None:
    _needed(fields, {name: check for name, check in checks.items() if name in fields}, prefix)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
