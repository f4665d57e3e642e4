"""Runs the snippets of extending.md, pruning.md and interop.md in docs/ unchanged, outside the package."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT

from analysis import load, record, report
from analysis.analyses import ANALYSES
from lthjax import config, data, launch, models, prune, rng, study
from lthjax.arms import ARMS
from lthjax.criteria import CRITERIA
from lthjax.data import SOURCES
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell
from lthjax.models import MODELS
from lthjax.optim import OPTIMISERS, SCHEDULES
from lthjax.training import train
from lthjax.training.job import Job, Trained
from lthjax.training.trainer import Trainer

ARGUMENTS = ["--config", "mine.py", "--quiet", "--train.steps", "20", "--train.eval-every", "10"]
ARGUMENTS += ["--levels", "2", "--arms", "ticket", "mine", "--rewind", "5"]


def snippets(page: str, title: str = "") -> list[str]:
    """The Python snippets of a page; only those with the title if one is given."""
    head = f' title="{title}"' if title else ""
    return re.findall(rf"^```python{head}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.S | re.M)


@pytest.fixture
def tables() -> Iterator[tuple[dict[str, Any], ...]]:
    """The tables; they are restored afterwards."""
    known: tuple[dict[str, Any], ...] = (ARMS, CRITERIA, MODELS, OPTIMISERS, SCHEDULES, SOURCES)
    before = [dict(table) for table in known]
    yield known
    for table, rows in zip(known, before, strict=True):
        table.clear()
        table.update(rows)


def test_the_snippets_are_short() -> None:
    own, made = snippets("extending.md", "mine.py"), snippets("extending.md", "make_data.py")
    assert (len(own), len(made)) == (6, 1)
    assert max(sum(bool(line.strip()) for line in snippet.splitlines()) for snippet in own + made) <= 11


def test_own_data_network_criterion_and_arm_make_a_study(
    tables: tuple[dict[str, Any], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(snippets("extending.md", "make_data.py")[0], {})
    Path("mine.py").write_text("\n".join(snippets("extending.md", "mine.py")))
    jobs: list[Job] = []
    genuine = train.train

    def noted(trainer: Trainer, some: list[Job], *others: Any) -> list[Trained]:
        jobs.extend(some)
        return genuine(trainer, some, *others)

    monkeypatch.setattr(train, "train", noted)
    launch.main(ARGUMENTS)
    page = Path(capsys.readouterr().out.strip())
    folder = page.parent.parent
    # Dense, and at two levels ticket and mine.
    assert [(row.level, row.arm) for row in load(folder)] == [
        (0, DENSE), (1, "mine"), (1, "ticket"), (2, "mine"), (2, "ticket"),
    ]  # fmt: skip
    assert len(jobs) == 5

    loaded = config.load("mine.py")
    assert (loaded.model, loaded.prune.criterion, loaded.data.name) == ("mine", "mine", "mine")
    prepared = study.prepare(launch.parse(ARGUMENTS)[0].study)
    assert (prepared.dataset.classes, len(prepared.dataset.train_images)) == (2, 2000)
    store = Reader(folder)
    initial = jax.device_get(prepared.model.init(rng.stream(0, "init")))
    assert {p: w.shape for p, w in zip(prune.paths(initial.params), jax.tree.leaves(initial.params),
                                       strict=True) if w.ndim > 1} == {
        "fc1/kernel": (784, 32), "output/kernel": (32, 2),
    }  # fmt: skip

    # The optimiser: a step moves every weight by the learning rate, or 0.003, times its sign.
    trainer = study.make_trainer([prepared], None, [0])
    (one,) = genuine(trainer, [jobs[0]._replace(stop=1, captures=())], lambda *_: None)
    layer = one.variables.params["fc1"]["kernel"]
    first = np.abs(layer - jobs[0].variables.params["fc1"]["kernel"])
    np.testing.assert_allclose(first[first > 1e-5], 3e-3, rtol=1e-2)

    # The source: what it gives is a data set, and a file from then on.
    halves = data.load("halves")
    assert (halves.classes, halves.source) == (2, "digits below five or not")
    assert data.load("halves").source == "data/halves.npz"
    assert halves.digest == data.load("halves").digest

    # The criterion: 20 % (10 % of the output layer) of the lowest sign(origin) * final are gone.
    origin = store.state(0, 5).params
    final = store.variables(Cell(0, DENSE, 0, DENSE)).params
    ticket = Cell(0, "rewind-5", 1, "ticket")
    mask = store.mask(ticket)
    for layer, going in (("fc1", 5018), ("output", 6)):
        scores = (np.sign(origin[layer]["kernel"]) * final[layer]["kernel"]).ravel()
        kept = np.ones(scores.size, bool)
        kept[np.argsort(scores, kind="stable")[:going]] = False
        np.testing.assert_array_equal(mask[layer]["kernel"].ravel(), kept)

    magnitude = prune.magnitude(final, prune.ones(final), 0.2)["fc1"]["kernel"]
    assert (magnitude != mask["fc1"]["kernel"]).any()

    # The arm: the ticket's mask and magnitudes, about half of the signs turned, biases as they were.
    (job,) = [job for job in jobs if job.level == 1 and not starts_at(origin, job)]
    start = job.variables.params
    jax.tree.map(np.testing.assert_array_equal, job.mask, mask)
    ours, theirs = start["fc1"]["kernel"], origin["fc1"]["kernel"] * mask["fc1"]["kernel"]
    np.testing.assert_array_equal(np.abs(ours), np.abs(theirs))
    turned = (np.sign(ours) != np.sign(theirs))[mask["fc1"]["kernel"]].mean()
    assert 0.45 < turned < 0.55
    np.testing.assert_array_equal(start["fc1"]["bias"], origin["fc1"]["bias"])

    # A cell of it is exported where its row is known; the others always.
    row = ARMS.pop("mine")
    asked = ("-m", "analysis.export", folder.resolve(), tmp_path / "t.safetensors", "--level", 1, "--arm")
    refused = command(*asked, "mine")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    unasked = "which is code and is not run unasked"
    assert f"the arm 'mine' is a row of a config file, {unasked}" in refused.stderr
    moving = ("-m", "analysis.transfer", "--from", folder.resolve(), "--to", folder.resolve())
    refused = command(*moving)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"the arm 'mine' is a row of a config file, {unasked}" in refused.stderr
    network = MODELS.pop("mine")
    refused = command(*moving)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"the network 'mine' is a row of a config file, {unasked}" in refused.stderr
    MODELS["mine"] = network
    alone = command(*moving, "--config", tmp_path / "mine.py", "--data-dir", tmp_path / "data")
    assert "--pairs: other leaves nothing to move" in alone.stderr  # it has one seed; all rows are known
    ARMS.pop("mine")
    for arm, more, starts in (("ticket", (), True), ("mine", ("--config", tmp_path / "mine.py"), False)):
        done = command(*asked, arm, *more)
        assert done.returncode == 0, done.stderr
        assert (prune.load(tmp_path / "t.safetensors").origin is not None) == starts
    ARMS["mine"] = row

    # Again: nothing is trained. Where the file is not loaded, its arm is still in the report.
    launch.main(ARGUMENTS)
    assert len(jobs) == 5
    for table in tables[:3]:
        del table["mine"]
    written = page.read_text()
    assert "<th>mine</th>" in written
    page.unlink()
    assert "<th>mine</th>" in report.build(folder).read_text()


def starts_at(origin: Any, job: Job) -> bool:
    """Whether a training run starts at the origin under its own mask."""
    start, kept = job.variables.params["fc1"]["kernel"], job.mask["fc1"]["kernel"]
    return bool((start == origin["fc1"]["kernel"] * kept).all())


def test_the_page_on_own_models_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    got: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):
        exec("\n".join(snippets("pruning.md")), got)
    # Twice a fifth: 256 - 51 - 41 and 96 - 19 - 15 weights are left, of every library's network.
    for library in ("", "linen_", "nnx_", "haiku_", "eqx_"):
        mask, ticket, origin = (got[library + name] for name in ("mask", "ticket", "origin"))
        left = sorted(int(m.sum()) for m in jax.tree.leaves(mask) if m.ndim)
        assert left == [62, 164], library
        for m, t, o in zip(*map(jax.tree.leaves, (mask, ticket, origin)), strict=True):
            np.testing.assert_array_equal(t, np.where(m, o, 0))
    out = capsys.readouterr().out
    assert "226" in out
    assert "Overlap(iou=" in out

    def left_of(name: str) -> list[int]:
        return [int(got[name][layer]["w"].sum()) for layer in ("hidden", "output")]

    assert left_of("by_layer") == [205, 86]
    assert sum(left_of("over_all")) == 282
    assert left_of("units") == [8 * 24, 96]
    assert left_of("pattern") == [128, 48]
    assert left_of("no_output") == [256, 1]
    assert sum(left_of("by_score")) == 35
    assert left_of("shuffled") == [164, 62]
    assert sum(left_of("erk")) == 226
    loaded = got["loaded"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, got["ticket"])
    jax.tree.map(np.testing.assert_array_equal, loaded.mask, got["mask"])
    jax.tree.map(np.testing.assert_array_equal, loaded.origin, got["origin"])
    arrays = (got["model"].layers[0].kernel[...], got["nnx_ticket"]["layers"][0]["kernel"][...])
    np.testing.assert_array_equal(*arrays)
    trained = got["trained"].layers[0].kernel[...]
    kept = got["nnx_mask"]["layers"][0]["kernel"][...]
    assert ((np.asarray(trained) != np.asarray(arrays[0])) == np.asarray(kept)).all()
    # Once more a fifth, twice: of 256 and 96; and by the schedule a tenth.
    masks = prune.mask_of(got["optimizer"].opt_state)
    assert sorted(int(m.sum()) for m in jax.tree.leaves(masks) if m.ndim) == [62, 164]
    assert [int((got["sparse"][layer]["w"] != 0).sum()) for layer in ("hidden", "output")] == [26, 10]
    assert [m.ndim for m in jax.tree.leaves(got["without"])] == [0, 0, 2]
    assert [m.ndim for m in jax.tree.leaves(got["with_embedding"])] == [2, 0, 2]


def test_the_page_on_other_libraries_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):
        exec("\n".join(snippets("interop.md")), got)
    results = {name: f"{name}_mask" for name in ("plain", "nnx", "linen", "eqx", "haiku", "low")}
    results |= dict.fromkeys(("ema", "multi", "free"), "plain_mask")
    for name, own in results.items():
        params, mask = jax.tree.leaves(got[f"{name}_params"]), jax.tree.leaves(got[own])
        # Half of 8 x 16 and of 16 x 3 weights, whatever the library calls them; the others have moved from 0.
        assert sorted(m.size for m in mask if m.ndim) == [48, 128], name
        for p, m in zip(params, mask, strict=True):
            if m.ndim:
                np.testing.assert_array_equal(np.asarray(p) != 0, np.asarray(m), err_msg=name)
                assert int(m.sum()) == m.size // 2
    with jax.numpy_rank_promotion("allow"):
        start = got["loss"](prune.apply(got["plain"], got["plain_mask"]))
        for name in ("plain_params", "multi_params", "free_params", "free_eval"):
            assert got["loss"](got[name]) < start, name


class _Tensor(np.ndarray):
    """An array with the methods of PyTorch that the page uses."""

    permute = np.ndarray.transpose

    def flatten(self, start: int) -> np.ndarray:  # type: ignore[override]
        return self.reshape(*self.shape[:start], -1)


def _convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
    made = np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]
    return made.view(_Tensor)


def _pooled(x: np.ndarray, side: int) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side).max((3, 5)).view(_Tensor)


def test_an_exported_lenet5_in_pytorchs_order_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeNet-5 once more, channels first, as the page computes it; PyTorch's functions are NumPy's here."""
    functional = SimpleNamespace(
        conv2d=_convolved,
        max_pool2d=_pooled,
        relu=lambda x: np.maximum(x, 0),
        linear=lambda x, kernel, bias: x @ kernel.T + bias,
    )
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.nn", SimpleNamespace(functional=functional))
    draw = np.random.default_rng(0)
    model = models.build("lenet5", (28, 28, 1), 10)
    drawn = model.init(jax.random.key(0)).params  # its biases are 0
    params = jax.tree.map(lambda p: p if p.ndim > 1 else draw.normal(size=p.shape).astype(np.float32), drawn)
    images = draw.normal(size=(2, 28, 28, 1)).astype(np.float32)
    want, _ = model.apply(params, {}, images, False)

    got: dict[str, Any] = {}
    for title in ("torch_kernels.py", "torch_logits.py"):
        (code,) = snippets("interop.md", title)
        exec(code, got)
    named = zip(prune.paths(params), jax.tree.leaves(params), strict=True)
    weights = {name: np.asarray(leaf).view(_Tensor) for name, leaf in named}
    x = images.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got["lenet5_logits"](weights, x), want, atol=1e-4)
    # Transposed alone the first dense layer has the same shape, and other logits.
    kernels = got["torch_kernels"](weights)
    got["torch_kernels"] = lambda of: {**kernels, "fc1/kernel": of["fc1/kernel"].T}
    assert np.abs(got["lenet5_logits"](weights, x) - want).max() > 0.1


def test_a_state_dict_is_a_pytree() -> None:
    draw = np.random.default_rng(0)
    shapes = {"features.0.weight": (6, 1, 5, 5), "features.0.bias": (6,), "norm1.weight": (6,),
              "norm1.running_var": (6,), "embed.weight": (20, 8), "fc.weight": (10, 8)}  # fmt: skip
    state = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    mask = prune.magnitude(state, prune.ones(state), 0.2)
    left = {name: int(np.sum(m)) for name, m in mask.items() if np.ndim(m)}
    assert left == {"features.0.weight": 120, "fc.weight": 64}


def test_own_analysis_is_on_the_report(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, a figure and a verdict in at most 60 lines, from outside the package."""
    (code,) = snippets("extending.md", "margin.py")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    Path("margin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    folder = study.run(tiny(seeds=(0, 1, 2), levels=2, arms=("ticket",)), "runs")
    known = dict(ANALYSES)
    try:
        import margin  # type: ignore[import-not-found]

        untested = report.build(folder).read_text()
        assert "python margin.py runs/" in untested
        assert 'id="margin"' not in untested
        record.command(margin.MARGIN)([str(folder), "--quiet"])
        assert capsys.readouterr().out.strip() == str(folder / "margin")
        page = report.build(folder, only_if_changed=True)
    finally:
        ANALYSES.clear()
        ANALYSES.update(known)
        sys.modules.pop("margin", None)
    rows = list(csv.DictReader((folder / "margin" / "starts.csv").read_text().splitlines()))
    assert [(int(row["seed"]), int(row["level"])) for row in rows] == [
        (s, n) for s in (0, 1, 2) for n in (1, 2)
    ]
    read = Reader(folder)
    mask, start = (tree["fc1"]["kernel"] for tree in (read.mask(Cell(1, "rewind-0", 2, "ticket")),
                                                      read.state(1, 0).params))  # fmt: skip
    assert float(rows[3]["ratio"]) == pytest.approx(np.abs(start)[mask].mean() / np.abs(start).mean())
    assert (page.parent / "margin.svg").stat().st_size > 10_000
    claims = (page.parent / "verdicts.csv").read_text()
    assert "Weights that survive were larger than the mean from the start,supported" in claims
    text = page.read_text()
    assert 'id="margin"' in text
    assert "times the mean at level 2" in text
