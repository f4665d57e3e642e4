"""The savings of a ticket: weights, multiplications, bytes, and removable units.

Counts follow from the mask alone. Whether a ticket is faster has to be measured:
`python -m analysis.savings`.

    from lthjax import models
    from lthjax.measures import savings

    model = models.build("lenet300", (28, 28, 1), 10)
    savings.storage(mask)                                    # bytes, by format
    small = savings.compact(model.layers, params, mask)      # the same function by narrower arrays
    logits = savings.forward(small.layers, small.params, images)

Networks with batch normalisation have `compaction.compact`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from scipy.sparse import csr_array

from lthjax import prune
from lthjax.devices import conv
from lthjax.errors import UserError
from lthjax.networks import Layer
from lthjax.prune._masks import matched

PyTree = Any
Logits = Callable[[jax.Array], Any]
"""Images, float [N, H, W, C] -> logits, float [N, classes]."""
TOLERANCE = 1e-5
"""The largest relative difference of logits that float32 rounding explains."""
VARIANTS = {
    "masked": "dense arrays, the mask applied in every call",
    "compacted": "dense arrays without the units that do nothing",
    "scipy CSR": "dense layers by scipy, convolutions dense by JAX",
    "JAX BCSR": "dense layers by jax.experimental.sparse, convolutions dense",
    "JAX BCOO": "dense layers by jax.experimental.sparse, convolutions dense",
}
"""The timed forms of a forward pass -> description."""
# The range of a 16-bit index.
_LONGEST_ROW = 2**16


class Storage(NamedTuple):
    """Bytes of the prunable weights in float32, by format; leaves that may not be pruned are left out.

    Matrices have one row per output unit; its inputs (for a convolution, its kernel) lie along the row.

    Attributes:
        dense: 4 per weight.
        ideal: 4 per surviving weight, without positions.
        bitmask: 4 per survivor, and 1 bit per weight; whole bytes per leaf.
        csr16: 4 per survivor, 2 for its column, and 4 for every row's start and for the last row's end.
            Rows longer than 65,536 are split.
        csr32: the same with 4 for the column, rows not split.
        coo: 4 per survivor, 4 for its row and 4 for its column.

    At a density of 10 %, with rows so long that their starts do not count, these are 10, 7.6, 6.7,
    5.0 and 3.3 times smaller than dense.
    """

    dense: int
    ideal: int
    bitmask: int
    csr16: int
    csr32: int
    coo: int


class Counts(NamedTuple):
    """Sizes of a network: its prunable weights, and the multiplications of all its layers.

    Attributes:
        weights: number of prunable weights.
        weights_left: number of survivors.
        macs: multiply-accumulates for one example if dense, in layers that may not be pruned, too. A dense
            layer has inputs x outputs; a convolution has output height x width times the weights of its
            kernel.
        macs_left: the same, counting only survivors; layers that may not be pruned are whole.
    """

    weights: int
    weights_left: int
    macs: int
    macs_left: int


class Compacted(NamedTuple):
    """A network without its dead units.

    Attributes:
        layers: with their new widths.
        params: of the new shapes; dtypes as they were.
        mask: of the new shapes.
        kept: layer -> int [its new width], the old indices of the units that are left.
    """

    layers: tuple[Layer, ...]
    params: PyTree
    mask: PyTree
    kept: dict[str, np.ndarray]


def counts(layers: Sequence[Layer], params: PyTree, mask: PyTree, shape: tuple[int, int, int]) -> Counts:
    """Numbers of weights and multiplications, from `prune.table`.

    Args:
        layers: of a sequential network, of any widths.
        params, mask: its parameters and their mask.
        shape: (height, width, channels) of one image.
    """
    return counted(params, mask, lambda p, x: forward(layers, p, x), shape)


def counted(
    params: PyTree,
    mask: PyTree,
    apply: Callable[[PyTree, jax.Array], jax.Array],
    shape: tuple[int, int, int],
) -> Counts:
    """The same of any network, from its forward pass; shortcuts count, normalisations do not.

    A leaf without weights, as of a layer that compaction has emptied, has no multiplications. Of leaves that
    may not be pruned those count whose multiplications are known.

    Args:
        params, mask: its parameters and their mask.
        apply: (params, images) -> logits, in evaluation; it is traced.
        shape: (height, width, channels) of one image.

    Raises:
        UserError: the multiplications of some prunable weights are not known; see `prune.table`.
    """
    rows = prune.table(params, mask, apply=apply, shape=(1, *shape)).rows
    prunable = [row for row in rows if row.prunable]
    macs = [(row.macs, row.density) for row in rows if row.macs is not None]
    # The forward passes do without the product of an empty kernel.
    unknown = [row.path for row in prunable if row.macs is None and row.weights]
    if unknown:
        raise UserError(
            f"savings: the multiplications of {', '.join(unknown)} cannot be counted: they enter no matrix "
            "product or convolution unchanged, or do so in a loop or branch of unknown length; "
            "leave them unpruned by `prune.rate`, or change the network."
        )
    return Counts(
        sum(row.weights for row in prunable),
        sum(row.left for row in prunable),
        sum(of for of, _ in macs),
        sum(round(of * density) for of, density in macs),
    )


def storage(mask: PyTree) -> Storage:
    """Bytes of the prunable weights in each format.

        >>> storage({"w": np.array([[True, False], [False, False], [False, True]])})
        Storage(dense=24, ideal=8, bitmask=9, csr16=24, csr32=28, coo=24)

    Args:
        mask: a mask; the last axis of its leaves is that of outputs.
    """
    totals = np.zeros(len(Storage._fields), np.int64)
    for leaf in jax.tree.leaves(mask):
        if not np.ndim(leaf):
            continue
        size, left, rows = np.size(leaf), int(np.count_nonzero(leaf)), np.shape(leaf)[-1]
        columns = size // max(rows, 1)
        short = rows * max(-(-columns // _LONGEST_ROW), 1)
        totals += (
            4 * size,
            4 * left,
            4 * left + -(-size // 8),
            6 * left + 4 * (short + 1),
            8 * left + 4 * (rows + 1),
            12 * left,
        )
    return Storage(*totals.tolist())


def training_steps(total: int, rewind: int, rounds: int) -> int:
    """Training steps of iterative pruning up to a trained ticket: one dense training, then one per round.

    With a rewind step of 0 the result is rounds + 1 dense trainings.

    Args:
        total: steps of a dense training.
        rewind: the step at which rounds start.
        rounds: number of pruning rounds.
    """
    return total + rounds * (total - rewind)


def forward(layers: Sequence[Layer], params: PyTree, images: jax.Array) -> jax.Array:
    """The logits of a sequential network whose widths are taken from its arrays; 0 is allowed.

    Args:
        layers: its layers.
        params: layer -> {"kernel", "bias"}, as in the model or as `sparsified` makes them; may be traced.
        images: float [N, H, W, C].

    Returns:
        float [N, classes].
    """
    x = images
    for layer in layers[:-1]:
        x = _active(layer, params[layer.name], x)
    return _linear(layers[-1], params[layers[-1].name], x)


def compact(layers: Sequence[Layer], params: PyTree, mask: PyTree) -> Compacted:
    """Removes dead units; the network computes the same function, up to rounding.

    A unit whose outgoing weights are all pruned is removed. A unit whose incoming weights are all pruned is
    the constant relu(bias): it is folded into the next layer's biases and removed. It stays if the constant
    is not 0 and the next layer is a convolution with zero padding, because the border would differ. This
    repeats until nothing changes. The network's inputs and classes stay. Between convolutions and dense
    layers a channel is removed only with all its pixels.

    Args:
        layers: of a sequential network, of any widths.
        params: layer -> {"kernel", "bias"}.
        mask: its mask; pruned weights count as 0 whatever they are.

    Returns:
        The narrower network; its arrays are numpy's.

    Raises:
        ValueError: there are no layers, or layers, params and mask do not match.
    """
    if not layers:
        raise ValueError("layers: there are none; only sequential networks can be compacted.")
    mask = matched(params, mask)
    params, mask = jax.device_get((params, mask))
    params = jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, params)
    if {layer.name for layer in layers} != params.keys():
        raise ValueError(f"layers: {[layer.name for layer in layers]} are not those of {sorted(params)}.")
    forms = _forms(layers, params)
    # All kernels as [places, inputs, outputs], where inputs are the units of the layer before.
    kernels = [params[x.name]["kernel"].reshape(f).astype(float) for x, f in zip(layers, forms, strict=True)]
    left = [
        np.broadcast_to(mask[x.name]["kernel"], params[x.name]["kernel"].shape).reshape(f)
        for x, f in zip(layers, forms, strict=True)
    ]
    biases, keep = _fold(layers, kernels, left, [params[x.name]["bias"].astype(float) for x in layers])
    # One pass forward and one back suffice: a unit that is not read feeds no unit that is left, so its
    # removal takes no input from any, and a folded unit had no inputs.
    keep = _read(left, keep)
    before = [np.ones(forms[0][1], bool), *keep]

    def narrow(i: int, kernel: np.ndarray) -> np.ndarray:
        layer, part = layers[i], kernel[:, before[i]][:, :, keep[i]]
        places, inputs, outputs = part.shape
        leading = (layer.size, layer.size, inputs) if layer.size else (places * inputs,)
        return part.reshape(*leading, outputs)

    small: dict[str, dict[str, np.ndarray]] = {}
    small_mask: dict[str, dict[str, np.ndarray]] = {}
    for i, layer in enumerate(layers):
        own, own_mask = params[layer.name], mask[layer.name]
        small[layer.name] = {
            "bias": biases[i][keep[i]].astype(own["bias"].dtype),
            "kernel": narrow(i, kernels[i]).astype(own["kernel"].dtype),
        }
        small_mask[layer.name] = {
            "bias": own_mask["bias"][keep[i]] if np.ndim(own_mask["bias"]) else own_mask["bias"],
            "kernel": narrow(i, left[i]) if np.ndim(own_mask["kernel"]) else own_mask["kernel"],
        }
    kept = {layer.name: np.flatnonzero(k) for layer, k in zip(layers, keep, strict=True)}
    narrower = tuple(layer._replace(features=len(kept[layer.name])) for layer in layers)
    return Compacted(narrower, small, small_mask, kept)


def sparsified(layers: Sequence[Layer], params: PyTree, kind: Literal["BCOO", "BCSR"]) -> PyTree:
    """The parameters with dense layers' kernels as sparse matrices of jax.experimental, for `forward`.

    Convolutions stay dense. BCOO matrices are [inputs, outputs], for x W, which is the faster order. BCSR
    matrices are [outputs, inputs], for (W x), the only order that the library supports.

    Args:
        layers: of a sequential network.
        params: layer -> {"kernel", "bias"}, pruned weights 0.
        kind: the format.
    """
    made = {name: dict(of_layer) for name, of_layer in params.items()}
    for layer in layers:
        if not layer.size:
            kernel = np.asarray(params[layer.name]["kernel"])
            made[layer.name]["kernel"] = _bcoo(kernel) if kind == "BCOO" else _bcsr(kernel.T)
    return made


def scipy_forward(layers: Sequence[Layer], params: PyTree) -> Callable[[jax.Array], np.ndarray]:
    """Images -> logits, with dense layers as scipy's CSR matrices; convolutions stay dense, in JAX.

    Args:
        layers: of a sequential network.
        params: layer -> {"kernel", "bias"}, pruned weights 0.
    """
    convolutions = [layer for layer in layers if layer.size]
    matrices = [
        (
            csr_array(np.asarray(params[layer.name]["kernel"]).T),
            np.asarray(params[layer.name]["bias"])[:, None],
        )
        for layer in layers
        if not layer.size
    ]
    of_convolutions = jax.device_put({layer.name: params[layer.name] for layer in convolutions})

    @jax.jit
    def convolved(params: PyTree, x: jax.Array) -> jax.Array:
        for layer in convolutions:
            x = _active(layer, params[layer.name], x)
        return x.reshape(len(x), -1).T

    def logits(images: jax.Array) -> np.ndarray:
        # Features first: scipy's product reads its right factor row by row.
        x = np.asarray(convolved(of_convolutions, images))
        for matrix, bias in matrices[:-1]:
            x = np.maximum(matrix @ x + bias, 0)
        matrix, bias = matrices[-1]
        return (matrix @ x + bias).T

    return logits


def variants(
    layers: Sequence[Layer], params: PyTree, mask: PyTree, small: Compacted
) -> dict[str, Callable[[jax.Array], Any]]:
    """The forward pass of a ticket in every form: a key of `VARIANTS` -> (images -> logits).

    Args:
        layers: of a sequential network.
        params: layer -> {"kernel", "bias"}, pruned weights 0.
        mask: the ticket's mask.
        small: the compacted network.
    """
    mask, narrower = jax.device_put(mask), jax.device_put(small.params)
    bcsr, bcoo = (sparsified(layers, params, kind) for kind in ("BCSR", "BCOO"))
    whole = tuple(layers)
    return {
        "masked": lambda x: _masked_forward(whole, params, mask, x),
        "compacted": lambda x: compiled(small.layers, narrower, x),
        "scipy CSR": scipy_forward(layers, params),
        "JAX BCSR": lambda x: compiled(whole, bcsr, x),
        "JAX BCOO": lambda x: compiled(whole, bcoo, x),
    }


def deviation(whole: Logits, small: Logits, images: jax.Array, batch: int = 500) -> float:
    """The largest difference between full and compacted logits, divided by the largest logit.

    Args:
        whole, small: the two networks, images -> logits.
        images: float [N, H, W, C].
        batch: images per batch.

    Raises:
        RuntimeError: the difference is more than `TOLERANCE`.
    """
    difference = largest = np.float32(0)
    for first in range(0, len(images), batch):
        x = images[first : first + batch]
        expected = np.asarray(whole(x))
        apart = np.abs(np.asarray(small(x)) - expected).max()
        # np.maximum keeps NaN.
        difference, largest = np.maximum(difference, apart), np.maximum(largest, np.abs(expected).max())
    relative = float(difference / largest) if difference else 0.0
    if not relative <= TOLERANCE:
        raise RuntimeError(
            f"the compacted network's logits differ from the ticket's by {relative:g} of the largest one, "
            f"more than the {TOLERANCE:g} that rounding explains."
        )
    return relative


def check_logits(name: str, logits: Any, dense: Any) -> None:
    """Raises a RuntimeError where a variant's logits are not the dense network's, up to rounding."""
    difference = float(np.abs(np.asarray(logits) - np.asarray(dense)).max(initial=0))
    if not difference <= 10 * TOLERANCE * max(np.abs(dense).max(), 1e-30):
        raise RuntimeError(f"{name}: its logits differ from the dense network's by {difference:g}.")


compiled = jax.jit(forward, static_argnums=0)
"""`forward`, compiled once for all arrays of the same shapes."""


@partial(jax.jit, static_argnums=0)
def _masked_forward(layers: tuple[Layer, ...], params: PyTree, mask: PyTree, images: jax.Array) -> jax.Array:
    return forward(layers, prune.apply(params, mask), images)


def _bcoo(matrix: np.ndarray) -> sparse.BCOO:
    indices = np.argwhere(matrix).astype(np.int32)
    values = jnp.asarray(matrix[tuple(indices.T)])
    return sparse.BCOO(
        (values, jnp.asarray(indices)), shape=matrix.shape, indices_sorted=True, unique_indices=True
    )


def _bcsr(matrix: np.ndarray) -> sparse.BCSR:
    csr = csr_array(matrix)
    parts = (jnp.asarray(csr.data), jnp.asarray(csr.indices), jnp.asarray(csr.indptr))
    return sparse.BCSR(parts, shape=matrix.shape, indices_sorted=True, unique_indices=True)


def _linear(layer: Layer, params: PyTree, x: jax.Array) -> jax.Array:
    kernel = params["kernel"]
    if not layer.size:
        x = x.reshape(len(x), -1)
        x = (kernel @ x.T).T if isinstance(kernel, sparse.BCSR) else x @ kernel
    elif kernel.size:
        x = conv.conv2d(x, kernel, layer.padding)
    else:
        # The output of a convolution without inputs or outputs; XLA does not support one.
        cut = layer.size - 1 if layer.padding == "VALID" else 0
        x = jnp.zeros((len(x), x.shape[1] - cut, x.shape[2] - cut, kernel.shape[-1]), x.dtype)
    return x + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _active(layer: Layer, params: PyTree, x: jax.Array) -> jax.Array:
    x = _linear(layer, params, x)
    return jax.nn.relu(conv.max_pool(x) if layer.pool else x)


def _forms(layers: Sequence[Layer], params: PyTree) -> list[tuple[int, int, int]]:
    """(places, units of the layer before, units) of every kernel; for a flattened image pixels are places."""
    forms = []
    for i, layer in enumerate(layers):
        shape = params[layer.name]["kernel"].shape
        inputs = layers[i - 1].features if i else shape[-2]
        places = layer.size**2 if layer.size else shape[0] // max(inputs, 1)
        leading = (layer.size, layer.size, inputs) if layer.size else (places * inputs,)
        if shape != (*leading, layer.features):
            raise ValueError(f"layers: {layer} does not fit its kernel of shape {shape}.")
        forms.append((places, inputs, layer.features))
    return forms


def _fold(
    layers: Sequence[Layer], kernels: list[np.ndarray], left: list[np.ndarray], biases: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Folds units without inputs into the next biases: (new biases, which units are kept)."""
    biases = list(biases)
    keep: list[np.ndarray] = []
    for i, after in enumerate(layers[1:]):
        fed = left[i][:, keep[-1]] if keep else left[i]
        constant = np.maximum(biases[i], 0)
        goes = np.logical_not(fed.any(axis=(0, 1)))
        if after.size > 1 and after.padding == "SAME":
            goes &= constant == 0
        biases[i + 1] = biases[i + 1] + constant[goes] @ kernels[i + 1][:, goes].sum(axis=0)
        keep.append(~goes)
    return biases, [*keep, np.ones(layers[-1].features, bool)]


def _read(left: list[np.ndarray], keep: list[np.ndarray]) -> list[np.ndarray]:
    """The kept units that a kept unit of the next layer reads."""
    read = [keep[-1]]
    for i in reversed(range(len(keep) - 1)):
        read.insert(0, keep[i] & left[i + 1][:, :, read[0]].any(axis=(0, 2)))
    return read
