"""Reads and writes a ticket as one safetensors file, which any framework can read."""

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import files
from lthjax.prune._masks import check_leaf, matched, paths

PyTree = Any
_FORMAT = "lthjax-ticket-1"
# Format of files that store arrays as other types than their own; readers of the first format must fail.
_FORMAT_WITH_TYPES = "lthjax-ticket-2"
# Types with a safetensors name, by their numpy name.
_NATIVE = {
    "BOOL": "bool", "C64": "complex64", "BF16": "bfloat16",
    "F16": "float16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}  # fmt: skip


class Ticket(NamedTuple):
    """The contents of a ticket's file.

    Attributes:
        params: the weights, numpy arrays in nested dictionaries or in the containers of `like`; arrays of
            PRNG keys are JAX's.
        mask: their mask.
        origin: the weights that training started from, or None.
        metadata: the user's metadata, decoded from JSON.
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
    """Writes a ticket to one safetensors file, atomically.

    The tensors are `params/PATH` and `origin/PATH`, unchanged, and `mask/PATH`, uint8. A mask holds the bits
    of the prunable leaf in row-major order, the first in the highest bit, padded with 0 (`numpy.packbits`).
    Leaves of types that safetensors lacks are stored as their bytes, uint8 with one more axis, and PRNG keys
    as their data; the metadata entry `types` then maps each such tensor to its own type, in JSON. The entry
    `sha256`, which `load` compares, is the SHA-256, in hexadecimal digits, of the other entries as a sorted
    list of pairs in JSON, and then, tensor by tensor in the order of their names, of the list [name, numpy's
    name of the type, shape] in JSON and of the bytes. This JSON is as Python's `json.dumps` writes it: a
    space after each comma, and all letters but ASCII escaped.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        params: a pytree of arrays or numbers, which are saved as arrays of shape ().
        mask: its mask.
        origin: weights to rewind to, of the same tree.
        metadata: anything that JSON can hold.

    Raises:
        ValueError: the trees do not match, a leaf cannot be saved, a path equals or is a prefix of another,
            so that nested dictionaries cannot hold both, or the metadata is not valid JSON.
        OSError: the folder does not exist, the path is a folder, or the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    where = Path(path)
    if where.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the path of a file", str(where))
    if not where.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder; make it first", str(where.parent))
    names = paths(params)
    _check_paths(names)
    mask = matched(params, mask)
    try:
        said = json.dumps(metadata or {}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: {error}; it must be what JSON can hold.") from error
    tensors: dict[str, np.ndarray] = {}
    types: dict[str, str] = {}
    for name, m in zip(names, jax.tree.leaves(mask), strict=True):
        m = _array("mask", name, m)
        if m.dtype != bool or not (m.ndim or m):
            what = f"{m.dtype} {m.shape}" if m.ndim else str(m)
            raise ValueError(f"mask: leaf {name!r} is {what}; it must be bool, or the 0-d True.")
        if m.ndim:
            tensors[f"mask/{name}"] = np.packbits(m)
    trees = {"params": params}
    if origin is not None:
        trees["origin"] = matched(params, origin, "origin", place=False)
        matched(trees["origin"], mask)
    for tree, values in trees.items():
        for name, leaf in zip(names, jax.tree.leaves(values), strict=True):
            tensors[f"{tree}/{name}"], own = _stored(tree, name, leaf)
            if own:
                types[f"{tree}/{name}"] = own
    head = {"format": _FORMAT, "metadata": said}
    if types:
        head |= {"format": _FORMAT_WITH_TYPES, "types": json.dumps(types)}
    head["sha256"] = _digest(head, tensors)
    files.write_whole(where, to_bytes(tensors, head))


def _digest(head: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """The entry `sha256` of a ticket's head, as `save` describes it."""
    whole = hashlib.sha256(json.dumps(sorted((k, v) for k, v in head.items() if k != "sha256")).encode())
    for name, array in sorted(tensors.items()):
        whole.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        whole.update(_as_bytes(array).data)
    return whole.hexdigest()


def _array(tree: str, name: str, leaf: Any) -> np.ndarray:
    """A leaf in row-major order and the machine's byte order."""
    try:
        array = np.asarray(leaf, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{tree}: leaf {name!r} is no array that can be saved: {why}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _stored(tree: str, name: str, leaf: Any) -> tuple[np.ndarray, str]:
    """The stored form of a leaf, and the leaf's own type if that differs, else ""."""
    if jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key):
        return _array(tree, name, jax.random.key_data(leaf)), f"key<{jax.random.key_impl(leaf)}>"
    array = _array(tree, name, leaf)
    try:
        known = _dtype(array.dtype.name) == array.dtype
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"{tree}: leaf {name!r} is {array.dtype}, which is no type of JAX's; leave it out.")
    if array.dtype.name in _NATIVE.values():
        return array, ""
    return _as_bytes(array), array.dtype.name


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(*array.shape, 1).view(np.uint8)


def _own(stored: np.ndarray, own: str) -> Any:
    """Restores the leaf from its form by `_stored`."""
    if own.startswith("key<"):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=own[4:-1])
    dtype = _dtype(own)
    if stored.dtype != np.uint8 or stored.shape[-1:] != (dtype.itemsize,):
        raise ValueError(f"{stored.dtype} {stored.shape} holds no {own}")
    return stored.view(dtype).reshape(stored.shape[:-1])


def _dtype(name: str) -> np.dtype:
    """The numeric dtype of that name, numpy's or one that JAX adds."""
    try:
        dtype = np.dtype(getattr(jnp, name, None) or name)
    except TypeError as error:
        raise ValueError(f"the type {name!r} is not known") from error
    if not jnp.issubdtype(dtype, jnp.number) and dtype.kind != "b":
        raise ValueError(f"the type {name!r} holds no numbers")
    return dtype


def load(path: str | Path, like: PyTree | None = None) -> Ticket:
    """Reads a file that `save` wrote. Nothing in the file is executed.

    Args:
        path: the file.
        like: a pytree of the parameters' containers, paths and shapes, of arrays or of what
            `jax.eval_shape` gives; its values and dtypes are not used.

    Returns:
        The ticket, in numpy arrays with the saved dtypes. With `like` its params, mask and origin are in the
        containers of `like`: Haiku's dictionaries, lists, modules, an NNX state. Without, they are nested
        dictionaries by the parts of the leaves' paths, whatever containers were saved: Haiku's
        `mlp/~/linear_0` becomes three dictionaries, a list one with the keys "0", "1", ..., an NNX Variable
        one with the key "value", a tree that is one array {"": array}. `prune.apply`, `prune.magnitude` and
        `prune.masked` accept either mask together with the parameters that it was saved with.

    Raises:
        ValueError: it is not a ticket file, or damaged (by a single bit, too, but for older files, which have
            no `sha256`); or a leaf of `like` is no array, is not in the file, or has another shape there.
        FileNotFoundError: there is no such file.
    """
    ticket = _read(path)
    return ticket if like is None else _in_containers(ticket, like)


def _in_containers(ticket: Ticket, like: PyTree) -> Ticket:
    for name, leaf in zip(paths(like), jax.tree.leaves(like), strict=True):
        check_leaf(name, leaf, "like")
    params, mask, origin = (
        None if tree is None else matched(like, tree, "ticket", of="given tree", shapes=False, place=False)
        for tree in ticket[:3]
    )
    for name, leaf, saved in zip(paths(like), jax.tree.leaves(like), jax.tree.leaves(params), strict=True):
        if jnp.shape(leaf) != jnp.shape(saved):
            raise ValueError(
                f"like: leaf {name!r} has shape {jnp.shape(leaf)}, and {jnp.shape(saved)} in the file; give "
                "the parameters of the network that was saved."
            )
    return Ticket(params, mask, origin, ticket.metadata)


def _read(path: str | Path) -> Ticket:
    where = Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"{where}: there is no such file.")
    trees: dict[str, dict[str, Any]] = {"params": {}, "mask": {}, "origin": {}}
    try:
        head, found = tensors(where)
        if head.get("format") not in (_FORMAT, _FORMAT_WITH_TYPES):
            raise ValueError(
                f"its format is {head.get('format')!r}, not {_FORMAT!r} or {_FORMAT_WITH_TYPES!r}"
            )
        if "sha256" in head and head["sha256"] != _digest(head, found):
            raise ValueError("its sha256 is not that of its contents")
        types = json.loads(head["types"] if head["format"] == _FORMAT_WITH_TYPES else head.get("types", "{}"))
        for key, array in found.items():
            tree, _, name = key.partition("/")
            trees[tree][name] = _own(array, types.pop(key)) if key in types else array
        metadata = json.loads(head["metadata"])
        masks = {
            name: _unpacked(trees["mask"].pop(name, None), leaf) for name, leaf in trees["params"].items()
        }
        if types or trees["mask"] or (trees["origin"] and trees["origin"].keys() != masks.keys()):
            raise ValueError("its types, masks or origin have other leaves than its params")
        _check_paths(masks)
        return Ticket(
            nested(trees["params"]),
            nested(masks),
            nested(trees["origin"]) if trees["origin"] else None,
            metadata,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{where}: not a ticket that prune.save wrote, or damaged: {error}.") from error


def tensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the arrays by name of any safetensors file.

    Raises:
        ValueError: it is no such file, or holds a type that numpy and JAX lack.
        OSError: it cannot be opened.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            head = file.metadata() or {}
        # Not with safe_open, whose numpy interface lacks 8-bit floats.
        return head, {
            key: np.frombuffer(tensor["data"], _dtype(_NATIVE[tensor["dtype"]])).reshape(tensor["shape"])
            for key, tensor in deserialize(path.read_bytes())
        }
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error


def _check_paths(names: Iterable[str]) -> None:
    """Raises for paths that nested dictionaries cannot hold together, or that a file cannot hold."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"params: two leaves have one path, {name!r}; rename one.")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"params: the path {name!r} is no text that a file can hold; rename the leaf.")
        seen.add(name)
    for name in seen:
        parts = name.split("/")
        for i in range(1, len(parts)):
            if (parent := "/".join(parts[:i])) in seen:
                raise ValueError(
                    f"params: the path of leaf {parent!r} is the beginning of that of leaf {name!r}, and "
                    "nested dictionaries cannot hold both; rename one."
                )


def _unpacked(bits: np.ndarray | None, leaf: np.ndarray) -> np.ndarray:
    if bits is None:
        return np.ones((), bool)
    if bits.dtype != np.uint8 or bits.shape != (-(-leaf.size // 8),):
        raise ValueError(f"a mask of {bits.shape} {bits.dtype} does not fit a leaf of {leaf.shape}")
    return np.unpackbits(bits, count=leaf.size).astype(bool).reshape(leaf.shape)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dictionaries from its leaves by path, keys joined by "/"; the opposite of `paths`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree
