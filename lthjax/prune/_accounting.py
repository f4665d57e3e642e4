"""What a mask leaves: layer by layer, in multiplications, and against another mask."""

import io
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from lthjax.prune._core import matched, paths

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PyTree = Any
# What hands a weight on to a product without computing anything with others.
_THROUGH = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "rev", "squeeze", "transpose"}


class Row(NamedTuple):
    """A leaf in numbers.

    Attributes:
        path: its path.
        shape: its shape.
        weights: how many it has.
        left: how many are kept; all, where it may not be pruned.
        prunable: whether it may be pruned.
        macs: multiplications for one example, if dense; None where not known.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    left: int
    prunable: bool
    macs: int | None

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return self.left / self.weights if self.weights else 1.0


class Table(NamedTuple):
    """The leaves of a network; `print` it, or hand it to rich.

    Attributes:
        rows: one a leaf.
    """

    rows: tuple[Row, ...]

    def __rich__(self) -> "RichTable":
        from rich.table import Table as RichTable
        from rich.text import Text

        said = self._left_out()
        # As text: brackets in a path are no markup.
        table = RichTable(caption=Text(said) if said else None, caption_justify="left")
        known = any(row.macs is not None for row in self.rows)
        columns = ("layer", "shape", "weights", "left", "density", *(("MACs", "MACs left") if known else ()))
        for i, name in enumerate(columns):
            table.add_column(name, justify="left" if i < 2 else "right")
        for cells in self._cells(known):
            table.add_row(*map(Text, cells))
        return table

    def _cells(self, known: bool) -> Iterator[tuple[str, ...]]:
        weights = left = macs = macs_left = 0
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "-"
            density = f"{100 * row.density:.1f} %" if row.prunable else "-"
            cells = (row.path, shape, f"{row.weights:,}", f"{row.left:,}", density)
            if row.prunable:
                weights, left = weights + row.weights, left + row.left
            if known and row.macs is not None:
                macs, macs_left = macs + row.macs, macs_left + round(row.macs * row.density)
                yield (*cells, f"{row.macs:,}", f"{round(row.macs * row.density):,}")
            else:
                yield (*cells, *(("-", "-") if known else ()))
        total = f"{100 * left / max(weights, 1):.1f} %"
        sums = ("all prunable", "", f"{weights:,}", f"{left:,}", total)
        yield (*sums, *((f"{macs:,}", f"{macs_left:,}") if known else ()))

    def _left_out(self) -> str | None:
        """What may not be pruned, by the leaves' last names; None where everything may be."""
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
        from rich.console import Console

        out = io.StringIO()
        # Plain also in a notebook, where rich would display the table itself, and write escape codes.
        Console(file=out, width=120, force_jupyter=False, force_terminal=False).print(self.__rich__())
        return out.getvalue()


class Overlap(NamedTuple):
    """How alike two masks are.

    Attributes:
        iou: weights in both / weights in either, float32, shape ().
        chance: what random masks of the same counts in every layer have on average, up to the ratio
            of means; float32, shape ().
    """

    iou: jax.Array
    chance: jax.Array


def overlap(a: PyTree, b: PyTree) -> Overlap:
    """Intersection over union of two masks, and what chance gives.

        >>> a = {"w": jnp.array([[True, True, False, False]])}
        >>> b = {"w": jnp.array([[True, False, True, False]])}
        >>> iou, chance = overlap(a, b)
        >>> round(float(iou), 3), round(float(chance), 3)
        (0.333, 0.333)

    Args:
        a: a mask; leaves that may not be pruned do not count.
        b: a mask of the same tree.

    Raises:
        ValueError: the masks do not fit each other.
    """
    b = matched(a, b)
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
    """The leaves of a network: weights, how many are left, and multiplications.

    Args:
        params: a pytree of arrays.
        mask: its mask.
        apply: (parameters, input) -> output; with `shape` for the MACs (multiply-accumulates) of
            matrix products and convolutions that a leaf goes into.
        shape: of one input, batch axis included and 1, for example (1, 28, 28, 1).

    Returns:
        A `Table`, beneath which stands what the mask leaves out; MACs left count every surviving weight
        as often as it is used, which says nothing of time.

    Raises:
        ValueError: params and mask do not fit, or one of apply and shape is missing.
    """
    mask = matched(params, mask)
    if (apply is None) != (shape is None):
        raise ValueError("apply, shape: MACs need both, the function and the shape of its input.")
    macs: dict[int, int] = {}
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
    return Table(tuple(rows))


def _count(jaxpr: Any, leaves: dict[Any, int], macs: dict[int, int]) -> list[int | None]:
    """Adds the products that parameters go into; returns which parameter each output is, if any."""
    known = dict(leaves)

    def leaf(atom: Any) -> int | None:
        return None if isinstance(atom, Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, _inner(eqn)
        if name in ("dot_general", "conv_general_dilated"):
            for operand in eqn.invars:
                i = leaf(operand)
                if i is not None:
                    macs[i] = macs.get(i, 0) + _products(eqn)
        elif inner is not None:
            of_operands = eqn.invars[len(eqn.invars) - len(inner.invars) :]
            passed = {
                v: i for v, a in zip(inner.invars, of_operands, strict=True) if (i := leaf(a)) is not None
            }
            of_outputs = zip(eqn.outvars, _count(inner, passed, macs), strict=False)
            known |= {out: i for out, i in of_outputs if i is not None}
        elif name in _THROUGH and (i := leaf(eqn.invars[0])) is not None:
            known[eqn.outvars[0]] = i
    return [leaf(out) for out in jaxpr.outvars]


def _inner(eqn: Any) -> Any:
    """The jaxpr that an equation calls, or None; of branches the last, which is the default platform's."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "branches"):
        found = eqn.params.get(name)
        if found is not None:
            found = found[-1] if isinstance(found, tuple) else found
            return getattr(found, "jaxpr", found)
    return None


def _products(eqn: Any) -> int:
    out, right = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return math.prod(out) * math.prod(left[i] for i in contracted)
    outputs = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(out) * math.prod(right) // outputs
