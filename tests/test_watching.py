"""Runs the recipes of docs/watching.md: with tensorboardX, and with stand-ins for the services."""

import contextlib
import csv
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lthjax import config, study

PAGE = (ROOT / "docs" / "watching.md").read_text()
SNIPPETS = dict(re.findall(r"^```python title=\"(\w+)\.py\"\n(.*?)^```$", PAGE, re.S | re.M))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., study.Prepared]) -> Any:
    """Runs a recipe on a tiny study; returns the study's cells.csv as rows by (seed, chain, level, arm)."""
    made = tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(config, "load", lambda path: made.study)
    monkeypatch.setattr(study, "prepare", lambda of: made)
    (tmp_path / "told.py").write_text(SNIPPETS["told"])

    def run(name: str) -> dict[str, dict[str, str]]:
        sys.modules.pop("told", None)
        exec(compile(SNIPPETS[name], name, "exec"), {})
        from analysis import report

        page = report.build_all([tmp_path / "runs" / made.folder])
        with page.with_name("cells.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {f"{r['chain']}/{r['arm']}/seed_{r['seed']}/{r['level']}": r for r in rows}

    return run


def agree(told: list[tuple[dict[str, float], int]], cells: dict[str, dict[str, str]]) -> None:
    """Every cell was told once, with its own numbers."""
    assert len(told) == len(cells)
    for values, level in told:
        for name, value in values.items():
            place, column = name.rsplit("/", 1)
            assert float(cells[f"{place}/{level}"][column]) == value


@pytest.mark.parametrize("name", ["with_wandb", "with_mlflow"])
def test_services_are_told_every_cell(name: str, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, float], int]] = []

    class Run(contextlib.AbstractContextManager):
        def log(self, values: dict[str, float]) -> None:
            told.append((values, int(values.pop("level"))))

        def __exit__(self, *_: object) -> None: ...

    fake = types.ModuleType(name.removeprefix("with_"))
    vars(fake).update(
        init=lambda project, name, config: Run(),
        start_run=lambda run_name: Run(),
        log_metrics=lambda values, step: told.append((values, step)),
    )
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    agree(told, recipe(name))
    assert told


def test_tensorboard_has_every_cell(recipe: Any, tmp_path: Path) -> None:
    cells = recipe("with_tensorboard")
    (events,) = (tmp_path / "events").glob("*/events*")
    text = events.read_bytes()
    assert all(f"{place.rsplit('/', 1)[0]}/density".encode() in text for place in cells)
