"""Figures and reports of lthjax run folders. Reads them, never trains."""

from analysis.cells import COLUMNS, Row, frame, load

__all__ = ["COLUMNS", "Row", "frame", "load"]
