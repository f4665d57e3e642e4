"""Claims about every level of a range: the outcome, the level that decides, and what is said of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lthjax.measures import stats
from lthjax.measures.stats import Verdict

from . import words
from .record import LEAST_SEEDS, Said

# What kinds of tests are called, in verdicts.csv and on the page.
SUPERIOR = "superiority"
NON_INFERIOR = "non-inferiority"
EQUIVALENT = "equivalence"
# Percentage points of accuracy within which two arms count as equal where neither is found to be better.
SAME = 0.2
# The factor within which two positive measures, as numbers of steps, count as equal.
SAME_FACTOR = 1.1
TIMES = f"within {SAME_FACTOR:g}×"


class At(NamedTuple):
    """A claim's test at one level.

    Attributes:
        place: where, in words: "at 10.0 % of the weights".
        verdict: of the test.
        zero: of the equivalence test beside it, if there is one.
    """

    place: str
    verdict: Verdict
    zero: Verdict | None = None


class Judged(NamedTuple):
    """A claim's test at all levels together.

    Attributes:
        outcome: "equivalent" where the claim is undecided, but at every level the difference is found to be
            within the margin of the equivalence test.
        decides: the level whose bound decides: the least favourable one.
        levels: how many were tested.
    """

    outcome: Said
    decides: At
    levels: int

    def said(self, form: str, unit: str = "", rule: str = words.RULE) -> str:
        """The mean and bounds of the level that decides, what kind they are, and which level it is."""
        equal = self.outcome == "equivalent" and self.decides.zero is not None
        shown = self.decides.zero if equal and self.decides.zero else self.decides.verdict
        several = f", the least of {self.levels} levels" if self.levels > 1 else ""
        if equal and several:
            several = f", the most of {self.levels} levels"
        decided = words.decided(shown, form, unit, both=equal, rule=rule)
        return f"{decided} {self.decides.place}{several}".rstrip()


def everywhere(tests: Sequence[At], same: float = 0.0) -> Judged:
    """A claim that it holds at every level (at least one): an intersection–union test.

    The least favourable level is the one with the smallest bound that decides: the smallest upper bound where
    the claim is refuted, else the smallest lower bound.

    Args:
        tests: one a level.
        same: the value that says that there is no difference: 0, or 1 for ratios.
    """
    outcome: Said = stats.conjunction(of.verdict.outcome for of in tests)
    if outcome == "undecided" and all(of.zero and of.zero.outcome == "supported" for of in tests):
        return Judged("equivalent", max(tests, key=lambda of: _reach(of.zero, same)), len(tests))
    return Judged(outcome, min(tests, key=lambda of: _least(of.verdict, outcome)), len(tests))


def beside(
    outcome: Said,
    controls: Mapping[str, Judged],
    form: str,
    unit: str = "",
    *,
    below: bool = False,
    levels: int = 1,
) -> str:
    """What the same test says of controls: a claim that holds for them, too, does not tell tickets apart.

    `below` says that the claim is one of a mean below a threshold, as in `words.decided`; `levels`, at how
    many the claim was tested. Controls of fewer levels say so; those of too few seeds have no outcome.
    """
    if outcome in ("too few seeds", "not tested"):
        return ""
    said, passing = [], dict[str, str]()
    for arm, of in controls.items():
        at = f" at {of.levels} of the {levels} levels" if of.levels < levels else ""
        n = of.decides.verdict.bounds.n
        if n < LEAST_SEEDS:
            said.append(f"{arm} has {words.seeds(n)}{at}, too few")
            continue
        if of.outcome == "supported":
            passing[arm] = at
        how = "passes the same test" if of.outcome == "supported" else f"does not pass ({of.outcome})"
        bound = words.decided(of.decides.verdict, form, unit, below=below, rule="")
        said.append(f"{arm} {how}{at}: {bound} {of.decides.place}".rstrip())
    if outcome == "supported" and passing:
        alike = len({*passing.values()}) == 1
        names = " and ".join(arm if alike else f"{arm}{at}" for arm, at in passing.items())
        where = next(iter(passing.values())) if alike else ""
        said.append(f"so the claim does not tell tickets from {names}{where}")
    return "; ".join(said)


def named(tested: Judged, test: str, margin: str = f"±{SAME:g} pp") -> str:
    """The name of the test that decided: `test`, or the equivalence test with its margin."""
    return f"{EQUIVALENT}, {margin}" if tested.outcome == "equivalent" else test


def _least(of: Verdict, outcome: Said) -> float:
    mean, low, high, n = of.bounds
    return mean if n < 2 else high if outcome == "refuted" else low


def _reach(of: Verdict | None, same: float) -> float:
    """How far the bounds of an equivalence test reach from the value that says that nothing differs."""
    if of is None:
        return 0.0
    return max(1 / of.bounds.low, of.bounds.high) if same else max(-of.bounds.low, of.bounds.high)
