"""Reads arrays by name from safetensors, npz, and PyTorch's state dicts, whatever framework wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lthjax import prune
from lthjax.errors import DAMAGED, UserError
from lthjax.prune import _files

from . import pickled

# Keys of a checkpoint that hold the network's state dict, beside those of the optimiser.
_STATES = ("state_dict", "model_state_dict", "model", "net", "params")
# Ends of names of torch.nn.utils.prune: a weight before its mask, and the mask.
_ORIGINAL, _MASK = "_orig", "_mask"
KINDS = ".safetensors, .npz, .pt or .pth"


class Tensors(NamedTuple):
    """The arrays of a file.

    Attributes:
        values: name -> array; `weight_orig` is `weight`.
        masks: name of a weight -> the mask beside it, as `weight_mask`.
    """

    values: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]

    @property
    def effective(self) -> dict[str, np.ndarray]:
        """The weights that the network computes with: 0 where their own mask is 0.

        A product with the mask keeps NaN and infinities, so they stay.
        """
        made = dict(self.values)
        for name, mask in self.masks.items():
            if name in made and made[name].shape == mask.shape:
                hidden = (mask == 0) & np.isfinite(np.asarray(made[name], np.float64))
                made[name] = np.where(hidden, np.zeros((), made[name].dtype), made[name])
        return made


def read(path: Path, option: str) -> Tensors:
    """The arrays of a file; nothing in it is run.

    Args:
        path: the file.
        option: the option that names it. Of a ticket of `lthjax.prune.save`, `--final` is its params,
            `--mask` and `--control` are its mask, all others its origin.

    Raises:
        UserError: it cannot be read, is of another kind, or holds no array.
    """
    if not path.is_file():
        raise UserError(f"{option}: there is no file {str(path)!r}; it must be {KINDS}.")
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch}
    if path.suffix.lower() not in readers:
        raise UserError(f"{option}: {str(path)!r} is of no known kind; it must be {KINDS}.")
    found = readers[path.suffix.lower()](path, option)
    if not found:
        raise UserError(f"{option}: {path} holds no array; name a file that does.")
    for name, array in found.items():
        # bfloat16 and the like have kind V, but a name of their own.
        if array.dtype.kind not in "biufc" and (
            array.dtype.kind != "V" or array.dtype.name.startswith("void")
        ):
            raise UserError(
                f"{option}: {name!r} in {path} is {array.dtype}, no array of numbers; leave it out."
            )
    return _split(_plain(found))


def masks(of: Tensors, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks of a file of masks: those beside weights if it has any, else all its arrays.

    A 0-d mask says that its array is not pruned, unless the weight is 0-d, too.
    """
    found = of.masks or of.values
    return {n: m for n, m in found.items() if m.ndim or (n in weights and not weights[n].ndim)}


def _safetensors(path: Path, option: str) -> dict[str, np.ndarray]:
    try:
        head, tensors = _files.tensors(path)
        if not head.get("format", "").startswith("lthjax-ticket"):
            return tensors
        ticket = prune.load(path)
    except ValueError as error:
        raise UserError(f"{option}: {path} cannot be read ({error}); name another file.") from error
    tree = {"--final": ticket.params, "--mask": ticket.mask, "--control": ticket.mask}.get(
        option, ticket.origin
    )
    if tree is None:
        raise UserError(f"{option}: the ticket {path} was saved without its origin; name another file.")
    return dict(zip(prune.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def _npz(path: Path, option: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except DAMAGED as error:
        raise UserError(f"{option}: {path} cannot be read ({error}); name another file.") from error


def _torch(path: Path, option: str) -> dict[str, np.ndarray]:
    found: dict[str, Any] = pickled.read(path)
    whole = dict(pickled.tensors(found))
    # Other tensors may lie beside it, such as the best accuracy.
    states = (dict(pickled.tensors(found[key])) for key in _STATES if isinstance(found.get(key), dict))
    return next(filter(None, states), whole)


def _plain(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same without the first part that all names share, if it is one of a wrapper or of the file."""
    for start in ("module.", "_orig_mod.", "params/", "mask/", "masks/", "mask.", "masks."):
        if all(name.startswith(start) for name in found):
            found = {name.removeprefix(start): array for name, array in found.items()}
    return found


def _split(found: dict[str, np.ndarray]) -> Tensors:
    """Takes masks from beside their weights."""
    stems = [name.removesuffix(_MASK) for name in found if name.endswith(_MASK)]
    # Not every array called a mask is one of a weight: attention has others. In a file of masks all are.
    beside = [n for n in stems if n in found or n + _ORIGINAL in found or len(stems) == len(found)]
    own = {name: found[name + _MASK] for name in beside}
    renamed = {name + _ORIGINAL: name for name in beside}
    taken = {name + _MASK for name in beside}
    values = {renamed.get(name, name): array for name, array in found.items() if name not in taken}
    return Tensors(values, own)
