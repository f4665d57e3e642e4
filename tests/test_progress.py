"""The display of a running study."""

import io
import itertools

import pytest
from rich.console import Console

from lthjax import progress
from lthjax.imp import Cell
from lthjax.plan import Plan


def test_what_was_compiled_before_the_first_steps_does_not_slow_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a minute of compilation 10 steps every 5 s: 2 a second; 180 of 200 are left after the second."""
    times = itertools.chain([0.0], itertools.count(60.0, 5.0))
    now = [next(times)]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    lines = progress.Lines(Console(file=text), silent=1000)
    cell = Cell(0, "dense", 0, "dense")
    lines.begin("tiny", Plan([cell], [], [cell], 200))
    lines.chunk([cell], "")
    for accuracy in (None, 0.5, None):
        now[0] = next(times)
        lines.advance(10, accuracy)
    lines.end()
    assert text.getvalue().splitlines()[1:] == [
        "dense, 10 of 200 steps",
        "dense, test accuracy 50.00 %, 2 steps/s, 1 min 30 s left",
        "dense, 2 steps/s, 1 min 25 s left",
    ]


def test_the_bar_has_the_same_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.Bar(Console(file=io.StringIO(), force_terminal=True))
    cell = Cell(0, "dense", 0, "dense")
    bar.begin("tiny", Plan([cell], [], [cell], 200))
    now = [60.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = []
    for _ in range(2):
        bar.advance(10, None)
        shown.append(bar._bar.tasks[0].fields["speed"])
        now[0] += 5
    bar.end()
    assert shown == ["", "2 steps/s"]
