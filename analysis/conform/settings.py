"""A run's settings as ledgers name them, and whether they are the published ones."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax

from lthjax import config, models, prune
from lthjax.errors import unknown

from .ledger import ALL, Ledger, Line, parsed
from .measured import Measured

# Settings that a run keeps in steps, whatever they were given in.
_STEPS = {
    "train.steps": "total", "train.eval_every": "evaluate",
    "optim.warmup": "warmup", "optim.milestones": "milestones",
}  # fmt: skip
_SEEDS, _REPEATS, _REWIND, _RATE = "seeds", "repeats.", "rewind", "prune.rate"


class Compared(NamedTuple):
    """A setting beside the published one.

    Attributes:
        name: the setting.
        published, ours: their values.
        same: whether they are the same.
        line: of the ledger.
    """

    name: str
    published: Any
    ours: Any
    same: bool
    line: Line


def compared(measured: Measured, ledger: Ledger) -> list[Compared]:
    """Every setting of a ledger beside the run's.

    Raises:
        UserError: the ledger names a setting that there is not.
    """
    made = []
    for line in ledger.settings:
        ours, theirs = of(measured, line.of), parsed(line.value)
        made.append(Compared(line.of, theirs, ours, same(measured, line.of, theirs), line))
    return made


def of(measured: Measured, name: str) -> Any:
    """A run's setting.

    Raises:
        UserError: there is no such setting.
    """
    about = measured.about
    identity = {**config.defaults(), **about["identity"]}
    if name in _STEPS:
        steps = about["lengths"][_STEPS[name]]
        return [*steps] if isinstance(steps, tuple) else steps
    if name == _SEEDS:
        return measured.seeds
    if name == _REWIND:
        return measured.rewinds
    if name.startswith(_REPEATS):
        arm = name.removeprefix(_REPEATS)
        return max((row.repeat for row in measured.rows if row.arm == arm), default=0)
    if name not in identity:
        there = {*identity, *_STEPS, _SEEDS, _REWIND, f"{_REPEATS}ARM"}
        raise unknown("of", name, there)
    return identity[name]


def same(measured: Measured, name: str, published: Any) -> bool:
    """Whether a run's setting is the published one; of several rewind steps, whether it is among them."""
    ours = of(measured, name)
    if name == _REWIND:
        return published in ours
    if name == _RATE and ours != published:
        # Other words for the same rates of the layers that there are.
        return (rates := _rates(measured, ours)) is not None and rates == _rates(measured, published)
    return bool(ours == published)


def _rates(measured: Measured, rate: Any) -> list[float] | None:
    """The rate of every prunable leaf; None where the network is not known."""
    sizes = _sizes(measured)
    if sizes is None:
        return None
    return [float(one) for one in prune.rates_of(rate, [path for path, _, prunable in sizes if prunable])]


def parameters(measured: Measured) -> int | None:
    """The number of trained parameters of a run's network; None where the network is not known here."""
    sizes = _sizes(measured)
    return None if sizes is None else sum(size for _, size, _ in sizes)


def _sizes(measured: Measured) -> list[tuple[str, int, bool]] | None:
    """(path, size, whether prunable) of every leaf; None where the network is not known here."""
    about = measured.about
    name, data = about["identity"]["model"], about["data"]
    return _leaves(name, tuple(data["shape"]), data["classes"]) if name in models.MODELS else None


@lru_cache
def _leaves(name: str, shape: tuple[int, int, int], classes: int) -> list[tuple[str, int, bool]]:
    model = models.build(name, shape, classes)
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    mask = jax.eval_shape(prune.ones, params)
    trees = (prune.paths(params), jax.tree.leaves(params), jax.tree.leaves(mask))
    return [(path, leaf.size, m.ndim > 0) for path, leaf, m in zip(*trees, strict=True)]


def lacking(measured: Measured, line: Line, settings: list[Compared]) -> str:
    """Why a value cannot be compared for its settings; "" where it can."""
    for one in settings:
        if one.line.needs == ALL and not one.same:
            return _other(one.name, one.ours, one.published)
    published = {one.name: one.published for one in settings}
    for need in line.needs.split():
        name, given, text = need.partition("=")
        theirs = parsed(text) if given else published.get(name)
        if not same(measured, name, theirs):
            return _other(name, of(measured, name), theirs)
    return ""


def _other(name: str, ours: Any, theirs: Any) -> str:
    return f"{name} is {shown(ours)} here, {shown(theirs)} there"


def shown(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, bool) or not isinstance(value, int | float | list | tuple):
        return "–" if value in (None, "") else str(value)
    if isinstance(value, list | tuple):
        return (
            ", ".join(
                f"{one[0]} {one[1]:g}" if isinstance(one, list | tuple) else f"{one:,}" for one in value
            )
            or "–"
        )
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
