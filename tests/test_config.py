import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lthjax import config, durations, launch, models, optim, plan, validate
from lthjax.config import Data, Optim, Prune, Study, Train
from lthjax.criteria import CRITERIA
from lthjax.errors import UserError


def resolved(study: Study, train_split: int = 55_000, digest: str = "d") -> dict:
    return config.identity(study, durations.lengths(study, train_split), digest)


def test_golden_fingerprint_of_the_defaults() -> None:
    """Freezes the defaults: a changed default would give old runs another meaning under the same name."""
    assert resolved(Study()) == {
        "model": "lenet5",
        "init": "glorot",
        "data.name": "mnist",
        "data.validation": 5000,
        "data.augment": False,
        "data.digest": "d",
        "train.steps": 5000,
        "train.batch": 60,
        "train.eval_every": 250,
        "train.precision": "float32",
        "optim.name": "adam",
        "optim.lr": 0.0012,
        "optim.momentum": 0.9,
        "optim.weight_decay": 0.0,
        "optim.schedule": "constant",
        "optim.warmup": 0,
        "optim.milestones": [],
        "optim.decay": 0.1,
        "prune.criterion": "large_final",
        "prune.scope": "layer",
        "prune.granularity": "weight",
        "prune.rate": [["output", 0.1], [".", 0.2]],
        "prune.rates": [],
        "prune.density": None,
        "prune.course": "geometric",
    }
    assert config.fingerprint(resolved(Study())) == "2ed9add0"


def test_a_field_added_with_a_default_renames_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    old = config.fingerprint(resolved(Study()))
    grown = dataclasses.make_dataclass("Study", [("novelty", int, 7)], bases=(Study,), frozen=True)
    monkeypatch.setattr(config, "Study", grown)
    assert config.fingerprint(resolved(grown())) == old
    assert config.fingerprint(resolved(grown(novelty=8))) != old


@pytest.mark.parametrize(
    "changed",
    [
        Study(model="lenet300"),
        Study(data=Data(validation=4000)),
        Study(data=Data(augment=True)),
        Study(train=Train(steps=4999)),
        Study(train=Train(batch=61)),
        Study(train=Train(eval_every=50)),
        Study(train=Train(precision="bfloat16")),
        Study(optim=Optim(name="sgd")),
        Study(optim=Optim(lr=0.1)),
        Study(optim=Optim(weight_decay=0.1)),
        Study(optim=Optim(schedule="cosine")),
        Study(optim=Optim(warmup=10)),
        Study(prune=Prune(scope="global", rate=0.2)),
        Study(prune=Prune(rate=(("output", 0.1), (".", 0.25)))),
        Study(prune=Prune(rates=(0.2,) * 12)),
        Study(prune=Prune(density=0.1)),
        Study(prune=Prune(density=0.1, course="cubic")),
    ],
)
def test_what_changes_numbers_changes_the_fingerprint(changed: Study) -> None:
    assert config.fingerprint(resolved(changed)) != config.fingerprint(resolved(Study()))


def test_the_data_are_part_of_it() -> None:
    assert config.fingerprint(resolved(Study(), digest="e")) != config.fingerprint(resolved(Study()))


@pytest.mark.parametrize(
    "widened",
    [
        Study(name="other"),
        Study(seeds=(4, 5)),
        Study(levels=3),
        Study(arms=("ticket",)),
        Study(repeats=(("reinit", 3),)),
        Study(control_levels=(1,)),
        Study(rewind=(0, 100)),
        Study(train=Train(steps="5000 steps")),
    ],
)
def test_what_only_adds_cells_does_not(widened: Study) -> None:
    assert config.fingerprint(resolved(widened)) == config.fingerprint(resolved(Study()))


def test_durations_in_steps_and_epochs() -> None:
    study = Study(
        train=Train(steps="3 epochs", eval_every="1 epoch", batch=50), rewind=(0, "5 steps", "1 epoch")
    )
    assert durations.lengths(study, 1020) == config.Lengths(20, 60, 20, 0, (), (0, 5, 20))


def test_numbers_of_numpy_are_those_of_python(tmp_path: Path) -> None:
    """As `np.linspace` gives them in a config file; numpy compares a number with a tuple item by item."""
    (tmp_path / "c.py").write_text(
        "import numpy as np\nfrom lthjax import sweep\nfrom lthjax.config import *\n"
        "base = Study(seeds=tuple(np.arange(2)), levels=np.int64(2), optim=Optim(lr=np.float64(0.1)))\n"
        "pairs = (('fc', np.float64(0.1)), ('.', np.float64(0.2)))\n"
        "configs = [Study(prune=Prune(rate=pairs)), *sweep.studies(\n"
        "    base, sweep.values('prune.rate', *np.linspace(0.25, 0.5, 2)))]"
    )
    base = Study(seeds=(0, 1), levels=2, optim=Optim(lr=0.1))
    wanted = [
        Study(prune=Prune(rate=(("fc", 0.1), (".", 0.2)))),
        *(dataclasses.replace(base, prune=Prune(rate=rate)) for rate in (0.25, 0.5)),
    ]
    found = [options.study for options in launch.parse(["--config", str(tmp_path / "c.py")])]
    assert list(map(repr, found)) == list(map(repr, wanted))


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (Study(model="lenet"), r"model: 'lenet' is not known; did you mean 'lenet5'\?"),
        (Study(arms=("ticket", "reinits")), r"arms: 'reinits' is not known; did you mean 'reinit'\?"),
        (Study(arms=("ticket", "ticket")), "arms: .* must be all different"),
        (Study(levels=3, control_levels=(1, 1, 3)), r"control_levels: \(1, 1, 3\) .* must be all different"),
        (Study(prune=Prune(rate=1.5)), r"prune.rate: 1.5 is not allowed; it must be in \(0, 1\)"),
        (Study(prune=Prune(rate=0.0)), r"prune.rate: 0.0 is not allowed"),
        (Study(prune=Prune(rate=(("fc", 20.0),))), r"prune.rate of 'fc': 20.0 .* in \(0, 1\)"),
        (Study(prune=Prune(rate=(("(", 0.2),))), r"prune.rate: '\(' is not a regex"),
        (Study(prune=Prune(scope="global")), "one number where prune.scope is 'global'"),
        (Study(prune=Prune(rates=(0.2, 1.5))), "prune.rates: 1.5 is not allowed"),
        (Study(levels=3, prune=Prune(rates=(0.2, 0.5))), "one for each of the 3 levels"),
        (Study(prune=Prune(density=0.0)), "prune.density: 0.0 is not allowed"),
        (Study(levels=1, prune=Prune(rates=(0.2,), density=0.1)), "left out where prune.rates is given"),
        (Study(prune=Prune(criterion="large")), "prune.criterion: 'large' is not known"),
        (Study(seeds=(1, 2, 1)), r"seeds: \(1, 2, 1\) .* leave out the duplicates"),
        (Study(seeds=()), "seeds: .* at least one seed"),
        (Study(seeds=(-1,)), "seeds: -1 .* whole numbers from 0"),
        (Study(levels=-1), "levels: -1"),
        (
            Study(repeats=(("ticket", 3),)),
            "repeats: 'ticket' is not allowed; it must be an arm that leads no",
        ),
        (Study(repeats=(("reinti", 3),)), r"repeats: 'reinti' is not known; did you mean 'reinit'\?"),
        (Study(repeats=(("reinit", 0),)), "repeats of reinit: 0"),
        (Study(control_levels=(0,)), "control_levels: 0"),
        (Study(name="../x"), "name: '../x' .* names a folder"),
        (Study(train=Train(batch=0)), "train.batch: 0"),
        (Study(optim=Optim(lr=float("inf"))), "optim.lr: inf .* above 0 and finite"),
        (Study(prune=Prune(rate=())), r"prune.rate: \(\) is not allowed"),
        (Study(repeats=(("reinit", 2), ("reinit", 3))), "repeats: .* one pair for an arm"),
        (Study(optim=Optim(lr=0.0)), "optim.lr: 0.0 .* above 0"),
        (Study(optim=Optim(momentum=1.0)), "optim.momentum"),
        (Study(optim=Optim(milestones=(5,))), "optim.milestones"),
        (Study(train=Train(precision="bfloat")), "train.precision: 'bfloat' .* did you mean 'bfloat16'"),  # type: ignore[arg-type]
        (Study(optim=Optim(name="adma")), "optim.name: 'adma' is not known; did you mean 'adam'"),  # type: ignore[arg-type]
        (Study(data=Data(validation=0)), "data.validation: 0"),
        (Study(rewind=("soon",)), "rewind: 'soon' is not a duration; write a number of steps"),
        (Study(train=Train(steps="2 days")), "train.steps: '2 days' is not a duration"),
    ],
)
def test_validation_names_field_value_and_range(study: Study, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        validate.validate(study)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (
            Study(prune=Prune(rate=((".2", 0.4),))),
            r"prune.rate: \(\('\.2', 0\.4\),\) is not allowed; .* one rate per level is prune.rates",
        ),
        (
            Study(optim=Optim(schedule="steps")),
            r"optim.milestones: \(\) is not allowed; it must be at least one where optim.schedule is 'steps'",
        ),
    ],
)
def test_slips_are_refused_in_new_trainings_alone(study: Study, sentence: str) -> None:
    study = dataclasses.replace(study, data=Data("mnist_10k"))
    with pytest.raises(UserError, match=sentence):
        plan.prepare(study)
    assert plan.prepare(study, trained=True).study == study


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            Prune(rate=1e-9),
            r"prune\.rate: 1e-09 removes none of the weights of lenet300 in 3 levels; give a higher one",
        ),
        (
            Prune(rate=0.9999999),
            r"prune\.rate: 0\.9999999 leaves none of the weights of lenet300; give a low",
        ),
        (
            Prune(rates=(1e-9,) * 3),
            r"prune\.rates: \(1e-09, .* removes none of the weights .*; give higher ones",
        ),
        (Prune(density=0.999999), r"prune\.density: 0\.999999 removes none .*; give a lower one\."),
        (Prune(density=1e-9), r"prune\.density: 1e-09 leaves none .*; give a higher one\."),
    ],
)
def test_a_study_that_prunes_nothing_or_everything_is_refused(made: Prune, sentence: str) -> None:
    study = Study(data=Data("mnist_10k"), model="lenet300", levels=3, prune=made)
    with pytest.raises(UserError, match=sentence):
        plan.prepare(study)
    assert plan.prepare(study, trained=True).study == study


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ((0.2, 1e-9, 0.2), "by rounding no weight is removed at level 2; the mask stays as it was"),
        (
            (1e-9, 0.2, 1e-9),
            "by rounding no weight is removed at level 1 and 1 later level; the mask stays as it was",
        ),
        ((0.2, 0.9999999, 0.2), "from level 2 on no weight of lenet300 is left"),
        ((0.2, 0.2, 0.2), ""),
    ],
)
def test_a_later_level_that_prunes_nothing_or_everything_is_warned_of(
    rates: tuple[float, ...], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = Study(data=Data("mnist_10k"), model="lenet300", levels=3, prune=Prune(rates=rates))
    for _ in range(2):
        plan.prepare(study)
    assert [record.getMessage() for record in caplog.records] == [f"warning: prune.rates: {says}."] * bool(
        says
    )


def test_a_number_may_be_a_regex_beside_others() -> None:
    validate.check_slips(Study(prune=Prune(rate=(("1", 0.2), (".", 0.1)))))


def test_a_schedule_of_ones_own_may_do_without_milestones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optim.SCHEDULES, "own", optim.SCHEDULES["steps"])
    validate.check_slips(Study(optim=Optim(schedule="own")))


@pytest.mark.parametrize("scope", ["layer", "group"])
@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        (((".", 0.2), ("output", 0.1)), r"'output' never applies: '\.' before it matches all of its weights"),
        ((("conv", 0.2), ("fc|output", 0.1), ("[1u]/", 0.1)), r"'conv' and 'fc\|output' before it match all"),
        ((("conv", 0.2), ("fc", 0.2), ("conv", 0.1)), "'conv' never applies: 'conv' before it matches"),
    ],
)
def test_a_rate_that_never_applies(scope: Any, rate: tuple[tuple[str, float], ...], sentence: str) -> None:
    study = Study(data=Data("mnist_10k"), prune=Prune(scope=scope, rate=rate))
    with pytest.raises(UserError, match=f"prune.rate: .*{sentence}"):
        plan.prepare(study)
    assert plan.prepare(study, trained=True).study == study


@pytest.mark.parametrize("made", [Prune(), Prune(rate=((".", 0.2), ("output", 0.1)), density=0.1)])
def test_rates_that_nobody_chose_need_not_apply(made: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default has a pattern for other layers than `output`; a density replaces all rates."""
    monkeypatch.setitem(models.MODELS, "alone", models.Entry((), 1, "for a test"))
    study = Study(data=Data("mnist_10k"), model="alone", prune=made)
    assert plan.prepare(study).study == study


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (Study(train=Train(batch=2000)), "train.batch: 2000 is larger than the train split of 1000"),
        (Study(rewind=(6000,)), "rewind: 6000 is step 6000, beyond the end of training at step 5000"),
        (Study(rewind=("400 epochs",)), "rewind: '400 epochs' is step 6400, beyond the end"),
        (Study(rewind=(16, "1 epoch")), "rewind: .* names a step twice"),
        (Study(rewind=()), "rewind: it is empty"),
        (Study(optim=Optim(warmup=5000)), "optim.warmup: 5000 is not over before step 5000"),
        (
            Study(optim=Optim(schedule="steps", milestones=(10, 5000))),
            "must lie between the end of the warm-up at step 0 and the end",
        ),
        (Study(train=Train(steps=0)), "train.steps: 0 is no training"),
        (Study(train=Train(eval_every=0)), "train.eval_every: 0"),
    ],
)
def test_what_depends_on_the_data_is_checked_too(study: Study, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        durations.lengths(study, 1000)


def test_load_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(text: str) -> Path:
        (tmp_path / "c.py").write_text(text)
        return tmp_path / "c.py"

    with pytest.raises(UserError, match=r"did you mean 'configs/quickstart.py'|quickstart"):
        config.load(ROOT / "configs" / "quickstat.py")
    with pytest.raises(UserError, match="is not a file"):
        config.load(tmp_path / "empty" / "c.py")
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        UserError, match=r"'mine\.py' is not a file; give the path of a config file, or the name"
    ):
        config.load("mine.py")
    with pytest.raises(
        UserError, match=r"'quickstart\.py' is not a file; did you mean 'quickstart', a config"
    ):
        config.load("quickstart.py")
    with pytest.raises(UserError, match="defines no `config`; end it with"):
        config.load(written("x = 1"))
    with pytest.raises(UserError, match="a `config` of type int"):
        config.load(written("config = 1"))
    with pytest.raises(UserError, match="field of Study: 'sedes' is not known; did you mean 'seeds'"):
        config.load(written("from lthjax.config import Study\nconfig = Study(sedes=(1,))"))
    with pytest.raises(UserError, match="field of Train: 'step' is not known; did you mean 'steps'"):
        config.load(written("from lthjax.config import *\nconfig = Study(train=Train(step=1))"))
    for fields, sentence in {
        "name=5": "name: 5 is not allowed; it must be of type str",
        "seeds=5": r"seeds: 5 is not allowed; it must be of type tuple\[int, ...\]",
        "arms='ticket'": "arms: 'ticket' is not allowed",
        "data='mnist'": "data: 'mnist' is not allowed; it must be of type Data",
        "optim=Optim(lr='0.1')": "optim.lr: '0.1' is not allowed; it must be of type float",
        "repeats={'reinit': 2}": "repeats: {'reinit': 2} is not allowed",
        "model=None": "model: None is not allowed",
        "train=Train(batch=True)": "train.batch: True is not allowed",
    }.items():
        with pytest.raises(UserError, match=sentence):
            config.load(written(f"from lthjax.config import *\nconfig = Study({fields})"))
    with pytest.raises(UserError, match="line 2: SystemExit"):
        config.load(written("import sys\nsys.exit(3)"))
    with pytest.raises(UserError, match="line 2: ZeroDivisionError"):
        config.load(written("x = 1\ny = x / 0\n"))
    with pytest.raises(UserError, match="line 1: SyntaxError"):
        config.load(written("config = ("))


def test_a_config_neither_prints_on_standard_output_nor_moves_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os\nfrom lthjax.config import Study\nprint('hello')\nos.chdir('/')\nconfig = Study(name='a')"
    )
    (tmp_path / "a.py").write_text(code)
    before = Path.cwd()
    assert config.load(tmp_path / "a.py").name == "a"
    assert capsys.readouterr() == ("", "hello\n")
    assert Path.cwd() == before


def test_a_study_comes_back_from_json() -> None:
    import json

    for path in sorted((ROOT / "configs").glob("*.py")):
        for study in config.load_all(path):
            assert config.from_dict(json.loads(json.dumps(dataclasses.asdict(study)))) == study


def test_a_criterion_whose_scores_have_changed_has_another_folder() -> None:
    lengths = config.Lengths(10, 10, 5, 0, (), (0,))
    made = {
        name: config.identity(config.Study(prune=config.Prune(criterion=name)), lengths, "x")
        for name in CRITERIA
    }
    assert {name: of.get("prune.criterion_version", 1) for name, of in made.items()} == {
        name: row.version for name, row in CRITERIA.items()
    }
    assert CRITERIA["grasp"].version == 2
    assert len({config.fingerprint(of) for of in made.values()}) == len(CRITERIA)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "decay"])
def test_a_whole_number_is_the_same_as_a_float(name: str) -> None:
    whole, broken = (Study(optim=Optim(**{name: value})) for value in (1, 1.0))
    assert config.fingerprint(resolved(whole)) == config.fingerprint(resolved(broken))


def test_what_is_only_recorded_is_outside_the_fingerprint() -> None:
    assert resolved(Study(train=Train(log_every=1))) == resolved(Study())
    with pytest.raises(UserError, match=r"train\.log_every: -1 is not allowed"):
        validate.validate(Study(train=Train(log_every=-1)))


@pytest.mark.parametrize("seeds", [[0, 1], range(2)])
def test_a_study_made_in_python_may_have_any_sequence_of_seeds(seeds: Any) -> None:
    validate.validate(Study(seeds=seeds))
