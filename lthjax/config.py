"""Definition of a study: frozen dataclasses, loaded from a Python file, overridden, fingerprinted.

A config file is Python code that ends in `config = Study(...)`, or in `configs`, a list of studies. This
module imports neither jax nor flax, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import numbers
import re
import sys
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from lthjax import home
from lthjax.errors import UserError, unknown
from lthjax.rows import Listed

Duration = int | str
"""A number of steps (`500` or "500 steps") or epochs ("2 epochs")."""
Precision = Literal["float32", "tensorfloat32", "bfloat16"]
"""Precision of the factors of products: 23, 10 and 7 explicit mantissa bits."""


def _of_python(value: Any) -> Any:
    """Python's number of one of numpy's, which compares with a tuple item by item; others as they are."""
    if type(value) is tuple:
        return tuple(map(_of_python, value))
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


class _Part:
    """A study, or a part of one: its numbers are Python's own."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _of_python(value))


@dataclass(frozen=True)
class Data(_Part):
    """The images."""

    name: Annotated[
        str,
        Listed(
            "Data set: {} (mnist_10k is part of the package, the others are fetched once), the name of an "
            "npz file in the data folder, or any TFDS image-classification set.",
            "data",
            "SOURCES",
        ),
    ] = "mnist"
    """Data set: a key of `data.SOURCES`, the name of an npz file in the data folder, or any TFDS
    image-classification set."""
    validation: int = 5000
    """Training images held out for validation, chosen by the seed."""
    augment: bool = False
    """Random shifts by up to 4 pixels and random left-right flips in training."""


@dataclass(frozen=True)
class Optim(_Part):
    """The optimiser and its learning rate."""

    name: Annotated[str, Listed("Optimiser: {}.", "optim", "OPTIMISERS")] = "adam"
    """Optimiser: a key of `optim.OPTIMISERS`."""
    lr: float = 1.2e-3
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd and nesterov; the others have their own constants."""
    weight_decay: float = 0.0
    """Weight decay of all parameters: added to the gradient under sgd and nesterov, decoupled under the
    others."""
    schedule: Annotated[
        str,
        Listed(
            "Learning rate after the warm-up: {}; cosine and linear fall to 0 at the end, steps drops by the "
            "factor `decay` at every milestone.",
            "optim",
            "SCHEDULES",
        ),
    ] = "constant"
    """Learning rate after the warm-up: a key of `optim.SCHEDULES`."""
    warmup: Duration = 0
    """Linear warm-up from 0, in steps or epochs."""
    milestones: tuple[Duration, ...] = ()
    """Milestones of the schedule "steps", or of another that uses them, in steps or epochs."""
    decay: float = 0.1
    """Factor at a milestone."""


@dataclass(frozen=True)
class Train(_Part):
    """Length of training, and how often it is evaluated."""

    steps: Duration = 5000
    """Length of training, in steps or epochs."""
    batch: int = 60
    """Images in a batch."""
    eval_every: Duration = 250
    """Steps or epochs between evaluations on validation and test; the last step is always evaluated."""
    precision: Precision = "float32"
    """Precision to which the factors of matrix products and convolutions are rounded, also in gradients;
    sums and weights are float32. Results agree across platforms. It does not speed up a CPU."""
    log_every: int = 0
    """Also record the training loss of every so many steps; 0 records its mean between evaluations alone.
    It changes no other number, and is not recorded for cells that are there already."""


@dataclass(frozen=True)
class Prune(_Part):
    """What each pruning round removes."""

    criterion: Annotated[
        str,
        Listed(
            "Score by which weights are ranked, the lowest are removed: {}; large_final is the magnitude of "
            "the trained weight.",
            "criteria",
            "CRITERIA",
        ),
    ] = "large_final"
    """Score that ranks weights; the lowest are removed: a key of `criteria.CRITERIA`."""
    scope: Literal["layer", "global", "group"] = "layer"
    """Rank within every layer, over all layers together, or over the layers of each pattern of `rate`
    together; layers without a pattern stay whole."""
    granularity: str = "weight"
    """What is pruned: single weights ("weight"); output units or filters, ranked by the sum of their weights'
    scores ("unit-l1") or of their squares ("unit-l2"), so that rates count units; or all but N of every M
    weights along the input axis ("N:M", in one level, `rate` 1 - N/M)."""
    rate: float | tuple[tuple[str, float], ...] = (("output", 0.1), (".", 0.2))
    """Share of the remaining weights removed per round: one number, or pairs of a regex on the
    weight's path and a number; the first match wins."""
    rates: tuple[float, ...] = ()
    """One rate per level, instead of `rate`."""
    density: float | None = None
    """Density at the last level, of every layer or (scope global) of all layers together, instead of `rate`.
    With one level: one-shot."""
    course: Literal["geometric", "linear", "cubic"] = "geometric"
    """Course of the density over the levels down to `density`."""


@dataclass(frozen=True)
class Study(_Part):
    """A study: seeds x levels x arms of one network on one data set."""

    name: str = "study"
    """Name of the run folder."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: each fixes the initial weights, the validation split and, by level, the order of the data."""
    levels: int = 11
    """Pruning rounds; level 0 is the dense network."""
    arms: Annotated[
        tuple[str, ...], Listed("What is trained at each level, ticket always: {}.", "arms", "ARMS")
    ] = ("ticket", "reinit", "random")
    """Arms trained at each level; ticket is always included: keys of `arms.ARMS`."""
    repeats: tuple[tuple[str, int], ...] = ()
    """Number of runs of an arm at each level and seed: pairs of arm and number; the default is 1."""
    control_levels: tuple[int, ...] = ()
    """Levels at which the arms other than ticket run; empty means every level."""
    rewind: tuple[Duration, ...] = (0,)
    """Steps or epochs to which tickets are rewound; each gives its own chain."""
    model: Annotated[str, Listed("Network: {}.", "models", "MODELS")] = "lenet5"
    """Network: a key of `models.MODELS`."""
    init: Annotated[str, Listed("Distribution of initial weights: {}.", "models", "INITS")] = "glorot"
    """Distribution of initial weights: a key of `models.INITS`."""
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    optim: Optim = field(default_factory=Optim)
    prune: Prune = field(default_factory=Prune)


class Lengths(NamedTuple):
    """A study's durations, in steps.

    Attributes:
        per_epoch: steps in an epoch, that is, whole batches in the train split; the rest of an epoch's
            order is dropped.
        total: steps of a training run from step 0.
        evaluate: steps between evaluations.
        warmup: steps of warm-up.
        milestones: steps at which the learning rate drops.
        rewind: steps to which tickets are rewound.
    """

    per_epoch: int
    total: int
    evaluate: int
    warmup: int
    milestones: tuple[int, ...]
    rewind: tuple[int, ...]


# Fields that only add cells to a study. They are outside the fingerprint, so that a study can be extended
# without training anything again. `levels` is among them where no level's rate depends on it: `identity` adds
# it where there is a density to reach, and of `prune.rates` it keeps one a level, so that with either more
# levels are another folder.
_WIDENING = ("name", "seeds", "levels", "arms", "repeats", "control_levels", "rewind")
# Fields that only say what is recorded of a training.
_RECORDING = ("train.log_every",)


def load(path: str | Path) -> Study:
    """The study in a config file.

    Raises:
        UserError: as for `load_all`, or the file defines several studies.
    """
    found = load_all(path)
    if len(found) > 1:
        raise UserError(f"{path}: it defines {len(found)} studies; load them with config.load_all.")
    return found[0]


def shipped() -> dict[str, Path]:
    """Name -> file of the configs of the package, or of the checkout."""
    return {path.stem: path for path in sorted((home.FOLDER / "configs").glob("*.py"))}


def located(path: str | Path) -> Path:
    """The file of a shipped config whose bare name, such as `quickstart`, this is; else the path as it is."""
    path = Path(path)
    return shipped().get(path.name, path) if _bare(path) and not path.is_file() else path


def _bare(path: Path) -> bool:
    return str(path) == path.stem


def load_all(path: str | Path) -> list[Study]:
    """The studies in a config file: its `config`, or all of its `configs`.

    Args:
        path: the file, or the bare name of a shipped config.

    Raises:
        UserError: the file does not exist, fails to run, or defines neither of them.
    """
    path = located(path)
    return executed(path, source(path))


def source(path: str | Path) -> bytes:
    """The code of a config file, or of the shipped config of this bare name.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = located(path)
    if path.is_file():
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(
                f"--config: {str(path)!r} cannot be read ({error.strerror}); it must be a file you may read."
            ) from error
    names = shipped()
    if _bare(path):
        raise unknown("--config", str(path), names)
    if path.stem in names:
        raise UserError(
            f"--config: {str(path)!r} is not a file; did you mean {path.stem!r}, a config of the package?"
        )
    there = sorted(str(p) for p in path.parent.glob("*.py") if p.name != "run.py")
    if there:
        raise unknown("--config", str(path), there)
    raise UserError(
        f"--config: {str(path)!r} is not a file; give the path of a config file, or the name of one of "
        f"the package: {', '.join(names)}."
    )


def executed(path: Path, code: bytes) -> list[Study]:
    """The studies that the code of a config file defines; the file itself is not read again.

    Args:
        path: the file, beside which the code finds what it imports.
        code: as `source` has read it.

    Raises:
        UserError: the code fails to run, or defines neither `config` nor `configs`.
    """
    beside = str(path.parent.resolve())
    sys.path.insert(0, beside)  # so that it can import its neighbours
    try:
        # Standard output is for the report's path, and relative options mean the folder of the command.
        with contextlib.redirect_stdout(sys.stderr), contextlib.chdir("."):
            defined = _defined(path, code)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: {_config_failure(error, path)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(beside)
    wanted = "end it with `config = Study(...)`, or with `configs`, a list of studies"
    there = [name for name in ("config", "configs") if name in defined]
    if len(there) != 1:
        raise UserError(f"{path}: it defines {' and '.join(there) or 'no `config`'}; {wanted}.")
    found = defined[there[0]]
    studies = list(found) if there == ["configs"] and isinstance(found, list | tuple) else [found]
    # A subclass may add or derive fields that readers of a run folder do not know.
    strange = [type(study).__name__ for study in studies if type(study) is not Study]
    if strange or not studies:
        what = f"of type {strange[0]}" if strange else "that is empty"
        raise UserError(f"{path}: it defines a `{there[0]}` {what}; {wanted}.")
    for study in studies:
        check_types(study)
        check_control_levels(study)
    return studies


def _defined(path: Path, code: bytes) -> dict[str, Any]:
    """The names that a config file's code defines, run as a module, which its dataclasses look up."""
    name = "<config>"  # has no dot, which would be that of a package
    module = types.ModuleType(name)
    module.__file__, module.__package__ = str(path), ""
    outer = sys.modules.get(name)  # of a config that loads this one
    sys.modules[name] = module
    try:
        exec(compile(code, str(path), "exec"), vars(module))
    finally:
        del sys.modules[name]
        if outer is not None:
            sys.modules[name] = outer
    return vars(module)


def from_dict(fields: dict[str, Any]) -> Study:
    """The study with these fields, as given by `dataclasses.asdict` and JSON.

    Raises:
        TypeError: a field is unknown, or a part of the study is no dictionary.
    """

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    inner = {"data": Data, "train": Train, "optim": Optim, "prune": Prune}
    made = {
        name: inner[name](**{k: tuples(v) for k, v in value.items()}) if name in inner else tuples(value)
        for name, value in fields.items()
    }
    return Study(**made)


def replaced(study: Study, fields: Mapping[str, Any]) -> Study:
    """The study with new values for some fields, by dotted name: {"levels": 3, "train.steps": 500}.

    Raises:
        UserError: a field is unknown.
    """
    known = flat(study)
    for name in fields:
        if name not in known:
            raise unknown("field", name, known)
    whole = dataclasses.asdict(study)
    for name, value in fields.items():
        part, _, inner = name.rpartition(".")
        (whole[part] if part else whole)[inner] = value
    return from_dict(whole)


def check_control_levels(study: Study) -> None:
    """Rejects control levels beyond the study's last level, which would have no effect.

    Not part of `validate`: a file's `control_levels` stay valid if `--levels` asks for fewer levels.

    Raises:
        UserError: names the levels.
    """
    beyond = [level for level in study.control_levels if level > study.levels]
    if beyond:
        raise UserError(
            f"control_levels: {beyond[0]} is beyond the last level, {study.levels}; it must be from 1 to "
            "levels: name other levels, or raise levels."
        )


def check_data_name(name: str) -> None:
    """Rejects a data name that leaves the data folder or that no file can have.

    Raises:
        UserError: quotes the name.
    """
    parts = name.split("/")
    if any(not part or part.startswith(".") or len(part.encode()) > 200 for part in parts) or not (
        name.isprintable()
    ):
        raise UserError(
            f"data.name: {name!r} is not allowed; it must be the name of a data set, not a path (the folder "
            "that it lies in is --data-dir)."
        )


def check_types(part: Any, prefix: str = "") -> None:
    """Rejects a field whose value is not of its declared type.

    Args:
        part: a study, or a part of one.
        prefix: prefix of its field names.

    Raises:
        UserError: names the field.
    """
    hints = get_type_hints(type(part))
    for field_ in dataclasses.fields(part):
        value, hint = getattr(part, field_.name), hints[field_.name]
        if dataclasses.is_dataclass(hint) and type(value) is hint:
            check_types(value, f"{prefix}{field_.name}.")
        elif dataclasses.is_dataclass(hint) or not _fits(value, hint):
            written = getattr(part.__class__, "__annotations__", {}).get(field_.name, hint)
            written = hint if get_origin(written) is Annotated else written
            kind = getattr(written, "__name__", str(written)) if isinstance(written, type) else str(written)
            raise UserError(f"{prefix}{field_.name}: {value!r} is not allowed; it must be of type {kind}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is Literal:
        return isinstance(value, str)  # `validate` checks which strings are allowed
    if arguments:
        return any(_fits(value, option) for option in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _config_failure(error: BaseException, path: Path) -> str:
    """One clause that says why a config file fails to run."""
    typo = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    classes = {c.__name__: c for c in (Study, Data, Optim, Train, Prune)}
    if typo and typo[1] in classes:
        known = [f.name for f in dataclasses.fields(classes[typo[1]])]
        return str(unknown(f"field of {typo[1]}", typo[2], known))
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return f"line {line}: {type(error).__name__}: {error}; mend the config file."


def identity(study: Study, in_steps: Lengths, digest: str) -> dict[str, Any]:
    """All settings that a cell's numbers depend on, by dotted name; durations in steps.

    Args:
        study: a validated study.
        in_steps: its durations.
        digest: the content hash of its data.
    """
    from lthjax.criteria import CRITERIA, draws_units

    fields = flat(study)
    for name in (*_WIDENING, *_RECORDING):
        del fields[name]
    fields["train.steps"] = in_steps.total
    fields["train.eval_every"] = in_steps.evaluate
    fields["optim.warmup"] = in_steps.warmup
    fields["optim.milestones"] = in_steps.milestones
    if study.prune.density is not None:
        fields["levels"] = study.levels  # as each level's rate then depends on their number
    fields["prune.rates"] = study.prune.rates[: study.levels]
    how = study.prune
    version = CRITERIA[how.criterion].version + draws_units(how.criterion, how.scope, how.granularity)
    if version > 1:
        fields["prune.criterion_version"] = version
    # 1 and 1.0 are one learning rate, and so one folder.
    fields |= {name: float(fields[name]) for name, value in defaults().items() if isinstance(value, float)}
    return json.loads(json.dumps({**fields, "data.digest": digest}))


def fingerprint(full: dict[str, Any]) -> str:
    """Eight hexadecimal digits of `identity`, without fields at their defaults.

    So a field that is added later, with a default that keeps the old behaviour, renames no old run.
    """
    usual = defaults()
    kept = {k: v for k, v in full.items() if k not in usual or usual[k] != v}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def defaults() -> dict[str, Any]:
    """Every field's default by dotted name, as in `identity`."""
    return json.loads(json.dumps(flat(Study())))


def repeats(study: Study, arm: str) -> int:
    """The number of runs of an arm at each level and seed."""
    return dict(study.repeats).get(arm, 1)


def flat(study: Study) -> dict[str, Any]:
    """A study's fields by dotted name: {"train.batch": 60, ...}."""
    fields: dict[str, Any] = {}
    for name, value in dataclasses.asdict(study).items():
        if isinstance(value, dict):
            fields |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            fields[name] = value
    return fields
