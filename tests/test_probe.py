"""The measured cost of a step, with a clock that the test sets."""

import pytest

from lthjax.measures import timing
from lthjax.training.probe import steady_seconds


class _Clock:
    """Every step takes `step` seconds; the calls in `once` take so many seconds more."""

    def __init__(self, step: float, once: dict[int, float]) -> None:
        self.now, self.calls = 0.0, []  # type: ignore[var-annotated]
        self._step, self._once = step, once

    def run(self, count: int) -> None:
        self.now += count * self._step + self._once.get(len(self.calls), 0.0)
        self.calls.append(count)


@pytest.mark.parametrize("once", [{}, {0: 40.0}, {1: 2.0}, {2: 3.0}, {0: 40.0, 2: 3.0}, {7: 2.0}])
def test_a_call_that_is_slow_once_does_not_count(
    monkeypatch: pytest.MonkeyPatch, once: dict[int, float]
) -> None:
    clock = _Clock(0.011, once)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    assert steady_seconds(clock.run, 1000, 1.5) == pytest.approx(0.011)
    assert max(clock.calls) == 256  # 1.5 s are 137 steps


def test_a_call_has_no_more_steps_than_an_evaluation_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(1e-4, {})
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    assert steady_seconds(clock.run, 100, 1.5) == pytest.approx(1e-4)
    assert clock.calls == [1, 2, 4, 8, 16, 32, 64, 100, 100]


def test_one_slow_step_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(9.0, {0: 30.0})
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    assert steady_seconds(clock.run, 100, 1.5) == pytest.approx(9.0)
    assert clock.calls == [1, 1]
