"""What arms that start from trained weights train from and for how long, and what the report says of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import result

from analysis import open_run, retraining
from analysis.retraining import table
from analysis.rows import row_of
from lthjax import batches, config, data, imp, study, validate
from lthjax.errors import UserError
from lthjax.imp import Cell

Make = Callable[..., study.Prepared]
ARMS = ("finetune", "lr_rewind", "lr_rewind_chain", "continued", "continued_reset")
LAYERS = ("fc1", "fc2", "output")


def by_hand(prepared: study.Prepared, start: dict, mask: dict, first: int, rates: list[float]) -> dict:
    """Gradient descent on LeNet-300-100 in numpy, float64, with the masks as products."""
    split, pixels = data.split(prepared.dataset, 0, 40), prepared.dataset.train_images
    weights = {
        n: [np.float64(start[n]["kernel"]) * mask[n]["kernel"], np.float64(start[n]["bias"])] for n in LAYERS
    }
    orders = batches.order(split.train, prepared.lengths, 20, 0, 1, first, len(rates))
    for index, rate in zip(orders, rates, strict=True):
        x = (pixels[index].reshape(20, -1) / 255 - np.float64(split.mean)) / np.float64(split.std)
        inputs = []
        for name in LAYERS:
            inputs.append(x)
            x = x @ weights[name][0] + weights[name][1]
            x = x if name == "output" else np.maximum(x, 0)
        shifted = np.exp(x - x.max(1, keepdims=True))
        delta = shifted / shifted.sum(1, keepdims=True)
        delta[np.arange(20), prepared.dataset.train_labels[index]] -= 1
        delta /= 20
        for name, seen in zip(reversed(LAYERS), reversed(inputs), strict=True):
            kernel, bias = weights[name]
            back = (delta @ kernel.T) * (seen > 0)
            kernel -= rate * (seen.T @ delta) * mask[name]["kernel"]
            bias -= rate * delta.sum(0)
            delta = back
    return weights


def test_arms_from_trained_weights_against_plain_arithmetic(tiny: Make, tmp_path: Path) -> None:
    """Their start, steps, learning rates and batches, and the masks of the chains that they lead."""
    prepared = tiny(
        seeds=(0,),
        rewind=(3,),
        arms=ARMS,
        optim=config.Optim(name="sgd", lr=0.1, momentum=0.0, schedule="steps", milestones=(6, 9)),
    )
    run = open_run(study.run(prepared, tmp_path / "runs"))
    assert not study.plan(prepared, tmp_path / "runs").missing
    rates = [0.1] * 6 + [0.01] * 3 + [0.001] * 3
    dense = run.weights(Cell(0, "dense", 0, "dense"))
    for chain, arm, first, used in (
        ("rewind-3", "finetune", 3, [0.001] * 9),
        ("rewind-3", "lr_rewind", 3, rates[3:]),
        ("lr_rewind_chain-3", "lr_rewind_chain", 3, rates[3:]),
        ("continued-3", "continued", 0, rates),
    ):
        cell = Cell(0, chain, 1, arm)
        expected = by_hand(prepared, dense, run.mask(cell), first, used)
        for name, (kernel, bias) in expected.items():
            got = run.weights(cell)[name]
            np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-4, atol=2e-6)
            np.testing.assert_allclose(got["bias"], bias, rtol=1e-4, atol=2e-6)
        assert (run.results[cell]["start"], run.results[cell]["steps"]) == (first, len(used))
        assert run.results[cell]["made_from"]["origin"] == "seed=0/dense"
    # A chain's second mask is made of its own leader's weights, and its leader starts from them.
    leader, second = Cell(0, "continued-3", 1, "continued"), Cell(0, "continued-3", 2, "continued")
    for name in LAYERS:
        was, left = (run.mask(cell)[name]["kernel"] for cell in (leader, second))
        size = np.where(was, abs(run.weights(leader)[name]["kernel"]), np.inf)
        assert size[was & ~left].max() <= size[left].min()
    task = run.task(prepared, second)
    assert task.held is False
    assert run.task(prepared, Cell(0, "rewind-3", 2, "finetune")).held is True
    kernel = np.where(run.mask(second)["fc1"]["kernel"], run.weights(leader)["fc1"]["kernel"], 0)
    np.testing.assert_array_equal(task.variables.params["fc1"]["kernel"], kernel)
    # Strategy 2 resets the survivors of the same mask to the rewind state.
    reset = run.task(prepared, Cell(0, "continued-3", 2, "continued_reset"))
    expected = np.where(run.mask(second)["fc1"]["kernel"], run.state(0, 3)["fc1"]["kernel"], 0)
    np.testing.assert_array_equal(reset.variables.params["fc1"]["kernel"], expected)
    assert (reset.start, reset.stop) == (3, 12)


def test_statistics_come_from_where_the_weights_come_from(tiny: Make) -> None:
    prepared = tiny(arms=ARMS, rewind=(3,))
    chain = imp.chains(prepared.study, prepared.lengths)[0]
    params = prepared.model.init(imp.key_of(Cell(0, chain.name, 1, "ticket"))).params
    mask = imp.prune.ones(params)
    context = imp.Context(
        imp.key_of(Cell(0, "", 1, "")), lambda key: params, params, params, mask, mask, None
    )
    for arm, source in (
        ("ticket", "at 3"),
        ("reinit", "at 0"),
        ("finetune", "trained"),
        ("lr_rewind", "trained"),
    ):
        cell = Cell(0, chain.name, 1, arm)
        made = imp.task(cell, chain, 12, context, mask, imp.Statistics("at 0", "at 3", "trained"))
        assert made.variables.stats == source


def test_a_leaf_needs_the_chain_that_it_hangs_on() -> None:
    with pytest.raises(
        UserError, match=r"arms: .* must be with 'continued', too, whose chain 'continued_reset'"
    ):
        validate.validate(config.Study(arms=("ticket", "continued_reset")))


def of(cell: Cell, accuracy: float, steps: int, density: float) -> Any:
    return row_of(result(cell) | {"test_accuracy": accuracy, "steps": steps, "density": density})


@pytest.mark.parametrize(
    ("optim", "warmup", "same"),
    [("constant", 0, True), ("constant", 40, True), ("constant", 50, False), ("cosine", 0, False),
     ("steps", 0, False)],
)  # fmt: skip
def test_arms_that_are_the_same_networks_are_said_to_be(optim: str, warmup: int, same: bool) -> None:
    """finetune and lr_rewind differ where the learning rate changes after the rewind step."""
    rows = [of(Cell(0, "rewind-40", 1, arm), 0.9, 60, 0.5) for arm in ("ticket", "finetune", "lr_rewind")]
    lengths = config.Lengths(10, 100, 5, warmup, (60,) if optim == "steps" else (), (40,))
    run: Any = SimpleNamespace(
        rows=rows,
        about={"data": {"test": 10_000}, "lengths": {"total": 100}},
        study=config.Study(optim=config.Optim(schedule=optim)),
        lengths=lengths,
    )
    found = table.load(run)
    assert found is not None
    assert retraining._is_steady(run, found) == same


def test_costs_and_comparisons_by_hand() -> None:
    """T = 100, k = 40: a level costs 60 steps in every chain that starts at 40, 100 in `continued`."""
    rows = [of(Cell(seed, "dense", 0, "dense"), 0.90, 100, 1.0) for seed in range(4)]
    density = {1: 0.5, 2: 0.1, 3: 0.05}
    accuracy = {
        "ticket": (0.92, 0.91, 0.89),
        "finetune": (0.91, 0.88, 0.80),
        "lr_rewind": (0.92, 0.912, 0.90),
    }
    for seed in range(4):
        for level, left in density.items():
            for arm, values in accuracy.items():
                rows.append(of(Cell(seed, "rewind-40", level, arm), values[level - 1] + seed / 1e4, 60, left))
            rows.append(of(Cell(seed, "continued-40", level, "continued"), 0.85, 100, left))
    run: Any = SimpleNamespace(rows=rows, about={"data": {"test": 10_000}, "lengths": {"total": 100}})
    found = table.load(run)
    assert found is not None
    assert [row.steps for row in found.of("rewind-40", "finetune").values()] == [160, 220, 280]
    assert [row.steps for row in found.of("continued-40", "continued").values()] == [200, 300, 400]
    matched = {arm: table.matching(found, "rewind-40", arm) for arm in accuracy}
    assert {arm: row and row.level for arm, row in matched.items()} == {
        "ticket": 2,
        "finetune": 1,
        "lr_rewind": 3,
    }
    assert table.matching(found, "continued-40", "continued") is None
    costs, sparsest = table.shown(found)
    line = next(line for line in costs.rows if line[:2] == ["2", "finetune, from step 40"])
    assert line[2:5] == ["10.0", "220", "2.20"]
    assert str(line[6]).startswith("-3.00 ")
    assert next(line for line in sparsest.rows if line[0] == "continued, from step 0")[1:] == ["–"] * 5
    beats, needs = retraining.findings(run, found)
    assert (beats.outcome, needs.outcome) == ("supported", "supported")
    assert "at 10.0 % of the weights, 2.2 dense trainings" in beats.claim
    assert beats.estimate.startswith("+3.00")
    assert needs.estimate.startswith("+0.20")
    # All learn to the end: longer training may narrow a gap to the arm behind, and widens that of one ahead.
    run.rows = [row._replace(early_stop_step=100) for row in rows]
    beats, needs = retraining.findings(run, found)
    assert beats.beside.startswith("finetune is still learning")
    assert needs.beside == ""
    without = SimpleNamespace(rows=[row for row in rows if row.arm in ("dense", "ticket")], about=run.about)
    assert table.load(without) is None  # type: ignore[arg-type]
