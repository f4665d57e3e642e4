"""Merging folders: what lies beside the cells comes with them, and is never lost in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import result

from analysis import commands, open_run
from analysis import merge as merge_command
from analysis.report import until, verdicts
from lthjax import config, prune, record, study
from lthjax.errors import UserError
from lthjax.folder.store import Store
from lthjax.folder.verified import read_study
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
            changes: of the config, or `curves` of the results, or the `version` of the tickets' arm.
        """
        curves, version = changes.pop("curves", {}), changes.pop("version", None)
        fields = {"name": "x", "seeds": seeds, "levels": 1, "arms": ("ticket",), "model": "lenet300",
                  "data": config.Data(name="mnist_10k"), "train": config.Train(steps=200)}  # fmt: skip
        prepared = study.prepare(config.Study(**{**fields, **changes}))
        about = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
        with Store(tmp_path / name / prepared.folder, {**about, **(told or {})}) as store:  # type: ignore[typeddict-item]
            for seed in seeds:
                for cell in (Cell(seed, DENSE, 0, DENSE), Cell(seed, "rewind-0", 1, "ticket")):
                    made = result(cell)
                    made["curves"] |= curves
                    if version is not None and cell.arm == "ticket":
                        made["version"] = version
                    store.write(
                        cell, made, prune.ones(_PARAMS), Variables(jax.tree.map(np.array, _PARAMS), {})
                    )  # type: ignore[arg-type]
        return store.path

    return filled


def test_a_published_folder_is_neither_joined_nor_filled(fill: Fill, tmp_path: Path) -> None:
    run, there = fill("a", 0), fill("b", 1)
    for publication in (there, tmp_path / "new"):
        publication.mkdir(exist_ok=True)
        (publication / "published.json").write_text('{"files": {}}')
        before = sorted(publication.rglob("*"))
        for runs, into in (([run], publication), ([publication], tmp_path / "c"), ([publication], run)):
            with pytest.raises(UserError, match="published folder, which holds tables and no cells"):
                merge(runs, into)
        assert sorted(publication.rglob("*")) == before
    assert not (tmp_path / "c").exists()


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


def test_a_search_that_has_gone_on_is_merged_again(fill: Fill, tmp_path: Path) -> None:
    """Its later state is taken, in whatever order, and an earlier one changes nothing."""
    here, into = fill("here", 0), tmp_path / "all"
    early = _LOOKS._replace(seeds=3, outcome="undecided", ended="", chosen=[0, 1, 2])
    until.keep(here, {"within-2": early})
    merge([here], into)
    assert until.read(into) == {"within-2": early}
    until.keep(here, {"within-2": _LOOKS})
    merge([here], into)
    assert until.read(into) == {"within-2": _LOOKS}
    until.keep(here, {"within-2": early})
    merge([here], into)
    assert until.read(into) == {"within-2": _LOOKS}
    # Other seeds, or looks after the last one, are another search.
    for other in (early._replace(chosen=[3, 4, 5]), early._replace(ended="decided", outcome="refuted")):
        until.keep(here, {"within-2": other})
        with pytest.raises(UserError, match="other looks of the claim within-2"):
            merge([here], into)


def test_study_json_says_what_all_folders_ask_for_and_were_made_by(fill: Fill, tmp_path: Path) -> None:
    first, second = (f"run.py --config x.py --seeds {seed}" for seed in (0, 1))
    here = fill("here", 0, levels=3, arms=("ticket", "random"), control_levels=(2,), rewind=(50,),
                told={"commands": [first]})  # fmt: skip
    there = fill("there", 1, levels=5, arms=("ticket", "reinit"), control_levels=(4,), rewind=(0, "50 steps"),
                 repeats=(("reinit", 2),),
                 told={"devices": "8 x H100", "git": "abc", "commands": [second]})  # fmt: skip
    line = f"8 x H100; python {read_study(there)['versions']['python']}, "
    for order in ([here, there], [there, here]):
        into = tmp_path / f"all-{order[0].parent.name}"
        merge(order, into)
        about = read_study(into)
        asked = about["config"]
        assert (asked["seeds"], asked["levels"], asked["control_levels"]) == ([0, 1], 5, [2, 4])
        assert {*asked["arms"]} == {"ticket", "random", "reinit"}
        assert asked["repeats"] == [["reinit", 2]]
        assert about["lengths"]["rewind"] == [0, 50]
        assert asked["rewind"] == [0, 50 if order[0] == here else "50 steps"]
        own, (other,) = about["devices"], about["earlier"]
        given = [first, second] if order[0] == here else [second, first]
        assert about["commands"][:2] == given
        again = f"python {given[0].rpartition(' ')[0]} 0 1"
        assert commands.of_all(about, asked["seeds"]) == again
        found = verdicts.findings(about, open_run(into).rows, into)
        added = [str(one.where) for one in found if "x.py" in str(one.where)]
        assert added
        assert all(one.startswith("python run.py") and f"--out {tmp_path}" in one for one in added)
        if order[0] == here:
            assert other.startswith(line)
            assert other.endswith("; commit abc")
        else:
            assert (own, other.startswith(line)) == ("8 x H100", False)
    # The folder that is there is one of them, and what it says of earlier stays.
    third = fill("third", 2, told={"devices": "1 x tpu"})
    merge([third], into)
    assert [one.partition(";")[0] for one in read_study(into)["earlier"]] == [
        read_study(here)["devices"], "1 x tpu",
    ]  # fmt: skip


def test_controls_of_every_level_stay_controls_of_every_level(fill: Fill, tmp_path: Path) -> None:
    plain = fill("plain", 0, levels=3, arms=("ticket",), control_levels=(2,))
    every, some = fill("every", 1, levels=3, arms=("ticket", "random")), tmp_path / "some"
    merge([plain, every], some)
    assert read_study(some)["config"]["control_levels"] == []
    merge([fill("deeper", 2, levels=5, arms=("ticket", "random"), control_levels=(5,))], some)
    assert read_study(some)["config"]["control_levels"] == [1, 2, 3, 5]


def test_the_config_file_comes_with_the_cells(
    fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none, here, there = fill("none", 0), fill("here", 1), fill("there", 2)
    into = tmp_path / "all"
    for run, text in ((here, "first"), (there, "second")):
        (run / "config.py").write_text(text)
    merge_command.main([*map(str, (none, here)), "--into", str(into)])
    assert (into / "config.py").read_text() == "first"
    assert "config.py" not in capsys.readouterr().err
    merge_command.main([str(there), "--into", str(into)])
    assert (into / "config.py").read_text() == "first"
    said = f"not merged, as {into / 'config.py'} is another config: {there / 'config.py'}"
    assert said in capsys.readouterr().err.splitlines()


def test_losses_that_one_folder_logs_are_no_difference(fill: Fill, tmp_path: Path) -> None:
    logged = {"loss_step": [0, 4], "loss": [2.0, 1.0]}
    here, there = fill("here", 0, 1), fill("there", 0, 2, curves=logged)
    seldom = fill("seldom", 0, curves={"loss_step": [0], "loss": [2.0]})
    done = merge([here, there, seldom], tmp_path / "all")

    def curves(run: Path, seed: int) -> dict[str, Any]:
        return json.loads((run / f"seed={seed}" / DENSE / "result.json").read_text())["curves"]

    assert logged.items() <= curves(done.into, 0).items()
    assert [*done.copied.values()] == [2, 4, 0]
    merge([there], here)
    assert "loss" not in curves(here, 0), "what is there stays"
    assert "loss" in curves(here, 2)
    with pytest.raises(UserError, match="other numbers for the same cell: seed=0/dense"):
        merge([fill("other", 0, curves={"test_loss": [0.6]})], here)


def test_cells_of_two_versions_of_an_arm_are_refused(fill: Fill, tmp_path: Path) -> None:
    here, there, new = fill("here", 0), fill("there", 1, version=2), fill("new", 2, version=2)
    with pytest.raises(
        UserError,
        match=r"seed=0/.*/ticket of .*here/.* and seed=1/.*/ticket of .*there/.* are of two versions of the",
    ):
        merge([here, there], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    assert sum(merge([there, new], tmp_path / "all").copied.values()) == 4
