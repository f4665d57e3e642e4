"""The analyses by name, in the order of the report's sections; a new one is a new row."""

import contextlib
import importlib

from analysis.record import Analysis

ANALYSES: dict[str, Analysis] = {}
"""As `analysis.record.Analysis` says; one from outside the package is put here before a report is made."""
for _name in ("structure", "savings", "landscape", "predict", "geography", "transfer"):
    with contextlib.suppress(ImportError, AttributeError):
        ANALYSES[_name] = importlib.import_module(f"analysis.{_name}").ANALYSIS
