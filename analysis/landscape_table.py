"""What a run's landscape comes to in numbers: items, their arrays, rows, differences, findings."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis import cells, extra
from analysis.page import Link
from analysis.verdicts import Finding
from lthjax import files, study
from lthjax.errors import DAMAGED, UserError, shell
from lthjax.imp import DENSE, Cell
from lthjax.measures import landscape, stats
from lthjax.measures.stats import mean_interval
from lthjax.store import folder

ARMS = ("ticket", "reinit", "random")
SIBLING, MATCHED, END = "sibling", "matched", "end"
KINDS = ("point", "lines", "spectrum", "path_sibling", "path_dense", "path_reinit", "plane")
# Percentage points of error below which a path counts as without a barrier (Frankle et al. 2020).
CONNECTED = 2.0
# How far apart points of a line may be, in lengths of the filters, for what lies between two of them.
_NEAR = 0.1
_SPECTRAL = ("eigenvalues", "steps", "probes", "probe_steps", "trace_probes")


class Settings(NamedTuple):
    """How much is measured.

    Attributes:
        images: train images, and as many test images, for losses, gradients, lines and paths.
        plane_images, plane_test_images: the first so many of either, for surfaces.
        spectrum_images: the first so many train images, for spectra.
        points: on a line, and on either side of a plane.
        reach: how far lines and planes go, in lengths of the filters.
        draws: of directions, for lines.
        plane_draws: of pairs of orthogonal directions, for planes; the first of a pair is that of the line.
        alphas: points on a path.
        eigenvalues, steps: how many of the largest, and the Lanczos steps for them.
        probes, probe_steps: of the spectral density.
        trace_probes: of the trace.
        rho, adaptive_rho: length of the step for sharpness, absolute and relative to the weights.
    """

    images: int = 2000
    plane_images: int = 2000
    plane_test_images: int = 500
    spectrum_images: int = 500
    points: int = 51
    reach: float = 1.0
    draws: int = 3
    plane_draws: int = 1
    alphas: int = 30
    eigenvalues: int = 10
    steps: int = 40
    probes: int = 4
    probe_steps: int = 30
    trace_probes: int = 32
    rho: float = 0.05
    adaptive_rho: float = 0.5


class Row(NamedTuple):
    """One number, as in landscape.csv.

    Attributes:
        seed, chain, level, arm: which network; the dense one is chain "dense" and level 0.
        where: "end" of training; "matched reinit" and "matched random", where ticket and that control
            have the same train loss: the one that ends lower at the step of its training that is
            nearest to the other's end; or "path to OTHER".
        quantity: what, a key of `QUANTITIES` or "eigenvalue_N".
        value: of it.
        error: its standard error (traces), or the residual of its Ritz vector, which but for float32's
            rounding bounds its distance to an eigenvalue; else None.
    """

    seed: int
    chain: str
    level: int
    arm: str
    where: str
    quantity: str
    value: float
    error: float | None


class Difference(NamedTuple):
    """Ticket − another arm, paired over seeds, as in differences.csv; mean and its 95 % interval."""

    other: str
    where: str
    quantity: str
    mean: float
    low: float
    high: float
    n: int


QUANTITIES = {
    "step": "step of training at which it is measured",
    "train_loss": "train loss (nats)",
    "train_accuracy": "train accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
    "dimension": "dimension of the space: surviving weights and biases",
    "eigenvalue_1": "largest eigenvalue of the Hessian",
    "eigenvalue_lowest": "lowest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
    "trace_per_dimension": "mean eigenvalue of the Hessian",
    "sharpness": "rise of the train loss on a step of given length up the gradient (SAM)",
    "adaptive_sharpness": "the same with the step relative to the weights (ASAM)",
    "gradient_norm": "norm of the mean gradient",
    "gradient_noise": "trace of the covariance of one image's gradient",
    "distance": "distance from the start weights",
    "degrees": "angle from the start weights",
    "rise_train": "rise of the train loss half a filter's length away in random directions",
    "rise_test": "rise of the test loss there",
    "barrier_train_loss": "barrier of the train loss on the path (nats)",
    "barrier_test_loss": "barrier of the test loss on the path (nats)",
    "barrier_train_error": "barrier of the train error on the path (fraction)",
    "barrier_test_error": "barrier of the test error on the path (fraction)",
    "disagreement": "share of test images on which the ends of the path differ",
    "path_length": "distance between the ends of the path",
    "path_degrees": "angle between them",
}
"""What is measured, by name."""


class Item(NamedTuple):
    """Something to be measured: a kind, of a network, and for a path its other end."""

    kind: str
    cell: Cell
    other: Cell | None = None


class Asked(NamedTuple):
    """What is asked of a run.

    Attributes:
        run: the run folder.
        prepared: its study, with the seeds that are looked at.
        chain: the chain's name.
        rewind: the step that its tickets are rewound to.
        level: the level.
        arms: arm -> seeds whose cell is there and done; "dense" among them.
        planes: the seeds of which surfaces are measured.
        settings: how much.
        notes: what is left out, and why.
    """

    run: Path
    prepared: study.Prepared
    chain: str
    rewind: int
    level: int
    arms: dict[str, list[int]]
    planes: list[int]
    settings: Settings
    notes: list[str]


class Found(NamedTuple):
    """What one folder RUN/landscape/chain=C/level=LL holds.

    Attributes:
        run: the run folder.
        chain, level: of which networks.
        density: weights left / prunable weights, the mean of the tickets.
        rewind: the step that they are rewound to.
        arms, planes, settings: as in `Asked`.
        rows: the table.
        notes: what a reader must know.
    """

    run: Path
    chain: str
    level: int
    density: float
    rewind: int
    arms: dict[str, list[int]]
    planes: list[int]
    settings: Settings
    rows: list[Row]
    notes: list[str]


def items(asked: Asked | Found, matched: Iterable[Cell] = ()) -> list[Item]:
    """All that is measured, the cheap before the dear.

    Args:
        asked: of what.
        matched: replayed networks that are there; they are measured as points and spectra.
    """
    found = []
    for kind in KINDS:
        for arm, seeds in asked.arms.items():
            for seed in seeds:
                cell, other = cell_of(asked, seed, arm), kind.removeprefix("path_")
                if kind == "plane":
                    wanted = seed in asked.planes
                elif other == kind:
                    wanted = True
                elif other == SIBLING:
                    wanted = arm != DENSE
                else:
                    wanted = arm == "ticket" and seed in asked.arms[other]
                if wanted:
                    end = None if other == kind or kind == "plane" else cell_of(asked, seed, other, arm)
                    found.append(Item(kind, cell, end))
        if kind in ("point", "spectrum"):
            found += [Item(kind, cell) for cell in matched]
    return found


def cell_of(asked: Asked | Found, seed: int, arm: str, of: str = "") -> Cell:
    """The cell of an arm; of "sibling" that of the arm `of`."""
    if arm == DENSE:
        return Cell(seed, DENSE, 0, DENSE)
    return Cell(seed, asked.chain, asked.level, f"{of}_{SIBLING}" if arm == SIBLING else arm)


def _basis(item: Item, settings: Settings) -> dict[str, Any]:
    """What an item's numbers depend on besides the networks; arrays of another basis are made anew."""
    needed = {
        "point": ("images", "rho", "adaptive_rho"),
        "lines": ("images", "points", "reach", "draws"),
        "plane": ("plane_images", "plane_test_images", "points", "reach", "plane_draws"),
        "spectrum": ("spectrum_images", *(name for name in settings._fields if name in _SPECTRAL)),
    }.get(item.kind, ("images", "alphas"))
    # Smaller sets are the first images of this one.
    return {name: getattr(settings, name) for name in needed}


def _file(kept: Path, item: Item) -> Path:
    return folder(kept, item.cell) / f"{item.kind}.npz"


def read(kept: Path, item: Item, settings: Settings) -> dict[str, np.ndarray] | None:
    """An item's arrays; None where there are none, or of another basis, or damaged."""
    try:
        with _file(kept, item).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if json.loads(str(arrays["basis"])) == _basis(item, settings):
                return {name: arrays[name] for name in arrays.files if name != "basis"}
    except DAMAGED:
        pass
    return None


def write_arrays(kept: Path, item: Item, settings: Settings, arrays: dict[str, np.ndarray]) -> None:
    """Writes an item's arrays, whole or not at all."""
    contents = io.BytesIO()
    np.savez_compressed(contents, basis=json.dumps(_basis(item, settings)), **arrays)  # type: ignore[arg-type]
    path = _file(kept, item)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, contents.getvalue())


def matched_with(control: str) -> str:
    """What rows call the place at which ticket and control have the same train loss."""
    return f"{MATCHED} {control}"


def numbers(item: Item, arrays: dict[str, np.ndarray]) -> list[Row]:
    """An item's rows."""
    cell = item.cell
    where = END
    if item.other is not None:
        where = f"path to {item.kind.removeprefix('path_')}"
    arm, _, upper = cell.arm.partition(f"_{MATCHED}_")
    if upper:
        where = matched_with(upper if arm == "ticket" else arm)
    place = (cell.seed, cell.chain, cell.level, arm, where)
    values: dict[str, tuple[float, float | None]] = {}
    match item.kind:
        case "point":
            values = {name: (float(x), None) for name, x in arrays.items()}
        case "lines":
            # The mean over draws of both sides.
            half, steps = 0.5, arrays["steps"]
            between = 0 if np.isclose(abs(steps), half).any() else steps[1] - steps[0]
            if steps[-1] < half or between > _NEAR:
                return []
            for part in ("train", "test"):
                losses = arrays[f"{part}_loss"]
                at = [np.interp([-half, 0, half], steps, of_draw) for of_draw in losses]
                values[f"rise_{part}"] = float(np.mean([(a + b) / 2 - o for a, o, b in at])), None
        case "spectrum":
            ends = zip(arrays["largest"], arrays["largest_error"], strict=True)
            values = {
                f"eigenvalue_{i}": (float(x), float(e)) for i, (x, e) in enumerate(ends, 1) if np.isfinite(x)
            }
            values |= {
                "eigenvalue_lowest": (float(arrays["smallest"][0]), float(arrays["smallest_error"][0])),
                "trace": (float(arrays["trace"]), float(arrays["trace_error"])),
                "trace_per_dimension": (float(arrays["mean"]), float(arrays["mean_error"])),
            }
        case "plane":
            pass
        case _:
            for part in ("train", "test"):
                loss, error = arrays[f"{part}_loss"], 1 - arrays[f"{part}_accuracy"].astype(np.float64)
                values[f"barrier_{part}_loss"] = float(landscape.barrier(loss)), None
                values[f"barrier_{part}_error"] = float(landscape.barrier(error)), None
            for name in ("disagreement", "path_length", "path_degrees"):
                values[name] = float(arrays[name]), None
    return [Row(*place, name, value, error) for name, (value, error) in values.items()]


def place_of(row: Row) -> tuple[Any, ...]:
    """What rows are sorted by."""
    order = [DENSE, *ARMS]
    names = list(QUANTITIES)
    number = row.quantity.removeprefix("eigenvalue_")
    further = row.quantity not in names
    quantity = (names.index("eigenvalue_1"), int(number)) if further else (names.index(row.quantity), 0)
    return row.seed, order.index(row.arm), row.where != END, row.where, quantity


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Ticket − every other arm, of all that both have in a seed, with 95 % intervals."""
    found = []
    for other in ("reinit", "random", DENSE):
        for where, quantity in dict.fromkeys((row.where, row.quantity) for row in rows):
            values = stats.paired(
                values_of(rows, "ticket", where, quantity), values_of(rows, other, where, quantity)
            )
            if values:
                found.append(Difference(other, where, quantity, *mean_interval(values)))
    return found


def values_of(rows: Iterable[Row], arm: str, where: str, quantity: str) -> dict[int, float]:
    """Seed -> value."""
    wanted = (arm, where, quantity)
    return {row.seed: row.value for row in rows if (row.arm, row.where, row.quantity) == wanted}


def level_folder(kept: Path, chain: str, level: int) -> Path:
    """Where a level's tables and figures lie in RUN/landscape."""
    return kept / f"chain={chain}" / f"level={level:02d}"


def load(run: str | Path) -> list[Found]:
    """What was measured of a run's landscape, by chain and level; empty where nothing was.

    Raises:
        UserError: a file cannot be read.
    """
    run = Path(run)
    found = [found_at(run, path.parent) for path in (run / "landscape").glob("chain=*/level=*/about.json")]
    return sorted(found, key=lambda one: (one.rewind, one.chain, one.level))


def found_at(run: Path, where: Path) -> Found:
    """What a level's folder holds."""
    try:
        about = json.loads(extra.read_text(where / "about.json"))
        told = about.pop("settings")
        lacking = sorted({*Settings._fields} - {*told})
        if lacking or not (isinstance(about["arms"], dict) and about["arms"]):
            raise ValueError(f"about.json lacks {', '.join(lacking) or 'arms'}")
        rows = extra.read_rows(where / "landscape.csv", Row)
        if len(rows) != about.pop("rows", len(rows)):
            raise ValueError("landscape.csv has not as many rows as were written")
        notes = [*about.pop("notes")]
        return Found(run, **about, settings=Settings(**told), rows=rows, notes=notes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        level, chain = where.name.removeprefix("level=").lstrip("0"), where.parent.name.removeprefix("chain=")
        again = _command(run, level, "--chain", chain)
        raise UserError(f"{where}: it cannot be read ({error}); run {again} again.") from error


def arrays(found: Found) -> dict[Item, dict[str, np.ndarray]]:
    """What was measured at the end of training, as arrays; those that are there."""
    kept = found.run / "landscape"
    there = {item: read(kept, item, found.settings) for item in items(found)}
    return {item: of for item, of in there.items() if of is not None}


def findings(run: str | Path) -> list[Finding]:
    """What a run's landscape says about the claims made of tickets.

    Flatness is compared at matched train loss where replays were trained, else at the end of training,
    which the estimate then says. Matched, a point within one training is held against the end of
    another. Nothing measured is "not tested", with the command that measures it.

    Raises:
        UserError: a file cannot be read.
    """
    measured = load(run)
    if not measured:
        return _untested(Path(run))
    return [finding for found in measured for finding in (*_flatter(found), *_connected(found))]


_FLAT = "Tickets lie in flatter minima than reinitialised ones"


_BASIN = "Two trainings of a ticket that differ in data order are linearly connected"


FLATNESS = {
    "eigenvalue_1": "largest eigenvalue",
    "trace_per_dimension": "mean eigenvalue",
    "sharpness": "SAM",
}


def _untested(run: Path) -> list[Finding]:
    tickets = [row for row in cells.load(run) if row.arm == "ticket"]
    level = min(tickets, key=lambda row: abs(row.density - 0.15)).level if tickets else "L"
    command = _command(run, level)
    return [Finding(claim, "not tested", "not measured", 0, command) for claim in (_FLAT, _BASIN)]


def _again(found: Found) -> str:
    return _command(found.run, found.level, "--chain", found.chain)


def _command(run: Path, level: int | str, *more: str) -> str:
    return shell("python", "-m", "analysis.landscape", run, "--level", level, *more)


def _flatter(found: Found) -> list[Finding]:
    made = []
    for quantity, words in FLATNESS.items():
        claim = f"{_FLAT}, at {100 * found.density:.1f} %: {words}"
        of_arm = {
            where: [values_of(found.rows, arm, where, quantity) for arm in ("ticket", "reinit")]
            for where in (matched_with("reinit"), END)
        }
        paired = {where: stats.paired(*values) for where, values in of_arm.items()}
        where = next((where for where in paired if paired[where]), END)
        values = paired[where]
        if not values:
            made.append(Finding(claim, "not tested", "no reinit cell there", 0, _again(found)))
            continue
        ours, theirs = (float(np.mean(list(x.values()))) for x in of_arm[where])
        losses = [values_of(found.rows, arm, where, "train_loss") for arm in ("ticket", "reinit")]
        means = " and ".join(f"{np.mean(list(x.values())):.3g}" for x in losses)
        beside = "at the end of training, not matched" if where == END else "at matched train loss"
        also = "" if where == END else f"; at the end {_interval(paired[END])}"
        made.append(
            Finding(
                claim,
                stats.verdict([-value for value in values]).outcome,
                f"{ours:.3g} against {theirs:.3g}: {_interval(values)} {beside} ({means} nats){also}",
                len(values),
                Link("landscape", "#landscape"),
            )
        )
    return made


def _connected(found: Found) -> list[Finding]:
    claim = f"{_BASIN}, at {100 * found.density:.1f} %: error barrier below {CONNECTED:g} points"
    barriers = values_of(found.rows, "ticket", f"path to {SIBLING}", "barrier_test_error")
    if not barriers:
        return [Finding(claim, "not tested", "no siblings trained", 0, _again(found))]
    values = [100 * value for value in barriers.values()]
    # A path's highest error is no less than its ends' mean, and no error is above 100 %.
    least, most = stats.PERCENT
    outcome = stats.verdict([-value for value in values], -CONNECTED, within=(-most, -least)).outcome
    estimate = f"barrier of the test error {_interval(values, sign='', within=stats.PERCENT)} pp"
    return [Finding(claim, outcome, estimate, len(values), Link("landscape", "#landscape"))]


def _interval(values: Sequence[float], sign: str = "+", within: stats.Range = stats.ANY) -> str:
    found = mean_interval(list(values), within=within)
    if found.n == 1:
        return f"{found.mean:{sign}.3g}"
    return f"{found.mean:{sign}.3g} [{found.low:{sign}.3g}, {found.high:{sign}.3g}]"
