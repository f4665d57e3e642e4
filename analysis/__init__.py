"""Figures and reports of lthjax run folders; some analyses train, and say so (`analysis.record`)."""

import contextlib
import sys

from lthjax import cli, command, errors, signals

# `python -m analysis.X` imports this package before the command.
_COMMAND = sys.argv[0] == "-m"
if _COMMAND:
    cli.open_streams()
    # Until `cli.run` hears them.
    signals.end_at_once()

try:
    with cli.loading(True) if _COMMAND else contextlib.nullcontext(), command.laboratory_needed():
        cli.load_jax()
        from .rows import COLUMNS, Row
        from .run import Run, frame, load, open_run
except errors.UserError as error:
    if not _COMMAND:
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

__all__ = ["COLUMNS", "Row", "Run", "frame", "load", "open_run"]
