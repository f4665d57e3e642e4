"""The command of the examples."""

from lthjax import cli

from .. import examples, record

main = record.command(examples.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
