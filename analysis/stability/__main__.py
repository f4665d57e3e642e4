"""The command of the instability analysis."""

from .. import record, stability

main = record.command(stability.ANALYSIS, __name__)
