"""Merging folders: what lies beside the cells comes with them, and is never lost in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import result

from analysis.report import until
from lthjax import config, prune, record, study
from lthjax.errors import UserError
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.merge import merge
from lthjax.models import Variables

Fill = Callable[..., Path]
_PARAMS = {"fc": {"kernel": np.arange(1, 31, dtype=np.float32).reshape(6, 5)}}
_LOOKS = until.State(
    "within-2", [3, 6, 9, 12], 0.017, 6, "supported", "decided", [0, 1, 2, 3, 4, 5], "rewind-0"
)


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    def filled(name: str, *seeds: int, told: dict[str, Any] | None = None, **changes: Any) -> Path:
        """A run folder of dense networks and tickets without training.

        Args:
            name: of the machine; a name that was there has its folder go on.
            seeds: of its cells.
            told: fields of study.json that are others than here.
            changes: of the config, or `curves` of the results.
        """
        curves = changes.pop("curves", {})
        fields = {"name": "x", "seeds": seeds, "levels": 1, "arms": ("ticket",), "model": "lenet300",
                  "data": config.Data(name="mnist_10k"), "train": config.Train(steps=200)}  # fmt: skip
        prepared = study.prepare(config.Study(**{**fields, **changes}))
        about = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
        with Store(tmp_path / name / prepared.folder, {**about, **(told or {})}) as store:  # type: ignore[typeddict-item]
            for seed in seeds:
                for cell in (Cell(seed, DENSE, 0, DENSE), Cell(seed, "rewind-0", 1, "ticket")):
                    made = result(cell)
                    made["curves"] |= curves
                    store.write(
                        cell, made, prune.ones(_PARAMS), Variables(jax.tree.map(np.array, _PARAMS), {})
                    )  # type: ignore[arg-type]
        return store.path

    return filled


def test_the_looks_of_a_claim_come_with_the_cells(fill: Fill, tmp_path: Path) -> None:
    here, there, into = fill("here", 0), fill("there", 1), tmp_path / "all"
    other = _LOOKS._replace(claim="beats-random")
    until.keep(there, {"within-2": _LOOKS, "beats-random": other})
    merge([here, there], into)
    assert until.read(into) == {"within-2": _LOOKS, "beats-random": other}
    # The same looks in both, and cells that are all there.
    until.keep(here, {"within-2": _LOOKS})
    (into / until.FILE).unlink()
    assert sum(merge([here, there], into).copied.values()) == 0
    assert until.read(into) == {"within-2": _LOOKS, "beats-random": other}


def test_two_folders_with_other_looks_of_a_claim_are_refused(fill: Fill, tmp_path: Path) -> None:
    here, there, into = fill("here", 0), fill("there", 1), tmp_path / "all"
    until.keep(here, {"within-2": _LOOKS})
    until.keep(there, {"within-2": _LOOKS._replace(seeds=3, ended="")})
    with pytest.raises(
        UserError, match=r"here/.* and .*there/.* have other looks of the claim within-2, and"
    ):
        merge([here, there], into)
    assert not into.exists()
    with pytest.raises(UserError, match="the claim within-2"):
        merge([there], here)
    assert not (here / "seed=1").exists()
    assert until.read(here) == {"within-2": _LOOKS}
