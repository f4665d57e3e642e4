"""Training against a plain second implementation, and changes that must not affect its bits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src import monitoring

from lthjax import batches, config, data, models, optim, prune, rng, study
from lthjax.devices import replicate
from lthjax.models import Variables
from lthjax.training import step as single
from lthjax.training import train
from lthjax.training import trainer as trainer_module
from lthjax.training.job import Job, Trained
from lthjax.training.probe import prepared_segment
from lthjax.training.step import State
from lthjax.training.trainer import Evaluation, Trainer, assemble

Make = Callable[..., study.Prepared]


def trainer_of(prepared: study.Prepared, width: int = 2) -> Trainer:
    seeds = prepared.study.seeds
    mesh = replicate.mesh(width)
    return assemble(
        prepared.model,
        optim.make(prepared.study.optim, prepared.lengths),
        prepared.lengths,
        prepared.dataset,
        {seed: data.split(prepared.dataset, seed, prepared.study.data.validation) for seed in seeds},
        batch=prepared.study.train.batch,
        augment=prepared.study.data.augment,
        mesh=mesh,
        width=width,
    )


def job_of(prepared: study.Prepared, seed: int = 0, density: float = 1.0, **changes: object) -> Job:
    variables = prepared.model.init(rng.stream(seed, "init"))
    mask = prune.magnitude(variables.params, prune.ones(variables.params), 1 - density)
    job = Job(seed, 0, 0, prepared.lengths.total, variables, mask)
    return job._replace(**changes)  # type: ignore[arg-type]


def nothing(steps: int, accuracy: float | None) -> None: ...


def run(trainer: Trainer, *jobs: Job) -> list[Trained]:
    return train.train(trainer, jobs, nothing)


def same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_infinite_test_loss_is_a_divergence() -> None:
    record = train._Record()
    assert record.add_evaluation(10, Evaluation(0.5, 0.9), Evaluation(0.6, 0.8))
    assert not record.add_evaluation(20, Evaluation(0.4, 0.9), Evaluation(math.inf, 0.8))
    assert record.reason == "the test loss was not finite at step 20"
    assert record.curves["step"] == [10]


def test_every_step_and_replicate_drops_units_by_a_stream_of_its_own(tiny: Make) -> None:
    """A network whose logits are its key's own normal numbers, so that a loss says which key it had."""

    def init(key: jax.Array) -> models.Variables:
        return models.Variables({"output": {"kernel": jnp.zeros((2, 2))}}, {})

    def apply(
        params: dict, stats: dict, images: jax.Array, train: bool, key: jax.Array | None = None
    ) -> tuple:
        drawn = jnp.zeros(10) if key is None else jax.random.normal(key, (10,))
        return jnp.broadcast_to(drawn, (len(images), 10)) + 0 * params["output"]["kernel"].sum(), stats

    model = models.Model("coin", (28, 28, 1), 10, init, apply, dropout=True)
    prepared = tiny(train=config.Train(steps=3, batch=20, eval_every=1, log_every=2))._replace(model=model)
    jobs = [job_of(prepared, seed)._replace(level=level) for seed, level in ((0, 0), (0, 2), (1, 0))]
    trainer = trainer_of(prepared, width=4)._replace(log_every=prepared.study.train.log_every)
    for job, trained in zip(jobs, run(trainer, *jobs), strict=True):
        labels = prepared.dataset.train_labels
        split = data.split(prepared.dataset, job.seed, 40).train
        orders = batches.order(split, prepared.lengths, 20, job.seed, job.level, 0, 3)
        for step, index in enumerate(orders):
            key = jax.random.fold_in(rng.stream(job.seed, "dropout", job.level), step)
            logits = np.asarray(jax.random.normal(key, (10,)), np.float64)
            expected = np.log(np.exp(logits).sum()) - logits[labels[index]].mean()
            assert trained.curves["train_loss"][step] == pytest.approx(expected, rel=1e-5)
        assert trained.curves["loss_step"] == [0, 2]
        assert trained.curves["loss"] == [trained.curves["train_loss"][step] for step in (0, 2)]
        # Evaluation has no key.
        np.testing.assert_allclose(trained.curves["test_loss"], np.log(10), rtol=1e-6)


def test_losses_of_single_steps_survive_an_interruption() -> None:
    losses = np.array([0.5, 0.25, 0.125, np.nan, 2.0, 4.0], np.float32)
    whole, first = train._Record(None, 2), train._Record(None, 2)
    whole.add_losses(10, losses)
    first.add_losses(10, losses[:1])
    second = train._Record(first.position(11, {}, 0.0), 2)
    second.add_losses(11, losses[1:])
    for record in (whole, second):
        assert record.curves["loss_step"] == [10, 12], "the loss of step 13 is not finite"
        assert record.curves["loss"] == [0.5, 0.125]
    # Half a curve is none.
    for late in (
        train._Record(train._Record().position(11, {}, 0.0), 3),
        train._Record(first.position(11, {}, 0.0)),
    ):
        late.add_losses(11, losses[1:3])
        assert not {"loss_step", "loss"} & late.curves.keys()
    assert "loss" not in train._Record().curves


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_against_a_plain_loop(tiny: Make, optimiser: str) -> None:
    """The same training with jax.grad, plain optax, numpy batches and products with the mask."""
    rate = {"adam": 1e-3, "sgd": 1e-2}[optimiser]
    prepared = tiny(
        optim=config.Optim(name=optimiser, lr=rate, schedule="cosine", warmup=3)  # type: ignore[arg-type]
    )
    job = job_of(prepared, density=0.3)
    (got,) = run(trainer_of(prepared), job)

    model, dataset = prepared.model, prepared.dataset
    split = data.split(dataset, 0, 40)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0, rate, 3), optax.cosine_decay_schedule(rate, 9)], [3]
    )
    tx = optax.adam(schedule) if optimiser == "adam" else optax.sgd(schedule, momentum=0.9)
    mask = jax.tree.map(lambda m: m.astype(jnp.float32), job.mask)
    params = jax.tree.map(jnp.multiply, job.variables.params, mask)
    state = tx.init(params)

    def images(index: np.ndarray, source: np.ndarray) -> np.ndarray:
        mean, std = split.mean.reshape(1, 1, 1, -1), split.std.reshape(1, 1, 1, -1)
        return (source[index].astype(np.float32) / 255 - mean) / std

    def cross_entropy(params: dict, x: np.ndarray, y: np.ndarray) -> jax.Array:
        logits, _ = model.apply(params, {}, jnp.asarray(x), True)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(y)[:, None], 1).mean()

    losses = []
    for i in range(12):
        epoch, place = divmod(i, 8)
        key = rng.stream(0, "order", 0, epoch)
        index = split.train[np.asarray(jax.random.permutation(key, 160))][20 * place : 20 * place + 20]
        x, y = images(index, dataset.train_images), dataset.train_labels[index]
        loss, gradients = jax.value_and_grad(cross_entropy)(params, x, y)
        updates, state = tx.update(jax.tree.map(jnp.multiply, gradients, mask), state, params)
        params = jax.tree.map(jnp.multiply, optax.apply_updates(params, updates), mask)
        losses.append(float(loss))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got.variables.params, params)
    assert got.curves["step"] == [5, 10, 12]
    means = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    assert got.curves["train_loss"] == pytest.approx(means, rel=1e-4)
    for part, index, source, labels in (
        ("test", np.arange(60), dataset.test_images, dataset.test_labels),
        ("validation", split.validation, dataset.train_images, dataset.train_labels),
    ):
        x, y = images(index, source), labels[index]
        logits, _ = model.apply(params, {}, jnp.asarray(x), False)
        accuracy = float((np.argmax(logits, 1) == y).mean())
        assert got.scalars[f"{part}_accuracy"] == pytest.approx(accuracy)
        assert got.scalars[f"{part}_loss"] == pytest.approx(float(cross_entropy(params, x, y)), rel=1e-4)
    logits, _ = model.apply(params, {}, jnp.asarray(images(split.train, dataset.train_images)), False)
    accuracy = float((np.argmax(logits, 1) == dataset.train_labels[split.train]).mean())
    assert got.scalars["train_accuracy"] == pytest.approx(accuracy)


def test_pruned_weights_are_exactly_zero_and_others_move(tiny: Make) -> None:
    prepared = tiny(optim=config.Optim(weight_decay=0.1))
    job = job_of(prepared, density=0.2)
    (got,) = run(trainer_of(prepared), job)
    for layer in ("fc1", "fc2", "output"):
        kernel, mask = got.variables.params[layer]["kernel"], np.asarray(job.mask[layer]["kernel"])
        assert (kernel[~mask] == 0).all()
        assert (kernel[mask] != np.asarray(job.variables.params[layer]["kernel"])[mask]).mean() > 0.9


def test_neighbours_and_twice_the_same_bits(tiny: Make) -> None:
    prepared = tiny(model="lenet5")
    trainer = trainer_of(prepared)
    one, two = job_of(prepared, 0, 0.5), job_of(prepared, 1)
    together, again, swapped = run(trainer, one, two), run(trainer, one, two), run(trainer, two, one)
    (alone,) = run(trainer, one)
    (narrow,) = run(trainer_of(prepared, 1), one)
    for other in (again[0], swapped[1], alone, narrow):
        same(together[0].variables, other.variables)
        assert together[0].scalars == other.scalars
    same(together[1].variables, swapped[0].variables)


def test_captures_are_states_on_the_way_and_cutting_there_changes_nothing(tiny: Make) -> None:
    prepared = tiny(model="lenet5")
    trainer = trainer_of(prepared)
    job = job_of(prepared)
    (plain,) = run(trainer, job)
    (captured,) = run(trainer, job._replace(captures=(0, 3, 7)))
    same(plain.variables, captured.variables)
    assert plain.curves == captured.curves
    same(captured.states[0], job.variables)
    for step in (3, 7):
        (shorter,) = run(trainer, job._replace(stop=step))
        same(captured.states[step], shorter.variables)


def test_a_long_interval_between_evaluations_is_trained_in_pieces(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is brought to the devices for a segment has a bounded size, and no number changes."""
    prepared = tiny(model="lenet300", train=config.Train(steps=10, batch=20, eval_every=10))
    (whole,) = run(trainer_of(prepared), job_of(prepared))
    sizes = []
    genuine = train._orders

    def orders(*asked: Any) -> Any:
        made = genuine(*asked)
        sizes.append({order.shape for order in made})
        return made

    monkeypatch.setattr(train, "_orders", orders)
    # However slow the machine is, its segments are not cut shorter.
    monkeypatch.setattr(train, "_SEGMENT_SECONDS", 1e9)
    monkeypatch.setattr(trainer_module, "_LONGEST", 4)
    (pieces,) = run(trainer_of(prepared), job_of(prepared))
    assert (len(sizes), set().union(*sizes)) == (3, {(4, 20)})
    same(whole.variables, pieces.variables)
    assert whole.curves == pieces.curves


def test_an_evaluation_interval_longer_than_the_training(tiny: Make) -> None:
    prepared = tiny(train=config.Train(steps=4, batch=20, eval_every=50))
    (got,) = run(trainer_of(prepared), job_of(prepared))
    assert got.curves["step"] == [4]


def test_order_is_a_permutation_an_epoch_and_differs_by_level_and_seed() -> None:
    split = np.arange(100, 165, dtype=np.int32)
    lengths = config.Lengths(6, 50, 10, 0, (), (0,))  # 6 batches of 10 of 65 images
    whole = batches.order(split, lengths, 10, 3, 2, 0, 20)
    for epoch in range(3):
        seen = whole[6 * epoch : 6 * epoch + 6].ravel()
        assert len(set(seen.tolist())) == 60
        assert set(seen.tolist()) <= set(split.tolist())
    assert not np.array_equal(whole[:6], whole[6:12])
    np.testing.assert_array_equal(batches.order(split, lengths, 10, 3, 2, 5, 9), whole[5:14])
    assert not np.array_equal(batches.order(split, lengths, 10, 3, 1, 0, 20), whole)
    assert not np.array_equal(batches.order(split, lengths, 10, 4, 2, 0, 20), whole)


def test_a_start_at_k_takes_the_batches_from_k_on(tiny: Make) -> None:
    """sgd without momentum has no memory: continuing from the state at k is the rest of the training."""
    prepared = tiny(optim=config.Optim(name="sgd", lr=0.05, momentum=0.0, schedule="cosine"))
    trainer = trainer_of(prepared)
    (whole,) = run(trainer, job_of(prepared, captures=(7,)))
    (rest,) = run(trainer, job_of(prepared, start=7, variables=whole.states[7]))
    same(whole.variables, rest.variables)
    assert rest.curves["step"] == [10, 12]


def test_early_stop_is_the_first_lowest_validation_loss() -> None:
    record = train._Record()
    for at, loss in ((10, 3.0), (20, 1.0), (30, 1.0), (40, 2.0)):
        record.add_losses(at - 10, np.ones(10))
        record.add_evaluation(at, Evaluation(loss, 0.5), Evaluation(1.0, at / 100))
    got = record.result(Variables({}, {}), 0.9, 0.8, 1.0)
    assert got.scalars["early_stop_step"] == 20
    assert got.scalars["early_stop_test_accuracy"] == 0.2
    assert got.scalars["test_accuracy"] == 0.4
    assert (got.scalars["train_accuracy"], got.scalars["early_stop_train_accuracy"]) == (0.9, 0.8)


def test_train_accuracy_at_the_early_stop_is_that_of_the_weights_there(tiny: Make) -> None:
    prepared = tiny(
        optim=config.Optim(lr=0.01), train=config.Train(steps=60, batch=20, eval_every=4), seeds=(0,)
    )
    trainer = trainer_of(prepared)
    (got,) = run(trainer, job_of(prepared))
    step = int(got.scalars["early_stop_step"])
    assert step < 60, "this training must have its lowest validation loss before the end"
    (shorter,) = run(trainer, job_of(prepared, stop=step))
    assert got.scalars["early_stop_train_accuracy"] == shorter.scalars["train_accuracy"]
    assert got.scalars["early_stop_test_accuracy"] == shorter.scalars["test_accuracy"]


def test_divergence_ends_one_training_with_its_reason_and_leaves_its_neighbour(tiny: Make) -> None:
    prepared = tiny()
    trainer = trainer_of(prepared)
    bad = job_of(prepared)
    kernel = bad.variables.params["fc1"]["kernel"].at[3, 3].set(jnp.nan)
    params = {**bad.variables.params, "fc1": {**bad.variables.params["fc1"], "kernel": kernel}}
    bad = bad._replace(variables=Variables(params, {}))
    good = job_of(prepared, 1)
    diverged, fine = run(trainer, bad, good)
    assert (diverged.status, diverged.scalars) == ("diverged", {})
    assert diverged.reason == "the training loss was not finite at step 0"
    (alone,) = run(trainer, good)
    same(fine.variables, alone.variables)
    told: list[int] = []
    train.train(trainer, [bad], lambda steps, accuracy: told.append(steps))
    assert sum(told) == 12, "what is not trained for divergence is not waited for"


def test_what_is_recorded_of_a_divergence_does_not_depend_on_the_neighbour(tiny: Make) -> None:
    """Alone, the training run ends with its first segment; beside another one it goes on to the last step."""
    prepared = tiny()
    trainer = trainer_of(prepared)._replace(log_every=1)
    good = job_of(prepared, 1)
    bad = job_of(prepared, captures=(0, 3, 7))
    bad = bad._replace(variables=Variables(jax.tree.map(lambda p: p + jnp.nan, bad.variables.params), {}))
    beside, _ = run(trainer, bad, good)
    (alone,) = run(trainer, bad)
    assert beside.curves == alone.curves
    assert (alone.curves["loss_step"], alone.curves["loss"]) == ([0], [None])
    assert [*beside.states] == [*alone.states] == [0], "no state is kept from which nothing can be trained"


def test_augmentation_changes_training_and_is_reproducible(tiny: Make) -> None:
    prepared = tiny(data=config.Data(name="few", validation=40, augment=True))
    trainer = trainer_of(prepared)
    (one,), (two,) = run(trainer, job_of(prepared)), run(trainer, job_of(prepared))
    same(one.variables, two.variables)
    (plain,) = run(trainer_of(tiny()), job_of(prepared))
    assert not np.array_equal(one.variables.params["fc1"]["kernel"], plain.variables.params["fc1"]["kernel"])


def test_one_training_program_whatever_levels_arms_seeds_and_rewind_points(
    tiny: Make, tmp_path: Path
) -> None:
    traced: list[str] = []

    def listen(event: str, seconds: float, **named: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            traced.append(str(named.get("fun_name")))

    def compiled(**changes: object) -> dict[str, int]:
        traced.clear()
        jax.clear_caches()
        study.run(tiny(**changes), tmp_path / "runs")
        return {name: sum(name in t for t in traced) for name in ("segment", "evaluate")}

    monitoring.register_event_duration_secs_listener(listen)
    try:
        few = compiled(name="a", seeds=(0, 1), levels=1, arms=("ticket",))
        many = compiled(name="b", seeds=(0, 1, 2), levels=2, rewind=(0, 3), repeats=(("reinit", 2),))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    # One to train; one to evaluate validation and test, and one for the train split.
    assert few == many == {"segment": 1, "evaluate": 2}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-5)])
@pytest.mark.parametrize("name", ["lenet5", "small_cnn", "conv2"])
def test_many_steps_as_with_the_builtin_convolution(
    name: str, dtype: type, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast path in a compiled loop, as in training, against plain steps one after another."""
    from lthjax.devices import conv

    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    batch, steps = 4, 200
    # Conv-2's dense layers have 4.2 million weights, and here its convolutions matter.
    narrow = (*models.MODELS["conv2"].network[:2], models.Layer("fc1", 16))
    monkeypatch.setitem(models.MODELS, "conv2", models.MODELS["conv2"]._replace(network=narrow))
    with jax.enable_x64(dtype == np.float64):
        generator = np.random.default_rng(0)
        images = jnp.asarray(generator.normal(size=(steps, batch, *shape)), dtype)
        labels = jnp.asarray(generator.integers(0, 10, (steps, batch)))
        optimiser = optim.make(config.Optim(lr=2e-5), config.Lengths(steps, steps, steps, 0, (), (0,)))
        model = models.build(name, shape, 10)
        params = jax.tree.map(lambda p: p.astype(dtype), model.init(jax.random.key(0)).params)
        mask = prune.magnitude(params, prune.ones(params), 0.5)
        params = prune.apply(params, mask)
        first = State(params, {}, optimiser.at(0).init(params))

        def body(i: jax.Array, state: State) -> State:
            return single.step(model, optimiser, state, mask, (images[i], labels[i]), i)[0]

        fast = jax.jit(lambda state: jax.lax.fori_loop(0, steps, body, state))(first)
        monkeypatch.setattr(conv, "_conv", conv._builtin)
        monkeypatch.setattr(conv, "max_pool", lambda x: nn.max_pool(x, (2, 2), (2, 2)))
        plain, one = first, jax.jit(lambda i, state: body(i, state))
        for i in range(steps):
            plain = one(jnp.int32(i), plain)
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (first.params, fast.params)), strict=True)
    ]
    assert min(moved) > 10 * tolerance
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), fast.params, plain.params
    )


@pytest.mark.parametrize(
    ("precision", "says"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_precision_reaches_every_product(tiny: Make, precision: str, says: str) -> None:
    prepared = tiny(train=config.Train(steps=2, batch=20, precision=precision))  # type: ignore[arg-type]
    trainer = study.make_trainer([prepared], 2, [0])
    text = str(jax.make_jaxpr(prepared_segment(trainer, job_of(prepared)))())
    products = text.count("dot_general[")
    assert products >= 8
    assert text.count(f"precision=(Precision.{says}, Precision.{says})") == products
    # Products of an optimiser have float32 factors, which no rounding reaches.
    muon = study.make_trainer([tiny(optim=config.Optim(name="muon"), train=prepared.study.train)], 2, [0])
    text = str(jax.make_jaxpr(prepared_segment(muon, job_of(prepared)))())
    own = text.count("dot_general[") - products
    assert own > 0
    highest = text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert highest == own + (products if says == "HIGHEST" else 0)
