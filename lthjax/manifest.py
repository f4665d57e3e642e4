"""Manifest of a folder of results: the cell's identity, its sources, and a checksum of every file.

A manifest is written with its folder and never changed. It is checked whenever a file of the folder is read,
so that a flipped bit, a truncated file or another cell's file is noticed before its value is used. The
manifest has its own checksum.

    what      the cell, or the seed and step of a rewind state
    study     the fingerprint of the study
    parents   {folder in the run: its content} for the cell and state that it was made from
    content   a SHA-256 of the arrays alone; the same for every training run that ends with the same bits
    arrays    {"mask": {path: [shape, dtype]}, "params": ..., "stats": ...}
    files     {path: SHA-256 of its bytes}
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import files
from lthjax.prune import paths

PyTree = Any
FILE = "manifest.json"
# In a folder of tables: name -> SHA-256 of the files beside it.
SUMS = "checksums.json"


class Damaged(ValueError):
    """A file has changed since it was written; the message says which and why."""


class Manifest(NamedTuple):
    """The fields of the file; see the module."""

    what: dict[str, Any]
    study: str
    parents: dict[str, str]
    content: str
    arrays: dict[str, dict[str, tuple[list[int], str]]]
    files: dict[str, str]


def write(
    folder: Path, what: Mapping[str, Any], study: str, parents: Mapping[str, str], trees: Mapping[str, PyTree]
) -> None:
    """Writes the manifest of a folder that is otherwise complete.

    Args:
        folder: the folder.
        what: identity of the cell or state.
        study: the study's fingerprint.
        parents: {folder in the run: its content}.
        trees: name -> the pytree of arrays that the folder holds under it.
    """
    arrays, content = described(trees)
    hashed = {
        file.relative_to(folder).as_posix(): files.sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    made = Manifest(dict(what), study, dict(parents), content, arrays, hashed)
    (folder / FILE).write_text(sealed(made._asdict()), encoding="utf-8")


def described(trees: Mapping[str, PyTree]) -> tuple[dict[str, Any], str]:
    """Shapes and dtypes of all leaves, and the SHA-256 of names, shapes, dtypes and bytes."""
    arrays: dict[str, Any] = {}
    digest = hashlib.sha256()
    for name, tree in trees.items():
        arrays[name] = {}
        for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
            value = np.ascontiguousarray(leaf)
            arrays[name][path] = [list(np.shape(leaf)), str(value.dtype)]
            digest.update(f"{name}/{path} {np.shape(leaf)} {value.dtype}\n".encode())
            digest.update(value.tobytes())
    return arrays, digest.hexdigest()


def read(folder: Path) -> Manifest | None:
    """A folder's manifest, after a check of its own checksum; None if there is none.

    Raises:
        Damaged: it has changed since it was written.
    """
    try:
        files.check_file(folder / FILE)
        text = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{folder / FILE}: {error.strerror}") from error
    return parsed(text, str(folder / FILE))


def parsed(text: bytes, name: str) -> Manifest:
    """A manifest from the content of its file, after a check of its own checksum.

    Args:
        text: the content.
        name: of the file, for the message.

    Raises:
        Damaged: it has changed since it was written.
    """
    try:
        return Manifest(**opened(json.loads(text)))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{name}: {error}") from error


def check(folder: Path, made: Manifest, names: Iterable[str] | None = None) -> None:
    """Verifies the checksums of files.

    Args:
        folder: the folder.
        made: its manifest.
        names: files or folders in it; by default all of them.

    Raises:
        Damaged: a file is missing, or has changed since it was written.
    """
    wanted = None if names is None else tuple(names)

    def meant(name: str) -> bool:
        return wanted is None or any(name == one or name.startswith(f"{one}/") for one in wanted)

    for name, digest in made.files.items():
        if not meant(name):
            continue
        try:
            found = files.sha256(folder / name)
        except OSError as error:
            raise Damaged(f"{folder / name}: {error.strerror}") from error
        if found != digest:
            raise Damaged(f"{folder / name}: its checksum is not the one that it was written with")


def read_listed(path: Path) -> bytes:
    """The content of a file, compared with the `SUMS` beside it; one that is not listed there is not checked.

    Raises:
        OSError: it cannot be opened.
        ValueError: its checksum is wrong.
    """
    content, sums = path.read_bytes(), path.with_name(SUMS)
    if sums.is_file():
        known = opened(json.loads(sums.read_bytes()))
        if known.get(path.name, "") not in ("", hashlib.sha256(content).hexdigest()):
            raise ValueError(f"the checksum of {path.name} is not the one that it was written with")
    return content


def sealed(value: Mapping[str, Any]) -> str:
    """A JSON object as text, with a checksum of its values."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    plain.pop("sha256", None)  # present if the value was read from such a text
    return json.dumps({**plain, "sha256": _digest(plain)}, allow_nan=False, indent=1) + "\n"


def opened(value: Any) -> dict[str, Any]:
    """Recovers the value that `sealed` was given, from its JSON.

    Raises:
        ValueError: the checksum is missing or wrong.
    """
    if not isinstance(value, dict) or "sha256" not in value:
        raise ValueError("it has no checksum")
    rest = {name: of for name, of in value.items() if name != "sha256"}
    if value["sha256"] != _digest(rest):
        raise ValueError("its checksum is not the one that it was written with")
    return rest


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
