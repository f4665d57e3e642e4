"""Products of rounded factors: implements `train.precision`, with the same meaning on every platform.

`jax.default_matmul_precision` alone gives different numbers on different hardware: a CPU ignores it, and a
GPU may use TF32 for "bfloat16". Here the factors are rounded explicitly, those of the gradients' products
too. Every product is then exact in any hardware unit for that precision; sums are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

# Explicit mantissa bits; both formats have the eight exponent bits of float32.
_MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}


def rounded(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A product that rounds its factors, and those of its gradients, to the current precision.

    The precision is that of `jax.default_matmul_precision` when the product is traced; values other than
    "tensorfloat32" and "bfloat16" round nothing. Rounding is to nearest, ties to even. Gradients treat it as
    the identity and support reverse mode only, as in `lthjax.devices.conv`.

    Args:
        product: linear in each of its first two arguments, float32 arrays.

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
