"""Short ways to write options, and numbers of things in words."""

import dataclasses
import functools
import io
import re
import sys
import time
from collections.abc import Callable

import pytest
from conftest import ROOT
from rich.console import Console

from analysis.stability.work import Options as Stability
from lthjax import cli, launch, progress, pulse, shorthand
from lthjax.errors import UserError, counted
from lthjax.imp import Cell
from lthjax.plan import Plan


@dataclasses.dataclass
class Inner:
    rate: float | tuple[tuple[str, float], ...] = 0.2
    rates: tuple[float, ...] = ()
    density: float | None = None


@dataclasses.dataclass
class Outer:
    seeds: tuple[int, ...] = ()
    some_levels: tuple[int, ...] | None = None
    steps: int = 1
    name: str = ""
    prune: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--seeds 0..4", "--seeds 0 1 2 3 4"),
        ("--seeds=3..3", "--seeds 3"),
        ("--seeds=0,5,2", "--seeds 0 5 2"),
        ("--seeds 0..1,7 9", "--seeds 0 1 7 9"),
        ("--seeds=4", "--seeds=4"),
        ("--some-levels 1,2 --steps 5", "--some-levels 1 2 --steps 5"),
        ("--some_levels 1..2 --name 0..4", "--some_levels 1 2 --name 0..4"),
        ("--some-levels None", "--some-levels None"),
        ("--seeds -1 x", "--seeds -1 x"),
        ("--prune.rate 30%", "--prune.rate 0.3"),
        ("--prune.rate conv 10% fc 12.5%", "--prune.rate conv 0.1 fc 0.125"),
        ("--prune.rate a,b 0.1", "--prune.rate a,b 0.1"),
        ("--prune.rates 20%,0.4 5%", "--prune.rates 0.2 0.4 0.05"),
        ("--prune.density=5%", "--prune.density 0.05"),
        ("--unknown 0..4", "--unknown 0..4"),
        ("runs/0..4 --seeds 1", "runs/0..4 --seeds 1"),
    ],
)
def test_short_ways_are_written_out(line: str, wanted: str) -> None:
    assert shorthand.expanded(Outer, line.split()) == wanted.split()


@pytest.mark.parametrize("value", ["0-4", "4..0", "0..", "0:4", "1,,2", "0..999999", "1.5"])
def test_other_ways_are_answered_with_an_example(value: str) -> None:
    with pytest.raises(
        UserError, match=r"^--seeds: .* is not understood; .*--seeds 0,1,2 or --seeds 0\.\.2\.$"
    ):
        shorthand.expanded(Outer, ["--seeds", value])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--steps 1.5", "--steps: '1.5' is not allowed; it must be a whole number."),
        ("--some-levels nan", "--some-levels: 'nan' is not allowed; it must be one or more whole numbers."),
        ("--seeds 0 x", "--seeds: 'x' is not allowed; it must be one or more whole numbers."),
        ("--seeds 0 x 1.5y", "--seeds: 'x', '1.5y' are not allowed; it must be one or more whole numbers."),
        ("--prune.density x", "--prune.density: 'x' is not allowed; it must be a number."),
        (
            "--prune.rate a x",
            "--prune.rate: 'a', 'x' are not allowed; it must be a number or pairs of a pattern and a number.",
        ),
    ],
)
def test_what_is_no_number_is_named_with_what_is_allowed(line: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        cli.parsed(Outer, line.split(), "command")
    assert str(error.value) == said


def test_the_commands_understand_them(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--config", str(ROOT / "configs" / "quickstart.py"), "--seeds", "0..2,9", "--prune.rate", "30%"]
    (options,) = launch.parse(line)
    assert (options.study.seeds, options.study.prune.rate) == ((0, 1, 2, 9), 0.3)
    assert shorthand.expanded(Stability, ["runs/x", "--seeds", "0..1", "--k", "0,9"]) == [
        "runs/x", "--seeds", "0", "1", "--k", "0", "9"
    ]  # fmt: skip


def test_one_and_many() -> None:
    assert [counted(n, "seed") for n in (0, 1, 2, 1200)] == ["0 seeds", "1 seed", "2 seeds", "1,200 seeds"]
    assert counted(2, "study", "studies") == "2 studies"


def until(holds: Callable[[], bool]) -> None:
    """Waits for a thread, at most ten seconds."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_takes_long_says_so() -> None:
    said: list[str] = []
    with pulse.telling(said.append, "drawing", every=0.01):
        assert said == ["drawing"]
        until(lambda: len(said) > 2)
    assert {line.partition(":")[0] for line in said} == {"drawing"}
    count = len(said)
    time.sleep(0.05)
    assert len(said) == count
    with pulse.telling(said.append, "quick", at_once=False):
        pass
    assert len(said) == count
    with pulse.telling(said.append, "slow", every=0.3):
        until(lambda: re.fullmatch(r"slow: \d s so far", said[-1]) is not None)
    assert said[count] == "slow"


def test_a_process_that_starts_says_it_at_the_next_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s after its start the first line comes 1 s later; in an older process after the whole time."""
    firsts: list[float | None] = []

    class Kept(pulse.Pulse):
        def __init__(self, call: Callable[[], None], seconds: float, first: float | None = None) -> None:
            firsts.append(first)
            super().__init__(call, seconds, first)

    monkeypatch.setattr(pulse, "Pulse", Kept)
    for age in (2.0, 8.0, 60.0):
        monkeypatch.setattr(pulse, "_BEGAN", time.monotonic() - age)
        with pulse.telling(lambda line: None, "loading", at_once=False):
            pass
    with pulse.telling(lambda line: None, "loading"):
        pass
    assert firsts == pytest.approx([1.0, 1.0, 3.0, 3.0], abs=0.5)


def test_loading_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is something to load, unless a command is quiet; in a log only what takes long."""
    jax = sys.modules["jax"]
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with cli.loading(True):
        assert capsys.readouterr().err == "", "no terminal"
    with monkeypatch.context() as patch:
        patch.setattr(cli.pulse, "telling", functools.partial(pulse.telling, every=0.01))
        told: list[str] = []
        patch.setattr(cli, "_say", told.append)
        with cli.loading(True):
            until(lambda: len(told) > 1)
        assert {line.partition(":")[0] for line in told} == {"loading JAX"}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli.loading(False):
        assert capsys.readouterr().err == "", "quiet"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", "--quiet"])
        with cli.loading(True):
            assert capsys.readouterr().err == "", "quiet"
    with cli.loading(True):
        assert capsys.readouterr().err == "loading JAX\n"
    monkeypatch.setitem(sys.modules, "jax", jax)
    with cli.loading(True):
        assert capsys.readouterr().err == "", "loaded"


def test_compiling_is_told_until_the_first_steps_are_done() -> None:
    text = io.StringIO()
    lines = progress.Lines(Console(file=text), silent=0.01)
    cell = Cell(0, "dense", 0, "dense")
    lines.begin("tiny", Plan([cell], [], [cell], 100))
    until(lambda: bool(re.search(r"making the training programs, \d s so far", text.getvalue())))
    lines.chunk([cell], "")
    until(lambda: bool(re.search(r"dense: compiling, \d s so far", text.getvalue())))
    lines.advance(10, None)
    time.sleep(0.05)
    shown = text.getvalue()
    time.sleep(0.05)
    assert text.getvalue() == shown
    lines.end()
    assert text.getvalue().startswith("tiny: 1 of 1 cell to train\n")
