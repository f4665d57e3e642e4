"""Planted permutations, chance, pseudo-values of seeds, and the command on a tiny study."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import about, check_section, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import geography as mapped
from analysis import open_run, record
from analysis.geography.table import InputRow, OverlapRow, over_seeds
from analysis.tables import of_rows
from lthjax import config, models, prune, study
from lthjax.errors import UserError
from lthjax.imp import Cell
from lthjax.measures import geography, transfer
from lthjax.measures.geography import TicketKernels
from lthjax.measures.layers import shuffled
from lthjax.models import Model
from lthjax.networks import Layer

Kernels = list[np.ndarray]


def dense(*widths: int) -> Model:
    """A network of dense layers for 8x8 images in 10 classes."""
    layers = tuple(Layer(f"fc{i}", width) for i, width in enumerate(widths, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "own", models.Entry(layers, 1, "for a test"))
        return models.build("own", (8, 8, 1), 10)


def tickets(
    density: float, seed: int = 0, widths: tuple[int, ...] = (40, 24, 10), inputs: int = 60
) -> Kernels:
    generator = np.random.default_rng(seed)
    return [
        generator.random((1, before, after)) < density
        for before, after in itertools.pairwise((inputs, *widths))
    ]


@pytest.mark.parametrize("density", [0.1, 0.3])
def test_a_planted_permutation_is_found(density: float) -> None:
    a = tickets(density, widths=(40, 24, 10), inputs=300)
    generator = np.random.default_rng(1)
    units = [generator.permutation(40), generator.permutation(24)]
    b = geography.permuted(a, units)
    whole, chance = geography.iou(a, b)[-1]
    assert whole < chance + 0.1
    found = geography.align(a, b)
    assert found.common == sum(k.sum() for k in a)
    assert geography.iou(a, geography.permuted(b, found.units))[-1].iou == 1
    for planted, got in zip(units, found.units, strict=True):
        np.testing.assert_array_equal(planted[got], np.arange(len(planted)))


def test_a_planted_permutation_of_channels_is_found_by_magnitude() -> None:
    """Uses LeNet-5, whose channels are flattened, and weights instead of masks."""
    model = models.build("lenet5", (28, 28, 1), 10)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)).params)
    a = [abs(k) for k in transfer.kernels(model.layers, params)]
    generator = np.random.default_rng(0)
    units = [generator.permutation(k.shape[2]) for k in a[:-1]]
    found = geography.align(a, geography.permuted(a, units))
    for planted, got in zip(units, found.units, strict=True):
        np.testing.assert_array_equal(planted[got], np.arange(len(planted)))


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_one_hidden_layer_is_matched_best(seed: int) -> None:
    """Compares with all 120 orders of five units."""
    a, b = (tickets(0.4, seed + i, (5, 3), 4) for i in (0, 1))
    found = geography.align(a, b)
    every = [
        sum((x & y).sum() for x, y in zip(a, geography.permuted(b, [np.array(order)]), strict=True))
        for order in itertools.permutations(range(5))
    ]
    assert found.common == max(every)
    assert sorted(found.units[0]) == list(range(5))


def test_matching_never_loses_and_ends_in_an_optimum() -> None:
    a, b = tickets(0.2, 1), tickets(0.2, 2)
    found = geography.align(a, b)
    assert found.common >= sum((x & y).sum() for x, y in zip(a, b, strict=True))
    for layer, units in enumerate(found.units):
        for i, j in itertools.combinations(range(len(units)), 2):
            swapped = [u.copy() for u in found.units]
            swapped[layer][[i, j]] = swapped[layer][[j, i]]
            common = sum((x & y).sum() for x, y in zip(a, geography.permuted(b, swapped), strict=True))
            assert common <= found.common


def test_noise_aligns_as_its_null_does() -> None:
    """Independent masks overlap at chance; matched, they overlap more, but no more than shuffled masks."""
    generator = np.random.default_rng(0)
    gains, nulls, plain = [], [], []
    for seed in range(12):
        a, b = tickets(0.2, 2 * seed), tickets(0.2, 2 * seed + 1)
        (x,), (y,) = shuffled(generator, a), shuffled(generator, b)
        gains.append(geography.iou(a, geography.permuted(b, geography.align(a, b).units))[-1].iou)
        nulls.append(geography.iou(x, geography.permuted(y, geography.align(x, y).units))[-1].iou)
        plain.append(np.subtract(*geography.iou(a, b)[-1]))
    error = np.sqrt((np.var(gains, ddof=1) + np.var(nulls, ddof=1)) / 12)
    assert abs(np.mean(gains) - np.mean(nulls)) < 3 * error
    assert abs(np.mean(plain)) < 3 * np.std(plain, ddof=1) / np.sqrt(12)
    chance = 0.2 / 1.8
    assert min(*gains, *nulls) > chance + 0.03


def test_overlap_is_that_of_prune() -> None:
    model = dense(6, 5)
    masks = [random_mask(model, 0.3, seed) for seed in (0, 1)]
    got = geography.iou(*(transfer.kernels(model.layers, mask) for mask in masks))[-1]
    np.testing.assert_allclose(got, prune.overlap(*masks), rtol=1e-6)


def test_inputs_by_hand() -> None:
    a = [np.array([[[True, True, False, False]], [[False] * 4], [[True] * 4]])]  # three pixels, four units
    b = [np.array([[[False, True, True, False]], [[False] * 4], [[True, False, False, False]]])]
    np.testing.assert_array_equal(geography.readers(a), [[2], [0], [4]])
    same, chance = geography.by_input(a, b)
    np.testing.assert_array_equal(same, [[1 / 3], [np.nan], [1 / 4]])
    np.testing.assert_array_equal(chance, [[1 / 3], [np.nan], [1 / 4]])
    got = geography.agreement(geography.readers(a), geography.readers(b))
    assert got == pytest.approx(np.corrcoef([2, 0, 4], [2, 0, 1])[0, 1])
    assert geography.agreement(geography.readers(a), np.ones((3, 1))) is None


def test_pairs_are_worth_their_seeds() -> None:
    assert geography.over_pairs({(0, 1): 0.5}) == [0.5]
    # If a pair's value is the mean of its two seeds' values, the pseudo-values are the seeds' values.
    own = {3: 1.0, 5: 4.0, 8: 2.5, 9: 0.5}
    values = {(a, b): (own[a] + own[b]) / 2 for a, b in itertools.combinations(own, 2)}
    np.testing.assert_allclose(geography.over_pairs(values), list(own.values()))
    # Without a pair their mean would not be that of the pairs, or there would be none without a seed.
    with pytest.raises(UserError, match="the pair of seeds 5 and 8 is missing"):
        geography.over_pairs({pair: value for pair, value in values.items() if pair != (5, 8)})


def kept(widths: tuple[int, ...], density: float, seed: int) -> TicketKernels:
    masks = tickets(density, seed, widths, 64)
    generator = np.random.default_rng(seed)
    return TicketKernels(masks, [m * generator.random(m.shape).astype(np.float32) for m in masks])


def compared(
    of_seeds: dict[int, TicketKernels], granularity: str = "weight", widths: tuple[int, ...] = (12, 8)
) -> list[OverlapRow]:
    layers = dense(*widths).layers
    found = []
    for seed, other in itertools.combinations(of_seeds, 2):
        generator = np.random.default_rng([3, seed, other])
        of = (of_seeds[seed], of_seeds[other], 4, generator)
        alike = geography.compare(layers, *of, granularity=granularity)
        found += [OverlapRow("rewind-0", 3, seed, other, *one) for one in alike]
    return found


def findings_of(rows: list[OverlapRow], path: Path, granularity: str = "weight") -> dict[str, str]:
    inputs = [InputRow("rewind-0", 3, 0, 0, 0, 0.5, None, None)]
    (path / "geography").mkdir(parents=True)
    told = about(prune=config.Prune(granularity=granularity))
    (path / "study.json").write_text(json.dumps(told))
    for name, of in (("overlap", rows), ("inputs", inputs)):
        (path / "geography" / f"{name}.csv").write_text(of_rows(type(of[0]), of))
    run = open_run(path)
    found = record.found(mapped.ANALYSIS, run)
    assert found == {"overlap.csv": rows, "inputs.csv": inputs}
    return {finding.claim: finding.outcome for finding in mapped.findings(run, found)}


SAME = "Tickets are the same up to the order of their units (overlap of 0.9 or more)"
BY_MASKS = "… after matching their units by masks"


def test_geography_tells_one_ticket_in_other_orders_from_different_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    first = kept((12, 8, 10), 0.3, 0)
    orders = {0: [np.arange(12), np.arange(8)]} | {
        s: [generator.permutation(12), generator.permutation(8)] for s in (1, 2, 3)
    }
    same = {s: TicketKernels(*(geography.permuted(of, units) for of in first)) for s, units in orders.items()}
    rows = compared(same)
    for matching in ("masks", "magnitudes"):
        assert set(over_seeds(rows, 3, "all", matching)) == {1.0}
        assert max(over_seeds(rows, 3, "fc1", matching, "shuffled")) < 0.5
    assert max(over_seeds(rows, 3, "fc1", "none")) < 0.35
    said = findings_of(rows, tmp_path / "same")
    assert said[SAME] == said[BY_MASKS] == "supported"
    assert said["Tickets of different seeds read the same inputs"] == "supported"

    rows = compared({seed: kept((12, 8, 10), 0.3, seed) for seed in range(4)})
    said = findings_of(rows, tmp_path / "different")
    assert said[SAME] == "refuted"
    assert said[BY_MASKS] != "supported"
    assert abs(np.mean(over_seeds(rows, 3, "all", "masks", above="shuffled"))) < 0.03
    matched, plain = (np.mean(over_seeds(rows, 3, "all", how)) for how in ("masks", "none"))
    assert matched > plain + 0.03


def kept_units(seed: int) -> TicketKernels:
    """A ticket of whole units that were drawn at random, a quarter of every hidden layer's."""
    generator, masks = np.random.default_rng(seed), []
    for before, after in ((64, 12), (12, 8), (8, 10)):
        mask = np.ones((1, before, after), bool)
        if after != 10:
            mask[..., generator.choice(after, after * 3 // 4, replace=False)] = False
        masks.append(mask)
    return TicketKernels(masks, [m * generator.random(m.shape).astype(np.float32) for m in masks])


def test_units_pruned_at_random_do_not_pass_for_alike(tmp_path: Path) -> None:
    """Shuffled whole, they overlap as much when matched; shuffled weight by weight they would not."""
    masks, sizes = shuffled(np.random.default_rng(0), *kept_units(0), granularity="unit-l1")
    for mask, size in zip(masks, sizes, strict=True):
        np.testing.assert_array_equal(mask.any((0, 1)), mask.all((0, 1)))
        np.testing.assert_array_equal(mask, size > 0)
    rows = compared({seed: kept_units(seed) for seed in range(4)}, "unit-l1")
    assert {row.overlap for row in rows if (row.layer, row.matching) == ("all", "masks")} == {1.0}
    said = findings_of(rows, tmp_path, "unit-l1")
    assert said[SAME] == said[BY_MASKS] == "not tested"
    assert "supported" not in said.values()


def kept_pattern(seed: int, kept: int, group: int) -> TicketKernels:
    """A ticket of a random N:M pattern; the weights are as large as one another."""
    generator, masks = np.random.default_rng(seed), []
    for before, after in ((64, 60), (60, 40), (40, 10)):
        drawn = generator.random((after, before // group, group)).argsort(-1) < kept
        masks.append(drawn.reshape(after, before).T[None])
    return TicketKernels(masks, [m * generator.random(m.shape).astype(np.float32) for m in masks])


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4)])
def test_patterns_drawn_at_random_do_not_pass_for_alike(kept: int, group: int, tmp_path: Path) -> None:
    """Every unit of a pattern has as many connections; shuffled weight by weight they would differ."""
    of_seeds = {seed: kept_pattern(seed, kept, group) for seed in range(4)}
    said = findings_of(compared(of_seeds, f"{kept}:{group}", (60, 40)), tmp_path, f"{kept}:{group}")
    assert "supported" not in said.values()


def test_patterns_are_shuffled_within_the_groups_that_were_pruned() -> None:
    """A group of a dense layer after an image spans places; layers without whole groups stay."""
    layers = (Layer("conv1", 6, 3), Layer("conv2", 4, 3), Layer("fc1", 5), Layer("output", 3))
    generator = np.random.default_rng(0)
    shapes = [(9, 1, 6), (9, 8, 4), (4, 2, 5), (1, 5, 3)]
    sizes = [generator.random(shape).astype(np.float32) for shape in shapes]
    own = TicketKernels([size > 0.5 for size in sizes], [size * (size > 0.5) for size in sizes])
    drawn = geography._drawn(layers, own, generator, "2:4")
    for mask, size in zip(*drawn, strict=True):
        np.testing.assert_array_equal(mask, size > 0)
    for at, (before, after) in enumerate(zip(own.magnitudes, drawn.magnitudes, strict=True)):
        assert after.shape == before.shape
        assert (after != before).any() == (at in (1, 2))
    # [places, groups, 4, units]: of the convolution by channel, of the dense layer over both places.
    for at, shape in ((1, (9, 2, 4, 4)), (2, (1, 2, 4, 5))):
        old, new = (of[at].reshape(shape) for of in (own.magnitudes, drawn.magnitudes))
        np.testing.assert_array_equal(np.sort(old, 2), np.sort(new, 2))


def test_the_geography_of_a_run(
    tiny: Callable[..., study.Prepared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = (Layer("fc1", 12), Layer("fc2", 8))
    monkeypatch.setitem(models.MODELS, "narrow", models.Entry(layers, 1, "for a test"))
    pruned = config.Prune(rate=0.5, granularity="2:4")
    prepared = tiny(model="narrow", arms=("ticket",), levels=1, prune=pruned)
    run = study.run(prepared, tmp_path / "runs")
    assert {found.outcome for found in mapped.findings(open_run(run), None)} == {"not tested"}
    assert record.found(mapped.ANALYSIS, open_run(run)) is None
    drawn: list[TicketKernels] = []
    plain = geography._drawn

    def kept_drawn(*of: Any) -> TicketKernels:
        drawn.append(plain(*of))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(geography, "_drawn", kept_drawn)
        record.command(mapped.ANALYSIS)([str(run), "--draws", "2", "--quiet"])
    assert len(drawn) == 4
    for one in drawn:
        assert all((mask.reshape(-1, 4, mask.shape[-1]).sum(1) == 2).all() for mask in one.mask), "chance"
    assert capsys.readouterr().out == f"{run / 'geography'}\n"
    opened = open_run(run)
    found = record.found(mapped.ANALYSIS, opened)
    rows, inputs = found["overlap.csv"], found["inputs.csv"]
    check_section(mapped.ANALYSIS, run)
    masks = [opened.mask(Cell(seed, "rewind-0", 1, "ticket")) for seed in (0, 1)]
    plain = {row.layer: row for row in rows if (row.matching, row.mask) == ("none", "ticket")}
    assert plain["all"].overlap == pytest.approx(float(prune.overlap(*masks).iou))
    for layer in ("fc1", "fc2", "output"):
        own = [{"w": mask[layer]["kernel"]} for mask in masks]
        assert plain[layer].overlap == pytest.approx(float(prune.overlap(*own).iou))
        assert plain[layer].density == pytest.approx(own[0]["w"].mean())
    read = [mask["fc1"]["kernel"].reshape(12, 12, 1, 12) for mask in masks]
    correlation = np.corrcoef(*(m.sum(-1).ravel() for m in read))[0, 1]
    assert plain["inputs"].overlap == pytest.approx(correlation, abs=1e-9)
    assert len(inputs) == 144
    for at in (0, 60, 143):
        y, x = divmod(at, 12)
        assert inputs[at][2:5] == (y, x, 0)
        assert inputs[at].kept == pytest.approx(np.mean([m[y, x, 0].mean() for m in read]))
    # Two seeds give one pair, so its variation is unknown.
    assert {one.outcome for one in mapped.findings(opened, found)} == {"undecided"}
    assert [one.name for one in mapped.section(opened, found).figures] == [
        "geography_overlap",
        "geography_inputs",
    ]
    before = (run / "geography" / "overlap.csv").read_bytes()
    record.perform(mapped.ANALYSIS, run, draws=2)
    assert (run / "geography" / "overlap.csv").read_bytes() == before
    table = run / "geography" / "inputs.csv"
    whole = table.read_text()
    (run / "geography" / "checksums.json").unlink()
    for cut, said in ((len(whole) // 2, "ends within a line"), (whole.rindex("rew"), "not every input")):
        table.write_text(whole[:cut])
        with pytest.raises(UserError, match=f"{said}.*run python -m analysis.geography .* again"):
            record.found(mapped.ANALYSIS, opened)
    table.write_text(whole)
    with pytest.raises(UserError, match="--draws: 0 is not allowed"):
        record.perform(mapped.ANALYSIS, run, draws=0)
    with pytest.raises(UserError, match="--levels: 4 has no two seeds' tickets in rewind-0; it may be 1"):
        record.perform(mapped.ANALYSIS, run, levels=(4,))
    with pytest.raises(UserError, match="--chain: 'rewind-3' has no ticket in the run; it may be rewind-0"):
        record.perform(mapped.ANALYSIS, run, chain="rewind-3")
    shutil.rmtree(run / "seed=1" / "chain=rewind-0")
    with pytest.raises(UserError, match="no level has tickets of rewind-0 of two seeds that did not diverge"):
        record.perform(mapped.ANALYSIS, run)
    shutil.rmtree(run / "geography")
    with pytest.raises(UserError, match=r"is not known yet; run python -m analysis.geography .* first"):
        record.needed(mapped.ANALYSIS, opened)
