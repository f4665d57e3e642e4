"""The command `lthjax`, the name `lthjax.analysis`, and what commands and configs are called where."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, required

import analysis.run
import lthjax.analysis.run
from analysis import words
from analysis.analyses import ANALYSES
from lthjax import command, config, home, launch, record
from lthjax.errors import UserError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the installed package, for the names of commands."""
    monkeypatch.setattr(home, "INSTALLED", True)
    monkeypatch.setattr(home, "RUN", "lthjax run")


def test_both_names_give_the_same_modules() -> None:
    assert lthjax.analysis.run.Run is analysis.run.Run
    assert lthjax.analysis is analysis
    for name in ("report.verdicts", "geography.__main__", "export"):
        module = importlib.import_module(f"lthjax.analysis.{name}")
        assert module is importlib.import_module(f"analysis.{name}")
        assert module.__name__ == f"analysis.{name}" == module.__spec__.name
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lthjax.analysis.nothing")


def test_the_list_has_a_line_for_every_command_and_loads_nothing() -> None:
    code = "import sys\nfrom lthjax import command\nsys.argv[1:] = []\ncommand.main()\nprint([*sys.modules])"
    environ = {**os.environ, "COLUMNS": "120"}
    *lines, loaded = subprocess.check_output(
        [sys.executable, "-c", code], env=environ, text=True
    ).splitlines()
    assert not {"jax", "numpy", "tyro", "analysis"} & set(eval(loaded))
    told = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert [*told][:1] == ["run"]
    assert "trains what is missing" in told["run"]
    assert max(map(len, lines)) <= 120
    # The report works these two out by itself.
    assert told.keys() >= (ANALYSES.keys() - {"structure", "retraining"}) | {"report", "export", "doctor"}
    assert not told.keys() & {"structure", "retraining", "words", "work"}
    for name in told:
        assert callable(command.load(name)), name
    helped = [sys.executable, "-m", "lthjax", "--help"]
    assert subprocess.check_output(helped, env=environ, text=True).splitlines() == lines


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["lthjax", "reprot", "runs/A"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    said = capsys.readouterr().err
    assert said.startswith("error: command: 'reprot' is not known; did you mean 'report'? Known: check, ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["-m", "lthjax", "report", "A"], ["run.py"], ["-m", "analysis.export"]])
def test_without_the_laboratory_one_sentence_says_what_to_install(words: list[str], tmp_path: Path) -> None:
    # As where it is not installed.
    for name in ("tyro", "scipy"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"(loading JAX.*\n)*"
        r"error: the package (tyro|scipy) is not installed, which studies and reports need; "
        r"pip install 'lthjax\[lab\]' adds it\.\n",
        done.stderr,
    )


@pytest.mark.parametrize("words", [["-m", "lthjax", "report", "A"], ["-m", "analysis.export"]])
def test_ctrl_c_while_jax_loads_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    # As a library that is not Python: where it is interrupted, it raises another exception.
    (tmp_path / "jax.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [None for _ in range(10**6)]\n"
        "except BaseException:\n    raise ImportError('while it started') from None\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    said = re.sub("loading JAX.*\n", "", done.stderr)
    assert (done.returncode, said) == (130, "stopped; the same command goes on from here\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("-m lthjax > /dev/full", 2, "error: No space left on device; mend it, and the same command goes on"),
        ("-m lthjax | :", 141, ""),
    ],
)
def test_a_list_that_nobody_takes(words: str, status: int, said: str) -> None:
    """On a disk that is full, or by a program that has ended."""
    shell = ["bash", "-c", f"{sys.executable} {words}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.rstrip("\n").removesuffix(" from here.")) == (status, said)


def test_another_package_that_is_missing_is_no_matter_of_the_laboratory() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"analysis\.nothing"):
        command.laboratory("nothing")


def test_commands_in_a_checkout() -> None:
    assert words.command("predict", "runs/A B") == "python -m analysis.predict 'runs/A B'"
    assert home.command("run", "--config", home.config("quickstart")) == (
        "python run.py --config configs/quickstart.py"
    )
    assert home.RUN == "run.py"
    assert home.again("run.py --config a.py --seeds 0") == "python run.py --config a.py --seeds 0"
    assert home.again("lthjax run --config a.py") == "lthjax run --config a.py"
    if (ROOT / ".git").exists():
        head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
        assert record._git_commit() == head.strip()


@pytest.mark.parametrize(
    ("out", "run", "told"),
    [
        ("", "runs/x-1", ""),
        (" --out m1", "m1/x-1", " --out m1"),
        (" --out=m1 --quiet", "{here}/m1/x-1", " --out m1 --quiet"),
        # Merged, copied or moved; a page is also read in other folders than the one where it was made.
        (" --out m1 --quiet", "all/x-1", " --out {here}/all --quiet"),
        (" --out /shared/runs", "runs/x-1", " --out {here}/runs"),
        ("", "{here}/moved/x-1", " --out {here}/moved"),
        # Named from within or beside it, or by a symbolic link.
        ("", "m1/x-1/..", " --out {here}"),
        ("", "x-1", " --out {here}"),
        (" --out m1", "link", " --out m1"),
        ("", "link", " --out {here}/m1"),
        # The link or what it leads to has another name, by which no command finds it.
        ("", "runs/latest", " --out {here}/m1"),
        (" --out m1", "runs/latest", " --out m1"),
        (" --out m1", "all/x-1", " --out {here}/all"),
        (" --out all", "all/x-1", " --out all"),
        # A bucket has a local copy, of which there may be a copy elsewhere.
        (" --out gs://b/runs", "cache/lthjax/out/gs/b/runs/x-1", " --out gs://b/runs"),
        (" --out gs://b/runs", "runs/x-1", " --out {here}/runs"),
    ],
)
def test_a_command_given_again_fills_the_folder_that_is_looked_at(
    out: str, run: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    (tmp_path / "m1" / "x-1").mkdir(parents=True)
    for link, to in (("link", "m1/x-1"), ("runs/latest", "m1/x-1"), ("all/x-1", "m1/renamed")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / to)
    run, told = (text.format(here=tmp_path) for text in (run, told))
    again = home.again(f"run.py --config a.py{out}", Path(run), "x-1")
    assert again == f"python run.py --config a.py{told}"


@pytest.mark.parametrize("script", ["mine.py --out_dir a --config=b --process 3", "lthjax transfer --a_b=c"])
def test_the_command_of_another_program_stays_as_it_was_typed(script: str) -> None:
    """Its options are its own: no --out is added, and none is taken for one of ours."""
    told = script if script.startswith("lthjax") else f"python {script}"
    assert home.again(script, Path("elsewhere/x-1"), "x-1") == told
    assert home.options(script)[1][0] == script.split()[-1 if "transfer" in script else 1].split("=")[0]


@pytest.mark.usefixtures("installed")
def test_commands_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words.command("predict", "runs/A B") == "lthjax predict 'runs/A B'"
    assert home.command("run", "--config", home.config("quickstart")) == "lthjax run --config quickstart"
    for program in ("run.py", "/else/where/run.py", "'/a b/run.py'"):
        assert home.again(f"{program} --config a.py") == "lthjax run --config a.py"
    for other in ("mine.py --run.py", "/a/rerun.py --config a.py"):
        assert home.again(other) == f"python {other}"
    # The environment may lie in another repository.
    assert record._git_commit() is None
    assert "run.py" not in launch._overview()
    assert "lthjax run --config lenet5_mnist --seeds 0 1 --levels 8" in launch._overview()
    assert "lthjax run --config quickstart --help lists every option" in launch._overview()


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        (["/some/bin/lthjax", "run", "--config", "quickstart"], "lthjax run --config quickstart"),
        (["/site-packages/lthjax/__main__.py", "run", "a b"], "lthjax run 'a b'"),
        (["run.py", "--config", "configs/quickstart.py"], "run.py --config configs/quickstart.py"),
        (["/a/lthjax/run.py"], "/a/lthjax/run.py"),
    ],
)
def test_what_is_recorded(arguments: list[str], recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert home.typed() == recorded


def test_a_shipped_config_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "quickstart.py"
    assert config.located("quickstart") == shipped
    assert config.load_all("quickstart") == config.load_all(shipped)
    (options,) = launch.parse(["--config", "quickstart"])
    assert options.config == shipped
    assert [*config.shipped()] == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    with pytest.raises(
        UserError, match=r"'quikstart' is not known; did you mean 'quickstart'\? Known: budget_"
    ):
        config.load_all("quikstart")
    with pytest.raises(
        UserError, match=r"'quickstart\.py' is not a file; did you mean 'quickstart', a config of the package"
    ):
        config.load_all("quickstart.py")
    Path("quickstart").mkdir()
    assert config.located("quickstart") == shipped
    Path("quickstart").rmdir()
    Path("quickstart").write_text("from lthjax.config import Study\nconfig = Study(name='mine')\n")
    assert config.located("quickstart") == Path("quickstart")
    assert [study.name for study in config.load_all("quickstart")] == ["mine"]


def test_another_package_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = ModuleType("analysis")
    other.__file__ = str(tmp_path / "analysis" / "__init__.py")
    monkeypatch.setitem(sys.modules, "analysis", other)
    for loaded in [name for name in sys.modules if name.startswith("lthjax.analysis")]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(ImportError, match="comes first as `analysis`, and is not the package beside lthjax"):
        importlib.import_module("lthjax.analysis")
    with pytest.raises(UserError, match="start from another folder"):
        command.load("report")


def test_what_is_shipped_imports_what_is_declared() -> None:
    """The wheel holds three folders of the checkout; they import nothing else of it, and no other package."""
    declared = required() | required("lab")
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    tables = page.partition("`pip install --editable '.[lab,bench]'`")[0]
    assert sorted(re.findall(r"^\| ([\w-]+) \| (?!why)", tables, re.M)) == sorted(declared)
    used: dict[str, set[str]] = {}
    shipped = [path for of in ("lthjax", "analysis", "configs") for path in (ROOT / of).rglob("*.py")]
    for path in shipped:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                used.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    others = used.keys() - sys.stdlib_module_names - {"lthjax"}
    # They come with jinja2, jax and TFDS; the last two are asked for where they are needed.
    beside = {"markupsafe", "ml_dtypes", "requests", "pandas", "tensorflow"}
    # TFDS needs it and does not say so.
    assert others - beside - {"analysis"} == {*declared.values()} - {"importlib_resources"}
    # In a checkout alone, and for types alone.
    assert used["analysis"] == {"lthjax/analysis.py", "lthjax/launch.py"}


@pytest.mark.parametrize("extra", ["notebook", "dev"])
def test_the_page_on_installing_has_every_package_of_an_extra(extra: str) -> None:
    """They are no dependencies of what is shipped, and have no row of their own."""
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    assert {name for name in required(extra) if not re.search(rf"\b{name}\b", page)} <= {"lthjax"}
    for shown in (page, (ROOT / "docs" / "index.md").read_text(encoding="utf-8")):
        assert "notebook]" in shown


def test_pages_import_the_analyses_by_the_name_that_every_installation_has() -> None:
    """`analysis` itself is there in a checkout alone."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    for path in [*pages, *(ROOT / "analysis").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        assert not re.search(r"\b(from|import) analysis\b", text), path


def _documented() -> list[Path]:
    """The files of the modules in the reference."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    paths = [ROOT / name.replace(".", "/") for name in re.findall(r"^::: ([\w.]+)$", pages, re.M)]
    return [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]


@pytest.mark.parametrize("path", _documented(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_and_lists_of_files_are_blocks_in_the_reference(path: Path) -> None:
    """Markdown runs lines together unless a blank line comes first and each has four blanks before it.

    Four blanks before all lines but the first do not count: they are the docstring's own indentation.
    """
    code = re.compile(
        r"(python|tensorboard|srun) |from [\w.]+ import |import \w|[\w.]+ = [\w.]+\(|\w+\.\w+\("
    )
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        lines = (ast.get_docstring(node) or "").splitlines()
        items = False
        for before, line in zip(["", *lines], lines, strict=False):
            where = f"{path.relative_to(ROOT)}: {line}"
            if line[:1].strip():
                items = bool(re.match(r"- |\d\. |\w+:$", line))
                assert not code.match(line), where
            elif line.strip() and not items:
                assert line.startswith("    "), where
                assert not before or before.startswith("    "), where


def test_pages_add_to_a_checkouts_environment_and_do_not_replace_it() -> None:
    """Without `--editable` pip puts a copy in the checkout's place; benchmarks import the laboratory."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    pages += [
        path for of in ("docs", "benchmarks", "configs", "analysis") for path in (ROOT / of).rglob("*.*")
    ]
    found = []
    for path in pages:
        if path.suffix not in (".md", ".py"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            # The table of installing.md is of environments that have no lthjax yet.
            if line.startswith("| "):
                continue
            for options, extras in re.findall(r"pip install (.*?)'?\.\[([\w,]+)\]", line):
                found.append((path.name, extras))
                assert "--editable" in options, f"{path.name}: {line}"
                assert extras == "docs" or "lab" in extras.split(","), f"{path.name}: {line}"
    assert len([name for name, _ in found if name == "performance.md"]) == 3
    assert ("tpu.py", "lab,tpu") in found
