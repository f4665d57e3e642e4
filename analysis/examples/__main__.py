"""The command of the examples."""

from lthjax import cli

from .. import examples, record

if __name__ == "__main__":
    cli.run(record.command(examples.ANALYSIS))
