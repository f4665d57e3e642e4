"""The command of the geography."""

from .. import geography, record

main = record.command(geography.ANALYSIS, __name__)
