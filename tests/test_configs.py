"""Every shipped config builds and runs two steps."""

import ast
import dataclasses
import itertools
from pathlib import Path

import pytest
from conftest import ROOT, arrays, write_npz

from lthjax import config, durations, imp, models, prune, rng, study, validate
from lthjax.training import train
from lthjax.training.job import Job

# Images for train and validation.
IMAGES = {"mnist_10k": 10_000, "mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}
SHAPES = {name: (32, 32, 3) if "cifar" in name else (28, 28, 1) for name in IMAGES}
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Frankle & Carbin 2019, figure 2: model, steps, learning rate, pruning rate of the convolutions
PAPER = {
    "lenet300_mnist_paper": ("lenet300", 50_000, 1.2e-3, None),
    "conv2_cifar_paper": ("conv2", 20_000, 2e-4, 0.1),
    "conv4_cifar_paper": ("conv4", 25_000, 3e-4, 0.1),
    "conv6_cifar_paper": ("conv6", 30_000, 3e-4, 0.15),
}


def test_all_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"quickstart", "lenet5_mnist", "cifar_cnn", "rates_lenet5", *PAPER}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_durations_and_densities(path: Path) -> None:
    """Of every study, with as many images as its data set has: every level has fewer weights."""
    for one in config.load_all(path):
        validate.validate(one)
        durations.lengths(one, IMAGES[one.data.name] - one.data.validation)
        densities = imp.planned(one, models.build(one.model, SHAPES[one.data.name], 10))
        assert densities is not None
        assert len(densities) == one.levels > 0
        assert all(0 < after < before for before, after in itertools.pairwise([1, *densities]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds_and_runs_two_steps(path: Path, tmp_path: Path) -> None:
    loaded, *others = config.load_all(path)
    assert {study.name for study in (loaded, *others)} == {path.stem}
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    for part in (f"python run.py --config configs/{path.name}", "Time:", "Result:"):
        assert part in docstring
    shape = SHAPES[loaded.data.name]
    # As many rows of images for train as for validation and test: the evaluation is compiled once.
    write_npz(tmp_path, loaded.data.name, **arrays(train=250, shape=shape))
    small = dataclasses.replace(
        loaded,
        data=dataclasses.replace(loaded.data, validation=100),
        train=dataclasses.replace(loaded.train, steps=2, eval_every=2),
        optim=dataclasses.replace(loaded.optim, milestones=(1,) if loaded.optim.milestones else ()),
        rewind=(0,),
    )
    prepared = study.prepare(small, tmp_path)
    seed = small.seeds[0]
    trainer = study.make_trainer([prepared], 1, [seed])
    variables = prepared.model.init(rng.stream(seed, "init"))
    job = Job(seed, 0, 0, 2, variables, prune.ones(variables.params))
    results = train.train(trainer, [job], lambda *_: None)
    assert results[0].status == "done"


def test_rates_reach_the_densities_that_they_name() -> None:
    """Ten to sixty per cent per round end at 5.5 % or less; one-shot reaches densities of 20 % per round."""
    studies = config.load_all(ROOT / "configs" / "rates_lenet5.py")
    for scope in ("layer", "global"):
        own = [study for study in studies if study.prune.scope == scope]
        rounds = {s.prune.rate: (1 - s.prune.rate) ** s.levels for s in own if s.prune.density is None}  # type: ignore[operator]
        assert sorted(rounds) == [0.1, 0.2, 0.4, 0.6]
        assert all(0.02 < density <= 0.0551 for density in rounds.values())
        shots = [s for s in own if s.prune.density is not None]
        assert all(s.levels == 1 for s in shots)
        assert [s.prune.density for s in shots] == [round(0.8**level, 4) for level in (3, 6, 9, 13)]
        assert len(own) == len(rounds) + len(shots)


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_have_the_papers_numbers(name: str) -> None:
    model, steps, rate, convolutions = PAPER[name]
    got = config.load(ROOT / "configs" / f"{name}.py")
    assert (got.model, got.train.steps, got.train.batch, got.train.eval_every) == (model, steps, 60, 100)
    assert (got.optim.name, got.optim.lr, got.optim.schedule) == ("adam", rate, "constant")
    assert (len(got.seeds), got.repeats, got.rewind) == (5, (("reinit", 3),), (0,))
    assert (got.data.validation, got.prune.criterion, got.prune.scope) == (5000, "large_final", "layer")
    shape = (28, 28, 1) if model == "lenet300" else (32, 32, 3)
    paths = [p for p in _paths(model, shape) if p.endswith("kernel")]
    rates = dict(zip(paths, prune.rates_of(got.prune.rate, paths), strict=True))
    expected = {"conv": convolutions, "fc": 0.2, "output": 0.1}
    for path, of_path in rates.items():
        assert of_path == next(r for layer, r in expected.items() if path.startswith(layer))


def _paths(model: str, shape: tuple[int, int, int]) -> list[str]:
    import jax

    built = models.build(model, shape, 10)
    return prune.paths(jax.eval_shape(built.init, jax.random.key(0)).params)


def test_published_densities_follow_from_counts_and_rates() -> None:
    """Ten rounds of the paper's rates leave 1/9.1 (Conv-2), 1/7.5 (Conv-4), 1/6.5 (Conv-6)."""
    import jax
    import jax.numpy as jnp

    for name, saved in (("conv2", 9.1), ("conv4", 7.5), ("conv6", 6.5)):
        got = config.load(ROOT / "configs" / f"{name}_cifar_paper.py")
        built = models.build(name, (32, 32, 3), 10)
        params = jax.eval_shape(built.init, jax.random.key(0)).params
        left = total = 0
        for path, leaf in zip(prune.paths(params), jax.tree.leaves(params), strict=True):
            if path.endswith("kernel"):
                n = leaf.size
                total += n
                for _ in range(10):
                    n -= int(prune.count(prune.rates_of(got.prune.rate, [path])[0], jnp.int32(n)))
                left += n
        assert total / left == pytest.approx(saved, abs=0.06)


def test_residual_paper_config_prunes_convolutions_alone() -> None:
    got = config.load(ROOT / "configs" / "resnet20_cifar_paper.py")
    paths = [path for path in _paths(got.model, (32, 32, 3)) if path.endswith("kernel")]
    rates = dict(zip(paths, prune.rates_of(got.prune.rate, paths), strict=True))
    left_alone = {path for path, rate in rates.items() if not rate}
    assert left_alone == {"output/kernel", "stage2_block1/shortcut/kernel", "stage3_block1/shortcut/kernel"}
    assert (got.prune.scope, got.init) == ("group", "kaiming_uniform_scale")
