"""The lists of `--help`: the tables' keys, whether or not the tables are loaded."""

import subprocess
import sys

import pytest
from conftest import ROOT

from lthjax import rows
from lthjax.arms import ARMS
from lthjax.criteria import CRITERIA
from lthjax.data import SOURCES
from lthjax.models import INITS, MODELS
from lthjax.optim import OPTIMISERS, SCHEDULES

TABLES = {
    ("arms", "ARMS"): ARMS,
    ("criteria", "CRITERIA"): CRITERIA,
    ("models", "MODELS"): MODELS,
    ("optim", "OPTIMISERS"): OPTIMISERS,
    ("optim", "SCHEDULES"): SCHEDULES,
    ("models", "INITS"): INITS,
    ("data", "SOURCES"): SOURCES,
}


@pytest.mark.parametrize(("place", "table"), TABLES.items(), ids=lambda of: str(of)[:20])
def test_names_are_the_keys_loaded_or_not(
    place: tuple[str, str], table: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = place
    assert rows.names(module, name) == [*table]
    monkeypatch.setitem(table, "mine", None)
    assert rows.names(module, name)[-1] == "mine"
    monkeypatch.delitem(table, "mine")
    monkeypatch.delitem(sys.modules, f"lthjax.{module}")
    assert rows.names(module, name) == [*table]


def test_help_lists_every_row_and_loads_no_jax() -> None:
    code = (
        "import sys\nfrom lthjax import launch\n"
        "try:\n    launch.main(['--config', 'configs/quickstart.py', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.replace("│", " ").split())
    assert text.endswith("False")
    for table in TABLES.values():
        assert ", ".join(table) in text
