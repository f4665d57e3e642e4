"""A run folder, open for reading."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lthjax import fields, manifest, models, prune
from lthjax.errors import DAMAGED, UserError
from lthjax.folder import verified
from lthjax.folder.arrays import PyTree, load
from lthjax.folder.places import folder, positions, saved_step, state_folder
from lthjax.folder.verified import checked, damaged, read_study
from lthjax.imp import Cell
from lthjax.models import Variables
from lthjax.prune._files import nested
from lthjax.training.job import Position


class Reader:
    """A run folder, open for reading; takes no lock and needs neither config, data nor network.

    Arrays are nested dictionaries of numpy arrays, verified by their checksums. Their shapes are stored in
    the folder; only for cells older than manifests they come from the network.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def has(self, cell: Cell) -> bool:
        """Whether a cell exists, done or diverged."""
        return (folder(self.path, cell) / "result.json").is_file()

    def has_state(self, seed: int, step: int) -> bool:
        """Whether a rewind state exists."""
        return (state_folder(self.path, seed, step) / "result.json").is_file()

    def result(self, cell: Cell) -> fields.Result:
        """The result that was given to `Store.write`."""
        return verified.read_result(folder(self.path, cell))

    def mask(self, cell: Cell) -> PyTree:
        """A cell's mask: bool, of the weights' shapes; True, 0-d, for a leaf that is never pruned."""
        path = folder(self.path, cell) / "mask.npz"
        shapes = self._shapes(path.parent, ("mask",), "mask.npz")["mask"]
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
                return nested({p: _unpacked(packed[p], p, shape) for p, (shape, _) in shapes.items()})
        except DAMAGED as error:
            raise damaged(path, error) from error

    def variables(self, cell: Cell) -> Variables:
        """A cell's final weights and batch statistics."""
        return self._variables(folder(self.path, cell), "variables")

    def state(self, seed: int, step: int) -> Variables:
        """The dense network's weights and batch statistics at a rewind step."""
        return self._variables(state_folder(self.path, seed, step))

    def state_made_from(self, seed: int, step: int) -> dict[str, Any]:
        """What was given as such to `Store.write_state`; {} where nothing was."""
        of = state_folder(self.path, seed, step)
        checked(of, "result.json")
        try:
            return dict(json.loads((of / "result.json").read_bytes()).get("made_from", {}))
        except (TypeError, AttributeError, *DAMAGED) as error:
            raise damaged(of / "result.json", error) from error

    def position(self, cell: Cell) -> Position | None:
        """Where the interrupted training run of a cell goes on; None if it was not saved.

        Raises:
            UserError: what was saved is damaged.
        """
        of = positions(self.path, cell) / f"step={saved_step(self.path, cell)}"
        if not of.is_dir():
            return None
        made = checked(of)
        if made is None:
            raise damaged(of / manifest.FILE, FileNotFoundError())
        arrays = self._arrays(of, made.arrays)
        states = {
            int(step): Variables(state["params"], state.get("stats", {}))
            for step, state in arrays.pop("states").items()
        }
        try:
            known = json.loads((of / "progress.json").read_bytes())
            return Position(made.what["at"], arrays, states=states, **known)
        except (TypeError, *DAMAGED) as error:
            raise damaged(of / "progress.json", error) from error

    def _variables(self, of: Path, *names: str) -> Variables:
        return Variables(**self._arrays(of, self._shapes(of, Variables._fields, *names)))

    def _arrays(self, of: Path, shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, PyTree]:
        """Arrays of these shapes, whose checksums have been verified."""
        try:
            return load(of / "variables", shapes)
        except Exception as error:  # Orbax and tensorstore raise many kinds
            raise damaged(of / "variables", error) from error

    def _shapes(self, of: Path, parts: Iterable[str], *names: str) -> dict[str, dict[str, Any]]:
        """{part: {path: (shape, dtype)}} of a folder's arrays, after a check of their files.

        Raises:
            UserError: a file is damaged, or the folder is older and its network is not known here.
        """
        made = checked(of, *names)
        arrays = _older_shapes(self.path) if made is None else made.arrays
        try:
            return {part: arrays[part] for part in parts}
        except KeyError as error:
            raise damaged(of / "variables", FileNotFoundError(f"it holds no {error.args[0]}")) from error


@cache
def _older_shapes(run: Path) -> dict[str, dict[str, Any]]:
    """The shapes of a run's masks, weights and batch statistics, taken from its network.

    Raises:
        UserError: the network is not known here.
    """
    about = read_study(run)
    shape, name = tuple(about["data"]["shape"]), about["config"]["model"]
    if name not in models.MODELS:
        raise UserError(
            f"{run}: its cells are older than manifests and do not hold their shapes, and the network "
            f"{name!r} is from outside the package; load the config file that defines it first."
        )
    model = models.build(name, shape, about["data"]["classes"])  # type: ignore[arg-type]
    like = jax.eval_shape(model.init, jax.random.key(0))
    trees = {"mask": jax.eval_shape(prune.ones, like.params), **like._asdict()}
    return {
        part: {
            path: (leaf.shape, leaf.dtype)
            for path, leaf in zip(prune.paths(tree), jax.tree.leaves(tree), strict=True)
        }
        for part, tree in trees.items()
    }


def _unpacked(bits: np.ndarray, path: str, shape: Sequence[int]) -> np.ndarray:
    """Unpacks a mask leaf from its bits."""
    size = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"{path} has {bits.size} bytes of {bits.dtype} for {size} bits")
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)
