"""Permutation groups of networks: permuting a group keeps the function, and matching finds it again."""

import itertools

import jax
import numpy as np
import pytest

from lthjax import models
from lthjax.measures import geography, structure, wiring
from lthjax.models import Model, Variables
from lthjax.networks import Layer, Pooled, Stages

TINY: dict[str, tuple[models.Entry, int]] = {
    "residual": (models.Entry(Stages((3, 5), 2), 2, "for a test"), 2 + 4),
    "pooled": (models.Entry(Pooled(((3,), (4, 5))), 2, "for a test"), 3),
    "sequence": (
        models.Entry(
            (Layer("conv1", 3, 3, pool=True), Layer("conv2", 4, 3), Layer("fc1", 6)), 2, "for a test"
        ),
        3,
    ),
}


def built(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Variables]:
    """A network with random weights and statistics."""
    monkeypatch.setitem(models.MODELS, "tiny", TINY[kind][0])
    model = models.build("tiny", (8, 8, 2), 4)
    generator = np.random.default_rng(0)
    made = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: generator.normal(size=x.shape).astype("f"), made.params)
    stats = jax.tree.map(lambda x: generator.uniform(0.5, 1.5, x.shape).astype("f"), made.stats)
    return model, Variables(drawn, stats)


def orders(model: Model) -> list[np.ndarray]:
    """Another order of the units of every group."""
    layers = wiring.layers(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    sizes = dict[int, set[int]]()
    for layer, (_, own) in zip(layers, wiring.groups(layers), strict=True):
        sizes.setdefault(own, set()).add(wiring.leaf(shapes, layer.name)["kernel"].shape[-1])
    assert all(len(of) == 1 for of in sizes.values())  # the layers of a group have as many units
    return [np.roll(np.arange(*sizes[group]), 1 + group % 2) for group in range(len(sizes) - 1)]


@pytest.mark.parametrize("kind", TINY)
def test_the_same_network_in_another_order_computes_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, variables = built(kind, monkeypatch)
    units = orders(model)
    assert len(units) == TINY[kind][1]
    moved = wiring.permuted(wiring.layers(model), variables, units)
    images = jax.random.normal(jax.random.key(1), (5, 8, 8, 2))
    logits = jax.jit(lambda v: model.apply(v.params, v.stats, images, False)[0])
    np.testing.assert_allclose(logits(moved), logits(variables), rtol=2e-3, atol=2e-3)
    pairs = zip(jax.tree.leaves(tuple(moved)), jax.tree.leaves(tuple(variables)), strict=True)
    differ = [not np.array_equal(now, before) for now, before in pairs]
    assert sum(differ) >= len(differ) - 1  # all but the output layer's bias


@pytest.mark.parametrize("kind", TINY)
def test_matching_by_signed_weights_finds_the_order_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, variables = built(kind, monkeypatch)
    layers = wiring.layers(model)
    groups, a = wiring.groups(layers), geography.kernels(layers, variables.params)
    moved = wiring.permuted(wiring.layers(model), variables, orders(model))
    b = geography.kernels(layers, moved.params)
    found = geography.align(a, b, groups)
    assert found.common == pytest.approx(sum((x.astype(float) ** 2).sum() for x in a), rel=1e-6)
    for again, first in zip(geography.permuted(b, found.units, groups), a, strict=True):
        np.testing.assert_array_equal(again, first)
    # And the whole network, with its statistics, goes back.
    jax.tree.map(
        np.testing.assert_array_equal, wiring.permuted(wiring.layers(model), moved, found.units), variables
    )


def test_no_order_of_a_single_group_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every permutation of every group of a small residual network, by the definition."""
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Stages((3, 4), 1), 2, "for a test"))
    layers = wiring.layers(models.build("tiny", (8, 8, 2), 4))
    groups, generator = wiring.groups(layers), np.random.default_rng(3)
    shapes = {
        layer.name: (3, 3, i, o)
        for layer, i, o in zip(layers, (2, 3, 3, 3, 3, 4, 4), (3, 3, 3, 4, 4, 4, 4), strict=True)
    }
    a, b = ([generator.normal(size=(9, *s[2:])) for s in shapes.values()] for _ in range(2))
    found = geography.align(a, b, groups)

    def common(units: list[np.ndarray]) -> float:
        total = 0.0
        for x, y, (inputs, own) in zip(a, b, groups, strict=True):
            rows = units[inputs] if inputs >= 0 else np.arange(x.shape[1])
            columns = units[own] if own >= 0 else np.arange(x.shape[2])
            total += (x * y[:, rows][:, :, columns]).sum()
        return float(total)

    assert found.common == pytest.approx(common(found.units), rel=1e-5)
    assert found.common > common([np.arange(len(order)) for order in found.units])
    for group, order in enumerate(found.units):
        for other in itertools.permutations(range(len(order))):
            changed = [*found.units[:group], np.array(other), *found.units[group + 1 :]]
            assert common(changed) <= found.common + 1e-4


def largest(w: np.ndarray) -> np.ndarray:
    """The mask of the 40 % largest weights of a kernel."""
    return abs(w) > np.quantile(abs(w), 0.6) if w.ndim > 1 else np.array(True)


def test_equal_tickets_of_a_residual_network_overlap_wholly_after_matching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, variables = built("residual", monkeypatch)
    layers = wiring.layers(model)
    mask = jax.tree.map(largest, variables.params)
    moved = wiring.permuted(wiring.layers(model), variables, orders(model))
    other = jax.tree.map(largest, moved.params)
    tickets = [geography.ticket(layers, *of) for of in ((mask, variables.params), (other, moved.params))]
    found = geography.compare(layers, *tickets, 2, np.random.default_rng(0))
    whole = {(x.matching, x.mask): x.overlap for x in found if x.layer == geography.ALL}
    assert whole["magnitudes", "ticket"] == 1
    assert whole["none", "ticket"] < 0.6  # type: ignore[operator]
    assert whole["magnitudes", "shuffled"] < 0.6  # type: ignore[operator]
    names = {x.layer for x in found}
    assert {"conv1", "stage2_block1/shortcut", "output", geography.ALL, geography.INPUTS} <= names
    read = geography.inputs(model, [ticket.mask for ticket in tickets])
    assert len(read) == 3 * 3 * 2
    kernel = np.asarray(mask["conv1"]["kernel"])
    assert read[0].kept == pytest.approx(
        np.mean([kernel[0, 0, 0].mean(), np.asarray(other["conv1"]["kernel"])[0, 0, 0].mean()])
    )


def test_a_sequence_has_the_groups_of_its_layers() -> None:
    layers = models.build("lenet5", (28, 28, 1), 10).layers
    assert wiring.groups(layers) == [(-1, 0), (0, 1), (1, 2), (2, 3), (3, -1)]
    resnet20 = wiring.layers(models.build("resnet20", (32, 32, 3), 10))
    assert len({own for _, own in wiring.groups(resnet20)}) == 3 + 9 + 1  # streams, blocks, classes
    assert len(resnet20) == 1 + 18 + 2 + 1


def test_dead_units_of_a_residual_network_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of streams are dead where no layer writes to them, or none reads them; how often by chance."""
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Stages((3, 4), 1), 2, "for a test"))
    model = models.build("tiny", (8, 8, 2), 4)
    wires = wiring.layers(model)
    paths = [f"{wire.name}/kernel" for wire in wires]
    ends = dict(zip(paths, wiring.groups(wires), strict=True))
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    mask = {path: np.ones(wiring.leaf(shapes, path).shape, bool) for path in paths}
    first, short = "stage1_block1", "stage2_block1/shortcut/kernel"
    mask["conv1/kernel"][..., 0] = False
    assert structure.dead(mask, ends)["conv1/kernel"] == structure.Dead(3, 0, 0, 0)  # the block still writes
    mask[f"{first}/conv2/kernel"][..., 0] = False
    for path in (f"{first}/conv1/kernel", short):
        mask[path][:, :, 2] = False
    assert structure.dead(mask, ends)["conv1/kernel"] == structure.Dead(3, 1, 0, 1)  # the next one reads
    mask["stage2_block1/conv1/kernel"][:, :, 2] = False
    mask[f"{first}/conv2/kernel"][:, :, 1] = False
    mask["output/kernel"][3] = False
    found = structure.dead(mask, ends)
    assert found == {
        "conv1/kernel": structure.Dead(3, 1, 1, 2),
        f"{first}/conv1/kernel": structure.Dead(3, 0, 1, 1),
        "stage2_block1/conv1/kernel": structure.Dead(4, 0, 0, 0),
        short: structure.Dead(4, 0, 1, 1),
    }
    generator = np.random.default_rng(0)
    few = {path: generator.random(leaf.shape) < 0.12 for path, leaf in mask.items()}
    counts = []
    for _ in range(400):
        drawn = {path: generator.permutation(leaf.ravel()).reshape(leaf.shape) for path, leaf in few.items()}
        counts.append([dead.either / dead.units for dead in structure.dead(drawn, ends).values()])
    mean, error = np.mean(counts, 0), np.std(counts, 0) / 20
    expected = [*structure.dead_by_chance(few, ends).values()]
    assert (abs(mean - expected) < 4 * error + 1e-9).all()
    assert max(expected) > 0.1
