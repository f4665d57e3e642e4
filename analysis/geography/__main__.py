"""The command of the geography."""

from lthjax import cli

from .. import geography, record

if __name__ == "__main__":
    cli.run(record.command(geography.ANALYSIS))
