"""The analyses by name, in the order of the report's sections; a new one is a new row."""

from . import (
    earlybird,
    examples,
    forgetting,
    geography,
    landscape,
    predict,
    retraining,
    savings,
    stability,
    structure,
    transfer,
)
from .record import Analysis

ANALYSES: dict[str, Analysis] = {
    module.ANALYSIS.name: module.ANALYSIS
    for module in (
        structure,
        retraining,
        savings,
        landscape,
        stability,
        predict,
        geography,
        examples,
        forgetting,
        earlybird,
        transfer,
    )
}
"""One from outside the package is added here before a report is made."""
