"""The notebooks: their output and figures when run with few steps, and their stored output."""

import base64
import importlib.machinery
import io
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from analysis import load
from lthjax import prune

NOTEBOOKS = ROOT / "notebooks"


def execute(name: str, where: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> Any:
    """Runs a notebook in a folder and returns it; raises if a cell fails."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    for variable, value in {
        "LTHJAX_NOTEBOOK_STEPS": str(steps),
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(where / ".ipython"),
        "JUPYTER_RUNTIME_DIR": str(where / ".jupyter"),
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for cell in notebook.cells:
        cell.outputs = []
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True,
                            resources={"metadata": {"path": str(where)}})  # fmt: skip
    return client.execute()


def check_nothing_is_left(where: Path) -> None:
    """Checks that git ignores whatever a notebook has left beside it."""
    there = [path for path in where.iterdir() if path.name not in (".ipython", ".jupyter")]
    left = [f"notebooks/{path.name}{'/' * path.is_dir()}" for path in there]
    assert left
    if (ROOT / ".git").exists():
        done = subprocess.run(
            ["git", "check-ignore", *left], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == left


def printed(notebook: Any, name: str = "stdout") -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output.text for output in outputs if output.get("name") == name)


def figures(notebook: Any) -> list[bytes]:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    pngs = (output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return [base64.b64decode(png) for png in pngs]


def check_drawn(png: bytes, colours: list[str]) -> None:
    """Checks that it is a figure with marks of these colours on white."""
    pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(png))[..., :3]).astype(int)
    assert 0.5 < (pixels == 255).all(-1).mean() < 0.99
    for colour in colours:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - wanted).max(-1) <= 2).sum() > 50, colour


def left_after(rounds: int, n: int, percent: int) -> int:
    """The number left of n after pruning floor(rate n + 1/2) in every round."""
    for _ in range(rounds):
        n -= (percent * n + 50) // 100
    return n


ARMS = ["#0072b2", "#d55e00", "#009e73"]


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("quickstart.ipynb", tmp_path, monkeypatch, steps=3)
    out = printed(notebook)
    left = {
        "hidden1/w": left_after(14, 78_400, 20),
        "hidden2/w": left_after(14, 5000, 20),
        "output/w": left_after(14, 500, 10),
    }
    for path, n in left.items():
        row = next(line for line in out.splitlines() if path in line)
        assert f"{n:,}" in row.replace("│", " ").split()
    total = sum(left.values())
    assert f"level 14: {100 * total / 83_900:5.1f} % of the weights" in out
    (sums,) = (line for line in out.splitlines() if "all prunable" in line)
    assert f"{total:,}" in sums.replace("│", " ").split()
    assert len(re.findall(r"reinit [\d.]+ %, random [\d.]+ %", out)) == 7
    assert out.endswith("trained again from the file, every weight is the same: True\n")
    (figure,) = figures(notebook)
    check_drawn(figure, ARMS)
    ticket = prune.load(tmp_path / "ticket.safetensors")
    assert int(prune.totals(ticket.mask)[0]) == total
    assert ticket.metadata["level"] == 14
    assert ticket.origin is not None
    check_nothing_is_left(tmp_path)


def test_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("colab_tpu.ipynb", tmp_path, monkeypatch, steps=2)
    out, told = printed(notebook), printed(notebook, "stderr")
    # 2 seeds x (dense + 8 tickets + 4 levels x 2 controls), of 2 steps each.
    assert ": 0 of 34 cells are done, 68 steps to go\n" in out
    assert "unplugged\n5 of 34 cells are done, " in out
    assert "34 of 34 cells are done, 0 steps to go, after" in out
    assert "; 34 of 34 cells have their result files as they were\n" in out
    assert "29 of 34 cells to train" in told
    assert len(re.findall(r"^\[\d+/34\] seed", told, re.M)) == 34
    (run,) = (tmp_path / "runs").iterdir()
    rows = load(run)
    assert len(rows) == 34
    # LeNet-5's layers after eight rounds of 20 %, of 10 % in the output layer.
    left = sum(left_after(8, n, 20) for n in (150, 2400, 48_000, 10_080)) + left_after(8, 840, 10)
    assert {row.weights_left for row in rows if row.level == 8} == {left}
    for row in rows:
        if row.level == 8:
            line = rf"{row.seed} +8 +{row.arm} +{left:,} +{100 * row.test_accuracy:.2f} %"
            assert re.search(line, out), line
    drawn = figures(notebook)
    assert len(drawn) == 2
    for figure in drawn:
        check_drawn(figure, [*ARMS, "#444444"])
    check_nothing_is_left(tmp_path)


@pytest.mark.parametrize("name", ["quickstart.ipynb", "colab_tpu.ipynb"])
def test_what_is_kept_was_executed_and_is_small(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = str([cell.outputs for cell in code])
    assert not re.search(r"/(home|root|tmp|work|Users|usr|var)/|Traceback|Warning", outputs)
    assert figures(notebook)
    for figure in figures(notebook):
        assert len(figure) < 100_000
        check_drawn(figure, ARMS)
    last = {
        "quickstart.ipynb": "every weight is the same: True",
        "colab_tpu.ipynb": "34 of 34 cells are done",
    }
    assert last[name] in printed(notebook)


@pytest.mark.parametrize("name", ["quickstart.ipynb", "colab_tpu.ipynb"])
def test_on_colab_it_installs_from_one_address_or_says_that_there_is_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("google", "google.colab"):
        made = types.ModuleType(module)
        made.__spec__ = importlib.machinery.ModuleSpec(module, None)
        monkeypatch.setitem(sys.modules, module, made)
    mounted: list[str] = []
    sys.modules["google.colab"].drive = types.SimpleNamespace(mount=mounted.append)  # type: ignore[attr-defined]
    installed: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: installed.append(words))
    cells = [
        cell.source
        for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells
        if cell.cell_type == "code"
    ]
    code = "\n".join(cells[: 1 + next(i for i, cell in enumerate(cells) if "pip" in cell)])
    with pytest.raises(Exception, match="ADDRESS is not set: ") as stopped:
        exec(code, {})
    assert stopped.value._render_traceback_() == [str(stopped.value)]
    assert "\n" not in str(stopped.value)
    assert not installed + mounted
    exec(code.replace("OWNER/lthjax", "somebody/lthjax"), {})
    ((*_, package),) = installed
    assert package == "lthjax[lab] @ git+https://github.com/somebody/lthjax"
    assert len(mounted) == (name == "colab_tpu.ipynb")


def test_one_owner(tmp_path: Path) -> None:
    """`make owner` writes it everywhere."""
    pages = [Path("README.md"), *(path.relative_to(ROOT) for path in NOTEBOOKS.glob("*.ipynb"))]
    (tmp_path / "notebooks").mkdir()
    for page in (*pages, "Makefile"):
        shutil.copy(ROOT / page, tmp_path / page)
    done = subprocess.run(
        ["make", "owner", "OWNER=some-body"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in pages:
        before, after = ((root / page).read_text(encoding="utf-8") for root in (ROOT, tmp_path))
        assert after != before
        assert {*re.findall(r"github\.com/([^/]+)/lthjax", after)} == {"some-body"}
        assert re.sub(r"com/[^/]+/lthjax", "", after) == re.sub(r"com/[^/]+/lthjax", "", before)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(pages) + 1
