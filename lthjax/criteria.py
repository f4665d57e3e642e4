"""What a weight is worth: scores by which survivors are ranked before pruning; the lowest go.

One row a criterion: (initial, final) -> scores, leaf by leaf. `initial` is the state that the chain
rewinds to, `final` the trained weights. Names are those of Zhou et al. 2019 (arXiv 1905.01067).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Criterion = Callable[[jax.Array, jax.Array], jax.Array]

CRITERIA: dict[str, Criterion] = {
    "large_final": lambda initial, final: jnp.abs(final),
}
