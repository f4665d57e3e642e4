"""Masks by rule and from scores at initialisation, structures, files and accounting."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lthjax import arms, config, models, prune
from lthjax.devices import conv
from lthjax.prune import _scores

PARAMS = {
    "conv": {"bias": jnp.zeros(8), "kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8))},
    "fc": {"bias": jnp.zeros(10), "kernel": jax.random.normal(jax.random.key(1), (32, 10))},
    "out": {"kernel": jax.random.normal(jax.random.key(2), (10, 5))},
}
SIZES = [288, 320, 50]


def kept(mask: dict) -> list[int]:
    return [int(left) for left, size in prune.survivors(mask) if size]


@pytest.mark.parametrize("rule", [prune.uniform, prune.erk, prune.smart_ratio])
@given(density=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_random_rules_keep_exactly_their_density(rule, density: float, seed: int) -> None:
    mask = rule(jax.random.key(seed), PARAMS, density)
    counts = kept(mask)
    whole = int(np.floor(density * 658 + 0.5))
    # Smart ratio is uniform if the last layer's 0.3 * 50 = 15 are all weights to keep.
    if rule is prune.uniform or (rule is prune.smart_ratio and whole <= 15):
        assert counts == [int(prune.count(density, n)) for n in SIZES]
    else:
        assert sum(counts) == whole
    assert mask["conv"]["bias"].shape == ()


def test_erk_and_smart_ratio_by_hand() -> None:
    # ERK at density 0.1: 65.8 -> 66 weights, layer l gets eps * (sum of dimensions).
    dims = np.array([3 + 3 + 4 + 8, 32 + 10, 10 + 5])
    exact = 66 * dims / dims.sum()
    assert all(
        abs(k - e) < 1 for k, e in zip(kept(prune.erk(jax.random.key(0), PARAMS, 0.1)), exact, strict=True)
    )
    # At density 0.4 the last layer's share exceeds its size: it stays dense, the others share the rest.
    counts = kept(prune.erk(jax.random.key(0), PARAMS, 0.4))
    assert counts[2] == 50
    assert sum(counts) == 263
    share = (263 - 50) * dims[:2] / dims[:2].sum()
    assert all(abs(k - e) < 1 for k, e in zip(counts[:2], share, strict=True))
    # Smart ratio, L = 3: ratios 3*4 = 12 and 2*3 = 6, the last 0.3 * 50 = 15.
    counts = kept(prune.smart_ratio(jax.random.key(0), PARAMS, 0.2))
    assert counts[2] == 15
    exact = (132 - 15) * np.array([12 * 288, 6 * 320]) / (12 * 288 + 6 * 320)
    assert all(abs(k - e) < 1 for k, e in zip(counts[:2], exact, strict=True))


def test_random_rules_leave_a_leaf_without_weights_empty() -> None:
    params = {"a": np.ones((10, 10)), "b": np.ones((20, 5)), "empty": np.ones((0, 5))}
    for rule in (prune.uniform, prune.erk, prune.smart_ratio):
        mask = rule(jax.random.key(0), params, 0.25)
        assert int(mask["a"].sum()) + int(mask["b"].sum()) == 50, rule
    only = prune.erk(jax.random.key(0), {"empty": params["empty"]}, 0.25)
    assert only["empty"].shape == (0, 5)


def test_smart_ratio_goes_from_the_input_to_the_output() -> None:
    names = ["stem", *(f"block{n}" for n in range(1, 12)), "output"]
    params = {name: jnp.zeros((20, 20)) for name in names}
    mask = prune.smart_ratio(jax.random.key(0), params, 0.1, order=names)
    counts = np.array([int(mask[name].sum()) for name in names])
    assert counts.sum() == 520
    assert counts[-1] == 120
    ratios = np.array([(13 - i) ** 2 + (13 - i) for i in range(12)])
    assert np.abs(counts[:-1] - 400 * ratios / ratios.sum()).max() < 1
    with pytest.raises(ValueError, match="every prunable leaf once; see 'stem'"):
        prune.smart_ratio(jax.random.key(0), params, 0.1, order=names[1:])
    with pytest.raises(ValueError, match="see 'stem'"):
        prune.smart_ratio(jax.random.key(0), params, 0.1, order=["stem", *names])


@pytest.mark.parametrize("model", ["resnet8", "vgg16", "lenet5"])
def test_the_arm_of_smart_ratio_has_the_layers_in_the_networks_order(model: str) -> None:
    """The order in which a forward pass uses the kernels."""
    net = models.build(model, (28, 28, 1) if model == "lenet5" else (32, 32, 3), 10)
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    names = [
        path
        for path, m in zip(prune.paths(params), jax.tree.leaves(prune.ones(params)), strict=True)
        if jnp.ndim(m)
    ]
    x = jax.ShapeDtypeStruct((1, *((28, 28, 1) if model == "lenet5" else (32, 32, 3))), jnp.float32)
    program = jax.make_jaxpr(
        lambda p, x: net.apply(p, jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), stats), x, False)
    )(params, x)
    place = {
        variable: path for variable, path in zip(program.jaxpr.invars, prune.paths(params), strict=False)
    }
    used = list(
        dict.fromkeys(
            place[v]
            for eqn in program.eqns
            for v in eqn.invars
            if not hasattr(v, "val") and place.get(v) in names
        )
    )
    used_last = [name for name in used if "shortcut" not in name]
    assert [name for name in sorted(names, key=arms.by_depth) if "shortcut" not in name] == used_last


def test_the_arm_of_smart_ratio_has_the_layers_of_one_s_own_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names that say nothing of the order; one layer is in a program of its own, one in a loop."""

    class Own(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            head = nn.Dense(self.classes, name="head")
            x = nn.jit(nn.Dense)(12, name="stem")(x.reshape(len(x), -1))
            loop = nn.scan(
                lambda layer, x, _: (layer(x), None), variable_axes={"params": 0}, split_rngs={"params": True}
            )
            x, _ = loop(nn.Dense(12, name="trunk"), x, jnp.zeros(3))
            return head(nn.Dense(12, name="body")(x))

    monkeypatch.setitem(models.MODELS, "own", models.Entry(Own, 1, "for a test"))
    net = models.build("own", (8, 8, 1), 3)
    kernels = [path for path in net.order if path.endswith("kernel")]
    assert kernels == [f"{name}/kernel" for name in ("stem", "trunk", "body", "head")]
    shapes = {"kernel": jnp.ones((20, 20))}
    params = {name: shapes for name in ("body", "head", "stem", "trunk")}
    mask = prune.uniform(jax.random.key(0), params, 0.3)
    at = arms.Context(jax.random.key(1), lambda _: params, params, params, mask, mask, None, order=net.order)
    made = arms.ARMS["random_smart_ratio"].mask(at)
    by_hand = prune.smart_ratio(jax.random.key(1), params, 0.3, order=kernels)
    jax.tree.map(np.testing.assert_array_equal, made, by_hand)
    # Its cells of earlier versions, which went by the names, do not come beside new ones.
    asked = config.Study(arms=("random_smart_ratio", "random"))
    assert arms.versions(asked, net) == {"random_smart_ratio": 2}
    left = [int(made[name]["kernel"].sum()) for name in ("stem", "trunk", "body")]
    assert left == sorted(left, reverse=True)


def test_every_weight_is_as_likely() -> None:
    masks = [
        np.asarray(prune.uniform(jax.random.key(i), {"w": jnp.zeros((5, 8))}, 0.3)["w"]) for i in range(400)
    ]
    often = np.mean(masks, axis=0)
    assert abs(often - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 400)


def test_grasp_goes_through_the_convolution_of_the_models() -> None:
    """GraSP's scores are w (H g), here by forward over reverse through the built-in convolution."""
    params = {"a": jax.random.normal(jax.random.key(0), (3, 3, 2, 4))}
    x = jax.random.normal(jax.random.key(1), (3, 6, 6, 2))

    def builtin(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(params: dict, convolve: Any = conv.conv2d) -> jax.Array:
        return jnp.tanh(convolve(x, params["a"])).sum() ** 2 / 100

    slope = jax.grad(lambda p: loss(p, builtin))
    _, curved = jax.jvp(slope, (params,), (slope(params),))
    expected = params["a"] * curved["a"]
    got = _scores.gradient_flow(loss, params, prune.ones(params))["a"]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_grasp_of_a_masked_network_is_the_explicit_hessian_times_the_survivors_gradient() -> None:
    """Includes biases, whose gradient is not part of g; second derivatives are written out in float64."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).normal
        params = {"a": draw(size=(4, 5)), "b": draw(size=5), "c": draw(size=(5, 3)), "d": draw(size=3)}
        mask = {"a": draw(size=(4, 5)) > 0, "b": np.array(True), "c": draw(size=(5, 3)) > 0,
                "d": np.array(True)}  # fmt: skip
        params = jax.tree.map(np.asarray, prune.apply(params, mask))
        x, labels = draw(size=(6, 4)), np.arange(6) % 3
        flat, back = jax.flatten_util.ravel_pytree(params)

        def loss(p: dict) -> jax.Array:
            logits = (jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]) / _scores.TEMPERATURE
            return -jax.nn.log_softmax(logits)[np.arange(6), labels].mean()

        hessian = jax.jit(jax.hessian(lambda w: loss(back(w))))(flat)
        gradient = jax.jit(jax.grad(lambda w: loss(back(w))))(flat)
        chosen = np.concatenate([np.ravel(m) if np.ndim(m) else np.zeros(np.size(p))
                                 for p, m in zip(params.values(), mask.values(), strict=True)])  # fmt: skip
        expected = flat * (hessian @ (chosen * gradient))
        scores = jax.jit(lambda p, m: _scores.gradient_flow(loss, p, m))(params, mask)
        got, _ = jax.flatten_util.ravel_pytree(scores)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
        assert np.abs(expected - flat * (hessian @ gradient)).max() > 0.1 * np.abs(expected).max()


def test_snip_grasp_and_synflow_are_their_formulas() -> None:
    """Uses x a b, whose gradients are written out with numpy, and all rounds of SynFlow."""
    a, b = np.asarray(PARAMS["fc"]["kernel"], np.float64), np.asarray(PARAMS["out"]["kernel"], np.float64)
    params = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    x = np.random.default_rng(0).normal(size=(6, 32))
    y = np.random.default_rng(1).normal(size=(6, 5))

    def gradient(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        error = (x @ a @ b - y) / 6
        return [x.T @ error @ b.T, (x @ a).T @ error]

    def keep_highest(scores: list[np.ndarray], n: int) -> list[np.ndarray]:
        order = np.argsort(np.concatenate([s.ravel() for s in scores]))
        flat = np.zeros(order.size, bool)
        flat[order[order.size - n :]] = True
        return [flat[:320].reshape(32, 10), flat[320:].reshape(10, 5)]

    def loss(p: dict, batch: tuple) -> jax.Array:
        return 0.5 * ((batch[0] @ p["a"] @ p["b"] - batch[1]) ** 2).sum() / 6

    batch = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    g = gradient(a, b)
    expected = keep_highest([abs(g[0] * a), abs(g[1] * b)], 111)
    got = prune.snip(loss, params, batch, 0.3)
    assert sum((np.asarray(got[n]) != m).sum() for n, m in zip("ab", expected, strict=True)) == 0
    h = 1e-4
    up, down = gradient(a + h * g[0], b + h * g[1]), gradient(a - h * g[0], b - h * g[1])
    scores = [w * (u - d) / (2 * h) for w, u, d in zip((a, b), up, down, strict=True)]
    got = prune.grasp(loss, params, batch, 0.3)
    expected = keep_highest(scores, 111)
    assert sum((np.asarray(got[n]) != m).sum() for n, m in zip("ab", expected, strict=True)) <= 2

    masks = [np.ones_like(a, bool), np.ones_like(b, bool)]
    for i in range(1, 11):
        left, right = abs(a) * masks[0], abs(b) * masks[1]
        scores = [left * right.sum(1), left.sum(0)[:, None] * right]
        scores = [np.where(m, s, -1) for s, m in zip(scores, masks, strict=True)]
        masks = keep_highest(scores, int(np.floor(0.05 ** (i / 10) * 370 + 0.5)))
    got = prune.synflow(lambda p, x: x @ p["a"] @ p["b"], params, (1, 32), 0.05, rounds=10)
    assert sum((np.asarray(got[n]) != m).sum() for n, m in zip("ab", masks, strict=True)) == 0


@pytest.mark.parametrize("rounds", [0, -3])
def test_synflow_needs_a_round(rounds: int) -> None:
    with pytest.raises(ValueError, match=f"rounds: {rounds} is not allowed; it must be 1 or more"):
        prune.synflow(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 6))}, (1, 4), 0.1, rounds=rounds)


def test_synflow_counts_a_fraction_as_it_is() -> None:
    """Of 3/70 and 35 weights 1.5 + 1/2 = 2 are left; as a float the Fraction is a little less."""
    params = {"a": jnp.arange(1.0, 22).reshape(3, 7), "b": jnp.arange(1.0, 15).reshape(7, 2)}

    def left(density: Fraction) -> int:
        mask = prune.synflow(lambda p, x: x @ p["a"] @ p["b"], params, (1, 3), density, rounds=2)
        return int(prune.totals(mask)[0])

    exact = [Fraction(k, 70) for k in (1, 3, 9, 11, 69)]
    assert [left(d) for d in exact] == [int(35 * d + Fraction(1, 2)) for d in exact]


@pytest.mark.parametrize("residual", [False, True])
def test_synaptic_flow_beyond_the_range_of_float32(residual: bool) -> None:
    """Four layers with biases, whose product is near 1e70, 1e-60 or 1; against 64-digit numpy."""
    draw = np.random.default_rng(0).normal

    def apply(p: dict, x: jax.Array) -> jax.Array:
        for layer in p["layers"]:
            y = jax.nn.relu(x @ layer["w"] + layer["b"][None] * x.mean())
            x = x * p["skip"] + y if residual else y
        return x

    flow_of = jax.jit(lambda p: _scores.synaptic_flow(apply, p, (1, 6)))
    for scale in np.float32([1e17, 1e-16, 1]):
        layers = [{"w": draw(size=(6, 6)) * (draw(size=(6, 6)) > -0.5) * scale, "b": draw(size=6) * scale}
                  for _ in range(4)]  # fmt: skip
        params = jax.tree.map(np.float32, {"layers": layers, "skip": scale})
        absolute = jax.tree.map(lambda w: np.abs(w).astype(np.longdouble), params["layers"])
        skip = np.longdouble(scale) * residual
        x, inputs = np.ones(6, np.longdouble), []
        for p in absolute:
            inputs.append(x)
            x = x @ p["w"] + p["b"] * x.mean() + x * skip
        # Backwards: the factor that a unit's output is still multiplied by; x.mean() reads all units.
        flow, expected = np.ones(6, np.longdouble), []
        for x, p in zip(inputs[::-1], absolute[::-1], strict=True):
            expected.insert(0, x[:, None] * flow[None] * p["w"])
            flow = p["w"] @ flow + (flow * p["b"]).sum() / 6 + flow * skip
        got = np.array([np.asarray(p["w"], np.longdouble) for p in flow_of(params)["layers"]])
        ratio = got.sum() / np.sum(expected)
        np.testing.assert_allclose(got, np.array(expected) * ratio, rtol=1e-5)
        power = float(np.log2(ratio))
        assert power == pytest.approx(round(power), abs=1e-5)
        assert (round(power) == 0) == (scale == 1)


def test_synflow_empties_no_layer_of_a_network_whose_flow_overflows() -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    params = {f"{i}": 1e9 * jax.random.normal(k, (16, 16)) for i, k in enumerate(keys)}

    def apply(p: dict, x: jax.Array) -> jax.Array:
        for w in p.values():
            x = jax.nn.relu(x @ w)
        return x

    got = prune.synflow(apply, params, (1, 16), 0.2, rounds=20)
    same = prune.synflow(apply, jax.tree.map(lambda w: w / 2**30, params), (1, 16), 0.2, rounds=20)
    jax.tree.map(np.testing.assert_array_equal, got, same)
    assert min(kept(got)) > 20
    assert sum(kept(got)) == 307
    with pytest.raises(ValueError, match="leaf '0' has 256 that are not finite, of 256 weights left"):
        prune.synflow(apply, {**params, "3": params["3"].at[0, 0].set(jnp.inf)}, (1, 16), 0.2, rounds=20)
    with pytest.raises(ValueError, match=r"leaf '.' has [0-9]+ that are not finite"):
        prune.snip(lambda p, x: apply(p, x).sum(), params, jnp.ones((1, 16)), 0.2)


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_the_flow_of_layers_in_a_loop_is_that_of_the_layers(scale: float) -> None:
    """Twelve layers, whose product is near 1e116 or 1e-100."""
    weights = scale * jax.random.normal(jax.random.key(0), (12, 6, 6))

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.nn.relu(x @ w)
        return x, x

    def looped(p: dict, x: jax.Array) -> jax.Array:
        last, every = jax.lax.scan(layer, x, p["w"])
        # What a loop stacks has one exponent, that of its largest step, here the last.
        return last + every[-1] if scale > 1 else last

    def written_out(p: dict, x: jax.Array) -> jax.Array:
        for w in p["w"]:
            x, _ = layer(x, w)
        return x

    got, expected = (
        np.asarray(jax.jit(lambda p, f=f: _scores.synaptic_flow(f, p, (1, 6)))({"w": weights})["w"])
        for f in (looped, written_out)
    )
    assert got.min() > 0
    np.testing.assert_allclose(got / got.sum(), expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "low", "dtype"),
    [
        ("chosen", "min", "float32"),
        ("chosen", "-inf", "float32"),
        ("chosen", "-inf", "float16"),
        ("added", "min", "float32"),
        ("added", "-inf", "float32"),
        ("added", "min", "bfloat16"),
    ],
)
def test_the_flow_of_masked_attention_is_that_of_the_function(how: str, low: str, dtype: str) -> None:
    """In range the flow is the gradient of the function itself; a row that sees nothing has even weights."""
    number = float(jnp.finfo(dtype).min) if low == "min" else float(low)
    seen = np.tril(np.ones((5, 5), bool))
    seen[2] &= low == "-inf"
    keys = jax.random.split(jax.random.key(0), 5)
    params = {n: (0.4 * jax.random.normal(k, (5, 5))).astype(dtype)
              for n, k in zip("pqkvo", keys, strict=True)}  # fmt: skip

    def apply(p: dict, x: jax.Array) -> jax.Array:
        h = x.astype(dtype) * 0.1 + p["p"]
        logits = (h @ p["q"]) @ (h @ p["k"]).T
        masked = jnp.where(seen, logits, number) if how == "chosen" else logits + np.where(
            seen, 0, number).astype(dtype)  # fmt: skip
        return jax.nn.softmax(masked) @ (h @ p["v"]) @ p["o"]

    got = jax.jit(lambda p: _scores.synaptic_flow(apply, p, (5, 5)))(params)
    absolute = jax.tree.map(jnp.abs, params)
    gradient = jax.jit(jax.grad(lambda p: apply(p, jnp.ones((5, 5))).sum()))(absolute)
    for name, w in absolute.items():
        expected = np.float64(gradient[name]) * np.float64(w)
        close = (1e-5 if dtype == "float32" else 0.002) * np.abs(expected).max()
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=close)


def test_scores_of_gradients_leave_out_what_has_none() -> None:
    """Biases, integers and PRNG keys beside weights; an integer weight is refused."""
    apart = {"a": {"kernel": PARAMS["fc"]["kernel"]}}
    params = {"a": {"bias": jnp.ones(10), **apart["a"]}, "key": jax.random.key(0), "n": jnp.int32(3)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        return (apply(p, x) ** 2).mean()

    def apply(p: dict, x: jax.Array) -> jax.Array:
        noise = jax.random.normal(p["key"], (1, 10)) if "key" in p else 0.0
        return x @ p["a"]["kernel"] + p["a"].get("bias", jnp.zeros(10))[None] * 0 + 0 * noise

    x = jnp.ones((1, 32))
    for made in (
        lambda p, **how: prune.snip(loss, p, x, 0.3, **how),
        lambda p, **how: prune.grasp(loss, p, x, 0.3, **how),
        lambda p, **how: prune.synflow(apply, p, x.shape, 0.3, rounds=2, **how),
    ):
        got = made(params)
        np.testing.assert_array_equal(got["a"]["kernel"], made(apart)["a"]["kernel"])
        assert int(got["a"]["kernel"].sum()) == 96
        assert [jnp.ndim(m) for m in (got["a"]["bias"], got["key"], got["n"])] == [0, 0, 0]
        with pytest.raises(ValueError, match=r"prunable: leaf 'n' is int32 and has no gradient"):
            made({"a": params["a"], "n": jnp.ones((2, 2), jnp.int32)}, prunable="kernel|n$")


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_units(norm: str, scope: str) -> None:
    params = {"a": PARAMS["conv"]["kernel"], "b": PARAMS["fc"]["kernel"]}
    first = prune.magnitude(params, prune.ones(params), 0.3)
    mask = prune.magnitude(params, first, 0.5, scope=scope, granularity=f"unit-{norm}")  # type: ignore[arg-type]
    norms, units = {}, {}
    for n, p in params.items():
        flat = (np.asarray(p) * np.asarray(first[n])).reshape(-1, p.shape[-1])
        norms[n] = np.linalg.norm(flat, ord=1 if norm == "l1" else 2, axis=0)
        alive = np.asarray(mask[n]).reshape(flat.shape)
        units[n] = alive.any(0)
        np.testing.assert_array_equal(alive, np.asarray(first[n]).reshape(flat.shape) & units[n])
    if scope == "layer":
        assert {n: u.sum() for n, u in units.items()} == {"a": 4, "b": 5}
        assert all(norms[n][~u].max() <= norms[n][u].min() for n, u in units.items())
    else:
        both, alive = (np.concatenate([d["a"], d["b"]]) for d in (norms, units))
        assert alive.sum() == 9
        assert both[~alive].max() <= both[alive].min()


def test_two_of_four() -> None:
    mask = prune.magnitude(PARAMS, prune.ones(PARAMS), {"conv": 0.5, "fc": 0.5}, granularity="2:4")
    for name in ("conv", "fc"):
        w = np.abs(np.moveaxis(np.asarray(PARAMS[name]["kernel"]), -2, -1)).reshape(-1, 4)
        m = np.moveaxis(np.asarray(mask[name]["kernel"]), -2, -1).reshape(-1, 4)
        assert (m.sum(1) == 2).all()
        assert (np.where(m, w, np.inf).min(1) >= np.where(m, -np.inf, w).max(1)).all()
    assert mask["out"]["kernel"].all()
    with pytest.raises(ValueError, match="'out/kernel' has 10 inputs, not a multiple of 4"):
        prune.magnitude(PARAMS, prune.ones(PARAMS), 0.5, granularity="2:4")
    with pytest.raises(ValueError, match=r"it is 0\.5, not 0\.2"):
        prune.magnitude(PARAMS, prune.ones(PARAMS), 0.2, granularity="2:4")
    flat = {"w": np.ones(8, bool)}
    with pytest.raises(ValueError, match="leaf 'w' has one axis, not two; leave it out"):
        prune.magnitude({"w": np.ones(8)}, flat, 0.5, granularity="2:4")
    assert prune.shuffle(jax.random.key(0), flat, "2:4")["w"].all(), "no pattern prunes it"
    with pytest.raises(ValueError, match="granularity: 'row' is not known"):
        prune.magnitude(PARAMS, prune.ones(PARAMS), 0.2, granularity="row")


def test_overlap_of_random_masks_is_chance() -> None:
    keys = jax.random.split(jax.random.key(0), 200)
    some = jax.jit(jax.vmap(lambda key: prune.uniform(key, PARAMS, 0.3)))(keys)
    pairs = [jax.tree.map(lambda m, i=i: m[i::2], some) for i in range(2)]
    ious, chance = jax.vmap(prune.overlap)(*pairs)
    assert np.ptp(chance) == 0
    error = np.std(ious) / np.sqrt(len(ious))
    assert abs(np.mean(ious) - chance[0]) < 4 * error
    assert error < 0.005
    one = prune.uniform(keys[0], PARAMS, 0.3)
    assert float(prune.overlap(one, one).iou) == 1


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [
        # positions x weights: LeNet-5 conv1 28*28*150, conv2 10*10*2400, then the dense layers once.
        (
            "lenet5",
            (28, 28, 1),
            {"conv1": 117_600, "conv2": 240_000, "fc1": 48_000, "fc2": 10_080, "output": 840},
        ),
        ("lenet300", (28, 28, 1), {"fc1": 235_200, "fc2": 30_000, "output": 1000}),
        (
            "small_cnn",
            (32, 32, 3),
            {
                "conv1": 442_368,
                "conv2": 2_359_296,
                "conv3": 1_179_648,
                "conv4": 2_359_296,
                "fc1": 262_144,
                "output": 1280,
            },
        ),
    ],
)
def test_table_counts_multiplications(name: str, shape: tuple, layers: dict[str, int]) -> None:
    model = models.build(name, shape, 10)
    params = model.init(jax.random.key(0)).params
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    table = prune.table(params, mask, apply=lambda p, x: model.apply(p, {}, x, False)[0], shape=(1, *shape))
    assert {row.path.split("/")[0]: row.macs for row in table.rows if row.prunable} == layers
    text = str(table)
    assert f"{sum(layers.values()):,}" in text
    assert "50.0 %" in text
    with pytest.raises(ValueError, match="MACs need both"):
        prune.table(params, mask, shape=(1, 28, 28, 1))


def test_table_of_a_plain_flax_network_with_masked_weights() -> None:
    net = nn.Sequential([nn.Conv(4, (3, 3), strides=2), nn.relu, lambda x: x.reshape(1, -1), nn.Dense(3)])
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))
    table = prune.table(params, prune.ones(params), apply=net.apply, shape=(1, 8, 8, 2))
    assert [row.macs for row in table.rows if row.prunable] == [4 * 4 * 72, 4 * 4 * 4 * 3]


@pytest.mark.parametrize(("stride", "macs"), [(1, 4 * 3 * 2 * 5), (2, None)])
def test_macs_of_a_dilated_input(stride: int, macs: int | None) -> None:
    """Zeros between the 4 positions are not counted; with strides a position meets only some weights."""
    params = {"w": jnp.ones((3, 2, 5))}

    def apply(p: dict, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, p["w"], (stride,), [(2, 2)], lhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    table = prune.table(params, prune.ones(params), apply=apply, shape=(1, 4, 2))
    assert [row.macs for row in table.rows] == [macs]


STEPS = {"w": jnp.ones((8, 8)), "u": jnp.ones((4, 8))}


@pytest.mark.parametrize(
    ("apply", "shape", "w", "u"),
    [
        # 10 steps of 8 x 8 and 4 x 8; a map over 10 inputs; 7 rounds with the weight outside and carried.
        (lambda p, x: lax.scan(lambda h, t: (h @ p["w"] + t @ p["u"], None), jnp.zeros(8), x[0])[0],
         (1, 10, 4), 640, 320),
        (lambda p, x: lax.map(lambda t: t @ p["u"], x[0]), (1, 10, 4), None, 320),
        (lambda p, x: lax.fori_loop(0, 7, lambda i, h: h @ p["w"], x), (1, 8), 448, None),
        (lambda p, x: lax.fori_loop(0, 7, lambda i, c: (c[0] @ c[1], c[1]), (x, p["w"]))[0], (1, 8), 448,
         None),
        (lambda p, x: lax.scan(
            lambda h, t: (lax.fori_loop(0, 3, lambda i, h: h @ p["w"], h), None), x, jnp.zeros(5))[0],
         (1, 8), 960, None),
        # A weight that the loop changes is no longer that weight after the first iteration.
        (lambda p, x: lax.fori_loop(0, 7, lambda i, c: (c[0] @ c[1], c[1] * 2), (x, p["w"]))[0], (1, 8), None,
         None),
        # The number of iterations depends on the data.
        (lambda p, x: lax.while_loop(lambda h: h.sum() < 3, lambda h: h @ p["w"], x @ p["w"]), (1, 8), None,
         None),
        (lambda p, x: lax.while_loop(lambda h: (h @ p["w"]).sum() < 3, lambda h: h + 1, x), (1, 8), None,
         None),
        (lambda p, x: lax.cond(x.sum() > 0, lambda h: h @ p["w"], lambda h: h @ p["w"] @ p["w"], x), (1, 8),
         None, None),
        (lambda p, x: lax.cond(x.sum() > 0, lambda h: h @ p["w"], lambda h: h, x), (1, 8), None, None),
        (lambda p, x: lax.cond(x.sum() > 0, lambda h: h @ p["w"], lambda h: 2 * (h @ p["w"]), x), (1, 8), 64,
         None),
        (lambda p, x: x @ p["w"][:, :2] @ p["w"][:2], (1, 8), 16 + 16, None),
    ],
)  # fmt: skip
def test_table_counts_what_runs_as_often_as_it_runs(
    apply: Any, shape: tuple, w: int | None, u: int | None
) -> None:
    table = prune.table(STEPS, prune.ones(STEPS), apply=apply, shape=shape)
    assert {row.path: row.macs for row in table.rows} == {"w": w, "u": u}
    total = str(table).splitlines()[-1]
    if (w or u) and (w is None or u is None):
        assert f"≥ {w or u}" in total
    elif w and u:
        assert f" {w + u} " in total
        assert "≥" not in total


def test_a_table_says_that_no_multiplication_is_known() -> None:
    """A forward pass that masks uses no leaf unchanged."""
    mask = prune.ones(STEPS)

    def apply(p: dict, x: jax.Array) -> jax.Array:
        return x @ prune.apply(p, mask)["w"]

    header, *_, total = str(prune.table(STEPS, mask, apply=apply, shape=(1, 8))).splitlines()
    assert header.endswith("MACs  MACs left")
    assert total.split()[-4:] == ["≥", "0", "≥", "0"]
    assert "MACs" not in str(prune.table(STEPS, mask))
    frozen = prune.table(STEPS, mask, apply=lambda p, x: x @ lax.stop_gradient(p["w"]), shape=(1, 8))
    assert {row.path: row.macs for row in frozen.rows} == {"w": 64, "u": None}


def test_table_counts_stacked_layers_and_recurrent_networks() -> None:
    stacked = {"w": jnp.ones((5, 8, 8))}
    for apply in (
        lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0],
        lambda p, x: lax.fori_loop(0, 5, lambda i, h: h @ p["w"][i], x),
    ):
        (row,) = prune.table(stacked, prune.ones(stacked), apply=apply, shape=(1, 8)).rows
        assert row.macs == 5 * 64
    net = nn.RNN(nn.LSTMCell(8))
    params = net.init(jax.random.key(0), jnp.zeros((1, 10, 4)))
    rows = prune.table(params, prune.ones(params), apply=net.apply, shape=(1, 10, 4)).rows
    assert sorted(row.macs for row in rows if row.macs) == 4 * [10 * 4 * 8] + 4 * [10 * 8 * 8]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_table_counts_no_zeros_between_the_inputs_of_a_transposed_convolution(
    padding: str, stride: int
) -> None:
    """Every position of the 8 x 6 inputs uses the 5 x 3 kernel once; zeros between them do not."""
    net = nn.ConvTranspose(4, (5, 3), strides=(stride, 1 if stride == 1 else 2), padding=padding)
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 6, 2)))
    (row,) = (r for r in prune.table(params, prune.ones(params), apply=net.apply, shape=(1, 8, 6, 2)).rows
              if r.prunable)  # fmt: skip
    out = (12, 8) if (padding, stride) == ("VALID", 1) else (8, 6)
    assert row.macs == out[0] * out[1] * (5 * 3) * (2 * 4)


def ticket(path: Path, dtype: str = "float32") -> tuple[dict, dict]:
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    mask = prune.magnitude(params, prune.ones(params), 0.5)
    prune.save(path, params, mask, origin=params, metadata={"seed": 3, "accuracy": 0.98})
    return params, mask


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_ticket_survives_its_file(tmp_path: Path, dtype: str) -> None:
    params, mask = ticket(tmp_path / "t.safetensors", dtype)
    got = prune.load(tmp_path / "t.safetensors")
    assert got.metadata == {"seed": 3, "accuracy": 0.98}
    for mine, theirs in ((got.params, params), (got.mask, mask), (got.origin, params)):
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert got.params["fc"]["kernel"].dtype == dtype
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_ticket_is_read_without_this_package(tmp_path: Path) -> None:
    _, mask = ticket(tmp_path / "t.safetensors")
    code = (
        "import sys, json, numpy; from safetensors.numpy import load_file\n"
        "t = load_file(sys.argv[1]); w = t['params/fc/kernel']\n"
        "m = numpy.unpackbits(t['mask/fc/kernel'], count=w.size).reshape(w.shape)\n"
        "print(int(m.sum()), 'lthjax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.safetensors"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(int(mask["fc"]["kernel"].sum())), "False"]


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    ticket(path)
    whole = path.read_bytes()
    for i, contents in enumerate(
        (b"", b"\x80\x04]", whole[:100], whole[:-1], whole.replace(b"lthjax-ticket-1", b"lthjax-ticket-9"))
    ):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"not a ticket that prune\.save wrote, or damaged") as caught:
            prune.load(path)
        assert "\n" not in str(caught.value), i
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        prune.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"metadata: .*what JSON can hold"):
        prune.save(path, PARAMS, prune.ones(PARAMS), metadata={"a": object()})
    with pytest.raises(ValueError, match="two leaves have one path"):
        prune.save(
            path,
            {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}},
            {"a/b": jnp.ones(()), "a": {"b": jnp.ones(())}},
        )
