"""Shared by all tests: strict arithmetic, every core a device, small data, a tiny study."""

import contextlib
import dataclasses
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lthjax.devices import replicate

replicate.use_all_cores()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile the same few programs repeatedly, in this process and in the ones that they start. Workers of
# pytest-xdist use the cache folder of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="lthjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
for name, value in {
    "jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"],
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

from lthjax import config, study  # noqa: E402
from lthjax.devices import replicate  # noqa: E402
from lthjax.imp import Cell  # noqa: E402

ROOT = Path(__file__).parent.parent
FULL = Path(os.environ.get("LTHJAX_DATA", ROOT / "data"))


def arrays(
    train: int = 80, test: int = 20, shape: tuple[int, ...] = (28, 28, 1), classes: int = 10
) -> dict[str, np.ndarray]:
    """Random images in the documented npz layout."""
    generator = np.random.default_rng(0)
    made = {}
    for part, n in (("train", train), ("test", test)):
        made[f"{part}_images"] = generator.integers(0, 256, (n, *shape), np.uint8)
        made[f"{part}_labels"] = (np.arange(n) % classes).astype(np.uint8)
    return made


def write_npz(folder: Path, name: str, **changed: object) -> Path:
    """Writes arrays() with changes; a key whose value is None is omitted."""
    contents = {k: v for k, v in (arrays() | changed).items() if v is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **contents)
    return folder / f"{name}.npz"


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., study.Prepared]:
    """A study that takes seconds: lenet300 on 200 real digits; keyword arguments change its fields."""
    return make_tiny(tmp_path)


def make_tiny(folder: Path) -> Callable[..., study.Prepared]:
    """Like `tiny`, with its data in the given folder."""
    from lthjax import data

    whole = data.load("mnist_10k")
    few = {
        "train_images": whole.train_images[:200],
        "train_labels": whole.train_labels[:200],
        "test_images": whole.test_images[:60],
        "test_labels": whole.test_labels[:60],
        "classes": np.int64(10),
    }
    (folder / "data").mkdir()
    np.savez(folder / "data" / "few.npz", **few)

    def make(**changes: object) -> study.Prepared:
        fields = {
            "name": "tiny",
            "seeds": (0, 1),
            "levels": 2,
            "model": "lenet300",
            "data": config.Data(name="few", validation=40),
            "train": config.Train(steps=12, batch=20, eval_every=5),
        }
        return study.prepare(config.Study(**{**fields, **changes}), folder / "data")  # type: ignore[arg-type]

    return make


def result(cell: Cell) -> dict[str, Any]:
    """A made-up result.json, without any training."""
    measured = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    more = ("train_accuracy", "early_stop_test_accuracy", "early_stop_train_accuracy")
    left = {"density": 0.5, "weights_left": 15, "weights": 30}
    ended = {"early_stop_step": 5, "start": 0, "steps": 5, "seconds": 0.1, "made_from": None}
    curves = {"step": [5], **{name: [0.5] for name in measured}}
    scores = dict.fromkeys((*measured, *more), 0.5)
    return {**cell._asdict(), "status": "done", "reason": "", **left, **scores, **ended, "curves": curves}


def about(name: str = "few", **changes: Any) -> dict[str, Any]:
    """A made-up study.json, without any training."""
    study = config.Study(name="any", levels=3, data=config.Data(name=name), **changes)
    return {
        "identity": json.loads(json.dumps(config.flat(study))),
        "config": json.loads(json.dumps(dataclasses.asdict(study))),
        "lengths": config.Lengths(4, 12, 5, 0, (), (0,))._asdict(),
        "data": {"name": name, "source": "here", "digest": "0", "shape": [28, 28, 1], "classes": 10,
                 "train": 160, "validation": 40, "test": 60},
        "commands": ["run.py --config configs/quickstart.py"],
        "versions": {"jax": "0"}, "devices": "1 x cpu", "git": None,
    }  # fmt: skip


def unsealed(run: Path) -> None:
    """Turns a run folder into one of versions without manifests, whose files are not checked."""
    for path in run.rglob("manifest.json"):
        path.unlink()
    for path in run.rglob("study.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in about.items() if k not in ("manifests", "sha256")}))


def spoil(path: Path) -> None:
    """Turns a result.json into that of a diverged training run."""
    result = json.loads(path.read_text())
    scores = dict.fromkeys(name for name in result if name.endswith(("_accuracy", "_loss", "_step")))
    path.write_text(json.dumps(result | scores | {"status": "diverged", "reason": "spoilt"}))


def check_section(analysis: Any, run: Path) -> None:
    """Checks that an analysis's section, verdicts and files of a run agree."""
    from analysis import record
    from analysis.run import open_run

    opened = open_run(run)
    found = record.needed(analysis, opened)
    section = analysis.section(opened, found)
    assert section.figures or section.tables
    assert record.written(analysis, opened)
    links = {of.where.href for of in analysis.findings(opened, found) if hasattr(of.where, "href")}
    assert links == {f"#{section.anchor}"}


@pytest.fixture
def command_line(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python ARGUMENTS...` in the repository's root."""

    def call(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `command_line`, but in this process, which has loaded everything: for what ends early."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words, said, told = list(map(str, arguments)), io.StringIO(), io.StringIO()
        name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        status = 0
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [name, *rest])
            patch.setattr(replicate, "keep_programs", lambda: None)
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
                    if words[0] == "-m":
                        # That a test has imported it before is no fault.
                        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                        runpy.run_module(name, run_name="__main__", alter_sys=True)
                    else:
                        runpy.run_path(str(ROOT / name), run_name="__main__")
            except SystemExit as stop:
                status = int(stop.code or 0)
        return subprocess.CompletedProcess(words, status, said.getvalue(), told.getvalue())

    return call
