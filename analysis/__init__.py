"""Figures and reports of lthjax run folders. Reads them, never trains."""

from analysis.cells import COLUMNS, Row, load

__all__ = ["COLUMNS", "Row", "load"]
