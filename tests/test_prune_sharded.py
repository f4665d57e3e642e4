"""Masks of sharded parameters: the same as of whole ones, and they lie as their weights do."""

import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lthjax import prune

SPECS = {"a": PartitionSpec("x", "y"), "b": PartitionSpec(("x", "y"), None), "bias": PartitionSpec("y")}
SHAPES = {"a": (8, 12), "b": (12, 4), "bias": (12,)}


def test_on_four_devices() -> None:
    """With axes of both kinds, and with a network on each of two, in one process."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, __file__], env=environ, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "devices"]


def stepped(params: dict, mask: dict) -> dict:
    tx = prune.masked(optax.adam(0.1))
    state = prune.set_mask(tx.init(params), mask)
    updates, _ = tx.update(jax.tree.map(lambda p: p + 1, params), state, params)
    return optax.apply_updates(params, updates)


def compare(kind: str) -> None:
    """Every result beside that of numpy's arrays on one device."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(getattr(AxisType, kind),) * 2)
    draw = np.random.default_rng(0)
    # Whole numbers, so that many are equal and go by index.
    whole = {name: draw.integers(-9, 9, shape).astype(np.float32) for name, shape in SHAPES.items()}
    params = {name: jax.device_put(p, NamedSharding(mesh, SPECS[name])) for name, p in whole.items()}
    cases = {
        "ones": lambda p, m: prune.ones(p),
        "layer": lambda p, m: prune.magnitude(p, m, 0.5),
        "global": lambda p, m: prune.magnitude(p, m, 0.35, scope="global"),
        "by_score": lambda p, m: prune.by_score(p, m, 0.5),
        "unit": lambda p, m: prune.magnitude(p, m, 0.5, granularity="unit-l2"),
        "pattern": lambda p, m: prune.magnitude(p, m, 0.5, granularity="2:4"),
        "random": lambda p, m: prune.random(jax.random.key(0), m, 0.5),
        "shuffle": lambda p, m: prune.shuffle(jax.random.key(0), m),
        "apply": prune.apply,
        "masked": jax.jit(stepped),
        "jit": jax.jit(lambda p, m: prune.magnitude(p, m, 0.5, scope="global")),
    }
    mask = prune.magnitude(whole, prune.ones(whole), 0.2)
    for name, case in cases.items():
        expected = case({k: jnp.asarray(p) for k, p in whole.items()}, mask)
        with jax.set_mesh(mesh) if kind == "Explicit" else contextlib.nullcontext():
            given = prune.magnitude(params, prune.ones(params), 0.2)
            # A mask of numpy, as from a file, is laid beside its weights.
            loose = [{k: np.asarray(m) for k, m in mask.items()}] if name in ("apply", "layer") else []
            for got in (case(params, m) for m in (given, *loose)):
                for k, leaf in got.items():
                    np.testing.assert_allclose(leaf, expected[k], rtol=1e-6, err_msg=f"{name} {k}")
                    if leaf.ndim:
                        there = params[k].sharding
                        assert leaf.sharding.is_equivalent_to(there, leaf.ndim), (name, k, leaf.sharding)


def pruned(params: dict) -> dict:
    """Of one network: the weights after a scheduled pruning over all layers, and a mask layer by layer."""
    tx = prune.scheduled(optax.sgd(0.1), "magnitude", 0.3, 0, 1, 1, scope="global")
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return {"scheduled": params, "layer": prune.magnitude(params, prune.ones(params), 0.5)}


def compare_a_network_a_device() -> None:
    """In `shard_map`, which by default checks what varies, each device has the result of its own network."""
    mesh = jax.make_mesh((2,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    draw, over = np.random.default_rng(0), PartitionSpec("seed")
    params = {"a": draw.normal(size=(2, 8, 12)), "b": draw.normal(size=(2, 12, 4))}
    params = {name: p.astype(np.float32) for name, p in params.items()}

    def own(params: dict) -> dict:
        return jax.tree.map(lambda a: a[None], pruned(jax.tree.map(lambda a: a[0], params)))

    got = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=over, out_specs=over))(params)
    alone = jax.jit(pruned)
    for i in range(2):
        expected = alone({name: p[i] for name, p in params.items()})
        jax.tree.map(lambda e, g, i=i: np.testing.assert_array_equal(g[i], e), expected, got)


if __name__ == "__main__":
    for kind in ("Explicit", "Auto"):
        compare(kind)
    compare_a_network_a_device()
    print(jax.device_count(), "devices")
