"""Figures and reports of lthjax run folders. Only `landscape`, `predict` and `transfer` train."""

from analysis.cells import COLUMNS, Row, frame, load

__all__ = ["COLUMNS", "Row", "frame", "load"]
