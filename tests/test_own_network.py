"""A network from a config file, analysed from its run folder: nothing of the file runs unasked."""

import contextlib
import dataclasses
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import about, result
from flax import nnx

from analysis import report
from analysis.analyses import ANALYSES
from analysis.run import Run
from lthjax import cli, config, data, launch, models, study
from lthjax.devices import hosts
from lthjax.errors import UserError
from lthjax.folder import store
from lthjax.imp import Cell
from lthjax.networks import Layer

LAYERS = """
import flax.linen as nn


class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.classes, name="output")(nn.relu(nn.Dense(8, name="fc1")(x)))
"""
CONFIG = """
from layers_beside_it import Net

from lthjax.config import Data, Study, Train
from lthjax.models import MODELS, Entry

MODELS["own"] = Entry(Net, 1, "own")
config = Study(
    name="own", seeds=(0, 1), levels=1, model="own", arms=("ticket",),
    data=Data(name="mnist_10k", validation=1000), train=Train(steps=2, batch=20, eval_every=2),
)
"""


def test_a_config_imports_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "values_beside_it.py").write_text("SEEDS = (3, 4)\n")
    text = (
        "from values_beside_it import SEEDS\nfrom lthjax.config import Study\nconfig = Study(seeds=SEEDS)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    assert config.load(tmp_path / "mine.py").seeds == (3, 4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(text.replace("values_beside_it", "values_of_nobody"))
    with pytest.raises(UserError, match="No module named 'values_of_nobody'"):
        config.load(elsewhere / "mine.py")
    # A config that builds on another, with a dataclass whose annotations are looked up in its module.
    (tmp_path / "wider.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "from lthjax.config import load, replaced\n"
        "base = load(Path(__file__).with_name('mine.py'))\n"
        "@dataclass\nclass More:\n    seed: int = 5\n"
        "import pickle\nassert pickle.loads(pickle.dumps(More())) == More()\n"
        "config = replaced(base, {'seeds': [*base.seeds, More().seed]})\n"
    )
    modules = {*sys.modules}
    assert config.load(tmp_path / "wider.py").seeds == (3, 4, 5)
    assert {*sys.modules} == modules
    (tmp_path / "relative.py").write_text("from .values_beside_it import SEEDS\n")
    with pytest.raises(UserError, match="relative import with no known parent package"):
        config.load(tmp_path / "relative.py")
    refused = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=refused))
    with pytest.raises(UserError, match=r"^--config: '.*mine\.py' cannot be read \(Permission denied\)"):
        config.load(tmp_path / "mine.py")


def test_the_copy_is_of_the_file_as_it_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of two studies that is edited, or gone, as soon as it has been executed."""
    path = tmp_path / "mine.py"
    text = (
        "from lthjax.config import Data, Study, replaced\n"
        "one = Study(levels=0, data=Data(name='mnist_10k'))\n"
        "configs = [one, replaced(one, {'optim.lr': 0.1})]\n"
    )

    def fill(prepared: Any, out: Path, **_: Any) -> None:
        for one in prepared:
            (out / one.folder).mkdir(parents=True)
        raise UserError("stopped")

    told: list[object] = []
    monkeypatch.setattr(study, "fill", fill)
    monkeypatch.setattr(hosts, "program", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(hosts, "alike", lambda value, why: told.append(value))
    for change in (lambda: path.write_text(text + "# edited"), path.unlink):
        path.write_text(text)
        run = tmp_path / f"runs{change.__name__}"
        monkeypatch.setattr(cli, "load_jax", change)
        with pytest.raises(UserError, match="stopped"):
            launch.main(["--config", str(path), "--quiet", "--out", str(run), "--distributed"])
        assert [copy.read_text() for copy in run.glob("*/config.py")] == [text, text]
    assert told == [text.encode()] * 2, "all processes of a program must execute the same"


@pytest.mark.slow
def test_its_run_folder_has_what_an_analysis_needs(
    tmp_path: Path, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layers_beside_it.py").write_text(LAYERS)
    (tmp_path / "mine.py").write_text(CONFIG)
    done = command_line("run.py", "--config", tmp_path / "mine.py", "--quiet", "--out", tmp_path / "runs")
    run = Path(done.stdout.strip()).parent.parent
    assert (run / "config.py").read_text() == CONFIG
    (run / "config.py").write_text(CONFIG + "# changed by hand\n")
    again = command_line("run.py", "--config", tmp_path / "mine.py", "--quiet", "--out", tmp_path / "runs")
    assert again.stdout == done.stdout
    assert f"warning: {run / 'config.py'} is not {tmp_path / 'mine.py'} and stays as it is" in again.stderr
    assert (run / "config.py").read_text().endswith("# changed by hand\n")
    asked = ("-m", "analysis.examples", run, "--quiet")
    refused = command_line(*asked)
    assert refused.returncode == 2
    assert f"--config {run / 'config.py'}" in refused.stderr
    assert "Traceback" not in refused.stderr
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert command_line(*asked, "--config", run / "config.py").returncode == 0
    assert (run / "examples").is_dir()


def test_a_network_that_has_other_shapes_under_its_name_is_refused(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(width: int, norm: bool = False) -> study.Prepared:
        class Own(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
                x = nn.relu(nn.Dense(width, name="fc")(x.reshape(len(x), -1)))
                x = nn.BatchNorm(use_running_average=not train, name="norm")(x) if norm else x
                return nn.Dense(10, name="output")(x)

        monkeypatch.setitem(models.MODELS, "own", models.Entry(lambda classes: Own(), 1, "one of ours"))
        return tiny(model="own", seeds=(0,), levels=0)

    before = network(8)
    run = study.run(before, tmp_path)
    assert not study.plan(network(8), tmp_path).missing
    here = "another 'own' than that of now: fc/bias is 8 there and 6 here; give the study another --name"
    for wider in (network(6), network(6)._replace(study=dataclasses.replace(before.study, seeds=(1,)))):
        with pytest.raises(UserError, match=here):
            study.run(wider, tmp_path)
    with pytest.raises(UserError, match="norm/bias is absent there and 8 here"):
        study.plan(network(8, norm=True), tmp_path)
    # Of a damaged manifest nothing is believed; the next one tells.
    (run / "seed=0" / "state=0" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=here):
        study.plan(network(6), tmp_path)


class Net(nn.Module):
    """A dense layer of the hidden units that a function of them, their number and `train` gives."""

    units: int
    hidden: Callable[..., jax.Array] = lambda net, x, train: x

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.units, name="output")(self.hidden(self, x.reshape(len(x), -1), train))


class Unaware(nn.Module):
    """A network that is called without `train`."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.units)(x.reshape(len(x), -1))


class Unlike(nn.Module):
    """A network whose result is anything but logits [N, classes]."""

    result: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Any:
        return self.result(nn.Dense(10)(x), x)


class Nnx(nnx.Module):
    """The same of NNX, with batch normalisation, perhaps with dropout."""

    def __init__(self, units: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.output = nnx.Linear(64, units, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.output(self.norm(x.reshape(len(x), -1), use_running_average=not train))


class Nothing(nn.Module):
    """A network without parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return x.reshape(len(x), -1)[:, :10]


def always(net: Net, x: jax.Array, train: bool) -> jax.Array:
    return nn.BatchNorm(use_running_average=False)(x)


def noisy(net: Net, x: jax.Array, train: bool) -> jax.Array:
    return x + jax.random.normal(net.make_rng("noise"), x.shape) if train else x


def attended(net: Net, x: jax.Array, train: bool) -> jax.Array:
    return nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)(x[:, None])[:, 0]


def remembered(net: Net, x: jax.Array, train: bool) -> jax.Array:
    net.sow("seen", "x", x)
    return x


def both(net: Net, x: jax.Array, train: bool) -> jax.Array:
    return attended(net, nn.BatchNorm(use_running_average=not train)(x), train)


class Scaled(nn.Module):
    """A matrix that is called scale, which is never pruned."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x[0].size, self.units))
        return x.reshape(len(x), -1) @ scale + self.param("bias", nn.initializers.zeros, (1, self.units))


ASKED = r"an Entry takes a function of the number of classes, .* \(docs/extending\.md\)\.$"
WRONG: dict[str, tuple[Any, str]] = {
    "no train": (models.Entry(Unaware, 1, ""), f"fails with train=False \\(TypeError: .*'train'\\); {ASKED}"),
    "nnx": (models.Entry(Nnx, 1, ""), f"fails for 10 classes \\(TypeError: .*rngs'?\\); {ASKED}"),
    "nnx module": (
        models.Entry(lambda units: Nnx(units, nnx.Rngs(0)), 1, ""),
        f"is of type Nnx for 10 classes; {ASKED}",
    ),
    "function": (
        models.Entry(lambda units: lambda x, train: x, 1, ""),
        f"is of type function for 10 classes; {ASKED}",
    ),
    "instance": (models.Entry(Net(10), 1, ""), f"the Entry of 'own' has a network of type Net; {ASKED}"),
    "name": (models.Entry("Net", 1, ""), f"the Entry of 'own' has a network of type str; {ASKED}"),  # type: ignore[arg-type]
    "no entry": (Net, f"MODELS\\['own'\\] is the class Net, no Entry; {ASKED}"),
    "not flat": (
        models.Entry(lambda _: Unlike(lambda y, x: y), 1, ""),
        r"gives float32 of shape \(2, 8, 8, 10\) for two images; .* shape \(2, 10\), one for each of the 10",
    ),
    "two": (
        models.Entry(lambda _: Unlike(lambda y, x: (y, x)), 1, ""),
        "gives something of type tuple for two",
    ),
    "whole": (
        models.Entry(lambda _: Unlike(lambda y, x: y.sum((1, 2)) > 0), 1, ""),
        r"gives bool of shape \(2, 10\) for two",
    ),
    "one batch": (
        models.Entry(lambda _: Unlike(lambda y, x: y.reshape(1, -1)[:, :10]), 1, ""),
        r"gives float32 of shape \(1, 10\) for two images",
    ),
    "five": (
        models.Entry(lambda _: Net(5), 1, ""),
        r"gives float32 of shape \(2, 5\) .* one for each of the 10",
    ),
    "nothing": (models.Entry(lambda _: Nothing(), 1, ""), "has no parameters; there is nothing to train"),
    "always": (
        models.Entry(lambda units: Net(units, always), 1, ""),
        f"fails with train=False \\(ModifyScopeVariableError: [^:]*is immutable\\); {ASKED}",
    ),
    "noisy": (
        models.Entry(lambda units: Net(units, noisy), 1, ""),
        f"fails with train=True \\(InvalidRngError: .*noise.*\\); {ASKED}",
    ),
    "remembered": (
        models.Entry(lambda units: Net(units, remembered), 1, ""),
        "has statistics whose shapes change in training; they must stay",
    ),
    "unprunable": (
        models.Entry(Scaled, 1, ""),
        r"has no weight that may be pruned; its parameters are bias, scale\. Pruned are .* kernel",
    ),
    "both": (
        models.Entry(lambda units: Net(units, both), 1, ""),
        r"keeps statistics, and drops units by other means than nn\.Dropout, .*; use nn\.Dropout\.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_network_that_cannot_be_trained_is_refused_in_a_sentence(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, says = WRONG[case]
    monkeypatch.setitem(models.MODELS, "own", entry)
    with pytest.raises(UserError, match=f"^model: .*{says}") as caught:
        models.build("own", (8, 8, 1), 10)
    assert "\n" not in str(caught.value)


def by_name(net: Net, x: jax.Array, train: bool) -> jax.Array:
    return nn.Dropout(0.5)(inputs=x, deterministic=not train)


@pytest.mark.parametrize("hidden", [attended, by_name])
def test_dropout_of_every_form_gets_its_keys(
    hidden: Callable[..., jax.Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "own", models.Entry(lambda units: Net(units, hidden), 1, ""))
    model = models.build("own", (8, 8, 1), 10)
    assert model.dropout
    params, images = model.init(jax.random.key(0)).params, jnp.ones((2, 8, 8, 1))
    calm, wild = (model.apply(params, {}, images, True, key)[0] for key in (None, jax.random.key(1)))
    np.testing.assert_array_equal(calm, model.apply(params, {}, images, False)[0])
    assert (calm != wild).any()


def test_a_network_of_nnx_through_its_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    bridged = models.Entry(lambda units: nnx.bridge.to_linen(Nnx, units), 1, "")
    monkeypatch.setitem(models.MODELS, "own", bridged)
    model = models.build("own", (8, 8, 1), 10)
    params, stats = model.init(jax.random.key(0))
    images = 3 + jax.random.normal(jax.random.key(1), (20, 8, 8, 1))
    logits, after = jax.jit(lambda *of: model.apply(*of, True))(params, stats, images)
    assert logits.shape == (20, 10)
    assert jax.tree.structure(after) == jax.tree.structure(stats)
    fitted = models.statistics(model, params, stats, images[None])
    seen = {leaf.shape: 0 for leaf in jax.tree.leaves(fitted)}
    assert seen.keys() == {(64,)}
    flat = np.asarray(images).reshape(20, -1)
    expected = sorted((float(flat.mean(0)[0]), float(flat.var(0)[0])))
    np.testing.assert_allclose(
        sorted(float(leaf[0]) for leaf in jax.tree.leaves(fitted)), expected, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("own", "needed"),
    [({}, False), ({"model": "own"}, True), ({"arms": ("ticket", "own")}, True),
     ({"optim": config.Optim(name="own")}, True), ({"prune": config.Prune(criterion="own")}, True),
     ({"init": "own"}, True), ({"name": "own"}, True)],
)  # fmt: skip
def test_commands_that_test_a_claim_load_the_rows_of_the_runs_config(
    own: dict[str, Any], needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(0, "rewind-0", 1, "ticket")
    monkeypatch.setitem(data.SOURCES, "own", data.SOURCES["mnist"])
    with store.Store(tmp_path, about(**own)) as writing:
        writing.write(cell, result(cell), {"fc": {"kernel": np.ones((3, 2), bool)}}, None)

    def commands(name: str) -> list[str]:
        claims, _, _ = report._part(ANALYSES[name], Run(tmp_path))
        return [where for one in claims if (where := str(one.where))]

    for name in ("savings", "geography", "predict", "landscape", "stability", "forgetting", "earlybird",
                 "transfer"):  # fmt: skip
        plain = commands(name)
        assert plain
        (tmp_path / "config.py").write_text("")
        with_config = f" --config {tmp_path / 'config.py'}" if needed else ""
        assert commands(name) == [f"{command}{with_config}" for command in plain], name
        (tmp_path / "config.py").unlink()
    # A Flax module is not timed, and which of its layers share units is not known: no command helps.
    for network, helps in (((Layer("fc1", 3),), True), (Net, False)):
        monkeypatch.setitem(models.MODELS, "own", models.Entry(network, 1, "own"))
        counts = [len(commands(name)) for name in ("savings", "geography")]
        assert counts == ([2, 5] if helps or "model" not in own else [1, 0])
