"""A ticket of a model of any library: the same few lines run for each."""

from collections.abc import Callable
from pathlib import Path
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
    # The batch-norm collection is included: its leaves have one dimension and are left alone.
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
    # Leaves that are no arrays become None in the arrays' tree, and eqx.combine restores them.
    arrays, rest = eqx.partition(eqx.nn.MLP(6, 3, 16, 1, key=jax.random.key(1)), eqx.is_array)
    return arrays, lambda p: ((jax.vmap(eqx.combine(p, rest))(X) - Y) ** 2).mean()


@pytest.mark.parametrize("make", [of_dict, of_bfloat16, of_linen, of_nnx, of_haiku, of_equinox])
def test_a_ticket_in_a_few_lines(make: Callable[[], tuple[Any, Loss]], tmp_path: Path) -> None:
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
    prune.save(tmp_path / "t", ticket, mask, origin=origin)
    loaded = prune.load(tmp_path / "t", like=jax.eval_shape(lambda: origin))
    for back, saved in ((loaded.params, ticket), (loaded.mask, mask), (loaded.origin, origin)):
        assert jax.tree.structure(back) == jax.tree.structure(saved)
        jax.tree.map(np.testing.assert_array_equal, back, saved)


@pytest.mark.parametrize("form", ["state", "pure", "in_the_state", "scheduled"])
def test_nnx_optimizer_takes_masked(form: str) -> None:
    net = Nnx()
    state = nnx.state(net, nnx.Param)
    # NNX first passes its state with Variables to optax, and pure arrays in every update.
    mask = prune.magnitude(state, prune.ones(state), 0.5)
    given = nnx.to_pure_dict(mask) if form == "pure" else mask
    adamw = optax.adamw(1e-2)
    tx = {
        "in_the_state": lambda: prune.masked(adamw),
        "scheduled": lambda: prune.scheduled(adamw, "magnitude", 0.5, 2, 8, 3),
    }.get(form, lambda: prune.masked(adamw, given))()
    optimiser = nnx.Optimizer(net, tx, wrt=nnx.Param)
    traced: list[int] = []

    @nnx.jit
    def step(net: Nnx, optimiser: nnx.Optimizer) -> jax.Array:
        traced.append(1)
        loss, gradients = nnx.value_and_grad(lambda n: ((n(X) - Y) ** 2).mean())(net)
        optimiser.update(net, gradients)
        return loss

    losses = [float(step(net, optimiser)) for _ in range(10)]
    if form == "in_the_state":
        optimiser.opt_state = prune.set_mask(optimiser.opt_state, nnx.to_pure_dict(mask))
    losses += [float(step(net, optimiser)) for _ in range(10)]
    assert losses[9] < losses[1]
    assert losses[-1] < losses[11]
    assert len(traced) == 1
    if form == "scheduled":
        mask = prune.mask_of(optimiser.opt_state)
    for layer in ("a", "c"):
        weights, kept = (np.asarray(getattr(net, layer).kernel[...]), np.asarray(mask[layer].kernel[...]))
        assert kept.sum() == kept.size // 2
        np.testing.assert_array_equal(weights[~kept], 0)
        assert (weights[kept] != 0).all()


def stacked_linen() -> Any:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> Any:
            x = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            return nn.WeightNorm(nn.Dense(6))(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            x = nn.Embed(9, 6)(tokens)
            scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.SpectralNorm(nn.Dense(1))(scan()(x, None)[0], update_stats=False)

    return jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((2, 4), int))


def stacked_haiku() -> Any:
    def net(tokens: jax.Array) -> jax.Array:
        x = hk.Embed(9, 6)(tokens)
        x = hk.experimental.layer_stack(3)(lambda x: hk.Linear(6)(hk.LayerNorm(-1, True, True)(x)))(x)
        x = hk.BatchNorm(True, True, 0.9)(hk.Bias()(x), True)
        return hk.Conv1D(3, 3, data_format="NCW")(x)

    made = hk.transform_with_state(net)
    return jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((2, 4), int))


def stacked_nnx() -> Any:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.attention = nnx.MultiHeadAttention(2, 6, rngs=rngs, decode=False)
            self.norm, self.lora = nnx.BatchNorm(6, rngs=rngs), nnx.LoRA(6, 2, 6, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.blocks = nnx.vmap(Block)(rngs.fork(split=3))
            self.embed = nnx.Embed(9, 6, rngs=rngs)

    return nnx.state(nnx.eval_shape(Net))


def stacked_equinox() -> Any:
    class Net(eqx.Module):
        blocks: Any
        patch_embedding: eqx.nn.Conv2d
        table: eqx.nn.Embedding
        cell: eqx.nn.GRUCell
        scaled: eqx.nn.LayerNorm

        def __init__(self, key: jax.Array) -> None:
            self.blocks = eqx.filter_vmap(lambda k: [eqx.nn.Linear(6, 1, key=k), eqx.nn.LayerNorm(6)])(
                jax.random.split(key, 3)
            )
            self.patch_embedding = eqx.nn.Conv2d(3, 6, 2, key=key)
            self.table, self.cell = eqx.nn.Embedding(9, 6, key=key), eqx.nn.GRUCell(6, 6, key=key)
            self.scaled = eqx.nn.LayerNorm((4, 6))

    return eqx.filter(eqx.filter_eval_shape(Net, jax.random.key(0)), lambda x: hasattr(x, "shape"))


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (stacked_linen, {"kernel"}),
        (stacked_haiku, {"w"}),
        (stacked_nnx, {"kernel", "lora_a", "lora_b"}),
        (stacked_equinox, {"weight", "weight_ih", "weight_hh"}),
    ],
)
def test_weights_are_prunable_and_nothing_else(make: Callable[[], Any], weights: set[str]) -> None:
    params = make()
    ranks = {
        path.removesuffix("/value"): x.ndim
        for path, x in zip(prune.paths(params), jax.tree.leaves(params), strict=True)
    }
    mask = prune.ones(params)
    prunable = {
        path.removesuffix("/value")
        for path, m in zip(prune.paths(mask), jax.tree.leaves(mask), strict=True)
        if m.ndim
    }
    no_weights = ("embed/", "table/", "scaled/", "blocks/1/", "batch_stats/")
    assert prunable == {
        path
        for path in ranks
        if path.split("/")[-1] in weights and not any(part in path for part in no_weights)
    }
    assert sum(rank >= 2 for rank in ranks.values()) - len(prunable) >= 3, (
        "others of two dimensions are there"
    )
