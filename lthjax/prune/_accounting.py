"""Statistics of a mask: weights per layer, multiplications, and the overlap with another mask."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from lthjax.prune._masks import check_bool, matched, paths

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PyTree = Any
# The first columns of a table hold words, the others numbers.
_WORDS = 2
Leaves = dict[Any, int]
Macs = dict[int, int | None]
# Primitives that pass a weight on to a product without combining it with other values.
_THROUGH = {
    "dynamic_slice",
    "slice",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "reshape",
    "rev",
    "squeeze",
    "stop_gradient",
    "transpose",
}


class Row(NamedTuple):
    """Counts of one leaf.

    Attributes:
        path: its path.
        shape: its shape.
        weights: number of weights.
        left: number of weights kept; all, if it may not be pruned.
        prunable: whether it may be pruned.
        macs: multiplications for one example, if dense. None if the leaf enters no matrix product or
            convolution unchanged, or if the count is unknown: in the body of a `while` loop, in
            branches that differ, or in a convolution with strides over a dilated input.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    left: int
    prunable: bool
    macs: int | None

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.left / self.weights if self.weights else 1.0


class Table(NamedTuple):
    """The leaves of a network; `print` it, or pass it to rich where that is installed.

    Attributes:
        rows: one per leaf.
        counted: whether multiplications were counted, even if none is known.
    """

    rows: tuple[Row, ...]
    counted: bool = False

    def __rich__(self) -> "RichTable":
        from rich.table import Table as RichTable
        from rich.text import Text

        said = self._left_out()
        # As text, because brackets in a path are not markup.
        table = RichTable(caption=Text(said) if said else None, caption_justify="left")
        header, *rows = self._cells()
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i < _WORDS else "right")
        for cells in rows:
            table.add_row(*map(Text, cells))
        return table

    def _cells(self) -> Iterator[tuple[str, ...]]:
        """The header, a row for each leaf, and the sums."""
        macs_named = ("MACs", "MACs left") if self.counted else ()
        yield ("layer", "shape", "weights", "left", "density", *macs_named)
        weights = left = macs = macs_left = 0
        unknown = False
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "-"
            density = f"{100 * row.density:.1f} %" if row.prunable else "-"
            cells = (row.path, shape, f"{row.weights:,}", f"{row.left:,}", density)
            if row.prunable:
                unknown |= row.macs is None
                weights, left = weights + row.weights, left + row.left
            if self.counted and row.macs is not None:
                macs, macs_left = macs + row.macs, macs_left + round(row.macs * row.density)
                yield (*cells, f"{row.macs:,}", f"{round(row.macs * row.density):,}")
            else:
                yield (*cells, *(("-", "-") if self.counted else ()))
        total = f"{100 * left / weights if weights else 100:.1f} %"
        sums = ("all prunable", "", f"{weights:,}", f"{left:,}", total)
        least = "≥ " if unknown else ""
        yield (*sums, *((f"{least}{macs:,}", f"{least}{macs_left:,}") if self.counted else ()))

    def _left_out(self) -> str | None:
        """The leaves that may not be pruned, by their last names; None if all may be."""
        sizes: dict[str, list[int]] = {}
        for row in self.rows:
            if not row.prunable:
                name = row.path.removesuffix("/value").rpartition("/")[2]
                sizes.setdefault(name or "(unnamed)", []).append(row.weights)
        said = [
            f"{name} ({len(all_)} {'leaf' if len(all_) == 1 else 'leaves'}, {sum(all_):,} in all)"
            for name, all_ in sizes.items()
        ]
        return f"not prunable, so left whole: {', '.join(said)}" if said else None

    def __str__(self) -> str:
        header, *rows, sums = self._cells()
        widths = [max(map(len, column)) for column in zip(header, *rows, sums, strict=True)]
        rule = ["-" * width for width in widths]
        lines = [
            "  ".join(
                cell.ljust(width) if i < _WORDS else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (header, rule, *rows, rule, sums)
        ]
        said = self._left_out()
        return "\n".join([*lines, *(textwrap.wrap(said, 120) if said else ())])


class Overlap(NamedTuple):
    """The overlap of two masks.

    Attributes:
        iou: weights in both / weights in either, float32, shape ().
        chance: the expected iou of random masks with the same counts in every layer (approximately, as a
            ratio of means); float32, shape ().
    """

    iou: jax.Array
    chance: jax.Array


def overlap(a: PyTree, b: PyTree) -> Overlap:
    """Intersection over union of two masks, and the value expected by chance.

        >>> a = {"w": jnp.array([[True, True, False, False]])}
        >>> b = {"w": jnp.array([[True, False, True, False]])}
        >>> iou, chance = overlap(a, b)
        >>> round(float(iou), 3), round(float(chance), 3)
        (0.333, 0.333)

    Args:
        a: a mask; leaves that may not be pruned do not count.
        b: a mask of the same tree.

    Raises:
        ValueError: the masks do not match each other, or a leaf is not bool.
    """
    check_bool(a, "a")
    check_bool(b, "b")
    b = matched(a, b, "b", of="a")
    both = either = expected = union = jnp.float32(0)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.ndim(x) and jnp.ndim(y):
            n_x, n_y = x.sum(dtype=jnp.float32), y.sum(dtype=jnp.float32)
            common = n_x * n_y / max(x.size, 1)
            both, either = both + (x & y).sum(dtype=jnp.float32), either + (x | y).sum(dtype=jnp.float32)
            expected, union = expected + common, union + n_x + n_y - common
    return Overlap(both / jnp.maximum(either, 1), expected / jnp.maximum(union, 1))


def table(
    params: PyTree,
    mask: PyTree,
    *,
    apply: Callable[[PyTree, jax.Array], Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Table:
    """The leaves of a network: weights, number left, and multiplications.

    Args:
        params: a pytree of arrays.
        mask: its mask.
        apply: (parameters, input) -> output; with `shape` it gives the MACs (multiply-accumulates) of
            matrix products and convolutions that use a leaf.
        shape: of one input, with a batch axis of 1, for example (1, 28, 28, 1).

    Returns:
        A `Table`, with the leaves that are left out listed below it. Bodies of scan, map and fori_loop count
        once per iteration. MACs left count every surviving weight as often as it is used, which says nothing
        about time. Sums skip leaves with an unknown number and then show "≥"; an `apply` that masks weights
        itself hides them.

    Raises:
        ValueError: params and mask do not match, a leaf of the mask is not bool or traced, or one of apply
            and shape is missing.
    """
    check_bool(mask)
    if any(isinstance(m, jax.core.Tracer) for m in jax.tree.leaves(mask)):
        raise ValueError("mask: it is traced, and prune.table looks at values; call it outside jit.")
    mask = matched(params, mask)
    if (apply is None) != (shape is None):
        raise ValueError("apply, shape: MACs need both, the function and the shape of its input.")
    macs: Macs = {}
    if apply is not None and shape is not None:
        traced = jax.make_jaxpr(apply)(params, jnp.zeros(shape))
        leaves = {var: i for i, var in enumerate(traced.jaxpr.invars[:-1])}
        _count(traced.jaxpr, leaves, macs)
    rows = []
    for i, (path, leaf, m) in enumerate(
        zip(paths(params), jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    ):
        size = math.prod(jnp.shape(leaf))
        left = int(np.asarray(m).sum()) if jnp.ndim(m) else size
        rows.append(Row(path, tuple(jnp.shape(leaf)), size, left, bool(jnp.ndim(m)), macs.get(i)))
    return Table(tuple(rows), apply is not None)


def _count(jaxpr: Any, leaves: Leaves, macs: Macs, times: int | None = 1) -> list[int | None]:
    """Counts the products that use parameters, and adds them to `macs`.

    Args:
        jaxpr: the program to count.
        leaves: variable -> the parameter that it is.
        macs: parameter -> multiplications so far, None if unknown.
        times: how often the program runs; None if unknown.

    Returns:
        The parameter that each output is, None for other outputs.
    """
    known = dict(leaves)

    def leaf(atom: Any) -> int | None:
        return None if isinstance(atom, Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [leaf(atom) for atom in eqn.invars]
        outputs: list[int | None] = []
        if name in ("dot_general", "conv_general_dilated"):
            _add(macs, dict.fromkeys(i for i in operands if i is not None), times, _products(eqn))
        elif name == "scan":
            inner, fixed, carried = (
                eqn.params["jaxpr"].jaxpr,
                eqn.params["num_consts"],
                eqn.params["num_carry"],
            )
            each = None if times is None else times * eqn.params["length"]
            outputs = _loop(inner, operands, slice(fixed, fixed + carried), macs, each)
        elif name == "while":
            tested, fixed = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            carried = operands[tested + fixed :]
            # The number of iterations is known only at run time.
            _count_call(eqn.params["cond_jaxpr"].jaxpr, operands[:tested] + carried, macs, None)
            of_body = slice(fixed, fixed + len(carried))
            outputs = _loop(eqn.params["body_jaxpr"].jaxpr, operands[tested:], of_body, macs, None)
        elif name == "cond":
            outputs = _branches(eqn, operands[1:], macs, times)
        elif (called := _inner(eqn)) is not None:
            outputs = _count_call(called, operands[len(operands) - len(called.invars) :], macs, times)
        elif name in _THROUGH:
            outputs = operands[:1]
        known |= {out: i for out, i in zip(eqn.outvars, outputs, strict=False) if i is not None}
    return [leaf(out) for out in jaxpr.outvars]


def _count_call(
    jaxpr: Any, operands: Sequence[int | None], macs: Macs, times: int | None
) -> list[int | None]:
    passed = {v: i for v, i in zip(jaxpr.invars, operands, strict=True) if i is not None}
    return _count(jaxpr, passed, macs, times)


def _loop(
    body: Any, operands: Sequence[int | None], carried: slice, macs: Macs, times: int | None
) -> list[int | None]:
    """Counts the body of a loop; a carried value is a parameter if every iteration passes it on unchanged."""
    operands = [*operands]
    while True:
        found: Macs = {}
        outputs = _count_call(body, operands, found, times)
        after = outputs[: carried.stop - carried.start]
        kept = [i if i == j else None for i, j in zip(operands[carried], after, strict=True)]
        if kept == operands[carried]:
            break
        operands[carried] = kept
    _merge(macs, found)
    return outputs


def _branches(eqn: Any, operands: Sequence[int | None], macs: Macs, times: int | None) -> list[int | None]:
    """The result common to all branches; for branches by platform that of the last, the default."""
    branches = [branch.jaxpr for branch in eqn.params["branches"]]
    if eqn.params.get("branches_platforms"):
        branches = branches[-1:]
    counts: list[Macs] = [{} for _ in branches]
    outputs = [_count_call(b, operands, of, times) for b, of in zip(branches, counts, strict=True)]
    every = {i for of in counts for i in of}
    _merge(macs, {i: n if all(of.get(i, 0) == n for of in counts) else None
                  for i in every for n in [counts[0].get(i, 0)]})  # fmt: skip
    return [i if all(i == other[k] for other in outputs) else None for k, i in enumerate(outputs[0])]


def _add(macs: Macs, leaves: Iterable[int], times: int | None, products: int | None) -> None:
    _merge(macs, {i: None if times is None or products is None else times * products for i in leaves})


def _merge(macs: Macs, more: Macs) -> None:
    for i, n in more.items():
        before = macs.get(i, 0)
        macs[i] = None if before is None or n is None else before + n


def _inner(eqn: Any) -> Any:
    """The jaxpr that an equation calls once, or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None:
            return getattr(found, "jaxpr", found)
    return None


def _products(eqn: Any) -> int | None:
    """Multiplications of one product; for a convolution as if there were no border.

    Every output position uses all weights of the kernel, padding included. For a transposed convolution,
    whose input is dilated with zeros, every position of the original input does; with strides, too, it uses
    only some, and the number is None.
    """
    out, right = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    left = eqn.invars[0].aval.shape
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(out) * math.prod(left[i] for i in contracted)
    numbers = eqn.params["dimension_numbers"]
    dilated, strides = eqn.params["lhs_dilation"], eqn.params["window_strides"]
    if any(widened > 1 < stride for widened, stride in zip(dilated, strides, strict=True)):
        return None
    positions = [
        left[i] if widened > 1 else out[o]
        for i, o, widened in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], dilated, strict=True)
    ]
    images = out[numbers.out_spec[0]]
    return images * math.prod(positions) * math.prod(right)
