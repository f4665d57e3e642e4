"""The analyses by name, in the order of the report's sections; a new one is a new row."""

from analysis import geography, landscape, predict, savings, structure, transfer
from analysis.record import Analysis

ANALYSES: dict[str, Analysis] = {
    analysis.name: analysis
    for analysis in (
        structure.ANALYSIS,
        savings.ANALYSIS,
        landscape.ANALYSIS,
        predict.ANALYSIS,
        geography.ANALYSIS,
        transfer.ANALYSIS,
    )
}
"""As `analysis.record.Analysis` says. One from outside the package is put here before a report is made."""
