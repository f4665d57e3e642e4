"""The examples in docstrings."""

import doctest

import pytest

from lthjax import sweep
from lthjax.measures import savings
from lthjax.prune import _accounting, _rules, _selection


@pytest.mark.parametrize("module", [_selection, _rules, _accounting, savings, sweep])
def test_examples(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0
    assert found.failed == 0
