"""What a study needs: its data, its lengths, its network; its cells, and which of them are missing."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lthjax import config, data, durations, idle, imp, manifest, models, prune, settings, sweep, validate
from lthjax.arms import versions
from lthjax.devices import replicate
from lthjax.errors import UserError, check_folder, counted
from lthjax.folder.places import PLACES, cells_of, folder, saved_step, state_folder
from lthjax.folder.verified import check_identity, read_result
from lthjax.imp import DENSE, Cell
from lthjax.models import Model


class Prepared(NamedTuple):
    """A study that has been checked against its data.

    Attributes:
        study: the config.
        dataset: its images.
        lengths: its durations in steps.
        model: its network.
        identity: the settings that its numbers depend on, by name.
        label: distinguishes it from the other studies of a sweep; "" for a single study.
    """

    study: config.Study
    dataset: data.Dataset
    lengths: config.Lengths
    model: Model
    identity: dict[str, Any]
    label: str = ""

    @property
    def folder(self) -> str:
        """The name of the run folder."""
        return f"{self.study.name}-{config.fingerprint(self.identity)}"

    @property
    def training(self) -> str:
        """The fingerprint of all settings but pruning: equal fingerprints mean equal dense networks.

        What is recorded of a training, beside its numbers, counts as well.
        """
        pruning, every = ("levels", "prune."), self.study.train.log_every
        rest = {k: v for k, v in self.identity.items() if not k.startswith(pruning)}
        return config.fingerprint(rest | ({"train.log_every": every} if every else {}))


class Plan(NamedTuple):
    """The cells of a study, and those still to train.

    Attributes:
        cells: all cells of the study.
        done: cells in the run folder.
        missing: cells not in the run folder, except those after a diverged training run.
        steps: replicate steps that the missing cells take.
        seeds: the seeds that have something to train.
    """

    cells: list[Cell]
    done: list[Cell]
    missing: list[Cell]
    steps: int
    seeds: tuple[int, ...] = ()

    @property
    def behind(self) -> int:
        """How many cells are neither there nor to be trained, as they come after a diverged training run."""
        return len(self.cells) - len(self.done) - len(self.missing)


def prepare(study: config.Study, data_dir: str | Path = "data", *, trained: bool = False) -> Prepared:
    """Validates a study, loads its data, and resolves the settings that depend on them.

    Args:
        study: the config.
        data_dir: the data folder.
        trained: whether its cells are there, and are looked at: earlier versions trained chains and rates
            that are refused now.

    Raises:
        UserError: something in the config is not allowed or does not fit the data.
    """
    return prepare_all([study], data_dir, trained=trained)[0]


@settings.pinned()
def prepare_all(
    studies: Sequence[config.Study], data_dir: str | Path = "data", *, trained: bool = False
) -> list[Prepared]:
    """Prepares the studies of a sweep; each data set is loaded once.

    Args:
        studies: the configs.
        data_dir: the data folder.
        trained: as for `prepare`.

    Raises:
        UserError: as for `prepare`; or two of them have the same numbers, whatever their names.
    """
    replicate.use_all_cores()
    for study in studies:
        validate.validate(study)
        if not trained:
            validate.check_chains(study)
            validate.check_slips(study)
    datasets = {
        name: data.load(name, data_dir) for name in dict.fromkeys(study.data.name for study in studies)
    }
    prepared = [
        _prepare(study, datasets[study.data.name], label, trained)
        for study, label in zip(studies, sweep.labels(studies), strict=True)
    ]
    first: dict[str, int] = {}
    for number, one in enumerate(prepared, 1):
        same = first.setdefault(one.folder if trained else config.fingerprint(one.identity), number)
        if same != number:
            raise UserError(_shared(same, number, studies, one.folder))
    if not trained:
        _check_twins(prepared)
    return prepared


def _check_twins(prepared: Sequence[Prepared]) -> None:
    """Raises for two studies that would give the same numbers, as they differ only where it has no effect."""
    first: dict[tuple[str, str], tuple[int, Prepared]] = {}
    for number, one in enumerate(prepared, 1):
        unused = idle.fields(one.study)
        rest = {name: value for name, value in one.identity.items() if name not in unused}
        key = (one.study.name, config.fingerprint(rest))
        of, other = first.setdefault(key, (number, one))
        differing = [name for name in unused if one.identity[name] != other.identity[name]]
        if differing:
            raise UserError(
                f"configs: studies {of} and {number} differ in {differing[0]} alone, which has no effect "
                f"{unused[differing[0]]}; leave one out."
            )


def _shared(first: int, second: int, studies: Sequence[config.Study], name: str) -> str:
    """Why two studies of a sweep are one, and how to write them as one; `name` is the second one's folder."""
    one, other = (config.flat(studies[number - 1]) for number in (first, second))
    wider = [field for field in ("rewind", "seeds", "arms") if one[field] != other[field]]
    how = "leave one out, or make them one with more seeds, levels or arms."
    if wider:
        field = wider[0]
        both = tuple(dict.fromkeys((*one[field], *other[field])))
        how = f"{field}={both} in one study does it, and trains each dense network once."
    named = one["name"] != other["name"]
    what = "are parts of one study" if named else f"would share the folder {name}"
    return f"configs: studies {first} and {second} differ in nothing that changes a number, and {what}; {how}"


def _prepare(study: config.Study, dataset: data.Dataset, label: str, trained: bool) -> Prepared:
    lengths = durations.lengths(study, len(dataset.train_images) - study.data.validation)
    model = models.build(study.model, dataset.shape, dataset.classes, study.init)
    weights = _weights(model)
    _check_rates(study, weights)
    if not trained:
        _check_order(study, weights)
        _check_planned(study, model)
    identity = config.identity(study, lengths, dataset.digest)
    return Prepared(study, dataset, lengths, model, identity, label)


def _weights(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that pruning may remove, by path."""
    mask = prune.ones(jax.eval_shape(model.init, jax.random.key(0)).params)
    leaves = zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
    return {path: leaf.shape for path, leaf in leaves if leaf.ndim}


def _check_rates(study: config.Study, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Raises for a rate whose pattern matches no weight, and for a structure that its layers do not have."""
    if isinstance(study.prune.rate, tuple):
        for pattern, _ in study.prune.rate:
            if not any(re.search(pattern, path) for path in weights):
                raise UserError(
                    f"prune.rate: {pattern!r} matches no weight of {study.model}; its weights are "
                    f"{', '.join(weights)}."
                )
    if study.prune.granularity != "weight":
        rates = prune.rates_of(study.prune.rate, [*weights])
        # Within layers, a density or rates by round are those of every layer, whatever the patterns say.
        by_round = study.prune.density is not None or bool(study.prune.rates)
        every = study.prune.scope == "global" or (study.prune.scope == "layer" and by_round)
        for (path, shape), rate in zip(weights.items(), rates, strict=True):
            if rate or every:
                _check_structure(
                    study.prune.granularity, path, shape, "group" if by_round else "layer or group"
                )


def _check_order(study: config.Study, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Raises for a rate whose pattern is the first match of no weight, but for rates that nobody chose."""
    chosen = study.prune.rate != config.Prune().rate and "prune.rate" not in idle.fields(study)
    if not (chosen and isinstance(study.prune.rate, tuple)):
        return
    first = prune.groups_of(study.prune.rate, [*weights])
    for number, (pattern, _) in enumerate(study.prune.rate):
        if number not in first:
            there = {i for i, path in zip(first, weights, strict=True) if re.search(pattern, path)}
            before = " and ".join(repr(study.prune.rate[i][0]) for i in sorted(there))
            match = "matches" if len(there) == 1 else "match"
            raise UserError(
                f"prune.rate: {pattern!r} never applies: {before} before it {match} all of its weights; put "
                "it first, or leave it out."
            )


def _check_planned(study: config.Study, model: Model) -> None:
    """Raises for a study that prunes no weight or all of them; a later level that does so is warned of.

    Deep levels of small networks may, by rounding. Units of several layers are not planned, nor checked.
    """
    densities, how = imp.planned(study, model), study.prune
    if not densities:
        return
    by_density = how.density is not None
    field = "prune.density" if by_density else "prune.rates" if how.rates else "prune.rate"
    value, weights = config.flat(study)[field], f"none of the weights of {study.model}"
    higher, lower = (
        ("higher ones", "lower ones") if isinstance(value, tuple) else ("a higher one", "a lower one")
    )
    if densities[-1] == 1:
        removes = f"removes {weights} in {counted(study.levels, 'level')}"
        raise UserError(f"{field}: {value!r} {removes}; give {lower if by_density else higher}.")
    if densities[-1 if by_density else 0] == 0:
        raise UserError(f"{field}: {value!r} leaves {weights}; give {higher if by_density else lower}.")
    if 0 in densities:
        first = densities.index(0) + 1
        data.warn_once(f"warning: {field}: from level {first} on no weight of {study.model} is left.")
    steps = enumerate(itertools.pairwise([1.0, *densities]), 1)
    if same := [level for level, (before, after) in steps if 0 < before == after]:
        more = f" and {counted(len(same) - 1, 'later level')}" if len(same) > 1 else ""
        data.warn_once(
            f"warning: {field}: by rounding no weight is removed at level {same[0]}{more}; the mask stays as "
            "it was."
        )


def _check_structure(granularity: str, path: str, shape: tuple[int, ...], scope: str) -> None:
    """Raises for a layer that cannot be pruned by units or by a pattern; `scope` leaves layers out."""
    if ":" in granularity:
        group = int(granularity.partition(":")[2])
        if shape[-2] % group:
            raise UserError(
                f"prune.granularity: {granularity} does not fit {path}, whose {shape[-2]} inputs are not a "
                f"multiple of {group}; name the layers that it fits in prune.rate, with prune.scope {scope}."
            )
    elif path.startswith("output/"):
        raise UserError(
            f"prune.granularity: the units of {path} are the classes, which stay; name the other layers in "
            f"prune.rate, with prune.scope {scope}."
        )


def _check_network(prepared: Prepared, run: Path) -> None:
    """Raises where a network of this name, but of other shapes, has been trained in the run folder.

    Names are in the fingerprint, and not the code of a user's own network; one state or cell tells for all.
    """
    for of in (path.parent for pattern in PLACES[:2] for path in run.glob(f"{pattern}/{manifest.FILE}")):
        try:
            made = manifest.read(of)
        except manifest.Damaged:
            continue  # said where its files are read
        if made is None or made.study != config.fingerprint(prepared.identity) or "params" not in made.arrays:
            continue
        variables = jax.eval_shape(prepared.model.init, jax.random.key(0))._asdict()
        now = {
            (part, path): leaf.shape
            for part, tree in variables.items()
            for path, leaf in zip(prune.paths(tree), jax.tree.leaves(tree), strict=True)
        }
        there = {
            (part, path): tuple(shape)
            for part in variables
            for path, (shape, _) in made.arrays.get(part, {}).items()
        }
        for place in [place for place in (*there, *now) if there.get(place) != now.get(place)][:1]:
            shapes = [of.get(place) for of in (there, now)]
            old, new = ("absent" if of is None else "x".join(map(str, of)) or "a number" for of in shapes)
            raise UserError(
                f"{run}: its networks are another {prepared.study.model!r} than that of now: {place[1]} is "
                f"{old} there and {new} here; give the study another --name, or take the network of before."
            )
        return


def plan(
    prepared: Prepared,
    out: str | Path = "runs",
    lent: Mapping[int, Iterable[int]] | None = None,
) -> Plan:
    """The cells of a study, and those missing from its run folder.

    Args:
        prepared: the study.
        out: the folder of run folders.
        lent: seeds whose dense network is copied from another study of the sweep, with the rewind
            states that are copied with it.

    Raises:
        UserError: the folder belongs to another config, or to another network of the same name.
    """
    lent = lent or {}
    check_folder(out, "--out")
    run = Path(out) / prepared.folder
    check_identity(run, prepared.identity)
    _check_network(prepared, run)
    todo = {seed: _missing(prepared, run, seed, lent.get(seed)) for seed in prepared.study.seeds}
    cells = imp.cells(prepared.study, prepared.lengths)
    _check_versions(prepared, run, [cell for missing, _ in todo.values() for cell in missing])

    def begun_anew(seed: int) -> bool:
        """Whether a seed's initial weights are gone, which take no step to make."""
        return not _there(state_folder(run, seed, 0)) and _there(folder(run, Cell(seed, DENSE, 0, DENSE)))

    return Plan(
        cells,
        [cell for cell in cells if _there(folder(run, cell))],
        [cell for missing, _ in todo.values() for cell in missing],
        sum(steps for _, steps in todo.values()),
        tuple(seed for seed, (missing, steps) in todo.items() if missing or steps or begun_anew(seed)),
    )


def _check_versions(prepared: Prepared, run: Path, missing: Iterable[Cell]) -> None:
    """Raises where new cells of an arm would come beside some of another version of it, of whatever seed."""
    new = {cell.arm for cell in missing}
    for arm, version in versions(prepared.study, prepared.model).items():
        if arm not in new:
            continue
        there = [cell for cell in cells_of(run, arm) if _there(cell)]
        others = [cell for cell in there if read_result(cell).get("version", 1) != version]
        if others:
            raise UserError(
                f"{run}: {counted(len(others), 'cell')} of {arm}, {others[0].relative_to(run)} the first, "
                "are of another version of this arm, whose numbers differ (CHANGELOG.md); new ones cannot "
                "come beside them. Delete the folders of this arm, so that they are made anew, or go on "
                "under another --name."
            )


def _missing(prepared: Prepared, run: Path, seed: int, lent: Iterable[int] | None) -> tuple[list[Cell], int]:
    """The missing cells of a seed, and the steps that they take.

    `lent` has the rewind states that are copied with a dense network from another study, or is None.
    """
    study, lengths = prepared.study, prepared.lengths
    dense = Cell(seed, DENSE, 0, DENSE)
    coming = () if lent is None else tuple(lent)
    needed = [k for k in lengths.rewind if k not in coming and not _there(state_folder(run, seed, k))]
    missing: list[Cell] = []
    if not _there(folder(run, dense)):
        missing.append(dense)
        whole = lengths.total if lent is None else max(needed, default=0)
        steps = max(whole - saved_step(run, dense), 0)
    elif _diverged(run, dense):
        return [], 0
    else:
        steps = max(needed, default=0)
    for chain in imp.chains(study, lengths):
        for level in range(1, study.levels + 1):
            absent = [
                cell for cell in imp.cells_at(study, seed, chain, level) if not _there(folder(run, cell))
            ]
            missing += absent
            for cell in absent:
                start, stop = imp.span_of(cell, chain, lengths.total)
                steps += stop - max(start, saved_step(run, cell))
            leader = Cell(seed, chain.name, level, chain.leader)
            if leader not in absent and _diverged(run, leader):
                break
    return missing, steps


def plan_all(studies: Sequence[Prepared], out: str | Path = "runs") -> list[Plan]:
    """The plans of a sweep's studies. A dense network that several studies share is trained once."""
    plans = []
    for lender, one in zip(lenders(studies), studies, strict=True):
        lent = {} if lender is one else dict.fromkeys(lender.study.seeds, lender.lengths.rewind)
        plans.append(plan(one, out, lent))
    return plans


def together(plans: Sequence[Plan]) -> Plan:
    """Merges several plans into one."""
    return Plan(
        [cell for one in plans for cell in one.cells],
        [cell for one in plans for cell in one.done],
        [cell for one in plans for cell in one.missing],
        sum(one.steps for one in plans),
        tuple(dict.fromkeys(seed for one in plans for seed in one.seeds)),
    )


def shard(studies: Sequence[Prepared], number: int, of: int) -> list[int]:
    """The seeds of one shard: every `of`-th seed of the studies, from the `number`-th on.

    Args:
        studies: the studies of a sweep, or a single one.
        number: the shard, from 1.
        of: the number of shards.

    Raises:
        UserError: there is no such shard, or there are more shards than seeds.
    """
    seeds = list(dict.fromkeys(seed for one in studies for seed in one.study.seeds))
    if not 1 <= number <= of:
        raise UserError(f"--shard: {number}/{of} is not allowed; it must be i/n with i from 1 to n.")
    if of > len(seeds):
        most = "seeds make at most as many shards" if len(seeds) > 1 else "seed makes one shard"
        raise UserError(f"--shard: {number}/{of} is not allowed; {len(seeds)} {most}.")
    return seeds[number - 1 :: of]


def narrowed(studies: Sequence[Prepared], seeds: Collection[int]) -> list[Prepared]:
    """The studies with those of their seeds that are among `seeds`, without those that have none."""
    own = [tuple(seed for seed in one.study.seeds if seed in seeds) for one in studies]
    return [
        one._replace(study=dataclasses.replace(one.study, seeds=of))
        for one, of in zip(studies, own, strict=True)
        if of
    ]


def lenders(studies: Sequence[Prepared]) -> list[Prepared]:
    """For every study, the first study with the same dense networks: itself, or its lender."""
    first: dict[str, Prepared] = {}
    return [first.setdefault(one.training, one) for one in studies]


def _there(cell_folder: Path) -> bool:
    return (cell_folder / "result.json").is_file()


def _diverged(run: Path, cell: Cell) -> bool:
    where = folder(run, cell)
    return _there(where) and read_result(where)["status"] == "diverged"
