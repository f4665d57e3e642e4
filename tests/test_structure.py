import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import about, result, spoil, unsealed

from analysis import open_run, page, record, words
from analysis.report import accuracy
from analysis.structure import ANALYSIS, figures, table
from lthjax import config, models, prune, study
from lthjax.folder import store
from lthjax.imp import Cell
from lthjax.measures import layers, structure
from lthjax.measures.stats import POSITIVE, mean_interval


def test_layers_come_in_the_order_of_the_network_without_what_may_not_be_pruned() -> None:
    params = {
        f"conv{i}": {"kernel": np.full((1, 1, 1, i), float(i)), "bias": np.zeros(i)} for i in (10, 2, 1)
    }
    params["fc1"] = {"kernel": np.ones((10, 3))}
    found = layers.by_number(layers.by_layer(params, prune.ones(params)))
    assert list(found) == ["conv1/kernel", "conv2/kernel", "conv10/kernel", "fc1/kernel"]
    assert [leaf.flat[0] for leaf in found.values()] == [1, 2, 10, 1]


# A 1x1 convolution to two channels on an image of two pixels, flattened: pixel 0 of channels 0 and 1,
# then pixel 1 of channels 0 and 1; three dense units, the last without inputs.
CONV = np.array([[[[True, True]]]])
DENSE = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
OUTPUT = np.array([[0, 0], [1, 1], [0, 1]], bool)
NET = {"conv1/kernel": CONV, "fc1/kernel": DENSE, "output/kernel": OUTPUT}


def test_degrees_by_hand() -> None:
    assert structure.incoming(DENSE).tolist() == [2, 1, 0]
    assert structure.outgoing(DENSE, 4).tolist() == [2, 0, 1, 0]
    assert structure.outgoing(DENSE, 2).tolist() == [3, 0], "channel 1 feeds inputs 1 and 3"
    kernel = np.zeros((2, 1, 2, 3), bool)
    kernel[0, 0, 0, 1] = kernel[1, 0, 0, 1] = kernel[1, 0, 1, 2] = True
    assert structure.incoming(kernel).tolist() == [0, 2, 1]
    assert structure.outgoing(kernel, 2).tolist() == [2, 1]


def test_units_that_are_cut_off_by_hand() -> None:
    assert structure.in_a_row(NET)
    assert structure.dead(NET) == {
        "conv1/kernel": structure.Dead(2, 0, 1, 1),
        # unit 0 leads nowhere, unit 2 is fed by nothing
        "fc1/kernel": structure.Dead(3, 1, 1, 2),
    }
    both = NET | {"output/kernel": np.array([[1, 0], [1, 1], [0, 0]], bool)}
    assert structure.dead(both)["fc1/kernel"] == structure.Dead(3, 1, 1, 1), "unit 2, counted once"


@pytest.mark.parametrize(
    "changed",
    [
        {"fc1/kernel": np.ones((5, 3), bool)},  # no multiple of two channels
        {"output/kernel": np.ones((6, 2), bool)},  # a multiple, but no image to flatten
        {"shortcut/kernel": np.ones((2, 2), bool)},
        {"block1/conv1/kernel": np.ones((1, 1, 2, 2), bool)},
    ],
)
def test_layers_that_are_not_in_a_row(changed: dict[str, np.ndarray]) -> None:
    assert not structure.in_a_row(NET | changed)


def placed(size: int, survivors: int) -> list[np.ndarray]:
    """Every mask with this number of weights and this number of survivors."""
    return [np.isin(np.arange(size), places) for places in itertools.combinations(range(size), survivors)]


def test_units_cut_off_by_chance_are_the_mean_over_all_masks() -> None:
    own, following = placed(6, 3), placed(4, 2)
    pairs = [
        {"fc1/kernel": a.reshape(3, 2), "output/kernel": b.reshape(2, 2)}
        for a, b in itertools.product(own, following)
    ]
    share = np.mean([structure.dead(pair)["fc1/kernel"].either / 2 for pair in pairs])
    for pair in pairs[::17]:
        assert structure.dead_by_chance(pair) == {"fc1/kernel": pytest.approx(share)}


@pytest.mark.parametrize("survivors", [0, 1, 4, 8])
def test_degrees_by_chance_are_those_over_all_masks(survivors: int) -> None:
    masks = [mask.reshape(4, 2) for mask in placed(8, survivors)]
    degrees = np.array([structure.incoming(mask) for mask in masks])
    shares = np.bincount(degrees.ravel(), minlength=5) / degrees.size
    np.testing.assert_allclose(structure.by_chance(masks[0], 2, range(5)), shares, atol=1e-12)
    np.testing.assert_allclose(structure.variance_by_chance(masks[0], 2), degrees.var(1).mean(), atol=1e-12)


def test_degrees_by_chance_are_those_of_shuffled_masks() -> None:
    """prune.shuffle draws from the distribution that the figures call chance."""
    mask = np.arange(60).reshape(12, 5) < 20
    keys = jax.random.split(jax.random.key(0), 400)
    shuffled = np.asarray(jax.vmap(prune.shuffle, (0, None))(keys, {"w": mask})["w"])
    degrees = np.array([structure.outgoing(m, 12) for m in shuffled])
    shares = np.bincount(degrees.ravel(), minlength=6) / degrees.size
    np.testing.assert_allclose(structure.by_chance(mask, 12, range(6)), shares, atol=0.02)


@pytest.mark.parametrize(("granularity", "side"), itertools.product(("unit-l1", "2:4"), (True, False)))
def test_chance_is_that_of_what_the_study_prunes(granularity: str, side: bool) -> None:
    """prune.shuffle by whole units, or within groups of four inputs, gives what the figures call chance."""
    scores = {"w": np.random.default_rng(0).random((12, 5))}
    mask = np.asarray(prune.by_score(scores, prune.ones(scores), 0.5, granularity=granularity)["w"])
    if granularity == "unit-l1":
        mask = mask & (np.arange(12) != 3)[:, None]  # an input that feeds nothing
    keys, units = jax.random.split(jax.random.key(0), 400), 12 if side else 5
    shuffle = jax.vmap(lambda key, mask: prune.shuffle(key, mask, granularity), (0, None))
    shuffled = np.asarray(shuffle(keys, {"w": mask})["w"])
    degrees = np.array([structure.outgoing(m, 12) if side else structure.incoming(m) for m in shuffled])
    how: dict[str, Any] = {"granularity": granularity, "inputs": side}
    shares = np.bincount(degrees.ravel(), minlength=13) / degrees.size
    np.testing.assert_allclose(structure.by_chance(mask, units, range(13), **how), shares, atol=0.02)
    variance = structure.variance_by_chance(mask, units, **how)
    assert variance == pytest.approx(degrees.var(), rel=0.05, abs=1e-9)


def survivors(granularity: str, masks: dict[str, np.ndarray]) -> Any:
    """What two figures read of a run of one ticket, which has these masks."""
    row = SimpleNamespace(arm="ticket", seed=0, repeat=1, level=1, density=0.5, chain="rewind-0")
    return SimpleNamespace(
        heading="", chain="rewind-0", levels={1: 0.5}, shown_level=1, granularity=granularity, ends=None,
        rows=[row], tickets=[row], mask=lambda _: masks,
    )  # fmt: skip


def test_units_that_are_pruned_whole_are_no_finding_about_the_ticket() -> None:
    """Half of the units of both hidden layers are pruned whole, as in every mask of the study's kind."""
    masks = {"fc1/kernel": np.ones((8, 6), bool), "output/kernel": np.ones((6, 4), bool)}
    masks["fc1/kernel"][:, ::2] = False
    of = survivors("unit-l1", masks)
    (dead,) = table.dead_units(of)
    assert dead.either_share_by_chance == dead.either / dead.units == 0.5
    assert table.degrees(of)[1] == {
        ("fc1", "output units"): [1.0], ("fc1", "input units"): [],
        ("output", "output units"): [], ("output", "input units"): [],
    }  # fmt: skip
    found = table.degrees(of), table.dead_units(of)
    captions = figures._degrees(of, found[0])[1], figures._dead_units(of, found[1])[1]
    how = " (shuffled are whole units, as the study prunes these)"
    assert "gives, exactly" + how in captions[0]
    assert "shuffled within its layers, on average" + how in captions[1]
    of.granularity = "weight"
    assert "exactly (hypergeometric)" in figures._degrees(of, found[0])[1]


def test_degrees_have_a_legend_where_the_last_layer_is_whole() -> None:
    masks = {"fc1/kernel": np.arange(48).reshape(8, 6) % 5 < 2, "output/kernel": np.ones((6, 4), bool)}
    of = survivors("weight", masks)
    figure = figures._degrees(of, table.degrees(of))[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ticket", "shuffled"]


def test_pixels_and_rings_by_hand() -> None:
    mask = np.zeros((2 * 3 * 2, 4), bool)
    mask[0, :3] = mask[1, :1] = True  # row 0, column 0: both channels
    mask[11, :2] = True  # row 1, column 2, the second channel
    assert structure.pixels(mask, (2, 3, 2)).tolist() == [[4, 0, 0], [0, 0, 2]]
    assert structure.rings(4, 5).tolist() == [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]


def test_sign_changes_by_hand() -> None:
    before = {"w": np.array([1.0, -1.0, 0.5, -2.0, 0.0])}
    after = {"w": np.array([2.0, 1.0, -0.5, -2.0, 3.0])}
    kept = {"w": np.array([True, True, False, True, True])}
    assert structure.sign_changes(before, after, kept) == (2, 4)


def test_parts_of_an_image_over_its_mean_by_hand() -> None:
    image = np.zeros((3, 4), int)
    image[0, 0], image[1, 1] = 5, 7
    assert structure.over_mean(image, structure.rings(3, 4) == 1) == 3.5
    assert structure.by_ring(image) == [(0, 10, 5, 0.5), (1, 2, 7, 3.5)]


def test_filters_side_by_side() -> None:
    kernel = np.arange(2 * 1 * 2 * 2.0).reshape(2, 1, 2, 2)
    nan = np.nan
    expected = [[0, nan, 1], [4, nan, 5], [nan, nan, nan], [2, nan, 3], [6, nan, 7]]
    np.testing.assert_array_equal(structure.side_by_side(kernel), expected)


def test_histograms_by_hand() -> None:
    before = {"w": np.array([1.0, -1.0, 0.1, 9.0])}
    after = {"w": np.array([2.0, 2.0, -0.1, 9.0])}
    there, stays = {"w": np.array([True, True, True, False])}, {"w": np.array([True, False, False, False])}
    counts, edges = structure.histograms(before, after, stays, there, bins=2)
    assert [edge.tolist() for edge in edges] == [[-1, 0, 1], [-2, 0, 2]], "what was pruned before has no say"
    assert counts["survivors"].tolist() == [[0, 0], [0, 1]]
    assert counts["pruned"].tolist() == [[0, 1], [1, 0]]


def bits(folder: Path, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as stored in a run folder."""
    with np.load(folder / "mask.npz") as packed:
        return np.unpackbits(packed[path], count=int(np.prod(shape))).astype(bool).reshape(shape)


SHAPES = {"fc1/kernel": (144, 300), "fc2/kernel": (300, 100), "output/kernel": (100, 10)}


def section(run: Path) -> page.Section:
    opened = open_run(run)
    return ANALYSIS.section(opened, record.found(ANALYSIS, opened))


def lines(drawn: page.Drawn) -> list[dict[str, Any]]:
    header, rows = drawn.data
    return [dict(zip(header, row, strict=True)) for row in rows]


def only(rows: Sequence[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_figures_of_a_run_hold_what_lies_in_its_folder(
    tiny: Callable[..., study.Prepared], tmp_path: Path
) -> None:
    prepared = tiny(rewind=(0, 2), arms=("ticket", "random"), prune=config.Prune(rate=0.7))
    run = study.run(prepared, tmp_path / "runs")
    drawn = {one.name: one for one in section(run).figures}
    assert list(drawn) == [
        "layer_density", "input_pixels", "input_rings", "degrees", "dead_units", "initial_final",
        "sign_changes", "mask_overlap",
    ]  # fmt: skip
    level = {seed: {n: run / f"seed={seed}/chain=rewind-0/level={n:02d}" for n in (1, 2)} for seed in (0, 1)}
    masks = {
        (seed, n, arm): {path: bits(level[seed][n] / arm, path, shape) for path, shape in SHAPES.items()}
        for seed in (0, 1)
        for n in (1, 2)
        for arm in ("ticket", "random")
    }
    deepest = masks[1, 2, "ticket"]

    rows = lines(drawn["layer_density"])
    assert len(rows) == 2 * 3 * 3
    for layer, (path, mask) in zip(("fc1", "fc2", "output"), deepest.items(), strict=True):
        row = only(rows, seed=1, level=2, layer=layer)
        assert (row["left"], row["weights"]) == (mask.sum(), np.prod(SHAPES[path]))
        assert only(rows, seed=1, level=0, layer=layer)["left"] == mask.size
    assert "rewind-0" in drawn["layer_density"].caption

    images = [masks[seed, 2, "ticket"]["fc1/kernel"].sum(1).reshape(12, 12) for seed in (0, 1)]
    rows = lines(drawn["input_pixels"])
    assert {row["level"] for row in rows} == {1, 2}
    assert len(rows) == 2 * 144
    assert only(rows, level=2, row=3, column=5)["survivors_mean"] == (images[0][3, 5] + images[1][3, 5]) / 2
    assert "2 seeds" in drawn["input_pixels"].caption
    border = np.ones((12, 12), bool)
    border[1:-1, 1:-1] = False
    row = only(lines(drawn["input_rings"]), seed=1, level=2, ring=0)
    assert (row["pixels"], row["survivors"]) == (44, images[1][border].sum())
    assert row["survivors_a_pixel_over_mean"] == pytest.approx(images[1][border].mean() / images[1].mean())
    two = border.copy()
    two[1:-1, 1:-1] |= np.pad(np.zeros((8, 8), bool), 1, constant_values=True)
    shares = [image[two].mean() / image.mean() for image in images]
    said = words.percent(mean_interval(shares, within=POSITIVE))
    assert f"the outer two rings have {said} times" in drawn["input_rings"].caption

    rows = lines(drawn["degrees"])
    ins, outs = deepest["fc2/kernel"].sum(0), deepest["fc2/kernel"].sum(1)
    for side, counted in (("output units", ins), ("input units", outs)):
        own = [row for row in rows if (row["seed"], row["layer"], row["side"]) == (1, "fc2", side)]
        assert {row["survivors"]: row["units"] for row in own if row["units"]} == dict(
            zip(*np.unique(counted, return_counts=True), strict=True)
        )
        assert sum(row["units_expected_by_chance"] for row in own) == pytest.approx(len(counted), rel=1e-3)
    assert "2 seeds pooled" in drawn["degrees"].caption

    rows = lines(drawn["dead_units"])
    assert len(rows) == 2 * 2 * 2 * 2
    for arm in ("ticket", "random"):
        row, mask = only(rows, arm=arm, seed=0, level=2, layer="fc2"), masks[0, 2, arm]
        starved, mute = ~mask["fc2/kernel"].any(0), ~mask["output/kernel"].any(1)
        assert (row["no_input"], row["no_output"]) == (starved.sum(), mute.sum())
        assert row["either"] == (starved | mute).sum() > 0
        assert row["units"] == 100

    from orbax.checkpoint import v1 as ocp

    def weights(folder: Path) -> dict[str, np.ndarray]:
        params = ocp.load(folder / "variables")["params"]
        return {path: np.asarray(params[path.partition("/")[0]]["kernel"]) for path in SHAPES}

    initial = weights(run / "seed=0/state=0")
    parent, final = weights(level[0][1] / "ticket"), weights(level[0][2] / "ticket")
    row = only(lines(drawn["sign_changes"]), arm="ticket", seed=0, level=2)
    kept = masks[0, 2, "ticket"]
    flipped = sum(((initial[path] < 0) != (final[path] < 0))[kept[path]].sum() for path in SHAPES)
    assert row["changed"] == flipped
    assert row["survivors"] == sum(mask.sum() for mask in kept.values())
    random = only(lines(drawn["sign_changes"]), arm="random", seed=0, level=2)
    moved = weights(level[0][2] / "random")
    kept_by_chance = masks[0, 2, "random"]
    assert random["changed"] == sum(
        ((initial[path] < 0) != (moved[path] < 0))[kept_by_chance[path]].sum() for path in SHAPES
    )
    assert random["changed"] > 0

    # Level 2 has 9 % of the weights: made from the ticket of level 1.
    rows = lines(drawn["initial_final"])
    for part, was in (("survivors", kept), ("pruned", masks[0, 1, "ticket"])):
        chosen = {path: was[path] & ~kept[path] if part == "pruned" else kept[path] for path in SHAPES}
        own = [row for row in rows if row["part"] == part]
        assert sum(row["weights"] for row in own) == sum(mask.sum() for mask in chosen.values())
        for column, of in (("initial", initial), ("final", parent)):
            values = np.concatenate([of[path][chosen[path]] for path in SHAPES])
            binned = np.repeat([row[column] for row in own], [row["weights"] for row in own])
            np.testing.assert_allclose(np.sort(binned), np.sort(values), atol=0.015)
    assert drawn["initial_final"].raster
    assert "seed 0 that level 2 (rewind-0)" in drawn["initial_final"].caption

    rows = lines(drawn["mask_overlap"])
    assert len(rows) == 2 * (1 + 2) + 2, "pairs, chains, and the one level that has a level before it"
    for seed in (0, 1):
        both = [np.concatenate([m.ravel() for m in masks[seed, n, "ticket"].values()]) for n in (1, 2)]
        row = only(rows, between="levels", seed=seed, level=2)
        assert row["iou"] == pytest.approx(both[1].sum() / both[0].sum()), "masks only shrink"
    a, b = (np.concatenate([m.ravel() for m in masks[seed, 2, "ticket"].values()]) for seed in (0, 1))
    row = only(rows, between="seeds", which="0 and 1", level=2)
    assert row["iou"] == pytest.approx((a & b).sum() / (a | b).sum())
    # Every layer has 9 % left, to the weight.
    assert row["iou_by_chance"] == pytest.approx(0.09 / (2 - 0.09), rel=1e-3)
    other = run / "seed=1/chain=rewind-2/level=02/ticket"
    c = np.concatenate([bits(other, path, shape).ravel() for path, shape in SHAPES.items()])
    row = only(rows, between="chains", which="rewind-2", seed=1, level=2)
    assert row["iou"] == pytest.approx((b & c).sum() / (b | c).sum())
    assert row["iou"] > 0.2


def test_what_is_drawn_is_what_the_rows_say(tiny: Callable[..., study.Prepared], tmp_path: Path) -> None:
    run = study.run(tiny(seeds=(0, 1, 2), arms=("ticket", "random")), tmp_path / "runs")
    drawn = {one.name: one for one in section(run).figures}
    rows = lines(drawn["sign_changes"])
    shown = {line.get_label(): line for line in drawn["sign_changes"].figure.axes[0].get_lines()}
    for arm in ("ticket", "random"):
        line = shown[f"{arm} (n = 3)"]
        means = [
            np.mean([100 * row["changed"] / row["survivors"] for row in rows
                     if row["level"] == level and row["arm"] in (arm, "dense")])
            for level in range(3)
        ]  # fmt: skip
        np.testing.assert_allclose(line.get_ydata(), means)
        assert line.get_xdata()[0] == 100
    pairs = [row for row in lines(drawn["mask_overlap"]) if row["between"] == "seeds"]
    assert len(pairs) == 2 * 3, "three pairs at each of two levels"
    panel = drawn["mask_overlap"].figure.axes[0]
    assert not panel.collections, "pairs share seeds: no interval"
    for one in drawn.values():
        for axes in one.figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left")
            if axes.get_xscale() == "log":
                assert axes.get_xlim()[0] > axes.get_xlim()[1], "fewer weights are to the right"


def test_a_convolution_at_the_input_and_one_seed(tiny: Callable[..., study.Prepared], tmp_path: Path) -> None:
    prepared = tiny(
        model="lenet5",
        seeds=(4,),
        levels=1,
        arms=("ticket",),
        train=config.Train(steps=2, batch=20, eval_every=2),
        prune=config.Prune(density=0.03, scope="global"),
    )
    run = study.run(prepared, tmp_path / "runs")
    drawn = {one.name: one for one in section(run).figures}
    assert list(drawn) == [
        "layer_density", "first_kernels", "degrees", "dead_units", "initial_final", "sign_changes"
    ]  # fmt: skip
    ticket = run / "seed=4/chain=rewind-0/level=01/ticket"
    kernel = bits(ticket, "conv1/kernel", (5, 5, 1, 6))
    taps = lines(drawn["first_kernels"])
    assert len(taps) == kernel.size
    for tap in taps:
        assert tap["kept"] == kernel[tap["row"], tap["column"], 0, tap["filter"] - 1]
        assert (tap["weight"] != 0) == tap["kept"]
    crosses = drawn["first_kernels"].figure.axes[0].get_lines()[0]
    assert len(crosses.get_xdata()) == (~kernel).sum()
    # Channel c of conv2 feeds every 16th of the 400 inputs of fc1.
    second = bits(ticket, "conv2/kernel", (5, 5, 6, 16))
    third = bits(ticket, "fc1/kernel", (400, 120))
    starved = ~second.any((0, 1, 2))
    mute = np.array([not third[c::16].any() for c in range(16)])
    row = only(lines(drawn["dead_units"]), layer="conv2")
    assert (row["no_input"], row["no_output"], row["units"]) == (starved.sum(), mute.sum(), 16)
    assert "shuffled" in drawn["dead_units"].caption


def test_cells_that_diverged_or_are_missing_are_left_out(
    tiny: Callable[..., study.Prepared], tmp_path: Path
) -> None:
    run = study.run(tiny(arms=("ticket", "reinit_chain")), tmp_path / "runs")
    unsealed(run)
    result = run / "seed=1/chain=rewind-0/level=02/ticket/result.json"
    spoil(result)
    drawn = {one.name: one for one in section(run).figures}
    for name in ("layer_density", "dead_units", "sign_changes"):
        cells = {(row["seed"], row["level"]) for row in lines(drawn[name])}
        assert (1, 1) in cells
        assert (0, 2) in cells
        assert (1, 2) not in cells
    overlaps = lines(drawn["mask_overlap"])
    assert [row["level"] for row in overlaps if row["between"] == "seeds"] == [1]
    chains = [(row["which"], row["seed"], row["level"]) for row in overlaps if row["between"] == "chains"]
    assert sorted(chains) == [("reinit_chain-0", 0, 1), ("reinit_chain-0", 0, 2), ("reinit_chain-0", 1, 1)]


def test_of_a_study_that_prunes_everything_the_rest_is_shown(
    tiny: Callable[..., study.Prepared], tmp_path: Path
) -> None:
    """Levels with 1, 0.01 and 0 % of the weights: survivors are shown as long as there are any."""
    emptying = config.Prune(rates=(0.99, 0.99, 0.9999))
    run = study.run(tiny(levels=3, seeds=(0,), arms=("ticket",), prune=emptying), tmp_path / "runs")
    left = [row.weights_left for row in open_run(run).rows if row.arm == "ticket" and row.seed == 0]
    assert left[0] > left[1] > left[2] == 0
    drawn = {one.name: one for one in section(run).figures}
    assert {"layer_density", "dead_units", "sign_changes", "initial_final"} <= drawn.keys()
    header, rows = drawn["layer_density"].data
    assert {row[header.index("level")] for row in rows} == {0, 1, 2}
    (note,) = [n for n in accuracy.section(open_run(run), "heading").notes if "no weight left" in n]
    assert note.startswith("Networks of level 3 have no weight left")
    assert section(run).notes == []


def test_a_run_without_tickets_has_no_figures_and_says_why(
    tiny: Callable[..., study.Prepared], tmp_path: Path
) -> None:
    shown = section(study.run(tiny(levels=0, seeds=(0,)), tmp_path / "runs"))
    assert not shown.figures
    assert shown.notes == ["Not shown: no ticket that has weights left is trained yet."]


def masked(path: Path, model: str) -> Path:
    """A run folder with one ticket of a network that keeps all weights; only its mask is stored."""
    prepared = about(model=model)
    height, width, channels = prepared["data"]["shape"]
    network = models.build(model, (height, width, channels), 10)
    ones = prune.ones(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes(network)))
    cells = [Cell(0, "dense", 0, "dense"), Cell(0, "rewind-0", 1, "ticket")]
    with store.Store(path, prepared) as writing:
        for cell in cells:
            writing.write(cell, result(cell), ones, None)
    return path


def shapes(network: models.Model) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0)).params


@pytest.mark.parametrize(
    ("model", "absent"),
    [
        ("lenet300", {"first_kernels"}),
        ("lenet5", {"input_pixels", "input_rings"}),
        ("resnet8", {"input_pixels", "input_rings"}),
    ],
)
def test_the_note_names_the_figures_that_are_not_known_for_a_network(
    model: str, absent: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a plain sequence there is no note, because one of two kinds of first layer is expected."""
    made: list[str] = []
    for name, kind in figures.FIGURES.items():
        skipped = kind._replace(find=lambda _, name=name: made.append(name))
        monkeypatch.setitem(figures.FIGURES, name, skipped)
    notes = section(masked(tmp_path / "run", model)).notes
    assert figures.FIGURES.keys() - made == absent
    if model != "resnet8":
        assert notes == []
        return
    (note,) = notes
    for name, kind in figures.FIGURES.items():
        assert (kind.title in note) is (name in {"input_pixels", "input_rings"})
    assert "(the first layer must be known to be dense and to read the pixels)" in note


def test_the_first_convolution_is_the_one_that_is_used_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of a network from outside the package do not tell: a depthwise kernel has one channel, too."""

    class Stem(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.Conv(6, (3, 3), strides=4, use_bias=False, name="stem")(x)
            x = nn.Conv(6, (3, 3), strides=4, feature_group_count=6, name="depth")(x)
            return nn.Dense(self.classes, name="output")(x.reshape(len(x), -1))

    monkeypatch.setattr(figures, "FIGURES", {"first_kernels": figures.FIGURES["first_kernels"]})
    monkeypatch.setattr(
        table.Survivors, "final", lambda of, row: {path: m * 2.0 for path, m in of.mask(row).items()}
    )
    monkeypatch.setitem(models.MODELS, "stem", models.Entry(Stem, 1, "for a test"))
    (drawn,) = section(masked(tmp_path / "run", "stem")).figures
    assert drawn.caption.startswith("Final weights of stem in the ticket")
    assert len(lines(drawn)) == 54


def test_units_are_not_called_dead_where_it_is_not_known_what_feeds_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks from outside the package call their layers as they like, also as those of a sequence."""

    class Skips(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            y = nn.relu(nn.Dense(6, name="fc1")(x.reshape(len(x), -1)))
            y = y + nn.relu(nn.Dense(6, name="fc2")(y))
            return nn.Dense(self.classes, name="output")(y)

    class Own(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            y = nn.Dense(6, name="left")(x.reshape(len(x), -1))
            return nn.Dense(self.classes, name="right")(nn.relu(y))

    monkeypatch.setattr(figures, "FIGURES", {"dead_units": figures.FIGURES["dead_units"]})
    for name, module in (("own", Own), ("skips", Skips)):
        monkeypatch.setitem(models.MODELS, name, models.Entry(module, 1, "for a test"))
        shown = section(masked(tmp_path / name, name))
        assert shown.figures == []
        assert shown.notes[0].startswith("The layers of this network are not known to form a plain sequence.")
        assert "Units that are cut off (it must be known which layers feed which)" in shown.notes[0]
