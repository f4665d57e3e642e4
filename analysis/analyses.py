"""The analyses by name, in the order of the report's sections; a new one is a new row."""

from pathlib import Path

from lthjax import manifest

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


def left_out(run: Path) -> str:
    """That a run has results of analyses that are not loaded here, and what to do; "" if it has none."""
    names = sorted(sums.parent.name for sums in run.glob(f"*/{manifest.SUMS}"))
    if not (others := [name for name in names if name not in ANALYSES]):
        return ""
    return (
        f"{run}: the results in {', '.join(others)} are of no analysis that is loaded here, and are left "
        "out; name a config file that imports it by --config, or in Python import its file first"
    )
