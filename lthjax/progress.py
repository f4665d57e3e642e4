"""The display of a running study: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lthjax import fields, imp, prune
from lthjax.devices import hardware
from lthjax.errors import counted
from lthjax.imp import DENSE, Cell
from lthjax.pulse import SILENT_SECONDS, Pulse, duration
from lthjax.record import describe, outcome
from lthjax.study import Estimate, Plan, Prepared, together

# A segment of a training takes about as long, so that trainings under way have a line every three seconds.
_LINE_SECONDS = SILENT_SECONDS / 2


class Silent:
    """Shows nothing."""

    def begin(self, title: str, plan: Plan) -> None: ...
    def chunk(self, cells: Sequence[Cell], label: str) -> None: ...
    def advance(self, steps: int, accuracy: float | None) -> None: ...
    def finished(self, cell: Cell, result: fields.Result, label: str) -> None: ...
    def end(self) -> None: ...
    def say(self, text: str) -> None: ...


class _Speed:
    """Steps a second since the first steps were done: what was compiled before them does not count."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._steps = 0

    def add(self, steps: int) -> float | None:
        """Steps that have just been done; the speed, None for the first ones."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            return None
        self._steps += steps
        return self._steps / (now - self._began) if now > self._began else None


class Lines:
    """A plain line for every finished cell, and every three seconds in between."""

    def __init__(self, console: Console, silent: float = SILENT_SECONDS) -> None:
        self._console, self._silent = console, silent
        self._done = self._total = self._cells = self._all = 0
        self._began = self._last = 0.0
        self._what = ""
        self._speed = _Speed()
        self._pulse: Pulse | None = None

    def begin(self, title: str, plan: Plan) -> None:
        self._done, self._total, self._speed = 0, plan.steps, _Speed()
        self._cells, self._all = len(plan.done), len(plan.done) + len(plan.missing)
        self._began = self._last = time.monotonic()
        self.say(f"{title}: {len(plan.missing)} of {counted(len(plan.cells), 'cell')} to train")
        self._what = ""
        self.end()
        self._pulse = Pulse(self._compiling, self._silent)

    def _compiling(self) -> None:
        """Until the first steps are done, says what they wait for."""
        if not self._done:
            what = f"{self._what}: compiling" if self._what else "making the training programs"
            self.say(f"{what}, {duration(time.monotonic() - self._began)} so far")

    def chunk(self, cells: Sequence[Cell], label: str) -> None:
        self._what = _labelled(label, summary(cells))

    def advance(self, steps: int, accuracy: float | None) -> None:
        self._done += steps
        speed = self._speed.add(steps)
        now = time.monotonic()
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        seen = "" if accuracy is None else f", test accuracy {100 * accuracy:.2f} %"
        ahead = f"{self._done:,} of {self._total:,} steps"
        if speed:
            ahead = f"{speed:.0f} steps/s, {duration((self._total - self._done) / speed)} left"
        self.say(f"{self._what}{seen}, {ahead}")

    def finished(self, cell: Cell, result: fields.Result, label: str) -> None:
        self._cells += 1
        self.say(f"[{self._cells}/{self._all}] {_labelled(label, describe(cell))}: {outcome(result)}")

    def end(self) -> None:
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A bar with the current cells, steps per second, time left and the last accuracy."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.fields[study]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[what]}"),
            TextColumn("[cyan]{task.fields[speed]}"),
            TextColumn("[green]{task.fields[accuracy]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self._began = 0.0
        self._speed = _Speed()
        self._pulse: Pulse | None = None

    def begin(self, title: str, plan: Plan) -> None:
        self._began, self._speed = time.monotonic(), _Speed()
        self.end()
        for earlier in self._bar.task_ids:
            self._bar.remove_task(earlier)
        self._task = self._bar.add_task(
            "", total=plan.steps, study=title, what="", speed="compiling", accuracy=""
        )
        self._bar.start()
        self._pulse = Pulse(self._compiling, 1.0)

    def _compiling(self) -> None:
        """Until the first steps are done, shows how long they have been waited for."""
        if not self._bar.tasks[0].completed:
            self._bar.update(self._task, speed=f"compiling {duration(time.monotonic() - self._began)}")

    def chunk(self, cells: Sequence[Cell], label: str) -> None:
        self._bar.update(self._task, what=_labelled(label, summary(cells)))

    def advance(self, steps: int, accuracy: float | None) -> None:
        self._bar.advance(self._task, steps)
        speed = self._speed.add(steps)
        self._bar.update(self._task, speed=f"{speed:.0f} steps/s" if speed else "")
        if accuracy is not None:
            self._bar.update(self._task, accuracy=f"test {100 * accuracy:.2f} %")

    def finished(self, cell: Cell, result: fields.Result, label: str) -> None:
        line = f"{_labelled(label, describe(cell))}: {outcome(result)}"
        self._bar.console.print(line, highlight=False, markup=False)

    def end(self) -> None:
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def watch(quiet: bool) -> Silent | Lines | Bar:
    """The display for standard error: nothing, lines (also in a notebook), or a bar."""
    console = Console(stderr=True)
    if quiet:
        return Silent()
    if console.is_jupyter:
        # In a notebook, rich would make every line and every move of a bar a separate output.
        return Lines(Console(stderr=True, force_jupyter=False, force_terminal=False))
    return Bar(console) if console.is_terminal else Lines(console)


def summary(cells: Sequence[Cell]) -> str:
    """`level 3 ticket, reinit`: a short description of the cells in training."""
    levels = sorted({cell.level for cell in cells})
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if arms == [DENSE]:
        return DENSE
    return f"level {'-'.join(map(str, levels))} {', '.join(arms)}"


def _labelled(label: str, what: str) -> str:
    return f"{label}: {what}" if label else what


def plan_text(studies: Sequence[Prepared], plans: Sequence[Plan], cost: Estimate, out: Path) -> str:
    """The plan of a study or a sweep for the user: what will be trained, and at what cost."""
    if len(studies) == 1:
        rows = [("folder", str(out / studies[0].folder)), *_about(studies[0])]
    else:
        rows = []
        for one, plan in zip(studies, plans, strict=True):
            left = f"{len(plan.missing)} of {counted(len(plan.cells), 'cell')} to train"
            rows.append(("study", f"{one.label}: {left}, {out / one.folder}"))
        for one in {one.training: one for one in reversed(studies)}.values():
            rows += _about(one)
    whole = together(plans)
    unreachable = f"; {whole.behind} lie behind a diverged training" if whole.behind else ""
    if len(studies) == 1:
        rows.append(("cells", f"{len(whole.cells)}: {_cells(studies[0])}"))
    where = hardware.described()
    rows += [
        ("done", f"{counted(len(whole.done), 'cell')}; {len(whole.missing)} to train{unreachable}"),
        ("steps", f"{whole.steps:,} in all"),
        ("memory", f"about {cost.bytes / 2**20:,.0f} MiB for images and the training program"),
        ("speed", f"{1000 * cost.step_seconds:.2f} ms a step and replicate, measured on {where}"),
        ("time", f"about {duration(cost.seconds)}"),
    ]
    return "\n".join(f"{name:8} {value}" for name, value in rows)


def _about(prepared: Prepared) -> list[tuple[str, str]]:
    """A description of data, network and training."""
    study, lengths, dataset = prepared.study, prepared.lengths, prepared.dataset
    params = jax.eval_shape(prepared.model.init, jax.random.key(0)).params
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    weights = prune.totals(prune.ones(params))[1]
    return [
        ("data", f"{dataset.name} from {dataset.source}: {len(dataset.train_images) - study.data.validation} "
                 f"train, {study.data.validation} validation, {len(dataset.test_images)} test"),
        ("network", f"{study.model}: {parameters:,} parameters, {weights:,} prunable weights"),
        ("training", f"{counted(lengths.total, 'step')} of batch {study.train.batch} "
                     f"({lengths.per_epoch:,} an epoch), evaluated every {lengths.evaluate:,}"),
    ]  # fmt: skip


def _cells(prepared: Prepared) -> str:
    study = prepared.study
    named = [level for level in study.control_levels if level <= study.levels]
    plural = "s" if len(named) > 1 else ""
    controls = f"level{plural} {', '.join(map(str, named))}" if study.control_levels else "every level"
    chains = ", ".join(chain.name for chain in imp.chains(study, prepared.lengths))
    return (
        f"{counted(len(study.seeds), 'seed')}, dense and {counted(study.levels, 'level')}, "
        f"chain{'s' if ', ' in chains else ''} {chains}, arms "
        f"{', '.join(study.arms)} (controls at {controls})"
    )
