"""Joins run folders of one study; everything is checked before anything is written.

`python -m analysis.merge` is the command.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from lthjax import command, config, fields, files, home, manifest
from lthjax.errors import UserError
from lthjax.folder import claims
from lthjax.folder.places import CONFIG, LOCKS, PLACES, PUBLISHED, folder, state_folder
from lthjax.folder.reader import Reader
from lthjax.folder.store import Store, filled_before
from lthjax.folder.verified import checked, difference, has_manifests, read_study
from lthjax.imp import Cell
from lthjax.locks import Held

# What two trainings with the same numbers may differ in: the time, the description of the devices, and the
# masks drawn on the way, of which earlier versions recorded those of one study's scope or none.
_BESIDE = ("seconds", "platform", "draws")
# Nor do losses of single steps count, which `train.log_every` records, and which are no setting of the study.
_LOGGED = ("loss", "loss_step")
_NAMED = 5


class Merged(NamedTuple):
    """What was done.

    Attributes:
        into: the folder.
        copied: run -> how many cells and rewind states were copied from it.
        there: how many are in the folder now.
        unlike: copies of config files in the folders that differ from the one in `into`.
        absent: what cells were made from, and none of the folders has, as paths in `into`.
    """

    into: Path
    copied: dict[Path, int]
    there: int
    unlike: list[Path]
    absent: list[Path]


class _Version(NamedTuple):
    """A cell or rewind state in one of the folders.

    Attributes:
        run: the folder.
        result: its result without times and logged losses.
        content: of its arrays.
        parents: what it was made from.
        logged: whether losses of single steps are recorded.
    """

    run: Path
    result: dict[str, Any]
    content: str
    parents: dict[str, str]
    logged: bool

    def equals(self, other: "_Version") -> bool:
        return (self.result, self.content) == (other.result, other.content)


def merge(runs: Sequence[str | Path], into: str | Path) -> Merged:
    """Copies what is missing in a folder from run folders of the same study.

    Args:
        runs: the run folders.
        into: a run folder of the same study, or one that is new or empty.

    Raises:
        UserError: a folder is published or of another study, a file is damaged, two cells differ or are of
            two versions of their arm, or another process writes to `into`; or they have other looks of one
            claim. Nothing has been written then. Or `into` cannot be written.
    """
    into = Path(into)
    sources = _sources([Path(run) for run in runs], into)
    abouts = {run: read_study(run) for run in ([into] if _is_run(into) else []) + sources}
    first, *others = abouts
    for run in others:
        if (differs := difference(abouts[first]["identity"], abouts[run]["identity"])) is not None:
            name, here, there = differs
            raise UserError(
                f"{run}: it is of another study than {first}: {name} is {there!r} there and {here!r} here; "
                "only folders of one fingerprint can be merged."
            )
    until = command.laboratory("report.until")
    looks = until.joined(abouts)
    known = until.read(into)
    looks = {claim: state for claim, state in looks.items() if state != known.get(claim)}
    versions = _versions([*abouts], into)
    configs = _configs([*abouts])
    code = next(iter(configs.values()), b"")
    begun = bool(configs) and into not in configs
    copied = dict.fromkeys(sources, 0)
    seeds = {int(place.parts[0].removeprefix("seed=")) for place, of in versions.items() if of.run != into}
    if seeds or looks or begun:
        with Store(into, _about(abouts), option="--into", seeds=seeds) as store:
            if {*store.seeds} != seeds:
                raise Held(f"{into}: another process is running this study; wait for it or stop it.")
            try:
                # Before the cells, so that no claim is ever judged as if its looks had not been taken.
                if looks:
                    until.keep(into, looks)
                if begun:
                    files.write_whole(into / CONFIG, code)
            except OSError as error:
                raise files.unwritable(into, error) from error
            for place, version in versions.items():
                if version.run == into:
                    continue
                if not (into / place / "result.json").is_file():
                    store.copy(Reader(version.run), place)
                    copied[version.run] += 1
                elif not _version(into, place).equals(version):  # written since it was looked for
                    raise _unlike([f"{place} of {version.run} and {into}"])
    unlike = [run / CONFIG for run, text in configs.items() if text != code]
    made_from = {Path(parent) for version in versions.values() for parent in version.parents}
    absent = [into / place for place in sorted(made_from - versions.keys())]
    return Merged(into, copied, len(versions), unlike, absent)


def _is_run(path: Path) -> bool:
    return (path / "study.json").is_file()


def _sources(runs: Sequence[Path], into: Path) -> list[Path]:
    """The runs without `into`; raises where there are none, or `into` is no folder to write to."""
    # Unlike `Path.resolve`, `realpath` takes links that lead in a circle, too.
    within = [os.path.realpath(one) for one in (into, *into.absolute().parents)]
    for run in runs:
        if os.path.realpath(run) in within[1:]:
            raise UserError(f"--into: {str(into)!r} lies in the run folder {run}; name another folder.")
    for named in (into, *runs):
        if (named / PUBLISHED).is_file():
            raise UserError(
                f"{named}: it is a published folder, which holds tables and no cells; name run folders."
            )
    sources = [run for run in dict.fromkeys(runs) if os.path.realpath(run) != within[0]]
    if not sources:
        raise UserError("RUN: it is missing; name the run folders to merge, and with --into another one.")
    try:
        # Locks and incomplete files are what a merge leaves that was stopped at the start.
        left = (files.PART, claims.LOCK, LOCKS)
        if (
            into.exists()
            and not _is_run(into)
            and any(not path.name.startswith(left) for path in into.iterdir())
        ):
            raise UserError(
                f"--into: {str(into)!r} is neither a run folder nor empty; name one of these, or a new one."
            )
    except OSError as error:
        raise UserError(
            f"--into: {str(into)!r} cannot be read ({error.strerror}); name another folder."
        ) from error
    return sources


def _about(abouts: Mapping[Path, fields.About]) -> fields.About:
    """The study.json of the joined folder: that of the first, with what all ask for and were made by."""
    every = [cast(dict[str, Any], about) for about in abouts.values()]
    first, *others = every

    def all_of(key: str) -> list[str]:
        return list(dict.fromkeys(value for about in every for value in about.get(key, [])))

    before = [*first.get("earlier", []), *(line for other in others for line in filled_before(other, first))]
    # A step may be written in two ways.
    steps = {
        step: written
        for about in reversed(every)
        for step, written in zip(
            about["lengths"]["rewind"], config.from_dict(about["config"]).rewind, strict=True
        )
    }
    joined = {
        **first,
        "config": {
            **_widest([about["config"] for about in every]),
            "rewind": [steps[k] for k in sorted(steps)],
        },
        "lengths": {**first["lengths"], "rewind": sorted(steps)},
        "commands": [*all_of("commands"), home.typed()],
        "environment": all_of("environment"),
        **({"earlier": list(dict.fromkeys(before))} if before else {}),
    }
    if not all(map(has_manifests, abouts)):
        joined["manifests"] = "some"
    return cast(fields.About, joined)


def _widest(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of several configs of one fingerprint, with the seeds, levels, arms and repeats of all."""
    studies = [config.from_dict(one) for one in configs]
    repeats = {arm: max(config.repeats(of, arm) for of in studies) for of in studies for arm, _ in of.repeats}
    levels = max(of.levels for of in studies)
    # Of studies that have controls: none named is every level.
    named = [of.control_levels or tuple(range(1, of.levels + 1)) for of in studies if {*of.arms} - {"ticket"}]
    controls = sorted({level for of in named for level in of})
    return {
        **configs[0],
        "seeds": sorted({seed for of in studies for seed in of.seeds}),
        "levels": levels,
        "arms": list(dict.fromkeys(arm for of in studies for arm in of.arms)),
        "repeats": [[arm, times] for arm, times in repeats.items()],
        "control_levels": [] if controls == [*range(1, levels + 1)] else controls,
    }


def _configs(runs: Sequence[Path]) -> dict[Path, bytes]:
    """The copies of config files in those of the folders that have one."""
    try:
        return {run: (run / CONFIG).read_bytes() for run in runs if (run / CONFIG).is_file()}
    except OSError as error:
        raise UserError(f"{error.filename}: it cannot be read ({error.strerror}).") from error


def _versions(runs: Sequence[Path], into: Path) -> dict[Path, _Version]:
    """Cells and rewind states by their place: those of `into`, else the first with logged losses, if any has.

    Raises:
        UserError: a file is damaged, or two folders differ, or are of two versions of an arm.
    """
    found: dict[Path, _Version] = {}
    wrong = []
    for pattern in PLACES:
        for run in runs:
            for path in sorted(run.glob(pattern)):
                if not any((path / name).is_file() for name in ("result.json", manifest.FILE)):
                    continue
                place = path.relative_to(run)
                version = _version(run, place)
                other = found.setdefault(place, version)
                if not other.equals(version):
                    wrong.append(f"{place} of {other.run} and {run}")
                elif version.logged and not other.logged and other.run != into:
                    found[place] = version
    for place, version in found.items():
        for parent, content in version.parents.items():
            there = found.get(Path(parent))
            if there is not None and there.content != content:
                wrong.append(f"{place} of {version.run}, which was not made from {parent} of {there.run}")
    if wrong:
        raise _unlike(wrong)
    _check_arms(found)
    return found


def _check_arms(found: Mapping[Path, _Version]) -> None:
    """Raises where cells of an arm are of two versions of it; those of version 1 do not say so."""
    first: dict[str, tuple[Path, _Version]] = {}
    for place, version in found.items():
        if (arm := version.result.get("arm")) is None:
            continue  # a rewind state
        of, other = first.setdefault(arm, (place, version))
        if version.result.get("version", 1) != other.result.get("version", 1):
            raise UserError(
                f"{of} of {other.run} and {place} of {version.run} are of two versions of the arm {arm}, "
                "whose numbers differ (CHANGELOG.md); leave out one of the folders, or delete the folders of "
                "this arm in it, so that they are made anew."
            )


def _unlike(wrong: Sequence[str]) -> UserError:
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return UserError(
        f"two folders have other numbers for the same cell: {'; '.join(wrong[:_NAMED])}{more}; nothing is "
        "written over, so leave out one of the folders."
    )


def _version(run: Path, place: Path) -> _Version:
    made = checked(run / place)
    try:
        result = json.loads((run / place / "result.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in result.items() if name not in _BESIDE}
        logged = "loss" in kept.get("curves", {})
        if logged:
            kept["curves"] = {name: of for name, of in kept["curves"].items() if name not in _LOGGED}
        if made is None:
            return _Version(run, kept, _older_content(run, place, result), {}, logged)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{run / place / 'result.json'}: it cannot be read ({error}).") from error
    return _Version(run, kept, made.content, made.parents, logged)


def _older_content(run: Path, place: Path, result: Mapping[str, Any]) -> str:
    """What a manifest would call the content of a cell or state that is older than manifests."""
    reader = Reader(run)
    if place.name.startswith("state="):
        made, step = state_folder(Path(), result["seed"], result["step"]), result["step"]
    else:
        cell = Cell(*(result[name] for name in Cell._fields))
        made, step = folder(Path(), cell), None
    if made != place:
        raise ValueError(f"it is of {made}")
    if step is not None:
        return manifest.described(reader.state(result["seed"], step)._asdict())[1]
    trees = {"mask": reader.mask(cell)}
    if (run / place / "variables").exists():
        trees |= reader.variables(cell)._asdict()
    return manifest.described(trees)[1]
