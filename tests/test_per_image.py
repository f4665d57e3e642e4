"""Images won and lost: counts, McNemar and κ by other programs, and the command on networks made by hand."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from conftest import check_section, make_tiny, result
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar

from analysis import draw, open_run, record
from analysis import examples as by_image
from analysis.examples import figures
from analysis.examples.table import LOSSES, AgreementRow, PairRow, between
from analysis.rows import TICKET
from lthjax import data, models, prune, study
from lthjax.errors import UserError
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import examples
from lthjax.measures.examples import Discordant
from lthjax.models import Variables
from lthjax.networks import Layer
from lthjax.record import about

Judged = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


@given(Judged)
@settings(max_examples=80, deadline=None)
def test_counts_and_mcnemars_test(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (np.array(of) for of in zip(*pairs, strict=True))
    found = examples.discordant(ours, theirs)
    expected = [pairs.count(of) for of in ((True, True), (True, False), (False, True), (False, False))]
    assert [*found] == [len(pairs), *expected]
    table = [[found.both, found.won], [found.lost, found.neither]]
    assert examples.p_value(found) == pytest.approx(min(mcnemar(table, exact=True).pvalue, 1.0))
    interval = examples.difference(found)
    assert interval.mean == pytest.approx(ours.mean() - theirs.mean())
    assert -1 <= interval.low <= interval.mean <= interval.high <= 1
    # The other way round, it is the other way round.
    turned = examples.difference(examples.discordant(theirs, ours))
    np.testing.assert_allclose([turned.low, turned.high], [-interval.high, -interval.low])


def test_the_interval_is_that_of_the_paper() -> None:
    """Agresti & Min 2005: half an image more in every cell; variance of McNemar's test."""
    b, c, n = 37.5, 17.5, 502.0
    error = ((b + c - (b - c) ** 2 / n) / n**2) ** 0.5
    found = examples.difference(Discordant(500, 400, 37, 17, 46))
    np.testing.assert_allclose([found.low, found.high], (b - c) / n + 1.959964 * error * np.array([-1, 1]))
    assert found.mean == pytest.approx(20 / 500)


@pytest.mark.parametrize("shares", [(0.9, 0.04, 0.02, 0.04), (0.97, 0.005, 0.015, 0.01)])
def test_the_interval_covers(shares: tuple[float, ...]) -> None:
    generator, truth = np.random.default_rng(0), shares[1] - shares[2]
    inside = 0
    for both, won, lost, neither in generator.multinomial(400, shares, 3000):
        found = examples.difference(Discordant(400, both, won, lost, neither))
        inside += found.low <= truth <= found.high
    assert 0.94 < inside / 3000 < 0.98


@given(Judged)
@settings(max_examples=80, deadline=None)
def test_kappa(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(of) for of in zip(*pairs, strict=True))
    found = examples.kappa(a, b)
    if len({*a.tolist(), *b.tolist()}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(cohen_kappa_score(a, b))
    assert examples.kappa(a, a) in (None, 1.0)


def test_kappa_of_independent_judgements_is_zero() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 200_000)) < np.array([[0.1], [0.3]])
    assert examples.kappa(a, b) == pytest.approx(0, abs=0.01)
    assert examples.kappa(a, ~a) < 0  # type: ignore[operator]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_forgetting_is_counted_from_one_network_to_the_next(sequence: list[list[bool]]) -> None:
    found = examples.forgetting(np.array(sequence))
    for image in range(3):
        said = "".join("R" if network[image] else "w" for network in sequence)
        assert found[image] == said.count("Rw")


def test_pairs_of_seeds_are_averaged_before_the_jackknife() -> None:
    kappas = {(0, 0): 0.9, (1, 1): 0.8, (2, 2): 0.7, (0, 1): 0.2, (1, 0): 0.4, (0, 2): 0.3, (2, 0): 0.5,
              (1, 2): 0.6, (2, 1): 0.6}  # fmt: skip
    rows = [AgreementRow("c", 1, "errors", "ticket", i, DENSE, j, kappa) for (i, j), kappa in kappas.items()]
    assert between(rows, 1, "ticket", DENSE, same=True) == [0.9, 0.8, 0.7]
    others = between(rows, 1, "ticket", DENSE)
    pairs = {(0, 1): 0.3, (0, 2): 0.4, (1, 2): 0.6}
    assert np.mean(others) == pytest.approx(np.mean([*pairs.values()]))
    # Without seed 0 there is the pair (1, 2) alone: 3 · mean − 2 · 0.6.
    assert others[0] == pytest.approx(3 * np.mean([*pairs.values()]) - 2 * 0.6)
    assert between(rows, 2, "ticket", DENSE) == []


def agreement(level: int, seeds: int, losers: tuple[int, ...]) -> list[AgreementRow]:
    """Rows of tickets that all err as their own dense networks; those of the losers lose one image."""
    errors = [
        AgreementRow("c", level, "errors", TICKET, i, DENSE, j, 0.9 if i == j else 0.3)
        for i, j in itertools.product(range(seeds), repeat=2)
    ]
    lost = {i: np.arange(50) == (0 if i in losers else -1) for i in range(seeds)}
    return errors + [
        AgreementRow("c", level, "losses", TICKET, i, TICKET, j, examples.kappa(lost[i], lost[j]))
        for i, j in itertools.combinations(range(seeds), 2)
    ]


@pytest.mark.parametrize("losers", [(0,), (0, 1)])
def test_losses_of_tickets_that_lose_nothing_have_no_mean(losers: tuple[int, ...]) -> None:
    """Of the pairs that are known all may share a seed, or their pseudo-values have another mean."""
    without = agreement(1, 4, losers)
    assert between(without, 1, TICKET, TICKET, LOSSES) == []
    own, lost = by_image.findings(cast(Any, None), {"agreement.csv": without})
    assert (own.outcome, own.n, lost.outcome) == ("supported", 4, "not tested")
    count = {(0,): 3, (0, 1): 1}[losers]
    said = f"not known at level 1: in {count} of 6 pairs no image is lost by either"
    assert lost.estimate == said
    both = [*without, *agreement(2, 4, (0, 1, 2, 3))]
    _, lost = by_image.findings(cast(Any, None), {"agreement.csv": both})
    assert lost.estimate.endswith(f" at level 2; {said}")


def test_pairs_with_dense_networks_are_of_seeds_that_have_both() -> None:
    rows = [row for row in agreement(1, 4, ()) if row.of == "errors"]
    assert between([row for row in rows if row.seed == 0], 1, TICKET, DENSE) == []
    assert between([row for row in rows if row.seed < 3], 1, TICKET, DENSE) == pytest.approx([0.3] * 3)
    assert between([row for row in rows if row.seed < 2], 1, TICKET, DENSE) == pytest.approx([0.3])


def test_the_seeds_of_a_claim_are_those_of_the_level_with_fewest() -> None:
    """A level with one seed has no bound that could decide, whatever its mean."""
    rows = [row for row in agreement(7, 3, (0, 1, 2)) if row.of == "errors"]
    alone = [row for row in agreement(3, 3, ()) if row.of == "errors" and row.seed == 0]
    own, *_ = by_image.findings(cast(Any, None), {"agreement.csv": [*rows, *alone]})
    assert (own.n, record.settled(own).outcome) == (1, "too few seeds")
    low = [row._replace(kappa=row.kappa and row.kappa / 2) for row in rows]
    own, *_ = by_image.findings(cast(Any, None), {"agreement.csv": [*low, *alone]})
    assert (own.n, record.settled(own).outcome) == (1, "too few seeds")


# A run of networks that were not trained.


def by_hand(params: Any, x: np.ndarray) -> np.ndarray:
    """The classes of normalised images [N, pixels], in float64 and without JAX."""
    for name in ("fc1", "output"):
        x = x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])
        x = np.maximum(x, 0) if name == "fc1" else x
    return x.argmax(-1)


Made = tuple[study.Prepared, Path, Path, dict[Cell, np.ndarray]]


def a_dense_network(seed: int, shown: np.ndarray, labels: np.ndarray) -> Any:
    """Random features of the normalised images, and an output layer fitted to their labels."""
    kernel = np.random.default_rng(seed).normal(size=(144, 12)).astype("f4") / 12
    fitted = np.linalg.lstsq(np.maximum(shown @ kernel, 0), np.eye(10)[labels], rcond=None)[0]
    layers = {"fc1": kernel, "output": fitted.astype("f4")}
    return {name: {"kernel": of, "bias": np.zeros(of.shape[1], "f4")} for name, of in layers.items()}


def masks(seed: int, params: Any) -> dict[str, Any]:
    """Arm -> its mask: the dense network's, the ticket's by magnitude, a random one."""
    generator, ones = np.random.default_rng(seed), prune.ones(params)
    drawn = {
        name: {"kernel": generator.random(of["kernel"].shape) < 0.7, "bias": np.True_}
        for name, of in params.items()
    }
    return {DENSE: ones, "ticket": prune.magnitude(params, ones, 0.3), "random": drawn}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Three seeds of networks that were never trained: the study, its data, the run, whether right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "narrow", models.Entry((Layer("fc1", 12),), 1, "for a test"))
        place = tmp_path_factory.mktemp("made")
        prepared = make_tiny(place)(model="narrow", levels=1, seeds=(0, 1, 2))
        right: dict[Cell, np.ndarray] = {}
        images, labels = prepared.dataset.test_images, prepared.dataset.test_labels
        with Store(place / "run", told(prepared)) as store:
            for seed in (0, 1, 2):
                split = data.split(prepared.dataset, seed, prepared.study.data.validation)
                shown = ((images / 255 - split.mean) / split.std).reshape(len(images), -1)
                params = a_dense_network(seed, shown, labels)
                for arm, mask in masks(seed, params).items():
                    cell = cell_of(arm, seed)
                    own = jax.device_get(prune.apply(params, mask))
                    right[cell] = by_hand(own, shown) == labels
                    of = {**result(cell), "test_accuracy": float(right[cell].mean())}
                    store.write(cell, of, mask, Variables(own, {}))  # type: ignore[arg-type]
        yield prepared, place / "data", place / "run", right


def told(prepared: study.Prepared) -> Any:
    return about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)


def cell_of(arm: str, seed: int) -> Cell:
    return Cell(seed, *((DENSE, 0) if arm == DENSE else ("rewind-0", 1)), arm)


def test_the_images_of_a_run(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, where, run, right = made
    assert {of.outcome for of in by_image.findings(open_run(run), None)} == {"not tested"}
    record.command(by_image.ANALYSIS)([str(run), "--data-dir", str(where), "--quiet"])
    assert capsys.readouterr().out == f"{run / 'examples'}\n"
    check_section(by_image.ANALYSIS, run)
    found = record.needed(by_image.ANALYSIS, open_run(run))
    assert draw.BANDS in by_image.section(open_run(run), found).figures[0].caption
    pairs: list[PairRow] = found["pairs.csv"]
    beside = [("random", DENSE), ("ticket", DENSE), ("ticket", "random")]
    assert sorted((row.arm, row.other) for row in pairs) == sorted(3 * beside)
    for row in pairs:
        ours, theirs = (right[cell_of(arm, row.seed)] for arm in (row.arm, row.other))
        assert (row.won, row.lost) == (int((ours & ~theirs).sum()), int((~ours & theirs).sum()))
        assert row.difference == pytest.approx(100 * (ours.mean() - theirs.mean()))
    said = {of.claim: of for of in by_image.findings(open_run(run), found)}
    assert {of.n for of in said.values()} == {3}
    # A ticket that is most of its dense network errs as that does.
    own = "A ticket errs on the images of its own dense network, more than of other seeds'"
    assert said[own].outcome == "supported"
    flat = {**found, "agreement.csv": [row._replace(kappa=0.3) for row in found["agreement.csv"]]}
    none, alike = by_image.findings(open_run(run), flat)
    assert (none.outcome, none.test, alike.outcome) == ("equivalent", "equivalence, ±0.05", "supported")
    # Random masks are as alike: the claim says nothing of tickets.
    assert none.beside.startswith("random does not pass (equivalent): ")
    assert alike.beside.startswith("random passes the same test: +0.300")
    assert alike.beside.endswith("; so the claim does not tell tickets from random")
    before = (run / "examples" / "pairs.csv").read_bytes()
    record.perform(by_image.ANALYSIS, run, data_dir=where)
    assert (run / "examples" / "pairs.csv").read_bytes() == before
    with pytest.raises(UserError, match="--levels: 4 has no trained ticket in rewind-0; it may be 1"):
        record.perform(by_image.ANALYSIS, run, levels=(4,), data_dir=where)
    with pytest.raises(UserError, match="--chain: 'rewind-3' has no ticket"):
        record.perform(by_image.ANALYSIS, run, chain="rewind-3", data_dir=where)


def test_agreement_and_images_of_a_run(made: Made) -> None:
    _, where, run, right = made
    record.perform(by_image.ANALYSIS, run, data_dir=where)
    found = record.needed(by_image.ANALYSIS, open_run(run))
    agreement: list[AgreementRow] = found["agreement.csv"]
    for row in agreement:
        judged = []
        for arm, seed in ((row.arm, row.seed), (row.other, row.other_seed)):
            lost = True if row.of == "errors" else right[cell_of(DENSE, seed)]
            judged.append(~right[cell_of(arm, seed)] & lost)
        assert row.kappa == pytest.approx(cohen_kappa_score(*judged))
    forgotten = {row.seed: row for row in found["forgetting.csv"]}
    for seed, row in forgotten.items():
        dense, ticket = (right[cell_of(arm, seed)] for arm in (DENSE, "ticket"))
        assert row[2:6] == (2, 0, 1, 60)
        # One step: what is forgotten is what is lost.
        lost = int((dense & ~ticket).sum())
        assert (row.forgotten, row.events) == (lost, lost)
        assert (row.always, row.never) == (int((dense & ticket).sum()), int((~dense & ~ticket).sum()))
    assert sorted(forgotten) == [0, 1, 2]
    errors = [(row.arm, row.other) for row in agreement if row.of == "errors"]
    # Three pairs of seeds of each of three arms; three times three of an arm and the dense networks.
    assert len(errors) == 3 * 3 + 2 * 9
    losses = {(row.arm, row.other) for row in agreement if row.of == "losses"}
    assert losses == {("ticket", "ticket"), ("random", "random")}
    images = found["images.csv"]
    wrong, dense_wrong = (
        np.sum([~of for cell, of in right.items() if cell.arm == arm], axis=0) for arm in ("ticket", DENSE)
    )
    assert images[0].wrong - images[0].dense_wrong == max(wrong - dense_wrong)
    for row in images:
        assert (row.wrong, row.dense_wrong) == (wrong[row.image], dense_wrong[row.image])
        assert row.label == made[0].dataset.test_labels[row.image]


def test_a_network_that_is_not_the_run_s_is_noticed(made: Made, tmp_path: Path) -> None:
    prepared, where, run, right = made
    cell, opened = Cell(0, "rewind-0", 1, "ticket"), open_run(run)
    wrong = float(right[cell].mean()) - 0.05
    of: Any = {**opened.results[cell], "test_accuracy": wrong}
    dense = cell_of(DENSE, 0)
    results = {dense: opened.results[dense], cell: of}
    with Store(tmp_path / "other", told(prepared)) as store:
        for one, measured in results.items():
            store.write(one, measured, opened.mask(one), opened.variables(one))
    with pytest.raises(UserError, match=r"the ticket network of seed 0 at level 1 has .* in its result"):
        record.perform(by_image.ANALYSIS, tmp_path / "other", data_dir=where)


def test_one_seed_is_drawn_without_a_legend_of_others() -> None:
    """A warning is an error here, too."""
    pair = PairRow("rewind-0", 2, 0, 1, TICKET, DENSE, 0.64, 100, 90, 3, 4, 3, -1.0, -5.0, 3.0, 1.0)
    row = AgreementRow("rewind-0", 2, "errors", TICKET, 0, DENSE, 0, 0.5)
    _, agreement = figures.drawn({"pairs.csv": [pair], "agreement.csv": [row]})
    left, right = agreement.figure.axes
    assert right.get_legend() is None
    assert list(left.lines[0].get_xdata()) == [64.0]
