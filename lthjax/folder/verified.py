"""study.json and the results of cells, checked before they are read."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from lthjax import config, fields, home, manifest
from lthjax.errors import UserError
from lthjax.folder.places import place_of

_log = logging.getLogger(__name__)
# Key in study.json: whether every cell has a manifest, or only those written since manifests exist.
MANIFESTS = "manifests"


def read_study(run: Path) -> fields.About:
    """A run folder's study.json.

    Raises:
        UserError: it is missing or damaged, a field of it has a wrong type or value, or a newer version of
            lthjax has written it.
    """
    about = {name: value for name, value in read_about(run).items() if name != MANIFESTS}
    return cast(fields.About, about)


def read_result(cell_folder: Path) -> fields.Result:
    """A cell's result.json.

    Raises:
        UserError: it is missing or damaged, or a field of it has a wrong type or value.
    """
    checked(cell_folder, "result.json")
    return cast(fields.Result, _sound(cell_folder / "result.json", fields.result))


def has_manifests(run: Path) -> bool:
    """Whether every cell of a run folder has a manifest, as in all folders that are not older than these."""
    return read_about(run).get(MANIFESTS) == "all"


def checked(of: Path, *names: str) -> manifest.Manifest | None:
    """Verifies the checksums of a cell's or state's files before they are read.

    Args:
        of: the folder of a cell or rewind state.
        names: files and folders in it; by default all of them.

    Returns:
        Its manifest; None if it is older than manifests.

    Raises:
        UserError: a file has changed since it was written, the folder belongs to another run, or its parent
            is not the one that it was made from.
    """
    run, place = _apart(of)
    try:
        made = manifest.read(of)
        # Without study.json, which the study's command writes anew, the cells are as good as their manifests.
        about = read_about(run) if (run / "study.json").exists() else {}
        if made is None:
            if not is_there(of):
                raise absent(of)
            if about.get(MANIFESTS) == "all":
                raise manifest.Damaged(f"{of / manifest.FILE}: not there")
            _unchecked(run)
            return None
        if place != place_of(made.what):
            raise manifest.Damaged(f"{of}: it is a copy of {place_of(made.what)}")
        if about and made.study != config.fingerprint(about["identity"]):
            raise manifest.Damaged(f"{of}: it is of another study, {made.study}")
        for parent, content in made.parents.items():
            now = manifest.read(run / parent)
            if now is not None and now.content != content:
                raise manifest.Damaged(f"{of}: it was made from another {parent} than is there now")
        manifest.check(of, made, names or None)
    except manifest.Damaged as error:
        raise UserError(f"{error}; {_mend(run)}.") from error
    return made


def is_there(of: Path) -> bool:
    """Whether a cell, state or position is there, sound or not."""
    return any(os.path.lexists(of / name) for name in ("result.json", "progress.json", manifest.FILE))


def absent(of: Path) -> UserError:
    """What is wrong with a cell or state that is not there, and the command that makes it anew."""
    run, _ = _apart(of)
    about = read_about(run) if (run / "study.json").exists() else {}
    commands = about.get("commands")
    # A later command may have asked for more, so that none is known to be the one.
    other = ", or another of the commands in study.json" if len(commands or ()) > 1 else ""
    example = f", for example {home.again(commands[0], run, name_of(about))}{other}" if commands else ""
    example += f"; {elsewhere}" if commands and (elsewhere := renamed(run)) else ""
    return UserError(f"{of}: it is not there; the command that made it makes it anew{example}.")


def renamed(run: Path) -> str:
    """That commands do not go on in a run folder, as it has another name than theirs; "" if they do."""
    if not (run / "study.json").exists():
        return ""
    name = name_of(read_about(run))
    if name in (os.path.basename(os.path.abspath(run)), os.path.basename(os.path.realpath(run))):
        return ""
    return f"{home.RUN} goes on with the study where the folder is called {name}"


def name_of(about: Mapping[str, Any]) -> str:
    """What commands call a run folder, by its study.json: NAME-FINGERPRINT."""
    return f"{about['config']['name']}-{config.fingerprint(about['identity'])}"


def parents(of: Path) -> list[Path]:
    """The folders that a cell or state was made from, by its manifest; none where that is not sound."""
    run, _ = _apart(of)
    with contextlib.suppress(manifest.Damaged):
        if (made := manifest.read(of)) is not None:
            return [run / parent for parent in made.parents]
    return []


def sources(of: Path) -> list[Path] | None:
    """The folders that a cell or state was made from.

    None where its own files are not as they were written, or it is of another study than its run.
    """
    run, place = _apart(of)
    try:
        made = manifest.read(of)
        if made is None or place != place_of(made.what):
            return None
        manifest.check(of, made)
    except manifest.Damaged:
        return None
    with contextlib.suppress(UserError):
        if made.study != config.fingerprint(read_about(run)["identity"]):
            return None
    return parents(of)


def _apart(of: Path) -> tuple[Path, str]:
    """The run folder of a cell or state, and its place in it."""
    first = max(i for i, part in enumerate(of.parts) if part.startswith("seed="))
    return Path(*of.parts[:first]), "/".join(of.parts[first:])


def check_identity(run: Path, identity: dict[str, Any]) -> None:
    """Checks that a folder holds numbers of this study.

    Raises:
        UserError: names the first field that differs.
    """
    if not (run / "study.json").exists():
        return
    if (differs := difference(read_study(run)["identity"], identity)) is not None:
        name, there, here = differs
        raise UserError(
            f"{run}: it was made by another config: {name} is {there!r} there and {here!r} here; choose "
            "another folder with --out, or another name."
        )


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs between two identities, and its two values; None if there is none."""
    # A folder older than a field was made with the meaning of the field's default.
    usual = config.defaults()
    there, here = {**usual, **there}, {**usual, **here}
    names = (name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name))
    return next(((name, there.get(name), here.get(name)) for name in names), None)


def read_about(run: Path) -> dict[str, Any]:
    """study.json, with the fields that only this module reads."""
    path = run / "study.json"
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{run}: it is not a run folder (no study.json in it).")
    return _sound(path, fields.study)


def _sound(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A JSON object, after a check of its checksum, if it has one, and of its fields."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        if any(key in value for key in (MANIFESTS, "sha256")):
            value = manifest.opened(value)
        check(value)
    except fields.Newer as error:
        raise UserError(
            f"{path}: a newer version of lthjax has written it ({error}); update lthjax, or name another "
            "folder."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return value


def damaged(path: Path, error: Exception) -> UserError:
    """What is wrong with a file, and the command that mends it."""
    known = next((p for p in path.parents if (p / "study.json").exists()), None)
    inner = [p for p in path.parents if p.name.startswith("seed=")]
    run = known or (inner[0].parent if inner else path.parent)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0] if path.exists() else "not there"
    return UserError(f"{path}: it cannot be read ({reason}); {_mend(run)}.")


def _mend(run: Path) -> str:
    command = home.command("check", run, "--repair")
    return f"{command} sets it aside, and the command that made it then makes it anew"


@cache
def _unchecked(run: Path) -> None:
    _log.warning("%s: cells of an older version have no checksums; damage to them cannot be noticed.", run)
