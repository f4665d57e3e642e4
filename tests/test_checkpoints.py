"""Training runs that are stopped in the middle: they go on to the same bits. And work in the background."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from analysis import check, load
from lthjax import cli, config, imp, models, prune, rng, signals, study
from lthjax.background import Background
from lthjax.errors import UserError
from lthjax.folder import places, store
from lthjax.folder.reader import Reader
from lthjax.imp import DENSE, Cell
from lthjax.measures import earlybird
from lthjax.queue import Item, Queue
from lthjax.training import train
from lthjax.training.job import Checkpoints, Job, Position
from lthjax.training.trainer import Trainer

Make = Callable[..., study.Prepared]
CELL = Cell(0, DENSE, 0, DENSE)


def same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def jobs_of(prepared: study.Prepared, stop: int) -> list[Job]:
    made = []
    for seed in prepared.study.seeds:
        variables = prepared.model.init(rng.stream(seed, "init"))
        mask = prune.magnitude(variables.params, prune.ones(variables.params), 0.5)
        made.append(Job(seed, 0, 0, stop, variables, mask, captures=(0, 3, stop)[: 3 - seed], draws=True))
    return made


@pytest.mark.parametrize(
    "model", ["lenet300", pytest.param("normalised", marks=pytest.mark.slow)], ids=["adam", "statistics"]
)
def test_from_every_position_a_job_goes_on_to_the_same_bits(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(train, "_FIRST_STEPS", 2)
    monkeypatch.setattr(train, "_SEGMENT_SECONDS", 1e-9)  # one step each
    monkeypatch.setattr(earlybird, "QUEUE", 2)
    monkeypatch.setitem(models.MODELS, "normalised", models.Entry(models.Stages((4, 8), 1), 4, "two blocks"))
    data = config.Data(name="few", validation=40, augment=True)
    # With two evaluations or more, as the first has no distance.
    few = config.Train(steps=12, batch=20, eval_every=3)
    prepared = tiny(model=model, data=data, train=few)
    stop = 7 if model == "lenet300" else 4
    jobs = jobs_of(prepared, stop)
    trainer = study.make_trainer([prepared], 2, prepared.study.seeds)
    whole = train.train(trainer, jobs, lambda *_: None)
    saved: list[tuple[int, Position]] = []
    keep = Checkpoints(0.0, lambda i, position: saved.append((i, position)))
    again = train.train(trainer, jobs, lambda *_: None, keep)
    # After each of the segments: 2 steps, then 1 at a time.
    assert [position.at for i, position in saved if i == 0] == [*range(2, stop + 1)]
    assert len(saved) == 2 * (stop - 1)
    folder = store.Store(tmp_path / "run", study_about(prepared))
    with folder:
        for results in (again, *resumed(trainer, jobs, saved, folder)):
            for one, other in zip(results, whole, strict=True):
                same(one.variables, other.variables)
                same(one.states, other.states)
                assert (one.curves, one.scalars, one.status) == (other.curves, other.scalars, other.status)
                assert one.distances == other.distances
                assert one.distances is not None
                assert {len(of) for of in one.distances.values()} == {len(one.curves["step"])}
                assert one.distances["layer"] != one.distances["global"]


def resumed(
    trainer: Trainer,
    jobs: list[Job],
    saved: list[tuple[int, Position]],
    folder: store.Store,
) -> Any:
    """The results from every position, after a way through the disk."""
    for at in sorted({position.at for _, position in saved}):
        going = []
        for i, job in enumerate(jobs):
            (position,) = [position for j, position in saved if (j, position.at) == (i, at)]
            cell = CELL._replace(seed=job.seed)
            folder.write_position(cell, position, ())
            read = folder.position(cell)
            assert read is not None
            same(read.arrays, position.arrays)
            assert read.seconds == position.seconds > 0
            going.append(job._replace(position=read))
        done: list[int] = []
        yield train.train(trainer, going, lambda steps, _, done=done: done.append(steps))
        assert sum(done) == len(jobs) * (jobs[0].stop - at), "what was trained is not trained again"


def study_about(prepared: study.Prepared) -> Any:
    from lthjax import record

    return record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)


class Stop:
    """Sends a signal after some segments, and counts the steps."""

    def __init__(self, after: int | None) -> None:
        self.left, self.steps = after, 0
        self.said: list[str] = []

    def begin(self, *_: object) -> None: ...
    def chunk(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...
    def end(self) -> None: ...
    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, steps: int, _: float | None) -> None:
        self.steps += steps
        if self.left is not None:
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)


def numbers(run: Path) -> list[Any]:
    return [row._replace(seconds=0.0) for row in load(run)]


def test_a_study_stopped_inside_its_cells_goes_on_inside_them(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_FIRST_STEPS", 4)
    prepared = tiny(rewind=(0, 3), levels=1, arms=("ticket", "random"))
    whole = study.run(prepared, tmp_path / "whole")
    out, steps = tmp_path / "cut", 0
    planned = study.plan(prepared, out).steps
    for _ in range(40):
        before = study.plan(prepared, out)
        watch = Stop(5)
        try:
            run = study.run(prepared, out, watch=watch)
            steps += watch.steps
            break
        except KeyboardInterrupt:
            steps += watch.steps
            assert study.plan(prepared, out).steps == before.steps - watch.steps, "nothing is lost"
    assert steps == planned, "every step was trained once"
    assert numbers(run) == numbers(whole)
    for cell in imp.cells(prepared.study, prepared.lengths):
        one, other = Reader(run), Reader(whole)
        same(one.variables(cell), other.variables(cell))
    assert not list(run.glob("seed=*/under-way")), "positions go when their cells are there"
    assert not check.check(run).damaged


def stopped(prepared: study.Prepared, out: Path, **options: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        study.run(prepared, out, watch=Stop(3), **options)
    return out / prepared.folder


def test_a_damaged_position_is_named_and_not_used(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(seeds=(0,), levels=0, train=config.Train(steps=40, batch=20, eval_every=5))
    whole = study.run(prepared, tmp_path / "whole")
    run = stopped(prepared, tmp_path / "runs")
    at = places.saved_step(run, CELL)
    assert 0 < at < 40
    files = [p for p in (run / "seed=0" / "under-way").rglob("*") if p.is_file() and "variables" in p.parts]
    biggest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)
    (found,) = check.check(run).damaged
    assert "under-way" in str(found)
    watch = Stop(None)
    study.run(prepared, tmp_path / "runs", watch=watch)
    assert watch.steps == 40
    runs_on, said = watch.said
    assert runs_on.startswith("lthjax runs on ")
    assert str(biggest.relative_to(run)) in said
    assert said.endswith("The training of seed 0, dense begins anew.")
    assert said in (run / "log.txt").read_text()
    assert numbers(run) == numbers(whole)


def test_a_damaged_position_gives_way_to_a_new_one(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SEGMENT_SECONDS", 1e6)  # from evaluation to evaluation
    prepared = tiny(seeds=(0,), levels=0, train=config.Train(steps=40, batch=20, eval_every=5))
    run = stopped(prepared, tmp_path / "runs")
    at = places.saved_step(run, CELL)
    for path in (run / "seed=0" / "under-way").rglob("progress.json"):
        path.write_text("{}")
    assert places.saved_step(stopped(prepared, tmp_path / "runs"), CELL) == at
    assert not check.check(run).damaged


def test_a_position_that_lacks_a_rewind_state_is_not_used(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SEGMENT_SECONDS", 1e6)  # from evaluation to evaluation
    changes = {"seeds": (0,), "levels": 1, "train": config.Train(steps=40, batch=20, eval_every=5)}
    run = stopped(tiny(**changes), tmp_path / "runs")
    at = places.saved_step(run, CELL)
    wide = tiny(**changes, rewind=(0, 5))
    later = Reader(stopped(wide, tmp_path / "runs")).position(CELL)
    assert later is not None
    assert (later.at, {*later.states}) == (at, {5}), "it gives way to a new one of the same step"
    study.run(wide, tmp_path / "runs")
    whole = study.run(wide, tmp_path / "whole")
    assert numbers(run) == numbers(whole)


def test_no_position_is_at_the_start(tiny: Make, tmp_path: Path) -> None:
    """Earlier versions saved one, beside which a training that begins there would share a chunk."""
    prepared = tiny(seeds=(0,), levels=1, arms=("untrained", "untrained_sign_constant"))
    whole, run = (study.run(one, tmp_path / where) for one, where in (
        (prepared, "whole"), (tiny(seeds=(0,), levels=1, arms=()), "cut")))  # fmt: skip
    cell = Cell(0, "rewind-0", 1, "untrained")
    task = study.task(prepared, Reader(whole), cell)
    chunk = train._Chunk(
        study.make_trainer([prepared], 1, [0]), [Job(0, 1, task.start, task.stop, task.variables, task.mask)]
    )
    list(chunk.train(lambda *_: None))
    saved: list[Position] = []
    chunk.save(lambda _, position: saved.append(position))
    assert not saved
    chunk.start = -1
    chunk.save(lambda _, position: saved.append(position))
    with store.Store(run, study_about(prepared)) as folder:
        folder.write_position(cell, saved[0], ())
    assert study.run(prepared, tmp_path / "cut", chunk=2) == run
    assert numbers(run) == numbers(whole)
    assert not list(run.glob("seed=*/under-way"))


def test_a_study_stopped_in_its_last_evaluation_trains_no_step_again(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tiny(levels=0, seeds=(0, 1))
    whole = study.run(prepared, tmp_path / "whole")
    results = train._Chunk.results

    def interrupted(chunk: train._Chunk) -> list[Any]:
        signal.raise_signal(signal.SIGINT)
        return results(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(train._Chunk, "results", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.run(prepared, tmp_path / "cut")
    watch = Stop(None)
    run = study.run(prepared, tmp_path / "cut", watch=watch)
    assert watch.steps == 0
    assert numbers(run) == numbers(whole)
    one, other = (Reader(of).result(CELL) for of in (run, whole))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 5), (0, 5), (2, 0)])
def test_a_loss_curve_is_whole_or_left_out(tiny: Make, tmp_path: Path, before: int, after: int) -> None:
    """Another spacing neither changes the folder nor the numbers of a training that was stopped."""

    def asked(log_every: int) -> study.Prepared:
        long = config.Train(steps=40, batch=20, eval_every=5, log_every=log_every)
        return tiny(seeds=(0,), levels=0, train=long)

    run = stopped(asked(before), tmp_path / "runs")
    assert places.saved_step(run, CELL) > 2
    assert study.run(asked(after), tmp_path / "runs") == run
    curves = Reader(run).result(CELL)["curves"]
    if before == after:
        assert curves["loss_step"] == [*range(0, 40, after)]
    else:
        assert not {"loss_step", "loss"} & curves.keys()
    told = "seed 0, dense began with another train.log_every; its loss is not logged"
    assert (told in (run / "log.txt").read_text()) == (after == 5)


def test_a_position_of_an_earlier_version_goes_on_without_its_masks(tiny: Make) -> None:
    """It has those of one scope, whose distances would be half of what a result has."""
    prepared = tiny(seeds=(0,))
    (job,) = jobs_of(prepared, 12)
    trainer = study.make_trainer([prepared], 1, [0])
    saved: list[Position] = []
    keep = Checkpoints(0.0, lambda _, position: saved.append(position))
    (whole,) = train.train(trainer, [job], lambda *_: None, keep)
    curves = {name: of for name, of in saved[0].curves.items() if name not in earlybird.CURVES.values()}
    arrays = {**saved[0].arrays, "draws": {"newest": np.zeros((1, 4, 9), np.uint8)}}
    earlier = saved[0]._replace(curves=curves | {"distances": [[None] * 4]}, arrays=arrays)
    (rest,) = train.train(trainer, [job._replace(position=earlier)], lambda *_: None)
    same(rest.variables, whole.variables)
    assert (rest.curves, rest.scalars, rest.distances) == (whole.curves, whole.scalars, None)
    assert whole.distances is not None


class Written:
    """The study of an item, which only says what was written."""

    def __init__(self) -> None:
        self.booked: list[Any] = []
        self.written: list[Any] = []

    def lends(self, _: Item) -> bool:
        return False

    def book(self, _: Item, trained: Any) -> None:
        self.booked.append(trained)

    def write(self, _: Item, trained: Any) -> None:
        self.written.append(trained)


def test_results_are_written_though_a_signal_comes_while_they_wait_for_the_disk() -> None:
    run, busy = Written(), threading.Event()
    item = Item((0,), run, None, Job(0, 0, 0, 1, None, None))  # type: ignore[arg-type]

    def write_another() -> None:
        busy.set()
        time.sleep(0.5)

    def stopped_while_it_waits() -> None:
        with Background(waiting=1) as background:
            background.add(write_another)
            busy.wait()
            background.add(lambda: None)
            threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
            Queue(background).finish([item], ["trained"])  # type: ignore[list-item]

    assert raised(stopped_while_it_waits) is KeyboardInterrupt
    assert run.booked == run.written == ["trained"]


def test_a_result_that_cannot_be_written_does_not_keep_the_others_of_its_chunk() -> None:
    class Failing(Written):
        def write(self, item: Item, trained: Any) -> None:
            if trained in ("first", "second"):
                raise UserError(f"{trained}: it cannot be written")
            super().write(item, trained)

    run = Failing()
    item = Item((0,), run, None, Job(0, 0, 0, 1, None, None))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^first: "), Background(waiting=1) as background:
        Queue(background).finish([item] * 3, ["first", "second", "third"])  # type: ignore[list-item]
    assert run.written == ["third"]


def test_without_checkpoints_nothing_is_saved(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(seeds=(0,), levels=0)
    run = stopped(prepared, tmp_path / "runs", checkpoint_seconds=0)
    assert not (run / "seed=0" / "under-way").exists()


def raised(block: Callable[[], None]) -> type[BaseException] | None:
    try:
        block()
    except (KeyboardInterrupt, UserError) as error:
        return type(error)
    return None


def test_a_second_signal_does_not_wait() -> None:
    came = []

    def block() -> None:
        with signals.delayed() as delay:
            signal.raise_signal(signal.SIGINT)
            came.append(delay.asked)
            signal.raise_signal(signal.SIGINT)
            came.append("not reached")

    assert raised(block) is KeyboardInterrupt
    assert came == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_delayed_signal_acts_at_the_end() -> None:
    came = []

    def block() -> None:
        with signals.delayed() as delay:
            delay.deliver()
            signal.raise_signal(signal.SIGINT)
            came.append(delay.asked)

    assert raised(block) is KeyboardInterrupt
    assert came == [True]


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("30 s", 30), ("5 min", 300), ("1.5h", 5400), ("0 s", 0)]
)
def test_times(text: str, seconds: float) -> None:
    assert cli.seconds("--checkpoint-every", text) == seconds


@pytest.mark.parametrize("text", ["", "5", "min", "-5 min", "5 days", "nan s", "1e9 h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"^--checkpoint-every: .* is not allowed; .*'5 min'.*\.$"):
        cli.seconds("--checkpoint-every", text)


# The background


def test_urgent_tasks_come_first_and_each_kind_in_order() -> None:
    done: list[str] = []
    with Background(waiting=10) as background:
        background.add(lambda: time.sleep(0.2))
        for name in "abc":
            background.add(lambda name=name: done.append(name))
        for name in "xyz":
            background.add(lambda name=name: done.append(name), urgent=True)
        background.wait(lambda: len(done) == 6)
    assert "".join(done) == "xyzabc"


def test_the_queue_is_bounded() -> None:
    waiting: list[int] = []
    with Background(waiting=2) as background:
        started = time.monotonic()
        for _ in range(6):
            background.add(lambda: time.sleep(0.1))
            waiting.append(len(background._others))
        assert time.monotonic() - started > 0.25
    assert max(waiting) <= 2


def test_a_failure_is_told_where_the_block_ends_by_another(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise UserError("the disk is full")

    def is_stopped() -> None:
        with Background(waiting=5) as background:
            background.add(fail)
            raise KeyboardInterrupt

    assert raised(is_stopped) is KeyboardInterrupt
    assert [record.getMessage() for record in caplog.records] == [
        "Something else failed before the end: the disk is full"
    ]


def test_a_failure_is_raised_and_the_rest_is_done() -> None:
    done: list[str] = []

    def fail() -> None:
        raise UserError("the disk is full")

    def adds() -> None:
        with Background(waiting=5) as background:
            background.add(fail)
            background.add(lambda: done.append("after"))

    def waits() -> None:
        with Background(waiting=5) as background:
            background.add(fail)
            background.wait(lambda: False)

    def is_stopped() -> None:
        with Background(waiting=5) as background:
            background.add(lambda: done.append("written"))
            raise KeyboardInterrupt

    assert raised(adds) is UserError
    assert raised(waits) is UserError
    assert raised(is_stopped) is KeyboardInterrupt
    assert done == ["after", "written"]
