"""Shared by all tests: strict arithmetic, every core a device, small data, a tiny study."""

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lthjax.devices import replicate

replicate.use_all_cores()

# A shell ignores Ctrl-C in what it runs in the background, and so would the tests that interrupt a study.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile the same few programs repeatedly, in this process and in the ones that they start. Workers of
# pytest-xdist use the cache folder of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="lthjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
for name, value in {
    "jax_compilation_cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"],
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# Flags by which XLA compiles in half the time: no optimisation by LLVM, and loops by an older emitter, which
# JAX has until 0.11.0.
LIGHT = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ <= (0, 11, 0):
    LIGHT.append("--xla_cpu_use_fusion_emitters=false")

from analysis import page  # noqa: E402
from lthjax import config, prune, pulse, study  # noqa: E402
from lthjax.devices import replicate  # noqa: E402
from lthjax.imp import Cell  # noqa: E402
from lthjax.models import Model  # noqa: E402

# Test files of single functions, which `make quick` runs; all others train or compile networks.
PLAIN = (
    "test_any_rows", "test_budget", "test_claims", "test_command", "test_config", "test_conform", "test_data",
    "test_doctor", "test_examples", "test_files", "test_layouts", "test_locks", "test_lowest", "test_optim",
    "test_overrides", "test_prune", "test_prune_optimiser", "test_prune_sharded", "test_publish",
    "test_readme", "test_results", "test_rows", "test_short", "test_shorthand", "test_stats",
    "test_ticket_files", "test_training_length", "test_verdicts",
)  # fmt: skip
# By file the tests of PLAIN that take seconds of compilation or waiting each; `make quick` leaves them out.
NOT_QUICK = {
    "test_locks": ("test_leases_where", "test_of_processes", "test_a_lease_of_another"),
    "test_prune": (
        "test_magnitude_agrees_with_sorting",
        "test_pruned_weights_and_moments",
        "test_random_and_shuffle",
        "test_units_of_narrow_numbers",
    ),
    "test_stats": ("test_holm_is", "test_coverage", "test_false_finds"),
}
# Figures' PNG files are empty, of the right size: to draw them takes as long as the SVG files, which show the
# same. `drawn_pngs` is for tests that look at them.
_DRAWN_PNG = page._png


def _empty_png(figure: Figure, dpi: int) -> bytes:
    png = io.BytesIO()
    Image.new("1", tuple(int(inches * dpi) for inches in figure.get_size_inches())).save(png, "PNG")
    return png.getvalue()


page._png = _empty_png


@pytest.fixture
def drawn_pngs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures' PNG files are drawn, as for users."""
    monkeypatch.setattr(page, "_png", _DRAWN_PNG)


# The tests' own start is none of a command, whose first lines come sooner.
pulse._BEGAN = float("-inf")
# Files that take a worker minutes. They come first and PLAIN ones last, so that both workers end together.
LONG = (
    "test_versions", "test_configs", "test_landscape_command", "test_conv", "test_report", "test_hessian",
    "test_killed", "test_moments",
)  # fmt: skip
# By file the tests that take more than some eight seconds of two cores, or say what a quick one says again;
# `make test-all` runs them.
SLOW = {
    "test_accelerators": ("test_replicates_together_give_what_each_gives_alone[lenet5",),
    "test_arms": (
        "test_a_study_by_criterion",
        "test_a_study_of_every_arm_and_criterion",
        "test_a_cell_is_exp",
        "test_untrained_networks_have_the_batch",
    ),
    "test_benchmarks": ("test_both_forms_of_a_convolution_are_the_networks_own",),
    "test_bucket": (
        "test_the_command_takes_an_address",
        *(
            f"test_a_cell_whose_upload_failed_is_not_there_and_is_sent_the_next_time[seed={part}"
            for part in ("1/dense/mask", "2")
        ),
        "test_two_machines",
        "test_a_seed_that_another_machine",
    ),
    "test_checkpoints": ("test_a_study_stopped_inside", "test_a_position_that_lacks"),
    "test_cli": (
        "test_on_a_terminal",
        "test_overrides",
        "test_only_the_reports_path",
        "test_dry_run_prints_the_plan",
    ),
    "test_compaction": tuple(f"test_compacted_logits_are_the_networks_own[{n}" for n in ("resnet8", "vgg11")),
    "test_configs": tuple(
        f"test_builds_and_runs_two_steps[{name}"
        for name in (
            "budget",
            "cifar_cnn",
            "conv2",
            "conv4",
            "conv6",
            "lenet300_mnist",
            "lenet5_mnist",
            "lr_cifar",
            "precision_lenet5",
            "quickstart_wide",
            "rates_lenet5",
            "resnet20",
            "retraining_cnn",
            "retraining_lenet5",
            "rewind_resnet8",
            "transfer_cnn",
        )
    ),
    "test_conv": (
        "test_a_weight_gradient_in_blocks",
        "test_fewer_products",
        "test_gradients_of_gradients",
        "test_under_vmap",
        "test_values_and_gradients_are_those_of_the_builtin[True-images11",
        *(
            f"test_values_and_gradients_are_those_of_the_builtin[False-images{n}-"
            for n in (1, 2, 6, 9, 11, 14)
        ),
    ),
    "test_earlybird": ("test_masks_of_a_run", "test_what_the_study_draws"),
    "test_extending": (
        "test_own_data_network_criterion",
        "test_own_analysis_is_on_the_report",
        "test_the_page_on_own_models_runs",
        "test_the_page_on_other_libraries_runs",
    ),
    "test_forgetting": ("test_forgetting_of_a_run",),
    "test_gauss_newton": (
        "test_products_are_those",
        "test_of_a_linear_network",
        "test_a_sketch_that_spans",
    ),
    "test_hessian": (
        "test_density_is",
        "test_quadrature_is",
        "test_as_many_steps_as_dimensions",
        "test_golden",
        "test_mask_may_be_traced",
        "test_products_are_those_of_the_explicit",
    ),
    "test_hosts": ("test_two_processes",),
    "test_interop": ("test_a_ticket_in_a_few_lines[of_equinox", "test_a_ticket_in_a_few_lines[of_haiku"),
    "test_landscape": (
        "test_a_direction_is_the_formula",
        "test_directions_of_other_keys",
        "test_directions_stay_inside",
        "test_only_adaptive_sharpness_is_the_same",
        "test_only_filter_curvature_is_the_same",
    ),
    "test_landscape_command": ("test_a_path_between_residual_networks", "test_without_training"),
    "test_models": ("test_statistics_are_the_mean_of_every_batch_s_own", "test_vgg_against"),
    "test_moments": (
        "test_killed_at_any_call",
        "test_a_call_that_fails_once",
        "test_a_report_cut_short",
        "test_a_disk_that_fails_at_any_call_is_one_sentence[2",
    ),
    "test_notebooks": ("test_",),
    "test_precision": (
        "test_convolutions_as_of_bfloat16_arrays[images",
        "test_every_product_of_a_network_is_of_rounded",
    ),
    "test_predict": ("test_grasp_of_a_network_with_convolutions",),
    "test_processes": (
        "test_killed_twice_and_run_again",
        "test_two_processes_train_no_cell_twice",
        "test_signals",
    ),
    "test_publish": ("test_a_network_with_batch_statistics",),
    "test_report": (
        "test_a_report_that_is_not_whole",
        "test_an_unchanged_report",
        "test_the_page_in_a_browser",
        "test_what_is_published",
    ),
    "test_rules": (
        "test_overlap_of_random_masks",
        "test_table_counts_multiplications",
        "test_grasp_goes_through_the_convolution",
    ),
    "test_savings": (
        "test_the_command_and_its_errors",
        "test_compacted_logits_are_the_tickets[conv",
        "test_the_forms_of_a_residual",
    ),
    "test_stability": ("test_every_chain_at_its_own", "test_one_chain_of_several"),
    "test_settings": (
        "test_a_folder_that_goes_on",
        "test_neither_chunk_nor_devices",
        "test_no_setting_changes_a_bit",
    ),
    "test_sharing": (
        "test_a_seed_of_a_sweep",
        "test_two_folders",
        "test_each_takes",
        "test_a_study_with_leases",
    ),
    "test_structure": ("test_a_convolution_at_the_input", "test_what_is_drawn", "test_figures_of_a_run_hold"),
    "test_study": (
        "test_widening_keeps_every_old_cell",
        "test_the_same_study_twice",
        "test_a_study_cut_anywhere",
    ),
    "test_sweep": (
        "test_a_sweep_is_its_studies",
        "test_the_comparison_page",
        "test_overrides_go_to_every_study",
        "test_networks_and_rewind_points",
    ),
    "test_tpu": ("test_the_compiler_compiles",),
    "test_tpu_forms": (
        "test_a_network_for_tpu_has_the_numbers_of_the_plain_one",
        "test_gradients_of_gradients_for_tpu",
        *(f"test_blocks_have_the_numbers_of_pixels[layers{n}" for n in (0, 2, 3)),
        *(f"test_residual_blocks_have_the_numbers_of_pixels[{train}-stages0" for train in (True, False)),
        "test_running_statistics_for_tpu",
    ),
    "test_prune_sharded": ("test_on_four_devices",),
    "test_retraining": ("test_arms_from_trained_weights",),
    "test_supermask": ("test_a_learned_mask_in_a_study",),
    "test_train": (
        "test_many_steps_as_with_the_builtin",
        "test_one_training_program",
        "test_against_a_plain_loop",
        "test_neighbours_and_twice",
    ),
    "test_watching": ("test_services_are_told", "test_tensorboard_has"),
    "test_until": ("test_the_command_adds_seeds",),
    "test_transfer": (
        "test_tickets_moved",
        "test_residual_networks_replicate",
        "test_a_mask_goes_to",
        "test_arms_beside_another",
        "test_carried_values_have_the_deviation_of_the_targets_own[glorot-",
    ),
    "test_traces": ("test_hutch_plus_plus_is_exact",),
}
# Of the slow ones those that take most of the time, and say what a quicker one says of something smaller; CI
# leaves them out. `make faults` runs those of tests/faults.
LENGTHY = {
    "test_arms": ("test_a_study_of_every_arm_and_criterion",),
    "test_checkpoints": ("test_from_every_position_a_job_goes_on_to_the_same_bits[statistics",),
    "test_cli": ("test_only_the_reports_path",),
    "test_configs": tuple(
        f"test_builds_and_runs_two_steps[{name}" for name in ("conv2", "conv4", "conv6", "resnet20")
    ),
    "test_hosts": ("test_two_processes",),
    "test_moments": ("test_a_report_cut_short",),
    "test_notebooks": ("test_colab",),
    "test_predict": ("test_masks_that_were_predicted_from_a_ticket",),
    "test_processes": ("test_two_processes_train_no_cell_twice",),
    "test_sharing": ("test_a_seed_of_a_sweep",),
    "test_study": ("test_the_same_study_twice",),
    "test_sweep": ("test_overrides_go_to_every_study",),
    "test_tpu_forms": ("test_a_network_for_tpu_has_the_numbers_of_the_plain_one[small_cnn_wide",),
    "test_versions": ("test_what_is_installed",),
}
# Files whose tests say that studies and trainings give equal bits in other programs, processes and places,
# and those of masks and rounded factors, whose every bit counts. `make ci` and `make test-all` run these as
# users compile, and no others: test_conv, test_tpu_forms and test_stability compare numbers of different
# programs, too, but with less optimisation alone, as CI has no time for more. `make faults` runs all of
# tests/faults as users compile.
COMPILED = (
    "test_accelerators", "test_checkpoints", "test_hosts", "test_lowest", "test_precision", "test_processes",
    "test_prune", "test_prune_sharded", "test_settings", "test_study", "test_train",
)  # fmt: skip
# By file the fixture that takes long to make: the tests that look at it are slow.
_MEASURED = {"test_landscape_command": "made", "test_predict": "looked_at", "test_stability": "made"}
ROOT = Path(__file__).parent.parent
FULL = Path(os.environ.get("LTHJAX_DATA", ROOT / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--as-users", action="store_true", help="compile as users do; by default with less optimisation"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Sets the flags that XLA reads at the first compilation, here and in processes that tests start."""
    if not config.getoption("--as-users"):
        # The caller's own flags come last and count.
        os.environ["XLA_FLAGS"] = " ".join([*LIGHT, *os.environ.get("XLA_FLAGS", "").split()])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and what is no test of single functions; puts long files first."""
    items.sort(key=lambda item: (item.path.stem in PLAIN, item.path.stem not in LONG))
    for item in items:
        file = item.path.stem
        measured = _MEASURED.get(file, "") in getattr(item, "fixturenames", ())
        if measured or any(item.name.startswith(name) for name in SLOW.get(file, ())):
            item.add_marker(pytest.mark.slow)
        slow = item.get_closest_marker("slow") is not None
        if slow and any(item.name.startswith(name) for name in LENGTHY.get(file, ())):
            item.add_marker(pytest.mark.lengthy)
        if file in COMPILED:
            item.add_marker(pytest.mark.compiled)
        if file not in PLAIN or any(item.name.startswith(name) for name in NOT_QUICK.get(file, ())):
            item.add_marker(pytest.mark.study)


def required(extra: str = "") -> dict[str, str]:
    """Package -> module of the dependencies in pyproject.toml, or of one of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = project["optional-dependencies"][extra] if extra else project["dependencies"]
    unlike = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
    names = [re.split(r"[\[><=]", package)[0] for package in packages]
    return {name: unlike.get(name, name.replace("-", "_")) for name in names}


def arrays(
    train: int = 80, test: int = 20, shape: tuple[int, ...] = (28, 28, 1), classes: int = 10
) -> dict[str, np.ndarray]:
    """Random images in the documented npz layout."""
    generator = np.random.default_rng(0)
    made = {}
    for part, n in (("train", train), ("test", test)):
        made[f"{part}_images"] = generator.integers(0, 256, (n, *shape), np.uint8)
        made[f"{part}_labels"] = (np.arange(n) % classes).astype(np.uint8)
    return made


def write_npz(folder: Path, name: str, **changed: object) -> Path:
    """Writes arrays() with changes; a key whose value is None is omitted."""
    contents = {k: v for k, v in (arrays() | changed).items() if v is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **contents)
    return folder / f"{name}.npz"


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., study.Prepared]:
    """A study that takes seconds: lenet300 on 200 real digits; keyword arguments change its fields."""
    return make_tiny(tmp_path)


def make_tiny(folder: Path) -> Callable[..., study.Prepared]:
    """Like `tiny`, with its data in the given folder."""
    from lthjax import data

    whole = data.load("mnist_10k")
    few = {
        # Every second pixel but for the edges: a fifth of the weights.
        "train_images": whole.train_images[:200, 2:26:2, 2:26:2],
        "train_labels": whole.train_labels[:200],
        "test_images": whole.test_images[:60, 2:26:2, 2:26:2],
        "test_labels": whole.test_labels[:60],
        "classes": np.int64(10),
    }
    (folder / "data").mkdir()
    np.savez(folder / "data" / "few.npz", **few)

    def make(**changes: object) -> study.Prepared:
        fields = {
            "name": "tiny",
            "seeds": (0, 1),
            "levels": 2,
            "model": "lenet300",
            "data": config.Data(name="few", validation=40),
            "train": config.Train(steps=12, batch=20, eval_every=5),
        }
        return study.prepare(config.Study(**{**fields, **changes}), folder / "data")  # type: ignore[arg-type]

    return make


def result(cell: Cell) -> dict[str, Any]:
    """A made-up result.json, without any training."""
    measured = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    more = ("train_accuracy", "early_stop_test_accuracy", "early_stop_train_accuracy")
    left = {"density": 0.5, "weights_left": 15, "weights": 30}
    ended = {"early_stop_step": 5, "start": 0, "steps": 5, "seconds": 0.1, "made_from": None}
    curves = {"step": [5], **{name: [0.5] for name in measured}}
    scores = dict.fromkeys((*measured, *more), 0.5)
    return {**cell._asdict(), "status": "done", "reason": "", **left, **scores, **ended, "curves": curves}


def about(name: str = "few", **changes: Any) -> dict[str, Any]:
    """A made-up study.json, without any training."""
    study = config.Study(name="any", levels=3, data=config.Data(name=name), **changes)
    return {
        "identity": json.loads(json.dumps(config.flat(study))),
        "config": json.loads(json.dumps(dataclasses.asdict(study))),
        "lengths": config.Lengths(4, 12, 5, 0, (), (0,))._asdict(),
        "data": {"name": name, "source": "here", "digest": "0", "shape": [28, 28, 1], "classes": 10,
                 "train": 160, "validation": 40, "test": 60},
        "commands": ["run.py --config configs/quickstart.py"],
        "versions": {"jax": "0"}, "devices": "1 x cpu", "git": None,
    }  # fmt: skip


def unsealed(run: Path) -> None:
    """Turns a run folder into one of versions without manifests, whose files are not checked."""
    for path in run.rglob("manifest.json"):
        path.unlink()
    for path in run.rglob("study.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in about.items() if k not in ("manifests", "sha256")}))


def shapes(model: Model) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0)).params


def random_mask(model: Model, density: float, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda m: generator.random(m.shape) < density if m.ndim else np.asarray(m), prune.ones(shapes(model))
    )


def spoil(path: Path) -> None:
    """Turns a result.json into that of a diverged training run."""
    result = json.loads(path.read_text())
    scores = dict.fromkeys(name for name in result if name.endswith(("_accuracy", "_loss", "_step")))
    path.write_text(json.dumps(result | scores | {"status": "diverged", "reason": "spoilt"}))


def made_anew(run: Path, cell: Any) -> None:
    """Replaces a cell of a run by another whole one, with the same mask and other weights."""
    from lthjax import manifest
    from lthjax.folder.places import folder
    from lthjax.folder.reader import Reader
    from lthjax.folder.store import Store
    from lthjax.folder.verified import read_study

    there, reader = folder(run, cell), Reader(run)
    before, old, mask, result = (
        manifest.read(there),
        reader.variables(cell),
        reader.mask(cell),
        reader.result(cell),
    )
    assert before is not None
    shutil.rmtree(there)
    variables = old._replace(params=jax.tree.map(lambda w: w * np.float32(1.25), old.params))
    with Store(run, read_study(run), seeds=[cell.seed]) as store:
        store.write(cell, result, mask, variables, [Path(name) for name in before.parents])


def of_an_earlier_version(path: Path) -> None:
    """Rewrites an npz of an analysis without the contents of the cells that it was measured of."""
    with np.load(path) as there:
        arrays = {name: there[name] for name in there.files}
    basis = json.loads(str(arrays.pop("basis")))
    del basis["of"]
    np.savez_compressed(path, basis=json.dumps(basis), **arrays)


def check_section(analysis: Any, run: Path) -> None:
    """Checks that an analysis's section, verdicts and files of a run agree."""
    from analysis import record
    from analysis.run import open_run

    opened = open_run(run)
    found = record.needed(analysis, opened)
    section = analysis.section(opened, found)
    assert section.figures or section.tables
    assert record.written(analysis, opened)
    links = {of.where.href for of in analysis.findings(opened, found) if hasattr(of.where, "href")}
    assert links == {f"#{section.anchor}"}


@pytest.fixture
def command_line(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python ARGUMENTS...` in the repository's root; leaves out that JAX takes long to load."""

    def call(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        done.stderr = re.sub(r"(?m)^loading JAX.*\n", "", done.stderr)
        return done

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `command_line`, but in this process, which has loaded everything: for what ends early."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words, said, told = list(map(str, arguments)), io.StringIO(), io.StringIO()
        name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        status = 0
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [name, *rest])
            patch.setattr(replicate, "keep_programs", lambda: None)
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
                    if words[0] == "-m":
                        # That a test has imported it before is no fault.
                        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                        runpy.run_module(name, run_name="__main__", alter_sys=True)
                    else:
                        runpy.run_path(str(ROOT / name), run_name="__main__")
            except SystemExit as stop:
                status = int(stop.code or 0)
        return subprocess.CompletedProcess(words, status, said.getvalue(), told.getvalue())

    return call
