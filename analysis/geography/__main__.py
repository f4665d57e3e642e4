"""The command of the geography."""

from lthjax import cli

from .. import geography, record

main = record.command(geography.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
