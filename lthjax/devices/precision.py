"""Products of rounded factors: what `train.precision` means, the same on every platform.

`jax.default_matmul_precision` alone means other numbers on other hardware: a CPU ignores it, of "bfloat16"
a GPU may make TF32. Here the factors themselves are rounded, those of the gradients' products too, and
every product is then exact in whatever units the hardware has for that precision; sums are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

# Explicit bits of the mantissa; both have the eight bits of exponent of float32.
_MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}


def rounded(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A product whose factors, and those of its gradients, are rounded to the precision in force.

    The precision is that of `jax.default_matmul_precision` where the product is traced; with any but
    "tensorfloat32" and "bfloat16" nothing is rounded. Rounding is to nearest, ties to even, and counts as
    the identity in gradients; they are for reverse mode, as those of `lthjax.devices.conv`.

    Args:
        product: linear in either of its first two arguments, float32 arrays.

    Returns:
        A function of the same arguments.
    """

    def of_rounded(a: jax.Array, b: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        bits = _MANTISSA.get(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        if bits is None:
            return product(a, b, *args, **kwargs)
        return _round_gradient(product(_round(a, bits), _round(b, bits), *args, **kwargs), bits)

    return of_rounded


def _reduce(x: jax.Array, bits: int) -> jax.Array:
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round(x: jax.Array, bits: int) -> jax.Array:
    return _reduce(x, bits)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round_gradient(y: jax.Array, bits: int) -> jax.Array:
    return y


_round.defvjp(lambda x, bits: (_round(x, bits), None), lambda bits, _, dy: (dy,))
_round_gradient.defvjp(lambda y, bits: (y, None), lambda bits, _, dy: (_round(dy, bits),))
