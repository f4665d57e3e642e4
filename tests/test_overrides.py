"""Options that replace fields of a config file's study, and how they fit together."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from analysis import export
from analysis.rows import Row
from lthjax import config, idle, imp, launch, optim, overrides, plan
from lthjax.config import Data, Lengths, Optim, Prune, Study, Train
from lthjax.errors import UserError
from lthjax.imp import Cell

HEAD = "from lthjax.config import Prune, Study\n"


def parsed(folder: Path, made: str, *options: str) -> list[Study]:
    """What the command line makes of a config file."""
    file = folder / "own.py"
    file.write_text(HEAD + made)
    return [one.study for one in launch.parse(["--config", str(file), *options])]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), {2, 4, 17}),
        (("--levels", "5"), {2, 4, 5}),
        (("--levels=4",), {2, 4}),
        (("--levels", "1"), {1}),
        (("--levels", "19"), {2, 4, 17, 19}),
        (("--levels", "5", "--control-levels", "2"), {2}),
        (("--levels", "0"), set()),
    ],
)
def test_the_last_level_has_its_controls(tmp_path: Path, options: tuple[str, ...], wanted: set[int]) -> None:
    (study,) = parsed(tmp_path, "config = Study(levels=17, control_levels=(2, 4, 17))", *options)
    chain = imp.Chain("rewind-0", 0, "ticket", "large_final")
    levels = range(1, study.levels + 1)
    assert {level for level in levels if "reinit" in imp.arms_at(study, chain, level)} == wanted


def test_a_study_with_controls_everywhere_stays_so(tmp_path: Path) -> None:
    (study,) = parsed(tmp_path, "config = Study(levels=17)", "--levels", "5")
    assert (study.levels, study.control_levels) == (5, ())


@pytest.mark.parametrize(
    ("made", "options", "says"),
    [
        (
            "Prune()",
            ("--prune.density", "0.1", "--prune.rate", "0.2"),
            "not go together with --prune.density",
        ),
        ("Prune()", ("--prune.rate", "0.2", "--prune.rates", "0.2"), "not go together with --prune.rates"),
        (
            "Prune(density=0.1)",
            ("--prune.rate=0.2",),
            "the config file gives prune.density; leave it out, or",
        ),
        ("Prune(rates=(0.1,))", ("--prune.rate", "0.2"), "the config file gives prune.rates"),
        ("Prune(rate=0.2, density=0.1)", (), "^prune.rate: it does not go together with prune.density; "),
        ("Prune(rate=0.2, rates=(0.1,))", ("--seeds", "0"), "^prune.rate: .* together with prune.rates; "),
    ],
)
def test_a_rate_and_a_density_do_not_go_together(
    tmp_path: Path, made: str, options: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        parsed(tmp_path, f"config = Study(levels=1, prune={made})", *options)


@pytest.mark.parametrize("fields", [{"density": 0.025}, {"rates": (0.5, 0.1)}])
def test_a_run_begun_with_a_rate_beside_what_replaces_it_goes_on(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    """The refusal names the option by which the config file asks for the study that it asked for before."""
    both = Study(levels=2, prune=Prune(rate=0.3, **fields))
    made = f"from lthjax.config import *\nconfig = {both!r}"
    with pytest.raises(UserError, match="or, for a run begun with both, add --prune") as refused:
        parsed(tmp_path, made)
    option = str(refused.value).rpartition(" add ")[2].removesuffix(".")
    assert parsed(tmp_path, made, *option.split()) == [both]


def test_a_rate_goes_where_the_density_is_taken_away(tmp_path: Path) -> None:
    with_density = "config = Study(levels=1, prune=Prune(density=0.1))"
    (study,) = parsed(tmp_path, with_density, "--prune.rate", "0.2", "--prune.density", "None")
    assert (study.prune.rate, study.prune.density) == (0.2, None)
    # In scope group its patterns name the groups.
    grouped = ("--prune.scope", "group", "--prune.rate", "conv", "0.2", "--prune.density", "0.1")
    (study,) = parsed(tmp_path, with_density, *grouped)
    assert (study.prune.rate, study.prune.density) == ((("conv", 0.2),), 0.1)
    (study,) = parsed(tmp_path, "config = Study(prune=Prune(rate=0.3))", "--prune.density", "0.2")
    assert study.prune.density == 0.2


def test_a_rate_of_a_config_file_stands_beside_a_density_where_one_of_them_counts(tmp_path: Path) -> None:
    """An option that chooses between them, patterns that name groups, a base that other studies prune by."""
    both = "config = Study(levels=1, prune=Prune(rate=0.3, density=0.1))"
    for density in (None, 0.2):
        (study,) = parsed(tmp_path, both, "--prune.density", str(density))
        assert study.prune == Prune(rate=0.3, density=density)
    grouped = "config = Study(prune=Prune(scope='group', rate=(('conv', 0.3),), density=0.1))"
    assert len(parsed(tmp_path, grouped)) == 1
    base = "from dataclasses import replace\nbase = Study(levels=1, prune=Prune(rate=0.3))\n"
    member = "replace(base, prune=replace(base.prune, density={}))"
    assert len(parsed(tmp_path, f"{base}configs = [base, {member.format(0.1)}]")) == 2
    # No one option keeps both densities.
    with pytest.raises(UserError, match=r"with prune\.density; leave one of them out\.$"):
        parsed(tmp_path, f"{base}configs = [{member.format(0.1)}, {member.format(0.2)}]")


@pytest.mark.parametrize(
    ("made", "options", "why"),
    [
        (
            "Study()",
            ("--optim.momentum", "0.5"),
            "where optim.name is 'adam', which has constants of its own",
        ),
        ("Study()", ("--optim.momentum=0.5", "--optim.name", "muon"), "where optim.name is 'muon'"),
        ("Study()", ("--optim.decay", "0.5"), "where optim.schedule is 'constant', which has no milestones"),
        ("Study(levels=2)", ("--prune.course", "cubic"), "without prune.density"),
        ("Study(levels=1)", ("--prune.course", "cubic", "--prune.density", "0.1"), "in one level"),
        ("Study()", ("--repeats", "invert", "3"), "for 'invert', which is not among the arms"),
        ("Study()", ("--repeats", "reinit", "3", "--arms", "ticket"), "for 'reinit', which is not among"),
    ],
)
def test_options_without_effect_are_refused(
    tmp_path: Path, made: str, options: tuple[str, ...], why: str
) -> None:
    name = options[0].partition("=")[0]
    with pytest.raises(UserError, match=f"{name}: it has no effect {why}.*; leave it out"):
        parsed(tmp_path, f"config = {made}", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--optim.momentum", "0.5", "--optim.name", "sgd"),
        ("--optim.decay", "0.5", "--optim.schedule", "steps", "--optim.milestones", "50"),
        ("--prune.course", "cubic", "--prune.density", "0.1"),
        ("--repeats", "reinit", "3", "random", "2"),
        ("--repeats", "invert", "3", "--arms", "invert"),
        ("--repeats", "no_arm_at_all", "3"),  # refused by `validate`, which knows all names
    ],
)
def test_options_with_an_effect_are_taken(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert parsed(tmp_path, "config = Study()", *options)


def test_an_option_with_an_effect_in_one_study_of_a_sweep_is_taken(tmp_path: Path) -> None:
    both = "configs = [Study(optim=Optim(name=name)) for name in ('adam', 'sgd')]"
    found = parsed(tmp_path, f"from lthjax.config import Optim\n{both}", "--optim.momentum", "0.5")
    assert [one.optim.momentum for one in found] == [0.5, 0.5]
    both = "configs = [Study(arms=arms) for arms in (('reinit',), ('random',))]"
    assert len(parsed(tmp_path, both, "--repeats", "random", "2")) == 2


def test_a_level_later_gives_options_of_pruning_their_effect(tmp_path: Path) -> None:
    """They name the folder of a study whose levels come later, and controls may, too."""
    assert parsed(tmp_path, "config = Study()", "--levels", "0", "--prune.criterion", "snip")
    assert parsed(tmp_path, "config = Study()", "--arms", "ticket", "--control-levels", "3")
    file = "config = Study(repeats=(('reinit', 3),))"
    assert parsed(tmp_path, file, "--arms", "ticket")


@pytest.mark.parametrize(
    ("field", "values", "table", "rows"),
    [
        ("name", {"momentum": 0.5}, {**optim.OPTIMISERS}, {"sgd", "nesterov"}),
        ("schedule", {"decay": 0.5}, {**optim.SCHEDULES}, {"steps"}),
    ],
)
def test_fields_without_effect_are_those_that_a_row_does_not_read(
    field: str, values: dict[str, float], table: dict[str, Any], rows: set[str]
) -> None:
    """Three updates of a weight with the field at its default, and at another value."""

    def trained(**changes: Any) -> np.ndarray:
        config_ = Optim(**{"milestones": (1,), **changes})
        made = optim.make(config_, Lengths(9, 9, 9, 0, (1,), (0,)))
        weights = {"w": jnp.arange(6.0).reshape(2, 3)}
        state = made.at(0).init(weights)
        for step in range(3):
            moved, state = made.at(step).update(weights, state, weights)
            weights = optax.apply_updates(weights, moved)
        return np.asarray(weights["w"])

    read = {
        row for row in table if not np.array_equal(trained(**{field: row}), trained(**{field: row}, **values))
    }
    assert read == rows
    (name,) = values
    idle_ = {row for row in table if f"optim.{name}" in idle.fields(Study(optim=Optim(**{field: row})))}
    assert idle_ == {*table} - rows


def test_options_are_found_in_every_spelling() -> None:
    line = ["--control_levels=3", "--levels", "2", "levels"]
    found = {name for name in ("levels", "control-levels", "seeds") if overrides.given(line, name)}
    assert found == {"levels", "control-levels"}


@pytest.mark.parametrize(
    ("field", "one", "other", "says"),
    [
        ("rewind", (0,), (500,), r"rewind=\(0, 500\) in one study does it"),
        ("rewind", (0, "1 epoch"), (0, 9), r"rewind=\(0, '1 epoch', 9\) in one study"),
        ("seeds", (0,), (1,), r"seeds=\(0, 1\) in one study does it"),
        ("levels", 1, 2, "leave one out, or make them one"),
    ],
)
def test_a_sweep_that_is_one_study(field: str, one: object, other: object, says: str) -> None:
    base = Study(data=Data("mnist_10k"), train=Train(steps=600), prune=Prune(rate=0.2))
    with pytest.raises(UserError, match=says):
        plan.prepare_all([config.replaced(base, {field: value}) for value in (one, other)])


def test_an_export_names_its_chain_where_there_are_two() -> None:
    empty = dict.fromkeys(Row._fields)
    rows = [
        Row(**empty | Cell(0, chain, level, arm, 1)._asdict())  # type: ignore[arg-type]
        for chain, level, arm in (
            ("dense", 0, "dense"),
            ("rewind-0", 1, "ticket"),
            ("rewind-500", 1, "ticket"),
            ("rewind-500", 2, "ticket"),
        )
    ]
    assert export.only_chain(rows, 0, 2, "ticket") == "rewind-500"
    assert export.only_chain(rows, 0, 9, "ticket") == "rewind-0"
    with pytest.raises(UserError, match="--chain: rewind-0, rewind-500 all have level 1, ticket; name one"):
        export.only_chain(rows, 0, 1, "ticket")
