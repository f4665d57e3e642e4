"""JAX's settings change no number of a study; settings that cannot be pinned are recorded and reported."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import load, open_run
from analysis.report import facts
from lthjax import config, prune, record, rng, settings, study
from lthjax.devices import replicate
from lthjax.folder.reader import Reader
from lthjax.folder.verified import read_study
from lthjax.training import train
from lthjax.training.job import Job

Make = Callable[..., study.Prepared]
# Other values for all pinned settings, except the default device, which is an index here.
OTHER: dict[str, Any] = {
    "eager_constant_folding": True,
    "jax_debug_infs": True,
    "jax_debug_nans": True,
    "jax_default_matmul_precision": "bfloat16",
    "jax_default_prng_impl": "rbg",
    "jax_disable_jit": True,
    "jax_disable_most_optimizations": True,
    "jax_enable_x64": True,
    "jax_exec_time_optimization_effort": 0.5,
    "jax_memory_fitting_effort": 0.5,
    "jax_numpy_dtype_promotion": "strict",
    "jax_optimization_level": "O1",
    "jax_random_seed_offset": 5,
    "jax_threefry_partitionable": False,
    "jax_use_direct_linearize": False,
}
# Draws of every kind: split, order, augmentation, fresh weights, masks; and scores that are products.
FIELDS: dict[str, Any] = {
    "seeds": (0,),
    "levels": 1,
    "arms": ("reinit", "random", "reshuffle"),
    "data": config.Data(name="few", validation=40, augment=True),
    "prune": config.Prune(criterion="snip"),
    "train": config.Train(steps=6, batch=20, eval_every=5),
}
SUBPROCESS = """
import pathlib, pickle, sys
from lthjax.devices import replicate
replicate.use_all_cores()
import jax
jax.config.update("jax_numpy_rank_promotion", "raise")
from tests.test_settings import FIELDS, numbers
from lthjax import config, study
folder = pathlib.Path(sys.argv[1])
made = study.prepare(config.Study(name="tiny", model="lenet300", **FIELDS), folder / "data")
(folder / "numbers").write_bytes(pickle.dumps(numbers(made, folder / "there")))
"""


@pytest.fixture
def others() -> Iterator[None]:
    """Sets all pinned settings to other values."""
    wanted = {**OTHER, "jax_default_device": jax.devices()[-1]}
    before = {name: jax.config.values[name] for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def numbers(prepared: study.Prepared, out: Path) -> dict[str, Any]:
    """Trains a study; returns the rows of cells.csv without seconds, and all bytes of masks and weights."""
    run = study.run(prepared, out)
    rows = [row._replace(seconds=0.0) for row in load(run)]
    found: dict[str, Any] = {"rows": [tuple(row) for row in rows]}
    store = Reader(run)
    for cell in study.plan(prepared, out).cells:
        kept = store.mask(cell), store.variables(cell)
        found[str(cell)] = [(leaf.dtype.str, leaf.tobytes()) for leaf in jax.tree.leaves(kept)]
    return found


def test_no_setting_changes_a_bit(
    tiny: Make, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares with the default's numbers; settings are set in the process and in the environment."""
    usual = numbers(tiny(**FIELDS), tmp_path / "usual")
    assert len(usual["rows"]) == 5
    assert all(row[-1] == "done" for row in usual["rows"])
    for name, value in OTHER.items():
        monkeypatch.setenv(name.upper(), str(value))
    subprocess.run(
        [sys.executable, "-c", SUBPROCESS, tmp_path], check=True, timeout=300, env=dict(os.environ)
    )
    assert pickle.loads((tmp_path / "numbers").read_bytes()) == usual
    request.getfixturevalue("others")
    assert numbers(tiny(**FIELDS), tmp_path / "other") == usual


def test_others_are_other(others: None) -> None:
    """Each setting takes effect without the pins, not with them, and again afterwards."""
    key = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")
    bare = np.asarray(jax.random.permutation(key, 50))
    assert OTHER.keys() | {"jax_default_device"} == settings.PINNED.keys()
    assert not any(_now(name) == value for name, value in settings.PINNED.items())
    with settings.pinned():
        assert all(_now(name) == value for name, value in settings.PINNED.items())
        pinned = np.asarray(jax.random.permutation(key, 50))
        # Code inside may set its own value.
        with jax.enable_x64(True):
            assert jnp.arange(2.0).dtype == np.float64
    assert not any(_now(name) == value for name, value in settings.PINNED.items())
    assert np.any(bare != pinned)
    assert bare.dtype == np.int64
    assert pinned.dtype == np.int32


def _now(name: str) -> Any:
    return getattr(jax.config, name, jax.config.values[name])


def test_an_error_leaves_the_settings_as_they_were(others: None) -> None:
    with pytest.raises(ZeroDivisionError), settings.pinned():
        _ = 1 / 0
    assert all(_now(name) == value for name, value in OTHER.items())


def test_pruning_heeds_the_callers_settings() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.array([1.0, 1.0 + 1e-12, 3.0])}
        mask = prune.magnitude(params, {"w": jnp.ones(3, bool)}, 1 / 3)
    assert mask["w"].tolist() == [False, True, True]


def test_neither_chunk_nor_devices_change_a_bit(tiny: Make) -> None:
    """As many devices as cores or one; replicates one after another or side by side."""
    prepared = tiny(seeds=(0, 1, 2), levels=1, train=config.Train(steps=3, batch=20, eval_every=2))
    jobs = []
    for seed in prepared.study.seeds:
        variables = jax.device_get(prepared.model.init(rng.stream(seed, "init")))
        jobs.append(Job(seed, 0, 0, prepared.lengths.total, variables, prune.ones(variables.params)))
    found = []
    for devices, chunk in ((replicate.cores(), 3), (1, 1), (1, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replicate, "mesh", lambda _, n=devices, mesh=replicate.mesh: mesh(n))
            trainer = study.make_trainer([prepared], chunk, prepared.study.seeds)
        assert trainer.mesh.devices.size == devices
        parts = [jobs[i : i + trainer.width] for i in range(0, len(jobs), trainer.width)]
        results = [one for part in parts for one in train.train(trainer, part, lambda *_: None)]
        found.append([one._replace(seconds=0.0) for one in results])
    bits = [pickle.dumps(jax.device_get(one)) for one in found]
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_streams_are_those_of_jax(seed: int) -> None:
    """The stream is a folded key of the seed, whatever the offset."""
    expected = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 3329549428)
    before = jax.config.values["jax_random_seed_offset"]
    jax.config.update("jax_random_seed_offset", 3)
    try:
        key = rng.stream(seed, "init")
    finally:
        jax.config.update("jax_random_seed_offset", before)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(expected).tolist()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ""),
        ({"XLA_FLAGS": "--xla_dump_to=/x --xla_force_host_platform_device_count=8"}, ""),
        ({"XLA_FLAGS": "--xla_b=1 --xla_a=2"}, ", XLA_FLAGS=--xla_a=2 --xla_b=1"),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, ", NVIDIA_TF32_OVERRIDE=0"),
    ],
)
def test_what_cannot_be_pinned_is_said(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads = max(replicate.cores(), len(jax.devices()))
    assert settings.environment() == f"{threads} CPU threads{words}"
    monkeypatch.setenv("NPROC", "50")
    assert settings.environment() == f"50 CPU threads{words}"


def test_a_folder_that_goes_on_otherwise_says_so_in_a_line(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = tiny(seeds=(0,), levels=1, arms=(), train=config.Train(steps=2, batch=20, eval_every=2))
    run = study.run(prepared, tmp_path)
    begun = settings.environment()
    assert read_study(run)["environment"] == [begun]
    more = prepared._replace(study=config.replaced(prepared.study, {"levels": 2}))
    record.warn_of_environment(run)
    assert not caplog.messages
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=true")
    study.run(more, tmp_path)
    now = f"{begun}, XLA_FLAGS=--xla_some_flag=true"
    said = f"{run}: begun with {begun}, it goes on with {now}; numbers may differ by rounding."
    assert caplog.messages == [said]
    assert read_study(run)["environment"] == [begun, now]
    # Who filled it before is known, too; the same is said once.
    before = read_study(run)
    assert "earlier" not in before
    monkeypatch.setattr(record, "_git_commit", lambda: "another")
    for levels in (3, 4):
        study.run(more._replace(study=config.replaced(prepared.study, {"levels": levels})), tmp_path)
    there = read_study(run)
    assert there["git"] == "another"
    (made,) = there["earlier"]
    assert made.startswith(f"{before['devices']}; python {before['versions']['python']}, ")
    assert made.endswith(f"; commit {before['git'] or 'not known'}")
    assert ("Filled before by", made) in facts.of_run(open_run(run))
    # Folders older than this record have none.
    about = read_study(run)
    del about["environment"]
    (run / "study.json").write_text(json.dumps(about))
    record.warn_of_environment(run)
    assert caplog.messages == [said]
