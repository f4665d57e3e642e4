"""Code for GPUs and TPUs, as far as a CPU can test it: replicates together, programs that lower."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lthjax import config, models, optim, prune, rng, study
from lthjax.devices import replicate
from lthjax.training import train
from lthjax.training.job import Job
from lthjax.training.probe import prepared_segment
from lthjax.training.step import State, step

Make = Callable[..., study.Prepared]
# Tolerance between replicates trained together and alone, for weights of order 0.1.
TOLERANCE = 1e-5


@pytest.mark.parametrize(("model", "units"), [("lenet300", 300), ("lenet5", 120)])
def test_replicates_together_give_what_each_gives_alone(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, model: str, units: int
) -> None:
    """Compares two or more replicates per device under vmap with one replicate at a time."""
    prepared = tiny(
        model=model,
        seeds=(0, 1, 2, 3),
        optim=config.Optim(name="sgd", lr=0.01),
        train=config.Train(steps=6, batch=20, eval_every=3),
    )
    jobs = []
    for seed in prepared.study.seeds:
        variables = prepared.model.init(rng.stream(seed, "init"))
        mask = prune.magnitude(variables.params, prune.ones(variables.params), 0.2 * (seed + 1))
        jobs.append(Job(seed, 0, 0, prepared.lengths.total, variables, mask))
    alone = train.train(study.make_trainer([prepared], 4, prepared.study.seeds), jobs, lambda *_: None)
    monkeypatch.setattr(replicate, "one_by_one", lambda mesh: False)
    trainer = study.make_trainer([prepared], 4, prepared.study.seeds)
    text = str(jax.make_jaxpr(prepared_segment(trainer, jobs[0]))())
    assert f"f32[{4 // trainer.mesh.devices.size},20,{units}]" in text, "all of a device's in one product"
    together = train.train(trainer, jobs, lambda *_: None)
    for job, one, other in zip(jobs, together, alone, strict=True):
        compare = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
        jax.tree.map(compare, one.variables, other.variables)
        assert one.curves["step"] == other.curves["step"]
        np.testing.assert_allclose(one.curves["test_loss"], other.curves["test_loss"], rtol=1e-4)
        kept = zip(jax.tree.leaves(one.variables.params), jax.tree.leaves(job.mask), strict=True)
        assert all(not np.any(w[~m]) for w, m in kept if m.ndim)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("model", ["lenet300", "lenet5", "small_cnn", "conv2", "resnet8"])
def test_steps_of_replicates_together_lower(model: str, platform: str) -> None:
    """The program for that platform has the form that is meant for it, and none of the CPU's."""
    shape = (28, 28, 1) if model.startswith("lenet") else (32, 32, 3)
    built = models.build(model, shape, 10)
    optimiser = optim.make(config.Optim(), config.Lengths(10, 10, 10, 0, (), (0,)))

    def steps(variables: models.Variables, mask: Any, images: jax.Array, labels: jax.Array) -> Any:
        state = State(*variables, optimiser.at(0).init(variables.params))

        def body(i: jax.Array, state: State) -> State:
            return step(built, optimiser, state, mask, (images, labels), i)[0]

        return jax.lax.fori_loop(0, 3, body, state)

    variables = jax.eval_shape(built.init, jax.random.key(0))
    mask = jax.eval_shape(prune.ones, variables.params)
    batch = (jnp.zeros((60, *shape)), jnp.zeros(60, jnp.int32))
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), (variables, mask, *batch))
    program = export.export(jax.jit(jax.vmap(steps)), platforms=[platform])(*several)
    text = program.mlir_module()
    groups = text.count("feature_group_count = 5 : i64") + text.count("batch_group_count = 5 : i64")
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables.params) if leaf.ndim == 4]
    assert program.platforms == (platform,)
    if platform == "cuda":
        # Convolutions of few channels are products there.
        assert bool(groups) == any(max(shape[2:]) > 32 for shape in kernels)
        kernels = []
    # Forward, input and weight gradient of every convolution but the first, which needs no input gradient.
    assert groups >= 3 * len(kernels) - 1
    assert "optimization_barrier" not in text, "the CPU's own form"
