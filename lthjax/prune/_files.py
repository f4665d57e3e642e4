"""A ticket as one safetensors file, which any framework can read."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax.prune._core import check, paths

PyTree = Any
_FORMAT = "lthjax-ticket-1"


class Ticket(NamedTuple):
    """What a ticket's file holds.

    Attributes:
        params: the weights, nested dictionaries of numpy arrays.
        mask: their mask.
        origin: the weights that training started from, or None.
        metadata: what was said of it, from JSON.
    """

    params: PyTree
    mask: PyTree
    origin: PyTree | None
    metadata: dict[str, Any]


def save(
    path: str | Path,
    params: PyTree,
    mask: PyTree,
    *,
    origin: PyTree | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a ticket to one safetensors file, which is there whole or not at all.

    The file's tensors are `params/PATH` and `origin/PATH`, as they are, and `mask/PATH`, uint8: the bits of
    the prunable leaf's mask in row-major order, the first in the highest bit, filled up with 0
    (`numpy.packbits`).

    Args:
        path: the file; its folder must exist. A file that is there is replaced.
        params: a pytree of arrays.
        mask: its mask.
        origin: weights to rewind to, of the same tree.
        metadata: anything that JSON can hold.

    Raises:
        ValueError: the trees do not fit, two leaves have one path, or the metadata is no JSON.
    """
    from safetensors.numpy import save as to_bytes

    check(params, mask)
    if origin is not None:
        check(origin, mask)
    names = paths(params)
    if len(set(names)) < len(names):
        raise ValueError(f"params: two leaves have one path among {names}; rename one.")
    try:
        said = json.dumps(metadata or {}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}; it must be what JSON can hold.") from error
    tensors = {}
    for name, leaf, m in zip(names, jax.tree.leaves(params), jax.tree.leaves(mask), strict=True):
        tensors[f"params/{name}"] = np.ascontiguousarray(leaf)
        if np.ndim(m):
            tensors[f"mask/{name}"] = np.packbits(np.asarray(m))
    for name, leaf in zip(names, jax.tree.leaves(origin), strict=False):
        tensors[f"origin/{name}"] = np.ascontiguousarray(leaf)
    contents = to_bytes(tensors, {"format": _FORMAT, "metadata": said})
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | Path) -> Ticket:
    """Reads what `save` wrote. Nothing in the file is executed.

    Args:
        path: the file.

    Returns:
        The ticket; its trees are nested dictionaries by the parts of the leaves' paths.

    Raises:
        ValueError: it is not such a file, or damaged.
        FileNotFoundError: there is no such file.
    """
    from safetensors import SafetensorError, safe_open

    where = Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"{where}: there is no such file.")
    trees: dict[str, dict[str, np.ndarray]] = {"params": {}, "mask": {}, "origin": {}}
    try:
        with safe_open(str(where), framework="numpy") as file:
            head = file.metadata() or {}
            if head.get("format") != _FORMAT:
                raise ValueError(f"its format is {head.get('format')!r}, not {_FORMAT!r}")
            for key in file.keys():  # noqa: SIM118
                tree, _, name = key.partition("/")
                trees[tree][name] = file.get_tensor(key)
        metadata = json.loads(head["metadata"])
        masks = {
            name: _unpacked(trees["mask"].pop(name, None), leaf) for name, leaf in trees["params"].items()
        }
        if trees["mask"] or (trees["origin"] and trees["origin"].keys() != masks.keys()):
            raise ValueError("its masks or origin have other leaves than its params")
        return Ticket(
            _nested(trees["params"]),
            _nested(masks),
            _nested(trees["origin"]) if trees["origin"] else None,
            metadata,
        )
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{where}: not a ticket that prune.save wrote, or damaged: {error}.") from error


def _unpacked(bits: np.ndarray | None, leaf: np.ndarray) -> np.ndarray:
    if bits is None:
        return np.ones((), bool)
    if bits.dtype != np.uint8 or bits.shape != (-(-leaf.size // 8),):
        raise ValueError(f"a mask of {bits.shape} {bits.dtype} does not fit a leaf of {leaf.shape}")
    return np.unpackbits(bits, count=leaf.size).astype(bool).reshape(leaf.shape)


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree
