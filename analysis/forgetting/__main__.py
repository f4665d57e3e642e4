"""The command of forgetting."""

from .. import forgetting, record

main = record.command(forgetting.ANALYSIS, __name__)
