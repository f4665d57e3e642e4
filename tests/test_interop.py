"""A ticket of a model of any library: the same few lines, executed for each."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lthjax import prune

X = jax.random.normal(jax.random.key(0), (32, 6))
Y = jnp.sin(X[:, :3])
Loss = Callable[[Any], jax.Array]


def of_dict() -> tuple[Any, Loss]:
    keys = jax.random.split(jax.random.key(1))
    params = {"a": {"w": jax.random.normal(keys[0], (6, 16)), "b": jnp.zeros(16)}, "out": None,
              "c": [jax.random.normal(keys[1], (16, 3))]}  # fmt: skip
    return params, lambda p: ((jnp.tanh(X @ p["a"]["w"] + p["a"]["b"][None]) @ p["c"][0] - Y) ** 2).mean()


def of_bfloat16() -> tuple[Any, Loss]:
    params, loss = of_dict()
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), loss


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x)))
        return nn.Dense(3)(x)


def of_linen() -> tuple[Any, Loss]:
    # The batch-norm collection goes along: its leaves have one dimension and are left alone.
    return Linen().init(jax.random.key(1), X), lambda v: ((Linen().apply(v, X) - Y) ** 2).mean()


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.a, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.c = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(nnx.tanh(self.norm(self.a(x))))


def of_nnx() -> tuple[Any, Loss]:
    graph, state = nnx.split(Nnx(), nnx.Param)
    return state, lambda s: ((nnx.merge(graph, s)(X) - Y) ** 2).mean()


def of_haiku() -> tuple[Any, Loss]:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(jnp.tanh(hk.Linear(16)(x)))))
    return net.init(jax.random.key(1), X), lambda p: ((net.apply(p, X) - Y) ** 2).mean()


def of_equinox() -> tuple[Any, Loss]:
    # What is no array becomes None in the arrays' tree, and comes back by eqx.combine.
    arrays, rest = eqx.partition(eqx.nn.MLP(6, 3, 16, 1, key=jax.random.key(1)), eqx.is_array)
    return arrays, lambda p: ((jax.vmap(eqx.combine(p, rest))(X) - Y) ** 2).mean()


@pytest.mark.parametrize("make", [of_dict, of_bfloat16, of_linen, of_nnx, of_haiku, of_equinox])
def test_a_ticket_in_a_few_lines(make: Callable[[], tuple[Any, Loss]]) -> None:
    origin, loss = make()

    def train(params: Any, mask: Any) -> Any:
        tx = prune.masked(optax.adamw(1e-2), mask)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for _ in range(60):
            params, state = step(params, state)
        return params

    mask = prune.ones(origin)
    final = train(origin, mask)
    mask = prune.magnitude(final, mask, 0.5)
    ticket = train(prune.apply(origin, mask), mask)

    assert float(prune.density(mask)) == 0.5
    assert jax.tree.structure(ticket) == jax.tree.structure(origin)
    assert float(loss(ticket)) < 0.9 * float(loss(prune.apply(origin, mask)))
    for m, w, o in zip(*map(jax.tree.leaves, (mask, ticket, origin)), strict=True):
        assert w.dtype == o.dtype
        if jnp.ndim(m):
            assert int(m.sum()) == m.size // 2
            np.testing.assert_array_equal(np.asarray(w)[~np.asarray(m)], 0)
            assert (np.asarray(w)[np.asarray(m)] != 0).all()
        else:
            assert w.ndim < 2
    rows = prune.table(ticket, mask).rows
    assert sum(row.left for row in rows if row.prunable) == int(prune.totals(mask)[0])
