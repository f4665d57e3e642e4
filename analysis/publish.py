"""What of a run is worth keeping under version control: numbers, verdicts and figures, no weights.

python -m analysis.publish runs/lenet5_mnist-0123abcd results/lenet5_mnist
python -m analysis.publish runs/rates_lenet5-* results/rates_lenet5

  FOLDER/
    study.json               of the run; of several a list
    cells.csv, verdicts.csv  of the report; of several comparison.csv
    NAME.svg (or .png)       the report's figures
    landscape/, predict/, geography/, transfer/, savings.json
                             the tables of what else was found out, under their names in the run folder
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis import extra, report, savings
from lthjax import errors
from lthjax.errors import UserError
from lthjax.store import read_study

# Bytes of a figure that a page on the web shows without being waited for.
LARGEST = 300_000


def publish(runs: Sequence[str | Path], to: str | Path) -> Path:
    """Writes the reports anew and copies what is small.

    Args:
        runs: a run folder, or several, whose comparison is published.
        to: the folder; what an earlier call left in it is replaced.

    Returns:
        The folder.

    Raises:
        UserError: as `report.build_all`; the folder holds something else, or cannot be written.
    """
    to, folders = Path(to), [Path(run) for run in runs]
    source = report.build_all(folders).parent
    about = [read_study(run) for run in folders]
    if to.exists() and any(to.iterdir()) and not (to / "study.json").is_file():
        raise UserError(f"{to}: it is there and holds no published study; name another folder.")
    tables = [source / name for name in ("cells.csv", "verdicts.csv", "comparison.csv")]
    files = {table.name: table for table in [*tables, *_figures(source)] if table.is_file()}
    if len(folders) == 1:
        files |= {str(path.relative_to(folders[0])): path for path in _found(folders[0])}
    try:
        if to.exists():
            shutil.rmtree(to)
        for name, path in files.items():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / name)
        facts = json.dumps(about[0] if len(about) == 1 else about, indent=1) + "\n"
        extra.write_whole(to / "study.json", facts.encode())
    except OSError as error:
        raise UserError(f"{to}: it cannot be written ({error.strerror}).") from error
    return to


def _figures(folder: Path) -> Iterable[Path]:
    """Every figure as SVG or, where that is too large, as PNG; neither where both are."""
    for vector in sorted(folder.glob("*.svg")):
        small = [p for p in (vector, vector.with_suffix(".png")) if p.stat().st_size <= LARGEST]
        yield from small[:1]


def _found(run: Path) -> Iterable[Path]:
    """The tables that other commands have left in a run folder, without those that figures are drawn from."""
    for other in report.OTHERS:
        for path in sorted((run / other.__name__.rpartition(".")[2]).rglob("*.csv")):
            if not path.with_suffix(".png").is_file():
                yield path
    yield from run.glob(savings.FILE)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.publish",
        description="Copies numbers, verdicts and figures of runs, without weights, to a folder; prints it.",
    )
    parser.add_argument("run", nargs="+", help="a run folder, or several to be compared")
    parser.add_argument("folder", help="the folder to write, for example results/lenet5_mnist")
    options = parser.parse_args(arguments)
    print(publish(options.run, options.folder))


if __name__ == "__main__":
    errors.command_line(main)
