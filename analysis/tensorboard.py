"""Writes the curves of a run folder's cells as TensorBoard event files.

On the command line:

    python -m analysis.tensorboard runs/quickstart-0123abcd
    tensorboard --logdir runs/quickstart-0123abcd/tensorboard
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lthjax import cli, config, home
from lthjax.errors import UserError
from lthjax.folder.places import folder

from .run import open_run

# Marks the event files of this module; the fingerprint of their study is before it.
_SUFFIX = ".lthjax"
_EVENTS = f"events.out.tfevents.*{_SUFFIX}"


def write(run: str | Path, to: str | Path | None = None) -> Path:
    """Writes every curve of a cell as a scalar by step, to one event file a cell; returns their folder.

    Args:
        run: the run folder.
        to: the folder, by default RUN/tensorboard. Event files of earlier calls are replaced, those of other
            programs are kept. Runs of different studies take different folders.

    Raises:
        UserError: it is not a run folder, `to` has curves of another study or of an earlier version,
            tensorboardX is not installed, or it cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboardX is not installed; pip install tensorboardX adds it.") from error
    run = Path(run)
    to = run / "tensorboard" if to is None else Path(to)
    if (to / "study.json").is_file():
        raise UserError(
            f"--to: {str(to)!r} is a run folder, which holds its cells alone; choose another folder."
        )
    opened = open_run(run)
    rows = opened.finished()
    suffix = f".{config.fingerprint(opened.about['identity'])}{_SUFFIX}"
    # A run's own folder may have files of earlier versions, without a fingerprint.
    if to != run / "tensorboard" and any(not file.name.endswith(suffix) for file in to.rglob(_EVENTS)):
        raise UserError(
            f"--to: {str(to)!r} has curves of another run, or of an earlier version, which do not say of "
            "which run they are; choose another folder, or remove them."
        )
    try:
        for row in rows:
            cell = folder(Path(), row.cell)
            for earlier in (to / cell).glob(_EVENTS):
                earlier.unlink()
            result = opened.results[row.cell]
            curves, start = result["curves"], result.get("start", 0)
            with SummaryWriter(str(to / cell), filename_suffix=suffix) as writer:
                for name, values in curves.items():
                    # The losses of single steps (`log_every`) have steps of their own.
                    steps = curves["loss_step" if name == "loss" else "step"]
                    if name in ("step", "loss_step"):
                        continue
                    for step, value in zip(steps, values, strict=True):
                        if value is not None:
                            # Seconds since the training began, by its mean speed; steps count from 0.
                            passed = row.seconds * (step - start) / max(row.steps, 1)
                            writer.add_scalar(name, value, step, walltime=passed)
    except OSError as error:
        raise UserError(
            f"{to}: it cannot be written ({error.strerror}); choose another with --to."
        ) from error
    return to


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes the curves of a run folder's cells as TensorBoard event files."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder, for example runs/quickstart-0123abcd."""
    to: Path | None = None
    """Folder of the event files; by default RUN/tensorboard."""


def main(arguments: list[str]) -> None:
    """The command line."""
    options = cli.parsed(Options, arguments, home.command("tensorboard"))
    print(write(options.run, options.to))


if __name__ == "__main__":
    cli.run(main)
