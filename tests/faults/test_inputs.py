"""Bad input of every kind: never a traceback, never a hang, never incomplete files.

LTHJAX_FAULT_EXAMPLES=50 python -m pytest tests/faults/test_inputs.py -n 0 -s

tries fifty times as many examples as the quick suite, and prints their number. Every test of drawn examples
has one that must be accepted, so that it cannot pass by refusing all.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT, arrays, unsealed, write_npz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax._src import compilation_cache

from analysis import export, load, open_run, record
from analysis.analyses import ANALYSES
from analysis.report import __main__ as report_command
from analysis.report import accuracy, facts
from analysis.rows import to_csv
from analysis.transfer import __main__ as transfer_command
from lthjax import (
    catalogue,
    cli,
    config,
    data,
    durations,
    fields,
    imp,
    launch,
    prune,
    study,
    validate,
)
from lthjax import record as study_record
from lthjax.config import Data, Study, Train
from lthjax.devices import replicate
from lthjax.errors import UserError
from lthjax.folder import store
from lthjax.imp import DENSE
from lthjax.training.job import Job, Trained

TIMES = int(os.environ.get("LTHJAX_FAULT_EXAMPLES", "1"))
SECONDS = 10.0
TRIED: Counter[str] = Counter()


def examples(count: int) -> settings:
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    yield
    if TIMES > 1:
        print("\n".join(f"{what}: {count}" for what, count in sorted(TRIED.items())), file=sys.stderr)


class Reached(Exception):
    """Raised where the requested work would start."""


def reach(*_: object, **__: object) -> None:
    raise Reached


def call(main: Callable[[list[str]], None], *arguments: str) -> tuple[int, str]:
    """(status, standard error) of a command; 0 if its work would start. Other exceptions propagate."""
    said, began, before = io.StringIO(), time.monotonic(), sys.argv
    sys.argv = ["command", *arguments]
    status = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            cli.run(main)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except Reached:
        pass
    finally:
        sys.argv = before
    assert time.monotonic() - began < SECONDS, arguments
    assert status in (0, 2), (status, said.getvalue())
    if status:
        lines = said.getvalue().splitlines()
        # argparse prints the usage before the error.
        assert lines[0].startswith(("error: ", "usage: ")), lines
        assert lines[0].startswith("usage: ") or len(lines) <= 2, lines
    return status, said.getvalue()


# A finished run, without a training


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a config and a run of two seeds with made-up numbers."""
    folder = tmp_path_factory.mktemp("faults")
    write_npz(folder / "data", "few", **arrays(train=200, test=60))
    text = (
        "from lthjax.config import Data, Study, Train\n"
        "config = Study(name='tiny', seeds=(0, 1), levels=1, model='lenet300', control_levels=(1,),\n"
        "    data=Data(name='few', validation=40), train=Train(steps=12, batch=20, eval_every=6))\n"
    )
    (folder / "tiny.py").write_text(text)
    prepared = study.prepare(config.load(folder / "tiny.py"), folder / "data")
    about = study_record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
    (folder / "runs").mkdir()
    with store.Store(folder / "runs" / prepared.folder, about) as kept:
        variables = jax.device_get(prepared.model.init(jax.random.key(0)))
        mask = jax.device_get(prune.ones(variables.params))
        numbers = {name: [0.5, 0.25] for name in fields._CURVES}
        ends = {name: of[-1] for name, of in numbers.items()}
        early = {"early_stop_step": 6, "early_stop_test_accuracy": 0.5, "train_accuracy": 0.75}
        done = Trained(variables, {}, {"step": [6, 12], **numbers}, {**ends, **early}, "done", "", 0.1)
        for seed in prepared.study.seeds:
            kept.write_state(seed, 0, variables)
        for cell in imp.cells(prepared.study, prepared.lengths):
            job = Job(cell.seed, cell.level, 0, 12, variables, mask)
            made = None if cell.arm == DENSE else {"parent": "x", "origin": "y"}
            kept.write(cell, study_record.result(cell, job, done, made), mask, variables)
    # Damage must be noticed by the contents here, not by a checksum.
    unsealed(folder / "runs" / prepared.folder)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    (found,) = (place / "runs").glob("tiny-*")
    return found


# Options

WORDS = [
    "", " ", "-1", "0", "1", "2", "3", "0.5", "-0.0", "1e309", "1e-400", "nan", "inf", "-inf", "1000000000",
    "9" * 25, "9" * 5000, "²", "1 epoch", "2 epochs", "9999999999 epochs", "1 step", "ticket", "reinit",
    "dense", "lenet300", "True", "None", "()", "[1]", "'", "(", "a{9999999999}", "../x", "/usr", "~", ".",
    "x" * 5000, "mnist", "few", "é", "🦊", "$\\frac$", "gs://bucket/x", "--", "rewind-0", "rewind-²", "\n",
]  # fmt: skip
FIELDS = [f"--{name.replace('_', '-')}" for name in config.flat(Study())]
OTHERS = ["--out", "--data-dir", "--chunk", "--quiet", "--no-cache", "--config", "--seed", "--shard", "-x"]


# Valid values of options, each for itself.
GOOD = {
    "--levels": ["1"], "--level": ["1"], "--seeds": ["1"], "--seed": ["0"], "--chain": ["rewind-0"],
    "--plane-seeds": ["0"], "--steps": ["6"], "--arm": ["reinit"], "--repeat": ["1"], "--pairs": ["same"],
    "--quick": [], "--quiet": [], "--no-cache": [], "--no-training": [], "--chunk": ["2"], "--draws": ["2"],
    "--images": ["20"], "--points": ["3"], "--rho": ["0.1"], "--name": ["other"], "--arms": ["reinit"],
    "--rewind": ["1 step", "2"], "--model": ["lenet300"], "--data.augment": ["True"], "--train.steps": ["9"],
    "--optim.lr": ["1e-3"], "--optim.name": ["sgd"], "--prune.rate": ["output", "0.1", ".", "0.2"],
    "--prune.density": ["0.5"], "--train.batch": ["16"], "--data.validation": ["1"],
    "--repeats": ["reinit", "2"],
}  # fmt: skip


def lines(options: list[str]) -> st.SearchStrategy[list[str]]:
    """Up to three options, each with its valid value or with up to three other values."""
    bad = st.tuples(st.sampled_from(options), st.lists(st.sampled_from(WORDS), max_size=3))
    good = st.sampled_from([(option, GOOD[option]) for option in options if option in GOOD])
    return st.lists(good | good | bad, max_size=3).map(
        lambda several: [word for option, values in several for word in (option, *values)]
    )


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No internet, and no program compiled for an estimate."""

    def unreachable(name: str, urls: object, folder: Path) -> None:
        raise catalogue._unreachable(name, folder, "no network")

    monkeypatch.setattr(catalogue, "_look_first", unreachable)
    monkeypatch.setattr(study, "estimate", reach)


@pytest.mark.usefixtures("offline")
def test_options_of_a_study(place: Path) -> None:
    usual = {
        "--config": str(place / "tiny.py"),
        "--data-dir": str(place / "data"),
        "--out": str(place / "no"),
    }
    sound = [word for option in usual.items() for word in option]
    assert call(launch.main, *sound, "--dry-run", "--levels", "1")[0] == 0

    @examples(25)
    @given(lines([*FIELDS, *OTHERS]))
    def tried(words: list[str]) -> None:
        given_here = {word.partition("=")[0] for word in words}
        before = [word for name, value in usual.items() if name not in given_here for word in (name, value)]
        TRIED[f"options of run.py, status {call(launch.main, *before, '--dry-run', *words)[0]}"] += 1
        assert not (place / "no").exists()

    tried()


def options_of(name: str) -> list[str]:
    """The options of an analysis, from its record."""
    fields = dataclasses.fields(ANALYSES[name].options)
    shared = ("run", "quiet", "cache", "chunk", "data_dir")
    return [f"--{field.name.replace('_', '-')}" for field in fields if field.name not in shared]


COMMANDS: dict[str, tuple[Callable[[list[str]], None], list[str]]] = {
    name: (record.command(ANALYSES[name]), options_of(name))
    for name in (
        "predict",
        "landscape",
        "stability",
        "geography",
        "examples",
        "earlybird",
        "forgetting",
        "savings",
    )
}
COMMANDS |= {
    "transfer": (
        transfer_command.main,
        ["--from", "--to", "--levels", "--pairs", "--arms", "--chain", "--out", "--config"],
    ),
    "export": (export.main, ["--seed", "--level", "--arm", "--repeat", "--chain"]),
    "report": (report_command.main, ["--quiet"]),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_the_analyses(
    name: str, place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, own = COMMANDS[name]
    for place_of_work in (
        "analysis.predict.work._Predicting", "analysis.landscape.work._Landscape",
        "analysis.stability.work._Stability", "analysis.examples.work._seen",
        "analysis.earlybird.work._Drawing", "analysis.forgetting.work._Forgetting",
        "analysis.transfer.work._fill", "lthjax.measures.geography.compare",
        "analysis.savings.work._exported", "analysis.report.build_all", "lthjax.prune.save",
        "lthjax.study.run",
    ):  # fmt: skip
        module, _, work = place_of_work.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), work, reach)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(replicate, "keep_programs", lambda: None)
    paths = st.sampled_from([*5 * [[str(run)]], [str(place / "tiny.py")], ["no"], ["/usr"], []])

    def status(words: list[str], where: list[str], level: list[str]) -> int:
        first = where
        if name == "transfer":
            first = ["--to", *where, "--from", str(run)]
        elif name in ("export", "landscape"):
            first = [*where, *(["ticket.safetensors"] if name == "export" else []), *level]
        if "--data-dir" not in words and name not in ("geography", "export", "report"):
            first = ["--data-dir", str(place / "data"), *first]
        return call(command, *first, *words)[0]

    assert status([], [str(place / "tiny.py" if name == "transfer" else run)], ["--level", "1"]) == 0

    @examples(15)
    @given(lines([*own, *OTHERS]), paths, st.sampled_from([["--level", "1"], ["--level", "1"], []]))
    def tried(words: list[str], where: list[str], level: list[str]) -> None:
        TRIED[f"options of {name}, status {status(words, where, level)}"] += 1
        assert not list((tmp_path / "here").rglob("*"))

    tried()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--levels", "1000000000"], "levels: 1000000000 with 2 seeds"),
        (["--repeats", "reinit", "1000000000"], "would be 2,000,000,006 cells; there may be 100,000"),
        (["--data.name", "/usr"], "data.name: '/usr' is not allowed; it must be the name of a data set"),
        (["--data.name", "../x"], "data.name: '../x' is not allowed"),
        (["--out", ""], "--out: '' is empty"),
        (["--out="], "--out: '' is empty"),
        (["--data-dir", " "], "--data-dir: ' ' is empty"),
        (["--out", "gs://bucket/x"], "--out: 'gs://bucket/x' is an address"),
        (["--data-dir=s3://bucket/x"], "--data-dir: 's3://bucket/x' is an address"),
        (
            ["--out", f"{ROOT}/README.md"],
            "README.md' cannot be written (Not a directory); choose another",
        ),
        (["--out", "x" * 5000], "cannot be written (File name too long)"),
        (["--control-levels", "99", "--levels", "1"], "control_levels: 99 is beyond the last level, 1"),
        (["--control_levels", "99"], "control_levels: 99 is beyond the last level, 1"),
        (["--seeds", "0", "--seeds", "1"], "--seeds: it is given twice"),
        (["--dry-run", "--no-dry-run"], "--no-dry-run: it is given twice"),
        (["--train.batch=5", "--train.batch", "6"], "--train.batch: it is given twice"),
        (
            ["--optim.lr", "1e-50"],
            "optim.lr: 1e-50 is not allowed; it must be above 0 and finite, in float32",
        ),
        (["--optim.lr", "1e39"], "optim.lr: 1e+39 is not allowed"),
        (["--train.steps", "9999999999 epochs"], "train.steps: '9999999999 epochs' is more than"),
        (["--train.steps", "9" * 5000], "is not a duration"),
        (["--prune.rate", "a{9999999999}", "0.2"], "is not a regex"),
        (["--name", "x" * 300], "it must be up to 200 letters"),
    ],
)
def test_what_is_asked_wrongly_gets_its_sentence(place: Path, arguments: list[str], sentence: str) -> None:
    usual = ["--config", str(place / "tiny.py")]
    if not any(word.startswith("--data-dir") for word in arguments):
        usual += ["--data-dir", str(place / "data")]
    dry = [] if "--dry-run" in arguments else ["--dry-run"]
    status, said = call(launch.main, *usual, *dry, *arguments)
    assert status == 2
    assert sentence in said


@pytest.mark.usefixtures("offline")
def test_a_files_control_levels_stay_where_fewer_levels_are_asked_for(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        (place / "tiny.py").read_text().replace("levels=1,", "levels=3,").replace("(1,)", "(2, 3)")
    )
    (options,) = launch.parse(["--config", str(file), "--levels", "2"])
    assert options.study.control_levels == (2, 3)
    with pytest.raises(UserError, match="control_levels: 3 is beyond the last level, 2"):
        launch.parse(["--config", str(file), "--levels", "2", "--control-levels", "2", "3"])
    file.write_text(file.read_text().replace("levels=3,", "levels=2,", 1))
    with pytest.raises(UserError, match="control_levels: 3 is beyond the last level, 2"):
        config.load(file)


def test_addresses_are_refused_by_functions_too(place: Path, run: Path) -> None:
    with pytest.raises(UserError, match="--data-dir: 'gs:/bucket' is an address"):
        data.load("mnist_10k", Path("gs://bucket"))
    prepared = study.prepare(config.load(place / "tiny.py"), place / "data")
    for act in (study.plan, study.run):
        with pytest.raises(UserError, match="--out: 'gs://bucket/x' is an address"):
            act(prepared, "gs://bucket/x")


def test_predict_sees_no_more_images_than_there_are(place: Path, run: Path) -> None:
    with pytest.raises(UserError, match="--images: 1000000 is not allowed; it must be from 1 to 160"):
        record.perform(ANALYSES["predict"], run, data_dir=place / "data", images=1_000_000)


# JAX's own settings


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("JAX_NUM_CPU_DEVICES", "x", "analysis.report"),
        ("JAX_PLATFORMS", "cuda", "analysis.export"),
    ],
)
def test_settings_that_jax_does_not_take(
    name: str, value: str, command: str, run: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    more = ["x.safetensors", "--level", 0] if command == "analysis.export" else []
    done = command_line("-m", command, run, *more)
    assert done.returncode == 2, done.stderr
    # A warning comes first: the folder is of an older version and is not checked.
    *before, last = done.stderr.splitlines()
    assert last.startswith(f"error: {name}: '{value}'")
    assert len(before) <= 1


def test_damaged_programs_are_dropped_and_made_anew(tmp_path: Path) -> None:
    names = ["jit_whole-1-cache", "jit_flipped-2-cache", "jit_cut-3-cache", "jit_killed-4-cache"]
    entry = compilation_cache.compress_executable(bytes(range(200)))
    vouch = replicate.drop_damaged(tmp_path)
    for name in names[:3]:
        (tmp_path / name).write_bytes(entry)
    vouch()
    (tmp_path / names[3]).write_bytes(entry[:-1])
    (tmp_path / names[1]).write_bytes(bytes([entry[0], entry[1] ^ 1, *entry[2:]]))
    (tmp_path / names[2]).write_bytes(entry[:50])
    again = replicate.drop_damaged(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], f"{names[0]}.crc32"}
    (tmp_path / names[1]).write_bytes(entry)
    (tmp_path / names[2]).write_bytes(entry[:50])
    again()
    assert not (tmp_path / f"{names[2]}.crc32").exists(), "another process may still be writing it"
    replicate.drop_damaged(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == sorted(names[:2])


def test_programs_of_a_process_that_runs_are_left_to_it(tmp_path: Path) -> None:
    made, cut, old = (tmp_path / f"jit_{name}-cache" for name in ("made", "cut", "old"))
    entry = compilation_cache.compress_executable(bytes(range(200)))
    for length in range(len(entry)):
        cut.write_bytes(entry[:length])
        replicate.drop_damaged(tmp_path)
        assert not cut.exists(), f"{length} of {len(entry)} bytes"
    vouch = replicate.drop_damaged(tmp_path)
    for path in (made, old):
        path.write_bytes(entry)
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    replicate.drop_damaged(tmp_path)()
    assert made.exists()
    assert not old.exists()
    assert not Path(f"{made}.crc32").exists(), "the process that made it vouches for it"
    vouch()
    os.utime(made, (yesterday, yesterday))
    replicate.drop_damaged(tmp_path)
    assert made.exists()


def test_a_user_without_a_home_keeps_no_programs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    without = SimpleNamespace(values={"jax_compilation_cache_dir": None})
    monkeypatch.setattr(replicate, "jax", SimpleNamespace(config=without))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    replicate.keep_programs()
    (said,) = caplog.messages
    assert said.startswith("compiled programs are not kept: HOME: this user has no home folder; set ")


@pytest.mark.parametrize("how", ["signals.end(15)", "hosts._leave(0, 'why')", "raise SystemExit(3)"])
def test_a_process_vouches_for_its_programs_however_it_ends(tmp_path: Path, how: str) -> None:
    program = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
import jax
from jax._src import compilation_cache
from lthjax import signals
from lthjax.devices import hosts, replicate
hosts._client, hosts._read = lambda: SimpleNamespace(key_value_set=lambda *_, **__: None), str
hosts.index = lambda: 1
replicate.keep_programs()
folder = Path(jax.config.jax_compilation_cache_dir)
(folder / "jit_made-cache").write_bytes(compilation_cache.compress_executable(bytes(9)))
{how}
"""
    here = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**here, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (128 + 15, 2, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("jit_made-cache.crc32"))) == 1


# Configs

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**31, 2**63, -(2**63), 10**30]),
    st.sampled_from([0.5, -0.0, 1e-50, 1e39, math.nan, math.inf, -math.inf]),
    st.sampled_from(WORDS),
    st.just(b"x"),
    st.just(Data()),
)
VALUES = st.one_of(
    NASTY, st.lists(NASTY, max_size=3).map(tuple), st.lists(st.tuples(NASTY, NASTY), max_size=2).map(tuple)
)


class Derived(Study):
    """A study that derives a field."""


def test_fields_of_a_study() -> None:
    usual = config.flat(Study(data=Data(validation=40), train=Train(steps=12, batch=20), levels=1))

    @examples(150)
    @given(st.dictionaries(st.sampled_from(sorted(usual)), VALUES, max_size=2))
    def tried(fields: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            made = config.replaced(
                Study(**{"data": Data(validation=40), "train": Train(steps=12, batch=20)}), fields
            )
            config.check_types(made)
            config.check_control_levels(made)
            validate.validate(made)
            in_steps = durations.lengths(made, 200)
            name = config.fingerprint(config.identity(made, in_steps, "d"))
            TRIED["fields of a study, accepted"] += 1
            assert len(name) == 8
            assert len(imp.cells(made, in_steps)) <= 100_000
        except UserError:
            TRIED["fields of a study, refused"] += 1
        assert time.monotonic() - began < SECONDS

    tried()
    assert TRIED["fields of a study, accepted"]


@pytest.mark.parametrize("part", ["Study", "Data"])
def test_a_config_that_subclasses_is_refused(part: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    own = {"Study": "config = Own()", "Data": "config = Study(data=Own())"}[part]
    file.write_text(
        "from dataclasses import dataclass\nfrom lthjax.config import Data, Study\n"
        f"@dataclass(frozen=True)\nclass Own({part}):\n    more: int = 3\n{own}\n"
    )
    status, said = call(launch.main, "--config", str(file), "--dry-run")
    assert status == 2
    assert "of type Own" in said if part == "Study" else "data: Own(" in said


# Arrays


def shapes(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sampled_from(
        [(n, 28, 28, 1), (n, 28, 28), (n,), (), (0, 28, 28, 1), (n + 1, 28, 28, 1), (n, 1), (n, 0, 28, 1)]
    )


KINDS = st.sampled_from(["u1", "i1", "i8", "u8", "f4", "f8", "c8", "?", "O", "U3", "S2", "M8[s]", "V4"])


@st.composite
def changed_arrays(draw: st.DrawFn) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for part, n in (("train", 80), ("test", 20)):
        for what in ("images", "labels"):
            key = f"{part}_{what}"
            if draw(st.integers(0, 2)):
                continue
            how = draw(st.sampled_from(["gone", "other", "value"]))
            if how == "gone":
                changed[key] = None
            elif how == "other":
                changed[key] = np.zeros(draw(shapes(n)), draw(KINDS))
            else:
                value = draw(st.sampled_from([-1, 9, 10, 255, 2**40, -(2**63), math.nan]))
                changed[key] = np.full((n,) if what == "labels" else (n, 28, 28, 1), value)
    if draw(st.booleans()):
        changed["classes"] = draw(
            st.sampled_from(
                ["ten", b"x", math.nan, math.inf, 10.0, 0, 1, -5, 10, 80, 10**12, 2**64 - 1, True, None]
            )
            | st.sampled_from([[10, 10], [10], [], [[10]], [None]])
        )
    return changed


def test_arrays_of_a_data_set(tmp_path: Path) -> None:
    write_npz(tmp_path, "own")
    assert data.load("own", tmp_path).classes == 10

    @examples(60)
    @given(changed_arrays(), st.integers(0, 3), st.data())
    def tried(changed: dict[str, Any], damage: int, drawn: st.DataObject) -> None:
        path = write_npz(tmp_path, "own", **changed)
        if damage == 0:
            damaged(path, drawn)
        began = time.monotonic()
        try:
            got = data.load("own", tmp_path)
            assert got.train_images.dtype == np.uint8
            assert got.train_labels.dtype == np.int32
            assert 2 <= got.classes <= len(got.train_labels)
            assert got.train_labels.max() < got.classes
            TRIED["npz, accepted"] += 1
        except UserError:
            TRIED["npz, refused"] += 1
        assert time.monotonic() - began < SECONDS
        assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]

    tried()


@pytest.mark.parametrize("classes", ["ten", [10, 10], math.nan, 10**12, 0, 10.0])
def test_classes_are_one_whole_number(tmp_path: Path, classes: object) -> None:
    write_npz(tmp_path, "own", classes=classes)
    with pytest.raises(UserError, match=r"classes is .*; it must be a single whole number from 2 to 80"):
        data.load("own", tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        "(99999999999999,)",
        "(-1,)",
        "('a',)",
        "[[[[",
        "(2**70,)",
        "(9999999999, 9999999999)",
        "(80, 28, 28, 1)",
    ],
)
def test_headers_that_claim_what_is_not_there(tmp_path: Path, shape: str) -> None:
    path = write_npz(tmp_path, "own")
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    replace_member(path, "train_images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UserError, match="cannot be read as an npz"):
        data.load("own", tmp_path)


def test_what_unfolds_to_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path, "own")
    replace_member(path, "more.npy", bytes(10_000_000))
    assert path.stat().st_size < 200_000
    assert data.load("own", tmp_path).classes == 10
    monkeypatch.setattr(data, "_memory", lambda: 9_000_000)
    with pytest.raises(UserError, match=r"it unfolds to 0.0 GiB, and this machine has 0.0 GiB"):
        data.load("own", tmp_path)


def replace_member(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, of in members.items():
            archive.writestr(one, of)


def damaged(path: Path, drawn: st.DataObject) -> None:
    """Flips a bit, cuts the end off, or inserts other bytes."""
    content = bytearray(path.read_bytes())
    place = drawn.draw(st.integers(0, max(len(content) - 1, 0)))
    how = drawn.draw(st.sampled_from(["flip", "cut", "put", "first"]))
    if how == "first":
        place = min(place, 100) if len(content) < 1000 else place % 1000
    if how == "cut":
        del content[place:]
    elif how == "put":
        content[place : place + 8] = drawn.draw(st.binary(min_size=1, max_size=16))
    elif content:
        content[place] ^= 1 << drawn.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))


# Tickets


def test_bytes_of_a_ticket(tmp_path: Path) -> None:
    path, whole = tmp_path / "own.safetensors", tmp_path / "whole.safetensors"
    params = {
        "fc": {"kernel": np.arange(24.0, dtype=np.float32).reshape(4, 6), "bias": np.zeros(6, np.float32)}
    }
    prune.save(whole, params, prune.ones(params), origin=params, metadata={"level": 3})
    assert prune.load(whole).metadata["level"] == 3

    @examples(150)
    @given(st.data())
    def tried(drawn: st.DataObject) -> None:
        shutil.copyfile(whole, path)
        for _ in range(drawn.draw(st.integers(1, 2))):
            damaged(path, drawn)
        try:
            prune.load(path)
            TRIED["safetensors, read"] += 1
        except ValueError:
            TRIED["safetensors, refused"] += 1

    tried()


def test_a_ticket_whose_metadata_nest_without_end(tmp_path: Path) -> None:
    from safetensors.numpy import save

    head = {"format": "lthjax-ticket-1", "metadata": "[" * 100_000}
    (tmp_path / "own.safetensors").write_bytes(save({"params/w": np.zeros(3, np.float32)}, head))
    with pytest.raises(ValueError, match=r"not a ticket that prune.save wrote, or damaged"):
        prune.load(tmp_path / "own.safetensors")


# Run folders

JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 10**9, 10**30, 0.5, -0.5, 1.5, math.nan, math.inf]),
    st.sampled_from(["", "foo", "done", "diverged", "rewind-0", "rewind-²", "../x", "0", "é" * 300]),
    st.sampled_from([[], {}, [1], [None], ["x"], {"a": 1}, [[["x", 1]]]]),
)


def places(value: Any) -> list[tuple[Any, ...]]:
    """The path of every field of a JSON object, and of the first item of every list."""
    found: list[tuple[Any, ...]] = []
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, inner in items:
        found += [(key,), *((key, *rest) for rest in places(inner))]
    return found


def mutated(text: str, drawn: st.DataObject) -> str:
    """The JSON with a changed value, or a field more or less."""
    value = json.loads(text)
    *parents, last = drawn.draw(st.sampled_from(places(value)))
    inside = value
    for key in parents:
        inside = inside[key]
    how = drawn.draw(st.sampled_from(["other", "other", "less", "more"]))
    if how == "less":
        del inside[last]
    elif how == "more" and isinstance(inside, dict):
        inside["novelty"] = drawn.draw(JSON)
    else:
        inside[last] = drawn.draw(JSON)
    return json.dumps(value)


def readers(place: Path, run: Path) -> None:
    """Runs all readers of result.json and study.json that draw no figure."""
    opened = open_run(run)
    rows = opened.rows
    asked = config.load(place / "tiny.py")
    prepared = study.prepare(asked, place / "data")
    study.plan(prepared, place / "runs")
    to_csv(rows)
    facts.of_run(opened)
    facts.notes(opened)
    facts.levels(rows, "rewind-0")
    accuracy._learning(opened, rows, "rewind-0")
    for row in rows:
        study_record.outcome(row._asdict() | {"reason": ""})
        with contextlib.suppress(UserError):
            export.there(opened, row.cell)


def test_fields_of_a_run_folder(place: Path, run: Path) -> None:
    files = [
        run / "study.json",
        *sorted(run.glob("seed=*/dense/result.json")),
        *sorted(run.glob("seed=0/chain=*/**/result.json")),
    ]
    readers(place, run)

    @examples(60)
    @given(st.sampled_from(files), st.integers(0, 4), st.data())
    def tried(file: Path, raw: int, drawn: st.DataObject) -> None:
        before = file.read_bytes()
        try:
            if raw:
                file.write_text(mutated(before.decode(), drawn))
            else:
                damaged(file, drawn)
            began = time.monotonic()
            try:
                readers(place, run)
                TRIED[f"{file.name}, read"] += 1
            except UserError:
                TRIED[f"{file.name}, refused"] += 1
            assert time.monotonic() - began < SECONDS
        finally:
            file.write_bytes(before)

    tried()


# Of one evaluation, before the first step.
CURVES = {"step": [0], "train_loss": [None]} | {
    f"{part}_{name}": [0.5] for part in ("validation", "test") for name in ("loss", "accuracy")
}


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("result", {"test_accuracy": None}, "test_accuracy is None"),
        ("result", {"test_accuracy": "high"}, "test_accuracy is 'high'"),
        ("result", {"test_accuracy": ...}, "it lacks test_accuracy"),
        ("result", {"test_accuracy": math.nan}, "test_accuracy is nan"),
        ("result", {"status": "foo"}, "status is 'foo'"),
        ("result", {"status": "diverged"}, "test_accuracy is 0.25"),
        ("result", {"level": "1"}, "level is '1'"),
        ("result", {"density": True}, "density is True"),
        ("result", {"curves": {"step": [1]}}, "it lacks curves.train_loss"),
        ("result", {"curves": CURVES | {"test_accuracy": [None]}}, "curves.test_accuracy is [None]"),
        ("result", {"curves": CURVES | {"test_loss": []}}, "curves.test_loss has 0 values and curves.step 1"),
        ("result", {"curves": CURVES | {"loss_step": [1], "loss": [None]}}, "curves.loss is [None]"),
        ("study", {"data": {"classes": "ten"}}, "it lacks data.name"),
        ("study", {"config": []}, "config is []"),
        ("study", {"commands": "run.py"}, "commands is 'run.py'"),
    ],
)
def test_what_is_wrong_in_a_run_folder_is_named(
    run: Path, file: str, change: dict[str, Any], sentence: str
) -> None:
    where = run / "study.json" if file == "study" else run / "seed=0" / "dense" / "result.json"
    before = where.read_bytes()
    fields = {**json.loads(before), **change}
    try:
        where.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
        with pytest.raises(UserError) as caught:
            load(run)
        assert str(caught.value).startswith(f"{where}: it cannot be read ({sentence}")
    finally:
        where.write_bytes(before)


@pytest.mark.parametrize("inside", ["config", "train"])
def test_a_folder_of_a_newer_version_is_not_called_damaged(run: Path, inside: str) -> None:
    where = run / "study.json"
    before = where.read_bytes()
    about = json.loads(before)
    (about["config"] if inside == "config" else about["config"][inside])["novelty"] = 3
    try:
        where.write_text(json.dumps(about))
        with pytest.raises(
            UserError, match=r"a newer version of lthjax has written it .*novelty.*; update lthjax"
        ):
            load(run)
    finally:
        where.write_bytes(before)


def test_published_studies_pass() -> None:
    found = sorted(ROOT.glob("results/*/study.json"))
    assert found
    for path in found:
        about = json.loads(path.read_text())
        for one in about if isinstance(about, list) else [about]:
            fields.study(one)
