"""The peer does the same work, and the figures are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from benchmarks import forms, measure, selection
from lthjax import models
from lthjax.measures import timing


def test_gflop_of_a_step_by_hand() -> None:
    lenet5 = models.build("lenet5", (28, 28, 1), 10)
    macs = [150 * 28 * 28, 2400 * 10 * 10, 400 * 120, 120 * 84, 84 * 10]
    assert measure.step_gflop(lenet5, 60) == pytest.approx(2 * 60 * (3 * sum(macs) - macs[0]) / 1e9)
    conv2 = models.build("conv2", (32, 32, 3), 10)
    macs = [1728 * 1024, 36_864 * 1024, 16_384 * 256, 256 * 256, 2560]
    assert measure.step_gflop(conv2, 60) == pytest.approx(2 * 60 * (3 * sum(macs) - macs[0]) / 1e9)
    macs = [27 * 16 * 1024, 2 * 9 * 16 * 16 * 1024, 640]
    for width, pixels in ((32, 256), (64, 64)):
        macs += [(9 + 1) * width // 2 * width * pixels, 9 * width * width * pixels]
    resnet8 = models.build("resnet8", (32, 32, 3), 10)
    assert measure.step_gflop(resnet8, 60) == pytest.approx(2 * 60 * (3 * sum(macs) - macs[0]) / 1e9)


def test_pairs_interleave_and_take_medians() -> None:
    called: list[str] = []
    got = timing.pairs(lambda: called.append("a"), lambda: called.append("b"), 3)
    assert called == [*"ab", *"ab", *"ba", *"ab"]
    assert got.spread[0] <= got.ratio <= got.spread[1]


def test_a_call_that_slows_the_next_one_favours_no_side_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every call after one of ours takes twice as long, whichever it is."""
    called, now = ["peer"], [0.0]

    def call(name: str) -> None:
        now[0] += 2 if called[-1] == "ours" else 1
        called.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert timing.pairs(lambda: call("ours"), lambda: call("peer"), 6).ratio == 1


def test_networks_with_dropout_have_no_twin() -> None:
    """The peer would train without it."""
    sequential = {name for name, entry in models.MODELS.items() if entry.layers(10)}
    dropping = {name for name in sequential if models.build(name, (32, 32, 3), 10).dropout}
    assert "lenet300_dropout" in dropping
    assert set(measure.MODELS) == sequential - dropping


def test_the_page_says_of_which_figures_it_has_no_medians_of_pairs() -> None:
    intro, *parts = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split("\n## ")
    assert "Unless a section says otherwise, a figure is a median of interleaved pairs" in intro
    sections = {heading: " ".join(text.split()) for heading, text in (part.split("\n", 1) for part in parts)}
    assert selection._LATER == 4
    assert "Later calls are the fastest of four; of several rounds the least" in sections["Selecting weights"]
    assert "each figure of a single run" in sections["The host's work"]
    assert "Seconds per cell and peak memory are of single runs" in sections["Scaling"]
    assert "Each number of ours is the fastest of five" in sections["An H100"]


@pytest.mark.parametrize("name", measure.MODELS)
def test_the_twin_computes_the_same_function(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the peer of the benchmarks needs the extra `bench`")
    from benchmarks import peer

    shape = (28, 28, 1) if name.startswith("lenet") else (32, 32, 3)
    model = models.build(name, shape, 10)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)).params)
    twin = peer.build(name, shape)
    layers = [layer for layer in twin if hasattr(layer, "weight")]
    names = sorted(params, key=lambda n: (("conv", "fc", "output").index(n.rstrip("0123456789")), n))
    flat_from = None
    with torch.no_grad():
        for layer, layer_name in zip(layers, names, strict=True):
            kernel = params[layer_name]["kernel"]
            if kernel.ndim == 4:
                layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))
                flat_from = kernel.shape[3]
            else:
                if flat_from:  # the first dense layer reads [H, W, C] here and [C, H, W] there
                    side = int((kernel.shape[0] // flat_from) ** 0.5)
                    kernel = kernel.reshape(side, side, flat_from, -1).transpose(2, 0, 1, 3)
                    kernel = kernel.reshape(side * side * flat_from, -1)
                    flat_from = None
                layer.weight.copy_(torch.tensor(kernel.T.copy()))
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    ours, _ = model.apply(params, {}, jnp.asarray(x), False)
    for layer in layers:
        torch.nn.init.zeros_(layer.bias)
    theirs = twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "conv6"])
def test_both_forms_of_a_convolution_are_the_networks_own(name: str) -> None:
    """The kernels are those of the network, and both forms give the same values."""
    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    params = jax.eval_shape(models.build(name, shape, 10).init, jax.random.key(0)).params
    found = [*forms.convolutions(name, 2)]
    of_network = {layer: params[layer]["kernel"].shape for layer in params if layer.startswith("conv")}
    assert {layer: kernel for layer, _, kernel, _ in found} == of_network
    _, images, kernel, padding = found[-1]
    x, w = (jax.random.normal(jax.random.key(i), (3, *shape)) for i, shape in enumerate((images, kernel)))
    grouped, ours = (form(x, w) for form in forms.forms(images, kernel, padding))
    assert grouped.shape[-1] == kernel[-1]
    np.testing.assert_allclose(grouped, ours, atol=2e-3)


@pytest.mark.parametrize("side", ["numpy.partition", "torch.nn.utils.prune"])
def test_the_peers_select_the_same_weights(side: str) -> None:
    if side.startswith("torch"):
        pytest.importorskip("torch", reason="the peer of the benchmarks needs the extra `bench`")
    ours = selection.SIDES["lthjax"](selection.drawn(0.01, 2))()
    theirs = selection.SIDES[side](selection.drawn(0.01, 2))()
    assert sum(int(m.sum()) for m in ours.values()) == 8000
    for mine, other in zip(ours.values(), theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
