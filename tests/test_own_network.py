"""A network from a config file, analysed from its run folder: nothing of the file runs unasked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lthjax import config, launch, study
from lthjax.errors import UserError

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


def test_the_copy_is_of_the_file_as_it_was_before_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that is edited, or gone, while its study trains."""
    path = tmp_path / "mine.py"
    text = "from lthjax.config import Data, Study\nconfig = Study(levels=0, data=Data(name='mnist_10k'))\n"
    for change in (lambda: path.write_text(text + "# edited"), path.unlink):
        path.write_text(text)
        run = tmp_path / f"runs{change.__name__}"

        def fill(prepared: Any, out: Path, change: Any = change, **_: Any) -> None:
            (out / prepared[0].folder).mkdir(parents=True)
            change()
            raise UserError("stopped")

        monkeypatch.setattr(study, "fill", fill)
        with pytest.raises(UserError, match="stopped"):
            launch.main(["--config", str(path), "--quiet", "--out", str(run)])
        (copy,) = run.glob("*/config.py")
        assert copy.read_text() == text


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
