"""Adding seeds until a claim is decided: looks fixed beforehand, one error for all of them together.

The run folder keeps the looks of every claim, and a later call goes on with them: begun anew they would err
more often.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lthjax import files, imp
from lthjax.errors import UserError, counted, unknown
from lthjax.imp import DENSE
from lthjax.measures import stats
from lthjax.plan import Prepared

from .. import commands, words
from ..claims import NON_INFERIOR, SUPERIOR, At, Judged, everywhere
from ..page import Link
from ..record import LEAST_SEEDS, Finding, Said
from ..rows import TICKET, Row, select, ticket_chains
from ..run import Run
from .paired import (
    Level,
    Other,
    against,
    all_stopped,
    at_some,
    differences,
    earliest,
    in_range,
    levels_there,
    of_those_left,
    stopped,
    unpaired,
)
from .verdicts import at, at_most_15, images_of

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
    """How far the search for a verdict on a claim has come; sequential.json has one for every claim.

    Attributes:
        claim: a key of `CLAIMS`.
        looks: numbers of seeds at which it is tested, fixed beforehand.
        level: of the one-sided test of every look.
        seeds: at the last look; 0 before the first.
        outcome: there.
        ended: why no seeds are added: "decided", "last look", "budget", "diverged" where a ticket
            did and more seeds change nothing, or "" while they are.
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
        why = {"last look": "; that was the last look", "budget": "; the budget is used up"}
        return (
            f"after {words.seeds(self.seeds)}, with looks at {', '.join(map(str, self.looks))} seeds, "
            f"{self.rule} at every look, so that all looks together err in 5 %{why.get(self.ended, '')}"
        )

    @property
    def over(self) -> bool:
        """Whether there is no look left."""
        return self.ended in ("decided", "last look", "diverged")

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
    found = _of_those_left(key, study, rows, level, chain)
    return found._replace(outcome=of_those_left(found.outcome, _other(checked(key), rows, chain)))


def _of_those_left(key: str, study: Any, rows: Sequence[Row], level: float, chain: str) -> Judged:
    """As `judged`, of the tickets that did not diverge."""
    claim = checked(key)
    levels = _compared(claim, study, rows, chain)
    if not levels:
        raise _no_level(key)
    tests = [
        At(at(of), stats.verdict(of.values, claim.threshold, 1 - level, floor=of.floor)) for of in levels
    ]
    found = everywhere(tests)
    # Seeds whose ticket or control has diverged give no pair.
    few = any(len(of.values) < LEAST_SEEDS for of in levels)
    return found._replace(outcome="undecided") if few else found


def _other(claim: Claim, rows: Sequence[Row], chain: str) -> Other:
    """What a claim compares the tickets of a chain with; of the first chain if it is ""."""
    chain = chain or next(iter(ticket_chains(rows)), "")
    return against(rows, chain, select(rows, chain=chain, arm=claim.other), claim.other)


def _compared(claim: Claim, study: Any, rows: Sequence[Row], chain: str) -> list[Level]:
    """The levels of 80–90 % sparsity that have what a claim compares; of the first chain if it is ""."""
    chain = chain or next(iter(ticket_chains(rows)), "")
    every = differences(rows, chain, TICKET, claim.other, images=images_of(study)) if chain else []
    return in_range(every)


def check_planned(key: str, prepared: Prepared) -> None:
    """Checks that a study will have what a claim compares, before anything of it is trained.

    Raises:
        UserError: it will have no level of 80–90 % sparsity, or none with the claim's control.
    """
    claim, of = checked(key), prepared.study
    tickets = imp.chains(of, prepared.lengths)[0]
    densities = imp.planned(of, prepared.model)
    if densities is None:
        there = [*range(1, of.levels + 1)]
    else:
        there = [level for level, density in enumerate(densities, 1) if commands.is_in_range(density)]
    if not any(claim.other in (DENSE, *imp.arms_at(of, tickets, level)) for level in there):
        raise _no_level(key)


def _no_level(key: str) -> UserError:
    return UserError(
        f"--until-decided: {key} compares tickets with {CLAIMS[key].other} at 10 to 20 % of the weights; "
        "the study has no such level. Give it more levels or the arm."
    )


def grow(
    key: str,
    seeds: Sequence[int],
    path: Path,
    train: Callable[[list[int]], Run],
    budget: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> State:
    """Trains seeds look by look until the claim is decided, and keeps every look in `sequential.json`.

    A search that the run folder knows goes on after its last look, which is not judged again; one that is
    over only has what is missing of its seeds trained.

    Args:
        key: of `CLAIMS`.
        seeds: of the study; how many they are fixes the looks of a claim that has none.
        path: the run folder, which need not be there yet.
        train: trains what is missing of these seeds, and opens the run.
        budget: seconds. A look is not begun if it would exceed them, at the speed of the one before; 0 for
            no limit. The first look is always taken.
        say: is told the outcome of every look.
        clock: seconds.

    Raises:
        UserError: as `judged` and `read`; or seeds are asked for that the looks of the claim do not have.
    """
    state = read(path).get(key) or _begun(key, len(seeds))
    of = state.chosen or seeds
    _check_seeds(state, seeds, of)
    step, began, there = state.looks[0], clock(), 0
    before = began
    for n in [look for look in state.looks if look >= state.seeds]:
        state, run = _looked(state, widened(of, n), train)
        now = clock()
        # Seeds that were there already took time in another call.
        in_all = sum(row.seconds for row in run.rows if row.seed in state.chosen)
        a_seed = max((now - before) / (n - there), in_all / n)
        if not state.over:
            over = budget > 0 and now - began + a_seed * step > budget
            state = state._replace(ended="budget" if over else "")
        keep(run.path, {key: state})
        lost = _lost(state, run.rows)
        adding = f"{key}: undecided after {words.seeds(n)}{lost}; adding seeds"
        say(f"{state}{lost}" if state.ended else adding)
        if state.ended:
            return state
        before, there = now, n
    raise AssertionError("the last look ends it")


def _begun(key: str, seeds: int) -> State:
    """The state before the first look of a study of so many seeds."""
    looks = looks_of(seeds)
    return State(key, looks, stats.level_of_looks(looks), 0, "undecided", "")


def _check_seeds(state: State, asked: Sequence[int], of: Sequence[int]) -> None:
    """Checks that the seeds asked for are among those of the looks, which begin with `of`."""
    allowed = widened(of, state.seeds if state.over else state.looks[-1])
    if others := [seed for seed in asked if state.seeds and seed not in allowed]:
        raise UserError(
            f"--seeds: {', '.join(map(str, others))} {'is' if len(others) == 1 else 'are'} not allowed with "
            f"--until-decided {state.claim}, whose looks take seeds {', '.join(map(str, allowed))} "
            f"({state.outcome} after {words.seeds(state.seeds)}) and would err more often if they were begun "
            "anew; leave these seeds out, or train them without --until-decided."
        )


def _looked(state: State, seeds: list[int], train: Callable[[list[int]], Run]) -> tuple[State, Run]:
    """The state after the look at these seeds, and the run; an outcome that is known stays."""
    run, n = train(seeds), len(seeds)
    if n == state.seeds:
        return state._replace(chosen=seeds), run
    own = [row for row in run.rows if row.seed in seeds]
    chain = state.chain or next(iter(ticket_chains(own)), "")
    outcome, ended = _outcome(state, run.about, own, chain)
    ended = ended or ("last look" if n == state.looks[-1] else "")
    return state._replace(seeds=n, outcome=outcome, ended=ended, chosen=seeds, chain=chain), run


def _outcome(state: State, study: Any, rows: Sequence[Row], chain: str) -> tuple[Said, str]:
    """The outcome of a look, and why no further one is needed; "" if one is.

    Where a ticket diverged, a claim that holds for the others stays undecided however many seeds are added.
    One that is undecided for the others, more seeds may refute.
    """
    if stopped(rows, chain) and all_stopped(rows, chain) and not levels_there(rows, chain):
        return "undecided", "diverged"
    if unpaired(rows, chain, CLAIMS[state.claim].other):
        return "undecided", ""
    left = _of_those_left(state.claim, study, rows, state.level, chain).outcome
    outcome = of_those_left(left, _other(CLAIMS[state.claim], rows, chain))
    if outcome == "undecided":
        return outcome, "" if left == "undecided" else "diverged"
    return outcome, "decided"


def _lost(state: State, rows: Sequence[Row]) -> str:
    """What must be said of tickets and controls that diverged and leave a claim open; "" if none did."""
    if state.outcome != "undecided":
        return ""
    own = [row for row in rows if not state.chosen or row.seed in state.chosen]
    chain = state.chain or next(iter(ticket_chains(own)), "")
    lost, other = sorted(stopped(own, chain)), CLAIMS[state.claim].other
    alone = unpaired(own, chain, other)
    said = f"; {other} of {_named(alone)} diverged, which leaves no pair" if alone else ""
    if not lost:
        return said
    which = f"the {'tickets' if len(lost) > 1 else 'ticket'} of {_named(lost)}"
    why = f"{said}; {which} diverged, so that more seeds cannot support the claim"
    if state.ended != "diverged":
        return f"{why}, only refute it"
    others = "" if all_stopped(own, chain) else ", which holds for the others"
    return f"{why}{others}; lower the learning rate (optim.lr)"


def _named(seeds: Sequence[int]) -> str:
    """Seeds in a sentence: "seed 1", "seeds 0, 2"."""
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def keep(run: Path, states: Mapping[str, State]) -> None:
    """Writes states of claims into a run folder, beside those of other claims."""
    every = {key: of._asdict() for key, of in (read(run) | {**states}).items()}
    files.write_whole(run / FILE, (json.dumps(every, indent=1) + "\n").encode())


def joined(runs: Iterable[Path]) -> dict[str, State]:
    """The states in several run folders of one study, by claim; of one search the later one.

    Raises:
        UserError: two folders have other looks of one claim; or as `read`.
    """
    found: dict[str, tuple[Path, State]] = {}
    for run in runs:
        for key, state in read(run).items():
            other, there = found.setdefault(key, (run, state))
            earlier, later = sorted((there, state), key=lambda one: one.seeds)
            if earlier != later and not _goes_on(earlier, later):
                raise UserError(
                    f"{other} and {run} have other looks of the claim {key}, and looks of two folders cannot "
                    "be joined: leave out one of the folders."
                )
            found[key] = (run, state) if later is state else (other, there)
    return {key: state for key, (_, state) in found.items()}


def _goes_on(earlier: State, later: State) -> bool:
    """Whether a state is that of the same search after more looks."""
    same = all(
        getattr(earlier, name) == getattr(later, name) for name in ("claim", "looks", "level", "chain")
    )
    begun = [*earlier.chosen]
    return (
        same and not earlier.over and len(begun) == earlier.seeds and [*later.chosen][: len(begun)] == begun
    )


def read(run: Path) -> dict[str, State]:
    """The states in a run folder, by claim; none where seeds were not added so.

    Raises:
        UserError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        # Files of before hold the state of one claim.
        states = [State(**of) for of in ([made] if "claim" in made else made.values())]
        for state in states:
            str(state)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: it cannot be read; delete it, and its claims are tested as if no seeds had been added."
        ) from error
    return {state.claim: state for state in states}


def noted(
    states: Mapping[str, State], found: Sequence[Finding], study: Any, rows: Sequence[Row]
) -> list[Finding]:
    """The findings, those on claims for which seeds were added by their own bounds.

    Args:
        states: of the run, by claim, as `read`.
        found: the findings.
        study: study.json.
        rows: of the run.
    """
    there, looked = {one.claim for one in found}, dict[str, State]()
    for key, state in states.items():
        own = f"{CLAIMS[key].words}: {words.rewound(state.chain)}" if state.chain else ""
        looked[own if own in there else CLAIMS[key].words] = state
    return [
        of
        for one in found
        for of in (_by_looks(looked[one.claim], one, study, rows) if one.claim in looked else [one])
    ]


def _by_looks(state: State, plain: Finding, study: Any, rows: Sequence[Row]) -> list[Finding]:
    """The findings in place of `plain`, which is made without looks.

    If `plain` is of the first chain, and seeds were added for another one, that has a finding of its own, so
    that neither hides the other.
    """
    seeds = state.chosen or sorted({row.seed for row in rows})[: state.seeds]
    own = [row for row in rows if row.seed in seeds]
    try:
        tested = judged(state.claim, study, own, state.level, state.chain)
    except UserError:
        gone = _lost(state, own) or "; the cells of those looks are not in the run"
        said = f"{state.outcome} {state.how}{gone}"
        return [plain._replace(beside="; ".join(filter(None, (said, plain.beside))))]
    claim = CLAIMS[state.claim]
    test = f"{NON_INFERIOR}, margin {-claim.threshold:g} pp" if claim.other == DENSE else SUPERIOR
    test += f", by {claim.threshold:g} pp or more" if claim.threshold > 0 else ""
    there, how = _other(claim, own, state.chain), f"{state.how}{_lost(state, own)}"
    then = "" if tested.outcome == state.outcome else f"at the last look it was {state.outcome}"
    which, first = earliest(rows), state.chain in ("", next(iter(ticket_chains(rows)), ""))
    said = tested.said("+.2f", " pp", state.rule) + at_some(tested.levels, there)
    if claim.threshold > 0:
        said += at_most_15(_compared(claim, study, own, state.chain), state.level)
    by_looks = plain._replace(
        outcome=tested.outcome,
        estimate=f"{said}; {which}" if which and first else said,
        n=tested.decides.verdict.bounds.n,
        test=f"{test}, {counted(len(state.looks), 'look')}",
        beside="; ".join(filter(None, (how, then, plain.beside))),
    )
    if first or plain.claim != claim.words:
        return [by_looks]
    beside, name = "; ".join(filter(None, (how, then))), words.rewound(state.chain)
    where = Link("levels", "#levels") if claim.other == DENSE else Link("gaps", "#gaps")
    return [by_looks._replace(claim=f"{plain.claim}: {name}", where=where, beside=beside), plain]
