"""Adding seeds until a claim is decided: looks fixed beforehand, one error for all of them together."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lthjax import files, imp
from lthjax.errors import UserError, counted, unknown
from lthjax.imp import DENSE
from lthjax.measures import stats

from .. import words
from ..claims import NON_INFERIOR, SUPERIOR, At, Judged, everywhere
from ..page import Link
from ..record import LEAST_SEEDS, Finding, Said
from ..run import TICKET, Row, Run, chains
from .paired import differences
from .verdicts import at, images_of, in_range

FILE = "sequential.json"
# Looks at the data, each after as many further seeds as the first one has.
_LOOKS = 4


class Claim(NamedTuple):
    """A claim that seeds can be added for.

    Attributes:
        words: as in the report's verdicts.
        other: the arm that is subtracted from the ticket.
        threshold: that the difference must exceed at every level of 80–90 % sparsity, in points.
    """

    words: str
    other: str
    threshold: float


_WITHIN = "Tickets at 80–90 % sparsity are within {} points of the dense network"
CLAIMS = {
    "within-2": Claim(_WITHIN.format("2"), DENSE, -2.0),
    "within-0.5": Claim(_WITHIN.format("0.5"), DENSE, -0.5),
    "within-0.2": Claim(_WITHIN.format("0.2"), DENSE, -0.2),
    "beats-reinit": Claim("Tickets beat reinitialised ones at 80–90 % sparsity", "reinit", 0.0),
    "beats-reinit-by-10": Claim(
        "Tickets beat reinitialised ones by 10–15 points at 80–90 % sparsity", "reinit", 10.0
    ),
    "beats-random": Claim("Tickets beat random pruning at 80–90 % sparsity", "random", 0.0),
}


class State(NamedTuple):
    """How far the search for a verdict has come, as in sequential.json.

    Attributes:
        claim: a key of `CLAIMS`.
        looks: numbers of seeds at which it is tested, fixed beforehand.
        level: of the one-sided test of every look.
        seeds: at the last look.
        outcome: there.
        ended: why no seeds are added: "decided", "last look" or "budget".
        chosen: the seeds of that look; empty in files of before.
        chain: whose tickets are tested; "" in files of before, for the first of the report.
    """

    claim: str
    looks: list[int]
    level: float
    seeds: int
    outcome: Said
    ended: str
    chosen: Sequence[int] = ()
    chain: str = ""

    @property
    def rule(self) -> str:
        """The kind of bounds of every look."""
        return f"one-sided {100 * (1 - self.level):.1f} %"

    @property
    def how(self) -> str:
        """After how many seeds it ended, and why."""
        why = {"decided": "", "last look": "; that was the last look", "budget": "; the budget is used up"}
        return (
            f"after {words.seeds(self.seeds)}, with looks at {', '.join(map(str, self.looks))} seeds, "
            f"{self.rule} at every look, so that all looks together err in 5 %{why[self.ended]}"
        )

    def __str__(self) -> str:
        """In words, for the terminal."""
        return f"{CLAIMS[self.claim].words}: {self.outcome} {self.how}"


def checked(key: str) -> Claim:
    """The claim of that name.

    Raises:
        UserError: there is none.
    """
    if key not in CLAIMS:
        raise unknown("--until-decided", key, CLAIMS)
    return CLAIMS[key]


def looks_of(seeds: int) -> list[int]:
    """The looks of a study of so many seeds: after them, and after one, two and three times as many more."""
    first = max(seeds, LEAST_SEEDS)
    return [first * look for look in range(1, _LOOKS + 1)]


def widened(seeds: Sequence[int], n: int) -> list[int]:
    """The first n of a study's seeds and the least numbers that are not among them."""
    others = (seed for seed in range(n + len(seeds)) if seed not in seeds)
    return [*seeds, *(next(others) for _ in range(n - len(seeds)))][:n]


def judged(key: str, study: Any, rows: Sequence[Row], level: float, chain: str = "") -> Judged:
    """The verdict on a claim at one look, by one-sided bounds of this level.

    `chain` is that of the tickets, by default the first.

    Raises:
        UserError: there is no level of 80–90 % sparsity that has what the claim compares.
    """
    claim, chain = checked(key), chain or _first(rows)
    every = differences(rows, chain, TICKET, claim.other, images=images_of(study)) if chain else []
    levels = in_range(every)
    if not levels:
        raise UserError(
            f"--until-decided: {key} compares tickets with {claim.other} at 10 to 20 % of the weights; "
            "the study has no such level. Give it more levels or the arm."
        )

    tests = [
        At(at(of), stats.verdict(of.values, claim.threshold, 1 - level, floor=of.floor)) for of in levels
    ]
    found = everywhere(tests)
    # Seeds whose ticket or control has diverged give no pair.
    few = any(len(of.values) < LEAST_SEEDS for of in levels)
    return found._replace(outcome="undecided") if few else found


def _first(rows: Sequence[Row]) -> str:
    """The chain of tickets that the report's verdicts are about; "" where there is none."""
    return next((chain for chain in chains(rows) if imp.leader(chain) == TICKET), "")


def grow(
    key: str,
    seeds: Sequence[int],
    train: Callable[[list[int]], Run],
    budget: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> State:
    """Trains seeds look by look until the claim is decided, and writes `sequential.json` into the run folder.

    Args:
        key: of `CLAIMS`.
        seeds: of the study.
        train: trains what is missing of these seeds, and opens the run.
        budget: seconds. A look is not begun if it would exceed them, at the speed of the one before; 0 for
            no limit. The first look is always taken.
        say: is told the outcome of every look.
        clock: seconds.

    Raises:
        UserError: as `judged`.
    """
    looks = looks_of(len(seeds))
    level, began = stats.level_of_looks(looks), clock()
    before, there, chain = began, 0, ""
    for n in looks:
        run = train(widened(seeds, n))
        now = clock()
        own = [row for row in run.rows if row.seed in widened(seeds, n)]
        chain = chain or _first(own)
        outcome = judged(key, run.about, own, level, chain).outcome
        # Seeds that were there already took time in another call.
        a_seed = max((now - before) / (n - there), sum(row.seconds for row in own) / n)
        over = budget > 0 and now - began + a_seed * looks[0] > budget
        last = "decided" if outcome != "undecided" else "last look" if n == looks[-1] else ""
        ended = last or ("budget" if over else "")
        state = State(key, looks, level, n, outcome, ended, widened(seeds, n), chain)
        say(str(state) if state.ended else f"{key}: undecided after {words.seeds(n)}; adding seeds")
        if state.ended:
            files.write_whole(run.path / FILE, (json.dumps(state._asdict(), indent=1) + "\n").encode())
            return state
        before, there = now, n
    raise AssertionError("the last look ends it")


def read(run: Path) -> State | None:
    """The state in a run folder; None where seeds were not added so.

    Raises:
        UserError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
        str(state)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{path}: it cannot be read; delete it, or run --until-decided again.") from error
    return state


def noted(state: State | None, found: Sequence[Finding], study: Any, rows: Sequence[Row]) -> list[Finding]:
    """The findings, that on the claim for which seeds were added by its own bounds.

    Args:
        state: of the run, if seeds were added so.
        found: the findings.
        study: study.json.
        rows: of the run.
    """
    if state is None:
        return list(found)
    words_of = CLAIMS[state.claim].words
    made = [of for one in found if one.claim == words_of for of in _by_looks(state, one, study, rows)]
    place = next((place for place, one in enumerate(found) if one.claim == words_of), len(found))
    return [*found[:place], *made, *found[place + 1 :]]


def _by_looks(state: State, plain: Finding, study: Any, rows: Sequence[Row]) -> list[Finding]:
    """The findings in place of `plain`, which is made without looks and of the first chain.

    Seeds that were added for another chain give a finding of its own, so that neither hides the other.
    """
    seeds = state.chosen or sorted({row.seed for row in rows})[: state.seeds]
    own = [row for row in rows if row.seed in seeds]
    try:
        tested = judged(state.claim, study, own, state.level, state.chain)
    except UserError:
        lost = f"{state.outcome} {state.how}; the cells of those looks are not in the run"
        return [plain._replace(beside="; ".join(filter(None, (lost, plain.beside))))]
    claim = CLAIMS[state.claim]
    test = f"{NON_INFERIOR}, margin {-claim.threshold:g} pp" if claim.other == DENSE else SUPERIOR
    test += f", by {claim.threshold:g} pp or more" if claim.threshold > 0 else ""
    then = "" if tested.outcome == state.outcome else f"at the last look it was {state.outcome}"
    by_looks = plain._replace(
        outcome=tested.outcome,
        estimate=tested.said("+.2f", " pp", state.rule),
        n=tested.decides.verdict.bounds.n,
        test=f"{test}, {counted(len(state.looks), 'look')}",
        beside="; ".join(filter(None, (state.how, then, plain.beside))),
    )
    if state.chain in ("", _first(rows)):
        return [by_looks]
    beside, name = "; ".join(filter(None, (state.how, then))), f"rewound to step {imp.rewind_of(state.chain)}"
    where = Link("levels", "#levels") if claim.other == DENSE else Link("gaps", "#gaps")
    return [by_looks._replace(claim=f"{plain.claim}: {name}", where=where, beside=beside), plain]
