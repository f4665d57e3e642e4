"""Figures and reports of lthjax run folders; some analyses train, and say so (`analysis.record`)."""

import sys

from lthjax import cli, errors

try:
    cli.load_jax()
except errors.UserError as error:
    if sys.argv[0] != "-m":
        raise
    # `python -m analysis.X` imports this package before the command could say what is wrong.
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

from .run import COLUMNS, Row, Run, frame, load, open_run

__all__ = ["COLUMNS", "Row", "Run", "frame", "load", "open_run"]
