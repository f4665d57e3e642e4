"""Is a ticket what it is said to be? Checks of masks and weights of any framework, on plain arrays by name.

    from lthjax.measures import doctor

    doctor.zeros(final, mask).faults            # [Fault("fc1.weight", 12, 188160, "3 of them NaN")]

Arrays are mappings name -> numpy array. A mask has an array for every weight that it prunes; kept weights are
not 0 in it. Every check is pure, compares bits where it says so, and returns a `Check`: nothing is repaired.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lthjax import prune
from lthjax.errors import UserError

Arrays = Mapping[str, np.ndarray]
"""Name of an array -> the array."""
Outcome = Literal["ok", "FAILED", "note", "not checked"]
ALL = "all layers"
# Survivors of each sign from which on a layer tells whether both were trained.
_FEWEST = 20


class Fault(NamedTuple):
    """A layer that fails a check.

    Attributes:
        layer: its name, or `ALL`.
        bad: number of its weights that fail.
        of: number of its weights that were looked at.
        why: more about it, or "".
    """

    layer: str
    bad: int
    of: int
    why: str = ""


class Check(NamedTuple):
    """The result of a check.

    Attributes:
        claim: what should be so, in words.
        faults: where it is not.
        layers: number of layers that were looked at.
        weights: number of weights that were looked at.
        lacking: why it could not be made, or "".
        harmless: whether a fault is to be known, but breaks no claim: a note.
    """

    claim: str
    faults: Sequence[Fault] = ()
    layers: int = 0
    weights: int = 0
    lacking: str = ""
    harmless: bool = False

    @property
    def outcome(self) -> Outcome:
        """Whether it is so; without anything to look at, "not checked"."""
        if self.faults:
            return "note" if self.harmless else "FAILED"
        return "ok" if self.layers else "not checked"


ALIKE = "the files hold the same arrays"
BINARY = "the mask is 0 or 1, of its weight's shape"
ZEROS = "pruned weights are 0 after training"
UNSIGNED = "no pruned weight is -0"
FINITE = "what is left is finite"
LEFT_ALONE = "the mask leaves biases and norms"
SPARSITY = "the ticket is as sparse as claimed, in all"
SPARSITY_BY_LAYER = "the ticket is as sparse as claimed, in every layer"
START = "survivors start at the init, bit for bit"
REST = "biases and norms start where the survivors do"
REWOUND = "survivors start at the state of the rewind step, bit for bit"
BOTH_SIGNS = "survivors of both signs were trained"
CONTROL = "the control has the ticket's density in every layer"
CONTROL_IN_ALL = "the control has the ticket's density in all"
SHRUNK = "masks only shrink"
COUNTED = "every level removes as many weights as its schedule says"


def prunable(arrays: Arrays, names: str = "") -> list[str]:
    """The names of the arrays that are weights to prune.

    Args:
        arrays: the network's arrays.
        names: a regex that is searched in the names; by default the rule of `lthjax.prune.ones`, floats of
            two or more dimensions that are no biases, embeddings, scales or statistics.

    Raises:
        UserError: the regex matches nothing, or an array without dimensions.
    """
    # A dot separates the parts of a name in PyTorch, a slash in the rule.
    by_path = {name.replace(".", "/"): name for name in arrays}
    if names:
        return _matching(arrays, names)
    mask = prune.ones({path: arrays[name] for path, name in by_path.items()})
    return [name for path, name in by_path.items() if mask[path].ndim]


def _matching(arrays: Arrays, names: str) -> list[str]:
    try:
        mask = prune.ones(dict(arrays), names)
    except ValueError as error:
        raise UserError(f"names: {str(error).removeprefix('prunable: ')}") from error
    return [name for name in arrays if mask[name].ndim]


def alike(files: Mapping[str, Arrays]) -> Check:
    """Whether several files hold arrays of the same names, shapes and types; the first is the measure.

    Args:
        files: name of a file -> its arrays; files that hold masks may hold fewer.
    """
    (first, ours), *others = files.items()
    faults = []
    for other, theirs in others:
        for name in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(name), theirs.get(name)
            if a is None or b is None:
                there = a if b is None else b
                why, size = f"only in {first if b is None else other}", 0 if there is None else there.size
            elif (a.shape, a.dtype) != (b.shape, b.dtype):
                why, size = f"{b.dtype} {b.shape} in {other}, {a.dtype} {a.shape} in {first}", a.size
            else:
                continue
            faults.append(Fault(name, size, size, why))
    return Check(ALIKE, faults, len(ours) if others else 0, sum(a.size for a in ours.values()))


def binary(mask: Arrays, weights: Arrays) -> Check:
    """Whether a mask holds 0 and 1 alone, and every array of it fits a weight.

    Args:
        mask: as it is in its file, of any type.
        weights: the network's arrays.
    """
    faults = []
    for name, m in mask.items():
        weight = weights.get(name)
        if weight is None:
            faults.append(Fault(name, m.size, m.size, "there is no such weight"))
        elif m.shape != weight.shape:
            faults.append(Fault(name, m.size, m.size, f"{m.shape}, where the weight is {weight.shape}"))
        elif other := int(np.sum((m != 0) & (m != 1))):
            faults.append(Fault(name, other, m.size, "neither 0 nor 1"))
    return Check(BINARY, faults, len(mask), sum(m.size for m in mask.values()))


def fitting(mask: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """The arrays of a mask that fit a weight, as bool: True where it is kept."""
    return {
        name: np.asarray(m != 0)
        for name, m in mask.items()
        if name in weights and m.shape == weights[name].shape
    }


def zeros(final: Arrays, mask: Arrays) -> Check:
    """Whether every pruned weight is 0 after training; NaN is not 0.

    Args:
        final: trained weights.
        mask: bool, of the weights' shapes.
    """
    return _where(ZEROS, mask, {n: _pruned(final[n], m) != 0 for n, m in mask.items()}, final)


def unsigned(final: Arrays, mask: Arrays) -> Check:
    """Whether no pruned weight is −0, as a product with the mask makes of a negative one; as `zeros`."""

    def negative(w: np.ndarray) -> np.ndarray:
        return np.signbit(w) & (w == 0)

    return _where(UNSIGNED, mask, {n: negative(_pruned(final[n], m)) for n, m in mask.items()})


def _pruned(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pruned weights as floats, also those of types that numpy lacks: [n]; sizes of complex ones."""
    gone = weight[~mask]
    if gone.dtype.kind == "c":
        return np.abs(gone)
    return gone if gone.dtype.kind == "f" else gone.astype(np.float64)


def _where(claim: str, mask: Arrays, bad: Arrays, of: Arrays | None = None) -> Check:
    """A check of the pruned weights: `bad` has a bool for each of them."""
    faults = []
    for name, found in bad.items():
        if not found.any():
            continue
        nan = int(np.isnan(_pruned(of[name], mask[name])).sum()) if of is not None else 0
        faults.append(Fault(name, int(found.sum()), found.size, f"{nan:,} of them NaN" if nan else ""))
    return Check(claim, faults, len(bad), sum(found.size for found in bad.values()))


def finite(final: Arrays, mask: Arrays) -> Check:
    """Whether survivors, biases, norms and statistics are neither NaN nor infinite; as `zeros`."""
    faults, seen = [], 0
    for name, array in final.items():
        left = array[mask[name]] if name in mask else array.ravel()
        # Types that numpy lacks, such as bfloat16, have kind V.
        known = left if left.dtype.kind in "biufc" else left.astype(np.float32)
        seen += left.size
        if bad := int((~np.isfinite(known)).sum()):
            faults.append(Fault(name, bad, left.size))
    return Check(FINITE, faults, len(final), seen)


def left_alone(mask: Arrays, weights: Arrays, prunable: Iterable[str]) -> Check:
    """Whether a mask prunes nothing but weights.

    Args:
        mask: bool.
        weights: the network's arrays.
        prunable: names of those that may be pruned.
    """
    rest = [name for name in weights if name not in {*prunable}]
    gone = {name: int((~mask[name]).sum()) for name in rest if name in mask}
    faults = [Fault(name, n, mask[name].size, "pruned") for name, n in gone.items() if n]
    return Check(LEFT_ALONE, faults, len(rest), sum(weights[name].size for name in rest))


def sparsity(
    mask: Arrays, weights: Arrays, prunable: Sequence[str], claimed: float, tolerance: float
) -> Check:
    """Whether the share of pruned weights is the claimed one, over all prunable weights.

    A weight that the mask does not name is kept, and counts.

    Args:
        mask: bool.
        weights: the network's arrays.
        prunable: names of those that may be pruned; all others do not count.
        claimed: sparsity, in [0, 1].
        tolerance: the largest allowed difference, a share of the weights.
    """
    gone, sizes = _gone(mask, weights, prunable)
    faults = _off(ALL, sum(gone.values()), sum(sizes.values()), claimed, tolerance)
    return Check(SPARSITY, faults, len(sizes), sum(sizes.values()))


def sparsity_by_layer(
    mask: Arrays, weights: Arrays, prunable: Sequence[str], claimed: float, tolerance: float
) -> Check:
    """As `sparsity`, for every layer by itself."""
    gone, sizes = _gone(mask, weights, prunable)
    faults = [fault for name, n in sizes.items() for fault in _off(name, gone[name], n, claimed, tolerance)]
    return Check(SPARSITY_BY_LAYER, faults, len(sizes), sum(sizes.values()))


def _gone(mask: Arrays, weights: Arrays, prunable: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Name -> weights pruned; name -> weights."""
    sizes = {name: weights[name].size for name in prunable}
    return {name: int((~mask[name]).sum()) if name in mask else 0 for name in prunable}, sizes


def _off(name: str, gone: int, size: int, claimed: float, tolerance: float) -> list[Fault]:
    # Half a weight is rounding, whatever the tolerance.
    if abs(gone - claimed * size) <= max(tolerance * size, 0.5):
        return []
    return [Fault(name, gone, size, f"{100 * gone / max(size, 1):.2f} % pruned")]


def same_start(start: Arrays, origin: Arrays, mask: Arrays, claim: str = START) -> Check:
    """Whether survivors start with the values of a saved state, bit for bit.

    Args:
        start: the weights that the ticket's training starts from; pruned ones may have any value.
        origin: the initial weights, or the state at the rewind step.
        mask: bool.
        claim: `START` or `REWOUND`.
    """
    there = [name for name in mask if name in start and name in origin]
    return _equal(claim, {name: (start[name], origin[name], mask[name]) for name in there})


def same_rest(start: Arrays, origin: Arrays, prunable: Iterable[str]) -> Check:
    """Whether everything that is not prunable starts with the saved values, too, bit for bit."""
    weights = {*prunable}
    there = [name for name in start if name in origin and name not in weights]
    return _equal(REST, {n: (start[n], origin[n], np.ones(np.shape(start[n]), bool)) for n in there})


def _equal(claim: str, pairs: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Check:
    faults, seen = [], 0
    for name, (a, b, where) in pairs.items():
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            faults.append(Fault(name, a.size, a.size, f"{a.dtype} {a.shape}, not {b.dtype} {b.shape}"))
            continue
        seen += int(where.sum())
        if bad := int((~same_bits(a, b)[where]).sum()):
            faults.append(Fault(name, bad, int(where.sum())))
    return Check(claim, faults, len(pairs), seen)


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays of one shape and type have the same bits: bool of their shape; NaN equals itself."""
    raw = [np.ascontiguousarray(x).reshape(x.size, 1).view(np.uint8) for x in (a, b)]
    return np.all(raw[0] == raw[1], axis=1).reshape(a.shape)


def both_signs(start: Arrays, final: Arrays, mask: Arrays) -> Check:
    """Whether training moved survivors of both signs.

    A layer fails if more than half of its survivors of one sign kept their start bit for bit, and not so
    those of the other: then they were frozen for being below a threshold that is meant for magnitudes. Layers
    with fewer than 20 survivors of one sign are not looked at.

    Args:
        start: the weights that training started from.
        final: trained weights.
        mask: bool.
    """
    faults, looked, seen = [], 0, 0
    layers = [name for name in mask if name in start and start[name].shape == final[name].shape]
    for name in layers:
        still = (start[name].astype(final[name].dtype) == final[name]) & mask[name]
        sides = {"negative": mask[name] & (start[name] < 0), "positive": mask[name] & (start[name] > 0)}
        kept = {sign: (int((still & side).sum()), int(side.sum())) for sign, side in sides.items()}
        if min(of for _, of in kept.values()) < _FEWEST:
            continue
        looked, seen = looked + 1, seen + int(mask[name].sum())
        frozen = [sign for sign, (n, of) in kept.items() if 2 * n > of]
        if len(frozen) == 1:
            faults.append(Fault(name, *kept[frozen[0]], f"{frozen[0]} ones that kept their start"))
    lacking = "" if looked or not layers else f"no layer has {_FEWEST} survivors of each sign"
    return Check(BOTH_SIGNS, faults, looked, seen, lacking)


def same_density(mask: Arrays, control: Arrays) -> Check:
    """Whether a control keeps as many weights as the ticket, layer by layer.

    Args:
        mask: bool; the ticket's.
        control: bool; a layer that only one of the two has is kept whole by the other.
    """
    faults, seen = [], 0
    names = [*mask, *(name for name in control if name not in mask)]
    for name in names:
        size = mask[name].size if name in mask else control[name].size
        ours, theirs = (int(of[name].sum()) if name in of else size for of in (mask, control))
        seen += size
        if ours != theirs:
            why = f"the ticket keeps {ours:,}, the control {theirs:,}"
            faults.append(Fault(name, abs(ours - theirs), size, why))
    return Check(CONTROL, faults, len(names), seen)


def same_total(mask: Arrays, control: Arrays) -> Check:
    """Whether a control keeps as many weights as the ticket in all, whatever its layers keep.

    A rule that rounds in every layer may be half a weight off in each.

    Args:
        mask: as for `same_density`.
        control: likewise.
    """
    sizes = {name: m.size for name, m in {**control, **mask}.items()}
    ours, theirs = (sum(int(of[n].sum()) if n in of else sizes[n] for n in sizes) for of in (mask, control))
    why, size = f"the ticket keeps {ours:,}, the control {theirs:,}", sum(sizes.values())
    off = abs(ours - theirs)
    faults = [Fault(ALL, off, size, why)] if 2 * off > len(sizes) else []
    return Check(CONTROL_IN_ALL, faults, len(sizes), size)


def shrunk(before: Arrays, after: Arrays) -> Check:
    """Whether a level's mask keeps nothing that the level before it has pruned; both bool, of one network."""
    back = {name: int((after[name] & ~m).sum()) for name, m in before.items()}
    faults = [Fault(name, n, before[name].size, "came back") for name, n in back.items() if n]
    return Check(SHRUNK, faults, len(before), sum(m.size for m in before.values()))


def counted(
    before: Arrays, after: Arrays, going: Mapping[str, int], members: Mapping[str, Sequence[str]]
) -> Check:
    """Whether a level removed as many weights as its schedule says.

    Args:
        before, after: masks, bool, of one network.
        going: name of a layer or of a group of layers -> the number of weights that the level should remove.
        members: name of a group -> its layers.
    """
    faults = []
    for name, expected in going.items():
        layers = members.get(name, [name])
        left, size = sum(int(before[layer].sum()) for layer in layers), 0
        removed = left - sum(int(after[layer].sum()) for layer in layers)
        size = sum(before[layer].size for layer in layers)
        if removed != expected:
            why = f"it removes {removed:,}, the schedule {expected:,}"
            faults.append(Fault(name, abs(removed - expected), size, why))
    return Check(COUNTED, faults, len(going), sum(m.size for m in before.values()))


def together(found: Iterable[tuple[str, Check]]) -> list[Check]:
    """The checks of many networks, one a claim, in order of appearance.

    Args:
        found: (which network, its check); the network's name comes before the names of its layers.
    """
    merged: dict[str, Check] = {}
    for where, check in found:
        faults = [fault._replace(layer=f"{where} {fault.layer}".strip()) for fault in check.faults]
        old = merged.get(check.claim, Check(check.claim))
        merged[check.claim] = Check(
            check.claim,
            [*old.faults, *faults],
            old.layers + check.layers,
            old.weights + check.weights,
            old.lacking or check.lacking,
        )
    return [*merged.values()]
