"""The command of the examples."""

from .. import examples, record

main = record.command(examples.ANALYSIS, __name__)
