"""Rows as a data frame, and curves for TensorBoard."""

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny, unsealed

import analysis
from analysis import tensorboard
from lthjax import config, study
from lthjax.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("trained")
    every = config.Train(steps=12, batch=20, eval_every=5, log_every=4)
    prepared = make_tiny(where)(seeds=(0,), levels=1, arms=("ticket",), train=every)
    return study.run(prepared, where / "runs")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def events(folder: Path) -> Iterator[Any]:
    """The events of the one event file in a folder, parsed as a TFRecord file."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.*")
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) from the event file in a folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_frame_has_the_rows(run: Path) -> None:
    frame = analysis.frame(run)
    assert tuple(frame.columns) == analysis.COLUMNS
    assert [tuple(line) for line in frame.itertuples(index=False)] == [
        tuple(row) for row in analysis.load(run)
    ]
    assert frame[frame.level == 1].weights_left.item() == 74_200 - 14_640 - 100


def test_curves_go_to_tensorboard(run: Path) -> None:
    assert tensorboard.write(run) == run / "tensorboard"
    for cell in ("seed=0/dense", "seed=0/chain=rewind-0/level=01/ticket"):
        curves = json.loads((run / cell / "result.json").read_text())["curves"]
        found = scalars(run / "tensorboard" / cell)
        assert found.keys() == curves.keys() - {"step", "loss_step"}
        for name, points in found.items():
            expected = [0, 4, 8] if name == "loss" else [5, 10, 12]
            assert [step for step, _ in points] == expected
            assert [value for _, value in points] == pytest.approx(curves[name], rel=1e-6)
    (run / "tensorboard" / "mine.txt").write_text("kept")
    tensorboard.write(run)
    assert (run / "tensorboard" / "mine.txt").read_text() == "kept"
    assert len(list((run / "tensorboard").rglob("events.*"))) == 2, "a second call replaces the first"


def test_seconds_begin_at_the_step_where_a_training_does(run: Path) -> None:
    unsealed(run)
    cell = "seed=0/chain=rewind-0/level=01/ticket"
    result = json.loads((run / cell / "result.json").read_text()) | {"start": 4, "steps": 8, "seconds": 16.0}
    (run / cell / "result.json").write_text(json.dumps(result))
    tensorboard.write(run)
    found = [
        (event.step, event.wall_time) for event in events(run / "tensorboard" / cell) if event.summary.value
    ]
    assert {(5, 2.0), (10, 12.0), (12, 16.0)} <= {*found}


def test_without_the_library_it_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="tensorboardX is not installed"):
        tensorboard.write(run)
    with pytest.raises(UserError, match="pandas is not installed"):
        analysis.frame(run)
