"""The analyses by name, in the order of the report's sections; a new one is a new row."""

from pathlib import Path

from lthjax import manifest, models

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
from .run import Run

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


def left_out(run: Path) -> list[str]:
    """The parts of a run that a report leaves out, as their network or analysis is not loaded; what to do."""
    said, opened = [], Run(run)
    model = opened.study.model
    if model not in models.MODELS:
        why = opened.not_loaded(f"the network {model!r}")
        said.append(f"the section {structure.ANALYSIS.title} is left out. {why}")
    names = sorted(sums.parent.name for sums in run.glob(f"*/{manifest.SUMS}"))
    if others := [name for name in names if name not in ANALYSES]:
        said.append(
            f"{run}: the results in {', '.join(others)} are of no analysis that is loaded here, and are left "
            "out; name a config file that imports it by --config, or in Python import its file first"
        )
    return said
