"""The oldest and the newest JAX that pyproject.toml admits, and the wheel, each in a fresh environment."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

from lthjax import prune

# Colab's packages in August 2026; installing lthjax must leave them alone.
COLAB = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.4",
}
NEWEST = ("jax>=0.12,<0.13",)
PROGRAM = """
import sys
from importlib import metadata
print(*(f"{name}={metadata.version(name)}" for name in sys.argv[1:]))
"""


NNX = """
import jax.numpy as jnp, optax
from flax import nnx
from lthjax import prune
x = jnp.arange(12.0).reshape(4, 3) / 12
for made in ("state", "pure", "own", "scheduled"):
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    state = nnx.state(net, nnx.Param)
    mask = prune.magnitude(state, prune.ones(state), 0.5)
    tx = {
        "state": lambda: prune.masked(optax.adam(0.1), mask),
        "pure": lambda: prune.masked(optax.adam(0.1), nnx.to_pure_dict(mask)),
        "own": lambda: prune.masked(optax.adam(0.1)),
        "scheduled": lambda: prune.scheduled(optax.adam(0.1), "magnitude", 0.5, 0, 2, 1),
    }[made]()
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    if made == "own":
        optimizer.opt_state = prune.set_mask(optimizer.opt_state, mask)
    step = nnx.jit(lambda net, opt: opt.update(net, nnx.grad(lambda n: ((n(x) - 1) ** 2).mean())(net)))
    for _ in range(4):
        step(net, optimizer)
    print(int((net.kernel.value != 0).sum()), end=" ")
"""


def interpreter(version: str) -> str:
    """A Python of this version; skips the test where there is none."""
    found = [shutil.which(f"python{version}")]
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(map(str, (home / "versions").glob(f"{version}.*/bin/python")))
    for python in filter(None, [sys.executable if sys.version.startswith(f"{version}.") else None, *found]):
        done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and f" {version}." in done.stdout:
            return python
    pytest.skip(f"there is no Python {version} here")


def environment(folder: Path, version: str, packages: list[str]) -> str:
    """The interpreter of a fresh environment with these packages and then lthjax."""
    subprocess.run([interpreter(version), "-m", "venv", "--without-pip", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    for wanted in (packages, ["--editable", f"{ROOT}[lab]"]):
        install = [*pip, "install", "--quiet", "--no-compile", *wanted]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            pytest.skip(f"not to be had here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return python


def on_cpu() -> dict[str, str]:
    """The variables of a fresh environment's programs, of which only the first one compiles bytecode.

    They leave out XLA's flags, which its JAX may not know.
    """
    ours = ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS")
    others = {name: value for name, value in os.environ.items() if name not in ours}
    return others | {"JAX_PLATFORMS": "cpu"}


def study(python: str, out: Path, calls: int = 1) -> list[str]:
    """The lines of cells.csv of a little study, by so many calls of the same command."""
    command = [python, "run.py", "--config", "configs/quickstart.py", "--seeds", "0", "--levels", "2",
               "--control-levels", "2", "--train.steps", "20", "--train.eval-every", "10",
               "--no-cache", "--out", str(out)]  # fmt: skip
    environ = on_cpu()
    pages = {
        subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout
        for _ in range(calls)
    }
    (page,) = pages
    return Path(page.strip()).with_name("cells.csv").read_text().splitlines()


def versions(python: str, names: list[str]) -> dict[str, str]:
    done = subprocess.run([python, "-c", PROGRAM, *names], capture_output=True, text=True, check=True)
    return dict(pair.split("=") for pair in done.stdout.split())


def nnx_of(python: str) -> str:
    """The weights left of 6, half pruned, in nnx.Optimizer by every form of `prune.masked`."""
    environ = on_cpu()
    return subprocess.run([python, "-c", NNX], env=environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_colabs_packages_stay_and_run_a_study(tmp_path: Path) -> None:
    python = environment(tmp_path / "colab", "3.11", [f"{name}=={of}" for name, of in COLAB.items()])
    assert versions(python, list(COLAB)) == COLAB
    # Dense, two tickets, and at level 2 two controls.
    assert len(study(python, tmp_path / "runs", calls=2)) == 1 + 5
    assert nnx_of(python).split() == ["3"] * 4


@pytest.mark.slow
def test_the_newest_jax_runs_a_study(tmp_path: Path) -> None:
    python = environment(tmp_path / "newest", "3.13", list(NEWEST))
    assert versions(python, ["jax"])["jax"].startswith("0.12.")
    assert len(study(python, tmp_path / "runs")) == 1 + 5
    assert nnx_of(python).split() == ["3"] * 4


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and the packages that are here but for the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip(f"not to be had here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "scratch"], check=True)
    python = folder / "scratch" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--quiet", "--no-deps", wheel], check=True)
    (own,) = (folder / "scratch").glob("lib/*/site-packages")
    # Of a folder that is named so the .pth files, and with them the checkout, are left out.
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.mark.slow
def test_what_is_installed_works_in_any_folder(installed: Path, tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}

    def lthjax(*words: object) -> str:
        command = [installed / "lthjax", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ("--model", "lenet300", "--seeds", 0, "--levels", 1, "--arms", "ticket", "--train.steps", 6)
    page = tmp_path / lthjax("run", "--config", "quickstart", *small, "--quiet").strip()
    run = page.parent.parent
    about = json.loads((run / "study.json").read_text())
    assert about["commands"] == [
        "lthjax run --config quickstart --model lenet300 --seeds 0 --levels 1 --arms ticket "
        "--train.steps 6 --quiet"
    ]
    assert about["git"] is None
    assert (run / "config.py").read_text() == (ROOT / "configs" / "quickstart.py").read_text()
    name = Path("runs", run.name)
    assert lthjax("savings", name, "--quick", "--levels", 1).endswith(f"{name}/savings.json\n")
    assert lthjax("export", name, "--level", 1, "ticket.safetensors") == "ticket.safetensors\n"
    assert prune.load(tmp_path / "ticket.safetensors").metadata["model"] == "lenet300"
    before = page.read_text(encoding="utf-8")
    assert lthjax("report", name) == f"{name}/report/index.html\n"
    for text in (before, page.read_text(encoding="utf-8")):
        assert not re.search(r"python -m|run\.py", text)
        commands = re.findall(r'class="word command[^"]*">([^<]*)<', text)
        assert {*(html.unescape(one).split()[0] for one in commands)} == {"lthjax"}
        assert f"lthjax predict {name}" in commands
        assert "lthjax run --config rates_lenet5" in commands
    assert "lthjax savings" in before
    assert "lthjax savings" not in page.read_text(encoding="utf-8")
